"""Accuracy and AUROC of scores such as probabilities, with intervals over items or clusters.

Problem: accuracies of probes are near 1 and test sets are small. The bootstrap of 40 correct items
is the interval 1 to 1, and items that share a story or a template are not independent. Mechanism:
the *score* interval of a share, which is never empty, with the number of items that would give the
variance between clusters (Wilson 1927; Korn and Graubard 1998):

    { p : (a − p)² ≤ t² · p(1 − p)/n′ },          n′ = a(1 − a) / Σ_clusters (Σ_items influence)²

and likewise for an AUROC, whose variance at a true value θ is that of Hanley and McNeil (1982),
multiplied by what DeLong's variance of the data is above it (method 5 of Newcombe 2006):

    { θ : (A − θ)² ≤ t² · κ · V(θ) },             κ = max(1, V_DeLong / V(A))

    V(θ) = θ(1 − θ) · (1 + m′(1 − θ)/(2 − θ) + m′ θ/(1 + θ)) / (n⁺ n⁻),      m′ = (n⁺ + n⁻)/2 − 1

    scores = ItemScores.of([probabilities], truth, clusters=Clusters.of(stories))
    scores.accuracy(), scores.auroc, scores.share_of(native, chance=0.5)      # Interval

A ratio of accuracies above chance is that of Fieller (1954), with one correct and one wrong item of
every kind added at half weight (Agresti and Min 2005), so that it has a width if no item is wrong.

Limits: with more than two classes, the AUROC is the mean over classes of each against all others.
Accuracies take few values, so no interval holds exactly 95%: of 20 to 300 items these hold .92 to
.98 (`docs/results/intervals.md`).
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import root_scalar
from scipy.stats import rankdata

from lrt_lens.statistics._bootstrap import FEW, FEWEST_CLUSTERS, Clusters, few_units
from lrt_lens.statistics._intervals import NOTHING, Interval, joined_flags, t_quantile
from lrt_lens.statistics._thresholds import best_threshold_accuracy

FEWEST_ERRORS = 5
"""Number of wrong (or of correct) items below which an interval has a flag."""
_TINY = 1e-12
"""Distance from 0 and 1 at which ends of an AUROC's interval are looked for."""


@dataclass(frozen=True)
class ItemScores:
    """Accuracy and AUROC of one arm (all its draws) on the test items."""

    correct: np.ndarray
    """Share of draws that classify each item correctly, [item]."""
    accuracies: np.ndarray
    """Accuracy of each draw, [draw]."""
    either_sign: np.ndarray
    """Accuracy of each draw or of its negative, whichever is larger, [draw]."""
    best_accuracies: np.ndarray
    """Accuracy of each draw at its best threshold on these items, a diagnostic, [draw]."""
    aurocs: np.ndarray
    """AUROC of each draw, [draw]."""
    auroc: Interval
    """Mean AUROC over draws, with its interval over items and draws."""
    clusters: Clusters = field(repr=False)
    """Which items are independent."""
    n_constant: int = 0
    """Number of draws that predict one class for all items; their accuracy says nothing."""

    @classmethod
    def of(
        cls, chances: list[np.ndarray], truth: np.ndarray, *, clusters: Clusters | None = None
    ) -> "ItemScores":
        """Return accuracy and AUROC from the scores [item, class] of every draw.

        Args:
            chances: probabilities or their logarithms [item, class], one array per draw. Logarithms
                keep the order of items whose probabilities round to 1.
            truth: number of the class of each item, [item].
            clusters: which items are independent; all of them by default.
        """
        clusters = clusters or Clusters.single(len(truth))
        correct = np.stack([one.argmax(1) == truth for one in chances]).astype(float)
        # The negative of the logits has the least likely class first.
        turned = np.stack([one.argmin(1) == truth for one in chances]).mean(1)
        return cls(
            correct.mean(0),
            correct.mean(1),
            np.maximum(correct.mean(1), turned),
            np.array([best_threshold_accuracy(one, truth) for one in chances]),
            np.array([auroc(one, truth) for one in chances]),
            auroc_interval(chances, truth, clusters=clusters),
            clusters,
            sum(len(set(one.argmax(1).tolist())) == 1 for one in chances),
        )

    def accuracy(self) -> Interval:
        """Return the mean accuracy over draws, with its interval over items and draws."""
        return _over_draws(share_interval(self.correct, self.clusters), self.accuracies)

    def share_of(self, native: "ItemScores", chance: float) -> Interval:
        """Return (accuracy − chance) / (native's accuracy − chance), paired over the items.

        The chance counts as known. NaN if the interval of the native accuracy includes it.
        """
        if self.clusters.n < 2 or not native.accuracy().excludes(chance):
            return NOTHING
        if self is native:
            return Interval(1.0, 1.0, 1.0)
        share = _paired_ratio(self.correct - chance, native.correct - chance, self.clusters, chance)
        above = float(native.correct.mean()) - chance
        return _over_draws(share, self.accuracies / above, clipped=False)

    def above(self, other: "ItemScores") -> Interval:
        """Return the accuracy minus that of another arm on the same items, with its interval."""
        return _paired_difference(self.correct, other.correct, self.clusters)


