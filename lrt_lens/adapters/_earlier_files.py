"""Fields of vector and probe files that were written before version 0.1."""

from typing import Any, Literal

TransferredBy = Literal["stitch", "concept map"]
"""Kind of map that transferred an artefact."""
_TRANSFERS: dict[str, TransferredBy] = {"transferred": "stitch", "concept map": "concept map"}
"""Ends of an earlier method text, by which a stitch or a concept map marked its transfer."""


def in_current_form(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a vector or probe file, with those of the earlier form translated.

    Files before version 0.1 wrote ``"mean_difference, transferred"`` as the method, and positions
    as text.
    """
    # A file that lacks a field is left to the reader, who refuses it.
    if "transferred_by" in fields or not {"method", "read"} <= fields.keys():
        return fields
    method, transferred_by = split_method(str(fields["method"]))
    read = str(fields["read"])
    return fields | {
        "method": method,
        "read": int(read) if read.removeprefix("-").isdecimal() else read,
        "transferred_by": transferred_by,
    }


def split_method(method: str) -> tuple[str, TransferredBy | None]:
    """Return (method, transferred_by) of a method as it was written before version 0.1.

    Earlier files hold one text, with one mark per transfer: ``"mean_difference, transferred"``, or
    ``"mean_difference, transferred, concept map"``. ``transferred_by`` is the kind of the last
    transfer, or None if there was none. Arms of a concept map were called ``"concept map, own"``;
    their method is ``"own"``.
    """
    name, *marks = method.split(", ")
    transfers: list[TransferredBy] = [_TRANSFERS[mark] for mark in marks if mark in _TRANSFERS]
    if name in _TRANSFERS and len(marks) > len(transfers):
        # The kind of map came first, then the name of the arm.
        transfers.insert(0, _TRANSFERS[name])
        name = next(mark for mark in marks if mark not in _TRANSFERS)
    return name, transfers[-1] if transfers else None
