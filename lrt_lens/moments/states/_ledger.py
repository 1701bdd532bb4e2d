"""Order in which sequences arrived, for a run that resumes after some were deleted.

Problem: without documents the blocks of a harvest are made of the sequences in the order of their
arrival, and a run that resumes must make the same blocks although files of finished ones are gone.
Mechanism: token ids, name and document of each sequence are appended to a file before it is used.

    ledger = Ledger(folder / "sequences.jsonl")
    ledger.read()                 # sequences of earlier runs, in their order
    ledger.add(sequence)

Limits: a line of text per sequence, of about six bytes per token.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lrt_lens._files import make_folder
from lrt_lens.errors import FileFormatError
from lrt_lens.moments.states._sequence import StateSequence, checked_ids, shown


@dataclass
class Ledger:
    """File with a line per sequence."""

    path: Path
    _file: Any = field(default=None, repr=False)

    def read(self) -> list[StateSequence]:
        """Return the sequences of earlier runs; a line that was cut off at the end is dropped.

        Raises:
            FileFormatError: another line is damaged.
        """
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
        return [self._sequence(number, line) for number, line in enumerate(whole.splitlines())]

    def add(self, sequence: StateSequence) -> None:
        """Append a sequence."""
        if self._file is None:
            make_folder(self.path.parent)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (see `close`)
        line = {"name": sequence.name, "ids": sequence.ids.tolist(), "document": sequence.document}
        self._file.write(json.dumps(line, default=str) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
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
