"""Scores of maps on the test fold of a learning curve, by groups of its documents.

    test = HeldOutGroups(moments, pair)
    scores = test.scores(test.errors(map))         # {"r2": GroupScore, "r2_uniform": GroupScore}
    rows = RowSample(pair, parts, every=4)      # rows of the test fold, for `fve_nrm`
    harvest(…, on_block=rows.take)
    rows.fve(map.points)

Limits: `HeldOutGroups` holds one scatter matrix per group; `RowSample` holds its rows in memory.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lrt_lens.data._parts import Parts
from lrt_lens.data._windows import Block, Window
from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._feeding import Streams
from lrt_lens.moments._scatter import Scatter, r2_of, squared_errors
from lrt_lens.statistics._group_scores import GroupScore
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching._reader_metric import fve_of, fve_sums

SCORES = ("r2", "r2_uniform")


class HeldOutGroups:
    """Groups of the test fold of a hook pair, on which maps are scored."""

    def __init__(self, moments: CrossMoments, pair: HookPair) -> None:
        self.pair = pair
        self.parts = [part for part in moments.parts.test if moments.n[part] >= 2]
        self.groups = [moments.scatter(pair, (part,)) for part in self.parts]
        self.sizes = [group.n for group in self.groups]
        self._variance = moments.scatter(pair, self.parts).variance
        self._variances = [
            moments.scatter(pair, [p for p in self.parts if p != part]).variance
            for part in self.parts
            if len(self.parts) > 1
        ]

    @property
    def n_tokens(self) -> int:
        """Number of tokens in all groups."""
        return int(sum(self.sizes))

    def errors(self, affine: AffineMap, groups: Iterable[Scatter] | None = None) -> Tensor:
        """Return Σ(y − ŷ)² of each group and target dimension, [group, d_target]."""
        groups = self.groups if groups is None else groups
        weight, bias = affine.weight, affine.bias
        return torch.stack([squared_errors(weight.to(g.xy), bias.to(g.xy), g) for g in groups])

    def scores(self, errors: Tensor) -> dict[str, GroupScore]:
        """Return R² and mean R² over dimensions from the errors [group, d_target] of a map."""
        total = errors.sum(0)
        full = r2_of(total, self._variance)[:2]
        others = [
            r2_of(total - errors[g], variance)[:2] for g, variance in enumerate(self._variances)
        ]
        columns = np.array(others, dtype=float).reshape(-1, len(SCORES))
        return {name: GroupScore(full[i], columns[:, i]) for i, name in enumerate(SCORES)}


@dataclass
class RowSample:
    """Every k-th row of the test fold, kept in memory while a harvest runs."""

    pair: HookPair
    parts: Parts
    every: int
    """Number k."""
    _seen: int = 0
    _kept: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)

    def take(self, block: Block, _order: list[Window], x: Streams, y: Streams) -> None:
        """Keep rows of a block; this is the ``on_block`` of a harvest."""
        if block.part in self.parts.fit:
            return
        source, target = x[self.pair[0]], y[self.pair[1]]
        first = -self._seen % self.every
        self._seen += len(source)
        rows = slice(first, None, self.every)
        group = block.part - len(self.parts.fit)
        self._kept.append((group, source[rows].float().cpu(), target[rows].float().cpu()))

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return sum(len(x) for _, x, _ in self._kept)

    def fve(self, points: Callable[[Tensor], Tensor]) -> tuple[GroupScore, list[float]]:
        """Return ``fve_nrm`` of a map, by groups, and the rows of each group.

        Args:
            points: function from source states [row, d_source] to target states [row, d_target].
        """
        if not self._kept:
            return GroupScore(math.nan, np.empty(0)), []
        n_groups = self.parts.n_test_groups
        sums = [
            fve_sums(points(x.double()), y, torch.full((len(x),), group), n_groups)
            for group, x, y in self._kept
        ]
        total = torch.stack(sums).sum(0)
        used = total[total[:, 2] > 0]
        whole = used.sum(0)
        others = [fve_of(whole - one) for one in used] if len(used) > 1 else []
        return GroupScore(fve_of(whole), np.array(others)), used[:, 2].tolist()
