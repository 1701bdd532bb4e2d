"""Steering evaluation on a pair for which the result is known: a model and itself."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.adapters.vectors import SteeringEvaluation, SteeringVector, evaluate_steering
from lrt_lens.adapters.vectors._arms import drawn_arms
from lrt_lens.adapters.vectors._equal_damage import Curve
from lrt_lens.data import ChoiceItems, ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.stitching import Stitch, fit_stitches, score_rows
from tests.adapters.vectors.reference import OneRowPerContinuation
from tests.figures.counts import counts_of

PLACES = ("house", "garden", "tree", "river", "stone", "bird")
CONTRAST = ContrastSet(
    [f"the happy cat sang in the {p} and it was good" for p in PLACES],
    [f"the sad dog slept on the {p} and it was bad" for p in PLACES],
    name="mood",
)
ITEMS = ChoiceItems(
    [f"the little boy saw the {p} and he" for p in PLACES] * 2,
    [" sang", " ran"] * 6,
    [" slept", " found a stone"] * 6,
    name="mood",
)


@pytest.fixture(scope="module")
def twins(load: Any) -> ModelPair:
    """Return a pair of one small random model and itself.

    The true map is the identity, so the transferred vector is the native one.
    """
    return ModelPair(load("llama", d=16, layers=3, seed=7), load("llama", d=16, layers=3, seed=7))


@pytest.fixture(scope="module")
def stitch(twins: ModelPair, corpus: list[str]) -> Stitch:
    return fit_stitches(
        twins, corpus, n_tokens=None, context_length=32, moment_dtype="float64", progress=False
    )[1, 1]


@pytest.fixture(scope="module")
def result(twins: ModelPair, stitch: Stitch, corpus: list[str]) -> SteeringEvaluation:
    vector = SteeringVector.mean_difference(twins.source, CONTRAST, at=1)
    return evaluate_steering(
        twins,
        stitch,
        vector,
        ITEMS,
        neutral=corpus[:8],
        damage=0.05,
        n_random=6,
        n_permuted=2,
        n_shuffled=2,
        n_contrast_groups=0,
        progress=False,
    )


def arm(result: SteeringEvaluation, name: str) -> Any:
    return result.summary.set_index("arm").loc[name]


def test_between_a_model_and_itself_the_transferred_vector_is_the_native_one(
    result: SteeringEvaluation,
) -> None:
    assert result.vectors["transferred"].cosine(result.vectors["native"]) > 0.9999
    assert arm(result, "transferred")["effect_at_equal_damage"] == pytest.approx(
        arm(result, "native")["effect_at_equal_damage"], abs=0.02
    )


def test_every_control_is_there(result: SteeringEvaluation) -> None:
    arms = set(result.summary["arm"])
    assert arms == {
        "none",
        "transferred",
        "native",
        "native_best",
        "random",
        "shuffled",
        "permuted",
        "untransformed",
    }
    assert arm(result, "random")["n_draws"] == 6
    assert arm(result, "permuted")["n_draws"] == 2


def test_every_arm_is_measured_at_the_same_damage(result: SteeringEvaluation) -> None:
    bracketed = set(result.summary.loc[result.summary["flag"] == "", "arm"]) - {"none"}
    assert {"transferred", "native"} <= bracketed
    for _, curve in result.table[result.table["arm"].isin(bracketed)].groupby(
        ["arm", "draw"], dropna=False
    ):
        assert curve["damage"].min() <= 0.05 <= curve["damage"].max()


def test_random_draws_are_half_isotropic_and_all_as_long_as_the_vector(
    stitch: Stitch, result: SteeringEvaluation
) -> None:
    draws = list(drawn_arms(stitch, result.vectors["transferred"], 200, seed=0))
    directions = torch.stack([draw.vector.direction for draw in draws]).double()
    torch.testing.assert_close(
        directions.norm(dim=1),
        torch.full((200,), result.vectors["transferred"].norm, dtype=torch.float64),
    )
    leading = torch.linalg.eigh(stitch.target_statistics.covariance.double()).eigenvectors[:, -1]
    share = (directions @ leading) ** 2 / directions.norm(dim=1) ** 2
    assert share[:100].mean() == pytest.approx(1 / 16, rel=0.5)
    assert share[100:].mean() > 2 * share[:100].mean()


def test_tables_have_the_columns_that_results_promise(result: SteeringEvaluation) -> None:
    assert {
        "concept",
        "arm",
        "scale",
        "propensity",
        "propensity_low",
        "propensity_high",
        "damage",
    } <= set(result.table.columns)
    assert {"concept", "arm", "effect_at_equal_damage", "low", "high", "fraction_of_native"} <= set(
        result.summary.columns
    )
    assert result.concept == "mood"
    # A quarter of the items selects the hook point of native_best and is not measured.
    assert (result.n_items, result.n_texts) == (9, 8)
    assert set(result.summary["n_items"]) == {9}
    for kind in ("summary", "curves", "damage"):
        assert len(result.figure(kind).data)
        assert counts_of(result.figure(kind)) == "n = 9 items, 8 neutral texts"


def test_the_same_seed_gives_the_same_numbers(
    twins: ModelPair, stitch: Stitch, corpus: list[str], result: SteeringEvaluation
) -> None:
    vector = SteeringVector.mean_difference(twins.source, CONTRAST, at=1)
    again = evaluate_steering(
        twins,
        stitch,
        vector,
        ITEMS,
        neutral=corpus[:8],
        damage=0.05,
        n_random=6,
        n_permuted=2,
        n_shuffled=2,
        n_contrast_groups=0,
        progress=False,
    )
    assert again.summary.equals(result.summary)


def test_propensity_is_the_difference_of_summed_log_probabilities(twins: ModelPair) -> None:
    measured = OneRowPerContinuation(twins.target, ITEMS, 1).propensity()
    tokenizer = twins.target.tokenizer

    def score(prompt: str, continuation: str) -> float:
        [start], [end] = (
            twins.target.encode([prompt]),
            tokenizer([continuation], add_special_tokens=False)["input_ids"],
        )
        logits = twins.target.logits(torch.tensor([[*start, *end]]))[0].log_softmax(-1)
        return sum(float(logits[len(start) - 1 + i, token]) for i, token in enumerate(end))

    rows = zip(ITEMS.prompts, ITEMS.positive, ITEMS.negative, strict=True)
    np.testing.assert_allclose(measured, [score(p, a) - score(p, b) for p, a, b in rows], atol=1e-4)


def test_bias_only_is_measured_where_the_bias_is_added(
    twins: ModelPair, stitch: Stitch, corpus: list[str]
) -> None:
    vector = SteeringVector.mean_difference(twins.source, CONTRAST, at=1)
    result = evaluate_steering(
        twins,
        stitch,
        vector,
        ITEMS,
        neutral=corpus[:4],
        damage=0.05,
        bias="add",
        n_random=2,
        n_permuted=1,
        n_shuffled=2,
        n_contrast_groups=0,
        progress=False,
    )
    assert "bias_only" in set(result.summary["arm"])


def test_scales_that_miss_the_budget_are_flagged_and_undefined(
    twins: ModelPair, stitch: Stitch, corpus: list[str]
) -> None:
    vector = SteeringVector.mean_difference(twins.source, CONTRAST, at=1)
    result = evaluate_steering(
        twins,
        stitch,
        vector,
        ITEMS,
        neutral=corpus[:4],
        scales=[1e-4, 2e-4],
        damage=0.05,
        n_random=2,
        n_permuted=1,
        n_shuffled=2,
        n_contrast_groups=0,
        progress=False,
    )
    row = arm(result, "transferred")
    assert math.isnan(row["effect_at_equal_damage"])
    assert row["flag"] == "damage not bracketed"


def test_effects_are_interpolated_at_the_budget_and_never_extrapolated() -> None:
    curve = Curve(
        scales=np.array([0.0, 1.0, 2.0]),
        rises=np.array([[0.0, 0.0], [1.5, 0.5], [2.0, 4.0]]),
        n_tokens=np.array([5, 15]),
        propensity=np.array([[1.0, 5.0], [2.0, 5.0], [4.0, 6.0]]),
    )
    np.testing.assert_allclose(curve.damage, [0, 0.1, 0.3])
    share = (0.2**0.5 - 0.1**0.5) / (0.3**0.5 - 0.1**0.5)
    np.testing.assert_allclose(curve.effect_at(0.2), [1 + 2 * share, share])
    assert curve.scale_at(0.2) == pytest.approx(1 + share)
    assert np.isnan(curve.effect_at(0.4)).all()


def test_a_stitch_of_other_models_is_refused(
    pair: ModelPair, stitch: Stitch, corpus: list[str]
) -> None:
    vector = SteeringVector.mean_difference(pair.source, CONTRAST, at=1)
    with pytest.raises(MismatchError, match="the source model is"):
        evaluate_steering(pair, stitch, vector, ITEMS, neutral=corpus[:4], progress=False)


def test_the_score_on_contrast_texts_is_that_of_the_rows(
    twins: ModelPair, stitch: Stitch, result: SteeringEvaluation
) -> None:
    assert result.contrast_score is not None
    assert result.contrast_score == score_rows(stitch, twins, CONTRAST.texts)
    assert result.contrast_score.r2 > 0.999
    assert result.contrast_score.cosine_per_token > 0.999


def test_no_hook_is_left_on_after_an_interrupted_evaluation(
    twins: ModelPair, stitch: Stitch, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = SteeringVector.mean_difference(twins.source, CONTRAST, at=1)
    calls = iter(range(10))

    def interrupted(self: Any, *arguments: Any) -> Any:
        if next(calls) == 6:
            raise KeyboardInterrupt
        return original(self, *arguments)

    engine = type(twins.target.engine)
    original = engine.logits_at
    monkeypatch.setattr(engine, "logits_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_steering(twins, stitch, vector, ITEMS, neutral=corpus[:4], progress=False)
    assert not any(point.fwd_hooks for point in twins.target.bridge.hook_dict.values())
    assert all("forward" not in layer.__dict__ for layer in twins.target.engine._layers)  # type: ignore[attr-defined]


def test_senseless_arguments_are_refused_before_any_work(
    twins: ModelPair, stitch: Stitch, corpus: list[str]
) -> None:
    vector = SteeringVector.mean_difference(twins.source, CONTRAST, at=1)
    for options, message in (
        ({"scales": [float("nan"), 1.0]}, "expected positive finite numbers"),
        ({"scales": []}, "expected positive finite numbers"),
        ({"damage": float("nan")}, "expected a positive number of nats"),
        ({"contrast": CONTRAST.permuted(1)}, "was learnt from other texts"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_steering(
                twins, stitch, vector, ITEMS, **{"neutral": corpus[:4], "progress": False} | options
            )  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["n_permuted", "n_contrast_groups"])
def test_options_of_arms_that_need_contrast_texts_are_refused_without_them(
    twins: ModelPair, stitch: Stitch, corpus: list[str], option: str
) -> None:
    learnt = SteeringVector.mean_difference(twins.source, CONTRAST, at=1)
    vector = replace(learnt, contrast_set=None)
    options: dict[str, Any] = {"neutral": corpus[:4], "progress": False, option: 3}
    with pytest.raises(ValueError, match=f"{option} is 3, and the texts .* give contrast="):
        evaluate_steering(twins, stitch, vector, ITEMS, **options)


def test_a_negated_vector_is_compared_with_the_native_vector_of_the_opposite(
    twins: ModelPair,
) -> None:
    vector = SteeringVector.mean_difference(twins.source, CONTRAST, at=1)
    opposite = -vector
    assert opposite.contrast_set is not None
    assert opposite.relearnt(twins.source, opposite.contrast_set, at=1).cosine(
        opposite
    ) == pytest.approx(1)
    assert (vector + vector).contrast_set is None
