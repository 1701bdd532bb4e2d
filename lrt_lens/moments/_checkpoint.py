"""Checkpoints of a harvest: one file per rank with its moments and the blocks that are in them.

Problem: a harvest that is killed must resume, with the same or another number of ranks, and count
each block exactly once. Mechanism: moments and block numbers are in one file that is renamed into
place, so that they always agree, and each block is in the moments of exactly one file.

    with Checkpoint(folder, arguments, share, every=120.0) as checkpoint:
        checkpoint.resume(moments, device)
        for block in blocks:
            if not checkpoint.has(block):
                with checkpoint.adding(block):
                    moments.add_block(block.part, x, y)
                checkpoint.write_if_due(moments)

A folder holds ``run.safetensors`` (the arguments of the run, and the shift that all ranks use: the
first rank that writes it decides) and ``rank{r}.safetensors`` and ``rank{r}.lock`` for each rank.
On resuming, rank ``r`` of ``w`` continues its own file and takes over those of the ranks ``r + w``,
``r + 2w`` and so on: it first writes the sum and then removes those files. If it is killed between
the two steps, the old files hold subsets of the blocks of the new one and are ignored.

A rank holds its lock while its process lives (``flock``). A process of an earlier run that is still
alive therefore cannot add to the same files, and other ranks notice when a rank dies.

Limits: only ranks of one run may use a folder at a time. On file systems without ``flock`` a
process that is left over from an earlier run is not noticed.
"""

import json
import logging
import os
import tempfile
import time
from collections import ChainMap
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from lrt_lens._files import make_folder, sync
from lrt_lens._numbers import checked_seconds
from lrt_lens._stored_fields import as_damage, json_object
from lrt_lens._tensor_files import (
    MappedTensors,
    damaged,
    file_state,
    mapped_tensors,
    read_tensor_file,
    refuse_other_shape,
    refuse_values,
    write_tensors,
)
from lrt_lens.data._windows import BLOCKS_PER_SHARE, Block, Share
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.moments._accumulator import ORIGIN, Accumulator, add_stored, origin_of
from lrt_lens.moments._checkpoint_files import RANK_NAME, RUN_NAME, rank_name, rank_paths
from lrt_lens.moments._interrupts import Interrupts
from lrt_lens.moments._layout import read_provenance
from lrt_lens.moments._provenance import UNSTORED, Provenance
from lrt_lens.moments._rank_lock import RankLock

logger = logging.getLogger(__name__)

CHECKPOINT_SCHEMA = "lrt_lens.checkpoint/2"
_WRITING_SHARE = 0.05
"""Largest share of the time for writing; above it checkpoints become rarer than ``every``."""
_FOLDER_REMEDY = "another checkpoint folder, or remove_checkpoints(folder) to begin again"

Origin = dict[str, Tensor]
"""Tensors that all ranks share, by their names in a file, each [d]."""


class RunIsOver(Exception):  # noqa: N818 (control flow, no error)
    """Raised when another rank has merged everything and removed the checkpoints."""


@dataclass(frozen=True)
class RankFile:
    """Checkpoint file of one rank, without its moments."""

    path: Path
    rank: int
    blocks: dict[int, int]
    """Fingerprint of each finished block, by its number."""
    provenance: Provenance
    ended: dict[int, int] = field(default_factory=dict)
    """Number of blocks of each share of the files that is read to its end, by its number."""

    def holds(self, other: "RankFile") -> bool:
        """Return whether all blocks and ends of shares in another file are in this one."""
        pairs = ((other.blocks, self.blocks), (other.ended, self.ended))
        return all(theirs.keys() <= ours.keys() for theirs, ours in pairs)


