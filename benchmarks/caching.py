"""An activation cache against plain safetensors files of the same bytes."""

import shutil
import statistics
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.measuring import Measurement, Settings, alternate
from benchmarks.models import PYTHIA, TINY
from lrt_lens.stitching.cache.activation_cache import ActivationCache
from lrt_lens.stitching.cache.writer import SHARD_BYTES

_BATCH = 4096
_ROWS_A_DOCUMENT = 500
_REPETITIONS = 5


def cache_write_over_safetensors(settings: Settings) -> Measurement:
    """A: the same bytes by plain safetensors. B: `ActivationCache`. The slower of writing and of reading in shuffled order, as a share of plain speed."""
    shape = TINY if settings.quick else PYTHIA
    n_rows, widths = (8192 if settings.quick else 262_144), (shape.source.d_model, shape.target.d_model)
    generator = torch.Generator().manual_seed(settings.seed)
    rows = [torch.randn(n_rows, d, generator=generator) for d in widths]
    documents = torch.arange(n_rows) // _ROWS_A_DOCUMENT
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writing = alternate(
            lambda: _write_plainly(folder / "plain", rows), lambda: _write_cache(folder / "cache", rows, documents), _REPETITIONS
        )
        n_bytes = ActivationCache.open(folder / "cache").n_bytes
        plain_bytes = sum(path.stat().st_size for path in (folder / "plain").iterdir())
        shuffled = alternate(lambda: _read_plainly(folder / "plain"), lambda: _read_cache(folder / "cache", 0), _REPETITIONS)
        in_order = alternate(lambda: _read_plainly(folder / "plain"), lambda: _read_cache(folder / "cache", None), _REPETITIONS)
    raw = {"rows": n_rows, "widths": widths, "cache_bytes": n_bytes, "plain_bytes": plain_bytes}
    for kind, timings in (("write", writing), ("read_shuffled", shuffled), ("read_in_order", in_order)):
        raw[kind] = timings.raw("plain", "cache") | {"cache_megabytes_per_second": n_bytes / 1e6 / statistics.median(timings.b)}
    return Measurement(
        name="cache_write_over_safetensors",
        value=min(writing.ratio, shuffled.ratio),
        target=0.6,
        at_most=False,
        what=f"Speed of writing {n_rows:,} rows of two streams into an activation cache from float32, and of reading them back in shuffled float32 batches "
        "with checksums, ÷ speed of save_file and load_file of the same bfloat16 bytes in order; the slower of the two.",
        raw=raw,
        notes=("files stay in the system's page cache on both sides; nothing waits for the disk",),
    )


def _write_plainly(folder: Path, rows: list[Tensor]) -> None:
    """Files of a shard's size, from float32 rows: what a few lines of one's own would do."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    per_file = SHARD_BYTES // (2 * sum(values.shape[1] for values in rows))
    for start in range(0, len(rows[0]), per_file):
        some = {name: values[start : start + per_file].bfloat16() for name, values in zip(("x", "y"), rows, strict=True)}
        save_file(some, folder / f"{start:09d}.safetensors")


def _write_cache(folder: Path, rows: list[Tensor], documents: Tensor) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with ActivationCache.create(folder) as cache:
        for start in range(0, len(documents), _BATCH):
            some = slice(start, start + _BATCH)
            cache.add(rows[0][some], rows[1][some], documents=documents[some])


def _read_plainly(folder: Path) -> float:
    """Every number, as float32, in order."""
    total = 0.0
    for path in sorted(folder.iterdir()):
        tensors = load_file(path)
        for start in range(0, len(tensors["x"]), _BATCH):
            total += sum(float(values[start : start + _BATCH].float()[0, 0]) for values in tensors.values())
    return total


def _read_cache(folder: Path, shuffle: int | None) -> float:
    cache = ActivationCache.open(folder)
    return sum(float(x[0, 0]) + float(y[0, 0]) for x, y in cache.rows("source", "target", batch_rows=_BATCH, shuffle=shuffle))
