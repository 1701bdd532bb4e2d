"""Amounts of memory as text, in both directions.

Problem: users write 8GB or 16GiB, messages must be readable. Mechanism: one table of units for
reading and writing.

    parse_bytes("8GB")           # 8_000_000_000
    human_bytes(1_440_000_000)   # "1.44 GB"

Limits: `human_bytes` writes powers of ten with three significant digits.
"""

import re

# KB, MB, … are powers of 10 (SI); KiB, MiB, … are powers of 2 (IEC 80000-13).
_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_bytes(text: str) -> int:
    """Return the bytes in ``"8GB"`` (10⁹), ``"8GiB"`` (2³⁰) or ``"500 MB"``; no unit means bytes.

    Raises:
        ValueError: the text is not a number with a known unit.
    """
    # A number, then an optional unit: K, M, G or T, an optional i, and B.
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?i?b)?\s*", text, flags=re.IGNORECASE)
    size = float(match[1]) * _UNITS[(match[2] or "B").upper()] if match else 0.0
    if not 1 <= size < 2**63:
        raise ValueError(f"{text!r} is no amount of memory; write it like 8GB, 500MB or 16GiB")
    return int(size)


def human_bytes(n: int) -> str:
    """Return a number of bytes as text with a unit, such as ``"1.44 GB"``."""
    for unit in ("TB", "GB", "MB", "KB"):
        if n >= _UNITS[unit]:
            return f"{n / _UNITS[unit]:.3g} {unit}"
    return f"{n:.0f} B"
