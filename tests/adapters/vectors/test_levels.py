"""Levels of the source in units of the target: exact on known components, and in the evaluation."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from jaxtyping import TypeCheckError

import lrt_lens as lrt
from lrt_lens.adapters.vectors import SteeringVector, evaluate_clamping, recentre_level
from lrt_lens.adapters.vectors._levels import level_between
from lrt_lens.data import ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.stitching import Stitch

PLACES = ("house", "garden", "tree", "river", "stone", "bird")
CONTRAST = ContrastSet(
    [f"the happy cat sang in the {p} and it was good" for p in PLACES],
    [f"the sad dog slept on the {p} and it was bad" for p in PLACES],
    name="mood",
)
PROMPTS = [f"the little boy saw the {p} and he" for p in PLACES]
QUICK: dict[str, Any] = {
    "n_samples": 1,
    "max_new_tokens": 3,
    "n_random": 2,
    "n_shuffled": 1,
    "progress": False,
}


@pytest.fixture(scope="module")
def vector(twins: ModelPair) -> SteeringVector:
    return SteeringVector.mean_difference(twins.source, CONTRAST, at=1)


def _even(text: str) -> bool:
    return len(text) % 2 == 0


def test_a_level_is_as_many_deviations_from_the_mean_in_both_models() -> None:
    source = np.random.default_rng(0).normal(3.0, 2.0, 40)
    # z_target = −4 + 10 z_source, exactly
    assert level_between(7.5, source, 10 * source - 4) == pytest.approx(71.0, abs=1e-10)
    # Components need not be paired.
    shuffled = np.random.default_rng(1).permutation(10 * source - 4)
    assert level_between(7.5, source, shuffled) == pytest.approx(71.0, abs=1e-10)


def test_between_a_model_and_itself_a_level_stays(twins: ModelPair, vector: SteeringVector) -> None:
    level = recentre_level(vector, vector, 1.25, twins, CONTRAST.texts)
    assert level == pytest.approx(1.25)
    # A vector of another length has the same unit vector.
    twice = replace(vector, direction=vector.direction * 2)
    assert recentre_level(vector, twice, 1.25, twins, CONTRAST.texts) == pytest.approx(1.25)


def test_the_mean_component_is_that_of_the_components(
    twins: ModelPair, vector: SteeringVector
) -> None:
    components = vector.components(twins.source, CONTRAST.positive)
    assert components.shape == (6,)
    mean = vector.mean_component(twins.source, CONTRAST.positive)
    assert mean == pytest.approx(float(components.mean()))


def test_the_evaluation_shows_both_levels_and_clamps_to_the_one_it_is_told(
    twins: ModelPair, stitch: Stitch, vector: SteeringVector
) -> None:
    run = (twins, stitch, vector, PROMPTS, _even)
    level = vector.mean_component(twins.source, CONTRAST.positive)
    expected = lrt.recentre_level(vector, stitch.transfer(vector), level, twins, CONTRAST.texts)
    measured, recentred = (
        evaluate_clamping(*run, level=choice, **QUICK).summary.set_index("arm")
        for choice in ("target", "recentred")
    )
    for summary in (measured, recentred):
        row = summary.loc["transferred"]
        assert row["level_raw"] == pytest.approx(level)
        assert row["level_recentred"] == pytest.approx(expected)
        assert summary["level_raw"].drop("transferred").isna().all()
    assert recentred.loc["transferred", "level"] == pytest.approx(expected)
    own = stitch.transfer(vector).mean_component(twins.target, CONTRAST.positive)
    assert measured.loc["transferred", "level"] == pytest.approx(own)
    # Native keeps its own level; random directions are clamped as far as the transferred one.
    assert recentred.loc["native", "level"] == measured.loc["native", "level"]
    assert recentred.loc["random", "level"] != measured.loc["random", "level"]


def test_bad_input_is_refused(twins: ModelPair, pair: ModelPair, vector: SteeringVector) -> None:
    with pytest.raises(ValueError, match="5 texts can be read; a level needs at least 8"):
        recentre_level(vector, vector, 1.0, twins, CONTRAST.texts[:5])
    with pytest.raises(ValueError, match="all 9 texts are equal in the source"):
        recentre_level(vector, vector, 1.0, twins, CONTRAST.texts[:1] * 9)
    with pytest.raises(MismatchError):
        recentre_level(vector, vector, 1.0, pair, CONTRAST.texts)


def test_an_unknown_rule_of_levels_is_refused(
    twins: ModelPair, stitch: Stitch, vector: SteeringVector
) -> None:
    options: dict[str, Any] = {**QUICK, "level": "raw"}
    with pytest.raises((ValueError, TypeCheckError), match="raw"):
        evaluate_clamping(twins, stitch, vector, PROMPTS, _even, **options)
