"""SAEs in the folders of SAELens and Neuronpedia: SAELens loads them, and dashboards are right."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("sae_lens", exc_type=ImportError)

import sae_lens
from sae_lens import SAE, StandardSAE, StandardSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.loading import pretrained_saes_directory
from sae_lens.saes.sae import SAEMetadata
from transformer_lens import HookedTransformer

import lrt_lens as lrt
from lrt_lens.adapters.saes import Unembedding
from lrt_lens.adapters.saes._compatibility import model_identity_fields
from lrt_lens.errors import HookPointError, MismatchError, TooFewDocumentsError
from lrt_lens.serving import DashboardSettings, export_sae, push_to_hub, write_dashboards
from tests.serving.hub.conftest import HOOK
from tests.serving.hub.hub_server import Hub

# Fields of `NeuronpediaDashboardFeature` and `NeuronpediaDashboardActivation` in sae-dashboard
# 0.8.0, as their `to_dict` writes them.
FEATURE_FIELDS = {
    *("feature_index", "neuron_alignment_indices", "neuron_alignment_values"),
    *("neuron_alignment_l1", "correlated_neurons_indices", "correlated_neurons_l1"),
    *("correlated_neurons_pearson", "correlated_features_indices", "correlated_features_l1"),
    *("correlated_features_pearson", "neg_str", "neg_values", "pos_str", "pos_values"),
    *("frac_nonzero", "freq_hist_data_bar_values", "freq_hist_data_bar_heights"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values", "n_prompts_total"),
    *("n_tokens_in_prompt", "dataset", "decoder_weights_dist", "activations", "vector"),
}
TEXT_FIELDS = {
    *("bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index")
}


def make(pair: Any, **metadata: Any) -> Any:
    """A random SAE of the target at `HOOK`."""
    known = {"hook_name": HOOK, "model_name": "org/Large-2b"}
    known |= model_identity_fields(pair.target.identity)
    sae = StandardSAE(StandardSAEConfig(d_in=24, d_sae=40))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        sae.b_enc.sub_(1.0)
    sae.cfg.metadata = SAEMetadata(**known | metadata)
    return sae.eval()


def config_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "cfg.json").read_text())


def same_weights(one: Any, other: Any) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# ----------------------------------------------------------------------------------------- saelens


def test_sae_lens_loads_an_exported_sae_from_the_disk(pair: Any, tmp_path: Path) -> None:
    sae = make(pair)
    path = export_sae(sae, tmp_path / "saes")
    assert path == tmp_path / "saes" / HOOK
    loaded = SAE.load_from_disk(path)
    assert same_weights(loaded, sae)
    assert loaded.cfg.metadata.hook_name == HOOK


def test_a_training_sae_is_exported_for_inference(tmp_path: Path) -> None:
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=8, d_sae=16, k=2))
    loaded = SAE.load_from_disk(export_sae(sae, tmp_path))
    assert loaded.cfg.architecture() == "topk"
    assert config_of(tmp_path / "sae")["metadata"]["model_from_pretrained_kwargs"] == {}


def test_sae_lens_loads_an_uploaded_sae_by_its_hub_id(hub: Hub, pair: Any, tmp_path: Path) -> None:
    sae = make(pair)
    push_to_hub(sae, "user/saes", license="mit")
    assert sorted(hub.files("user/saes")) == [
        "README.md",
        f"{HOOK}/cfg.json",
        f"{HOOK}/sae_weights.safetensors",
    ]
    card = hub.files("user/saes")["README.md"].decode()
    code = card.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert same_weights(names["sae"], sae)
    # The line of sae_lens.evals that loads the model.
    load = HookedTransformer.from_pretrained_no_processing
    keywords = names["sae"].cfg.metadata.model_from_pretrained_kwargs
    assert "model_name" in inspect.signature(load).bind("x", device="cpu", **keywords).arguments


def test_every_sae_of_ours_names_the_keywords_of_its_model(
    pair: Any, stitch: Any, tmp_path: Path
) -> None:
    sae = make(pair)
    sae.cfg.metadata.model_from_pretrained_kwargs = None
    unknown = StandardSAE(StandardSAEConfig(d_in=12, d_sae=20))
    saes = {
        "small": lrt.demo_sae("small"),
        "large": lrt.demo_sae("large"),
        "of an unknown target": stitch.transfer(unknown),
    }
    for name, one in saes.items():
        assert one.cfg.metadata.model_from_pretrained_kwargs == {}, name
    exported = SAE.load_from_disk(export_sae(sae, tmp_path))
    assert exported.cfg.metadata.model_from_pretrained_kwargs == {}
    assert sae.cfg.metadata.model_from_pretrained_kwargs is None, "the SAE itself is not changed"


def test_sae_lens_reads_texts_for_exported_saes_of_known_models(pair: Any, tmp_path: Path) -> None:
    bare = StandardSAE(StandardSAEConfig(d_in=24, d_sae=40))
    bare.cfg.metadata = SAEMetadata(hook_name=HOOK)
    path = export_sae(bare, tmp_path, model=pair.target)
    for one in (SAE.load_from_disk(path), lrt.demo_sae("small"), lrt.demo_sae("large")):
        metadata = one.cfg.metadata
        # What `ActivationsStore.from_sae` needs of the metadata.
        assert metadata.hook_name
        assert metadata.prepend_bos is True
        assert metadata.model_from_pretrained_kwargs is not None
    assert SAE.load_from_disk(path).cfg.metadata.model_name == pair.target.name


# ------------------------------------------------------------------------------------- neuronpedia


@pytest.fixture(scope="module")
def exported(pair: Any, corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("neuronpedia")
    dashboards = DashboardSettings(
        n_prompts=60, n_tokens_in_prompt=24, features_per_file=16, dataset="org/corpus"
    )
    export_sae(
        make(pair),
        folder,
        to="neuronpedia",
        model=pair.target,
        documents=corpus,
        dashboards=dashboards,
        repo_id="user/saes",
    )
    return folder


def batches(folder: Path) -> list[dict[str, Any]]:
    paths = sorted((folder / "dashboards").glob("batch-*.json"))
    return [json.loads(path.read_text()) for path in paths]


def test_the_entry_is_one_that_sae_lens_reads(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = exported / "pretrained_saes.yaml"
    assert yaml.safe_load(entry.read_text())["large-2b-res-lrt"]["conversion_func"] is None
    monkeypatch.setattr(pretrained_saes_directory, "files", lambda _: exported)
    directory = pretrained_saes_directory.get_pretrained_saes_directory.__wrapped__()
    release = directory["large-2b-res-lrt"]
    assert release.repo_id == "user/saes"
    assert release.saes_map == {HOOK: HOOK}
    assert release.neuronpedia_id == {HOOK: "large-2b/1-res-lrt"}
    loaded = SAE.load_from_disk(exported / HOOK)
    assert loaded.cfg.metadata.neuronpedia_id == "large-2b/1-res-lrt"


def test_dashboards_have_the_fields_of_sae_dashboard(exported: Path) -> None:
    found = batches(exported)
    assert len(found) > 1
    for batch in found:
        assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("large-2b", 1, "res-lrt")
        for feature in batch["features"]:
            assert set(feature) == FEATURE_FIELDS
            assert all(set(text) == TEXT_FIELDS for text in feature["activations"])
            assert len(feature["freq_hist_data_bar_heights"]) == 50
    skipped = json.loads((exported / "dashboards" / "skipped_indexes.json").read_text())
    shown = {feature["feature_index"] for batch in found for feature in batch["features"]}
    assert shown | set(skipped["skipped_indexes"]) == set(range(40))
    assert skipped["layer"] == "1"


def dense(pair: Any, corpus: list[str]) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Activations [window, position, feature], mask and ids, computed window by window.

    A window counts with four unmasked tokens: one of BOS, three that are masked, and four.
    """
    model, sae = pair.target, make(pair)
    windows: list[list[int]] = []
    for text in corpus:
        body = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        parts = [body[i : i + 23] for i in range(0, len(body), 23)]
        windows += [[*model.prefix, *part] for part in parts if len(part) >= 7]
    windows = windows[:60]
    values, mask = np.zeros((60, 24, 40)), np.zeros((60, 24), dtype=bool)
    for i, ids in enumerate(windows):
        states = model.engine.capture(torch.tensor([ids]), [HOOK])[HOOK][0]
        with torch.no_grad():
            values[i, : len(ids)] = sae.encode(states).numpy()
        mask[i, 4 : len(ids)] = True
    return values * mask[..., None], mask, windows