class Checkpoint:
    """Checkpoint of one rank; a context manager that holds the lock of the rank.

    Raises:
        ValueError: ``every`` is not positive.
        MismatchError: (on entering) another process harvests into this folder as the same rank.
    """

    def __init__(
        self,
        folder: Path,
        arguments: dict[str, Any],
        share: Share,
        *,
        every: float = 120.0,
        is_over: Callable[[], bool] = lambda: False,
        launch: str = "",
    ) -> None:
        self.folder, self.arguments, self.share = folder, arguments, share
        self.every = checked_seconds(every)
        self.rank, self.n_ranks = share.rank
        self.path = folder / rank_name(self.rank)
        self.is_over = is_over
        self.own: dict[int, int] = {}
        """Fingerprints of the blocks in the moments of this rank."""
        self.others: dict[int, int] = {}
        """Fingerprints of the blocks in files of other ranks."""
        self.ended: dict[int, int] = {}
        """Numbers of blocks of the shares of the files that are read to their ends."""
        self.is_torn = False
        """True if an error occurred while rows were added; such moments are not written."""
        self.after_write: Callable[[], None] = lambda: None
        """Called after each file that was written: what it holds may be deleted elsewhere."""
        self._taken_over: list[Path] = []
        self._unwritten = False
        # Time of the next write on the monotonic clock; set on entering.
        self._due = 0.0
        self._interrupts = Interrupts()
        self._lock = RankLock(folder, self.rank, launch)

    def __enter__(self) -> "Checkpoint":
        make_folder(self.folder)
        self._lock.acquire(self.n_ranks)
        self._interrupts.install()
        # Temporary files of a process that was killed; this rank's lock is held, so none writes.
        for leftover in self.folder.glob(f".{self.path.name}.*"):
            leftover.unlink(missing_ok=True)
        self._due = time.monotonic() + self.every
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._interrupts.uninstall()
        self._lock.release()

    # ------------------------------------------------------------------------------------- resuming

    def resume(self, moments: Accumulator, device: torch.device) -> None:
        """Add to empty ``moments`` the files that this rank continues or takes over.

        Raises:
            MismatchError: the folder holds checkpoints of another run.
            RunIsOver: another rank has already merged all files.
        """
        files = read_rank_files(self.folder, self.arguments, verify=True)
        # After the files were read: the result is written before they are removed.
        if self.is_over():
            raise RunIsOver
        origin = self._read_run() or next((_read_origin(file.path) for file in files), None)
        # Files of a run with more ranks: rank r of w takes those of r, r + w, r + 2w, ….
        ours = [file for file in files if file.rank % self.n_ranks == self.rank]
        for file in files:
            (self.own if file in ours else self.others).update(file.blocks)
            self.ended |= file.ended
        if origin is not None:
            _start_from(moments, origin, device, self.folder)
        for file in ours:
            add_file(moments, file)
        self._warn_of_other_versions(moments.provenance)
        self._taken_over = [file.path for file in ours if file.path != self.path]
        self._unwritten = bool(self._taken_over)
        if files and self.rank == 0:
            logger.info(
                "%s: %d blocks were finished by earlier runs",
                self.folder,
                len(self.own) + len(self.others),
            )

    def _warn_of_other_versions(self, provenance: Provenance) -> None:
        """Log the packages of which earlier runs had another version than this one."""
        several = {name: text for name, text in provenance.versions.items() if ", " in text}
        if several:
            logger.warning(
                "%s was begun with other versions of %s; the result names all of them. If its "
                "numbers must come from one, remove_checkpoints(folder) and begin again",
                self.folder,
                ", ".join(f"{name} ({text})" for name, text in several.items()),
            )

    def share_origin(self, moments: Accumulator) -> None:
        """Share the origin of newly started, empty moments with all ranks, or use theirs.

        The first rank that writes the file decides it.
        """
        tensors = origin_of(moments)
        metadata = {"schema_version": CHECKPOINT_SCHEMA, "arguments": json.dumps(self.arguments)}
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=f".{self.path.name}.")
        os.close(handle)
        try:
            write_tensors(Path(name), tensors, metadata)
            try:
                # A link, unlike a rename, does not replace an existing file.
                os.link(name, self.folder / RUN_NAME)
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                Path(name).replace(self.folder / RUN_NAME)
            sync(self.folder)
        finally:
            Path(name).unlink(missing_ok=True)
        origin = self._read_run()
        if origin is not None:
            _start_from(moments, origin, moments.n.device, self.folder)

    def _read_run(self) -> Origin | None:
        """Return the origin that all ranks of this run use; None before a rank has written it."""
        path = self.folder / RUN_NAME
        while True:
            state = file_state(path)
            try:
                return _read_run(path, self.arguments)
            except FileNotFoundError:
                return None
            except FileFormatError as error:
                if file_state(path) == state:
                    _rename_damaged(path, error)
                    return None

    # ----------------------------------------------------------------------------------- harvesting

    def has(self, block: Block) -> bool:
        """Return whether the block is in the moments of any rank.

        Raises:
            MismatchError: the block with this number held other tokens in the earlier run.
        """
        known = self.own.get(block.index, self.others.get(block.index))
        if known is not None and known != block.fingerprint:
            raise MismatchError(
                f"block {block.index} holds other tokens than when {str(self.folder)!r} was begun: "
                "the documents are not the same, or not in the same order; "
                f"give the same documents, {_FOLDER_REMEDY}"
            )
        return known is not None

    def refuse_shorter_stream(self, n_blocks: int) -> None:
        """Raise MismatchError if finished blocks lie behind the last block of these documents."""
        last = max([*self.own, *self.others], default=-1)
        if last >= n_blocks:
            raise MismatchError(
                f"{str(self.folder)!r} holds block {last}, and the documents fill only {n_blocks}: "
                f"they are not the same; give the same documents, {_FOLDER_REMEDY}"
            )

    def is_complete(self, share: int) -> bool:
        """Return whether all blocks of a share of the files are in the moments of any rank."""
        return share_is_complete(share, self.ended, ChainMap(self.own, self.others))

    def end_share(self, share: int, n_blocks: int) -> None:
        """Record that a share of the files is read to its end, with its number of blocks.

        Raises:
            MismatchError: an earlier run found other blocks in it.
        """
        first = share * BLOCKS_PER_SHARE
        known = [index - first for index in ChainMap(self.own, self.others)]
        before = max([k + 1 for k in known if 0 <= k < BLOCKS_PER_SHARE], default=0)
        if before > n_blocks or self.ended.get(share, n_blocks) != n_blocks:
            raise MismatchError(
                f"{str(self.folder)!r} has {max(before, self.ended.get(share, 0))} block(s) of "
                f"share {share} of the files, and its documents fill {n_blocks}: they are not the "
                f"same; give the same documents, {_FOLDER_REMEDY}"
            )
        self.ended[share] = n_blocks
        self._unwritten = True

    @contextmanager
    def adding(self, block: Block) -> Iterator[None]:
        """Record the block as finished at the end of this context; delay interrupts until then."""
        with self._interrupts.held():
            # Stays True if the body raises: the moments then hold a part of the block.
            self.is_torn = True
            yield
            self.own[block.index] = block.fingerprint
            self.is_torn, self._unwritten = False, True

    @contextmanager
    def saving(self, moments: Accumulator) -> Iterator[None]:
        """Write the checkpoint before an exception of the body is raised again."""
        try:
            yield
        except BaseException:
            self.write(moments)
            raise

    def write_if_due(self, moments: Accumulator) -> None:
        """Write the checkpoint if ``every`` seconds have passed since the last one."""
        if time.monotonic() >= self._due:
            self.write(moments)

    def write(self, moments: Accumulator) -> None:
        """Write the file of this rank if it has new blocks; then remove the files it took over."""
        if self.is_torn or not self._unwritten or self.is_over():
            return
        start = time.monotonic()
        with self._interrupts.held():
            self._write(moments)
            for path in self._taken_over:
                path.unlink(missing_ok=True)
            self._taken_over, self._unwritten = [], False
            self.after_write()
        seconds = time.monotonic() - start
        # The next one is due after max(every, seconds / 0.05): writing takes at most 5 %.
        self._due = time.monotonic() + max(self.every, seconds / _WRITING_SHARE)

    def _write(self, moments: Accumulator) -> None:
        tensors = dict(moments.tensors())
        columns = {"index": self.own.keys(), "fingerprint": self.own.values()}
        if self.ended:
            columns |= {"ended_share": self.ended.keys(), "ended_blocks": self.ended.values()}
        for name, values in columns.items():
            tensors[f"blocks/{name}"] = torch.tensor(list(values), dtype=torch.int64)
        metadata = moments.metadata() | {
            "schema_version": CHECKPOINT_SCHEMA,
            "arguments": json.dumps(self.arguments),
        }
        write_tensors(self.path, tensors, metadata)


