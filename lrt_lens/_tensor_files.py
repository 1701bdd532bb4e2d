"""Tensors with metadata in safetensors files that this package wrote, checked when they are read.

Problem: a byte that was changed, a value that is NaN, or a tensor of another width gives wrong
numbers without an error. Mechanism: a file has its schema and two checksums, one of its header and
one of its tensors, and a reader names the tensors that it expects with their shapes.

    write_tensors(path, {"weight": weight}, {"schema_version": "lrt_lens.map/1"})
    file = read_tensor_file(path, "lrt_lens.map/1")
    tensors = file.checked({"weight": "source target"}, {"source": 64})

Tensors are copies: changing or cutting the file later does not change them. `mapped_tensors` is for
what is too large to copy.

Limits: files of earlier versions have no checksums, and are checked by names, shapes and values
alone.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from lrt_lens._files import write_atomically
from lrt_lens._stored_fields import json_checksum
from lrt_lens.errors import FileFormatError

_READ_AT_ONCE = 2**24
"""Largest file in bytes that is read into memory before its tensors are made."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int32, torch.int64)
_CHECKSUMS = ("header_checksum", "data_checksum")
_UNREADABLE = (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError)
"""Errors of safetensors and torch for files that are damaged."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write one safetensors file atomically, with checksums, and return its path.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    # safetensors writes contiguous tensors in main memory, and none that shares it with another.
    ready: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        there = tensor.detach().cpu().contiguous()
        ready[name] = there.clone() if there.data_ptr() in taken else there
        taken.add(there.data_ptr())
    whole = dict(metadata)
    whole["data_checksum"] = data_checksum(ready)
    whole["header_checksum"] = _header_checksum(whole, _described(ready))

    def write(temporary: Path) -> None:
        try:
            save_file(ready, temporary, metadata=whole)
        except RuntimeError:  # tensors that overlap in memory
            apart = {name: tensor.clone() for name, tensor in ready.items()}
            save_file(apart, temporary, metadata=whole)
        _sort_metadata(temporary)

    return write_atomically(path, write)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a new file in order, because safetensors writes them in a random one.

    Equal content then gives equal bytes, which hubs and backups store once.
    """
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        # Spaces after the header are part of the format.
        if len(content) <= size:
            file.seek(8)
            file.write(content.ljust(size))


