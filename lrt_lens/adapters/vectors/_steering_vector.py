"""Steering vectors: learnt from contrast sets, transferred by a stitch, added to a residual stream.

    vector = SteeringVector.mean_difference(pair.source, contrast, at="blocks.3.hook_resid_post")
    transferred = stitch.transfer(vector)                       # norm="match", bias="none"
    with transferred.apply(pair.target, scale=1.5):
        pair.target.generate("This film was")

Problem: a direction alone does not say where in which model it acts, how long it is, and which
positions it steers. Mechanism: scale 1 is the mean gap of the contrast set in the model where the
vector was learnt, and everything that its use depends on is a field, in memory and in files.
`lrt_lens.adapters.vectors._transfer` has the rules by which a stitch transfers it.

Limits: one direction at one hook point; `Intervention` joins several.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens._given_tensors import float_tensor
from lrt_lens._hub import is_hub_id
from lrt_lens._late import implementation
from lrt_lens._repr_html import card, facts
from lrt_lens._stored_fields import as_damage, json_object, stored_fields, stored_text
from lrt_lens._tensor_files import read_tensor_file, write_tensors
from lrt_lens.adapters._earlier_files import in_current_form
from lrt_lens.adapters.vectors._contrast_states import METHODS, ContrastStates, read_contrast_states
from lrt_lens.adapters.vectors._label_share import LabelShare
from lrt_lens.adapters.vectors._projection import outside_span
from lrt_lens.adapters.vectors._served_file import ServedFile, is_served
from lrt_lens.adapters.vectors._serving_methods import ServingMethods
from lrt_lens.adapters.vectors._steering_hook import Mode, Positions, SteeringHook, change_of
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
from lrt_lens.typing import Direction

VECTOR_SCHEMA = "lrt_lens.vector/1"
"""Schema version of a file; another one is refused."""
_APART = ("direction", "contrast_set")
"""Fields that a file does not store as JSON: the tensor, and the texts, of which it has a hash."""


@dataclass(frozen=True, eq=False)
class SteeringVector(ServingMethods):
    """A direction in the residual stream of one model at one hook point."""

    direction: Direction
    """Direction in the residual stream; scale 1 adds exactly this vector, [d_model]. `apply` leaves
    out the first ``skip_first`` positions, unless ``strength`` holds for ``"every"`` one: added
    everywhere, it is another intervention. An array of numpy or a list of numbers becomes a tensor.
    """
    hook: str
    """Hook point at which the vector was learnt, or to which it was transferred. The number of a
    block becomes the name of the stream after it."""
    model: ModelIdentity | None = None
    """Model that the vector belongs to; None for a direction of unknown origin. A model becomes its
    identity."""
    name: str = "vector"
    """Name in tables and figures, that of the contrast set if it was learnt from one."""
    method: str = "given"
    """How the vector was made, such as ``"mean_difference"``, ``"principal_component"``, ``"lda"``
    or ``"sum"``."""
    read: Read | Literal["given"] = "given"
    """Position of the contrast texts from which activations were read."""
    transferred_by: Literal["stitch", "concept map"] | None = None
    """Kind of map that transferred the vector to this model; None if it was learnt on the model."""
    contrast: str = ""
    """Hash of the contrast set; empty if there is none."""
    median_norm: float = float("nan")
    """Median ‖x‖ of the stream at the hook point; NaN if unknown."""
    skip_first: int = SKIP_FIRST
    """First positions of a text that are never steered, because maps are fitted without them."""
    short_texts: ShortTexts = "drop"
    """Rule that was applied to contrast texts without an unmasked token; see `mean_difference`."""
    truncation: Truncation | None = None
    """End that was cut off contrast texts longer than the context; None if none was to be cut."""
    n_dropped: int = 0
    """Number of contrast pairs (texts, if not paired) of which the mask leaves nothing."""
    n_cut: int = 0
    """Number of contrast texts that were cut to the context."""
    route: TransferRoute | None = None
    """Stitch that transferred the vector; None if none did, and in files from before this field."""
    strength: Strength | None = None
    """Calibrated scale, with its damage and positions, see `Calibration.vector`; None if unknown.
    """
    file: ServedFile | None = None
    """File of another program that the vector was read from, as it is; None for all others."""
    labels: LabelShare | None = None
    """Labelled pairs of this model that a transferred vector was combined with; None if none."""
    contrast_set: ContrastSet | None = field(default=None, repr=False)
    """Texts from which it was learnt; None for a vector from a file, which has their hash only."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "direction", float_tensor("direction", self.direction))
        set_origin(self)
        if self.direction.ndim != 1:
            raise ValueError(
                f"direction has shape {tuple(self.direction.shape)}; expected [d_model]"
            )
        if not torch.isfinite(self.direction).all():
            raise NonFiniteError(
                f"vector {self.name!r} at {self.hook!r} holds NaN or infinity; "
                "learn it again from texts with finite activations"
            )
        if not self.direction.any():
            raise ValueError(
                f"vector {self.name!r} at {self.hook!r} is zero; expected a direction: steer with "
                "scale=0 for none"
            )
        refuse_impossible_origin(self.origin)

    # ------------------------------------------------------------------------------------- learning

    @classmethod
    def mean_difference(
        cls,
        model: ModelLike,
        contrast: ContrastSet,
        *,
        at: int | str,
        read: Read = "last",
        short_texts: ShortTexts = "drop",
        truncation: Truncation | None = None,
        skip_first: int = SKIP_FIRST,
    ) -> "SteeringVector":
        """Return the mean activation of the positive texts minus that of the negative ones (CAA).

        Args:
            model: the model on which the vector is learnt.
            contrast: positive and negative texts, in pairs or not.
            at: hook point, or the number of a block for the stream after it.
            read: token of a text that is read, or how its tokens are pooled; special tokens and the
                first ``skip_first`` positions are masked.
            short_texts: what happens to pairs with a text that the mask leaves nothing of:
                ``"drop"`` leaves them out and lists them, ``"refuse"`` raises, ``"unmasked"`` reads
                them without the mask.
            truncation: end that is cut off texts longer than the context.
            skip_first: first positions of a text that are neither read nor steered; 0 for a vector
                that is served by an engine, which steers all of them.

        Raises:
            ValueError: no pair is left, a text is longer than the context, or positive and negative
                texts have the same states.
            NonFiniteError: an activation is NaN or infinite.
        """
        rules = ReadingRules(read, short_texts, truncation, skip_first)
        (states,) = read_contrast_states(load_model(model), contrast, [at], rules)
        return cls.learnt_from(states, "mean_difference")

    @classmethod
    def principal_component(
        cls,
        model: ModelLike,
        contrast: ContrastSet,
        *,
        at: int | str,
        read: Read = "last",
        short_texts: ShortTexts = "drop",
        truncation: Truncation | None = None,
        skip_first: int = SKIP_FIRST,
    ) -> "SteeringVector":
        """Return the first principal component of the differences within text pairs (RepE).

        It points towards the positive texts, and its length is their mean gap along it. The
        arguments and the errors are those of `mean_difference`; texts that are not paired are
        refused.
        """
        rules = ReadingRules(read, short_texts, truncation, skip_first)
        (states,) = read_contrast_states(load_model(model), contrast, [at], rules)
        return cls.learnt_from(states, "principal_component")

    @classmethod
    def lda(
        cls,
        model: ModelLike,
        contrast: ContrastSet,
        *,
        at: int | str,
        read: Read = "last",
        short_texts: ShortTexts = "drop",
        truncation: Truncation | None = None,
        skip_first: int = SKIP_FIRST,
    ) -> "SteeringVector":
        """Return the direction Σ⁻¹(μ₊ − μ₋) of linear discriminant analysis (Fisher 1936).

        Σ is the covariance of the states about the mean of their own side, pooled over both sides
        and shrunk by the rule of Ledoit and Wolf (scikit-learn's ``shrinkage="auto"``). Dimensions
        in which texts of one side differ widely weigh less than in the mean difference. It points
        towards the positive texts, and its length is their mean gap along it. The arguments and the
        errors are those of `mean_difference`.
        """
        rules = ReadingRules(read, short_texts, truncation, skip_first)
        (states,) = read_contrast_states(load_model(model), contrast, [at], rules)
        return cls.learnt_from(states, "lda")

    @classmethod
    def learnt_from(cls, states: ContrastStates, method: str) -> "SteeringVector":
        """Return the vector that a method learns from the states of contrast texts.

        Raises:
            ValueError: the method is unknown, or positive and negative texts have the same states.
        """
        return cls(states.direction(method), method=method, **states.fields)

    def learnt_like(self, states: ContrastStates) -> "SteeringVector":
        """Return the vector that this one's method learns from other states."""
        return SteeringVector.learnt_from(states, self.method)

    def relearnt(
        self, model: ModelLike, contrast: ContrastSet, *, at: int | str
    ) -> "SteeringVector":
        """Return a vector learnt by this one's method, read position and rule for short texts.

        Args:
            model: the model on which it is learnt.
            contrast: the texts from which it is learnt.
            at: hook point, or the number of a block for the stream after it.

        Raises:
            ValueError: this vector was not learnt from texts.
        """
        return self.relearnt_at(model, contrast, [at])[0]

    def relearnt_at(
        self, model: ModelLike, contrast: ContrastSet, hooks: Sequence[int | str]
    ) -> list["SteeringVector"]:
        """Return the vector of `relearnt` at each of several hook points; texts are read once."""
        states = self._states(load_model(model), contrast, hooks)
        return [SteeringVector.learnt_from(one, self.method) for one in states]

    def states(self, model: ModelLike, contrast: ContrastSet, *, at: int | str) -> ContrastStates:
        """Return the states of contrast texts in a model, read by the rules of this vector.

        The arguments and the errors are those of `relearnt`.
        """
        return self._states(load_model(model), contrast, [at])[0]

    def _states(
        self, model: HookedModel, contrast: ContrastSet, hooks: Sequence[int | str]
    ) -> list[ContrastStates]:
        if self.method not in METHODS or self.read == "given":
            raise ValueError(
                f"vector {self.name!r} was made by {self.method!r}; "
                f"only {sorted(METHODS)} can be learnt again from texts"
            )
        rules = ReadingRules(self.read, self.short_texts, self.truncation, self.skip_first)
        return read_contrast_states(model, contrast, hooks, rules)

    # ----------------------------------------------------------------------------------- arithmetic

    def __add__(self, other: "SteeringVector") -> "SteeringVector":
        remedy = "transfer one to the hook point of the other first"
        refuse_other_stream(self.origin, other.origin, "do not add", remedy)
        # A sum has no contrast set of its own, so it cannot be learnt again from texts.
        return replace(
            self,
            direction=self.direction + other.direction,
            name=f"{self.name} + {other.name}",
            method="sum",
            transferred_by=self.transferred_by or other.transferred_by,
            route=None,
            strength=None,
            file=None,
            labels=None,
            contrast="",
            contrast_set=None,
        )

    def __mul__(self, factor: float) -> "SteeringVector":
        contrast = self.contrast_set
        if contrast is not None and factor < 0:
            # A vector that is learnt again from these texts must point in the new direction.
            sides = (contrast.negative, contrast.positive)
            contrast = ContrastSet(*sides, contrast.name, contrast.paired)
        digest = self.contrast if contrast is None else contrast.digest
        return replace(
            self,
            direction=self.direction * factor,
            name=f"{factor:g} * {self.name}",
            strength=None,
            file=None,
            contrast=digest,
            contrast_set=contrast,
        )

    __rmul__ = __mul__

    def __neg__(self) -> "SteeringVector":
        return self * -1.0

    def __sub__(self, other: "SteeringVector") -> "SteeringVector":
        return self + -other

    def reversed(self) -> "SteeringVector":
        """Return the vector in the opposite direction, of the same name and texts."""
        return replace(self, direction=-self.direction)

    def redirected(
        self, rows: Float[Tensor, "1 d"], step: Tensor | None = None, **fields: Any
    ) -> "SteeringVector":
        """Return this vector along another one (``step``, by default the row), of its own length.

        ``fields`` are changed too, such as ``name``.
        """
        along = rows[0] if step is None else step
        # ‖v‖ · u / ‖u‖ in the precision of u; vectors are float32.
        scaled = (along / along.norm() * self.norm).float()
        return replace(self, direction=scaled, strength=None, file=None, **fields)

    def without(self, directions: Float[Tensor, "direction d_model"]) -> "SteeringVector":
        """Return the vector without its component in the span of some directions.

        The result cannot be learnt again from texts. ``directions`` are linearly independent rows
        of any length, such as ``stitch.source_statistics.principal_directions(2)``.

        Raises:
            ValueError: they have another width or depend on each other, or nothing is left.
        """
        rest, n = outside_span(self.direction, directions), len(directions)
        method = f"{self.method} without {n} direction(s)"
        return replace(self, direction=rest, method=method, strength=None, file=None)

    @property
    def origin(self) -> Origin:
        """Hook point, model and width that the vector belongs to."""
        return Origin(f"vector {self.name!r}", self.hook, self.model, len(self.direction))

    @property
    def transferred(self) -> bool:
        """True if the vector was learnt on another model and transferred to this one."""
        return self.transferred_by is not None

    @property
    def basis(self) -> Float[Tensor, "1 d_model"]:
        """Unit vector of the direction, as the only row of a basis."""
        return (self.direction / self.direction.norm())[None]

    @property
    def norm(self) -> float:
        """Euclidean length ‖direction‖."""
        return float(self.direction.norm())

    def cosine(self, other: "SteeringVector") -> float:
        """Return the cosine to another vector at the same hook point.

        Raises:
            MismatchError: the vectors belong to different hook points, models or widths.
        """
        remedy = "compare vectors at one hook point"
        refuse_other_stream(self.origin, other.origin, "are in different streams", remedy)
        return float(
            torch.nn.functional.cosine_similarity(
                self.direction.double(), other.direction.double().to(self.direction.device), dim=0
            )
        )

    def __repr__(self) -> str:
        where = f" of {self.model.name}" if self.model else ""
        share = f", {self._share} of the median residual norm" if self._share else ""
        return (
            f"SteeringVector({self.name!r} at {self.hook}{where}, {self._origin}, "
            f"norm {self.norm:.3g}{share})"
        )

    def _repr_html_(self) -> str:
        about = {
            "name": self.name,
            "hook point": self.hook,
            "model": self.model.name if self.model else None,
            "method": self._origin,
            "texts": self._texts,
            "norm": self.norm,
            "share of the median residual norm": self._share,
            "dimensions": len(self.direction),
        }
        return card("SteeringVector", facts(about))

    @property
    def _origin(self) -> str:
        """Method, read position, and whether the vector was transferred, as text."""
        return f"{self.method}, read {self.read}{', transferred' if self.transferred else ''}"

    @property
    def _texts(self) -> str | None:
        """Number of pairs that it was learnt from, and of those left out or cut."""
        contrast = self.contrast_set
        if contrast is None:
            return None
        dropped = f", {self.n_dropped} too short" if self.n_dropped else ""
        cut = f", {self.n_cut} text(s) cut to the context" if self.n_cut else ""
        sides = f"{len(contrast.positive)} positive and {len(contrast.negative)} negative texts"
        pairs = f"{len(contrast) - self.n_dropped} pairs"
        return f"{pairs if contrast.paired else sides}{dropped}{cut}"

    @property
    def _share(self) -> str | None:
        """Norm as a percentage of the median residual norm; None if that is unknown."""
        if math.isnan(self.median_norm):
            return None
        return f"{self.norm / self.median_norm:.0%}"

    # ------------------------------------------------------------------------------------- steering

    def hooks(
        self,
        *,
        scale: float | None = None,
        mode: Mode | None = None,
        positions: Positions | None = None,
        level: float | None = None,
    ) -> list[tuple[str, "SteeringHook"]]:
        """Return ``[(name, fn)]`` for ``model.hooks(fwd_hooks=...)`` of TransformerLens.

        Args:
            scale: multiple of the vector that ``"add"`` adds, negative to steer away from the
                concept; for ``"clamp"`` and ``"ablate"`` the share of the change, 0 to 1. Default:
                that of ``strength``, else 1.
            mode: ``"add"``; ``"clamp"`` sets the component along the vector to ``level``;
                ``"ablate"`` sets it to 0. Default: that of ``strength``, else ``"add"``.
            positions: ``"all"``, the ``"last"`` of every prompt, or ``"generated"`` tokens, of
                which the first ``skip_first`` are never changed; or ``"every"`` token from the
                first on. Default: those of ``strength`` if its scale is used, because that was
                calibrated there and `export` writes a file for them; else ``"all"``.
            level: component along the unit vector that ``"clamp"`` sets, see `mean_component`.

        Raises:
            ValueError: a scale outside the range of the mode, an unknown mode or positions, or a
                clamp without a level.
        """
        known = self.strength
        positions, skip = steered_positions(known, scale, mode, positions, self.skip_first)
        scale, mode, level = with_defaults(known, scale, mode, level)
        if mode not in get_args(Mode) or positions not in get_args(Positions):
            raise ValueError(
                f"mode {mode!r}, positions {positions!r}; "
                "expected add, clamp or ablate, and all, last, generated or every"
            )
        change = change_of(self.direction, scale, mode, level)
        return [(self.hook, SteeringHook(change, positions, skip))]

    def hook_at(self, scale: float, *, positions: Positions = "all") -> SteeringHook:
        """Return the hook that adds ``scale`` times the vector."""
        return self.hooks(scale=scale, mode="add", positions=positions)[0][1]

    def apply(
        self,
        model: ModelLike,
        *,
        scale: float | None = None,
        mode: Mode | None = None,
        positions: Positions | None = None,
        level: float | None = None,
    ) -> Handle:
        """Register the vector's hook on a model and return a handle.

        Use the handle as a context manager (``with vector.apply(model): ...``), or call its
        ``remove()``. The arguments are those of `hooks`. The hook acts in the thread or task that
        registers it; for others see `lrt_lens.models.HookedModel.intervene`.

        Raises:
            MismatchError: the vector belongs to another model.
            ValueError: see `hooks`.
        """
        hooked = load_model(model)
        self.refuse_other_model(hooked)
        hooks = self.hooks(scale=scale, mode=mode, positions=positions, level=level)
        return hooked.intervene(dict(hooks))

    def mean_component(self, model: ModelLike, texts: Sequence[str]) -> float:
        """Return the mean component along the unit vector, the level for ``mode="clamp"``.

        z̄ of Stitching (§4): the mean of `components` over texts.

        Raises:
            MismatchError: the vector belongs to another model.
            ValueError: no text is left.
        """
        return float(self.components(model, texts).mean())

    def components(self, model: ModelLike, texts: Sequence[str]) -> np.ndarray:
        """Return the mean component along the unit vector in each text, [text].

        The mean of ⟨h, v̂⟩ over the positions of a text without the first ones. Texts without such
        a position are left out.

        Raises:
            MismatchError: the vector belongs to another model.
            ValueError: no text is left.
        """
        hooked = load_model(model)
        self.refuse_other_model(hooked)
        unit = self.direction / self.direction.norm()
        # read="mean" averages the positions of each text without the first ones.
        skip: dict[str, Any] = {"skip_first": self.skip_first}
        kept = readable([hooked], texts, "mean", **skip)
        rows = read_activations(hooked, kept.of(text_list(texts)), self.hook, "mean", **skip)
        # float64, in which equal texts have equal components
        return (rows.double() @ unit.double()).numpy()

    def refuse_other_model(self, model: HookedModel) -> None:
        """Raise `MismatchError` unless this vector belongs to ``model``."""
        refuse_other_reader(self.origin, model.identity, "steer")

    # ---------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> Path:
        """Write the vector to one safetensors file and return its path.

        The contrast texts are not stored, only their hash.
        """
        # JSON cannot hold tensors, and texts may be private: both are left out of the metadata.
        metadata = {"schema_version": VECTOR_SCHEMA, "vector": self.stored()}
        # Whole numbers are a direction too.
        return write_tensors(Path(path), {"direction": self.direction + 0.0}, metadata)

    @classmethod
    def load(
        cls, path: str | Path, *, at: int | str | None = None, model: ModelLike = None, **hub: Any
    ) -> "SteeringVector":
        """Return the vector in a file of `save` or of another program, or in a hub repository.

        The formats of other programs are those of `lrt_lens.serving.FORMATS`; see
        `lrt_lens.serving.import_vector`. No code of a file is run.

        Args:
            path: the file or folder, or a hub id.
            at: hook point, or the number of a block for the stream after it; chooses a layer of a
                file of several, and is needed for a tensor alone.
            model: the model that the vector belongs to; its widths, blocks and weights are compared
                with what the file says.
            **hub: ``revision``, ``token``, … of `huggingface_hub.hf_hub_download`.

        Raises:
            FileFormatError: the file is of no known format, damaged, or says something that is
                not known here, such as another operation.
            MismatchError: the file is about another hook point or model.
        """
        path = Path(path)
        if at is not None or model is not None or is_served(path) or is_hub_id(path):
            return implementation("SteeringVector.load")(path, at=at, model=model, **hub)
        file = read_tensor_file(path, VECTOR_SCHEMA)
        content = json_object(file.path, file.metadata.get("vector"), "'vector'")
        fields = cls._stored_fields(path, content)
        tensors = file.checked({"direction": "d_model"})
        with as_damage(path):
            return cls(direction=tensors["direction"], **fields)

    def stored(self) -> str:
        """Return all fields but the direction and the contrast texts, as JSON."""
        fields = {key: value for key, value in asdict(self).items() if key not in _APART}
        return stored_text(SteeringVector, fields, others=_APART)

    @classmethod
    def of_fields(
        cls, path: Path, content: dict[str, Any], direction: Direction
    ) -> "SteeringVector":
        """Return a vector of a direction and the fields that `stored` returned.

        Raises:
            FileFormatError: the fields are not those of a vector; the message names ``path``.
        """
        fields = cls._stored_fields(path, content)
        with as_damage(path):
            return cls(direction=direction, **fields)

    @classmethod
    def _stored_fields(cls, path: Path, content: dict[str, Any]) -> dict[str, Any]:
        with as_damage(path):
            content = in_current_form(content)
        fields = stored_fields(path, cls, content, others=_APART)
        refuse_impossible_hook(path, fields["hook"], fields.get("model"))
        return fields
