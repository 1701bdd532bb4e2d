"""Random directions, against the covariance that they must have."""

import pytest
import torch

from lrt_lens.statistics import random_directions
from lrt_lens.statistics._random_directions import covariance_root


@pytest.fixture
def covariance() -> torch.Tensor:
    """Rank 3 in 5 dimensions, so that two eigenvalues are 0 up to rounding."""
    factor = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return factor @ factor.T


def test_the_root_times_its_transpose_is_the_covariance(covariance: torch.Tensor) -> None:
    root = covariance_root(covariance)
    torch.testing.assert_close(root @ root.T, covariance)
    assert torch.isfinite(root).all()


def test_the_first_half_is_the_noise_and_the_second_half_has_the_covariance(
    covariance: torch.Tensor,
) -> None:
    n = 40_000
    noise = torch.randn(n, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    directions = random_directions(noise, covariance)
    assert torch.equal(directions[: n // 2], noise[: n // 2])
    torch.testing.assert_close(directions[n // 2 :].T.cov(), covariance, atol=0.3, rtol=0.05)


def test_an_odd_number_gives_the_covariance_one_direction_more(covariance: torch.Tensor) -> None:
    noise = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    directions = random_directions(noise, covariance)
    assert torch.equal(directions[0], noise[0])
    torch.testing.assert_close(directions[1:], noise[1:] @ covariance_root(covariance).T)
