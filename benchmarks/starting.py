"""Time to the first block, and time to read all documents, if shards share by files.

The corpus has millions of short texts in 20 files. A process is the last of 8 shards. A: it shares
by files (``file_shares=8``) and reads its own. B: it shares by blocks and reads the whole stream.
"""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measuring import Measurement, Settings, alternate, seconds
from lrt_lens.bundled import demo_pair
from lrt_lens.data import Block, iterate_blocks
from lrt_lens.data._file_shares import FileShares
from lrt_lens.data._windows import Share
from lrt_lens.models import ModelPair
from lrt_lens.moments import harvest
from lrt_lens.moments._block_streams import FileStreams, SharedFiles, WholeStream
from lrt_lens.moments._harvesting import settle

_N_SHARES, _N_FILES = 8, 20
_SHARD = (_N_SHARES - 1, _N_SHARES)
"""The last shard, whose first block comes last."""


class _FirstBlock(Exception):  # noqa: N818 (control flow, no error)
    """Raised to end a harvest at its first block."""


def first_block_files_over_blocks(settings: Settings) -> Measurement:
    """Seconds to the first block of the last of 8 shards, sharing by files ÷ by blocks."""
    pair = demo_pair()
    n_documents, n_large = (20_000, 40_000) if settings.quick else (200_000, 2_000_000)
    with (
        _corpus(n_large, settings.seed) as large,
        _corpus(n_documents, settings.seed) as small,
        _corpus(n_documents, settings.seed, n_files=50 * _N_FILES) as many,
    ):
        _to_first_block(pair, small, file_shares=_N_SHARES)
        timings = alternate(
            lambda: _to_first_block(pair, large, file_shares=_N_SHARES),
            lambda: _to_first_block(pair, large, file_shares=None),
            settings.repetitions(5),
        )
        by_corpus = {
            name: seconds(lambda folder=folder: _to_first_block(pair, folder, _N_SHARES))
            for name, folder in (("small", small), ("large", large), ("many_files", many))
        }
    raw = {"documents": n_large, "files": _N_FILES, "small_documents": n_documents}
    raw |= {"many_files": 50 * _N_FILES}
    raw |= {f"{name}_corpus_seconds": value for name, value in by_corpus.items()}
    return Measurement(
        name="first_block_files_over_blocks",
        value=timings.ratio,
        target=1.0,
        at_most=True,
        what=f"Seconds until the last of {_N_SHARES} shards of a harvest of the bundled pair has "
        f"run its first block, {n_large:,} short documents in {_N_FILES} files, sharing by files ÷ "
        "sharing by blocks.",
        raw=timings.raw("files", "blocks") | raw,
    )


def reading_files_over_blocks(settings: Settings) -> Measurement:
    """Seconds to read and cut all documents of the last of 8 shards, by files ÷ by blocks."""
    pair, n_documents = demo_pair(), 10_000 if settings.quick else 200_000
    with _corpus(n_documents, settings.seed) as folder:
        blocks: dict[str, int] = {}

        def read(kind: str) -> None:
            blocks[kind] = _read(pair, folder, by_files=kind == "files")

        timings = alternate(lambda: read("files"), lambda: read("blocks"), settings.repetitions(3))
    return Measurement(
        name="reading_files_over_blocks",
        value=timings.ratio,
        target=1.5 / _N_SHARES,
        at_most=True,
        what=f"Seconds in which the last of {_N_SHARES} shards reads, tokenizes and cuts its "
        f"blocks of {n_documents:,} short documents in {_N_FILES} files, without running the "
        "models, sharing by files ÷ sharing by blocks.",
        raw=timings.raw("files", "blocks")
        | {"documents": n_documents, "files": _N_FILES}
        | {f"{kind}_own_blocks": number for kind, number in blocks.items()},
    )


@contextmanager
def _corpus(n_documents: int, seed: int, n_files: int = _N_FILES) -> Iterator[Path]:
    """A temporary folder of JSON Lines files with texts of about 20 tokens, all different."""
    nouns = "cat dog sea map tree house river light stone cloud field winter paper garden"
    rng = random.Random(seed)
    # Drawing every word of millions of texts would take longer than what is measured.
    ends = [" ".join(rng.choices(nouns.split(), k=8)) for _ in range(1000)]
    with TemporaryDirectory(prefix="lrt-lens-bench-") as name:
        for number in range(n_files):
            with (Path(name) / f"part-{number:05d}.jsonl").open("w") as file:
                file.writelines(
                    json.dumps({"text": f"{ends[k % 1000]} {k} {ends[k // 1000 % 1000]}"}) + "\n"
                    for k in range(number, n_documents, n_files)
                )
        yield Path(name)


def _to_first_block(pair: ModelPair, folder: Path, file_shares: int | None) -> None:
    """Harvest until the process has run its first block."""

    def stop(*_: Any) -> None:
        raise _FirstBlock

    try:
        harvest(
            pair,
            folder,
            shard=_SHARD,
            file_shares=file_shares,
            n_tokens=None,
            source_layers=[1],
            target_layers=[1],
            on_block=stop,
            progress=False,
        )
    except _FirstBlock:
        return
    raise RuntimeError("the harvest ended without a block; expected more documents")


def _read(pair: ModelPair, folder: Path, *, by_files: bool) -> int:
    """Read and cut the blocks of the last shard; return how many are its own."""
    plan, share = settle(pair, n_tokens=None).plan, Share(shard=_SHARD)
    models = (pair.source, pair.target)
    if by_files:
        files = SharedFiles.of(FileShares.of(folder, _N_SHARES), plan, *models)
        stream = FileStreams(files, share)
    else:
        blocks = iterate_blocks(folder, pair.source, plan, target=pair.target)
        stream = WholeStream(blocks, None, share)
    return sum(isinstance(one, Block) and stream.takes(one) for one in stream.read())