# -------------------------------------------------------------------------------------------- files


def share_is_complete(share: int, ended: Mapping[int, int], blocks: Container[int]) -> bool:
    """Return whether a share of the files is read to its end and all of its blocks are there."""
    first = share * BLOCKS_PER_SHARE
    return share in ended and all(first + k in blocks for k in range(ended[share]))


def read_rank_files(
    folder: Path, arguments: dict[str, Any], *, verify: bool = False
) -> list[RankFile]:
    """Return the checkpoint files of all ranks, without those whose blocks a larger file holds.

    Args:
        folder: folder of checkpoints.
        arguments: arguments of the run; see `HarvestRun.arguments`.
        verify: read all numbers too; damaged files are renamed, with a warning, and left out.

    Raises:
        MismatchError: a file is of a run with other arguments, or two files hold the same block.
    """
    while True:
        files = []
        try:
            for path in rank_paths(folder):
                state = file_state(path)
                try:
                    files.append(_read_rank_file(path, arguments, verify))
                except FileFormatError as error:
                    if file_state(path) != state:
                        raise FileNotFoundError(path) from error
                    _rename_damaged(path, error)
        except FileNotFoundError:
            # Another rank took a file over, or wrote it anew, after it was listed: list again,
            # because only files that exist at one time are consistent.
            continue
        # A rank that took over a file and was killed before it removed it leaves a file whose
        # blocks are all in a larger one; it is skipped.
        by_size = sorted(files, key=lambda file: (-len(file.blocks), -len(file.ended), file.rank))
        current: list[RankFile] = []
        for file in by_size:
            if not any(larger.holds(file) for larger in current):
                current.append(file)
        _refuse_overlap(current)
        return sorted(current, key=lambda file: file.rank)