# ------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class TensorFile:
    """Content of a file: its metadata, and copies of its tensors, which are not checked yet."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Tensor] = field(repr=False)

    def checked(
        self,
        shapes: Mapping[str, str],
        sizes: Mapping[str, int] | None = None,
        *,
        integers: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """Return the tensors after a check of names, shapes, precisions, values and checksums.

        Args:
            shapes: names of the axes by the name of the tensor, such as ``"source target"``. Axes
                of one name have one size; ``""`` is a scalar.
            sizes: sizes of axes that are known from elsewhere.
            integers: names of the tensors of integers; all others are of floating point, and
                finite.

        Raises:
            FileFormatError: a tensor is missing, unknown, of another shape or precision, or not
                finite, or the file is not what was written.
        """
        self._refuse_names(shapes)
        known = dict(sizes or {})
        for name, axes in shapes.items():
            refuse_other_shape(self.path, name, self.tensors[name], axes, known)
            refuse_values(self.path, name, self.tensors[name], is_integer=name in integers)
        self.verify()
        return dict(self.tensors)

    def _refuse_names(self, expected: Iterable[str]) -> None:
        missing = sorted(set(expected) - self.tensors.keys())
        if missing:
            raise FileFormatError(
                f"{str(self.path)!r} lacks the tensors {missing[:5]}; it was cut or changed: copy "
                "it, or save it again"
            )
        unknown = sorted(self.tensors.keys() - set(expected))
        if unknown:
            raise FileFormatError(
                f"{str(self.path)!r} has the tensors {unknown[:5]}, which this version does not "
                "know; it was changed, or written by a newer version: install that, or save it "
                "again with this one"
            )

    def verify(self) -> None:
        """Raise `FileFormatError` if header or tensors are not those that were written."""
        _verify_header(self.path, self.metadata, _described(self.tensors))
        expected = self.metadata.get("data_checksum")
        if expected is not None and expected != data_checksum(self.tensors):
            raise damaged(self.path, "its numbers do not add up to its checksum")


def read_tensor_file(path: Path, schema: str | None) -> TensorFile:
    """Return the content of a file of ``schema``, or of any safetensors file if it is None.

    Raises:
        FileFormatError: the file is missing, truncated, or of another schema.
    """
    _refuse_missing(path)
    try:
        if path.stat().st_size <= _READ_AT_ONCE:
            # Nothing is mapped, so that a file that is cut now cannot end the process.
            octets = path.read_bytes()
            tensors = load(octets)
            metadata = _metadata(octets)
        else:
            mapped = mapped_tensors(path, schema)
            metadata = mapped.metadata
            tensors = {name: mapped.tensor(name).clone() for name in mapped.names}
            mapped.refuse_changed()
    except FileFormatError:
        raise
    except _UNREADABLE as error:
        raise _truncated(path, error) from error
    _refuse_other_schema(path, metadata, schema)
    return TensorFile(path, metadata, tensors)


class MappedTensors:
    """An open safetensors file whose tensors are read from the disk when they are used.

    A file that replaces it by its name is not read, and `refuse_changed` notices that the file was
    replaced, cut or written to.
    """

    def __init__(self, path: Path, opened: Any) -> None:
        self.path, self._opened = path, opened
        self.metadata: dict[str, str] = opened.metadata() or {}
        self.names: list[str] = list(opened.keys())
        self._state = file_state(path)

    def refuse_changed(self) -> None:
        """Raise `FileFormatError` if the file was replaced, cut or written to since it was opened.

        Reading what was cut off would end the process.
        """
        if file_state(self.path) != self._state:
            raise FileFormatError(
                f"{str(self.path)!r} was changed while it was open; open it again when nothing "
                "writes it"
            )

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that is mapped from the file; its values can change with the file.

        Raises:
            FileFormatError: the file lacks the tensor, or was changed.
        """
        self.refuse_changed()
        try:
            return self._opened.get_tensor(name)
        except _UNREADABLE as error:
            raise _truncated(self.path, error) from error

    def verify(self) -> None:
        """Read all bytes; raise `FileFormatError` if they are not those that were written."""
        expected = self.metadata.get("data_checksum")
        if expected is not None:
            tensors = {name: self.tensor(name) for name in self.names}
            if data_checksum(tensors) != expected:
                raise damaged(self.path, "its numbers do not add up to its checksum")

    def described(self) -> list[list[Any]]:
        """Return names, precisions and shapes, as `_described` does for tensors in memory."""
        slices = {name: self._opened.get_slice(name) for name in self.names}
        return sorted([name, s.get_dtype(), list(s.get_shape())] for name, s in slices.items())


def mapped_tensors(path: Path, schema: str | None) -> MappedTensors:
    """Return an open file of ``schema``, or of any if it is None, with its header checked.

    Raises:
        FileFormatError: the file is missing, truncated, of another schema, or its header is not
            what was written.
    """
    _refuse_missing(path)
    try:
        mapped = MappedTensors(path, safe_open(path, framework="pt"))
        described = mapped.described()
    except _UNREADABLE as error:
        raise _truncated(path, error) from error
    _refuse_other_schema(path, mapped.metadata, schema)
    _verify_header(path, mapped.metadata, described)
    return mapped


