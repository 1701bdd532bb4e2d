"""One shard of a cache: memory-mapped streams, and the table of the blocks and windows that its
rows come from.

Rows lie block by block, within a block window by window. Names of tensors:

    source/{hook}, target/{hook}                       [row, d]
    blocks/index|fingerprint|part|rows|windows|documents|digest     [block]
    windows/document|length|rows                        [window]: key, tokens, unmasked tokens
    tokens/id [token], rows/position [row]              where the cache has tokens

Two sums of every tensor's bytes are in the file's header. That of one line of every page is looked
up when a tensor is first read, so that pages that a dying machine left empty are not taken for
activations; that of all bytes before a writer goes on (`Shard.verify`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrt_lens._files import read_tensors, write_tensors
from lrt_lens.data._blocks import Block
from lrt_lens.data._windows import Window
from lrt_lens.errors import FileFormatError
from lrt_lens.moments.cache._manifest import CACHE_SCHEMA, ShardRecord, file_problem

_WORD, _LINE, _PAGE = 8, 64, 4096


@dataclass(frozen=True)
class BlockTable:
    """The blocks and windows of a shard, in the order of its rows."""

    index: np.ndarray
    """[block], its number in the stream."""
    fingerprint: np.ndarray
    """[block], 63 bits."""
    part: np.ndarray
    """[block]."""
    rows: np.ndarray
    """[block], how many."""
    windows: np.ndarray
    """[block], how many."""
    documents: np.ndarray
    """[block], how many begin there."""
    digest: np.ndarray
    """[block], uint64: sum of their keys."""
    window_document: np.ndarray
    """[window], uint64: key."""
    window_length: np.ndarray
    """[window], tokens; 0 where there are none."""
    window_rows: np.ndarray
    """[window]."""

    @property
    def row_part(self) -> np.ndarray:
        """[row]."""
        return np.repeat(self.part, self.rows)

    @property
    def row_document(self) -> np.ndarray:
        """[row], uint64."""
        return np.repeat(self.window_document, self.window_rows)

    @classmethod
    def of(cls, blocks: Sequence[tuple[Block, int, Sequence[Window]]]) -> "BlockTable":
        """Of (block, fingerprint, its windows in the order of the rows)."""
        windows = [window for _, _, order in blocks for window in order]
        whole = lambda values: np.array(values, dtype=np.int64)  # noqa: E731
        unsigned = lambda values: np.array(values, dtype=np.uint64)  # noqa: E731
        return cls(
            index=whole([block.index for block, _, _ in blocks]),
            fingerprint=whole([fingerprint for _, fingerprint, _ in blocks]),
            part=whole([block.part for block, _, _ in blocks]),
            rows=whole([sum(len(window.rows) for window in order) for _, _, order in blocks]),
            windows=whole([len(order) for _, _, order in blocks]),
            documents=whole([block.n_documents for block, _, _ in blocks]),
            digest=unsigned([block.digest for block, _, _ in blocks]),
            window_document=unsigned([window.document for window in windows]),
            window_length=whole([len(window.ids) for window in windows]),
            window_rows=whole([len(window.rows) for window in windows]),
        )

    def tensors(self) -> dict[str, Tensor]:
        """As stored."""
        block_level = ("index", "fingerprint", "part", "rows", "windows", "documents", "digest")
        named = {f"blocks/{name}": getattr(self, name) for name in block_level}
        named |= {
            f"windows/{name}": getattr(self, f"window_{name}")
            for name in ("document", "length", "rows")
        }
        return {name: torch.from_numpy(values.view(np.int64)) for name, values in named.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "BlockTable":
        """Back from `tensors`."""
        numbers = {
            name.replace("blocks/", "").replace("windows/", "window_"): t.numpy()
            for name, t in tensors.items()
        }
        for name in ("digest", "window_document"):
            numbers[name] = numbers[name].view(np.uint64)
        return cls(**numbers)


class Shard:
    """A shard, opened when something is read from it."""

    def __init__(
        self, folder: Path, record: ShardRecord, verified: set[tuple[str, str]] | None = None
    ) -> None:
        """``verified`` remembers, for whoever shares it, which tensors of which files were found
        whole.
        """
        self.folder, self.record = folder, record
        self._verified = set() if verified is None else verified
        self.opened_tensors: dict[str, tuple[dict[str, Tensor], dict[str, list[str]]]] = {}

    def stream(self, role: str, hook: str) -> Tensor:
        """[row, d], memory-mapped."""
        return self._tensor(f"{role}/{hook}")

    @cached_property
    def table(self) -> BlockTable:
        """Its blocks."""
        names = [
            n
            for n in self._file(self.record.files[0].name)[0]
            if n.startswith(("blocks/", "windows/"))
        ]
        return BlockTable.from_tensors({name: self._tensor(name) for name in names})

    def blocks(self, *, tokens: bool) -> Iterator[tuple[Block, slice, list[Window]]]:
        """(block, its rows, its windows in the order of the rows); ``tokens``: with their ids and
        positions.
        """
        table, window, row = self.table, 0, 0
        ids = self._tensor("tokens/id").numpy() if tokens else np.empty(0, dtype=np.int32)
        positions = (
            self._tensor("rows/position").numpy() if tokens else np.arange(self.record.n_rows)
        )
        ends = np.cumsum(table.window_length)
        for k in range(len(table.index)):
            order, start = [], row
            for i in range(window, window + int(table.windows[k])):
                own = ids[ends[i] - table.window_length[i] : ends[i]].tolist() if tokens else []
                order.append(
                    Window(
                        own,
                        positions[row : row + table.window_rows[i]].astype(np.int64),
                        int(table.window_document[i]),
                    )
                )
                row += int(table.window_rows[i])
            window += int(table.windows[k])
            yield (
                Block(
                    part=int(table.part[k]),
                    windows=order,
                    n_rows=row - start,
                    index=int(table.index[k]),
                    n_documents=int(table.documents[k]),
                    digest=int(table.digest[k]),
                ),
                slice(start, row),
                order,
            )

    def verify(self) -> None:
        """Read everything; FileFormatError where a file is missing, cut short or damaged."""
        for file in self.record.files:
            tensors, sums = self._file(file.name)
            for name, tensor in tensors.items():
                self._refuse_damaged(file.name, name, byte_sum(tensor) == sums.get(name, [""])[0])

    def _tensor(self, name: str) -> Tensor:
        for file in reversed(self.record.files):
            if name in file.streams or file is self.record.files[0]:
                tensors, sums = self._file(file.name)
                if name not in tensors:
                    raise FileFormatError(
                        f"{str(self.folder / file.name)!r} lacks {name!r}; it is not the file that was written there"
                    )
                if (file.name, name) not in self._verified:
                    self._refuse_damaged(
                        file.name,
                        name,
                        byte_sum(tensors[name], every_page=True) == sums.get(name, [""])[-1],
                    )
                    self._verified.add((file.name, name))
                return tensors[name]
        raise KeyError(name)

    def _refuse_damaged(self, file: str, name: str, is_whole: bool) -> None:
        if not is_whole:
            raise FileFormatError(
                f"{name!r} in {str(self.folder / file)!r} is damaged: its bytes do not add up to what was written; copy the file again, or remove it and "
                "record with the same arguments"
            )

    def _file(self, name: str) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        if name not in self.opened_tensors:
            (file,) = (file for file in self.record.files if file.name == name)
            if problem := file_problem(self.folder, file):
                raise FileFormatError(cut_short(problem))
            tensors, metadata = read_tensors(self.folder / name, CACHE_SCHEMA)
            self.opened_tensors[name] = tensors, json.loads(metadata["sums"])
        return self.opened_tensors[name]


def cut_short(problem: str) -> str:
    """The message for a file that is missing or truncated."""
    return f"the cache was cut short: {problem}; copy it again, or record with the same arguments, which replaces what is missing"


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> int:
    """Write one file; returns its bytes."""
    sums = {
        name: [byte_sum(tensor), byte_sum(tensor, every_page=True)]
        for name, tensor in tensors.items()
    }
    write_tensors(path, dict(tensors), {"schema_version": CACHE_SCHEMA, "sums": json.dumps(sums)})
    return path.stat().st_size


def byte_sum(tensor: Tensor, *, every_page: bool = False) -> str:
    """Sum of a tensor's bytes, eight at a time modulo 2⁶⁴, in hexadecimal; ``every_page``: of the
    first 64 of every 4,096 only, and of the rest behind them.
    """
    # numpy: torch refuses words at odd offsets of a file.
    octets = tensor.contiguous().flatten().view(torch.uint8).numpy()
    step = _PAGE if every_page else _WORD
    whole = len(octets) // step * step
    words = octets[:whole].view(np.int64)
    if every_page:
        words = words.reshape(-1, _PAGE // _WORD)[:, : _LINE // _WORD]
    return f"{(int(words.sum()) + int(octets[whole:].sum(dtype=np.int64))) % 2**64:016x}"
