"""Documents from anything that contains texts, and the part of a corpus that each belongs to.

Problem: folds are made of documents, and no window extends over two of them, so all sources of text
must become a stream of documents; and every process, shard and later run must assign a document to
the same fold. Mechanism: `iterate_documents` accepts texts, chats (lists of ``{"role",
"content"}``), rows with columns, tables of pandas, pyarrow and datasets, files
(`lrt_lens.data._document_files`) and names of data sets. The hash of a document's normalised text,
or of the turns of a chat (`document_key`), decides its part, wherever it is in the stream: one of
five cross-validation folds, or one of eight groups of the test fold. Copies that differ in blanks,
case or punctuation are therefore in one part, and so are documents of one group.

    for text in iterate_documents("corpus.csv.gz", tokenizer, text_field="body"): ...
    part_of(document_key("Some text.", seed=0))       # 0 … 12
    PART_NAMES[5]                                     # "test0"
    harvest(pair, DocumentSource("reviews.jsonl", text_field="body", group="author"))

Limits: chats need one tokenizer with a chat template; with fewer than 100 documents a part may stay
empty; copies that differ in more are in other parts (`near_duplicates` finds them).
"""

import glob
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lrt_lens.data._arrow_rows import arrow_rows
from lrt_lens.data._chats import chat_text, chat_words, turns_of
from lrt_lens.data._columns import Columns, typed, without_written_values
from lrt_lens.data._document_files import ARCHIVE_ENDINGS, KINDS, file_rows, kind_of
from lrt_lens.data._document_rows import (
    ColumnKind,
    Rows,
    Wanted,
    arrow_kind,
    feature_kind,
    is_missing,
    pandas_kinds,
    refuse_open_file,
    refuse_repeated,
    without_surrogates,
)
from lrt_lens.data._file_bytes import LONGEST_ROW
from lrt_lens.data._groups import Groups, refuse_other_groups, refuse_other_number
from lrt_lens.data._parts import document_key, group_text
from lrt_lens.errors import FileFormatError

logger = logging.getLogger(__name__)

Documents = Any
"""A string, an iterable of texts or chats, a file, a table or a data set; see
`iterate_documents`.
"""
_FEW_WORDS = 6
"""Number of words up to which a text that ends like a file is taken for its name."""


@dataclass(frozen=True)
class DocumentSource:
    """Documents with the column that holds their text, and with groups that share a fold.

    Every function that takes documents takes one of these.
    """

    documents: Documents
    """Documents in any form that `iterate_documents` accepts."""
    text_field: str | None = None
    """Column of the texts or chats. None: ``text``, ``messages``, ``conversations`` or ``chat``,
    else the only column with texts if no other holds lists, structs or bytes.
    """
    group: Any = None
    """Documents that share a fold because they belong together (one book, one conversation): a
    column, one value per document, or a function of a row that returns the value. None: each
    document is on its own.
    """

    def __post_init__(self) -> None:
        refuse_other_groups(self.group)
        refuse_other_number(self.documents, self.group)

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
    words: str | None = None
    """Roles and contents of a chat, which tell its copies whatever template wrote ``text``; None if
    the text itself does.
    """

    def key(self, seed: int) -> int:
        """Return the 64-bit key that decides the fold: of the group, the chat, or the text."""
        if self.group is not None:
            # The rule for groups is that for texts and for ids of rows (`document_keys`).
            return document_key(group_text(self.group), seed)
        words = self.text if self.words is None else self.words
        # No file has longer rows; normalising takes several times the memory of a text.
        return document_key(words[:LONGEST_ROW], seed)


def read_once(documents: Documents) -> str | None:
    """Return what of a source is an iterator, which can be read only once; None if nothing is.

    The result is ``"documents"`` or ``"group"``.
    """
    source = DocumentSource.of(documents)
    names = ("documents", "group")
    return next((name for name in names if isinstance(getattr(source, name), Iterator)), None)


