"""Hidden states in parquet files, one row per sequence.

Columns: ``token_ids`` [token], the states as ``hidden_states`` [token][layer][d] (columns of the
manifest) or one column per hook point [token][d], and ``document`` if documents are known. Nested
lists and lists that are flat are both read.

Limits: parquet has no bfloat16; a row group is decoded whole, and the last few stay in memory.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from lrt_lens._tensor_files import file_state
from lrt_lens.errors import FileFormatError, HookPointError, MismatchError
from lrt_lens.moments.states._manifest import MANIFEST_NAME, StateManifest, hook_name
from lrt_lens.moments.states._sequence import (
    IDS,
    STATES,
    StateSequence,
    as_states,
    checked_ids,
    new_files,
    refuse_other_width,
    shown,
)

DOCUMENT = "document"
_GROUPS_IN_MEMORY = 4


@dataclass(frozen=True)
class _RowPlace:
    """A row of a row group of a file, and its number of tokens with a state."""

    path: Path
    group: int
    row: int
    n_tokens: int
    state: Any
    """State of the file when the ids were read."""


@dataclass
class ParquetStore:
    """Sequences in the parquet files of a folder.

    Raises:
        FileFormatError: a file holds something else.
        HookPointError: nobody says what the columns are.
        MismatchError: a row has another width than those before it.
    """

    folder: Path
    manifest: StateManifest
    hooks: tuple[str, ...] = field(default=(), init=False)
    d_model: int = field(default=0, init=False)
    kind: str = field(default="parquet", init=False)
    is_removable: bool = field(default=True, init=False)
    is_iterator: bool = field(default=False, init=False)
    has_documents: bool = field(default=False, init=False)
    _left: dict[str, int] = field(default_factory=dict)
    """Rows of each file that were not removed, by its name."""
    _unfinished: list[str] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)
    """Name of the column of each hook point, or ``hidden_states`` for all of them."""
    _groups: "OrderedDict[tuple[Path, int, bool], pa.Table]" = field(default_factory=OrderedDict)
    """Row groups that were read last; those of token ids alone are apart from whole ones."""
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def name(self) -> str:
        """Path of the folder."""
        return str(self.folder)

    def expected(self) -> int | None:
        """Return the number of sequences of the manifest."""
        return self.manifest.n_sequences

    def unfinished(self) -> list[str]:
        """Return the files without the bytes that end a parquet file, at the last look."""
        return list(self._unfinished)

    def arrived(self) -> Iterator[StateSequence]:
        """Yield the rows of the files that are complete and were not yielded yet."""
        new = new_files(self.folder, ".parquet", self._left)
        self._unfinished = []
        for path in new:
            state = file_state(path)
            try:
                file = pq.ParquetFile(path)
            except (pa.ArrowInvalid, OSError):
                self._unfinished.append(path.name)
                continue
            self._left[path.name] = file.metadata.num_rows
            if not file.metadata.num_rows:
                continue
            self._decide(path, file)
            names = [IDS, *([DOCUMENT] if DOCUMENT in file.schema_arrow.names else [])]
            self.has_documents = self.has_documents or DOCUMENT in names
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=names)
                documents = table[DOCUMENT].to_pylist() if DOCUMENT in names else None
                for row in range(len(table)):
                    where = f"row {row} of row group {group} of {shown(path)}"
                    ids = checked_ids(np.asarray(table[IDS][row].values), where)
                    place = _RowPlace(path, group, row, len(ids), state)
                    name = f"{path.name}/{group}/{row}"
                    yield StateSequence(ids, place, name, documents and documents[row])

    def ids(self, place: Any) -> np.ndarray:
        """Return the token ids of one row [token]."""
        ids = self._group(place, is_whole=False)[IDS][place.row].values
        return checked_ids(np.asarray(ids), shown(place.path))

    def read(self, place: Any, hooks: Sequence[str]) -> dict[str, Tensor]:
        """Return the states of one row, ``{hook: [token, d]}``.

        Raises:
            FileFormatError: the file was changed or removed after its ids had been read, or a cell
                has another shape.
        """
        table = self._group(place)
        where = f"row {place.row} of row group {place.group} of {shown(place.path)}"
        if STATES not in self._names:
            return {hook: self._column(table, self._names[hook], place, where) for hook in hooks}
        states = self._column(table, STATES, place, where)
        return {hook: states[:, self.hooks.index(hook)] for hook in hooks}

    def remove(self, place: Any) -> None:
        """Delete the file of a row once all of its rows were removed."""
        self._left[place.path.name] -= 1
        if not self._left[place.path.name]:
            place.path.unlink(missing_ok=True)

    def _decide(self, path: Path, file: pq.ParquetFile) -> None:
        """Take hook points and width from the first file, and refuse other columns later."""
        names = [name for name in file.schema_arrow.names if name not in (IDS, DOCUMENT)]
        where = shown(path)
        if IDS not in file.schema_arrow.names or not names:
            raise FileFormatError(
                f"{where} has the columns {file.schema_arrow.names}; expected {IDS!r} and"
                f" {STATES!r}, or one column of states per hook point"
            )
        columns = self.manifest.columns
        if not self._names:
            if STATES in names:
                if columns is None:
                    raise HookPointError(
                        f"{where} has {STATES!r}, and nothing says which hook points its columns"
                        f" are; give StateFolder(folder, layer_ids=[…]) or write {MANIFEST_NAME}"
                    )
                self.hooks, self._names = columns, {STATES: STATES}
            else:
                self._names = {hook_name(name): name for name in names}
                self.hooks = tuple(self._names) if columns is None else columns
            first = file.read_row_group(0).slice(0, 1)
            name = next(iter(self._names.values()))
            n_tokens = len(checked_ids(np.asarray(first[IDS][0].values), f"row 0 of {where}"))
            n_columns = len(self.hooks) if name == STATES else 1
            n_numbers = len(_flat(first[name], 0, f"{name!r} in row 0 of {where}")[0])
            self.d_model = n_numbers // (n_tokens * n_columns)
        if STATES in self._names:
            missing = [] if STATES in names else [STATES]
        else:
            missing = [hook for hook in self.hooks if self._names.get(hook) not in names]
        if missing:
            raise MismatchError(
                f"{where} lacks the columns {missing}, which the files before it have or"
                f" {MANIFEST_NAME} names; it has {names}"
            )

    def _group(self, place: _RowPlace, *, is_whole: bool = True) -> pa.Table:
        """Return a row group, or its token ids alone."""
        # Rows are read ahead in one thread while another asks for ids.
        with self._lock:
            return self._group_of(place, (place.path, place.group, is_whole))

    def _group_of(self, place: _RowPlace, key: tuple[Path, int, bool]) -> pa.Table:
        if file_state(place.path) != place.state:
            raise FileFormatError(
                f"{shown(place.path)} was changed while the harvest ran; let the writer finish, or"
                " write under another name and rename"
            )
        if key not in self._groups:
            columns = [IDS, *(dict.fromkeys(self._names.values()) if key[2] else ())]
            file = pq.ParquetFile(place.path)
            self._groups[key] = file.read_row_group(place.group, columns=columns)
            while len(self._groups) > _GROUPS_IN_MEMORY:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]

    def _column(self, table: pa.Table, name: str, place: _RowPlace, where: str) -> Tensor:
        """Return the states in a cell: [token, layer, d] of ``hidden_states``, else [token, d]."""
        flat, shape = _flat(table[name], place.row, f"{name!r} in {where}")
        n_columns = len(self.hooks) if name == STATES else 1
        width, rest = divmod(len(flat), place.n_tokens * n_columns)
        # A cell that is flat has no shape; one that is nested must not be read as another.
        allowed = [(len(flat),), (place.n_tokens, n_columns * width)]
        if name == STATES:
            allowed.append((place.n_tokens, n_columns, width))
        if rest or shape not in allowed:
            wanted = (
                f"[token, layer, d] with {n_columns} layers" if name == STATES else "[token, d]"
            )
            raise FileFormatError(
                f"{name!r} in {where} has shape {list(shape)} for {place.n_tokens} tokens; expected"
                f" {wanted}: mend the file, or layer_ids or hooks in {MANIFEST_NAME}"
            )
        refuse_other_width(width, self.d_model, where, "the rows before it")
        shape = (n_columns, width) if name == STATES else (width,)
        return as_states(flat.reshape(place.n_tokens, *shape), where)


def _flat(column: pa.ChunkedArray, row: int, where: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return all numbers of one cell, and the shape of its lists.

    Raises:
        FileFormatError: it holds no lists of numbers, or lists of several lengths.
    """
    refusal = FileFormatError(
        f"{where} has type {column.type} or lists of several lengths; expected lists of numbers, of"
        " one length for every token"
    )
    values: Any = getattr(column[row], "values", None)
    if values is None:
        raise refusal
    shape = [len(values)]
    while isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        # Lists of several lengths, or one that is missing, have no shape.
        if values.null_count or len(values.value_lengths().unique()) > 1:
            raise refusal
        shape.append(len(values.flatten()) // max(1, len(values)))
        values = values.flatten()
    if pa.types.is_nested(values.type) or not shape[0]:
        raise refusal
    return values.to_numpy(zero_copy_only=False), tuple(shape)
