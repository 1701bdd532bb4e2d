"""Checkpoints of a harvest: one file a rank, with its moments *and* the blocks that are in them;
any number of ranks resumes them.

    with Checkpoint(folder, arguments, share, every=120.0) as checkpoint:
        checkpoint.resume(moments, device)              # what earlier runs left
        for block in blocks:
            if not checkpoint.has(block):
                with checkpoint.adding(block): moments.add_block(…)
                checkpoint.write_if_due(moments)

A folder holds ``run.safetensors`` (the run's arguments and the shift that all ranks share: whoever
writes it first decides) and for each rank ``rank{r}.safetensors`` and ``rank{r}.lock``. Moments and
block numbers are in one file that is renamed into place, so that they cannot disagree, and a block
is in the moments of exactly one file. On resuming, rank ``r`` of ``w`` continues its own file and
takes over those of ranks ``r + w, r + 2w, …``: it writes the sum first and removes them then; where
it dies between, the old files are subsets of the new one and count no more.

A rank holds its lock while it lives (``flock``), so that a process that outlived its launcher
cannot add to the same files, and others see when it died.

Limits: files are read by ranks of one run at a time; on file systems without ``flock`` nobody
notices a process that was left over.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrt_lens._files import make_folder, write_atomically
from lrt_lens.data._blocks import Block, Share
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._interrupts import Interrupts
from lrt_lens.moments._provenance import Provenance
from lrt_lens.moments._rank_lock import RankLock

logger = logging.getLogger(__name__)

CHECKPOINT_SCHEMA = "lrt_lens.checkpoint/1"
RUN_NAME = "run.safetensors"
_WRITING_SHARE = 0.05
"""Writing may take this share of the time: with large moments checkpoints become rarer than asked
for.
"""


class RunIsOver(Exception):  # noqa: N818 (control flow, no error)
    """Another rank has merged everything and removed the checkpoints."""


@dataclass(frozen=True)
class RankFile:
    """What one rank has left."""

    path: Path
    rank: int
    blocks: dict[int, int]
    """Finished blocks and their fingerprints."""
    provenance: Provenance


class Checkpoint:
    """One rank's part in a folder of checkpoints; a context manager, which holds the rank's lock."""

    def __init__(
        self,
        folder: Path,
        arguments: dict[str, Any],
        share: Share,
        *,
        every: float = 120.0,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        if every <= 0:
            raise ValueError(f"checkpoint_every is {every}; expected seconds above 0")
        self.folder, self.arguments, self.share, self.every = folder, arguments, share, every
        self.rank, self.n_ranks = share.rank
        self.path = folder / rank_name(self.rank)
        self.is_over = is_over
        self.own: dict[int, int] = {}
        self.others: dict[int, int] = {}
        self.is_torn = False
        """Whether something failed while rows were being added: such moments are not written."""
        self._taken_over: list[Path] = []
        self._unwritten = False
        self._due = 0.0
        self._interrupts = Interrupts()
        self._lock = RankLock(folder, self.rank)

    def __enter__(self) -> "Checkpoint":
        make_folder(self.folder)
        self._lock.acquire(self.n_ranks)
        self._interrupts.install()
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

    def resume(self, moments: CrossMoments, device: torch.device) -> None:
        """Fill empty ``moments`` with what this rank continues and takes over; raise
        `MismatchError` where the folder is another run's.
        """
        files = read_rank_files(self.folder, self.arguments, verify=True)
        if self.is_over():  # looked up after the files: the result is there before they are removed
            raise RunIsOver
        shift = self._read_run() or next((_read_shift(file.path) for file in files), None)
        for file in files:
            (self.own if file.rank % self.n_ranks == self.rank else self.others).update(file.blocks)
        ours = [file for file in files if file.rank % self.n_ranks == self.rank]
        if shift is not None:
            _start_at(moments, shift, device)
        for file in ours:
            add_file(moments, file)
        self._taken_over = [file.path for file in ours if file.path != self.path]
        self._unwritten = bool(self._taken_over)
        if files and self.rank == 0:
            logger.info(
                "%s: %d blocks were finished before", self.folder, len(self.own) + len(self.others)
            )

    def share_shift(self, moments: CrossMoments) -> None:
        """Put the shift of newly started, empty moments where all ranks find it; take what another
        rank has put there first.
        """
        tensors = {
            name: t.detach().cpu()
            for name, t in moments.tensors().items()
            if name.startswith("shift/")
        }
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=f".{self.path.name}.")
        os.close(handle)
        try:
            save_file(
                tensors,
                name,
                metadata={
                    "schema_version": CHECKPOINT_SCHEMA,
                    "arguments": json.dumps(self.arguments),
                },
            )
            try:
                os.link(
                    name, self.folder / RUN_NAME
                )  # unlike a renaming, a link does not replace what is there
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                Path(name).replace(self.folder / RUN_NAME)
        finally:
            Path(name).unlink(missing_ok=True)
        shift = self._read_run()
        if shift is not None:
            _start_at(moments, shift, moments.n.device)

    def _read_run(self) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
        path = self.folder / RUN_NAME
        try:
            refuse_other_run(_read_metadata(path), self.arguments, path)
            return _read_shift(path)
        except FileNotFoundError:
            return None
        except FileFormatError as error:
            _set_aside(path, error)
            return None

    # ----------------------------------------------------------------------------------- harvesting

    def has(self, block: Block) -> bool:
        """Whether the block is in somebody's moments; MismatchError where it held other tokens
        then.
        """
        known = self.own.get(block.index, self.others.get(block.index))
        if known is not None and known != block.fingerprint:
            raise MismatchError(
                f"block {block.index} holds other tokens than when {str(self.folder)!r} was begun: the documents are not the "
                "same, or not in the same "
                "order; give the same documents, another --out, or --restart to begin again"
            )
        return known is not None

    def refuse_shorter_stream(self, n_blocks: int) -> None:
        """Raise MismatchError where blocks were finished that the documents no longer fill."""
        last = max([*self.own, *self.others], default=-1)
        if last >= n_blocks:
            raise MismatchError(
                f"{str(self.folder)!r} holds block {last}, and the documents fill only {n_blocks}: they are not the same; "
                "give the same documents, "
                "another --out, or --restart to begin again"
            )

    @contextmanager
    def adding(self, block: Block) -> Iterator[None]:
        """While a block's rows go into the moments: an interrupt waits until they are all there,
        and the block is noted as finished.
        """
        with self._interrupts.held():
            self.is_torn = True
            yield
            self.own[block.index] = block.fingerprint
            self.is_torn, self._unwritten = False, True

    @contextmanager
    def saving(self, moments: CrossMoments) -> Iterator[None]:
        """Whatever ends the harvest, what was added is written first."""
        try:
            yield
        except BaseException:
            self.write(moments)
            raise

    def write_if_due(self, moments: CrossMoments) -> None:
        """Write where ``every`` seconds have passed since the last time."""
        if time.monotonic() >= self._due:
            self.write(moments)

    def write(self, moments: CrossMoments) -> None:
        """Write this rank's file, unless nothing is new; then remove those that it took over."""
        if self.is_torn or not self._unwritten or self.is_over():
            return
        start = time.monotonic()
        with self._interrupts.held():
            self._write(moments)
            for path in self._taken_over:
                path.unlink(missing_ok=True)
            self._taken_over, self._unwritten = [], False
        took = time.monotonic() - start
        self._due = time.monotonic() + max(self.every, took / _WRITING_SHARE)

    def _write(self, moments: CrossMoments) -> None:
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in moments.tensors().items()
        }
        for name, values in (("index", self.own.keys()), ("fingerprint", self.own.values())):
            tensors[f"blocks/{name}"] = torch.tensor(list(values), dtype=torch.int64)
        metadata = moments.metadata() | {
            "schema_version": CHECKPOINT_SCHEMA,
            "arguments": json.dumps(self.arguments),
            "checksum": _checksum(tensors),
        }

        def save(temporary: Path) -> None:
            save_file(tensors, temporary, metadata=metadata)
            # A machine that dies must find either the old file or the whole new one.
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())

        write_atomically(self.path, save)


