"""States that are not what they should be are refused, and the message names what they are."""

import fcntl
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lrt_lens.errors import FileFormatError, HookPointError, MismatchError, NonFiniteError
from lrt_lens.moments import harvest
from lrt_lens.moments.states import StateFolder, harvest_states
from tests.moments.states.layouts import (
    hidden_states,
    largest_difference,
    write_arrays,
    write_manifest,
    write_sequence,
    write_vllm,
)

SETTINGS: dict[str, Any] = {
    "target_layers": "all",
    "n_tokens": None,
    "context_length": 60,
    "block_rows": 192,
    "progress": False,
}


@pytest.fixture(scope="session")
def kept(pair: Any, passages: list[str], tmp_path_factory: Any) -> Path:
    """States of the target, of the embedding and of all blocks, one sequence per text."""
    folder = tmp_path_factory.mktemp("kept") / "states"
    write_vllm(folder, pair.target, pair.target.encode(passages), [0, 1, 2, 3])
    return write_manifest(folder, layer_ids=[0, 1, 2, 3], n_layers=3)


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "states"))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def change(path: Path, **tensors: torch.Tensor) -> None:
    save_file(load_file(path) | tensors, path)


def change_all(folder: Path, function: Any) -> None:
    for path in files(folder):
        tensors = load_file(path)
        states = function(tensors["hidden_states"], tensors["token_ids"])
        save_file(tensors | {"hidden_states": states.contiguous()}, path)


def refused(pair: Any, folder: Any, passages: list[str], **options: Any) -> str:
    with pytest.raises((FileFormatError, MismatchError, HookPointError)) as caught:
        harvest_states(pair.source, folder, passages, **SETTINGS | options)
    return str(caught.value)


def shift_layers(states: Any, ids: Any) -> Any:
    return states[:, [3, 0, 1, 2]]


def shift_positions(by: int) -> Any:
    return lambda states, ids: states.roll(by, 0)


def test_the_right_states_pass(pair: Any, kept: Path, passages: list[str]) -> None:
    found = harvest_states(pair.source, kept, passages, verify=pair.target, **SETTINGS)
    options = {name: value for name, value in SETTINGS.items() if name != "progress"}
    truth = harvest(pair, passages, progress=False, **options)
    assert found.provenance.target == pair.target.identity
    assert largest_difference(truth, found) < 1e-4  # float32, other batches


def test_a_shift_by_one_layer_is_named(pair: Any, folder: Path, passages: list[str]) -> None:
    write_manifest(folder, layer_ids=[1, 2, 3, 4], n_layers=4)
    message = refused(pair, folder, passages, verify=pair.target)
    assert "'blocks.0.hook_resid_post'" in message
    assert "they are those of 'blocks.0.hook_resid_pre'" in message
    assert "output of block k is k + 1" in message


def test_columns_in_another_order_are_named(pair: Any, folder: Path, passages: list[str]) -> None:
    change_all(folder, lambda states, ids: states[:, [0, 2, 1, 3]])
    message = refused(pair, folder, passages, verify=pair.target)
    assert "those of 'blocks.1.hook_resid_post'" in message


@pytest.mark.parametrize(("by", "word"), [(1, "before"), (-1, "behind")])
def test_a_shift_by_one_position_is_named(
    pair: Any, folder: Path, passages: list[str], by: int, word: str
) -> None:
    change_all(folder, shift_positions(by))
    message = refused(pair, folder, passages, verify=pair.target)
    assert "shifted by one" in message
    assert word in message
    # The embedding tells it without the model.
    message = refused(pair, folder, passages)
    assert "embeddings" in message
    assert word in message


def test_states_behind_the_final_norm_are_named(
    pair: Any, folder: Path, passages: list[str]
) -> None:
    norm = pair.target.engine.model.model.norm

    def normed(states: Any, ids: Any) -> Any:
        with torch.no_grad():
            return torch.cat([states[:, :3], norm(states[:, 3:])], dim=1)

    change_all(folder, normed)
    message = refused(pair, folder, passages, verify=pair.target)
    assert "final norm" in message
    assert "no state of the stream" in message


