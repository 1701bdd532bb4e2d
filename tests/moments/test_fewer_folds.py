"""Moments with other numbers of folds and test groups: files, sums, scores and plans."""

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.metrics import r2_score

import lrt_lens as lrt
from lrt_lens.data import DEFAULT_PARTS, Parts, document_key
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.moments import (
    CrossMoments,
    HarvestSettings,
    ModelShape,
    Provenance,
    SurveySettings,
    harvest,
    merge_shards,
    plan_harvest,
    score_map,
)
from lrt_lens.moments._harvesting import settle
from lrt_lens.moments._plan import moment_bytes
from lrt_lens.moments._scale_out import Ranks, harvest_in_ranks
from lrt_lens.moments._survey_plan import answer, survey_settings
from lrt_lens.stitching import fit_stitches, score_intervals, similarities
from lrt_lens.stitching._within_budget import sizes_of
from lrt_lens.stitching.solvers import Procrustes, ReducedRank, Ridge, TwoWay
from tests.moments.forking import end, forking
from tests.moments.small_blocks import OPTIONS, assert_same

FEW = Parts(n_folds=3, n_test_groups=2)
NUMBERS: dict[str, Any] = {"n_folds": 3, "n_test_groups": 2}
PAIR = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")


@pytest.fixture(scope="module")
def few(pair: ModelPair, corpus: list[str]) -> CrossMoments:
    """Moments of the test corpus with three folds and two test groups."""
    return harvest(pair, corpus, progress=False, **OPTIONS, **NUMBERS)


# ----------------------------------------------------------------------------------------- defaults


def test_files_of_the_default_numbers_do_not_name_them(whole: CrossMoments, tmp_path: Path) -> None:
    assert "parts" not in json.loads(whole.metadata()["provenance"])
    assert "parts" not in whole.provenance.stored
    assert whole.provenance.stored["shard"] is None, "only default parts are left out"
    path = whole.save(tmp_path / "whole.safetensors")
    with safe_open(path, "pt") as file:
        assert {name.split("/")[0] for name in file.keys()} == {  # noqa: SIM118 (no mapping)
            *DEFAULT_PARTS.names,
            "shift",
            "norms",
            "null",
        }
    assert CrossMoments.load(path).parts == whole.parts == DEFAULT_PARTS


def test_provenance_keeps_other_numbers() -> None:
    provenance = Provenance(parts=FEW)
    assert json.loads(provenance.to_json())["parts"] == NUMBERS
    assert Provenance.from_json(provenance.to_json()) == provenance
    assert Provenance.from_json(Provenance().to_json()) == Provenance()
    assert provenance.swapped().parts == FEW
    damaged = provenance.to_json().replace('"n_folds": 3', '"n_folds": 1')
    with pytest.raises(lrt.FileFormatError, match="n_folds is 1; expected"):
        Provenance.from_json(damaged)


def test_arguments_of_a_run_with_default_numbers_are_those_of_earlier_versions(
    pair: ModelPair,
) -> None:
    assert "parts" not in settle(pair, **OPTIONS).arguments
    assert settle(pair, **OPTIONS, **NUMBERS).arguments["parts"] == NUMBERS


# -------------------------------------------------------------------------------------- sums, files


def test_a_harvest_sums_each_document_in_the_part_of_its_key(
    few: CrossMoments, whole: CrossMoments, corpus: list[str]
) -> None:
    assert few.parts == FEW
    assert few.provenance.part_documents is not None
    expected = [0] * 5
    for text in corpus:
        expected[FEW.of(document_key(text, 0))] += 1
    assert list(few.provenance.part_documents) == expected
    assert (len(few.n), few.n_tokens, few.n_fit) == (5, whole.n_tokens, whole.n_fit)
    assert few.folds.index.tolist() == ["fold0", "fold1", "fold2", "test"]
    assert "3 folds + test in 2 groups" in repr(few)
    assert "3 that fit" in few._repr_html_()


