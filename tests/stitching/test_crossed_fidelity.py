"""Cross-validated fidelity is a correlation over held-out fitting folds, and needs no test fold."""

from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.stitching import compare_fidelities, fidelities_cv
from lrt_lens.stitching._crossed_fidelity import CrossedFidelity
from lrt_lens.stitching.solvers import Mean, Procrustes, Ridge

ALPHA = 1e-3


@pytest.fixture(scope="module")
def grid(layered_moments: Any) -> Any:
    return layered_moments().fit(Ridge(alpha=ALPHA))


def folds_of(rows: Any) -> list[np.ndarray]:
    """Masks of the rows of each fitting fold."""
    return [np.asarray(rows.parts) == k for k in range(5)]


def naive(rows: Any, x: np.ndarray, y: np.ndarray, direction: np.ndarray, kind: str) -> float:
    """ρ from rows, with maps fitted by numpy."""

    def weight(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a - a.mean(0), b - b.mean(0)
        xx = a.T @ a
        return np.linalg.solve(xx + ALPHA * np.trace(xx) / len(xx) * np.eye(len(xx)), a.T @ b)

    def read_out(stream: np.ndarray, written: np.ndarray) -> np.ndarray:
        s = np.cov(stream.T, bias=True)
        return np.linalg.solve(s + ALPHA * np.trace(s) / len(s) * np.eye(len(s)), written)

    sums, folds = np.zeros(3), folds_of(rows)
    for held in folds:
        others = rows.fits & ~held
        if kind == "read":
            a, c = direction, weight(y[others], x[others]) @ direction
        else:
            up = weight(x[others], y[others])
            a, c = read_out(x[others], direction), read_out(y[others], direction @ up)
        p, q = x[held] @ a, y[held] @ c
        p, q = p - p.mean(), q - q.mean()
        sums += [p @ q, p @ p, q @ q]
    return float(sums[0] / np.sqrt(sums[1] * sums[2]))


@pytest.mark.parametrize("kind", ["read", "write"])
def test_it_is_the_correlation_over_held_out_folds(
    rows: Any, layered: dict, grid: Any, kind: Any
) -> None:
    source, target = list(grid.folds)[1]
    x, y = layered["source"][source].numpy(), layered["target"][target].numpy()
    directions = np.random.default_rng(0).normal(size=(3, x.shape[1]))
    found = fidelities_cv(grid, (source, target), torch.from_numpy(directions), kind)
    expected = [naive(rows, x, y, direction, kind) for direction in directions]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7)


def test_the_test_fold_plays_no_part(rows: Any, layered: dict, layered_moments: Any) -> None:
    test = torch.from_numpy(~rows.fits)
    changed = {hook: values.clone() for hook, values in layered["target"].items()}
    for values in changed.values():
        values[test] = 1000 * values[test].flip(0) - 400
    grids = [layered_moments().fit(), layered_moments(target=changed).fit()]
    pair = next(iter(grids[0].folds))
    direction = torch.randn(1, 12, generator=torch.Generator().manual_seed(1)).double()
    for kind in ("read", "write"):
        own, other = (fidelities_cv(grid, pair, direction, kind) for grid in grids)
        np.testing.assert_allclose(own, other, rtol=1e-6)
    held_out = [float(grid[pair].fidelity(direction[0]).value) for grid in grids]
    assert abs(held_out[0] - held_out[1]) > 0.01, "Stitch.fidelity reads the test fold"


def test_an_interval_holds_its_value_and_is_narrow_on_many_rows(grid: Any) -> None:
    pair = next(iter(grid.folds))
    crossed = CrossedFidelity(grid)
    direction = torch.randn(1, 12, generator=torch.Generator().manual_seed(2)).double()
    interval = crossed.interval(crossed.fold_sums(pair, direction, "read"))
    assert interval.low < interval.value < interval.high
    assert interval.high - interval.low < 0.2


def test_solvers_are_ordered_by_their_fidelity(grid: Any) -> None:
    pair = list(grid.folds)[-1]
    direction = torch.randn(12, generator=torch.Generator().manual_seed(3)).double()
    table = compare_fidelities(grid.moments, [Procrustes(), Ridge()], pair, direction, "read")
    assert table["solver"].tolist() == ["ridge", "procrustes"]
    assert table["rho"].is_monotonic_decreasing
    expected = fidelities_cv(grid.moments.fit(Ridge()), pair, direction[None], "read")
    assert table["rho"].tolist()[0] == pytest.approx(float(expected[0]))
    assert (table["rho_low"].to_numpy() <= table["rho"].to_numpy()).all()


def test_what_cannot_be_predicted_is_refused(grid: Any) -> None:
    pair = next(iter(grid.folds))
    ones = torch.ones(1, 12, dtype=torch.float64)
    with pytest.raises(HookPointError, match="is no source hook of this grid"):
        fidelities_cv(grid, ("blocks.9.hook_resid_post", pair[1]), ones)
    with pytest.raises(MismatchError, match=r"expected \[direction, 12\]"):
        fidelities_cv(grid, pair, torch.ones(1, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="zero, NaN or infinite"):
        fidelities_cv(grid, pair, 0 * ones)
    with pytest.raises(ValueError, match="no solver given"):
        compare_fidelities(grid.moments, [], pair, ones[0])


def test_a_map_that_ignores_its_input_has_no_fidelity(grid: Any) -> None:
    pair = next(iter(grid.folds))
    direction = torch.randn(1, 12, generator=torch.Generator().manual_seed(4)).double()
    found = fidelities_cv(grid.moments.fit(Mean()), pair, direction, "read")
    assert float(found[0]) == 0.0
