"""Which errors are messages to the user, and which are bugs.

Problem: a command should end with one line for a bad input, with a traceback for a bug, and both
can be a ValueError. Mechanism: an error is a refusal if code that checks inputs raised it on
purpose, with a ``raise`` statement of this package or of a library that reads models and texts.

    is_refusal(error)                 # False for a bug, which keeps its traceback

Limits: what a ``raise`` statement of this package says is taken for a refusal, also if a bug led
there.
"""

import dis
import traceback

from lrt_lens import errors

_OWN = tuple(getattr(errors, name) for name in errors.__all__)
_READERS = ("lrt_lens", "transformers", "huggingface_hub", "datasets", "tokenizers", "json")
"""Packages whose ValueErrors, if raised on purpose, are about the input."""


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
