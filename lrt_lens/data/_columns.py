"""Columns of the texts and of the groups: as the caller named them, or found from the rows.

Problem: the only column with texts may be an identifier, a date or a version, while the texts are
in a chat, a list or a struct. Mechanism: a column is found by itself if it has a usual name, or if
it is the only one with texts and no other could hold them; otherwise the error lists the columns.

    Columns().choose("a.csv", {"n": "other", "body": "text"})     # ["body"]
    Columns().choose("a.jsonl", {"id": "text", "turns": "nested"})  # ValueError

Limits: with no nested column, the only text column is read whatever it holds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from lrt_lens.data._document_rows import TURNS, ColumnKind, Rows, is_missing, kinds_of_rows
from lrt_lens.data._written_values import chat_of, is_written_object, looks_written, written_kind

_NAMES = ("text", "messages")
"""Columns that are read wherever they occur."""
_CHAT_NAMES = ("conversations", "chat")
"""Columns that are read if they hold chats."""
_TYPED_ROWS = 100
"""Rows from which the column of the texts is found if the source names no columns."""
_TYPED_CHARACTERS = 10_000_000
"""Number of characters in these rows after which fewer rows must do."""
_WRITTEN_ROWS = 8
"""Rows from which lists and bytes that a table holds as text are recognised."""


class Columns:
    """Columns of the texts and groups: as named by the caller, or found from those of the rows."""

    def __init__(self, text_field: str | None = None, group: Any = None) -> None:
        self.text_field, self.group = text_field, group
        self._group_column = group if isinstance(group, str) else None
        self.found: str | None = text_field
        self._chat_columns = {"messages", *_CHAT_NAMES}
        """Columns in which markup is a chat."""

    def choose(self, source: str, columns: Mapping[str, ColumnKind]) -> list[str]:
        """Return the columns to read, and keep the one that holds the texts.

        Args:
            source: name of the source in messages.
            columns: what each column holds.

        Raises:
            ValueError: there is no such column, or no column or several could hold the texts.
        """
        names = list(columns)
        subject = source or "the table"
        for option, name in (("text_field", self.text_field), ("group", self._group_column)):
            if name is not None and name not in columns:
                raise ValueError(
                    f"{option} is {name!r}, and {subject} has the columns {names}; give one of them"
                )
        named = [self.text_field] if self.text_field else _text_columns(columns)
        self.found = next(iter(named), None)
        if self.found is None:
            raise ValueError(
                f"{subject} has the columns {names}, {_what_columns_hold(columns)}; text_field="
                " names the one to read"
            )
        if callable(self.group):
            return names
        # Each once: the groups may be the texts themselves.
        groups = [self._group_column] if self._group_column else []
        return list(dict.fromkeys([*named, *groups]))

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
            chat = chat_of(row)
            if chat is not None or is_missing(row) or isinstance(row, str):
                return row if chat is None else chat
            raise ValueError(
                f"{where} is a {type(row).__name__} ({str(row)[:60]!r});"
                " expected a text, a row with 'text', or a chat"
            )
        name = self._column_of(row)
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
        return self._text_or_chat(row[name], name, where)

    def _text_or_chat(self, value: Any, name: str, where: str) -> Any:
        """Return the value of a column, or the chat that it holds as text."""
        chat, is_text = chat_of(value), isinstance(value, str)
        if chat is not None:
            if is_text:
                self._chat_columns.add(name)
            return chat
        if is_text and name in self._chat_columns and looks_written(value):
            raise ValueError(
                f"{where} has {value[:60]!r} in the column {name!r}, which is markup and no chat"
                " that can be read; expected a list of turns, or the same as JSON: write the table"
                " again with json.dumps(turns), or as .jsonl or .parquet"
            )
        if is_missing(value) or is_text:
            return value
        raise ValueError(
            f"{where} has {str(value)[:60]!r} ({type(value).__name__}) in the column {name!r};"
            " expected a text, or a chat"
        )

    def text_in(self, row: dict[str, Any]) -> Any:
        """Return the text or chat of a row with columns; None if it has no column of that kind."""
        value = row.get(self._column_of(row) or "")
        chat = chat_of(value)
        return value if chat is None else chat

    def _column_of(self, row: dict[str, Any]) -> str | None:
        """Return the column of a row's text or chat: the first of the usual ones that is filled."""
        if self.text_field is not None:
            return self.text_field
        # Rows in memory may differ in their columns, and a chat may have an empty text.
        names = [other for other in (*_NAMES, self.found) if other in row]
        names += [other for other in _CHAT_NAMES if chat_of(row.get(other)) is not None]
        filled = (other for other in names if not _is_blank(row[other]))
        return next(filled, None) or next(iter(names), self.found)


