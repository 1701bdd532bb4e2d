"""Anchor methods compared with naive implementations of the papers, row by row in float64."""

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import LinearRegression
from torch import Tensor

from lrt_lens.baselines import (
    ANCHOR_METHODS,
    AnchorLinear,
    AnchorProcrustes,
    AnchorProjection,
    RelativeRepresentation,
)
from lrt_lens.baselines._anchor_methods import AnchorMethod


def rows(n: int, d_source: int = 6, d_target: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Centred rows of a noisy linear relation, dimensions of different spread."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d_source, generator=generator, dtype=torch.float64) * torch.arange(
        1, d_source + 1
    )
    y = x @ torch.randn(d_source, d_target, generator=generator, dtype=torch.float64) + torch.randn(
        n, d_target, generator=generator, dtype=torch.float64
    )
    return x - x.mean(0), y - y.mean(0)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def collinear(a: np.ndarray, b: np.ndarray) -> bool:
    return cosine(a, b) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("n", [4, 30])
def test_a_relative_representation_is_read_back_by_least_squares_on_the_targets_anchors(
    n: int,
) -> None:
    x, y = rows(n)
    weight = RelativeRepresentation().weight(x, y).numpy()
    anchors = np.stack([row / np.linalg.norm(row) for row in y.numpy()])
    for point in np.random.default_rng(1).standard_normal((5, 6)):
        coordinates = np.array([cosine(point, anchor) for anchor in x.numpy()])
        expected = np.linalg.lstsq(anchors, coordinates, rcond=1e-6)[0]
        assert collinear(point @ weight, expected)
        # Lengths: the image of every point is as much longer than its cosines say as the point is
        # long.
        ratio = np.linalg.norm(point @ weight) / np.linalg.norm(expected) / np.linalg.norm(point)
        assert ratio == pytest.approx(
            np.linalg.norm(np.eye(6)[0] @ weight) / np.linalg.norm(_image(np.eye(6)[0], x, anchors))
        )


def _image(point: np.ndarray, x: Tensor, anchors: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(
        anchors, np.array([cosine(point, anchor) for anchor in x.numpy()]), rcond=1e-6
    )[0]


def test_anchor_projection_weighs_the_targets_anchors_by_cosines_to_the_sources() -> None:
    x, y = rows(12)
    weight = AnchorProjection().weight(x, y).numpy()
    for point in np.random.default_rng(1).standard_normal((5, 6)):
        parts = [
            cosine(point, a) * b / np.linalg.norm(b)
            for a, b in zip(x.numpy(), y.numpy(), strict=True)
        ]
        assert collinear(point @ weight, np.sum(parts, axis=0))


@pytest.mark.parametrize("method", [RelativeRepresentation(), AnchorProjection()])
def test_the_one_factor_is_that_of_least_squares(method: AnchorMethod) -> None:
    x, y = rows(40)
    weight = method.weight(x, y)
    best = float((y - x @ weight).square().sum())
    for factor in (0.98, 1.02):
        assert float((y - factor * x @ weight).square().sum()) > best


@pytest.mark.parametrize(("d_source", "d_target"), [(6, 9), (9, 6), (7, 7)])
def test_procrustes_is_that_of_standardised_zero_padded_anchors(
    d_source: int, d_target: int
) -> None:
    x, y = (side.numpy() for side in rows(40, d_source, d_target))
    padded = []
    for side in (x, y):
        whole = np.zeros((40, max(d_source, d_target)))
        whole[:, : side.shape[1]] = side / side.std(0)
        padded.append(whole)
    rotation, _ = orthogonal_procrustes(*padded)
    expected = (padded[0] @ rotation)[:, :d_target] * y.std(0)
    np.testing.assert_allclose(
        x @ AnchorProcrustes().weight(*map(torch.from_numpy, (x, y))).numpy(), expected, atol=1e-9
    )


def test_procrustes_sends_what_no_anchor_shows_to_zero() -> None:
    x, y = rows(3)
    weight = AnchorProcrustes().weight(x, y)
    scaled = x / x.square().mean(0).sqrt()
    hidden = torch.linalg.svd(scaled)[2][2:]  # three centred rows span two dimensions
    deviations = x.square().mean(0).sqrt()
    assert float(((hidden * deviations) @ weight).abs().max()) < 1e-9
    assert int(torch.linalg.matrix_rank(weight)) == 2


def test_linear_is_least_squares_with_an_intercept_where_anchors_suffice() -> None:
    x, y = rows(40)
    expected = LinearRegression().fit(x.numpy(), y.numpy()).coef_.T
    np.testing.assert_allclose(AnchorLinear().weight(x, y).numpy(), expected, atol=1e-9)


def test_linear_runs_through_all_anchors_where_they_are_few() -> None:
    x, y = rows(5)
    torch.testing.assert_close(x @ AnchorLinear().weight(x, y), y)
    noise = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    noise = noise - noise.mean(0)
    torch.testing.assert_close(noise @ AnchorLinear().weight(noise, y), y)


@pytest.mark.parametrize(
    "method", [*ANCHOR_METHODS, RelativeRepresentation(rcond=0.1)], ids=lambda method: method.name
)
def test_a_rotated_and_stretched_space_is_found_again(method: AnchorMethod) -> None:
    """Every method is right if the two spaces are equal up to a linear map.

    Anchor projection is right only if the directions are similar.
    """
    generator = torch.Generator().manual_seed(5)
    basis, _ = torch.linalg.qr(torch.randn(400, 6, generator=generator, dtype=torch.float64))
    x = basis - basis.mean(0)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    weight = method.weight(x, 3 * x @ turn)
    tolerance = (
        0.2 if method.name == "anchor_projection" else 0.05 if method.name == "procrustes" else 1e-2
    )
    assert float((weight - 3 * turn).norm() / (3 * turn).norm()) < tolerance


@pytest.mark.parametrize("method", ANCHOR_METHODS[:4], ids=lambda method: method.name)
def test_the_order_of_anchors_does_not_matter(method: AnchorMethod) -> None:
    x, y = rows(25)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(method.weight(x[order], y[order]), method.weight(x, y))


def test_a_share_outside_of_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="rcond is 1.5; expected a share between 0 and 1"):
        RelativeRepresentation(rcond=1.5)
