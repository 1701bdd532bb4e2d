"""Rows of files that hold documents: text, Markdown, JSON, tables and Parquet, compressed or not.

Problem: a file of another kind than expected must not be read as prose with its markup. Mechanism:
the ending of a file, in any case and below ``.gz`` or ``.zst``, names its reader. Readers are those
of pyarrow (archives, Parquet), pandas (tables) and json; large files are read piece by piece.

    rows = file_rows(Path("corpus.csv.zst"), wanted=lambda name, columns: ["text"])
    for number, row in rows: rows.where(number), row         # "corpus.csv.zst, row 1", {"text": …}
    read_records("items.jsonl")                                 # [("items.jsonl, line 1", {…}), …]

========== =========================================================================================
ending     documents
========== =========================================================================================
.txt       paragraphs, which end at a blank line
.md        paragraphs with their markup; a heading belongs to the paragraph below it, and blank
           lines inside fences (three backticks) and before the end of front matter do not count
.jsonl     one JSON value per line, usually an object; ``.ndjson`` is the same
.json      a list of rows, an object of columns (as pandas writes it), one row, or as ``.jsonl``
.csv       rows under the header, which also shows the separator (comma, semicolon or tab)
.tsv       the same with tabs
.parquet   rows
========== =========================================================================================

Limits: text files are UTF-8, or UTF-16 or UTF-32 with a byte order mark; a ``.json`` file, and a
compressed Parquet file, is held in memory.
"""

import codecs
import csv
import io
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

Wanted = Callable[[str, Mapping[str, bool]], Sequence[str]]
"""Function ``(name of the file, {column: whether it holds texts})`` that returns the columns to
read.
"""

_ARCHIVES = {".gz": "gzip", ".zst": "zstd"}
"""Codecs of pyarrow by ending."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # Before UTF-16, whose mark is the beginning of this one.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks and the encodings that they announce."""
_TO_UTF8 = "convert it with: iconv -f latin1 -t utf-8 OLD > NEW (give its own encoding for latin1)"
_AGAIN = "copy or download it again"
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Rows:
    """Numbered rows of one source of documents."""

    numbered: Iterable[tuple[int, Any]]
    """Each row with its number."""
    unit: str = "document"
    """Name of a row in messages: document, line, row or paragraph."""
    source: str = ""
    """Name of the file in messages; empty for rows in memory."""
    columns: Mapping[str, bool] | None = None
    """Columns, each with True if it holds texts; None if only the rows themselves tell."""

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return iter(self.numbered)

    def where(self, number: int) -> str:
        """Return the place of a row, as messages name it."""
        row = f"{self.unit} {number}"
        return f"{self.source}, {row}" if self.source else row


def file_rows(path: Path, wanted: Wanted) -> Rows:
    """Return the rows of a file, which are read as they are needed.

    Args:
        path: an existing file.
        wanted: called once for a table, before its rows are read.

    Raises:
        ValueError: the ending is not known, or (while rows are read) the file is damaged or not of
            its kind; the message names the file, the row and the remedy.
    """
    kind = kind_of(path)
    if kind is None:
        raise ValueError(
            f"{path} is of no known kind; expected an ending among {', '.join(KINDS)}, each also"
            f" with {' or '.join(_ARCHIVES)}: rename it if it is one of them, convert it, or read"
            " it yourself and give a list of texts"
        )
    return KINDS[kind](_DocumentFile(path), wanted)


