"""The comparison of baselines: known answers, numbers computed by hand, controls, refusals."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import r2_score, roc_auc_score

from lrt_lens.adapters.probes import LinearProbe
from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.baselines import (
    AnchorProcrustes,
    AnchorRidge,
    Anchors,
    FamilyBaselines,
    anchor_stitch,
    evaluate_family_baselines,
    fitting_texts,
)
from lrt_lens.baselines._evaluation import _share_above_chance
from lrt_lens.data import ChoiceItems, ContrastSet
from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.stitching import Stitch, StitchGrid, fit_stitches
from tests.adapters.vectors.reference import OneRowPerContinuation

PLACES = ("house", "garden", "tree", "river", "stone", "bird", "dog", "king", "queen", "boy")
MOOD = ContrastSet(
    [f"the happy cat sang in the {place}" for place in PLACES],
    [f"the sad cat slept on the {place}" for place in PLACES],
    name="mood",
)
ITEMS = ChoiceItems(
    [f"the little boy saw the {place} and he" for place in PLACES], [" sang"] * 10, [" slept"] * 10
)
TEXTS, LABELS = MOOD.texts, ["happy"] * 10 + ["sad"] * 10
TEST_TEXTS = [
    f"{who} saw the {mood} {animal} in the garden"
    for mood in ("happy", "sad")
    for who in ("he", "she")
    for animal in PLACES
]
TEST_LABELS = ["happy"] * 20 + ["sad"] * 20


def test_a_resample_of_one_class_has_no_share_of_native() -> None:
    score, truth = np.array([0.9, 0.8, 0.2, 0.1]), np.array([1.0, 1.0, 0.0, 0.0])
    columns = np.stack([score, score, truth])
    assert _share_above_chance(columns) == 1.0
    assert np.isnan(_share_above_chance(columns[:, :2]))
    assert _share_above_chance(np.stack([score, 1 - score, truth])) == 0.0


@pytest.fixture(scope="module")
def pair(load: Any) -> ModelPair:
    """A target whose loss on random words rises under steering, which few random models show."""
    return ModelPair(load("llama", d=16, layers=2, seed=1), load("llama", d=16, layers=3, seed=7))


@pytest.fixture(scope="module")
def grid(pair: ModelPair, passages: list[str]) -> StitchGrid:
    return fit_stitches(
        pair, passages, source_layers=[1], target_layers=[2], null="full", progress=False
    )


@pytest.fixture(scope="module")
def stitches(pair: ModelPair, grid: StitchGrid, passages: list[str]) -> dict[str, Stitch]:
    anchors = Anchors.read(
        pair, fitting_texts(passages, grid.moments)[:80], source_hook=1, target_hook=2
    )
    return {
        "ridge": grid[1, 2],
        "procrustes": anchors.stitch(AnchorProcrustes()),
        "anchor_ridge": anchors.stitch(AnchorRidge()),
    }


def evaluate(
    pair: ModelPair,
    stitches: dict[str, Stitch],
    grid: StitchGrid,
    passages: list[str],
    **changed: Any,
) -> FamilyBaselines:
    options: dict[str, Any] = {
        "moments": grid.moments,
        "contrast": MOOD,
        "items": ITEMS,
        "neutral": passages[:8],
        "texts": TEXTS,
        "labels": LABELS,
        "test_texts": TEST_TEXTS,
        "test_labels": TEST_LABELS,
        "damage": 0.05,
        "n_random": 3,
        "n_shuffled": 4,
        "progress": False,
    }
    return evaluate_family_baselines(pair, stitches, **(options | changed))


@pytest.fixture(scope="module")
def found(
    pair: ModelPair, stitches: dict[str, Stitch], grid: StitchGrid, passages: list[str]
) -> FamilyBaselines:
    return evaluate(pair, stitches, grid, passages)


@pytest.fixture(scope="module")
def rows(found: FamilyBaselines) -> pd.DataFrame:
    return found.summary.set_index("method")


def test_every_method_and_control_has_a_row_best_first(rows: pd.DataFrame) -> None:
    assert set(rows.index[:3]) == {"ridge", "procrustes", "anchor_ridge"}
    assert list(rows.index[3:]) == ["native", "token_identity", "random"]
    assert rows["r2_uniform"].iloc[:3].is_monotonic_decreasing


def test_methods_have_their_rank_among_random_draws(rows: pd.DataFrame) -> None:
    assert rows.loc["random", "auroc_low"] < rows.loc["random", "auroc_high"]
    assert "3 draws" in rows.loc["random", "interval_flag"]
    for method in ("ridge", "native"):
        # Draws that do not reach the damage are left out.
        assert rows.loc[method, "effect_p_floor"] in (1 / 4, 1 / 3, 1 / 2)
        assert rows.loc[method, "effect_p"] >= rows.loc[method, "effect_p_floor"]
        assert rows.loc[method, "auroc_p_floor"] == 0.25
        assert rows.loc[method, "auroc_p"] in (0.25, 0.5, 0.75, 1.0)


def test_prediction_is_that_of_held_out_rows(
    pair: ModelPair,
    stitches: dict[str, Stitch],
    grid: StitchGrid,
    passages: list[str],
    rows: pd.DataFrame,
) -> None:
    """Compare with scikit-learn on the test fold, read in windows of the models' 64 tokens."""
    fits = set(fitting_texts(passages, grid.moments))
    held_out = [text for text in passages if text not in fits]
    assert 5 < len(held_out) < 60
    sides = []
    for model, hook in ((pair.source, 1), (pair.target, 2)):
        read = []
        for body in model.encode_bodies(held_out):
            windows = [
                [model.tokenizer.bos_token_id, *body[start : start + 63]]
                for start in range(0, len(body), 63)
            ]
            read += [
                model.capture(torch.tensor([ids]), hook)[0, 4:] for ids in windows if len(ids) >= 8
            ]
        sides.append(torch.cat(read).double())
    for name, stitch in stitches.items():
        predicted = stitch.up.points(sides[0]).numpy()
        assert rows.loc[name, "r2"] == pytest.approx(
            r2_score(sides[1].numpy(), predicted, multioutput="variance_weighted"), abs=1e-3
        )
        assert rows.loc[name, "r2_uniform"] == pytest.approx(
            r2_score(sides[1].numpy(), predicted), abs=1e-3
        )
        assert rows.loc[name, "r2_low"] <= rows.loc[name, "r2"] <= rows.loc[name, "r2_high"]
    assert rows.loc["ridge", "r2"] == pytest.approx(grid.scores["r2"].iloc[0])
    assert rows.loc["ridge", "r2_down"] == pytest.approx(grid.scores["r2_down"].iloc[0])
    assert rows.loc["ridge", "r2_null"] == pytest.approx(grid.scores["r2_null"].iloc[0], abs=0.02)
    assert rows.loc["token_identity", "r2"] == pytest.approx(
        grid.scores["r2_token"].iloc[0], abs=1e-6
    )


