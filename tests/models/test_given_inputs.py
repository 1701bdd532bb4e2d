"""Inputs of a model: token ids, files in place of texts, training mode, and texts cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lrt_lens.errors import MismatchError, NonFiniteError
from lrt_lens.models import HookedModel
from lrt_lens.models._loading import boot_bridge
from lrt_lens.models._text_codec import text_list


@pytest.mark.parametrize("run", ["logits", "capture"])
@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (torch.tensor([1, 2, 3]), ValueError, r"shape \[3\]; expected \[batch, position\]"),
        (torch.tensor([[[1]]]), ValueError, "expected .batch, position"),
        (torch.zeros(1, 0, dtype=torch.long), ValueError, "at least one token per row"),
        (torch.zeros(0, 3, dtype=torch.long), ValueError, "at least one token per row"),
        (torch.tensor([[1.0, 2.7]]), TypeError, "token ids are torch.float32; expected integers"),
        (torch.tensor([[True, False]]), TypeError, "token ids are torch.bool"),
        (torch.tensor([[1, 5000]]), MismatchError, "go from 1 to 5000"),
        (torch.tensor([[1, -2]]), MismatchError, "go from -2 to 1"),
        (torch.ones(1, 65, dtype=torch.long), ValueError, "65 positions"),
    ],
)
def test_token_ids_are_integers_per_batch_and_position(
    model: HookedModel, run: str, tokens: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        model.logits(tokens) if run == "logits" else model.capture(tokens, 1)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_token_ids_may_be_of_any_integer_type(model: HookedModel, dtype: torch.dtype) -> None:
    row = torch.tensor([[1, 2, 100]])
    assert torch.equal(model.logits(row.to(dtype)), model.logits(row))


@pytest.mark.parametrize("texts", [Path("a.txt"), None, 3, {"a": 1}, {"a"}, b"bytes"])
def test_what_holds_no_texts_is_refused_by_its_type(model: HookedModel, texts: Any) -> None:
    # The types of the signatures are checked in tests, and nowhere else.
    runs = [text_list]
    if isinstance(texts, dict | set):
        runs += [model.loss, model.logits, model.encode, model.generate]
    for run in runs:
        with pytest.raises(TypeError, match=f"texts is a {type(texts).__name__}; expected a list"):
            run(texts)


def test_states_that_overflow_are_refused(build_hf: Any, tokenizer: Any) -> None:
    hf = build_hf("llama").half()
    model = HookedModel.load(hf, tokenizer=tokenizer)
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight.mul_(3e3)
        hf.model.layers[1].mlp.up_proj.weight.mul_(3e3)
        states = hf(torch.arange(3, 13)[None], output_hidden_states=True).hidden_states[2]
    assert states.isinf().any()
    assert not states.isnan().any()
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        model.capture(torch.arange(3, 13)[None], 1)


@pytest.mark.parametrize("kind", ["hugging face", "bridge"])
def test_no_dropout_acts_after_the_user_has_trained(
    build_hf: Any, tokenizer: Any, kind: str
) -> None:
    hf = build_hf("gpt2")  # with a dropout of .1
    given = hf if kind == "hugging face" else boot_bridge(hf, tokenizer, "mine")
    model, tokens = HookedModel.load(given, tokenizer=tokenizer), torch.arange(3, 13)[None]
    plain, states = model.logits(tokens), model.capture(tokens, 1)
    text = model.generate("the cat", do_sample=False, max_new_tokens=8)
    given.train()
    assert not torch.equal(hf(tokens).logits, hf(tokens).logits)
    assert torch.equal(model.logits(tokens), plain)
    assert torch.equal(model.capture(tokens, 1), states)
    assert model.generate("the cat", do_sample=False, max_new_tokens=8) == text
    # The user goes on training.
    assert all(module.training for module in hf.transformer.h[0].mlp.modules())


def test_texts_that_are_cut_are_counted(build_hf: Any, tokenizer: Any, caplog: Any) -> None:
    model = HookedModel.load(build_hf("llama"), tokenizer=tokenizer)
    texts = ["the cat"] + [" ".join(["cat"] * 80)] * 2
    runs = [
        lambda: model.logits(texts, truncation="right"),
        lambda: model.capture(texts, 1, truncation="left"),
        lambda: model.loss(texts, truncation="left"),
        lambda: model.generate(texts, truncation="left", max_new_tokens=1),
        lambda: model.encode(texts, truncation="right"),
    ]
    for run in runs:
        caplog.clear()
        run()
        assert caplog.text.count("2 of 3 text(s) are longer than the 64 tokens") == 1
    caplog.clear()
    model.loss(texts)
    assert not caplog.text


def test_a_model_without_one_table_of_tokens_is_refused(tokenizer: Any) -> None:
    config = transformers.MusicgenDecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        ffn_dim=32,
        num_codebooks=1,
        max_position_embeddings=48,
    )
    with pytest.raises(ValueError, match="embeds its tokens by a ModuleList; expected one table"):
        HookedModel.load(transformers.MusicgenForCausalLM(config), tokenizer=tokenizer)