def test_fitting_folds_and_test_fold_hold_the_same_rows_for_any_numbers(
    few: CrossMoments, whole: CrossMoments
) -> None:
    for ours, theirs in ((few.parts.fit, whole.parts.fit), (few.parts.test, whole.parts.test)):
        mine, other = few.scatter(PAIR, ours), whole.scatter(PAIR, theirs)
        assert mine.n == other.n
        for name in ("xx", "yy", "xy", "mean_x", "mean_y"):
            torch.testing.assert_close(getattr(mine, name), getattr(other, name))
    assert few.source[PAIR[0]].median_norm == whole.source[PAIR[0]].median_norm


def test_scores_of_a_map_on_the_test_fold_do_not_depend_on_the_numbers(
    few: CrossMoments, whole: CrossMoments
) -> None:
    one, other = (moments.fit(Ridge(alpha=0.01)) for moments in (few, whole))
    up, down = other.maps(PAIR)
    for affine, direction in ((up, "up"), (down, "down")):
        ours, theirs = (grid.score(affine, direction=direction) for grid in (one, other))
        assert ours.r2 == pytest.approx(theirs.r2, rel=1e-9)
        assert ours.r2_uniform == pytest.approx(theirs.r2_uniform, rel=1e-9)
        assert ours.cosine == pytest.approx(theirs.cosine, rel=1e-9)
    # With a fixed penalty the map itself is that of the same fitting rows.
    for column in ("r2", "r2_uniform", "r2_down", "r2_null", "r2_token", "cosine"):
        if column not in ("r2_null", "r2_token"):
            assert one.scores[column].tolist() == pytest.approx(other.scores[column].tolist())
        assert one.scores[column].notna().all()


def test_files_keep_the_numbers(few: CrossMoments, tmp_path: Path) -> None:
    loaded = CrossMoments.load(few.save(tmp_path / "few.safetensors"))
    assert_same(loaded, few)
    assert loaded.parts == FEW
    assert loaded.fit(Ridge()).scores.equals(few.fit(Ridge()).scores)


@pytest.mark.parametrize("null", ["full", "sketch"])
def test_shards_merge_to_the_whole(
    pair: ModelPair, corpus: list[str], few: CrossMoments, tmp_path: Path, null: str
) -> None:
    options = OPTIONS | NUMBERS | {"null": null}
    shards = [harvest(pair, corpus, shard=(k, 2), progress=False, **options) for k in range(2)]
    paths = [one.save(tmp_path / f"{k}.safetensors") for k, one in enumerate(shards)]
    if null == "full":
        assert_same(merge_shards(paths), few)
    merged = shards[0].merge(shards[1])
    assert_same(merged, shards[1].merge(shards[0]))
    torch.testing.assert_close(merged.n, few.n)


def test_a_harvest_resumes_with_the_same_numbers_only(
    pair: ModelPair, corpus: list[str], few: CrossMoments, tmp_path: Path
) -> None:
    class Stop(Exception):  # noqa: N818 (control flow, no error)
        pass

    seen: list[int] = []

    def stop(block: Any, *_: Any) -> None:
        seen.append(block.index)
        if len(seen) == 6:
            raise Stop

    options = OPTIONS | {"progress": False, "checkpoint": tmp_path}
    with pytest.raises(Stop):
        harvest(pair, corpus, on_block=stop, **options, **NUMBERS)
    with pytest.raises(MismatchError, match=r"parts.n_folds was 3 and is 4.*give the same argum"):
        harvest(pair, corpus, **options, n_folds=4, n_test_groups=2)
    with pytest.raises(
        MismatchError, match=r"n_folds was 3 and is 5; .*n_test_groups was 2 and is 8"
    ):
        harvest(pair, corpus, **options)
    assert_same(harvest(pair, corpus, **options, **NUMBERS), few)


