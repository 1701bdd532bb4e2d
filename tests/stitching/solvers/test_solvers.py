"""Every closed form against the same map computed from rows by other means."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes, polar, sqrtm
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from lrt_lens.errors import MismatchError
from lrt_lens.moments import TEST_PARTS, CrossMoments, score_map
from lrt_lens.stitching import AffineMap, MapPair
from lrt_lens.stitching.solvers import (
    AxisScaling,
    FixedMaps,
    Identity,
    LeastSquares,
    Mean,
    Procrustes,
    ReducedRank,
    Ridge,
    Translation,
    TwoWay,
    WhitenedProcrustes,
)

ALL = [
    LeastSquares(),
    Ridge(),
    ReducedRank(),
    Procrustes(),
    Procrustes(scale=False),
    WhitenedProcrustes(),
    WhitenedProcrustes(scale=False),
    AxisScaling(),
    Translation(),
    Mean(),
    TwoWay(alpha=0.0),
]
ALL += [replace(solver, standardize=True) for solver in ALL]


def fitted(rows: Any, moments_of: Any, solver: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return (the only stitch of a fit, x of the fitting folds, y of the fitting folds)."""
    moments = moments_of(rows)
    x, y = rows.numpy(rows.fits)
    return moments.fit(solver).best(by="r2_cv"), x, y


def assert_same(
    affine: AffineMap, weight: np.ndarray, bias: np.ndarray, tolerance: float = 1e-8
) -> None:
    scale = np.abs(weight).max()
    np.testing.assert_allclose(
        affine.weight.numpy(), weight, rtol=tolerance, atol=tolerance * scale
    )
    np.testing.assert_allclose(
        affine.bias.numpy(), bias, rtol=tolerance, atol=tolerance * max(np.abs(bias).max(), 1)
    )


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
def test_least_squares_is_scikit_learns(
    rows: Any, moments_of: Any, down: bool, intercept: bool, standardize: bool
) -> None:
    stitch, x, y = fitted(
        rows, moments_of, LeastSquares(intercept=intercept, standardize=standardize)
    )
    x, y = (y, x) if down else (x, y)
    expected = LinearRegression(fit_intercept=intercept).fit(x, y)
    assert_same(
        stitch.down if down else stitch.up,
        expected.coef_.T,
        np.broadcast_to(expected.intercept_, y.shape[1]),
        1e-7,
    )


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_fewer_rows_than_dimensions_the_smallest_of_all_interpolating_maps_is_taken(
    intercept: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(300, 400, generator=generator).double() + 0.3,
        torch.randn(300, 7, generator=generator).double(),
    )
    documents = [i // 2 for i in range(300)]
    moments = CrossMoments.from_activations(x, y, documents=documents, moment_dtype=dtype)
    from lrt_lens.data import document_key, part_of

    fits = np.array([part_of(document_key(str(d), 0)) < 5 for d in documents])
    a, b = x.numpy()[fits], y.numpy()[fits]
    shift_a, shift_b = (a.mean(0), b.mean(0)) if intercept else (0.0, 0.0)
    expected = np.linalg.pinv(a - shift_a, rcond=1e-10) @ (b - shift_b)
    found = moments.fit(LeastSquares(intercept=intercept)).best(by="r2_cv").up
    np.testing.assert_allclose(
        found.weight.numpy(),
        expected,
        atol=(1e-9 if dtype == torch.float64 else 1e-4) * np.abs(expected).max(),
    )
    np.testing.assert_allclose(
        found.points(torch.from_numpy(a)).numpy(), b, atol=1e-8 if dtype == torch.float64 else 1e-3
    )


@pytest.mark.parametrize("scale", [False, True])
def test_procrustes_into_a_wider_stream_is_schoenemanns(
    rows: Any, moments_of: Any, scale: bool
) -> None:
    stitch, x, y = fitted(rows, moments_of, Procrustes(scale=scale))
    x, y = x - x.mean(0), y - y.mean(0)
    # The 12-dimensional source is the wider one here, so the way down is the closed form; zero-pad
    # to compare with scipy's square one.
    rotation, singular = orthogonal_procrustes(np.pad(y, ((0, 0), (0, 3))), x)
    factor = singular / (y**2).sum() if scale else 1.0
    np.testing.assert_allclose(stitch.down.weight.numpy(), factor * rotation[:9], atol=1e-10)


def _semi_orthogonal_error(
    x: np.ndarray, y: np.ndarray, rotation: np.ndarray, scale: bool
) -> float:
    factor = (
        (rotation * (x.T @ y)).sum() / (rotation * (x.T @ x @ rotation)).sum() if scale else 1.0
    )
    return float(((y - factor * x @ rotation) ** 2).sum())


@pytest.mark.parametrize("scale", [False, True])
def test_procrustes_into_a_narrower_stream_is_a_minimum_that_the_closed_form_misses(
    rows: Any, moments_of: Any, scale: bool
) -> None:
    stitch, x, y = fitted(rows, moments_of, Procrustes(scale=scale))
    x, y = x - x.mean(0), y - y.mean(0)
    weight = stitch.up.weight.numpy()
    factor = np.sqrt((weight**2).sum() / 9)
    rotation = weight / factor
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(9), atol=1e-8)
    found = _semi_orthogonal_error(x, y, rotation, scale)
    u, _, vt = np.linalg.svd(x.T @ y, full_matrices=False)
    assert found < 0.999 * _semi_orthogonal_error(x, y, u @ vt, scale)
    generator = np.random.default_rng(0)
    for _ in range(50):  # no step along the manifold leads further down
        nearby, _ = np.linalg.qr(rotation + 1e-3 * generator.normal(size=rotation.shape))
        nearby *= np.sign((nearby * rotation).sum(0))
        assert _semi_orthogonal_error(x, y, nearby, scale) > found * (1 - 1e-6)


