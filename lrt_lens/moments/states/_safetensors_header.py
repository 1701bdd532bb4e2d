"""Names, shapes and token ids of a safetensors file, without its other bytes.

Problem: ``safe_open`` maps a file, and the system then reads all of it from the disk, so that a
folder larger than memory was read twice: to list its sequences, and to use them. Mechanism: the
header and the token ids alone are read, which are less than a hundredth of a file.

    header = read_header(path)
    header.shapes["hidden_states"], header.array("token_ids")

Limits: only arrays of numbers that numpy knows are read.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

_TYPES = {f"{kind.upper()}{8 * size}": f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
_TYPES |= {f"F{8 * size}": f"<f{size}" for size in (2, 4, 8)} | {"BOOL": "?"}
_DAMAGED = (ValueError, LookupError, TypeError, AttributeError)
"""Errors of headers that are not those of safetensors."""


@dataclass(frozen=True)
class SafetensorsHeader:
    """Header of a file that is as long as the header announces."""

    path: Path
    entries: dict[str, dict[str, Any]]
    """Name of each tensor and ``dtype``, ``shape`` and ``data_offsets``, as in the file."""
    metadata: dict[str, str]
    begin: int
    """First byte of the data."""

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Shape of each tensor by its name."""
        return {name: list(entry["shape"]) for name, entry in self.entries.items()}

    def array(self, name: str) -> np.ndarray:
        """Return one tensor, read from the file.

        Raises:
            FileNotFoundError: the file is gone.
            SafetensorError: the file was cut, or numpy does not know the type of the numbers.
        """
        entry = self.entries[name]
        first, end = entry["data_offsets"]
        with open(self.path, "rb") as file:
            file.seek(self.begin + first)
            content = file.read(end - first)
        try:
            return np.frombuffer(content, _TYPES[entry["dtype"]]).reshape(entry["shape"])
        except _DAMAGED as error:
            raise SafetensorError(f"{name!r} of {str(self.path)!r} is damaged: {error}") from error


def read_header(path: Path) -> SafetensorsHeader:
    """Return the header of a file.

    Raises:
        FileNotFoundError: there is no such file.
        SafetensorError: the header is damaged, or the file has another length than it announces.
    """
    # 8 bytes: length n of the header; n bytes: JSON; then the data, to which all offsets refer.
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            raise SafetensorError(f"{str(path)!r} ends within its header")
        content = file.read(length)
    try:
        entries = json.loads(content)
        metadata = entries.pop("__metadata__", None) or {}
        header = SafetensorsHeader(path, entries, metadata, 8 + length)
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        _ = header.shapes
    except _DAMAGED as error:
        raise SafetensorError(f"the header of {str(path)!r} is damaged: {error}") from error
    if header.begin + end != size:
        raise SafetensorError(f"{str(path)!r} has {size} bytes; expected {header.begin + end}")
    return header
