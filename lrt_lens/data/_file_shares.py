"""Documents divided by their files, so that each process reads only its own.

Problem: processes that share one stream of blocks must all read and tokenize every document of it.
Mechanism: documents that come as several files, or as shards of a data set, are divided into a
fixed number of *shares*, each with its own stream of blocks and an equal part of ``n_tokens``.
Whole shares are then given to processes. What a share holds does not depend on the processes, so
any number of them gives the same sums. Files go to the share with the fewest bytes, largest file
first. All processes must see the same files: `FileShares.manifest` has their names and sizes, and
is compared with that of every other process and of the run that is resumed.

    shares = FileShares.of(DocumentSource("corpus/"), count=16)
    for block in iterate_blocks(shares.documents(3), model, shares.plan(plan, 3)): ...
    shares.refuse_changed(3)                        # a file was cut while it was read

Limits: a cap of tokens per document, group or text holds within a share, with the share's part of
``n_tokens``. One file is never divided, and files of one size may have different numbers of tokens.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lrt_lens.data._documents import Documents, DocumentSource, named_data_set, named_files
from lrt_lens.data._windows import BlockPlan
from lrt_lens.errors import FileFormatError

_FEWER = "give fewer shares, or none, so that every process reads all documents"


@runtime_checkable
class _Divided(Protocol):
    """Documents in shares."""

    @property
    def manifest(self) -> dict[str, str]:
        """Parts of the documents by name, with what tells whether they are the same."""
        ...

    def share(self, index: int) -> Documents:
        """Return the documents of a share."""
        ...

    def refuse_changed(self, index: int) -> None:
        """Raise `FileFormatError` if the documents of a share are not what they were."""
        ...


@dataclass(frozen=True)
class FileShares:
    """Documents divided into shares by their files, or by the shards of a data set."""

    source: DocumentSource
    count: int
    """Number of shares."""
    divided: _Divided
    manifest: dict[str, str]
    """JSON values that are equal for all processes that see the same documents."""

    @classmethod
    def of(cls, documents: Documents, count: int) -> "FileShares":
        """Return the documents in ``count`` shares; no document is read.

        Raises:
            FileFormatError: there is no such file, or there are fewer files than shares.
            ValueError: the documents are neither files nor a data set that can be divided, or
                their groups are a list of values.
        """
        source = DocumentSource.of(documents)
        group = source.group
        if group is not None and not isinstance(group, str) and not callable(group):
            raise ValueError(
                f"group is a {type(group).__name__} with one value per document, and file_shares "
                "divides the documents by files; give the name of a column, or a function of a row"
            )
        divided = _divided(source.documents, count)
        return cls(source, count, divided, divided.manifest)

    @property
    def digest(self) -> str:
        """Hash of the manifest and of the number of shares."""
        content = json.dumps([self.count, self.manifest], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def documents(self, index: int) -> DocumentSource:
        """Return the documents of a share, with the columns of the whole.

        Raises:
            FileFormatError: a file is not what it was when the documents were divided.
        """
        self.refuse_changed(index)
        return replace(self.source, documents=self.divided.share(index))

    def plan(self, plan: BlockPlan, index: int) -> BlockPlan:
        """Return the plan of a share: ``n_tokens`` is divided equally, the first have one more."""
        if plan.n_tokens is None:
            return plan
        n_each, n_more = divmod(plan.n_tokens, self.count)
        return replace(plan, n_tokens=n_each + (index < n_more))

    def refuse_changed(self, index: int) -> None:
        """Raise `FileFormatError` if a file of a share has another size than at the beginning."""
        self.divided.refuse_changed(index)


# ------------------------------------------------------------------------------------------ sources


def _divided(documents: Documents, count: int) -> _Divided:
    is_list = isinstance(documents, list | tuple) and bool(documents)
    if is_list and all(isinstance(one, os.PathLike) for one in documents):
        listed = [file for one in documents for file in _files_of(one)]
        return _Files.of(listed, count)
    if isinstance(documents, str | os.PathLike):
        files = named_files(documents)
        if files is not None:
            return _Files.of(files, count)
        documents = named_data_set(documents)
    # Tables of pandas and polars have no `shard`.
    if hasattr(documents, "shard") and hasattr(documents, "column_names"):
        return _DataSet.of(documents, count)
    raise ValueError(
        f"file_shares is {count}, and documents is a {type(documents).__name__}, which is in one "
        "piece; expected a folder, a pattern or a list of pathlib.Path objects with at least that "
        "many files, or a data set (datasets.load_dataset): give one, or no shares"
    )


def _files_of(path: "os.PathLike[str]") -> list[Path]:
    files = named_files(path)
    if files is None:
        raise ValueError(
            f"{os.fspath(path)!r} among the documents is a saved data set; with file_shares give "
            "it alone, or only files"
        )
    return files


@dataclass(frozen=True)
class _Files:
    """Files in shares of about equal bytes."""

    paths: tuple[Path, ...]
    sizes: tuple[int, ...]
    """Bytes of each file."""
    shares: tuple[tuple[int, ...], ...]
    """Positions of the files of each share, ascending."""

    @classmethod
    def of(cls, paths: Sequence[Path], count: int) -> "_Files":
        sizes = [path.stat().st_size for path in paths]
        n_filled = sum(size > 0 for size in sizes)
        if n_filled < count:
            empty = f", of which {len(sizes) - n_filled} are empty" if n_filled < len(sizes) else ""
            raise FileFormatError(
                f"file_shares is {count}, and documents are {len(paths)} file(s){empty}; expected "
                f"at least one file with text per share: split the files, or {_FEWER}"
            )
        if len({os.path.realpath(path) for path in paths}) < len(paths):
            raise FileFormatError(
                f"the {len(paths)} files of the documents hold one file twice; give each once"
            )
        return cls(tuple(paths), tuple(sizes), _balanced(sizes, count))

    @property
    def manifest(self) -> dict[str, str]:
        # Machines may see one folder under several paths: names count from where all files are.
        common = os.path.commonpath([path.absolute().parent for path in self.paths])
        return {
            Path(os.path.relpath(path.absolute(), common)).as_posix(): f"{size:,} bytes"
            for path, size in zip(self.paths, self.sizes, strict=True)
        }

    def share(self, index: int) -> list[Path]:
        return [self.paths[number] for number in self.shares[index]]

    def refuse_changed(self, index: int) -> None:
        for number in self.shares[index]:
            path, size = self.paths[number], self.sizes[number]
            now = path.stat().st_size if path.is_file() else None
            if now != size:
                observed = "is gone" if now is None else f"has {now:,} bytes"
                raise FileFormatError(
                    f"{str(path)!r} {observed} and had {size:,} bytes when this process began; "
                    "expected that no file changes during a harvest: restore it, remove the "
                    "checkpoints, and harvest again"
                )


def _balanced(sizes: Sequence[int], count: int) -> tuple[tuple[int, ...], ...]:
    """Return the positions of the files of each share, whose bytes are about equal.

    The largest file that is left goes to the share with the fewest bytes so far.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    n_bytes = [0] * count
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        index = min(range(count), key=lambda index: (n_bytes[index], len(shares[index]), index))
        shares[index].append(number)
        n_bytes[index] += sizes[number]
    return tuple(tuple(sorted(share)) for share in shares)


