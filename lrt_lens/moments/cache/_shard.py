"""One shard of a cache: memory-mapped streams, and a table of its blocks and windows.

Rows lie block by block, and within a block window by window. Names of the tensors:

    source/{hook}, target/{hook}                       [row, d]
    blocks/index|fingerprint|part|rows|windows|documents|digest|capped     [block]
    windows/document|length|rows                       [window]: key, tokens, unmasked tokens
    tokens/id [token], rows/position [row]             if the cache has tokens

Problem: a machine that loses power may leave pages of zeros in a file of the right size. Mechanism:
the header of a file has two sums of the bytes of each tensor. The sum over the first 64 bytes of
each page is compared when a tensor is first read; the sum over all bytes is compared before a
writer continues a cache (`Shard.verify`).

Limits: a sum does not detect two changes that cancel each other; `Shard.verify` compares a hash
too.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from lrt_lens._stored_fields import as_damage, stored_value
from lrt_lens._tensor_files import (
    MappedTensors,
    damaged,
    mapped_tensors,
    refuse_other_shape,
    refuse_values,
    write_tensors,
)
from lrt_lens.data._parts import N_PARTS
from lrt_lens.data._windows import Block, Window
from lrt_lens.errors import FileFormatError
from lrt_lens.moments.cache._manifest import (
    CACHE_SCHEMA,
    DTYPES,
    Manifest,
    ShardRecord,
    file_problem,
)

_WORD, _LINE, _PAGE = 8, 64, 4096
"""Bytes of a 64-bit integer, of the start of a page that a quick check reads, and of a page."""
_BLOCK_COLUMNS = (
    "index",
    "fingerprint",
    "part",
    "rows",
    "windows",
    "documents",
    "digest",
    "capped",
)


@dataclass(frozen=True)
class BlockTable:
    """Blocks and windows of a shard, in the order of its rows."""

    index: np.ndarray
    """Number of each block in the stream of blocks [block]."""
    fingerprint: np.ndarray
    """Hash of the tokens and masks of each block, 63 bits [block]."""
    part: np.ndarray
    """Part of the documents of each block [block]."""
    rows: np.ndarray
    """Number of rows of each block [block]."""
    windows: np.ndarray
    """Number of windows of each block [block]."""
    documents: np.ndarray
    """Number of documents that begin in each block [block]."""
    digest: np.ndarray
    """Sum of the hashes of these documents modulo 2⁶⁴, uint64 [block]."""
    capped: np.ndarray
    """Number of these documents that are longer than the cap of tokens per document [block]."""
    window_document: np.ndarray
    """Key of the document of each window, uint64 [window]."""
    window_length: np.ndarray
    """Number of tokens of each window [window]; 0 if the cache has no tokens."""
    window_rows: np.ndarray
    """Number of unmasked tokens of each window [window]."""

    @property
    def row_part(self) -> np.ndarray:
        """Part of the document of each row, as [row]."""
        return np.repeat(self.part, self.rows)

    @property
    def row_document(self) -> np.ndarray:
        """Key of the document of each row, [row] of uint64."""
        return np.repeat(self.window_document, self.window_rows)

    @classmethod
    def of(cls, blocks: Sequence[tuple[Block, int, Sequence[Window]]]) -> "BlockTable":
        """Return the table of blocks, each with its fingerprint and its windows in row order."""
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
            capped=whole([block.n_capped for block, _, _ in blocks]),
            window_document=unsigned([window.document for window in windows]),
            window_length=whole([len(window.ids) for window in windows]),
            window_rows=whole([len(window.rows) for window in windows]),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the columns as tensors, by their names in a file."""
        named = {f"blocks/{name}": getattr(self, name) for name in _BLOCK_COLUMNS}
        named |= {
            f"windows/{name}": getattr(self, f"window_{name}")
            for name in ("document", "length", "rows")
        }
        # torch computes little with uint64: its bits are stored as int64.
        return {name: torch.from_numpy(values.view(np.int64)) for name, values in named.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "BlockTable":
        """Return the table that `tensors` wrote."""
        numbers = {
            name.replace("blocks/", "").replace("windows/", "window_"): t.numpy()
            for name, t in tensors.items()
        }
        # Keys are stored with the bits of int64; see `tensors`.
        for name in ("digest", "window_document"):
            numbers[name] = numbers[name].view(np.uint64)
        # Shards of earlier versions, which had no cap, lack this column.
        numbers.setdefault("capped", np.zeros_like(numbers["index"]))
        return cls(**numbers)

    def problem(self, n_rows: int) -> str | None:
        """Return why these cannot be the blocks of a shard of ``n_rows`` rows; None if they can."""
        columns = {name: values for name, values in vars(self).items() if "window_" not in name}
        of_windows = {name: values for name, values in vars(self).items() if "window_" in name}
        for group in (columns, of_windows):
            shapes = {name: values.shape for name, values in group.items()}
            if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
                return f"its columns have the shapes {shapes}"
        counts = (self.rows, self.windows, self.documents, self.capped)
        if any((values < 0).any() for values in (*counts, self.window_length, self.window_rows)):
            return "a count of its blocks is negative"
        if ((self.part < 0) | (self.part >= N_PARTS)).any():
            return f"a block is of part {self.part.max()}, and there are {N_PARTS}"
        if int(self.windows.sum()) != len(self.window_rows):
            return f"its blocks have {self.windows.sum()} windows of {len(self.window_rows)}"
        starts = np.concatenate([[0], np.cumsum(self.windows)])
        of_block = np.diff(np.concatenate([[0], np.cumsum(self.window_rows)])[starts])
        if not np.array_equal(of_block, self.rows) or int(self.rows.sum()) != n_rows:
            return f"its blocks have {self.rows.sum()} rows, the manifest says {n_rows}"
        return None


class Shard:
    """Shard of a cache, whose files are opened on first use.

    Streams are mapped from the disk, everything else is copied.
    """

    def __init__(
        self,
        folder: Path,
        record: ShardRecord,
        manifest: Manifest,
        verified: set[tuple[str, str]] | None = None,
    ) -> None:
        """Create a shard.

        Args:
            folder: folder of the cache.
            record: the shard in the manifest.
            manifest: precision and widths of the streams.
            verified: collects the (file, tensor) names that were checked.
        """
        self.folder, self.record = folder, record
        self._dtype, self._widths = DTYPES[manifest.dtype], manifest.streams
        self._verified = set() if verified is None else verified
        self._opened: dict[str, tuple[MappedTensors, dict[str, list[str]]]] = {}
        self._kept: dict[str, Tensor] = {}

    def stream(self, role: str, hook: str) -> Tensor:
        """Return the activations at a hook point, [row, d], memory-mapped."""
        return self._tensor(f"{role}/{hook}")

    def refuse_changed(self) -> None:
        """Raise `FileFormatError` if a file was cut or written to since it was opened."""
        for opened, _ in self._opened.values():
            opened.refuse_changed()

    @cached_property
    def table(self) -> BlockTable:
        """Blocks and windows of the shard."""
        first = self.record.files[0].name
        names = [n for n in self._file(first)[0].names if n.startswith(("blocks/", "windows/"))]
        with as_damage(self.folder / first):
            table = BlockTable.from_tensors({name: self._tensor(name) for name in names})
        if problem := table.problem(self.record.n_rows):
            raise damaged(self.folder / first, problem)
        return table

    def blocks(self, *, tokens: bool) -> Iterator[tuple[Block, slice, list[Window]]]:
        """Yield (block, slice of its rows, its windows in row order).

        ``tokens`` decides whether the windows have token ids and positions.
        """
        table, window, row = self.table, 0, 0
        if tokens:
            self._refuse_other_tokens()
        ids = self._tensor("tokens/id").numpy() if tokens else np.empty(0, dtype=np.int32)
        positions = (
            self._tensor("rows/position").numpy() if tokens else np.arange(self.record.n_rows)
        )
        # The tokens of window i are ids[ends[i] - length[i] : ends[i]].
        ends = np.cumsum(table.window_length)
        for k in range(len(table.index)):
            order, start = [], row
            for i in range(window, window + int(table.windows[k])):
                n_rows = int(table.window_rows[i])
                window_ids = (
                    ids[ends[i] - table.window_length[i] : ends[i]].tolist() if tokens else []
                )
                window_positions = positions[row : row + n_rows].astype(np.int64)
                order.append(Window(window_ids, window_positions, int(table.window_document[i])))
                row += n_rows
            window += int(table.windows[k])
            yield (
                Block(
                    part=int(table.part[k]),
                    windows=order,
                    n_rows=row - start,
                    index=int(table.index[k]),
                    n_documents=int(table.documents[k]),
                    digest=int(table.digest[k]),
                    n_capped=int(table.capped[k]),
                ),
                slice(start, row),
                order,
            )

    def _refuse_other_tokens(self) -> None:
        path = self.folder / self.record.files[0].name
        sizes = {"token": int(self.table.window_length.sum()), "row": self.record.n_rows}
        for name, axes in (("tokens/id", "token"), ("rows/position", "row")):
            refuse_other_shape(path, name, self._tensor(name), axes, sizes)
            refuse_values(path, name, self._tensor(name), is_integer=True)

    def verify(self) -> None:
        """Read all bytes; raise FileFormatError if a file is missing, truncated or damaged."""
        for file in self.record.files:
            opened, sums = self._file(file.name)
            if "data_checksum" in opened.metadata:
                opened.verify()
                continue
            # Files of earlier versions have the sums of their bytes alone.
            for name in opened.names:
                total = byte_sum(opened.tensor(name))
                self._refuse_damaged(file.name, name, total == sums.get(name, [""])[0])

    def _tensor(self, name: str) -> Tensor:
        """Return a tensor, checked on its first use."""
        if name in self._kept:
            return self._kept[name]
        # Later files hold streams only; blocks, windows and tokens are in the first one.
        for file in reversed(self.record.files):
            if name in file.streams or file is self.record.files[0]:
                opened, sums = self._file(file.name)
                path = self.folder / file.name
                if name not in opened.names:
                    raise FileFormatError(
                        f"{str(path)!r} lacks {name!r}; "
                        "it is not the file that was written there: copy the cache again"
                    )
                tensor = opened.tensor(name)
                if name in self._widths:
                    self._refuse_other_stream(path, name, tensor)
                if (file.name, name) not in self._verified:
                    total = byte_sum(tensor, every_page=True)
                    self._refuse_damaged(file.name, name, total == sums.get(name, [""])[-1])
                    self._verified.add((file.name, name))
                if name not in self._widths:
                    # Small: a copy, which does not change with the file.
                    tensor = self._kept[name] = tensor.clone()
                return tensor
        raise KeyError(name)

    def _refuse_other_stream(self, path: Path, name: str, tensor: Tensor) -> None:
        sizes = {"row": self.record.n_rows, "d": self._widths[name]}
        refuse_other_shape(path, name, tensor, "row d", sizes)
        if tensor.dtype != self._dtype:
            raise damaged(path, f"{name!r} is {tensor.dtype}, the manifest says {self._dtype}")

    def _refuse_damaged(self, file: str, name: str, is_whole: bool) -> None:
        if not is_whole:
            raise FileFormatError(
                f"{name!r} in {str(self.folder / file)!r} is damaged: its bytes do not add up to "
                "what was written; copy the file again, or remove it and record with the same "
                "arguments"
            )

    def _file(self, name: str) -> tuple[MappedTensors, dict[str, list[str]]]:
        """Return (open file, sums of the bytes of its tensors), opened once."""
        if name not in self._opened:
            (file,) = (file for file in self.record.files if file.name == name)
            if problem := file_problem(self.folder, file):
                raise FileFormatError(cut_short(problem))
            path = self.folder / name
            opened = mapped_tensors(path, CACHE_SCHEMA)
            sums = stored_value(path, dict[str, list[str]], opened.metadata.get("sums"), "'sums'")
            self._opened[name] = opened, sums
        return self._opened[name]


def cut_short(problem: str) -> str:
    """Return the message for a file that is missing or truncated."""
    return (
        f"the cache was cut short: {problem}; copy it again, or record with the same arguments, "
        "which replaces what is missing"
    )


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> int:
    """Write one file with the sums of its bytes, and return its size in bytes."""
    sums = {
        name: [byte_sum(tensor), byte_sum(tensor, every_page=True)]
        for name, tensor in tensors.items()
    }
    write_tensors(path, dict(tensors), {"schema_version": CACHE_SCHEMA, "sums": json.dumps(sums)})
    return path.stat().st_size


def byte_sum(tensor: Tensor, *, every_page: bool = False) -> str:
    """Return the sum of the bytes of a tensor as 64-bit integers modulo 2⁶⁴, in hexadecimal.

    With ``every_page``, only the first 64 bytes of each 4,096 count, and the bytes after the last
    whole page.
    """
    # numpy, because torch reads 64-bit integers at multiples of 8 bytes only.
    octets = tensor.contiguous().flatten().view(torch.uint8).numpy()
    step = _PAGE if every_page else _WORD
    whole = len(octets) // step * step
    # Whole words or pages are added as integers (overflow wraps modulo 2⁶⁴), the rest by bytes.
    words = octets[:whole].view(np.int64)
    if every_page:
        words = rearrange(words, "(page word) -> page word", word=_PAGE // _WORD)
        words = words[:, : _LINE // _WORD]
    total = int(words.sum()) + int(octets[whole:].sum(dtype=np.int64))
    return f"{total % 2**64:016x}"
