"""Speed and memory of a harvest of kept states, which no model computes while it runs.

Both sides are folders as vLLM writes them, of random states in bfloat16: ``hidden_states`` [token,
layer, d] and ``token_ids``, one file of 256 tokens and three layers per sequence. One hook pair is
harvested.

Every measurement of memory is a process of its own: ``python -m benchmarks.states FOLDER THREADS``
harvests the folders ``source`` and ``target`` in ``FOLDER`` and prints its peak memory. That is
``VmHWM``; ``ru_maxrss`` of a process that another one started is at least the memory of that one.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file

from benchmarks.measuring import Measurement, Settings, seconds
from lrt_lens.bundled import demo_pair
from lrt_lens.moments import CrossMoments
from lrt_lens.moments.states import StateFolder, harvest_states

_WIDTHS = {"source": 512, "target": 1024}
_TINY = {"source": 32, "target": 48}
_LAYER_IDS = (3, 6, 9)
_N_LAYERS, _LAYER = 12, 5
"""Blocks of both models, and the one whose output is harvested: layer id 6."""
_N_TOKENS = 256
_MEMORY_BLOCK_ROWS = 1024
"""Rows per block where memory is measured, so that few files fill blocks of every fold."""


def states_memory_10x_files(settings: Settings) -> Measurement:
    """Peak memory of a harvest of 10 n files a side ÷ peak memory of one of n files."""
    n_files = 60
    with _folders(10 * n_files, settings) as ten, _folders(n_files, settings) as one:
        runs = [
            (_measure(ten, settings), _measure(one, settings))
            for _ in range(settings.repetitions(3))
        ]
    ratios = [a["peak_mib"] / b["peak_mib"] for a, b in runs]
    growths = [a["growth_mib"] / b["growth_mib"] for a, b in runs]
    return Measurement(
        name="states_memory_10x_files",
        value=statistics.median(ratios),
        target=1.05,
        at_most=True,
        what=f"Peak resident memory of harvest_states of {10 * n_files} files a side ÷ the same of "
        f"{n_files} files, one hook pair, sequences as windows, a fresh process each.",
        raw={
            "ten_times": [a for a, _ in runs],
            "one_time": [b for _, b in runs],
            "ratios": ratios,
            "ratios_of_growth": growths,
        },
        notes=(
            "(peak memory − memory after the imports), ten times the files ÷ once: "
            f"{statistics.median(growths):.3f}",
        ),
    )


def states_throughput_over_reading(settings: Settings) -> Measurement:
    """Seconds of reading all files ÷ seconds of `harvest_states` beyond its products."""
    n_files = 60 if settings.quick else 300
    with _folders(n_files, settings) as folder:
        files = _Files(tuple(sorted(folder.glob("*/*.safetensors"))))
        _harvest(folder)
        rows = _recorded(folder)
        by_cache = {
            name: [_time(folder, files, rows, prepare) for _ in range(settings.repetitions(3))]
            for name, prepare in (("disk", files.evict), ("page_cache", files.load))
        }
        n_bytes = files.n_bytes
    ratios = {name: [one.ratio for one in timed] for name, timed in by_cache.items()}
    median = {name: statistics.median(values) for name, values in ratios.items()}
    whole, apart, plain, bound, bound_in_memory, products = (
        statistics.median(ratio(one) for one in by_cache[where])
        for where, ratio in (
            ("disk", lambda one: one.load_file / one.harvest),
            ("disk", lambda one: one.load_file / (one.harvest - one.rows_in_memory)),
            ("disk", lambda one: one.read_bytes / (one.harvest - one.products)),
            ("disk", lambda one: one.bound / one.harvest),
            ("page_cache", lambda one: one.bound / one.harvest),
            ("disk", lambda one: one.rows_in_memory / one.load_file),
        )
    )
    return Measurement(
        name="states_throughput_over_reading",
        value=median["disk"],
        target=0.8,
        at_most=False,
        what=f"Seconds in which safetensors' load_file reads {n_files} files a side (all tensors, "
        "copied, because they are mapped) ÷ seconds of harvest_states of one hook pair from them "
        "minus those that it spends in CrossMoments.start and add_block. The files come from the "
        "disk: they are dropped from the system's page cache before each side is timed.",
        raw={
            "files_per_side": n_files,
            "threads": settings.threads,
            "bytes": n_bytes,
            "ratios": ratios,
            **{name: [asdict(one) for one in timed] for name, timed in by_cache.items()},
        },
        notes=(
            f"with the files in the page cache: {median['page_cache']:.2f}",
            f"from the disk, with Path.read_bytes in place of load_file: {plain:.2f}; ÷ the whole "
            f"harvest, products included: {whole:.2f}; with the products measured apart, on rows "
            f"held in memory: {apart:.2f}",
            "the larger of reading (load_file) and of the products of the same rows held in memory"
            f" ÷ the whole harvest: {bound:.2f} from the disk, {bound_in_memory:.2f} with the"
            f" files in the page cache; these products take {products:.1f} times as long as"
            " reading from the disk",
        ),
    )


# ----------------------------------------------------------------------------------------- folders


@contextmanager
def _folders(n_files: int, settings: Settings) -> Iterator[Path]:
    """A temporary folder with the states of two models for the same random tokens."""
    widths = _TINY if settings.quick else _WIDTHS
    with TemporaryDirectory(prefix="lrt-lens-bench-") as name:
        for role, d in widths.items():
            folder = Path(name) / role
            folder.mkdir()
            generator = torch.Generator().manual_seed(settings.seed)
            for number in range(n_files):
                # Ids of the bundled tokenizer, which are no special tokens.
                ids = torch.randint(100, 1000, (_N_TOKENS,), generator=generator)
                noise = torch.Generator().manual_seed(number)
                states = torch.randn(_N_TOKENS, len(_LAYER_IDS), d, generator=noise)
                save_file(
                    {"hidden_states": states.bfloat16(), "token_ids": ids},
                    folder / f"{number}.safetensors",
                )
        yield Path(name)


@cache
def _tokenizer() -> Any:
    return demo_pair().source.tokenizer


def _harvest(folder: Path, **options: Any) -> CrossMoments:
    source, target = (
        StateFolder(folder / role, layer_ids=_LAYER_IDS, n_layers=_N_LAYERS)
        for role in ("source", "target")
    )
    return harvest_states(
        source,
        target,
        tokenizers=_tokenizer(),
        n_tokens=None,
        source_layers=[_LAYER],
        target_layers=[_LAYER],
        progress=False,
        **options,
    )


@dataclass(frozen=True)
class _Files:
    """The files of both sides, read or dropped from the system's page cache."""

    paths: Sequence[Path]

    @property
    def n_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    def load(self) -> None:
        """Read all tensors. `load_file` maps them, and a copy reads them."""
        for path in self.paths:
            for tensor in load_file(path).values():
                tensor.clone()

    def read(self) -> None:
        """Read all bytes."""
        for path in self.paths:
            path.read_bytes()

    def evict(self) -> None:
        """Drop the files from the page cache; without effect on a file system in memory."""
        for path in self.paths:
            number = os.open(path, os.O_RDONLY)
            try:
                os.fsync(number)
                os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(number)