def file_state(path: Path | int) -> tuple[int, int, int] | None:
    """Return inode, size and time of the last change of a file; None if it is gone.

    ``path`` may be the number of an open file.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


# ----------------------------------------------------------------------------------------- refusals


def refuse_other_shape(
    path: Path, name: str, tensor: Tensor, axes: str, known: dict[str, int]
) -> None:
    """Raise `FileFormatError` unless a tensor has these axes; ``known`` learns their sizes."""
    named = axes.split()
    if len(named) == tensor.ndim:
        agreed = all(
            known.setdefault(axis, size) == size
            for axis, size in zip(named, tensor.shape, strict=True)
        )
        if agreed:
            return
    expected = ", ".join(f"{axis} {known[axis]}" if axis in known else axis for axis in named)
    raise FileFormatError(
        f"{name!r} in {str(path)!r} has the shape {list(tensor.shape)}; expected [{expected}]: the "
        "file was changed, or mixed from two: copy it, or save it again"
    )


def refuse_values(path: Path, name: str, tensor: Tensor, *, is_integer: bool = False) -> None:
    """Raise `FileFormatError` for another precision than expected, and for NaN or infinity."""
    if tensor.dtype not in (_INTEGERS if is_integer else _FLOATS):
        raise FileFormatError(
            f"{name!r} in {str(path)!r} is {str(tensor.dtype).removeprefix('torch.')}; expected "
            f"{'integers' if is_integer else 'floating point'}: copy the file, or save it again"
        )
    # One sum is NaN or infinite if any of its terms is; large finite numbers may overflow it.
    if is_integer or bool(torch.isfinite(tensor.sum(dtype=torch.float64))):
        return
    if n := int((~torch.isfinite(tensor)).sum()):
        raise FileFormatError(
            f"{n} of {tensor.numel()} numbers of {name!r} in {str(path)!r} are NaN or infinite; "
            "expected finite ones: fit or harvest again on finite activations"
        )


def damaged(path: Path, why: str) -> FileFormatError:
    """Return the error for a file that is not what was written."""
    return FileFormatError(f"{str(path)!r} is damaged: {why}; copy it, or save it again")


def _refuse_missing(path: Path) -> None:
    try:
        is_file = path.is_file()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise FileFormatError(
            f"no file at {str(path)[:300]!r} ({error}); check the path"
        ) from error
    if not is_file:
        raise FileFormatError(f"no file at {str(path)!r}; check the path, or save the file first")


def _refuse_other_schema(path: Path, metadata: Mapping[str, str], schema: str | None) -> None:
    if schema is not None and metadata.get("schema_version") != schema:
        raise FileFormatError(
            f"{str(path)!r} has schema {metadata.get('schema_version')!r}; "
            f"expected {schema!r}: it was written by another program or version"
        )


def _truncated(path: Path, error: Exception) -> FileFormatError:
    return FileFormatError(
        f"{str(path)!r} is truncated or no safetensors file ({error}); copy or fit it again"
    )


# ---------------------------------------------------------------------------------------- checksums


def data_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of the names and bytes of all tensors, in hexadecimal."""
    # xxHash reads as fast as the memory, so it costs nothing beside the disk.
    content = xxhash.xxh3_128()
    for name in sorted(tensors):
        content.update(name.encode(errors="surrogatepass"))
        flat = tensors[name].contiguous().reshape(-1).view(torch.uint8)
        content.update(flat.numpy().data)
    return content.hexdigest()


def _described(tensors: Mapping[str, Tensor]) -> list[list[Any]]:
    """Return names, precisions and shapes, with safetensors' names of precisions."""
    return sorted(
        [name, _DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), list(tensor.shape)]
        for name, tensor in tensors.items()
    )


_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def _header_checksum(metadata: Mapping[str, str], described: list[list[Any]]) -> str:
    """Return a hash of metadata, names, precisions and shapes, in hexadecimal."""
    entries = sorted((key, value) for key, value in metadata.items() if key != "header_checksum")
    return json_checksum([entries, described])


def _verify_header(path: Path, metadata: Mapping[str, str], described: list[list[Any]]) -> None:
    expected = metadata.get("header_checksum")
    # Files of earlier versions have neither of the two; a file of ours that lost one was changed.
    if expected is None and not any(name in metadata for name in _CHECKSUMS):
        return
    if expected != _header_checksum(metadata, described):
        raise damaged(path, "its header does not add up to its checksum")


def _metadata(octets: bytes) -> dict[str, str]:
    """Return the metadata of a file whose header safetensors has accepted."""
    size = int.from_bytes(octets[:8], "little")
    return json.loads(octets[8 : 8 + size]).get("__metadata__") or {}
