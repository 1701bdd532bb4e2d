"""The file of another program from which a vector was read.

Problem: a vector that was read from another program's file and is written again must give the same
file. Mechanism: what the file said beyond the direction is kept with the vector.

    SteeringVector.load("happy.gguf").file        # ServedFile(format='llama.cpp', …)

Limits: a vector that is transferred or changed has no file any more.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_STARTS = (b"GGUF", b"PK\x03\x04", b"\x93NUMPY", b"\x80\x02")
"""First bytes of files of GGUF, of torch (new and old) and of numpy."""


@dataclass(frozen=True)
class ServedFile:
    """Format, model type and further values of a file of another program."""

    format: str
    """Name of the format, such as ``"llama.cpp"``; ``"tensor"`` for a tensor alone."""
    model_type: str = ""
    """``model_type`` of the config of Hugging Face that the file names; empty if none."""
    dtype: str = "float32"
    """Precision of the direction in the file; in memory it is float32."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Values that the format has and this package has no place for."""


def is_served(path: Path) -> bool:
    """Return whether a path may be a file or folder of another program, by its first bytes.

    A safetensors file is none: it may be one of ours.
    """
    if path.is_dir():
        return True
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(9)
    # safetensors begins with the length of its header, which may look like anything.
    if start[8:] == b"{":
        return False
    return start.startswith(_STARTS) or start.lstrip()[:1] in (b"{", b"[")
