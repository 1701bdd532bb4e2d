r"""Text for a terminal or a log, and which errors are messages to the user.

Problem: the name of a model, a hook point or a file may hold line ends, terminal escapes or
invisible characters, and an error may be a refusal of the input or a bug. Mechanism: characters
that do not print are written as their escapes, and an error is a refusal if code that checks inputs
raised it on purpose.

    printable("a\x1b[31mb")           # "a\\\\x1b[31mb"
    one_line("first\\nsecond")         # "first second"
    is_refusal(error)                 # False for a bug, which keeps its traceback

Limits: what a ``raise`` statement of this package says is taken for a refusal, also if a bug led
there.
"""

import dis
import re
import traceback

from lrt_lens import errors

_OWN = tuple(getattr(errors, name) for name in errors.__all__)
_READERS = ("lrt_lens", "transformers", "huggingface_hub", "datasets", "tokenizers", "json")
"""Packages whose ValueErrors, if raised on purpose, are about the input."""


def printable(text: object) -> str:
    """Return a text with line ends, terminal escapes and invisible characters as escapes."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in str(text)
    )


def one_line(text: object) -> str:
    """Return a text as one line: line ends become blanks, other control characters escapes."""
    return printable(re.sub(r"\s*[\r\n]+\s*", " ", str(text).strip()))


def lines(text: object) -> str:
    """Return a text whose line feeds and tabs stay and whose other characters are `printable`."""
    return re.sub(r"[^\n\t]+", lambda part: printable(part[0]), str(text))


def is_refusal(error: BaseException) -> bool:
    """Return whether an error is a message about the input or the machine, and no bug.

    Errors of the system (no file, no permission, a full disk), of memory and of missing packages
    are; and so are `lrt_lens.errors`, and ValueErrors and TypeErrors that a ``raise`` statement of
    this package raised.
    """
    # safetensors has an error class of its own for a file of weights.
    if isinstance(error, (*_OWN, OSError, ImportError, MemoryError)):
        return True
    if type(error).__name__ in ("OutOfMemoryError", "SafetensorError"):
        return True
    if not isinstance(error, ValueError | TypeError):
        return False
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return False
    # The frame in which the error was raised is the last one of the traceback.
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or not _raises(last.tb_frame.f_code.co_code, last.tb_lasti):
        return False
    package = str(last.tb_frame.f_globals.get("__name__", "")).split(".")[0]
    return package in (_READERS if isinstance(error, ValueError) else _READERS[:1])


def _raises(code: bytes, place: int) -> bool:
    """Return whether the instruction at a place is a ``raise`` statement."""
    return 0 <= place < len(code) and dis.opname[code[place]] in ("RAISE_VARARGS", "RERAISE")
