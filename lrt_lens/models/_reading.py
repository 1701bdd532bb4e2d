"""One row per text: which token of a text is read, or how its tokens are pooled.

Problem: the first position of a text is often an attention sink with an activation a hundred times
as long as any other, so one text of a single word decides the mean of a hundred texts. Mechanism:
reading obeys the mask that maps and steering obey. Special tokens and the first ``skip_first``
positions, on which no map is fitted, are never read: ``"last"`` is the last unmasked token,
``"mean"`` and ``"max"`` pool over the unmasked ones. `readable` finds the texts that leave nothing
to read before any model runs; callers leave them out and record their number, refuse them, or read
them without the mask, as the user says. Pooling reads a text that is longer than the context in
windows; a single token of it needs the whole text before it, so there it is refused or cut. A mean
commutes with an affine map, but a maximum does not; ``through`` therefore maps every token before
the pooling.

    kept = readable([model], texts, "last")
    rows = read_activations(model, kept.of(texts), 3, "last")                   # [text, d_model]

Limits: without padding on the left; texts are read in batches of similar length.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from einops import reduce
from torch import Tensor

from lrt_lens.errors import NonFiniteError
from lrt_lens.models._engine import Engine
from lrt_lens.models._far_norms import FAR_FACTOR, far_from_median
from lrt_lens.models._hook_points import resolve
from lrt_lens.models._text_codec import TextCodec, Texts, Truncation, listing, text_list
from lrt_lens.models._text_reader import SKIP_FIRST, TextReader, special_tokens, unmasked
from lrt_lens.typing import Tokens

logger = logging.getLogger(__name__)

Read = Literal["last", "mean", "max"] | int
"""The last token, the mean or the elementwise maximum over the unmasked tokens, or a position.