def test_ranks_give_the_moments_of_one_process(
    pair: ModelPair, corpus: list[str], few: CrossMoments, tmp_path: Path
) -> None:
    def run(folder: Path, ranks: Ranks, pause: float) -> CrossMoments | None:
        return harvest_in_ranks(
            settle(pair, **OPTIONS, **NUMBERS),
            corpus,
            folder / "checkpoint",
            ranks=ranks,
            result=folder / "moments.safetensors",
            progress=False,
        )

    fork: Callable[..., multiprocessing.Process] = forking(run, pause=0.0)
    assert end([fork(tmp_path, rank, 2) for rank in range(2)]) == [0, 0]
    assert_same(CrossMoments.load(tmp_path / "moments.safetensors"), few)


def test_moments_of_other_numbers_are_not_added(
    pair: ModelPair, corpus: list[str], few: CrossMoments, whole: CrossMoments, tmp_path: Path
) -> None:
    message = (
        r"differ in parts: Parts\(n_folds=3, n_test_groups=2\) and "
        r"Parts\(n_folds=5, n_test_groups=8\); harvest every shard with the same arguments"
    )
    with pytest.raises(MismatchError, match=message):
        few.merge(whole)
    # As many parts, but other ones.
    options = OPTIONS | {"progress": False, "n_folds": 4, "n_test_groups": 9}
    alike = harvest(pair, corpus, **options)
    assert len(alike.n) == len(whole.n)
    with pytest.raises(MismatchError, match=r"n_folds=4, n_test_groups=9\) and .*n_folds=5"):
        alike.merge(whole)
    paths = [
        harvest(pair, corpus, shard=(k, 2), progress=False, **OPTIONS, **numbers).save(
            tmp_path / f"{k}.safetensors"
        )
        for k, numbers in enumerate(({}, NUMBERS))
    ]
    with pytest.raises(MismatchError, match=r"by parts: .*n_folds=5.* and .*n_folds=3"):
        merge_shards(paths)


def test_files_in_shares_are_checked_with_their_own_folds(
    pair: ModelPair, corpus: list[str], few: CrossMoments, tmp_path: Path
) -> None:
    for k in range(2):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in corpus[k::2])
        (tmp_path / f"{k}.jsonl").write_text(lines)
    moments = harvest(pair, tmp_path, file_shares=2, progress=False, **OPTIONS, **NUMBERS)
    assert moments.provenance.part_documents == few.provenance.part_documents
    torch.testing.assert_close(moments.n, few.n)


def test_a_cache_has_the_default_numbers_only(
    pair: ModelPair, corpus: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="n_folds is 3 and n_test_groups 2; an activation cache"):
        harvest(pair, corpus, cache=tmp_path / "cache", progress=False, **OPTIONS, **NUMBERS)
    assert not (tmp_path / "cache").exists()


# ------------------------------------------------------------------------------------------- scores


def by_scikit_learn(rows: Any, parts: Parts, alpha: float, ridge: Any, *, down: bool) -> float:
    """Return R² of ridge maps on the folds on which they were not fitted, from rows."""
    of = {name: parts.of(document_key(name, 0)) for name in set(rows.documents)}
    part = np.array([of[name] for name in rows.documents])
    x, y = rows.x.numpy(), rows.y.numpy()
    x, y = (y, x) if down else (x, y)
    predicted = np.full_like(y, np.nan)
    for k in parts.fit:
        fitted = np.isin(part, parts.fit) & (part != k)
        predicted[part == k] = ridge(x[fitted], y[fitted], alpha).predict(x[part == k])
    used = np.isin(part, parts.fit)
    return float(r2_score(y[used], predicted[used], multioutput="variance_weighted"))


@pytest.mark.parametrize("parts", [FEW, Parts(2, 3), Parts(7, 8), Parts(5, 2), Parts(5, 8)])
def test_cross_validation_of_ridge_is_that_of_scikit_learn(
    rows: Any, moments_of: Any, sklearn_ridge: Any, parts: Parts
) -> None:
    grid = moments_of(rows, parts=parts).fit(Ridge())
    row = grid.scores.iloc[0]
    for column, alpha, down in (("r2_cv", "alpha", False), ("r2_down_cv", "alpha_down", True)):
        expected = by_scikit_learn(rows, parts, float(row[alpha]), sklearn_ridge, down=down)
        assert row[column] == pytest.approx(expected, abs=1e-9)
    assert len(grid[grid.moments.pairs[0]].refits) == parts.n_folds


