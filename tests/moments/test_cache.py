"""A cache returns the rows of the harvest in any order, and is complete after any interruption."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lrt_lens.data import BlockPlan, iterate_blocks
from lrt_lens.errors import FileFormatError, HookPointError, MismatchError, NonFiniteError
from lrt_lens.models import ModelPair
from lrt_lens.moments import FIT_PARTS, TEST_PARTS, ActivationCache, CrossMoments, harvest
from lrt_lens.moments._harvesting import settle
from lrt_lens.moments.cache._manifest import MANIFEST_NAME
from lrt_lens.moments.cache._selection import RowSelection
from lrt_lens.moments.cache._shard import byte_sum
from lrt_lens.moments.cache._writer import CacheWriter
from tests.moments.small_blocks import OPTIONS

SOURCE, TARGET = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"

LARGE_BLOCKS: dict[str, Any] = OPTIONS | {"block_rows": 4096}


def fill(folder: Path, pair: ModelPair, corpus: list[str], **options: Any) -> CrossMoments:
    return harvest(pair, corpus, cache=folder, progress=False, **OPTIONS | options)


def small_shards(monkeypatch: pytest.MonkeyPatch, n_bytes: int = 150_000) -> None:
    original = CacheWriter.__init__
    monkeypatch.setattr(
        CacheWriter,
        "__init__",
        lambda self, folder, manifest, **_: original(self, folder, manifest, shard_bytes=n_bytes),
    )


def gathered(cache: ActivationCache, **options: Any) -> tuple[Tensor, Tensor]:
    batches = list(cache.rows(*cache.pairs[-1], **options))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def sorted_rows(x: Tensor, y: Tensor) -> np.ndarray:
    rows = torch.cat([x, y], 1).numpy()
    return rows[np.lexsort(rows.T)]


@pytest.fixture(scope="module")
def harvested(
    pair: ModelPair, corpus: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, CrossMoments, list[Any]]:
    """Return a cache of several small shards, the moments of the same run, and its blocks."""
    folder, blocks = tmp_path_factory.mktemp("cached") / "cache", []
    with pytest.MonkeyPatch.context() as patch:
        small_shards(patch)
        moments = fill(folder, pair, corpus, on_block=lambda *block: blocks.append(block))
    return folder, moments, blocks


@pytest.fixture
def cache(harvested: tuple[Path, CrossMoments, list[Any]], pair: ModelPair) -> ActivationCache:
    return ActivationCache.open(harvested[0], pair=pair)


# ------------------------------------------------------------------------------------ what it holds


def test_a_cache_says_what_it_holds(cache: ActivationCache, harvested: Any) -> None:
    folder, moments, _ = harvested
    assert len(cache) == moments.n_tokens
    assert len(cache.manifest.shards) > 3
    assert cache.pairs == moments.pairs
    assert cache.source_hooks == (SOURCE, "hook_embed")
    assert cache.is_finished
    assert cache.n_bytes == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert f"{len(cache):,} rows" in repr(cache)
    assert not list(folder.glob(".*"))


def test_rows_are_those_that_went_into_the_moments_rounded(
    cache: ActivationCache, harvested: Any
) -> None:
    expected = [
        torch.cat([block[side][hook].bfloat16().float() for block in harvested[2]])
        for side, hook in ((2, SOURCE), (3, TARGET))
    ]
    x, y = gathered(cache, shuffle=None)
    torch.testing.assert_close(x, expected[0], rtol=0, atol=0)
    torch.testing.assert_close(y, expected[1], rtol=0, atol=0)


def test_moments_are_those_of_the_rounded_rows_exactly(
    cache: ActivationCache, harvested: Any
) -> None:
    naive = CrossMoments(cache.pairs, "hook_embed", torch.float64)
    for block, _, x, y in harvested[2]:
        naive.add_block(
            block.part,
            *({hook: rows.bfloat16().float() for hook, rows in side.items()} for side in (x, y)),
        )
    found = cache.moments(moment_dtype="float64").tensors()
    assert all(torch.equal(found[name], tensor) for name, tensor in naive.tensors().items())


def test_moments_are_the_harvests_up_to_rounding(cache: ActivationCache, harvested: Any) -> None:
    found, expected = cache.moments(moment_dtype="float64", null="full"), harvested[1]
    assert found.provenance == expected.provenance
    assert torch.equal(found.n, expected.n)
    for name, tensor in expected.tensors().items():
        if "/second/" in name or name.startswith("null/"):
            theirs = found.tensors()[name]
            assert float((theirs - tensor).norm()) <= 0.02 * float(tensor.norm()), name
    assert not torch.equal(found.source[SOURCE].second, expected.source[SOURCE].second)
    assert found.fit().scores["r2"].to_numpy() == pytest.approx(
        expected.fit().scores["r2"].to_numpy(), abs=0.01
    )


def test_a_float32_cache_gives_the_harvests_moments_exactly(
    pair: ModelPair, corpus: list[str], tmp_path: Path
) -> None:
    expected = fill(tmp_path / "cache", pair, corpus, cache_dtype="float32").tensors()
    cache = ActivationCache.open(tmp_path / "cache")
    found = cache.moments(moment_dtype="float64", null="full").tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_tokens_and_masks_are_those_of_the_blocks(
    cache: ActivationCache, pair: ModelPair, corpus: list[str]
) -> None:
    plan = BlockPlan(context_length=24, block_rows=250)
    blocks = {block.index: block for block in iterate_blocks(corpus, pair.source, plan)}
    stored = [found for shard in cache.shards for found in shard.blocks(tokens=True)]
    assert sorted(block.index for block, _, _ in stored) == sorted(blocks)
    for block, rows, _ in stored:
        original = blocks[block.index]
        assert (block.part, block.n_documents, block.digest, rows.stop - rows.start) == (
            original.part,
            original.n_documents,
            original.digest,
            original.n_rows,
        )
        key = lambda w: (w.document, w.ids, w.rows.tolist())  # noqa: E731
        assert sorted(map(key, block.windows)) == sorted(map(key, original.windows))


# -------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("buffer_rows", [1, 300, 10**6])
def test_every_row_comes_once_an_epoch_in_a_new_order(
    cache: ActivationCache, buffer_rows: int
) -> None:
    expected = sorted_rows(*gathered(cache, shuffle=None))
    one, other, again = (
        gathered(cache, batch_rows=128, shuffle=seed, buffer_rows=buffer_rows) for seed in (0, 1, 0)
    )
    np.testing.assert_array_equal(sorted_rows(*one), expected)
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], other[0])
    epochs = gathered(cache, batch_rows=128, epochs=2, buffer_rows=buffer_rows)[0]
    assert torch.equal(epochs[: len(cache)], one[0])
    assert not torch.equal(epochs[len(cache) :], one[0])


def test_batches_are_full_but_for_the_last(cache: ActivationCache) -> None:
    sizes = [len(x) for x, _ in cache.rows(SOURCE, TARGET, batch_rows=128, buffer_rows=300)]
    assert set(sizes[:-1]) == {128}
    assert sum(sizes) == len(cache)


def test_any_batch_is_found_without_those_before_it(cache: ActivationCache) -> None:
    batches = list(cache[SOURCE, TARGET].batches(RowSelection(), 100, seed=3, epoch=1))
    for skip in (0, 1, 3, 7, len(batches) - 1, len(batches)):
        found = list(cache[SOURCE, TARGET].batches(RowSelection(), 100, seed=3, epoch=1, skip=skip))
        assert len(found) == len(batches) - skip
        assert all(torch.equal(a[1], b[1]) for a, b in zip(found, batches[skip:], strict=True))


def test_rows_are_mixed_across_shards_and_within_them(cache: ActivationCache) -> None:
    """Few neighbours in stored order stay neighbours; the first batch has rows of most shards."""
    stored, shuffled = (
        gathered(cache, shuffle=None)[0].numpy(),
        gathered(cache, buffer_rows=10**6)[0].numpy(),
    )
    place = {row.tobytes(): i for i, row in enumerate(stored)}
    places = np.array([place[row.tobytes()] for row in shuffled])
    assert (np.diff(places) == 1).mean() < 0.02
    ends = np.cumsum([record.n_rows for record in cache.manifest.shards])
    assert len(set(np.searchsorted(ends, places[:100], side="right").tolist())) >= len(ends) - 1


def test_parts_and_validation_are_whole_documents(cache: ActivationCache) -> None:
    tests = sorted_rows(*gathered(cache, parts=TEST_PARTS))
    assert len(tests) == int(cache.moments().n[list(TEST_PARTS)].sum())
    documents = {side: set() for side in ("training", "validation")}
    for side, found in documents.items():
        selection = RowSelection(FIT_PARTS, 0.25, side)
        for shard in cache.shards:
            found |= set(
                shard.table.row_document[
                    selection.mask(shard.table.row_part, shard.table.row_document)
                ].tolist()
            )
    assert not documents["training"] & documents["validation"]
    assert 0.1 < len(documents["validation"]) / sum(map(len, documents.values())) < 0.4


def test_handed_out_rows_are_not_the_file(
    pair: ModelPair, corpus: list[str], tmp_path: Path
) -> None:
    fill(tmp_path / "cache", pair, corpus, cache_dtype="float32")
    cache = ActivationCache.open(tmp_path / "cache")
    before = gathered(cache, shuffle=None)[0].clone()
    for shuffle in (None, 0):
        next(cache.rows(SOURCE, TARGET, shuffle=shuffle))[0].zero_()
    assert torch.equal(gathered(cache, shuffle=None)[0], before)


# ------------------------------------------------------------------------------------- interruption


def test_a_killed_writer_goes_on(
    pair: ModelPair,
    corpus: list[str],
    harvested: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_shards(monkeypatch)

    def work() -> None:
        fill(tmp_path / "cache", pair, corpus, on_block=lambda *_: time.sleep(0.05))

    process: Any = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    deadline = time.monotonic() + 60
    while (
        len(list((tmp_path / "cache").glob("shard-*.safetensors"))) < 3
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    cut = ActivationCache.open(tmp_path / "cache")
    assert 0 < len(cut) < harvested[1].n_tokens
    assert not cut.is_finished
    seen: list[int] = []
    fill(tmp_path / "cache", pair, corpus, on_block=lambda block, *_: seen.append(block.index))
    resumed, whole = ActivationCache.open(tmp_path / "cache"), ActivationCache.open(harvested[0])
    assert resumed.is_finished
    np.testing.assert_array_equal(
        sorted_rows(*gathered(resumed, shuffle=None)), sorted_rows(*gathered(whole, shuffle=None))
    )
    assert resumed.moments().provenance.corpus == whole.moments().provenance.corpus


def test_blocks_in_the_cache_are_not_written_again(
    pair: ModelPair, corpus: list[str], tmp_path: Path
) -> None:
    fill(tmp_path, pair, corpus)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    fill(tmp_path, pair, corpus)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")} == before


def test_cache_and_checkpoint_go_on_independently(
    pair: ModelPair, corpus: list[str], harvested: Any, tmp_path: Path
) -> None:
    """The checkpoint has all blocks and the cache none: the cache is filled, the moments stay."""
    harvest(pair, corpus, checkpoint=tmp_path / "checkpoint", progress=False, **OPTIONS)
    found = fill(tmp_path / "cache", pair, corpus, checkpoint=tmp_path / "checkpoint")
    cache = ActivationCache.open(tmp_path / "cache")
    assert len(cache) == found.n_tokens == harvested[1].n_tokens


def test_what_a_failure_leaves_is_whole(pair: ModelPair, corpus: list[str], tmp_path: Path) -> None:
    def stop(block: Any, *_: Any) -> None:
        if block.index == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, pair, corpus, on_block=stop)
    cache = ActivationCache.open(tmp_path)
    assert sorted(index for shard in cache.shards for index in shard.table.index.tolist()) == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert "unfinished" in repr(cache)


@pytest.mark.parametrize("damage", ["truncated", "missing", "zeroed"])
def test_a_cache_cut_short_is_refused_and_mended(
    damage: str,
    pair: ModelPair,
    corpus: list[str],
    harvested: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    small_shards(monkeypatch)
    fill(tmp_path, pair, corpus)
    path = tmp_path / "shard-00001.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            content[: len(content) // 2]
            + (b"" if damage == "truncated" else bytes(len(content) - len(content) // 2))
        )
    with pytest.raises(FileFormatError, match="shard-00001.safetensors"):
        gathered(ActivationCache.open(tmp_path))
    fill(tmp_path, pair, corpus)
    assert "recorded again" in caplog.text
    mended, whole = ActivationCache.open(tmp_path), ActivationCache.open(harvested[0])
    np.testing.assert_array_equal(
        sorted_rows(*gathered(mended, shuffle=None)), sorted_rows(*gathered(whole, shuffle=None))
    )


@pytest.mark.parametrize(
    "content",
    [None, "{", '{"schema_version": "other/1"}', '{"schema_version": "lrt_lens.cache/1"}', "[]"],
)
def test_a_folder_that_is_no_cache_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / MANIFEST_NAME).write_text(content)
    with pytest.raises(FileFormatError, match=str(tmp_path)):
        ActivationCache.open(tmp_path)


# ------------------------------------------------------------------------------------------- checks


def test_other_models_are_refused(pair: ModelPair, cache: ActivationCache, harvested: Any) -> None:
    with pytest.raises(MismatchError, match="source model for the cache"):
        ActivationCache.open(harvested[0], pair=pair.reversed())
    with pytest.raises(MismatchError, match="target model"):
        cache.check(target=pair.source)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"context_length": 20}, "context_length"),
        ({"skip_first": 5}, "skip_first"),
        ({"block_rows": 300}, "block_rows"),
        ({"cache_dtype": "float32"}, "dtype"),
        ({"target_layers": [2]}, "pairs"),
    ],
)
def test_a_run_with_other_arguments_does_not_go_on(
    options: dict[str, Any], named: str, pair: ModelPair, corpus: list[str], harvested: Any
) -> None:
    before = (harvested[0] / MANIFEST_NAME).read_text()
    with pytest.raises(MismatchError, match=named):
        fill(harvested[0], pair, corpus, **options)
    assert (harvested[0] / MANIFEST_NAME).read_text() == before


def test_other_documents_do_not_go_on(pair: ModelPair, corpus: list[str], harvested: Any) -> None:
    with pytest.raises(MismatchError, match="documents are not the same"):
        fill(harvested[0], pair, corpus[::-1])
    assert ActivationCache.open(harvested[0]).is_finished


def test_two_writers_at_once_are_refused(pair: ModelPair, harvested: Any) -> None:
    manifest = settle(pair, **OPTIONS).cache_manifest("bfloat16")
    with CacheWriter(harvested[0], manifest), pytest.raises(MismatchError, match="another process"):
        CacheWriter(harvested[0], manifest)


def test_hook_points_that_are_not_there_are_refused(cache: ActivationCache) -> None:
    with pytest.raises(HookPointError, match=r"blocks.0.hook_resid_post.*source"):
        cache.rows("blocks.0.hook_resid_post", TARGET)
    with pytest.raises(HookPointError, match="target"):
        cache[SOURCE, SOURCE]
    assert cache[SOURCE, "blocks.1.hook_resid_pre"].target_hook == "blocks.0.hook_resid_post"


# ----------------------------------------------------------------------------------------- own rows


def test_rows_of_ones_own_give_their_moments(rows: Any, tmp_path: Path) -> None:
    with ActivationCache.create(
        tmp_path, source_hook="a", target_hook="b", dtype="float32", shard_bytes=30_000
    ) as cache:
        for start in range(0, len(rows.x), 700):
            some = slice(start, start + 700)
            cache.add(rows.x[some].float(), rows.y[some].float(), documents=rows.documents[some])
    cache = ActivationCache.open(tmp_path)
    assert len(cache) == len(rows.x)
    expected = CrossMoments.from_activations(
        rows.x.float(), rows.y.float(), documents=rows.documents, moment_dtype=torch.float64
    )
    found = cache.moments(moment_dtype="float64")
    assert torch.equal(found.n, expected.n)
    for parts in (FIT_PARTS, TEST_PARTS, (2,)):
        a, b = found.scatter(("a", "b"), parts), expected.scatter(expected.pairs[0], parts)
        torch.testing.assert_close(a.xy, b.xy, rtol=1e-9, atol=1e-6)
        torch.testing.assert_close(a.xx, b.xx, rtol=1e-9, atol=1e-6)


def test_rows_that_wait_are_read_too(rows: Any, tmp_path: Path) -> None:
    cache = ActivationCache.create(tmp_path)
    cache.add(rows.x.float(), rows.y.float(), documents=rows.documents)
    assert len(cache) == len(rows.x)
    assert not cache.is_finished
    cache.close()
    assert cache.is_finished


def test_the_same_rows_again_go_on(rows: Any, tmp_path: Path) -> None:
    x, y = rows.x.float(), rows.y.float()
    with ActivationCache.create(tmp_path) as cache:
        cache.add(x[:1000], y[:1000], documents=rows.documents[:1000])
    with ActivationCache.create(tmp_path) as cache:
        cache.add(x[:1000], y[:1000], documents=rows.documents[:1000])
        cache.add(x[1000:], y[1000:], documents=rows.documents[1000:])
    assert len(ActivationCache.open(tmp_path)) == len(x)
    with (
        ActivationCache.create(tmp_path) as cache,
        pytest.raises(MismatchError, match="other rows"),
    ):
        cache.add(x[5:1000], y[5:1000], documents=rows.documents[5:1000])


@pytest.mark.usefixtures("unchecked")
def test_bad_rows_are_refused(rows: Any, tmp_path: Path) -> None:
    x, y = rows.x.float(), rows.y.float()
    with ActivationCache.create(tmp_path) as cache:
        bad = x.clone()
        bad[3, 2] = float("nan")
        with pytest.raises(NonFiniteError, match="'source/source'"):
            cache.add(bad, y, documents=rows.documents)
        with pytest.raises(ValueError, match="do not pair"):
            cache.add(x[1:], y, documents=rows.documents)
        with pytest.raises(ValueError, match="no rows"):
            cache.add(x[:0], y[:0], documents=[])
    with (
        ActivationCache.create(tmp_path / "half", dtype="float16") as cache,
        pytest.raises(NonFiniteError, match="float16"),
    ):
        cache.add(1e5 * x, y, documents=rows.documents)
    with pytest.raises(ValueError, match="dtype"):
        ActivationCache.create(tmp_path / "other", dtype="int8")
    with pytest.raises(ValueError, match="open for reading"):
        ActivationCache.open(tmp_path).add(x, y, documents=rows.documents)
    with pytest.raises(ValueError, match="null"):
        ActivationCache.open(tmp_path).moments(null="full")


# ------------------------------------------------------------------------------ one model at a time


def record_source(folder: Path, pair: ModelPair, corpus: list[str]) -> ActivationCache:
    return ActivationCache.from_model(
        folder,
        pair.source,
        corpus,
        hooks=[1],
        context_length=24,
        n_tokens=None,
        dtype="float32",
        shard_bytes=60_000,
        progress=False,
    )


@pytest.fixture
def one_by_one(pair: ModelPair, corpus: list[str], tmp_path: Path) -> ActivationCache:
    return record_source(tmp_path / "cache", pair, corpus)


def test_models_one_after_the_other_give_the_pairs_moments(
    one_by_one: ActivationCache, pair: ModelPair, corpus: list[str]
) -> None:
    assert one_by_one.pairs == ()
    one_by_one.record(pair.target, [0, 2], progress=False)
    assert one_by_one.target_hooks == ("blocks.0.hook_resid_post", TARGET)
    expected = harvest(pair, corpus, progress=False, **LARGE_BLOCKS)
    found = one_by_one.moments(moment_dtype="float64", null="full")
    assert found.provenance == expected.provenance
    for name, tensor in found.tensors().items():
        torch.testing.assert_close(tensor, expected.tensors()[name], rtol=1e-9, atol=1e-6)
    one_by_one.check(pair.source, pair.target)


def test_a_second_pass_goes_on_by_shard(
    one_by_one: ActivationCache, pair: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrt_lens.moments.cache import _recording as recording

    calls: list[int] = []
    original: Callable[..., Any] = recording._record_shard

    def stop_at_second(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(recording, "_record_shard", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        one_by_one.record(pair.target, [2], progress=False)
    cut = ActivationCache.open(one_by_one.folder)
    assert cut.target_hooks == ()
    cut.record(pair.target, [2], progress=False)
    assert cut.target_hooks == (TARGET,)
    assert len(calls) == 1 + len(cut.manifest.shards)
    assert len(ActivationCache.open(one_by_one.folder).moments().source) == 1


def test_recording_refuses_other_tokens_and_other_models(
    one_by_one: ActivationCache, pair: ModelPair, load: Any, train_tokenizer: Any
) -> None:
    with pytest.raises(MismatchError, match="tokenizer_hash"):
        one_by_one.record(
            load("llama", tokenizer=train_tokenizer(vocabulary=300)), [1], progress=False
        )
    with pytest.raises(MismatchError, match="source model"):
        one_by_one.record(pair.target, [1], role="source", progress=False)
    with pytest.raises(ValueError, match="role"):
        one_by_one.record(pair.target, [1], role="both", progress=False)
    with pytest.raises(HookPointError):
        one_by_one.record(pair.target, [7], progress=False)


def test_the_first_pass_goes_on_after_a_second_one(
    one_by_one: ActivationCache, pair: ModelPair, corpus: list[str]
) -> None:
    one_by_one.record(pair.target, [2], progress=False)
    (one_by_one.folder / "shard-00001.safetensors").unlink()
    again = record_source(one_by_one.folder, pair, corpus)
    assert again.target_hooks == ()
    again.record(pair.target, [2], progress=False)
    assert len(again) == len(one_by_one)
    assert again.moments().n_tokens == len(again)


# -------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("n", [0, 1, 7, 8, 1001])
def test_the_sum_of_bytes_is_that_of_python(n: int) -> None:
    values = torch.randint(
        0, 256, (n,), dtype=torch.uint8, generator=torch.Generator().manual_seed(n)
    )
    content = bytes(values.tolist())
    whole = n // 8 * 8
    words = [int.from_bytes(content[i : i + 8], "little") for i in range(0, whole, 8)]
    assert byte_sum(values) == f"{(sum(words) + sum(content[whole:])) % 2**64:016x}"


@pytest.mark.parametrize("n", [0, 100, 4096, 3 * 4096 + 5])
def test_the_sum_over_pages_sees_every_empty_page(n: int) -> None:
    values = torch.randint(
        1, 256, (n,), dtype=torch.uint8, generator=torch.Generator().manual_seed(n)
    )
    whole = byte_sum(values, every_page=True)
    for start in range(0, n, 4096):
        damaged = values.clone()
        damaged[start : start + 4096] = 0
        assert byte_sum(damaged, every_page=True) != whole


def test_shards_are_plain_safetensors(cache: ActivationCache) -> None:
    from safetensors.torch import load_file

    tensors = load_file(cache.folder / cache.manifest.shards[0].files[0].name)
    assert tensors[f"source/{SOURCE}"].dtype == torch.bfloat16
    assert len(tensors["rows/position"]) == len(tensors[f"target/{TARGET}"])
    assert (
        json.loads((cache.folder / MANIFEST_NAME).read_text())["schema_version"]
        == "lrt_lens.cache/1"
    )
