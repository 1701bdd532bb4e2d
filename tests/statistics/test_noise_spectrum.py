"""The limit of eigenvalues of noise, against simulated noise."""

import numpy as np
import pytest

from lrt_lens.statistics._noise_spectrum import independent_rows, noise_limit


def largest(rows: np.ndarray) -> float:
    centred = rows - rows.mean(0)
    return float(np.linalg.eigvalsh(centred.T @ centred / len(rows))[-1])


@pytest.mark.parametrize(
    ("d", "n", "spread"), [(50, 200, 0.0), (40, 2000, 0.0), (50, 500, 1.0), (100, 60, 0.0)]
)
def test_few_noises_exceed_the_limit_and_a_planted_direction_does(
    d: int, n: int, spread: float
) -> None:
    rng = np.random.default_rng(0)
    deviations = np.exp(spread * rng.normal(size=d) / 2)
    limit = noise_limit(deviations**2, n)
    above = [largest(rng.normal(size=(n, d)) * deviations) > limit for _ in range(300)]
    # Binomial noise of 300 draws at .05 has a standard deviation of .013.
    assert np.mean(above) <= 0.07
    planted = rng.normal(size=(n, 1)) * rng.normal(size=d) / np.sqrt(d) * np.sqrt(2 * limit)
    assert largest(rng.normal(size=(n, d)) * deviations + planted) > limit


def test_the_limit_has_the_unit_of_the_variances_and_ignores_constant_columns() -> None:
    variances = np.array([1.0, 2.0, 3.0, 0.0])
    assert noise_limit(7 * variances, 100) == pytest.approx(7 * noise_limit(variances, 100))
    assert noise_limit(variances, 100) == pytest.approx(noise_limit(variances[:3], 100))
    assert noise_limit(np.zeros(3), 100) == 0


@pytest.mark.parametrize("repeats", [1, 4])
def test_repeated_rows_count_once(repeats: int) -> None:
    rng = np.random.default_rng(1)
    deviations = np.exp(rng.normal(size=30))
    groups = [np.repeat(rng.normal(size=(n, 30)), repeats, 0) for n in (300, 400, 500)]
    covariances = [np.cov(rows * deviations, rowvar=False, bias=True) for rows in groups]
    found = independent_rows(covariances, [len(rows) for rows in groups])
    assert found == pytest.approx(1200, rel=0.15)
