"""Documents from anything that contains texts, and the part of a corpus that each belongs to.

Problem: folds are made of documents, and no window extends over two of them, so all sources of text
must become a stream of documents; and every process, shard and later run must assign a document to
the same fold. Mechanism: `iterate_documents` accepts texts, chats (lists of ``{"role",
"content"}``), rows with columns, tables of pandas, pyarrow and datasets, files
(`lrt_lens.data._document_files`) and names of data sets. The hash of a document's normalised text
(`document_key`) decides its part, wherever the document stands in the stream: one of five
cross-validation folds, or one of eight groups of the test fold. Copies that differ in blanks, case
or punctuation are therefore in one part, and so are documents of one group.

    for text in iterate_documents("corpus.csv.gz", tokenizer, text_field="body"): ...
    part_of(document_key("Some text.", seed=0))       # 0 … 12
    PART_NAMES[5]                                     # "test0"
    harvest(pair, DocumentSource("reviews.jsonl", text_field="body", group="author"))

Limits: chats need one tokenizer with a chat template; with fewer than 100 documents a part may stay
empty; copies that differ in more are in other parts (`near_duplicates` finds them).
"""

import glob
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lrt_lens.data._document_files import (
    ARCHIVE_ENDINGS,
    KINDS,
    Rows,
    arrow_rows,
    file_rows,
    is_text_type,
    kind_of,
)
from lrt_lens.data._parts import document_key
from lrt_lens.errors import MismatchError

logger = logging.getLogger(__name__)

Documents = Any
"""A string, an iterable of texts or chats, a file, a table or a data set; see
`iterate_documents`.
"""
_TYPED_ROWS = 100
"""Rows from which the column of the texts is found if the source names no columns."""


@dataclass(frozen=True)
class DocumentSource:
    """Documents with the column that holds their text, and with groups that share a fold.

    Every function that takes documents takes one of these.
    """

    documents: Documents
    """Documents in any form that `iterate_documents` accepts."""
    text_field: str | None = None
    """Column of the texts or chats. None: ``text``, else ``messages``, else the only column with
    texts.
    """
    group: str | Sequence[Any] | Callable[[Any], Any] | None = None
    """Documents that share a fold because they belong together (one book, one conversation): a
    column, one value per document, or a function of a row that returns the value. None: each
    document is on its own.
    """

    @classmethod
    def of(
        cls, documents: Documents, text_field: str | None = None, group: Any = None
    ) -> "DocumentSource":
        """Return ``documents`` with these fields; a `DocumentSource` keeps those that are None."""
        if not isinstance(documents, DocumentSource):
            return cls(documents, text_field, group)
        return cls(
            documents.documents,
            documents.text_field if text_field is None else text_field,
            documents.group if group is None else group,
        )


@dataclass(frozen=True)
class Document:
    """One document as models read it."""

    text: str
    group: Any = None
    """Value that it shares with the other documents of its group; None if there are no groups."""

    def key(self, seed: int) -> int:
        """Return the 64-bit key that decides the fold: of the group, or else of the text."""
        # The rule for groups is that for texts and for ids of rows (`document_keys`).
        return document_key(self.text if self.group is None else str(self.group), seed)


def iterate_documents(
    documents: Documents, *tokenizers: Any, text_field: str | None = None
) -> Iterator[str]:
    """Yield the texts of ``documents``; chats become text by the tokenizer's chat template.

    Missing values and blank texts are left out. Lone surrogates, which no encoding has, are
    replaced by U+FFFD with a warning.

    Args:
        documents: a text, an iterable of texts, chats, rows or paths, a `DocumentSource`, a table
            of pandas, pyarrow or datasets, an array, a file or folder
            (`lrt_lens.data._document_files`), or the name of a data set.
        *tokenizers: tokenizers of the models that read the texts.
        text_field: column of the texts; by default ``text``, else ``messages`` (chats), else the
            only column with texts.

    Raises:
        MismatchError: a document is a chat, and there are two tokenizers.
        ValueError: ``documents`` or one of its rows contains no text, or there is no such file;
            the message names the row.
    """
    source = DocumentSource.of(documents, text_field)
    for document in DocumentReader(source, *tokenizers):
        yield document.text


