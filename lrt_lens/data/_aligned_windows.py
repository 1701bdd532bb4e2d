"""Windows of two tokenizations of one document that begin and end at the same characters.

A state knows its window and nothing before it, so both models must be shown the same text. Each
pair of windows is as long as fits both contexts, starts where the last one ended, and ends at a
boundary that both tokenizers share.

    for source_window, target_window in cut_aligned_windows(alignment, key, source, target, plan):
        x[source_window.rows], y[target_window.rows]        # equal numbers of rows, pair by pair

A stretch without a shared boundary that is longer than a context has no aligned position: it is
left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lrt_lens.data._alignment import Alignment
from lrt_lens.data._windows import MINIMUM_ROWS, BlockPlan, Window, special_tokens, unmasked
from lrt_lens.models._hooked_model import HookedModel


@dataclass(frozen=True)
class _Side:
    """One model's view of a document."""

    ids: np.ndarray
    positions: np.ndarray
    prefix: list[int]
    special: np.ndarray
    room: int
    """Body tokens a window holds."""

    @cached_property
    def consumed(self) -> np.ndarray:
        """Body tokens up to each shared boundary; the start of the text is one."""
        return np.append(0, self.positions + 1)

    def window(self, start: int, end: int, pairs: slice, key: int) -> Window:
        """Body tokens ``start:end`` behind the prefix, with the aligned positions among them as
        rows.
        """
        rows = self.positions[pairs] - start + len(self.prefix)
        return Window([*self.prefix, *self.ids[start:end].tolist()], rows, key)

    def keeps(self, window: Window, skip_first: int) -> np.ndarray:
        """Which rows are neither among the first positions nor special."""
        return np.isin(window.rows, unmasked(window.ids, self.special, skip_first))


def cut_aligned_windows(
    alignment: Alignment, key: int, source: HookedModel, target: HookedModel, plan: BlockPlan
) -> list[tuple[Window, Window]]:
    """One document's windows in the tokens of both models, rows paired; a pair of rows is masked
    where either side's is.

    ``alignment`` has the source's tokens first, ``key`` is the document's. Windows of fewer than
    four pairs are left out.
    """
    sides = (
        _side(alignment.first_ids, alignment.first_positions, source, plan),
        _side(alignment.second_ids, alignment.second_positions, target, plan),
    )
    windows = []
    for begin, end in _stretches(sides):
        pairs = slice(begin, end)  # boundary number k is pair number k - 1
        one, other = (
            side.window(int(side.consumed[begin]), int(side.consumed[end]), pairs, key)
            for side in sides
        )
        keep = sides[0].keeps(one, plan.skip_first) & sides[1].keeps(other, plan.skip_first)
        if keep.sum() >= MINIMUM_ROWS:
            windows.append(
                (Window(one.ids, one.rows[keep], key), Window(other.ids, other.rows[keep], key))
            )
    return windows


def _side(ids: np.ndarray, positions: np.ndarray, model: HookedModel, plan: BlockPlan) -> _Side:
    prefix = [model.tokenizer.bos_token_id] if model.prepend_bos else []
    return _Side(ids, positions, prefix, special_tokens(model), plan.context_length - len(prefix))


def _stretches(sides: tuple[_Side, _Side]) -> Iterator[tuple[int, int]]:
    """Numbers of the shared boundaries between which windows lie: each as far on as both contexts
    reach.
    """
    consumed, rooms = [side.consumed for side in sides], [side.room for side in sides]
    begin, last = 0, len(consumed[0]) - 1
    while begin < last:
        reach = min(
            int(np.searchsorted(c, c[begin] + room, side="right")) - 1
            for c, room in zip(consumed, rooms, strict=True)
        )
        if reach > begin:
            yield begin, reach
        begin = max(reach, begin + 1)
