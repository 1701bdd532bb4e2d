"""Scales predicted from norms alone."""

from dataclasses import replace

import pytest
import torch

import lrt_lens as lrt
from lrt_lens.adapters.vectors import SteeringVector, calibrate_scale, predict_scale
from lrt_lens.adapters.vectors._calibration import SHARE
from lrt_lens.models import ModelPair


def vector(length: float, norm: float = 50.0) -> SteeringVector:
    return SteeringVector(
        length * torch.nn.functional.normalize(torch.randn(16), dim=0),
        "blocks.0.hook_resid_post",
        median_norm=norm,
    )


def test_it_is_a_share_of_the_streams_norm_and_grows_with_the_root_of_the_damage() -> None:
    assert predict_scale(vector(2.0)) == pytest.approx(SHARE * 50 / 2)
    assert predict_scale(vector(2.0), 0.4) == pytest.approx(2 * SHARE * 50 / 2)
    assert predict_scale(vector(2.0), median_norm=10.0) == pytest.approx(SHARE * 10 / 2)


def test_shares_of_several_vectors_add_up() -> None:
    both = predict_scale([vector(2.0), vector(3.0)], 0.2, median_norm=[50.0, 20.0])
    each = [predict_scale(vector(2.0), 0.2), predict_scale(vector(3.0), 0.2, median_norm=20.0)]
    assert sum(both / scale for scale in each) == pytest.approx(1.0)


def test_vectors_without_a_prediction_are_refused() -> None:
    with pytest.raises(ValueError, match="damage is -1"):
        predict_scale(vector(1.0), -1.0)
    with pytest.raises(ValueError, match="give median_norm"):
        predict_scale(replace(vector(1.0), median_norm=float("nan")))
    with pytest.raises(ValueError, match="a positive length for each"):
        predict_scale([vector(1.0), vector(1.0)], median_norm=[3.0])


@pytest.fixture(scope="module")
def demo() -> ModelPair:
    return lrt.demo_pair()


@pytest.mark.parametrize("concept", ["sentiment", "mood"])
@pytest.mark.parametrize("unit", ["loss", "kl"])
def test_on_trained_models_it_is_near_enough_to_start_from(
    demo: ModelPair, concept: str, unit: str
) -> None:
    contrast = lrt.demo_contrast(concept).split(0.1)[0]  # type: ignore[arg-type]
    learnt = SteeringVector.mean_difference(demo.source, contrast, at=2)
    neutral = lrt.demo_neutral()[:6]
    calibration = calibrate_scale(demo.source, learnt, neutral, 0.1, unit=unit, tolerance=0.05)  # type: ignore[arg-type]
    assert 1 / 1.7 < predict_scale(learnt) / calibration.scale < 1.7
    # The predicted first guess needs fewer passes than an arbitrary one.
    blind = calibrate_scale(
        demo.source, learnt, neutral, 0.1, unit=unit, tolerance=0.05, first_guess=0.01
    )  # type: ignore[arg-type]
    assert len(calibration.curve) < len(blind.curve)
    assert blind.scale == pytest.approx(calibration.scale, rel=0.05)
