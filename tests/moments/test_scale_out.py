"""Ranks and shards give the moments of one process, whichever rank dies at any time."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lrt_lens as lrt
from lrt_lens.cli import main
from lrt_lens.data import iterate_blocks
from lrt_lens.data._windows import Share
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.moments import CrossMoments, harvest, merge_shards
from lrt_lens.moments._checkpoint import read_rank_files
from lrt_lens.moments._harvesting import settle
from lrt_lens.moments._rank_lock import RankLock, is_locked
from lrt_lens.moments._scale_out import Ranks, harvest_in_ranks, parse_shard, shard_name
from tests.moments.forking import end, forking
from tests.moments.small_blocks import OPTIONS, assert_same

PAIR = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@pytest.fixture(scope="module")
def fork(pair: ModelPair, corpus: list[str]) -> Callable[..., multiprocessing.Process]:
    """Return ``fork(folder, rank, count)``, which starts a process that harvests slowly as a rank.

    The models are shared with this process, so it starts at once.
    """

    def run(folder: Path, ranks: Ranks, pause: float) -> CrossMoments | None:
        return harvest_in_ranks(
            settle(pair, **OPTIONS),
            corpus,
            folder / "checkpoint",
            ranks=ranks,
            result=folder / "moments.safetensors",
            checkpoint_every=0.02,
            on_block=lambda *_: time.sleep(pause),
            progress=False,
        )

    return forking(run, pause=0.02)


# -------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_give_the_moments_and_maps_of_one_process(
    fork: Callable[..., Any], whole: CrossMoments, tmp_path: Path, count: int, pair: ModelPair
) -> None:
    assert end([fork(tmp_path, rank, count, pause=0.0) for rank in range(count)]) == [0] * count
    found = CrossMoments.load(tmp_path / "moments.safetensors")
    assert_same(found, whole)
    assert found.provenance.n_documents == 150
    files = read_rank_files(tmp_path / "checkpoint", settle(pair, **OPTIONS).arguments)
    assert len(files) == count
    assert min(len(file.blocks) for file in files) >= max(len(file.blocks) for file in files) - 1, (
        "all had the same share"
    )
    for way in ("up", "down"):
        ours, theirs = (getattr(moments.fit()[PAIR].maps, way).weight for moments in (found, whole))
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-9


def test_kill_one_rank_then_all_and_go_on_with_others(
    fork: Callable[..., Any], whole: CrossMoments, tmp_path: Path
) -> None:
    rng = random.Random(1)
    first = [fork(tmp_path, rank, 2) for rank in range(2)]
    time.sleep(0.4)
    os.kill(first[1].pid, signal.SIGKILL)
    assert end(first) == [1, -signal.SIGKILL]
    error = (tmp_path / "error0.txt").read_text()
    assert "ChildProcessError: rank 1 of 2 ended with " in error
    assert "with the same arguments, on any number of ranks" in error
    for count in (3, 1):
        processes = [fork(tmp_path, rank, count) for rank in range(count)]
        time.sleep(rng.uniform(0.1, 0.4))
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
        end(processes)
    assert not (tmp_path / "moments.safetensors").exists(), "the harvest must not have been over"
    assert end([fork(tmp_path, rank, 2, pause=0.0) for rank in range(2)]) == [0, 0]
    assert_same(CrossMoments.load(tmp_path / "moments.safetensors"), whole)


def test_a_rank_that_comes_when_all_is_over_leaves_nothing_behind(
    pair: ModelPair, corpus: list[str], whole: CrossMoments, tmp_path: Path
) -> None:
    run, late = settle(pair, **OPTIONS), Ranks(1, 2, launch="job 7")
    of_launch = replace(whole, provenance=replace(whole.provenance, launch="job 7"))
    result = of_launch.save(tmp_path / "moments.safetensors")
    # Dates decide nothing: clocks of several machines differ, and copies have other dates.
    os.utime(result, (0, 0))
    options: dict[str, Any] = {
        "progress": False,
        "on_block": lambda *_: pytest.fail("it harvested"),
    }
    assert (
        harvest_in_ranks(run, corpus, tmp_path / "checkpoint", ranks=late, result=result, **options)
        is None
    )
    assert not list((tmp_path / "checkpoint").glob("*.safetensors"))
    # A result of another launch, or of an unknown one, is of an earlier run.
    os.utime(result)
    for launch in ("job 8", ""):
        seen = []
        options["on_block"] = lambda block, *_, seen=seen: seen.append(block.index)
        folder, other = tmp_path / f"checkpoint {launch}", Ranks(1, 2, launch=launch)
        found = harvest_in_ranks(run, corpus, folder, ranks=other, result=result, **options)
        assert found is None
        assert len(seen) > 5


def test_rank_0_does_not_wait_for_ever(pair: ModelPair, corpus: list[str], tmp_path: Path) -> None:
    with pytest.raises(
        TimeoutError,
        match=r"\d+ of \d+ blocks are in no checkpoint in .* nothing new came for 0 s: "
        "see whether all 2 ranks run",
    ):
        harvest_in_ranks(
            settle(pair, **OPTIONS),
            corpus,
            tmp_path,
            ranks=Ranks(0, 2),
            patience=0.1,
            progress=False,
        )


def test_a_rank_that_begins_during_a_look_is_not_taken_for_dead(
    pair: ModelPair, corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = RankLock(tmp_path, 1)

    def look_just_before_it_begins(path: Path) -> bool:
        found = is_locked(path)
        if lock._handle is None:
            lock.acquire(2)
        return found

    monkeypatch.setattr("lrt_lens.moments._scale_out.is_locked", look_just_before_it_begins)
    # Rank 1 holds its lock from then on and does nothing: rank 0 waits for it.
    with pytest.raises(TimeoutError, match="see whether all 2 ranks run"):
        harvest_in_ranks(
            settle(pair, **OPTIONS),
            corpus,
            tmp_path,
            ranks=Ranks(0, 2),
            patience=0.1,
            progress=False,
        )
    # It ends without its blocks: now it is named as dead.
    lock.release()
    monkeypatch.undo()
    (tmp_path / "rank1.lock").unlink()
    lock_later = RankLock(tmp_path, 1)

    def look_after_it_ended(path: Path) -> bool:
        lock_later.acquire(2)
        lock_later.release()
        return is_locked(path)

    monkeypatch.setattr("lrt_lens.moments._scale_out.is_locked", look_after_it_ended)
    with pytest.raises(ChildProcessError, match="rank 1 of 2 ended with "):
        harvest_in_ranks(
            settle(pair, **OPTIONS),
            corpus,
            tmp_path,
            ranks=Ranks(0, 2),
            patience=60.0,
            progress=False,
        )


def test_ranks_that_see_different_models_are_refused(
    pair: ModelPair, load: Any, corpus: list[str], tmp_path: Path
) -> None:
    other = ModelPair(pair.source, load("llama", d=24, layers=3, seed=8))
    with pytest.raises(TimeoutError):
        harvest_in_ranks(
            settle(pair, **OPTIONS),
            corpus,
            tmp_path,
            ranks=Ranks(0, 2),
            patience=0.1,
            progress=False,
        )
    with pytest.raises(
        MismatchError,
        match=r"target.config_hash was '\w+' and is '\w+'; "
        r"give the same arguments \(every rank the same models\)",
    ):
        harvest_in_ranks(
            settle(other, **OPTIONS), corpus, tmp_path, ranks=Ranks(1, 2), progress=False
        )


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (5, 8, 1)),
        ({"RANK": "2", "WORLD_SIZE": "3"}, (2, 3, 2)),
    ],
)
def test_ranks_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[int, ...]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ranks = Ranks.of_environment()
    assert (ranks.rank, ranks.count, ranks.local) == expected
    assert ranks.device("cuda") == ("cuda" if expected[1] == 1 else f"cuda:{expected[2]}")
    assert ranks.device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "two", "WORLD_SIZE": "3"}, "RANK='two'; expected a number"),
        ({"RANK": "3", "WORLD_SIZE": "3"}, "expected a rank from 0 to 2"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        Ranks.of_environment()


def test_every_block_is_one_processes(pair: ModelPair) -> None:
    shares = [Share((shard, 3), (rank, 4)) for shard in range(3) for rank in range(4)]
    taken = np.array([[share.takes(index) for share in shares] for index in range(240)])
    assert (taken.sum(1) == 1).all()
    assert (taken.sum(0) == 20).all()
    with pytest.raises(ValueError, match="rank is 4 of 4; expected 0 to 3"):
        Share(rank=(4, 4))


# ------------------------------------------------------------------------------------------- shards


@pytest.fixture(scope="module")
def shard_files(
    pair: ModelPair, corpus: list[str], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    return [
        harvest(pair, corpus, shard=(i, 3), progress=False, **OPTIONS).save(
            folder / shard_name((i, 3))
        )
        for i in range(3)
    ]


def test_shards_merge_to_the_whole_in_any_order(
    shard_files: list[Path], whole: CrossMoments
) -> None:
    assert_same(merge_shards(shard_files), whole)
    assert_same(merge_shards([shard_files[k] for k in (2, 0, 1)]), whole)
    assert [path.name for path in shard_files] == [
        f"moments-{i}-of-3.safetensors" for i in range(3)
    ]


def test_more_shards_than_blocks_leave_some_empty_and_merge_all_the_same(
    pair: ModelPair, corpus: list[str], tmp_path: Path
) -> None:
    options = OPTIONS | {"block_rows": 2000}
    expected = harvest(pair, corpus, progress=False, **options)
    n = len(list(iterate_blocks(corpus, pair.source, settle(pair, **options).plan)))
    shards = [
        harvest(pair, corpus, shard=(i, n + 2), progress=False, **options) for i in range(n + 2)
    ]
    assert [shard.n_tokens for shard in shards[n:]] == [0, 0]
    assert_same(
        merge_shards([shard.save(tmp_path / f"{i}.safetensors") for i, shard in enumerate(shards)]),
        expected,
    )


def test_shards_about_other_shifts_are_moved(
    shard_files: list[Path], whole: CrossMoments, tmp_path: Path
) -> None:
    """Shards have different shifts if the machines that harvested them round differently."""
    moved = CrossMoments.load(shard_files[1])
    moved.source = {
        hook: side.shifted(side.shift + 1e-3, moved.n) for hook, side in moved.source.items()
    }
    for (s, t), cross in moved.cross.items():
        moved.cross[s, t] = cross - 1e-3 * moved.target[t].total[:, None, :]
    for (s, t), cross in moved.cross_null.items():
        total = moved.target[t].total
        moved.cross_null[s, t] = (
            cross - 1e-3 * torch.stack([total[:5].sum(0), total[5:].sum(0)])[:, None, :]
        )
    found = merge_shards(
        [shard_files[0], moved.save(tmp_path / "moved.safetensors"), shard_files[2]]
    )
    for name, tensor in found.tensors().items():
        expected = whole.tensors()[name]
        assert float((tensor - expected).norm()) <= 1e-9 * float(expected.norm()), name


def test_a_shard_resumes_from_its_own_checkpoint(
    pair: ModelPair, corpus: list[str], shard_files: list[Path], tmp_path: Path
) -> None:
    class Stop(Exception):  # noqa: N818 (control flow, no error)
        pass

    def stop(block: Any, *_: Any) -> None:
        if block.index > 20:
            raise Stop

    with pytest.raises(Stop):
        harvest(
            pair,
            corpus,
            shard=(1, 3),
            checkpoint=tmp_path,
            on_block=stop,
            progress=False,
            **OPTIONS,
        )
    assert_same(
        harvest(pair, corpus, shard=(1, 3), checkpoint=tmp_path, progress=False, **OPTIONS),
        CrossMoments.load(shard_files[1]),
    )


def test_missing_and_repeated_shards_are_named(shard_files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"shard\(s\) 1, 2 of 3 are missing; give all 3 files"):
        merge_shards(shard_files[:1])
    with pytest.raises(MismatchError, match=r"are both shard 1 of 3; give each shard once"):
        merge_shards([*shard_files, shard_files[1]])
    with pytest.raises(ValueError, match="there is no shard"):
        merge_shards([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "by seed: '0' and '1'"),
        ({"n_tokens": 5000}, "by n_tokens: 'None' and '5000'"),
        ({"target_layers": [1, 2]}, "by pairs: "),
        ({"moment_dtype": "float32"}, "by moment_dtype: 'float64' and 'float32'"),
        ({"documents": "reversed"}, "by stream: not the same documents in the same order"),
        ({"shard": (1, 4)}, "is one of 4 shards, .* one of 3"),
        ({"shard": None}, "holds no shard but whole moments"),
    ],
)
def test_shards_of_different_runs_are_refused_by_what_differs(
    pair: ModelPair,
    corpus: list[str],
    shard_files: list[Path],
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    options = OPTIONS | {"shard": (1, 3)} | change
    documents = corpus[::-1] if options.pop("documents", None) else corpus
    other = harvest(pair, documents, progress=False, **options).save(tmp_path / "other.safetensors")
    with pytest.raises(MismatchError, match=message):
        merge_shards([shard_files[0], other, shard_files[2]])


def test_shards_of_other_models_are_refused(
    pair: ModelPair, load: Any, corpus: list[str], shard_files: list[Path], tmp_path: Path
) -> None:
    other = ModelPair(pair.source, load("llama", d=32, layers=3, seed=2))
    path = harvest(other, corpus, shard=(1, 3), progress=False, **OPTIONS).save(
        tmp_path / "other.safetensors"
    )
    with pytest.raises(MismatchError, match="the target model of .*other.safetensors"):
        merge_shards([shard_files[0], path, shard_files[2]])


def test_widths_that_differ_are_refused(
    shard_files: list[Path], pair: ModelPair, load: Any, corpus: list[str]
) -> None:
    """Moments of a user's own activations have no models that could be compared."""
    wide = ModelPair(pair.source, load("llama", d=32, layers=3, seed=2))
    moments = [harvest(models, corpus, progress=False, **OPTIONS) for models in (pair, wide)]
    for found in moments:
        found.provenance = replace(
            found.provenance, source=None, target=None, corpus="", n_documents=0
        )
    with pytest.raises(MismatchError, match="has 32 dimensions; these moments were begun with 24"):
        moments[0].merge(moments[1])