def test_effects_lie_between_those_of_passes_steered_by_hand(
    pair: ModelPair,
    stitches: dict[str, Stitch],
    found: FamilyBaselines,
    rows: pd.DataFrame,
    passages: list[str],
) -> None:
    from lrt_lens.adapters.vectors import calibrate_scale

    items = OneRowPerContinuation(pair.target, ITEMS, 2)
    vector = SteeringVector.mean_difference(pair.source, MOOD, at=1)
    arms = {name: stitch.transfer(vector) for name, stitch in stitches.items()}
    arms["native"] = SteeringVector.mean_difference(pair.target, MOOD, at=2)
    for name, moved in arms.items():
        scale = calibrate_scale(pair.target, moved, passages[:8], damage=found.budget).scale
        effect = (items.propensity(moved.hook_at(scale)) - items.propensity()).mean()
        assert rows.loc[name, "effect"] == pytest.approx(effect, abs=0.03 * abs(effect) + 0.01)
        assert rows.loc[name, "fraction_of_native"] == pytest.approx(
            rows.loc[name, "effect"] / rows.loc["native", "effect"], nan_ok=True
        )
    assert rows.loc["native", "fraction_of_native"] == pytest.approx(1)


def test_contrast_pairs_widen_effects_by_the_jackknife_of_naive_refits(
    pair: ModelPair, stitches: dict[str, Stitch], rows: pd.DataFrame, passages: list[str]
) -> None:
    from lrt_lens.adapters.vectors import calibrate_scale

    items = OneRowPerContinuation(pair.target, ITEMS, 2)
    before = items.propensity()
    group = np.random.default_rng(0).permutation(10) % 5
    effects: dict[str, list[float]] = {}
    for k in range(5):
        rest = np.flatnonzero(group != k)
        part = ContrastSet([MOOD.positive[i] for i in rest], [MOOD.negative[i] for i in rest])
        vector = SteeringVector.mean_difference(pair.source, part, at=1)
        arms = {name: stitch.transfer(vector) for name, stitch in stitches.items()}
        arms["native"] = SteeringVector.mean_difference(pair.target, part, at=2)
        for name, moved in arms.items():
            scale = calibrate_scale(pair.target, moved, passages[:8], damage=0.05).scale
            change = items.propensity(moved.hook_at(scale)) - before
            effects.setdefault(name, []).append(float(change.mean()))
    native = np.array(effects["native"])
    for name, values in effects.items():
        for column, refits in (
            ("effect_contrast_error", np.array(values)),
            ("fraction_contrast_error", np.array(values) / native),
        ):
            # √((K − 1)/K · Σ(θ_k − θ̄)²) with K = 5
            error = np.sqrt(4 / 5 * ((refits - refits.mean()) ** 2).sum())
            assert rows.loc[name, column] == pytest.approx(error, rel=0.2, abs=5e-3)
        assert rows.loc[name, "effect_contains"] == "items, neutral texts, contrast pairs"


