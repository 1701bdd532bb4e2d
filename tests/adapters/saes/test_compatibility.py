"""One rule for 'does this SAE belong here': every entry point gives the same answer."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lrt_lens as lrt
from lrt_lens.adapters.saes import CodeMap, SAERows
from lrt_lens.adapters.saes._compatibility import (
    model_identity_fields,
    plain_name,
    refuse_foreign_sae,
    trained_context,
)
from lrt_lens.errors import HookPointError, MismatchError

FEATURES = 20
SOURCE, TARGET = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
TEXTS, LABELS = ["the happy cat sang", "the sad dog slept"] * 2, ["happy", "sad"] * 2
FAST: dict[str, Any] = {"n_tokens": 500, "context_length": 32, "progress": False}


class ReachedError(Exception):
    """Exception that shows that an entry point has accepted its SAEs and begins to read."""


class Unread(list[str]):
    """Documents that raise `ReachedError` when they are read."""

    def __iter__(self) -> Iterator[str]:
        raise ReachedError


def unread_rows(model: Any, hook: str) -> SAERows:
    """Rows of a hook point that raise `ReachedError` when they are read."""

    def chunks() -> Iterator[torch.Tensor]:
        raise ReachedError

    return SAERows(hook, torch.ones(3, model.d_model), chunks, model.identity, 32)


@pytest.fixture(scope="module")
def stitch(pair: Any, corpus: list[str]) -> Any:
    return lrt.fit_stitches(
        pair, corpus, source_layers=[0], target_layers=[1], context_length=32, progress=False
    ).best()


@pytest.fixture(scope="module")
def make(pair: Any) -> Callable[..., Any]:
    """``make("source", model_name="other")``: a random SAE of one end with this metadata."""

    def make_sae(end: str, features: int = FEATURES, **metadata: Any) -> Any:
        from sae_lens import TopKSAE, TopKSAEConfig
        from sae_lens.saes.sae import SAEMetadata

        torch.manual_seed(0)
        return TopKSAE(
            TopKSAEConfig(
                d_in=getattr(pair, end).d_model,
                d_sae=features,
                k=4,
                rescale_acts_by_decoder_norm=False,
                metadata=SAEMetadata(
                    **{"hook_name": SOURCE if end == "source" else TARGET} | metadata
                ),
            )
        )

    return make_sae


@pytest.fixture(scope="module")
def entries(
    pair: Any, stitch: Any, make: Callable[..., Any]
) -> dict[str, dict[str, Callable[[Any], Any]]]:
    """Every public function that takes an SAE, by the end at which that SAE reads."""
    good = {end: make(end) for end in ("source", "target")}
    codes = CodeMap(
        torch.zeros(2, pair.target.d_model),
        torch.zeros(pair.target.d_model),
        torch.arange(2),
        torch.ones(FEATURES, dtype=torch.int64),
        SOURCE,
        TARGET,
    )
    source_rows, target_rows = unread_rows(pair.source, SOURCE), unread_rows(pair.target, TARGET)

    def sparse(**saes: Any) -> Any:
        tests = {"test_texts": TEXTS, "test_labels": LABELS}
        options = {"ks": (1,), "progress": False} | tests | saes
        return lrt.evaluate_sparse_probes(pair, stitch, TEXTS, LABELS, **options)

    def evaluate(sae: Any, **options: Any) -> Any:
        return lrt.evaluate_sae(pair, stitch, sae, Unread(), progress=False, **options)

    def match(source_sae: Any, target_sae: Any) -> Any:
        return lrt.match_features(pair, stitch, source_sae, target_sae, Unread(), **FAST)

    def features(sae: Any, **options: Any) -> Any:
        return lrt.evaluate_features(pair, stitch, sae, Unread(), progress=False, **options)

    return {
        "source": {
            "transfer": stitch.transfer,
            "evaluate_sae": evaluate,
            "evaluate_sparse_probes": lambda sae: sparse(source_sae=sae),
            "fit_code_map": lambda sae: lrt.fit_code_map(pair, stitch, sae, Unread(), **FAST),
            "evaluate_code_map": lambda sae: lrt.evaluate_code_map(
                pair, stitch, sae, codes, Unread(), **FAST
            ),
            "match_features": lambda sae: match(sae, good["target"]),
            "evaluate_features": features,
            "study_sae_initialisation": lambda sae: lrt.study_sae_initialisation(
                pair, stitch, sae, target_rows, progress=False
            ),
            "study_sae_scaling": lambda sae: lrt.study_sae_scaling(
                pair, stitch, [make("source", 8), sae], target_rows, progress=False
            ),
            "train_sae": lambda sae: lrt.train_sae(None, source_rows, init=sae, progress=False),
        },
        "target": {
            "transfer, reversed": lambda sae: stitch.reversed().transfer(sae),
            "evaluate_sae": lambda sae: evaluate(good["source"], native=sae),
            "evaluate_sparse_probes, native": lambda sae: sparse(
                source_sae=good["source"], native_sae=sae
            ),
            "evaluate_sparse_probes, transferred": lambda sae: sparse(
                source_sae=good["source"], transferred_sae=sae
            ),
            "match_features": lambda sae: match(good["source"], sae),
            "evaluate_features": lambda sae: features(good["source"], transferred=sae),
            "train_sae": lambda sae: lrt.train_sae(
                pair.target, target_rows, init=sae, progress=False
            ),
        },
    }


FOREIGN = {
    "hook point": {"hook_name": "blocks.1.hook_resid_mid"},
    "name": {"model_name": "EleutherAI/another"},
    "weights": {"model_hash": "0" * 16},
    "weights of the right name": {"model_name": "{name}", "model_hash": "0" * 16},
    "basis": {"basis": "centred"},
    "tokenizer": {"tokenizer_hash": "0" * 16},
    "processed weights": {"model_from_pretrained_kwargs": {"center_writing_weights": True}},
    "another checkpoint": {
        "model_name": "{name}",
        "model_from_pretrained_kwargs": {"revision": "step3000", "fold_ln": True},
    },
    "the first checkpoint": {
        "model_name": "{name}",
        "model_from_pretrained_kwargs": {"checkpoint_index": 0},
    },
    "the first step": {
        "model_name": "{name}",
        "model_from_pretrained_kwargs": {"checkpoint_value": 0},
    },
    "a folder of the repository": {
        "model_name": "{name}",
        "model_from_pretrained_kwargs": {"subfolder": "step1"},
    },
    "an unknown keyword": {
        "model_name": "{name}",
        "model_from_pretrained_kwargs": {"adapter": "lora"},
    },
    "one attention head": {"hook_head_index": 3},
    "first attention head": {"hook_head_index": 0},
    "transcoder": {"hook_name_out": "blocks.1.hook_mlp_out"},
    "BOS policy": {"prepend_bos": False},
}
"""Metadata of SAEs of another hook point or model, by the check that refuses them."""


@pytest.mark.parametrize("end", ["source", "target"])
@pytest.mark.parametrize("question", FOREIGN)
def test_every_entry_point_refuses_a_foreign_sae_with_one_message(
    pair: Any, make: Any, entries: Any, end: str, question: str
) -> None:
    name = getattr(pair, end).name
    metadata = FOREIGN[question]
    filled = {k: v.format(name=name) if isinstance(v, str) else v for k, v in metadata.items()}
    foreign = make(end, **filled)
    messages = {}
    for entry, call in entries[end].items():
        with pytest.raises(MismatchError) as caught:
            call(foreign)
        messages[entry] = str(caught.value)
    assert len(set(messages.values())) == 1, messages
    assert "expected" in next(iter(messages.values()))


@pytest.mark.parametrize("end", ["source", "target"])
@pytest.mark.parametrize(
    ("normalisation", "remedy"),
    [
        ("expected_average_only_in", r"sae\.fold_activation_norm_scaling_factor\(factor\)"),
        ("covariance_whitening", r"sae\.fold_activation_whitening\("),
    ],
)
def test_every_entry_point_refuses_inputs_that_saelens_scales_outside_the_sae(
    make: Any, entries: Any, end: str, normalisation: str, remedy: str
) -> None:
    sae = make(end)
    sae.cfg.normalize_activations = normalisation
    messages = set()
    for call in entries[end].values():
        with pytest.raises(ValueError, match=remedy) as caught:
            call(sae)
        messages.add(str(caught.value))
    assert len(messages) == 1


@torch.no_grad()
def test_the_factor_of_the_inputs_is_folded_as_the_message_says(
    pair: Any, stitch: Any, make: Any, corpus: list[str]
) -> None:
    def native_row(sae: Any) -> Any:
        result = lrt.evaluate_sae(
            pair, stitch, make("source"), corpus, native=sae, n_random=0, **FAST
        )
        return result.table.set_index("arm").loc["native"]

    def biased() -> Any:
        sae = make("target")
        # Without biases TopK is homogeneous, and no factor would change a reconstruction.
        sae.b_enc.copy_(torch.linspace(-3, 3, FEATURES))
        sae.b_dec.fill_(0.5)
        return sae

    factor, sae = 20.0, biased()
    # By hand: features of x are those of factor · x, and the reconstruction is divided by it.
    scaled = biased()
    scaled.encode = lambda x: sae.encode(factor * x)
    scaled.decode = lambda f: sae.decode(f) / factor
    expected, unscaled = native_row(scaled), native_row(sae)
    recorded = biased()
    recorded.cfg.normalize_activations = "expected_average_only_in"
    with pytest.raises(ValueError, match="fold_activation_norm_scaling_factor"):
        native_row(recorded)
    recorded.fold_activation_norm_scaling_factor(factor)
    assert native_row(recorded)["fvu"] == pytest.approx(expected["fvu"], rel=1e-5)
    assert abs(unscaled["fvu"] - expected["fvu"]) > 0.01


@pytest.mark.parametrize("end", ["source", "target"])
@pytest.mark.parametrize("positions", [(0, 2), [1, 2], (0, -2), (5, None), (-3, None), (0, 40, 2)])
def test_every_entry_point_that_reads_text_refuses_positions_beyond_the_training(
    make: Any, entries: Any, end: str, positions: Any
) -> None:
    sae = make(end, seqpos_slice=positions, context_size=4)
    for entry, call in entries[end].items():
        if entry.startswith("transfer"):
            call(sae)
            continue
        with pytest.raises(MismatchError, match=r"trained on .* \(seqpos_slice=.*; expected"):
            call(sae)


@pytest.mark.parametrize(
    ("positions", "context", "trained"),
    [
        (None, 64, 64),
        ([None], 64, 64),
        ((None,), None, None),
        ((0, 8), 64, 8),
        ((1, 8), None, 8),
        ((0, 128), 64, 64),
        ((1, -4), 64, 60),
        ((0, -4), None, None),
        ((1, None), 64, 64),
    ],
)
def test_the_trained_context_counts_the_positions_of_the_training(
    pair: Any, make: Any, positions: Any, context: int | None, trained: int | None
) -> None:
    sae = make("source", seqpos_slice=positions, context_size=context)
    assert trained_context(sae) == trained
    model = pair.source.identity
    refuse_foreign_sae(sae, SOURCE, model, context_length=trained or 4096)
    if trained:
        with pytest.raises(MismatchError, match=r"context_size = \d+\)"):
            refuse_foreign_sae(sae, SOURCE, model, context_length=trained + 1)
        # The remedy of the message.
        sae.cfg.metadata.seqpos_slice, sae.cfg.metadata.context_size = None, trained + 1
        refuse_foreign_sae(sae, SOURCE, model, context_length=trained + 1)


@pytest.mark.parametrize(
    ("keywords", "revision", "fits"),
    [
        ({"revision": "main"}, "unknown", True),
        ({"revision": "main"}, "main", True),
        ({"revision": "step1000"}, "step1000", True),
        ({"checkpoint_value": 1000}, "step1000", True),
        ({"checkpoint_value": 0}, "step0", True),
        ({"revision": None, "subfolder": "", "load_in_8bit": False}, "main", True),
        ({"fold_ln": False, "dtype": "float16", "n_ctx": 512, "device": "cuda:0"}, "main", True),
        (None, "unknown", True),
        ({}, "unknown", True),
        ({"revision": "main"}, "step1000", False),
        ({"revision": "step1000"}, "unknown", False),
        ({"revision": "step1000"}, "step2000", False),
        ({"revision": "step1000", "checkpoint_value": 2000}, "step1000", False),
        ({"checkpoint_value": 0}, "step1000", False),
        ({"checkpoint_index": 0}, "unknown", False),
        ({"variant": "fp16-other"}, "unknown", False),
        ({"load_in_8bit": True}, "unknown", False),
        (None, "step1000", False),
        ({}, "step1000", False),
    ],
)
def test_revisions_and_checkpoints_are_those_of_the_model(
    pair: Any, make: Any, keywords: dict[str, Any] | None, revision: str, fits: bool
) -> None:
    model = replace(pair.source.identity, revision=revision)
    sae = make("source", model_name=model.name, model_from_pretrained_kwargs=keywords)
    if fits:
        refuse_foreign_sae(sae, SOURCE, model)
        return
    with pytest.raises(MismatchError, match=rf"\(revision {revision}\)") as caught:
        refuse_foreign_sae(sae, SOURCE, model)
    assert f"sae.cfg.metadata.model_hash = {model.config_hash!r}" in str(caught.value)
    sae.cfg.metadata.model_hash = model.config_hash
    refuse_foreign_sae(sae, SOURCE, model)


def test_an_sae_that_names_no_model_fits_every_revision(pair: Any, make: Any) -> None:
    model = replace(pair.source.identity, revision="step1000")
    refuse_foreign_sae(make("source"), SOURCE, model)
    # What this package records fits that model, with and without the hash.
    fields = model_identity_fields(model)
    assert fields["model_from_pretrained_kwargs"]["revision"] == "step1000"
    sae = make("source", model_name=model.name, **fields)
    sae.cfg.metadata.model_hash = None
    refuse_foreign_sae(sae, SOURCE, model)
    with pytest.raises(MismatchError, match="revision='step1000'"):
        refuse_foreign_sae(sae, SOURCE, pair.source.identity)


@pytest.mark.parametrize("end", ["source", "target"])
def test_every_entry_point_that_reads_text_refuses_one_beyond_the_context_of_training(
    make: Any, entries: Any, end: str
) -> None:
    short = make(end, context_size=2)
    for entry, call in entries[end].items():
        if entry.startswith("transfer"):
            call(short)
            continue
        with pytest.raises(MismatchError, match=r"on windows of 2 tokens; expected at least \d+"):
            call(short)


def test_a_context_as_long_as_that_of_training_is_read(make: Any, pair: Any) -> None:
    sae, model = make("source", context_size=32), pair.source.identity
    refuse_foreign_sae(sae, SOURCE, model, context_length=32)
    with pytest.raises(MismatchError, match=r"set sae\.cfg\.metadata\.context_size = 33"):
        refuse_foreign_sae(sae, SOURCE, model, context_length=33)
    sae.cfg.metadata.context_size = 33
    refuse_foreign_sae(sae, SOURCE, model, context_length=33)


@pytest.mark.parametrize("end", ["source", "target"])
def test_every_entry_point_refuses_another_width(make: Any, entries: Any, end: str) -> None:
    foreign = make("target" if end == "source" else "source", hook_name=None)
    messages = set()
    for call in entries[end].values():
        with pytest.raises(MismatchError, match=r"this SAE has width \d+; expected") as caught:
            call(foreign)
        messages.add(str(caught.value))
    assert len(messages) == 1


def right(model: Any, synonym: str) -> dict[str, dict[str, Any]]:
    """Metadata of SAEs that belong, as SAELens, folders and this package write them."""
    identity = model.identity
    return {
        "nothing": {"hook_name": None},
        "the hook point alone": {},
        "another name of the hook point": {"hook_name": synonym},
        "the name with an owner and in capitals": {"model_name": f"Owner/{model.name.upper()}"},
        "a folder of that name": {"model_name": f"/models/{model.name}/"},
        "the hash and another name": {"model_name": "a copy", "model_hash": identity.config_hash},
        "weights whose processing leaves the stream unchanged": {
            "model_name": model.name,
            "model_from_pretrained_kwargs": {"fold_ln": True, "center_unembed": True},
            "prepend_bos": model.prepend_bos,
            "context_size": 4096,
        },
        "a basis that counts more than the keywords": {
            "basis": "raw",
            "model_from_pretrained_kwargs": {"center_writing_weights": True},
        },
        "all that this package records": {
            "model_name": model.name,
            **model_identity_fields(identity),
        },
    }


@pytest.mark.parametrize(
    ("end", "synonym"),
    [("source", "blocks.1.hook_resid_pre"), ("target", "blocks.2.hook_resid_pre")],
)
def test_every_entry_point_accepts_an_sae_that_belongs(
    pair: Any, make: Any, entries: Any, monkeypatch: Any, end: str, synonym: str
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise ReachedError

    # Sparse probes count their texts and labels first, so the texts cannot be `Unread`.
    monkeypatch.setattr("lrt_lens.adapters.saes._sparse_probing._features", stop)
    for recorded, metadata in right(getattr(pair, end), synonym).items():
        sae = make(end, **metadata)
        for entry, call in entries[end].items():
            try:
                call(sae)
            except ReachedError:
                continue
            assert entry.startswith("transfer"), (recorded, entry)


def test_bundled_saes_belong_to_the_bundled_models() -> None:
    pair = lrt.demo_pair()
    for member, model in (("small", pair.source), ("large", pair.target)):
        sae = lrt.demo_sae(member)
        refuse_foreign_sae(sae, sae.cfg.metadata.hook_name, model.identity)
    with pytest.raises(MismatchError, match="this SAE has width 256; expected 128"):
        refuse_foreign_sae(sae, sae.cfg.metadata.hook_name, pair.source.identity)


def test_trained_and_transferred_saes_record_what_is_asked(
    pair: Any, stitch: Any, make: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(64, pair.target.d_model, generator=generator)
    rows = replace(SAERows.from_tensors(states, states, hook=TARGET), model=pair.target.identity)
    transferred = stitch.transfer(make("source"))
    trained = lrt.train_sae(
        None, rows, init=transferred, n_tokens=64, batch_rows=32, progress=False
    ).sae
    for sae in (transferred, trained):
        metadata = sae.cfg.metadata.to_dict()
        assert metadata.items() >= model_identity_fields(pair.target.identity).items()
        assert metadata["model_name"] == pair.target.name


def test_rows_without_a_model_record_no_name(pair: Any, stitch: Any) -> None:
    states = torch.randn(64, pair.source.d_model, generator=torch.Generator().manual_seed(0))
    rows = SAERows.from_tensors(states, states, hook=SOURCE)
    trained = lrt.train_sae(None, rows, n_tokens=64, batch_rows=32, k=4, progress=False).sae
    assert trained.cfg.metadata.model_name is None
    stitch.transfer(trained)


def test_the_remedies_in_the_messages_work(pair: Any, make: Any) -> None:
    model = pair.source.identity
    sae = make("source", model_name="other", model_hash="0" * 16)
    with pytest.raises(
        MismatchError, match=f"set sae.cfg.metadata.model_hash = '{model.config_hash}'"
    ):
        refuse_foreign_sae(sae, SOURCE, model)
    sae.cfg.metadata.model_hash = model.config_hash
    refuse_foreign_sae(sae, SOURCE, model)
    sae.cfg.metadata.model_hash = None
    with pytest.raises(MismatchError, match=f"set sae.cfg.metadata.model_name = '{model.name}'"):
        refuse_foreign_sae(sae, SOURCE, model)
    sae.cfg.metadata.model_name = model.name
    refuse_foreign_sae(sae, SOURCE, model)
    sae.cfg.metadata.prepend_bos = not model.prepend_bos
    remedy = f"set sae.cfg.metadata.prepend_bos = {model.prepend_bos}"
    with pytest.raises(MismatchError, match=remedy):
        refuse_foreign_sae(sae, SOURCE, model)
    sae.cfg.metadata.prepend_bos = model.prepend_bos
    sae.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    with pytest.raises(MismatchError, match=r"set sae\.cfg\.metadata\.basis = 'raw'"):
        refuse_foreign_sae(sae, SOURCE, model)
    # The model has RMSNorm, which TransformerLens does not centre.
    remedy = r"RMSNorm.*set sae\.cfg\.metadata\.basis = 'raw'"
    with pytest.raises(MismatchError, match=remedy) as error:
        refuse_foreign_sae(sae, SOURCE, model)
    assert "uncentred_sae" not in str(error.value)
    with pytest.raises(MismatchError, match=r"converted by lrt\.uncentred_sae.*has RMSNorm"):
        refuse_foreign_sae(lrt.uncentred_sae(sae), SOURCE, model)
    # With LayerNorm, and in files that do not record the norm, the conversion is a remedy.
    for norm in (True, None):
        other = replace(model, ignores_mean=norm)
        with pytest.raises(MismatchError, match=r"convert it with lrt\.uncentred_sae\(sae\)"):
            refuse_foreign_sae(sae, SOURCE, other)
        refuse_foreign_sae(lrt.uncentred_sae(sae), SOURCE, other)
    sae.cfg.metadata.basis = "raw"
    refuse_foreign_sae(sae, SOURCE, model)


def test_an_unknown_model_is_not_compared(make: Any) -> None:
    refuse_foreign_sae(make("source", model_hash="0" * 16, model_name="other"), SOURCE, None)
    with pytest.raises(MismatchError, match="trained at"):
        refuse_foreign_sae(make("source"), TARGET, None)


def test_without_metadata_only_the_width_is_compared(pair: Any) -> None:
    plain = SimpleNamespace(encode=lambda x: x, W_dec=torch.zeros(5, pair.source.d_model))
    refuse_foreign_sae(plain, SOURCE, pair.source.identity)
    with pytest.raises(MismatchError, match="has width 16; expected 24"):
        refuse_foreign_sae(plain, TARGET, pair.target.identity)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("EleutherAI/pythia-70m-deduped", "pythia-70m-deduped"),
        ("/models/pythia-70m-deduped/", "pythia-70m-deduped"),
        ("gpt2-small", "gpt2"),
        ("openai-community/gpt2", "gpt2"),
        ("GPT2-medium", "gpt2-medium"),
    ],
)
def test_names_are_compared_without_owner_folder_and_case(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_joined_hook_points_are_refused(pair: Any, stitch: Any, make: Any) -> None:
    joined = replace(stitch.up, source_hook=f"{SOURCE}+{TARGET}")
    several = replace(stitch, maps=replace(stitch.maps, up=joined))
    for function in (lrt.evaluate_sae, lrt.evaluate_features):
        with pytest.raises(HookPointError, match="joins several hook points"):
            function(pair, several, make("source"), Unread(), progress=False)
