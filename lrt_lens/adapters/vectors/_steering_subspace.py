"""Steering subspaces: several directions at one hook point that are learnt and used as one.

    span = SteeringSubspace.pca(pair.source, contrast, at="blocks.2.hook_resid_post", k=3)
    transferred = stitch.transfer(span)
    with transferred.apply(pair.target, mode="ablate"):
        pair.target.generate("This film was")

Problem: a concept may take more than one direction; a model that loses the mean difference alone
often still holds it. Mechanism: orthonormal rows B span the subspace, and ``coefficients`` a say
what scale 1 adds, the vector ``a B``. With h a state, c the ``centre``, and s the scale:

    add      h + s · a B
    ablate   h − s · h Bᵀ B                              s from 0 to 1
    clamp    h + s · (levels − h Bᵀ) B                   s from 0 to 1
    project  h + s · (c + (h − c) Bᵀ B − h)              s from 0 to 1: the span alone is left

A `SteeringVector` is the case of one row: `SteeringSubspace.of` of one vector steers, is ablated,
transferred and evaluated as the vector is. Rotating the rows (and a with them) changes nothing that
a subspace does, because every rule uses the span, the vector ``a B`` and the centre alone.

Limits: one hook point; formats of other programs hold a span only to ablate it (`export`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens._given_tensors import float_tensor
from lrt_lens._repr_html import card, facts
from lrt_lens._stored_fields import as_damage, json_object, stored_fields, stored_text
from lrt_lens._tensor_files import read_tensor_file, write_tensors
from lrt_lens.adapters.vectors._contrast_states import METHODS, ContrastStates, read_contrast_states
from lrt_lens.adapters.vectors._orthonormal import orthonormal_rows
from lrt_lens.adapters.vectors._serving_methods import SpanExport
from lrt_lens.adapters.vectors._span_change import SpanMode, span_change
from lrt_lens.adapters.vectors._span_learning import SPAN_METHODS, centre_of, mean_gap, span_rows
from lrt_lens.adapters.vectors._steering_hook import Positions, SteeringHook
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.adapters.vectors._strength import Strength, steered_positions, with_defaults
from lrt_lens.adapters.vectors._transfer_route import TransferRoute
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.errors import NonFiniteError
from lrt_lens.models._belonging import (
    Origin,
    refuse_impossible_hook,
    refuse_impossible_origin,
    refuse_other_reader,
    refuse_other_stream,
)
from lrt_lens.models._given_origin import set_origin
from lrt_lens.models._hooked_model import Handle, HookedModel, load_model
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._reading import Read, ReadingRules, ShortTexts, read_activations, readable
from lrt_lens.models._text_codec import Truncation, text_list
from lrt_lens.models._text_reader import SKIP_FIRST

SUBSPACE_SCHEMA = "lrt_lens.subspace/1"
"""Schema version of a file; another one is refused."""
Level = float | Sequence[float] | Tensor
"""Coordinates in the span, one number per row of the basis."""
_APART = ("basis", "coefficients", "centre", "contrast_set")
"""Fields that a file does not store as JSON: tensors, and the texts, of which it has a hash."""
_ORTHONORMAL = 1e-4
"""Largest entry of B Bᵀ − I of a basis in float32."""


@dataclass(frozen=True, eq=False)
class SteeringSubspace(SpanExport):
    """Orthonormal directions in the residual stream of one model at one hook point."""

    basis: Float[Tensor, "rank d_model"]
    """Orthonormal rows B that span the subspace, [rank, d_model]. An array of numpy or a list
    becomes a tensor."""
    coefficients: Float[Tensor, " rank"]
    """Coordinates a of the vector ``a B`` that scale 1 adds, [rank]; all 0 if nothing is added."""
    hook: str
    """Hook point at which it was learnt, or to which it was transferred. The number of a block
    becomes the name of the stream after it."""
    model: ModelIdentity | None = None
    """Model that it belongs to; None if unknown. A model becomes its identity."""
    name: str = "subspace"
    """Name in tables and figures, that of the contrast set if it was learnt from one."""
    method: str = "given"
    """How it was made: ``"pca"``, ``"inlp"``, ``"span"``, or the method of a single vector."""
    read: Read | Literal["given"] = "given"
    """Position of the contrast texts from which activations were read."""
    transferred_by: Literal["stitch", "concept map"] | None = None
    """Kind of map that transferred it to this model; None if it was learnt on the model."""
    contrast: str = ""
    """Hash of the contrast set; empty if there is none."""
    median_norm: float = float("nan")
    """Median ‖x‖ of the stream at the hook point; NaN if unknown."""
    skip_first: int = SKIP_FIRST
    """First positions of a text that are never steered, because maps are fitted without them."""
    short_texts: ShortTexts = "drop"
    """Rule for contrast texts without an unmasked token, see `SteeringVector.mean_difference`."""
    truncation: Truncation | None = None
    """End that was cut off contrast texts longer than the context; None if none was to be cut."""
    n_dropped: int = 0
    """Number of contrast pairs (texts, if not paired) of which the mask leaves nothing."""
    n_cut: int = 0
    """Number of contrast texts that were cut to the context."""
    route: TransferRoute | None = None
    """Stitch that transferred it; None if none did."""
    strength: Strength | None = None
    """Calibrated scale of a vector that it was made of; None if unknown."""
    centre: Float[Tensor, " d_model"] | None = field(default=None, repr=False)
    """State that ``"project"`` gives to everything outside of the span, [d_model]: the middle
    between the mean states of both sides of the contrast set; None if unknown."""
    contrast_set: ContrastSet | None = field(default=None, repr=False)
    """Texts from which it was learnt; None from a file, which has their hash only."""

    def __post_init__(self) -> None:
        for name in ("basis", "coefficients", "centre"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float_tensor(name, getattr(self, name)))
        set_origin(self)
        self._refuse_other_shapes()
        tensors = [one for one in (self.basis, self.coefficients, self.centre) if one is not None]
        if not all(bool(torch.isfinite(one).all()) for one in tensors):
            raise NonFiniteError(
                f"subspace {self.name!r} at {self.hook!r} holds NaN or infinity; "
                "learn it again from texts with finite activations"
            )
        rows = self.basis.double()
        # B Bᵀ = I for orthonormal rows
        error = float((rows @ rows.T - torch.eye(len(rows)).to(rows)).abs().max())
        if error > _ORTHONORMAL:
            raise ValueError(
                f"the rows of the basis of {self.name!r} are not orthonormal (B Bᵀ differs from I"
                f" by {error:.2g}); make vectors of them and join these with SteeringSubspace.of"
            )
        refuse_impossible_origin(self.origin)

    def _refuse_other_shapes(self) -> None:
        rank, width = self.basis.shape if self.basis.ndim == 2 else (0, 0)
        centre = (width,) if self.centre is None else tuple(self.centre.shape)
        if not 1 <= rank <= width or self.coefficients.shape != (rank,) or centre != (width,):
            raise ValueError(
                f"basis {tuple(self.basis.shape)}, coefficients {tuple(self.coefficients.shape)}"
                f" and centre {centre} do not fit; expected [rank, d_model], [rank] and [d_model]"
            )

    # ------------------------------------------------------------------------------------- learning

    @classmethod
    def pca(
        cls,
        model: ModelLike,
        contrast: ContrastSet,
        *,
        at: int | str,
        k: int,
        read: Read = "last",
        short_texts: ShortTexts = "drop",
        truncation: Truncation | None = None,
        skip_first: int = SKIP_FIRST,
    ) -> "SteeringSubspace":
        """Return the first k principal components of the differences within text pairs (RepE).

        The first one is that of `SteeringVector.principal_component`. Scale 1 adds the mean
        difference, as far as it lies in the span.

        Args:
            model: the model on which it is learnt.
            contrast: pairs of positive and negative texts.
            at: hook point, or the number of a block for the stream after it.
            k: number of directions.
            read: token of a text that is read, or how its tokens are pooled.
            short_texts: rule for texts that the mask leaves nothing of, see
                `SteeringVector.mean_difference`.
            truncation: end that is cut off texts longer than the context.
            skip_first: first positions of a text that are neither read nor steered.

        Raises:
            ValueError: the texts are not pairs, or their differences have fewer directions.
            NonFiniteError: an activation is NaN or infinite.
        """
        rules = ReadingRules(read, short_texts, truncation, skip_first)
        (states,) = read_contrast_states(load_model(model), contrast, [at], rules)
        return cls.learnt_from(states, "pca", k)

    @classmethod
    def inlp(
        cls,
        model: ModelLike,
        contrast: ContrastSet,
        *,
        at: int | str,
        k: int,
        read: Read = "last",
        short_texts: ShortTexts = "drop",
        truncation: Truncation | None = None,
        skip_first: int = SKIP_FIRST,
    ) -> "SteeringSubspace":
        """Return the directions of k rounds of iterative nullspace projection (INLP).

        Each round fits a logistic regression that tells positive from negative texts, and projects
        its direction out of all states (Ravfogel et al. 2020, arXiv 2004.07667). Scale 1 adds the
        mean difference, as far as it lies in the span. The texts need not be pairs. The arguments
        are those of `pca`.

        Raises:
            ValueError: the texts have fewer directions.
            NonFiniteError: an activation is NaN or infinite.
        """
        rules = ReadingRules(read, short_texts, truncation, skip_first)
        (states,) = read_contrast_states(load_model(model), contrast, [at], rules)
        return cls.learnt_from(states, "inlp", k)

    @classmethod
    def learnt_from(cls, states: ContrastStates, method: str, k: int) -> "SteeringSubspace":
        """Return the subspace of rank k that a method learns from the states of contrast texts.

        Raises:
            ValueError: the method is unknown, or the texts have fewer directions.
        """
        if k == 1 and method in METHODS:
            return cls.of([SteeringVector.learnt_from(states, method)])
        rows = span_rows(states, method, k)
        # (μ₊ − μ₋) Bᵀ: scale 1 adds the part of the mean gap that lies in the span.
        coefficients, centre = rows @ mean_gap(states), centre_of(states)
        tensors = {"coefficients": coefficients.float(), "centre": centre.float()}
        return cls(rows.float(), method=method, **tensors, **states.fields)

    @classmethod
    def of(
        cls, vectors: SteeringVector | Sequence[SteeringVector], *, name: str | None = None
    ) -> "SteeringSubspace":
        """Return the span of vectors at one hook point; scale 1 adds their sum.

        The rows are the orthonormal ones closest to the unit vectors, whatever their order. One
        vector keeps its method and texts, so that it can be learnt again.

        Raises:
            ValueError: no vector, or vectors that depend on each other.
            MismatchError: the vectors belong to different hook points, models or widths.
        """
        listed = (vectors,) if isinstance(vectors, SteeringVector) else tuple(vectors)
        if not listed:
            raise ValueError("there is no vector; give at least one")
        first, *others = listed
        remedy = "transfer one to the hook point of the other first"
        for one in others:
            refuse_other_stream(first.origin, one.origin, "do not span a subspace", remedy)
        rows = torch.cat([one.basis.double().to(first.direction.device) for one in listed])
        basis = orthonormal_rows(rows, "the vectors", "leave out those that others add up to")
        step = torch.stack([one.direction.double().to(rows.device) for one in listed]).sum(0)
        shared = {key: getattr(first, key) for key in _SHARED}
        if others:
            label = " + ".join(one.name for one in listed)
            shared |= {"name": label, "method": "span", "strength": None}
            if len({one.contrast for one in listed}) > 1:
                shared |= {"contrast": "", "contrast_set": None}
        shared |= {} if name is None else {"name": name}
        return cls(basis.float(), (basis @ step).float(), **shared)

    def states(self, model: ModelLike, contrast: ContrastSet, *, at: int | str) -> ContrastStates:
        """Return the states of contrast texts in a model, read by the rules of this subspace.

        Raises:
            ValueError: it was not learnt from texts.
        """
        return self._states(load_model(model), contrast, [at])[0]

    def relearnt_at(
        self, model: ModelLike, contrast: ContrastSet, hooks: Sequence[int | str]
    ) -> list["SteeringSubspace"]:
        """Return the subspace that this one's method learns at each of several hook points.

        Raises:
            ValueError: it was not learnt from texts.
        """
        return [self.learnt_like(one) for one in self._states(load_model(model), contrast, hooks)]

    def learnt_like(self, states: ContrastStates) -> "SteeringSubspace":
        """Return the subspace that this one's method learns from other states, of its rank."""
        return SteeringSubspace.learnt_from(states, self.method, self.rank)

    def _states(
        self, model: HookedModel, contrast: ContrastSet, hooks: Sequence[int | str]
    ) -> list[ContrastStates]:
        known = (*SPAN_METHODS, *(METHODS if self.rank == 1 else ()))
        if self.method not in known or self.read == "given":
            raise ValueError(
                f"subspace {self.name!r} was made by {self.method!r}; only {sorted(known)} can be "
                "learnt again from texts"
            )
        rules = ReadingRules(self.read, self.short_texts, self.truncation, self.skip_first)
        return read_contrast_states(model, contrast, hooks, rules)

    # ---------------------------------------------------------------------------------- description

    @property
    def rank(self) -> int:
        """Number of dimensions of the subspace."""
        return len(self.basis)

    @property
    def direction(self) -> Float[Tensor, " d_model"]:
        """Vector a B that scale 1 adds, [d_model]."""
        return (self.coefficients.double() @ self.basis.double()).to(self.basis.dtype)

    @property
    def norm(self) -> float:
        """Length of the vector that scale 1 adds, ‖a‖."""
        return float(self.coefficients.norm())

    @property
    def vector(self) -> SteeringVector:
        """Steering vector that scale 1 adds, which can be calibrated, exported and baked.

        Raises:
            ValueError: the subspace adds nothing.
        """
        self._refuse_no_step()
        return self._as_vector(self.direction)

    @property
    def vectors(self) -> list[SteeringVector]:
        """Rows of the basis as unit steering vectors, which formats of a span hold."""
        rows = enumerate(self.basis)
        return [self._as_vector(row, name=f"{self.name} {i}", strength=None) for i, row in rows]

    def _as_vector(self, direction: Tensor, **changes: Any) -> SteeringVector:
        return SteeringVector(direction, **{key: getattr(self, key) for key in _SHARED} | changes)

    @property
    def origin(self) -> Origin:
        """Hook point, model and width that it belongs to."""
        return Origin(f"subspace {self.name!r}", self.hook, self.model, self.basis.shape[1])

    @property
    def transferred(self) -> bool:
        """True if it was learnt on another model and transferred to this one."""
        return self.transferred_by is not None

    def principal_cosines(self, other: "SteeringSubspace | SteeringVector") -> Tensor:
        """Return the cosines of the principal angles to another subspace, the largest first.

        All are 1 if one subspace contains the other, and 0 if they are orthogonal; there are as
        many as the smaller one has dimensions.

        Raises:
            MismatchError: they belong to different hook points, models or widths.
        """
        remedy = "compare subspaces at one hook point"
        refuse_other_stream(self.origin, other.origin, "are in different streams", remedy)
        # Björck and Golub 1973: singular values of B₁ B₂ᵀ
        products = self.basis.double() @ other.basis.double().to(self.basis.device).T
        return torch.linalg.svdvals(products).clamp(0, 1)

    def cosine(self, other: Any) -> float:
        """Return the cosine between what scale 1 adds and what that of another one adds.

        Raises:
            MismatchError: they belong to different hook points, models or widths.
            ValueError: one of them adds nothing.
        """
        theirs = other.vector if isinstance(other, SteeringSubspace) else other
        return self.vector.cosine(theirs)

    def __repr__(self) -> str:
        where = f" of {self.model.name}" if self.model else ""
        how = f"{self.method}, read {self.read}{', transferred' if self.transferred else ''}"
        return (
            f"SteeringSubspace({self.name!r} at {self.hook}{where}, rank {self.rank}, {how}, "
            f"norm {self.norm:.3g})"
        )

    def _repr_html_(self) -> str:
        about = {
            "name": self.name,
            "hook point": self.hook,
            "model": self.model.name if self.model else None,
            "rank": self.rank,
            "method": self.method,
            "read": self.read,
            "norm of what scale 1 adds": self.norm,
            "coefficients": ", ".join(f"{float(a):.3g}" for a in self.coefficients),
            "dimensions": self.basis.shape[1],
        }
        return card("SteeringSubspace", facts(about))

    # ------------------------------------------------------------------------------------- changing

    def reversed(self) -> "SteeringSubspace":
        """Return the same span, of which scale 1 adds the opposite."""
        return replace(self, coefficients=-self.coefficients)

    def redirected(
        self, rows: Float[Tensor, "rank d"], step: Tensor | None = None, **fields: Any
    ) -> "SteeringSubspace":
        """Return the span of other rows [rank, d], with a vector in it as long as this one's.

        ``step`` is a vector in their span, by default the rows weighted by the coefficients;
        ``fields`` are changed too, such as ``name``.
        """
        rows = rows.double()
        along = self.coefficients.to(rows) @ rows if step is None else step.to(rows)
        # ‖a‖ · u / ‖u‖, or nothing if this subspace adds nothing
        along = along * (self.norm / float(along.norm().clamp_min(1e-30)))
        return self.with_span(rows, along, strength=None, **fields)

    def with_span(
        self, rows: Float[Tensor, "rank d"], step: Float[Tensor, " d"], **fields: Any
    ) -> "SteeringSubspace":
        """Return this subspace with the span of ``rows``, of which scale 1 adds ``step``.

        Raises:
            ValueError: the rows depend on each other.
        """
        basis = orthonormal_rows(rows, f"the images of subspace {self.name!r}", "lower its rank")
        coefficients = basis @ step.to(basis)
        tensors = {"basis": basis.float(), "coefficients": coefficients.float()}
        return replace(self, **tensors, **{"centre": None} | fields)

    # ------------------------------------------------------------------------------------- steering

    def hooks(
        self,
        *,
        scale: float | None = None,
        mode: SpanMode | None = None,
        positions: Positions | None = None,
        level: Level | None = None,
        centre: Tensor | None = None,
    ) -> list[tuple[str, SteeringHook]]:
        """Return ``[(name, fn)]`` for ``model.hooks(fwd_hooks=...)`` of TransformerLens.

        Args:
            scale: multiple of ``coefficients`` that ``"add"`` adds; for the other modes the share
                of the change, 0 to 1. Default: that of ``strength``, else 1.
            mode: ``"add"``, ``"ablate"``, ``"clamp"`` or ``"project"``, see this module. Default:
                that of ``strength``, else ``"add"``.
            positions: steered positions, as for `SteeringVector.hooks`.
            level: coordinates that ``"clamp"`` sets, [rank], see `mean_coordinates`.
            centre: state that ``"project"`` gives to all that is outside of the span, [d_model],
                such as ``stitch.target_statistics.mean``; by default that of the subspace.

        Raises:
            ValueError: a scale outside the range of the mode, an unknown mode or positions, a
                clamp without levels, a projection without a centre, or an addition of nothing.
        """
        is_project = mode == "project"
        known = None if is_project else self.strength
        # "project" has no strength that could be stored.
        usual: Any = None if is_project else mode
        positions, skip = steered_positions(known, scale, usual, positions, self.skip_first)
        given = None if level is None else torch.as_tensor(level, dtype=torch.float64).reshape(-1)
        scale, steers, stored = with_defaults(known, scale, usual, None)
        mode = "project" if is_project else steers
        if mode not in get_args(SpanMode) or positions not in get_args(Positions):
            raise ValueError(
                f"mode {mode!r}, positions {positions!r}; "
                "expected add, clamp, ablate or project, and all, last, generated or every"
            )
        if given is None and stored is not None:
            given = torch.tensor([stored], dtype=torch.float64)
        if mode == "add":
            self._refuse_no_step()
        centre = self.centre if centre is None else centre
        rows, step = self.basis, self.direction
        change = span_change(rows, step, float(scale), mode, level=given, centre=centre)
        return [(self.hook, SteeringHook(change, positions, skip))]

    def apply(
        self,
        model: ModelLike,
        *,
        scale: float | None = None,
        mode: SpanMode | None = None,
        positions: Positions | None = None,
        level: Level | None = None,
        centre: Tensor | None = None,
    ) -> Handle:
        """Register the hook on a model and return a handle, as `SteeringVector.apply` does.

        Use the handle as a context manager, or call its ``remove()``. The arguments are those of
        `hooks`.

        Raises:
            MismatchError: it belongs to another model.
            ValueError: see `hooks`.
        """
        hooked = load_model(model)
        self.refuse_other_model(hooked)
        options: dict[str, Any] = {"positions": positions, "level": level, "centre": centre}
        return hooked.intervene(dict(self.hooks(scale=scale, mode=mode, **options)))

    def mean_coordinates(self, model: ModelLike, texts: Sequence[str]) -> Tensor:
        """Return the mean coordinates in the span over texts, [rank], the levels of a clamp.

        The mean over texts of the mean of h Bᵀ over the positions of a text without the first ones.

        Raises:
            MismatchError: it belongs to another model.
            ValueError: no text is left.
        """
        hooked = load_model(model)
        self.refuse_other_model(hooked)
        skip: dict[str, Any] = {"skip_first": self.skip_first}
        kept = readable([hooked], texts, "mean", **skip)
        rows = read_activations(hooked, kept.of(text_list(texts)), self.hook, "mean", **skip)
        return (rows.double() @ self.basis.to(rows.device).double().T).mean(0)

    def mean_component(self, model: ModelLike, texts: Sequence[str]) -> float:
        """Return the mean component over texts along the unit vector of what scale 1 adds.

        Raises:
            MismatchError: it belongs to another model.
            ValueError: no text is left, or it adds nothing.
        """
        return self.vector.mean_component(model, texts)

    def refuse_other_model(self, model: HookedModel) -> None:
        """Raise `MismatchError` unless this subspace belongs to ``model``."""
        refuse_other_reader(self.origin, model.identity, "steer")

    def _refuse_no_step(self) -> None:
        if not self.norm > 0:
            raise ValueError(
                f"subspace {self.name!r} adds nothing: its coefficients are 0; use mode 'ablate',"
                " 'clamp' or 'project', or give coefficients"
            )

    # ---------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> Path:
        """Write the subspace to one safetensors file and return its path.

        The contrast texts are not stored, only their hash.
        """
        stored = {key: value for key, value in asdict(self).items() if key not in _APART}
        text = stored_text(SteeringSubspace, stored, others=_APART)
        tensors = {name: getattr(self, name) for name in _APART[:3]}
        present = {name: one + 0.0 for name, one in tensors.items() if one is not None}
        metadata = {"schema_version": SUBSPACE_SCHEMA, "subspace": text}
        return write_tensors(Path(path), present, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "SteeringSubspace":
        """Return the subspace in a file of `save`.

        Raises:
            FileFormatError: the file is no subspace, or damaged.
        """
        file = read_tensor_file(Path(path), SUBSPACE_SCHEMA)
        content = json_object(file.path, file.metadata.get("subspace"), "'subspace'")
        known = stored_fields(file.path, cls, content, others=_APART)
        refuse_impossible_hook(file.path, known["hook"], known.get("model"))
        expected: dict[str, Any] = {"basis": "rank d_model", "coefficients": "rank"}
        if "centre" in file.tensors:
            expected["centre"] = "d_model"
        tensors = file.checked(expected)
        with as_damage(file.path):
            return cls(**tensors, **known)


_SHARED = tuple(
    one.name
    for one in fields(SteeringVector)
    if one.name in {other.name for other in fields(SteeringSubspace)}
)
"""Fields that vectors and subspaces share."""
