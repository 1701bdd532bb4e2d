"""A transferred SAE is exactly up ∘ SAE ∘ down, for every architecture, and a SAELens object."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.adapters.saes import transfer_sae
from lrt_lens.errors import MismatchError, NonFiniteError
from lrt_lens.models import ModelIdentity
from lrt_lens.moments import Provenance
from lrt_lens.stitching import AffineMap, MapPair, Stitch, StreamStatistics

D, D_TARGET, FEATURES, K = 6, 9, 20, 3
SOURCE, TARGET = "blocks.1.hook_resid_post", "blocks.4.hook_resid_post"
INFERENCE = ("standard", "gated", "topk", "abstopk", "jumprelu")
TRAINING = ("standard", "gated", "topk", "abstopk", "jumprelu", "batchtopk", "matryoshka_batchtopk")
KINDS = [(name, False) for name in INFERENCE] + [(name, True) for name in TRAINING]


def identity(name: str, d: int) -> ModelIdentity:
    return ModelIdentity(name, "main", f"hash-{name}", "tokens", d, 6, "raw", True)


@pytest.fixture(scope="module")
def stitch() -> Stitch:
    generator = torch.Generator().manual_seed(0)

    def affine(a: int, b: int, start: str, end: str) -> AffineMap:
        weight = torch.randn(a, b, generator=generator, dtype=torch.float64) / a**0.5
        return AffineMap(
            weight, torch.randn(b, generator=generator, dtype=torch.float64), start, end
        )

    pairs = [
        MapPair(affine(D, D_TARGET, SOURCE, TARGET), affine(D_TARGET, D, TARGET, SOURCE))
        for _ in range(2)
    ]
    statistics = [StreamStatistics(torch.zeros(d), torch.eye(d), 1.0) for d in (D, D_TARGET)]
    provenance = Provenance(
        source=identity("owner/small", D), target=identity("owner/large", D_TARGET)
    )
    return Stitch(pairs[0], *statistics, scores={"r2": 0.5}, provenance=provenance, null=pairs[1])


def draw(architecture: str, training: bool = False, *, seed: int = 0, **options: Any) -> Any:
    from sae_lens.registry import get_sae_class, get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    kind, config = (get_sae_training_class if training else get_sae_class)(architecture)
    if "topk" in architecture:
        options = {"k": K, "rescale_acts_by_decoder_norm": False} | options
    if "matryoshka" in architecture:
        options = {"matryoshka_widths": [5, FEATURES]} | options
    sae = kind(
        config(
            d_in=D,
            d_sae=FEATURES,
            metadata=SAEMetadata(hook_name=SOURCE, context_size=16),
            **options,
        )
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            value = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(value.abs() if name == "threshold" else value)
    return sae


def naive(sae: Any, x: np.ndarray, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features and reconstruction [row, …] by the equations, in float64 with numpy alone."""
    p = {name: tensor.detach().double().numpy() for name, tensor in sae.state_dict().items()}
    name = sae.cfg.architecture()
    centred = scale * x - (p["b_dec"] if sae.cfg.apply_b_dec_to_input else 0)
    norms = (
        np.linalg.norm(p["W_dec"], axis=1)
        if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False)
        else np.ones(FEATURES)
    )
    if name == "gated":
        gate = centred @ p["W_enc"] + p["b_gate"] > 0
        f = gate * np.maximum(centred @ (p["W_enc"] * np.exp(p["r_mag"])) + p["b_mag"], 0)
    else:
        pre = (centred @ p["W_enc"] + p["b_enc"]) * norms
        f = pre if name == "abstopk" else np.maximum(pre, 0)
        if name == "jumprelu":
            f = f * (pre > p["threshold"])
        elif name in ("topk", "abstopk"):
            kth = np.sort(np.abs(f) if name == "abstopk" else pre, axis=1)[:, [-K]]
            f = f * ((np.abs(f) if name == "abstopk" else pre) >= kth)
        elif "batchtopk" in name:
            f = f * (f >= np.sort(f.ravel())[-K * len(x)])
    return f, ((f / norms) @ p["W_dec"] + p["b_dec"]) / scale


