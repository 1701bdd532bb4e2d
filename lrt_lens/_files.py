"""TODO."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrt_lens.errors import FileFormatError


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let ``write`` fill a temporary file beside ``path`` and rename it; nothing is left behind
    when it fails.
    """
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def make_folder(folder: Path) -> Path:
    """The folder, made if need be; OSError says what is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _unwritable(folder: Path, error: OSError) -> OSError:
    return OSError(
        f"cannot write to {str(folder)!r} ({error.strerror or error}); choose a folder that you may write to"
    )


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """One safetensors file, atomically."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_atomically(path, lambda temporary: save_file(ready, temporary, metadata=metadata))


def read_tensors(path: Path, schema: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a file of ours; FileFormatError says what is wrong with any other."""
    with opened_tensors(path, schema) as (opened, metadata):
        return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118 (no iterator on a safetensors file)


@contextmanager
def opened_tensors(path: Path, schema: str) -> Iterator[tuple[Any, dict[str, str]]]:
    if not path.is_file():
        raise FileFormatError(f"no file at {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("schema_version") != schema:
                raise FileFormatError(
                    f"{str(path)!r} has schema {metadata.get('schema_version')!r}; expected {schema!r}: it was written by another program or version"
                )
            yield opened, metadata
    except (SafetensorError, OSError) as error:
        raise FileFormatError(
            f"{str(path)!r} is truncated or no safetensors file ({error}); copy or fit it again"
        ) from error