# ------------------------------------------------------------------------------------------- speed


@dataclass(frozen=True)
class _Seconds:
    """Seconds of one repetition."""

    load_file: float
    read_bytes: float
    harvest: float
    products: float
    """Part of ``harvest`` that was spent in `CrossMoments.start` and ``add_block``."""
    rows_in_memory: float
    """`CrossMoments.add_block` of the same blocks, held in memory."""

    @property
    def ratio(self) -> float:
        return self.load_file / (self.harvest - self.products)

    @property
    def bound(self) -> float:
        """Seconds below which no harvest can be that reads and multiplies at the same time."""
        return max(self.load_file, self.rows_in_memory)


@dataclass(frozen=True)
class _Recorded:
    """Blocks of a harvest with their rows, and what its moments are of."""

    blocks: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]
    """Arguments and keywords of `CrossMoments.add_block`."""
    empty: Callable[[], CrossMoments]

    def add(self) -> CrossMoments:
        """Return moments of the blocks."""
        moments = self.empty()
        for arguments, keywords in self.blocks:
            moments.add_block(*arguments, **keywords)
        moments.finish()
        return moments


def _time(folder: Path, files: _Files, rows: _Recorded, prepare: Callable[[], None]) -> _Seconds:
    """Time everything once; ``prepare`` is called before each side that reads the files."""
    with _products() as products:
        prepare()
        harvest = seconds(partial(_harvest, folder))
    prepare()
    load = seconds(files.load)
    prepare()
    read = seconds(files.read)
    return _Seconds(load, read, harvest, sum(products), seconds(rows.add))


@contextmanager
def _products() -> Iterator[list[float]]:
    """A list that fills with the seconds of every `CrossMoments` `start` and ``add_block``."""
    taken: list[float] = []

    def timed(method: Callable[..., None]) -> Callable[..., None]:
        def call(moments: CrossMoments, *arguments: Any, **keywords: Any) -> None:
            start = time.perf_counter()
            method(moments, *arguments, **keywords)
            taken.append(time.perf_counter() - start)

        return call

    with (
        patch.object(CrossMoments, "start", timed(CrossMoments.start)),
        patch.object(CrossMoments, "add_block", timed(CrossMoments.add_block)),
    ):
        yield taken


def _recorded(folder: Path) -> _Recorded:
    """Return the blocks of a harvest with their rows."""
    blocks: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    add_block = CrossMoments.add_block

    def record(moments: CrossMoments, *arguments: Any, **keywords: Any) -> None:
        blocks.append((arguments, keywords))
        add_block(moments, *arguments, **keywords)

    with patch.object(CrossMoments, "add_block", record):
        moments = _harvest(folder)
    kind = (moments.pairs, moments.token_hook, moments.moment_dtype, moments.null)
    return _Recorded(blocks, lambda: CrossMoments(*kind))


# ------------------------------------------------------------------------------------------ memory


def _measure(folder: Path, settings: Settings) -> dict[str, float]:
    """Memory of a harvest in a new process, MiB."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.states", str(folder), str(settings.threads)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the process that harvests states failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _harvest_in_process(folder: Path, threads: int) -> dict[str, float]:
    """Memory of a harvest in this process, MiB."""
    torch.set_num_threads(threads)
    _tokenizer()
    before = _status_mib("VmRSS")
    _harvest(folder, block_rows=_MEMORY_BLOCK_ROWS)
    peak = _status_mib("VmHWM")
    return {"after_imports_mib": before, "peak_mib": peak, "growth_mib": peak - before}


def _status_mib(name: str) -> float:
    """A number of kB from /proc/self/status, in MiB."""
    status = Path("/proc/self/status")
    if not status.exists():
        raise RuntimeError(
            "states_memory_10x_files reads /proc/self/status, which only Linux has; run it on Linux"
        )
    (line,) = (one for one in status.read_text().splitlines() if one.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(_harvest_in_process(Path(sys.argv[1]), int(sys.argv[2]))))
