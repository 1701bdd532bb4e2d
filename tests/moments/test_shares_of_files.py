"""Ranks and shards that read their own files give the sums of one process that reads all."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import lrt_lens as lrt
from lrt_lens.cli import main
from lrt_lens.data._file_shares import FileShares
from lrt_lens.errors import FileFormatError, MismatchError, TooFewDocumentsError
from lrt_lens.models import ModelPair
from lrt_lens.moments import CrossMoments, harvest, merge_shards
from lrt_lens.moments._checkpoint import read_rank_files
from lrt_lens.moments._harvesting import harvest_survey, settle
from lrt_lens.moments._scale_out import Ranks, harvest_in_ranks
from tests.moments.forking import end, forking
from tests.moments.small_blocks import OPTIONS, assert_same

SHARES = 5
QUIET: dict[str, Any] = OPTIONS | {"progress": False}


def write_corpus(folder: Path, texts: list[str], n_files: int = 7) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(n_files):
        rows = [json.dumps({"text": text}) + "\n" for text in texts[number::n_files]]
        (folder / f"part-{number}.jsonl").write_text("".join(rows))
    return folder


@pytest.fixture(scope="module")
def files(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 7 files; the first texts are also in other files."""
    # 153 and not 150: copies of the first three texts come in other files than the texts.
    return write_corpus(tmp_path_factory.mktemp("files") / "corpus", [*corpus, *corpus[:3]])


@pytest.fixture(scope="module")
def whole(pair: ModelPair, files: Path) -> CrossMoments:
    """Return the moments of one process that takes one share of the files after the other."""
    return harvest(pair, files, file_shares=SHARES, **QUIET)


@pytest.fixture(scope="module")
def fork(pair: ModelPair, files: Path) -> Callable[..., multiprocessing.Process]:
    """Return ``fork(folder, rank, count)``, which starts a process that harvests as a rank."""

    def run(folder: Path, ranks: Ranks, pause: float) -> CrossMoments | None:
        return harvest_in_ranks(
            settle(pair, file_shares=SHARES, **OPTIONS),
            files,
            folder / "checkpoint",
            ranks=ranks,
            checkpoint_every=0.02,
            on_block=lambda *_: time.sleep(pause),
            progress=False,
        )

    return forking(run, pause=0.0)


def wait_for_checkpoint(folder: Path, name: str, began: float) -> None:
    """Wait until a rank has written a file after ``began``, or 60 seconds."""
    while time.time() < began + 60:
        paths = folder.glob(f"{name}.safetensors")
        if any(path.stat().st_mtime > began for path in paths if path.exists()):
            return
        time.sleep(0.01)
    pytest.fail(f"no file {name} was written")


def double(model: Any) -> Any:
    model.engine.model.double()
    return model


def test_sums_are_those_of_one_stream_but_for_the_shuffled_pairs(load: Any, files: Path) -> None:
    # In float64, because blocks of other windows are padded otherwise, and round otherwise.
    shapes: list[dict[str, int]] = [{"d": 16, "layers": 2, "seed": 1}]
    shapes += [{"d": 24, "layers": 3, "seed": 2}]
    pair = ModelPair(*(double(load(**shape)) for shape in shapes))
    whole = harvest(pair, files, file_shares=SHARES, **QUIET)
    expected = harvest(pair, files, **QUIET)
    assert torch.equal(whole.n, expected.n)
    assert whole.provenance.n_documents == expected.provenance.n_documents == 153
    assert whole.provenance.corpus == expected.provenance.corpus
    assert whole.provenance.part_documents == expected.provenance.part_documents
    # n, Σx, Σy, Σxx, Σyy and Σxy of each part, about its own means.
    for hook_pair in whole.pairs:
        for part in range(13):
            ours, theirs = (one.scatter(hook_pair, [part]) for one in (whole, expected))
            assert ours.n == theirs.n
            for name in ("mean_x", "mean_y", "xx", "yy", "xy"):
                found, other = getattr(ours, name), getattr(theirs, name)
                assert float((found - other).norm()) <= 1e-10 * float(other.norm()), name
    # The shuffled pairs are others.
    ours, theirs = (one.null_scatter(whole.pairs[0], test=False).xy for one in (whole, expected))
    assert float((ours - theirs).norm()) > 1e-3 * float(theirs.norm())
    grids = whole.fit(), expected.fit()
    for ours, theirs in zip(*(grid.scores.to_dict("records") for grid in grids), strict=True):
        for column in ("r2", "r2_cv", "r2_uniform", "r2_down", "cka"):
            assert ours[column] == pytest.approx(theirs[column], rel=1e-9, abs=1e-12), column


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_ranks_gives_the_moments_of_one_process(
    fork: Callable[..., Any], whole: CrossMoments, tmp_path: Path, count: int
) -> None:
    assert end([fork(tmp_path, rank, count) for rank in range(count)]) == [0] * count
    assert_same(CrossMoments.load(tmp_path / "moments.safetensors"), whole)


