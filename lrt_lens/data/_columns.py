"""Columns of the texts and of the groups: as the caller named them, or found from the rows.

Problem: the only column with texts may be an identifier, a date or a version, while the texts are
in a chat, a list or a struct. Mechanism: a column is found by itself if it has a usual name, or if
it is the only one with texts and no other could hold them; otherwise the error lists the columns.

    Columns().choose("a.csv", {"n": "other", "body": "text"})     # ["body"]
    Columns().choose("a.jsonl", {"id": "text", "turns": "nested"})  # ValueError

Limits: with no nested column, the only text column is read whatever it holds.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from lrt_lens.data._document_rows import TURNS, ColumnKind, Rows, is_missing, kinds_of_rows
from lrt_lens.errors import MismatchError

_NAMES = ("text", "messages")
"""Columns that are read wherever they occur."""
_CHAT_NAMES = ("conversations", "chat")
"""Columns that are read if they hold chats."""
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""Names of speakers in ShareGPT's files, as chat templates call them."""
_TYPED_ROWS = 100
"""Rows from which the column of the texts is found if the source names no columns."""


class Columns:
    """Columns of the texts and groups: as named by the caller, or found from those of the rows."""

    def __init__(self, text_field: str | None = None, group: Any = None) -> None:
        self.text_field, self.group = text_field, group
        self._group_column = group if isinstance(group, str) else None
        self.found: str | None = text_field

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
        self.found = self.text_field or _text_column(columns)
        if self.found is None:
            raise ValueError(
                f"{subject} has the columns {names}, {_what_columns_hold(columns)}; text_field="
                " names the one to read"
            )
        if callable(self.group):
            return names
        # Each once: the groups may be the texts themselves.
        groups = [self._group_column] if self._group_column else []
        return list(dict.fromkeys([self.found, *groups]))

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
            if is_missing(row) or isinstance(row, str) or is_chat(row):
                return row
            raise ValueError(
                f"{where} is a {type(row).__name__} ({str(row)[:60]!r});"
                " expected a text, a row with 'text', or a chat"
            )
        name = self.text_field
        if name is None:
            # Rows in memory may differ in their columns, and a chat may have an empty text.
            names = [other for other in (*_NAMES, self.found) if other in row]
            names += [other for other in _CHAT_NAMES if is_chat(row.get(other))]
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
        if is_missing(value) or isinstance(value, str) or is_chat(value):
            return value
        raise ValueError(
            f"{where} has {str(value)[:60]!r} ({type(value).__name__}) in the column {name!r};"
            " expected a text, or a chat"
        )


def typed(rows: Rows, columns: Columns) -> Iterator[tuple[int, Any]]:
    """Yield the rows; before the first one with other columns, find the column of the texts."""
    numbered = iter(rows)
    for number, row in numbered:
        if columns.found is not None or not isinstance(row, dict) or _names_its_text(row):
            yield number, row
            continue
        start = [(number, row), *islice(numbered, _TYPED_ROWS - 1)]
        _refuse_turn(row, rows.where(number))
        columns.choose(rows.source or rows.where(number), kinds_of_rows(row for _, row in start))
        yield from start


def _refuse_turn(row: Any, where: str) -> None:
    """Raise ValueError if a row is one turn of a chat instead of a chat."""
    if isinstance(row, dict) and row.keys() in TURNS:
        raise ValueError(
            f"{where} is one turn of a chat ({str(row)[:60]!r}); expected a text, a row with"
            " 'text', or a chat: give a list of chats, each a list of turns"
        )


def _names_its_text(row: dict[str, Any]) -> bool:
    return "text" in row or any(is_chat(row.get(name)) for name in ("messages", *_CHAT_NAMES))


def _text_column(columns: Mapping[str, ColumnKind]) -> str | None:
    """Return the column of the texts by the columns' names and kinds; None if that is not clear."""
    chats = [name for name in _CHAT_NAMES if columns.get(name) == "nested"]
    named = [name for name in _NAMES if name in columns] + chats
    texts = [name for name, kind in columns.items() if kind == "text"]
    # The only column of texts may be an identifier beside one that holds the texts.
    is_clear = len(texts) == 1 and "nested" not in columns.values()
    return next(iter(named), texts[0] if is_clear else None)


def _what_columns_hold(columns: Mapping[str, ColumnKind]) -> str:
    texts = [name for name, kind in columns.items() if kind == "text"]
    nested = [name for name, kind in columns.items() if kind == "nested"]
    several = f"{len(texts)} of them with texts {texts}" if texts else "none with texts"
    return f"{several} and {nested} with lists, structs or bytes" if nested else several


# ------------------------------------------------------------------------------------------- chats


def is_chat(row: Any) -> bool:
    """Return whether a value is a list of turns, with role and content or from and value."""
    return (
        isinstance(row, list | tuple | np.ndarray)
        and len(row) > 0
        and all(isinstance(turn, dict) and _turn_keys(turn) is not None for turn in row)
    )


def _turn_keys(turn: dict[str, Any]) -> Sequence[str] | None:
    pairs = (("role", "content"), ("from", "value"))
    return next((pair for pair in pairs if turn.keys() >= set(pair)), None)


def chat_turn(turn: dict[str, Any]) -> dict[str, Any]:
    """Return a turn as chat templates read it."""
    if _turn_keys(turn) != ("from", "value"):
        return turn
    speaker = str(turn["from"])
    return {"role": _ROLES.get(speaker.lower(), speaker), "content": turn["value"]}


def chat_text(chat: Any, where: str, tokenizers: tuple[Any, ...]) -> str:
    """Return a chat as text, by the template of the only tokenizer.

    Raises:
        MismatchError: there are two tokenizers.
        ValueError: there is no template.
    """
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
    return tokenizers[0].apply_chat_template(list(map(chat_turn, chat)), tokenize=False)
