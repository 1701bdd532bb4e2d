"""Order in which sequences arrived, for a run that resumes after some were deleted.

Problem: without documents the blocks of a harvest are made of the sequences in the order of their
arrival, and a run that resumes must make the same blocks although files of finished ones are gone.
Mechanism: token ids, name and document of each sequence are appended to a file before it is used,
and the file is on the disk before a sequence is deleted.

    ledger = Ledger(folder / "sequences.jsonl")
    ledger.read()                 # sequences of earlier runs, in their order
    ledger.add(sequence)
    ledger.sync()                 # now it may be deleted

Limits: a line of text per sequence, of about six bytes per token.
"""

import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lrt_lens._files import make_folder, sync
from lrt_lens.errors import FileFormatError
from lrt_lens.moments.states._sequence import StateSequence, checked_ids, shown

_SIDE = b'{"side"'
"""Beginning of a line about a side."""


@dataclass
class Ledger:
    """File with a line per sequence."""

    path: Path
    _file: Any = field(default=None, repr=False)
    _is_closed: bool = False
    _is_synced: bool = True
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """One thread adds sequences, and another one deletes them."""

    def read(self) -> list[StateSequence]:
        """Return the sequences of earlier runs; a line that was cut off at the end is dropped.

        Raises:
            FileFormatError: another line is damaged.
        """
        return [
            self._sequence(number, line)
            for number, line in enumerate(self._lines())
            if not line.startswith(_SIDE)
        ]

    def sides(self) -> dict[str, dict[str, Any]]:
        """Return what earlier runs have written about their sides, by role."""
        lines = [json.loads(line) for line in self._lines() if line.startswith(_SIDE)]
        return {line.pop("side"): line for line in lines}

    def add(self, sequence: StateSequence) -> None:
        """Append a sequence."""
        line = {"name": sequence.name, "ids": sequence.ids.tolist(), "document": sequence.document}
        self._append(line)

    def add_side(self, role: str, about: dict[str, Any]) -> None:
        """Append what a run that resumes must know of a side whose files were all deleted."""
        self._append({"side": role} | about)

    def sync(self) -> None:
        """Wait until all lines are on the disk: sequences are deleted next."""
        with self._lock:
            if self._file is not None and not self._is_synced:
                os.fsync(self._file.fileno())
                sync(self.path.parent)
                self._is_synced = True

    def _append(self, line: dict[str, Any]) -> None:
        with self._lock:
            if self._is_closed:
                # The thread that cuts windows may outlive a run that failed.
                raise ValueError(
                    f"{shown(self.path)} is closed; a harvest that has ended adds to it"
                )
            if self._file is None:
                make_folder(self.path.parent)
                self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (see `close`)
            self._file.write(json.dumps(line, default=str) + "\n")
            self._file.flush()
            self._is_synced = False

    def _lines(self) -> list[bytes]:
        """Return the lines that are whole; what was cut off at the end is dropped."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
        return whole.splitlines()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._is_closed = True
            if self._file is not None:
                self._file.close()
                self._file = None

    def _sequence(self, number: int, line: bytes) -> StateSequence:
        try:
            entry = json.loads(line)
            ids = checked_ids(np.array(entry["ids"], dtype=np.int64), f"line {number}")
            return StateSequence(ids, None, str(entry["name"]), entry["document"])
        except (ValueError, KeyError, TypeError) as error:
            raise FileFormatError(
                f"line {number + 1} of {shown(self.path)} is damaged ({error}); begin again with"
                " remove_checkpoints(folder)"
            ) from error
