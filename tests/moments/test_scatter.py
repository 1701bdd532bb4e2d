"""Scores from moments are scores from the rows."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from lrt_lens.moments import Scatter, score_map
from lrt_lens.moments._scatter import SecondMoment, between_folds, cka_of, r2_of, varying


def scatter_of(x: torch.Tensor, y: torch.Tensor, shift_x: Any = 0.0, shift_y: Any = 0.0) -> Scatter:
    shift_x, shift_y = (
        torch.full((x.shape[1],), shift_x, dtype=x.dtype),
        torch.full((y.shape[1],), shift_y, dtype=x.dtype),
    )
    a, b = x - shift_x, y - shift_y
    n = float(len(x))
    return Scatter(
        n=n,
        mean_x=shift_x + a.mean(0),
        mean_y=shift_y + b.mean(0),
        xy=a.T @ b - torch.outer(a.sum(0), b.sum(0)) / n,
        second_x=SecondMoment((a.T @ a)[None], a.sum(0), n, [0]),
        second_y=SecondMoment((b.T @ b)[None], b.sum(0), n, [0]),
    )


@pytest.fixture(scope="module")
def some_map(rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a poor map with a wrong bias, for which formulas of the optimum are wrong."""
    generator = torch.Generator().manual_seed(9)
    return torch.randn(12, 9, generator=generator, dtype=torch.float64) / 10, torch.randn(
        9, generator=generator, dtype=torch.float64
    )


def test_centred_sums_do_not_depend_on_the_shift(rows: Any) -> None:
    plain, shifted = scatter_of(rows.x, rows.y), scatter_of(rows.x, rows.y, 31.0, -17.0)
    centred_x, centred_y = rows.x - rows.x.mean(0), rows.y - rows.y.mean(0)
    for name, expected in (
        ("mean_x", rows.x.mean(0)),
        ("mean_y", rows.y.mean(0)),
        ("xx", centred_x.T @ centred_x),
        ("yy", centred_y.T @ centred_y),
        ("xy", centred_x.T @ centred_y),
    ):
        torch.testing.assert_close(getattr(plain, name), expected, rtol=1e-9, atol=1e-6)
        torch.testing.assert_close(getattr(shifted, name), expected, rtol=1e-9, atol=1e-6)


def test_swapping_exchanges_the_sides(rows: Any) -> None:
    swapped, expected = scatter_of(rows.x, rows.y).swapped(), scatter_of(rows.y, rows.x)
    for name in ("mean_x", "mean_y", "xx", "yy", "xy"):
        torch.testing.assert_close(getattr(swapped, name), getattr(expected, name))


def test_both_r2_are_those_of_scikit_learn(rows: Any, some_map: Any) -> None:
    weight, bias = some_map
    predicted = (rows.x @ weight + bias).numpy()
    score = score_map(weight, bias, scatter_of(rows.x, rows.y))
    assert score.r2 == pytest.approx(
        r2_score(rows.y.numpy(), predicted, multioutput="variance_weighted"), rel=1e-6
    )
    assert score.r2_uniform == pytest.approx(
        r2_score(rows.y.numpy(), predicted, multioutput="uniform_average"), rel=1e-6
    )
    assert score.n_constant == 0


def test_the_cosine_is_pooled_over_tokens_about_the_mean_of_the_held_out_rows(
    rows: Any, some_map: Any
) -> None:
    weight, bias = some_map
    a, b = rows.x @ weight + bias - rows.y.mean(0), rows.y - rows.y.mean(0)
    expected = float((a * b).sum() / (a.norm() * b.norm()))
    assert score_map(weight, bias, scatter_of(rows.x, rows.y)).cosine == pytest.approx(
        expected, rel=1e-9
    )


def test_dimensions_that_do_not_vary_are_dropped_from_the_mean_over_dimensions_and_counted(
    rows: Any, some_map: Any
) -> None:
    weight, bias = some_map
    y = torch.cat([rows.y, torch.full((len(rows.y), 2), 7.3, dtype=torch.float64)], 1)
    wide = (
        torch.cat([weight, torch.zeros(12, 2, dtype=torch.float64)], 1),
        torch.cat([bias, torch.full((2,), 7.3, dtype=torch.float64)]),
    )
    score, without = (
        score_map(*wide, scatter_of(rows.x, y)),
        score_map(weight, bias, scatter_of(rows.x, rows.y)),
    )
    assert score.n_constant == 2
    assert score.r2_uniform == pytest.approx(without.r2_uniform, rel=1e-9)
    assert score.r2 == pytest.approx(without.r2, rel=1e-9)


def test_a_target_that_never_varies_has_no_r2() -> None:
    r2, r2_uniform, n_constant = r2_of(torch.ones(3), torch.zeros(3))
    assert np.isnan([r2, r2_uniform]).all()
    assert n_constant == 3


def test_a_dimension_varies_when_its_variance_is_more_than_rounding() -> None:
    assert varying(torch.tensor([1e6, 1e-3, 1e-7, 0.0], dtype=torch.float64)).tolist() == [
        True,
        True,
        False,
        False,
    ]


def linear_cka(xx: torch.Tensor, yy: torch.Tensor, xy: torch.Tensor) -> float:
    return cka_of(between_folds(xy), between_folds(xx), between_folds(yy))


def test_cka_is_debiased_by_products_of_different_folds(rows: Any) -> None:
    folds = [scatter_of(rows.x[rows.parts == k], rows.y[rows.parts == k]) for k in range(5)]
    stacks = {
        name: torch.stack([getattr(fold, name) / fold.n for fold in folds])
        for name in ("xx", "yy", "xy")
    }

    def between(name: str) -> float:
        covariances = stacks[name]
        return float(
            sum(
                (covariances[j] * covariances[k]).sum()
                for j in range(5)
                for k in range(5)
                if j != k
            )
        )

    expected = between("xy") / np.sqrt(between("xx") * between("yy"))
    assert linear_cka(stacks["xx"], stacks["yy"], stacks["xy"]) == pytest.approx(expected, rel=1e-9)


def test_cka_of_unrelated_wide_streams_is_near_zero_where_the_plain_formula_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    folds = [
        scatter_of(*torch.randn(2, 60, 50, generator=generator, dtype=torch.float64))
        for _ in range(5)
    ]
    xx, yy, xy = (
        torch.stack([getattr(fold, name) / fold.n for fold in folds]) for name in ("xx", "yy", "xy")
    )
    plain = float(xy.mean(0).pow(2).sum() / (xx.mean(0).norm() * yy.mean(0).norm()))
    assert plain > 0.1
    assert abs(linear_cka(xx, yy, xy)) < 0.03


def test_cka_of_a_stream_with_a_rotation_of_itself_is_one(rows: Any) -> None:
    rotation, _ = torch.linalg.qr(
        torch.randn(12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )
    folds = [
        scatter_of(rows.x[rows.parts == k], 3 * rows.x[rows.parts == k] @ rotation + 1)
        for k in range(5)
    ]
    assert linear_cka(
        *(torch.stack([getattr(f, name) / f.n for f in folds]) for name in ("xx", "yy", "xy"))
    ) == pytest.approx(1, abs=1e-9)
