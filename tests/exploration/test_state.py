from dataclasses import replace
from typing import Any

import pytest
import torch

from lrt_lens.adapters.vectors import NeutralText, SteeringVector
from lrt_lens.bundled import demo_contrast, demo_neutral, demo_pair
from lrt_lens.data import ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.exploration._state import UNREACHED_SHARE, Exploration
from lrt_lens.stitching import fit_stitches

PROMPT = "the little cat was happy because"
BUDGET = 0.05


@pytest.fixture(scope="module")
def stitch(pair: Any, passages: list[str]) -> Any:
    grid = fit_stitches(
        pair,
        passages[:80],
        n_tokens=2500,
        context_length=32,
        target_layers=[1],
        null=False,
        progress=False,
    )
    return grid.best(source=0)


@pytest.fixture(scope="module")
def vector(pair: Any, stitch: Any, passages: list[str]) -> SteeringVector:
    return SteeringVector.mean_difference(
        pair.source, ContrastSet(passages[:8], passages[8:16]), at=stitch.source_hook
    )


@pytest.fixture(scope="module")
def neutral(passages: list[str]) -> list[str]:
    return [text for text in passages[100:] if len(text.split()) > 15][:3]


@pytest.fixture(scope="module")
def exploration(pair: Any, stitch: Any, vector: SteeringVector, neutral: list[str]) -> Exploration:
    return Exploration.of(
        pair, stitch.transfer(vector), neutral=neutral, damage=BUDGET, max_new_tokens=6
    )


@pytest.fixture(scope="module")
def trained() -> Exploration:
    """Exploration of the bundled large model, which is trained, with a vector at two layers."""
    pair, contrast = demo_pair(), demo_contrast("sentiment")
    few = ContrastSet(contrast.positive[:24], contrast.negative[:24])
    native, moved = (SteeringVector.mean_difference(pair.target, few, at=layer) for layer in (2, 3))
    return Exploration.of(pair, moved, native=native, neutral=demo_neutral()[:2], damage=BUDGET)


def test_arms_of_different_lengths_cost_the_same_at_strength_one(trained: Exploration) -> None:
    assert list(trained.arms) == ["native", "transferred"]
    for name, arm in trained.arms.items():
        assert arm.calibrated
        again = NeutralText(trained.model, demo_neutral()[:2], arm.vector.hook).damage(
            arm.vector.hook_at(arm.scale(1.0))
        )
        assert again == pytest.approx(BUDGET, rel=0.03)
        assert trained.damage_at(name, 1.0) == pytest.approx(again)
        assert trained.damage_at(name, 2.0) > 2 * again
    assert trained.notes == []


def test_the_native_vector_is_learnt_from_the_same_texts_at_the_same_place(
    exploration: Exploration, pair: Any, vector: SteeringVector, stitch: Any
) -> None:
    texts = vector.contrast_set
    assert texts is not None
    own = SteeringVector.mean_difference(pair.target, texts, at=stitch.target_hook)
    assert torch.equal(exploration.arms["native"].vector.direction, own.direction)


def test_a_run_is_what_the_steered_model_writes(exploration: Exploration, pair: Any) -> None:
    table = exploration.run(PROMPT, 1.5, seed=3).table
    assert list(table["arm"]) == ["none", "native", "transferred"]
    options = {"max_new_tokens": 6, "temperature": 0.8, "top_k": 40, "seed": 3}
    assert table["text"][0] == pair.target.generate(PROMPT, **options)
    for row in table.to_dict("records")[1:]:
        arm = exploration.arms[row["arm"]]
        assert row["scale"] == pytest.approx(1.5 * arm.unit)
        with arm.vector.apply(pair.target, scale=1.5 * arm.unit):
            assert row["text"] == pair.target.generate(PROMPT, **options)
        assert row["damage"] == pytest.approx(exploration.damage_at(row["arm"], 1.5))
    assert table["damage"][0] == 0


def test_strength_zero_changes_nothing(exploration: Exploration) -> None:
    table = exploration.run(PROMPT, 0.0).table
    assert table["text"].nunique() == 1
    assert table["damage"].abs().max() < 1e-6


def test_damage_is_measured_once_a_strength(
    exploration: Exploration, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = exploration.damage_at("native", 0.7)
    monkeypatch.setattr(NeutralText, "damage", lambda *_: pytest.fail("measured again"))
    assert exploration.damage_at("native", 0.7) == known


def test_the_share_is_that_of_the_step(exploration: Exploration) -> None:
    arm = exploration.arms["transferred"]
    assert arm.share(-2.0) == pytest.approx(
        (2 * arm.unit * arm.vector.direction).norm().item() / arm.vector.median_norm
    )


def test_a_vector_of_the_source_goes_through_the_stitch(
    pair: Any, stitch: Any, vector: SteeringVector, neutral: list[str], exploration: Exploration
) -> None:
    found = Exploration.of(pair, vector, stitch=stitch, neutral=neutral, damage=BUDGET)
    assert torch.equal(
        found.arms["transferred"].vector.direction, exploration.arms["transferred"].vector.direction
    )
    with pytest.raises(MismatchError, match=r"learnt on the source.*give stitch="):
        Exploration.of(pair, vector, neutral=neutral)


def test_a_vector_of_neither_model_is_refused(pair: Any, load: Any, vector: SteeringVector) -> None:
    other = load("llama", d=16, layers=2, seed=9)
    with pytest.raises(MismatchError, match="learn it on the source, or transfer it"):
        Exploration.of(pair, replace(vector, model=other.identity))


def test_without_texts_there_is_no_native_arm_and_that_is_said(
    pair: Any, stitch: Any, vector: SteeringVector, neutral: list[str]
) -> None:
    moved = replace(stitch.transfer(vector), contrast_set=None)
    found = Exploration.of(pair, moved, neutral=neutral, damage=BUDGET, max_new_tokens=4)
    assert list(found.arms) == ["transferred"]
    assert "give native=" in found.notes[-1]
    assert list(found.run(PROMPT, 1.0).table["arm"]) == ["none", "transferred"]
    native = replace(moved, direction=-moved.direction)
    assert list(
        Exploration.of(pair, moved, native=native, neutral=neutral, damage=BUDGET).arms
    ) == ["native", "transferred"]


def test_an_arm_that_cannot_reach_the_budget_takes_a_share_of_the_stream(
    pair: Any, stitch: Any, vector: SteeringVector, neutral: list[str]
) -> None:
    # No text is worth a thousand nats a token.
    found = Exploration.of(pair, stitch.transfer(vector), neutral=neutral, damage=1000.0)
    for arm in found.arms.values():
        assert not arm.calibrated
        assert arm.share(1.0) == pytest.approx(UNREACHED_SHARE)
    assert len(found.notes) == 2
    assert "another amount of damage" in found.notes[0]


@pytest.mark.parametrize(
    ("prompt", "strength", "message"),
    [("  ", 1.0, "prompt is empty"), (PROMPT, float("nan"), "strength is nan")],
)
def test_what_cannot_be_run_is_refused(
    exploration: Exploration, prompt: str, strength: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        exploration.run(prompt, strength)


def test_bad_settings_are_refused(
    pair: Any, stitch: Any, vector: SteeringVector, neutral: list[str]
) -> None:
    with pytest.raises(ValueError, match="damage is -1"):
        Exploration.of(pair, stitch.transfer(vector), neutral=neutral, damage=-1.0)
    with pytest.raises(ValueError, match="neutral"):
        Exploration.of(pair, stitch.transfer(vector), neutral=[])