@pytest.mark.parametrize("solver", [Ridge(), ReducedRank(), Procrustes(), TwoWay()])
def test_every_solver_refits_without_each_fold(rows: Any, moments_of: Any, solver: Any) -> None:
    moments = moments_of(rows, parts=FEW)
    stitch = moments.fit(solver)["source", "target"]
    assert (len(stitch.refits), len(stitch.held_out)) == (3, 2)
    up, _ = solver.fitters(moments)
    setting = up.cross_validate(("source", "target")).setting
    expected = up.solve(("source", "target"), (0, 2), setting).weight
    # An iteration stops a little earlier or later if it begins elsewhere.
    move = (stitch.refits[1].up.weight - expected).norm() / expected.norm()
    assert float(move) < (1e-2 if isinstance(solver, TwoWay) else 1e-9)


def test_two_folds_and_one_group_give_intervals_of_choices_only(rows: Any, moments_of: Any) -> None:
    moments = moments_of(rows, parts=Parts(2, 1))
    grid = moments.fit(Ridge())
    choices = grid.choices()
    assert np.isfinite(choices[["low", "high"]].to_numpy(float)).all()
    assert (choices["flag"] == "few groups of documents: 2; expected at least 4").all()
    found = similarities(moments, measures=("cka", "svcca"))
    # Debiased CKA needs two folds, and leaving one out leaves one.
    assert found["value"].notna().all()
    by_measure = found.set_index("measure")
    assert by_measure.loc["cka", ["low", "high"]].isna().all()
    assert "two folds without one leave no pair of folds" in str(by_measure.loc["cka", "note"])
    assert "no pair of folds" not in str(by_measure.loc["svcca", "note"])


def test_one_group_of_the_test_fold_gives_no_interval_and_says_so(
    rows: Any, moments_of: Any
) -> None:
    moments = moments_of(rows, parts=Parts(5, 1))
    stitch = moments.fit(Ridge())["source", "target"]
    table = score_intervals(stitch.up, moments, ("source", "target"))
    expected = score_map(
        stitch.up.weight, stitch.up.bias, moments.scatter(("source", "target"), (5,))
    )
    assert table["value"].tolist() == [expected.r2, expected.r2_uniform, expected.cosine]
    assert table[["low", "high", "standard_error"]].isna().all(axis=None)
    assert (table["flag"] == "no interval: fewer than two groups of documents").all()
    assert (table["n_groups"] == 1).all()
    fidelity = stitch.fidelity(torch.ones(len(stitch.up.weight)), "read")
    assert np.isfinite(fidelity.value)
    assert np.isnan([fidelity.low, fidelity.high]).all()
    assert fidelity.flag == "no interval: fewer than two groups of documents"
    assert "no interval" in fidelity._repr_html_()
    # Two groups are enough for an interval.
    two = moments_of(rows, parts=Parts(5, 2)).fit(Ridge())["source", "target"]
    of_two = two.fidelity(torch.ones(len(two.up.weight)), "read")
    assert of_two.value == pytest.approx(fidelity.value, rel=1e-9)
    assert of_two.low < of_two.value < of_two.high


def test_a_stitch_folder_keeps_the_numbers(few: CrossMoments, tmp_path: Path) -> None:
    stitch = few.fit(Ridge())[PAIR]
    stitch.save_pretrained(tmp_path)
    loaded = lrt.Stitch.from_pretrained(tmp_path)
    assert loaded.provenance.parts == FEW
    assert (len(loaded.refits), len(loaded.held_out)) == (3, 2)
    direction = torch.ones(16)
    # Ten documents per test group are enough for no flag of few documents, and 2 groups are few.
    assert loaded.fidelity(direction).flag == stitch.fidelity(direction).flag


