"""Rules that all evaluations of steering vectors share: propensities, arms, settings."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lrt_lens as lrt
from lrt_lens._settings import Settings
from lrt_lens.adapters.vectors import (
    AblationSettings,
    ClampSettings,
    ComparedContinuationsSettings,
    PropensitySettings,
    SteeringSettings,
    SteeringVector,
    compare_continuations,
    evaluate_ablation,
    evaluate_clamping,
    evaluate_propensity,
    evaluate_steering,
)
from lrt_lens.adapters.vectors._arm_meter import ArmMeter
from lrt_lens.adapters.vectors._vector_arm import MeasuredArm, VectorArm
from lrt_lens.data import ChoiceItems, ContrastSet
from lrt_lens.models import ModelPair
from lrt_lens.stitching import Stitch
from tests.adapters.vectors.reference import OneRowPerContinuation

PLACES = ("house", "garden", "tree", "river", "stone", "bird", "king", "queen", "dog", "cat")
CONTRAST = ContrastSet(
    [f"the happy cat sang in the {p} and it was good" for p in PLACES],
    [f"the sad dog slept on the {p} and it was bad" for p in PLACES],
    name="mood",
)
ITEMS = ChoiceItems(
    [f"the little boy saw the {p} and it was" for p in PLACES],
    [" good"] * 10,
    [" bad"] * 10,
    name="mood",
)
FUNCTIONS: list[tuple[Callable[..., Any], type[Settings]]] = [
    (evaluate_steering, SteeringSettings),
    (evaluate_ablation, AblationSettings),
    (evaluate_clamping, ClampSettings),
    (evaluate_propensity, PropensitySettings),
    (compare_continuations, ComparedContinuationsSettings),
]


@pytest.fixture(scope="module")
def vector(twins: ModelPair) -> SteeringVector:
    return SteeringVector.mean_difference(twins.source, CONTRAST, at=1)


def test_every_evaluation_measures_the_same_propensities(
    twins: ModelPair, stitch: Stitch, vector: SteeringVector, corpus: list[str]
) -> None:
    validation_share, neutral = 0.25, corpus[:4]
    steering = evaluate_steering(
        twins,
        stitch,
        vector,
        ITEMS,
        neutral=neutral,
        n_random=1,
        n_permuted=1,
        n_shuffled=2,
        n_contrast_groups=0,
        validation_share=validation_share,
        progress=False,
    )
    _, measured = ITEMS.split(validation_share, seed=0)
    expected = OneRowPerContinuation(twins.target, measured, stitch.target_hook).propensity()
    none = steering.table[steering.table["arm"] == "none"]
    assert none["propensity"].item() == pytest.approx(expected.mean(), abs=1e-5)

    ablation = evaluate_ablation(
        twins,
        stitch,
        vector,
        neutral=neutral,
        items=ITEMS,
        n_random=1,
        n_shuffled=1,
        progress=False,
    )
    expected = OneRowPerContinuation(twins.target, ITEMS, stitch.target_hook).propensity()
    rows = ablation.table.query("where == 'hook' and arm == 'none' and outcome == 'propensity'")
    np.testing.assert_allclose(rows["value"], expected, atol=1e-5)

    agreement = evaluate_propensity(
        twins, stitch, ITEMS, scales=[1.0], n_random=1, n_shuffled=1, progress=False
    )
    _, measured = ITEMS.split(0.5, seed=0)
    expected = OneRowPerContinuation(twins.target, measured, stitch.target_hook).propensity()
    rows = agreement.propensities.query("arm == 'none'")
    np.testing.assert_allclose(rows["propensity"], expected, atol=1e-5)


def test_only_vectors_through_refitted_maps_are_called_refit(
    twins: ModelPair,
    stitch: Stitch,
    vector: SteeringVector,
    corpus: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[VectorArm] = []
    original = ArmMeter.measure

    def measure(self: Any, arm: VectorArm) -> MeasuredArm:
        measured.append(arm)
        return original(self, arm)

    monkeypatch.setattr(ArmMeter, "measure", measure)
    evaluate_steering(
        twins,
        stitch,
        vector,
        ITEMS,
        neutral=corpus[:4],
        n_random=1,
        n_permuted=1,
        n_shuffled=1,
        progress=False,
    )
    refits = [arm for arm in measured if arm.name == "map_refit"]
    assert len(refits) == len(stitch.refits) > 1
    assert all(arm.vector.transferred for arm in refits)
    candidates = [arm for arm in measured if arm.name == "native_best" and arm.draw is not None]
    assert len(candidates) == twins.target.n_layers
    assert not any(arm.vector.transferred for arm in candidates)


@pytest.mark.parametrize(("function", "kind"), FUNCTIONS)
def test_settings_are_shown_as_keywords_and_unknown_ones_are_refused(
    function: Callable[..., Any], kind: type[Settings]
) -> None:
    parameters = inspect.signature(function).parameters
    for name, default in vars(kind()).items():
        assert parameters[name].default == default
    required = {
        name: None
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
    }
    plain = inspect.unwrap(function)
    assert plain.__code__.co_argcount + plain.__code__.co_kwonlyargcount <= 12
    with pytest.raises(TypeError, match=f"unknown option n_radnom; {kind.__name__} has"):
        plain(**required, n_radnom=1)


def test_a_settings_object_gives_the_results_of_its_keywords(
    twins: ModelPair, stitch: Stitch
) -> None:
    options: dict[str, Any] = {"scales": [1.0], "n_random": 1, "n_shuffled": 1, "progress": False}
    by_keyword = lrt.evaluate_propensity(twins, stitch, ITEMS, **options)
    by_object = lrt.evaluate_propensity(
        twins, stitch, ITEMS, settings=PropensitySettings(**options)
    )
    assert by_object.summary.equals(by_keyword.summary)
