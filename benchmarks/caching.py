"""Speed of an activation cache, compared with plain safetensors files of the same bytes."""

import shutil
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.measuring import Measurement, Settings, Timings, alternate
from benchmarks.models import PYTHIA, TINY
from lrt_lens.data import N_PARTS, Block
from lrt_lens.data._windows import CutDocument, Window
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.moments import ActivationCache, Provenance
from lrt_lens.moments.cache._manifest import Manifest
from lrt_lens.moments.cache._writer import SHARD_BYTES, CacheWriter

_BATCH, _WINDOW = 4096, 256
_REPETITIONS = 5
_KINDS = ("write", "read_in_order", "read_shuffled")
"""The ratios of which the least is the result."""


def cache_write_over_safetensors(settings: Settings) -> Measurement:
    """Speed of an `ActivationCache` ÷ speed of plain safetensors.

    The result is the least of the ratios for writing, reading in order and reading shuffled.
    """
    shape = TINY if settings.quick else PYTHIA
    n_rows = 16_384 if settings.quick else 262_144
    widths = (shape.source.d_model, shape.target.d_model)
    generator = torch.Generator().manual_seed(settings.seed)
    rows = [torch.randn(n_rows, d, generator=generator) for d in widths]
    with tempfile.TemporaryDirectory() as name:
        plain, cache = Path(name) / "plain", Path(name) / "cache"
        timings = _time(plain, cache, rows, _blocks(n_rows), settings.repetitions(_REPETITIONS))
        n_bytes = ActivationCache.open(cache).n_bytes
        plain_bytes = sum(path.stat().st_size for path in plain.iterdir())
    raw: dict[str, Any] = {
        "rows": n_rows,
        "widths": widths,
        "cache_bytes": n_bytes,
        "plain_bytes": plain_bytes,
    }
    for kind, timing in timings.items():
        raw[kind] = timing.raw("plain", "cache") | {
            "cache_megabytes_per_second": n_bytes / 1e6 / statistics.median(timing.b)
        }
    in_order, shuffled = raw["read_in_order"], raw["read_shuffled"]
    raw["read_shuffled_over_plain_in_order"] = (
        in_order["plain_seconds_median"] / shuffled["cache_seconds_median"]
    )
    return Measurement(
        name="cache_write_over_safetensors",
        value=min(timings[kind].ratio for kind in _KINDS),
        target=0.6,
        at_most=False,
        what=f"Seconds of plain safetensors ÷ seconds of an activation cache, {n_rows:,} rows of "
        "two models: writing float32 rows that arrive block by block as bfloat16 files (converted, "
        "joined, save_file); load_file and float32 batches, in order and by a random permutation, "
        "against the same from the cache, opened anew and with its checksums. The least of the "
        "three.",
        raw=raw,
        notes=(
            "files stay in the system's page cache on both sides; nothing waits for the disk",
            "save_file of tensors that are bfloat16 and joined already ÷ the cache's writing from "
            f"float32 blocks: {timings['write_ready_tensors'].ratio:.2f}",
        ),
    )


def _time(
    plain: Path, cache: Path, rows: list[Tensor], blocks: list[Block], repetitions: int
) -> dict[str, Timings]:
    """Timings of plain files (A) and of the cache (B), per kind of access."""
    stored = [values.bfloat16() for values in rows]
    write_cache = partial(_write_cache, cache, rows, blocks)
    calls: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "write_ready_tensors": (partial(_save_ready, plain, stored), write_cache),
        "write": (partial(_write_plainly, plain, rows, blocks), write_cache),
        "read_in_order": (
            partial(_read_plainly, plain, shuffled=False),
            partial(_read_cache, cache, None),
        ),
        "read_shuffled": (
            partial(_read_plainly, plain, shuffled=True),
            partial(_read_cache, cache, 0),
        ),
    }
    return {kind: alternate(*both, repetitions) for kind, both in calls.items()}


def _blocks(n_rows: int) -> list[Block]:
    """Blocks as in a harvest: windows of 256 tokens, of which four are masked."""
    blocks, start, body = [], 0, _WINDOW - SKIP_FIRST
    while start < n_rows:
        block = Block(part=len(blocks) % N_PARTS, index=len(blocks))
        while block.n_rows < _BATCH and start < n_rows:
            rows = np.arange(SKIP_FIRST, SKIP_FIRST + min(body, n_rows - start))
            window = Window(list(range(_WINDOW)), rows, document=start)
            block.add(window, begins=CutDocument(start, [window]))
            start += len(rows)
        blocks.append(block)
    return blocks


def _write_plainly(folder: Path, rows: list[Tensor], blocks: list[Block]) -> None:
    """Write files of the size of a shard, from rows that arrive block by block."""
    _begin(folder)
    per_file = _rows_per_file(rows)
    buffers: dict[str, list[Tensor]] = {"x": [], "y": []}
    start = n_buffered = 0
    for number, block in enumerate(blocks):
        for name, values in zip(buffers, rows, strict=True):
            buffers[name].append(values[start : start + block.n_rows].bfloat16())
        start, n_buffered = start + block.n_rows, n_buffered + block.n_rows
        if n_buffered + block.n_rows > per_file or number == len(blocks) - 1:
            save_file(
                {name: torch.cat(parts) for name, parts in buffers.items()},
                folder / f"{start:09d}.safetensors",
            )
            buffers, n_buffered = {name: [] for name in buffers}, 0


def _save_ready(folder: Path, rows: list[Tensor]) -> None:
    """Write files of the size of a shard, from joined bfloat16 tensors."""
    _begin(folder)
    per_file = _rows_per_file(rows)
    for start in range(0, len(rows[0]), per_file):
        some = {
            name: values[start : start + per_file]
            for name, values in zip(("x", "y"), rows, strict=True)
        }
        save_file(some, folder / f"{start:09d}.safetensors")


def _begin(folder: Path) -> None:
    """Make the folder empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _rows_per_file(rows: list[Tensor]) -> int:
    """Rows per file of a shard's size; a bfloat16 number has two bytes."""
    return SHARD_BYTES // (2 * sum(values.shape[1] for values in rows))


def _write_cache(folder: Path, rows: list[Tensor], blocks: list[Block]) -> None:
    """Write an activation cache from rows that arrive block by block."""
    shutil.rmtree(folder, ignore_errors=True)
    manifest = Manifest(Provenance(), "bfloat16", streams={})
    with CacheWriter(folder, manifest) as writer:
        start = 0
        for block in blocks:
            some = slice(start, start + block.n_rows)
            writer.add(block, block.windows, {"source": rows[0][some]}, {"target": rows[1][some]})
            start += block.n_rows


def _read_plainly(folder: Path, *, shuffled: bool) -> float:
    """Read every row once in batches of float32, file by file; returns a checksum."""
    total = 0.0
    for path in sorted(folder.iterdir()):
        tensors = load_file(path)
        n = len(tensors["x"])
        order = torch.randperm(n)
        for start in range(0, n, _BATCH):
            batch = order[start : start + _BATCH] if shuffled else slice(start, start + _BATCH)
            x, y = tensors["x"][batch].float(), tensors["y"][batch].float()
            total += float(x[0, 0]) + float(y[0, 0])
    return total


def _read_cache(folder: Path, shuffle: int | None) -> float:
    """Read every row once from the cache in batches of float32; returns a checksum."""
    cache = ActivationCache.open(folder)
    return sum(
        float(x[0, 0]) + float(y[0, 0])
        for x, y in cache.rows("source", "target", batch_rows=_BATCH, shuffle=shuffle)
    )
