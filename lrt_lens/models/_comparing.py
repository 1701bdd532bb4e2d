"""Comparisons of passes, and what they need to know of a model.

relative_difference(bridged, logits)        # ‖a − b‖ / ‖b‖
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn


def padded_positions(model: nn.Module) -> Any:
    """Return the table of positions of a model that has a row for padding there, or None."""
    for path, module in model.named_modules():
        is_positions = path.split(".")[-1] == "position_embeddings"
        if is_positions and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module
    return None


def short_row(d_vocab: int) -> Tensor:
    """Return eight token ids [1, 8] on which properties of a model are measured at loading."""
    # Token ids 1 to 8, modulo the vocabulary for models with a tiny one.
    return torch.arange(1, 9).remainder(d_vocab)[None]


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """Return ‖value − reference‖ / ‖reference‖ in float64; infinite if ``value`` has a NaN."""
    value, reference = value.double(), reference.double().to(value.device)
    difference = float((value - reference).norm() / reference.norm().clamp_min(1e-30))
    return difference if difference == difference else float("inf")


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative difference below which two orders of arithmetic give one function.

    Two implementations of attention agree to about 1e-6 in float32 and to about 1e-2 in bfloat16.
    """
    return 1e-3 if dtype in (torch.float32, torch.float64) else 5e-2


def without_cache(model: Any) -> dict[str, Any]:
    """Return the option that switches the key-value cache off, if the model takes it."""
    # A few models (GPT-1) have no cache and refuse the option.
    parameters = signature(model.forward).parameters
    takes = "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {"use_cache": False} if takes else {}


def first_line(error: Exception) -> str:
    """Return the beginning of an error's message, or its class if it has none."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]


def first_device(model: nn.Module) -> torch.device:
    """Return the device of a module's first parameter."""
    return next(model.parameters()).device