def share_interval(correct: np.ndarray, clusters: Clusters | None = None) -> Interval:
    """Return the mean of ``correct`` [item], numbers from 0 to 1, with its score interval.

    NaN without items, and NaN ends for a single cluster. The flag says if there are few independent
    items, or few that are wrong or correct.
    """
    n = len(correct)
    if not n:
        return NOTHING
    clusters = clusters or Clusters.single(n)
    value = float(correct.mean())
    if clusters.n < 2:
        return Interval(value, math.nan, math.nan, "1 independent item")
    variance = clusters.variance((correct - value) / n)
    # Without variation between items nothing is known about that between clusters: each of them
    # counts as one item.
    effective = value * (1 - value) / variance if variance > 0 else clusters.n
    # A mean over draws varies less than single answers do.
    effective = min(effective, n) if _is_binary(correct) else effective
    t = t_quantile(clusters.n - 1)
    # (a − p)² = t² p(1 − p)/n′ for p = (a + t²/2n′ ± t √(a(1 − a)/n′ + t²/4n′²)) / (1 + t²/n′)
    middle, unit = value + t**2 / (2 * effective), 1 + t**2 / effective
    half = t * math.sqrt(value * (1 - value) / effective + t**2 / (4 * effective**2))
    low, high = max(0.0, (middle - half) / unit), min(1.0, (middle + half) / unit)
    return Interval(value, low, high, joined_flags([few_units(clusters.n), _rare(correct)]))


def auroc(chances: np.ndarray, truth: np.ndarray) -> float:
    """Return the AUROC of probabilities [item, class]; NaN unless every class occurs."""
    return float(np.mean([_placements(chances[:, j], truth == j)[0] for j in _columns(chances)]))


def auroc_interval(
    draws: list[np.ndarray], truth: np.ndarray, *, clusters: Clusters | None = None
) -> Interval:
    """Return the mean AUROC of the draws with its interval over items and draws.

    Args:
        draws: probabilities [item, class], one array per draw.
        truth: number of the class of each item, [item].
        clusters: which items are independent; all of them by default.
    """
    clusters = clusters or Clusters.single(len(truth))
    values = np.array([auroc(chances, truth) for chances in draws])
    value = float(values.mean())
    if math.isnan(value):
        return NOTHING
    if clusters.n < 2:
        return Interval(value, math.nan, math.nan, "1 independent item")
    columns = _columns(draws[0])
    sizes = [int((truth == j).sum()) for j in columns]
    influence = np.mean([_influence(one, truth, clusters.n) for one in draws], 0)

    def spread(theta: float) -> float:
        """Return the variance of an AUROC of ``theta`` by Hanley and McNeil, mean over classes."""
        return float(np.mean([_hanley_mcneil(theta, m, len(truth) - m) for m in sizes]))

    inflation = len(truth) / clusters.n
    if 0 < value < 1:
        # The mean over classes of draws varies less than one of them, at most as many times.
        least = 1 / (len(columns) * len(draws))
        inflation = max(clusters.variance(influence) / spread(value), least)
        inflation = max(inflation, 1.0) if len(columns) == len(draws) == 1 else inflation
    interval = _score_interval(value, spread, inflation, t_quantile(clusters.n - 1))
    fewest = min(int((truth == j).sum()) for j in range(draws[0].shape[1]))
    few = few_units(clusters.n) or (f"{fewest} items of a class" if fewest < FEW else "")
    separated = "all items are separated" if value in (0.0, 1.0) else ""
    return _over_draws(Interval(value, *interval, joined_flags([few, separated])), values)


