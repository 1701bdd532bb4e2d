"""Sequences are deleted once they were used, and those that are still needed stay."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lrt_lens as lrt
from lrt_lens.moments import harvest
from lrt_lens.moments.states import harvest_states
from tests.conftest import WORDS
from tests.moments.states.layouts import (
    hidden_states,
    largest_difference,
    windows_of,
    write_manifest,
    write_vllm,
)

SETTINGS: dict[str, Any] = {
    "source_layers": [1],
    "target_layers": [2],
    "n_tokens": None,
    "max_document_tokens": None,
    "context_length": 24,
    "block_rows": 192,
}


class KilledError(RuntimeError):
    """The harvest was killed."""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Documents, each with a copy far behind it and a beginning of it as another document."""
    rng = random.Random(3)
    whole = [" ".join(rng.choices(WORDS, k=14)) for _ in range(60)]
    return [*whole, *whole, *(" ".join(text.split()[:9]) for text in whole)]


def killed_after(monkeypatch: pytest.MonkeyPatch, n_blocks: int) -> None:
    """Kill the harvest behind the block with this number, after its checkpoint and deletions."""
    from lrt_lens.moments._feeding import BlockFeed

    take = BlockFeed.take

    def taking(self: Any, moments: Any, block: Any, *rest: Any, **options: Any) -> None:
        if block.index == n_blocks:
            raise KilledError
        take(self, moments, block, *rest, **options)

    monkeypatch.setattr(BlockFeed, "take", taking)


def ids_of(pair: Any, texts: list[str]) -> list[list[int]]:
    return [window.read_by("target").ids for window in windows_of(pair, texts, **SETTINGS)]


@pytest.mark.parametrize("n_blocks", [1, 5, 12])
def test_copies_and_beginnings_of_other_texts_survive_a_killed_run(
    pair: Any, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_blocks: int
) -> None:
    folder = write_vllm(tmp_path / "t", pair.target, ids_of(pair, texts), [2, 3])
    write_manifest(folder, layer_ids=[2, 3], n_layers=3)
    run: dict[str, Any] = {"checkpoint": tmp_path / "run", "consume": True, "progress": False}
    with monkeypatch.context() as patch:
        killed_after(patch, n_blocks)
        with pytest.raises(KilledError):
            harvest_states(pair.source, folder, texts, checkpoint_every=1e-6, **run, **SETTINGS)
    found = harvest_states(pair.source, folder, texts, checkpoint_every=1e-6, **run, **SETTINGS)
    truth = harvest(pair, texts, progress=False, **SETTINGS)
    assert found.n_tokens == truth.n_tokens
    assert largest_difference(truth, found) < 1e-4
    assert not list(folder.glob("*.safetensors"))


def test_a_run_that_was_killed_at_its_end_resumes_without_files(
    pair: Any, texts: list[str], tmp_path: Path
) -> None:
    folder = write_vllm(tmp_path / "t", pair.target, ids_of(pair, texts), [2, 3])
    write_manifest(folder, layer_ids=[2, 3], n_layers=3)
    run: dict[str, Any] = {"checkpoint": tmp_path / "run", "consume": True, "progress": False}
    first = harvest_states(pair.source, folder, texts, **run, **SETTINGS)
    assert not list(folder.glob("*.safetensors"))
    again = harvest_states(pair.source, folder, texts, **run, **SETTINGS)
    assert largest_difference(first, again) == 0.0
    assert again.provenance.target_dtype == first.provenance.target_dtype


def test_an_iterator_in_another_order_keeps_what_begins_like_a_shorter_text(
    pair: Any, texts: list[str]
) -> None:
    texts = texts[60:]  # without the copies, which would do instead
    ids = sorted(ids_of(pair, texts), key=len, reverse=True)

    def states() -> Iterator[Any]:
        for one in ids:
            found = hidden_states(pair.target, one, [2, 3])
            yield one, {1: found[:, 0], 2: found[:, 1]}

    found = harvest_states(pair.source, states(), texts, progress=False, **SETTINGS)
    assert largest_difference(harvest(pair, texts, progress=False, **SETTINGS), found) < 1e-4


def test_a_sequence_that_two_windows_need_is_named(
    pair: Any, texts: list[str], tmp_path: Path
) -> None:
    unique = list({tuple(ids): ids for ids in ids_of(pair, texts)}.values())
    folder = write_vllm(tmp_path / "t", pair.target, unique, [2, 3])
    write_manifest(folder, layer_ids=[2, 3], n_layers=3)
    # Without consume one file serves all copies.
    harvest_states(pair.source, folder, texts, progress=False, **SETTINGS)
    with pytest.raises(lrt.errors.MismatchError, match=r"was deleted .* copies .* consume"):
        harvest_states(
            pair.source,
            folder,
            texts,
            checkpoint=tmp_path / "run",
            checkpoint_every=1e-6,
            consume=True,
            progress=False,
            **SETTINGS,
        )


def test_sequences_that_are_missing_after_a_resume_are_noticed(
    pair: Any, passages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = SETTINGS | {"context_length": 60}
    ids = pair.source.encode(passages)
    folder = write_vllm(tmp_path / "t", pair.target, ids[:120], [2, 3])
    write_manifest(folder, layer_ids=[2, 3], n_layers=3, n_sequences=len(ids))
    run: dict[str, Any] = {"checkpoint": tmp_path / "run", "consume": True, "progress": False}
    for _ in range(2):
        with pytest.raises(lrt.errors.FileFormatError, match=rf"120 of {len(ids)} sequences"):
            harvest_states(pair.source, folder, **run, **settings)


def test_a_ledger_is_used_by_a_run_that_deletes_nothing(
    pair: Any, passages: list[str], tmp_path: Path
) -> None:
    settings: dict[str, Any] = SETTINGS | {"context_length": 60}
    ids = pair.source.encode(passages)
    folder = write_vllm(tmp_path / "t", pair.target, ids[:120], [2, 3])
    write_manifest(folder, layer_ids=[2, 3], n_layers=3, n_sequences=len(ids))
    run: dict[str, Any] = {"checkpoint": tmp_path / "run", "progress": False}
    with pytest.raises(lrt.errors.FileFormatError, match=rf"120 of {len(ids)} sequences"):
        harvest_states(pair.source, folder, checkpoint_every=1e-6, consume=True, **run, **settings)
    write_vllm(tmp_path / "more", pair.target, ids[120:], [2, 3])
    for path in sorted((tmp_path / "more").iterdir()):
        path.rename(folder / f"0-{path.name}")  # before the others in the order of names
    found = harvest_states(pair.source, folder, **run, **settings)
    truth = harvest(pair, passages, progress=False, **settings)
    assert largest_difference(truth, found) < 1e-4