def test_moments_without_a_row_merge_with_any(whole: CrossMoments, tmp_path: Path) -> None:
    empty = CrossMoments(
        whole.pairs,
        whole.token_hook,
        whole.moment_dtype,
        whole.null,
        replace(whole.provenance, n_documents=0, corpus=""),
    )
    empty = CrossMoments.load(empty.save(tmp_path / "empty.safetensors"))
    for merged in (empty.merge(whole), whole.merge(empty)):
        assert_same(merged, whole)


def test_a_shard_that_was_cut_short_is_named(shard_files: list[Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(shard_files[1].read_bytes()[:4000])
    with pytest.raises(FileFormatError, match="cut.safetensors' is truncated"):
        merge_shards([shard_files[0], cut, shard_files[2]])


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/3", "1/0"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected i/N with i from 0 to N - 1"):
        parse_shard(text)


# ------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def folders(
    build_hf: Any, tokenizer: Any, corpus: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a folder of two models and enough documents to kill a process while it reads them."""
    folder = tmp_path_factory.mktemp("scale-out")
    for name, d, seed in (("source", 16, 1), ("target", 24, 2)):
        build_hf("llama", d=d, layers=3, seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rng = random.Random(3)
    texts = [" ".join(rng.choice(corpus) for _ in range(4)) for _ in range(800)]
    (folder / "documents.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    (folder / "few.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in corpus))
    return folder


def arguments(folders: Path, out: Path, *more: str, documents: str = "few.jsonl") -> list[str]:
    models = ["--source", str(folders / "source"), "--target", str(folders / "target")]
    options = [
        "--documents",
        str(folders / documents),
        "--out",
        str(out),
        "--context-length",
        "32",
        "--moment-dtype",
        "float64",
    ]
    return ["fit", *models, *options, "--n-tokens", "1000000", "--no-progress", *more]


def test_fit_shards_and_merge_write_what_fit_writes(
    folders: Path, tmp_path: Path, capsys: Any
) -> None:
    main(arguments(folders, tmp_path / "whole"))
    for i in range(2):
        main(arguments(folders, tmp_path / "jobs", "--shard", f"{i}/2"))
    files = [tmp_path / "jobs" / f"moments-{i}-of-2.safetensors" for i in range(2)]
    options = [tmp_path / "jobs" / f"run-{i}-of-2.toml" for i in range(2)]
    assert sorted((tmp_path / "jobs").iterdir()) == [*files, *options]
    main(["merge", str(tmp_path / "merged"), *map(str, files), "--no-progress"])
    found, expected = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("merged", "whole")
    )
    for ours, theirs in zip(found["grid"], expected["grid"], strict=True):
        assert ours["r2"] == pytest.approx(theirs["r2"], rel=1e-9)
        assert (ours["source_hook"], ours["target_hook"]) == (
            theirs["source_hook"],
            theirs["target_hook"],
        )
    assert found["pair"] == expected["pair"] == {"source": "source", "target": "target"}
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }
    assert_same(
        CrossMoments.load(tmp_path / "merged" / "moments.safetensors"),
        CrossMoments.load(tmp_path / "whole" / "moments.safetensors"),
    )
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["merge", str(tmp_path / "merged"), str(files[1])])
    assert "error: shard(s) 0 of 2 are missing; give all 2 files" in capsys.readouterr().err


def run_rank(out: Path, environment: dict[str, str], command: list[str]) -> None:
    """Run the command line in a process of its own; its messages go to ``messages{rank}.txt``."""
    os.environ |= environment
    with (out.parent / f"messages{environment['RANK']}.txt").open("w") as messages:
        sys.stdout = sys.stderr = messages
        main(command)


@pytest.fixture(scope="module")
def launch(folders: Path) -> Callable[..., Any]:
    """Return ``launch(out, rank, count)``, which starts the command line as a rank.

    A server, which has imported everything once, forks the processes: they start at once.
    """
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformer_lens", "transformers.models.llama"])

    def start(out: Path, rank: int, count: int, launch: str = "none") -> Any:
        environment = {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
        environment |= {"TORCHELASTIC_RUN_ID": launch, "OMP_NUM_THREADS": "1"}
        command = arguments(folders, out, documents="documents.jsonl")
        command += ["--checkpoint-every", "0.1"]
        process = context.Process(target=run_rank, args=(out, environment, command))
        process.start()
        return process

    return start


@pytest.mark.slow
@pytest.mark.minutes
def test_twenty_kills_at_random_moments_change_nothing(
    launch: Callable[..., Any], folders: Path, tmp_path: Path
) -> None:
    """Twenty kills of real processes: of one rank or all, at random times and numbers of ranks."""
    rng, out, killed, caught = random.Random(7), tmp_path / "killed", 0, 0
    main(arguments(folders, tmp_path / "whole", documents="documents.jsonl"))
    while killed < 20:
        count = rng.choice([1, 2, 2, 3])
        processes = [launch(out, rank, count) for rank in range(count)]
        # Around the time when models are loaded and blocks arrive: before, during and between
        # checkpoints.
        _wait_for_a_lock(out / "checkpoint", processes)
        time.sleep(rng.uniform(0.0, 1.5))
        victims = [rng.randrange(count)] if count > 1 and rng.random() < 0.4 else list(range(count))
        for rank in victims:
            caught += processes[rank].is_alive()
            processes[rank].kill()
            killed += 1
        if len(victims) < count:
            time.sleep(rng.uniform(0.0, 1.0))
        for process in processes:
            process.kill()
        end(processes)
    assert caught >= 15, "most kills must have met a living process"
    # With a name of the launch: rank 1 may be late, and must then see that all is over.
    last = [launch(out, rank, 2, launch="last") for rank in range(2)]
    assert end(last) == [0, 0], [path.read_text() for path in tmp_path.glob("messages*.txt")]
    found = CrossMoments.load(out / "moments.safetensors")
    assert_same(
        replace(found, provenance=replace(found.provenance, launch="")),
        CrossMoments.load(tmp_path / "whole" / "moments.safetensors"),
    )
    assert not (out / "checkpoint").exists(), "a finished run leaves no checkpoint"


def _wait_for_a_lock(folder: Path, processes: list[Any]) -> None:
    before = {path: path.stat().st_mtime for path in folder.glob("rank*.lock")}
    while all(process.is_alive() for process in processes):
        if any(path.stat().st_mtime != before.get(path) for path in folder.glob("rank*.lock")):
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_torchrun(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "lrt_lens",
        *arguments(folders, out),
    ]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    main(arguments(folders, tmp_path / "whole"))
    found = CrossMoments.load(out / "moments.safetensors")
    # The name of the launch is the only difference.
    one = replace(found, provenance=replace(found.provenance, launch=""))
    assert_same(one, CrossMoments.load(tmp_path / "whole" / "moments.safetensors"))
    assert lrt.Stitch.from_pretrained(out / "stitch").source_hook.startswith("blocks.")
    assert sorted(path.name for path in out.iterdir()) == [
        "moments.safetensors",
        "report.html",
        "results.json",
        "run.toml",
        "stitch",
    ]