def auroc_difference(
    ours: np.ndarray, theirs: np.ndarray, truth: np.ndarray, *, clusters: Clusters | None = None
) -> Interval:
    """Return the AUROC of ``ours`` minus that of ``theirs`` on the same items, with its interval.

    With the intervals (l, u) of both AUROCs, their values A and B and the correlation r of their
    errors, which DeLong's covariance gives, the ends are those of Zou and Donner (2008):

        A − B − √((A − l)² + (u′ − B)² − 2r (A − l)(u′ − B)),      with l, u of A and l′, u′ of B
        A − B + √((u − A)² + (B − l′)² − 2r (u − A)(B − l′))

    They have a width where all items are separated, which those of the paired test have not. Two
    arms that put all items in one order have the same AUROC on any items: no loss, without a width.

    Args:
        ours: probabilities or their logarithms, [item, class].
        theirs: those of the other arm on the same items, [item, class].
        truth: number of the class of each item, [item].
        clusters: which items are independent; all of them by default.

    Returns:
        NaN unless every class occurs, and NaN ends for a single cluster. The flag is that of either
        AUROC.
    """
    clusters = clusters or Clusters.single(len(truth))
    a, b = (auroc_interval([one], truth, clusters=clusters) for one in (ours, theirs))
    value = a.value - b.value
    if math.isnan(value) or clusters.n < 2:
        return Interval(value, math.nan, math.nan, a.flag)
    if np.array_equal(rankdata(ours, axis=0), rankdata(theirs, axis=0)):
        return Interval(0.0, 0.0, 0.0, a.flag)
    r = _error_correlation(ours, theirs, truth, clusters)

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x**2 + y**2 - 2 * r * x * y, 0.0))

    low = value - reach(a.value - a.low, b.high - b.value)
    high = value + reach(a.high - a.value, b.value - b.low)
    flags = list(dict.fromkeys([*a.flag.split("; "), *b.flag.split("; ")]))
    return Interval(value, max(low, -1.0), min(high, 1.0), joined_flags(flags))


# ------------------------------------------------------------------------------------------ AUROC


def _columns(chances: np.ndarray) -> list[int]:
    """Return the classes whose AUROC is measured: of two, the second against the first says all."""
    return [1] if chances.shape[1] == 2 else list(range(chances.shape[1]))


