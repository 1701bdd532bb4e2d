"""A text of a padded batch is what it is alone, on both sides of LongRoPE's threshold."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from lrt_lens.models import HookedModel
from tests.models.decoders import perturb

THRESHOLD = 16
LENGTHS = (9, 16, 17, 30)
HOOK = "blocks.1.hook_resid_post"
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 4.0, 6.0, 8.0],
}


def build(kind: str, d_vocab: int) -> Any:
    sizes = {
        "vocab_size": d_vocab,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "original_max_position_embeddings": THRESHOLD,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if kind == "phi3":
        rope = LONG | {"original_max_position_embeddings": THRESHOLD, "rope_theta": 1e4}
        config = transformers.Phi3Config(rope_parameters=rope, **sizes)
        return transformers.Phi3ForCausalLM(config)
    mscales = {"short_mscale": 1.1, "long_mscale": 1.3}
    rope = LONG | mscales | {"original_max_position_embeddings": THRESHOLD, "rope_theta": 1e4}
    config = transformers.PhimoeConfig(rope_parameters=rope, num_local_experts=4, **sizes)
    config.architectures = ["PhiMoEForCausalLM"]
    return transformers.PhimoeForCausalLM(config)


@pytest.fixture(scope="module", params=["phi3", "phimoe", "phi3 bridge"])
def model(request: pytest.FixtureRequest, tokenizer: Any) -> HookedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = build(request.param.split()[0], len(tokenizer) + 1).eval()
        perturb(hf)
    model = HookedModel.load(hf, tokenizer=tokenizer)
    if "bridge" in request.param:
        return HookedModel.load(model.bridge, tokenizer=tokenizer)
    return model


def rows(d_vocab: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randint(1, d_vocab - 1, (n,), generator=generator).tolist() for n in LENGTHS]
    # A long text that ends with the usual id of padding.
    made[2][-1] = 0
    return made


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_batch_of_short_and_long_texts_is_each_text_alone(model: HookedModel) -> None:
    texts = rows(model.d_vocab)
    together = model.pad(texts)
    logits, losses = model.logits(together), model.token_losses(texts)
    states = model.engine.capture(together, [HOOK])[HOOK]
    mixed = 0
    for i, row in enumerate(texts):
        alone = torch.tensor([row])
        with torch.inference_mode():
            expected = model.engine.model(alone, use_cache=False).logits[0]
        close(logits[i, : len(row)], expected)
        close(states[i, : len(row)], model.engine.capture(alone, [HOOK])[HOOK][0])
        close(losses[i, : len(row) - 1], model.token_losses([row])[0])
        with torch.inference_mode():
            plain = model.engine.model(together, use_cache=False).logits[i, : len(row)]
        mixed += not torch.allclose(plain, expected, atol=1e-2)
    # transformers alone gives the short texts other numbers in this batch.
    assert mixed == 2


def test_resuming_a_batch_of_both_kinds_is_the_whole_pass(model: HookedModel) -> None:
    together = model.pad(rows(model.d_vocab))
    residual = model.engine.capture(together, [HOOK])[HOOK]
    expected = model.logits(together)
    with model.engine.resuming(HOOK, residual):
        resumed = model.logits(together)
    for i, n in enumerate(LENGTHS):
        close(resumed[i, :n], expected[i, :n])


def test_nothing_stays_on_the_rotary_embedding(model: HookedModel) -> None:
    model.logits(model.pad(rows(model.d_vocab)))
    assert not any(
        module._forward_hooks
        for module in model.engine.model.modules()
        if hasattr(module, "rope_type")
    )
