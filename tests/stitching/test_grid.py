"""Grid scores equal those of scikit-learn on rows; choices do not depend on the test fold."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from lrt_lens.errors import HookPointError
from lrt_lens.models import short_hook
from lrt_lens.moments import CrossMoments, score_map
from lrt_lens.stitching import AffineMap
from lrt_lens.stitching._grid import COLUMNS
from lrt_lens.stitching.solvers import Ridge
from lrt_lens.stitching.solvers._solver import DEFAULT_ALPHAS

SOURCES = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
TARGETS = ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")
CHOICES = ["alpha", "alpha_down", "r2_cv", "r2_uniform_cv", "r2_down_cv", "r2_uniform_down_cv"]


def naive_cross_validation(
    rows: Any, sklearn_ridge: Any, alpha: float, down: bool
) -> tuple[float, float, float]:
    """Return (squared error, r2_cv, r2_uniform_cv) from one fit of scikit-learn per fold.

    Errors are pooled over the held-out folds; variances are about the mean of all of them.
    """
    error = 0.0
    for k in range(5):
        x, y = rows.numpy(rows.fits & (rows.parts != k))
        held_x, held_y = rows.numpy(rows.parts == k)
        if down:
            x, y, held_x, held_y = y, x, held_y, held_x
        error = error + ((held_y - sklearn_ridge(x, y, alpha).predict(held_x)) ** 2).sum(0)
    y = rows.numpy(rows.fits)[0 if down else 1]
    variance = ((y - y.mean(0)) ** 2).sum(0)
    return error.sum(), 1 - error.sum() / variance.sum(), (1 - error / variance).mean()


@pytest.fixture(scope="module")
def row(rows: Any, moments_of: Any) -> Any:
    """Return the only row of the scores of a fit on `rows`."""
    return moments_of(rows).fit().scores.iloc[0]


# ------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("down", [False, True])
def test_cross_validated_scores_and_the_penalty_are_those_of_a_loop_over_folds(
    rows: Any, row: Any, sklearn_ridge: Any, down: bool
) -> None:
    errors = [
        naive_cross_validation(rows, sklearn_ridge, alpha, down)[0] for alpha in DEFAULT_ALPHAS
    ]
    best = DEFAULT_ALPHAS[int(np.argmin(errors))]
    _, r2_cv, r2_uniform_cv = naive_cross_validation(rows, sklearn_ridge, best, down)
    assert row["alpha_down" if down else "alpha"] == best
    assert row["r2_down_cv" if down else "r2_cv"] == pytest.approx(r2_cv, rel=1e-8)
    assert row["r2_uniform_down_cv" if down else "r2_uniform_cv"] == pytest.approx(
        r2_uniform_cv, rel=1e-8
    )


@pytest.mark.parametrize("down", [False, True])
def test_test_scores_are_scikit_learns_on_rows_that_took_no_part(
    rows: Any, row: Any, sklearn_ridge: Any, down: bool
) -> None:
    x, y = rows.numpy(rows.fits)
    test_x, test_y = rows.numpy(~rows.fits)
    if down:
        x, y, test_x, test_y = y, x, test_y, test_x
    predicted = sklearn_ridge(x, y, row["alpha_down" if down else "alpha"]).predict(test_x)
    names = ("r2_down", "r2_uniform_down") if down else ("r2", "r2_uniform")
    assert row[names[0]] == pytest.approx(
        r2_score(test_y, predicted, multioutput="variance_weighted"), rel=1e-6
    )
    assert row[names[1]] == pytest.approx(
        r2_score(test_y, predicted, multioutput="uniform_average"), rel=1e-6
    )
    if not down:
        a, b = predicted - test_y.mean(0), test_y - test_y.mean(0)
        assert row["cosine"] == pytest.approx(
            (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()), rel=1e-6
        )


def test_a_penalty_that_is_given_is_taken(rows: Any, moments_of: Any) -> None:
    row = moments_of(rows).fit(Ridge(alpha=0.7)).scores.iloc[0]
    assert row["alpha"] == row["alpha_down"] == 0.7


def test_a_strong_penalty_is_chosen_where_the_target_is_noise(rows: Any, moments_of: Any) -> None:
    noise = torch.randn(
        rows.y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    row = moments_of(replace(rows, y=noise)).fit().scores.iloc[0]
    assert row["alpha"] > 1
    assert abs(row["r2"]) < 0.02


def test_cka_reads_the_folds_that_fit(rows: Any, row: Any) -> None:
    covariance = {}
    for k in range(5):
        x, y = rows.numpy(rows.parts == k)
        x, y = x - x.mean(0), y - y.mean(0)
        covariance[k] = {"xx": x.T @ x / len(x), "yy": y.T @ y / len(x), "xy": x.T @ y / len(x)}
    between = {
        name: sum(
            (covariance[j][name] * covariance[k][name]).sum()
            for j in range(5)
            for k in range(5)
            if j != k
        )
        for name in ("xx", "yy", "xy")
    }
    assert row["cka"] == pytest.approx(
        between["xy"] / np.sqrt(between["xx"] * between["yy"]), rel=1e-8
    )


def test_the_same_stream_on_both_sides_is_explained_whole(rows: Any, moments_of: Any) -> None:
    grid = moments_of(replace(rows, y=rows.x)).fit()
    row = grid.scores.iloc[0]
    for column in ("r2", "r2_uniform", "r2_cv", "r2_down", "cosine", "cka"):
        assert row[column] == pytest.approx(1, abs=1e-6)
    stitch = grid.best()
    x = rows.x
    torch.testing.assert_close(stitch.down.points(stitch.up.points(x)), x, rtol=0, atol=1e-3)


def test_every_pair_has_a_row_with_every_column(grid: Any) -> None:
    assert tuple(grid.scores.columns) == COLUMNS
    assert set(zip(grid.scores["source_hook"], grid.scores["target_hook"], strict=True)) == {
        (s, t) for s in SOURCES for t in TARGETS
    }
    assert grid.scores.notna().all(axis=None)
    assert len(grid) == 4
    assert {pair: grid[pair].source_hook for pair in grid} == {
        (s, t): s for s in SOURCES for t in TARGETS
    }
    assert (grid.scores["solver"] == "ridge").all()
    assert (grid.scores["n_tokens"] == grid.moments.n_fit).all()


def test_a_pair_of_a_grid_scores_as_it_does_alone(rows: Any, layered: dict, grid: Any) -> None:
    for hook_pair in grid.moments.pairs:
        alone = CrossMoments.from_activations(
            layered["source"][hook_pair[0]],
            layered["target"][hook_pair[1]],
            documents=rows.documents,
            moment_dtype=torch.float64,
        )
        expected = alone.fit().scores.iloc[0]
        found = grid.scores[
            (grid.scores["source_hook"] == hook_pair[0])
            & (grid.scores["target_hook"] == hook_pair[1])
        ].iloc[0]
        for column in (*CHOICES, "r2", "r2_uniform", "r2_down", "r2_uniform_down", "cosine", "cka"):
            assert found[column] == pytest.approx(expected[column], rel=1e-8), (hook_pair, column)


def test_any_map_is_scored_in_its_own_direction(grid: Any) -> None:
    for hook_pair in (
        grid.moments.pairs
    ):  # (blocks.0, blocks.0) among them: the names alone do not say which way
        row = grid[hook_pair].scores
        assert grid.score(grid[hook_pair].up).r2 == pytest.approx(row["r2"], abs=1e-10)
        assert grid.score(grid[hook_pair].down).r2 == pytest.approx(row["r2_down"], abs=1e-10)


def test_between_equal_widths_the_direction_can_be_said(rows: Any) -> None:
    own = CrossMoments.from_activations(
        rows.x,
        rows.x + rows.x.roll(1, 1),
        documents=rows.documents,
        source_hook=SOURCES[0],
        target_hook=SOURCES[0],
    ).fit()
    stitch, row = own.best(), own.scores.iloc[0]
    assert own.score(stitch.up).r2 == pytest.approx(row["r2"], abs=1e-6)
    assert own.score(stitch.down, direction="down").r2 == pytest.approx(row["r2_down"], abs=1e-6)
    assert own.score(stitch.down).r2 < row["r2_down"]


def test_a_map_of_another_width_is_not_scored(grid: Any) -> None:
    hook_pair = grid.moments.pairs[0]
    narrow = AffineMap(torch.zeros(3, 9), torch.zeros(9), *hook_pair)
    with pytest.raises(
        HookPointError,
        match=r"no hook pair 'blocks.0.hook_resid_post' \[3\] → 'blocks.0.hook_resid_post' \[9\]",
    ):
        grid.score(narrow)


def test_pairs_can_be_chosen(layered_moments: Any, grid: Any) -> None:
    hook_pair = (SOURCES[1], TARGETS[0])
    some = layered_moments().fit(pairs=[hook_pair])
    assert len(some) == 1
    assert some[hook_pair].scores["r2"] == pytest.approx(grid[hook_pair].scores["r2"], rel=1e-9)


def test_a_pair_that_the_moments_lack_is_named(layered_moments: Any) -> None:
    with pytest.raises(
        HookPointError,
        match=r"moments hold no hook pair \('blocks.7.hook_resid_post', .*they hold 4, such as",
    ):
        layered_moments().fit(pairs=[("blocks.7.hook_resid_post", TARGETS[0])])


# ----------------------------------------------------------------------------------------- controls


def test_token_identity_is_scored_as_the_embedding_predicting_the_target(
    rows: Any, layered: dict, grid: Any, layered_moments: Any
) -> None:
    for target in TARGETS:
        alone = CrossMoments.from_activations(
            layered["source"]["hook_embed"],
            layered["target"][target],
            documents=rows.documents,
            moment_dtype=torch.float64,
        )
        expected = alone.fit().scores.iloc[0]
        found = grid.scores[grid.scores["target_hook"] == target]
        np.testing.assert_allclose(found["r2_token"], expected["r2"], rtol=1e-8)
        np.testing.assert_allclose(found["r2_uniform_token"], expected["r2_uniform"], rtol=1e-8)
        assert (found["r2_token"] < found["r2"]).all()
    assert layered_moments(token=False).fit().scores["r2_token"].isna().all()


def test_the_embedding_itself_can_be_a_source(layered: dict, rows: Any) -> None:
    pairs = (("hook_embed", TARGETS[0]), (SOURCES[0], TARGETS[0]))
    moments = CrossMoments(pairs=pairs, token_hook="hook_embed", moment_dtype=torch.float64)
    for part in np.unique(rows.parts):
        index = torch.from_numpy(np.flatnonzero(rows.parts == part))
        x = {hook: layered["source"][hook][index] for hook, _ in pairs}
        moments.add_block(int(part), x, {TARGETS[0]: layered["target"][TARGETS[0]][index]})
    scores = moments.fit().scores.set_index("source_hook")
    assert (
        scores.loc["hook_embed", "r2"]
        == scores.loc["hook_embed", "r2_token"]
        == scores.loc[SOURCES[0], "r2_token"]
    )
    assert np.isfinite(scores.loc["hook_embed", "cka"])


def test_shuffled_pairs_explain_nothing(grid: Any) -> None:
    assert (grid.scores["r2"] > 0.2).all()
    assert (grid.scores["r2_null"].abs() < 0.06).all()


def test_the_null_column_is_the_shuffled_map_on_shuffled_test_pairs(grid: Any) -> None:
    for hook_pair in grid.moments.pairs:
        stitch = grid[hook_pair]
        expected = score_map(
            stitch.null.up.weight,
            stitch.null.up.bias,
            grid.moments.null_scatter(hook_pair, test=True),
        )
        assert stitch.scores["r2_null"] == pytest.approx(expected.r2, rel=1e-9, abs=1e-12)


def test_without_shuffled_pairs_the_null_is_unknown_and_not_nought(
    rows: Any, moments_of: Any
) -> None:
    grid = moments_of(rows, null=False).fit()
    assert np.isnan(grid.scores["r2_null"].iloc[0])
    assert grid.best().null is None


def test_the_sketched_null_is_close_to_the_full_one(rows: Any) -> None:
    """Use 100 target dimensions, more than the 64 of the sketch.

    With few tokens the null is clearly below zero.
    """
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(len(rows.x), 40, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(40, 100, generator=generator, dtype=torch.float64) + torch.randn(
        len(x), 100, generator=generator, dtype=torch.float64
    )
    found = {}
    for null in ("full", "sketch"):
        moments = CrossMoments(pairs=(("s", "t"),), moment_dtype=torch.float64, null=null)
        for part in np.unique(rows.parts):
            index = torch.from_numpy(np.flatnonzero(rows.parts == part))
            moments.add_block(
                int(part), {"s": x[index]}, {"t": y[index]}, torch.arange(len(index)).roll(-20)
            )
        grid = moments.fit(Ridge(alpha=1e-4))
        found[null] = grid.scores["r2_null"].iloc[0]
        assert moments.cross_null["s", "t"].shape == (2, 40, 64 if null == "sketch" else 100)
        assert (grid.best().null is None) == (null == "sketch")
    assert found["full"] < -0.01
    assert found["sketch"] == pytest.approx(found["full"], abs=0.01)
    assert found["sketch"] != found["full"]


# ------------------------------------------------------------------------------------------- choice


def test_a_corrupted_test_fold_changes_its_verdict_and_no_choice(
    rows: Any, layered: dict, grid: Any, layered_moments: Any
) -> None:
    test = torch.from_numpy(~rows.fits)
    corrupted = {hook: values.clone() for hook, values in layered["target"].items()}
    for values in corrupted.values():
        values[test] = (
            50
            * torch.randn(
                int(test.sum()), 9, generator=torch.Generator().manual_seed(7), dtype=torch.float64
            )
            - 400
        )
    other = layered_moments(target=corrupted).fit()
    for column in CHOICES:
        np.testing.assert_allclose(other.scores[column], grid.scores[column], rtol=1e-9)
    for column in ("r2", "r2_uniform", "r2_down", "cosine"):
        assert (np.abs(other.scores[column] - grid.scores[column]) > 0.05).all()
    for by in ("r2_cv", "r2_uniform_cv", "r2_down_cv", "r2_uniform_down_cv"):
        best, expected = other.best(by=by), grid.best(by=by)
        assert (best.source_hook, best.target_hook) == (expected.source_hook, expected.target_hook)
        torch.testing.assert_close(best.up.weight, expected.up.weight, rtol=1e-7, atol=1e-9)


def test_statistics_of_a_stitch_are_those_of_the_fitting_folds(
    rows: Any, layered: dict, layered_moments: Any
) -> None:
    test = torch.from_numpy(~rows.fits)
    changed = {hook: values.clone() for hook, values in layered["target"].items()}
    for values in changed.values():
        values[test] = 1000 * values[test] - 400
    stitch = layered_moments().fit().best()
    other = layered_moments(target=changed).fit().best()
    expected = layered["target"][stitch.target_hook][torch.from_numpy(rows.fits)].numpy()
    statistics = other.target_statistics
    np.testing.assert_allclose(statistics.mean, expected.mean(0), rtol=1e-7)
    np.testing.assert_allclose(
        statistics.covariance, np.cov(expected.T, bias=True), rtol=1e-5, atol=1e-6
    )
    assert statistics.median_norm == pytest.approx(
        np.median(np.linalg.norm(expected, axis=1)), rel=0.01
    )
    assert other.scores["n_tokens"] == rows.fits.sum()
    for ours, theirs in ((stitch.null, other.null), *zip(stitch.refits, other.refits, strict=True)):
        torch.testing.assert_close(theirs.up.weight, ours.up.weight, rtol=1e-6, atol=1e-8)
    direction = torch.randn(12, generator=torch.Generator().manual_seed(0))
    assert other.target_statistics.deviation(direction[:9]) == pytest.approx(
        stitch.target_statistics.deviation(direction[:9])
    )


def test_the_best_pair_has_the_highest_cross_validated_score(grid: Any) -> None:
    best = grid.best()
    assert (best.source_hook, best.target_hook) == (SOURCES[1], TARGETS[1])
    assert best.scores["r2_uniform_cv"] == grid.scores["r2_uniform_cv"].max()


def test_the_best_can_be_asked_for_at_one_hook_point(grid: Any) -> None:
    for hook in (SOURCES[0], 0, "blocks.1.hook_resid_pre"):
        best = grid.best(source=hook)
        assert (best.source_hook, best.target_hook) == (SOURCES[0], TARGETS[1])
    assert grid.best(target=TARGETS[0]).target_hook == TARGETS[0]
    assert grid.best(source=0, target=0).scores == grid[0, 0].scores


def test_the_best_is_never_chosen_by_a_column_that_read_the_test_fold(grid: Any) -> None:
    for column in ("r2", "r2_uniform", "cosine", "cka", "nonsense"):
        with pytest.raises(
            ValueError,
            match=rf"best\(by='{column}'\) would choose by a column that is not cross-validated; "
            r"use one of \['r2_cv'",
        ):
            grid.best(by=column)


@pytest.mark.parametrize("hook", ["blocks.5.hook_resid_post", 5, "nonsense"])
def test_a_hook_point_that_the_grid_lacks_is_named_beside_those_it_has(
    grid: Any, hook: str | int
) -> None:
    with pytest.raises(
        HookPointError,
        match=rf"{hook!r} is no source hook of this grid; "
        rf"use one of \['{SOURCES[0]}', '{SOURCES[1]}'\]",
    ):
        grid.best(source=hook)
    with pytest.raises(HookPointError, match=rf"{hook!r} is no target hook of this grid"):
        grid[SOURCES[0], hook]


def test_a_pair_that_was_not_fitted_says_so(layered_moments: Any) -> None:
    some = layered_moments().fit(pairs=[(SOURCES[0], TARGETS[0]), (SOURCES[1], TARGETS[1])])
    with pytest.raises(HookPointError, match="was not fitted; see grid.scores for the 2 that were"):
        some[SOURCES[0], TARGETS[1]]
    with pytest.raises(HookPointError, match="no hook pair from 0 to 2 in this grid of 2"):
        some.best(source=0, target=2)


def test_layers_count_from_the_end_as_they_do_on_the_model(
    rows: Any, moments_of: Any, pair: Any
) -> None:
    moments = moments_of(
        rows, source_hook="blocks.0.hook_resid_post", target_hook="blocks.1.hook_resid_post"
    )
    moments.provenance = replace(
        moments.provenance, source=pair.source.identity, target=pair.target.identity
    )
    grid = moments.fit()
    assert grid[-2, -2].target_hook == "blocks.1.hook_resid_post"
    with pytest.raises(HookPointError, match="-1 is no target hook of this grid"):
        grid[0, -1]


def test_interpolating_is_warned_about_with_both_numbers(
    rows: Any, caplog: pytest.LogCaptureFixture, moments_of: Any
) -> None:
    wide = torch.randn(2400, 600, generator=torch.Generator().manual_seed(0))
    few = rows.taken(range(0, 2400, 4))
    moments = CrossMoments.from_activations(wide[::4], few.y.float(), documents=few.documents)
    with caplog.at_level(logging.WARNING):
        moments.fit(Ridge(alpha=1e-2))
    assert (
        f"{moments.n_fit} tokens for 600 dimensions: a map fitted on fewer rows than dimensions "
        "interpolates them" in caplog.text
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        moments_of(rows).fit(Ridge(alpha=1e-2))
    assert "interpolates" not in caplog.text


def test_a_grid_shows_itself(grid: Any) -> None:
    assert short_hook(SOURCES[0]) in grid._repr_html_()
    assert grid.figure("r2") is not None
