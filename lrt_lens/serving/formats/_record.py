"""The record of an export: what was written, and proof that neither it nor the file was changed.

Problem: a file of another program is plain numbers, and whoever changes a layer or a scale in it
still finds a record beside it that names our vector, its damage and its checks. Mechanism: the
record holds a hash of the file that it is about, and a checksum of its own fields, both of which
are compared before it is believed.

    write_record(path, {"schema_version": EXPORT_SCHEMA, "format": "llama.cpp", …})
    record = read_record(path)              # {} if there is none
    is_of(record, path)                     # False if the file was changed since

Limits: checksums find changes, not forgeries: who changes a file may also write a new checksum.
Records of earlier versions have none, and are believed as they are.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrt_lens._files import write_atomically
from lrt_lens._stored_fields import json_checksum, read_json_file
from lrt_lens.errors import FileFormatError

EXPORT_SCHEMA = "lrt_lens.export/1"
"""Schema of the record of an exported file."""
RECORD_SUFFIX = ".export.json"
"""Ending of the name of the record of a file."""
SCRIPT_NAME, RECORD_NAME = "steer.py", "export.json"
"""Names of the script and of the record in an exported folder."""
_CHECKSUM = "record_checksum"
"""Field of a record that holds the checksum of all others."""


def record_path(path: Path) -> Path:
    """Return the path of the record of an exported file or folder."""
    is_folder = path.is_dir() or (path / SCRIPT_NAME).exists()
    return path / RECORD_NAME if is_folder else path.with_name(path.name + RECORD_SUFFIX)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal, which ties a record to it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_of(record: Mapping[str, Any], path: Path) -> bool:
    """Return whether a file is the one that a record was written for, as far as it says that.

    A folder has checksums in its own files.
    """
    return not path.is_file() or record.get("sha256") in (None, file_hash(path))


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the checksum of its fields."""
    fields = {key: value for key, value in record.items() if key != _CHECKSUM}
    return fields | {_CHECKSUM: json_checksum(fields)}


def unsealed(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without its checksum; ``path`` is the file that holds it.

    Raises:
        FileFormatError: the fields do not add up to the checksum.
    """
    fields = {key: value for key, value in record.items() if key != _CHECKSUM}
    if _CHECKSUM in record and record[_CHECKSUM] != json_checksum(fields):
        raise FileFormatError(
            f"{str(path)!r} was changed: the fields of its record do not add up to their checksum;"
            " export again, or remove the record, and the vector is taken for one of another"
            " program"
        )
    return fields


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of an exported file or folder; empty if there is none.

    Raises:
        FileFormatError: the record is damaged, was changed, or is of another schema.
    """
    beside = record_path(path)
    if not beside.is_file():
        return {}
    return unsealed(beside, read_json_file(beside, EXPORT_SCHEMA))


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write the record of an exported file or folder."""
    text = record_text(record)
    write_atomically(record_path(path), lambda temporary: temporary.write_text(text, "utf-8"))


def record_text(record: Mapping[str, Any]) -> str:
    """Return a record with its checksum as JSON."""
    return json.dumps(sealed(record), indent=1, allow_nan=False)