def _root(matrix: np.ndarray) -> np.ndarray:
    return np.real(sqrtm(matrix))


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("alpha", [1e-6, 0.3])
def test_whitened_procrustes_is_the_naive_formula(
    rows: Any, moments_of: Any, alpha: float, scale: bool, down: bool
) -> None:
    stitch, x, y = fitted(rows, moments_of, WhitenedProcrustes(alpha=alpha, scale=scale))
    x, y = (y, x) if down else (x, y)
    a, b = x - x.mean(0), y - y.mean(0)
    xx, yy = (s + alpha * np.trace(s) / len(s) * np.eye(len(s)) for s in (a.T @ a, b.T @ b))
    root_xx, root_yy = _root(xx), _root(yy)
    rotation, _ = polar(np.linalg.inv(root_xx) @ a.T @ b @ np.linalg.inv(root_yy))
    weight = np.linalg.inv(root_xx) @ rotation @ root_yy
    if scale:  # regression through the origin of all entries of y on those of xW
        weight = weight * np.vdot(a @ weight, b) / np.vdot(a @ weight, a @ weight)
    assert_same(stitch.down if down else stitch.up, weight, y.mean(0) - x.mean(0) @ weight, 1e-7)


def test_whitened_procrustes_finds_a_rotation_between_whitened_streams(
    rows: Any, moments_of: Any
) -> None:
    generator = np.random.default_rng(3)
    rotation, metric = np.linalg.qr(generator.normal(size=(12, 12)))[0], rows.numpy(rows.fits)[0]
    spread = _root(np.cov(metric.T))
    axes = generator.normal(size=(12, 12))
    # y = x Cxx^-½ Q Cyy^½ for any positive definite Cyy.
    weight = np.linalg.inv(spread) @ rotation @ _root(axes @ axes.T + np.eye(12))
    related = replace(rows, y=torch.from_numpy(rows.x.numpy() @ weight) + 2.0)
    found = moments_of(related).fit(WhitenedProcrustes(alpha=1e-12)).best(by="r2_cv")
    np.testing.assert_allclose(found.up.weight.numpy(), weight, atol=1e-6 * np.abs(weight).max())
    # The map down is the inverse: a rotation loses nothing, and a plain Procrustes map misses it.
    np.testing.assert_allclose(found.down.weight.numpy() @ weight, np.eye(12), atol=1e-6)
    plain = moments_of(related).fit(Procrustes()).best(by="r2_cv")
    assert plain.scores["r2"] < 0.9 < found.scores["r2"]


