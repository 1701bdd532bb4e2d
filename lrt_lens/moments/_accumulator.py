"""Sums to which a harvest adds rows; they are resumed, shared between ranks, and read from files.

Problem: a harvest, its checkpoints and its ranks are the same whether the sums are whole
cross-moments or sketched ones. Mechanism: both satisfy `Accumulator`. Their *origin* are the
tensors that all ranks and shards of a run share because the first block decides them (shifts, and
the scales of a survey); everything else are sums, which are added tensor by tensor (`add_stored`).

    moments.start_from(origin)                  # empty sums about the shifts of the first rank
    add_stored(moments, path)                   # in place, one tensor at a time

Limits: sums about other origins cannot be added from a file; `merge` of the moments can do it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lrt_lens._tensor_files import mapped_tensors, refuse_other_shape, refuse_values
from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._provenance import Provenance

ORIGIN = ("shift/", "scale/")
"""Beginnings of the names of the tensors that all ranks share; these are not added."""


@runtime_checkable
class Accumulator(Protocol):
    """Sums over the rows of both models, by part of the documents."""

    n: Tensor
    """Number of rows [part]."""
    provenance: Provenance

    @property
    def null(self) -> str:
        """``"none"`` if shuffled pairs are not wanted."""
        ...

    @property
    def is_begun(self) -> bool:
        """True if the sums are allocated; before the first block there are none."""
        ...

    @property
    def kept_pairs(self) -> tuple[HookPair, ...]:
        """Hook pairs whose hook points are captured."""
        ...

    def start(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        """Allocate the sums; the rows of the first block decide their origin."""
        ...

    def start_from(self, origin: Mapping[str, Tensor]) -> None:
        """Allocate the sums with the tensors of an origin, on their device."""
        ...

    # A part is a number, rows are [row, d]; the last argument is a function that names a row.
    def add_block(
        self,
        part: int,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        pairing: Tensor | None = None,
        *,
        name: Any = None,
    ) -> None:
        """Add the rows of a block."""
        ...

    def warn_of_heavy_rows(self) -> None:
        """Log a warning for each hook point of which one row has most of the variance."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by their names in a file, as views of their own storage."""
        ...

    def metadata(self) -> dict[str, str]:
        """Return the metadata of a file."""
        ...


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