class DocumentReader:
    """Iterator over the documents of a source; it counts the rows that hold none."""

    def __init__(self, source: Documents, *tokenizers: Any) -> None:
        self.source, self._tokenizers = DocumentSource.of(source), tokenizers
        self.n_empty = 0
        """Rows so far whose text is missing or blank."""
        self._n_repaired = 0
        self._documents = self._read()

    def __iter__(self) -> Iterator[Document]:
        return self._documents

    def __next__(self) -> Document:
        return next(self._documents)

    def _read(self) -> Iterator[Document]:
        columns = _Columns(self.source.text_field, self.source.group)
        groups = columns.group_values()
        for rows in _sources(self.source.documents, columns):
            if rows.columns is not None:
                # Once more for tables whose reader did not ask, and for the name in messages.
                columns.choose(rows.source, rows.columns)
            for number, row in _typed(rows, columns):
                where = rows.where(number)
                # One value per row, also for rows without a text.
                group = columns.group_of(row, where, groups)
                text = self._text(columns.value(row, where), where)
                if text:
                    yield Document(text, group)
                else:
                    self.n_empty += 1
        if groups is not None and next(groups, self) is not self:
            raise ValueError(
                "group has more values than there are documents; give one value per document"
            )

    def _text(self, value: Any, where: str) -> str:
        if is_missing(value):
            return ""
        if not isinstance(value, str):
            value = _chat_text(value, where, self._tokenizers)
        text = without_surrogates(str(value))
        if text != value:
            if not self._n_repaired:
                logger.warning(
                    "%s holds a lone surrogate, which no encoding has; it is read as U+FFFD, and"
                    " so are all others",
                    where,
                )
            self._n_repaired += 1
        return text if text.strip() else ""


# ----------------------------------------------------------------------------------------- sources


def _sources(documents: Documents, columns: "_Columns") -> Iterator[Rows]:
    """Yield the sources of rows in ``documents``: one, or one per file."""
    if isinstance(documents, str | os.PathLike):
        yield from _of_string(documents, columns)
    elif isinstance(documents, Mapping):
        raise ValueError(
            f"documents is a dict with keys {list(documents)[:5]}; give one split of a data set,"
            " a list of texts, or [row] for a single row"
        )
    # A table of pyarrow cannot be iterated.
    elif isinstance(documents, bytes | bytearray) or not (
        hasattr(documents, "__iter__") or hasattr(documents, "num_rows")
    ):
        raise ValueError(
            f"documents is a {type(documents).__name__}; expected a list of texts, a file, a table"
            " or a data set"
        )
    else:
        yield from _of_iterable(documents, columns)


def _of_iterable(documents: Any, columns: "_Columns") -> Iterator[Rows]:
    features = getattr(documents, "features", None)
    names = getattr(documents, "column_names", None)
    if hasattr(documents, "iterrows"):  # a pandas DataFrame; iterating would yield its columns
        records = (dict(zip(documents.columns, row, strict=True)) for row in _tuples(documents))
        yield Rows(enumerate(records), columns=_pandas_columns(documents))
    elif isinstance(features, Mapping) and names:  # a data set whose columns are known
        columns_by_name = {name: _is_text_feature(features.get(name)) for name in names}
        chosen = columns.choose("the data set", columns_by_name)
        narrow = documents.select_columns(list(chosen))
        yield Rows(enumerate(narrow), columns=columns_by_name)
    elif hasattr(documents, "schema") and hasattr(documents, "num_rows"):  # a pyarrow Table
        known = {field.name: is_text_type(field.type) for field in documents.schema}
        narrow = documents.select(list(columns.choose("the table", known)))
        batches = narrow.to_batches() if hasattr(narrow, "to_batches") else [narrow]
        rows = chain.from_iterable(arrow_rows(batch, "the table", 0) for batch in batches)
        yield Rows(enumerate(rows), columns=known)
    elif hasattr(documents, "to_arrow") and hasattr(documents, "columns"):  # a polars DataFrame
        yield from _of_iterable(documents.to_arrow(), columns)
    elif getattr(documents, "ndim", 1) != 1:
        raise ValueError(
            f"documents is an array of {documents.ndim} dimensions; expected one: a text per entry"
        )
    else:
        # pyarrow arrays yield scalars, which know their Python values.
        rows = (row.as_py() if hasattr(row, "as_py") else row for row in documents)
        yield from _with_files(enumerate(rows), columns)


