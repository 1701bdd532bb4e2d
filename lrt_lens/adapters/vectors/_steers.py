"""Attributes that an evaluation asks of a vector or of a subspace.

Problem: the arms of an evaluation (transferred, native, random, shuffled, permuted) are made in the
same way whether one direction or several are steered. Mechanism: `Steers` names the attributes that
they use, which a `SteeringVector` has with a basis of one row, and a `SteeringSubspace` with more.

    def rank(artefact: Steers) -> int:
        return len(artefact.basis)

Limits: a vector has more methods than these; evaluations that use them take vectors alone.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lrt_lens.adapters.vectors._contrast_states import ContrastStates
from lrt_lens.adapters.vectors._steering_hook import Mode, Positions, SteeringHook
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.models._belonging import Origin
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._loading import ModelLike


@runtime_checkable
class Steers(Protocol):
    """A direction, or several, at one hook point of one model."""

    @property
    def hook(self) -> str:
        """Hook point."""
        ...

    @property
    def name(self) -> str:
        """Name in tables and figures."""
        ...

    @property
    def method(self) -> str:
        """Rule by which it was learnt."""
        ...

    @property
    def contrast(self) -> str:
        """Hash of the contrast texts; empty if there are none."""
        ...

    @property
    def contrast_set(self) -> ContrastSet | None:
        """Contrast texts; None if they are not known."""
        ...

    @property
    def skip_first(self) -> int:
        """First positions of a text that are never steered."""
        ...

    @property
    def median_norm(self) -> float:
        """Median norm of the stream at the hook point; NaN if unknown."""
        ...

    @property
    def origin(self) -> Origin:
        """Hook point, model and width that it belongs to."""
        ...

    @property
    def direction(self) -> Tensor:
        """Vector that scale 1 adds, [d_model]."""
        ...

    @property
    def basis(self) -> Tensor:
        """Orthonormal rows that span its directions, [rank, d_model]."""
        ...

    @property
    def norm(self) -> float:
        """Length of the vector that scale 1 adds."""
        ...

    def hooks(
        self,
        *,
        scale: float | None = None,
        mode: Mode | None = None,
        positions: Positions | None = None,
        level: float | None = None,
    ) -> list[tuple[str, SteeringHook]]:
        """Return its hooks by name."""
        ...

    def refuse_other_model(self, model: HookedModel) -> None:
        """Raise `MismatchError` unless it belongs to ``model``."""
        ...

    def states(self, model: ModelLike, contrast: ContrastSet, *, at: int | str) -> ContrastStates:
        """Return the states of contrast texts, read by its rules."""
        ...

    def relearnt_at(
        self, model: ModelLike, contrast: ContrastSet, hooks: Sequence[int | str]
    ) -> list[Any]:
        """Return what its method learns at each of several hook points."""
        ...

    def learnt_like(self, states: ContrastStates) -> Any:
        """Return what its method learns from other states."""
        ...

    def redirected(self, rows: Tensor, step: Tensor | None = None, **fields: Any) -> Any:
        """Return it with the span of other rows [rank, d_model], of its own length."""
        ...

    def reversed(self) -> Any:
        """Return it with the opposite of what scale 1 adds."""
        ...

    def mean_component(self, model: ModelLike, texts: Sequence[str]) -> float:
        """Return the mean component over texts along the unit vector of what scale 1 adds."""
        ...

    def cosine(self, other: Any) -> float:
        """Return the cosine between what scale 1 adds and what that of another adds."""
        ...
