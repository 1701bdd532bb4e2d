"""TODO."""

from pathlib import Path

import torch

from lrt_lens.models._pair import ModelPair

DEMO_FOLDER = Path(__file__).parent
"""The bundled family: a folder a size, the harvest text and the contrast sets."""


def demo_pair(
    source: str = "small",
    target: str = "large",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> ModelPair:
    """The bundled small and large model, offline. ``source`` and ``target`` name members of the
    family.
    """
    for name in (source, target):
        if not (DEMO_FOLDER / name / "config.json").exists():
            members = sorted(path.parent.name for path in DEMO_FOLDER.glob("*/config.json"))
            raise ValueError(f"{name!r} is not in the bundled family; it has {members}")
    return ModelPair.load(
        str(DEMO_FOLDER / source), str(DEMO_FOLDER / target), device=device, dtype=dtype
    )
