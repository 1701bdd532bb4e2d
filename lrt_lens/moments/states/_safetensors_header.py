"""Names, shapes and token ids of a safetensors file, without its other bytes.

Problem: ``safe_open`` maps a file, and the system then reads all of it from the disk, so that a
folder larger than memory was read twice: to list its sequences, and to use them. Mechanism: the
header and the token ids alone are read, which are less than a hundredth of a file.

    header = read_header(path)
    header.shapes["hidden_states"], header.array("token_ids")

Limits: `SafetensorsHeader.array` reads arrays of numbers that numpy knows, which bfloat16 is not.
"""

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

_TYPES = {f"{kind.upper()}{8 * size}": f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
_TYPES |= {f"F{8 * size}": f"<f{size}" for size in (2, 4, 8)} | {"BOOL": "?"}
_TORCH_TYPES = {f"F{8 * size}": getattr(torch, f"float{8 * size}") for size in (2, 4, 8)}
_TORCH_TYPES |= {f"I{8 * size}": getattr(torch, f"int{8 * size}") for size in (1, 2, 4, 8)}
_TORCH_TYPES |= {"BF16": torch.bfloat16, "U8": torch.uint8, "BOOL": torch.bool}
_TORCH_TYPES |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
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

    def array(self, name: str, file: BinaryIO | None = None) -> np.ndarray:
        """Return one tensor, read from the file, which may be open already.

        Raises:
            FileNotFoundError: the file is gone.
            SafetensorError: the file was cut, or numpy does not know the type of the numbers.
        """
        entry = self.entries[name]
        with nullcontext(file) if file is not None else open(self.path, "rb") as opened:
            content = self._content(name, opened)
        try:
            return content.view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
        except _DAMAGED as error:
            raise SafetensorError(f"{name!r} of {str(self.path)!r} is damaged: {error}") from error

    def tensor(self, name: str, file: BinaryIO) -> Tensor:
        """Return one tensor, read from the open file into memory of its own.

        Raises:
            SafetensorError: the file was cut, or torch does not know the type of the numbers.
        """
        entry, content = self.entries[name], self._content(name, file)
        try:
            dtype = _TORCH_TYPES[entry["dtype"]]
            if not len(content):  # bytes of which torch makes no other numbers
                return torch.empty(entry["shape"], dtype=dtype)
            return torch.from_numpy(content).view(dtype).reshape(entry["shape"])
        except (*_DAMAGED, RuntimeError) as error:
            raise SafetensorError(f"{name!r} of {str(self.path)!r} is damaged: {error}") from error

    def _content(self, name: str, file: BinaryIO) -> np.ndarray:
        """Return the bytes of one tensor [byte]."""
        first, end = self.entries[name]["data_offsets"]
        # Read into memory that is not filled with zeros before, and from its beginning, so that
        # the numbers are aligned whatever the length of the header is.
        content = np.empty(end - first, dtype=np.uint8)
        file.seek(self.begin + first)
        if file.readinto(content) < len(content):  # type: ignore[attr-defined]
            raise SafetensorError(f"{str(self.path)!r} ends within {name!r}")
        return content


def read_header(path: Path, file: BinaryIO | None = None) -> SafetensorsHeader:
    """Return the header of a file, which may be open already.

    Raises:
        FileNotFoundError: there is no such file.
        SafetensorError: the header is damaged, or the file has another length than it announces.
    """
    # 8 bytes: length n of the header; n bytes: JSON; then the data, to which all offsets refer.
    with nullcontext(file) if file is not None else open(path, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        length = int.from_bytes(opened.read(8), "little")
        if 8 + length > size:
            raise SafetensorError(f"{str(path)!r} ends within its header")
        content = opened.read(length)
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
