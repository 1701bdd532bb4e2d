"""Hidden states that an iterator gives: those of nnsight, nnterp, or a loop of one's own.

Problem: rows of one document go to one fold and a block of moments is of one fold, so that the
states of a sequence are needed later than the iterator gives them. Mechanism: sequences wait in
memory up to ``buffer_bytes``, and beyond that in temporary files.

    def states():
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            yield ids, {"blocks.2.hook_resid_post": hidden[2]}      # [token, d]
    harvest_states(states(), large, texts)

Limits: an iterator is read once; a run that resumes needs it again from its beginning.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load, save_file
from torch import Tensor

from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.moments.states._manifest import hook_name
from lrt_lens.moments.states._sequence import (
    StateSequence,
    as_states,
    checked_ids,
    refuse_other_width,
    with_states,
)

_AT_ONCE = 16
"""Sequences that are taken from the iterator at once."""


@dataclass
class StateStream:
    """Sequences ``(token_ids, {hook or layer: states [token, d]})`` of an iterator.

    Items may have the id of their document as a third entry, in all or in none of them.
    """

    items: Iterable[Any]
    """The sequences, in any order."""
    name: str = "the iterator"
    """Name for messages and tables."""
    tokenizer: Any = None
    """Tokenizer of the model, or its name; see `harvest_states`."""
    prepend_bos: bool | None = None
    """BOS policy of the sequences, as in `HookedModel.load`."""
    n_layers: int | None = None
    """Number of blocks of the model."""
    context_length: int | None = None
    """Largest number of tokens per sequence."""
    identity: ModelIdentity | None = None
    """Identity of the model; None if unknown."""
    buffer_bytes: int = 10**9
    """Bytes of states that wait in memory; more wait in temporary files."""

    def open(self) -> "StreamStore":
        """Return the store of the sequences; the first one is read."""
        return StreamStore(iter(self.items), self.name, self.buffer_bytes)


@dataclass
class StreamStore:
    """Sequences of an iterator that were read and not yet used."""

    items: Iterator[Any]
    name: str
    buffer_bytes: int
    hooks: tuple[str, ...] = field(default=(), init=False)
    d_model: int = field(default=0, init=False)
    has_documents: bool = field(default=False, init=False)
    kind: str = field(default="iterator", init=False)
    is_removable: bool = field(default=True, init=False)
    is_iterator: bool = field(default=True, init=False)
    _waiting: dict[int, dict[str, Tensor] | Path] = field(default_factory=dict)
    _ids: dict[int, np.ndarray] = field(default_factory=dict)
    _n_bytes: int = 0
    _n_read: int = 0
    _folder: Any = None

    def __post_init__(self) -> None:
        first = next(self.items, None)
        if first is None:
            raise FileFormatError(f"{self.name} is empty; expected (token_ids, {{hook: states}})")
        _, states, *documents = _parts(first, f"item 0 of {self.name}")
        self.hooks, self.has_documents = tuple(map(hook_name, states)), bool(documents)
        self.d_model = int(next(iter(states.values())).shape[-1])
        self.items = chain([first], self.items)

    def expected(self) -> int | None:
        """Return None: an iterator does not say how many items it has."""
        return None

    def unfinished(self) -> list[str]:
        """Return nothing: each item is complete."""
        return []

    def arrived(self) -> Iterator[StateSequence]:
        """Yield the next sequences; none after the last one."""
        for item in islice(self.items, _AT_ONCE):
            where = f"item {self._n_read} of {self.name}"
            values, states, *documents = _parts(item, where)
            if bool(documents) != self.has_documents:
                raise FileFormatError(
                    f"{where} has {2 + len(documents)} entries, and others before it another"
                    " number; give the id of the document in all of them or in none"
                )
            rows = {hook_name(hook): as_states(states[hook], where) for hook in states}
            if set(rows) != set(self.hooks):
                raise MismatchError(
                    f"{where} has states of {sorted(rows)}; expected {sorted(self.hooks)}, as in"
                    " the items before it"
                )
            ids = checked_ids(values, where)
            for hook, tensor in rows.items():
                if tensor.ndim != 2:
                    raise FileFormatError(
                        f"{hook!r} in {where} has shape {list(tensor.shape)}; expected [token, d]"
                    )
                refuse_other_width(tensor.shape[1], self.d_model, where, "the items before it")
                ids = with_states(ids, len(tensor), where)
            number, self._n_read = self._n_read, self._n_read + 1
            self._keep(number, rows)
            self._ids[number] = ids
            yield StateSequence(ids, number, f"item {number}", *documents)

    def ids(self, place: Any) -> np.ndarray:
        """Return the token ids of one sequence [token]."""
        return self._ids[place]

    def read(self, place: Any, hooks: Sequence[str]) -> dict[str, Tensor]:
        """Return the states of one sequence, ``{hook: [token, d]}``."""
        kept = self._waiting[place]
        if isinstance(kept, Path):
            kept = load(kept.read_bytes())
        return {hook: kept[hook] for hook in hooks}

    def remove(self, place: Any) -> None:
        """Forget a sequence."""
        kept = self._waiting.pop(place, None)
        self._ids.pop(place, None)
        if isinstance(kept, Path):
            kept.unlink(missing_ok=True)
        elif kept is not None:
            self._n_bytes -= _size(kept)

    def _keep(self, number: int, rows: dict[str, Tensor]) -> None:
        """Keep the states of a sequence in memory, or in a file if memory is full."""
        if self._n_bytes + _size(rows) <= self.buffer_bytes:
            # A copy: a loop may write its next states into the same memory.
            self._waiting[number] = {hook: rows[hook].detach().clone() for hook in rows}
            self._n_bytes += _size(rows)
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="lrt_lens-states-")
        path = Path(self._folder.name) / f"{number}.safetensors"
        save_file({hook: rows[hook].detach().cpu().contiguous().clone() for hook in rows}, path)
        self._waiting[number] = path


def _parts(item: Any, where: str) -> tuple[Any, ...]:
    """Return (token ids, states by hook point) and the id of the document, if there is one."""
    is_row = isinstance(item, tuple | list) and len(item) in (2, 3)
    if not is_row or not isinstance(item[1], Mapping) or not item[1]:
        found = [type(part).__name__ for part in item] if is_row else type(item).__name__
        raise FileFormatError(
            f"{where} is {found}; expected (token_ids, {{hook or layer: states [token, d]}}), with"
            " the id of the document as third entry if it is known"
        )
    return tuple(item)


def _size(rows: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in rows.values())
