"""Reading activations from texts: what vectors and probes are learnt from.

    read_activations(model, texts, 3, "mean")      # [text, d_model]
    for i, rows in read_tokens(model, texts, 3):   # [token, d_model] of every text, at the positions that maps are fitted on
        ...

A text is read at one position or pooled over its unmasked tokens: behind the first ``skip_first``,
no special ones. A mean commutes with an affine map, a maximum does not: ``through=`` maps every
token before it is pooled.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from lrt_lens.errors import NonFiniteError
from lrt_lens.models._hook_points import resolve
from lrt_lens.models._hooked_model import SKIP_FIRST, HookedModel

Read = Literal["last", "mean", "max"] | int
"""Where a text is read: its last token, the mean or the elementwise maximum over its unmasked
tokens, or a position (negative counts from the end)."""
EveryRead = Read | Literal["every"]
"""The same, or every unmasked token on its own."""
_READ_BATCH = 32


def read_activations(
    model: HookedModel,
    texts: Sequence[str],
    hook: int | str,
    read: Read = "last",
    *,
    skip_first: int = SKIP_FIRST,
    through: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """One row a text, [text, d_model] in float32, read at the last token, pooled over unmasked
    tokens, or at a position.

    ``through`` maps every token, [token, d_model] → [token, d], before it is pooled.
    """
    if not isinstance(read, int) and read not in ("last", "mean", "max"):
        raise ValueError(f"read is {read!r}; expected 'last', 'mean', 'max', or a position")
    out: list[Tensor] = [torch.empty(0)] * len(texts)
    for index, activations, mask in _passes(model, texts, hook, skip_first):
        pooled = read in ("mean", "max")
        if pooled and not mask.any():
            raise _too_short(len(mask), skip_first)
        rows = activations[mask] if pooled else activations[_position(read, len(mask))][None]
        rows = rows if through is None else through(rows)
        out[index] = rows.amax(0) if read == "max" else rows.mean(0)
    return torch.stack(out)


def read_tokens(
    model: HookedModel, texts: Sequence[str], hook: int | str, *, skip_first: int = SKIP_FIRST
) -> Iterator[tuple[int, Tensor]]:
    """(number of the text, its unmasked tokens [token, d_model] in float32), one text at a time,
    shortest first.
    """
    for index, activations, mask in _passes(model, texts, hook, skip_first):
        if not mask.any():
            raise _too_short(len(mask), skip_first)
        yield index, activations[mask]


def _passes(
    model: HookedModel, texts: Sequence[str], hook: int | str, skip_first: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(number of the text, [token, d_model], which tokens are unmasked [token]), padding cut off."""
    rows = model.encode(texts)
    name = resolve(hook, model)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), _READ_BATCH):
        chosen = order[start : start + _READ_BATCH]
        batch = [rows[i] for i in chosen]
        activations = model.engine.capture(model.pad(batch), [name])[name].float().cpu()
        masks = model.read_mask(batch, skip_first)
        for place, i in enumerate(chosen):
            activation = activations[place, : len(rows[i])]
            if not torch.isfinite(activation).all():
                raise NonFiniteError(
                    f"activations of {model.name!r} at {name!r} are NaN or infinite on these texts; load the model in float32 or bfloat16"
                )
            yield i, activation, masks[place, : len(rows[i])]


def _position(read: Read, length: int) -> int:
    position = length - 1 if read == "last" else int(read) + (length if int(read) < 0 else 0)
    if not 0 <= position < length:
        raise ValueError(
            f"position {read} is outside a text of {length} tokens; use 'last', 'mean' or a smaller position"
        )
    return position


def _too_short(length: int, skip_first: int) -> ValueError:
    return ValueError(
        f"a text of {length} tokens has none behind the {skip_first} masked ones; give longer texts, or read='last'"
    )
