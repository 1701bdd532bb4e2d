"""Table of choices: scores without one fold, recomputed, and which candidates are worse."""

from typing import Any

import numpy as np
import pytest

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
