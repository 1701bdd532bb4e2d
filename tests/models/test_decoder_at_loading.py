"""Properties of a decoder that are found when it is loaded: context, embedding, overflow."""

from typing import Any

import pytest
import torch
import transformers

from lrt_lens.errors import NonFiniteError
from lrt_lens.models import HookedModel
from lrt_lens.models._decoder import _context_length
from tests.models.decoders import DECODERS, build_decoder


def build(name: str, tokenizer: Any) -> Any:
    return build_decoder(next(one for one in DECODERS if one.name == name), len(tokenizer))


def test_the_context_of_roberta_leaves_out_the_reserved_positions(tokenizer: Any) -> None:
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=66,
        is_decoder=True,
        pad_token_id=1,
    )
    hf = transformers.RobertaForCausalLM(config).eval()
    model = HookedModel.load(hf, tokenizer=tokenizer)
    assert model.context_length == 64
    model.logits(torch.full((1, 64), 9))
    with pytest.raises((IndexError, RuntimeError)):
        hf(torch.full((1, 65), 9))
    assert model.loss(" ".join(["cat"] * 80)) > 0


def test_the_context_of_a_decoder_of_speech_is_that_of_its_table(tokenizer: Any) -> None:
    hf = build("whisper", tokenizer)
    model = HookedModel.load(hf, tokenizer=tokenizer)
    assert model.context_length == hf.model.decoder.embed_positions.num_embeddings == 64
    with pytest.raises(ValueError, match="longer than the 64 tokens"):
        model.logits(" ".join(["cat"] * 80))
    # A config that names no length of the context.
    del hf.config.max_target_positions
    assert _context_length(object(), hf) == 64


@pytest.mark.parametrize("name", ["bert", "opt", "gpt2"])
def test_other_contexts_are_those_of_the_config(name: str, tokenizer: Any) -> None:
    assert HookedModel.load(build(name, tokenizer), tokenizer=tokenizer).context_length == 64


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "bert", "gemma", "gemma3_text", "opt"])
def test_the_embedding_is_where_transformer_lens_has_it(name: str, tokenizer: Any) -> None:
    model = HookedModel.load(build(name, tokenizer), tokenizer=tokenizer)
    row = torch.arange(1, 9)[None]
    expected = model.bridge.run_with_cache(row)[1]["hook_embed"]
    torch.testing.assert_close(model.capture(row, "hook_embed"), expected, atol=1e-5, rtol=1e-5)
    plain = model.logits(row)
    with model.intervene({"hook_embed": lambda x, hook: x * 1.5 + 1}):
        assert not torch.allclose(model.logits(row), plain, atol=1e-3)


def test_logits_that_overflow_are_named_and_masked_ones_are_not(tokenizer: Any) -> None:
    hf = build("llama", tokenizer).half()
    with torch.no_grad():
        hf.lm_head.weight.mul_(3e4)
    with pytest.raises(NonFiniteError, match=r"overflow in torch.float16.*dtype='bfloat16'"):
        HookedModel.load(hf, tokenizer=tokenizer)
    masked = build("llama", tokenizer)
    masked.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
    with torch.no_grad():
        masked.lm_head.bias[-3:] = float("-inf")
    model = HookedModel.load(masked, tokenizer=tokenizer)
    assert model.logits(torch.arange(1, 9)[None])[..., -3:].isneginf().all()
