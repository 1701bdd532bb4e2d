"""Neutral text: which tokens of a conversation are prompt, and which count."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lrt_lens.adapters.vectors import NeutralText, SteeringVector, calibrate_scale
from lrt_lens.adapters.vectors._steering_hook import SteeringHook, adding
from lrt_lens.data import ContrastSet
from lrt_lens.models import HookedModel

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }} .\n{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)
CHATS = [
    [
        {"role": "user", "content": "the cat saw a bird"},
        {"role": "assistant", "content": "the bird sang in the old garden and the boy ran"},
    ],
    [
        {"role": "system", "content": "the king was good"},
        {"role": "user", "content": "the dog"},
        {"role": "assistant", "content": "the dog slept"},
        {"role": "user", "content": "and then"},
        {"role": "assistant", "content": "it found a red stone under the big tree"},
    ],
]
CONTRAST = ContrastSet(
    ["the happy cat sang in the garden", "the good boy sang"],
    ["the sad cat slept in the garden", "the bad boy slept"],
)


@pytest.fixture
def chatty(model: HookedModel) -> Iterator[HookedModel]:
    """The Llama with a chat template that writes BOS itself."""
    before = model.tokenizer.chat_template
    model.tokenizer.chat_template = TEMPLATE
    yield model
    model.tokenizer.chat_template = before


def rows(model: HookedModel) -> list[tuple[list[int], int]]:
    """Return (tokens, prompt length) of each conversation, formatted by hand."""
    made = []
    for chat in CHATS:
        lines = [f"{turn['role'][0]} {turn['content']} .\n" for turn in chat]
        head = model.encode(["".join(lines[:-1]) + "a "])[0]
        whole = model.encode(["".join(lines)])[0]
        prompt = next(i for i in range(len(whole) + 1) if i == len(head) or whole[i] != head[i])
        made.append((whole, prompt))
    return made


def kl(model: HookedModel, vector: SteeringVector, step: float, generated: bool) -> float:
    """Return KL(unsteered ‖ steered) from whole passes, one row at a time, in float64."""
    terms = []
    for tokens, prompt in rows(model):

        def change(
            x: torch.Tensor, hook: Any, first: int = prompt if generated else 4
        ) -> torch.Tensor:
            x = x.clone()
            x[:, max(first, 4) :] += step * vector.direction
            return x

        ids = torch.tensor([tokens])
        p = model.logits(ids)[0, prompt - 1 : -1].double().log_softmax(-1)
        with model.intervene({vector.hook: change}):
            q = model.logits(ids)[0, prompt - 1 : -1].double().log_softmax(-1)
        terms.append((p.exp() * (p - q)).sum(-1))
    return float(torch.cat(terms).mean())


@pytest.mark.parametrize("positions", ["all", "generated"])
def test_damage_counts_on_the_assistants_last_turn_alone(
    chatty: HookedModel, positions: Any
) -> None:
    vector = SteeringVector.mean_difference(chatty, CONTRAST, at=1)
    calibration = calibrate_scale(chatty, vector, CHATS, 0.05, unit="kl", positions=positions)
    assert calibration.damage == pytest.approx(0.05, rel=0.02)
    assert kl(chatty, vector, calibration.scale, positions == "generated") == pytest.approx(
        calibration.damage, rel=1e-3
    )


def test_the_rise_of_the_loss_counts_on_the_same_tokens(chatty: HookedModel) -> None:
    neutral = NeutralText(chatty, CHATS, 1)
    losses = [chatty.token_losses([tokens])[0, prompt - 1 :] for tokens, prompt in rows(chatty)]
    assert neutral.baseline == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    assert sum(map(len, losses)) > 20
    assert (
        NeutralText(chatty, [{"messages": chat} for chat in CHATS], 1).baseline == neutral.baseline
    )


def test_the_template_and_the_policy_do_not_both_write_bos(chatty: HookedModel) -> None:
    assert chatty.prepend_bos
    first = NeutralText(chatty, CHATS, 1).batches.rows[0]
    assert first.count(chatty.tokenizer.bos_token_id) == 1
    assert first[0] == chatty.tokenizer.bos_token_id


def test_texts_and_conversations_can_be_mixed(chatty: HookedModel, passages: list[str]) -> None:
    texts, chats, both = (
        NeutralText(chatty, some, 1) for some in (passages[:3], CHATS, [*passages[:3], *CHATS])
    )
    n_texts = sum(len(row) - 5 for row in texts.batches.rows)
    n_chats = sum(len(tokens) - prompt for tokens, prompt in rows(chatty))
    assert both.baseline == pytest.approx(
        (n_texts * texts.baseline + n_chats * chats.baseline) / (n_texts + n_chats), rel=1e-5
    )


@pytest.mark.usefixtures("unchecked")
def test_conversations_without_an_answer_are_refused(chatty: HookedModel) -> None:
    with pytest.raises(ValueError, match="conversation 0 ends with the turn of 'user'"):
        NeutralText(chatty, [CHATS[0][:1]], 1)
    with pytest.raises(
        ValueError,
        match=r"conversation 1 has no answer within the 64 tokens of the context: its prompt has",
    ):
        NeutralText(
            chatty, [CHATS[0], [{"role": "user", "content": "the cat sang " * 40}, CHATS[0][1]]], 1
        )
    with pytest.raises(ValueError, match="expected a text, a row with 'text', or a chat"):
        NeutralText(chatty, CHATS[0], 1)
    chatty.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        NeutralText(chatty, CHATS, 1)


def test_the_unsteered_stream_is_that_of_the_steerable_positions(
    model: HookedModel, passages: list[str]
) -> None:
    neutral = NeutralText(model, passages[:5], 1)
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    for hook in (neutral.batches.hook, "blocks.2.hook_resid_post"):
        stream = torch.cat([model.capture(text, hook)[0, 4:] for text in passages[:5]])
        assert neutral.mean_component(direction, hook) == pytest.approx(
            float((stream @ direction / direction.norm()).mean()), abs=1e-4
        )
        assert neutral.median_norm(hook) == pytest.approx(
            float(stream.norm(dim=1).median()), rel=1e-4
        )


def test_a_text_beyond_the_context_is_read_in_windows(model: HookedModel) -> None:
    long, short = "the cat sang in the old garden " * 12, "the boy ran to the river"
    steer = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
    neutral = NeutralText(model, [long, short], 1)
    rows = [window for parts in model.codec.windows([long, short]) for window in parts]
    assert len(rows) > 2

    def loss() -> float:
        losses = [
            torch.nn.functional.cross_entropy(
                model.logits(torch.tensor([row]))[0, 4:-1].double(),
                torch.tensor(row[5:]),
                reduction="none",
            )
            for row in rows
        ]
        return float(torch.cat(losses).mean())

    unsteered = loss()
    hook = SteeringHook(adding(steer), "all", 4)
    assert neutral.baseline == pytest.approx(unsteered, rel=1e-5)
    with model.intervene({1: hook}):
        assert neutral.damage(hook) == pytest.approx(loss() - unsteered, abs=1e-4)
