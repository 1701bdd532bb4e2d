"""The speed of two ranks, and the cost of an interrupted harvest, in real processes.

``python -m benchmarks.scaling FOLDER OUT RANK COUNT N_TOKENS EVERY SECONDS`` runs one rank, with
one thread on a core of its own. It loads the pair in ``FOLDER`` and harvests all pairs into
checkpoints in ``OUT``, for ``SECONDS`` seconds after its first block, or to the end if that is 0.
It prints the time of its start, the time at which each block was added to the moments, and the rows
of each block.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measuring import Measurement, Settings

_LENGTHS = (256, 600)
_MANY = 10**9
"""More tokens than a rank can read in the time of a benchmark."""


class _TimeIsUp(Exception):  # noqa: N818 (control flow, no error)
    """Raised to end a rank after its seconds."""


def two_rank_speedup(settings: Settings) -> Measurement:
    """Rows per second of two ranks on two cores ÷ rows per second of one rank on one core."""
    from benchmarks.models import PYTHIA, TINY, random_models

    seconds = 0.5 if settings.quick else 150.0
    with (
        random_models(TINY if settings.quick else PYTHIA, settings.seed) as folder,
        TemporaryDirectory(prefix="lrt-lens-bench-") as name,
    ):
        ranks = {
            count: _run_ranks(folder, Path(name) / f"of-{count}", count, seconds)
            for count in (1, 2)
        }
        rates = {count: sum(map(_rate, results)) for count, results in ranks.items()}
        merging = _merge_seconds(folder, Path(name) / "of-2")
    return Measurement(
        name="two_rank_speedup",
        value=rates[2] / rates[1],
        target=1.75,
        at_most=False,
        what="Rows per second of a harvest of all pairs by two ranks, each pinned to a core and "
        f"one thread, over {seconds:.0f} s between a first and a last block ÷ the same of one "
        "rank on one core; start-up and merging are in raw.",
        raw={
            "rows_per_second_two_ranks": rates[2],
            "rows_per_second_one_rank": rates[1],
            "rows_per_second_by_rank": [_rate(rank) for rank in ranks[2]],
            "blocks_by_rank": [len(rank["times"]) for rank in ranks[2]],
            "start_up_seconds": [
                rank["times"][0] - rank["start"] for rank in [*ranks[1], *ranks[2]]
            ],
            "merge_seconds": merging,
            "window_seconds": [
                rank["times"][-1] - rank["times"][0] for rank in [*ranks[1], *ranks[2]]
            ],
        },
    )


def resume_cost(settings: Settings) -> Measurement:
    """Seconds of a harvest that is killed and started again ÷ seconds without the kill.

    Both starts of the interrupted harvest are included.
    """
    from benchmarks.models import SMALL, TINY, random_models

    every, target_seconds = 0.2 if settings.quick else 12.0, 140.0
    with (
        random_models(TINY if settings.quick else SMALL, settings.seed) as folder,
        TemporaryDirectory(prefix="lrt-lens-bench-") as name,
    ):
        n_tokens = 20_000
        if not settings.quick:
            [trial] = _run_ranks(folder, Path(name) / "trial", 1, 15.0)
            n_tokens = int(_rate(trial) * target_seconds)
        start = time.perf_counter()
        _finish(_launch(folder, Path(name) / "whole", 0, 1, n_tokens, every, 0))
        whole = time.perf_counter() - start
        start = time.perf_counter()
        victim = _launch(folder, Path(name) / "killed", 0, 1, n_tokens, every, 0)
        time.sleep(0.55 * whole)
        victim.kill()
        victim.communicate()
        before_kill = time.perf_counter() - start
        resumed = _finish(_launch(folder, Path(name) / "killed", 0, 1, n_tokens, every, 0))
        interrupted = time.perf_counter() - start
    return Measurement(
        name="resume_cost",
        value=interrupted / whole,
        target=1.2,
        at_most=True,
        what=f"Time of a harvest of {n_tokens:,} tokens with a checkpoint every {every:g} s "
        f"({whole / every:.1f} intervals) that is killed once at 55% and started again, process "
        "start and model loading included ÷ the same without the kill.",
        raw={
            "uninterrupted_seconds": whole,
            "interrupted_seconds": interrupted,
            "seconds_before_the_kill": before_kill,
            "rows": n_tokens,
            "rows_harvested_after_the_kill": sum(resumed["rows"]),
            "start_up_seconds": resumed["times"][0] - resumed["start"],
        },
    )


def _run_ranks(folder: Path, out: Path, count: int, seconds: float) -> list[dict[str, Any]]:
    """Results of several ranks that run at the same time."""
    processes = [_launch(folder, out, rank, count, _MANY, 3600.0, seconds) for rank in range(count)]
    return [_finish(process) for process in processes]


def _launch(
    folder: Path, out: Path, rank: int, count: int, n_tokens: int, every: float, seconds: float
) -> subprocess.Popen:
    """A started process of one rank."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.scaling",
        *map(str, (folder, out, rank, count, n_tokens, every, seconds)),
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    where = Path(__file__).parent.parent
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=where,
    )


