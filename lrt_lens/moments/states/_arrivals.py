"""Sequences that have arrived, found by their tokens.

Problem: an engine delivers sequences in its own order, perhaps while the harvest runs, and a
sequence taken for another one gives wrong numbers that look right. Mechanism: sequences are found
by the hash of all their token ids, or as one that begins with the wanted tokens (attention is
causal, so that its first states are those of the shorter text). What has not arrived is waited for.

    arrivals = Arrivals(store, wait=60.0)
    found = arrivals.claim(arrivals.find(window.ids, reader))
    arrivals.release(found)                       # deletes it
    for sequence in arrivals.in_order(): ...      # all of them, once

Where sequences are deleted, each window claims one of its own: copies of a text are not deleted for
one another, and a longer sequence stays until the end, because its own window may be to come.

Limits: a few hashes per sequence stay in memory.
"""

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.models._text_reader import TextReader
from lrt_lens.moments.states._ledger import Ledger
from lrt_lens.moments.states._sequence import StateSequence, StateStore

_HEADS = (32, 4)
"""Numbers of first tokens by which longer sequences are found: a chat template begins all alike."""
_COMPARED = 64
"""Largest number of sequences of which a message names the most similar one."""
_POLL_SECONDS = 0.2
_SHOWN = 5
"""Largest number of files that a message lists."""


@dataclass(frozen=True)
class Found:
    """Sequence that begins with the tokens of a window."""

    place: Any
    heads: tuple[bytes, ...]
    """Hashes of the window's tokens: of all, and of the first ones."""
    is_whole: bool
    """False if the sequence is longer than the window."""
    is_own: bool = False
    """True if no other window has claimed the sequence."""


@dataclass(frozen=True)
class Listed:
    """Sequence that has arrived, without its ids: those of all would not fit into memory."""

    place: Any
    name: str
    document: Any


