"""A comparison equals the separate fits; composed and inverted maps have the same scores."""

from typing import Any

import pytest
import torch
from sklearn.metrics import r2_score

from lrt_lens.errors import HookPointError
from lrt_lens.stitching import AffineMap
from lrt_lens.stitching._comparison import COMPARISON_COLUMNS
from lrt_lens.stitching.solvers import Mean, Procrustes, Ridge
from tests.figures.counts import counts_of

PAIR = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")


@pytest.fixture(scope="module")
def comparison(grid: Any) -> Any:
    return grid.compare([Ridge(), Procrustes(), Mean()], pairs=[PAIR])


def test_every_solver_has_a_row_a_direction_equal_to_its_own_fit(
    grid: Any, comparison: Any
) -> None:
    assert tuple(comparison.table.columns) == COMPARISON_COLUMNS
    assert len(comparison.table) == 6
    table = comparison.table.set_index(["solver", "direction"])
    for solver in (Ridge(), Procrustes()):
        row = grid.moments.fit(solver, pairs=[PAIR]).scores.iloc[0]
        for direction, suffix in (("up", ""), ("down", "_down")):
            assert table.loc[(solver.name, direction), "r2"] == row[f"r2{suffix}"]
            assert table.loc[(solver.name, direction), "r2_cv"] == row[f"r2{suffix}_cv"]
            assert table.loc[(solver.name, direction), "fvu"] == pytest.approx(
                1 - row[f"r2{suffix}"]
            )
    assert table.loc[("mean", "up"), "r2"] == pytest.approx(0, abs=0.02)


def test_all_pairs_of_the_grid_are_compared_unless_some_are_given(grid: Any) -> None:
    assert len(grid.compare([Ridge()]).table) == 2 * len(grid)


def test_the_summary_is_best_first_and_shows_itself(comparison: Any) -> None:
    assert comparison.summary["solver"].tolist() == ["ridge", "procrustes", "mean"]
    assert "procrustes" in comparison._repr_html_()
    figure = comparison.figure("r2")
    assert {trace.name for trace in figure.data} >= {"up", "down"}
    assert counts_of(figure) == f"n = 1 hook pair, {comparison.table['n'][0]:,} fitting tokens"
    assert list(figure.data[0].y) == ["mean", "procrustes", "ridge"]


def test_solvers_that_cannot_be_told_apart_or_none_are_refused(grid: Any) -> None:
    with pytest.raises(ValueError, match=r"solvers of equal name .*\['ridge', 'ridge'\]"):
        grid.compare([Ridge(), Ridge(alpha=0.1)])
    with pytest.raises(ValueError, match="no solver given"):
        grid.compare([])


def test_any_map_between_known_hook_points_is_scored_on_the_test_rows(
    grid: Any, rows: Any, layered: dict
) -> None:
    stitch = grid[PAIR]
    x, y = (
        layered[side][hook][torch.from_numpy(~rows.fits)]
        for side, hook in zip(("source", "target"), PAIR, strict=True)
    )
    inverse = stitch.down.inverse()
    for affine, a, b in ((stitch.up, x, y), (stitch.down, y, x), (inverse, x, y)):
        found = grid.score(affine)
        assert found.r2 == pytest.approx(
            r2_score(b, affine.points(a), multioutput="variance_weighted"), rel=1e-7
        )
    assert grid.score(inverse).r2 < grid.score(stitch.up).r2
    with pytest.raises(
        HookPointError,
        match=r"hold no hook pair 'elsewhere' \[12\] → 'blocks.2.hook_resid_post' \[9\]",
    ):
        grid.score(AffineMap(torch.zeros(12, 9), torch.zeros(9), "elsewhere", PAIR[1]))


def test_the_inverse_undoes_an_invertible_map_and_is_the_least_squares_one_otherwise() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = (
        torch.randn(5, 5, generator=generator).double(),
        torch.randn(5, generator=generator).double(),
    )
    x = torch.randn(20, 5, generator=generator).double()
    affine = AffineMap(weight, bias, "a", "b")
    torch.testing.assert_close(affine.inverse().points(affine.points(x)), x)
    assert (affine.inverse().source_hook, affine.inverse().target_hook) == ("b", "a")
    wide = AffineMap(weight[:3], bias, "a", "b")
    torch.testing.assert_close(wide.inverse().points(wide.points(x[:, :3])), x[:, :3])
    torch.testing.assert_close(wide.inverse().weight, torch.linalg.pinv(weight[:3]))
