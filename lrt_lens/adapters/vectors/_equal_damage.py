"""Effect of an intervention at equal damage, as a function of the items *and* the neutral texts.

Problem: an effect at equal damage depends on two samples. The items decide how much the propensity
changes at a scale; the neutral texts decide which scale has the damage. With the texts taken as
fixed, an interval of 95 % holds .65 with 8 of them. Mechanism: a `Curve` keeps the propensity of
every item and the loss of every neutral text at every scale. A resample draws items and texts
independently, computes the damage at every scale anew, finds the budget between two scales, and
interpolates the effect there:

    τ = (√D* − √D₀) / (√D₁ − √D₀),       E = (1 − τ) m(s₀) + τ m(s₁) − m(0)

    D is damage, D* the budget, m the mean propensity over items. Damage grows with the square of a
    small step, so √D is linear in the scale.

    resamples = Resamples({ITEMS: clusters, TEXTS: Clusters.single(n_texts)}, seed=0)
    effect = curve.effect(0.1, resamples)            # Estimate
    effect.interval(resamples)                       # Interval over items and neutral texts
    effect.ratio(native.effect(0.1, resamples), resamples)             # paired

Limits: the effect itself is never extrapolated. Where a resample's budget lies beyond the largest
scale, the resample continues the last piece; `Curve.share_beyond` says how often.
"""

import math
from dataclasses import dataclass

import numpy as np

from lrt_lens.data._contrast import ChoiceItems
from lrt_lens.statistics._bootstrap import Clusters, Estimate, Resamples

ITEMS = "items"
"""Name of the items as a source of variation."""
TEXTS = "neutral texts"
"""Name of the neutral texts as a source of variation."""
MOST_BEYOND = 0.025
"""Share of resamples beyond the measured scales above which an effect has a flag."""


def item_clusters(items: ChoiceItems) -> Clusters:
    """Return which items are independent: those that share neither prompt nor continuation.

    The items' own ``clusters`` are used instead if they have any.
    """
    if items.clusters is not None:
        return Clusters.of(list(items.clusters))
    return Clusters.of(list(items.prompts), list(items.positive), list(items.negative))


def steering_resamples(items: ChoiceItems, n_texts: int, *, seed: int) -> Resamples:
    """Return joint resamples of items, whole clusters at a time, and of neutral texts."""
    sources = {ITEMS: item_clusters(items), TEXTS: Clusters.single(n_texts)}
    return Resamples(sources, seed=seed)