def _with_files(numbered: Iterable[tuple[int, Any]], columns: "_Columns") -> Iterator[Rows]:
    """Yield the rows in memory, and at each `Path` among them the rows of its file."""
    rows, found = iter(numbered), list[Path]()

    def until_a_path() -> Iterator[tuple[int, Any]]:
        for number, row in rows:
            if isinstance(row, os.PathLike):
                found.append(Path(row))
                return
            is_short = isinstance(row, str) and len(row) < 4096 and "\n" not in row
            if is_short and kind_of(row) and os.path.isfile(row):
                raise ValueError(
                    f"document {number} is {row!r}, the name of a file; give the file itself, or a"
                    " list of pathlib.Path objects for several files"
                )
            yield number, row

    while True:
        # The reader takes all rows of one source before it asks for the next source.
        yield Rows(until_a_path())
        if not found:
            return
        yield from _of_string(found.pop(), columns)


def _tuples(frame: Any) -> Iterator[tuple[Any, ...]]:
    return frame.itertuples(index=False, name=None)


def _pandas_columns(frame: Any) -> dict[str, bool]:
    import pandas as pd

    def is_text(column: Any) -> bool:
        kind = column.dtype
        values = kind.categories if isinstance(kind, pd.CategoricalDtype) else column.dropna()
        return bool(pd.api.types.is_string_dtype(values)) and len(values) > 0

    return {str(name): is_text(frame[name]) for name in frame.columns}


