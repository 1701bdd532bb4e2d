"""Reading one activation a text: what vectors and probes are learnt from."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lrt_lens.errors import NonFiniteError
from lrt_lens.models.hook_points import resolve
from lrt_lens.models.hooked_model import SKIP_FIRST, HookedModel

Read = Literal["last", "mean"] | int
"""Where a text is read: its last token, the mean over its unmasked tokens, or a position (negative counts from the end)."""
_READ_BATCH = 32


def read_activations(model: HookedModel, texts: Sequence[str], hook: int | str, read: Read = "last") -> Tensor:
    """One row a text, [text, d_model] in float32, read at the last token, as the mean over unmasked tokens, or at a position."""
    rows = model.encode(texts)
    name = resolve(hook, model)
    out = torch.empty(len(rows), model.d_model)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), _READ_BATCH):
        chosen = order[start : start + _READ_BATCH]
        batch = [rows[i] for i in chosen]
        activations = model.engine.capture(model.pad(batch), [name])[name].float()
        out[chosen] = _read(activations, model, batch, read).cpu()
    if not torch.isfinite(out).all():
        raise NonFiniteError(
            f"activations of {model.name!r} at {name!r} are NaN or infinite on these texts; load the model in float32 or bfloat16"
        )
    return out


def _read(activations: Tensor, model: HookedModel, rows: list[list[int]], read: Read) -> Tensor:
    if read == "mean":
        mask = model.read_mask(rows).to(activations)
        short = [i for i, count in enumerate(mask.sum(1).tolist()) if count == 0]
        if short:
            raise ValueError(
                f"a text of {len(rows[short[0]])} tokens has none behind the {SKIP_FIRST} masked ones; give longer texts, or read='last'"
            )
        return (activations * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    if read != "last" and not isinstance(read, int):
        raise ValueError(f"read is {read!r}; expected 'last', 'mean', or a position")
    positions = [len(row) - 1 if read == "last" else (read if read >= 0 else len(row) + read) for row in rows]
    for position, row in zip(positions, rows, strict=True):
        if not 0 <= position < len(row):
            raise ValueError(f"position {read} is outside a text of {len(row)} tokens; use 'last', 'mean' or a smaller position")
    return activations[torch.arange(len(rows)), torch.tensor(positions)]