@dataclass(frozen=True)
class _DataSet:
    """Data set of the library datasets in shares of contiguous rows, or of whole shards."""

    data: Any
    count: int
    kind: str
    """Name of the parts: ``"rows"``, or ``"shards"`` of a data set that is streamed."""
    n_parts: int
    """Number of rows or shards."""

    @classmethod
    def of(cls, data: Any, count: int) -> "_DataSet":
        if isinstance(data, Mapping):
            raise ValueError(
                f"documents is a dict of data sets with the splits {list(data)[:5]}; give one split"
            )
        kind = "rows" if hasattr(data, "__len__") else "shards"
        n_parts = len(data) if kind == "rows" else int(data.num_shards)
        if n_parts < count:
            remedy = "" if kind == "rows" else "stream a data set of more files, "
            raise FileFormatError(
                f"file_shares is {count}, and the data set has {n_parts} {kind}; expected at least "
                f"one per share: {remedy}{_FEWER}"
            )
        return cls(data, count, kind, n_parts)

    @property
    def manifest(self) -> dict[str, str]:
        names = ", ".join(self.data.column_names or ())
        return {self.kind: f"{self.n_parts:,}", "columns": names}

    def share(self, index: int) -> Any:
        return self.data.shard(num_shards=self.count, index=index, contiguous=True)

    def refuse_changed(self, index: int) -> None:
        """Data sets are not checked: those in memory and in Arrow files do not change."""