def test_the_share_of_contrast_pairs_and_shuffled_draws_can_be_left_out(
    pair: ModelPair,
    stitches: dict[str, Stitch],
    grid: StitchGrid,
    passages: list[str],
    rows: pd.DataFrame,
) -> None:
    some = {"ridge": stitches["ridge"]}
    plain = evaluate(pair, some, grid, passages, n_contrast_groups=0, n_shuffled=1)
    row = plain.summary.set_index("method").loc["ridge"]
    assert row["effect_contains"] == "items, neutral texts"
    assert row["effect"] == pytest.approx(rows.loc["ridge", "effect"])
    # t(.975, 4) = 2.7764: five groups of pairs.
    reach = 2.7764 * rows.loc["ridge", "effect_contrast_error"]
    expected = np.hypot(row["effect_high"] - row["effect"], reach)
    assert rows.loc["ridge", "effect_high"] - row["effect"] == pytest.approx(expected, rel=1e-4)
    assert (row["auroc_shuffled_p_floor"], np.isnan(row["auroc_null_low"])) == (0.5, True)
    # Four draws: the p-value cannot be below 1/5.
    for method in ("ridge", "procrustes"):
        assert rows.loc[method, "auroc_shuffled_p_floor"] == pytest.approx(1 / 5)
        assert rows.loc[method, "auroc_shuffled_p"] in (0.2, 0.4, 0.6, 0.8, 1.0)
        low, high = (rows.loc[method, f"auroc_null_{end}"] for end in ("low", "high"))
        assert low < rows.loc[method, "auroc_null"] < high
        assert rows.loc[method, "effect_shuffled_p_floor"] >= 1 / 5


def test_aurocs_are_scikit_learns(
    pair: ModelPair, stitches: dict[str, Stitch], rows: pd.DataFrame
) -> None:
    probe = LinearProbe.fit(pair.source, TEXTS, LABELS, at=1, read="mean")
    native = LinearProbe.fit(pair.target, TEXTS, LABELS, at=2, read="mean")
    truth = [label == "sad" for label in TEST_LABELS]
    best = roc_auc_score(truth, native.predict_proba(pair.target, TEST_TEXTS)[:, 1])
    assert rows.loc["native", "auroc"] == pytest.approx(best)
    for name, stitch in stitches.items():
        value = roc_auc_score(
            truth, stitch.transfer(probe).predict_proba(pair.target, TEST_TEXTS)[:, 1]
        )
        assert rows.loc[name, "auroc"] == pytest.approx(value)
        assert rows.loc[name, "share_of_native"] == pytest.approx((value - 0.5) / (best - 0.5))
        assert (
            rows.loc[name, "share_low"]
            <= rows.loc[name, "share_of_native"]
            <= rows.loc[name, "share_high"]
        )
        assert stitch.null is not None
        null = stitch.transfer(probe, through=stitch.null.down).predict_proba(
            pair.target, TEST_TEXTS
        )[:, 1]
        assert rows.loc[name, "auroc_null"] == pytest.approx(roc_auc_score(truth, null))


