"""Continuations of one model under several vectors, compared with generation under each."""

import math
from typing import Any

import pytest
import torch

from lrt_lens.adapters.vectors import (
    ComparedContinuations,
    SteeringVector,
    calibrate_scale,
    compare_continuations,
)
from lrt_lens.errors import MismatchError

HOOK = "blocks.1.hook_resid_post"
PROMPTS = ["the little cat saw the", "the queen found a", "the little cat saw the"]
NEUTRAL = [
    "the old king gave the bird a red stone and it sang in the garden.",
    "a slow dog ran under the tree and slept because it was sad.",
]


@pytest.fixture(scope="module")
def model(load: Any) -> Any:
    return load("llama", d=16, layers=3, seed=3)


@pytest.fixture(scope="module")
def vectors(model: Any) -> dict[str, SteeringVector]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: SteeringVector(torch.randn(16, generator=generator), HOOK, model.identity, name=name)
        for name in ("first", "second")
    }


def test_each_arm_writes_what_the_model_writes_under_its_vector_alone(
    model: Any, vectors: dict[str, SteeringVector]
) -> None:
    compared = compare_continuations(
        model, PROMPTS, vectors, scales={"first": 2.0, "second": 5.0}, max_new_tokens=6, seed=4
    )
    expected = {"none": model.generate(PROMPTS, max_new_tokens=6, seed=4)}
    for name, scale in (("first", 2.0), ("second", 5.0)):
        with vectors[name].apply(model, scale=scale):
            expected[name] = model.generate(PROMPTS, max_new_tokens=6, seed=4)
    assert {arm: compared.summary[arm].tolist() for arm in compared.summary} == expected
    assert compared.summary.index.tolist() == PROMPTS
    assert expected["first"] != expected["none"] != expected["second"]


def test_one_scale_serves_all_arms(model: Any, vectors: dict[str, SteeringVector]) -> None:
    table = compare_continuations(model, PROMPTS[:1], vectors, scales=3.0, max_new_tokens=3).table
    assert dict(zip(table["arm"], table["scale"], strict=True)) == {
        "none": 0.0,
        "first": 3.0,
        "second": 3.0,
    }
    assert table["damage"].isna().tolist() == [False, True, True]


def test_the_same_damage_is_the_default(model: Any, vectors: dict[str, SteeringVector]) -> None:
    vector = vectors["first"]
    table = compare_continuations(
        model,
        PROMPTS[:1],
        {"there": vector, "half": vector * 0.5},
        neutral=NEUTRAL,
        damage=0.05,
        max_new_tokens=3,
    ).table.set_index("arm")
    assert table.loc["there", "scale"] == pytest.approx(
        calibrate_scale(model, vector, NEUTRAL, 0.05).scale
    )
    assert table.loc["half", "scale"] == pytest.approx(2 * table.loc["there", "scale"], rel=0.05)
    assert table.loc[["there", "half"], "damage"].tolist() == pytest.approx([0.05, 0.05], rel=0.05)


def test_an_arm_that_does_not_reach_the_damage_is_left_out_and_named(
    model: Any, vectors: dict[str, SteeringVector], caplog: pytest.LogCaptureFixture
) -> None:
    compared = compare_continuations(
        model, PROMPTS[:1], vectors, neutral=NEUTRAL, damage=1e4, max_new_tokens=3
    )
    assert compared.table["arm"].tolist() == ["none"]
    assert "'first'" in caplog.text


def test_no_hook_is_left_on_the_model(
    model: Any, vectors: dict[str, SteeringVector], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model.logits(PROMPTS[:1])
    monkeypatch.setattr(
        model, "generate", lambda *_a, **_k: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        compare_continuations(model, PROMPTS, vectors, scales=50.0)
    monkeypatch.undo()
    compare_continuations(model, PROMPTS, vectors, scales=50.0, max_new_tokens=2)
    assert torch.equal(model.logits(PROMPTS[:1]), before)


def test_a_notebook_shows_prompts_and_texts_escaped() -> None:
    import pandas as pd

    rows = [
        {"prompt": "a < b", "arm": arm, "scale": 1.0, "damage": math.nan, "text": f" <b>{arm}</b>"}
        for arm in ("none", "first")
    ]
    shown = ComparedContinuations(pd.DataFrame(rows))._repr_html_()
    assert "Continuations side by side" in shown
    assert "a &lt; b" in shown
    assert "&lt;b&gt;first" in shown
    assert "<b>" not in shown
    assert "first: scale 1" in shown


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompts": []}, "expected a list of at least one text"),
        ({"prompts": "the cat"}, "expected a list of at least one text"),
        ({"scales": {"first": 1.0}}, "expected a scale for"),
        ({"scales": "auto"}, "give them, or give scales"),
    ],
)
def test_missing_inputs_are_named(
    model: Any, vectors: dict[str, SteeringVector], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        compare_continuations(
            model, **{"prompts": PROMPTS, "vectors": vectors, "scales": 1.0} | options
        )


def test_no_arm_may_have_the_name_of_the_model_without_steering(
    model: Any, vectors: dict[str, SteeringVector]
) -> None:
    with pytest.raises(ValueError, match="without steering"):
        compare_continuations(model, PROMPTS, {"none": vectors["first"]}, scales=1.0)


def test_a_vector_of_another_model_is_refused(
    load: Any, vectors: dict[str, SteeringVector]
) -> None:
    with pytest.raises(MismatchError):
        compare_continuations(load("llama", d=16, layers=3, seed=9), PROMPTS, vectors, scales=1.0)