def test_whitened_procrustes_keeps_the_covariance_of_the_narrower_target(
    rows: Any, moments_of: Any
) -> None:
    stitch, x, y = fitted(rows, moments_of, WhitenedProcrustes(alpha=1e-9, scale=False))
    mapped = stitch.up.points(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(np.cov(mapped.T), np.cov(y.T), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mapped.mean(0), y.mean(0), rtol=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 9])
@pytest.mark.parametrize("down", [False, True])
def test_reduced_rank_is_the_best_of_its_rank_for_ridges_objective(
    rows: Any, moments_of: Any, rank: int, down: bool
) -> None:
    stitch, x, y = fitted(rows, moments_of, ReducedRank(rank=rank, alpha=0.05))
    x, y = (y, x) if down else (x, y)
    x, y = x - x.mean(0), y - y.mean(0)
    penalty = 0.05 * (x**2).sum() / x.shape[1]
    # Ridge is least squares on rows augmented by √λ·I; its reduced-rank form is the SVD of the
    # fitted augmented rows.
    augmented = np.vstack([x, np.sqrt(penalty) * np.eye(x.shape[1])])
    full = np.linalg.lstsq(
        augmented, np.vstack([y, np.zeros((x.shape[1], y.shape[1]))]), rcond=None
    )[0]
    _, _, vt = np.linalg.svd(augmented @ full, full_matrices=False)
    expected = full @ vt[:rank].T @ vt[:rank]
    found = stitch.down if down else stitch.up
    np.testing.assert_allclose(found.weight.numpy(), expected, atol=1e-9)
    assert np.linalg.matrix_rank(found.weight.numpy(), tol=1e-8) == rank


