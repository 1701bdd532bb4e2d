"""Sequences that have arrived, found by their tokens.

Problem: an engine delivers sequences in its own order, perhaps while the harvest runs, and a
sequence taken for another one gives wrong numbers that look right. Mechanism: sequences are found
by the hash of all their token ids, or as one that begins with the wanted tokens (attention is
causal, so that its first states are those of the shorter text). What has not arrived is waited for.

    arrivals = Arrivals(store, wait=60.0)
    arrivals.find(window.ids)                     # the sequence
    for sequence in arrivals.in_order(): ...      # all of them, once

Limits: a hash per sequence stays in memory.
"""

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.models._text_reader import TextReader
from lrt_lens.moments.states._ledger import Ledger
from lrt_lens.moments.states._sequence import StateSequence, StateStore

_HEAD = 8
"""Tokens by which longer sequences are found."""
_POLL_SECONDS = 0.2
_SHOWN = 5
"""Largest number of files that a message lists."""


@dataclass
class Arrivals:
    """Sequences of one store that have arrived."""

    store: StateStore
    wait: float = 0.0
    """Seconds without a new sequence after which no more are expected."""
    n_arrived: int = 0
    _whole: dict[bytes, list[Any]] = field(repr=False, default_factory=dict)
    """Places of the sequences by the hash of their ids."""
    _heads: dict[bytes, list[Any]] = field(repr=False, default_factory=dict)
    """Places of the sequences by the hash of their first ids."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _listed: list[StateSequence] | None = field(default=None, repr=False)
    """Sequences that arrived and were not yet yielded in order; None unless they are wanted so."""

    def find(self, ids: Sequence[int], reader: TextReader, what: str = "a window") -> Any:
        """Return the place of a sequence that begins with these tokens; it is waited for.

        ``reader`` and ``what`` are for the message.

        Raises:
            FileFormatError: sequences are not complete, although nothing was written for long.
            MismatchError: no sequence begins with these tokens; the message says what was found.
        """
        wanted = np.asarray(ids, dtype=np.int64)
        if (place := self.known(wanted)) is not None:
            return place
        for _ in self._coming():
            if (place := self.known(wanted)) is not None:
                return place
        self._refuse_unfinished()
        raise self._missing(wanted, reader, what)

    def known(self, ids: np.ndarray) -> Any | None:
        """Return the place of a sequence that begins with these tokens, if one has arrived."""
        if places := self._whole.get(_hash(ids)):
            return places[0]
        for place in self._heads.get(_hash(ids[:_HEAD]), ()):
            longer = self.store.ids(place)
            if len(longer) > len(ids) and np.array_equal(longer[: len(ids)], ids):
                return place
        return None

    def forget(self, place: Any, ids: np.ndarray | None = None) -> None:
        """Delete a sequence for good; ``ids`` are its tokens, if they are at hand."""
        ids = self.store.ids(place) if ids is None else ids
        for table, key in ((self._whole, _hash(ids)), (self._heads, _hash(ids[:_HEAD]))):
            places = [one for one in table.get(key, ()) if one != place]
            if places:
                table[key] = places
            else:
                table.pop(key, None)
        self.store.remove(place)

    def first(self) -> StateSequence:
        """Return a sequence, once one has arrived.

        Raises:
            FileFormatError: none arrives.
        """
        self._listed = []
        for _ in self._coming():
            if self._listed:
                return self._listed[0]
        self._refuse_unfinished()
        raise FileFormatError(
            f"{self.store.name!r} has no sequence with hidden states"
            + (f" after {self.wait:g} s" if self.wait else "")
            + "; expected .safetensors with token_ids and hidden_states: check the path, or give"
            " wait= seconds for an engine that is still starting"
        )

    def in_order(self, ledger: Ledger | None = None) -> Iterator[StateSequence]:
        """Yield all sequences in the order of their arrival, that of ``ledger`` first.

        Raises:
            FileFormatError: sequences are not complete, or fewer came than were announced.
        """
        before = [] if ledger is None else ledger.read()
        if before:
            names = {sequence.name for sequence in before}
            self._take()
            self._listed = [one for one in self._listed or [] if one.name not in names]
            yield from before
        yield from self._hand_out(ledger)
        for _ in self._coming():
            yield from self._hand_out(ledger)
        self._refuse_unfinished()
        expected = self.store.expected()
        if expected is not None and self.n_arrived + len(before) < expected:
            raise FileFormatError(
                f"{self.store.name!r} has {self.n_arrived} of {expected} sequences; the program"
                " that writes them ended early, or is still running: start it again (it resumes),"
                " or give wait= seconds"
            )

    def stop_listing(self) -> None:
        """Keep no more ids: the sequences are not wanted in order."""
        self._listed = None

    def _hand_out(self, ledger: Ledger | None) -> Iterator[StateSequence]:
        listed, self._listed = self._listed or [], []
        for sequence in listed:
            if ledger is not None:
                ledger.add(sequence)
            yield sequence

    def _coming(self) -> Iterator[None]:
        """Yield after each look that found new sequences, until no more are expected."""
        deadline = time.monotonic() + self.wait
        while True:
            if self._take():
                deadline = time.monotonic() + self.wait
                yield
                continue
            expected = self.store.expected()
            if expected is not None and self.n_arrived >= expected:
                return
            if time.monotonic() >= deadline:
                return
            time.sleep(min(_POLL_SECONDS, self.wait))

    def _take(self) -> int:
        """Take what has arrived since the last look, and return how many sequences it was."""
        with self._lock:
            before = self.n_arrived
            for sequence in self.store.arrived():
                self.n_arrived += 1
                for table, ids in (
                    (self._whole, sequence.ids),
                    (self._heads, sequence.ids[:_HEAD]),
                ):
                    table.setdefault(_hash(ids), []).append(sequence.place)
                if self._listed is not None:
                    self._listed.append(sequence)
            return self.n_arrived - before

    def _refuse_unfinished(self) -> None:
        if names := self.store.unfinished():
            raise FileFormatError(
                f"{len(names)} file(s) of {self.store.name!r} are not complete"
                f" ({', '.join(names[:_SHOWN])}): they are cut off, or still being written; let"
                " the writer finish (a writer that died leaves .lock files: delete those with"
                " their files, and start it again), or give wait= seconds"
            )

    def _missing(self, ids: np.ndarray, reader: TextReader, what: str) -> MismatchError:
        """Return the error for tokens that no sequence begins with, with its likely cause."""
        found = self._cause(ids, reader)
        begin = reader.tokenizer.decode(ids[:12].tolist())
        return MismatchError(
            f"{self.store.name!r} has no sequence with the {len(ids)} tokens of {what} that begins"
            f" {begin!r} ({self.n_arrived} sequences have arrived): {found}"
        )

    def _cause(self, ids: np.ndarray, reader: TextReader) -> str:
        prefix = np.asarray(reader.prefix, dtype=np.int64)
        bos = getattr(reader.tokenizer, "bos_token_id", None)
        without = ids[len(prefix) :]
        if len(prefix) and np.array_equal(ids[: len(prefix)], prefix) and self._begins(without):
            return (
                f"it has them without the {prefix.tolist()} before every text, so that its states"
                " have read another text; give prepend_bos=False, or run the engine with BOS"
            )
        if bos is not None and not len(prefix) and self._begins(np.append(bos, ids)):
            return (
                f"it has them behind the BOS {bos}, which the tokenizer does not write; give"
                " prepend_bos=True, or run the engine without BOS"
            )
        if (other := self._nearest(ids)) is not None:
            agree = min(len(ids), len(other))
            differs = np.flatnonzero(ids[:agree] != other[:agree])
            if not len(differs):
                return (
                    f"one of {len(other)} tokens ends before it: windows have up to {len(ids)}"
                    f" tokens here; give context_length={len(other)}, or run the engine on the"
                    " windows of request_states"
                )
            at = int(differs[0])
            return (
                f"the most similar one has token {int(other[at])} at position {at} instead of"
                f" {int(ids[at])}: the documents or the tokenizer are other ones, or the engine"
                " did not get these windows; give the same documents and settings"
            )
        return (
            "none begins with its first tokens; give the documents that the engine has read, in"
            " the same windows, or leave documents out to use the sequences as they are"
        )

    def _begins(self, ids: np.ndarray) -> bool:
        return self.known(ids) is not None or self._nearest(ids) is not None

    def _nearest(self, ids: np.ndarray) -> np.ndarray | None:
        """Return a sequence with the same first tokens; None if there is none."""
        places = self._heads.get(_hash(ids[:_HEAD]))
        return self.store.ids(places[0]) if places else None


def _hash(ids: np.ndarray) -> bytes:
    content = np.ascontiguousarray(ids, dtype=np.int64).tobytes()
    return hashlib.blake2b(content, digest_size=12).digest()