def check_exact(sae: Any, transferred: Any, maps: MapPair, scale: float = 1.0) -> None:
    y = torch.randn(12, D_TARGET, generator=torch.Generator().manual_seed(5))
    f, x_hat = naive(sae, maps.down.points(y.double()).numpy(), scale)
    assert (f != 0).any()
    with torch.no_grad():
        found = transferred.encode(y)
        decoded = transferred.decode(found)
    np.testing.assert_allclose(found.numpy(), f, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(
        decoded.numpy(), maps.up.points(torch.from_numpy(x_hat)).numpy(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("seed", "centred"), [(0, True), (1, False)])
@pytest.mark.parametrize(("architecture", "training"), KINDS)
def test_equals_up_after_sae_after_down(
    stitch: Stitch, architecture: str, training: bool, centred: bool, seed: int
) -> None:
    sae = draw(architecture, training, seed=seed, apply_b_dec_to_input=centred)
    transferred = stitch.transfer(sae)
    assert type(transferred) is type(sae)
    assert (transferred.cfg.d_in, transferred.cfg.d_sae, transferred.cfg.apply_b_dec_to_input) == (
        D_TARGET,
        FEATURES,
        False,
    )
    assert sae.cfg.apply_b_dec_to_input is centred
    check_exact(sae, transferred, stitch.maps)


@pytest.mark.parametrize(
    ("architecture", "training"), [(name, t) for name, t in KINDS if "topk" in name]
)
def test_decoder_norms_of_the_source_are_folded(
    stitch: Stitch, architecture: str, training: bool
) -> None:
    sae = draw(architecture, training, rescale_acts_by_decoder_norm=True)
    transferred = stitch.transfer(sae)
    assert transferred.cfg.rescale_acts_by_decoder_norm is False
    check_exact(sae, transferred, stitch.maps)


@pytest.mark.parametrize("architecture", INFERENCE)
def test_bfloat16_weights_become_float32(stitch: Stitch, architecture: str) -> None:
    sae = draw(architecture, dtype="bfloat16")
    transferred = stitch.transfer(sae)
    assert transferred.W_enc.dtype is torch.float32
    assert transferred.cfg.dtype == "float32"
    check_exact(sae, transferred, stitch.maps)


@pytest.mark.parametrize("architecture", INFERENCE)
def test_any_leading_shape(stitch: Stitch, architecture: str) -> None:
    transferred = stitch.transfer(draw(architecture))
    y = torch.randn(2, 3, D_TARGET)
    torch.testing.assert_close(
        transferred.encode(y).flatten(0, 1), transferred.encode(y.flatten(0, 1))
    )


@pytest.mark.parametrize("architecture", INFERENCE)
def test_constant_input_scaling_is_folded(stitch: Stitch, architecture: str) -> None:
    sae = draw(architecture, normalize_activations="expected_average_only_in")
    check_exact(sae, stitch.transfer(sae, input_scale=2.5), stitch.maps, 2.5)
    with pytest.raises(ValueError, match=r"give input_scale="):
        stitch.transfer(sae)
    with pytest.raises(ValueError, match=r"leave input_scale out"):
        stitch.transfer(draw(architecture), input_scale=2.5)


def test_through_other_maps_for_controls(stitch: Stitch) -> None:
    assert stitch.null is not None
    transferred = stitch.transfer(draw("topk"), through=stitch.null)
    check_exact(draw("topk"), transferred, stitch.null)
    assert transferred.cfg.metadata.transferred["own_maps"] is False
    with pytest.raises(MismatchError, match=r"through.up maps"):
        stitch.transfer(draw("topk"), through=stitch.null.reversed())


@pytest.mark.parametrize("architecture", INFERENCE)
def test_plain_saelens_loads_what_it_saves(
    stitch: Stitch, architecture: str, tmp_path: Any
) -> None:
    from sae_lens import SAE

    transferred = stitch.transfer(draw(architecture))
    transferred.save_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    y = torch.randn(4, D_TARGET)
    assert torch.equal(loaded(y), transferred(y))
    assert loaded.cfg.metadata.hook_name == TARGET
    assert loaded.cfg.metadata.model_name == "owner/large"
    assert loaded.cfg.metadata.transferred["source_hook"] == SOURCE


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_the_running_threshold_of_batch_topk_is_kept(
    stitch: Stitch, architecture: str, tmp_path: Any
) -> None:
    from sae_lens import SAE

    sae = draw(architecture, True)
    sae.topk_threshold.fill_(0.7)
    stitch.transfer(sae).save_inference_model(tmp_path)
    assert torch.equal(SAE.load_from_disk(tmp_path).threshold, torch.full((FEATURES,), 0.7))


def test_two_names_of_one_place(stitch: Stitch) -> None:
    sae = draw("standard")
    sae.cfg.metadata.hook_name = "blocks.2.hook_resid_pre"
    assert stitch.transfer(sae).cfg.metadata.hook_name == TARGET


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hook_name", "blocks.3.hook_resid_post", r"trained at 'blocks.3"),
        ("model_name", "other/model", r"trained on 'other/model'.*model_name = 'owner/small'"),
        ("model_hash", "hash-other", r"model_hash = 'hash-owner/small'"),
    ],
)
def test_foreign_saes_are_refused(stitch: Stitch, field: str, value: str, message: str) -> None:
    sae = draw("standard")
    setattr(sae.cfg.metadata, field, value)
    with pytest.raises(MismatchError, match=message):
        stitch.transfer(sae)


def test_another_width_is_refused(stitch: Stitch) -> None:
    back = replace(
        stitch.reversed(),
        maps=MapPair(*(replace(m, source_hook=SOURCE) for m in (stitch.down, stitch.up))),
    )
    with pytest.raises(MismatchError, match=rf"width {D}; expected {D_TARGET} dimensions"):
        back.transfer(draw("standard"))


