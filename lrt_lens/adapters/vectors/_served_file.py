"""The file of another program from which a vector was read.

Problem: a vector that was read from another program's file and is written again must give the same
file. Mechanism: what the file said beyond the direction is kept with the vector.

    SteeringVector.load("happy.gguf").file        # ServedFile(format='llama.cpp', …)

Limits: a vector that is transferred or changed has no file any more.
"""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

FileKind = Literal["gguf", "safetensors", "numpy", "torch", "json", ""]
"""Kind of a file by its first bytes; empty if it is none of these."""
_N_BYTES = 16


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


def kind_of(path: Path) -> FileKind:
    """Return the kind of a file, by its first bytes."""
    with open(path, "rb") as file:
        start = file.read(_N_BYTES)
    # GGUF first: the number of its tensors may look like a brace. Then safetensors, which begins
    # with the length of its header, and that may look like anything else.
    if start.startswith(b"GGUF"):
        return "gguf"
    if start[8:9] == b"{":
        return "safetensors"
    if start.startswith(b"\x93NUMPY"):
        return "numpy"
    # Archives of torch, new and old.
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "torch"
    return "json" if start.lstrip()[:1] in (b"{", b"[") else ""


def is_served(path: Path) -> bool:
    """Return whether a path may be a file or folder of another program.

    A safetensors file is none unless it can be read and has no schema version: a damaged one may be
    one of ours.
    """
    if not path.is_file():
        return path.is_dir()
    kind = kind_of(path)
    return _has_no_schema(path) if kind == "safetensors" else kind != ""


def _has_no_schema(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return "schema_version" not in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def is_archive_of_arrays(path: Path) -> bool:
    """Return whether a file is an archive of ``np.savez``, which begins as those of torch do."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)
