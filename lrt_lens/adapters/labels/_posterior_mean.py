"""Posterior mean of a direction from a transferred one and few differences of labelled pairs.

Problem: the mean difference δ̄ of k pairs is noisy in d ≫ k dimensions, and a transferred direction
v is biased. Mechanism: with Σ the covariance of the target's stream, take

    μ ~ N(s·v, τ² Σ),     δ_i ~ N(μ, σ² Σ),     i = 1 … k

The posterior mean of μ is a closed form with one weight, whatever the dimension:

    s·v + w (δ̄ − s·v),     w = τ² / (τ² + σ²/k),     s = vᵀΣ⁻¹δ̄ / vᵀΣ⁻¹v

The weight follows from the pairs themselves: leave pair i out, predict δ_i from the other k − 1,
and minimise the sum of squared errors in the metric Σ⁻¹. That sum is quadratic in w:

    w₋ = Σ_i ⟨δ_i − s_i v, δ̄_i − s_i v⟩ / Σ_i ‖δ̄_i − s_i v‖²,    w = k w₋ / (k − 1 + w₋)

with δ̄_i and s_i from the others; the second formula goes from k − 1 pairs to k. For a fixed s this
is the positive-part estimator of James and Stein (1961), shrunk to s·v instead of 0.

    metric = StreamMetric.of(stitch.target_statistics.covariance)
    posterior_mean(direction, differences, metric, weight="cv").direction

Limits: errors of the map are taken to be spread like the stream itself; a covariance of the
differences that is not proportional to Σ costs precision, not correctness.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 1e-3
"""Share of the mean variance that is added to every variance of Σ, so that it is invertible."""


@dataclass(frozen=True)
class StreamMetric:
    """Lengths and products of directions in units of the standard deviation of a stream."""

    root: Float[Tensor, "d d"]
    """Lower Cholesky factor L of Σ + λ·tr(Σ)/d·I, float64."""

    @classmethod
    def of(cls, covariance: Float[Tensor, "d d"], ridge: float = RIDGE) -> "StreamMetric":
        """Return the metric of a covariance Σ [d, d].

        Raises:
            ValueError: the covariance is zero or not finite.
        """
        covariance = covariance.detach().double().cpu()
        mean = float(covariance.diagonal().mean())
        if not mean > 0 or not torch.isfinite(covariance).all():
            raise ValueError(
                f"the covariance of the stream has the mean variance {mean:.3g}; expected a finite"
                " number above 0: give stitch.target_statistics"
            )
        # Σ + λ·tr(Σ)/d·I = L Lᵀ
        identity = torch.eye(len(covariance), dtype=covariance.dtype)
        return cls(torch.linalg.cholesky(covariance + ridge * mean * identity))

    def rows(self, directions: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Return directions as rows z with ⟨z, z'⟩ = xᵀ Σ⁻¹ x'."""
        # zᵀ = L⁻¹ xᵀ
        whole = directions.detach().double().cpu()
        return torch.linalg.solve_triangular(self.root, whole.T, upper=False).T


@dataclass(frozen=True)
class PosteriorMean:
    """A direction that combines a transferred one with pairs of the target."""

    direction: Float[Tensor, " d"]
    """Posterior mean s·v + w (δ̄ − s·v), float64."""
    weight: float
    """Share w of the pairs' own mean difference, 0 to 1."""
    scale: float
    """Factor s, at least 0, that gives v the length that the pairs show."""


def posterior_mean(
    transferred: Float[Tensor, " d"],
    differences: Float[Tensor, "pair d"],
    metric: StreamMetric,
    weight: Literal["cv", "fidelity"] | float = "cv",
    fidelity: float | None = None,
) -> PosteriorMean:
    """Return the posterior mean of the direction that the pairs show.

    Args:
        transferred: the direction v.
        differences: δ_i, state of the positive minus state of the negative text of each pair.
        metric: the metric of the target's stream.
        weight: w, or the rule for it: `left_out_weight` or `predicted_weight`.
        fidelity: predicted ρ for ``"fidelity"``.

    Raises:
        ValueError: the weight is 0 although the pairs point away from v.
    """
    v, rows = metric.rows(transferred[None])[0], metric.rows(differences)
    scale = _scale(v, rows.mean(0))
    if weight == "cv":
        weight = left_out_weight(v, rows)
    elif weight == "fidelity":
        weight = predicted_weight(v, rows, float(fidelity or 0.0))
    if scale == 0 and weight == 0:
        raise ValueError(
            f"the {len(rows)} pairs point away from the transferred direction, and a weight of 0 "
            "leaves nothing of them; give more pairs, weight='cv', or use it without labels"
        )
    own, prior = differences.detach().double().cpu().mean(0), transferred.detach().double().cpu()
    # s·v + w (δ̄ − s·v)
    return PosteriorMean(scale * prior + weight * (own - scale * prior), float(weight), scale)


def left_out_weight(v: Float[Tensor, " d"], rows: Float[Tensor, "pair d"]) -> float:
    """Return w for k pairs, by the squared error of each pair predicted from the others.

    Args:
        v: the transferred direction, as a row of `StreamMetric.rows`.
        rows: the differences, as rows of `StreamMetric.rows`; at least two.
    """
    n = len(rows)
    # δ̄_i: mean of all differences but δ_i, [pair, d].
    others = (rows.sum(0) - rows) / (n - 1)
    priors = torch.stack([_scale(v, other) * v for other in others])
    own = others - priors
    square = float((own**2).sum())
    # The others agree with the transferred direction exactly: any weight predicts the same.
    if square == 0:
        return 0.0
    # w₋ = Σ ⟨δ_i − s_i v, δ̄_i − s_i v⟩ / Σ ‖δ̄_i − s_i v‖², between 0 and 1
    fitted = min(1.0, max(0.0, float(((rows - priors) * own).sum()) / square))
    weight = n * fitted / (n - 1 + fitted)
    # Pairs that point away from v refute it: s = 0 leaves them alone.
    return weight if _scale(v, rows.mean(0)) > 0 else 1.0


def predicted_weight(v: Float[Tensor, " d"], rows: Float[Tensor, "pair d"], rho: float) -> float:
    """Return w for k pairs, if ρ is the predicted cosine of s·v with μ in the metric.

    The pairs give s and the noise σ², so only τ² comes from the prediction. Arguments are those of
    `left_out_weight`.
    """
    n, mean = len(rows), rows.mean(0)
    scale = _scale(v, mean)
    if rho <= 0 or scale == 0:
        return 1.0
    # σ² d = Σ ‖δ_i − δ̄‖² / (k − 1);   τ² d = ‖s v‖² (1 − ρ²)/ρ²
    noise = float(((rows - mean) ** 2).sum()) / (n - 1) / n
    prior = float((scale * v).square().sum()) * (1 - min(rho, 1.0) ** 2) / rho**2
    return prior / (prior + noise) if prior + noise > 0 else 0.0


def _scale(v: Tensor, mean: Tensor) -> float:
    """Return s = vᵀΣ⁻¹δ̄ / vᵀΣ⁻¹v, at least 0."""
    return max(0.0, float(v @ mean / (v @ v)))