# -------------------------------------------------------------------------------------------- files


def rank_name(rank: int) -> str:
    """Name of a rank's file."""
    return f"rank{rank}.safetensors"


def read_rank_files(
    folder: Path, arguments: dict[str, Any], *, verify: bool = False
) -> list[RankFile]:
    """What the ranks have left, superseded files aside; ``verify`` reads all numbers and sets
    broken files aside with a warning.

    Raises MismatchError for files of a run with other arguments.
    """
    while True:
        files = []
        try:
            for path in sorted(folder.glob("rank*.safetensors")):
                try:
                    file = _read_rank_file(path, arguments, verify)
                except FileFormatError as error:
                    _set_aside(path, error)
                else:
                    files.append(file)
        except FileNotFoundError:
            continue  # another rank took it over between our listing and our reading: only a new listing is consistent
        ranked = sorted(files, key=lambda file: (-len(file.blocks), file.rank))
        counted: list[RankFile] = []
        for file in ranked:
            if not any(file.blocks.keys() <= larger.blocks.keys() for larger in counted):
                counted.append(file)
        _refuse_overlap(counted)
        return sorted(counted, key=lambda file: file.rank)


def add_file(moments: CrossMoments, file: RankFile) -> None:
    """Add a rank's moments in place, one tensor at a time; MismatchError where they are about
    another shift.
    """
    if not add_stored(moments, file.path):
        raise MismatchError(
            f"{str(file.path)!r} is about another shift than the other ranks' moments; remove the folder and harvest again"
        )
    moments.provenance = moments.provenance.with_documents_of(file.provenance)