def test_densities_histograms_and_texts_are_those_of_a_naive_computation(
    exported: Path, pair: Any, corpus: list[str]
) -> None:
    values, mask, windows = dense(pair, corpus)
    features = [one for batch in batches(exported) for one in batch["features"]]
    for feature in features[:12]:
        own = values[..., feature["feature_index"]]
        fired = own[own != 0]
        assert feature["frac_nonzero"] == pytest.approx(len(fired) / mask.sum())
        edges = np.histogram_bin_edges(fired, bins=50)
        assert sum(feature["freq_hist_data_bar_heights"]) == len(fired)
        assert feature["freq_hist_data_bar_values"][0] == pytest.approx(
            (edges[0] + edges[1]) / 2, abs=1e-3
        )
        top = [text for text in feature["activations"] if text["bin_min"] == -1]
        peaks = np.sort(own.max(1))[::-1]
        peaks = peaks[peaks > 0][:20]
        assert [max(text["values"]) for text in top] == pytest.approx(list(peaks), abs=1e-3)
        for text in feature["activations"]:
            at = text["qualifying_token_index"]
            low, high = (text["bin_min"], text["bin_max"])
            assert low - 1e-3 <= text["values"][at] <= high + 1e-3
            assert len(text["values"]) == len(text["tokens"])
        shown = "".join(top[0]["tokens"])
        best = windows[int(own.max(1).argmax())][len(pair.target.prefix) :]
        assert shown == pair.target.tokenizer.decode(best)
    shares = {
        (text["bin_min"], text["bin_max"]): text["bin_contains"]
        for text in features[0]["activations"]
        if text["bin_min"] != -1
    }
    own = values[..., features[0]["feature_index"]][mask]
    for (low, high), share in shares.items():
        is_lowest = low == 0
        inside = (own <= high + 5e-4) & ((own > low + 5e-4) | (is_lowest & (own >= 0)))
        assert share == pytest.approx(inside.mean(), abs=0.02)


