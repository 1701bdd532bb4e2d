"""Exports a vector of the package in the file of an engine.

Problem: `make engines-check` needs one file per engine, under the name that the engine expects.
Mechanism: the exports and the baked folder of the package itself, so that they are what is checked.

Limits: plain vLLM loads what plain transformers loads.
"""

from pathlib import Path

import lrt_lens as lrt
from lrt_lens.serving import bake_vector, export_vectors

_FILES = {
    "repeng": "vector.gguf",
    "vllm-lens": "vector.json",
    "lm-eval": "vector.pt",
    "steering-vectors": "vector.pt",
    "transformers": "steering",
}
"""Name of the file, or of the folder, by format."""


def exported(
    vector: lrt.SteeringVector,
    folder: Path,
    to: str,
    scale: float,
    *,
    mode: str = "add",
    level: float = 0.0,
) -> Path:
    """Return the path of the file, or of the folder, that engine ``to`` loads.

    Args:
        vector: vector at the output of a block.
        folder: existing folder, into which it is written.
        to: name of the format.
        scale: multiple of the vector that is added.
        mode: ``"add"``, ``"clamp"`` or ``"ablate"``.
        level: component along the unit vector that a clamp sets.

    Raises:
        ValueError: a format that cannot express the mode.
    """
    options: dict[str, object] = {"mode": mode, "scale": scale}
    if mode == "clamp":
        options["level"] = level
    return export_vectors(vector, folder / _FILES[to], to, **options)  # type: ignore[arg-type]


def baked(vector: lrt.SteeringVector, model: lrt.HookedModel, folder: Path, scale: float) -> Path:
    """Return an ordinary model folder that steers by its weights."""
    return bake_vector(vector, model, folder, scale=scale)