def test_the_rank_is_chosen_where_the_relation_has_one(rows: Any, moments_of: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    low = (
        torch.randn(12, 2, generator=generator).double()
        @ torch.randn(2, 9, generator=generator).double()
    )
    y = rows.x @ low + 5 * torch.randn(len(rows.x), 9, generator=generator).double()
    grid = moments_of(replace(rows, y=y)).fit(ReducedRank())
    assert grid.scores["rank"].iloc[0] == 2
    full = moments_of(replace(rows, y=y)).fit(Ridge())
    assert grid.scores["r2_cv"].iloc[0] > full.scores["r2_cv"].iloc[0]


def test_errors_of_all_ranks_at_once_are_those_of_each_rank_alone(
    rows: Any, moments_of: Any
) -> None:
    scores = [
        moments_of(rows).fit(ReducedRank(rank=rank)).scores["r2_cv"].iloc[0]
        for rank in range(1, 10)
    ]
    chosen = moments_of(rows).fit(ReducedRank()).scores.iloc[0]
    assert chosen["rank"] == 1 + int(np.argmax(scores))
    assert chosen["r2_cv"] == pytest.approx(max(scores), rel=1e-9)


def test_the_ladder_of_maps_that_mix_no_dimensions(rows: Any, moments_of: Any) -> None:
    for solver, slope in ((Mean(), 0.0), (Translation(), 1.0)):
        stitch, x, y = fitted(rows, moments_of, solver)
        weight = slope * np.eye(12, 9)
        assert_same(stitch.up, weight, y.mean(0) - x.mean(0) @ weight)
    stitch, x, y = fitted(rows, moments_of, AxisScaling())
    slopes = [np.polyfit(x[:, j], y[:, j], 1) for j in range(9)]
    assert_same(
        stitch.up,
        np.diag([s for s, _ in slopes] + [0] * 3)[:, :9],
        np.array([b for _, b in slopes]),
    )
    stitch, _, _ = fitted(rows, moments_of, Identity())
    assert_same(stitch.up, np.eye(12, 9), np.zeros(9))
    assert stitch.scores["r2"] < 0


def test_standardising_makes_scales_of_dimensions_irrelevant(rows: Any, moments_of: Any) -> None:
    scale_x, scale_y = torch.logspace(-2, 2, 12).double(), torch.logspace(1, -1, 9).double()
    scaled = replace(rows, x=rows.x * scale_x, y=rows.y * scale_y)
    solvers = [
        solver(standardize=True) for solver in (LeastSquares, Procrustes, AxisScaling, Translation)
    ]
    for solver in (
        *solvers,
        Ridge(alpha=0.1, standardize=True),
        WhitenedProcrustes(alpha=0.1, standardize=True),
        TwoWay(standardize=True, alpha=0.01, tolerance=1e-9),
    ):
        plain, moved = (moments_of(r).fit(solver).best(by="r2_cv").up for r in (rows, scaled))
        torch.testing.assert_close(
            moved.weight * scale_x[:, None] / scale_y, plain.weight, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("solver", ALL, ids=lambda solver: solver.name)
def test_every_solver_fills_a_row_and_makes_a_stitch_that_can_be_saved(
    grid: Any, solver: Any, tmp_path: Any
) -> None:
    found = grid.moments.fit(solver)
    assert found.scores.drop(columns=["gain_cv"]).notna().all(axis=None)
    assert (found.scores["solver"] == solver.name).all()
    stitch = found[1, 2]
    assert len(stitch.refits) == 5
    assert stitch.null is not None
    for column, affine, scatter in (
        (
            "r2",
            stitch.up,
            found.moments.scatter((stitch.source_hook, stitch.target_hook), TEST_PARTS),
        ),
        (
            "r2_down",
            stitch.down,
            found.moments.scatter((stitch.source_hook, stitch.target_hook), TEST_PARTS).swapped(),
        ),
    ):
        assert score_map(affine.weight, affine.bias, scatter).r2 == pytest.approx(
            stitch.scores[column], rel=1e-9, abs=1e-12
        )
    stitch.save_pretrained(tmp_path / "stitch")
    assert type(stitch).from_pretrained(tmp_path / "stitch").scores["solver"] == solver.name


def test_cross_validated_scores_of_a_closed_form_are_those_of_a_loop_over_folds(
    rows: Any, moments_of: Any
) -> None:
    truth, predicted = [], []
    for k in range(5):
        x, y = rows.numpy(rows.fits & (rows.parts != k))
        held_x, held_y = rows.numpy(rows.parts == k)
        truth.append(held_y)
        predicted.append(LinearRegression().fit(x, y).predict(held_x))
    row = moments_of(rows).fit(LeastSquares()).scores.iloc[0]
    for name, average in (("r2_cv", "variance_weighted"), ("r2_uniform_cv", "uniform_average")):
        pooled = r2_score(np.concatenate(truth), np.concatenate(predicted), multioutput=average)
        assert row[name] == pytest.approx(pooled, rel=1e-9)


def test_fixed_maps_are_scored_and_not_fitted(rows: Any, moments_of: Any) -> None:
    ridge = moments_of(rows).fit(Ridge()).best(by="r2_cv")
    found = moments_of(rows).fit(FixedMaps(ridge.maps, "mine"))
    assert found.scores["r2"].iloc[0] == pytest.approx(ridge.scores["r2"], rel=1e-12)
    assert found.scores["solver"].iloc[0] == "mine"
    wrong = FixedMaps(MapPair(AffineMap(torch.zeros(5, 9), torch.zeros(9)), ridge.down))
    with pytest.raises(
        MismatchError, match=r"the fixed map is \(5, 9\), but 'source' → 'target' is \(12, 9\)"
    ):
        moments_of(rows).fit(wrong)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (lambda: ReducedRank(rank=0), "rank is 0; expected a positive number"),
        (lambda: ReducedRank(alpha=-1.0), "alpha is -1.0; expected a positive number"),
        (lambda: WhitenedProcrustes(alpha=0.0), "alpha is 0.0; expected a positive number"),
        (lambda: WhitenedProcrustes(alphas=()), "alphas is empty; give at least one penalty"),
        (lambda: LeastSquares(rcond=1.5), "rcond is 1.5; expected a share"),
        (
            lambda: TwoWay(inversion_weight=float("nan")),
            "inversion_weight is nan; expected a number of at least 0",
        ),
        (lambda: TwoWay(alpha=-0.1), "alpha is -0.1; expected a number of at least 0"),
        (lambda: Identity(standardize=True), "reads no activations"),
    ],
)
def test_settings_out_of_range_say_what_was_expected(solver: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solver()


def test_a_rank_above_the_widths_is_refused(rows: Any, moments_of: Any) -> None:
    with pytest.raises(ValueError, match="rank is 10; these widths allow at most 9"):
        moments_of(rows).fit(ReducedRank(rank=10))
