"""The strength at a budget of damage."""

import math

import pytest

from lrt_lens.adapters.calibration import MAX_PASSES, NeutralText, calibrate_scale, search_scale
from lrt_lens.adapters.steering import SteeringVector
from lrt_lens.data.contrast import ContrastSet
from lrt_lens.models.hooked_model import SKIP_FIRST
from lrt_lens.models.pair import ModelPair

CONTRAST = ContrastSet(["the happy cat sang in the garden", "the good boy sang"], ["the sad cat slept in the garden", "the bad boy slept"])


@pytest.fixture(scope="module")
def vector(pair: ModelPair) -> SteeringVector:
    contrast = ContrastSet(
        ["the happy cat sang in the garden", "the good boy sang"], ["the sad cat slept in the garden", "the bad boy slept"]
    )
    return SteeringVector.mean_difference(pair.source, contrast, at=0)


def test_the_calibrated_scale_does_the_damage_asked_for(pair: ModelPair, vector: SteeringVector, corpus: list[str]) -> None:
    texts = corpus[:8]
    found = calibrate_scale(pair.source, vector, texts, 0.2)
    assert found.reached
    rows = pair.source.encode(texts)

    def loss() -> float:
        return float(pair.source.token_losses(rows)[:, SKIP_FIRST:].nanmean())

    before = loss()
    with vector.apply(pair.source, scale=found.scale):
        assert loss() - before == pytest.approx(0.2, rel=0.05)
    assert found.damage == pytest.approx(0.2, rel=0.021)


def test_it_takes_at_most_twelve_passes_and_repeats_itself(pair: ModelPair, vector: SteeringVector, corpus: list[str]) -> None:
    first = calibrate_scale(pair.source, vector, corpus[:8], 0.1)
    assert len(first.curve) <= MAX_PASSES
    assert first.curve["scale"].is_monotonic_increasing
    assert first.curve.equals(calibrate_scale(pair.source, vector, corpus[:8], 0.1).curve)


def test_a_budget_that_is_never_reached_gives_nan_not_an_extrapolation(pair: ModelPair, vector: SteeringVector, corpus: list[str]) -> None:
    found = calibrate_scale(pair.source, vector, corpus[:4], 1e6)
    assert math.isnan(found.scale)
    assert not found.reached
    assert found.curve["damage"].max() < 1e6


@pytest.mark.parametrize("damage", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_budgets_are_refused(pair: ModelPair, vector: SteeringVector, corpus: list[str], damage: float) -> None:
    with pytest.raises(ValueError, match="expected a positive number of nats per token"):
        calibrate_scale(pair.source, vector, corpus[:4], damage)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 300.0])
def test_the_search_brackets_and_converges_for_curves_of_any_steepness(power: float, unit: float) -> None:
    tried = search_scale(lambda s: (s / unit) ** power, 0.1, first_guess=1.0, tolerance=0.02, max_evaluations=11)
    assert min(abs(value - 0.1) for _, value in tried) <= 0.002
    assert len(tried) <= 11


def test_a_curve_that_dips_below_zero_first_is_no_obstacle() -> None:
    tried = search_scale(lambda s: s**2 - 0.3 * s, 0.1, first_guess=0.1, tolerance=0.02, max_evaluations=11)
    assert min(abs(value - 0.1) for _, value in tried) <= 0.002


@pytest.mark.parametrize("at", [0, 1, "blocks.1.hook_resid_mid"])
def test_passes_that_resume_at_the_vector_equal_full_ones_under_its_hook(pair: ModelPair, corpus: list[str], at: int | str) -> None:
    vector = SteeringVector.mean_difference(pair.target, CONTRAST, at=at)
    rows = pair.target.encode(corpus[:8])
    with vector.apply(pair.target, scale=7.0):
        steered = pair.target.token_losses(rows)[:, SKIP_FIRST:].nanmean()
    full = float(steered - pair.target.token_losses(rows)[:, SKIP_FIRST:].nanmean())
    assert NeutralText(pair.target, corpus[:8], vector.hook).damage(vector.hook_at(7.0)) == pytest.approx(full, abs=1e-5)
    assert abs(full) > 1e-3
    assert all("forward" not in layer.__dict__ for layer in pair.target.engine._layers)  # type: ignore[attr-defined]


def test_neutral_texts_that_are_too_short_are_refused(pair: ModelPair) -> None:
    with pytest.raises(ValueError, match="no neutral text is longer than 5 tokens"):
        NeutralText(pair.source, ["a"], 0)
