"""Agreement of native and transferred steering between a model and itself, where it is known."""

import logging
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, t

from lrt_lens.adapters.vectors import PropensityEvaluation, SteeringVector, evaluate_propensity
from lrt_lens.data import ChoiceItems, answer_contrast
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.stitching import Stitch
from tests.adapters.vectors.reference import OneRowPerContinuation

PLACES = (
    "house",
    "garden",
    "tree",
    "river",
    "stone",
    "bird",
    "king",
    "queen",
    "dog",
    "cat",
    "boy",
    "girl",
)
SCALES = [-1.0, 0.5, 1.0]


def task(name: str, verb: str = "saw", uneven: bool = False) -> ChoiceItems:
    negative = " found a stone" if uneven else " bad"
    return ChoiceItems(
        [f"the little boy {verb} the {p} and it was" for p in PLACES],
        [" good"] * 12,
        [negative] * 12,
        name=name,
    )


@pytest.fixture(scope="module")
def result(twins: ModelPair, stitch: Stitch) -> PropensityEvaluation:
    return evaluate_propensity(
        twins,
        stitch,
        [task("first"), task("second", "found")],
        scales=SCALES,
        n_permuted=1,
        progress=False,
    )


def arm(result: PropensityEvaluation, name: str, which: str = "first") -> Any:
    return result.summary.set_index(["task", "arm"]).loc[(which, name)]


def test_between_a_model_and_itself_transferred_steering_is_native_steering(
    result: PropensityEvaluation,
) -> None:
    for which in ("first", "second"):
        row = arm(result, "transferred", which)
        assert row["r"] > 0.9999
        assert row["r_change"] > 0.999
        assert row["mse_share"] < 1e-3
        assert row["cosine"] > 0.9999
        assert row["slope"] == pytest.approx(arm(result, "native", which)["slope"], rel=0.02)


def test_controls_are_worse_and_no_steering_has_no_changes_to_correlate(
    result: PropensityEvaluation,
) -> None:
    none = arm(result, "none")
    assert none["r"] < arm(result, "transferred")["r"]
    assert math.isnan(none["r_change"])
    assert none["mse_share"] == pytest.approx(1.0)
    for control in ("random", "shuffled", "permuted"):
        assert arm(result, control)["mse_share"] > 0.05
        assert arm(result, control)["r_change"] < 0.99


def test_every_number_of_the_table_follows_from_the_naive_propensities(
    twins: ModelPair, stitch: Stitch, result: PropensityEvaluation
) -> None:
    train, test = task("first").split(0.5, seed=0)
    vectors = {
        "native": SteeringVector.mean_difference(
            twins.target, answer_contrast(train), at=stitch.target_hook
        ),
        "transferred": stitch.transfer(
            SteeringVector.mean_difference(
                twins.source, answer_contrast(train), at=stitch.source_hook
            )
        ),
    }
    vectors["transferred"] = vectors["transferred"] * (
        vectors["native"].norm / vectors["transferred"].norm
    )
    text = OneRowPerContinuation(twins.target, test, stitch.target_hook)
    before = text.propensity()
    table = result.table[
        (result.table["task"] == "first") & (result.table["arm"] == "transferred")
    ].set_index("scale")
    for scale in SCALES:
        native, transferred = (
            text.propensity(vectors[name].hook_at(scale)) for name in ("native", "transferred")
        )
        row = table.loc[scale]
        assert row["r"] == pytest.approx(pearsonr(native, transferred).statistic, abs=1e-5)
        assert row["r_change"] == pytest.approx(
            pearsonr(native - before, transferred - before).statistic, abs=1e-3
        )
        assert row["mse"] == pytest.approx(np.mean((native - transferred) ** 2), abs=1e-6)
        assert row["change"] == pytest.approx(np.mean(transferred - before), abs=1e-5)
    none = result.table[
        (result.table["task"] == "first") & (result.table["arm"] == "none")
    ].set_index("scale")
    native = text.propensity(vectors["native"].hook_at(1.0))
    assert none.loc[1.0, "r"] == pytest.approx(pearsonr(native, before).statistic, abs=1e-5)


def test_the_summary_is_the_mean_over_scales(result: PropensityEvaluation) -> None:
    rows = result.table[
        (result.table["task"] == "second") & (result.table["arm"] == "untransformed")
    ]
    row = arm(result, "untransformed", "second")
    assert (row["r"], row["r_sd"]) == pytest.approx((rows["r"].mean(), rows["r"].std()))
    assert (row["n_train"], row["n_test"]) == (6, 6)
    overall = result.overall.set_index("arm").loc["untransformed"]
    assert overall["r"] == pytest.approx(
        np.mean([arm(result, "untransformed", w)["r"] for w in ("first", "second")])
    )


def test_measured_items_are_not_those_the_vector_was_learnt_from(
    result: PropensityEvaluation,
) -> None:
    assert set(result.propensities.groupby("task")["item"].nunique()) == {6}
    train, test = task("first").split(0.5, seed=0)
    assert not set(train.prompts) & set(test.prompts)


def test_the_same_seed_gives_the_same_numbers_and_bias_adds_its_control(
    twins: ModelPair, stitch: Stitch, result: PropensityEvaluation
) -> None:
    again = evaluate_propensity(
        twins, stitch, task("first"), scales=SCALES, n_permuted=1, progress=False
    )
    assert again.summary.equals(
        result.summary[result.summary["task"] == "first"].reset_index(drop=True)
    )
    biased = evaluate_propensity(
        twins, stitch, task("first"), scales=[1.0], bias="add", n_random=1, progress=False
    )
    assert "bias_only" in set(biased.summary["arm"])