@dataclass
class Arrivals:
    """Sequences of one store that have arrived."""

    store: StateStore
    wait: float = 0.0
    """Seconds without a new sequence after which no more are expected."""
    n_arrived: int = 0
    _whole: dict[bytes, list[Any]] = field(repr=False, default_factory=dict)
    """Places of the sequences by the hash of their ids."""
    _heads: dict[bytes, dict[Any, int]] = field(repr=False, default_factory=dict)
    """Places of the sequences, with their lengths, by the hash of their first ids."""
    _n_claimed: dict[bytes, int] = field(repr=False, default_factory=dict)
    """Number of sequences with a hash that windows have claimed and that were not deleted yet."""
    _gone: set[bytes] = field(repr=False, default_factory=set)
    """Hashes of the sequences that were deleted."""
    _late: set[bytes] = field(repr=False, default_factory=set)
    """Hashes of the sequences that are deleted at the end."""
    _longer: dict[Any, None] = field(repr=False, default_factory=dict)
    """Places of longer sequences that were used."""
    _used: set[Any] = field(repr=False, default_factory=set)
    """Hashes of the tokens, or places of longer sequences, that windows have used."""
    _n_gone: int = 0
    """Number of sequences of earlier runs that were deleted."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _listed: list[Listed] | None = field(default=None, repr=False)
    """Sequences that arrived and were not yet yielded in order; None unless they are wanted so."""

    def find(self, ids: Sequence[int], reader: TextReader, what: str = "a window") -> Found:
        """Return a sequence that begins with these tokens; it is waited for.

        ``reader`` and ``what`` are for the message.

        Raises:
            FileFormatError: sequences are not complete, although nothing was written for long.
            MismatchError: no sequence begins with these tokens; the message says what was found.
        """
        wanted = np.asarray(ids, dtype=np.int64)
        if (found := self.known(wanted)) is not None:
            return found
        for _ in self._coming():
            if (found := self.known(wanted)) is not None:
                return found
        self._refuse_unfinished()
        raise self._missing(wanted, reader, what)

    def known(self, ids: np.ndarray) -> Found | None:
        """Return a sequence that begins with these tokens, if one has arrived."""
        keys = _hashes(ids)
        if places := self._whole.get(keys[0]):
            return Found(places[0], keys, is_whole=True)
        for place, n_tokens in list(self._heads.get(keys[1], {}).items()) if keys[1:] else ():
            if n_tokens > len(ids) and np.array_equal(self.store.ids(place)[: len(ids)], ids):
                return Found(place, keys, is_whole=False)
        return None

    def use(self, found: Found) -> None:
        """Record that a window has used this sequence."""
        self._used.add(found.heads[0] if found.is_whole else found.place)

    @property
    def n_unused(self) -> int:
        """Number of sequences that have arrived and that no window has used."""
        unused = (places for key, places in self._whole.items() if key not in self._used)
        return sum(place not in self._used for places in unused for place in places)

    def claim(self, found: Found) -> Found:
        """Return the sequence that is deleted with this window: one that none has claimed."""
        key = found.heads[0]
        places, n_claimed = self._whole.get(key, []), self._n_claimed.get(key, 0)
        if not found.is_whole or n_claimed >= len(places):
            return found
        self._n_claimed[key] = n_claimed + 1
        return replace(found, place=places[n_claimed], is_own=True)

    def unclaim(self, found: Found) -> None:
        """Take a claim back; the last claims are taken back first."""
        if found.is_own:
            self._n_claimed[found.heads[0]] -= 1

    def release(self, found: Found) -> None:
        """Delete a claimed sequence, or do so at the end if another window may need it."""
        key = found.heads[0]
        if not found.is_whole:
            self._longer[found.place] = None
        elif not found.is_own:
            self._late.add(key)
        else:
            self._n_claimed[key] -= 1
            if not self._n_claimed[key]:
                del self._n_claimed[key]
            self._forget(found.place, found.heads)

    def pass_by(self, ids: np.ndarray, *, consume: bool) -> None:
        """Record a window whose rows are not needed; with ``consume``, delete at the end."""
        found = self.known(ids)
        if found is not None:
            self.use(found)
        if consume and found is not None and not found.is_whole:
            self._longer[found.place] = None
        elif consume:
            # Also if there is none yet: it is deleted if it comes.
            self._late.add(_hash(ids))

    def close(self) -> None:
        """Delete what could not be deleted earlier: no window is to come."""
        self._take()
        for key in self._late & self._whole.keys():
            for place in self._whole[key]:
                self.store.remove(place)
        for place in self._longer:
            self.store.remove(place)

    def _forget(self, place: Any, keys: tuple[bytes, ...]) -> None:
        with self._lock:
            places = [one for one in self._whole[keys[0]] if one != place]
            if places:
                self._whole[keys[0]] = places
            else:
                del self._whole[keys[0]]
                self._gone.add(keys[0])
            for key in keys[1:]:
                self._heads[key].pop(place, None)
                if not self._heads[key]:
                    del self._heads[key]
        self.store.remove(place)

    def first(self, *, is_needed: bool = True) -> Listed | None:
        """Return a sequence, once one has arrived.

        Without ``is_needed`` none is waited for, and None returned.

        Raises:
            FileFormatError: none arrives.
        """
        self._listed = []
        if not is_needed:
            self._take()
            return self._listed[0] if self._listed else None
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
            listed = self._listed or []
            # Those that are still there were counted as they arrived.
            self._n_gone = len(names - {one.name for one in listed})
            self._listed = [one for one in listed if one.name not in names]
            yield from before
        yield from self._hand_out(ledger)
        for _ in self._coming():
            yield from self._hand_out(ledger)
        self._refuse_unfinished()
        expected = self.store.expected()
        n_there = self.n_arrived + self._n_gone
        if expected is not None and n_there < expected:
            raise FileFormatError(
                f"{self.store.name!r} has {n_there} of {expected} sequences; the program"
                " that writes them ended early, or is still running: start it again (it resumes),"
                " or give wait= seconds"
            )

    def stop_listing(self) -> None:
        """Keep no more ids: the sequences are not wanted in order."""
        self._listed = None

    def _hand_out(self, ledger: Ledger | None) -> Iterator[StateSequence]:
        listed, self._listed = self._listed or [], []
        for one in listed:
            ids = self.store.ids(one.place)
            sequence = StateSequence(ids, one.place, one.name, one.document)
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
            if expected is not None and self.n_arrived + self._n_gone >= expected:
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
                whole, *heads = _hashes(sequence.ids)
                self._whole.setdefault(whole, []).append(sequence.place)
                for key in heads:
                    self._heads.setdefault(key, {})[sequence.place] = len(sequence.ids)
                if self._listed is not None:
                    self._listed.append(Listed(sequence.place, sequence.name, sequence.document))
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
        if _hash(ids) in self._gone:
            return (
                "it was deleted after an earlier window with the same tokens; documents are copies"
                " of each other, and each needs a sequence of its own: leave consume out, or run"
                " the engine on the windows of request_states"
            )
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
            at = _n_shared(ids, other)
            if at == min(len(ids), len(other)):
                return (
                    f"one of {len(other)} tokens ends before it: windows have up to {len(ids)}"
                    f" tokens here; give context_length={len(other)}, or run the engine on the"
                    " windows of request_states"
                )
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
        """Return the most similar one of sequences with the same first tokens; None without any."""
        for key in _hashes(ids)[1:]:
            if places := list(islice(self._heads.get(key, ()), _COMPARED)):
                return max(map(self.store.ids, places), key=lambda other: _n_shared(ids, other))
        return None


def _n_shared(one: np.ndarray, other: np.ndarray) -> int:
    """Return the number of first tokens that two sequences share."""
    n = min(len(one), len(other))
    differs = np.flatnonzero(one[:n] != other[:n])
    return int(differs[0]) if len(differs) else n


def _hashes(ids: np.ndarray) -> tuple[bytes, ...]:
    """Return the hashes of all ids and of the first ones, most of them first."""
    return _hash(ids), *(_hash(ids[:n]) for n in _HEADS if n <= len(ids))


def _hash(ids: np.ndarray) -> bytes:
    content = np.ascontiguousarray(ids, dtype=np.int64).tobytes()
    return hashlib.blake2b(content, digest_size=12).digest()
