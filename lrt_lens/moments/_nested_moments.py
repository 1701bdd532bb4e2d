"""Moments of nested beginnings of one harvest: the same sums at several numbers of tokens.

Problem: a learning curve needs maps fitted on 1,000, 1,400, … tokens of one text, and moments
forget the order in which rows came. Mechanism: `NestedMoments` are the moments of a harvest that
also copy the sums of a fold whenever it has reached a *mark*, a number of rows. A block in which a
mark lies is added in two pieces, so that a copy has exactly that number of rows. The larger sums
contain the smaller ones; the test fold is never copied, because every map is scored on the whole of
it.

    moments = NestedMoments(pairs=(("a", "b"),), marks=(500, 1_000))
    moments.add_block(part, x, y)
    moments.at(500).n_fit                # the first 500 rows of each fold, and the whole test fold

Limits: one hook pair. Copies take one part of the moments each, ``len(marks) × n_folds`` in all,
and are not written to files. A fold that ends before a mark has all its rows at that mark.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._harvesting import HarvestRun
from lrt_lens.moments._heavy_rows import RowName
from lrt_lens.moments._own_null import NullBlock
from lrt_lens.moments._placement import refuse_unfit
from lrt_lens.moments._scatter import SideMoments

_FEWER_POINTS = "give fewer points (n_points=…), or fewer folds (n_folds=…)"


@dataclass(frozen=True)
class CopiedFold:
    """Copy of the sums of one fold of one hook pair."""

    n: float
    """Number of rows."""
    x: tuple[Tensor, Tensor]
    """Σ(x − c) [d_source] and Σ(x − c)(x − c)ᵀ [d_source, d_source]."""
    y: tuple[Tensor, Tensor]
    """Σ(y − c) [d_target] and Σ(y − c)(y − c)ᵀ [d_target, d_target]."""
    cross: Tensor
    """Σ(x − cₓ)(y − c_y)ᵀ [d_source, d_target]."""


@dataclass
class NestedMoments(CrossMoments):
    """Moments of one hook pair, with copies of the sums of each fold at some numbers of rows."""

    marks: tuple[int, ...] = ()
    """Numbers of rows per fold at which the sums of a fold are copied, ascending."""
    copies: dict[tuple[int, int], CopiedFold] = field(default_factory=dict, repr=False)
    """Copied sums by mark and number of the fold."""

    def add_block(
        self,
        part: int,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        pairing: Tensor | None = None,
        *,
        name: RowName | None = None,
    ) -> None:
        """Add paired rows of one part; `Accumulator.add_block` has arguments and errors."""
        before = int(self.n[part])
        n_rows = len(next(iter(x.values())))
        is_fit = part in self.parts.fit
        crossed = [m for m in self.marks if is_fit and before < m <= before + n_rows]
        if not crossed:
            super().add_block(part, x, y, pairing, name=name)
            return
        self._make_ready(x, y)
        start = 0
        for mark in (*crossed, before + n_rows):
            end = mark - before
            if end > start:
                rows = slice(start, end)
                x_rows, y_rows = (
                    {hook: one[rows] for hook, one in side.items()} for side in (x, y)
                )
                self._add(part, x_rows, y_rows, name=name and _shifted(name, start))
            if mark in crossed and (mark, part) not in self.copies:
                self.copies[mark, part] = self._fold(part)
            start = end
        if pairing is not None and self.null != "none":
            # A shuffled pair may join rows of two pieces.
            self.add_shuffled(NullBlock(not is_fit, dict(x), dict(y), pairing))

    def _fold(self, part: int) -> CopiedFold:
        """Return a copy of the sums of a fold."""
        self.placement.finish()
        pair = self.pairs[0]
        source, target = (
            (side.total[part].clone(), side.second[part].clone())
            for side in (self.source[pair[0]], self.target[pair[1]])
        )
        return CopiedFold(float(self.n[part]), source, target, self.cross[pair][part].clone())

    def at(self, mark: int) -> CrossMoments:
        """Return the moments of the first ``mark`` rows of each fold, and of the whole test fold.

        Token identity and shuffled pairs are left out.
        """
        self.finish()
        pair = self.pairs[0]
        copies = {k: self.copies[mark, k] for k in self.parts.fit if (mark, k) in self.copies}
        n, cross = self.n.clone(), self.cross[pair].clone()
        sides = [_copied(one) for one in (self.source[pair[0]], self.target[pair[1]])]
        for k, sums in copies.items():
            n[k], cross[k] = sums.n, sums.cross
            for side, (total, second) in zip(sides, (sums.x, sums.y), strict=True):
                side.total[k], side.second[k] = total, second
        return CrossMoments(
            pairs=self.pairs,
            moment_dtype=self.moment_dtype,
            provenance=self.provenance,
            n=n,
            source={pair[0]: sides[0]},
            target={pair[1]: sides[1]},
            cross={pair: cross},
        )


def _copied(side: SideMoments) -> SideMoments:
    return SideMoments(side.shift, side.total.clone(), side.second.clone(), side.norms)


def _shifted(name: RowName, start: int) -> RowName:
    """Return the names of the rows of a block from row ``start`` on."""
    return lambda row: name(start + row)


@dataclass(frozen=True)
class NestedRun(HarvestRun):
    """A harvest of one hook pair whose moments are `NestedMoments`."""

    marks: tuple[int, ...] = ()
    """Numbers of rows per fold at which sums are copied."""

    @classmethod
    def of(cls, run: HarvestRun, marks: tuple[int, ...]) -> "NestedRun":
        """Return a run with the settings of another one, and these marks."""
        return cls(**_fields(run), marks=marks)

    def begin(self) -> NestedMoments:
        """Return empty moments.

        Raises:
            ValueError: the moments and their copies need more memory than is free.
        """
        d, e = self.models.source.d_model, self.models.target.d_model
        one_part = 8 * (d * d + e * e + d * e + d + e)
        n_copies = len(self.marks) * len(self.plan.parts.fit)
        refuse_unfit(n_copies * one_part, self.models.source.device, _FEWER_POINTS)
        return NestedMoments(**_fields(super().begin()), marks=self.marks)


def _fields(instance: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name, those that its constructor takes."""
    return {one.name: getattr(instance, one.name) for one in fields(instance) if one.init}
