"""Clamp steering between a model and itself, with a classifier whose answers are known."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr, t

from lrt_lens.adapters.vectors import (
    ClampEvaluation,
    SteeringVector,
    clipped_ratio,
    evaluate_clamping,
    frequency_trend,
)
from lrt_lens.adapters.vectors._clamping import MOST_UNDEFINED, _Answers, _ratio
from lrt_lens.data import ContrastSet
from lrt_lens.models import ModelPair
from lrt_lens.statistics._shares import clustered_share
from lrt_lens.stitching import Stitch

PLACES = ("house", "garden", "tree", "river", "stone", "bird")
CONTRAST = ContrastSet(
    [f"the happy cat sang in the {p} and it was good" for p in PLACES],
    [f"the sad dog slept on the {p} and it was bad" for p in PLACES],
    name="mood",
)
PROMPTS = [f"the little boy saw the {p} and he" for p in PLACES]


def even(text: str) -> bool:
    return len(text) % 2 == 0


@pytest.fixture(scope="module")
def vector(twins: ModelPair) -> SteeringVector:
    return SteeringVector.mean_difference(twins.source, CONTRAST, at=1)


@pytest.fixture(scope="module")
def result(twins: ModelPair, stitch: Stitch, vector: SteeringVector) -> ClampEvaluation:
    return evaluate_clamping(
        twins,
        stitch,
        vector,
        PROMPTS,
        even,
        n_samples=3,
        max_new_tokens=6,
        n_random=4,
        n_shuffled=3,
        draw_samples=2,
        progress=False,
    )


def test_counts_shares_and_intervals_are_those_of_the_texts(result: ClampEvaluation) -> None:
    assert set(result.summary["arm"]) == {
        "none",
        "native",
        "transferred",
        "shuffled",
        "untransformed",
        "random",
    }
    for row in result.summary.to_dict("records"):
        texts = result.table[result.table["arm"] == row["arm"]]["text"]
        assert row["count"] == sum(len(text) % 2 == 0 for text in texts)
        is_drawn = row["arm"] in ("random", "shuffled")
        # Draws have two samples per prompt, the others three.
        assert row["n"] == 6 * (2 if is_drawn else 3) * row["n_draws"]
        if not is_drawn:
            part = result.table[result.table["arm"] == row["arm"]]
            counts = [sum(map(even, texts)) for _, texts in part.groupby("prompt")["text"]]
            expected = clustered_share(counts, 3)
            assert (row["share"], row["low"], row["high"]) == (
                expected.value,
                expected.low,
                expected.high,
            )
            assert row["contains"] == "prompts"
            assert "6 independent prompts" in row["interval_flag"]


def test_drawn_arms_show_where_a_new_draw_falls_and_the_rank_of_the_transferred_one(
    result: ClampEvaluation,
) -> None:
    shows = result.table.assign(shows=result.table["text"].map(even))
    # Sample k has one seed in all arms, so a draw is compared with the same samples of none.
    base = shows[(shows["arm"] == "none") & (shows["sample"] < 2)]["shows"].mean()
    none, transferred = (
        shows[shows["arm"] == arm]["shows"].mean() for arm in ("none", "transferred")
    )
    for arm, n in (("random", 4), ("shuffled", 3)):
        row = result.summary.set_index("arm").loc[arm]
        shares = shows[shows["arm"] == arm].groupby("draw")["shows"].mean().to_numpy()
        reach = t.ppf(0.975, n - 1) * shares.std(ddof=1) * math.sqrt(1 + 1 / n)
        assert row["low"] == pytest.approx(max(0.0, shares.mean() - reach))
        assert row["high"] == pytest.approx(min(1.0, shares.mean() + reach))
        larger = (abs(shares - base) >= abs(transferred - none)).sum()
        assert row["transferred_p"] == pytest.approx((1 + larger) / (n + 1))
        assert row["p_floor"] == pytest.approx(1 / (n + 1))
        assert row["typical_size"] == pytest.approx(np.sqrt(((shares - base) ** 2).mean()))
        assert f"{n} draws" in row["interval_flag"]


def test_texts_of_an_arm_are_those_of_the_target_clamped_to_its_own_mean(
    twins: ModelPair, stitch: Stitch, vector: SteeringVector, result: ClampEvaluation
) -> None:
    transferred = stitch.transfer(vector)
    unit = (transferred.direction / transferred.direction.norm()).double()
    rows = twins.target.encode(CONTRAST.positive)
    streams = [
        twins.target.capture(torch.tensor([row]), stitch.target_hook)[0].double() for row in rows
    ]
    level = float(np.mean([float((stream[4:] @ unit).mean()) for stream in streams]))
    part = result.table[result.table["arm"] == "transferred"]
    assert part["level"].iloc[0] == pytest.approx(level, abs=1e-5)
    with transferred.apply(twins.target, mode="clamp", level=level):
        expected = twins.target.generate(PROMPTS, max_new_tokens=6, seed=1)
    assert part[part["sample"] == 1].sort_values("prompt")["text"].tolist() == expected


def test_the_clamped_component_is_the_level_and_the_other_components_are_unchanged(
    twins: ModelPair, vector: SteeringVector
) -> None:
    tokens = torch.tensor(twins.target.encode(PROMPTS[:1]))
    before = twins.target.capture(tokens, 1)[0].double()
    with vector.apply(twins.target, mode="clamp", level=3.0):
        after = twins.target.capture(tokens, 1)[0].double()
    unit = (vector.direction / vector.direction.norm()).double()
    np.testing.assert_allclose((after[4:] @ unit).numpy(), 3.0, atol=1e-5)
    torch.testing.assert_close(
        after - torch.outer(after @ unit, unit),
        before - torch.outer(before @ unit, unit),
        atol=1e-5,
        rtol=0,
    )


def test_between_a_model_and_itself_native_and_transferred_write_the_same(
    result: ClampEvaluation,
) -> None:
    texts = {arm: part["text"].tolist() for arm, part in result.table.groupby("arm")}
    same = np.mean([a == b for a, b in zip(texts["native"], texts["transferred"], strict=True)])
    assert same > 0.9
    assert result.summary.set_index("arm").loc["transferred", "cosine"] > 0.9999


def test_the_clipped_ratio_is_the_papers() -> None:
    assert [
        clipped_ratio(*shares)
        for shares in ((0.2, 0.4), (0.5, 0.4), (0.0, 0.4), (0.0, 0.0), (-0.1, 0.4))
    ] == [0.5, 1.0, 0.0, 0.0, 0.0]


def test_the_trend_over_frequency_is_spearmans_and_leaves_resamples_without_one_out() -> None:
    frequency = np.geomspace(0.01, 0.3, 10)
    ratio = np.array([0, 0, 0, 1, 0, 0, 1, 0, 1, 0], dtype=float)
    trend, undefined = frequency_trend(list(frequency), list(ratio))
    assert trend.value == pytest.approx(spearmanr(frequency, ratio).statistic)
    assert (
        0 < undefined < MOST_UNDEFINED
    )  # .7^10 + .3^10 = 2.8% of the resamples hold one ratio alone
    assert undefined == pytest.approx(0.7**10 + 0.3**10, abs=0.01)
    assert -1 <= trend.low < trend.value < trend.high <= 1
    rising, _ = frequency_trend(list(frequency), list(np.log(frequency)))
    assert rising.value == pytest.approx(1)
    assert rising.low == pytest.approx(1)


def test_a_trend_that_most_resamples_do_not_have_gets_no_interval() -> None:
    frequency = [0.01, 0.02, 0.05, 0.1]
    trend, undefined = frequency_trend(frequency, [0.0, 0.0, 0.0, 1.0])
    assert trend.value == pytest.approx(spearmanr(frequency, [0.0, 0.0, 0.0, 1.0]).statistic)
    assert math.isnan(trend.low)
    assert math.isnan(trend.high)
    assert "no correlation in" in trend.flag
    assert undefined == pytest.approx(0.75**4 + 0.25**4, abs=0.04)
    for ratio in ([0.5] * 4, [0.1, 0.2, math.nan, 0.4]):
        trend, undefined = frequency_trend(frequency, ratio)
        assert math.isnan(trend.value)
        assert math.isnan(trend.low)
        assert undefined > MOST_UNDEFINED


def test_a_concept_that_never_shows_has_ratio_zero_and_one_that_always_shows_has_no_rise(
    twins: ModelPair, stitch: Stitch, vector: SteeringVector
) -> None:
    options: dict[str, Any] = {
        "n_samples": 1,
        "max_new_tokens": 3,
        "n_random": 1,
        "n_shuffled": 1,
        "progress": False,
    }
    never = evaluate_clamping(
        twins, stitch, vector, PROMPTS[:2], lambda text: False, **options
    ).summary.set_index("arm")
    assert never.loc["transferred", ["share", "clipped_ratio", "ratio_of_rises"]].tolist() == [
        0.0,
        0.0,
        0.0,
    ]
    always = evaluate_clamping(
        twins, stitch, vector, PROMPTS[:2], lambda text: True, **options
    ).summary.set_index("arm")
    assert always.loc["transferred", "clipped_ratio"] == 1.0
    assert math.isnan(always.loc["transferred", "ratio_of_rises"])
    # Two prompts say little about a share of 1, and so about a ratio of 1.
    assert always.loc["transferred", "low"] == pytest.approx(0.025**0.5)
    assert always.loc["transferred", "ratio_low"] == pytest.approx(0.025**0.5)
    # A native vector that may do nothing leaves the ratio open.
    assert never.loc["transferred", ["ratio_low", "ratio_high"]].tolist() == [0.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("n_prompts", [12, 40])
def test_the_ratio_of_shares_is_held(n_prompts: int) -> None:
    """Simulate prompts that differ in how easily they show the concept, four samples each."""
    rng, hits, reps = np.random.default_rng(0), 0, 300
    for i in range(reps):
        ease = rng.beta(1.5, 1.5, n_prompts)
        answers = [
            _Answers(_frame(rng.random((n_prompts, 4)) < ease[:, None] * strength))
            for strength in (0.5, 0.9)
        ]
        # E(ease) cancels: .5 / .9
        hits += not _ratio(answers[0], answers[1], None, i).excludes(0.5 / 0.9)
    # Three standard errors of the simulation are .038.
    assert 0.912 <= hits / reps <= 0.99


def _frame(shows: np.ndarray) -> pd.DataFrame:
    prompt, sample = np.divmod(np.arange(shows.size), shows.shape[1])
    columns = {"draw": None, "prompt": prompt, "sample": sample, "shows": shows.ravel()}
    return pd.DataFrame(columns).astype({"draw": "Int64"})


def test_bad_input_is_refused_and_no_hook_stays_on(
    twins: ModelPair, stitch: Stitch, vector: SteeringVector, unchecked: None
) -> None:
    with pytest.raises(TypeError, match=r"the classifier returned 0.7 \(float\)"):
        evaluate_clamping(
            twins,
            stitch,
            vector,
            PROMPTS[:1],
            lambda text: 0.7,
            n_samples=1,
            max_new_tokens=2,
            progress=False,
        )
    with pytest.raises(ValueError, match="expected a list of at least one text"):
        evaluate_clamping(twins, stitch, vector, [], even, progress=False)
    with pytest.raises(ValueError, match="both must be at least 1"):
        evaluate_clamping(twins, stitch, vector, PROMPTS, even, n_samples=0, progress=False)
    bare = SteeringVector(vector.direction, vector.hook, vector.model)
    with pytest.raises(ValueError, match="give contrast="):
        evaluate_clamping(twins, stitch, bare, PROMPTS, even, progress=False)
    assert not any(point.fwd_hooks for point in twins.target.bridge.hook_dict.values())


def test_the_figure_has_one_point_per_arm(result: ClampEvaluation) -> None:
    assert len(result.figure().data) == 6
    assert "clipped_ratio" in result._repr_html_()
