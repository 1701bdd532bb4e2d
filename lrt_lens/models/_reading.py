"""Activations of texts at a hook point, from which vectors and probes are learnt.

    read_activations(model, texts, 3, "mean")      # [text, d_model]
    for index, activations in read_tokens(model, texts, 3):        # [token, d_model], per text
        ...

A text is read at one position, or pooled over its unmasked tokens. Special tokens and the first
``skip_first`` positions, on which no map is fitted, are masked. A mean commutes with an affine map,
but a maximum does not; ``through`` therefore maps every token before the pooling.

Limits: one hook point per call; several need one forward pass each.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from einops import reduce
from torch import Tensor

from lrt_lens.errors import NonFiniteError
from lrt_lens.models._hook_points import resolve
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._text_reader import SKIP_FIRST

Read = Literal["last", "mean", "max"] | int
"""The last token, the mean or the elementwise maximum over the unmasked tokens, or a position.

A negative position counts from the end.
"""
EveryRead = Read | Literal["every"]
"""A `Read`, or ``"every"`` for each unmasked token separately."""
_READ_BATCH = 32
"""Number of texts per forward pass."""


def read_activations(
    model: HookedModel,
    texts: Sequence[str],
    hook: int | str,
    read: Read = "last",
    *,
    skip_first: int = SKIP_FIRST,
    through: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return one float32 row per text, [text, d_model], at hook point ``hook``.

    ``through`` maps the tokens, [token, d_model] to [token, d], before the pooling.

    Raises:
        NonFiniteError: an activation is NaN or infinite.
        ValueError: ``read`` is unknown, a text is shorter than the position, or all tokens of a
            text are masked.
    """
    if not isinstance(read, int) and read not in ("last", "mean", "max"):
        raise ValueError(f"read is {read!r}; expected 'last', 'mean', 'max' or a position")
    # `_passes` sorts the texts by length; `out` restores the order of ``texts``.
    out: list[Tensor] = [torch.empty(0)] * len(texts)
    for index, activations, mask in _passes(model, texts, hook, skip_first):
        pooled = read in ("mean", "max")
        if pooled and not mask.any():
            raise _too_short(len(mask), skip_first)
        rows = activations[mask] if pooled else activations[_position(read, len(mask))][None]
        rows = rows if through is None else through(rows)
        # At a single position there is one row, which is its own mean.
        out[index] = reduce(rows, "token d -> d", "max" if read == "max" else "mean")
    return torch.stack(out)


def read_tokens(
    model: HookedModel, texts: Sequence[str], hook: int | str, *, skip_first: int = SKIP_FIRST
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of a text, float32 activations [token, d_model] of its unmasked tokens).

    Texts come one at a time, the shortest first.

    Raises:
        NonFiniteError: an activation is NaN or infinite.
        ValueError: all tokens of a text are masked.
    """
    for index, activations, mask in _passes(model, texts, hook, skip_first):
        if not mask.any():
            raise _too_short(len(mask), skip_first)
        yield index, activations[mask]


def _passes(
    model: HookedModel, texts: Sequence[str], hook: int | str, skip_first: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (index of a text, activations [token, d_model], mask [token]) without padding."""
    rows = model.encode(texts)
    name = resolve(hook, model)
    # Texts of similar length share a batch, so that little of it is padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), _READ_BATCH):
        indices = order[start : start + _READ_BATCH]
        batch = [rows[index] for index in indices]
        # float32 on the CPU, where vectors and probes are fitted.
        captured = model.engine.capture(model.pad(batch), [name])[name].float().cpu()
        masks = model.read_mask(batch, skip_first)
        for index, row, padded, mask in zip(indices, batch, captured, masks, strict=True):
            activations = padded[: len(row)]
            if not torch.isfinite(activations).all():
                raise NonFiniteError(
                    f"activations of {model.name!r} at {name!r} are NaN or infinite on these texts;"
                    " load the model in float32 or bfloat16"
                )
            yield index, activations, mask[: len(row)]


def _position(read: Read, length: int) -> int:
    """Return the position, from 0, that ``read`` means in a text of ``length`` tokens."""
    position = length - 1 if read == "last" else int(read) + (length if int(read) < 0 else 0)
    if not 0 <= position < length:
        raise ValueError(
            f"position {read} is outside a text of {length} tokens;"
            " use 'last', 'mean' or a smaller position"
        )
    return position


def _too_short(length: int, skip_first: int) -> ValueError:
    return ValueError(
        f"a text of {length} tokens has no unmasked token after the first {skip_first};"
        " give longer texts, or read='last'"
    )
