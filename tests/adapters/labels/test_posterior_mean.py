"""The closed form against dense formulas and explicit loops, and what the weight does."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from lrt_lens.adapters.labels._posterior_mean import (
    RIDGE,
    StreamMetric,
    left_out_weight,
    posterior_mean,
    predicted_weight,
)

D = 40


def covariance(seed: int = 0, d: int = D) -> np.ndarray:
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((d, d)) * np.geomspace(1, 30, d)
    return root.T @ root / d


def ridged(sigma: np.ndarray) -> np.ndarray:
    return sigma + RIDGE * np.trace(sigma) / len(sigma) * np.eye(len(sigma))


def problem(
    k: int, *, error: float, noise: float = 3.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the truth μ, a direction with ``error``, k differences, and Σ."""
    rng = np.random.default_rng((1, seed))
    sigma = covariance()
    root = np.linalg.cholesky(sigma)
    truth = root @ rng.standard_normal(D)
    transferred = truth + error * root @ rng.standard_normal(D)
    differences = truth + noise * rng.standard_normal((k, D)) @ root.T
    return (
        torch.from_numpy(truth),
        torch.from_numpy(transferred),
        torch.from_numpy(differences),
        torch.from_numpy(sigma),
    )


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def test_products_of_rows_are_those_of_the_inverse_covariance() -> None:
    sigma = covariance()
    x = np.random.default_rng(3).standard_normal((5, D))
    rows = StreamMetric.of(torch.from_numpy(sigma)).rows(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(rows @ rows.T, x @ np.linalg.inv(ridged(sigma)) @ x.T, rtol=1e-9)


def test_it_is_the_mean_of_the_normal_posterior() -> None:
    _, v, differences, sigma = problem(6, error=0.5)
    k, tau, noise = 6, 0.7, 2.0
    inverse = np.linalg.inv(ridged(sigma.numpy()))
    mean, prior = differences.numpy().mean(0), v.numpy()
    scale = prior @ inverse @ mean / (prior @ inverse @ prior)
    # K = τ²Σ (τ²Σ + σ²Σ/k)⁻¹
    gain = (
        tau**2
        * sigma.numpy()
        @ np.linalg.inv(tau**2 * sigma.numpy() + noise**2 * sigma.numpy() / k)
    )
    expected = scale * prior + gain @ (mean - scale * prior)
    weight = tau**2 / (tau**2 + noise**2 / k)
    result = posterior_mean(v, differences, StreamMetric.of(sigma), weight)
    np.testing.assert_allclose(result.direction.numpy(), expected, rtol=1e-8)
    assert result.scale == pytest.approx(scale)


def left_out_error(
    weight: float, v: np.ndarray, differences: np.ndarray, inverse: np.ndarray
) -> float:
    """Squared error of each difference predicted from the others, by an explicit loop."""
    total = 0.0
    for i in range(len(differences)):
        mean = np.delete(differences, i, axis=0).mean(0)
        scale = max(0.0, v @ inverse @ mean / (v @ inverse @ v))
        error = differences[i] - (scale * v + weight * (mean - scale * v))
        total += error @ inverse @ error
    return total


@pytest.mark.parametrize("k", [2, 5, 16])
@pytest.mark.parametrize("error", [0.2, 1.5])
def test_the_weight_has_the_smallest_left_out_error(k: int, error: float) -> None:
    _, v, differences, sigma = problem(k, error=error, noise=1.0)
    inverse = np.linalg.inv(ridged(sigma.numpy()))
    found: Any = minimize_scalar(
        left_out_error,
        bounds=(0, 1),
        method="bounded",
        args=(v.numpy(), differences.numpy(), inverse),
        options={"xatol": 1e-9},
    )
    best = found.x
    metric = StreamMetric.of(sigma)
    weight = left_out_weight(metric.rows(v[None])[0], metric.rows(differences))
    # From k − 1 pairs to k: r = (k − 1)(1 − w₋)/w₋ pairs is what the transfer is worth.
    worth = (k - 1) * (1 - best) / best
    assert weight == pytest.approx(k / (k + worth), abs=1e-4)


def test_without_a_direction_it_is_the_estimator_of_james_and_stein() -> None:
    """With s = 0, the left-out weight is 1 − σ²d / (k ‖δ̄‖²)."""
    _, _, differences, sigma = problem(8, error=1.0, noise=1.0)
    rows = StreamMetric.of(sigma).rows(differences)
    mean = rows.mean(0)
    # A direction that every mean of seven points away from has s = 0 in every left-out fit.
    away = -mean
    noise = float(((rows - mean) ** 2).sum()) / 7
    expected = 1 - noise / 8 / float(mean @ mean)
    others = (rows.sum(0) - rows) / 7
    fitted = float((rows * others).sum() / (others**2).sum())
    assert 8 * fitted / (7 + fitted) == pytest.approx(expected)
    # Such pairs refute the direction, and are taken alone.
    assert left_out_weight(away, rows) == 1.0


def test_it_does_not_depend_on_the_length_of_the_transferred_direction() -> None:
    _, v, differences, sigma = problem(6, error=0.5)
    metric = StreamMetric.of(sigma)
    one, other = (posterior_mean(x, differences, metric) for x in (v, 100 * v))
    torch.testing.assert_close(one.direction, other.direction)
    assert one.weight == pytest.approx(other.weight)


def test_weights_of_0_and_1_are_the_transferred_direction_and_the_mean_difference() -> None:
    _, v, differences, sigma = problem(6, error=0.5)
    metric = StreamMetric.of(sigma)
    assert cosine(posterior_mean(v, differences, metric, 0.0).direction, v) == pytest.approx(1)
    own = posterior_mean(v, differences, metric, 1.0).direction
    torch.testing.assert_close(own, differences.mean(0))


def mean_cosines(k: int, error: float, n: int = 40) -> tuple[float, float, float, float]:
    """Cosines to the truth of the combination, the pairs and the direction, and the weight."""
    rows = []
    for seed in range(n):
        truth, v, differences, sigma = problem(k, error=error, seed=seed)
        result = posterior_mean(v, differences, StreamMetric.of(sigma))
        vectors = (result.direction, differences.mean(0), v)
        rows.append([*(cosine(x, truth) for x in vectors), result.weight])
    combined, native, transferred, weight = np.mean(rows, axis=0)
    return combined, native, transferred, weight


def test_a_prior_that_is_right_makes_the_combination_better_than_both() -> None:
    combined, native, transferred, _ = mean_cosines(8, error=1.0)
    assert combined > native + 0.02
    assert combined > transferred + 0.02


@pytest.mark.parametrize("k", [4, 16])
def test_a_prior_that_is_wrong_does_not_harm_in_its_metric(k: int) -> None:
    """The estimator of James and Stein is never worse than the mean, whatever the prior mean."""
    errors = []
    for seed in range(40):
        truth, v, differences, sigma = problem(k, error=100.0, seed=seed)
        metric = StreamMetric.of(sigma)
        estimates = (posterior_mean(v, differences, metric).direction, differences.mean(0))
        rows = metric.rows(torch.stack([one - truth for one in estimates]))
        errors.append((rows**2).sum(1).numpy())
    combined, native = np.mean(errors, axis=0)
    assert combined < native


def test_pairs_win_over_a_prior_that_is_wrong() -> None:
    combined, native, transferred, weight = mean_cosines(256, error=100.0, n=10)
    assert transferred < 0.5
    assert weight > 0.9
    assert combined == pytest.approx(native, abs=0.01)


def test_many_pairs_are_taken_alone() -> None:
    weights = [mean_cosines(k, error=1.0, n=5)[3] for k in (4, 64, 1024)]
    assert weights[0] < weights[1] < weights[2]
    assert weights[2] > 0.97


def test_a_predicted_fidelity_sets_the_variance_of_the_prior() -> None:
    _, v, differences, sigma = problem(6, error=0.5)
    metric = StreamMetric.of(sigma)
    direction, rows = metric.rows(v[None])[0], metric.rows(differences)
    weights = [predicted_weight(direction, rows, rho) for rho in (1.0, 0.9, 0.5, 0.1, 0.0, -0.5)]
    assert weights[0] == 0
    assert weights == sorted(weights)
    assert weights[-2:] == [1, 1]
    # τ²d = ‖s v‖² (1 − ρ²)/ρ², σ²d from the pairs
    inverse, mean = np.linalg.inv(ridged(sigma.numpy())), differences.numpy().mean(0)
    prior = v.numpy() * (v.numpy() @ inverse @ mean) / (v.numpy() @ inverse @ v.numpy())
    tau = prior @ inverse @ prior * (1 - 0.25) / 0.25
    noise = np.einsum("ki,ij,kj->", differences.numpy() - mean, inverse, differences.numpy() - mean)
    assert weights[2] == pytest.approx(tau / (tau + noise / 5 / 6))


def test_pairs_that_point_away_leave_nothing_of_a_weight_of_0() -> None:
    _, v, differences, sigma = problem(6, error=0.1, noise=0.1)
    with pytest.raises(ValueError, match="6 pairs point away from the transferred direction"):
        posterior_mean(-v, differences, StreamMetric.of(sigma), 0.0)
    away = posterior_mean(-v, differences, StreamMetric.of(sigma))
    assert away.weight == 1
    torch.testing.assert_close(away.direction, differences.mean(0))


def test_a_stream_without_variance_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mean variance 0; expected .*target_statistics"):
        StreamMetric.of(torch.zeros(3, 3))