def add_file(moments: Accumulator, file: RankFile) -> None:
    """Add the moments of a rank in place, one tensor at a time.

    Raises:
        MismatchError: the moments in the file are about another shift.
    """
    if not add_stored(moments, file.path):
        raise MismatchError(
            f"{str(file.path)!r} is about another shift than the moments of the other ranks; "
            "remove the folder and harvest again"
        )
    moments.provenance = moments.provenance.with_documents_of(file.provenance)


def refuse_other_run(metadata: dict[str, str], arguments: dict[str, Any], path: Path) -> None:
    """Raise MismatchError if a file was begun with other arguments; at most four are named."""
    # Through JSON, which turns tuples into lists, as in the file.
    theirs = _flat(UNSTORED | json_object(path, metadata.get("arguments"), "'arguments'"))
    ours = _flat(UNSTORED | json.loads(json.dumps(arguments)))
    differing = [
        f"{name} was {_short(theirs.get(name))} and is {_short(ours.get(name))}"
        for name in ours | theirs
        if ours.get(name) != theirs.get(name)
    ]
    if differing:
        is_files = any(one.startswith(("files.", "first_block ")) for one in differing)
        same = "models and files" if is_files else "models"
        raise MismatchError(
            f"{str(path)!r} was begun with other arguments: {'; '.join(differing[:4])}; "
            f"give the same arguments (every rank the same {same}), {_FOLDER_REMEDY}"
        )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one, with names such as ``source.config_hash``."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: item
        for field, below in value.items()
        for key, item in _flat(below, f"{name}.{field}" if name else field).items()
    }


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 100 else f"{repr(value)[:100]}…"


def _read_rank_file(path: Path, arguments: dict[str, Any], verify: bool) -> RankFile:
    """Return the content of a rank's file without its moments; ``verify`` reads them too.

    Raises:
        FileNotFoundError: the file does not exist any more.
        FileFormatError: the file is damaged.
        MismatchError: the file is of a run with other arguments.
    """
    with _gone_if_missing(path):
        opened = mapped_tensors(path, None)
        _refuse_foreign(opened.metadata, path)
        if verify:
            opened.verify()
        refuse_other_run(opened.metadata, arguments, path)
        blocks = _read_columns(opened, "index", "fingerprint")
        ended = dict[int, int]()
        if "blocks/ended_share" in opened.names:
            ended = _read_columns(opened, "ended_share", "ended_blocks")
        provenance = _known_provenance(path, opened.metadata)
    number = RANK_NAME.fullmatch(path.name)
    if number is None:
        raise damaged(path, "its name is not that of a rank's file")
    return RankFile(path, int(number[1]), blocks, provenance, ended)


@contextmanager
def _gone_if_missing(path: Path) -> Iterator[None]:
    """Raise FileNotFoundError instead of `FileFormatError` if the file is not there any more."""
    try:
        yield
    except FileFormatError as error:
        if not path.exists():
            raise FileNotFoundError(str(path)) from error
        raise


