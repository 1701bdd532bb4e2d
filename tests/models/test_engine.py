"""Tests of both engines against Hugging Face.

Activations are equal, no layer runs without need, and the model is unchanged afterwards.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.errors import HookPointError, NonFiniteError
from lrt_lens.models import HookedModel
from lrt_lens.models._lens_engines import HookedTransformerEngine
from lrt_lens.models._loading import boot_bridge

FINAL_NORM = {
    "llama": "norm",
    "gpt2": "ln_f",
    "neox": "final_layer_norm",
    "gemma": "norm",
    "qwen2": "norm",
}
EMBEDDING = {
    "llama": "embed_tokens",
    "gpt2": "wte",
    "neox": "embed_in",
    "gemma": "embed_tokens",
    "qwen2": "embed_tokens",
}
BEFORE_MLP = {
    "llama": "post_attention_layernorm",
    "gpt2": "ln_2",
    "gemma": "post_attention_layernorm",
    "qwen2": "post_attention_layernorm",
}


@pytest.fixture(scope="module")
def tokens(tokenizer: Any) -> Tensor:
    return torch.tensor(
        [
            tokenizer(text)["input_ids"][:9]
            for text in (
                "the little cat slept on the old stone house",
                "a sad queen saw the red bird under it",
            )
        ]
    )


@pytest.fixture(scope="module")
def reference(build_hf: Any, tokens: Tensor) -> Any:
    """Activations of a Hugging Face model without TransformerLens, by hook point."""

    def compute(architecture: str) -> dict[str, Tensor]:
        bare = build_hf(architecture)
        decoder = bare.base_model
        seen: dict[str, Tensor] = {}
        layers = getattr(decoder, "layers", None) or decoder.h
        getattr(decoder, FINAL_NORM[architecture]).register_forward_pre_hook(
            lambda module, args: seen.update(last=args[0])
        )
        getattr(decoder, EMBEDDING[architecture]).register_forward_hook(
            lambda module, args, output: seen.update(hook_embed=output)
        )
        for index, layer in enumerate(layers):
            if architecture in BEFORE_MLP:
                name = f"blocks.{index}.hook_resid_mid"
                getattr(layer, BEFORE_MLP[architecture]).register_forward_pre_hook(
                    lambda module, args, name=name: seen.update({name: args[0]})
                )
        with torch.inference_mode():
            out = bare(tokens, output_hidden_states=True)
        for index, state in enumerate(out.hidden_states[:-1]):
            seen[f"blocks.{index}.hook_resid_pre"] = state
        for index in range(len(layers) - 1):
            seen[f"blocks.{index}.hook_resid_post"] = out.hidden_states[index + 1]
        # The last hidden state of Hugging Face is the output of the final norm.
        seen[f"blocks.{len(layers) - 1}.hook_resid_post"] = seen.pop("last")
        seen["logits"] = out.logits
        return seen

    return compute


TRANSFORMER_LENS_4 = version("transformer-lens").startswith("4")


def hooks_on(model: HookedModel) -> list[int]:
    """Return the ids of all hooks on all modules, those of PyTorch and of TransformerLens."""
    roots: list[nn.Module] = [model.engine.model, getattr(model.bridge, "original_model", None)]
    found = [
        hook
        for root in roots
        if root is not None
        for module in root.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    ]
    found += [handle for point in model.bridge.hook_dict.values() for handle in point.fwd_hooks]
    return sorted(map(id, found))


@contextmanager
def calls_counted(model: HookedModel) -> Iterator[Counter]:
    """Count the calls of each decoder layer (by index) and of the unembedding ("unembed")."""
    calls: Counter = Counter()
    # A pass runs the Hugging Face model, or the bridge's own modules for hook_resid_mid.
    modules = [
        (index, block)
        for index, bridged in enumerate(model.bridge.blocks)
        for block in (bridged.original_component, model.engine.original_module(bridged))
    ]
    unembed = model.bridge.unembed
    modules += [
        ("unembed", module)
        for module in (unembed.original_component, model.engine.original_module(unembed))
    ]
    handles = [
        module.register_forward_pre_hook(lambda module, args, key=key: calls.update([key]))
        for key, module in modules
    ]
    yield calls
    for handle in handles:
        handle.remove()


# ------------------------------------------------------------------------------------------- bridge


def test_every_hook_point_equals_hugging_face(
    architecture: str, models: dict, reference: Any, tokens: Tensor
) -> None:
    model, expected = models[architecture], reference(architecture)
    logits = expected.pop("logits")
    assert set(model.hook_points) == set(expected)
    for name in model.hook_points:
        torch.testing.assert_close(
            model.capture(tokens, name), expected[name], atol=1e-5, rtol=1e-5
        )
    torch.testing.assert_close(model.logits(tokens), logits, atol=1e-5, rtol=1e-5)


def test_streams_captured_without_resid_mid_are_bit_equal_to_hugging_face(
    architecture: str, models: dict, reference: Any, tokens: Tensor
) -> None:
    expected = reference(architecture)
    names = [name for name in models[architecture].hook_points if not name.endswith("mid")]
    seen = models[architecture].capture(tokens, names)
    assert all(torch.equal(seen[name], expected[name]) for name in names)


def test_several_hook_points_at_once_are_those_captured_alone(
    architecture: str, models: dict, tokens: Tensor
) -> None:
    model = models[architecture]
    together = model.capture(tokens, list(model.hook_points))
    assert list(together) == list(model.hook_points)
    for name in model.hook_points:
        torch.testing.assert_close(
            together[name], model.capture(tokens, name), atol=1e-5, rtol=1e-5
        )


def test_a_parallel_block_has_no_resid_mid_and_says_so(models: dict, tokens: Tensor) -> None:
    with pytest.raises(
        HookPointError,
        match=r"'blocks.1.hook_resid_mid' is not on .*parallel.*use hook_resid_pre or"
        r" hook_resid_post",
    ):
        models["neox"].capture(tokens, "blocks.1.hook_resid_mid")


@pytest.mark.parametrize(
    "hook",
    [
        "blocks.1.hook_resid_post",
        "blocks.1.hook_resid_pre",
        "blocks.1.hook_resid_mid",
        "hook_embed",
    ],
)
def test_capture_stops_at_the_deepest_hook_and_never_unembeds(
    architecture: str, models: dict, tokens: Tensor, hook: str
) -> None:
    model = models[architecture]
    if hook not in model.hook_points:
        pytest.skip("no resid_mid here")
    with calls_counted(model) as calls:
        model.capture(tokens, ["hook_embed", hook])
    reached = {"hook_embed": 0, "blocks.1.hook_resid_pre": 1}.get(hook, 2)
    # A block whose input is captured is called, but ends at once, because its hook runs first.
    assert calls["unembed"] == 0
    assert {layer for layer in calls if layer != "unembed"} <= set(
        range(reached + (hook == "blocks.1.hook_resid_pre"))
    )
    assert all(calls[layer] == 1 for layer in range(reached))
    with calls_counted(model) as calls:
        model.logits(tokens)
    assert calls["unembed"] == 1, "the counter counts what does run"


def test_the_bridge_is_bit_identical_and_without_new_hooks_after_a_capture(
    architecture: str, models: dict, tokens: Tensor
) -> None:
    model = models[architecture]
    before, modules, hooks = (
        model.logits(tokens),
        list(model.engine.model.modules()),
        hooks_on(model),
    )
    model.capture(tokens, [name for name in model.hook_points if not name.endswith("mid")])
    model.capture(tokens, list(model.hook_points))
    after = list(model.engine.model.modules())
    assert all(one is other for one, other in zip(modules, after, strict=True))
    assert hooks_on(model) == hooks
    assert torch.equal(model.logits(tokens), before)


def test_the_bridge_is_restored_when_a_forward_pass_fails(
    architecture: str, models: dict, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models[architecture]
    before, modules, hooks = (
        model.logits(tokens),
        list(model.engine.model.modules()),
        hooks_on(model),
    )
    mixed = [name for name in model.hook_points if name.startswith("blocks.2")]
    for names in (["blocks.2.hook_resid_post"], mixed):
        with monkeypatch.context() as patch:
            broken = model.engine._layers[1]
            patch.setattr(
                broken,
                "forward",
                lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("out of memory")),
            )
            with pytest.raises(RuntimeError, match="out of memory"):
                model.capture(tokens, names)
        assert all(
            one is other for one, other in zip(modules, model.engine.model.modules(), strict=True)
        )
        assert hooks_on(model) == hooks
        assert torch.equal(model.logits(tokens), before)


def test_capture_sees_what_an_intervention_changes(
    architecture: str, models: dict, tokens: Tensor
) -> None:
    model = models[architecture]
    direction = torch.linspace(-1, 1, model.d_model)
    plain = model.capture(tokens, [0, 1])
    with model.intervene({0: lambda x, hook: x + direction}):
        changed = model.capture(tokens, [0, 1])
    torch.testing.assert_close(
        changed["blocks.0.hook_resid_post"],
        plain["blocks.0.hook_resid_post"] + direction,
        atol=1e-5,
        rtol=1e-5,
    )
    assert (
        changed["blocks.1.hook_resid_post"] - plain["blocks.1.hook_resid_post"]
    ).abs().max() > 0.1
    assert torch.equal(model.capture(tokens, 1), plain["blocks.1.hook_resid_post"])


def test_an_intervention_is_the_same_under_both_names_of_a_place(
    architecture: str, models: dict, tokens: Tensor
) -> None:
    model = models[architecture]
    direction = torch.linspace(-1, 1, model.d_model)
    changed = {}
    for name in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"):
        with model.intervene({name: lambda x, hook: x + direction}):
            changed[name] = model.logits(tokens)
    assert torch.equal(*changed.values())
    assert (changed["blocks.0.hook_resid_post"] - model.logits(tokens)).abs().max() > 0.01


@pytest.mark.parametrize(
    "kind",
    [
        "hook_embed",
        "blocks.1.hook_resid_pre",
        "blocks.1.hook_resid_mid",
        "blocks.1.hook_resid_post",
    ],
)
def test_a_changed_activation_reaches_what_comes_after_it(
    architecture: str, models: dict, reference: Any, tokens: Tensor, kind: str
) -> None:
    model = models[architecture]
    if kind not in model.hook_points:
        pytest.skip("no resid_mid here")
    plain = model.logits(tokens)
    with model.intervene({kind: lambda x, hook: torch.zeros_like(x)}):
        assert not torch.allclose(model.logits(tokens), plain, atol=1e-3)
    with model.intervene({kind: lambda x, hook: x * 1.0}):
        torch.testing.assert_close(model.logits(tokens), plain, atol=1e-5, rtol=1e-5)


def test_an_unknown_model_is_refused_with_what_is_accepted() -> None:
    with pytest.raises(
        TypeError, match=r"Linear is not a supported model; give a hub id.*HookedTransformer"
    ):
        HookedModel.load(nn.Linear(2, 2))


# -------------------------------------------------------------------------------- HookedTransformer


def test_a_hooked_transformer_gives_the_same_activations(
    from_gpt2: Any, reference: Any, tokens: Tensor
) -> None:
    model, expected = HookedModel.load(from_gpt2()), reference("gpt2")
    assert isinstance(model.engine, HookedTransformerEngine)
    for name in model.hook_points:
        torch.testing.assert_close(
            model.capture(tokens, name), expected[name], atol=1e-5, rtol=1e-5
        )
    assert set(model.hook_points) == set(expected) - {"logits"}
    torch.testing.assert_close(
        model.logits(tokens).log_softmax(-1),
        expected["logits"].log_softmax(-1),
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_hooked_transformer_stops_at_the_deepest_hook(from_gpt2: Any, tokens: Tensor) -> None:
    model = HookedModel.load(from_gpt2())
    calls: Counter = Counter()
    for index, block in enumerate(model.bridge.blocks):
        block.register_forward_pre_hook(lambda module, args, index=index: calls.update([index]))
    model.bridge.unembed.register_forward_pre_hook(lambda module, args: calls.update(["unembed"]))
    for name, expected in (
        ("hook_embed", {0}),
        ("blocks.1.hook_resid_pre", {0}),
        ("blocks.1.hook_resid_mid", {0, 1}),
        ("blocks.2.hook_resid_post", {0, 1, 2}),
    ):
        calls.clear()
        model.capture(tokens, name)
        assert set(calls) <= expected, name


def test_a_hooked_transformer_intervenes_generates_and_is_left_without_hooks(
    from_gpt2: Any, tokens: Tensor
) -> None:
    model = HookedModel.load(from_gpt2())
    before, stream, hooks = model.logits(tokens), model.capture(tokens, 1), hooks_on(model)
    text = model.generate("the cat", max_new_tokens=6, seed=3)
    direction = 5 * torch.linspace(-1, 1, model.d_model)
    with model.intervene({1: lambda x, hook: x + direction}):
        assert (model.logits(tokens) - before).abs().max() > 0.1
        assert model.generate("the cat", max_new_tokens=6, seed=3) != text
        torch.testing.assert_close(
            model.capture(tokens, 1), stream + direction, atol=1e-5, rtol=1e-5
        )
    assert torch.equal(model.logits(tokens), before)
    assert model.generate("the cat", max_new_tokens=6, seed=3) == text
    assert model.generate("the cat", max_new_tokens=6, top_k=None), "without top-k"
    assert hooks_on(model) == hooks == []


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_hooked_transformer_reads_pad_tokens_in_a_text_as_text(
    from_gpt2: Any, build_hf: Any, tokenizer: Any, side: str
) -> None:
    """Ids that begin and end with the pad token, against the Hugging Face model."""
    lens = from_gpt2()
    lens.tokenizer.padding_side = side
    pad = lens.tokenizer.pad_token_id
    model, gpt2 = HookedModel.load(lens), HookedModel.load(build_hf("gpt2"), tokenizer=tokenizer)
    ids = torch.tensor([[pad, pad, 9, 14, 22, pad], [pad, 7, 8, 31, 5, pad]])
    for name in ("blocks.0.hook_resid_pre", "blocks.2.hook_resid_post"):
        torch.testing.assert_close(
            model.capture(ids, name), gpt2.capture(ids, name), atol=1e-5, rtol=1e-5
        )
    torch.testing.assert_close(
        model.logits(ids).log_softmax(-1), gpt2.logits(ids).log_softmax(-1), atol=1e-5, rtol=1e-5
    )
    config = gpt2._generation_config(5, None, None)
    config.eos_token_id = None
    ones = torch.ones_like(ids)
    expected = gpt2.engine.generate(ids, config, attention_mask=ones)
    assert model.engine.generate(ids, config).tolist() == expected.tolist()
    assert lens.tokenizer.padding_side == side


def test_a_hooked_transformer_follows_a_generation_config_or_refuses_it(from_gpt2: Any) -> None:
    from transformers import GenerationConfig

    model, prompt = HookedModel.load(from_gpt2()), "the cat sat"
    n_prompt = len(model.encode(prompt)[0])
    expected = model.generate(prompt, max_new_tokens=6, do_sample=False)
    config = GenerationConfig(max_length=n_prompt + 6, do_sample=False, num_beams=1)
    assert model.generate(prompt, generation_config=config) == expected
    for options, message in (
        ({"num_beams": 3}, "num_beams=3"),
        ({"suppress_tokens": [1]}, r"suppress_tokens=\[1\]"),
        ({"repetition_penalty": 1e6}, "repetition_penalty=1000000"),
        ({"top_p": 0.5, "do_sample": True}, "top_k=50 and top_p=0.5"),
        ({"max_new_tokens": None, "max_length": n_prompt}, "leaves no new token"),
    ):
        config = GenerationConfig(**{"max_new_tokens": 6, "do_sample": False} | options)
        with pytest.raises(ValueError, match=message):
            model.generate(prompt, generation_config=config)
    # Of a tiny top-p the most likely token is left.
    config = GenerationConfig(max_new_tokens=6, do_sample=True, top_k=0, top_p=1e-6)
    assert model.generate(prompt, generation_config=config) == expected


@pytest.mark.parametrize("do_sample", [True, False])
def test_a_hooked_transformer_with_nan_logits_writes_nothing(
    from_gpt2: Any, do_sample: bool
) -> None:
    lens = from_gpt2()
    with torch.no_grad():
        lens.unembed.W_U[:, 7] = float("nan")
    model = HookedModel.load(lens)
    with pytest.raises(NonFiniteError, match="NaN"):
        model.generate("the cat", max_new_tokens=3, do_sample=do_sample)
    assert not lens.unembed._forward_hooks


def test_a_left_padded_batch_of_a_hooked_transformer_is_steered_by_token(from_gpt2: Any) -> None:
    lens = from_gpt2()
    lens.tokenizer.padding_side = "left"
    model, pad = HookedModel.load(lens), lens.tokenizer.pad_token_id
    rows = [[9, 14, 22, 31, 44, 5], [12, 13, 60], [7]]
    batch = torch.tensor([[pad] * (6 - len(row)) + row for row in rows])
    direction = 5 * torch.linspace(-1, 1, model.d_model)
    vector = SteeringVector(direction, "blocks.1.hook_resid_post", None, skip_first=2)
    options = {"max_new_tokens": 4, "do_sample": False, "verbose": False, "stop_at_eos": False}
    # The pad token is BOS too: without this, TransformerLens takes the last of the padding as BOS.
    options["prepend_bos"] = False
    with vector.apply(model):
        together = lens(batch, prepend_bos=False)
        continued = lens.generate(batch, **options)
        for i, row in enumerate(rows):
            alone = lens(torch.tensor([row]), prepend_bos=False)
            torch.testing.assert_close(together[i, -len(row) :], alone[0], atol=1e-4, rtol=1e-4)
            text = lens.generate(torch.tensor([row]), **options)
            assert continued[i, 6:].tolist() == text[0, len(row) :].tolist()
    assert (lens(batch, prepend_bos=False) - together)[1].abs().max() > 0.1


def test_a_given_bridge_that_differs_is_reported_once(
    build_hf: Any, tokenizer: Any, caplog: Any
) -> None:
    """GPT-2 without the scaling of attention, which the bridge scales."""
    gpt2 = build_hf("gpt2")
    gpt2.config.scale_attn_weights = False
    for block in gpt2.transformer.h:
        block.attn.scale_attn_weights, block.attn.scaling = False, 1.0
    tokens = torch.arange(1, 9)[None]
    expected = gpt2(tokens).logits
    bridge = boot_bridge(gpt2, tokenizer, "gpt2")
    own = bridge(tokens)
    difference = float((own - expected).norm() / expected.norm())
    assert difference > 0.01
    # A hook changes what the bridge computes, which is no difference of the bridge.
    with bridge.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda x, hook: x + 1)]):
        HookedModel.load(bridge, tokenizer=tokenizer)
    assert not caplog.text
    loaded = [HookedModel.load(bridge, tokenizer=tokenizer) for _ in range(3)]
    assert caplog.text.count("differs from its own Hugging Face model") == 1
    assert f"by {difference:.2g} (relative" in caplog.text
    # What the user hands in stays what it is.
    torch.testing.assert_close(loaded[0].logits(tokens), own)


def test_a_bridge_carries_the_raw_basis(architecture: str, models: dict) -> None:
    assert models[architecture].basis == "raw"


def test_centred_writing_weights_are_seen_and_carry_the_stream_without_its_mean(
    from_gpt2: Any, reference: Any, tokens: Tensor
) -> None:
    model = HookedModel.load(from_gpt2(center_writing_weights=True, fold_ln=True))
    raw = reference("gpt2")["blocks.1.hook_resid_post"]
    assert model.basis == model.identity.basis == "centred"
    torch.testing.assert_close(
        model.capture(tokens, 1), raw - raw.mean(-1, keepdim=True), atol=1e-5, rtol=1e-5
    )


def test_folding_the_layer_norms_alone_leaves_the_raw_basis(
    from_gpt2: Any, reference: Any, tokens: Tensor
) -> None:
    model = HookedModel.load(from_gpt2(fold_ln=True))
    assert model.basis == "raw"
    torch.testing.assert_close(
        model.capture(tokens, 1),
        reference("gpt2")["blocks.1.hook_resid_post"],
        atol=1e-5,
        rtol=1e-5,
    )


def test_the_basis_is_seen_in_bfloat16_too(from_gpt2: Any) -> None:
    assert (
        HookedModel.load(from_gpt2(center_writing_weights=True).to(torch.bfloat16)).basis
        == "centred"
    )
    assert HookedModel.load(from_gpt2().to(torch.bfloat16)).basis == "raw"
