"""Table of choices: scores without one fold, recomputed, and which candidates are worse."""

from typing import Any

import numpy as np
import pytest

from lrt_lens.errors import HookPointError
from lrt_lens.statistics._best_of_several import behind_best
from lrt_lens.stitching.solvers import Mean, ReducedRank, Ridge

SOURCES = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
TARGETS = ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")


def test_the_best_comes_first_and_is_not_behind_itself(grid: Any) -> None:
    table = grid.choices()
    assert len(table) == 4
    assert (table["source_hook"][0], table["target_hook"][0]) == (
        grid.best().source_hook,
        grid.best().target_hook,
    )
    assert table["score"].is_monotonic_decreasing
    assert table["behind"][0] == table["behind_low"][0] == table["behind_high"][0] == 0
    assert not table["really_worse"][0]
    assert ((table["low"] <= table["score"]) & (table["score"] <= table["high"])).all()


def test_a_layer_with_as_much_noise_again_is_really_worse(grid: Any) -> None:
    table = grid.choices(target=2).set_index("source_hook")
    assert table.loc[SOURCES[0], "really_worse"]
    assert table.loc[SOURCES[0], "behind_low"] > 0


@pytest.mark.parametrize(
    "by", ["r2_cv", "r2_uniform_cv", "r2_down_cv", "r2_uniform_down_cv", "gain_cv"]
)
def test_every_cross_validated_score_has_an_interval(grid: Any, by: str) -> None:
    table = grid.choices(by=by)
    np.testing.assert_allclose(table["score"], grid.scores[by].sort_values(ascending=False))
    assert (table["high"] > table["low"]).all()


def test_scores_without_a_fold_pool_the_other_folds(
    grid: Any, rows: Any, layered: dict, sklearn_ridge: Any
) -> None:
    pair = (SOURCES[1], TARGETS[1])
    folds = grid.folds[pair].up
    x, y = layered["source"][pair[0]].numpy(), layered["target"][pair[1]].numpy()
    errors, variances = [], []
    mean = y[rows.fits].mean(0)
    for k in range(5):
        fit, held = rows.fits & (rows.parts != k), rows.parts == k
        predicted = sklearn_ridge(x[fit], y[fit], folds.setting.alpha).predict(x[held])
        errors.append(((y[held] - predicted) ** 2).sum())
        variances.append(((y[held] - mean) ** 2).sum())
    for k in range(5):
        kept = [j for j in range(5) if j != k]
        expected = 1 - sum(errors[j] for j in kept) / sum(variances[j] for j in kept)
        assert folds.r2_without(k, 0) == pytest.approx(expected, rel=1e-8)


def test_a_column_that_read_the_test_fold_is_refused(grid: Any) -> None:
    with pytest.raises(ValueError, match="choose by a column that is not cross-validated"):
        grid.choices(by="r2")


def test_candidates_are_compared_together_and_not_one_by_one(grid: Any) -> None:
    table = grid.choices(by="r2_uniform_cv").set_index(["source_hook", "target_hook"])
    pairs = list(table.index)
    folds = [grid.folds[pair].up for pair in pairs]
    values = [one.r2_uniform for one in folds]
    left_out = np.array([[one.r2_without(k, 1) for one in folds] for k in range(5)])
    expected = behind_best(values, left_out, folds[0].variances[:, 1].numpy())
    np.testing.assert_allclose(table["behind"], expected.difference)
    np.testing.assert_allclose(table["behind_low"], expected.low)
    np.testing.assert_allclose(table["behind_high"], expected.high)
    # Among fewer candidates the intervals of the same differences are narrower.
    best_source = pairs[0][0]
    few = grid.choices(source=best_source, by="r2_uniform_cv").set_index(
        ["source_hook", "target_hook"]
    )
    other = next(pair for pair in few.index if pair != pairs[0])
    assert few["behind_high"][other] - few["behind_low"][other] != pytest.approx(
        table["behind_high"][other] - table["behind_low"][other]
    )


def test_a_choice_of_one_is_not_behind(grid: Any) -> None:
    table = grid.choices(source=1, target=2)
    assert len(table) == 1
    assert not table["really_worse"][0]
    assert table["behind_high"][0] == 0


def test_solvers_are_chosen_among_with_the_same_rules(grid: Any) -> None:
    pair = (SOURCES[1], TARGETS[1])
    comparison = grid.compare([Mean(), Ridge(), ReducedRank()], pairs=[pair])
    table = comparison.choices(by="r2_cv")
    assert table["score"].is_monotonic_decreasing
    assert set(table["solver"]) == {"mean", "ridge", "reduced_rank"}
    scores = comparison.table.query("direction == 'up'").set_index("solver")["r2_cv"]
    np.testing.assert_allclose(table["score"], scores[table["solver"]])
    worse = table.set_index("solver")["really_worse"]
    assert worse["mean"]
    assert not worse["ridge"]
    assert not worse["reduced_rank"]
    down = comparison.choices(pair, by="r2_down_cv").set_index("solver")["score"]
    scores = comparison.table.query("direction == 'down'").set_index("solver")["r2_cv"]
    np.testing.assert_allclose(down, scores[down.index])
    with pytest.raises(ValueError, match=r"choices\(by='r2'\); expected one of"):
        comparison.choices(by="r2")
    with pytest.raises(HookPointError, match="give one of these hook pairs"):
        comparison.choices((SOURCES[0], TARGETS[1]))


def test_the_view_of_a_grid_says_how_many_pairs_are_as_good(grid: Any) -> None:
    n = int((~grid.choices()["really_worse"]).sum()) - 1
    assert f"{n} other pairs" in grid._repr_html_()
