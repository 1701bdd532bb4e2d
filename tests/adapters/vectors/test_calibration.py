"""Calibration of the scale at a damage budget."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from lrt_lens.adapters.concepts import apply_together
from lrt_lens.adapters.vectors import NeutralText, SteeringVector, calibrate_on, calibrate_scale
from lrt_lens.adapters.vectors._calibration import MAX_PASSES
from lrt_lens.data import ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.models import HookedModel, ModelPair
from lrt_lens.models._text_reader import SKIP_FIRST
from tests.figures.counts import counts_of

CONTRAST = ContrastSet(
    ["the happy cat sang in the garden", "the good boy sang"],
    ["the sad cat slept in the garden", "the bad boy slept"],
)


@pytest.fixture(scope="module")
def vector(pair: ModelPair) -> SteeringVector:
    return SteeringVector.mean_difference(pair.source, CONTRAST, at=0)


@pytest.fixture(scope="module")
def layers(pair: ModelPair) -> list[SteeringVector]:
    """Vectors at three hook points of the target, the last in the forward pass first."""
    return [
        SteeringVector.mean_difference(pair.target, CONTRAST, at=at)
        for at in (2, 0, "blocks.1.hook_resid_mid")
    ]


def loss(model: HookedModel, texts: list[str]) -> float:
    return float(model.token_losses(model.encode(texts))[:, SKIP_FIRST:].nanmean())


def distributions(model: HookedModel, texts: list[str]) -> list[torch.Tensor]:
    """Return next-token probabilities, [position, vocabulary] per text in float64.

    Each text runs alone: no batch, no padding, no resumed pass.
    """
    return [model.logits(text)[0, SKIP_FIRST:-1].double().softmax(-1) for text in texts]


def divergence(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    # KL(p ‖ q) = Σ p (log p − log q), the mean over positions
    p, q = torch.cat(before), torch.cat(after)
    return float((p * (p.log() - q.log())).sum() / len(p))


# ------------------------------------------------------------------------------------------ budgets


def test_the_calibrated_scale_does_the_damage_asked_for(
    pair: ModelPair, vector: SteeringVector, passages: list[str]
) -> None:
    texts = passages[:8]
    calibration = calibrate_scale(pair.source, vector, texts, 0.15)
    assert calibration.reached
    before = loss(pair.source, texts)
    with vector.apply(pair.source, scale=calibration.scale):
        assert loss(pair.source, texts) - before == pytest.approx(0.15, rel=0.05)
    assert calibration.damage == pytest.approx(0.15, rel=0.021)


def test_a_budget_in_kl_is_met_as_measured_from_the_logits(
    pair: ModelPair, vector: SteeringVector, passages: list[str]
) -> None:
    texts = passages[:8]
    calibration = calibrate_scale(pair.source, vector, texts, 0.2, unit="kl")
    before = distributions(pair.source, texts)
    with calibration.apply(pair.source):
        assert divergence(before, distributions(pair.source, texts)) == pytest.approx(0.2, rel=0.03)
    assert calibration.unit == "kl"
    # A random model predicts these texts no better than chance, so its loss hardly changes with its
    # predictions, and the two budgets give different scales.
    assert calibrate_scale(pair.source, vector, texts, 0.2).scale != pytest.approx(
        calibration.scale, rel=0.05
    )


@pytest.mark.parametrize("at", [0, 1, 2, "blocks.1.hook_resid_mid"])
def test_kl_is_the_sum_over_the_vocabulary_of_p_log_p_over_q(
    pair: ModelPair, passages: list[str], at: int | str
) -> None:
    vector = SteeringVector.mean_difference(pair.target, CONTRAST, at=at)
    before = distributions(pair.target, passages[:6])
    with vector.apply(pair.target, scale=7.0):
        expected = divergence(before, distributions(pair.target, passages[:6]))
    neutral = NeutralText(pair.target, passages[:6], vector.hook)
    assert expected > 1e-3
    assert neutral.divergence(vector.hook_at(7.0)) == pytest.approx(expected, rel=1e-4)
    assert neutral.divergence(vector.hook_at(0.0)) == pytest.approx(0.0, abs=1e-6)


def test_it_takes_few_passes_and_repeats_itself(
    pair: ModelPair, vector: SteeringVector, passages: list[str]
) -> None:
    first = calibrate_scale(pair.source, vector, passages[:8], 0.1)
    assert len(first.curve) <= 9 < MAX_PASSES
    assert first.curve["scale"].is_monotonic_increasing
    assert first.curve.equals(calibrate_scale(pair.source, vector, passages[:8], 0.1).curve)


def test_a_budget_that_is_never_reached_gives_nan_not_an_extrapolation(
    pair: ModelPair, vector: SteeringVector, passages: list[str]
) -> None:
    calibration = calibrate_scale(pair.source, vector, passages[:4], 1e6)
    assert math.isnan(calibration.scale)
    assert not calibration.reached
    assert calibration.curve["damage"].max() < 1e6
    assert "no scale with a damage within 5% of 1e+06 was found: up to scale" in calibration.flag
    with pytest.raises(ValueError, match="was not reached.*up to scale.*calibrate with a damage"):
        calibration.apply(pair.source)
    assert "up to scale" in calibration._repr_html_()
    subtitle = calibration.figure().layout.title.subtitle.text.replace("<br>", " ")
    assert "no scale chosen" in subtitle
    assert "up to scale" in subtitle


class Curve(NeutralText):
    """Neutral texts whose damage is a function of the scale instead of a measurement."""

    function: Any = None
    step: float = 1.0
    """Length of a step of scale 1."""

    def cost(self, unit: Any, hook: Any, later: Any = None) -> float:
        changed = hook.change(torch.zeros(1, 1, self.model.d_model))
        return self.function(float(changed.norm()) / self.step)


@pytest.fixture
def drawn(pair: ModelPair, vector: SteeringVector, passages: list[str]) -> Any:
    """Return a function that calibrates on a curve of damage, ``(scale) → damage``."""

    def calibrate(function: Any, **options: Any) -> Any:
        texts = Curve(pair.source, passages[:2], vector.hook)
        texts.function, texts.step = function, vector.norm
        return calibrate_on(texts, vector, 0.1, first_guess=1.0, **options)

    return calibrate


def test_a_curve_that_jumps_over_the_budget_is_not_reached_and_says_where(drawn: Any) -> None:
    calibration = drawn(lambda scale: 0.0 if scale < 3 else 0.4)
    assert not calibration.reached
    assert math.isnan(calibration.damage)
    assert "jumps over it, with damage 0 at scale 2.99" in calibration.flag
    assert "and 0.4 at scale 3.0" in calibration.flag
    assert "jumps over it" in calibration._repr_html_()


def test_a_curve_that_crosses_twice_gives_the_first_crossing_and_says_so(drawn: Any) -> None:
    # Over the budget from 1 to 3 and from 5 on.
    calibration = drawn(lambda scale: 0.1 + 0.02 * (scale - 1) * (scale - 3) * (scale - 5) / 5)
    assert calibration.reached
    assert calibration.scale == pytest.approx(1.0, rel=0.1)
    crossing = drawn(lambda scale: 0.1 * scale if scale < 2 else 0.06 * (scale / 2) ** 2)
    assert crossing.scale == pytest.approx(1.0, rel=0.05)


def test_a_damage_of_nan_counts_as_over_the_budget_and_is_left_out_of_the_curve(drawn: Any) -> None:
    calibration = drawn(lambda scale: 0.1 * (scale / 2) ** 2 if scale < 1.5 else math.nan)
    assert not calibration.reached
    assert "NaN at scale 1.5" in calibration.flag
    assert calibration.curve["damage"].notna().all()


@pytest.mark.parametrize("first_guess", [0.0, -1.0, math.nan, math.inf])
def test_a_first_guess_that_is_not_positive_is_refused(
    pair: ModelPair, vector: SteeringVector, passages: list[str], first_guess: float
) -> None:
    with pytest.raises(ValueError, match="expected a positive finite scale"):
        calibrate_scale(pair.source, vector, passages[:4], first_guess=first_guess)


@pytest.mark.parametrize("tolerance", [-0.1, 0.1, math.nan])
def test_a_tolerance_beyond_what_counts_as_reached_is_refused(
    pair: ModelPair, vector: SteeringVector, passages: list[str], tolerance: float
) -> None:
    with pytest.raises(ValueError, match="does not count as reached"):
        calibrate_scale(pair.source, vector, passages[:4], tolerance=tolerance)


# ------------------------------------------------------------------------------ several hook points


def test_several_hook_points_share_one_scale(
    pair: ModelPair, layers: list[SteeringVector], passages: list[str]
) -> None:
    texts = passages[:6]
    calibration = calibrate_scale(pair.target, layers, texts, 0.15, unit="kl")
    before, before_loss = distributions(pair.target, texts), loss(pair.target, texts)
    with apply_together(pair.target, layers, scale=calibration.scale):
        assert divergence(before, distributions(pair.target, texts)) == pytest.approx(
            0.15, rel=0.03
        )
        rise = loss(pair.target, texts) - before_loss
    with calibration.apply(pair.target):
        assert loss(pair.target, texts) - before_loss == pytest.approx(rise, abs=1e-5)
    assert calibration.intervention is not None
    first, *later = calibration.intervention.hooks(calibration.scale).items()
    assert first[0] == "blocks.0.hook_resid_post"
    assert NeutralText(pair.target, texts, first[0]).damage(first[1], dict(later)) == pytest.approx(
        rise, abs=1e-5
    )
    assert calibration.scale < min(
        calibrate_scale(pair.target, vector, texts, 0.15, unit="kl").scale for vector in layers
    )
    assert not any(point.fwd_hooks for point in pair.target.bridge.hook_dict.values())


@pytest.mark.parametrize("positions", ["last", "generated"])
def test_hooks_after_the_first_get_the_lengths_of_prompts(
    pair: ModelPair, layers: list[SteeringVector], passages: list[str], positions: Any
) -> None:
    texts = passages[:6]  # of different lengths, so that padded rows would put "last" elsewhere
    calibration = calibrate_scale(pair.target, layers, texts, 0.02, unit="kl", positions=positions)
    before = distributions(pair.target, texts)
    steered = (
        slice(SKIP_FIRST, SKIP_FIRST + 1) if positions == "last" else slice(SKIP_FIRST + 1, None)
    )

    def step(vector: SteeringVector) -> Any:
        def change(x: torch.Tensor, hook: Any) -> torch.Tensor:
            x = x.clone()
            x[:, steered] += calibration.scale * vector.direction
            return x

        return change

    with pair.target.intervene({vector.hook: step(vector) for vector in layers}):
        assert divergence(before, distributions(pair.target, texts)) == pytest.approx(
            calibration.damage, rel=1e-3
        )
    assert calibration.damage == pytest.approx(0.02, rel=0.02)


# --------------------------------------------------------------------------------- clamp and ablate


@pytest.mark.parametrize("budget", [0.01, 0.6])
def test_a_clamp_goes_part_of_the_way_to_its_level_or_beyond(
    pair: ModelPair, vector: SteeringVector, passages: list[str], budget: float
) -> None:
    texts = passages[:8]
    stream = torch.cat(
        [pair.source.capture(text, vector.hook)[0, SKIP_FIRST:] for text in texts]
    ).double()
    unit = vector.direction.double() / vector.direction.double().norm()
    mean, spread = float((stream @ unit).mean()), float((stream @ unit).std())
    level = mean + spread
    calibration = calibrate_scale(
        pair.source, vector, texts, budget, unit="kl", mode="clamp", level=level
    )
    assert (calibration.scale < 1) == (budget < 0.1)
    assert calibration.levels[0] == pytest.approx(mean + calibration.scale * spread, rel=1e-4)

    def change(x: torch.Tensor, hook: Any) -> torch.Tensor:
        x, s = x.clone(), calibration.scale
        component = x[:, SKIP_FIRST:].double() @ unit
        aim = (
            (1 - s) * component + s * level
            if s < 1
            else torch.full_like(component, mean + s * spread)
        )
        x[:, SKIP_FIRST:] += ((aim - component)[..., None] * unit).float()
        return x

    before = distributions(pair.source, texts)
    with pair.source.intervene({vector.hook: change}):
        by_hand = divergence(before, distributions(pair.source, texts))
    with calibration.apply(pair.source):
        applied = divergence(before, distributions(pair.source, texts))
    assert by_hand == pytest.approx(budget, rel=0.03)
    assert applied == pytest.approx(by_hand, rel=1e-3)


def test_the_default_level_of_a_clamp_is_computed_on_the_vectors_own_texts(
    pair: ModelPair, vector: SteeringVector, passages: list[str]
) -> None:
    calibration = calibrate_scale(pair.source, vector, passages[:4], 0.05, unit="kl", mode="clamp")
    assert calibration.intervention is not None
    assert calibration.intervention.levels == (
        pytest.approx(vector.mean_component(pair.source, list(CONTRAST.positive))),
    )
    with pytest.raises(ValueError, match="no longer hold texts"):
        calibrate_scale(pair.source, replace(vector, contrast_set=None), passages[:4], mode="clamp")
    with pytest.raises(ValueError, match=r"level is .* for 1 vector"):
        calibrate_scale(pair.source, vector, passages[:4], mode="clamp", level=[1.0, 2.0])


def test_an_ablation_goes_part_of_the_way_or_all_of_it(
    pair: ModelPair, vector: SteeringVector, passages: list[str]
) -> None:
    texts = passages[:8]
    before = distributions(pair.source, texts)

    def ablated(share: float) -> float:
        unit = vector.direction / vector.norm

        def change(x: torch.Tensor, hook: Any) -> torch.Tensor:
            x = x.clone()
            x[:, SKIP_FIRST:] -= share * (x[:, SKIP_FIRST:] @ unit)[..., None] * unit
            return x

        with pair.source.intervene({vector.hook: change}):
            return divergence(before, distributions(pair.source, texts))

    full = ablated(1.0)
    part = calibrate_scale(pair.source, vector, texts, full / 3, unit="kl", mode="ablate")
    assert 0 < part.scale < 1
    assert not part.at_limit
    assert ablated(part.scale) == pytest.approx(full / 3, rel=0.03)
    whole = calibrate_scale(pair.source, vector, texts, 3 * full, unit="kl", mode="ablate")
    assert whole.scale == 1.0
    assert whole.at_limit
    assert "the largest scale, 1, stays within the budget" in whole.flag
    assert not part.flag
    assert whole.damage == pytest.approx(full, rel=1e-3)
    with whole.apply(pair.source):
        assert divergence(before, distributions(pair.source, texts)) == pytest.approx(
            full, rel=1e-3
        )


def test_the_figure_names_the_measure_of_damage_and_the_meaning_of_the_scale(
    pair: ModelPair, vector: SteeringVector, passages: list[str]
) -> None:
    plain = calibrate_scale(pair.source, vector, passages[:4], 0.1).figure()
    other = calibrate_scale(
        pair.source, vector, passages[:4], 0.01, unit="kl", mode="ablate"
    ).figure()
    assert counts_of(plain) == "n = 4 neutral texts"
    assert "rise of the loss" in str(plain.layout.title)
    assert "KL(unsteered" in str(other.layout.title)
    assert "own length" in plain.layout.xaxis.title.text
    assert "all of the component" in other.layout.xaxis.title.text


# ------------------------------------------------------------------------------------------- passes


@pytest.mark.parametrize("at", [0, 1, "blocks.1.hook_resid_mid"])
def test_passes_that_resume_at_the_vector_equal_full_ones_under_its_hook(
    pair: ModelPair, passages: list[str], at: int | str
) -> None:
    vector = SteeringVector.mean_difference(pair.target, CONTRAST, at=at)
    rows = pair.target.encode(passages[:8])
    with vector.apply(pair.target, scale=7.0):
        steered = pair.target.token_losses(rows)[:, SKIP_FIRST:].nanmean()
    full = float(steered - pair.target.token_losses(rows)[:, SKIP_FIRST:].nanmean())
    assert NeutralText(pair.target, passages[:8], vector.hook).damage(
        vector.hook_at(7.0)
    ) == pytest.approx(full, abs=1e-5)
    assert abs(full) > 1e-3
    assert all("forward" not in layer.__dict__ for layer in pair.target.engine._layers)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("damage", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_budgets_are_refused(
    pair: ModelPair, vector: SteeringVector, passages: list[str], damage: float
) -> None:
    with pytest.raises(ValueError, match="expected a positive number of nats per token"):
        calibrate_scale(pair.source, vector, passages[:4], damage)


@pytest.mark.usefixtures("unchecked")
def test_unknown_units_and_modes_are_refused(
    pair: ModelPair, vector: SteeringVector, passages: list[str]
) -> None:
    with pytest.raises(ValueError, match="unit is 'bits'; expected 'loss'"):
        calibrate_scale(pair.source, vector, passages[:4], unit="bits")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode 'push'"):
        calibrate_scale(pair.source, vector, passages[:4], mode="push")  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked")
def test_neutral_texts_that_cannot_be_measured_are_refused(
    pair: ModelPair, vector: SteeringVector
) -> None:
    with pytest.raises(ValueError, match="no neutral text; expected a list of texts"):
        calibrate_scale(pair.source, vector, [])
    with pytest.raises(ValueError, match="neutral is one str; expected a list of texts"):
        calibrate_scale(pair.source, vector, "the cat sat in the garden and sang")
    with pytest.raises(ValueError, match="text 0 is empty"):
        calibrate_scale(pair.source, vector, [""])
    with pytest.raises(ValueError, match="no neutral text is longer than 5 tokens"):
        NeutralText(pair.source, ["a"], 0)


def test_vectors_of_another_model_or_of_one_hook_point_are_refused(
    pair: ModelPair, vector: SteeringVector, passages: list[str]
) -> None:
    with pytest.raises(MismatchError, match="the model to steer"):
        calibrate_scale(pair.target, vector, passages[:4])
    with pytest.raises(ValueError, match="one for each hook point"):
        calibrate_scale(pair.source, [vector, vector], passages[:4])
    with pytest.raises(ValueError, match="give at least one"):
        calibrate_scale(pair.source, [], passages[:4])


def test_tokenized_texts_serve_many_vectors(
    pair: ModelPair, vector: SteeringVector, passages: list[str]
) -> None:
    ready = NeutralText(pair.source, passages[:6], vector.hook)
    for one in (vector, 2.0 * vector):
        assert calibrate_on(ready, one, 0.1, first_guess=1.0).scale * one.norm == pytest.approx(
            calibrate_scale(pair.source, vector, passages[:6], 0.1).scale * vector.norm, rel=0.05
        )
