"""Sums to which a harvest adds rows; they are resumed, shared between ranks, and read from files.

Problem: a harvest, its checkpoints and its ranks are the same whether the sums are whole
cross-moments or sketched ones. Mechanism: `Accumulator` is the base of both. Their *origin* are the
tensors that all ranks and shards of a run share because the first block decides them (shifts, and
the scales of a survey); everything else are sums, which are added tensor by tensor (`add_stored`).

    moments.start_from(origin)                  # empty sums about the shifts of the first rank
    add_stored(moments, path)                   # in place, one tensor at a time

Limits: sums about other origins cannot be added from a file; `merge` of the moments can do it.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lrt_lens._tensor_files import (
    MappedTensors,
    mapped_tensors,
    refuse_other_shape,
    refuse_values,
    write_tensors,
)
from lrt_lens.data._parts import Parts
from lrt_lens.errors import FileFormatError
from lrt_lens.models._hook_points import SOURCE, TARGET, HookPair, hooks_of, with_token
from lrt_lens.moments._heavy_rows import RowName, heavy_rows, with_heaviest
from lrt_lens.moments._provenance import Provenance

logger = logging.getLogger(__name__)

ORIGIN = ("shift/", "scale/")
"""Beginnings of the names of the tensors that all ranks share; these are not added."""


class Accumulator(ABC):
    """Sums over the rows of both models, by part of the documents; base of all kinds of moments."""

    schema: ClassVar[str]
    """Schema of the file."""
    pairs: tuple[HookPair, ...]
    """Hook pairs as (source hook point, target hook point)."""
    token_hook: str | None
    """Source hook point that stands for token identity."""
    moment_dtype: torch.dtype
    """Precision of products, float32 or float64."""
    null: str
    """``"none"`` if shuffled pairs are not wanted."""
    provenance: Provenance
    """Models, texts and settings."""
    n: Tensor
    """Number of rows [part]; the fitting folds come first."""
    _logged: set[str]
    """Warnings about heavy rows that were logged."""

    @property
    @abstractmethod
    def is_begun(self) -> bool:
        """True if the sums are allocated; before the first row there are none."""

    @abstractmethod
    def start(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        """Allocate the sums; the rows [row, d] of the first block decide their origin."""

    @abstractmethod
    def start_from(self, origin: Mapping[str, Tensor]) -> None:
        """Allocate empty sums with the tensors of an origin, on their device."""

    @abstractmethod
    def add_block(
        self,
        part: int,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        pairing: Tensor | None = None,
        *,
        name: RowName | None = None,
    ) -> None:
        """Add paired rows of one part.

        Args:
            part: number of the part, as `Parts.of` returns it.
            x: ``{source hook point: [row, d]}``.
            y: ``{target hook point: [row, d]}``.
            pairing: [row], index of the row of ``y`` that is paired with each row of ``x`` in the
                null; None adds nothing to the null.
            name: function from the number of a row of this block to the name that a warning gives
                it; by default its number among all rows.

        Raises:
            NonFiniteError: an activation is NaN or infinite.
            MismatchError: a hook point has another width than before.
        """

    @abstractmethod
    def finish(self) -> None:
        """Complete the sums before they are read; only sums on another device need it."""

    def __getstate__(self) -> dict[str, Any]:
        # Copies of the sums are not reached by products that are still on their way.
        self.finish()
        return dict(self.__dict__)

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by their names in a file, as views of their own storage."""

    @abstractmethod
    def metadata(self) -> dict[str, str]:
        """Return the metadata of these moments in a file."""

    @abstractmethod
    def trace(self, role: str, hook: str) -> float | None:
        """Return the trace of the scatter of all rows at a hook point; None without sums of it.

        ``role`` is ``"source"`` or ``"target"``.
        """

    def refuse_other_precision(self) -> None:
        """Raise ValueError if products would have a precision that they cannot have."""
        if self.moment_dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"moment_dtype is {self.moment_dtype}; products need torch.float32 or torch.float64"
            )

    @property
    def parts(self) -> Parts:
        """Numbers of folds and of groups of the test fold, which decide the part of a document."""
        return self.provenance.parts

    @property
    def kept_pairs(self) -> tuple[HookPair, ...]:
        """Hook pairs that have sums, which are ``pairs`` and token identity with each target."""
        return with_token(self.pairs, self.token_hook)

    @property
    def source_hooks(self) -> tuple[str, ...]:
        """Source hook points in the order of the hook pairs."""
        return hooks_of(self.pairs, SOURCE)

    @property
    def target_hooks(self) -> tuple[str, ...]:
        """Target hook points in the order of the hook pairs."""
        return hooks_of(self.pairs, TARGET)

    @property
    def n_tokens(self) -> int:
        """Number of rows in all parts."""
        return int(self.n.sum())

    @property
    def n_fit(self) -> int:
        """Number of rows in the folds that fit."""
        return int(self.n[: self.parts.n_folds].sum())

    def record_heaviest(
        self, longest: Mapping[str, tuple[float, int] | None], name: RowName | None
    ) -> None:
        """Record rows of a block that are much longer than others, for a warning.

        Args:
            longest: (squared distance, row) of the longest row by ``"ROLE HOOK"``; None if no row
                of the hook point is heavy.
            name: function from the number of a row to its name; by default its number among all.
        """
        rows, n_before = self.provenance.heaviest_rows, self.n
        numbered = name or (lambda row: f"row {int(n_before.sum()) + row}")
        for hook, row in longest.items():
            rows = with_heaviest(rows, hook, row, numbered)
        if rows is not self.provenance.heaviest_rows:
            self.provenance = replace(self.provenance, heaviest_rows=rows)

    def warn_of_heavy_rows(self) -> None:
        """Log a warning for each hook point of which one row has most of the variance, once."""
        for sentence in heavy_rows(self.provenance.heaviest_rows, self.trace, self.n):
            self.warn_once(sentence)

    def warn_once(self, sentence: str | None) -> None:
        """Log a warning that was not logged before; None is no warning."""
        if sentence is not None and sentence not in self._logged:
            self._logged.add(sentence)
            logger.warning("%s", sentence)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file atomically and return its path."""
        metadata = {"schema_version": self.schema, **self.metadata()}
        return write_tensors(Path(path), self.tensors(), metadata)


def origin_of(moments: Accumulator) -> dict[str, Tensor]:
    """Return the tensors that all ranks of a run share, by their names in a file."""
    return {name: t for name, t in moments.tensors().items() if name.startswith(ORIGIN)}


def by_role(origin: Mapping[str, Tensor], kind: str) -> dict[str, dict[str, Tensor]]:
    """Return the tensors ``KIND/ROLE/HOOK`` of an origin, ``{role: {hook point: [d]}}``."""
    sides: dict[str, dict[str, Tensor]] = {"source": {}, "target": {}}
    for name, tensor in origin.items():
        found, _, role_and_hook = name.partition("/")
        if found == kind:
            role, _, hook = role_and_hook.partition("/")
            sides.setdefault(role, {})[hook] = tensor
    return sides


def start_stored(moments: Accumulator, file: MappedTensors) -> None:
    """Allocate empty sums about the origin in a file; nothing if it holds no row."""
    if names := [name for name in file.names if name.startswith(ORIGIN)]:
        moments.start_from({name: file.tensor(name).clone() for name in names})


def add_whole(moments: Accumulator, path: Path) -> None:
    """Add the sums of a file of the same hook pairs, after a check of every byte.

    Raises:
        FileFormatError: it lacks sums or has others, or `add_stored` refuses it.
    """
    if not add_stored(moments, path, verify=True):
        raise FileFormatError(
            f"{str(path)!r} lacks sums of its hook pairs, or has others: copy the file, or "
            "harvest again"
        )


def add_stored(moments: Accumulator, path: Path, *, verify: bool = False) -> bool:
    """Add the tensors of a file in place, one at a time, and return whether they were added.

    Nothing is added if the file lacks a tensor, has others, or its sums are about another origin.

    Raises:
        FileFormatError: a tensor has another shape or is not finite, or (with ``verify``) a byte
            is not what was written.
    """
    ours = moments.tensors()
    opened = mapped_tensors(path, None)
    if verify:
        opened.verify()
    read = lambda name: opened.tensor(name).to(ours[name].device)  # noqa: E731
    names = {name for name in opened.names if not name.startswith("blocks/")}
    if ours.keys() != names or not all(
        tensor.shape == read(name).shape and bool((tensor == read(name)).all())
        for name, tensor in origin_of(moments).items()
    ):
        return False
    for name, tensor in ours.items():
        axes = " ".join(f"axis{i}" for i in range(tensor.ndim))
        sizes = {f"axis{i}": size for i, size in enumerate(tensor.shape)}
        refuse_other_shape(path, name, opened.tensor(name), axes, sizes)
        refuse_values(path, name, opened.tensor(name))
    for name, tensor in ours.items():
        # In place: the tensors are views of the sums.
        if not name.startswith(ORIGIN):
            tensor += read(name)
    opened.refuse_changed()
    return True
