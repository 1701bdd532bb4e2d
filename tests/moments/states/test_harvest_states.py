"""A harvest of kept states equals that of the models that computed them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import lrt_lens as lrt
from lrt_lens.moments import CrossMoments, harvest, remove_checkpoints
from lrt_lens.moments.states import StateFolder, StateStream, harvest_states
from tests.moments.states.layouts import (
    hidden_states,
    largest_difference,
    windows_of,
    write_arrays,
    write_manifest,
    write_named,
    write_parquet,
    write_vllm,
)

SETTINGS: dict[str, Any] = {
    "source_layers": [0, 1],
    "target_layers": [1, 2],
    "n_tokens": None,
    "context_length": 24,
    "block_rows": 192,
    "moment_dtype": "float64",
}


def double(build_hf: Any, tokenizer: Any, d: int, layers: int, seed: int) -> Any:
    return lrt.HookedModel.load(
        build_hf("llama", d=d, layers=layers, seed=seed).double(), tokenizer=tokenizer
    )


@pytest.fixture(scope="session")
def pair64(build_hf: Any, tokenizer: Any) -> Any:
    """The pair of small models in float64, so that nothing but the rows decides the sums."""
    return lrt.ModelPair(
        double(build_hf, tokenizer, 16, 2, 0), double(build_hf, tokenizer, 24, 3, 1)
    )


@pytest.fixture(scope="session")
def other_pair64(build_hf: Any, pair64: Any, train_tokenizer: Any) -> Any:
    """A pair like `pair64`, with another tokenizer in the target."""
    other = train_tokenizer(bos=False, vocabulary=300)
    return lrt.ModelPair(pair64.source, double(build_hf, other, 24, 3, 1))


def expected(pair: Any, corpus: list[str], **settings: Any) -> CrossMoments:
    return harvest(pair, corpus, progress=False, **SETTINGS | settings)


def ids_of(pair: Any, corpus: list[str], role: str, **settings: Any) -> list[list[int]]:
    windows = windows_of(pair, corpus, **SETTINGS | settings)
    return [window.read_by(role).ids for window in windows]


@pytest.fixture(scope="session")
def folders(pair64: Any, corpus: list[str], tmp_path_factory: Any) -> dict[str, StateFolder]:
    """States of both models, written as vLLM does, in another order than that of the harvest."""
    root = tmp_path_factory.mktemp("states")
    source = ids_of(pair64, corpus, "source")[::-1]
    target = ids_of(pair64, corpus, "target")
    rng = np.random.default_rng(0)
    target = [target[k] for k in rng.permutation(len(target))]
    write_vllm(root / "source", pair64.source, source, [0, 1, 2])
    write_vllm(root / "target", pair64.target, target, [2, 3])
    return {
        # vLLM writes columns in ascending order, whatever was asked.
        "source": StateFolder(root / "source", layer_ids=[2, 0, 1], n_layers=2),
        "target": StateFolder(root / "target", layer_ids=[2, 3], n_layers=3),
    }


@pytest.mark.parametrize("kept", [("source",), ("target",), ("source", "target")])
def test_files_of_vllm_give_the_moments_of_the_models(
    pair64: Any, corpus: list[str], folders: dict[str, StateFolder], kept: tuple[str, ...]
) -> None:
    sides = {role: folders[role] if role in kept else getattr(pair64, role) for role in folders}
    found = harvest_states(
        sides["source"],
        sides["target"],
        corpus,
        tokenizers=pair64.source.tokenizer,
        progress=False,
        **SETTINGS,
    )
    truth = expected(pair64, corpus)
    assert found.pairs == truth.pairs
    assert found.token_hook == "hook_embed"
    assert found.null == "full"
    assert largest_difference(truth, found) < 1e-9
    assert found.provenance.n_documents == truth.provenance.n_documents
    assert found.provenance.corpus == truth.provenance.corpus
    pd.testing.assert_frame_equal(found.fit().scores, truth.fit().scores, rtol=1e-7)


@pytest.mark.parametrize("kept", [("source",), ("target",), ("source", "target")])
def test_two_tokenizers_are_aligned_by_text(
    other_pair64: Any, corpus: list[str], tmp_path: Path, kept: tuple[str, ...]
) -> None:
    sides: dict[str, Any] = {}
    layer_ids = {"source": [0, 1, 2], "target": [2, 3]}
    for role in ("source", "target"):
        model = getattr(other_pair64, role)
        sides[role] = model
        if role in kept:
            folder = write_vllm(
                tmp_path / role, model, ids_of(other_pair64, corpus, role), layer_ids[role]
            )
            sides[role] = StateFolder(folder, layer_ids=layer_ids[role])
    found = harvest_states(
        sides["source"],
        sides["target"],
        corpus,
        tokenizers=(other_pair64.source.tokenizer, other_pair64.target.tokenizer),
        progress=False,
        **SETTINGS,
    )
    truth = expected(other_pair64, corpus)
    assert largest_difference(truth, found) < 1e-9
    assert found.provenance.aligned == truth.provenance.aligned
    assert found.token_hook == truth.token_hook


HOOKS = {"hook_embed": 0, "blocks.0.hook_resid_post": 1, "blocks.1.hook_resid_post": 2}


@pytest.mark.parametrize("layout", ["named", "parquet", "arrays"])
def test_all_layouts_hold_the_same(
    pair64: Any, corpus: list[str], tmp_path: Path, layout: str
) -> None:
    ids, folder = ids_of(pair64, corpus, "source"), tmp_path / "states"
    if layout == "named":
        write_named(folder, pair64.source, ids, HOOKS)
    elif layout == "parquet":
        write_parquet(folder, pair64.source, ids, [0, 1, 2])
    else:
        write_arrays(folder, pair64.source, ids, HOOKS)
    found = harvest_states(folder, pair64.target, corpus, progress=False, **SETTINGS)
    assert largest_difference(expected(pair64, corpus), found) < 1e-9


def states_of(model: Any, sequences: list[list[int]], kind: str) -> Iterator[Any]:
    buffer = torch.zeros(0)
    for ids in sequences:
        states = hidden_states(model, ids, [0, 1, 2])
        if kind == "numpy":
            yield np.array(ids), {name: states[:, k].numpy() for name, k in HOOKS.items()}
        else:
            # One buffer for all sequences, as a loop over a model may have.
            if buffer.numel() < states.numel():
                buffer = states.clone()
            view = buffer.flatten()[: states.numel()].view_as(states)
            view.copy_(states)
            yield ids, {"hook_embed": view[:, 0], 0: view[:, 1], 1: view[:, 2]}


@pytest.mark.parametrize("kind", ["numpy", "torch", "spilled"])
def test_an_iterator_of_states_is_a_side(pair64: Any, corpus: list[str], kind: str) -> None:
    ids = ids_of(pair64, corpus, "source")[::-1]
    states: Any = states_of(pair64.source, ids, kind)
    if kind == "spilled":
        states = StateStream(states, buffer_bytes=100)
    found = harvest_states(states, pair64.target, corpus, progress=False, **SETTINGS)
    assert largest_difference(expected(pair64, corpus), found) < 1e-9


def test_sequences_without_documents_are_documents(
    pair64: Any, passages: list[str], tmp_path: Path
) -> None:
    ids = pair64.source.encode(passages)
    source = write_vllm(tmp_path / "source", pair64.source, ids, [0, 1, 2])
    target = write_vllm(tmp_path / "target", pair64.target, ids[::-1], [2, 3])
    sides = StateFolder(source, layer_ids=[0, 1, 2]), StateFolder(target, layer_ids=[2, 3])
    longest = max(map(len, ids))
    truth = harvest(pair64, passages, progress=False, **SETTINGS | {"context_length": longest})
    found = harvest_states(
        *sides,
        tokenizers=pair64.source.tokenizer,
        progress=False,
        **SETTINGS | {"context_length": longest},
    )
    # Texts decide the folds, as in a harvest of documents.
    assert largest_difference(truth, found) < 1e-9
    # Without a tokenizer, token ids decide them.
    unknown = harvest_states(*sides, progress=False, **SETTINGS | {"context_length": longest})
    assert unknown.n_tokens >= found.n_tokens
    assert unknown.provenance.source is None
    with pytest.raises(lrt.errors.MismatchError, match=r"windows have at most 8.*context_length="):
        harvest_states(*sides, progress=False, **SETTINGS | {"context_length": 8})


def test_sequences_of_two_tokenizers_are_aligned_by_their_text(
    other_pair64: Any, passages: list[str], tmp_path: Path
) -> None:
    pair, settings = other_pair64, SETTINGS | {"context_length": 60}
    source = write_vllm(tmp_path / "source", pair.source, pair.source.encode(passages), [0, 1, 2])
    target = write_vllm(tmp_path / "target", pair.target, pair.target.encode(passages), [2, 3])
    found = harvest_states(
        StateFolder(source, layer_ids=[0, 1, 2]),
        StateFolder(target, layer_ids=[2, 3]),
        tokenizers={"source": pair.source.tokenizer, "target": pair.target.tokenizer},
        progress=False,
        **settings,
    )
    truth = harvest(pair, passages, progress=False, **settings)
    assert largest_difference(truth, found) < 1e-9


def test_documents_of_the_sequences_decide_the_folds(pair64: Any, passages: list[str]) -> None:
    ids = pair64.source.encode(passages)
    documents = [f"book {k // 3}" for k in range(len(ids))]

    def items(model: Any, layer_ids: dict[str, int]) -> Iterator[Any]:
        for one, document in zip(ids, documents, strict=True):
            states = hidden_states(model, one, list(layer_ids.values()))
            yield one, {hook: states[:, k] for k, hook in enumerate(layer_ids)}, document

    found = harvest_states(
        items(pair64.source, HOOKS),
        items(pair64.target, {"blocks.1.hook_resid_post": 2, "blocks.2.hook_resid_post": 3}),
        tokenizers=pair64.source.tokenizer,
        progress=False,
        **SETTINGS | {"context_length": 60},
    )
    truth = harvest(
        pair64, passages, group=documents, progress=False, **SETTINGS | {"context_length": 60}
    )
    assert largest_difference(truth, found) < 1e-9
    assert found.provenance.fold_rule == "group"


def test_states_with_their_model_let_vectors_be_transferred(
    pair64: Any, corpus: list[str], folders: dict[str, StateFolder]
) -> None:
    verify = (pair64.source, pair64.target)
    found = harvest_states(*folders.values(), corpus, verify=verify, progress=False, **SETTINGS)
    assert found.provenance.source == pair64.source.identity
    stitch = found.fit().best()
    direction = torch.ones(16)
    vector = lrt.SteeringVector(direction, stitch.source_hook, pair64.source.identity, "ones")
    assert stitch.transfer(vector).model == pair64.target.identity


def test_all_layers_are_those_that_are_kept(
    pair64: Any, corpus: list[str], folders: dict[str, StateFolder]
) -> None:
    options = SETTINGS | {"source_layers": "all", "target_layers": "all", "n_tokens": 600}
    found = harvest_states(pair64.source, folders["target"], corpus, progress=False, **options)
    assert found.target_hooks == ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
    options["target_layers"] = "proportional"
    found = harvest_states(pair64.source, folders["target"], corpus, progress=False, **options)
    # Block 0 of two is nearest to block 1 of three among the kept blocks 1 and 2.
    assert dict(found.pairs)["blocks.0.hook_resid_post"] == "blocks.1.hook_resid_post"
    with pytest.raises(lrt.errors.HookPointError, match=r"blocks.0.hook_resid_post.*are kept at"):
        harvest_states(
            pair64.source,
            folders["target"],
            corpus,
            progress=False,
            **SETTINGS | {"target_layers": 0},
        )


@pytest.mark.parametrize("layers", [-1, "proportional"])
def test_layers_from_the_end_need_the_number_of_blocks(
    pair64: Any, corpus: list[str], folders: dict[str, StateFolder], layers: Any
) -> None:
    unknown = StateFolder(folders["target"].path, layer_ids=[2, 3])
    with pytest.raises(ValueError, match=r"number of blocks .* is not known; give n_layers"):
        harvest_states(
            pair64.source, unknown, corpus, progress=False, **SETTINGS | {"target_layers": layers}
        )


def test_a_run_that_was_killed_resumes_with_deleted_files(
    pair64: Any, corpus: list[str], tmp_path: Path
) -> None:
    folder = write_vllm(tmp_path / "t", pair64.target, ids_of(pair64, corpus, "target"), [2, 3])
    write_manifest(folder, layer_ids=[2, 3], n_layers=3)
    n_files = len(list(folder.glob("*.safetensors")))
    run: dict[str, Any] = {
        "tokenizers": pair64.source.tokenizer,
        "checkpoint": tmp_path / "run",
        "consume": True,
        "progress": False,
    }

    class KilledError(RuntimeError):
        pass

    def cut(states: Iterator[Any], after: int) -> Iterator[Any]:
        for number, item in enumerate(states):
            if number == after:
                raise KilledError
            yield item

    source_ids = ids_of(pair64, corpus, "source")
    with pytest.raises(KilledError):
        harvest_states(
            cut(states_of(pair64.source, source_ids, "numpy"), len(source_ids) // 2),
            folder,
            corpus,
            checkpoint_every=1e-6,
            **run,
            **SETTINGS,
        )
    n_left = len(list(folder.glob("*.safetensors")))
    assert 0 < n_left < n_files
    found = harvest_states(
        states_of(pair64.source, source_ids, "numpy"), folder, corpus, **run, **SETTINGS
    )
    assert not list(folder.glob("*.safetensors"))
    assert (folder / "states.json").exists()
    assert largest_difference(expected(pair64, corpus), found) < 1e-9


def test_sequences_without_documents_resume_although_files_are_gone(
    pair64: Any, passages: list[str], tmp_path: Path
) -> None:
    ids, settings = pair64.source.encode(passages), SETTINGS | {"context_length": 60}
    truth = harvest(pair64, passages, progress=False, **settings)
    folder = write_vllm(tmp_path / "t", pair64.target, ids[:100], [2, 3])
    write_manifest(folder, layer_ids=[2, 3], n_sequences=len(ids))
    run: dict[str, Any] = {
        "checkpoint": tmp_path / "run",
        "consume": True,
        "progress": False,
        "checkpoint_every": 1e-6,
    }
    # The program that writes them has died.
    with pytest.raises(lrt.errors.FileFormatError, match=rf"100 of {len(ids)} sequences"):
        harvest_states(pair64.source, folder, **run, **settings)
    assert 0 < len(list(folder.glob("*.safetensors"))) < 100
    # It goes on with the others, under other numbers.
    write_vllm(tmp_path / "more", pair64.target, ids[100:], [2, 3])
    for path in sorted((tmp_path / "more").iterdir()):
        path.rename(folder / f"more-{path.name}")
    found = harvest_states(pair64.source, folder, **run, **settings)
    assert not list(folder.glob("*.safetensors"))
    assert found.n_tokens == truth.n_tokens
    assert largest_difference(truth, found) < 1e-9
    remove_checkpoints(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_are_kept_until_they_are_safe(pair64: Any, corpus: list[str], tmp_path: Path) -> None:
    folder = write_vllm(tmp_path / "t", pair64.target, ids_of(pair64, corpus, "target"), [2, 3])
    write_manifest(folder, layer_ids=[2, 3])
    n_files = len(list(folder.glob("*.safetensors")))
    bad = states_of(pair64.source, ids_of(pair64, corpus, "source")[:-1], "numpy")
    # Without a checkpoint nothing is safe before the end.
    with pytest.raises(lrt.errors.MismatchError):
        harvest_states(
            bad,
            folder,
            corpus,
            tokenizers=pair64.source.tokenizer,
            consume=True,
            progress=False,
            **SETTINGS,
        )
    assert len(list(folder.glob("*.safetensors"))) == n_files
    harvest_states(pair64.source, folder, corpus, progress=False, **SETTINGS)
    assert len(list(folder.glob("*.safetensors"))) == n_files
    harvest_states(pair64.source, folder, corpus, consume=True, progress=False, **SETTINGS)
    assert not list(folder.glob("*.safetensors"))
