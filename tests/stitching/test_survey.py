"""A survey scores all hook pairs as exact moments do, within the error that it states."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from lrt_lens import survey
from lrt_lens.data import DocumentSource
from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.moments import CrossMoments, SurveyMoments, harvest
from lrt_lens.moments._survey_sums import Sketch
from lrt_lens.stitching import StitchGrid, Survey, fit_stitches, score_survey
from lrt_lens.stitching._sketched_ridge import SketchedRidge
from lrt_lens.stitching.solvers import Ridge
from tests.rows import SOURCES, TARGETS, Rows

PAIRS = tuple((s, t) for s in SOURCES for t in TARGETS)
QUIET: dict[str, Any] = {"n_tokens": None, "progress": False, "context_length": 24}
KEYS = ["source_hook", "target_hook"]


@pytest.fixture(scope="module")
def survey_of(rows: Rows, layered: dict[str, dict[str, Tensor]]) -> Callable[..., SurveyMoments]:
    """A function that returns the survey moments of `layered` with a sketch."""

    def build(sketch: Sketch, *, seed: int = 0) -> SurveyMoments:
        moments = SurveyMoments(PAIRS, "hook_embed", torch.float64, sketch)
        moments.provenance = replace(moments.provenance, seed=seed)
        moments.start(layered["source"], layered["target"])
        for part in range(13):
            index = torch.from_numpy(np.flatnonzero(rows.parts == part))
            x, y = ({h: r[index] for h, r in layered[side].items()} for side in layered)
            moments.add_block(part, x, y, torch.arange(len(index)).roll(20))
        return moments

    return build


@pytest.fixture(scope="module")
def many(survey_of: Callable[..., SurveyMoments]) -> Survey:
    """A survey with so many columns that its scores are nearly exact."""
    return score_survey(survey_of(Sketch(4096, 32, down=True)))


def joined(one: pd.DataFrame, grid: StitchGrid) -> pd.DataFrame:
    return one.merge(grid.scores, on=KEYS, suffixes=("", "_exact"))


def test_with_many_columns_the_scores_are_those_of_exact_moments(
    many: Survey, grid: StitchGrid
) -> None:
    table = joined(many.scores, grid)
    assert len(table) == len(PAIRS)
    columns = ["gain_cv", "r2_cv", "r2_uniform_cv", "r2", "r2_uniform", "r2_token"]
    columns += ["r2_uniform_token", "r2_down_cv", "r2_uniform_down_cv", "r2_down"]
    for column in columns:
        difference = (table[column] - table[f"{column}_exact"]).abs().max()
        assert difference < 0.004, column
    assert (table["alpha"] == table["alpha_exact"]).all()
    assert many.best(1)[0] == (grid.best().source_hook, grid.best().target_hook)
    assert (table["r2_null"] < 0.01).all()


def test_a_score_is_that_of_scikit_learns_maps_to_the_columns(
    rows: Rows,
    layered: dict,
    survey_of: Callable[..., SurveyMoments],
    sklearn_ridge: Callable[..., Any],
) -> None:
    alpha, k, pair = 0.01, 16, (SOURCES[0], TARGETS[1])
    moments = survey_of(Sketch(k, 8))
    scored = SketchedRidge(moments, Ridge(alpha=alpha), "up").score(pair)
    outcome = moments.directions["up"].outcomes[pair[1]]
    x, y = layered["source"][pair[0]].numpy(), layered["target"][pair[1]].numpy()
    for weighting, columns in ((0, slice(0, k)), (1, slice(k, None))):
        seen = y @ outcome.columns[:, columns].numpy()
        whole = y * (1.0 if weighting == 0 else outcome.scale.numpy())
        fitting = rows.parts < 5
        e, v = np.zeros(k), ((seen[fitting] - seen[fitting].mean(0)) ** 2).sum(0)
        for fold in range(5):
            held_out = rows.parts == fold
            fit = fitting & ~held_out
            predicted = sklearn_ridge(x[fit], seen[fit], alpha).predict(x[held_out])
            e += ((seen[held_out] - predicted) ** 2).sum(0)
        total = ((whole[fitting] - whole[fitting].mean(0)) ** 2).sum()
        slope = np.cov(e, v)[0, 1] / v.var(ddof=1)
        expected = 1 - (e.mean() - slope * (v.mean() - total)) / total
        r2 = (scored.folds.r2, scored.folds.r2_uniform)[weighting]
        assert r2 == pytest.approx(expected, abs=1e-9)
        rest = e - slope * v
        error = np.sqrt(((rest - rest.mean()) ** 2).sum() / (k - 2) / k) / total
        assert scored.noise[weighting] == pytest.approx(error, rel=1e-9)
        test_rows = rows.parts >= 5
        predicted = sklearn_ridge(x[fitting], seen[fitting], alpha).predict(x[test_rows])
        e = ((seen[test_rows] - predicted) ** 2).sum(0)
        v = ((seen[test_rows] - seen[test_rows].mean(0)) ** 2).sum(0)
        total = ((whole[test_rows] - whole[test_rows].mean(0)) ** 2).sum()
        slope = np.cov(e, v)[0, 1] / v.var(ddof=1)
        expected = 1 - (e.mean() - slope * (v.mean() - total)) / total
        assert scored.test[weighting] == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_the_error_of_the_sketch_is_the_spread_over_sketches() -> None:
    # 40 dimensions, of which two have most of the variance.
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x = draw(1300, 24)
    noise = draw(1300, 40) @ (torch.eye(40) + draw(40, 40) / 6).double()
    y = (x @ draw(24, 40) / 5 + noise) * torch.tensor([8.0, 6.0] + [1.0] * 38).double()
    token = x[:, :6] + draw(1300, 6)
    estimates, errors = [], []
    for seed in range(200):
        moments = SurveyMoments((("s", "t"),), "hook_embed", torch.float64, Sketch(64, 0))
        moments.provenance = replace(moments.provenance, seed=seed)
        moments.start({"s": x, "hook_embed": token}, {"t": y})
        for part in range(13):
            some = slice(100 * part, 100 * part + 100)
            moments.add_block(part, {"s": x[some], "hook_embed": token[some]}, {"t": y[some]})
        scores = score_survey(moments, Ridge(alpha=0.01)).scores.iloc[0]
        estimates.append(scores["gain_cv"])
        errors.append(scores["sketch_error"])
    exact = CrossMoments((("s", "t"),), "hook_embed", torch.float64)
    for part in range(13):
        some = slice(100 * part, 100 * part + 100)
        exact.add_block(part, {"s": x[some], "hook_embed": token[some]}, {"t": y[some]})
    truth = exact.fit(Ridge(alpha=0.01)).scores["gain_cv"].item()
    spread = np.std(estimates)
    assert abs(np.mean(estimates) - truth) < 4 * spread / np.sqrt(200) + 0.001
    assert 0.85 < np.sqrt(np.mean(np.square(errors))) / spread < 1.15
    held = np.abs(np.array(estimates) - truth) < 1.96 * np.array(errors)
    assert 0.9 < held.mean() < 0.99


def test_intervals_hold_the_score_and_are_wider_than_the_sketch_alone(many: Survey) -> None:
    table = many.scores
    for name, low in (("gain_cv", "gain"), ("r2_cv", "r2_cv"), ("r2_uniform_cv", "r2_uniform_cv")):
        assert (table[f"{low}_low"] < table[name]).all()
        assert (table[name] < table[f"{low}_high"]).all()
    half = (table["gain_high"] - table["gain_low"]) / 2
    over_documents = table.merge(many.choices(), on=KEYS)
    expected = np.hypot(
        (over_documents["high"] - over_documents["low"]) / 2, 1.96 * table["sketch_error"]
    )
    assert half.to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-3)


def test_a_corrupted_test_fold_changes_no_choice(
    survey_of: Callable[..., SurveyMoments], many: Survey
) -> None:
    moments = survey_of(Sketch(4096, 32, down=True))
    for sums in moments.directions.values():
        for tensor in sums.cross.values():
            tensor[5] *= -1
    corrupted = score_survey(moments)
    assert (corrupted.scores["r2"] < many.scores["r2"]).all()
    columns = ["alpha", "gain_cv", "gain_low", "gain_high", "r2_cv", "r2_uniform_cv"]
    pd.testing.assert_frame_equal(corrupted.scores[columns], many.scores[columns])


def test_the_best_pairs_are_those_of_a_cross_validated_column(many: Survey) -> None:
    ordered = many.scores.sort_values("r2_cv", ascending=False)
    assert many.best(3, by="r2_cv") == list(ordered[KEYS].itertuples(index=False, name=None))[:3]
    assert len(many.best(100)) == len(many) == 4
    with pytest.raises(ValueError, match="not cross-validated"):
        many.best(1, by="r2")
    with pytest.raises(ValueError, match="n is 0"):
        many.best(0)


def test_a_survey_shows_itself(many: Survey) -> None:
    html = many._repr_html_()
    assert "best pair (gain_cv)" in html
    assert "random columns" in html
    figure = many.figure()
    assert len(figure.data) == 2
    assert "gain" in figure.layout.annotations[0].text


# -------------------------------------------------------------------------------------- on models


@pytest.fixture(scope="module")
def surveyed(pair: ModelPair, corpus: list[str]) -> Survey:
    return survey(pair, corpus, moment_dtype="float64", **QUIET)


def test_folds_and_rows_are_those_of_a_harvest(
    pair: ModelPair, corpus: list[str], surveyed: Survey
) -> None:
    exact = harvest(pair, corpus, moment_dtype="float64", **QUIET)
    moments = surveyed.moments
    assert moments.n.tolist() == [*exact.n[:5].tolist(), exact.n[5:].sum()]
    assert moments.provenance == exact.provenance
    for s, t in moments.pairs:
        for parts in ([0], [1, 2], [5]):
            of_exact = [p for part in parts for p in (range(5, 13) if part == 5 else [part])]
            theirs, ours = exact.scatter((s, t), of_exact), moments.scatter("up", (s, t), parts)
            torch.testing.assert_close(ours.xx, theirs.xx)
            columns = moments.directions["up"].outcomes[t].columns
            torch.testing.assert_close(ours.xy, theirs.xy @ columns)
            torch.testing.assert_close(
                ours.variance, torch.einsum("ij,ik,kj->j", columns, theirs.yy, columns)
            )
            torch.testing.assert_close(moments.variances("up", t, parts), theirs.variance)


def test_shards_add_up_to_the_whole(
    pair: ModelPair, corpus: list[str], surveyed: Survey, tmp_path: Path
) -> None:
    options = QUIET | {"moment_dtype": "float64"}
    shards = [survey(pair, corpus, shard=(i, 2), block_rows=200, **options) for i in (0, 1)]
    whole = survey(pair, corpus, block_rows=200, **options)
    loaded = [Survey.load(s.save(tmp_path / f"{i}.safetensors")) for i, s in enumerate(shards)]
    merged = loaded[0].merge(loaded[1])
    assert merged.moments.n.tolist() == whole.moments.n.tolist()
    numbers = merged.scores.select_dtypes("number").columns
    pd.testing.assert_frame_equal(merged.scores[numbers], whole.scores[numbers])
    with pytest.raises(MismatchError, match="twice"):
        loaded[0].merge(loaded[0])
    with pytest.raises(MismatchError, match="seed"):
        surveyed.merge(survey(pair, corpus, seed=1, **options))


def test_an_interrupted_survey_resumes(
    pair: ModelPair, corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = survey(pair, corpus, block_rows=200, **QUIET)
    add, calls = SurveyMoments.add_block, []

    def interrupted(self: SurveyMoments, *arguments: Any, **options: Any) -> None:
        calls.append(arguments[0])
        if len(calls) == 4:
            raise KeyboardInterrupt
        add(self, *arguments, **options)

    monkeypatch.setattr(SurveyMoments, "add_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        survey(pair, corpus, block_rows=200, checkpoint=tmp_path / "c", **QUIET)
    resumed = survey(pair, corpus, block_rows=200, checkpoint=tmp_path / "c", **QUIET)
    assert resumed.moments.n.tolist() == whole.moments.n.tolist()
    pd.testing.assert_frame_equal(resumed.scores, whole.scores)
    # A checkpoint of a survey is none of a harvest, and the other way round.
    with pytest.raises(MismatchError, match="other arguments"):
        harvest(pair, corpus, block_rows=200, checkpoint=tmp_path / "c", **QUIET)


def test_the_best_pairs_can_be_harvested(
    pair: ModelPair, corpus: list[str], surveyed: Survey
) -> None:
    best = surveyed.best(2)
    moments = harvest(pair, corpus, pairs=best, **QUIET)
    assert moments.pairs == tuple(best)
    assert harvest(pair, corpus, pairs=[(0, -1)], **QUIET).pairs == (
        ("blocks.0.hook_resid_post", f"blocks.{pair.target.n_layers - 1}.hook_resid_post"),
    )
    with pytest.raises(ValueError, match="pairs has 0 entries"):
        harvest(pair, corpus, pairs=[], **QUIET)
    with pytest.raises(HookPointError, match="layer 99"):
        harvest(pair, corpus, pairs=[(0, 99)], **QUIET)


# ---------------------------------------------------------------------------------- within a budget


@pytest.fixture(scope="module")
def budget(pair: ModelPair, corpus: list[str]) -> int:
    """The bytes of the exact moments of two hook pairs."""
    chosen = [(0, 0), (1, 1)]
    return harvest(pair, corpus, pairs=chosen, **QUIET).n_bytes


@pytest.mark.parametrize("kind", ["list", "iterator", "source"])
def test_what_does_not_fit_is_surveyed_and_the_best_is_exact(
    pair: ModelPair, corpus: list[str], budget: int, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    documents = {"list": corpus, "iterator": iter(corpus), "source": DocumentSource(iter(corpus))}
    grid = fit_stitches(pair, documents[kind], memory_budget=budget, **QUIET)
    whole = fit_stitches(pair, corpus, **QUIET)
    assert whole.scores["exact"].all()
    table = grid.scores.merge(whole.scores, on=KEYS, suffixes=("", "_whole"))
    assert len(table) == len(whole.scores)
    exact = table[table["exact"].astype(bool)]
    assert 1 <= len(exact) < len(table)
    assert grid.moments.n_bytes <= budget
    np.testing.assert_allclose(exact["r2"], exact["r2_whole"], atol=1e-6)
    assert set(table.loc[~table["exact"].astype(bool), "solver"]) == {"ridge, surveyed"}
    message = [r.getMessage() for r in caplog.records if "surveyed" in r.getMessage()]
    assert len(message) == 1
    assert f"the best {len(exact)} are harvested exactly" in message[0]
    best = grid.best()
    assert exact["gain_cv"].max() == best.scores["gain_cv"]
    assert len(grid.choices()) == len(exact)
    surveyed_only = table[~table["exact"].astype(bool)].iloc[0]
    with pytest.raises(HookPointError, match="only surveyed"):
        _ = grid[surveyed_only["source_hook"], surveyed_only["target_hook"]]
    assert "surveyed only" in grid._repr_html_()
    assert len(grid.figure("gain_cv").data) == 2


def test_an_interrupted_run_keeps_the_pairs_that_it_chose(
    pair: ModelPair, corpus: list[str], budget: int, tmp_path: Path
) -> None:
    options = QUIET | {"checkpoint": tmp_path / "c"}
    first = fit_stitches(pair, corpus, memory_budget=budget, **options)
    # Less memory is free at the second start.
    again = fit_stitches(pair, corpus, memory_budget=int(budget * 0.8), **options)
    pd.testing.assert_frame_equal(first.scores, again.scores)
    from lrt_lens.moments import remove_checkpoints

    remove_checkpoints(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_budget_below_one_hook_pair_says_what_one_takes(
    pair: ModelPair, corpus: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"1 KB.* one hook pair.* take .*KB"):
        fit_stitches(pair, corpus, memory_budget=1000, **QUIET)
    with pytest.raises(ValueError, match="no amount of memory"):
        fit_stitches(pair, corpus, memory_budget="many", **QUIET)
    with pytest.raises(ValueError, match="memory_budget is 0"):
        fit_stitches(pair, corpus, memory_budget=0, **QUIET)
