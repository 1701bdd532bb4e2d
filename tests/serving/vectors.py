"""Random vectors of small models."""

from dataclasses import replace
from typing import Any

import torch

from lrt_lens.adapters.vectors import SteeringVector


def make_vector(model: Any, block: int, *, seed: int = 0, **fields: Any) -> SteeringVector:
    """Return a random direction behind a block."""
    generator = torch.Generator().manual_seed(seed)
    direction = 3.0 * torch.randn(model.d_model, generator=generator)
    hook = f"blocks.{block}.hook_resid_post"
    return replace(SteeringVector(direction, hook, model.identity, "mood"), **fields)
