"""Numbers that are checked before any work: whole ones, and finite ones.

    checked_whole("seed", seed, least=0)               # an int; 3.0 is 3, True is refused
    checked_number("damage", damage, above=0.0)        # a float; NaN and infinity are refused

Limits: whole numbers have at most 63 bits, as files and tensors do.
"""

import math
import numbers
import sys
from typing import Any

_MOST = 2**63 - 1


def checked_whole(name: str, value: Any, *, least: int, most: int = _MOST) -> int:
    """Return a whole number of any type as an int.

    Raises:
        ValueError: it is no whole number (True is none), below ``least`` or above ``most``.
    """
    if _is_number(value):
        # An int may be too large for a float, and math.isfinite makes one.
        is_whole = isinstance(value, int) or (math.isfinite(value) and value == math.floor(value))
        if is_whole and least <= value <= most:
            return int(value)
    upper = "" if most == _MOST and not _is_above(value) else f" and at most {most:,}"
    raise ValueError(
        f"{name} is {shown_number(value)}; expected a whole number of at least {least}{upper}"
    )


def checked_number(name: str, value: Any, *, above: float, most: float = math.inf) -> float:
    """Return a finite number of any type as a float.

    Raises:
        ValueError: it is NaN, infinite, no number, not above ``above``, or above ``most``.
    """
    if _is_number(value) and above < value <= min(most, sys.float_info.max):
        return float(value)
    upper = "" if most == math.inf else f" and at most {most:g}"
    lower = f" above {above:g}" if above >= 0 else " of at least 0" if above > -1 else ""
    raise ValueError(f"{name} is {shown_number(value)}; expected a finite number{lower}{upper}")


def checked_seconds(checkpoint_every: Any) -> float:
    """Return the seconds between two checkpoints.

    Raises:
        ValueError: they are no finite number above 0.
    """
    try:
        return checked_number("checkpoint_every", checkpoint_every, above=0.0)
    except ValueError:
        shown = shown_number(checkpoint_every)
        raise ValueError(f"checkpoint_every is {shown}; expected seconds above 0") from None


def is_count(text: str) -> bool:
    """Return whether a text is a whole number of at most nine digits, as ``int`` reads them."""
    return text.isascii() and text.isdigit() and len(text) < 10


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_above(value: Any) -> bool:
    return isinstance(value, int) and value > _MOST


def shown_number(value: Any) -> str:
    """Return a value for a message."""
    # Python refuses to print integers of more than 4,300 digits.
    is_huge = isinstance(value, int) and value.bit_length() > 1000
    return "a number of more than 300 digits" if is_huge else repr(value)