def _is_text_feature(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _of_string(documents: "str | os.PathLike[str]", columns: "_Columns") -> Iterator[Rows]:
    """Yield the rows of a file, a folder or a data set on the hub, or else the string as a text."""
    name = os.fspath(documents)
    is_short = len(name) < 4096 and "\n" not in name
    path = Path(name).expanduser() if is_short and name.startswith("~") else Path(name)
    # os.path, unlike pathlib, answers False for a text that is longer than a path can be.
    if is_short and name and os.path.isfile(path):
        yield file_rows(path, columns.choose)
    elif is_short and name and os.path.isdir(path):
        yield from _of_folder(path, columns)
    elif is_short and any(sign in name for sign in "*?[") and kind_of(name):
        matches = sorted(filter(os.path.isfile, glob.glob(str(path), recursive=True)))
        if not matches:
            raise ValueError(f"no file matches {name!r}; give a pattern of files that exist")
        yield from (file_rows(Path(match), columns.choose) for match in matches)
    elif isinstance(documents, os.PathLike) or (is_short and _looks_like_a_path(name)):
        raise ValueError(
            f"no file at {name!r}; give a {' '.join(KINDS)} file that exists (each also with"
            f" {' or '.join(ARCHIVE_ENDINGS)}), or [text] for a text of your own"
        )
    elif name and not any(map(str.isspace, name)):
        # A word without white space is the name of a data set on the hub.
        yield from _of_iterable(_hub_dataset(name), columns)
    else:
        yield Rows([(0, name)])


def _looks_like_a_path(text: str) -> bool:
    begins = text.startswith(("~", "/", "./", "../", "\\")) or re.match(r"[A-Za-z]:[\\/]", text)
    # Without a blank it may also be the name of a data set, such as owner/name-1.1.
    ends = " " in text and re.search(r"[\\/].*\.\w{1,8}$", text) and "://" not in text
    return bool(begins or ends or kind_of(text))


def _of_folder(folder: Path, columns: "_Columns") -> Iterator[Rows]:
    """Yield the rows of all files of one kind in a folder, sorted by name."""
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        import datasets

        yield from _sources(datasets.load_from_disk(str(folder)), columns)
        return
    files = sorted(path for path in folder.iterdir() if path.is_file() and kind_of(path))
    kinds = sorted({str(kind_of(path)) for path in files})
    if len(kinds) != 1:
        observed = f"files of several kinds ({', '.join(kinds)})" if kinds else "no file of a kind"
        raise ValueError(
            f"the folder {str(folder)!r} holds {observed}; expected files of one kind among"
            f" {' '.join(KINDS)}: give a pattern such as {str(folder / '*.jsonl')!r}, or a file"
        )
    yield from (file_rows(path, columns.choose) for path in files)


def _hub_dataset(name: str) -> Iterable[Any]:
    import datasets

    try:
        return datasets.load_dataset(name, split="train", streaming=True)
    except Exception as error:  # datasets has many exceptions for a name that does not exist
        raise ValueError(
            f"{name!r} is neither a file nor a data set that loads ({error});"
            " pass a list of texts for text of your own"
        ) from error


# ----------------------------------------------------------------------------------------- columns


class _Columns:
    """Columns of the texts and groups: as named by the caller, or found from those of the rows."""

    def __init__(self, text_field: str | None, group: Any) -> None:
        self.text_field, self.group = text_field, group
        self.found: str | None = text_field

    def choose(self, source: str, columns: Mapping[str, bool]) -> list[str]:
        """Return the columns to read, and keep the one that holds the texts.

        Args:
            source: name of the source in messages.
            columns: whether each column holds texts.

        Raises:
            ValueError: there is no such column, or no column or several could hold the texts.
        """
        names, texts = list(columns), [name for name, is_text in columns.items() if is_text]
        subject = source or "the table"
        for option, name in (("text_field", self.text_field), ("group", self._group_field)):
            if name is not None and name not in columns:
                raise ValueError(
                    f"{option} is {name!r}, and {subject} has the columns {names}; give one of them"
                )
        self.found = self.text_field or next(
            (name for name in ("text", "messages") if name in columns),
            texts[0] if len(texts) == 1 else None,
        )
        if self.found is None:
            several = f"{len(texts)} of them with texts {texts}" if texts else "none with texts"
            raise ValueError(
                f"{subject} has the columns {names}, {several}; text_field= names the one to read"
            )
        if callable(self.group):
            return names
        # Each once: the groups may be the texts themselves.
        groups = [self._group_field] if self._group_field else []
        return list(dict.fromkeys([self.found, *groups]))

    @property
    def _group_field(self) -> str | None:
        return self.group if isinstance(self.group, str) else None

    def value(self, row: Any, where: str) -> Any:
        """Return the text or chat of a row.

        Raises:
            ValueError: the row has no such column, or it holds something else.
        """
        _refuse_turn(row, where)
        if not isinstance(row, dict):
            if self.text_field is not None and not is_missing(row):
                raise ValueError(
                    f"{where} is a {type(row).__name__} ({str(row)[:60]!r}) without columns;"
                    f" text_field={self.text_field!r} needs rows with columns: leave it out"
                )
            if is_missing(row) or isinstance(row, str) or _is_chat(row):
                return row
            raise ValueError(
                f"{where} is a {type(row).__name__} ({str(row)[:60]!r});"
                " expected a text, a row with 'text', or a chat"
            )
        name = self.text_field
        if name is None:
            # Rows in memory may differ in their columns, and a chat may have an empty text.
            names = [other for other in ("text", "messages", self.found) if other in row]
            name = next((other for other in names if not is_missing(row[other])), None)
            name = name or next(iter(names), self.found)
        if self.text_field is not None and name not in row:
            raise ValueError(
                f"text_field is {name!r}, and {where} has the columns {list(row)[:12]};"
                " give one of them"
            )
        if name is None or name not in row:
            raise ValueError(
                f"{where} is a row with the columns {list(row)[:12]}; expected a text, a row with"
                f" {name or 'text'!r}, or a chat: text_field= names another column"
            )
        value = row[name]
        if is_missing(value) or isinstance(value, str) or _is_chat(value):
            return value
        raise ValueError(
            f"{where} has {str(value)[:60]!r} ({type(value).__name__}) in the column {name!r};"
            " expected a text, or a chat"
        )

    def group_values(self) -> Iterator[Any] | None:
        """Return an iterator over the groups if they were given one per document."""
        if self.group is None or isinstance(self.group, str) or callable(self.group):
            return None
        return iter(self.group)

    def group_of(self, row: Any, where: str, values: Iterator[Any] | None) -> Any:
        """Return the group of a row; None if there are no groups.

        Raises:
            ValueError: the row has none.
        """
        if self.group is None:
            return None
        if isinstance(self.group, str):
            value = row.get(self.group) if isinstance(row, dict) else None
            remedy = f"the column {self.group!r} has no value there"
        elif callable(self.group):
            value, remedy = self.group(row), "the function returned None"
        else:
            value = None if values is None else next(values, None)
            remedy = "group has no value for it"
        if is_missing(value):
            raise ValueError(f"{where} has no group: {remedy}; give each document one")
        return value


def _typed(rows: Rows, columns: _Columns) -> Iterator[tuple[int, Any]]:
    """Yield the rows; before the first one with other columns, find the column of the texts."""
    numbered = iter(rows)
    for number, row in numbered:
        if columns.found is not None or not isinstance(row, dict) or _names_its_text(row):
            yield number, row
            continue
        start = [(number, row), *islice(numbered, _TYPED_ROWS - 1)]
        _refuse_turn(row, rows.where(number))
        columns.choose(rows.source or rows.where(number), _kinds([row for _, row in start]))
        yield from start


def _refuse_turn(row: Any, where: str) -> None:
    """Raise ValueError if a row is one turn of a chat instead of a chat."""
    if isinstance(row, dict) and row.keys() == {"role", "content"}:
        raise ValueError(
            f"{where} is one turn of a chat ({str(row)[:60]!r}); expected a text, a row with"
            " 'text', or a chat: give a list of chats, each a list of turns"
        )


def _names_its_text(row: dict[str, Any]) -> bool:
    return "text" in row or _is_chat(row.get("messages"))


def _kinds(rows: Iterable[Any]) -> dict[str, bool]:
    """Return whether each column holds texts: each value is one or missing, and one is there."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items() if isinstance(row, dict) else ():
            values.setdefault(str(name), []).append(value)
    return {
        name: any(isinstance(value, str) for value in column)
        and all(isinstance(value, str) or is_missing(value) for value in column)
        for name, column in values.items()
    }


def is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN, or the missing value of pandas."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return type(value).__name__ in ("NAType", "NaTType")


def without_surrogates(text: str) -> str:
    """Return a text with pairs of surrogates joined and lone ones replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


# ------------------------------------------------------------------------------------------- chats


def _is_chat(row: Any) -> bool:
    return (
        isinstance(row, list)
        and bool(row)
        and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in row)
    )


def _chat_text(chat: Any, where: str, tokenizers: tuple[Any, ...]) -> str:
    if len(tokenizers) > 1:
        raise MismatchError(
            f"{where} is a chat, but the two models have different tokenizers, whose"
            " chat templates and special tokens differ, so that they would not read the same text;"
            " give plain text, such as the contents of the messages"
        )
    if not tokenizers or getattr(tokenizers[0], "chat_template", None) is None:
        raise ValueError(
            f"{where} is a chat, but the tokenizer has no chat template;"
            " set tokenizer.chat_template, or give plain text"
        )
    return tokenizers[0].apply_chat_template(chat, tokenize=False)
