"""Windows of one document in two tokenizations, with equal first and last characters.

Problem: a state has read its window and nothing before it, so both models must read the same text.
Mechanism: each pair of windows starts where the previous pair ended and ends at a character
boundary that both tokenizers share. It is as long as both context lengths allow.

    for source_window, target_window in cut_aligned_windows(alignment, key, source, target, plan):
        x[source_window.rows], y[target_window.rows]        # equal numbers of rows, paired in order

Limits: a stretch without a shared boundary that is longer than a context has no aligned position
and is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lrt_lens.data._alignment import Alignment
from lrt_lens.data._windows import MINIMUM_ROWS, BlockPlan, Window
from lrt_lens.models._text_reader import TextReader, special_tokens, unmasked


@dataclass(frozen=True)
class _Tokenized:
    """One document in the tokens of one model."""

    ids: np.ndarray
    """Token ids of the document, without BOS."""
    positions: np.ndarray
    """Aligned positions in ``ids``, ascending."""
    prefix: list[int]
    """BOS, or nothing, by the model's policy."""
    special: np.ndarray
    """Ids of the tokenizer's special tokens."""
    room: int
    """Largest number of body tokens per window."""

    @cached_property
    def consumed(self) -> np.ndarray:
        """Number of body tokens before each shared boundary, the start of the text included."""
        return np.append(0, self.positions + 1)

    def window(self, start: int, end: int, pairs: slice, key: int) -> Window:
        """Return the window of body tokens ``start:end``, with the aligned positions as rows."""
        # Position in the document → position in the window, which begins with BOS.
        rows = self.positions[pairs] - start + len(self.prefix)
        return Window([*self.prefix, *self.ids[start:end].tolist()], rows, key)

    def unmasked(self, window: Window, skip_first: int) -> np.ndarray:
        """Return a mask of the window's rows, False at special tokens and the first positions."""
        return np.isin(window.rows, unmasked(window.ids, self.special, skip_first))


def cut_aligned_windows(
    alignment: Alignment, key: int, source: TextReader, target: TextReader, plan: BlockPlan
) -> list[tuple[Window, Window]]:
    """Return the windows (source, target) of one document, their rows paired in order.

    ``alignment`` has the source's tokens first; ``key`` is the document's key. A pair of rows is
    left out if the row of either model is masked, and a window if fewer than four pairs remain.
    """
    first = _tokenized(alignment.first_ids, alignment.first_positions, source, plan)
    second = _tokenized(alignment.second_ids, alignment.second_positions, target, plan)
    windows = []
    for begin, end in _stretches(first, second):
        # `consumed` starts with the start of the text: boundary number k closes pair number k - 1.
        pairs = slice(begin, end)
        one, other = (
            side.window(int(side.consumed[begin]), int(side.consumed[end]), pairs, key)
            for side in (first, second)
        )
        mask = first.unmasked(one, plan.skip_first) & second.unmasked(other, plan.skip_first)
        if mask.sum() >= MINIMUM_ROWS:
            windows.append(
                (Window(one.ids, one.rows[mask], key), Window(other.ids, other.rows[mask], key))
            )
    return windows


def _tokenized(
    ids: np.ndarray, positions: np.ndarray, model: TextReader, plan: BlockPlan
) -> _Tokenized:
    prefix = model.prefix
    room = plan.context_length - len(prefix)
    return _Tokenized(ids, positions, prefix, special_tokens(model), room)


def _stretches(first: _Tokenized, second: _Tokenized) -> Iterator[tuple[int, int]]:
    """Yield the numbers of the two shared boundaries that enclose each pair of windows.

    The second is the last boundary that both context lengths can reach from the first.
    """
    begin, last = 0, len(first.consumed) - 1
    while begin < last:
        # The largest k with consumed[k] ≤ consumed[begin] + room, for both models.
        reach = min(
            int(np.searchsorted(side.consumed, side.consumed[begin] + side.room, side="right")) - 1
            for side in (first, second)
        )
        if reach > begin:
            yield begin, reach
        # Without a boundary in reach, the stretch up to the next boundary is left out.
        begin = max(reach, begin + 1)
