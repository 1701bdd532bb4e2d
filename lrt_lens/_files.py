"""Files that are whole or absent, and tensors with metadata in safetensors files.

Problem: a process that is killed while it writes leaves half a file, which a later run would read.
Mechanism: every file is written under a temporary name in the same folder and then renamed, and
each file of tensors carries the version of its schema.

    write_tensors(path, {"weight": weight}, {"schema_version": "lrt_lens.stitch/1"})
    tensors, metadata = read_tensors(path, "lrt_lens.stitch/1")

Limits: a rename replaces a file as a whole only within one file system.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrt_lens.errors import FileFormatError


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write a file under a temporary name, rename it to ``path`` and return ``path``.

    ``write`` is called with the temporary path, which is in the same folder.
    If ``write`` fails, the temporary file is removed and ``path`` stays as it was.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    make_folder(path.parent)
    try:
        # In the same folder, because a rename across file systems would be a copy.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    # mkstemp opens the file; it is closed here because `write` opens the path itself.
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp makes files that only their owner can read.
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        # After the rename there is no temporary file; unlink matters only if `write` failed.
        temporary.unlink(missing_ok=True)
    return path


def make_folder(folder: Path) -> Path:
    """Return the folder after creating it, with its parents, if it does not exist.

    Raises:
        OSError: the folder cannot be made; the message gives the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _unwritable(folder: Path, error: OSError) -> OSError:
    return OSError(
        f"cannot write to {str(folder)!r} ({error.strerror or error}); "
        "choose a folder that you may write to"
    )


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write one safetensors file atomically and return its path."""
    # safetensors writes contiguous tensors in main memory only.
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_atomically(path, lambda temporary: save_file(ready, temporary, metadata=metadata))


def read_tensors(path: Path, schema: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return (tensors, metadata) of a file that this package wrote under ``schema``.

    Raises:
        FileFormatError: the file is missing, truncated, or of another schema.
    """
    with opened_tensors(path, schema) as (opened, metadata):
        names = opened.keys()  # an open safetensors file is not iterable
        return {name: opened.get_tensor(name) for name in names}, metadata


@contextmanager
def opened_tensors(path: Path, schema: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open a safetensors file of ``schema`` and yield (open file, metadata); no tensor is read.

    Raises:
        FileFormatError: the file is missing, truncated, or of another schema.
    """
    if not path.is_file():
        raise FileFormatError(f"no file at {str(path)!r}; check the path, or save the file first")
    # safe_open reads the header only; a tensor is read when it is asked for.
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("schema_version") != schema:
                raise FileFormatError(
                    f"{str(path)!r} has schema {metadata.get('schema_version')!r}; "
                    f"expected {schema!r}: it was written by another program or version"
                )
            yield opened, metadata
    except (SafetensorError, OSError) as error:
        raise FileFormatError(
            f"{str(path)!r} is truncated or no safetensors file ({error}); copy or fit it again"
        ) from error


def json_fields(path: Path, metadata: dict[str, str], key: str) -> dict[str, Any]:
    """Return the fields that a file stores as JSON under ``key`` of its metadata.

    Raises:
        FileFormatError: the metadata have no such entry, or it is no JSON object.
    """
    try:
        content = json.loads(metadata[key])
    except (KeyError, json.JSONDecodeError) as error:
        raise FileFormatError(
            f"{str(path)!r} has no readable entry {key!r} in its metadata; save it again"
        ) from error
    if not isinstance(content, dict):
        raise FileFormatError(
            f"{str(path)!r} holds a {type(content).__name__} as {key!r}; expected its fields by "
            "name: save it again"
        )
    return content


def refuse_other_fields(
    path: Path, kind: type[Any], content: dict[str, Any], *, others: Sequence[str] = ()
) -> dict[str, Any]:
    """Return ``content``, the stored fields of a dataclass, after a check of their names.

    Args:
        path: the file, for the message.
        kind: the dataclass.
        content: stored values by the name of their field.
        others: fields that are stored elsewhere in the file, or not at all.

    Raises:
        FileFormatError: a field without a default is missing, or a field is unknown.
    """
    known = {field.name: field for field in fields(kind) if field.name not in others}
    unknown = sorted(set(content) - set(known))
    # An earlier version may not have had a field that has a default.
    missing = sorted(
        name
        for name, field in known.items()
        if name not in content and field.default is MISSING and field.default_factory is MISSING
    )
    if missing or unknown:
        raise FileFormatError(
            f"{str(path)!r} does not hold the fields of a {kind.__name__}: missing {missing}, "
            f"unknown {unknown}; it was written by another version: save it again with this one"
        )
    return content


def refuse_unwritable(out: Path) -> None:
    """Check that files can be written into ``out``, before any work is done.

    Raises:
        OSError: the folder cannot be created or written.
    """
    probe = write_atomically(out / ".lrt_lens_probe", lambda temporary: temporary.write_text("{}"))
    probe.unlink()