def _known_provenance(path: Path, metadata: dict[str, str]) -> Provenance:
    """Return the provenance of a file whose checksums are right.

    Raises:
        MismatchError: another version wrote it.
    """
    try:
        return read_provenance(path, metadata)
    except FileFormatError as error:
        raise MismatchError(f"{error}; or {_FOLDER_REMEDY}") from error


def _refuse_other_version(path: Path, schema: str | None) -> None:
    """Raise `MismatchError` for a checkpoint of another version, which is whole."""
    family = CHECKPOINT_SCHEMA.rpartition("/")[0]
    if schema != CHECKPOINT_SCHEMA and str(schema).rpartition("/")[0] == family:
        raise MismatchError(
            f"{str(path)!r} has schema {schema!r}, and this version writes {CHECKPOINT_SCHEMA!r}: "
            f"go on with the version that began it, or give {_FOLDER_REMEDY}"
        )


def _read_columns(opened: MappedTensors, *names: str) -> dict[int, int]:
    """Return two columns of whole numbers as a dictionary, such as fingerprints by block number."""
    sizes: dict[str, int] = {}
    columns = []
    for name in (f"blocks/{name}" for name in names):
        tensor = opened.tensor(name)
        refuse_other_shape(opened.path, name, tensor, "block", sizes)
        refuse_values(opened.path, name, tensor, is_integer=True)
        columns.append(tensor.tolist())
    return dict(zip(*columns, strict=True))


def _refuse_foreign(metadata: dict[str, str], path: Path) -> None:
    """Raise for a file that is no checkpoint of this version, or lacks its checksums."""
    schema = metadata.get("schema_version")
    _refuse_other_version(path, schema)
    if schema != CHECKPOINT_SCHEMA or "data_checksum" not in metadata:
        raise damaged(path, f"its schema is {schema!r}, or it lacks its checksums")


def _read_run(path: Path, arguments: dict[str, Any]) -> Origin:
    """Return the origin in the file that all ranks of a run share.

    Raises:
        FileNotFoundError: no rank has written it.
        FileFormatError: it is damaged.
        MismatchError: it is of a run with other arguments.
    """
    with _gone_if_missing(path):
        file = read_tensor_file(path, None)
        _refuse_foreign(file.metadata, path)
        # The checksums first: a damaged argument is no other argument.
        file.verify()
        refuse_other_run(file.metadata, arguments, path)
    return _checked_origin(path, file.tensors)


def _read_origin(path: Path) -> Origin:
    """Return the origin in the file of a rank."""
    opened = mapped_tensors(path, CHECKPOINT_SCHEMA)
    names = [name for name in opened.names if name.startswith(ORIGIN)]
    return _checked_origin(path, {name: opened.tensor(name).clone() for name in names})


def _checked_origin(path: Path, tensors: Mapping[str, Tensor]) -> Origin:
    """Return the tensors of an origin, after a check of their shapes and values."""
    origin = {name: tensor for name, tensor in tensors.items() if name.startswith(ORIGIN)}
    for name, tensor in origin.items():
        refuse_other_shape(path, name, tensor, "d", {})
        refuse_values(path, name, tensor)
    return origin


def _start_from(moments: Accumulator, origin: Origin, device: torch.device, folder: Path) -> None:
    # An origin of other hook points, with fitting checksums, is in no file that we wrote.
    with as_damage(folder / RUN_NAME):
        moments.start_from({name: tensor.to(device) for name, tensor in origin.items()})


def _rename_damaged(path: Path, error: FileFormatError) -> None:
    """Rename a damaged file, so that it is not read again.

    The caller has seen that it was not written anew while it was read.
    """
    aside = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(aside)
    except FileNotFoundError:
        return  # another rank has renamed it already
    logger.warning("%s; it is renamed to %s and its blocks are harvested again", error, aside.name)


def _refuse_overlap(files: list[RankFile]) -> None:
    seen: dict[int, Path] = {}
    for file in files:
        both = file.blocks.keys() & seen.keys()
        if both:
            raise MismatchError(
                f"{seen[min(both)].name} and {file.path.name} in {str(file.path.parent)!r} "
                f"both hold block {min(both)}: two runs wrote there at once; "
                "remove the folder and harvest again"
            )
        seen |= dict.fromkeys(file.blocks, file.path)
