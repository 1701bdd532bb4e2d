"""Rows of a block, gathered from its sequences at once or in a thread.

Problem: reading files and multiplying rows use different parts of a machine, and one after the
other takes the sum of their times. Mechanism: while the rows of one block are multiplied, a thread
reads those of the next; files and torch let Python's other threads run meanwhile.

    reading = BlockReading(store, ["blocks.2.hook_resid_post"], sequences, n_rows)
    reading.start()                # optional: read in a thread
    rows = reading.result()        # {hook: [row, d]}; errors of the thread are raised here

Limits: one thread per side. The rows of the block are in memory from the start on.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrt_lens.moments.states._sequence import StateStore


@dataclass(eq=False)
class BlockReading:
    """Rows of the sequences of one block at some hook points of a store."""

    store: StateStore
    hooks: Sequence[str]
    sequences: Sequence[tuple[Any, np.ndarray]]
    """Place of each sequence in the store, and the tokens whose states are rows [row]."""
    n_rows: int
    """Rows of all sequences."""
    _thread: threading.Thread | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _outcome: dict[str, Tensor] | BaseException | None = None

    def start(self) -> None:
        """Read in a thread, until `result` or `stop` is called."""
        # A daemon, which ends with the process: a disk that hangs must not delay an interrupt.
        self._thread = threading.Thread(target=self._run, name="lrt_lens-states", daemon=True)
        self._thread.start()

    def result(self) -> dict[str, Tensor]:
        """Return the rows, ``{hook: [row, d]}``.

        Raises:
            FileFormatError: a sequence is damaged, or was changed.
        """
        if self._thread is None:
            return self._gathered()
        self._thread.join()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome or {}

    def stop(self) -> None:
        """End the thread, whose rows are not wanted."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            self._outcome = self._gathered()
        except BaseException as error:  # raised again in `result`
            self._outcome = error

    def _gathered(self) -> dict[str, Tensor]:
        gathered = {hook: GatheredRows(self.n_rows) for hook in self.hooks}
        for place, rows in self.sequences:
            if self._stop.is_set():
                break
            states = self.store.read(place, self.hooks) if self.hooks else {}
            index = torch.from_numpy(rows)
            for hook, one in gathered.items():
                one.add(states[hook], index)
        return {hook: one.whole for hook, one in gathered.items()}


class GatheredRows:
    """Rows of a block, gathered from its sequences into one tensor [row, d]."""

    def __init__(self, n_rows: int) -> None:
        self.whole = torch.empty(0)
        self._n_rows, self._begin = n_rows, 0

    def add(self, states: Tensor, rows: Tensor) -> None:
        """Add some rows of a sequence [token, d], in a precision that holds those of all."""
        if not self._begin:
            self.whole = states.new_empty(self._n_rows, states.shape[1])
        dtype = torch.promote_types(self.whole.dtype, states.dtype)
        if dtype != self.whole.dtype:
            self.whole = self.whole.to(dtype)
        # Written in place: joining the rows of all sequences would need twice the memory.
        end = self._begin + len(rows)
        there = rows.to(states.device)
        torch.index_select(states.to(dtype), 0, there, out=self.whole[self._begin : end])
        self._begin = end