def test_between_a_model_and_itself_everything_carries(
    pair: ModelPair, passages: list[str]
) -> None:
    same = ModelPair(pair.target, pair.target)
    grid = fit_stitches(
        same, passages, source_layers=[2], target_layers=[2], null="full", progress=False
    )
    stitch = anchor_stitch(
        same, fitting_texts(passages, grid.moments)[:80], source_hook=2, target_hook=2
    )
    row = (
        evaluate(same, {"procrustes": stitch}, grid, passages, n_contrast_groups=0, n_shuffled=1)
        .summary.set_index("method")
        .loc["procrustes"]
    )
    assert row["r2"] > 0.99
    assert row["fraction_of_native"] == pytest.approx(1, abs=1e-2)
    assert row["share_of_native"] == pytest.approx(1, abs=1e-6)
    assert row["r2_null"] < 0.3


def test_the_figure_and_the_notebook_show_what_was_measured(found: FamilyBaselines) -> None:
    figure = found.figure()
    points = [trace for trace in figure.data if trace.name == "transferred"]
    assert [len(trace.x) for trace in points] == [4, 3, 3]
    value = found.summary.set_index("method").loc["procrustes", "cosine"]
    place = list(points[0].y).index("procrustes")
    assert points[0].x[place] == pytest.approx(value)
    assert "procrustes" in found._repr_html_()


def test_fitting_texts_are_those_that_no_score_reads(grid: StitchGrid, passages: list[str]) -> None:
    texts = fitting_texts([*passages, passages[0]], grid.moments)
    assert len(texts) == len(set(texts)) < len(passages)
    assert 0.7 < len(texts) / len(passages) < 0.95
    assert np.isclose(
        float(grid.moments.n[:5].sum()) / grid.moments.n_tokens,
        len(texts) / len(passages),
        atol=0.08,
    )


def test_what_cannot_be_compared_is_refused(
    pair: ModelPair, stitches: dict[str, Stitch], grid: StitchGrid, passages: list[str]
) -> None:
    other = anchor_stitch(pair, passages[:20], source_hook=0, target_hook=2)
    with pytest.raises(MismatchError, match="stitch 'other' maps 'blocks.0.hook_resid_post'"):
        evaluate(pair, stitches | {"other": other}, grid, passages)
    with pytest.raises(
        HookPointError, match="these moments hold no hook pair 'blocks.0.hook_resid_post'"
    ):
        evaluate(pair, {"other": other}, grid, passages)
    with pytest.raises(ValueError, match="expected at least one, none of them called"):
        evaluate(pair, {}, grid, passages)
    with pytest.raises(ValueError, match=r"stitches is \['native'\]"):
        evaluate(pair, {"native": stitches["ridge"]}, grid, passages)
    with pytest.raises(MismatchError, match="the source model"):
        evaluate(pair.reversed(), stitches, grid, passages)
    with pytest.raises(MismatchError, match="token_map maps 'blocks.1.hook_resid_post'"):
        evaluate(pair, stitches, grid, passages, token_map=stitches["ridge"].up)


def test_one_class_is_refused_everywhere(
    pair: ModelPair, stitches: dict[str, Stitch], grid: StitchGrid, passages: list[str]
) -> None:
    texts = list(MOOD.positive)
    with pytest.raises(ValueError, match="has the same texts on both sides: one class"):
        evaluate(
            pair, stitches, grid, passages, contrast=ContrastSet(texts, texts[::-1], name="one")
        )
    with pytest.raises(ValueError, match="all 20 labels are 'happy'"):
        evaluate(pair, stitches, grid, passages, labels=["happy"] * 20)
    with pytest.raises(ValueError, match="all 40 test labels are 'sad'"):
        evaluate(pair, stitches, grid, passages, test_labels=["sad"] * 40)
    with pytest.raises(ValueError, match="this comparison takes two classes"):
        evaluate(pair, stitches, grid, passages, labels=["happy"] * 10 + ["sad"] * 5 + ["so"] * 5)
    with pytest.raises(ValueError, match=r"2 item\(s\) given"):
        evaluate(pair, stitches, grid, passages, items=ITEMS.split(0.2)[0])


def test_a_budget_that_nothing_reaches_leaves_nan_and_a_figure(
    pair: ModelPair, stitches: dict[str, Stitch], grid: StitchGrid, passages: list[str]
) -> None:
    few: dict[str, Any] = {"damage": 1e9, "n_contrast_groups": 0, "n_shuffled": 1}
    unreached = evaluate(pair, {"ridge": stitches["ridge"]}, grid, passages, **few)
    assert unreached.summary["fraction_of_native"].isna().all()
    unreached.figure()
