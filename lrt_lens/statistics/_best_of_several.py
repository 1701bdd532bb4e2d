"""Multiple comparisons with the best: how far every candidate is behind the one that was picked.

Problem: of several equally good candidates, the best one was picked *because* its error was
favourable, so that the ordinary interval of "best minus another" excludes 0 too often (measured:
for .25 of choices among 5 equal candidates, .91 among 30). Mechanism: all candidates were
scored on the same K groups of documents. The intervals of all differences from the best have
one critical value c,

    d_i ± c · s_i,   d_i = θ_best − θ_i,   s_i² = ⅔ · Var d_i + ⅓ · (mean of Var d over candidates)

and c is the 95% quantile of max_i d_i / s_i when all candidates are equally good: groups are drawn
from the normal distribution, the best candidate is picked from them and compared with the others as
here (20,000 draws, fixed seed).

    behind_best([.31, .30, .12], leave_one_out)        # leave_one_out: [group, candidate]

With only five groups, one of many variances is small by chance; the mean over candidates moderates
it, as in Smyth (2004), *Linear models and empirical Bayes methods*, with a fixed weight. With two
candidates the interval is the ordinary one by Student's t.

Limits: c is for candidates that are equally noisy. It also holds 95% if they are correlated (such
as neighbouring layers) or differ in noise; if errors have heavy tails the intervals are too wide.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lrt_lens.statistics._intervals import LEVEL
from lrt_lens.statistics._jackknife import group_shares, residuals

_OWN = 2 / 3
"""Weight of a difference's own variance against the mean over candidates. With less, candidates of
unequal noise are called worse too often; with more, critical values are larger.
"""
_DRAWS = 20_000
"""Simulated choices per critical value."""
_NUMBERS = 2_000_000
"""Normal numbers per step of the simulation, which bounds its memory."""
_MOST_NUMBERS = 20_000_000
"""Normal numbers per critical value; more than 200 candidates get fewer draws for that reason."""


class Behind(NamedTuple):
    """Differences from the best candidate with simultaneous 95% intervals, each [candidate].

    The best candidate has 0 in all of them. A candidate without a score has NaN.
    """

    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray


def behind_best(
    values: Sequence[float] | np.ndarray,
    leave_one_out: Sequence[Sequence[float]] | np.ndarray,
    sizes: Sequence[float] | np.ndarray | None = None,
) -> Behind:
    """Return how far each candidate is behind the one with the highest value.

    The intervals hold together: if all candidates are equally good, at most 5% of choices have a
    candidate with ``low > 0``.

    Args:
        values: [candidate], scores on all groups; NaN leaves a candidate out.
        leave_one_out: [group, candidate], scores without one group.
        sizes: [group], relative sizes of the groups; None means equal sizes.
    """
    values, without = np.asarray(values, dtype=float), np.asarray(leave_one_out, dtype=float)
    nothing = np.full(len(values), np.nan)
    scored = np.isfinite(values)
    if not scored.any():
        return Behind(nothing, nothing.copy(), nothing.copy())
    best = int(np.nanargmax(values))
    difference = values[best] - values
    if len(without) < 2:
        return Behind(difference, nothing.copy(), nothing.copy())
    left_out = without[:, [best]] - without
    shares = group_shares(left_out, sizes)
    rest = residuals(difference, left_out, shares)
    others = scored & (np.arange(len(values)) != best)
    error = _moderated(rest, shares[:, 0], others)
    # Shares are rounded so that grids of the same corpus have one critical value.
    reach = critical_value(int(scored.sum()), tuple(np.round(shares[:, 0], 3).tolist())) * error
    reach[best] = 0.0
    return Behind(difference, difference - reach, difference + reach)


def _moderated(rest: np.ndarray, shares: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the standard errors s_i [..., candidate] of differences from the best.

    Args:
        rest: [group, ..., candidate], residuals of the differences.
        shares: [group].
        others: [..., candidate], whether the variance of a candidate counts in the mean.
    """
    own = (rest**2).sum(0) / (1 - (shares**2).sum())
    counted = np.where(others, own, 0.0)
    # With one candidate there is no difference to average.
    mean = counted.sum(-1, keepdims=True) / np.maximum(others.sum(-1, keepdims=True), 1)
    return np.sqrt(_OWN * own + (1 - _OWN) * mean)


@lru_cache(maxsize=256)
def critical_value(n_candidates: int, shares: tuple[float, ...]) -> float:
    """Return the 95% quantile of max_i d_i / s_i over equally good candidates.

    Args:
        n_candidates: number of candidates among which the best was picked.
        shares: share of each group of documents, which add up to 1.
    """
    if n_candidates < 2:
        return 0.0
    sizes = np.array(shares)[:, None, None]
    rng, largest = np.random.default_rng(0), []
    per_draw = n_candidates * len(shares)
    draws = max(1000, min(_DRAWS, _MOST_NUMBERS // per_draw))
    at_once = max(1, _NUMBERS // per_draw)
    for start in range(0, draws, at_once):
        size = (len(shares), min(at_once, draws - start), n_candidates)
        # A score is the sum over groups, and the variance of a group's part is its share.
        parts = np.sqrt(sizes) * rng.standard_normal(size)
        score = parts.sum(0)
        best = score.argmax(-1)[:, None]
        difference = np.take_along_axis(score, best, -1) - score
        of_best = np.take_along_axis(parts, best[None], -1)
        rest = of_best - parts - sizes * difference
        others = np.arange(n_candidates) != best
        error = _moderated(rest, np.array(shares), others)
        largest.append((difference / error).max(-1))
    return float(np.quantile(np.concatenate(largest), LEVEL))