def test_ranks_read_only_their_own_files(pair: ModelPair, files: Path, tmp_path: Path) -> None:
    run = settle(pair, file_shares=SHARES, **OPTIONS).with_files_of(files)
    assert run.files is not None
    others = {path for share in (0, 1, 3) for path in run.files.shares.documents(share).documents}
    # Files of the other ranks may even be unreadable, except that all read the first block.
    corpus = write_corpus(tmp_path / "corpus", [])
    for path in files.iterdir():
        (corpus / path.name).write_bytes(path.read_bytes())
    for path in others - set(run.files.shares.documents(0).documents):
        damaged = corpus / path.name
        damaged.write_bytes(b"{" * damaged.stat().st_size)
    seen: list[int] = []
    harvest_in_ranks(
        settle(pair, file_shares=SHARES, **OPTIONS),
        corpus,
        tmp_path / "checkpoint",
        ranks=Ranks(2, 3),
        on_block=lambda block, *_: seen.append(block.index // 2**32),
        progress=False,
    )
    assert set(seen) == {2}
    with pytest.raises(FileFormatError, match="is not JSON"):
        harvest(pair, corpus, file_shares=SHARES, **QUIET)


def test_kill_ranks_and_go_on_with_another_number(
    fork: Callable[..., Any], whole: CrossMoments, pair: ModelPair, tmp_path: Path
) -> None:
    rng = random.Random(2)
    for count in (3, 2, 1):
        began = time.time()
        processes = [fork(tmp_path, rank, count, pause=0.2) for rank in range(count)]
        wait_for_checkpoint(tmp_path / "checkpoint", "rank*", began)
        time.sleep(rng.uniform(0.0, 0.3))
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
        end(processes)
    assert not (tmp_path / "moments.safetensors").exists(), "the harvest must not have been over"
    assert end([fork(tmp_path, rank, 2) for rank in range(2)]) == [0, 0]
    assert_same(CrossMoments.load(tmp_path / "moments.safetensors"), whole)


def test_a_rank_that_dies_is_named_with_its_shares(
    fork: Callable[..., Any], tmp_path: Path
) -> None:
    began = time.time()
    ranks = [fork(tmp_path, 0, 2)]
    # Without a name of the launch, rank 0 tells its ranks from earlier ones by when they began.
    wait_for_checkpoint(tmp_path / "checkpoint", "rank0", began)
    ranks.append(fork(tmp_path, 1, 2, pause=0.5))
    wait_for_checkpoint(tmp_path / "checkpoint", "rank1", began)
    os.kill(ranks[1].pid, signal.SIGKILL)
    assert end(ranks) == [1, -signal.SIGKILL]
    error = (tmp_path / "error0.txt").read_text()
    assert "ChildProcessError: rank 1 of 2 ended with 2 of its shares of the files undone" in error


def test_shares_that_are_done_are_not_read_again(
    pair: ModelPair, files: Path, whole: CrossMoments, tmp_path: Path, monkeypatch: Any
) -> None:
    def stop(block: Any, *_: Any) -> None:
        if block.index // 2**32 == 3:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"file_shares": SHARES, "checkpoint": tmp_path} | QUIET
    with pytest.raises(KeyboardInterrupt):
        harvest(pair, files, on_block=stop, **options)
    [file] = read_rank_files(
        tmp_path, settle(pair, file_shares=SHARES, **OPTIONS).with_files_of(files).arguments
    )
    assert set(file.ended) == {0, 1, 2}
    cut: list[int] = []
    read = FileShares.documents
    monkeypatch.setattr(FileShares, "documents", lambda self, k: (cut.append(k), read(self, k))[1])
    assert_same(harvest(pair, files, **options), whole)
    # The first block of share 0, and what was not done.
    assert cut == [0, 3, 4]


def test_shards_merge_to_the_whole_and_those_of_other_files_are_refused(
    pair: ModelPair, files: Path, corpus: list[str], whole: CrossMoments, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"file_shares": SHARES} | QUIET
    paths = [
        harvest(pair, files, shard=(k, 2), **options).save(tmp_path / f"{k}.safetensors")
        for k in range(2)
    ]
    assert_same(merge_shards(paths[::-1]), whole)
    smaller = write_corpus(tmp_path / "smaller", corpus)
    other = harvest(pair, smaller, shard=(1, 2), **options).save(tmp_path / "other.safetensors")
    with pytest.raises(MismatchError, match=r"by stream: not the same files \(names, sizes or"):
        merge_shards([paths[0], other])
    by_blocks = harvest(pair, files, shard=(1, 2), **QUIET).save(tmp_path / "blocks.safetensors")
    with pytest.raises(MismatchError, match="by file_shares: '5' and 'None'"):
        merge_shards([paths[0], by_blocks])


def test_a_budget_gives_the_same_whatever_the_processes(
    pair: ModelPair, files: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = QUIET | {"file_shares": SHARES, "n_tokens": 3000}
    expected = harvest(pair, files, **options)
    assert 2900 < expected.n_tokens < 3200
    shards = [
        harvest(pair, files, shard=(k, 4), **options).save(tmp_path / f"{k}.safetensors")
        for k in range(4)
    ]
    assert_same(merge_shards(shards), expected)


def test_surveys_of_shards_have_equal_scales_and_merge_exactly(
    pair: ModelPair, files: Path
) -> None:
    settings = lrt.SurveySettings(
        **OPTIONS | {"source_layers": "all", "target_layers": "all"}, columns=8, file_shares=SHARES
    )
    expected = harvest_survey(pair, files, settings, progress=False)
    one, other = (
        harvest_survey(pair, files, replace(settings, shard=(k, 2)), progress=False)
        for k in range(2)
    )
    merged = one.merge(other)
    for name, tensor in merged.tensors().items():
        theirs = expected.tensors()[name]
        assert float((tensor - theirs).norm()) <= 1e-10 * float(theirs.norm()), name
    assert len(lrt.survey(pair, files, settings=settings, progress=False).scores) == 6


def test_data_sets_are_shared_by_rows_and_by_shards(
    pair: ModelPair, corpus: list[str], tmp_path: Path
) -> None:
    rows = datasets.Dataset.from_dict({"text": corpus})
    options: dict[str, Any] = {"file_shares": 3} | QUIET
    expected = harvest(pair, rows, **options)
    streamed = harvest(pair, rows.to_iterable_dataset(num_shards=3), **options)
    assert_same(streamed, expected)
    shards = [
        harvest(pair, rows, shard=(k, 3), **options).save(tmp_path / f"{k}.safetensors")
        for k in range(3)
    ]
    assert_same(merge_shards(shards), expected)


def test_a_cache_of_shares_has_all_rows(
    pair: ModelPair, files: Path, whole: CrossMoments, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"file_shares": SHARES, "checkpoint": tmp_path / "run"} | QUIET
    harvest(pair, files, **options)
    # The checkpoint is complete, and the cache is not begun.
    found = harvest(pair, files, cache=tmp_path / "cache", cache_dtype="float32", **options)
    assert_same(found, whole)
    cached = lrt.ActivationCache.open(tmp_path / "cache").moments(moment_dtype="float64")
    assert torch.equal(cached.n, whole.n)


@pytest.mark.parametrize("when", ["between ranks", "before resuming"])
def test_a_file_that_shrinks_is_named(
    pair: ModelPair, files: Path, tmp_path: Path, when: str
) -> None:
    corpus = write_corpus(tmp_path / "corpus", [])
    for path in files.iterdir():
        (corpus / path.name).write_bytes(path.read_bytes())
    run = settle(pair, file_shares=SHARES, **OPTIONS)
    options: dict[str, Any] = {"progress": False, "patience": 0.1}
    count = 2 if when == "between ranks" else 1
    with (
        nullcontext()
        if count == 1
        else pytest.raises(TimeoutError, match="2 of 5 shares of the files are in no checkpoint")
    ):
        harvest_in_ranks(run, corpus, tmp_path / "run", ranks=Ranks(0, count), **options)
    path = corpus / "part-3.jsonl"
    size = path.stat().st_size
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(
        MismatchError,
        match=rf"files.part-3.jsonl was '{size:,} bytes' and is '{path.stat().st_size:,} bytes'; "
        r"give the same arguments \(every rank the same models and files\)",
    ):
        harvest_in_ranks(run, corpus, tmp_path / "run", ranks=Ranks(count - 1, count), **options)


def test_a_file_that_shrinks_during_the_harvest_is_named(
    pair: ModelPair, files: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus", [])
    for path in files.iterdir():
        (corpus / path.name).write_bytes(path.read_bytes())
    run = settle(pair, file_shares=SHARES, **OPTIONS).with_files_of(corpus)
    (corpus / "part-6.jsonl").write_text('{"text": "short"}\n')
    with pytest.raises(FileFormatError, match=r"part-6.jsonl' has 18 bytes and had [\d,]+ bytes"):
        run.harvest_share(corpus, checkpoint=None, checkpoint_every=120.0, progress=False)


def test_a_fold_without_documents_is_refused_only_for_the_whole(
    pair: ModelPair, corpus: list[str], tmp_path: Path
) -> None:
    """A share of few documents may lack a fold, as long as the others have it."""
    options: dict[str, Any] = {"file_shares": 10} | QUIET
    folder = write_corpus(tmp_path / "corpus", corpus[:60], n_files=10)
    found = harvest(pair, folder, **options)
    assert found.provenance.n_documents == 60
    few = write_corpus(tmp_path / "few", corpus[:4], n_files=2)
    with pytest.raises(TooFewDocumentsError, match=r"fold\(s\) .* hold no document: 4 document"):
        harvest(pair, few, file_shares=2, **QUIET)


def test_more_processes_than_shares_are_refused(pair: ModelPair, files: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"is 2, and 3 processes share the harvest \(3 shard\(s\) of 1 rank\(s\)\); expected",
    ):
        harvest(pair, files, file_shares=2, shard=(0, 3), **QUIET)
    for wrong, message in ((0, "at least 1"), (300, "at most 200")):
        with pytest.raises(ValueError, match=f"file_shares is {wrong}; .*{message}"):
            settle(pair, file_shares=wrong, n_tokens=200)


def test_the_command_line_shares_files(
    pair: ModelPair, build_hf: Any, tokenizer: Any, files: Path, tmp_path: Path, capsys: Any
) -> None:
    for name, d, seed in (("source", 16, 1), ("target", 24, 2)):
        build_hf("llama", d=d, layers=2, seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    command = ["fit", "--source", str(tmp_path / "source"), "--target", str(tmp_path / "target")]
    command += ["--documents", str(files), "--context-length", "32", "--n-tokens", "100000"]
    command += ["--moment-dtype", "float64", "--no-progress"]
    main([*command, "--out", str(tmp_path / "whole"), "--file-shares", "4"])
    for k in range(2):
        shard = ["--out", str(tmp_path / "jobs"), "--file-shares", "4", "--shard", f"{k}/2"]
        main([*command, *shard])
    shards = sorted(map(str, (tmp_path / "jobs").glob("moments-*.safetensors")))
    main(["merge", str(tmp_path / "merged"), *shards, "--no-progress"])
    assert_same(
        CrossMoments.load(tmp_path / "merged" / "moments.safetensors"),
        CrossMoments.load(tmp_path / "whole" / "moments.safetensors"),
    )
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*command, "--out", str(tmp_path / "many"), "--file-shares", "8"])
    assert "error: --file-shares is 8, and documents are 7 file(s)" in capsys.readouterr().err
