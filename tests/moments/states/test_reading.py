"""States of the next block are read while the rows of one are multiplied, with the same result."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lrt_lens.data import iterate_blocks
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.moments import CrossMoments, harvest
from lrt_lens.moments._harvesting import settle
from lrt_lens.moments.states import StateStream, harvest_states
from lrt_lens.moments.states import _ledger as ledger_module
from lrt_lens.moments.states._arrivals import Arrivals
from lrt_lens.moments.states._ledger import Ledger
from lrt_lens.moments.states._reading import BlockReading
from lrt_lens.moments.states._safetensors_store import SafetensorsStore
from lrt_lens.moments.states._sequence import new_files
from lrt_lens.moments.states._side import StoredSide
from tests.moments.states.layouts import (
    hidden_states,
    largest_difference,
    write_manifest,
    write_vllm,
)

SETTINGS: dict[str, Any] = {
    "source_layers": [1],
    "target_layers": [2],
    "n_tokens": None,
    "context_length": 60,
    "block_rows": 192,
    "progress": False,
}


@pytest.fixture
def folder(pair: Any, passages: list[str], tmp_path: Path) -> Path:
    write_vllm(tmp_path / "t", pair.target, pair.target.encode(passages), [2, 3])
    return write_manifest(tmp_path / "t", layer_ids=[2, 3], n_layers=3)


def threads() -> int:
    return sum(thread.name == "lrt_lens-states" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == 0


def test_reading_ahead_changes_no_bit(
    pair: Any, folder: Path, passages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[str] = []
    read = SafetensorsStore.read

    def noting(self: Any, place: Any, hooks: Any) -> Any:
        readers.append(threading.current_thread().name)
        return read(self, place, hooks)

    monkeypatch.setattr(SafetensorsStore, "read", noting)
    ahead = harvest_states(pair.source, folder, passages, **SETTINGS)
    # All but the first block, and the sequences that are looked at before.
    assert readers.count("lrt_lens-states") > len(passages) / 2
    monkeypatch.setattr(StoredSide, "read_ahead", lambda *_: None)
    readers.clear()
    later = harvest_states(pair.source, folder, passages, **SETTINGS)
    assert "lrt_lens-states" not in readers
    one, other = ahead.tensors(), later.tensors()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_one_block_is_read_ahead_and_only_while_the_one_before_is_added(
    pair: Any, folder: Path, passages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def noting(name: str, method: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            events.append(name)
            return method(*arguments, **options)

        return call

    monkeypatch.setattr(BlockReading, "start", noting("start", BlockReading.start))
    monkeypatch.setattr(BlockReading, "result", noting("result", BlockReading.result))
    monkeypatch.setattr(CrossMoments, "add_block", noting("add", CrossMoments.add_block))
    harvest_states(pair.source, folder, passages, **SETTINGS)
    order = [event for event in events if event != "start"]
    assert order == ["result", "add"] * (len(order) // 2)
    starts = [k for k, event in enumerate(events) if event == "start"]
    assert len(starts) > 3
    assert all(events[k - 1] == "result" and events[k + 1] == "add" for k in starts)


@pytest.mark.parametrize("is_ahead", [True, False])
def test_an_error_while_reading_ahead_comes_after_the_blocks_before_it(
    pair: Any,
    folder: Path,
    passages: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_ahead: bool,
) -> None:
    n_added = 0
    add_block = CrossMoments.add_block

    def adding(self: Any, *arguments: Any, **options: Any) -> None:
        nonlocal n_added
        n_added += 1
        add_block(self, *arguments, **options)

    read = SafetensorsStore.read
    n_read = 0

    def failing(self: Any, place: Any, hooks: Any) -> Any:
        nonlocal n_read
        n_read += 1
        if n_read == 60:
            raise FileFormatError("it was changed while the harvest ran")
        return read(self, place, hooks)

    if not is_ahead:
        monkeypatch.setattr(StoredSide, "read_ahead", lambda *_: None)
    run: dict[str, Any] = {"checkpoint": tmp_path / "run"} | SETTINGS
    with monkeypatch.context() as patch:
        patch.setattr(CrossMoments, "add_block", adding)
        patch.setattr(SafetensorsStore, "read", failing)
        with pytest.raises(FileFormatError, match="it was changed"):
            harvest_states(pair.source, folder, passages, **run)
    before = n_added
    assert before > 1
    monkeypatch.setattr(CrossMoments, "add_block", adding)
    found = harvest_states(pair.source, folder, passages, **run)
    # The block before the error was not lost, and the second run added the others.
    resumed, n_added = n_added - before, 0
    truth = harvest_states(pair.source, folder, passages, **SETTINGS)
    assert before + resumed == n_added
    assert largest_difference(truth, found) < 1e-12


def test_an_interrupt_while_rows_are_added_ends_the_thread(
    pair: Any, folder: Path, passages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    was_reading: list[bool] = []
    start = BlockReading.start

    def starting(self: Any) -> None:
        start(self)
        was_reading.append(True)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BlockReading, "start", starting)
    monkeypatch.setattr(CrossMoments, "add_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        harvest_states(pair.source, folder, passages, **SETTINGS)
    assert was_reading == [True]


def test_a_claim_that_is_taken_back_is_free_again(pair: Any) -> None:
    rows = torch.zeros(6, 4)
    arrivals = Arrivals(StateStream([([1, 2, 3, 4, 5, 6], {0: rows})] * 2).open())
    arrivals.first()
    found = arrivals.find([1, 2, 3, 4, 5, 6], pair.source)
    one, two = arrivals.claim(found), arrivals.claim(found)
    assert [one.place, two.place] == [0, 1]
    assert not arrivals.claim(found).is_own
    for claimed in (one, two):
        arrivals.unclaim(claimed)
    assert [arrivals.claim(found).place, arrivals.claim(found).place] == [0, 1]


def test_files_that_are_not_used_are_counted_once(
    pair: Any, folder: Path, passages: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    harvest_states(pair.source, folder, passages, **SETTINGS)
    assert "were not used" not in caplog.text
    harvest_states(pair.source, folder, passages[:-7], **SETTINGS)
    assert caplog.text.count("were not used") == 1
    assert f"7 of {len(passages)} sequences" in caplog.text


def test_a_run_that_stops_at_n_tokens_does_not_count_what_it_left_out(
    pair: Any, folder: Path, passages: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    some = SETTINGS | {"n_tokens": 1_000, "max_document_tokens": None}
    harvest_states(pair.source, folder, passages, **some)
    assert "were not used" not in caplog.text


def test_a_resumed_run_counts_the_files_of_finished_blocks_as_used(
    pair: Any, folder: Path, passages: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run: dict[str, Any] = {"checkpoint": tmp_path / "run"} | SETTINGS
    for _ in range(2):
        harvest_states(pair.source, folder, passages, **run)
    assert "were not used" not in caplog.text


def test_files_that_are_not_complete_are_opened_once_per_look(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "late.safetensors").write_bytes(b"12")
    from lrt_lens.moments.states import StateFolder

    store: Any = StateFolder(folder).open()
    opened: list[str] = []
    method = SafetensorsStore._opened

    def noting(self: Any, path: Path) -> Any:
        opened.append(path.name)
        return method(self, path)

    monkeypatch.setattr(SafetensorsStore, "_opened", noting)
    assert len(list(store.arrived())) == len(opened) - 1
    opened.clear()
    assert store.unfinished() == ["late.safetensors"]
    assert opened == []
    assert list(store.arrived()) == []
    assert opened == ["late.safetensors"], "files that were yielded are not looked at again"


def test_new_files_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10.x", "9.x", "a2.x", "2.x", "2.y", "a10.x"):
        (tmp_path / name).touch()
    names = [path.name for path in new_files(tmp_path, ".x", {"9.x"})]
    assert names == ["2.x", "10.x", "a2.x", "a10.x"]
    assert new_files(tmp_path / "none", ".x", ()) == []


def test_sequences_wait_for_their_turn_without_their_ids(folder: Path) -> None:
    from lrt_lens.moments.states import StateFolder

    arrivals = Arrivals(StateFolder(folder).open())
    arrivals.first()
    waiting = arrivals._listed or []
    assert len(waiting) > 10
    assert not any(isinstance(value, np.ndarray) for one in waiting for value in vars(one).values())
    handed_out = list(arrivals.in_order())
    truth = list(StateFolder(folder).open().arrived())
    assert [one.ids.tolist() for one in handed_out] == [one.ids.tolist() for one in truth]
    assert [one.name for one in handed_out] == [one.name for one in truth]


def test_the_order_is_on_the_disk_before_files_are_deleted(
    pair: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "run" / "sequences.jsonl", [0]
    late: list[str] = []

    def fsync(_: int) -> None:
        synced[0] = path.stat().st_size

    remove = SafetensorsStore.remove

    def removing(self: Any, place: Any) -> None:
        lines = path.read_bytes()[: synced[0]]
        if f'"{place.path.name}"'.encode() not in lines:
            late.append(place.path.name)
        remove(self, place)

    monkeypatch.setattr(ledger_module, "os", type("os", (), {"fsync": staticmethod(fsync)}))
    monkeypatch.setattr(SafetensorsStore, "remove", removing)
    run: dict[str, Any] = {"checkpoint": tmp_path / "run", "consume": True}
    harvest_states(pair.source, folder, checkpoint_every=1e-6, **run, **SETTINGS)
    assert not list(folder.glob("*.safetensors"))
    assert late == []


def test_a_ledger_that_is_on_the_disk_is_not_written_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(ledger_module, "os", type("os", (), {"fsync": staticmethod(calls.append)}))
    ledger = Ledger(tmp_path / "sequences.jsonl")
    ledger.sync()
    assert calls == []
    ledger.add_side("source", {})
    for _ in range(2):
        ledger.sync()
    ledger.close()
    assert len(calls) == 1


def test_parquet_files_may_follow_after_all_were_deleted(
    pair: Any, passages: list[str], tmp_path: Path
) -> None:
    plan = settle(pair, settings=None, **{k: v for k, v in SETTINGS.items() if k != "progress"})
    blocks = list(iterate_blocks(passages, pair.source, plan.plan, target=pair.target))
    folder, n_first = tmp_path / "p", 4

    def write(path: Path, some: Any) -> None:
        ids = [window.ids for block in some for window in block.windows]
        cells = [hidden_states(pair.target, one, [2, 3]).tolist() for one in ids]
        pq.write_table(pa.table({"token_ids": ids, "hidden_states": cells}), path)

    folder.mkdir()
    write_manifest(folder, layer_ids=[2, 3], n_layers=3)
    write(folder / "a.parquet", blocks[:n_first])
    write(tmp_path / "b.parquet", blocks[n_first:])
    run: dict[str, Any] = {"checkpoint": tmp_path / "run", "consume": True} | SETTINGS
    with pytest.raises(MismatchError, match="has no sequence"):
        harvest_states(pair.source, folder, passages, **run)
    assert not list(folder.glob("*.parquet"))
    timer = threading.Timer(0.5, lambda: (tmp_path / "b.parquet").rename(folder / "b.parquet"))
    timer.start()
    found = harvest_states(pair.source, folder, passages, wait=3.0, **run)
    timer.join()
    assert not list(folder.glob("*.parquet"))
    assert largest_difference(harvest(pair, passages, **SETTINGS), found) < 1e-4