def add_stored(moments: CrossMoments, path: Path) -> bool:
    """Add the tensors of a file in place, one at a time; False, and nothing added, where they are
    others or about another shift.
    """
    ours = moments.tensors()
    with safe_open(path, framework="pt") as opened:
        read = lambda name: opened.get_tensor(name).to(ours[name].device)  # noqa: E731
        if not ours.keys() <= set(opened.keys()) or not all(
            torch.equal(ours[name], read(name)) for name in ours if name.startswith("shift/")
        ):
            return False
        for name, tensor in ours.items():
            if not name.startswith("shift/"):
                tensor += read(name)
    return True


def remove_checkpoints(folder: Path) -> None:
    """Remove a finished (or abandoned) run's checkpoints, and the folder where nothing else is in
    it.
    """
    for pattern in ("rank*.safetensors*", ".rank*.safetensors.*", f"{RUN_NAME}*", "rank*.lock"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def refuse_other_run(metadata: dict[str, str], arguments: dict[str, Any], path: Path) -> None:
    """Raise MismatchError naming every argument in which a file was begun otherwise."""
    theirs, ours = (
        _flat(json.loads(metadata["arguments"])),
        _flat(json.loads(json.dumps(arguments))),
    )
    differing = [
        f"{name} was {_short(theirs.get(name))} and is {_short(ours.get(name))}"
        for name in ours | theirs
        if ours.get(name) != theirs.get(name)
    ]
    if differing:
        raise MismatchError(
            f"{str(path)!r} was begun with other arguments: {'; '.join(differing[:4])}; give the same arguments (every rank "
            "the same models), another --out, "
            "or --restart to begin again"
        )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
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
    metadata = _read_metadata(path)
    refuse_other_run(metadata, arguments, path)
    try:
        with safe_open(path, framework="pt") as opened:
            index, fingerprint = (
                opened.get_tensor("blocks/index").tolist(),
                opened.get_tensor("blocks/fingerprint").tolist(),
            )
            names = opened.keys() if verify else ()
            if (
                verify
                and _checksum({name: opened.get_tensor(name) for name in names})
                != metadata["checksum"]
            ):
                raise FileFormatError(
                    f"{str(path)!r} is damaged: its numbers do not add up to its checksum"
                )
            provenance = Provenance.from_json(metadata["provenance"])
            rank = int(path.name.removeprefix("rank").removesuffix(".safetensors"))
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise (
            error
            if isinstance(error, FileFormatError)
            else FileFormatError(f"{str(path)!r} is damaged ({error})")
        ) from error
    return RankFile(path, rank, dict(zip(index, fingerprint, strict=True)), provenance)


def _read_metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise FileFormatError(
            f"{str(path)!r} is truncated or no safetensors file ({error})"
        ) from error
    if metadata.get("schema_version") != CHECKPOINT_SCHEMA:
        raise FileFormatError(
            f"{str(path)!r} has schema {metadata.get('schema_version')!r}; expected {CHECKPOINT_SCHEMA!r}"
        )
    return metadata


def _read_shift(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    source, target = {}, {}
    with safe_open(path, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (no iterator on a safetensors file)
            kind, _, rest = name.partition("/")
            if kind == "shift":
                role, _, hook = rest.partition("/")
                (source if role == "source" else target)[hook] = opened.get_tensor(name)
    return source, target


def _start_at(
    moments: CrossMoments, shift: tuple[dict[str, Tensor], dict[str, Tensor]], device: torch.device
) -> None:
    x, y = ({hook: values.to(device) for hook, values in side.items()} for side in shift)
    moments.start_at(x, y)


def _checksum(tensors: dict[str, Tensor]) -> str:
    """Sum of all numbers as integers modulo 2⁶⁴: as fast as memory, and a page of zeros or a
    flipped bit changes it.
    """
    return f"{sum(int(tensor.contiguous().view(torch.int64).sum()) for tensor in tensors.values()) % 2**64:016x}"


def _set_aside(path: Path, error: FileFormatError) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(aside)
    except FileNotFoundError:
        return  # another rank was faster
    logger.warning(
        "%s; it is set aside as %s and its blocks are harvested again", error, aside.name
    )


def _refuse_overlap(files: list[RankFile]) -> None:
    seen: dict[int, Path] = {}
    for file in files:
        both = file.blocks.keys() & seen.keys()
        if both:
            raise MismatchError(
                f"{seen[min(both)].name} and {file.path.name} in {str(file.path.parent)!r} both hold block {min(both)}: two "
                "runs wrote there at once; remove the "
                "folder and harvest again"
            )
        seen |= dict.fromkeys(file.blocks, file.path)