# ------------------------------------------------------------------------------ settings and plans


@pytest.mark.parametrize("null", ["none", "sketch", "full"])
@pytest.mark.parametrize("parts", [FEW, Parts(2, 1), Parts(5, 2), Parts(10, 16)])
def test_bytes_of_a_plan_are_those_of_the_moments(
    pair: ModelPair, corpus: list[str], parts: Parts, null: str
) -> None:
    numbers = {"n_folds": parts.n_folds, "n_test_groups": parts.n_test_groups}
    settings = HarvestSettings(**(OPTIONS | {"null": null} | numbers))
    moments = harvest(pair, corpus, settings=settings, progress=False)
    source, target = (
        ModelShape("tiny", model.d_model, model.n_layers, 1000, 300)
        for model in (pair.source, pair.target)
    )
    plan = plan_harvest(source, target, settings=settings)
    assert plan.parts == moments.parts == parts
    assert plan.moments == moments.n_bytes == sizes_of(pair, settings).of_all
    n_bytes = moment_bytes(moments.pairs, moments.token_hook, null, 16, 24, parts.n_parts)
    assert sum(n_bytes.values()) == moments.n_bytes
    how = plan.table().set_index("item").loc["moments: pairs", "how"]
    assert f"× {parts.n_parts} parts × 16 × 24 × 8 bytes" in how


def test_products_of_a_plan_do_not_depend_on_the_numbers() -> None:
    shape = ModelShape("small", d_model=512, n_layers=6, n_parameters=10**7, layer_parameters=10**6)
    few, usual = (plan_harvest(shape, shape, null=False, **one) for one in (NUMBERS, {}))
    assert few.flops_per_token[1] == pytest.approx(usual.flops_per_token[1], rel=0.01)
    assert few.moments == pytest.approx(5 / 13 * usual.moments, rel=0.01)


def test_a_survey_has_the_default_folds_before_any_harvest(
    pair: ModelPair, corpus: list[str]
) -> None:
    settings = HarvestSettings(**NUMBERS)
    assert survey_settings(settings).parts == DEFAULT_PARTS
    with pytest.raises(ValueError, match=r"n_folds is 3 .*; a survey always has 5 folds"):
        SurveySettings(**NUMBERS)
    options = {"context_length": 24, "n_tokens": None, **NUMBERS}
    budget = sizes_of(pair, HarvestSettings(**options)).of_all - 1
    grid = fit_stitches(pair, corpus, memory_budget=budget, progress=False, **options)
    assert grid.moments.parts == FEW
    assert sorted(set(grid.scores["exact"])) == [False, True]


def test_a_budget_holds_more_pairs_with_fewer_parts(pair: ModelPair) -> None:
    source, target = (
        ModelShape("tiny", 256, 6, 10**6, 10**5),
        ModelShape("large", 512, 6, 10**7, 10**6),
    )
    from lrt_lens.moments._plan import Throughput

    speed = Throughput(model=1e12, products=1e12)
    budget = plan_harvest(source, target, **NUMBERS).moments
    few, usual = (
        answer(plan_harvest(source, target, **numbers), HarvestSettings(**numbers), budget, speed)
        for numbers in (NUMBERS, {})
    )
    assert few.startswith("exact moments of all 36 pairs")
    assert usual.startswith("survey of 36 pairs")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"n_folds": 1}, "n_folds is 1; expected a whole number from 2 to 20"),
        ({"n_test_groups": 65}, "n_test_groups is 65; expected a whole number from 1 to 64"),
    ],
)
def test_settings_out_of_range_are_refused_before_a_document_is_read(
    pair: ModelPair, numbers: dict[str, Any], message: str
) -> None:
    for call in (
        lambda: HarvestSettings(**numbers),
        lambda: harvest(pair, iter(()), **numbers),
        lambda: fit_stitches(pair, iter(()), **numbers),
        lambda: replace(HarvestSettings(), **numbers),
    ):
        with pytest.raises(ValueError, match=message):
            call()
