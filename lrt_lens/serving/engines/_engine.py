"""The protocol of an engine: logits of token ids, with and without an exported file.

    class Engine:
        name, version = "llama.cpp", "b11549"
        def logits(self, rows, path): ...

Limits: rows run one by one or in any batches, as the engine likes; they are not padded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class ServingEngine(Protocol):
    """A program that runs a model, with or without an exported vector."""

    @property
    def name(self) -> str:
        """Name of the engine, as certificates show it."""
        ...

    @property
    def version(self) -> str:
        """Version of the engine."""
        ...

    def logits(self, rows: Sequence[Sequence[int]], path: Path | None) -> list[np.ndarray]:
        """Return the logits of each row of token ids, [position, vocabulary].

        ``path`` is the exported file or folder; None runs the model as it is.
        """
        ...
