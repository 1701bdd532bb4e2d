"""Transferred lenses, compared with their composition by hand and with TransformerLens."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformer_lens.tools.analysis import JacobianLens

import lrt_lens as lrt
from lrt_lens.adapters.lenses import Lens, TransferredLens, readout
from lrt_lens.errors import HookPointError, MismatchError

HOOK, TARGET_HOOK = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def stitch(pair: Any, corpus: list[str]) -> Any:
    return lrt.fit_stitches(
        pair, corpus, pairs=[(0, 1)], context_length=32, null="full", progress=False
    ).best()


def matrix(d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(d, d, generator=torch.Generator().manual_seed(seed)) / d**0.5


def jacobian_lens(d: int = 16) -> JacobianLens:
    return JacobianLens({0: matrix(d)}, n_prompts=3, d_model=d)


class TunedLens(nn.Module):
    """Translators in the layout of tuned-lens: ``h + translator_i(h)``, one per hidden state."""

    def __init__(self, d: int, n_layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer_translators = nn.ModuleList(nn.Linear(d, d) for _ in range(n_layers))

    def transform_hidden(self, h: torch.Tensor, idx: int) -> torch.Tensor:
        return h + self.layer_translators[idx](h)


def by_hand(model: Any, final: torch.Tensor) -> torch.Tensor:
    """Return logits by the norm and head of the Hugging Face model itself."""
    hf = model.engine.model
    with torch.no_grad():
        return hf.lm_head(hf.model.norm(final.float()))


def states(stitch: Any, n: int = 9) -> torch.Tensor:
    d = len(stitch.down.weight)
    return 3 * torch.randn(n, d, generator=torch.Generator().manual_seed(1))


def down(stitch: Any, y: torch.Tensor) -> torch.Tensor:
    return y.double() @ stitch.down.weight.double() + stitch.down.bias.double()


def test_a_jacobian_lens_is_the_composition_by_hand(pair: Any, stitch: Any) -> None:
    y = states(stitch)
    transferred = stitch.transfer(jacobian_lens())
    assert isinstance(transferred, TransferredLens)
    expected = by_hand(pair.source, down(stitch, y) @ matrix(16).double().T)
    torch.testing.assert_close(transferred.logits(pair.source, y), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "exactness"),
    # The norm of Hugging Face's Llama computes in float32 in a float64 model too.
    [("neox", 1e-12), ("llama", 1e-6)],
)
def test_in_float64_a_lens_is_the_composition_by_hand(
    build_hf: Any, load: Any, tokenizer: Any, corpus: list[str], architecture: str, exactness: float
) -> None:
    hf = build_hf(architecture, d=16, layers=2, seed=1).double()
    source = lrt.HookedModel.load(hf, tokenizer=tokenizer)
    pair = lrt.ModelPair(source, load("llama", d=24, layers=3, seed=2))
    stitch = lrt.fit_stitches(
        pair, corpus, pairs=[(0, 1)], context_length=32, null=False, progress=False
    ).best()
    y, jacobian = states(stitch).double(), matrix(16).double()
    norm = hf.gpt_neox.final_layer_norm if architecture == "neox" else hf.model.norm
    finals = {
        "jacobian": down(stitch, y) @ jacobian.T,
        "tuned": down(stitch, y) @ (torch.eye(16) + jacobian.T),
        "logit": down(stitch, y),
    }
    lenses = {
        "jacobian": Lens.jacobian(
            JacobianLens({0: jacobian}, n_prompts=3, d_model=16), source.identity
        ),
        "tuned": Lens.tuned({"1.weight": jacobian}, source.identity),
        "logit": Lens.logit(source.identity),
    }
    for kind, lens in lenses.items():
        transferred = stitch.transfer(lens)
        assert (transferred.points(y) - finals[kind]).abs().max() < 1e-12
        with torch.no_grad():
            expected = hf.get_output_embeddings()(norm(finals[kind]))
        logits = transferred.logits(source, y)
        assert logits.dtype == torch.float64
        assert (logits - expected).abs().max() < exactness


def test_a_tuned_lens_reads_the_stream_before_its_block(pair: Any, stitch: Any) -> None:
    y, lens = states(stitch), TunedLens(16, 2)
    # Translator 1 reads hidden_states[1], the output of block 0.
    expected = by_hand(pair.source, lens.transform_hidden(down(stitch, y).float(), 1))
    logits = stitch.transfer(lens).logits(pair.source, y)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    by_state = stitch.transfer(
        Lens.tuned(lens.layer_translators.state_dict(), pair.source.identity)
    )
    torch.testing.assert_close(by_state.map.weight, stitch.transfer(lens).map.weight)


def test_a_logit_lens_is_the_head_behind_the_stitch(pair: Any, stitch: Any) -> None:
    y = states(stitch)
    logits = stitch.transfer(Lens.logit(pair.source.identity)).logits(pair.source, y)
    expected = by_hand(pair.source, down(stitch, y))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_lens_of_its_own_model_is_that_of_transformer_lens(pair: Any) -> None:
    model, lens = pair.source, jacobian_lens()
    tokens = torch.tensor(model.encode(["the cat saw a dog in the garden"]))
    expected = lens.readout(model.bridge, tokens, layers=[0], return_full_logits=True)
    assert expected.lens_logits is not None
    h = model.engine.capture(tokens, [HOOK])[HOOK]
    logits = Lens.jacobian(lens, model.identity).logits(model, h[0], HOOK)
    torch.testing.assert_close(logits, expected.lens_logits[0], rtol=1e-4, atol=1e-4)


def test_behind_the_last_block_every_lens_is_the_models_prediction(
    models: dict[str, Any], architecture: str
) -> None:
    model = models[architecture]
    tokens = torch.tensor(model.encode(["the cat saw a dog in the garden"]))
    last = f"blocks.{model.n_layers - 1}.hook_resid_post"
    h = model.engine.capture(tokens, [last])[last]
    for lens in (Lens.logit(model.identity), Lens.jacobian(jacobian_lens(), model.identity)):
        torch.testing.assert_close(
            lens.logits(model, h, last), model.logits(tokens), rtol=1e-4, atol=1e-4
        )


def test_states_longer_than_the_context_are_read_in_pieces(pair: Any) -> None:
    rows = torch.randn(200, 16, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        readout(pair.source, rows), by_hand(pair.source, rows), rtol=1e-5, atol=1e-5
    )
    assert readout(pair.source, rows[:0]).shape == (0, pair.source.d_vocab)


def test_the_null_is_another_lens_and_tokens_are_texts(pair: Any, stitch: Any) -> None:
    y, lens = states(stitch), Lens.logit(pair.source.identity)
    null = stitch.transfer(lens, through=stitch.null)
    assert not torch.allclose(null.points(y), stitch.transfer(lens).points(y))
    texts = stitch.transfer(lens).top_tokens(pair.source, y, n=3)
    assert [len(row) for row in texts] == [3] * len(y)
    assert all(isinstance(text, str) for row in texts for text in row)


def test_what_does_not_belong_is_refused(pair: Any, stitch: Any) -> None:
    source, target = pair.source.identity, pair.target.identity
    with pytest.raises(MismatchError, match="give the lens of this model"):
        stitch.transfer(jacobian_lens(24))
    with pytest.raises(MismatchError, match="this lens"):
        stitch.transfer(Lens.logit(target))
    with pytest.raises(MismatchError, match="this lens"):
        stitch.transfer(Lens.logit(source)).logits(pair.target, states(stitch))
    with pytest.raises(MismatchError, match="centred"):
        Lens.jacobian(jacobian_lens(), replace(source, basis="centred"))
    with pytest.raises(HookPointError, match="no map for"):
        stitch.reversed().transfer(Lens.tuned({"0.weight": matrix(24)}, target))
    with pytest.raises(MismatchError, match="no translator"):
        Lens.tuned({"weight": matrix(16)}, source)
    unknown = replace(stitch, provenance=replace(stitch.provenance, source=None))
    with pytest.raises(ValueError, match="does not know its source model"):
        unknown.transfer(jacobian_lens())
    with pytest.raises(MismatchError, match="behind its last block"):
        readout(pair.source, torch.zeros(2, 3))
