"""One harvest by many processes: ranks of one job, or shards in jobs of their own.

    torchrun --nproc-per-node 8 -m lrt_lens fit …              # ranks: RANK and WORLD_SIZE say which blocks a process takes
    lrt-lens fit … --shard 3/8; lrt-lens merge OUT SHARD…      # shards: a file each, added afterwards

Every process walks the same stream of blocks and takes its own of them, so that ranks never speak
to each other: each writes its checkpoints into a folder that all see, and rank 0 adds the files
once every block is in one of them. No collective that could hang; a rank that dies is noticed by
its lock.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lrt_lens.data._blocks import Share
from lrt_lens.data._documents import Documents
from lrt_lens.errors import MismatchError
from lrt_lens.moments._checkpoint import (
    Checkpoint,
    RankFile,
    RunIsOver,
    add_file,
    add_stored,
    read_rank_files,
)
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._harvesting import HarvestRun
from lrt_lens.moments._layout import read_moment_metadata
from lrt_lens.moments._provenance import Provenance
from lrt_lens.moments._rank_lock import is_locked

_LOOK_SECONDS = 0.5
_SAME_RUN = (
    "context_length",
    "skip_first",
    "chat_template",
    "seed",
    "n_tokens",
    "source_dtype",
    "target_dtype",
    "stream",
)
_SAME_MOMENTS = ("pairs", "token_hook", "moment_dtype", "null")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1
    local: int = 0
    """Number on this machine: which GPU is ours."""
    since: float = field(default_factory=time.time)
    """When this process began, in seconds since the epoch."""

    @classmethod
    def of_environment(cls) -> "Ranks":
        """As torchrun says it in RANK, WORLD_SIZE and LOCAL_RANK; a single process without them."""
        found = {}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            text = os.environ.get(name, "")
            if text and not text.isdigit():
                raise ValueError(
                    f"the environment has {name}={text!r}; expected a number, as torchrun sets it"
                )
            found[name] = int(text) if text else None
        rank, count = found["RANK"] or 0, found["WORLD_SIZE"] or 1
        if rank >= count:
            raise ValueError(
                f"the environment has RANK={rank} and WORLD_SIZE={count}; expected a rank from 0 to {count - 1}"
            )
        return cls(rank, count, found["LOCAL_RANK"] if found["LOCAL_RANK"] is not None else rank)

    def device(self, device: str | None) -> str | None:
        """``"cuda"`` becomes this rank's own GPU where there are several ranks."""
        return f"cuda:{self.local}" if device == "cuda" and self.count > 1 else device


def harvest_in_ranks(
    run: HarvestRun,
    documents: Documents,
    folder: Path,
    *,
    ranks: Ranks,
    result: Path | None = None,
    checkpoint_every: float = 120.0,
    patience: float = 1800.0,
    **options: Any,
) -> CrossMoments | None:
    """The moments of all ranks together on rank 0, None on the others.

    Args:
        run: see `lrt_lens.moments._harvesting.settle`.
        documents: the same, in the same order, on every rank.
        folder: where checkpoints go; one that all ranks see.
        ranks: which of them this is.
        result: the file that rank 0 writes in the end: a rank that is late and finds it newer than
            itself has nothing left to do.
        checkpoint_every: seconds between checkpoints.
        patience: seconds that rank 0 waits without anything new from the others.
        options: of `HarvestRun.harvest`: ``batch_tokens``, ``on_block``, ``progress``.

    Raises:
        ChildProcessError: on rank 0, where a rank has ended before its blocks were done.
        TimeoutError: on rank 0, where nothing came for so long.
    """
    share = Share(shard=run.shard or (0, 1), rank=(ranks.rank, ranks.count))

    def is_over() -> bool:
        return bool(
            ranks.rank and result and result.exists() and result.stat().st_mtime >= ranks.since
        )

    try:
        with Checkpoint(
            folder, run.arguments, share, every=checkpoint_every, is_over=is_over
        ) as checkpoint:
            moments, n_blocks = run.harvest(documents, share, checkpoint=checkpoint, **options)
            if ranks.rank:
                return None
            files = _Others(folder, run, share, ranks, patience).wait(n_blocks)
    except RunIsOver:
        return None
    for file in files:
        if file.path != checkpoint.path:
            add_file(moments, file)
    return moments