def test_output_tokens_are_those_of_the_decoder_row(exported: Path, pair: Any) -> None:
    feature = batches(exported)[0]["features"][0]
    row = make(pair).W_dec[feature["feature_index"]].detach()
    weights = Unembedding.of(pair.target).logit_weights(row[None])[0]
    best, worst = int(weights.argmax()), int(weights.argmin())
    pieces = pair.target.tokenizer.convert_ids_to_tokens([best, worst])
    assert feature["pos_str"][0] == pieces[0].replace("Ġ", " ")
    assert feature["neg_str"][0] == pieces[1].replace("Ġ", " ")
    assert feature["pos_values"][0] == pytest.approx(float(weights.max()), abs=1e-3)
    assert feature["neg_values"][0] == pytest.approx(float(weights.min()), abs=1e-3)
    assert sum(feature["logits_hist_data_bar_heights"]) == len(weights)


def test_the_same_text_gives_the_same_dashboards(
    exported: Path, pair: Any, corpus: list[str], tmp_path: Path
) -> None:
    settings = DashboardSettings(
        n_prompts=60, n_tokens_in_prompt=24, features=(3, 5), dataset="org/corpus"
    )
    about = {"model_id": "large-2b", "layer": 1, "sae_set": "res-lrt"}
    write_dashboards(make(pair), pair.target, corpus, tmp_path, about, settings)
    again = json.loads((tmp_path / "batch-0.json").read_text())["features"]
    whole = [one for batch in batches(exported) for one in batch["features"]]
    assert again == [one for one in whole if one["feature_index"] in (3, 5)]


# ---------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_exported_is_refused_by_name(
    pair: Any, corpus: list[str], tmp_path: Path
) -> None:
    sae = make(pair)
    with pytest.raises(TypeError, match="a dict is no SAE of SAELens"):
        export_sae({}, tmp_path)
    incomplete: list[dict[str, Any]] = [{"to": "neuronpedia"}, {"model": pair.target}]
    for options in incomplete:
        with pytest.raises(ValueError, match="documents are read for the dashboards"):
            export_sae(sae, tmp_path, documents=corpus, **options)
    with pytest.raises(HookPointError, match="files sources under the number of a block"):
        export_sae(make(pair, hook_name="hook_embed"), tmp_path, to="neuronpedia")
    with pytest.raises(ValueError, match="does not name its model; give .*model_id="):
        export_sae(make(pair, model_name=None), tmp_path, to="neuronpedia")
    with pytest.raises(MismatchError, match="width 24; expected 16"):
        export_sae(sae, tmp_path, to="neuronpedia", model=pair.source, documents=corpus)
    with pytest.raises(TooFewDocumentsError, match="no document has four tokens"):
        export_sae(
            sae, tmp_path, to="neuronpedia", model=pair.target, documents=["a cat"], sae_id="x"
        )
    about = {"model_id": "large-2b", "layer": 1, "sae_set": "res-lrt"}
    with pytest.raises(IndexError, match=r"features \[40\] are none of this SAE; it has 40"):
        write_dashboards(
            sae, pair.target, corpus, tmp_path, about, DashboardSettings(features=(40,))
        )


def test_the_version_of_sae_lens_is_one_that_was_checked() -> None:
    assert sae_lens.__version__.startswith("6.")