def read_records(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """Return all rows of a file as (place in the file, row), such as ``("a.jsonl, line 1", {…})``.

    Raises:
        ValueError: there is no such file, it is of no known kind or damaged, or its rows have no
            columns.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"no file at {str(path)!r}; give a file that exists")
    rows = file_rows(path, lambda _, columns: list(columns))
    placed = [(rows.where(number), row) for number, row in rows]
    for where, row in placed:
        if not isinstance(row, dict):
            raise ValueError(
                f"{where} is a {type(row).__name__} ({str(row)[:60]!r});"
                " expected an object with named fields"
            )
    return placed


def kind_of(path: str | Path) -> str | None:
    """Return the ending of a path without that of an archive; None if it is not known."""
    name = os.path.basename(path).lower()
    for archive in _ARCHIVES:
        name = name.removesuffix(archive)
    # A name such as ".csv" has no ending.
    return next((kind for kind in KINDS if name.endswith(kind) and name != kind), None)


# ---------------------------------------------------------------------------------- bytes and lines


@dataclass(frozen=True)
class _DocumentFile:
    """A file of one of the known kinds, which may be compressed."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def codec(self) -> str | None:
        return _ARCHIVES.get(self.path.suffix.lower())

    @contextmanager
    def opened(self) -> Iterator[io.BufferedReader]:
        """Return a context with the decompressed bytes, which turns damage into ValueErrors."""
        import pyarrow

        if self.codec is not None and self.path.stat().st_size == 0:
            raise ValueError(f"{self} has 0 bytes, so it is no {self.codec} archive; {_AGAIN}")
        try:
            raw = pyarrow.input_stream(str(self.path), compression=self.codec)
            with io.BufferedReader(raw) as stream:
                yield stream
        except pyarrow.ArrowInvalid as error:
            raise ValueError(
                f"{self} is truncated, damaged or of another kind than its ending says"
                f" ({_first_line(error)}); {_AGAIN}"
            ) from error
        except OSError as error:
            # Errors of the system have a number and name the file, those of a codec do not.
            if error.errno is not None:
                raise
            raise ValueError(
                f"{self} is truncated or damaged ({_first_line(error)}); {_AGAIN}"
            ) from error

    def encoding(self, stream: io.BufferedReader) -> str:
        """Return the encoding that the first bytes announce; UTF-8 if they announce none."""
        start = stream.peek(1024)
        for mark, name in _MARKS:
            if start.startswith(mark):
                return name
        if b"\0" in start[:1024]:
            raise ValueError(
                f"{self} holds NUL bytes: it is no text, or UTF-16 without a byte order mark;"
                " expected UTF-8: iconv -f utf-16le -t utf-8 OLD > NEW converts it"
            )
        return "utf-8"

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield the lines with their numbers from 1, each with its line feed."""
        with self.opened() as stream:
            encoding = self.encoding(stream)
            if not encoding.startswith("utf-8"):
                # In UTF-16 the bytes of a line feed also occur inside other characters.
                yield from enumerate(self._decoded(stream, encoding), start=1)
                return
            for number, line in enumerate(stream, start=1):
                try:
                    text = line.decode(encoding if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    self._refuse_byte(f"line {number}", line, error)
                yield number, text.replace("\r\n", "\n")

    def text(self) -> str:
        """Return the whole text."""
        return "".join(line for _, line in self.lines())

    def _decoded(self, stream: io.BufferedReader, encoding: str) -> Iterator[str]:
        try:
            yield from io.TextIOWrapper(stream, encoding=encoding)
        except UnicodeError as error:
            raise ValueError(
                f"{self} is no valid {encoding.upper()}, which its byte order mark announces"
                f" ({_first_line(error)}); {_AGAIN}, or convert it to UTF-8 with iconv"
            ) from error

    def _refuse_byte(self, where: str, data: bytes, error: UnicodeDecodeError) -> NoReturn:
        raise ValueError(
            f"{self}, {where}, byte {error.start + 1} is 0x{data[error.start]:02X}, which is not"
            f" UTF-8; {_TO_UTF8}"
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]


# --------------------------------------------------------------------------------------------- text


def _text(file: _DocumentFile, _: Wanted) -> Rows:
    return Rows(_paragraphs(file.lines(), markdown=False), "the paragraph at line", str(file))


def _markdown(file: _DocumentFile, _: Wanted) -> Rows:
    return Rows(_paragraphs(file.lines(), markdown=True), "the paragraph at line", str(file))


def _paragraphs(lines: Iterable[tuple[int, str]], *, markdown: bool) -> Iterator[tuple[int, str]]:
    """Yield paragraphs with the numbers of their first lines.

    One long document would fill one fold only, so a text file is not one document.
    """
    paragraph: list[str] = []
    first, closes = 1, ""
    for number, line in lines:
        if not paragraph:
            first = number
        mark = line.strip()
        if markdown:
            closes = _still_open(mark, closes, is_first=number == 1)
        # A heading alone is no paragraph: it goes with the text below.
        is_heading = markdown and bool(paragraph) and all(_is_heading(part) for part in paragraph)
        if mark or closes:
            paragraph.append(line)
        elif paragraph and not is_heading:
            yield first, "".join(paragraph).strip()
            paragraph = []
    if paragraph:
        yield first, "".join(paragraph).strip()


def _still_open(mark: str, closes: str, *, is_first: bool) -> str:
    """Return the line that ends the fence or front matter this line is in; empty outside."""
    if closes:
        return "" if mark.startswith(closes) and not mark.strip(closes[0]) else closes
    if is_first and mark == "---":
        return "---"
    # Three backticks and no others: ```code``` in one line opens nothing.
    is_fence = mark.startswith(("```", "~~~")) and "`" not in mark.lstrip("`")
    return mark[:3] if is_fence else ""


def _is_heading(line: str) -> bool:
    return line.lstrip().startswith("#")


# --------------------------------------------------------------------------------------------- JSON


def _json_lines(file: _DocumentFile, _: Wanted) -> Rows:
    def numbered() -> Iterator[tuple[int, Any]]:
        for number, line in file.lines():
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(
                    f"{file}, line {number} is not JSON ({error}); expected one object per line"
                ) from error

    return Rows(numbered(), "line", str(file))


def _json(file: _DocumentFile, wanted: Wanted) -> Rows:
    text = file.text()
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        # Several values, one behind the other: JSON Lines under the ending of JSON.
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            return _json_lines(file, wanted)
        raise ValueError(
            f"{file} is not JSON ({error}); expected a list of rows, an object of columns, or one"
            " object per line"
        ) from error
    return Rows(enumerate(_rows_of_json(content, file), start=1), "row", str(file))


def _rows_of_json(content: Any, file: _DocumentFile) -> list[Any]:
    """Return the rows of a JSON value: a list of rows, an object of columns, or one row."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"{file} holds {str(content)[:60]!r}; expected a list of rows, an object of columns,"
            " or one object per line"
        )
    columns = list(content.values())
    if all(isinstance(column, dict) for column in columns):
        # pandas writes {column: {index: value}}.
        if all(column.keys() == columns[0].keys() for column in columns):
            keys = list(columns[0])
            return [{name: content[name][key] for name in content} for key in keys]
    elif len(columns) == 1 and isinstance(columns[0], list) and _are_objects(columns[0]):
        # {"data": [{…}, …]}, except a conversation, which is one row.
        return [content] if "role" in columns[0][0] else columns[0]
    elif all(isinstance(column, list) for column in columns):
        if len({len(column) for column in columns}) == 1:
            return [dict(zip(content, row, strict=True)) for row in zip(*columns, strict=True)]
    else:
        return [content]
    raise ValueError(
        f"{file} holds an object with the keys {list(content)[:8]}, whose columns have different"
        " rows; expected a list of rows, or columns of one length"
    )