@dataclass(frozen=True)
class _Others:
    """The other ranks, as rank 0 sees them: files and locks in a folder."""

    folder: Path
    run: HarvestRun
    share: Share
    ranks: Ranks
    patience: float

    def wait(self, n_blocks: int) -> list[RankFile]:
        """All ranks' files, once every block is in one of them."""
        wanted = {index for index in range(n_blocks) if self.share.in_shard(index)}
        seen_alive: set[int] = set()
        n_missing, deadline = len(wanted) + 1, 0.0
        while True:
            # Before the files: a rank that is gone now has written all that it ever will.
            alive = {rank for rank in range(1, self.ranks.count) if is_locked(self._lock(rank))}
            seen_alive |= alive | {
                rank for rank in range(1, self.ranks.count) if self._began_after_us(rank)
            }
            files = read_rank_files(self.folder, self.run.arguments)
            missing = self._missing(wanted, files)
            if not missing:
                files = read_rank_files(self.folder, self.run.arguments, verify=True)
                missing = self._missing(wanted, files)
                if not missing:
                    return files
            self._refuse_the_dead(missing, seen_alive - alive)
            if len(missing) < n_missing:
                n_missing, deadline = len(missing), time.monotonic() + self.patience
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{len(missing)} of {len(wanted)} blocks are in no checkpoint in {str(self.folder)!r}, and nothing new "
                    f"came for {self.patience:.0f} s: "
                    f"see whether all {self.ranks.count} ranks run and see this folder, then start the same command again: it resumes"
                )
            time.sleep(_LOOK_SECONDS)

    def _missing(self, wanted: set[int], files: list[RankFile]) -> set[int]:
        return wanted.difference(*(file.blocks.keys() for file in files))

    def _refuse_the_dead(self, missing: set[int], gone: set[int]) -> None:
        for rank in sorted(gone):
            theirs = Share(self.share.shard, (rank, self.ranks.count))
            n_left = sum(theirs.takes(index) for index in missing)
            if n_left:
                raise ChildProcessError(
                    f"rank {rank} of {self.ranks.count} ended with {n_left} of its blocks undone; all others are in "
                    f"{str(self.folder)!r}: start the same "
                    "command again, on any number of ranks, and it resumes"
                )

    def _lock(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.lock"

    def _began_after_us(self, rank: int) -> bool:
        try:
            return self._lock(rank).stat().st_mtime >= self.ranks.since
        except FileNotFoundError:
            return False


# ------------------------------------------------------------------------------------------- shards


def parse_shard(text: str) -> tuple[int, int]:
    """(3, 8) from ``"3/8"``."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"shard is {text!r}; expected i/N with i from 0 to N - 1, such as 0/8")
    return int(index), int(count)


def shard_name(shard: tuple[int, int]) -> str:
    """The file of a shard's moments."""
    return f"moments-{shard[0]}-of-{shard[1]}.safetensors"


def merge_shards(paths: Sequence[str | Path]) -> CrossMoments:
    """The moments of a whole run from the files of all its shards.

    `MismatchError` says which does not belong, is there twice, or is missing.
    """
    if not paths:
        raise ValueError("no shard given; give the files that lrt-lens fit --shard i/N has written")
    files = _shards_in_order([_ShardFile.read(Path(path)) for path in paths])
    merged = CrossMoments.load(files[0].path)
    for path, provenance in ((file.path, file.provenance) for file in files[1:]):
        if merged.source and add_stored(merged, path):
            merged.provenance = merged.provenance.with_documents_of(provenance)
        else:
            merged = merged.merge(CrossMoments.load(path))
    merged.provenance = replace(merged.provenance, shard=None, stream="")
    return merged


@dataclass(frozen=True)
class _ShardFile:
    path: Path
    provenance: Provenance
    metadata: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "_ShardFile":
        metadata = read_moment_metadata(path)
        return cls(path, Provenance.from_json(metadata["provenance"]), metadata)

    @property
    def shard(self) -> tuple[int, int]:
        if self.provenance.shard is None:
            raise MismatchError(
                f"{str(self.path)!r} holds no shard but whole moments; merge files that lrt-lens fit --shard i/N has written"
            )
        return self.provenance.shard

    def refuse_other_run(self, other: "_ShardFile") -> None:
        for role in ("source", "target"):
            mine, theirs = getattr(self.provenance, role), getattr(other.provenance, role)
            if mine is not None and theirs is not None:
                mine.refuse_other(theirs, f"the {role} model of {str(other.path)!r}")
        for name in (*_SAME_RUN, *_SAME_MOMENTS):
            mine, theirs = (
                (file.metadata if name in _SAME_MOMENTS else vars(file.provenance))[name]
                for file in (self, other)
            )
            if mine != theirs:
                how = (
                    "not the same documents in the same order"
                    if name == "stream"
                    else f"{str(mine)[:80]!r} and {str(theirs)[:80]!r}"
                )
                raise MismatchError(
                    f"{str(self.path)!r} and {str(other.path)!r} are shards of different runs, by {name}: {how}; harvest "
                    "every shard with the same arguments"
                )


def _shards_in_order(files: list[_ShardFile]) -> list[_ShardFile]:
    """The files by the number of their shard, after all that could be wrong with them."""
    first, by_index = files[0], dict[int, _ShardFile]()
    count = first.shard[1]
    for file in files:
        index = file.shard[0]
        if file.shard[1] != count:
            raise MismatchError(
                f"{str(file.path)!r} is one of {file.shard[1]} shards, {str(first.path)!r} one of {count}; give shards of one run"
            )
        if index in by_index:
            raise MismatchError(
                f"{str(by_index[index].path)!r} and {str(file.path)!r} are both shard {index} of {count}; give each shard once"
            )
        first.refuse_other_run(file)
        by_index[index] = file
    missing = [str(index) for index in range(count) if index not in by_index]
    if missing:
        raise MismatchError(
            f"shard(s) {', '.join(missing)} of {count} are missing; give all {count} files"
        )
    return [by_index[index] for index in range(count)]