A negative position counts from the end.
"""
EveryRead = Read | Literal["every"]
"""A `Read`, or ``"every"`` for each unmasked token separately."""
ShortTexts = Literal["drop", "refuse", "unmasked"]
"""Texts in which the mask leaves nothing to read: leave them out, refuse them, or read them without
the mask, special tokens left out where there are others."""
_READ_BATCH = 32
"""Number of texts per forward pass."""


@runtime_checkable
class StreamReader(TextReader, Protocol):
    """A model whose residual stream can be read, which every `lrt_lens.models.HookedModel` is."""

    name: str
    n_layers: int
    hook_points: tuple[str, ...]
    codec: TextCodec
    engine: Engine

    def pad(self, rows: Sequence[Sequence[int]]) -> Tokens:
        """Return rows of token ids as one tensor [batch, position], padded on the right."""
        ...


@dataclass(frozen=True)
class ReadingRules:
    """How texts are read: token, mask, cut, and what happens to texts that are too short."""

    read: Read
    """Token of a text that is read, or how its tokens are pooled."""
    short_texts: ShortTexts
    """Rule for texts that the mask leaves nothing of."""
    truncation: Truncation | None = None
    """End that is cut off texts longer than the context."""
    skip_first: int = SKIP_FIRST
    """First positions of a text that are not read."""


@dataclass(frozen=True)
class Readable:
    """The texts that are read, among those that were given."""

    index: np.ndarray
    """Numbers of the texts that are read, ascending, [kept]."""
    n_dropped: int = 0
    """Number of texts left out (of pairs, if texts come in pairs)."""
    n_cut: int = 0
    """Number of texts that are read and were cut to the context of a model."""

    def of(self, rows: Sequence[Any]) -> list[Any]:
        """Return the entries of ``rows``, one per given text, that belong to the texts read."""
        return [rows[int(i)] for i in self.index]


def readable(
    models: Sequence[StreamReader],
    texts: Texts,
    read: EveryRead,
    *,
    skip_first: int = SKIP_FIRST,
    short_texts: ShortTexts = "drop",
    truncation: Truncation | None = None,
    pairs: bool = False,
) -> Readable:
    """Return the texts in which every model has a token to read; no model runs.

    Args:
        models: the models that read the texts.
        texts: the texts.
        read: position, or how positions are pooled.
        skip_first: number of masked positions at the beginning of a text.
        short_texts: what happens to texts without an unmasked token; those that are left out are
            listed in a warning.
        truncation: end that is cut off texts longer than the context; None pools them in windows,
            and refuses them where a single token is read.
        pairs: True if text i of the first half belongs to text i of the second half; both are left
            out together.

    Raises:
        ValueError: ``read`` or ``short_texts`` is unknown, no text is left, texts are refused, or
            a text is longer than the context and no truncation is said; the message lists them.
    """
    _refuse_unknown(read, short_texts)
    listed = text_list(texts)
    short: set[int] = set()
    cut: set[int] = set()
    for model in models:
        windows, special = _windows(model, listed, read, truncation), special_tokens(model)
        if truncation or model.codec.truncation:
            cut.update(model.codec.longer(listed))
        _refuse_outside(read, [parts[0] for parts in windows], listed)
        short.update(
            i
            for i, parts in enumerate(windows)
            if not any(_reads_any(read, mask) for mask in _masks(parts, special, skip_first))
        )
    if not short or short_texts == "unmasked":
        return Readable(np.arange(len(listed)), 0, len(cut))
    observed = _observed(listed, sorted(short), skip_first)
    remedy = "give longer texts, or read them with short_texts='unmasked'"
    if short_texts == "refuse":
        raise ValueError(f"{observed}; {remedy}")
    n_pairs = len(listed) // 2
    dropped = {i % n_pairs + half for i in short for half in (0, n_pairs)} if pairs else short
    kept = np.array([i for i in range(len(listed)) if i not in dropped], dtype=int)
    if not len(kept):
        raise ValueError(f"{observed}, so nothing is left to read; {remedy}")
    n_dropped = len(dropped) // 2 if pairs else len(dropped)
    logger.warning("%s; %d %s are left out", observed, n_dropped, "pair(s)" if pairs else "text(s)")
    return Readable(kept, n_dropped, len(cut - dropped))


def row_rule(short_texts: ShortTexts) -> Literal["refuse", "unmasked"]:
    """Return the rule for the texts that `readable` has left: they are refused or read anyway."""
    return "unmasked" if short_texts == "unmasked" else "refuse"


def read_activations(
    model: StreamReader,
    texts: Texts,
    hook: int | str,
    read: Read = "last",
    *,
    skip_first: int = SKIP_FIRST,
    short_texts: Literal["refuse", "unmasked"] = "refuse",
    truncation: Truncation | None = None,
    through: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return one float32 row per text, [text, d_model], at hook point ``hook``.

    ``through`` maps the tokens, [token, d_model] to [token, d], before the pooling. A warning names
    the texts with a state whose norm is more than `FAR_FACTOR` times the median.

    Raises:
        NonFiniteError: an activation is NaN or infinite.
        ValueError: ``read`` is unknown, a text is shorter than the position, or all tokens of a
            text are masked; see `readable`, which can leave such texts out.
    """
    rules: dict[str, Any] = {"short_texts": short_texts, "truncation": truncation}
    name = resolve(hook, model)
    return read_at_hooks(
        model, texts, [name], read, skip_first=skip_first, through=through, **rules
    )[name]


