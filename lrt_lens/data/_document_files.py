"""Rows of files that hold documents: text, Markdown, JSON, tables and Parquet, compressed or not.

Problem: a file of another kind than expected must not be read as prose with its markup. Mechanism:
the ending of a file, in any case and below ``.gz`` or ``.zst``, names its reader. Readers are those
of pyarrow (archives, Parquet), csv and json; large files are read piece by piece.

    rows = file_rows(Path("corpus.csv.zst"), Wanted(lambda name, columns: ["text"]))
    for number, row in rows: rows.where(number), row         # "corpus.csv.zst, row 1", {"text": …}
    read_records("items.jsonl")                                 # [("items.jsonl, line 1", {…}), …]

========== =========================================================================================
ending     documents
========== =========================================================================================
.txt       paragraphs, which end at a blank line
.md        paragraphs with their markup; a heading belongs to the paragraph below it, and blank
           lines inside fences (three backticks) and before the end of front matter do not count
.jsonl     one JSON value per line, usually an object; ``.ndjson`` is the same
.json      a list of rows, also as the only list in an object (``{"version": …, "data": […]}``)
           that has no other text, an object of columns or rows (as pandas writes it), one row, or
           as ``.jsonl``
.csv       rows under the header, separated by commas, semicolons, tabs or bars
.tsv       the same with tabs
.parquet   rows
========== =========================================================================================

Limits: text files are UTF-8, or UTF-16 or UTF-32 with a byte order mark. A paragraph of
more than 100,000 characters (60 pages) becomes several documents. A row has at most 67 million
characters (`LONGEST_ROW`). A ``.json`` file is held in memory and has at most a billion; a
compressed Parquet file is held in memory too.
"""

import csv
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from lrt_lens.data._arrow_rows import arrow_rows
from lrt_lens.data._document_rows import (
    TURNS,
    ColumnKind,
    Rows,
    Wanted,
    arrow_kind,
    refuse_open_file,
    refuse_repeated,
)
from lrt_lens.data._file_bytes import ARCHIVES, LONGEST_ROW, DocumentFile
from lrt_lens.data._written_values import chat_of
from lrt_lens.errors import FileFormatError

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1000
LONGEST_PARAGRAPH = 100_000
"""Number of characters after which a paragraph without a blank line ends."""
_LONG_PARAGRAPH = (
    "%s has more than %d characters without a blank line (line %d); such a text is read as several"
    " documents"
)
_SEPARATORS = ",;\t|"
"""Separators of ``.csv`` files, of which the first rows show the one."""
_OTHER_SEPARATORS = _SEPARATORS + "^~:"
"""Separators that a table with a single column is searched for."""
_FEW_WORDS, _MANY_WORDS = 2, 8
"""Most words of a name of a column, beside one that is a number and otherwise."""
_TEXT_NAMES = ("text", "messages")
"""Columns that tell rows from columns in an object of objects."""
_ABOUT_ROWS = frozenset(
    (
        *("created", "created_at", "date", "timestamp", "updated", "updated_at"),
        *("dataset", "format", "id", "kind", "name", "object", "schema", "schema_version", "split"),
        *("lang", "language", "licence", "license", "status", "subset", "type", "url", "version"),
    )
)
"""Keys beside a list of rows that describe it."""
_FENCE = re.compile(r"(`{3,}|~{3,})")
_HEADING = re.compile(r"\s*#{1,6}(\s|$)")


def file_rows(path: Path, wanted: Wanted) -> Rows:
    """Return the rows of a file, which are read as they are needed.

    Args:
        path: an existing file.
        wanted: called once for a table, before its rows are read.

    Raises:
        FileFormatError: the ending is not known, or (while rows are read) the file is damaged or
            not of its kind; the message names the file, the row and the remedy.
    """
    kind = kind_of(path)
    if kind is None:
        raise FileFormatError(
            f"{path} is of no known kind; expected an ending among {', '.join(KINDS)}, each also"
            f" with {' or '.join(ARCHIVES)}: rename it if it is one of them, convert it, or read"
            " it yourself and give a list of texts"
        )
    return KINDS[kind](DocumentFile(path), wanted)


