"""Random vectors, and logits of hooked models and of baked folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.models import HookedModel


def vector_at(model: HookedModel, hook: str, *, seed: int = 3) -> SteeringVector:
    """Return a random vector of a model that steers all positions."""
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed))
    return SteeringVector(direction, hook, model.identity, skip_first=0)


def rows_of(model: HookedModel, n: int = 3, length: int = 12, seed: int = 7) -> Tensor:
    """Return rows of token ids, [row, position]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.d_vocab, (n, length), generator=generator)


def hooked_logits(
    model: HookedModel, vectors: Sequence[SteeringVector], rows: Tensor, scale: float
) -> Tensor:
    """Return the logits of a model under the hooks of vectors."""
    hooks = {vector.hook: vector.hook_at(scale) for vector in vectors}
    with model.intervene({**hooks}):
        return model.logits(rows)


def plain_logits(folder: Path, rows: Tensor) -> Tensor:
    """Return the logits of a folder that transformers loads."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(rows).logits


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Return max |Δ|."""
    return float((one.detach().double() - other.detach().double()).abs().max())