def test_intervals_contain_the_training_items_and_the_map(twins: ModelPair, stitch: Stitch) -> None:
    """Compare with vectors that are learnt here without one group of training items."""
    many = ChoiceItems(
        [f"the {who} boy saw the {p} and it was" for who in ("little", "old") for p in PLACES],
        [" good"] * 24,
        [" bad"] * 24,
        name="many",
    )
    options: dict[str, Any] = {"scales": [1.0], "n_random": 2, "n_shuffled": 2, "progress": False}
    rows = evaluate_propensity(twins, stitch, many, n_train_groups=4, **options)
    summary = rows.summary.set_index("arm")
    assert summary["contains"].to_dict() == {
        "none": "items, contrast pairs",
        "native": "items",
        "transferred": "items, contrast pairs, map",
        "shuffled": "draws",
        "untransformed": "items",
        "random": "draws",
    }
    assert not {"map_refit", "contrast_refit", "native_refit"} & set(rows.table["arm"])
    train, test = many.split(0.5, seed=0)
    vector = SteeringVector.mean_difference(
        twins.source, answer_contrast(train), at=stitch.source_hook
    )
    states = vector.states(twins.target, answer_contrast(train), at=stitch.target_hook)
    native = SteeringVector.learnt_from(states, "mean_difference")
    text = OneRowPerContinuation(twins.target, test, stitch.target_hook)
    z = []
    for part in states.leaving_out(4):
        refit = SteeringVector.learnt_from(part, "mean_difference")
        refit = refit * (native.norm / refit.norm)
        r = pearsonr(text.propensity(), text.propensity(refit.hook_at(1.0))).statistic
        z.append(np.arctanh(r))
    error = math.sqrt(3 / 4 * np.sum((np.array(z) - np.mean(z)) ** 2))
    alone = evaluate_propensity(twins, stitch, many, n_train_groups=0, **options)
    short, row = alone.summary.set_index("arm").loc["none"], summary.loc["none"]
    reach = math.hypot(
        np.arctanh(short["r_high"]) - np.arctanh(short["r"]), t.ppf(0.975, 3) * error
    )
    assert np.arctanh(row["r_high"]) - np.arctanh(row["r"]) == pytest.approx(reach, rel=1e-3)


def test_drawn_arms_have_the_rank_of_the_transferred_change(result: PropensityEvaluation) -> None:
    row = arm(result, "random")
    part = result.table[(result.table["task"] == "first") & (result.table["arm"] == "random")]
    draws = part.groupby("draw")["r_change"].mean().to_numpy()
    assert row["n_draws"] == len(draws) == 20
    assert row["typical_size"] == pytest.approx(np.sqrt((draws**2).mean()))
    larger = (np.abs(draws) >= abs(arm(result, "transferred")["r_change"])).sum()
    assert row["transferred_p"] == pytest.approx((1 + larger) / 21)
    assert row["p_floor"] == pytest.approx(1 / 21)
    assert "1 draw" in arm(result, "permuted")["interval_flag"]
    assert result.overall.set_index("arm").loc["none", "interval_flag"].startswith("2 indep")


def test_no_interval_of_a_correlation_or_a_squared_error_leaves_its_range(
    result: PropensityEvaluation,
) -> None:
    """Use two tasks, for which t is 12.7."""
    for table in (result.overall, result.summary):
        for name in ("r", "r_change", "cosine"):
            for end in ("low", "high"):
                column = f"{name}_{end}"
                assert column not in table or table[column].dropna().abs().max() <= 1
    assert result.overall[["mse_low", "mse_share_low"]].min().min() >= 0


def test_figures_show_every_arm_but_the_native_one(result: PropensityEvaluation) -> None:
    names = {trace.legendgroup for trace in result.figure().data}
    assert names == {"none", "transferred", "shuffled", "untransformed", "random", "permuted"}
    assert "first" in result._repr_html_()


def test_items_with_different_token_counts_are_counted_in_a_warning(
    twins: ModelPair, stitch: Stitch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = evaluate_propensity(
            twins, stitch, task("uneven", uneven=True), scales=[1.0], n_random=1, progress=False
        )
    assert "uneven: 6 of 6 items have continuations of different token counts" in caplog.text
    assert set(result.summary["n_uneven"]) == {6}


def test_bad_arguments_are_refused(twins: ModelPair, pair: ModelPair, stitch: Stitch) -> None:
    with pytest.raises(ValueError, match="no items given"):
        evaluate_propensity(twins, stitch, [], progress=False)
    with pytest.raises(ValueError, match=r"share a name: \['a'\]"):
        evaluate_propensity(twins, stitch, [task("a"), task("a")], progress=False)
    with pytest.raises(ValueError, match="other than 0"):
        evaluate_propensity(twins, stitch, task("a"), scales=[0.0, 1.0], progress=False)
    with pytest.raises(ValueError, match="train_share is 1.0"):
        evaluate_propensity(twins, stitch, task("a"), train_share=1.0, progress=False)
    few = ChoiceItems(["the cat"] * 6, [" in"] * 6, [" on"] * 6)
    with pytest.raises(ValueError, match="has 6 item"):
        evaluate_propensity(twins, stitch, few, progress=False)
    with pytest.raises(MismatchError, match="the source model is"):
        evaluate_propensity(pair, stitch, task("a"), progress=False)
