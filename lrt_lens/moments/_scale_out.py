"""One harvest in many processes: ranks of one job, or shards in separate jobs.

Problem: one process takes too long for billions of tokens. Mechanism: every process walks through
the same stream of blocks and harvests some of them; or, with ``file_shares``, it reads only its own
files, whose blocks are streams of their own (`lrt_lens.moments._block_streams`). Ranks do not
communicate: each writes its checkpoints into a folder that all of them see, and rank 0 adds the
files when every block is in one of them. There is no collective operation that could wait for ever;
the lock of a rank shows whether it is alive.

    ranks = Ranks.of_environment()                  # set by torchrun
    moments = harvest_in_ranks(settle(pair), documents, folder, ranks=ranks)   # None but on rank 0

Shards need no common folder; each writes its own file, and the files are added later:

    harvest(pair, documents, shard=(3, 8)).save("moments-3-of-8.safetensors")
    moments = merge_shards(paths)

Limits: without ``file_shares``, every process reads and tokenizes all documents.
"""

import os
import time
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lrt_lens._numbers import is_count
from lrt_lens.data._documents import Documents
from lrt_lens.data._windows import Share
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.moments._accumulator import add_stored
from lrt_lens.moments._checkpoint import (
    Checkpoint,
    RankFile,
    RunIsOver,
    add_file,
    read_rank_files,
    share_is_complete,
)
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._harvesting import HarvestRun, check_whole
from lrt_lens.moments._layout import read_moment_metadata, read_provenance
from lrt_lens.moments._provenance import Provenance
from lrt_lens.moments._rank_lock import is_locked, lock_entry

_LOOK_SECONDS = 0.5
"""Seconds between two looks of rank 0 at the files of the other ranks."""
_SAME_RUN = (
    "context_length",
    "skip_first",
    "chat_template",
    "seed",
    "n_tokens",
    "max_document_tokens",
    "fold_rule",
    "source_dtype",
    "target_dtype",
    "file_shares",
    "parts",
    "stream",
)
_OTHER_FILES = "not the same files (names, sizes or the first texts)"
# Metadata of the moments in which all shards of a run agree; `_SAME_RUN`: fields of the provenance.
_SAME_MOMENTS = ("pairs", "token_hook", "moment_dtype", "null")


@dataclass(frozen=True)
class Ranks:
    """Number of this process among those of one job."""

    rank: int = 0
    count: int = 1
    local: int = 0
    """Number of this process on its machine, which is the number of its GPU."""
    launch: str = ""
    """Name of the job, equal for its processes and for no others; empty if it is not known."""

    @classmethod
    def of_environment(cls) -> "Ranks":
        """Return the ranks that torchrun has set in RANK, WORLD_SIZE and LOCAL_RANK.

        Without these variables there is a single process.

        Raises:
            ValueError: a variable is not a number, or the rank is not below the count.
        """
        numbers = {}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            text = os.environ.get(name, "")
            if text and not is_count(text):
                raise ValueError(
                    f"the environment has {name}={text!r}; expected a number, as torchrun sets it"
                )
            numbers[name] = int(text) if text else None
        # LOCAL_RANK differs from RANK if the job runs on several machines.
        rank, count = numbers["RANK"] or 0, numbers["WORLD_SIZE"] or 1
        if rank >= count:
            raise ValueError(
                f"the environment has RANK={rank} and WORLD_SIZE={count}; "
                f"expected a rank from 0 to {count - 1}"
            )
        local = numbers["LOCAL_RANK"]
        return cls(rank, count, rank if local is None else local, _launch() if count > 1 else "")

    def device(self, device: str | None) -> str | None:
        """Return the device; with several ranks ``"cuda"`` becomes ``"cuda:{local}"``."""
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
    """Return the moments of all ranks together on rank 0, and None on the other ranks.

    Args:
        run: the harvest, from `lrt_lens.moments._harvesting.settle`.
        documents: the same documents in the same order on every rank.
        folder: folder for checkpoints that all ranks see.
        ranks: number of this process.
        result: file that the caller writes on rank 0 at the end. A rank that starts late and finds
            that it is of its own launch returns at once.
        checkpoint_every: seconds between checkpoints.
        patience: seconds that rank 0 waits for the others while no new block appears.
        options: keywords of `HarvestRun.harvest`: ``on_block``, ``cache``, ``progress``.

    Raises:
        ChildProcessError: on rank 0: another rank ended before its blocks were done.
        MismatchError: this rank sees other files than the ranks before it, or than the run that it
            resumes.
        TimeoutError: on rank 0: no new block appeared for ``patience`` seconds.
    """
    run = run.with_files_of(documents)
    share = Share(shard=run.shard or (0, 1), rank=(ranks.rank, ranks.count))

    def is_over() -> bool:
        # A result of another launch, or of none, is that of an earlier run, whatever its date.
        is_asked = bool(ranks.rank and ranks.launch)
        return is_asked and result is not None and _is_of(result, ranks.launch)

    # Before this process takes its lock: what the locks held then is of earlier runs.
    entries = {rank: lock_entry(folder / f"rank{rank}.lock") for rank in range(ranks.count)}
    whose: dict[str, Any] = {"is_over": is_over, "launch": ranks.launch}
    try:
        with Checkpoint(
            folder, run.arguments, share, every=checkpoint_every, **whose
        ) as checkpoint:
            moments, n_units = run.harvest(documents, share, checkpoint=checkpoint, **options)
            if ranks.rank:
                return None
            files = _Others(folder, run, share, ranks, patience, entries).wait(n_units)
    except RunIsOver:
        return None
    moments.provenance = replace(moments.provenance, launch=ranks.launch)
    # The moments of rank 0 are in memory; only the files of the others are added.
    for file in files:
        if file.path != checkpoint.path:
            add_file(moments, file)
    if run.shard is None:
        check_whole(moments)
    return moments


