"""Ridge from moments is scikit-learn's ridge on the rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from lrt_lens.moments._scatter import score_weights
from lrt_lens.stitching.solvers import Ridge
from lrt_lens.stitching.solvers._ridge import HeldOutFold, RidgeFitter
from lrt_lens.stitching.solvers._solver import DEFAULT_ALPHAS, Setting

PAIR = ("source", "target")
FITTING = range(5)


def relative_error(found: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.numpy() - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("alpha", [1e-4, 1e-2, 1.0, 30.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize("down", [False, True])
def test_the_map_is_that_of_scikit_learn(
    rows: Any,
    moments_of: Any,
    sklearn_ridge: Any,
    alpha: float,
    dtype: torch.dtype,
    tolerance: float,
    down: bool,
) -> None:
    rows = replace(rows, x=rows.x.to(dtype), y=rows.y.to(dtype))
    affine = RidgeFitter(moments_of(rows, moment_dtype=dtype), Ridge(), down=down).fit(
        PAIR, Setting(alpha)
    )
    x, y = (side.astype(np.float64) for side in rows.numpy(rows.fits))
    expected = sklearn_ridge(y, x, alpha) if down else sklearn_ridge(x, y, alpha)
    assert relative_error(affine.weight, expected.coef_.T) < tolerance
    assert relative_error(affine.bias, expected.intercept_) < tolerance
    assert (affine.source_hook, affine.target_hook) == (PAIR[::-1] if down else PAIR)


@pytest.mark.parametrize("alpha", [1e-3, 1.0])
def test_the_standardised_map_is_that_of_scikit_learn_on_standardised_rows(
    rows: Any, moments_of: Any, sklearn_ridge: Any, alpha: float
) -> None:
    affine = RidgeFitter(moments_of(rows), Ridge(standardize=True), down=False).fit(
        PAIR, Setting(alpha)
    )
    x, y = rows.numpy(rows.fits)
    scaler = StandardScaler().fit(x)
    expected = sklearn_ridge(scaler.transform(x), y, alpha)
    held_out, _ = rows.numpy(~rows.fits)
    np.testing.assert_allclose(
        affine.points(torch.from_numpy(held_out)).numpy(),
        expected.predict(scaler.transform(held_out)),
        rtol=1e-8,
    )
    assert (
        relative_error(
            RidgeFitter(moments_of(rows), Ridge(), down=False).fit(PAIR, Setting(alpha)).weight,
            affine.weight.numpy(),
        )
        > 1e-3
    )


def test_a_source_dimension_that_never_varies_does_no_harm(
    rows: Any, moments_of: Any, sklearn_ridge: Any
) -> None:
    flat = replace(
        rows, x=torch.cat([rows.x, torch.full((len(rows.x), 1), 4.0, dtype=torch.float64)], 1)
    )
    for solver in (Ridge(), Ridge(standardize=True)):
        affine = RidgeFitter(moments_of(flat), solver, down=False).fit(PAIR, Setting(1e-3))
        assert torch.isfinite(affine.weight).all()
        assert affine.weight[-1].abs().max() < 1e-9


@pytest.mark.parametrize("solver", [Ridge(), Ridge(standardize=True)])
def test_held_out_errors_of_all_penalties_and_weightings_are_those_of_the_rows(
    rows: Any, moments_of: Any, solver: Ridge
) -> None:
    fitter = RidgeFitter(moments_of(rows), solver, down=False)
    fit, held_out = fitter.fold(PAIR, 2)
    shared = HeldOutFold(solver.decompose(fit.xx), fit, held_out)
    weights = torch.stack(
        [torch.ones(9), torch.rand(9, generator=torch.Generator().manual_seed(0))]
    ).double()
    alphas = torch.tensor([1e-5, 1e-2, 3.0], dtype=torch.float64)
    found = shared.errors(fit, held_out, shared.spectrum.shrink(alphas), weights)
    x, y = rows.x[rows.parts == 2], rows.y[rows.parts == 2]
    for i, alpha in enumerate(alphas.tolist()):
        error = ((y - shared.spectrum.solve(fit, alpha, *PAIR).points(x)) ** 2).sum(0)
        torch.testing.assert_close(found[i], weights @ error, rtol=1e-9, atol=0)


def test_weights_turn_errors_into_both_r2() -> None:
    variance, error = torch.tensor([4.0, 1.0, 0.0]), torch.tensor([1.0, 0.5, 0.0])
    assert (score_weights(variance) @ error).tolist() == pytest.approx([1.5 / 5, (0.25 + 0.5) / 2])


def test_the_null_penalty_limit_is_least_squares_and_a_large_one_predicts_the_mean(
    rows: Any, moments_of: Any
) -> None:
    fitter = RidgeFitter(moments_of(rows), Ridge(), down=False)
    x, y = rows.numpy(rows.fits)
    solution, *_ = np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=None)
    assert relative_error(fitter.fit(PAIR, Setting(1e-12)).weight, solution) < 1e-6
    heavy = fitter.fit(PAIR, Setting(1e9))
    np.testing.assert_allclose(
        heavy.points(rows.x).numpy(), np.tile(y.mean(0), (len(rows.x), 1)), rtol=1e-5
    )


def test_the_same_stream_on_both_sides_gives_the_identity(rows: Any, moments_of: Any) -> None:
    fitter = RidgeFitter(moments_of(replace(rows, y=rows.x)), Ridge(), down=False)
    affine = fitter.fit(PAIR, Setting(1e-9))
    torch.testing.assert_close(affine.weight, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(affine.points(rows.x), rows.x, rtol=0, atol=1e-3)


def test_a_refit_without_a_fold_is_scikit_learns_without_those_rows(
    rows: Any, moments_of: Any, sklearn_ridge: Any
) -> None:
    fitter = RidgeFitter(moments_of(rows), Ridge(), down=False)
    for k in FITTING:
        expected = sklearn_ridge(*rows.numpy(rows.fits & (rows.parts != k)), 1e-2)
        assert (
            relative_error(fitter.refit_without(PAIR, k, Setting(1e-2)).weight, expected.coef_.T)
            < 1e-8
        )


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_that_is_none_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha is {alpha}; expected a positive number"):
        Ridge(alpha=alpha)
    with pytest.raises(ValueError, match=rf"alpha is {alpha}; expected a positive number"):
        Ridge(alphas=(0.1, alpha))


def test_no_penalty_to_choose_from_is_refused() -> None:
    with pytest.raises(ValueError, match="alphas is empty; give at least one penalty, or alpha="):
        Ridge(alphas=())


def test_one_penalty_given_is_the_only_candidate() -> None:
    assert Ridge(alpha=0.3).candidates == (0.3,)
    assert Ridge().candidates == DEFAULT_ALPHAS
    assert (Ridge().name, Ridge(standardize=True).name) == ("ridge", "ridge_standardized")