def read_records(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """Return all rows of a file as (place in the file, row), such as ``("a.jsonl, line 1", {…})``.

    Raises:
        FileFormatError: there is no such file, it is of no known kind or damaged, or its rows have
            no columns.
    """
    refuse_open_file(path, "path")
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileFormatError(f"no file at {str(path)!r}; give a file that exists")
    rows = file_rows(path, Wanted(lambda _, columns: list(columns), is_whole=True))
    placed = list[tuple[str, dict[str, Any]]]()
    for number, row in rows:
        where = rows.where(number)
        if not isinstance(row, dict):
            raise FileFormatError(
                f"{where} is a {type(row).__name__} ({str(row)[:60]!r});"
                " expected an object with named fields"
            )
        placed.append((where, row))
    return placed


def kind_of(path: str | Path) -> str | None:
    """Return the ending of a path without that of an archive; None if it is not known."""
    name = os.path.basename(path).lower()
    for archive in ARCHIVES:
        name = name.removesuffix(archive)
    # A name such as ".csv" has no ending.
    return next((kind for kind in KINDS if name.endswith(kind) and name != kind), None)


# --------------------------------------------------------------------------------------------- text


def _text(file: DocumentFile, _: Wanted) -> Rows:
    return Rows(_paragraphs(file, markdown=False), "the paragraph at line", str(file))


def _markdown(file: DocumentFile, _: Wanted) -> Rows:
    return Rows(_paragraphs(file, markdown=True), "the paragraph at line", str(file))


def _paragraphs(file: DocumentFile, *, markdown: bool) -> Iterator[tuple[int, str]]:
    """Yield paragraphs with the numbers of their first lines.

    One long document would fill one fold only, so a text file is not one document.
    """
    never_closed: dict[str, int] = {}
    lines: Iterable[tuple[int, str]] = file.pieces()
    long_ones: list[int] = []
    while lines:
        lines = yield from _until_unclosed(file, lines, never_closed, long_ones, markdown=markdown)


def _until_unclosed(
    file: DocumentFile,
    lines: Iterable[tuple[int, str]],
    never_closed: dict[str, int],
    long_ones: list[int],
    *,
    markdown: bool,
) -> Generator[tuple[int, str], None, list[tuple[int, str]]]:
    """Yield paragraphs up to a fence or front matter that never ends; return the lines from there.

    What never ends has not begun: these lines are to be read again, as any others. Then
    ``never_closed`` has the length of the fence, by its character; no longer one ends either.
    """
    paragraph, size, last = list[tuple[int, str]](), 0, 0
    closes = ""
    for number, line in lines:
        # Further pieces of a long line are no lines of their own.
        mark = line.strip() if number != last else "…"
        last = number
        if markdown and mark != "…":
            closes = _still_open(mark, closes, never_closed, is_first=number == 1)
        # A heading alone is no paragraph: it goes with the text below.
        is_heading = markdown and all(_HEADING.match(part) for _, part in paragraph)
        if mark or closes:
            paragraph.append((number, line))
            size += len(line)
        elif paragraph and not is_heading:
            yield _joined(paragraph)
            paragraph, size = [], 0
        # An open fence may have no end, and then its lines are read again.
        if size >= LONGEST_PARAGRAPH * (10 if closes else 1):
            if not long_ones:
                logger.warning(_LONG_PARAGRAPH, file, LONGEST_PARAGRAPH, paragraph[0][0])
            long_ones.append(number)
            start, rest = _until_a_blank(*_joined(paragraph, is_whole=False))
            yield start
            paragraph, size = [rest] if rest[1] else [], len(rest[1])
    if closes:
        never_closed[closes[0]] = len(closes)
        return paragraph
    if paragraph:
        yield _joined(paragraph)
    return []


def _until_a_blank(number: int, text: str) -> tuple[tuple[int, str], tuple[int, str]]:
    """Return a text up to its last line feed or blank, and what is behind, if that is not much."""
    cut = max(text.rfind(blank) for blank in "\n \t") + 1
    cut = cut if cut > len(text) // 2 else len(text)
    return (number, text[:cut].rstrip()), (number, text[cut:])


def _joined(paragraph: list[tuple[int, str]], *, is_whole: bool = True) -> tuple[int, str]:
    # The blanks before the first line are its indentation.
    text = "".join(line for _, line in paragraph)
    return paragraph[0][0], text.rstrip() if is_whole else text


def _still_open(mark: str, closes: str, never_closed: dict[str, int], *, is_first: bool) -> str:
    """Return the line that ends the fence or front matter this line is in; empty outside."""
    if closes:
        return "" if mark.startswith(closes) and not mark.strip(closes[0]) else closes
    if is_first and mark == "---" and "-" not in never_closed:
        return "---"
    # No backtick behind the fence: ```code``` in one line opens nothing. As many characters as
    # opened a fence close it, so that one of four may hold others of three.
    fence = _FENCE.match(mark)
    if fence is None or "`" in mark.lstrip("`"):
        return ""
    opens = len(fence[0]) < never_closed.get(fence[0][0], sys.maxsize)
    return fence[0] if opens else ""


# --------------------------------------------------------------------------------------------- JSON


def _json_lines(file: DocumentFile, _: Wanted) -> Rows:
    def numbered() -> Iterator[tuple[int, Any]]:
        for number, line in file.lines():
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            # Python also refuses integers of more than 4,300 digits.
            except (ValueError, RecursionError) as error:
                raise FileFormatError(
                    f"{file}, line {number} is not JSON ({error}); expected one object per line"
                ) from error

    return Rows(numbered(), "line", str(file))


def _json(file: DocumentFile, wanted: Wanted) -> Rows:
    text = file.text()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        # Several values, one behind the other: JSON Lines under the ending of JSON.
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            return _json_lines(file, wanted)
        raise FileFormatError(
            f"{file} is not JSON ({error}); expected a list of rows, an object of columns, or one"
            " object per line"
        ) from error
    return Rows(enumerate(_rows_of_json(content, file, wanted), start=1), "row", str(file))


def _rows_of_json(content: Any, file: DocumentFile, wanted: Wanted) -> list[Any]:
    """Return the rows of a JSON value: a list of rows, an object of columns or rows, or one row."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict) or not content:
        raise FileFormatError(
            f"{file} holds {str(content)[:60]!r}; expected a list of rows, an object of columns,"
            " or one object per line"
        )
    columns = list(content.values())
    if content.keys() == {"columns", "index", "data"}:
        # pandas' orient="split": {"columns": […], "index": […], "data": [[…], …]}.
        return _split_rows(content, file)
    if all(isinstance(column, dict) for column in columns):
        if (keyed := _keyed_rows(content, file, wanted)) is not None:
            return keyed
    elif (wrapped := _wrapped_rows(content, file, wanted)) is not None:
        return wrapped
    elif all(isinstance(column, list) for column in columns):
        if len({len(column) for column in columns}) == 1:
            return [dict(zip(content, row, strict=True)) for row in zip(*columns, strict=True)]
    else:
        return [content]
    raise FileFormatError(
        f"{file} holds an object with the keys {list(content)[:8]}, whose columns have different"
        " rows; expected a list of rows, or columns of one length"
    )


def _keyed_rows(
    content: dict[str, dict[str, Any]], file: DocumentFile, wanted: Wanted
) -> list[Any] | None:
    """Return the rows of an object of objects: columns or rows by name; None if they are neither.

    pandas writes ``{column: {index: value}}``, or ``{index: {column: value}}`` with
    orient="index".
    """
    inner = list(content.values())
    names = {wanted.text_field} if wanted.text_field else {*_TEXT_NAMES}
    is_by_column = bool(names & content.keys())
    if not is_by_column and all(names & row.keys() for row in inner):
        return inner
    if any(row.keys() != inner[0].keys() for row in inner):
        return None
    keys = list(inner[0])
    # The index of a table is numbers unless it was set.
    if not is_by_column and not all(key.isdigit() for key in keys):
        if all(key.isdigit() for key in content):
            return inner
        raise FileFormatError(
            f"{file} holds an object of objects with the keys {list(content)[:3]} and in them"
            f" {keys[:3]}, of which either may be the columns; text_field= names the column of the"
            " texts, or write it again as records (orient='records' of pandas)"
        )
    return [{name: content[name][key] for name in content} for key in keys]


def _wrapped_rows(content: dict[str, Any], file: DocumentFile, wanted: Wanted) -> list[Any] | None:
    """Return the rows of an object such as ``{"version": …, "data": [{…}, …]}``; else None.

    An object whose list is a chat, and one that has the column of the texts, is one row.

    Raises:
        FileFormatError: the texts may be in the object or in its list.
    """
    lists = {name: value for name, value in content.items() if isinstance(value, list)}
    name, rows = next(iter(lists.items()), ("", []))
    if len(lists) != 1 or not rows or not all(isinstance(row, dict) for row in rows):
        return None
    is_chat = any(row.keys() >= keys for row in rows for keys in TURNS)
    if is_chat or "text" in content or chat_of(content.get("messages")) is not None:
        return None
    others = [other for other in content if other != name and _may_hold_text(other, content[other])]
    if wanted.text_field is not None:
        is_inside = any(wanted.text_field in row for row in rows)
        if is_inside and wanted.text_field not in content:
            return rows
        if not is_inside:
            return None
    elif wanted.is_whole or not others:
        return rows
    raise FileFormatError(
        f"{file} is one object with the list {name!r} of {len(rows)} object(s) and"
        f" {others or [wanted.text_field]} beside it, and the texts may be in either; text_field="
        f" names a column of the object ({list(content)[:8]}) or of the objects in the list"
        f" ({list(rows[0])[:8]}), or write the rows one per line, as .jsonl"
    )


def _may_hold_text(name: str, value: Any) -> bool:
    """Return whether a value beside a list of rows may be a document, or one that is missing."""
    if name.lower() in _ABOUT_ROWS:
        return False
    if isinstance(value, dict):
        return any(_may_hold_text(key, inner) for key, inner in value.items())
    return value is None or isinstance(value, str | list)


def _split_rows(content: dict[str, Any], file: DocumentFile) -> list[Any]:
    names, rows = content["columns"], content["data"]
    is_table = isinstance(names, list) and isinstance(rows, list)
    if not is_table or any(not isinstance(row, list) or len(row) != len(names) for row in rows):
        raise FileFormatError(
            f"{file} has the keys columns, index and data, as pandas writes orient='split', but its"
            " data are no rows with one value per column; write it again, or as records"
        )
    return [dict(zip(map(str, names), row, strict=True)) for row in rows]


# ------------------------------------------------------------------------------------------- tables


def _table(file: DocumentFile, wanted: Wanted) -> Rows:
    # Texts may be longer than the 131,072 characters of the csv module; the limit is only raised.
    csv.field_size_limit(max(csv.field_size_limit(), sys.maxsize >> 32))
    separator = _separator(file)
    head = list(_up_to_a_size(islice(_table_rows(file, separator), _ROWS_AT_ONCE + 1)))
    names = head[0]
    if _looks_like_a_row(names):
        logger.warning(
            "%s, row 0 is read as the names of the columns and looks like a row: %s; if it is one,"
            " write the names of the columns above it",
            file,
            str(names)[:120],
        )
    columns: dict[str, ColumnKind] = {
        name: "text" if any(row[k] and not _is_number(row[k]) for row in head[1:]) else "other"
        for k, name in enumerate(names)
    }
    chosen = [(name, names.index(name)) for name in _chosen(file, columns, wanted)]

    def numbered() -> Iterator[tuple[int, Any]]:
        for number, row in enumerate(_table_rows(file, separator)):
            if number:
                # Only an empty field is missing: "NA" and "null" are texts.
                yield number, {name: row[k] or None for name, k in chosen}

    return Rows(numbered(), "row", str(file), columns)


def _chosen(file: DocumentFile, columns: dict[str, ColumnKind], wanted: Wanted) -> Sequence[str]:
    with file.refused_rows():
        return wanted(str(file), columns)


def _up_to_a_size(rows: Iterable[Sequence[str]]) -> Iterator[Any]:
    """Yield rows or lines until they have together more characters than one row may have."""
    size = 0
    for row in rows:
        yield row
        size += len(row) if isinstance(row, str) else sum(map(len, row))
        if size > LONGEST_ROW:
            return


def _looks_like_a_row(names: Sequence[str]) -> bool:
    """Return whether the names of columns look like values: a sentence, alone or beside numbers."""
    words = max(len(name.split()) for name in names)
    # pandas numbers the columns of a table without names: "0", "1".
    has_number = any(_is_number(name) and name != str(k) for k, name in enumerate(names))
    return words > (_FEW_WORDS if has_number else _MANY_WORDS)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return field.lower() in ("true", "false")
    return True


def _table_rows(file: DocumentFile, separator: str) -> Iterator[list[str]]:
    """Yield the names of the columns, and then the fields of each row.

    Raises:
        FileFormatError: a row has not one field per column, or a quote is not closed.
    """
    names, number, size = list[str](), -1, 0

    def lines() -> Iterator[str]:
        nonlocal size
        for _, line in file.lines():
            size += len(line)
            # A quote that is never closed would gather the rest of the file.
            if size > LONGEST_ROW:
                raise file.too_long(f"row {number + 1}")
            yield line

    reader = csv.reader(lines(), delimiter=separator, strict=True)
    while True:
        size = 0
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise FileFormatError(
                f"{file}, row {number + 1} has unbalanced quotes ({error}); expected quotes around"
                " a field to be closed before the separator, and those inside to be doubled:"
                " write it again with pandas or the csv module"
            ) from None
        if row is None:
            break
        # A blank line is no row, except in a single column.
        if not row or (len(row) == 1 and not row[0].strip() and len(names) != 1):
            continue
        number += 1
        if number and len(row) != len(names):
            raise FileFormatError(
                f"{file}, row {number} has {len(row)} field(s) ({str(row)[:80]}) and the header"
                f" {len(names)} ({str(names)[:80]}); expected as many in each row, quoted if they"
                " hold separators, quotes or line feeds"
            )
        if not number:
            # pandas writes an index under an empty name.
            names = row = [name or f"Unnamed: {k}" for k, name in enumerate(row)]
            with file.refused_rows():
                refuse_repeated(names, str(file))
        yield row
    if number < 0:
        raise FileFormatError(f"{file} has no header; expected the names of the columns in line 1")


def _separator(file: DocumentFile) -> str:
    """Return the separator that the first rows show: most fields, as many in each row."""
    lines = list(_up_to_a_size(line for _, line in islice(file.lines(), 100)))
    if kind_of(file.path) == ".tsv":
        separator = "\t"
    else:
        separator = max(_SEPARATORS, key=lambda one: _agreement(lines, one))
    if _agreement(lines, separator)[1] == 1:
        _refuse_another_separator(file, lines)
    return separator


def _agreement(lines: Sequence[str], separator: str) -> tuple[bool, int]:
    """Return whether all rows have as many fields, and the number of fields of the header."""
    # The last row may be cut in the middle of a field.
    sizes = [len(row) for row in csv.reader(lines, delimiter=separator) if row]
    sizes = sizes[: max(2, len(sizes) - 1)]
    n_fields = sizes[0] if sizes else 1
    return n_fields > 1 and len(set(sizes)) == 1, n_fields


def _refuse_another_separator(file: DocumentFile, lines: Sequence[str]) -> None:
    """Raise FileFormatError if a table seems to have one column by another separator."""
    for other in _OTHER_SEPARATORS:
        if _agreement(lines, other)[0] and len([line for line in lines if line.strip()]) > 1:
            raise FileFormatError(
                f"{file} has one column, and each of its first rows holds {other!r} as often as the"
                f" header; expected {'tabs' if kind_of(file.path) == '.tsv' else 'commas'} between"
                " the fields: rename it, or write it again with its fields in quotes"
            )
    return


def _parquet(file: DocumentFile, wanted: Wanted) -> Rows:
    import pyarrow
    from pyarrow import parquet

    @contextmanager
    def opened() -> Iterator[Any]:
        with file.opened() as stream:
            # A reader of Parquet starts at the end of the file.
            source = str(file) if file.codec is None else pyarrow.BufferReader(stream.read())
            with parquet.ParquetFile(source) as table:
                yield table

    with opened() as table:
        with file.refused_rows():
            refuse_repeated(table.schema_arrow.names, str(file))
        columns: dict[str, ColumnKind] = {
            field.name: arrow_kind(field.type) for field in table.schema_arrow
        }
        at_once = _parquet_rows_at_once(table.metadata)
    chosen = list(_chosen(file, columns, wanted))

    def numbered() -> Iterator[tuple[int, Any]]:
        number = 0
        with opened() as table:
            for batch in table.iter_batches(at_once, columns=chosen):
                for row in arrow_rows(batch, str(file), number + 1):
                    number += 1
                    yield number, row

    return Rows(numbered(), "row", str(file), columns)


def _parquet_rows_at_once(metadata: Any) -> int:
    """Return the number of rows that are read at once: fewer if they are long."""
    groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
    longest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    return max(1, min(_ROWS_AT_ONCE, LONGEST_ROW // max(1, longest)))


KINDS: dict[str, Callable[[DocumentFile, Wanted], Rows]] = {
    ".txt": _text,
    ".md": _markdown,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}
"""Readers by ending."""
ARCHIVE_ENDINGS = tuple(ARCHIVES)
"""Endings of archives that each kind may have."""