def _placements(score: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the AUROC and DeLong's placements of both kinds of items; NaN without one kind.

    The placement of a positive item is the share of negative ones below it, ties at half, and that
    of a negative item the share of positive ones above it.
    """
    ours, others = score[positive], score[~positive]
    if not len(ours) or not len(others):
        return math.nan, np.full(len(ours), math.nan), np.full(len(others), math.nan)
    placed = _share_below(ours, others)
    return float(placed.mean()), placed, 1 - _share_below(others, ours)


def _share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each value the share of the others that are below it, ties at half."""
    ordered = np.sort(others)
    left, right = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (left + right) / (2 * len(others))


def _influence(chances: np.ndarray, truth: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return the influence of each item on the mean AUROC over classes, [item].

    With `Clusters.variance` it gives DeLong's variance if every item is a cluster.
    """
    influences = []
    for j in _columns(chances):
        positive, influence = truth == j, np.zeros(len(truth))
        value, *placed = _placements(chances[:, j], positive)
        for members, placements in zip((positive, ~positive), placed, strict=True):
            m = len(placements)
            # DeLong divides by m − 1 for each kind, `Clusters.variance` by clusters − 1 for all.
            unbiased = math.sqrt(m / max(m - 1, 1) * (n_clusters - 1) / n_clusters)
            influence[members] = (placements - value) / m * unbiased
        influences.append(influence)
    return np.mean(influences, 0)


def _error_correlation(
    ours: np.ndarray, theirs: np.ndarray, truth: np.ndarray, clusters: Clusters
) -> float:
    """Return the correlation of the errors of two AUROCs on the same items."""
    a, b = (_influence(one, truth, clusters.n) for one in (ours, theirs))
    variances = clusters.variance(a), clusters.variance(b)
    # Items that are all separated say nothing of the errors.
    if not min(variances) > 0:
        return 0.0
    # Cov(A, B) = (Var(A) + Var(B) − Var(A − B)) / 2
    covariance = (sum(variances) - clusters.variance(a - b)) / 2
    return float(np.clip(covariance / math.sqrt(variances[0] * variances[1]), -1.0, 1.0))


def _hanley_mcneil(theta: float, m: int, n: int) -> float:
    """Return the variance of an AUROC of ``theta`` with m positive and n negative items."""
    half = (m + n) / 2 - 1
    shape = 1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)
    return theta * (1 - theta) * shape / (m * n)


def _score_interval(
    value: float, spread: Callable[[float], float], inflation: float, t: float
) -> tuple[float, float]:
    """Return both ends of { θ : (value − θ)² ≤ t² · inflation · spread(θ) }."""

    def gap(theta: float) -> float:
        return (value - theta) ** 2 - t**2 * inflation * spread(theta)

    # The gap is below 0 at the value and, unless the value is 0 or 1, above 0 at both ends.
    inner = min(max(value, 1e-9), 1 - 1e-9)
    low = 0.0 if gap(_TINY) <= 0 else _root(gap, _TINY, inner)
    high = 1.0 if gap(1 - _TINY) <= 0 else _root(gap, inner, 1 - _TINY)
    return low, high


def _root(gap: Callable[[float], float], low: float, high: float) -> float:
    return float(root_scalar(gap, bracket=(low, high), method="brentq").root)


# ------------------------------------------------------------------------------------------ ratios

_ADDED = ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0))
"""Items that are added to both arms, correct or wrong, each with the weight ½."""


@dataclass(frozen=True)
class _Pairs:
    """Two arms on the same items, with items added to them; moments of their means."""

    means: tuple[float, float]
    covariance: np.ndarray
    """Covariance of both means over clusters, [2, 2]."""


def _pairs(a: np.ndarray, b: np.ndarray, clusters: Clusters, shift: float) -> _Pairs:
    """Return the moments of two arms, whose answers are 1 − shift if correct and −shift if not."""
    n = len(a)
    added = np.array(_ADDED).T - shift
    both = np.concatenate([np.stack([a, b]), added], 1)
    root = np.concatenate([np.ones(n), np.full(len(_ADDED), math.sqrt(0.5))])
    total = float((root**2).sum())
    means = both @ root**2 / total
    influence = (both - means[:, None]) * root / total
    # Added items are clusters of their own.
    own = np.arange(len(_ADDED)) + 1
    wider = Clusters(tuple(np.concatenate([one, one.max() + own]) for one in clusters.factors))
    variances = [wider.variance(influence[0]), wider.variance(influence[1])]
    # 2 Cov(a, b) = Var(a + b) − Var(a) − Var(b)
    shared = (wider.variance(influence.sum(0)) - sum(variances)) / 2
    covariance = np.array([[variances[0], shared], [shared, variances[1]]])
    return _Pairs((float(means[0]), float(means[1])), covariance)


def _paired_ratio(a: np.ndarray, b: np.ndarray, clusters: Clusters, shift: float) -> Interval:
    """Return mean(a) / mean(b) with the ratios r for which mean(a) − r·mean(b) may be 0."""
    value = float(a.mean() / b.mean())
    pairs, t = _pairs(a, b, clusters, shift), t_quantile(clusters.n - 1)
    (x, y), ((xx, xy), (_, yy)) = pairs.means, pairs.covariance
    # (x − r y)² = t² (V_x − 2 r V_xy + r² V_y), a quadratic equation in r
    square, linear, constant = y**2 - t**2 * yy, x * y - t**2 * xy, x**2 - t**2 * xx
    if square <= 0:
        return Interval(value, -math.inf, math.inf, few_units(clusters.n))
    root = math.sqrt(max(linear**2 - square * constant, 0.0))
    # The added items draw the middle towards 1; the ratio itself stays inside.
    low, high = min(value, (linear - root) / square), max(value, (linear + root) / square)
    return Interval(value, low, high, few_units(clusters.n))


def _paired_difference(a: np.ndarray, b: np.ndarray, clusters: Clusters) -> Interval:
    """Return mean(a) − mean(b) with its interval over items."""
    value = float(a.mean() - b.mean())
    if clusters.n < 2:
        return Interval(value, math.nan, math.nan, "1 independent item")
    pairs, t = _pairs(a, b, clusters, 0.0), t_quantile(clusters.n - 1)
    covariance = pairs.covariance
    error = math.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0.0))
    middle = pairs.means[0] - pairs.means[1]
    low, high = min(value, middle - t * error), max(value, middle + t * error)
    return Interval(value, low, high, few_units(clusters.n))


# ------------------------------------------------------------------------------------------- flags


def _over_draws(interval: Interval, values: np.ndarray, *, clipped: bool = True) -> Interval:
    """Return an interval over items, widened by the error t · s/√n of the mean over draws."""
    n = len(values)
    if n < 2:
        return interval
    reach = t_quantile(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    wider = interval.widened(reach)
    if clipped:
        wider = wider.within()
    few = f"{n} draws" if n < FEWEST_CLUSTERS else ""
    return Interval(wider.value, wider.low, wider.high, joined_flags([interval.flag, few]))


def _is_binary(correct: np.ndarray) -> bool:
    return bool(np.isin(correct, (0.0, 1.0)).all())


def _rare(correct: np.ndarray) -> str:
    """Return a flag if few items are wrong, or few are correct."""
    wrong, n = float((1 - correct).sum()), len(correct)
    for count, name in ((wrong, "wrong"), (n - wrong, "correct")):
        if count < FEWEST_ERRORS:
            return f"{count:.3g} of {n} items {name}"
    return ""


def clusters_of(groups: Sequence[Hashable] | None, n: int) -> tuple[Clusters, str]:
    """Return which of n test items are independent, and a flag if there are too few groups.

    ``groups`` are one label per item; None if all items are independent. Fewer than
    ``FEWEST_CLUSTERS`` groups say nothing about others: items count as independent within them.
    """
    if groups is None:
        return Clusters.single(n), ""
    n_groups = len(set(groups))
    few = f"{n_groups} groups count as fixed" if n_groups < FEWEST_CLUSTERS else ""
    return Clusters.of(groups), few
