"""The steered tokens of a generation are the same however its calls are made."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.models import HookedModel
from tests.models.decoders import DECODERS, END, build_decoder

HOOK = "blocks.1.hook_resid_post"
IDS = torch.tensor([[END, END, END, 5, 6, 7], [5, 6, 7, 8, 9, 10]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
N_NEW = 4
STEERED = {
    "all": [[6, 7, 8], [3, 4, 5, 6, 7, 8]],
    "last": [[5], [5]],
    "generated": [[6, 7, 8], [6, 7, 8]],
}
"""Steered columns of both rows, by positions; the first tokens are skipped: 3, 2 and 2 of them."""
SKIPPED = {"all": 3, "last": 2, "generated": 2}


def load(name: str, tokenizer: Any, **config: Any) -> HookedModel:
    recipe = next(one for one in DECODERS if one.name == name)
    hf = build_decoder(recipe, len(tokenizer))
    if config:
        hf = type(hf)(type(hf.config)(**hf.config.to_dict() | config))
    hf.generation_config.eos_token_id = None
    return HookedModel.load(hf, tokenizer=tokenizer)


def steered_columns(
    model: HookedModel, positions: Any, ids: Tensor, mask: Tensor, skip_first: int, **options: Any
) -> list[list[int]]:
    """Return the columns of each row that are steered, each in every call that has it."""
    hf = model.engine.model
    vector = SteeringVector(torch.ones(model.d_model), HOOK, None, skip_first=skip_first)
    steered: list[set] = [set() for _ in ids]
    unsteered: list[set] = [set() for _ in ids]
    seen, before = 0, []

    def compare(after: Tensor, hook: Any) -> None:
        nonlocal seen
        changed = (after - before.pop()).abs().amax(-1) > 0.5
        start = 0 if changed.shape[1] > 1 and "prefill_chunk_size" not in options else seen
        seen = start + changed.shape[1]
        for row in range(len(ids)):
            for column in range(changed.shape[1]):
                # Several beams of one row follow each other.
                is_changed = changed[row * options.get("num_beams", 1), column]
                (steered if is_changed else unsteered)[row].add(start + column)

    with (
        model.intervene({HOOK: lambda x, hook: before.append(x.clone())}),
        vector.apply(model, positions=positions),
        model.intervene({HOOK: compare}),
    ):
        settings = {"max_new_tokens": N_NEW, "do_sample": False, "pad_token_id": END} | options
        hf.generate(input_ids=ids, attention_mask=mask, **settings)
    assert not any(a & b for a, b in zip(steered, unsteered, strict=True))
    assert seen == ids.shape[1] + N_NEW - 1
    return [sorted(columns) for columns in steered]


@pytest.mark.parametrize("positions", STEERED)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("llama", {"use_cache": False}),
        ("llama", {"prefill_chunk_size": 4}),
        ("llama", {"cache_implementation": "static"}),
        ("llama", {"num_beams": 2}),
        ("mistral", {"cache_implementation": "static"}),
        ("bloom", {"cache_implementation": "static"}),
        ("openai_gpt", {}),
        ("mamba", {}),
        ("mamba2", {}),
        ("mamba", {"use_cache": False}),
        ("falcon_mamba", {}),
    ],
    ids=str,
)
def test_the_same_tokens_are_steered_in_every_kind_of_call(
    name: str, options: dict, positions: Any, tokenizer: Any
) -> None:
    model = load(name, tokenizer)
    columns = steered_columns(model, positions, IDS, MASK, SKIPPED[positions], **options)
    assert columns == STEERED[positions]


@pytest.mark.parametrize("positions", STEERED)
def test_a_bridge_that_generates_without_a_cache_steers_as_with_one(
    positions: Any, tokenizer: Any
) -> None:
    bridge = load("llama", tokenizer).bridge
    model = HookedModel.load(bridge, tokenizer=tokenizer)
    vector = SteeringVector(3 * torch.randn(model.d_model), HOOK, None, skip_first=2)
    options = {"max_new_tokens": N_NEW, "do_sample": False, "stop_at_eos": False}
    plain = bridge.generate(IDS[1:], verbose=False, **options)
    with vector.apply(model, positions=positions):
        texts = [
            bridge.generate(IDS[1:], use_past_kv_cache=cached, verbose=False, **options).tolist()
            for cached in (True, False)
        ]
    assert texts[0] == texts[1]
    assert texts[0] != plain.tolist()


def test_a_window_narrower_than_the_prompt_hides_no_token(tokenizer: Any) -> None:
    model = load("mistral", tokenizer, sliding_window=4)
    ids = torch.arange(1, 13)[None]
    ones = torch.ones_like(ids)
    static = {"cache_implementation": "static"}
    expected = [list(range(2, 12 + N_NEW - 1))]
    assert steered_columns(model, "all", ids, ones, 2, **static) == expected


def test_methods_of_the_model_are_its_own_again(tokenizer: Any) -> None:
    model = load("llama", tokenizer)
    hf = model.engine.model
    before = dict(vars(hf))
    vector = SteeringVector(torch.ones(model.d_model), HOOK, None)
    first, second = vector.apply(model), vector.apply(model, positions="generated")
    # A copy that is made meanwhile calls its own methods.
    assert copy.deepcopy(hf).generate.__self__ is not hf
    first.remove()
    assert "generate" in vars(hf)
    second.remove()
    assert set(vars(hf)) == set(before)


def test_tokens_of_unknown_position_are_refused(tokenizer: Any) -> None:
    """A recurrent model, called by hand, whose later calls have no mask."""
    model = load("mamba", tokenizer)
    hf = model.engine.model
    vector = SteeringVector(torch.ones(model.d_model), HOOK, None, skip_first=4)
    with vector.apply(model), torch.no_grad():
        first = hf(IDS, attention_mask=MASK, use_cache=True)
        following = {"cache_params": first.cache_params, "use_cache": True}
        with pytest.raises(ValueError, match="no attention mask.*unknown"):
            hf(IDS[:, -1:], **following)
        # A new text without padding is steered again.
        hf(IDS)