def read_at_hooks(
    model: StreamReader,
    texts: Texts,
    hooks: Sequence[str],
    read: Read = "last",
    *,
    skip_first: int = SKIP_FIRST,
    short_texts: Literal["refuse", "unmasked"] = "refuse",
    truncation: Truncation | None = None,
    through: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the rows of `read_activations` at several hook points, from one pass over the texts.

    The arguments and the errors are those of `read_activations`.
    """
    if read == "every":
        raise ValueError("read is 'every'; expected 'last', 'mean', 'max' or a position")
    found: dict[str, dict[int, Tensor]] = {name: {} for name in hooks}
    norms: dict[str, dict[int, Tensor]] = {name: {} for name in hooks}
    states = _states(model, texts, hooks, read, skip_first, short_texts, truncation)
    for index, by_hook in states:
        for name, tokens in by_hook.items():
            norms[name][index] = tokens.norm(dim=1)
            rows = tokens if through is None else through(tokens)
            # At a single position there is one row, which is its own mean.
            found[name][index] = reduce(rows, "token d -> d", "max" if read == "max" else "mean")
    for name in hooks:
        _warn_of_far_states(norms[name], texts, model, name)
    return {
        name: torch.stack([rows[index] for index in range(len(rows))])
        for name, rows in found.items()
    }


def read_tokens(
    model: StreamReader,
    texts: Texts,
    hook: int | str,
    *,
    skip_first: int = SKIP_FIRST,
    short_texts: Literal["refuse", "unmasked"] = "refuse",
    truncation: Truncation | None = None,
    context_length: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of a text, float32 activations [token, d_model] of its unmasked tokens).

    Texts come one at a time, the shortest first. Texts longer than ``context_length`` (by default
    the model's) are read in windows.

    Raises:
        NonFiniteError: an activation is NaN or infinite.
        ValueError: all tokens of a text are masked; see `readable`, which can leave such texts out.
    """
    norms: dict[int, Tensor] = {}
    rules = (skip_first, short_texts, truncation, context_length)
    name = resolve(hook, model)
    for index, by_hook in _states(model, texts, [name], "every", *rules):
        norms[index] = by_hook[name].norm(dim=1)
        yield index, by_hook[name]
    _warn_of_far_states(norms, texts, model, hook)


def _states(
    model: StreamReader,
    texts: Texts,
    hooks: Sequence[str],
    read: EveryRead,
    skip_first: int,
    short_texts: ShortTexts,
    truncation: Truncation | None,
    context_length: int | None = None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield (index of a text, activations [token, d_model] of the tokens read, by hook point)."""
    options: dict[str, Any] = {"skip_first": skip_first, "short_texts": short_texts}
    readable([model], texts, read, truncation=truncation, **options)
    windows = _windows(model, texts, read, truncation, context_length)
    special, rows = special_tokens(model), []
    for index, parts in enumerate(windows):
        masks = _masks(parts, special, skip_first)
        if not any(_reads_any(read, mask) for mask in masks):
            # The caller asked for it: every token that is not special, or else every token.
            masks = [m if m.any() else np.ones_like(m) for m in _masks(parts, special, 0)]
        numbered = enumerate(zip(parts, masks, strict=True))
        rows += [(index, part, row, mask) for part, (row, mask) in numbered]
    # Windows of similar length share a batch, so that little of it is padding.
    rows.sort(key=lambda window: len(window[2]))
    waiting = [len(parts) for parts in windows]
    found: list[dict[str, dict[int, Tensor]]] = [{name: {} for name in hooks} for _ in windows]
    for start in range(0, len(rows), _READ_BATCH):
        batch = rows[start : start + _READ_BATCH]
        tokens = model.pad([row for _, _, row, _ in batch])
        # float32 on the CPU, where vectors and probes are fitted.
        captured = {
            name: rows.float().cpu() for name, rows in model.engine.capture(tokens, hooks).items()
        }
        for number, (index, part, row, mask) in enumerate(batch):
            for name in hooks:
                activations = captured[name][number, : len(row)]
                if not torch.isfinite(activations).all():
                    raise NonFiniteError(
                        f"activations of {model.name!r} at {name!r} are NaN or infinite on these "
                        "texts; load the model in float32 or bfloat16"
                    )
                found[index][name][part] = activations[_positions(read, mask)]
            waiting[index] -= 1
            if not waiting[index]:
                # The windows of a text were read the shortest first; its tokens keep their order.
                by_hook = found[index].items()
                yield index, {n: torch.cat([p[i] for i in sorted(p)]) for n, p in by_hook}
                found[index] = {}


def _windows(
    model: StreamReader,
    texts: Texts,
    read: EveryRead,
    truncation: Truncation | None,
    context_length: int | None = None,
) -> list[list[list[int]]]:
    """Return the windows of ids of each text: one, or several if a long text is pooled."""
    if read in ("mean", "max", "every"):
        return model.codec.windows(texts, truncation, context_length)
    return [[row] for row in model.codec.encode(texts, truncation)]


def _masks(rows: Sequence[Sequence[int]], special: np.ndarray, skip_first: int) -> list[np.ndarray]:
    """Return for each row of ids a mask [position], True at the tokens that may be read.

    ``special`` are the ids that are masked everywhere.
    """
    masks = [np.zeros(len(row), dtype=bool) for row in rows]
    for mask, row in zip(masks, rows, strict=True):
        mask[unmasked(row, special, skip_first)] = True
    return masks


def _reads_any(read: EveryRead, mask: np.ndarray) -> bool:
    """Return whether a mask [position] leaves a token to read."""
    return bool(mask[read]) if isinstance(read, int) else bool(mask.any())


def _positions(read: EveryRead, mask: np.ndarray) -> np.ndarray:
    """Return the positions that are read, of those that a mask allows."""
    if isinstance(read, int):
        return np.arange(len(mask))[[read]]
    allowed = np.flatnonzero(mask)
    return allowed[-1:] if read == "last" else allowed


def _refuse_unknown(read: EveryRead, short_texts: ShortTexts) -> None:
    if not isinstance(read, int) and read not in ("last", "mean", "max", "every"):
        raise ValueError(f"read is {read!r}; expected 'last', 'mean', 'max' or a position")
    if short_texts not in ("drop", "refuse", "unmasked"):
        raise ValueError(f"short_texts is {short_texts!r}; expected 'drop', 'refuse' or 'unmasked'")


def _refuse_outside(read: EveryRead, rows: Sequence[Sequence[int]], texts: list[str]) -> None:
    """Raise ValueError if the position ``read`` is outside a text; the message lists such texts."""
    if not isinstance(read, int):
        return
    outside = [i for i, row in enumerate(rows) if not -len(row) <= read < len(row)]
    if outside:
        raise ValueError(
            f"position {read} is outside {len(outside)} of {len(texts)} text(s), such as text"
            f" {outside[0]} of {len(rows[outside[0]])} tokens ({texts[outside[0]][:40]!r});"
            " use 'last', 'mean' or a smaller position, or leave these texts out:"
            f" {listing(outside)}"
        )


def _observed(texts: list[str], short: Sequence[int], skip_first: int) -> str:
    """Return a clause that lists the texts without a token to read."""
    return (
        f"{len(short)} of {len(texts)} text(s) have no unmasked token to read (the first"
        f" {skip_first} positions and special tokens are masked): {_quoted(texts, short)}"
    )


def _quoted(texts: list[str], numbers: Sequence[int]) -> str:
    """Return the first numbers with the beginnings of their texts, as messages list them."""
    shown = ", ".join(f"{i} ({texts[i][:40]!r})" for i in numbers[:5])
    return shown + (" …" if len(numbers) > 5 else "")


def _warn_of_far_states(
    norms: dict[int, Tensor], texts: Texts, model: StreamReader, hook: int | str
) -> None:
    """Warn of texts with states far out of the stream; ``norms`` [token] are those that are read.

    A vector, a probe or a map that averages over these texts would point towards such states.
    """
    every = torch.cat(list(norms.values()))
    if not far_from_median(every).any():
        return
    median = every.median()
    far = sorted(i for i, one in norms.items() if bool((one > FAR_FACTOR * median).any()))
    listed = text_list(texts)
    logger.warning(
        "%d of %d text(s) have states at %r of %r with norms above %g × the median (up to %.4g"
        " beside %.4g), which decide any mean over the texts: %s; leave them out, or read other"
        " positions",
        len(far),
        len(listed),
        str(hook),
        model.name,
        FAR_FACTOR,
        float(every.max()),
        float(median),
        _quoted(listed, far),
    )
