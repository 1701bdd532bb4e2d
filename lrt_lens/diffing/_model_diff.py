"""Result of `diff`: directions that two models do not share, and those that they do.

    result = lrt.diff(grid, 3)
    result.table                     # kind, index, eigenvalue, interval, noise, …
    result.vector("gained", 1)       # SteeringVector along the first direction
    result.figure()
    result.read(pair, documents)     # promoted tokens, strongest contexts, density

Limits: directions of one kind are orthogonal to each other; those of different kinds are not.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from lrt_lens._late import implementation
from lrt_lens._repr_html import card, facts, note, table
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._documents import Documents
from lrt_lens.errors import MismatchError
from lrt_lens.figures._model_diff import diff_figure
from lrt_lens.figures._template import rows_where, with_counts
from lrt_lens.models._belonging import Origin, refuse_other_reader
from lrt_lens.models._hook_points import HookPair
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.moments._provenance import Provenance

Kind = Literal["gained", "lost", "difference", "shift", "shared"]
"""Kind of direction; `ModelDiff` says what each is."""
KINDS: tuple[Kind, ...] = get_args(Kind)
"""All kinds of directions, in the order of tables."""
KIND_MEANINGS: dict[Kind, str] = {
    "gained": "Principal directions of what a linear map of the source leaves of the target.",
    "lost": "Principal directions of what a linear map of the target leaves of the source.",
    "difference": "Principal directions of the target's stream minus that of the source.",
    "shift": "The mean of the target's stream minus that of the source.",
    "shared": "Directions of the target that are best predicted from the source.",
}
"""Meaning of each kind of direction, in words."""
DIFF_COLUMNS = (
    "kind",
    "index",
    "eigenvalue",
    "low",
    "high",
    "held_out",
    "share",
    "variance",
    "unexplained",
    "unexplained_shuffled",
    "noise",
    "above_noise",
)
"""Columns of `ModelDiff.table`."""


@dataclass(frozen=True)
class DiffDirections:
    """Directions of one kind, in both models."""

    unit: Tensor
    """Unit directions in the model that they belong to [index, d]."""
    length: Tensor
    """Length at scale 1 of each: a standard deviation, or the size of the shift [index]."""
    read_source: Tensor
    """Directions that read the component from the source's stream [index, d_source]."""
    read_target: Tensor
    """Directions that read the component from the target's stream [index, d_target]."""
    offset: Tensor
    """Mean of what both read, which is subtracted from it [index]."""
    deviation: Tensor
    """Standard deviation of what both read [index]."""