def _launch() -> str:
    """Return the name that the launcher gives to this job; empty if it gives none.

    A name that two jobs may share, such as torchrun's default, is none.
    """
    environment = os.environ
    run = environment.get("TORCHELASTIC_RUN_ID")
    if run is not None:
        # Within one job of Slurm, torchrun may be started many times with its default name.
        restarts = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
        return "" if run == "none" else f"torchrun {run} {restarts}"
    # Each call of srun is a step with a number of its own.
    if environment.keys() >= {"SLURM_JOB_ID", "SLURM_STEP_ID"}:
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        return " ".join(["slurm", *(environment.get(name, "0") for name in names)])
    return ""


def _is_of(result: Path, launch: str) -> bool:
    """Return whether a file of moments was computed by a launch."""
    try:
        return read_provenance(result, read_moment_metadata(result)).launch == launch
    except FileFormatError:  # none, or one that is not ours
        return False


@dataclass(frozen=True)
class _Others:
    """The other ranks as rank 0 sees them: their files and locks in a folder."""

    folder: Path
    run: HarvestRun
    share: Share
    ranks: Ranks
    patience: float
    entries: dict[int, str]
    """Entry of each lock when this process began."""

    def wait(self, n_units: int) -> list[RankFile]:
        """Return the files of all ranks when every block, or share of the files, is in them."""
        wanted = {unit for unit in range(n_units) if self.share.in_shard(unit)}
        others = range(1, self.ranks.count)
        seen_alive: set[int] = set()
        n_done, deadline = -1, 0.0
        while True:
            # In this order: a rank that had begun before its lock was found free has ended, and a
            # rank whose lock was free before the files were read has written all its files.
            seen_alive |= {rank for rank in others if self._began_after_us(rank)}
            alive = {rank for rank in others if is_locked(self._lock(rank))}
            seen_alive |= alive
            files = read_rank_files(self.folder, self.run.arguments)
            missing = self._missing(wanted, files)
            if not missing:
                # Reading all numbers is slow, so the files are verified only when complete.
                files = read_rank_files(self.folder, self.run.arguments, verify=True)
                missing = self._missing(wanted, files)
                if not missing:
                    return files
            self._refuse_the_dead(missing, seen_alive - alive)
            # The deadline starts again with each new block, so a slow run is not ended.
            n_now = sum(len(file.blocks) for file in files)
            if n_now > n_done:
                n_done, deadline = n_now, time.monotonic() + self.patience
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{len(missing)} of {len(wanted)} {self._units} are in no checkpoint in "
                    f"{str(self.folder)!r}, and nothing new came for {self.patience:.0f} s: "
                    f"see whether all {self.ranks.count} ranks run and see this folder, "
                    "then start all ranks again with the same arguments: the harvest resumes"
                )
            time.sleep(_LOOK_SECONDS)

    @property
    def _units(self) -> str:
        return "blocks" if self.run.files is None else "shares of the files"

    def _missing(self, wanted: set[int], files: list[RankFile]) -> set[int]:
        blocks = ChainMap(*(file.blocks for file in files))
        if self.run.files is None:
            return wanted - blocks.keys()
        ended = ChainMap(*(file.ended for file in files))
        return {share for share in wanted if not share_is_complete(share, ended, blocks)}

    def _refuse_the_dead(self, missing: set[int], ended: set[int]) -> None:
        for rank in sorted(ended):
            theirs = Share(self.share.shard, (rank, self.ranks.count))
            n_left = sum(theirs.takes(unit) for unit in missing)
            if n_left:
                raise ChildProcessError(
                    f"rank {rank} of {self.ranks.count} ended with {n_left} of its {self._units} "
                    f"undone; all others are in {str(self.folder)!r}: start the harvest again with "
                    "the same arguments, on any number of ranks, and it resumes"
                )

    def _lock(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.lock"

    def _began_after_us(self, rank: int) -> bool:
        """Return whether a rank took its lock after this process began: it may have ended since.

        One of the same launch counts too, if it began before this process.
        """
        entry = lock_entry(self._lock(rank))
        is_of_launch = bool(self.ranks.launch) and entry.endswith(f" {self.ranks.launch}")
        return bool(entry) and (entry != self.entries[rank] or is_of_launch)


# ------------------------------------------------------------------------------------------- shards


def parse_shard(text: str) -> tuple[int, int]:
    """Return (3, 8) for the text ``"3/8"``.

    Raises:
        ValueError: the text is not i/N with i from 0 to N - 1.
    """
    index, slash, count = text.partition("/")
    if not (slash and is_count(index) and is_count(count) and int(index) < int(count)):
        raise ValueError(f"shard is {text!r}; expected i/N with i from 0 to N - 1, such as 0/8")
    return int(index), int(count)


def shard_name(shard: tuple[int, int]) -> str:
    """Return the name of the file of a shard's moments."""
    return f"moments-{shard[0]}-of-{shard[1]}.safetensors"


def merge_shards(
    paths: Sequence[str | Path],
    *,
    placement: Literal["device", "disk"] = "device",
    placement_folder: str | Path | None = None,
) -> CrossMoments:
    """Return the moments of a whole run from the files of all its shards.

    Args:
        paths: the files, in any order.
        placement: ``"device"``: the sums are in memory; ``"disk"``: in a mapped file.
        placement_folder: folder of the mapped file, see `HarvestSettings`.

    Raises:
        MismatchError: a shard is of another run, is there twice, or is missing.
        TooFewDocumentsError: the shards read their own files, and a fold has no document in any.
        ValueError: there is no file.
    """
    if not paths:
        raise ValueError(
            "there is no shard; give the files of harvest(…, shard=(i, N)).save(…), one per shard"
        )
    files = _shards_in_order([_MomentShard.read(Path(path)) for path in paths])
    options: dict[str, Any] = {"placement": placement, "placement_folder": placement_folder}
    merged = CrossMoments.load(files[0].path, **options)
    for path, provenance in ((file.path, file.provenance) for file in files[1:]):
        # Shards of one run usually have the same shift: their tensors are then added one at a time,
        # without a second set of moments in memory.
        if merged.source and add_stored(merged, path, verify=True):
            merged.provenance = merged.provenance.with_documents_of(provenance)
        else:
            merged = merged.merge(CrossMoments.load(path))
    # The whole is not a shard any more, also if N = 1.
    merged.provenance = replace(merged.provenance, shard=None, stream="")
    check_whole(merged)
    return merged


@dataclass(frozen=True)
class _MomentShard:
    """File of the moments of one shard, without its tensors."""

    path: Path
    provenance: Provenance
    metadata: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "_MomentShard":
        metadata = read_moment_metadata(path)
        return cls(path, read_provenance(path, metadata), metadata)

    @property
    def shard(self) -> tuple[int, int]:
        if self.provenance.shard is None:
            raise MismatchError(
                f"{str(self.path)!r} holds no shard but whole moments; "
                "merge the files of harvest(…, shard=(i, N)).save(…)"
            )
        return self.provenance.shard

    def refuse_other_run(self, other: "_MomentShard") -> None:
        # Models by their hashes, which `refuse_other` explains; then settings by equality.
        for role in ("source", "target"):
            mine, theirs = getattr(self.provenance, role), getattr(other.provenance, role)
            if mine is not None and theirs is not None:
                mine.refuse_other(theirs, f"the {role} model of {str(other.path)!r}")
        by_block = self.provenance.file_shares is None
        for name in (*_SAME_RUN, *_SAME_MOMENTS):
            mine, theirs = (
                (file.metadata if name in _SAME_MOMENTS else vars(file.provenance)).get(name)
                for file in (self, other)
            )
            if mine != theirs:
                how = (
                    ("not the same documents in the same order" if by_block else _OTHER_FILES)
                    if name == "stream"
                    else f"{str(mine)[:80]!r} and {str(theirs)[:80]!r}"
                )
                raise MismatchError(
                    f"{str(self.path)!r} and {str(other.path)!r} are shards of different runs, "
                    f"by {name}: {how}; harvest every shard with the same arguments"
                )


def _shards_in_order(files: list[_MomentShard]) -> list[_MomentShard]:
    """Return the files in the order of their shards, after checking that they are of one run."""
    # All files are compared with the first one: equality is transitive.
    first, by_index = files[0], dict[int, _MomentShard]()
    count = first.shard[1]
    for file in files:
        index = file.shard[0]
        if file.shard[1] != count:
            raise MismatchError(
                f"{str(file.path)!r} is one of {file.shard[1]} shards, {str(first.path)!r} "
                f"one of {count}; give shards of one run"
            )
        if index in by_index:
            raise MismatchError(
                f"{str(by_index[index].path)!r} and {str(file.path)!r} are both shard {index} of "
                f"{count}; give each shard once"
            )
        first.refuse_other_run(file)
        by_index[index] = file
    missing = [str(index) for index in range(count) if index not in by_index]
    if missing:
        raise MismatchError(
            f"shard(s) {', '.join(missing)} of {count} are missing; give all {count} files"
        )
    return [by_index[index] for index in range(count)]