def test_states_of_another_model_are_refused(
    pair: Any, folder: Path, passages: list[str], load: Any
) -> None:
    other = load("llama", d=24, layers=3, seed=9)
    message = refused(pair, folder, passages, verify=other)
    assert "no other hook point or position is nearer" in message
    message = refused(pair, folder, passages, verify=pair.source)
    assert "width 24" in message
    assert "has 16" in message


def test_other_tokens_are_named(pair: Any, folder: Path, passages: list[str]) -> None:
    path = files(folder)[3]
    ids = load_file(path)["token_ids"].clone()
    ids[9] += 1
    change(path, token_ids=ids)
    message = refused(pair, folder, passages)
    assert f"has token {int(ids[9])} at position 9 instead of {int(ids[9]) - 1}" in message


def test_documents_that_changed_are_noticed(pair: Any, folder: Path, passages: list[str]) -> None:
    message = refused(pair, folder, [*passages, "the king found a blue bird under the old tree."])
    assert "has no sequence with the" in message
    assert "give the documents that the engine has read" in message or "instead of" in message


@pytest.mark.parametrize("has_bos", [True, False])
def test_another_policy_of_bos_is_named(
    pair: Any, passages: list[str], tmp_path: Path, has_bos: bool
) -> None:
    ids = pair.target.encode(passages)
    kept = [one if has_bos else one[1:] for one in ids]
    folder = write_vllm(tmp_path / "states", pair.target, kept, [1, 2, 3])
    write_manifest(folder, layer_ids=[1, 2, 3], prepend_bos=not has_bos)
    options = {"tokenizers": pair.target.tokenizer}
    message = refused(pair, folder, passages, **options)
    assert f"give prepend_bos={has_bos}" in message


def test_generated_tokens_may_follow(
    pair: Any, kept: Path, passages: list[str], tmp_path: Path
) -> None:
    """With ``include_output_tokens`` vLLM keeps prompt + generated − 1 states."""
    folder = tmp_path / "states"
    folder.mkdir()
    for number, ids in enumerate(pair.target.encode(passages)):
        longer = [*ids, 40, 41, 42]
        states = hidden_states(pair.target, longer[:-1], [0, 1, 2, 3])
        tensors = {"hidden_states": states.contiguous(), "token_ids": torch.tensor(longer)}
        save_file(tensors, folder / f"{number}.safetensors")
    write_manifest(folder, layer_ids=[0, 1, 2, 3])
    found = harvest_states(pair.source, folder, passages, **SETTINGS)
    truth = harvest_states(pair.source, kept, passages, **SETTINGS)
    assert largest_difference(truth, found) < 1e-4


def test_bfloat16_is_read_as_it_is(pair: Any, folder: Path, passages: list[str]) -> None:
    change_all(folder, lambda states, ids: states.bfloat16())
    found = harvest_states(pair.source, folder, passages, verify=pair.target, **SETTINGS)
    assert found.provenance.target_dtype == "bfloat16"


def test_other_widths_and_columns_are_refused(pair: Any, folder: Path, passages: list[str]) -> None:
    path = files(folder)[2]
    states = load_file(path)["hidden_states"]
    change(path, hidden_states=states[..., :20].contiguous())
    assert "width 20" in refused(pair, folder, passages)
    change(path, hidden_states=states[:, :3].contiguous())
    assert "has 3 columns of states; expected 4" in refused(pair, folder, passages)
    change(path, hidden_states=states[:-2].contiguous())
    assert "states of" in refused(pair, folder, passages)
    change(path, hidden_states=states[:, 0].contiguous())
    assert "expected [token, layer, d]" in refused(pair, folder, passages)
    change(path, hidden_states=states.long())
    assert "floating-point" in refused(pair, folder, passages)
    change(path, hidden_states=states * float("nan"))
    with pytest.raises(NonFiniteError, match=r"hook_resid_post"):
        harvest_states(pair.source, folder, passages, **SETTINGS)


