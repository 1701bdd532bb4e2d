"""Shapes, names and numbers of layers that do not fit are refused, not read in another way."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import lrt_lens as lrt
from lrt_lens.errors import FileFormatError, HookPointError, MismatchError
from lrt_lens.moments import harvest
from lrt_lens.moments.states import StateFolder, StateStream, harvest_states, request_states
from tests.moments.states.layouts import (
    hidden_states,
    largest_difference,
    write_arrays,
    write_manifest,
    write_parquet,
    write_vllm,
)
from tests.moments.states.test_request import run_engine

SETTINGS: dict[str, Any] = {
    "source_layers": [1],
    "n_tokens": None,
    "context_length": 60,
    "block_rows": 192,
    "progress": False,
}


@pytest.fixture
def ids(pair: Any, passages: list[str]) -> list[list[int]]:
    return pair.target.encode(passages)


def refused(pair: Any, states: Any, passages: list[str], **options: Any) -> str:
    with pytest.raises((FileFormatError, MismatchError, HookPointError)) as caught:
        harvest_states(pair.source, states, passages, **SETTINGS | options)
    return str(caught.value)


def write_cells(folder: Path, ids: list[list[int]], cells: list[Any], **columns: Any) -> Path:
    folder.mkdir(exist_ok=True)
    table = pa.table({"token_ids": ids, "hidden_states": cells, **columns})
    pq.write_table(table, folder / "states.parquet", row_group_size=16)
    return folder


def test_other_columns_in_a_cell_are_refused(
    pair: Any, passages: list[str], ids: list[list[int]], tmp_path: Path
) -> None:
    """Four columns of width 24 are no two columns of width 48."""
    cells = [hidden_states(pair.target, one, [0, 1, 2, 3]).tolist() for one in ids]
    folder = write_manifest(write_cells(tmp_path / "p", ids, cells), layer_ids=[0, 3])
    assert "expected [token, layer, d]" in refused(pair, folder, passages)
    assert "with 2 layers" in refused(pair, folder, passages)


def test_layers_before_tokens_in_a_cell_are_refused(
    pair: Any, passages: list[str], ids: list[list[int]], tmp_path: Path
) -> None:
    cells = [hidden_states(pair.target, one, [1, 2]).transpose(0, 1).tolist() for one in ids]
    folder = write_manifest(write_cells(tmp_path / "p", ids, cells), layer_ids=[1, 2])
    assert "expected [token, layer, d]" in refused(pair, folder, passages)


@pytest.mark.parametrize("nesting", ["nested", "per token", "flat", "fixed"])
def test_all_nestings_of_a_cell_are_read(
    pair: Any, passages: list[str], ids: list[list[int]], tmp_path: Path, nesting: str
) -> None:
    states = [hidden_states(pair.target, one, [1, 2, 3]) for one in ids]
    cells: Any = {
        "nested": lambda: [one.tolist() for one in states],
        "per token": lambda: [one.flatten(1).tolist() for one in states],
        "flat": lambda: [one.flatten().tolist() for one in states],
        "fixed": lambda: pa.array(
            [one.tolist() for one in states], pa.list_(pa.list_(pa.list_(pa.float32(), 24), 3))
        ),
    }[nesting]()
    folder = write_manifest(write_cells(tmp_path / "p", ids, cells), layer_ids=[1, 2, 3])
    found = harvest_states(pair.source, folder, passages, **SETTINGS)
    assert largest_difference(harvest(pair, passages, **SETTINGS), found) < 1e-4


def test_files_of_tables_that_are_empty_or_changed(
    pair: Any,
    passages: list[str],
    ids: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write_parquet(tmp_path / "p", pair.target, ids, [1, 2, 3])
    schema = pq.read_schema(folder / "part-0.parquet")
    pq.write_table(schema.empty_table(), folder / "empty.parquet")
    harvest_states(pair.source, folder, passages, **SETTINGS)
    from lrt_lens.moments.states import _side as module

    rows = module.StoredSide.block_rows

    def rewriting(self: Any, *rest: Any) -> Any:
        path = folder / "part-20.parquet"
        table = pq.read_table(path)
        pq.write_table(table.take(list(range(len(table)))[::-1]), path, row_group_size=8)
        return rows(self, *rest)

    monkeypatch.setattr(module.StoredSide, "block_rows", rewriting)
    assert "was changed while the harvest ran" in refused(pair, folder, passages)


def test_columns_of_hook_points_that_are_not_there(
    pair: Any, passages: list[str], ids: list[list[int]], tmp_path: Path
) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    states = [hidden_states(pair.target, one, [3])[:, 0].tolist() for one in ids]
    pq.write_table(pa.table({"token_ids": ids, "2": states}), folder / "a.parquet")
    message = refused(pair, StateFolder(folder, hooks=[1, 2]), passages)
    assert "blocks.1.hook_resid_post" in message
    assert "lacks" in message


def test_a_layer_behind_the_last_block_is_refused(
    pair: Any, passages: list[str], ids: list[list[int]], tmp_path: Path
) -> None:
    """``enumerate(output.hidden_states)`` counts the embedding as 0, and has one number more."""

    def items() -> Any:
        for one in ids:
            states = hidden_states(pair.target, one, [0, 1, 2, 3])
            yield one, {number: states[:, number] for number in range(4)}

    message = refused(pair, StateStream(items(), n_layers=3), passages)
    assert "output of block 3" in message
    assert "hook_embed" in message
    assert "they are those of" in refused(pair, items(), passages, verify=pair.target)
    arrays = write_arrays(tmp_path / "a", pair.target, ids, {"3": 3})
    message = refused(pair, StateFolder(arrays, n_layers=3), passages)
    assert "output of block 3" in message


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid"])
def test_other_names_of_the_stream_pass_the_comparison(
    pair: Any, passages: list[str], ids: list[list[int]], name: str
) -> None:
    items = []
    for one in ids:
        rows = pair.target.engine.capture(pair.target.pad([one]), [name])
        items.append((one, {name: rows[name][0]}))
    found = harvest_states(
        pair.source, items, passages, verify=pair.target, **SETTINGS, target_layers=name
    )
    truth = harvest(pair, passages, **SETTINGS, target_layers=name)
    assert largest_difference(truth, found) < 1e-4


def test_states_of_bfloat16_may_be_written_as_float32(
    pair: Any, passages: list[str], ids: list[list[int]]
) -> None:
    def items(by: int = 1) -> Any:
        for one in ids:
            states = hidden_states(pair.target, one, [1, 2, 3]).bfloat16().float().numpy()
            yield one, {(k * by) % 3: states[:, k] for k in range(3)}

    harvest_states(pair.source, items(), passages, verify=pair.target, **SETTINGS)
    assert "they are those of" in refused(pair, items(2), passages, verify=pair.target)


def test_only_the_embedding_is_kept(
    pair: Any, passages: list[str], ids: list[list[int]], tmp_path: Path
) -> None:
    folder = write_manifest(write_vllm(tmp_path / "t", pair.target, ids, [0]), layer_ids=[0])
    found = harvest_states(pair.source, folder, passages, **SETTINGS)
    assert found.target_hooks == ("hook_embed",)


def test_arrays_of_other_shapes(
    pair: Any, passages: list[str], ids: list[list[int]], tmp_path: Path
) -> None:
    folder = write_arrays(tmp_path / "a", pair.target, ids, {"2": 3})
    numbers = np.load(folder / "sequence.npy")
    np.save(folder / "sequence.npy", np.stack([numbers, numbers], 1))
    assert "expected one entry per token" in refused(pair, folder, passages)
    np.save(folder / "sequence.npy", numbers)
    content = {"token_ids": "ids.npy", "sequences": "sequence.npy", "states": {"2": "0.npy"}}
    write_manifest(folder, arrays=content | {"documents": "documents.npy"})
    np.save(folder / "documents.npy", np.arange(len(numbers)) // 7)
    assert "two documents" in refused(pair, folder, passages)
    for name in ("ids", "sequence", "0"):
        np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy")[:0])
    write_manifest(folder, arrays=content)
    assert "no sequence with hidden states" in refused(pair, folder, passages)


def test_the_tokenizer_is_that_of_the_model_in_the_manifest(
    pair: Any, load: Any, train_tokenizer: Any, corpus: list[str], tmp_path: Path
) -> None:
    tokenizer = train_tokenizer(bos=False, vocabulary=300)
    tokenizer.save_pretrained(tmp_path / "model")
    large = load("llama", d=24, layers=3, seed=1, tokenizer=tokenizer)
    large.engine.model.name_or_path = str(tmp_path / "model")
    options: dict[str, Any] = {"n_tokens": 3_000, "context_length": 24}
    folder = tmp_path / "states"
    request_states(folder, large, corpus, other=pair.source, **options)
    run_engine(folder, large)
    truth = harvest(lrt.ModelPair(pair.source, large), corpus, progress=False, **options)
    for states in (folder, StateFolder(folder, name="large")):
        found = harvest_states(pair.source, states, corpus, progress=False, **options)
        assert largest_difference(truth, found) < 1e-4
        assert found.provenance.aligned == truth.provenance.aligned
    found = harvest_states(
        pair.source, folder, corpus, tokenizers=tmp_path / "model", progress=False, **options
    )
    assert found.n_tokens == truth.n_tokens


@pytest.mark.parametrize("how", ["manifest", "stream"])
def test_the_policy_of_bos_is_that_of_the_states_also_with_the_tokenizer_of_the_other_side(
    pair: Any, tokenizer: Any, passages: list[str], tmp_path: Path, how: str
) -> None:
    bare = [one[1:] for one in pair.target.encode(passages)]
    if how == "manifest":
        states: Any = write_vllm(tmp_path / "t", pair.target, bare, [1, 2, 3])
        write_manifest(states, layer_ids=[1, 2, 3], prepend_bos=False)
    else:
        rows = [hidden_states(pair.target, one, [3])[:, 0] for one in bare]
        items = [(one, {2: kept}) for one, kept in zip(bare, rows, strict=True)]
        states = StateStream(items, prepend_bos=False)
    found = harvest_states(pair.source, states, passages, **SETTINGS)
    known = harvest_states(pair.source, states, passages, tokenizers=tokenizer, **SETTINGS)
    assert largest_difference(known, found) == 0.0


@pytest.mark.parametrize("n_first", [5, 7, 40])
def test_a_short_window_is_found_in_a_longer_sequence(pair: Any, n_first: int) -> None:
    from lrt_lens.moments.states._arrivals import Arrivals

    rows = torch.zeros(60, 4)
    items = [([9, 9, 9, *range(k, k + 57)], {0: rows}) for k in range(30)]
    arrivals = Arrivals(StateStream(items).open())
    arrivals.first()
    wanted = items[25][0][:n_first]
    assert arrivals.find(wanted, pair.source).place == 25
