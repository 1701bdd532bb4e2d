"""Sequences of tokens with their hidden states, whatever keeps them.

Problem: states come from files of an engine, from arrays, from tables and from iterators, and a
harvest must read all of them alike. Mechanism: a `StateStore` tells which sequences it has, by
their token ids alone, and reads the states of one of them when its rows are needed.

    for sequence in store.arrived(): sequence.ids, sequence.document
    store.read(sequence.place, ["blocks.2.hook_resid_post"])     # {hook: [token, d]}

Limits: ids and states of one sequence fit into memory.
"""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lrt_lens.errors import FileFormatError, MismatchError

STATES, IDS = "hidden_states", "token_ids"
"""Names of the tensors of vLLM, and of the columns of tables and arrays."""


@dataclass(frozen=True, eq=False)
class StateSequence:
    """Tokens of one sequence, and where its states are."""

    ids: np.ndarray
    """Token ids [token] that have a state, as the model read them, special tokens included."""
    place: Any
    """File of the states, or row of one, as the store knows it; None if they were deleted."""
    name: str
    """Name in its store, for messages and for a run that resumes."""
    document: Any = None
    """Id of the document; None if it is not known."""


@runtime_checkable
class StateStore(Protocol):
    """Sequences of one model with their states."""

    hooks: tuple[str, ...]
    """Hook points whose states are kept."""
    d_model: int
    kind: str
    """Kind of the files, for a run that resumes after all of them were deleted."""
    is_removable: bool
    """True if sequences can be deleted one by one."""
    is_iterator: bool
    """True if the sequences come from an iterator, which is read again if a run resumes."""
    has_documents: bool
    """True if sequences have ids of documents, as far as they have arrived."""

    @property
    def name(self) -> str:
        """Name for messages, such as the path of a folder."""
        ...

    def arrived(self) -> Iterator[StateSequence]:
        """Yield the complete sequences that came since the last call, in order."""
        ...

    def expected(self) -> int | None:
        """Return how many sequences there will be; None if it is not known."""
        ...

    def unfinished(self) -> list[str]:
        """Return what the last look of `arrived` found incomplete, for messages."""
        ...

    def ids(self, place: Any) -> np.ndarray:
        """Return the token ids of one sequence [token]."""
        ...

    def read(self, place: Any, hooks: Sequence[str]) -> dict[str, Tensor]:
        """Return the states of one sequence, ``{hook: [token, d]}``."""
        ...

    def remove(self, place: Any) -> None:
        """Delete the states of one sequence for good."""
        ...


def checked_ids(values: Any, where: str) -> np.ndarray:
    """Return token ids as int64 [token].

    Raises:
        FileFormatError: they are no row of whole numbers from 0 on.
    """
    ids = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu" or ids.min() < 0:
        raise FileFormatError(
            f"token_ids of {where} has shape {list(ids.shape)} and type {ids.dtype}; expected one"
            " row of whole numbers from 0 on, one per token"
        )
    return ids.astype(np.int64)


def with_states(ids: np.ndarray, n_states: int, where: str) -> np.ndarray:
    """Return the token ids that have a state.

    An engine that generates keeps no state of the last token, which it never read.

    Raises:
        FileFormatError: there are more states than tokens, or fewer by more than one.
    """
    if n_states not in (len(ids), len(ids) - 1) or not n_states:
        raise FileFormatError(
            f"{where} has {len(ids)} token ids and states of {n_states} tokens; expected one state"
            " per token (or one less, after generation): write it again"
        )
    return ids[:n_states]


def as_states(values: Any, where: str) -> Tensor:
    """Return an array of states as a tensor of floats, of its own precision.

    Raises:
        FileFormatError: it holds no floating-point numbers.
    """
    tensor = values if isinstance(values, Tensor) else _tensor_of(np.asarray(values), where)
    if not tensor.is_floating_point():
        raise FileFormatError(
            f"the states of {where} have type {tensor.dtype}; expected floating-point numbers"
        )
    return tensor


def _tensor_of(array: np.ndarray, where: str) -> Tensor:
    # numpy knows bfloat16 only through ml_dtypes, of which torch takes the bits.
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    try:
        return torch.from_numpy(np.array(array))
    except TypeError as error:
        raise FileFormatError(
            f"the states of {where} have type {array.dtype}, which torch does not know; expected"
            " float16, bfloat16, float32 or float64 (numpy keeps bfloat16 as raw bytes: write"
            " safetensors, or float32)"
        ) from error


def refuse_other_width(width: int, expected: int, where: str, others: str) -> None:
    """Raise `MismatchError` if states have another width than those before."""
    if width != expected:
        raise MismatchError(
            f"the states of {where} have width {width}, and those of {others} {expected}; expected"
            " the states of one model: keep those of other models in another folder"
        )


def new_files(folder: Path, ending: str, known: Collection[str]) -> list[Path]:
    """Return the files of a folder whose names end so and are not known, in natural order."""
    # Only names that are new are made into paths and sorted: a folder is looked at many times.
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(ending)]
    except FileNotFoundError:
        return []
    new = [name for name in names if name not in known]
    return [folder / name for name in sorted(new, key=_natural_order)]


def _natural_order(name: str) -> list[tuple[int, int | str]]:
    """Return a key that sorts names with numbers by these numbers: 2 before 10."""
    pieces = re.split(r"(\d+)", name)
    return [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in pieces]


def shown(path: Path) -> str:
    """Return a path for a message."""
    return repr(str(path))