def _are_objects(rows: list[Any]) -> bool:
    return bool(rows) and all(isinstance(row, dict) for row in rows)


# ------------------------------------------------------------------------------------------- tables


def _table(file: _DocumentFile, wanted: Wanted) -> Rows:
    import pandas as pd

    try:
        separator, columns = _header(file)
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeError) as error:
        _refuse_table(file, error)
    chosen = list(wanted(str(file), columns))

    def numbered() -> Iterator[tuple[int, Any]]:
        number = 0
        try:
            with file.opened() as stream:
                options: dict[str, Any] = _csv_options(file, stream, separator)
                # As strings, so that texts that look like numbers stay texts.
                options |= {"usecols": chosen, "dtype": dict.fromkeys(chosen, str)}
                for chunk in pd.read_csv(stream, chunksize=_ROWS_AT_ONCE, **options):
                    for row in chunk.to_dict("records"):
                        number += 1
                        yield number, row
        except (pd.errors.ParserError, UnicodeError) as error:
            _refuse_table(file, error)

    return Rows(numbered(), "row", str(file), columns)


def _header(file: _DocumentFile) -> tuple[str, dict[str, bool]]:
    """Return the separator of a table, and whether each column holds texts, from its first rows."""
    import pandas as pd

    with file.opened() as stream:
        first = stream.peek(1 << 16).split(b"\n", 1)[0].decode(file.encoding(stream), "replace")
        if not first.strip():
            raise ValueError(f"{file} has no header; expected the names of the columns in line 1")
        separator = "\t" if kind_of(file.path) == ".tsv" else max(",;\t", key=first.count)
        with warnings.catch_warnings():
            # pandas only warns of rows that are longer than the header.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            options = _csv_options(file, stream, separator)
            head = pd.read_csv(stream, nrows=_ROWS_AT_ONCE, **options)
    is_text = pd.api.types.is_string_dtype
    return separator, {str(name): bool(is_text(head[name])) for name in head.columns}