@dataclass(frozen=True, eq=False, repr=False)
class ModelDiff(ShortRepr):
    """Directions that one hook point of the target has and one of the source has not, or reversed.

    Kinds of directions:

    - ``"gained"``: principal directions of what a ridge map of the source leaves of the target.
    - ``"lost"``: the same the other way round: of the source, predicted from the target.
    - ``"difference"``: principal directions of y − x, if both widths are equal.
    - ``"shift"``: the mean of y − x, if both widths are equal.
    - ``"shared"``: canonical directions of the target: what is best predicted from the source.
    """

    table: pd.DataFrame
    """One row per kind and index (from 1).

    - ``eigenvalue``: variance per token along the direction (``"shift"``: squared length;
      ``"shared"``: squared canonical correlation), with its 95% interval ``low`` to ``high`` over
      documents, and the same on the test fold, ``held_out``;
    - ``share``: of the sum of all eigenvalues of the kind (NaN for ``"shift"`` and ``"shared"``);
    - ``variance``: of the whole stream along the direction, and ``unexplained``: eigenvalue ÷
      variance; ``unexplained_shuffled`` is the same for a map of shuffled pairs, about 1 (NaN
      without a full null);
    - ``noise``: eigenvalue that 5% of noises exceed, if the columns shared nothing (Horn 1965), and
      ``above_noise``: True if this eigenvalue and all before it are larger.
    """
    directions: dict[Kind, DiffDirections] = field(repr=False)
    """Directions of each kind."""
    source_hook: str
    """Hook point of the source."""
    target_hook: str
    """Hook point of the target."""
    alpha: dict[str, float] = field(repr=False)
    """Penalty of the ridge map of ``"gained"``, ``"lost"`` and ``"shared"``, relative to the mean
    variance of the predicting side."""
    n_tokens: int
    """Number of tokens on which directions are fitted."""
    n_independent: dict[str, float] = field(repr=False)
    """Number of independent rows that would vary as much between folds, by kind."""
    provenance: Provenance = field(repr=False, default_factory=Provenance)
    """Models, texts and settings of the moments."""
    median_norms: tuple[float, float] = field(repr=False, default=(float("nan"), float("nan")))
    """Median norm of the stream of the source and of the target."""

    @property
    def kinds(self) -> list[Kind]:
        """Kinds of directions of this result."""
        return list(self.directions)

    def n_above_noise(self, kind: Kind) -> int:
        """Return how many directions of a kind are above the noise."""
        self._of(kind)
        return int(rows_where(self.table, "kind", kind)["above_noise"].to_numpy(dtype=bool).sum())

    def direction(self, kind: Kind, index: int = 1) -> Tensor:
        """Return a unit direction [d] of the model that it belongs to; the first is index 1.

        Raises:
            ValueError: there is no such kind or index.
        """
        return self._of(kind).unit[self._checked(kind, index)]

    def vector(
        self, kind: Kind, index: int = 1, *, on: Literal["source", "target"] | None = None
    ) -> SteeringVector:
        """Return a direction as a steering vector, whose scale 1 is one standard deviation.

        Args:
            kind: kind of direction.
            index: number of the direction, from 1.
            on: model that the vector steers; None: the source for ``"lost"``, else the target. The
                other model is possible if both have one width, such as two revisions of a model.

        Raises:
            ValueError: there is no such kind or index, or the eigenvalue is 0.
            MismatchError: the other model has another width.
        """
        of, at = self._of(kind), self._checked(kind, index)
        own = "source" if kind == "lost" else "target"
        side = on or own
        if side not in ("source", "target"):
            raise ValueError(f"on is {on!r}; expected 'source' or 'target'")
        widths = {"source": of.read_source.shape[1], "target": of.read_target.shape[1]}
        if widths[side] != len(of.unit[at]):
            raise MismatchError(
                f"a direction of kind {kind!r} has {len(of.unit[at])} dimensions, and the {side} "
                f"{widths[side]}: it belongs to the {own}; transfer it with a stitch"
            )
        if not float(of.length[at]):
            raise ValueError(
                f"direction {index} of kind {kind!r} has the eigenvalue 0: the models do not differ"
                " there, and there is nothing to steer with"
            )
        hooks = {"source": self.source_hook, "target": self.target_hook}
        skip = self.provenance.skip_first
        return SteeringVector(
            of.unit[at] * of.length[at],
            hooks[side],
            self._identity(side),
            name=f"{kind} {index}",
            method="diff",
            median_norm=self.median_norms[side == "target"],
            skip_first=SKIP_FIRST if skip is None else skip,
        )

    def read(self, pair: ModelPair, documents: Documents, **options: Any) -> Any:
        """Return promoted tokens, strongest contexts and density of each direction.

        Equal to ``lrt_lens.read_diff(diff, pair, documents, …)``, where the options are.
        """
        return implementation("ModelDiff.read")(self, pair, documents, **options)

    def refuse_other_models(self, pair: ModelPair) -> None:
        """Raise `MismatchError` unless the moments are those of the two models of ``pair``."""
        sides = (
            (self.source_hook, self.provenance.source, pair.source, "read_source"),
            (self.target_hook, self.provenance.target, pair.target, "read_target"),
        )
        for hook, identity, model, reader in sides:
            width = getattr(next(iter(self.directions.values())), reader).shape[1]
            origin = Origin("this comparison", hook, identity, width)
            refuse_other_reader(origin, model.identity, "read directions from")

    def figure(self) -> Any:
        """Return the eigenvalues of each kind with intervals and the level of noise (plotly)."""
        return with_counts(diff_figure(self.table), {"tokens": self.n_tokens})

    def _identity(self, side: str) -> ModelIdentity | None:
        return self.provenance.source if side == "source" else self.provenance.target

    def _of(self, kind: Kind) -> DiffDirections:
        if kind not in self.directions:
            raise ValueError(
                f"kind is {kind!r}; this comparison has {self.kinds}"
                + ("" if "difference" in self.directions else " (differences need equal widths)")
            )
        return self.directions[kind]

    def _checked(self, kind: Kind, index: int) -> int:
        n = len(self._of(kind).unit)
        if not 1 <= index <= n:
            raise ValueError(
                f"index is {index}; kind {kind!r} has directions 1 to {n}: give n_directions= to "
                "diff for more"
            )
        return index - 1

    def _repr_html_(self) -> str:
        found = {kind: f"{self.n_above_noise(kind)} above the noise" for kind in self.kinds}
        hooks: HookPair = (self.source_hook, self.target_hook)
        return card(
            "ModelDiff",
            facts({"hook points": " → ".join(hooks), "tokens": self.n_tokens} | found),
            table(self.table),
            note(
                "eigenvalue: variance per token, with 95% intervals; unexplained: its share of the "
                "stream's variance along the direction."
            ),
        )


def oriented(directions: Tensor, towards: Tensor | None) -> Tensor:
    """Return directions [k, d] whose sign is that of their component along ``towards``.

    Without it, the largest coordinate of each is positive.
    """
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))[:, 0]
    along = largest if towards is None else directions @ towards
    along = torch.where(along == 0, largest, along)
    return directions * torch.where(along < 0, -1.0, 1.0).to(directions)[:, None]