def refuse_read_once(documents: Documents) -> None:
    """Raise TypeError if documents that are read several times are an iterator."""
    name = read_once(documents)
    if name is not None:
        kind = type(getattr(DocumentSource.of(documents), name)).__name__
        remedy = "a list, a file or a data set" if name == "documents" else "a list or a column"
        raise TypeError(
            f"{name} is a {kind}, which can be read once, and the documents are read several times;"
            f" give {remedy}"
        )


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
        text_field: column of the texts; by default ``text``, or for chats ``messages``,
            ``conversations`` or ``chat``, else the only column with texts, unless another one holds
            lists, structs or bytes.

    Raises:
        MismatchError: a document is a chat, and there are two tokenizers.
        FileFormatError: there is no such file, it is damaged, or one of its rows contains no text;
            the message names the row.
        ValueError: ``documents``, or a row in memory, contains no text; the message names the row.
    """
    source = DocumentSource.of(documents, text_field)
    for document in DocumentReader(source, *tokenizers):
        yield document.text


def iterate_rows(documents: Documents) -> Iterator[str | list[dict[str, Any]]]:
    """Yield each document as its text, or as the turns of a chat, which no template has formatted.

    What `iterate_documents` accepts is read in the same way; missing and blank ones are left out.
    """
    source = DocumentSource.of(documents)
    columns = Columns(source.text_field)
    for rows in _sources(source.documents, columns):
        for _, _, value in _values(rows, columns):
            if not isinstance(value, str):
                if value:
                    yield value
            elif value.strip():
                yield without_surrogates(value)


def _values(
    rows: Rows, columns: Columns
) -> Iterator[tuple[str, Any, str | list[dict[str, Any]] | None]]:
    """Yield (place, row, its text or the turns of its chat) of each row; None if it is missing.

    Raises:
        FileFormatError: a row of a file holds something else.
        ValueError: a row in memory does.
    """
    if rows.columns is not None:
        # Once more for tables whose reader did not ask, and for the name in messages.
        columns.choose(rows.source, rows.columns)
    try:
        for number, row in without_written_values(typed(rows, columns), columns, rows.where):
            where = rows.where(number)
            value = columns.value(row, where)
            if is_missing(value):
                value = None
            elif not isinstance(value, str):
                value = turns_of(value, where)
            yield where, row, value
    except ValueError as error:
        if not rows.source or type(error) is not ValueError:
            raise
        raise FileFormatError(str(error)) from error


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
        groups = Groups(self.source.group)
        columns = Columns(self.source.text_field, self.source.group)
        empty_files, has_text = list[str](), False
        for rows in _sources(self.source.documents, columns):
            has_rows = False
            for where, row, value in _values(rows, columns):
                has_rows = True
                # One value per row, also for rows without a text.
                group = groups.of(row, where, rows.source)
                text, words = self._text(value, where)
                if text:
                    has_text = True
                    yield Document(text, group, words)
                else:
                    self.n_empty += 1
            if rows.source and not has_rows:
                empty_files.append(rows.source)
        groups.refuse_left_over()
        if empty_files:
            message = f"{', '.join(empty_files[:5])} hold(s) no document"
            if not has_text:
                raise FileFormatError(f"{message}; give a file with text")
            logger.warning("%s", message)

    def _text(self, value: str | list[dict[str, Any]] | None, where: str) -> tuple[str, str | None]:
        """Return the text of a value, empty if it is blank, and the words of a chat."""
        words = None
        if not value:
            return "", None
        if not isinstance(value, str):
            value, words = chat_text(value, where, self._tokenizers), chat_words(value)
        text = without_surrogates(str(value))
        if text != value:
            if not self._n_repaired:
                logger.warning(
                    "%s holds a lone surrogate, which no encoding has; it is read as U+FFFD, and"
                    " so are all others",
                    where,
                )
            self._n_repaired += 1
        return ("" if text.isspace() else text), words


# ----------------------------------------------------------------------------------------- sources


def _sources(documents: Documents, columns: Columns) -> Iterator[Rows]:
    """Yield the sources of rows in ``documents``: one, or one per file."""
    refuse_open_file(documents)
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


def _of_iterable(documents: Any, columns: Columns) -> Iterator[Rows]:
    documents = _without_format(documents)
    features = getattr(documents, "features", None)
    names = getattr(documents, "column_names", None)
    if hasattr(documents, "iterrows"):  # a pandas DataFrame; iterating would yield its columns
        kinds = pandas_kinds(documents)
        records = (dict(zip(kinds, row, strict=True)) for row in _tuples(documents))
        yield Rows(enumerate(records), columns=kinds)
    elif isinstance(features, Mapping) and names:  # a data set whose columns are known
        columns_by_name: dict[str, ColumnKind] = {
            name: feature_kind(features.get(name)) for name in names
        }
        chosen = columns.choose("the data set", columns_by_name)
        narrow = documents.select_columns(list(chosen))
        yield Rows(enumerate(narrow), columns=columns_by_name)
    elif hasattr(documents, "schema") and hasattr(documents, "num_rows"):  # a pyarrow Table
        refuse_repeated(documents.schema.names, "the table")
        known: dict[str, ColumnKind] = {
            field.name: arrow_kind(field.type) for field in documents.schema
        }
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


def _without_format(documents: Any) -> Any:
    """Return a data set that yields rows as dictionaries with all columns; others as they are.

    A format (pandas, arrow, numpy, …) changes what iterating yields; a transform of the caller's
    stays.
    """
    kind = getattr(documents, "format", None)
    is_transform = isinstance(kind, Mapping) and kind.get("type") == "custom"
    if not hasattr(documents, "with_format") or is_transform:
        return documents
    return documents.with_format(None)


def _with_files(numbered: Iterable[tuple[int, Any]], columns: Columns) -> Iterator[Rows]:
    """Yield the rows in memory, and at each `Path` among them the rows of its file."""
    rows, found = iter(numbered), list[Path]()

    def until_a_path() -> Iterator[tuple[int, Any]]:
        for number, row in rows:
            if isinstance(row, os.PathLike):
                found.append(Path(row))
                return
            if isinstance(row, str) and _names_a_file(row, is_first=number == 0):
                raise ValueError(
                    f"document {number} is {row!r}, the name of a file; give the file itself, or a"
                    " list of pathlib.Path objects for several files, or rows {'text': …} if it is"
                    " a text"
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


def _of_string(documents: "str | os.PathLike[str]", columns: Columns) -> Iterator[Rows]:
    """Yield the rows of a file, a folder or a data set on the hub, or else the string as a text."""
    files = named_files(documents)
    if files is not None:
        yield from (_of_file(path, columns) for path in files)
    elif (data := named_data_set(documents)) is not None:
        yield from _sources(data, columns)
    else:
        yield Rows([(0, os.fspath(documents))])


def named_files(documents: "str | os.PathLike[str]") -> list[Path] | None:
    """Return the files that a name stands for: one, those of a folder, or those of a pattern.

    They are in the order in which they are read. None: a text, or the name of a data set.

    Raises:
        FileFormatError: it looks like a path, and there is no such file; a folder or a pattern
            holds a file that would not be read; or a pattern matches nothing.
    """
    name = os.fspath(documents)
    path = _path_of(name)
    # os.path, unlike pathlib, answers False for a text that is longer than a path can be.
    if path is not None and os.path.isfile(path):
        return [path]
    if path is not None and os.path.isdir(path):
        return None if _is_saved_data_set(path) else _folder_files(path)
    if path is not None and any(sign in name for sign in "*?[") and kind_of(name):
        return _pattern_files(str(path))
    if isinstance(documents, os.PathLike) or (_is_short(name) and _looks_like_a_path(name)):
        raise FileFormatError(
            f"no file at {name!r}; give a {' '.join(KINDS)} file that exists (each also with"
            f" {' or '.join(ARCHIVE_ENDINGS)}), or [text] for a text of your own"
        )
    return None


def named_data_set(documents: "str | os.PathLike[str]") -> Any:
    """Return the data set that a name stands for, saved in a folder or on the hub; None if a text.

    Raises:
        ValueError: a word without white space is no name of a data set.
    """
    name = os.fspath(documents)
    path = _path_of(name)
    if path is not None and os.path.isdir(path):
        import datasets

        return datasets.load_from_disk(str(path))
    # A word without white space is the name of a data set on the hub.
    return _hub_dataset(name) if name and not any(map(str.isspace, name)) else None


def _path_of(name: str) -> Path | None:
    """Return the path that a string may be; None if it is too long, or a text of several lines."""
    if not name or not _is_short(name):
        return None
    return Path(name).expanduser() if name.startswith("~") else Path(name)


def _is_short(name: str) -> bool:
    return len(name) < 4096 and "\n" not in name


def _is_saved_data_set(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def _of_file(path: Path, columns: Columns) -> Rows:
    return file_rows(path, Wanted(columns.choose, columns.text_field))


def _looks_like_a_path(text: str) -> bool:
    begins = text.startswith(("~", "/", "./", "../", "\\")) or re.match(r"[A-Za-z]:[\\/]", text)
    # Without a blank it may also be the name of a data set, such as owner/name-1.1.
    is_part = " " in text and len(text.split()) <= _FEW_WORDS and "://" not in text
    # An ending of at least two characters: "in the U.S" and "version 2.0" have none.
    ends = re.search(r"\w\.[A-Za-z]\w{1,4}$", text) or (
        re.search(r"\w[\\/]\w", text) and re.search(r"\w$", text)
    )
    return bool(begins or (is_part and ends) or kind_of(text))


def _names_a_file(text: str, *, is_first: bool) -> bool:
    """Return whether an entry of a list is a file's name: it exists, or has the ending of one.

    With blanks only the first entry is judged by its ending, because texts may mention files.
    """
    if len(text) >= 4096 or "\n" in text or not re.search(r"\.\w{1,8}$", text):
        return False
    n_words = len(text.split())
    is_alone = n_words == 1 or (is_first and n_words <= _FEW_WORDS)
    return (bool(kind_of(text)) and is_alone) or os.path.isfile(text)


def _pattern_files(pattern: str) -> list[Path]:
    """Return the files that a pattern matches, sorted by name."""
    matches = [
        path for path in sorted(glob.glob(pattern, recursive=True)) if not os.path.isdir(path)
    ]
    if not matches:
        raise FileFormatError(f"no file matches {pattern!r}; give a pattern of files that exist")
    files = [Path(match) for match in matches]
    _refuse_files(files, f"the pattern {pattern!r}")
    return files


def _folder_files(folder: Path) -> list[Path]:
    """Return all files of a folder, which must be of one kind, sorted by name."""
    # Hidden files are of the system (.DS_Store) or of an editor.
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    kinds = sorted({str(kind_of(path)) for path in files if kind_of(path)})
    if len(kinds) != 1:
        observed = f"files of several kinds ({', '.join(kinds)})" if kinds else "no file of a kind"
        raise FileFormatError(
            f"the folder {str(folder)!r} holds {observed}; expected files of one kind among"
            f" {' '.join(KINDS)}: give a pattern such as {str(folder / '*.jsonl')!r}, or a file"
        )
    _refuse_files(files, f"the folder {str(folder)!r}")
    return files


def _refuse_files(files: list[Path], subject: str) -> None:
    """Raise FileFormatError if one of several files would not be read, or one be read twice."""
    problems = {path.name: "a folder" for path in files if path.is_dir()}
    problems |= {path.name: "a link to nothing" for path in files if not path.exists()}
    problems |= {
        path.name: "of no known kind"
        for path in files
        if path.name not in problems and kind_of(path) is None
    }
    by_name: dict[str, str] = {}
    for path in files:
        name = str(path).lower()
        for archive in ARCHIVE_ENDINGS:
            name = name.removesuffix(archive)
        if name in by_name:
            problems[path.name] = f"perhaps a copy of {by_name[name]!r}"
        by_name[name] = path.name
    if problems:
        named = ", ".join(f"{name!r} ({problem})" for name, problem in list(problems.items())[:5])
        raise FileFormatError(
            f"{subject} holds {named}; expected only files that are read, each once: take"
            f" {'it' if len(problems) == 1 else 'them'} out, or give a pattern or a list of"
            " pathlib.Path objects"
        )


def _hub_dataset(name: str) -> Iterable[Any]:
    import datasets

    try:
        return datasets.load_dataset(name, split="train", streaming=True)
    except Exception as error:  # datasets has many exceptions for a name that does not exist
        raise ValueError(
            f"{name!r} is neither a file nor a data set that loads ({error});"
            " pass a list of texts for text of your own"
        ) from error
