"""Values of rows that are chats, and texts in which a chat, a list or bytes are written.

Problem: a table may hold a chat or a list as text (JSON, or as Python prints it), which would be
read as prose with its markup. Mechanism: `chat_of` returns the chat in a value, however it is
written, and `written_kind` recognises lists of texts and bytes.

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
    for read in (json.loads, _literal):
        try:
            content = read(value)
        except _UNREADABLE:
            continue
        if is_chat(content):
            return content
    return None


def looks_written(text: str) -> bool:
    """Return whether a text begins as a list or an object of JSON, Python or numpy."""
    return _MARKUP.match(text) is not None


def written_kind(text: str) -> str | None:
    """Return "a list" or "bytes" if a text is a list of texts, or bytes, as Python writes it."""
    if not (_WRITTEN_LIST.match(text) or _WRITTEN_BYTES.match(text)):
        return None
    for read in (json.loads, _literal):
        try:
            content = read(text)
        except _UNREADABLE:
            continue
        if isinstance(content, bytes):
            return "bytes"
        if isinstance(content, list) and all(
            isinstance(one, str | dict | bytes) for one in content
        ):
            return "a list"
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