@pytest.mark.parametrize(
    "normalisation", ["layer_norm", "constant_norm_rescale", "covariance_whitening"]
)
def test_inputs_scaled_row_by_row_are_refused(stitch: Stitch, normalisation: str) -> None:
    with pytest.raises(ValueError, match=f"normalize_activations is '{normalisation}'"):
        stitch.transfer(draw("standard", normalize_activations=normalisation))


def test_encoders_that_are_not_affine_are_refused(stitch: Stitch) -> None:
    from sae_lens.registry import get_sae_class

    pursuit, config = get_sae_class("matching_pursuit")
    with pytest.raises(
        ValueError, match=r"'matching_pursuit' cannot be transferred: its encoder iterates"
    ):
        stitch.transfer(pursuit(config(d_in=D, d_sae=FEATURES)))
    for name in (
        "transcoder",
        "skip_transcoder",
        "jumprelu_transcoder",
        "jumprelu_skip_transcoder",
    ):
        transcoder, config = get_sae_class(name)
        with pytest.raises(
            ValueError, match=f"'{name}' cannot be transferred: it reads one hook point"
        ):
            stitch.transfer(
                transcoder(config(d_in=D, d_sae=FEATURES, d_out=D, apply_b_dec_to_input=False))
            )
    kind = type(draw("standard"))
    with pytest.raises(ValueError, match=r"not SAELens' own class"):
        stitch.transfer(type("Own", (kind,), {})(draw("standard").cfg))
    with pytest.raises(TypeError, match=r"is no SAE of SAELens"):
        stitch.transfer(draw("standard").cfg)


def test_nan_weights_are_refused(stitch: Stitch) -> None:
    sae = draw("topk")
    sae.W_dec.data[1, 1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"W_dec of this TopKSAE"):
        transfer_sae(sae, stitch)


def test_stitching_does_not_import_sae_lens() -> None:
    code = (
        "import sys, lrt_lens.stitching._stitch, lrt_lens.adapters.saes._transfer; "
        "assert 'sae_lens' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_facts_of_the_source_are_no_metadata_of_the_target(stitch: Stitch) -> None:
    assert stitch.target is not None
    target = replace(stitch.target, context_length=32)
    models = replace(stitch.provenance, target=target)
    stitch = replace(stitch, provenance=models)
    sae = draw("standard")
    source = {
        "exclude_special_tokens": [0, 7],
        "sequence_separator_token": 7,
        "seqpos_slice": (1, -8),
        "hook_head_index": None,
        "context_size": 64,
    }
    for name, value in source.items():
        setattr(sae.cfg.metadata, name, value)
    metadata = stitch.transfer(sae).cfg.metadata.to_dict()
    assert metadata["context_size"] == 32
    assert not (set(source) - {"context_size"}) & set(metadata)
    # Positions that the source's training left out at the end are not in the context.
    sae.cfg.metadata.seqpos_slice = (0, 8)
    assert stitch.transfer(sae).cfg.metadata.context_size == 8
    # No recorded context is no context, not that of the stitch.
    for nothing in (None, 0):
        sae.cfg.metadata.context_size, sae.cfg.metadata.seqpos_slice = nothing, None
        assert "context_size" not in stitch.transfer(sae).cfg.metadata.to_dict()


def test_saelens_loads_a_transferred_sae_and_runs_its_own_evaluation(tmp_path: Path) -> None:
    from datasets import Dataset
    from sae_lens import SAE
    from sae_lens.evals import EvalConfig, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler
    from sae_lens.training.activations_store import ActivationsStore

    import lrt_lens as lrt

    pair, documents = lrt.demo_pair(), lrt.demo_documents()
    stitch = lrt.fit_stitches(
        pair,
        documents,
        source_layers=[2],
        target_layers=[3],
        n_tokens=10_000,
        null=False,
        progress=False,
    ).best()
    stitch.transfer(lrt.demo_sae("small")).save_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    loaded.cfg.metadata.context_size = 64
    store = ActivationsStore.from_sae(
        pair.target.bridge,
        loaded,
        Dataset.from_dict({"text": documents[:100]}),
        streaming=False,
        store_batch_size_prompts=4,
    )
    wanted = EvalConfig(
        batch_size_prompts=4,
        n_eval_reconstruction_batches=1,
        n_eval_sparsity_variance_batches=1,
        compute_ce_loss=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )
    found, _ = run_evals(loaded, store, pair.target.bridge, ActivationScaler(), wanted)
    preserved = found["model_performance_preservation"]
    assert (
        preserved["ce_loss_without_sae"]
        < preserved["ce_loss_with_sae"]
        < preserved["ce_loss_with_ablation"]
    )
    assert found["sparsity"]["l0"] == pytest.approx(32, abs=0.5)


def test_the_map_of_shuffled_pairs_transfers_an_sae_as_a_control(stitch: Stitch) -> None:
    assert stitch.null is not None
    sae = draw("topk")
    check_exact(sae, stitch.transfer(sae, through=stitch.null), stitch.null)
    with pytest.raises(TypeError, match="through is an AffineMap; .* such as stitch.null"):
        stitch.transfer(sae, through=stitch.null.up)
