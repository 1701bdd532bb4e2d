"""Tests of SAEs of centred weights, against TransformerLens' own centred model in float64."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import lrt_lens as lrt
from lrt_lens.errors import MismatchError
from lrt_lens.models import HookedModel

HOOK, D, FEATURES = "blocks.1.hook_resid_post", 16, 40
ARCHITECTURES = ["standard", "gated", "topk", "jumprelu"]


@pytest.fixture(scope="module")
def gpt2(build_hf: Any) -> Any:
    return build_hf("gpt2").double()


@pytest.fixture(scope="module")
def from_gpt2(gpt2: Any, tokenizer: Any) -> Any:
    """Return a function that loads the small GPT-2 as SAELens loads a model, by its keywords."""
    import transformer_lens.loading_from_pretrained as loading
    from sae_lens.load_model import load_model

    gpt2.config.n_ctx = 64

    class LocalConfig:
        """Replacement of AutoConfig, which would ask the hub for the shape of GPT-2."""

        from_pretrained = staticmethod(lambda *args, **kwargs: gpt2.config)

    def build(sae: Any) -> Any:
        local = {"hf_model": gpt2, "tokenizer": tokenizer, "dtype": torch.float64}
        keywords = sae.cfg.metadata.model_from_pretrained_kwargs
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loading, "AutoConfig", LocalConfig)
            return load_model("HookedTransformer", "gpt2", "cpu", {**keywords, **local})

    return build


@torch.no_grad()
def centre(lens: Any) -> Any:
    """Centre all that writes into the stream of an unprocessed model, in float64.

    TransformerLens' own ``center_writing_weights`` rounds to float32.
    """
    for name, weight in lens.state_dict().items():
        if name.endswith(("W_E", "W_pos", "W_O", "b_O", "W_out", "mlp.b_out")):
            weight -= weight.mean(-1, keepdim=True)
    return lens


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(5, 300, (3, 12), generator=torch.Generator().manual_seed(0))


def draw(architecture: str, *, centred: bool = True, **options: Any) -> Any:
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    kind, config = get_sae_class(architecture)
    if architecture == "topk":
        options = {"k": 5, "rescale_acts_by_decoder_norm": True} | options
    torch.manual_seed(1)
    sae = kind(config(d_in=D, d_sae=FEATURES, dtype="float64", **options))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter).abs() / 4)
            parameter.mul_(torch.randn_like(parameter).sign() if parameter.ndim == 2 else 1)
    sae.cfg.metadata = SAEMetadata(
        model_name="gpt2",
        hook_name=HOOK,
        context_size=32,
        prepend_bos=True,
        model_from_pretrained_kwargs={"center_writing_weights": centred},
    )
    return sae


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_features_on_the_unprocessed_model_are_those_on_the_centred_one(
    architecture: str, gpt2: Any, from_gpt2: Any, tokenizer: Any, tokens: Tensor, tmp_path: Any
) -> None:
    from sae_lens import SAE

    sae = draw(architecture)
    # By SAELens and TransformerLens alone: the features of the SAE on the centred model.
    lens = centre(from_gpt2(draw(architecture, centred=False)))
    _, cache = lens.run_with_cache(tokens, names_filter=HOOK)
    expected = sae.encode(cache[HOOK])
    _, cache = from_gpt2(sae).run_with_cache(tokens, names_filter=HOOK)
    torch.testing.assert_close(sae.encode(cache[HOOK]), expected, atol=1e-6, rtol=1e-5)
    states = HookedModel.load(gpt2, tokenizer=tokenizer).capture(tokens, HOOK)
    assert states.mean(-1).abs().max() > 0.01
    converted = lrt.uncentred_sae(sae)
    found = converted.encode(states)
    assert (expected != 0).double().mean() > 0.05
    assert (sae.encode(states) - expected).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    # The reconstruction is that of the centred state.
    torch.testing.assert_close(
        converted.decode(found), sae.decode(expected), atol=1e-12, rtol=1e-12
    )
    # SAELens loads the file and finds the unprocessed model by its keywords.
    converted.save_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path, dtype="float64")
    raw = from_gpt2(loaded)
    _, cache = raw.run_with_cache(tokens, names_filter=HOOK)
    torch.testing.assert_close(loaded.encode(cache[HOOK]), expected, atol=1e-12, rtol=1e-12)
    assert loaded.cfg.metadata.basis == "raw"


@torch.no_grad()
def test_the_reconstruction_gives_the_logits_of_the_centred_model(
    gpt2: Any, from_gpt2: Any, tokenizer: Any, tokens: Tensor
) -> None:
    sae = draw("standard")
    converted, lens = lrt.uncentred_sae(sae), centre(from_gpt2(draw("standard", centred=False)))
    expected = lens.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda x, hook: sae(x))])
    model = HookedModel.load(gpt2, tokenizer=tokenizer)
    with model.intervene({HOOK: lambda x, hook: converted(x)}):
        found = model.logits(tokens)
    torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1))
    assert (found - model.logits(tokens)).abs().max() > 0.1


def test_a_converted_sae_belongs_to_the_unprocessed_weights(
    gpt2: Any, from_gpt2: Any, build_hf: Any, tokenizer: Any, corpus: list[str]
) -> None:
    lens = HookedModel.load(from_gpt2(draw("topk")), name="gpt2")
    raw = HookedModel.load(copy.deepcopy(gpt2).float(), tokenizer=tokenizer, name="gpt2")
    assert (lens.basis, raw.basis) == ("centred", "raw")
    other = HookedModel.load(build_hf("llama"), tokenizer=tokenizer, name="other")
    options: dict[str, Any] = {"source_layers": [1], "target_layers": [1], "context_length": 32}
    stitch = lrt.fit_stitches(
        lrt.ModelPair(raw, other), corpus, null=False, progress=False, **options
    ).best()
    options = {"at": 1, "k": 4, "n_tokens": 512, "batch_rows": 128, "context_length": 32}
    sae = lrt.train_sae(lens, corpus, progress=False, **options).sae
    assert sae.cfg.metadata.model_hash == lens.identity.config_hash
    # The first message names the basis and its remedy, although the hash differs too.
    with pytest.raises(MismatchError, match=r"'centred' residual basis.*lrt\.uncentred_sae\(sae\)"):
        stitch.transfer(sae)
    converted = lrt.uncentred_sae(sae)
    metadata = converted.cfg.metadata.to_dict()
    assert "model_hash" not in metadata
    assert metadata["converted"]["from_model_hash"] == lens.identity.config_hash
    stitch.transfer(converted)
    # Of other weights, the model's name and not the basis is the difference.
    converted.cfg.metadata.model_hash = lens.identity.config_hash
    with pytest.raises(MismatchError, match=r"\(weights .*expected 'gpt2' \(weights"):
        stitch.transfer(converted)
    converted.cfg.metadata.model_hash = raw.identity.config_hash
    stitch.transfer(converted)


def test_a_centred_sae_of_another_name_is_told_both(from_gpt2: Any, build_hf: Any) -> None:
    from lrt_lens.adapters.saes._compatibility import refuse_foreign_sae

    sae = draw("topk")
    sae.cfg.metadata.model_hash = "0" * 16
    model = HookedModel.load(build_hf("gpt2"), tokenizer=from_gpt2(sae).tokenizer, name="renamed")
    with pytest.raises(MismatchError, match=r"in the 'centred' basis; expected 'renamed'.*'raw'"):
        refuse_foreign_sae(sae, HOOK, model.identity)


def test_a_converted_sae_that_was_transferred_names_its_new_basis() -> None:
    sae = draw("topk")
    sae.cfg.metadata.transferred = {"target_basis": "weights that were centred", "own_maps": True}
    transferred = lrt.uncentred_sae(sae).cfg.metadata.transferred
    assert transferred == {"target_basis": "Hugging Face's unprocessed weights", "own_maps": True}


def test_each_basis_is_refused_by_the_other(gpt2: Any, from_gpt2: Any, tokenizer: Any) -> None:
    from lrt_lens.adapters.saes._compatibility import refuse_foreign_sae

    sae = draw("topk")
    lens, raw = from_gpt2(sae), HookedModel.load(gpt2, tokenizer=tokenizer, name="gpt2")
    centred = HookedModel.load(lens)
    assert (raw.basis, centred.basis) == ("raw", "centred")
    sae.cfg.metadata.prepend_bos = centred.prepend_bos
    refuse_foreign_sae(sae, HOOK, centred.identity)
    with pytest.raises(MismatchError, match=r"convert it with lrt\.uncentred_sae\(sae\)"):
        refuse_foreign_sae(sae, HOOK, raw.identity)
    converted = lrt.uncentred_sae(sae)
    refuse_foreign_sae(converted, HOOK, raw.identity)
    with pytest.raises(MismatchError, match="load the model without center_writing_weights"):
        refuse_foreign_sae(converted, HOOK, centred.identity)
    with pytest.raises(ValueError, match="trained in the 'raw' residual basis"):
        lrt.uncentred_sae(converted)


def test_a_converted_sae_is_refused_on_a_model_with_rms_norm(
    gpt2: Any, build_hf: Any, tokenizer: Any, corpus: list[str]
) -> None:
    raw = HookedModel.load(copy.deepcopy(gpt2).float(), tokenizer=tokenizer, name="layer norm")
    llama = HookedModel.load(build_hf("llama", d=D), tokenizer=tokenizer, name="rms")
    sae = draw("topk")
    sae.cfg.metadata.model_name = ""
    converted = lrt.uncentred_sae(sae)
    options: dict[str, Any] = {"source_layers": [1], "target_layers": [1], "context_length": 32}
    for source, target in ((raw, llama), (llama, raw)):
        pair = lrt.ModelPair(source, target)
        grid = lrt.fit_stitches(pair, corpus, null=False, progress=False, **options)
        stitch = grid.best()
        if source is raw:
            transferred = stitch.transfer(converted)
            # The transferred SAE belongs to the other model, in whose basis it is.
            assert not transferred.cfg.metadata.to_dict().get("converted")
            continue
        with pytest.raises(MismatchError, match="'rms' has RMSNorm"):
            stitch.transfer(converted)
        with pytest.raises(MismatchError, match="'rms' has RMSNorm"):
            lrt.evaluate_sae(pair, stitch, converted, corpus, progress=False)
        sae.cfg.metadata.basis = "raw"
        stitch.transfer(sae)


def test_a_transferred_sae_records_how_saelens_loads_its_model(
    gpt2: Any, from_gpt2: Any, build_hf: Any, tokenizer: Any, corpus: list[str], tmp_path: Any
) -> None:
    from sae_lens import SAE

    source = HookedModel.load(build_hf("gpt2", seed=3), tokenizer=tokenizer, name="other")
    target = HookedModel.load(build_hf("gpt2"), tokenizer=tokenizer, name="gpt2")
    pair = lrt.ModelPair(source, target)
    stitch = lrt.fit_stitches(
        pair,
        corpus,
        source_layers=[1],
        target_layers=[1],
        context_length=32,
        null=False,
        progress=False,
    ).best()
    sae = draw("topk", centred=False)
    sae.cfg.metadata.model_name = "other"
    sae.cfg.metadata.model_class_name = "HookedTransformer"
    del sae.cfg.metadata.context_size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stitch.transfer(sae).save_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path, dtype="float64")
    metadata = loaded.cfg.metadata.to_dict()
    assert metadata["model_from_pretrained_kwargs"] == {"center_writing_weights": False}
    assert metadata["transferred"]["target_basis"] == "Hugging Face's unprocessed weights"
    assert (metadata["basis"], metadata["prepend_bos"]) == ("raw", target.prepend_bos)
    # The source's training records no context, and that of the stitch is another one.
    assert "context_size" not in metadata
    assert "model_class_name" not in metadata
    # SAELens' model is the target in the same basis: its states are those of the target.
    tokens = torch.arange(5, 25)[None]
    _, cache = from_gpt2(loaded).run_with_cache(tokens, names_filter=HOOK)
    states = HookedModel.load(gpt2, tokenizer=tokenizer).capture(tokens, HOOK)
    torch.testing.assert_close(cache[HOOK], states, atol=1e-10, rtol=1e-10)
