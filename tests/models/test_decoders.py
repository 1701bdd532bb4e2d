"""Every number of a model is that of transformers, over the matrix of small decoders.

The right values come from a second copy of the model, run by transformers alone.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_lens.errors import MismatchError
from lrt_lens.models import HookedModel, residual_post
from tests.models.decoders import DECODERS, NOT_CAUSAL, Decoder, build_decoder

pytestmark = pytest.mark.slow

SEVERAL_STREAMS = {"gemma3n_text", "deepseek_v4", "hy_v4", "reformer"}
"""Families whose blocks pass several streams on, which have no residual hook points."""
REPEATED = {"hrm_text"}
"""Families whose blocks are no list of modules that each run once."""
IN_PARTS = {"xlm"}
"""Families that keep attentions, norms and MLPs in lists of their own."""
REFUSED = SEVERAL_STREAMS | REPEATED | IN_PARTS
WITHOUT_EMBEDDING = {"mamba", "mamba2", "falcon_mamba", "rwkv"}
"""Families whose ``hidden_states`` begin with the output of the first block."""
SCALED_BETWEEN = {"rwkv-rescaled"}
"""Decoders whose stream changes between two blocks."""


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, len(tokenizer), (3, 12), generator=generator)


def without(names: set[str], *, inside: bool = False) -> Any:
    """Return the marker that runs a test over the decoders outside (or inside) some families."""
    chosen = [decoder for decoder in DECODERS if (decoder.family in names) is inside]
    return pytest.mark.parametrize("decoder", chosen, ids=lambda decoder: decoder.name)


@without(REFUSED)
def test_every_number_is_that_of_transformers(
    decoder: Decoder, tokenizer: Any, rows: Tensor
) -> None:
    bare = build_decoder(decoder, len(tokenizer))
    wrapped = copy.deepcopy(bare)
    modules = [(name, type(module)) for name, module in wrapped.named_modules()]
    model = HookedModel.load(wrapped, tokenizer=tokenizer, name=decoder.name)
    assert [(name, type(module)) for name, module in wrapped.named_modules()] == modules
    check_numbers(decoder, bare, model, rows)
    check_padding(model, rows)
    check_interventions(model, rows)
    check_text(model, rows)
    check_resid_mid(decoder, model, rows)


def check_numbers(decoder: Decoder, bare: Any, model: HookedModel, rows: Tensor) -> None:
    """Logits and states are bit-equal to those of transformers."""
    with torch.inference_mode():
        out = bare(input_ids=rows, output_hidden_states=True)
    assert torch.equal(model.logits(rows), out.logits)
    captured = model.capture(rows, "all")
    shift = 0 if decoder.family in WITHOUT_EMBEDDING else 1
    # The last of the hidden states is normalised in most families.
    for layer in range(model.n_layers - 1):
        if decoder.name not in SCALED_BETWEEN:
            assert torch.equal(captured[residual_post(layer)], out.hidden_states[layer + shift])
    if shift:
        first = model.capture(rows, "blocks.0.hook_resid_pre")
        assert torch.equal(first, out.hidden_states[0])
    # A hook point gives the same values whatever else is captured.
    together = model.capture(rows, list(model.hook_points))
    assert all(torch.equal(together[name], captured[name]) for name in captured)


def check_padding(model: HookedModel, rows: Tensor) -> None:
    """A row of a padded batch has the states of the row alone."""
    lists = [rows[0].tolist(), rows[1].tolist()[:7]]
    last = model.capture(model.pad(lists), -1)[1, 6]
    alone = model.capture(torch.tensor([lists[1]]), -1)[0, 6]
    torch.testing.assert_close(last, alone, atol=1e-4, rtol=1e-4)


def check_interventions(model: HookedModel, rows: Tensor) -> None:
    """A changed stream reaches the logits, resuming from it equals it, and nothing stays."""
    hook = residual_post(max(0, model.n_layers // 2 - 1))
    plain = model.logits(rows)
    shift = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    changed = model.capture(rows, hook) + shift
    with model.intervene({hook: lambda x, hook: changed}):
        replaced = model.logits(rows)
    with model.engine.resuming(hook, changed):
        resumed = model.logits(rows)
    torch.testing.assert_close(resumed, replaced, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(replaced, plain, atol=1e-3)
    assert torch.equal(model.logits(rows), plain)


def check_text(model: HookedModel, rows: Tensor) -> None:
    """Greedy text is the argmax of the logits at every step, steered or not."""
    direction = torch.linspace(-1, 1, model.d_model) * 3
    for hooks in ({}, {model.n_layers // 2: lambda x, hook: x + direction}):
        with model.intervene(hooks):
            ids = rows[:1]
            for _ in range(3):
                following = model.logits(ids)[:, -1].argmax(-1, keepdim=True)
                ids = torch.cat([ids, following], dim=1)
            config = model._generation_config(3, None, None)
            config.eos_token_id = None
            mask = torch.ones_like(rows[:1])
            written = model.engine.generate(rows[:1], config, attention_mask=mask)
        assert written[0].tolist() == ids[0].tolist()


def check_resid_mid(decoder: Decoder, model: HookedModel, rows: Tensor) -> None:
    """``hook_resid_mid`` is what the MLP branch reads, or it does not exist."""
    mids = [name for name in model.hook_points if "resid_mid" in name]
    assert not (decoder.parallel and mids)
    for name in mids:
        # The output of a block depends on its input through the stream there alone: with that
        # fixed, another input changes nothing.
        layer = int(name.split(".")[1])
        mid, post = (model.capture(rows, hook) for hook in (name, residual_post(layer)))
        noise = torch.randn(post.shape, generator=torch.Generator().manual_seed(1))
        hooks = {
            f"blocks.{layer}.hook_resid_pre": lambda x, hook, noise=noise: x + noise,
            name: lambda x, hook, mid=mid: mid,
        }
        with model.intervene(hooks):
            after = model.capture(rows, residual_post(layer))
        torch.testing.assert_close(after, post, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("decoder", NOT_CAUSAL, ids=lambda decoder: decoder.name)
def test_models_that_read_later_positions_are_refused(decoder: Decoder, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="not causal|an encoder and a|no logits|no list of blocks"):
        HookedModel.load(build_decoder(decoder, len(tokenizer)), tokenizer=tokenizer)


@without(REFUSED, inside=True)
def test_decoders_without_one_stream_are_refused(decoder: Decoder, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no list of blocks that each run once"):
        HookedModel.load(build_decoder(decoder, len(tokenizer)), tokenizer=tokenizer)


def test_a_bridge_that_differs_is_refused_with_the_number(
    tokenizer: Any, rows: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    unscaled = next(decoder for decoder in DECODERS if decoder.name == "gpt2-unscaled")
    model = HookedModel.load(build_decoder(unscaled, len(tokenizer)), tokenizer=tokenizer)
    assert "differs from the Hugging Face model by 0." in caplog.text
    user_hook = [("blocks.0.hook_resid_post", lambda x, hook: x)]
    with (
        model.bridge.hooks(fwd_hooks=user_hook),
        pytest.raises(MismatchError, match=r"differs from the Hugging Face model by 0\.\d"),
    ):
        model.logits(rows)


def test_a_model_saves_itself_after_loading(tokenizer: Any, tmp_path: Any) -> None:
    bare = build_decoder(DECODERS[0], len(tokenizer))
    bare.config.architectures = None  # made in memory
    HookedModel.load(bare, tokenizer=tokenizer).bridge.run_with_cache(torch.tensor([[1, 2, 3]]))
    bare.save_pretrained(tmp_path)
    again = HookedModel.load(str(tmp_path), tokenizer=tokenizer)
    again.identity.refuse_other(HookedModel.load(bare, tokenizer=tokenizer).identity, "the model")