def _finish(process: subprocess.Popen) -> dict[str, Any]:
    """The result of a rank, once its process has ended."""
    output, error = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a rank failed:\n{error[-2000:]}")
    return json.loads(output.splitlines()[-1])


def _rate(rank: dict[str, Any]) -> float:
    """Rows per second from the first block to the last one.

    The rows of the last block are not counted: a time is noted before its block is added.
    """
    times, rows = rank["times"], rank["rows"]
    if len(times) < 3:
        raise RuntimeError(f"a rank had only {len(times)} blocks, expected 3; give more seconds")
    return sum(rows[:-1]) / (times[-1] - times[0])


def _merge_seconds(folder: Path, out: Path) -> float:
    """Seconds that rank 0 needs to add the file of the other rank to its own moments."""
    from lrt_lens.data._windows import Share
    from lrt_lens.models import ModelPair
    from lrt_lens.moments._checkpoint import Checkpoint, add_file, read_rank_files

    run = _settle(ModelPair.load(str(folder / "source"), str(folder / "target")), _MANY)
    files = read_rank_files(out, run.arguments)
    moments = run.begin()
    with Checkpoint(out, run.arguments, Share(rank=(0, 2))) as opened:
        opened.resume(moments, run.models.source.device)
    start = time.perf_counter()
    for file in files:
        if file.rank:
            add_file(moments, file)
    return time.perf_counter() - start


def _settle(pair: Any, n_tokens: int) -> Any:
    """The settings of the harvest of all pairs, checked against the models."""
    from lrt_lens.moments._harvesting import settle

    return settle(pair, n_tokens=n_tokens, null="sketch")


def _rank(
    folder: Path, out: Path, rank: int, count: int, n_tokens: int, every: float, seconds: float
) -> dict[str, Any]:
    """Times and rows of the blocks of one rank, which this process runs."""
    start = time.time()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    import torch

    from benchmarks.measuring import check_threads
    from benchmarks.models import random_documents
    from lrt_lens.data._windows import Share
    from lrt_lens.models import ModelPair
    from lrt_lens.moments._checkpoint import Checkpoint

    torch.set_num_threads(1)
    pair = ModelPair.load(str(folder / "source"), str(folder / "target"))
    check_threads(1)
    times: list[float] = []
    rows: list[int] = []

    def note(block: Any, *_: Any) -> None:
        times.append(time.time())
        rows.append(block.n_rows)
        if seconds and times[-1] - times[0] > seconds:
            raise _TimeIsUp

    run, share = _settle(pair, n_tokens), Share(rank=(rank, count))
    documents = random_documents(folder, 2 * n_tokens, _LENGTHS, seed=1)
    try:
        with Checkpoint(out, run.arguments, share, every=every) as opened:
            run.harvest(documents, share, checkpoint=opened, on_block=note, progress=False)
    except _TimeIsUp:
        pass
    return {"start": start, "times": times, "rows": rows}


if __name__ == "__main__":
    folder, out, *numbers = sys.argv[1:]
    rank, count, n_tokens = map(int, numbers[:3])
    print(
        json.dumps(_rank(Path(folder), Path(out), rank, count, n_tokens, *map(float, numbers[3:])))
    )
