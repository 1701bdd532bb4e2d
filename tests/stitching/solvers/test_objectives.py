"""Every solver against L-BFGS on the objective that its documentation states, on rows in float64.

The objectives are written here as in the module docstrings, with a bias that is fitted too. A
solver is right if its map has the value that the naive minimiser reaches, and the map itself where
the minimum is unique.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lrt_lens.models._hook_points import joint_name
from lrt_lens.stitching.solvers import (
    AxisScaling,
    LeastSquares,
    ManyToOne,
    Mean,
    Procrustes,
    ReducedRank,
    Ridge,
    Translation,
    TwoWay,
)

LAYERS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
GROUPS = (1.0, 10.0, 0.25)

Objective = Callable[..., Tensor]
Rows = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def uneven(rows: Any) -> Any:
    """Return rows whose dimensions have standard deviations from 0.3 to 3, and means."""
    generator = torch.Generator().manual_seed(9)
    scale_x, scale_y = (
        10 ** (torch.rand(values.shape[1], generator=generator).double() - 0.5)
        for values in (rows.x, rows.y)
    )
    scaled = replace(rows, x=rows.x * scale_x + 3.0, y=rows.y * scale_y - 2.0)
    # Every sixth row: the naive minimiser reads all rows at every step.
    return scaled.taken(range(0, len(rows.x), 6))


def minimised(objective: Objective, *starts: Tensor) -> tuple[float, list[Tensor]]:
    """Return (least value, arguments) of L-BFGS on an objective."""
    values = [start.clone().contiguous().double().requires_grad_() for start in starts]
    optimiser = torch.optim.LBFGS(
        values,
        max_iter=1500,
        tolerance_grad=1e-9,
        tolerance_change=1e-15,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = objective(*values)
        value.backward()
        return value

    optimiser.step(closure)
    return float(objective(*values).detach()), [value.detach() for value in values]


def fit_rows(rows: Any, standardize: bool) -> tuple[Rows, Tensor, Tensor]:
    """Return ((x, y) of the fitting folds as the solver sees them, their units of x and y)."""
    x, y = (torch.from_numpy(values) for values in rows.numpy(rows.fits))
    unit_x, unit_y = (
        values.std(0, correction=0) if standardize else torch.ones(values.shape[1]).double()
        for values in (x, y)
    )
    return (x / unit_x, y / unit_y), unit_x, unit_y


def squares(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ((y - x @ weight - bias) ** 2).sum() / len(x)


def mean_variance(x: Tensor) -> Tensor:
    """Return tr(Sxx)/d, divided by the number of rows like `squares`."""
    return ((x - x.mean(0)) ** 2).sum() / x.shape[1] / len(x)


def centred_start(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(x.shape[1], y.shape[1]).double(), y.mean(0)


def best(moments_of: Any, rows: Any, solver: Any, hook: str = "source") -> Any:
    return moments_of(rows, source_hook=hook).fit(solver).best(by="r2_cv").up


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("groups", [None, GROUPS, (3.0, 3.0, 3.0)])
def test_ridge_with_one_penalty_or_one_per_layer(
    uneven: Any, moments_of: Any, groups: Any, standardize: bool
) -> None:
    # Ridge and ManyToOne standardise the source only.
    (x, y), unit, _ = fit_rows(uneven, standardize)
    y = torch.from_numpy(uneven.numpy(uneven.fits)[1])
    alpha = 0.3
    weights = torch.tensor(groups or (1.0, 1.0, 1.0)).double().repeat_interleave(4)[:, None]

    def objective(weight: Tensor, bias: Tensor) -> Tensor:
        penalty = (weights * weight**2).sum()
        return squares(x, y, weight, bias) + alpha * mean_variance(x) * penalty

    value, (weight, bias) = minimised(objective, *centred_start(x, y))
    solver: Any = (
        Ridge(alpha=alpha, standardize=standardize)
        if groups is None
        else ManyToOne(alpha=alpha, groups=groups, standardize=standardize)
    )
    found = best(moments_of, uneven, solver, joint_name(LAYERS) if groups else "source")
    own = found.weight * unit[:, None]
    assert float(objective(own, found.bias)) <= value * (1 + 1e-9)
    np.testing.assert_allclose(own.numpy(), weight.numpy(), atol=1e-6)
    np.testing.assert_allclose(found.bias.numpy(), bias.numpy(), atol=1e-5)


def test_equal_penalties_of_all_layers_are_one_penalty(uneven: Any, moments_of: Any) -> None:
    three = best(
        moments_of, uneven, ManyToOne(alpha=0.1, groups=(3.0, 3.0, 3.0)), joint_name(LAYERS)
    )
    plain = best(moments_of, uneven, Ridge(alpha=0.3), joint_name(LAYERS))
    torch.testing.assert_close(three.weight, plain.weight)


@pytest.mark.slow
@pytest.mark.parametrize("standardize", [False, True])
def test_reduced_rank(uneven: Any, moments_of: Any, standardize: bool) -> None:
    (x, y), unit, _ = fit_rows(uneven, standardize)
    y = torch.from_numpy(uneven.numpy(uneven.fits)[1])

    def objective(left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
        weight = left @ right
        return squares(x, y, weight, bias) + 0.05 * mean_variance(x) * (weight**2).sum()

    found = best(moments_of, uneven, ReducedRank(rank=3, alpha=0.05, standardize=standardize))
    own = found.weight * unit[:, None]
    attained = float(objective(own, torch.eye(9).double(), found.bias))
    # The problem is not convex: L-BFGS from the solution cannot go further down, and from random
    # starts it ends no deeper.
    u, values, vh = torch.linalg.svd(own)
    assert float(values[3:].max()) < 1e-9 * float(values[0])
    same = minimised(objective, u[:, :3] * values[:3], vh[:3], found.bias)[0]
    assert same == pytest.approx(attained, rel=1e-8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        random = [torch.randn(*shape, generator=generator).double() for shape in ((12, 3), (3, 9))]
        assert attained <= minimised(objective, *random, y.mean(0))[0] * (1 + 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_procrustes(
    uneven: Any, moments_of: Any, scale: bool, standardize: bool, down: bool
) -> None:
    (x, y), unit_x, unit_y = fit_rows(uneven, standardize)
    maps = moments_of(uneven).fit(Procrustes(scale=scale, standardize=standardize)).best(by="r2_cv")
    found = maps.down if down else maps.up
    if down:
        x, y, unit_x, unit_y = y, x, unit_y, unit_x
    d_s, d_t = x.shape[1], y.shape[1]
    own = found.weight * unit_x[:, None] / unit_y
    own_scale = (own.norm() / min(d_s, d_t) ** 0.5).item() if scale else 1.0
    own_rotation = own / own_scale
    products = own_rotation.T @ own_rotation if d_s > d_t else own_rotation @ own_rotation.T
    torch.testing.assert_close(products, torch.eye(min(d_s, d_t)).double(), atol=1e-8, rtol=0)

    def objective(free: Tensor, factor: Tensor, bias: Tensor) -> Tensor:
        # Q of a QR decomposition is semi-orthogonal for any matrix.
        rotation = torch.linalg.qr(free if d_s > d_t else free.T).Q
        rotation = rotation if d_s > d_t else rotation.T
        return squares(x, y, (factor if scale else 1.0) * rotation, bias)

    generator = torch.Generator().manual_seed(0)
    value = min(
        minimised(
            objective,
            torch.randn(d_s, d_t, generator=generator).double(),
            torch.ones(()).double(),
            y.mean(0),
        )[0]
        for _ in range(4)
    )
    attained = float(squares(x, y, own, found.bias / unit_y))
    # A wider source has no closed form: the alternation stops at a relative decrease of 1e-4.
    assert attained <= value * (1 + (2e-3 if d_s > d_t else 1e-8))


@pytest.mark.slow
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("inversion_weight", [0.0, 1.0])
def test_the_two_way_stitch(
    uneven: Any, moments_of: Any, inversion_weight: float, standardize: bool
) -> None:
    (x, y), unit_x, unit_y = fit_rows(uneven, standardize)
    alpha, d_s, d_t = 0.05, x.shape[1], y.shape[1]

    def objective(up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
        there, back = x @ up + up_bias, y @ down + down_bias
        # J = E‖y − xW‖²/d_t + E‖x − yV‖²/d_s + α(E‖x − xWV‖²/d_s + E‖y − yVW‖²/d_t) + penalties
        error = ((y - there) ** 2).mean() + ((x - back) ** 2).mean()
        trips = ((x - there @ down - down_bias) ** 2).mean()
        trips = trips + ((y - back @ up - up_bias) ** 2).mean()
        # λ_W = alpha·tr(Sxx)/(d_s·d_t), λ_V = alpha·tr(Syy)/(d_s·d_t)
        penalty = mean_variance(x) / d_t * (up**2).sum() + mean_variance(y) / d_s * (down**2).sum()
        return error + inversion_weight * trips + alpha * penalty

    stitch = (
        moments_of(uneven)
        .fit(
            TwoWay(
                inversion_weight=inversion_weight,
                alpha=alpha,
                standardize=standardize,
                tolerance=1e-9,
            )
        )
        .best(by="r2_cv")
    )
    up = stitch.up.weight * unit_x[:, None] / unit_y
    down = stitch.down.weight * unit_y[:, None] / unit_x
    own = (up, stitch.up.bias / unit_y, down, stitch.down.bias / unit_x)
    attained = float(objective(*own))
    # L-BFGS from the solution cannot go further down, and from zero it ends no deeper.
    assert minimised(objective, *own)[0] == pytest.approx(attained, rel=1e-7)
    start = (*centred_start(x, y), *centred_start(y, x))
    assert attained <= minimised(objective, *start)[0] * (1 + 1e-7)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
def test_least_squares(uneven: Any, moments_of: Any, intercept: bool, standardize: bool) -> None:
    (x, y), unit_x, unit_y = fit_rows(uneven, standardize)
    found = best(moments_of, uneven, LeastSquares(intercept=intercept, standardize=standardize))

    def objective(weight: Tensor, bias: Tensor) -> Tensor:
        return squares(x, y, weight, bias if intercept else torch.zeros_like(bias))

    value, _ = minimised(objective, *centred_start(x, y))
    own = found.weight * unit_x[:, None] / unit_y
    assert float(objective(own, found.bias / unit_y)) <= value * (1 + 1e-8)


@pytest.mark.parametrize("standardize", [False, True])
def test_maps_that_mix_no_dimensions(uneven: Any, moments_of: Any, standardize: bool) -> None:
    (x, y), unit_x, unit_y = fit_rows(uneven, standardize)
    eye = torch.eye(12, 9).double()

    def attained(solver: Any) -> float:
        found = best(moments_of, uneven, solver)
        own = found.weight * unit_x[:, None] / unit_y
        return float(squares(x, y, own, found.bias / unit_y))

    # Each objective has the free parameters that the solver's docstring names, and no others.
    cases: dict[Any, Objective] = {
        Mean(standardize=standardize): lambda _, bias: squares(x, y, 0 * eye, bias),
        Translation(standardize=standardize): lambda _, bias: squares(x, y, eye, bias),
        AxisScaling(standardize=standardize): lambda slope, bias: squares(x, y, eye * slope, bias),
    }
    for solver, objective in cases.items():
        value, _ = minimised(objective, torch.ones(9), torch.zeros(9))
        assert attained(solver) == pytest.approx(value, rel=1e-8)