def _size(row: Any) -> int:
    values = row.values() if isinstance(row, dict) else ()
    return sum(len(value) for value in values if isinstance(value, str))


def _is_blank(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def typed(rows: Rows, columns: Columns) -> Iterator[tuple[int, Any]]:
    """Yield the rows; before the first one with other columns, find the column of the texts."""
    numbered = iter(rows)
    for number, row in numbered:
        if columns.found is not None or not isinstance(row, dict) or _names_its_text(row):
            yield number, row
            continue
        start = [(number, row)]
        for next_one in islice(numbered, _TYPED_ROWS - 1):
            start.append(next_one)
            if sum(_size(other) for _, other in start) > _TYPED_CHARACTERS:
                break
        _refuse_turn(row, rows.where(number))
        columns.choose(rows.source or rows.where(number), kinds_of_rows(row for _, row in start))
        yield from start


def without_written_values(
    rows: Iterable[tuple[int, Any]], columns: Columns, where: Callable[[int], str]
) -> Iterator[tuple[int, Any]]:
    """Yield the rows; refuse markup instead of texts.

    CSV files have no lists, so pandas writes ``['a', 'b']`` and ``b'a'`` as text, and the lines of
    a JSON Lines file may be given as texts.

    Raises:
        ValueError: the first texts of the source are all of that kind.
    """
    numbered, undecided, refusal, is_clear = iter(rows), list[tuple[int, Any]](), "", False
    for number, row in numbered:
        undecided.append((number, row))
        value = columns.text_in(row) if isinstance(row, dict) else row
        complaint = _complaint(value, is_column=isinstance(row, dict))
        if complaint and not refusal:
            refusal = f"{where(number)} has {str(value)[:60]!r}, {complaint}"
        is_clear = not complaint and not _is_blank(value)
        if is_clear or len(undecided) == _WRITTEN_ROWS:
            break
    if refusal and not is_clear:
        raise ValueError(refusal)
    yield from undecided
    yield from numbered


def _complaint(value: Any, *, is_column: bool) -> str:
    """Return why a value may be no text, with the remedy; empty if it is one."""
    if not isinstance(value, str):
        return ""
    if not is_column:
        # Lines of a file with rows; other texts were written as they are by the caller.
        return (
            "a row written as text; expected a text: give the path of the file (.jsonl), or"
            " map(json.loads, lines), or rows {'text': …} if the texts are meant as they are"
            if is_written_object(value)
            else ""
        )
    kind = written_kind(value)
    if kind is None:
        return ""
    remedy = (
        "write the table again with json.dumps(turns), or as .jsonl or .parquet"
        if kind in ("a chat", "an array")
        else "parse the column (ast.literal_eval or json.loads) and give the texts in it, or a list"
        " of these texts if they are meant as they are"
    )
    return f"{kind} written as text; expected a text: {remedy}"


def _refuse_turn(row: Any, where: str) -> None:
    """Raise ValueError if a row is one turn of a chat instead of a chat."""
    if isinstance(row, dict) and row.keys() in TURNS:
        raise ValueError(
            f"{where} is one turn of a chat ({str(row)[:60]!r}); expected a text, a row with"
            " 'text', or a chat: give a list of chats, each a list of turns"
        )


def _names_its_text(row: dict[str, Any]) -> bool:
    names = ("messages", *_CHAT_NAMES)
    return "text" in row or any(chat_of(row.get(name)) is not None for name in names)


def _text_columns(columns: Mapping[str, ColumnKind]) -> list[str]:
    """Return the columns of the texts by their names and kinds; empty if that is not clear.

    If there are several, a row's text is in the first one that is filled.
    """
    chats = [name for name in _CHAT_NAMES if columns.get(name) == "nested"]
    named = [name for name in _NAMES if name in columns] + chats
    texts = [name for name, kind in columns.items() if kind == "text"]
    # The only column of texts may be an identifier beside one that holds the texts.
    is_clear = len(texts) == 1 and "nested" not in columns.values()
    return named or (texts if is_clear else [])


def _what_columns_hold(columns: Mapping[str, ColumnKind]) -> str:
    texts = [name for name, kind in columns.items() if kind == "text"]
    nested = [name for name, kind in columns.items() if kind == "nested"]
    several = f"{len(texts)} of them with texts {texts}" if texts else "none with texts"
    return f"{several} and {nested} with lists, structs or bytes" if nested else several
