"""Steering of a user's own padded batches: every row is steered as it is alone."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_lens.adapters.vectors import Intervention, SteeringVector
from lrt_lens.models import HookedModel
from tests.models.decoders import DECODERS, END, build_decoder

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma2", "opt", "mistral", "bloom", "falcon")
# Ids of texts of unequal length; two of them begin, or end, with the id that pads.
ROWS = (
    [5, 9, 21, 33, 8, 14, 90, 7, 45, 12],
    [END, 17, 60, 25, 31, 44],
    [END, END, 11, 72, 38, 19, 66, END],
    [50],
)
N_NEW = 4


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tokenizer: Any) -> HookedModel:
    """A small model of each family, whose id for padding is that of BOS and EOS."""
    recipe = next(one for one in DECODERS if one.name == request.param)
    hf = build_decoder(recipe, len(tokenizer))
    hf.generation_config.pad_token_id = END
    # No text ends early, and greedy decoding is the same with and without padding.
    hf.generation_config.eos_token_id = None
    return HookedModel.load(hf, tokenizer=tokenizer)


def vectors(model: HookedModel, skip_first: int) -> list[SteeringVector]:
    generator = torch.Generator().manual_seed(1)
    return [
        SteeringVector(
            3 * torch.randn(model.d_model, generator=generator),
            hook,
            None,
            method="random",
            skip_first=skip_first,
        )
        for hook in HOOKS[: 1 if model.n_layers < 3 else 2]
    ]


def padded(side: str) -> tuple[Tensor, Tensor]:
    """Return the rows as one batch of ids and its attention mask."""
    width = max(map(len, ROWS))
    ids, mask = torch.full((len(ROWS), width), END), torch.zeros(len(ROWS), width, dtype=torch.long)
    for i, row in enumerate(ROWS):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    return ids, mask


def generate(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return new ids [row, new] and their logits [row, new, vocabulary] of plain transformers."""
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=N_NEW,
        min_new_tokens=N_NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[:, -N_NEW:], torch.stack(out.logits, 1)


@pytest.mark.parametrize("positions", ["all", "last", "generated"])
@pytest.mark.parametrize("skip_first", [0, 3])
@torch.no_grad()
def test_a_left_padded_row_is_generated_as_it_is_alone(
    model: HookedModel, positions: Any, skip_first: int
) -> None:
    hf, changed = model.engine.model, False
    step = Intervention.of(vectors(model, skip_first), positions=positions)
    with step.apply(model):
        together = generate(hf, *padded("left"))
        for i, row in enumerate(ROWS):
            ids = torch.tensor([row])
            alone = generate(hf, ids, torch.ones_like(ids))
            torch.testing.assert_close(together[1][i], alone[1][0], atol=2e-3, rtol=2e-3)
            assert together[0][i].tolist() == alone[0][0].tolist()
    for i in range(len(ROWS)):
        changed = changed or not torch.allclose(
            generate(hf, *padded("left"))[1][i], together[1][i], atol=1e-2
        )
    assert changed


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("through", ["model", "decoder", "by position", "bridge"])
@torch.no_grad()
def test_a_padded_row_of_an_own_forward_pass_is_steered_as_it_is_alone(
    model: HookedModel, side: str, through: str
) -> None:
    """The states that enter the last block, of all rows, at all tokens."""
    hf = model.engine.model
    if through == "bridge" and (model.engine._problem or model.engine._bridge is None):
        pytest.skip("this model has no bridge that runs it")
    if side == "left" and hf.config.model_type == "gpt2":
        pytest.skip("GPT-2 counts columns unless position_ids are passed")
    hook = f"blocks.{model.n_layers - 1}.hook_resid_pre"
    seen: list[Tensor] = []
    names = list(inspect.signature(hf.forward).parameters)
    calls = {
        "model": lambda ids, mask: hf(ids, attention_mask=mask, use_cache=False),
        "decoder": lambda ids, mask: hf.base_model(ids, attention_mask=mask, use_cache=False),
        "by position": lambda ids, mask: hf(
            *(
                ids if name == "input_ids" else mask if name == "attention_mask" else None
                for name in names[: names.index("attention_mask") + 1]
            ),
            use_cache=False,
        ),
        "bridge": lambda ids, mask: model.bridge(ids, attention_mask=mask),
    }
    step = Intervention.of(vectors(model, 3)[:1], positions="all")
    with step.apply(model), model.intervene({hook: lambda x, hook: seen.append(x.clone())}):
        ids, mask = padded(side)
        calls[through](ids, mask)
        for row in ROWS:
            alone = torch.tensor([row])
            calls[through](alone, torch.ones_like(alone))
    together, alone = seen[0], seen[1:]
    for i in range(len(ROWS)):
        torch.testing.assert_close(together[i][mask[i].bool()], alone[i][0], atol=2e-3, rtol=2e-3)


@torch.no_grad()
def test_a_mask_acts_on_its_own_call_alone(model: HookedModel) -> None:
    hf = model.engine.model
    [(_, hook)] = vectors(model, 3)[0].hooks()
    ids, mask = padded("left")
    with model.intervene({HOOKS[0]: hook}):
        before = hf(ids, use_cache=False).logits
        hf(ids, attention_mask=mask, use_cache=False)
        assert hook.running is None
        assert torch.equal(hf(ids, use_cache=False).logits, before)
        # A capture ends by an exception in the middle of the pass.
        model.capture(ids, HOOKS[0])
        assert hook.running is None
    hf(ids, attention_mask=mask, use_cache=False)
    assert hook.running is None
    assert not hf._forward_pre_hooks
    assert not hf.base_model._forward_pre_hooks


@torch.no_grad()
def test_a_conversation_goes_on_behind_its_cache(model: HookedModel) -> None:
    """Several tokens at once behind a key-value cache are not the beginning of a text."""
    hf = model.engine.model
    [(_, hook)] = vectors(model, 3)[0].hooks()
    row = torch.tensor([ROWS[0]])
    ones = torch.ones_like(row)
    with model.intervene({HOOKS[0]: hook}):
        expected = hf(row, attention_mask=ones).logits[:, 6:]
        first = hf(row[:, :6], attention_mask=ones[:, :6], use_cache=True)
        rest = hf(row[:, 6:], attention_mask=ones, past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.logits, expected, atol=2e-3, rtol=2e-3)
