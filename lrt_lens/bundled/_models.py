"""The bundled models: `demo_pair` loads two of them without a network.

    pair = demo_pair()                     # "small" and "large"
    pair = demo_pair("small", "small")     # one model against itself

Problem: examples and tests must run without a download. Mechanism: a family of tiny models of one
tokenizer ships with the package.

Limits: models of 1.5 and 5 million parameters that write simple stories and reviews; results on
them say nothing about larger models.
"""

from pathlib import Path

import torch

from lrt_lens.models._pair import ModelPair

DEMO_FOLDER = Path(__file__).parent
"""Folder of the bundled family: one folder per model size, one of texts and one of SAEs."""


def demo_pair(
    source: str = "small",
    target: str = "large",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> ModelPair:
    """Return a pair of bundled models, loaded without a network.

    ``source`` and ``target`` are names of the family's members.

    Raises:
        ValueError: the family has no such member.
    """
    for name in (source, target):
        if not (DEMO_FOLDER / name / "config.json").exists():
            # Every folder with a config.json is a model; texts and SAEs have none directly below
            # DEMO_FOLDER.
            members = sorted(path.parent.name for path in DEMO_FOLDER.glob("*/config.json"))
            raise ValueError(
                f"{name!r} is not in the bundled family; it has {members}: choose one of them"
            )
    return ModelPair.load(
        str(DEMO_FOLDER / source), str(DEMO_FOLDER / target), device=device, dtype=dtype
    )