def test_nothing_is_guessed_about_the_columns(pair: Any, folder: Path, passages: list[str]) -> None:
    (folder / "states.json").unlink()
    message = refused(pair, folder, passages)
    assert "4 columns of states, and nothing says which hook points they are" in message
    assert "layer_ids" in message
    with pytest.raises(HookPointError, match=r"name a state twice"):
        StateFolder(folder, layer_ids=[1, 1, 2, 3])
    with pytest.raises(HookPointError, match=r"no number of a hidden state"):
        StateFolder(folder, layer_ids=[-1, 1, 2, 3])
    with pytest.raises(HookPointError, match=r"output of block 3, but n_layers is 3"):
        StateFolder(folder, layer_ids=[1, 2, 3, 4], n_layers=3)
    with pytest.raises(HookPointError, match=r"both name the columns"):
        StateFolder(folder, layer_ids=[1], hooks=[0])


def test_columns_are_ascending_whatever_was_asked(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = StateFolder(folder, layer_ids=[3, 0, 1, 2])
    assert asked.manifest.columns == StateFolder(folder, layer_ids=[0, 1, 2, 3]).manifest.columns
    asked.open()
    assert "read in ascending order, [0, 1, 2, 3]" in caplog.text
    caplog.clear()
    StateFolder(folder, hooks=[2, "hook_embed", 0, 1]).open()
    assert not caplog.text


def test_a_cut_file_and_a_lock_are_named(pair: Any, folder: Path, passages: list[str]) -> None:
    path = files(folder)[-1]
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    message = refused(pair, folder, passages)
    assert path.name in message
    assert "cut off, or still being written" in message
    path.write_bytes(content)
    lock = folder / f"{path.name}.lock"
    lock.touch()
    # Clocks of file systems are coarse.
    os.utime(lock, ns=(0, path.stat().st_mtime_ns + 1))
    assert ".lock" in refused(pair, folder, passages)
    # vLLM leaves its locks behind, older than the files, and holds them while it writes.
    os.utime(lock, ns=(0, 0))
    with open(lock) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert ".lock" in refused(pair, folder, passages)
    harvest_states(pair.source, folder, passages, **SETTINGS)


def test_a_missing_last_file_is_named(pair: Any, folder: Path, passages: list[str]) -> None:
    files(folder)[-1].unlink()
    message = refused(pair, folder, passages)
    assert f"{len(passages) - 1} sequences have arrived" in message
    write_manifest(folder, layer_ids=[0, 1, 2, 3], n_sequences=len(passages))
    with pytest.raises(FileFormatError, match=rf"{len(passages) - 1} of {len(passages)} sequences"):
        harvest_states(pair.source, folder, **SETTINGS)


def test_a_file_that_changes_while_it_is_read_is_refused(
    pair: Any, folder: Path, passages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrt_lens.moments.states import _safetensors_store as module

    read = module.SafetensorsStore.read

    def rewriting(self: Any, place: Any, hooks: Any) -> Any:
        write_sequence(place.path, pair.target, [5, 6, 7, 8, 9, 10], [0, 1, 2, 3])
        return read(self, place, hooks)

    monkeypatch.setattr(module.SafetensorsStore, "read", rewriting)
    assert "was changed while the harvest ran" in refused(pair, folder, passages)


def test_files_are_used_as_they_appear(
    pair: Any, kept: Path, passages: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "states"
    folder.mkdir()
    shutil.copy(kept / "states.json", folder)

    def produce() -> None:
        for path in files(kept):
            lock = folder / f"{path.name}.lock"
            lock.touch()
            with open(folder / path.name, "wb") as file:
                file.write(path.read_bytes()[:50])
                file.flush()
                time.sleep(0.002)
            shutil.copy(path, folder / path.name)
            lock.unlink()

    producer = threading.Thread(target=produce)
    producer.start()
    found = harvest_states(pair.source, folder, passages, wait=30.0, **SETTINGS)
    producer.join()
    truth = harvest_states(pair.source, kept, passages, **SETTINGS)
    assert largest_difference(truth, found) < 1e-12


def test_an_engine_that_died_is_an_error_after_the_wait(
    pair: Any, folder: Path, passages: list[str]
) -> None:
    for path in files(folder)[60:]:
        path.unlink()
    begin = time.monotonic()
    message = refused(pair, folder, passages, wait=0.5)
    assert 0.5 <= time.monotonic() - begin < 20
    assert "(60 sequences have arrived)" in message
    empty = folder.parent / "empty"
    empty.mkdir()
    write_manifest(empty, layer_ids=[1])
    assert "no sequence with hidden states" in refused(pair, empty, passages)


def test_two_sides_of_unequal_length(
    pair: Any, folder: Path, passages: list[str], tmp_path: Path
) -> None:
    ids = pair.source.encode(passages)
    source = write_vllm(tmp_path / "source", pair.source, ids[:-3], [0, 1, 2])
    write_manifest(source, layer_ids=[0, 1, 2])
    options = {"tokenizers": pair.source.tokenizer} | SETTINGS
    # The target has more: those of the source count.
    found = harvest_states(source, folder, **options)
    assert found.provenance.n_documents == len(ids) - 3
    for path in files(folder)[:10]:
        path.unlink()
    with pytest.raises(MismatchError, match=r"has no sequence with the .* tokens of a window of"):
        harvest_states(source, folder, **options)


def test_wrong_items_of_an_iterator(pair: Any, passages: list[str]) -> None:
    ids = pair.target.encode(passages)
    states = [hidden_states(pair.target, one, [1])[:, 0] for one in ids]
    cases: list[tuple[list[Any], str]] = [
        ([], "is empty"),
        ([ids[0]], r"expected \(token_ids"),
        ([(ids[0], states[0])], r"expected \(token_ids"),
        ([(ids[0], {0: states[0]}), (ids[1], {1: states[1]})], "as in the items before it"),
        ([(ids[0], {0: states[0][:-2]})], "states of"),
        ([(ids[0], {0: states[0][0]})], r"expected \[token, d\]"),
        ([(ids[0], {-1: states[0]})], "counts from the end"),
        ([(ids[0], {"layer": states[0]})], "no name of a hook point"),
        ([(ids[0], {0: states[0]}), (ids[1], {0: states[1][:, :5]})], "width 5"),
        ([(ids[0], {0: states[0]}, "a"), (ids[1], {0: states[1]})], "in all of them or in none"),
        ([([-1, 2], {0: states[0][:2]})], "whole numbers from 0 on"),
    ]
    for items, match in cases:
        with pytest.raises((FileFormatError, MismatchError, HookPointError), match=match):
            harvest_states(pair.source, iter(items), passages, **SETTINGS)


def test_wrong_folders_and_arguments(
    pair: Any, kept: Path, passages: list[str], tmp_path: Path
) -> None:
    with pytest.raises(FileFormatError, match="is no folder"):
        StateFolder(tmp_path / "none")
    with pytest.raises(ValueError, match="both sides are models"):
        harvest_states(pair.source, pair.target, **SETTINGS)
    with pytest.raises(ValueError, match="expected 'source' and 'target'"):
        harvest_states(pair.source, kept, passages, verify={"large": pair.target}, **SETTINGS)
    with pytest.raises(ValueError, match="3 entries"):
        harvest_states(pair.source, kept, passages, tokenizers=[1, 2, 3], **SETTINGS)
    bare = tmp_path / "bare"
    bare.mkdir()
    np.save(bare / "x.npy", np.zeros((3, 4)))
    assert "nothing says which holds what" in refused(pair, bare, passages)
    ids = pair.target.encode(passages)
    arrays = write_arrays(tmp_path / "arrays", pair.target, ids, {"0": 1, "1": 2})
    with pytest.raises(ValueError, match="leave consume out"):
        harvest_states(pair.source, arrays, passages, consume=True, **SETTINGS)
    content = json.loads((arrays / "states.json").read_text())
    content["arrays"]["states"]["0"] = "../x.npy"
    (arrays / "states.json").write_text(json.dumps(content))
    assert "lies outside" in refused(pair, arrays, passages)
    content["layers"] = [1]
    (arrays / "states.json").write_text(json.dumps(content))
    assert "layers" in refused(pair, arrays, passages)
