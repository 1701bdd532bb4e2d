"""Propensities with shared rows of tokens, compared with one row per continuation."""

from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.adapters.vectors import PreferenceText, SteeringVector
from lrt_lens.data import ChoiceItems
from tests.adapters.vectors.reference import OneRowPerContinuation

PROMPTS = [
    "the little boy saw the house and he",
    "the king",
    "a red bird found the river and it",
    "the queen sang and she",
]
ITEMS = ChoiceItems(
    PROMPTS,
    [" sang", " ran", " was happy and good", " had"],
    [" slept", " found a stone", " was happy and bad", " made it"],
)


def naive(model: Any, items: ChoiceItems) -> list[float]:
    """Return log p(positive) − log p(negative), one pass per continuation in float64."""

    def score(prompt: str, continuation: str) -> float:
        [start], [end] = model.encode([prompt]), model.encode_bodies([continuation])
        table = model.logits(torch.tensor([[*start, *end]]))[0].double().log_softmax(-1)
        return sum(float(table[len(start) - 1 + i, token]) for i, token in enumerate(end))

    rows = zip(items.prompts, items.positive, items.negative, strict=True)
    return [
        score(prompt, positive) - score(prompt, negative) for prompt, positive, negative in rows
    ]


def test_propensities_are_the_naive_ones(model: Any) -> None:
    np.testing.assert_allclose(
        PreferenceText(model, ITEMS, 1).propensity(), naive(model, ITEMS), atol=1e-5
    )


@pytest.mark.parametrize("positions", ["all", "last", "generated"])
def test_under_steering_they_are_those_of_one_row_per_continuation(
    model: Any, positions: Any
) -> None:
    direction = torch.randn(16, generator=torch.Generator().manual_seed(0))
    vector = SteeringVector(direction, "blocks.1.hook_resid_post")
    measured, expected = (
        text.propensity(vector.hook_at(2.0, positions=positions))
        for text in (PreferenceText(model, ITEMS, 1), OneRowPerContinuation(model, ITEMS, 1))
    )
    np.testing.assert_allclose(measured, expected, atol=1e-5)
    assert np.abs(measured - PreferenceText(model, ITEMS, 1).propensity()).max() > 1e-3


def test_continuations_that_differ_in_their_last_token_share_a_row(model: Any) -> None:
    words = [
        f" {word}" for word in ("the", "and", "was", "he", "they", "good", "on", "it", "happy")
    ]
    one, other = [word for word in words if len(model.encode_bodies([word])[0]) == 1][:2]
    pair = ChoiceItems(["the cat", "the dog"], [one, one], [other, other])
    text = PreferenceText(model, pair, 1)
    assert (text.n_rows, text.n_uneven) == (2, 0)
    np.testing.assert_allclose(text.propensity(), naive(model, pair), atol=1e-5)


def test_token_counts_that_differ_are_counted(model: Any) -> None:
    lengths = [
        [len(ids) for ids in model.encode_bodies(side)] for side in (ITEMS.positive, ITEMS.negative)
    ]
    assert (
        PreferenceText(model, ITEMS, 1).n_uneven
        == sum(a != b for a, b in zip(*lengths, strict=True))
        > 0
    )


def test_of_a_continuation_that_begins_like_the_other_only_other_tokens_are_scored(
    model: Any,
) -> None:
    items = ChoiceItems(["the cat"], [" was"], [" was happy"])
    np.testing.assert_allclose(
        PreferenceText(model, items, 1).propensity(), naive(model, items), atol=1e-5
    )


def test_one_continuation_twice_and_too_long_a_prompt_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="item 1 has the continuation ' ran' twice"):
        PreferenceText(
            model, ChoiceItems(["the cat", "the dog"], [" sat", " ran"], [" lay", " ran"]), 1
        )
    with pytest.raises(ValueError, match="reads 64: shorten"):
        PreferenceText(model, ChoiceItems(["the cat " * 80], [" in"], [" on"]), 1)


def test_a_first_token_that_spans_the_whole_prompt_needs_a_token_before_it(
    load: Any, train_tokenizer: Any
) -> None:
    without, behind = (load("llama", tokenizer=train_tokenizer(bos=bos)) for bos in (False, True))
    # "girl" and "good" are one token each, and "g" is another.
    items = ChoiceItems(["the", " g"], [" cat", "irl"], [" dog", "ood ran"])
    first, second = (without.encode_bodies([text])[0] for text in (" girl", " good ran"))
    assert first[0] != second[0]
    with pytest.raises(ValueError, match=r"item 1 has no token before.*spans the prompt ' g'"):
        PreferenceText(without, items, 1)

    def score(ids: list[int]) -> float:
        with torch.inference_mode():
            logits = behind.engine.model(torch.tensor([[*behind.prefix, *ids]])).logits[0]
        table = logits.double().log_softmax(-1)
        return sum(float(table[position, token]) for position, token in enumerate(ids))

    measured = PreferenceText(behind, items, 1)
    assert measured.propensity()[1] == pytest.approx(score(first) - score(second), abs=1e-5)
    assert measured.n_spanning == 1
