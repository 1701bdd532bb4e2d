"""Values of rows that are chats, and texts in which a chat, a list or bytes are written.

Problem: a table may hold a chat or a list as text (JSON, or as Python prints it), which would be
read as prose with its markup. Mechanism: `chat_of` returns the chat in a value, however it is
written, and `written_kind` and `is_written_object` recognise other markup.

    chat_of('[{"from": "human", "value": "Hi"}]')     # [{"from": "human", "value": "Hi"}]
    written_kind("['one', 'two']")                    # "a list"

Limits: what numpy prints (``array([…])``) is recognised as markup and cannot be read.
"""

import ast
import json
import re
import warnings
from typing import Any

import numpy as np

_WRITTEN_CHAT = re.compile(r"\s*\[\s*\{")
_WRITTEN_KEY = re.compile(r"""["'](?:role|from)["']\s*:""")
_WRITTEN_LIST = re.compile(r"""\s*\[\s*["'{b]""")
_WRITTEN_ARRAY = re.compile(r"""\s*array\(\s*\[\s*["'{]""")
_WRITTEN_BYTES = re.compile(r"""\s*b["']""")
_MARKUP = re.compile(r"""\s*"?(?:[\[{]|array\()""")
_UNREADABLE = (ValueError, SyntaxError, RecursionError, MemoryError)


def is_chat(row: Any) -> bool:
    """Return whether a value is a list of turns, with role and content or from and value."""
    return (
        isinstance(row, list | tuple | np.ndarray)
        and len(row) > 0
        and all(isinstance(turn, dict) and turn_keys(turn) is not None for turn in row)
    )


def chat_of(value: Any) -> Any:
    """Return the chat that a value is, or holds as JSON or as Python writes it; None if no chat."""
    if is_chat(value):
        return value
    is_written = isinstance(value, str) and _WRITTEN_CHAT.match(value)
    if not is_written or not _WRITTEN_KEY.search(value):
        return None
    content = _read(value)
    return content if is_chat(content) else None


def looks_written(text: str) -> bool:
    """Return whether a text begins as a list or an object of JSON, Python or numpy."""
    return _MARKUP.match(text) is not None


def written_kind(text: str) -> str | None:
    """Return "a list", "bytes", "a chat" or "an array" if a text is one as Python writes it.

    Lists of numbers are texts; chats are those that cannot be read.
    """
    if _WRITTEN_ARRAY.match(text):
        return "an array"
    if not (_WRITTEN_LIST.match(text) or _WRITTEN_BYTES.match(text)):
        return None
    content = _read(text)
    if isinstance(content, bytes):
        return "bytes"
    if isinstance(content, list) and all(isinstance(one, str | dict | bytes) for one in content):
        return "a list"
    return "a chat" if _WRITTEN_CHAT.match(text) and _WRITTEN_KEY.search(text) else None


def is_written_object(text: str) -> bool:
    """Return whether a text, or its first line, is an object of JSON."""
    if not text.lstrip().startswith("{"):
        return False
    first_line = text.strip().split("\n", 1)[0]
    return any(isinstance(_read(part), dict) for part in (first_line, text))


def _read(text: str) -> Any:
    """Return the value that a text is in JSON or Python; None if it is in neither."""
    for read in (json.loads, _literal):
        try:
            return read(text)
        except _UNREADABLE:
            continue
    return None


def _literal(text: str) -> Any:
    with warnings.catch_warnings():
        # Backslashes of a text are no mistake in code.
        warnings.simplefilter("ignore")
        return ast.literal_eval(text.strip())


def turn_keys(turn: dict[str, Any]) -> tuple[str, str] | None:
    """Return the keys of the speaker and the content of a turn of a chat; None if it is none."""
    pairs = (("role", "content"), ("from", "value"))
    return next((pair for pair in pairs if turn.keys() >= set(pair)), None)
