"""Calibrated similarities of every two layers, as a tidy table from the moments alone.

Problem: CKA, CCA and similar measures grow with width ÷ rows, so that a value of 0.4 may mean
nothing, and the layer with the highest value may be the widest one. Mechanism: each measure
(`lrt_lens.stitching._measures`) is computed on the fitting folds, with a 95% interval by
leaving out one fold at a time; on shuffled pairs of the same number of rows (its null); and on the
test fold:

    effect = (value − null) / (1 − null)     0: not more similar than shuffled pairs; 1: equal

    table = similarities(moments, measures=("cka", "svcca"))
    table.sort_values("effect", ascending=False).head()
    lrt.figures.similarity_figure(table)          # heat maps; similarity_lines_figure draws lines

Columns for a choice: ``value``, and ``effect`` of all measures except ``cka``, read the fitting
folds only. The null of ``cka`` multiplies the shuffled fitting folds with the shuffled *test* fold
(no other product is unbiased), so choose by its ``value``, which has no bias that grows with width.

Limits: the null is one shuffle, and a constant in the interval of the effect.
`lrt_lens.stitching._measures` has the limits of the measures. Sources: Raghu et al. 2017 (SVCCA),
Kornblith et al. 2019 (CKA); calibration against permuted pairs: Gröger, Wen and Brbić 2026 (arXiv
2602.14486).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from lrt_lens._progress import tqdm
from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._scatter import Scatter, between_folds
from lrt_lens.statistics._jackknife import few_groups, jackknife
from lrt_lens.stitching._measures import (
    MEASURES,
    Cca,
    DebiasedCka,
    Measure,
    Paired,
    ShuffledPairs,
    Stream,
)
from lrt_lens.stitching.solvers._solver import wanted_pairs

_LEAST_FOLDS_OF_CKA = 3
"""Fewest folds with an interval of CKA, which is a mean over pairs of folds without one of them."""
SIMILARITY_COLUMNS = (
    "source_hook",
    "target_hook",
    "measure",
    "value",
    "low",
    "high",
    "null",
    "effect",
    "effect_low",
    "effect_high",
    "held_out",
    "n",
    "d_source",
    "d_target",
    "note",
)
"""Columns of `similarities`; ``note`` says why a number is NaN or not meaningful."""

_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-10}
"""Share of the largest eigenvalue of a correlation matrix below which an eigenvalue is a rounding
error, by the precision of the products.
"""


def similarities(
    moments: CrossMoments,
    pairs: Sequence[HookPair] | None = None,
    *,
    measures: Sequence[str] = ("cka", "cka_biased", "cca", "svcca", "procrustes"),
    svcca_variance: float = 0.99,
    progress: bool = False,
) -> pd.DataFrame:
    """Return similarities of the two streams, one row per hook pair and measure.

    Args:
        moments: cross-moments; without shuffled pairs, ``null`` and ``effect`` are NaN.
        pairs: (source hook point, target hook point); None takes all.
        measures: names from `lrt_lens.stitching._measures.MEASURES`.
        svcca_variance: share of the variance of each side that SVCCA correlates. The Stitching
            paper, which chooses its layers by mean SVCCA correlation (figure 6), does not give its
            threshold; 0.99 is that of Raghu et al.
        progress: show a progress bar.

    Returns:
        Columns ``source_hook``, ``target_hook``, ``measure``; ``value``, ``low``, ``high`` on the
        fitting folds (delete-a-group jackknife with the folds' tokens as sizes, not clipped to
        [0, 1]; it holds the mean value of the measure over samples of as much text, with the bias
        that the measure has for this number of rows);
        ``null``, ``effect``, ``effect_low``, ``effect_high``; ``held_out`` on the test fold (CCA
        and SVCCA along the canonical directions of the fitting folds, Procrustes with their
        rotation, CKA without any fit); ``n`` fitting rows, ``d_source``, ``d_target``, ``note``.

    Raises:
        HookPointError: the moments hold no cross-moments of a hook pair.
        ValueError: a measure is unknown, or ``svcca_variance`` is not in (0, 1].
    """
    hook_pairs = wanted_pairs(moments, "compare", pairs)
    wanted = _checked_measures(measures)
    if not 0 < svcca_variance <= 1:
        raise ValueError(
            f"svcca_variance is {svcca_variance}; expected a share of variance above 0 and up to "
            "1, such as 0.99"
        )
    keys = product(hook_pairs, (measure.name for measure in wanted))
    values, folds = {key: _MeasuredValues() for key in keys}, moments.parts.fit
    with tqdm(
        total=(1 + len(folds)) * len(hook_pairs),
        desc="similarities",
        disable=not progress,
        leave=False,
    ) as bar:
        # The loop over sets of parts is outside, so that the decompositions of few sets are in
        # memory at a time.
        fit = _Comparison(moments, folds, svcca_variance)
        test = _Comparison(moments, _test_groups(moments), svcca_variance)
        for hook_pair in hook_pairs:
            streams, held_out, shuffled = (
                fit.paired(hook_pair),
                test.paired(hook_pair),
                _shuffled(moments, hook_pair),
            )
            for measure in wanted:
                values[hook_pair, measure.name].measured(
                    measure, streams, held_out, shuffled, _why_no_null(moments, hook_pair)
                )
            bar.update()
        del fit, test
        for k in folds:
            without = _Comparison(moments, tuple(p for p in folds if p != k), svcca_variance)
            for hook_pair in hook_pairs:
                streams = without.paired(hook_pair)
                for measure in wanted:
                    values[hook_pair, measure.name].left_out.append(measure.value(streams))
                bar.update()
    return _table(moments, values)


class _MeasuredValues:
    """Values of one measure for one hook pair."""

    def __init__(self) -> None:
        self.value = self.null = self.held_out = math.nan
        self.left_out: list[float] = []
        self.notes: list[str] = []

    def measured(
        self,
        measure: Measure,
        fit: Paired,
        test: Paired,
        shuffled: ShuffledPairs | None,
        why_not: str,
    ) -> None:
        """Store value, null and held-out value of a measure, with the notes on them."""
        # Every NaN gets a note with its reason, so that an empty cell of the table is explained.
        self.value, self.held_out = measure.value(fit), measure.held_out(fit, test)
        self.null = measure.null(fit, shuffled) if shuffled else math.nan
        if shuffled is None:
            self.notes.append(why_not)
        elif math.isnan(self.null):
            self.notes.append(
                "no null: sums of singular values have no unbiased estimate through the sketch; "
                "harvest with null='full'"
            )
        if math.isnan(self.value):
            self.notes.append(
                "no value: a side does not vary, or too little to tell it from nothing"
            )
        if isinstance(measure, DebiasedCka) and math.isnan(self.held_out):
            self.notes.append("no held_out: fewer than two groups of the test fold hold rows")
        forced = measure.n_forced(fit) if isinstance(measure, Cca) else 0
        if forced:
            self.notes.append(
                f"{forced} canonical correlations are 1 by construction: {int(fit.x.n)} rows are "
                "too few for these widths"
            )

    def columns(self, sizes: Sequence[float]) -> tuple[float, ...]:
        """Return value, low, high, null, effect, effect_low, effect_high, held_out.

        ``sizes`` are the tokens of the fitting folds.
        """
        # effect is linear in the value for a fixed null, so the ends of the interval map to ends.
        interval = jackknife(self.value, self.left_out, sizes)
        effects = [
            effect(number, self.null) for number in (self.value, interval.low, interval.high)
        ]
        return (self.value, interval.low, interval.high, self.null, *effects, self.held_out)

    @property
    def note(self) -> str:
        """Return the notes, joined to one text."""
        return "; ".join(self.notes)


def _table(
    moments: CrossMoments, values: dict[tuple[HookPair, str], _MeasuredValues]
) -> pd.DataFrame:
    """Return one row per hook pair and measure, with the columns `SIMILARITY_COLUMNS`."""
    folds = moments.parts.fit
    sizes = [float(moments.n[k]) for k in folds]
    flag = few_groups(sizes, moments.provenance.documents_of(folds), folds=len(folds))
    rows = []
    for (hook_pair, name), one in values.items():
        one.notes += [flag] if flag else []
        if name == "cka" and len(folds) < _LEAST_FOLDS_OF_CKA:
            one.notes.append("no interval of cka: two folds without one leave no pair of folds")
        widths = (len(moments.source[hook_pair[0]].shift), len(moments.target[hook_pair[1]].shift))
        rows.append((*hook_pair, name, *one.columns(sizes), moments.n_fit, *widths, one.note))
    return pd.DataFrame(rows, columns=list(SIMILARITY_COLUMNS))


def effect(value: float, null: float) -> float:
    """Return (value − null) / (1 − null).

    It is NaN if the null is 1 up to rounding, because then the measure does not distinguish
    streams.
    """
    return (value - null) / (1 - null) if 1 - null > 1e-9 else math.nan


class _Comparison:
    """The streams of all hook points over one set of parts, each decomposed once."""

    def __init__(self, moments: CrossMoments, parts: Sequence[int], kept_variance: float) -> None:
        self.moments, self.parts = moments, parts
        self._settings = {
            "tolerance": _TOLERANCE[moments.moment_dtype],
            "kept_variance": kept_variance,
        }
        self._streams: dict[tuple[bool, str], Stream] = {}

    def paired(self, hook_pair: HookPair) -> Paired:
        """Return both streams of a hook pair."""
        whole = self.moments.scatter(hook_pair, self.parts)
        each = [self.moments.scatter(hook_pair, (p,)) for p in self.parts]
        x = self._stream(hook_pair, whole, each, target=False)
        y = self._stream(hook_pair, whole, each, target=True)
        return Paired(x, y, whole.xy, _between([part.xy / part.n for part in each]))

    def _stream(
        self, hook_pair: HookPair, whole: Scatter, each: list[Scatter], target: bool
    ) -> Stream:
        key = (target, hook_pair[int(target)])
        if key not in self._streams:
            matrices = [(part.yy if target else part.xx) / part.n for part in each]
            matrix = whole.yy if target else whole.xx
            self._streams[key] = Stream(matrix, whole.n, _between(matrices), **self._settings)
        return self._streams[key]


def _test_groups(moments: CrossMoments) -> list[int]:
    """Return the groups of the test fold that have rows.

    With few documents, some groups are empty.
    """
    groups = [p for p in moments.parts.test if float(moments.n[p]) >= 2]
    # With an empty test fold, `CrossMoments.scatter` raises the error for all of its groups.
    return groups or list(moments.parts.test)


def _between(covariances: list[Tensor]) -> float:
    return between_folds(torch.stack(covariances)) if len(covariances) > 1 else math.nan


def _shuffled(moments: CrossMoments, hook_pair: HookPair) -> ShuffledPairs | None:
    if hook_pair not in moments.cross_null:
        return None
    fit, test = (
        moments.null_scatter(hook_pair, test=False),
        moments.null_scatter(hook_pair, test=True),
    )
    d_target = len(moments.target[hook_pair[1]].shift)
    shuffled = ShuffledPairs(
        fit.xy, test.xy, fit.n, test.n, moments.parts.n_folds, d_target / fit.xy.shape[1]
    )
    basis = moments.sketch(hook_pair[1])
    if basis is None or shuffled.sketched:
        return shuffled
    # The sketch has as many columns as the target has dimensions: Sxy·B with B orthogonal, so
    # Sxy = (Sxy·B)·Bᵀ.
    return replace(shuffled, fit=fit.xy @ basis.T, test=test.xy @ basis.T)


def _why_no_null(moments: CrossMoments, hook_pair: HookPair) -> str:
    if moments.cross_null:
        return f"no null: shuffled pairs were kept for the grid's own pairs, not for {hook_pair[0]}"
    return "no null: these moments hold no shuffled pairs (harvest with null=True)"


def _checked_measures(names: Sequence[str]) -> list[Measure]:
    unknown = [name for name in names if name not in MEASURES]
    if unknown or not names or isinstance(names, str):
        raise ValueError(
            f"measures are {names!r}; expected one or more of {list(MEASURES)} in a list or tuple"
        )
    return [MEASURES[name] for name in dict.fromkeys(names)]
