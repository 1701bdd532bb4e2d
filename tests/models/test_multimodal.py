"""Models that read images too: loading them installs nothing and asks the network for nothing."""

import inspect
import subprocess
from typing import Any

import httpx
import pytest
import torch
import transformers
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

from lrt_lens.models import HookedModel
from lrt_lens.models._loading import boot_bridge, reads_more_than_text

VISION = {
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def text_config(config_class: Any, vocab_size: int, **options: Any) -> dict[str, Any]:
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **options,
    )
    return config.to_dict()


def gemma3(vocab_size: int) -> Any:
    text = text_config(transformers.Gemma3TextConfig, vocab_size)
    return transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            text_config=text,
            vision_config=VISION,
            image_token_id=5,
            boi_token_index=6,
            eoi_token_index=7,
            mm_tokens_per_image=4,
        )
    )


def llava(vocab_size: int) -> Any:
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            text_config=text_config(transformers.LlamaConfig, vocab_size),
            vision_config={"model_type": "clip_vision_model", **VISION},
            image_token_index=5,
        )
    )


def mistral3(vocab_size: int) -> Any:
    text = text_config(transformers.MistralConfig, vocab_size)
    return transformers.Mistral3ForConditionalGeneration(
        transformers.Mistral3Config(
            text_config={**text, "model_type": "mistral"},
            vision_config={"model_type": "pixtral", **VISION},
            image_token_index=5,
        )
    )


def qwen2_vl(vocab_size: int) -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    text = text_config(transformers.Qwen2Config, vocab_size)
    return transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config={
                "depth": 1,
                "embed_dim": 8,
                "hidden_size": 32,
                "num_heads": 2,
                "patch_size": 8,
            },
            image_token_id=5,
            video_token_id=6,
            vision_start_token_id=7,
            vision_end_token_id=8,
        )
    )


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of other programs and of the network, none of which is carried out."""
    calls: list[Any] = []

    def refuse(*args: Any, **_options: Any) -> None:
        calls.append(args)
        raise OSError("refused by the test")

    for name in ("check_call", "check_output", "run", "Popen"):
        monkeypatch.setattr(subprocess, name, refuse)
    monkeypatch.setattr(httpx.Client, "send", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return calls


@pytest.mark.parametrize("build", [gemma3, llava, mistral3])
def test_the_text_model_inside_is_read_hooked_and_bridged(
    build: Any, tokenizer: Any, forbidden: list[Any]
) -> None:
    torch.manual_seed(0)
    hf = build(len(tokenizer)).eval()
    names = [name for name, _ in hf.named_modules()]
    # A name that is an alias in TransformerLens, which would announce a download.
    model = HookedModel.load(hf, tokenizer=tokenizer, name="gptj")
    row = torch.arange(9, 25)[None]
    with torch.inference_mode():
        expected = hf(row, output_hidden_states=True)
    assert torch.equal(model.logits(row), expected.logits)
    assert torch.equal(model.capture(row, 1), expected.hidden_states[2])
    with torch.inference_mode():
        torch.testing.assert_close(model.bridge(row), expected.logits, atol=1e-4, rtol=1e-4)
    assert model.bridge.cfg.model_name == model.name == "gptj"
    with model.intervene({1: lambda x, hook: x + 1}):
        steered = model.logits(row)
    with model.bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda x, hook: x + 1)]):
        torch.testing.assert_close(model.logits(row), steered, atol=1e-4, rtol=1e-4)
    assert [name for name, _ in hf.named_modules()] == names
    assert not forbidden


def test_a_text_model_that_transformers_does_not_have_is_read_without_a_bridge(
    tokenizer: Any, forbidden: list[Any]
) -> None:
    torch.manual_seed(0)
    hf = qwen2_vl(len(tokenizer)).eval()
    model = HookedModel.load(hf, tokenizer=tokenizer)
    row = torch.arange(9, 25)[None]
    with torch.inference_mode():
        assert torch.equal(model.logits(row), hf(row).logits)
    with pytest.raises(ValueError, match="reads images or sound too"):
        _ = model.bridge
    with pytest.raises(ValueError, match="install"):
        boot_bridge(hf, tokenizer, "two-eyes")
    assert not forbidden


def test_loading_a_model_of_text_asks_for_nothing(
    build_hf: Any, tokenizer: Any, forbidden: list[Any], caplog: Any
) -> None:
    model = HookedModel.load(build_hf("llama"), tokenizer=tokenizer, name="gptj")
    assert model.bridge.cfg.model_name == "gptj"
    assert HookedModel.load(model.bridge, tokenizer=tokenizer).name == "gptj"
    assert "DEPRECATED" not in caplog.text
    assert not forbidden


def test_every_model_for_which_transformer_lens_installs_packages_is_known() -> None:
    known = []
    for name, adapter in SUPPORTED_ARCHITECTURES.items():
        model_class = getattr(transformers, name, None)
        is_multimodal = "is_multimodal = True" in inspect.getsource(adapter.__init__) or any(
            "is_multimodal = True" in inspect.getsource(parent.__init__)
            and "is_multimodal = False" not in inspect.getsource(adapter.__init__)
            for parent in adapter.__mro__[1:-1]
        )
        if is_multimodal and model_class is not None:
            known.append(name)
            assert reads_more_than_text(model_class.config_class()), name
    assert len(known) > 10
    for name in ("LlamaForCausalLM", "GPT2LMHeadModel", "MptForCausalLM", "Gemma3ForCausalLM"):
        assert not reads_more_than_text(getattr(transformers, name).config_class())
