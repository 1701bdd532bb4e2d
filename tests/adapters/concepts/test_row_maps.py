"""Row maps against numpy's pseudo-inverse, scikit-learn's ridge and nested cross-validation."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from lrt_lens.adapters.concepts._row_maps import RCOND, _folds, fit_rows
from lrt_lens.errors import NonFiniteError

ALPHAS = (1e-3, 1e-2, 1e-1, 1.0)


def rows(n: int, d_source: int, d_target: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (x, y) with large means, as residual streams have, and y mostly linear in x."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d_source, generator=generator, dtype=torch.float64) + 5
    weight = torch.randn(d_source, d_target, generator=generator, dtype=torch.float64)
    return x, x @ weight + torch.randn(n, d_target, generator=generator, dtype=torch.float64) + 3


@pytest.mark.parametrize("n", [8, 20, 60])
def test_least_squares_is_the_pseudo_inverse_without_intercept(n: int) -> None:
    x, y = rows(n, 20, 7)
    fit = fit_rows(x, y, groups=[i // 2 for i in range(n)])
    np.testing.assert_allclose(fit.weight.numpy(), np.linalg.pinv(x.numpy()) @ y.numpy(), atol=1e-9)
    paper = np.linalg.pinv(x.numpy().T @ x.numpy(), rcond=1e-12) @ x.numpy().T @ y.numpy()
    np.testing.assert_allclose(fit.weight.numpy(), paper, atol=1e-6)
    assert not fit.bias.any()
    assert fit.alpha == 0
    assert (fit.rank, fit.interpolates) == (min(n, 20), n <= 20)


def test_few_rows_are_met_exactly_and_many_are_not() -> None:
    for n, met in ((12, True), (40, False)):
        x, y = rows(n, 20, 7)
        fit = fit_rows(x, y, groups=list(range(n)))
        assert torch.allclose(x @ fit.weight, y, atol=1e-8) == met


def test_repeated_rows_do_not_count_towards_interpolation() -> None:
    x, y = rows(12, 20, 7)
    noise = 1e-9 * torch.randn(12, 20, dtype=torch.float64)
    fit = fit_rows(torch.cat([x, x + noise]), torch.cat([y, y + 1]), groups=[*range(12)] * 2)
    assert fit.rank == 12
    assert not fit.interpolates
    assert torch.linalg.matrix_rank(fit.weight) <= 12
    assert RCOND > 1e-9


def test_a_given_ridge_penalty_is_scikit_learns() -> None:
    x, y = rows(50, 12, 5)
    fit = fit_rows(x, y, groups=list(range(50)), method="ridge", alphas=[0.3])
    centred = (x - x.mean(0)).numpy()
    theirs = Ridge(alpha=0.3 * (centred**2).sum() / 12).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(fit.weight.numpy(), theirs.coef_.T, atol=1e-9)
    np.testing.assert_allclose(fit.bias.numpy(), theirs.intercept_, atol=1e-8)


def naive_choice(x: np.ndarray, y: np.ndarray, folds: list[np.ndarray]) -> float:
    """Return the penalty by cross-validation over these folds, with scikit-learn fits."""
    errors = []
    for alpha in ALPHAS:
        total = 0.0
        for number, out in enumerate(folds):
            train = np.concatenate([fold for other, fold in enumerate(folds) if other != number])
            centred = x[train] - x[train].mean(0)
            total += float(
                (
                    (
                        y[out]
                        - Ridge(alpha=alpha * (centred**2).sum() / x.shape[1])
                        .fit(x[train], y[train])
                        .predict(x[out])
                    )
                    ** 2
                ).sum()
            )
        errors.append(total)
    return ALPHAS[int(np.argmin(errors))]


def test_the_penalty_and_the_held_out_r2_are_those_of_a_nested_cross_validation() -> None:
    x, y = rows(40, 30, 4)
    y = y + 6 * torch.randn(
        y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    groups = [i // 2 for i in range(40)]
    fit = fit_rows(x, y, groups=groups, method="ridge", alphas=ALPHAS, seed=1)
    folds = [fold.numpy() for fold in _folds(groups, 5, 1)]
    a, b = x.numpy(), y.numpy()
    assert fit.alpha == pytest.approx(naive_choice(a, b, folds))
    predicted = np.full_like(b, np.nan)
    for number, out in enumerate(folds):
        others = [fold for other, fold in enumerate(folds) if other != number]
        train = np.concatenate(others)
        penalty = naive_choice(a, b, others) * ((a[train] - a[train].mean(0)) ** 2).sum() / 30
        predicted[out] = Ridge(alpha=penalty).fit(a[train], b[train]).predict(a[out])
    np.testing.assert_allclose(fit.held_out.numpy(), predicted, atol=1e-8)
    assert fit.r2 == pytest.approx(r2_score(b, predicted, multioutput="variance_weighted"))
    assert fit.r2_uniform == pytest.approx(r2_score(b, predicted, multioutput="uniform_average"))


def test_pairs_are_held_out_together() -> None:
    """Both texts of a pair are equal, so a split pair would be predicted exactly."""
    x, y = rows(10, 30, 4)
    noise = torch.randn(10, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 20
    fit = fit_rows(x.repeat(2, 1), (y + noise).repeat(2, 1), groups=[*range(10)] * 2)
    assert fit.r2 < 0.9
    split = fit_rows(x.repeat(2, 1), (y + noise).repeat(2, 1), groups=list(range(20)), n_folds=20)
    assert split.r2 > 0.99


def test_a_large_mean_alone_earns_no_r2() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator, dtype=torch.float64) + 100
    y = torch.randn(200, 5, generator=generator, dtype=torch.float64) + 100
    assert fit_rows(x, y, groups=list(range(200))).r2 < 0.05


@pytest.mark.usefixtures("unchecked")
def test_rows_that_make_no_map_are_refused() -> None:
    x, y = rows(6, 4, 3)
    with pytest.raises(
        ValueError, match="6 source rows, 5 target rows and 6 groups do not pair up"
    ):
        fit_rows(x, y[:5], groups=list(range(6)))
    with pytest.raises(
        ValueError, match=r"1 text\(s\) in 1 group\(s\); a map needs at least two texts"
    ):
        fit_rows(x[:1], y[:1], groups=[0])
    with pytest.raises(ValueError, match=r"6 text\(s\) in 1 group\(s\)"):
        fit_rows(x, y, groups=[0] * 6)
    with pytest.raises(ValueError, match="method is 'lasso'; expected 'least_squares' or 'ridge'"):
        fit_rows(x, y, groups=list(range(6)), method="lasso")  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError, match="the target rows hold NaN or infinity"):
        fit_rows(x, y * float("nan"), groups=list(range(6)))
