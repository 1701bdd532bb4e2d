"""Growth of a harvest's memory with the number of tokens.

What grows is memory that objects hold. With its default settings, glibc raises the size from which
a block is mapped on its own to that of the largest block that was freed, and keeps smaller ones in
arenas that fragment: resident memory then grows with time, by the history of allocations. The
processes here run with that size fixed (``MALLOC_MMAP_THRESHOLD_``), so that what is freed returns
to the system; growth with the default settings is measured beside it, in the raw values.

Every measurement is a process of its own: ``python -m benchmarks.memory FOLDER N_TOKENS THREADS``
loads a pair, runs one batch (which starts thread pools and workspaces), reads its resident memory,
harvests ``N_TOKENS`` from a generator, and prints its peak memory.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.measuring import Measurement, Settings

_INTERVAL = 0.002
"""Seconds between two readings of the resident memory."""
_REPETITIONS = 2
_RETURNED = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Environment in which glibc returns freed blocks to the system at once."""


def peak_memory_10x_tokens(settings: Settings) -> Measurement:
    """Memory growth of a harvest over 10 n tokens ÷ memory growth over n tokens.

    Memory growth is the peak resident memory minus the resident memory after loading; the harvest
    takes all pairs. Freed memory returns to the system, see the module docstring.
    """
    from benchmarks.models import SMALL, TINY, random_models

    n_tokens = 2_000 if settings.quick else 32_000
    with random_models(TINY if settings.quick else SMALL, settings.seed) as folder:
        runs = [
            (_measure(folder, 10 * n_tokens, settings), _measure(folder, n_tokens, settings))
            for _ in range(settings.repetitions(_REPETITIONS))
        ]
        by_default = [_measure(folder, n, settings, {}) for n in (10 * n_tokens, n_tokens)]
    ten, one = zip(*runs, strict=True)
    ratios = [a["growth_mib"] / b["growth_mib"] for a, b in runs]
    return Measurement(
        name="peak_memory_10x_tokens",
        value=statistics.median(ratios),
        target=1.05,
        at_most=True,
        what="(Peak resident memory − memory after loading) of a harvest of all pairs over "
        f"{10 * n_tokens:,} tokens ÷ the same over {n_tokens:,}, documents from a generator, a "
        "fresh process each, in which freed memory returns to the system.",
        raw={
            "ten_times": list(ten),
            "one_time": list(one),
            "ratios": ratios,
            "default_allocator": by_default,
            "ratio_default_allocator": by_default[0]["growth_mib"] / by_default[1]["growth_mib"],
        },
    )


def _measure(
    folder: Path, n_tokens: int, settings: Settings, environment: dict[str, str] | None = None
) -> dict[str, float]:
    """Memory of a harvest in a new process, MiB; by default freed memory returns to the system."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory",
        str(folder),
        str(n_tokens),
        str(settings.threads),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
        env=os.environ | (_RETURNED if environment is None else environment),
    )
    if done.returncode:
        raise RuntimeError(
            f"the process that harvests {n_tokens:,} tokens failed:\n{done.stderr[-2000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


class PeakMemory:
    """Samples this process's resident memory while its ``with`` block runs."""

    def __init__(self) -> None:
        self.before = self.peak = resident_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self.peak = max(self.peak, resident_memory())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()


def resident_memory() -> int:
    """Resident memory of this process, bytes."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError as error:
        raise RuntimeError(
            "peak_memory_10x_tokens reads /proc/self/statm, which only Linux has; run it on Linux"
        ) from error
    return pages * os.sysconf("SC_PAGE_SIZE")


def _harvest(folder: Path, n_tokens: int, threads: int) -> dict[str, float]:
    """Memory of a harvest in this process, MiB."""
    import torch

    from benchmarks.measuring import check_threads
    from benchmarks.models import random_documents
    from lrt_lens.models import ModelPair
    from lrt_lens.moments import harvest

    torch.set_num_threads(threads)
    pair = ModelPair.load(str(folder / "source"), str(folder / "target"))
    check_threads(threads)
    tokens = torch.zeros(16, 256, dtype=torch.long)
    for model in (pair.source, pair.target):
        model.capture(tokens, -1)
    documents = random_documents(folder, 2 * n_tokens, (100, 300), seed=1)
    gc.collect()
    with PeakMemory() as memory:
        harvest(pair, documents, n_tokens=n_tokens, null="sketch", progress=False)
    mib = 2**20
    return {
        "after_loading_mib": memory.before / mib,
        "peak_mib": memory.peak / mib,
        "growth_mib": (memory.peak - memory.before) / mib,
    }


if __name__ == "__main__":
    print(json.dumps(_harvest(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
