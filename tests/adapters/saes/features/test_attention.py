"""Path ablation changes the input of one layer at one position and reads that layer's pattern."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lrt_lens.adapters.saes.features._attention import (
    Example,
    Halves,
    _head_row,
    attention_effects,
    first_token_attention,
    strongest_heads,
)
from lrt_lens.adapters.saes.features._coder import FeatureCoder

HOOK = "blocks.0.hook_resid_post"


def _llama_pattern(model: Any, layer: int, residual: torch.Tensor) -> torch.Tensor:
    """Attention pattern of a Llama layer, written out, [head, query, key]."""
    bare = model.bridge.original_model
    block = [b.original_component for b in model.bridge.blocks][layer]
    attention = block.self_attn
    take = lambda module: getattr(module, "original_component", module).weight.detach().double()  # noqa: E731
    norm = take(block.input_layernorm)
    x = residual.double()
    x = x / (x.pow(2).mean(-1, keepdim=True) + bare.config.rms_norm_eps).sqrt() * norm
    n_heads, n_kv = bare.config.num_attention_heads, bare.config.num_key_value_heads
    q = (x @ take(attention.q_proj).T).view(len(x), n_heads, -1)
    k = (x @ take(attention.k_proj).T).view(len(x), n_kv, -1).repeat_interleave(n_heads // n_kv, 1)
    half = q.shape[-1] // 2
    theta = float((getattr(bare.config, "rope_parameters", None) or {}).get("rope_theta", 10_000.0))
    angle = torch.arange(len(x)).double()[:, None] * theta ** (-torch.arange(half).double() / half)
    cos, sin = torch.cat([angle.cos()] * 2, -1)[:, None], torch.cat([angle.sin()] * 2, -1)[:, None]
    turn = lambda v: v * cos + torch.cat([-v[..., half:], v[..., :half]], -1) * sin  # noqa: E731
    scores = torch.einsum("qhd,khd->hqk", turn(q), turn(k)) / (2 * half) ** 0.5
    return scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf).softmax(-1)


def test_the_pattern_is_that_of_the_layer_and_attention_is_fused_again_afterwards(
    pair: Any,
) -> None:
    model = pair.target
    ids = model.encode(["the little cat saw a big river"])[0]
    tokens, last = torch.tensor([ids]), torch.tensor([len(ids) - 1])
    residual = model.engine.capture(tokens, [HOOK])[HOOK]
    before = model.bridge.original_model.config._attn_implementation
    attended = first_token_attention(model, 1, tokens, residual, last)
    expected = _llama_pattern(model, 1, residual[0])[:, -1, 0]
    np.testing.assert_allclose(attended[0], expected, atol=1e-5)
    assert model.bridge.original_model.config._attn_implementation == before == "sdpa"
    modules = list(model.bridge.original_model.modules())
    assert not any(
        module._forward_hooks for module in modules if type(module).__name__ == "LlamaAttention"
    )


def test_effects_are_the_change_of_the_pattern_when_the_contribution_is_taken_out_at_one_position(
    pair: Any, sae: Any
) -> None:
    model, coder = pair.source, FeatureCoder(sae)
    texts = [
        "the little cat saw a big river",
        "a queen gave the old stone",
        "they sang and the bird slept",
        "he took the red house then she ran",
    ]
    examples = [Example(ids) for ids in model.encode(texts)]
    x = [model.capture(torch.tensor([e.ids]), HOOK)[0] for e in examples]
    activations = torch.stack([coder.encode(stream[-1:])[0] for stream in x])
    feature = int(activations.mean(0).argmax())
    table = attention_effects(
        model,
        HOOK,
        coder,
        {feature: examples, feature + 1 if feature < 39 else 0: examples[:2]},
        role="source",
        seed=0,
    )
    assert set(table["feature"]) == {feature}, "two examples are too few"
    assert list(table["layer"]) == [1, 1]
    for head in range(2):
        effects = []
        for stream, activation in zip(x, activations[:, feature], strict=True):
            changed = stream.clone()
            changed[-1] -= activation * sae.W_dec[feature].detach()
            effects.append(
                float(
                    _llama_pattern(model, 1, stream)[head, -1, 0]
                    - _llama_pattern(model, 1, changed)[head, -1, 0]
                )
            )
        row = table.iloc[head]
        assert row["effect"] == pytest.approx(np.mean(effects[1::2]), abs=1e-5)
        assert row["effect_choosing"] == pytest.approx(np.mean(effects[::2]), abs=1e-5)
        assert row["low"] <= row["effect"] <= row["high"]
        assert row["effect_random"] > 0


@pytest.mark.parametrize("architecture", ["gpt2", "neox", "gemma", "qwen2"])
def test_every_architecture_gives_a_pattern_that_the_residual_decides(
    models: dict[str, Any], architecture: str
) -> None:
    model = models[architecture]
    tokens = torch.tensor(model.encode(["the little cat saw a big river"]))
    last = torch.tensor([tokens.shape[1] - 1])
    residual = model.engine.capture(tokens, [HOOK])[HOOK]
    own = first_token_attention(model, 1, tokens, residual, last)
    assert own.shape == (1, 2)
    assert ((own > 0) & (own < 1)).all()
    other = residual.clone()
    other[0, -1] += 3
    other[0, -1, ::2] -= 6
    assert not torch.allclose(first_token_attention(model, 1, tokens, other, last), own, atol=1e-4)


def test_the_strongest_head_is_chosen_on_the_choosing_half() -> None:
    table = pd.DataFrame(
        {
            "feature": [1, 1, 1, 2],
            "model": ["source", "source", "target", "source"],
            "head": [0, 1, 0, 3],
            "effect": [0.9, 0.1, 0.2, 0.3],
            "effect_choosing": [0.1, -0.5, 0.3, 0.0],
        }
    )
    assert strongest_heads(table)["head"].tolist() == [1, 0, 3]


def test_examples_of_one_document_are_in_one_half_and_one_unit() -> None:
    examples = [Example([1, 2], document) for document in (7, 7, 3, 3, 9, None)]
    halves = Halves.of(examples)
    # Documents 7, 3, 9 and that of the last example alternate.
    assert halves.reporting.tolist() == [False, False, True, True, False, True]
    effects = np.zeros((21, 6, 1))
    effects[0, :, 0] = [0.0, 0.0, 0.2, 0.4, 0.0, 0.9]
    effects[1:, :, 0] = np.linspace(-0.6, 0.6, 20)[:, None]
    row = _head_row(effects[:, :, 0], 0, halves)
    assert row["effect"] == pytest.approx(0.5)
    assert (row["n_documents"], row["interval_flag"]) == (2, "2 independent documents")
    # 4 of the 20 random directions have effects of .5 or more in size.
    assert row["p"] == pytest.approx((1 + int((np.abs(effects[1:, 0, 0]) >= 0.5).sum())) / 21)
    assert row["p_floor"] == 1 / 21
    # Few documents give long intervals, but no probability changes by more than 1.
    assert -1 <= row["low"] < row["effect"] < row["high"] <= 1
    single = Halves.of([Example([1], 4), Example([2], 4)])
    assert single.reporting.tolist() == [False, True]
    assert "1 document" in single.flag
