"""Hidden states in safetensors files, one per sequence, as vLLM writes them.

Problem: an engine writes while the harvest reads, its files appear in any order, and a file that is
read before it is complete gives wrong numbers. Mechanism: a file counts as soon as nobody holds the
``.lock`` beside it and its size is what its header says; its states are read whole, and it must not
have changed since its token ids were read.

    hidden_states [token, layer, d] and token_ids [token]       # vLLM; columns by the manifest
    blocks.3.hook_resid_post [token, d], …, and token_ids       # named by hook points

Limits: one file must fit into memory.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from lrt_lens._tensor_files import file_state
from lrt_lens.errors import FileFormatError, HookPointError, MismatchError
from lrt_lens.moments._rank_lock import is_locked
from lrt_lens.moments.states._manifest import MANIFEST_NAME, StateManifest, hook_name
from lrt_lens.moments.states._safetensors_header import read_header
from lrt_lens.moments.states._sequence import (
    StateSequence,
    as_states,
    checked_ids,
    refuse_other_width,
    shown,
    with_states,
)

STATES, IDS = "hidden_states", "token_ids"
"""Names of the tensors of vLLM."""


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
    _has_documents: bool = False
    is_removable: bool = field(default=True, init=False)

    @property
    def name(self) -> str:
        """Path of the folder."""
        return str(self.folder)

    @property
    def has_documents(self) -> bool:
        """True if the files name their documents in their metadata."""
        return self.manifest.has_documents or self._has_documents

    def expected(self) -> int | None:
        """Return the number of sequences of the manifest."""
        return self.manifest.n_sequences

    def unfinished(self) -> list[str]:
        """Return the files that are not complete."""
        return [
            path.name
            for path in self._files()
            if path.name not in self._seen and self._opened(path) is None
        ]

    def arrived(self) -> Iterator[StateSequence]:
        """Yield the files that are complete and were not yielded yet, in the order of names."""
        for path in self._files():
            if path.name not in self._seen and (sequence := self._opened(path)) is not None:
                self._seen.add(path.name)
                yield sequence

    def ids(self, place: Any) -> np.ndarray:
        """Return the token ids in one file [token]."""
        ids = read_header(place.path).array(IDS)
        return checked_ids(ids, shown(place.path))[: place.n_tokens]

    def read(self, place: Any, hooks: Sequence[str]) -> dict[str, Tensor]:
        """Return the states of one file, ``{hook: [token, d]}``.

        Raises:
            FileFormatError: it was changed or removed after its ids had been read.
        """
        path, where = place.path, shown(place.path)
        try:
            if file_state(path) != place.state:
                raise _changed(path)
            tensors = load(path.read_bytes())
        except FileNotFoundError as error:
            raise FileFormatError(f"{where} was removed while the harvest ran") from error
        except SafetensorError as error:
            raise _changed(path) from error
        if STATES not in tensors:
            return {hook: as_states(tensors[self._names[hook]], where) for hook in hooks}
        states = as_states(tensors[STATES], where)[: place.n_tokens]
        return {hook: states[:, self.hooks.index(hook)] for hook in hooks}

    def remove(self, place: Any) -> None:
        """Delete a file, and the lock that vLLM leaves beside it."""
        place.path.unlink(missing_ok=True)
        _lock_of(place.path).unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"), key=natural_order)

    def _opened(self, path: Path) -> StateSequence | None:
        """Return the sequence in a file after checks of its names and shapes; None if unfinished.

        Unfinished is a file that is locked, or with fewer bytes than its header announces.
        """
        where = shown(path)
        if _is_being_written(path):
            return None
        try:
            state = file_state(path)
            header = read_header(path)
            shapes = header.shapes
            if IDS not in shapes:
                raise FileFormatError(
                    f"{where} has the tensors {sorted(shapes)[:5]} and no {IDS!r}; expected"
                    f" {IDS!r} [token] and {STATES!r} [token, layer, d]"
                )
            ids = checked_ids(header.array(IDS), where)
            del shapes[IDS]
        except (SafetensorError, FileNotFoundError):
            return None
        if file_state(path) != state:  # written between the two: it is looked at again
            return None
        n_states = self._check(shapes, where)
        ids = with_states(ids, n_states, where)
        document = header.metadata.get("document")
        self._has_documents = document is not None or self._has_documents
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


def natural_order(path: Path) -> list[tuple[int, int | str]]:
    """Return a key that sorts names with numbers by these numbers: 2 before 10."""
    pieces = re.split(r"(\d+)", path.name)
    return [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in pieces]


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
