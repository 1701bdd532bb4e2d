"""Chats: turns as chat templates read them, the text of a chat, and the words that decide its fold.

Problem: data sets write turns in several ways (role and content, from and value, parts of content),
and the rendered text has what is not the chat's own (a date, a system prompt of the template).
Mechanism: `turns_of` brings a chat into the form that templates read, `chat_text` renders it, and
`chat_words` has the words by which copies of a chat are recognised, whatever template renders it.

    turns = turns_of([{"from": "human", "value": "Hi"}], "row 1")
    turns                                      # [{"role": "user", "content": "Hi"}]
    chat_text(turns, "row 1", (tokenizer,))    # "<|user|>Hi"
    chat_words(turns)                          # "user: Hi"

Limits: images, audio and other parts that are no text are refused.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lrt_lens.data._document_rows import is_missing
from lrt_lens.data._written_values import turn_keys
from lrt_lens.errors import MismatchError

_ROLES = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""Names of speakers in ShareGPT's files, in any case, as chat templates call them."""
_INSTRUCTORS = ("system", "developer")
"""Roles whose turns are instructions, which many chats share."""
_CALLS = ("tool_calls", "function_call")
"""Fields of turns that may stand for their content."""


def turns_of(chat: Any, where: str) -> list[dict[str, Any]]:
    """Return the turns of a chat as chat templates read them; none if no turn has content.

    Parts of content that are text are joined by line feeds.

    Raises:
        ValueError: a turn has no content while others have, or content that is no text; the message
            begins with ``where``.
    """
    turns = [_turn(turn, f"{where}, turn {k}") for k, turn in enumerate(chat, start=1)]
    has_content = [not is_missing(turn["content"]) or _has_calls(turn) for turn in turns]
    if not any(has_content):
        return []
    if not all(has_content):
        raise ValueError(
            f"{where}, turn {has_content.index(False) + 1} ({str(turns)[:60]}…) has no content;"
            " expected a text in each turn: leave this turn or this chat out"
        )
    # NaN, which pandas writes for a missing value, is a text to a template.
    return [turn | {"content": None} if is_missing(turn["content"]) else turn for turn in turns]


def _turn(turn: dict[str, Any], where: str) -> dict[str, Any]:
    if turn_keys(turn) == ("from", "value"):
        speaker = str(turn["from"]).strip()
        turn = {"role": _ROLES.get(speaker.lower(), speaker), "content": turn["value"]}
    content = turn["content"]
    if is_missing(content) or isinstance(content, str):
        return turn
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list | tuple | np.ndarray):
        raise ValueError(
            f"{where} has the content {str(content)[:60]!r} ({type(content).__name__}); expected a"
            " text, or a list of parts with texts"
        )
    return turn | {"content": "\n".join(_text_of_part(part, where) for part in parts)}


def _text_of_part(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    kind = str(part.get("type") or "text") if isinstance(part, dict) else "text"
    if isinstance(text, str) and kind.endswith("text"):
        return text
    raise ValueError(
        f"{where} has a part that is no text: {str(part)[:60]!r}; expected parts such as"
        " {'type': 'text', 'text': …}: leave out images, audio and other parts, or these chats"
    )


def _has_calls(turn: dict[str, Any]) -> bool:
    return any(not is_missing(call) and call not in ("", [], {}) for call in map(turn.get, _CALLS))


def chat_words(turns: Sequence[dict[str, Any]]) -> str:
    """Return roles and contents of a chat, by which its copies are recognised.

    Turns of the system are left out if there are others, because a template may add its own.
    """
    spoken = [turn for turn in turns if turn["role"] not in _INSTRUCTORS] or turns
    return "\n".join(f"{turn['role']}: {turn['content'] or ''}{_calls(turn)}" for turn in spoken)


def _calls(turn: dict[str, Any]) -> str:
    calls = {name: turn[name] for name in _CALLS if turn.get(name) is not None}
    return json.dumps(calls, sort_keys=True, default=str) if _has_calls(turn) else ""


def chat_text(turns: list[dict[str, Any]], where: str, tokenizers: tuple[Any, ...]) -> str:
    """Return a chat as text, by the template of the only tokenizer.

    Raises:
        MismatchError: there are two tokenizers.
        ValueError: there is no template, or it fails.
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
    try:
        return tokenizers[0].apply_chat_template(turns, tokenize=False)
    except Exception as error:  # templates raise errors of jinja2, and any other of their own code
        roles = [str(turn["role"]) for turn in turns]
        raise ValueError(
            f"{where} is a chat with the roles {roles[:8]}, and the tokenizer's chat template fails"
            f" on it ({type(error).__name__}: {str(error).strip()[:200]}); give turns that the"
            " template accepts, another tokenizer.chat_template, or plain text"
        ) from error