def _csv_options(file: _DocumentFile, stream: io.BufferedReader, separator: str) -> dict[str, Any]:
    # Only an empty field is missing: "NA" and "null" are texts. index_col=False, because pandas
    # would otherwise take the first column of rows that are too long as their names.
    return {
        "sep": separator,
        "encoding": file.encoding(stream),
        "keep_default_na": False,
        "na_values": [""],
        "index_col": False,
        "quoting": csv.QUOTE_MINIMAL,
        "skip_blank_lines": True,
    }


def _refuse_table(file: _DocumentFile, error: Exception) -> NoReturn:
    if isinstance(error, UnicodeError):
        # The parser names a byte of its buffer; reading line by line names the line.
        for _ in file.lines():
            pass
    raise ValueError(
        f"{file} is no table that pandas reads ({_first_line(error)}); expected a header and rows"
        " with as many fields, quoted if they hold separators, quotes or line feeds"
    ) from error


def _parquet(file: _DocumentFile, wanted: Wanted) -> Rows:
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
        columns = {field.name: is_text_type(field.type) for field in table.schema_arrow}
    chosen = list(wanted(str(file), columns))

    def numbered() -> Iterator[tuple[int, Any]]:
        number = 0
        with opened() as table:
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=chosen):
                for row in arrow_rows(batch, str(file), number + 1):
                    number += 1
                    yield number, row

    return Rows(numbered(), "row", str(file), columns)


def is_text_type(kind: Any) -> bool:
    """Return whether a type of pyarrow holds texts, also as a dictionary of texts."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def arrow_rows(batch: Any, source: str, first: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a pyarrow table or batch as dictionaries.

    Raises:
        ValueError: a text is not valid UTF-8; the message names ``source`` and the row, counted
            from ``first``.
    """
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        rows = []
        for k in range(batch.num_rows):
            try:
                rows += batch.slice(k, 1).to_pylist()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{source}, row {first + k} holds a text that is not UTF-8 ({error});"
                    " write the table again from valid texts"
                ) from None
    yield from rows


KINDS: dict[str, Callable[[_DocumentFile, Wanted], Rows]] = {
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
ARCHIVE_ENDINGS = tuple(_ARCHIVES)
"""Endings of archives that each kind may have."""
