"""Hidden states in safetensors files, one per sequence, as vLLM writes them.

Problem: an engine writes while the harvest reads, its files appear in any order, and a file that is
read before it is complete gives wrong numbers. Mechanism: a file counts as soon as nobody holds the
``.lock`` beside it and its size is what its header says; its states are read whole, and it must not
have changed since its token ids were read.

    hidden_states [token, layer, d] and token_ids [token]       # vLLM; columns by the manifest
    blocks.3.hook_resid_post [token, d], …, and token_ids       # named by hook points

Limits: one file must fit into memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from torch import Tensor

from lrt_lens._tensor_files import file_state
from lrt_lens.errors import FileFormatError, HookPointError, MismatchError
from lrt_lens.moments._rank_lock import is_locked
from lrt_lens.moments.states._manifest import MANIFEST_NAME, StateManifest, hook_name
from lrt_lens.moments.states._safetensors_header import read_header
from lrt_lens.moments.states._sequence import (
    IDS,
    STATES,
    StateSequence,
    as_states,
    checked_ids,
    new_files,
    refuse_other_width,
    shown,
    with_states,
)


@dataclass(frozen=True)
class _FilePlace:
    """A file, its state when its ids were read, and its number of tokens with a state."""

    path: Path
    state: Any
    n_tokens: int


@dataclass
class SafetensorsStore:
    """Sequences in the safetensors files of a folder.

    Raises:
        FileFormatError: a file holds something else.
        HookPointError: nobody says what the columns are.
        MismatchError: a file has another width, or other columns, than the first one.
    """

    folder: Path
    manifest: StateManifest
    hooks: tuple[str, ...] = field(default=(), init=False)
    d_model: int = field(default=0, init=False)
    _seen: set[str] = field(repr=False, default_factory=set)
    _shape: tuple[int, ...] = ()
    """Widths and columns of the first file."""
    _names: dict[str, str] = field(default_factory=dict)
    """Name of the tensor of each hook point, where files name them."""
    kind: str = field(default="safetensors", init=False)
    is_removable: bool = field(default=True, init=False)
    is_iterator: bool = field(default=False, init=False)
    has_documents: bool = field(default=False, init=False)
    _unfinished: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.has_documents = self.manifest.has_documents

    @property
    def name(self) -> str:
        """Path of the folder."""
        return str(self.folder)

    def expected(self) -> int | None:
        """Return the number of sequences of the manifest."""
        return self.manifest.n_sequences

    def unfinished(self) -> list[str]:
        """Return the files that were not complete at the last look."""
        return list(self._unfinished)

    def arrived(self) -> Iterator[StateSequence]:
        """Yield the files that are complete and were not yielded yet, in the order of names."""
        new = new_files(self.folder, ".safetensors", self._seen)
        self._unfinished = []
        for path in new:
            if (sequence := self._opened(path)) is None:
                self._unfinished.append(path.name)
            else:
                self._seen.add(path.name)
                yield sequence

    def ids(self, place: Any) -> np.ndarray:
        """Return the token ids in one file [token]."""
        with _unchanged(place) as file:
            ids = read_header(place.path, file).array(IDS, file)
        return checked_ids(ids, shown(place.path))[: place.n_tokens]

    def read(self, place: Any, hooks: Sequence[str]) -> dict[str, Tensor]:
        """Return the states of one file, ``{hook: [token, d]}``.

        Raises:
            FileFormatError: it was changed or removed after its ids had been read.
        """
        where = shown(place.path)
        with _unchanged(place) as file:
            header = read_header(place.path, file)
            if STATES not in header.entries:
                names = {hook: self._names[hook] for hook in hooks}
                return {hook: as_states(header.tensor(names[hook], file), where) for hook in hooks}
            states = as_states(header.tensor(STATES, file), where)[: place.n_tokens]
        return {hook: states[:, self.hooks.index(hook)] for hook in hooks}

    def remove(self, place: Any) -> None:
        """Delete a file, and the lock that vLLM leaves beside it."""
        place.path.unlink(missing_ok=True)
        _lock_of(place.path).unlink(missing_ok=True)

    def _opened(self, path: Path) -> StateSequence | None:
        """Return the sequence in a file after checks of its names and shapes; None if unfinished.

        Unfinished is a file that is locked, or with fewer bytes than its header announces.
        """
        where = shown(path)
        if _is_being_written(path):
            return None
        try:
            with open(path, "rb") as file:
                state = file_state(file.fileno())
                header = read_header(path, file)
                shapes = header.shapes
                if IDS not in shapes:
                    raise FileFormatError(
                        f"{where} has the tensors {sorted(shapes)[:5]} and no {IDS!r}; expected"
                        f" {IDS!r} [token] and {STATES!r} [token, layer, d]"
                    )
                ids = checked_ids(header.array(IDS, file), where)
                del shapes[IDS]
        except (SafetensorError, FileNotFoundError):
            return None
        if file_state(path) != state:  # written between the two: it is looked at again
            return None
        n_states = self._check(shapes, where)
        ids = with_states(ids, n_states, where)
        document = header.metadata.get("document")
        self.has_documents = document is not None or self.has_documents
        return StateSequence(ids, _FilePlace(path, state, len(ids)), path.name, document)

    def _check(self, shapes: dict[str, list[int]], where: str) -> int:
        """Return the number of tokens with states; the first file decides hooks and width."""
        if STATES in shapes:
            shape = shapes[STATES]
            if len(shape) != 3:
                raise FileFormatError(
                    f"{STATES!r} of {where} has shape {shape}; expected [token, layer, d]"
                )
            self._decide_columns(shape, where)
            return shape[0]
        if not shapes:
            raise FileFormatError(f"{where} has token ids and no states")
        self._decide_names(shapes, where)
        return next(iter(shapes.values()))[0]

    def _decide_columns(self, shape: list[int], where: str) -> None:
        columns = self.manifest.columns
        if columns is None:
            raise HookPointError(
                f"{where} has {shape[1]} columns of states, and nothing says which hook points they"
                f" are; give StateFolder(folder, layer_ids=[…]), with 0 for the embedding and k + 1"
                f" for the output of block k, or write {MANIFEST_NAME}"
            )
        if len(columns) != shape[1]:
            raise MismatchError(
                f"{where} has {shape[1]} columns of states; expected {len(columns)}, one for each"
                f" of {list(columns)}: mend layer_ids or hooks in {MANIFEST_NAME}"
            )
        if not self._shape:
            self.hooks, self.d_model = columns, shape[2]
            self._shape = (shape[1], shape[2])
        refuse_other_width(shape[2], self.d_model, where, f"the files before it in {self.name!r}")

    def _decide_names(self, shapes: dict[str, list[int]], where: str) -> None:
        if not self._shape:
            self._names = {hook_name(name): name for name in shapes}
            wanted = self.manifest.columns
            self.hooks = tuple(sorted(self._names)) if wanted is None else wanted
        missing = [hook for hook in self.hooks if self._names.get(hook) not in shapes]
        if missing:
            raise MismatchError(
                f"{where} has states of {sorted(shapes)[:5]} and none of {missing[:5]}; expected"
                " the same hook points in every file"
            )
        flat = {name: shape for name, shape in shapes.items() if len(shape) != 2}
        lengths = {shape[0] for shape in shapes.values()}
        if flat or len(lengths) > 1:
            raise FileFormatError(
                f"the states of {where} have shapes {shapes}; expected [token, d] with one number"
                " of tokens"
            )
        for name, shape in shapes.items():
            if not self._shape:
                self.d_model, self._shape = shape[1], (shape[1],)
            refuse_other_width(
                shape[1], self.d_model, f"{name!r} in {where}", "others before it in this folder"
            )


@contextmanager
def _unchanged(place: _FilePlace) -> Iterator[BinaryIO]:
    """Open a file, and refuse one that was changed since its ids were read, or is meanwhile."""
    try:
        with open(place.path, "rb") as file:
            if file_state(file.fileno()) != place.state:
                raise _changed(place.path)
            yield file
            if file_state(file.fileno()) != place.state:
                raise _changed(place.path)
    except FileNotFoundError as error:
        raise FileFormatError(f"{shown(place.path)} was removed while the harvest ran") from error
    except SafetensorError as error:
        raise _changed(place.path) from error


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _is_being_written(path: Path) -> bool:
    """Return whether the lock of a file says that it is being written.

    vLLM creates the lock first, holds it (``flock``) while it writes, and leaves it behind. Another
    writer may put one beside a file that it writes again.
    """
    lock = _lock_of(path)
    try:
        is_newer = lock.stat().st_mtime_ns > path.stat().st_mtime_ns
    except FileNotFoundError:
        return False
    return is_newer or is_locked(lock)


def _changed(path: Path) -> FileFormatError:
    return FileFormatError(
        f"{shown(path)} was changed while the harvest ran; let the writer finish, or write under"
        " another name and rename"
    )
