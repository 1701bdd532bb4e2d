"""Hidden states in ``.npy`` files with one entry per token, mapped from the disk.

    folder/states.json: {"schema_version": "lrt_lens.states/1", "n_layers": 12, "arrays": {
        "token_ids": "ids.npy", "sequences": "sequence.npy",
        "states": {"blocks.2.hook_resid_post": "layer2.npy", "5": "layer5.npy"}}}

Limits: sequences cannot be deleted one by one.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lrt_lens._tensor_files import file_state
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.moments.states._manifest import MANIFEST_NAME, ArrayFiles, StateManifest, hook_name
from lrt_lens.moments.states._sequence import (
    STATES,
    StateSequence,
    as_states,
    checked_ids,
    refuse_other_width,
    shown,
)


@dataclass
class ArrayStore:
    """Sequences in arrays of one folder.

    Raises:
        FileFormatError: a file is missing or no array, or holds something else.
        MismatchError: the arrays differ in length or width.
    """

    folder: Path
    manifest: StateManifest
    hooks: tuple[str, ...] = field(default=(), init=False)
    d_model: int = field(default=0, init=False)
    kind: str = field(default="npy", init=False)
    is_removable: bool = field(default=False, init=False)
    is_iterator: bool = field(default=False, init=False)
    has_documents: bool = field(default=False, init=False)
    _is_read: bool = False

    def __post_init__(self) -> None:
        files = self._files = _required(self.manifest.arrays)
        self.has_documents = files.documents is not None
        self._ids = self._mapped(files.token_ids)
        arrays = {name: self._mapped(file) for name, file in files.states.items()}
        self._columns: dict[str, tuple[np.ndarray, int | None]] = {}
        for name, array in arrays.items():
            where = shown(self.folder / files.states[name])
            if name == STATES:
                names = self.manifest.columns or ()
                if array.ndim != 3 or array.shape[1] != len(names):
                    raise FileFormatError(
                        f"{where} has shape {list(array.shape)}; expected [token, layer, d] with"
                        f" {len(names)} layers, as layer_ids or hooks in {MANIFEST_NAME} say"
                    )
                self._columns |= {hook: (array, column) for column, hook in enumerate(names)}
            elif array.ndim != 2:
                raise FileFormatError(f"{where} has shape {list(array.shape)}; expected [token, d]")
            else:
                self._columns[hook_name(name)] = array, None
            self._refuse_other_length(array, where)
        self.hooks = tuple(self._columns)
        self.d_model = next(iter(arrays.values())).shape[-1]
        for name, array in arrays.items():
            where = shown(self.folder / files.states[name])
            refuse_other_width(array.shape[-1], self.d_model, where, "the other arrays")
        self._states = {path: file_state(path) for path in map(self._path, files.states.values())}

    @property
    def name(self) -> str:
        """Path of the folder."""
        return str(self.folder)

    def expected(self) -> int | None:
        """Return None: the arrays are complete."""
        return None

    def unfinished(self) -> list[str]:
        """Return nothing: the arrays are complete."""
        return []

    def arrived(self) -> Iterator[StateSequence]:
        """Yield all sequences, once."""
        if self._is_read:
            return
        self._is_read = True
        numbers = self._mapped(self._files.sequences)
        self._refuse_other_length(numbers, shown(self._path(self._files.sequences)), n_axes=1)
        documents = None if self._files.documents is None else self._mapped(self._files.documents)
        if documents is not None:
            where = shown(self._path(self._files.documents or ""))
            self._refuse_other_length(documents, where, n_axes=1)
        if not len(numbers):
            return
        # A sequence ends where its number changes.
        bounds = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(numbers)]
        where = shown(self._path(self._files.token_ids))
        seen = set[Any]()
        for begin, end in itertools.pairwise(bounds):
            if (number := numbers[begin].item()) in seen:
                raise FileFormatError(
                    f"sequence {number} of {self.name!r} begins again at token {begin}; expected"
                    " the tokens of one sequence one behind the other: sort them"
                )
            seen.add(number)
            if documents is not None and np.any(documents[begin:end] != documents[begin]):
                raise FileFormatError(
                    f"sequence {number} of {self.name!r} is of two documents; expected the tokens"
                    " of one document in a sequence"
                )
            document = None if documents is None else documents[begin].item()
            ids = checked_ids(self._ids[begin:end], where)
            yield StateSequence(ids, (begin, end), f"sequence {number}", document)

    def ids(self, place: Any) -> np.ndarray:
        """Return the token ids of one sequence [token]."""
        return np.asarray(self._ids[slice(*place)], dtype=np.int64)

    def read(self, place: Any, hooks: Sequence[str]) -> dict[str, Tensor]:
        """Return the states of one sequence, ``{hook: [token, d]}``.

        Raises:
            FileFormatError: a file was changed after it had been opened.
        """
        for path, state in self._states.items():
            if file_state(path) != state:
                raise FileFormatError(f"{shown(path)} was changed while the harvest ran")
        rows = {}
        for hook in hooks:
            array, column = self._columns[hook]
            rows_of_place = array[slice(*place)]
            values = rows_of_place if column is None else rows_of_place[:, column]
            rows[hook] = as_states(values, f"{hook!r} in {self.name!r}")
        return rows

    def remove(self, place: Any) -> None:
        """Raise ValueError: arrays hold all sequences.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"sequences in the arrays of {self.name!r} cannot be deleted one by one ({place});"
            " leave consume out"
        )

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _mapped(self, name: str) -> np.ndarray:
        path = self._path(name)
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise FileFormatError(f"{name!r} lies outside of {self.name!r}; expected a name in it")
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FileFormatError(f"{shown(path)} is missing or no .npy array ({error})") from error

    def _refuse_other_length(
        self, array: np.ndarray, where: str, n_axes: int | None = None
    ) -> None:
        if n_axes is not None and array.ndim != n_axes:
            raise FileFormatError(
                f"{where} has shape {list(array.shape)}; expected one entry per token, [token]"
            )
        if len(array) != len(self._ids):
            raise MismatchError(
                f"{where} has {len(array)} entries and {self._files.token_ids!r} {len(self._ids)};"
                " expected one entry per token in every array"
            )


def _required(arrays: ArrayFiles | None) -> ArrayFiles:
    if arrays is None or not arrays.states:
        raise FileFormatError(
            f"{MANIFEST_NAME} names no arrays; expected 'arrays' with token_ids, sequences and"
            " states"
        )
    return arrays