@dataclass(frozen=True)
class Curve:
    """Propensities of items and losses of neutral texts over the scales of one vector."""

    scales: np.ndarray
    """Scales in ascending order, 0 (no steering) first, [scale]."""
    rises: np.ndarray
    """Rise of the loss of each neutral text, summed over its tokens, in nats, [scale, text]."""
    n_tokens: np.ndarray
    """Number of tokens of each neutral text that count, [text]."""
    propensity: np.ndarray
    """Propensities in nats, [scale, item]."""

    @property
    def damage(self) -> np.ndarray:
        """Rise of the mean loss in nats per token, [scale]; NaN without neutral texts."""
        if not len(self.n_tokens):
            return np.full(len(self.scales), math.nan)
        return self.rises.sum(1) / self.n_tokens.sum()

    def effect_at(self, budget: float) -> np.ndarray:
        """Return the change of propensity [item] at the first scale whose damage is ``budget``.

        Interpolated between two measured scales; NaN if no two of them bracket the budget.
        """
        low, share = self._bracket(budget)
        # effect = (1 − τ) m(s₀) + τ m(s₁) − m(0)
        return (
            (1 - share) * self.propensity[low]
            + share * self.propensity[low + 1]
            - self.propensity[0]
        )

    def scale_at(self, budget: float) -> float:
        """Return the interpolated scale whose damage is ``budget``, NaN if it is not bracketed."""
        low, share = self._bracket(budget)
        return float((1 - share) * self.scales[low] + share * self.scales[low + 1])

    def _bracket(self, budget: float) -> tuple[int, float]:
        """Return (index of the last scale before the budget, share of the way to the next one)."""
        # Damage need not rise monotonically with the scale, so the first crossing counts.
        damage = self.damage
        above = np.flatnonzero(damage >= budget)
        if not len(above) or above[0] == 0:
            return 0, math.nan
        low = int(above[0]) - 1
        # The rise of the loss may be below 0: it counts as 0.
        roots = np.sqrt(np.clip(damage[[low, low + 1]], 0, None))
        return low, float((math.sqrt(budget) - roots[0]) / (roots[1] - roots[0]))

    def damages(self, resamples: Resamples) -> np.ndarray:
        """Return the damage in the sample and in each resample, [1 + draw, scale]."""
        weights = resamples.weights[TEXTS]
        return (weights @ self.rises.T) / (weights @ self.n_tokens)[:, None]

    def share_beyond(self, budget: float, resamples: Resamples) -> float:
        """Return the share of resamples in which no measured scale reaches the budget."""
        return float((self.damages(resamples)[1:].max(1) < budget).mean())

    def doubt(self, budget: float, resamples: Resamples) -> str:
        """Return a flag if many resamples lie beyond the measured scales.

        Without a bracket in the sample there is no estimate to doubt.
        """
        share = self.share_beyond(budget, resamples)
        if math.isnan(self.scale_at(budget)) or share <= MOST_BEYOND:
            return ""
        return f"in {share:.0%} of resamples the budget lies beyond the measured scales"

    def effect(self, budget: float, resamples: Resamples) -> Estimate:
        """Return the mean effect at the budget in the sample and in each resample.

        It is NaN if the budget is not bracketed in the sample.
        """
        damages = self.damages(resamples)
        rows = np.arange(len(damages))
        is_above = damages >= budget
        reached = is_above.any(1) & ~is_above[:, 0]
        # Beyond the last scale, its piece of the curve is continued.
        high = np.where(reached, is_above.argmax(1), len(self.scales) - 1)
        high = np.maximum(high, 1)
        low = high - 1
        roots = np.sqrt(np.clip(np.stack([damages[rows, low], damages[rows, high]]), 0, None))
        with np.errstate(divide="ignore", invalid="ignore"):
            step = roots[1] - roots[0]
            share = (math.sqrt(budget) - roots[0]) / step
            share[~reached & (step <= 0)] = math.nan
            if not reached[0]:
                share[0] = math.nan
            # dτ = (√D* − r₁)/(r₁ − r₀)² dr₀ − (√D* − r₀)/(r₁ − r₀)² dr₁, with dr = dD / 2r; a
            # damage that counts as 0 stays 0.
            by_low = (math.sqrt(budget) - roots[1]) / step**2 / (2 * roots[0])
            by_high = -(math.sqrt(budget) - roots[0]) / step**2 / (2 * roots[1])
        by_low[roots[0] == 0] = 0.0
        weights = resamples.weights[ITEMS]
        n_items = weights.sum(1)
        means = (weights @ self.propensity.T) / n_items[:, None]
        slope = means[rows, high] - means[rows, low]
        values = means[rows, low] + share * slope - means[:, 0]
        changes = (
            self.propensity[low]
            + share[:, None] * (self.propensity[high] - self.propensity[low])
            - self.propensity[0]
        )
        by_item = (changes - values[:, None]) / n_items[:, None]
        with np.errstate(invalid="ignore"):
            by_text = slope[:, None] * (
                by_low[:, None] * self._by_text(damages, low, resamples)
                + by_high[:, None] * self._by_text(damages, high, resamples)
            )
        return Estimate(values, {ITEMS: by_item, TEXTS: by_text})

    def _by_text(self, damages: np.ndarray, scale: np.ndarray, resamples: Resamples) -> np.ndarray:
        """Return the influence of each text on the damage at one scale per row, [1 + draw, text].

        D = Σ rises / Σ tokens, so dD = (rise − D · tokens) / Σ tokens.
        """
        at = damages[np.arange(len(damages)), scale]
        total = resamples.weights[TEXTS] @ self.n_tokens
        return (self.rises[scale] - at[:, None] * self.n_tokens) / total[:, None]
