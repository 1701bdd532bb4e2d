"""Steering vectors: learnt from contrast sets, carried by a stitch, added to a residual stream.

    vector = SteeringVector.mean_difference(pair.source, contrast, at="blocks.3.hook_resid_post",
    read="last")
    moved = stitch.transfer(vector)                       # norm="match", bias="none"
    with moved.apply(pair.target, scale=1.5):
        pair.target.generate("This film was")

Scale 1 is the contrast's own mean gap in the model where the vector was learnt. A direction is a
difference, so the stitch's bias is not added to it by default (Stitching, §4); ``bias="add"`` is
the rule of LRT (§3, ṽ = Av + p). L-Cross has no bias in its map at all: fit one without and take
``bias="none"``. ``norm="match"`` gives the vector as many standard deviations of the target's
stream along its direction as it had in the source: ``‖u‖ = ‖v‖·σ_target(û)/σ_source(v̂)``.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lrt_lens._files import read_tensors, write_tensors
from lrt_lens._repr_html import card, facts
from lrt_lens.adapters.vectors._steering_hook import Mode, Positions, SteeringHook, adding, setting
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.errors import FileFormatError, MismatchError, NonFiniteError
from lrt_lens.models._hook_points import resolve, same_place
from lrt_lens.models._hooked_model import SKIP_FIRST, Handle, HookedModel, load_model
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._reading import Read, read_activations
from lrt_lens.stitching._stitch import Stitch, transfer_artefact
from lrt_lens.typing import Direction

VECTOR_SCHEMA = "lrt_lens.vector/1"


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction at one hook point of one model."""

    direction: Direction
    """[d_model]; scale 1 adds exactly this."""
    hook: str
    """Where it was learnt, or where it was carried to."""
    model: ModelIdentity | None = None
    """The model it belongs to; None for a direction of unknown origin."""
    name: str = "vector"
    method: str = "given"
    """How it was learnt: ``"mean_difference"``, ``"principal_component"``, ``"sum"``, ``"given"``."""
    read: Read | Literal["given"] = "given"
    """Read position of the contrast texts."""
    transferred_by: Literal["stitch", "concept map"] | None = None
    """What transferred it to this model; None for a vector that was learnt on it."""
    contrast: str = ""
    """Hash of the contrast set."""
    median_norm: float = float("nan")
    """Median ‖residual‖ at the hook point, for a sense of size; NaN where unknown."""
    skip_first: int = SKIP_FIRST
    """First positions of a text that are never steered: the map never saw them."""
    contrast_set: ContrastSet | None = field(default=None, repr=False)
    """The texts it was learnt from, as long as it lives in memory (files keep only their hash)."""

    def __post_init__(self) -> None:
        if self.direction.ndim != 1:
            raise ValueError(
                f"direction has shape {tuple(self.direction.shape)}; expected [d_model]"
            )
        if not torch.isfinite(self.direction).all():
            raise NonFiniteError(
                f"vector {self.name!r} at {self.hook!r} holds NaN or infinity; learn it again from texts with finite activations"
            )

    # ------------------------------------------------------------------------------------- learning

    @classmethod
    def mean_difference(
        cls, model: ModelLike, contrast: ContrastSet, *, at: int | str, read: Read = "last"
    ) -> "SteeringVector":
        """Mean activation of the positive texts minus that of the negative ones (CAA)."""
        hooked = load_model(model)
        hook = resolve(at, hooked)
        positive, negative = read_activations(hooked, contrast.texts, hook, read).split(
            len(contrast)
        )
        return cls._learnt(
            (positive - negative).mean(0),
            torch.cat([positive, negative]),
            hooked,
            contrast,
            hook,
            read,
            "mean_difference",
        )

    @classmethod
    def principal_component(
        cls, model: ModelLike, contrast: ContrastSet, *, at: int | str, read: Read = "last"
    ) -> "SteeringVector":
        """First principal component of the pair differences (RepE), pointing to the positive texts,
        as long as their mean gap along it.
        """
        hooked = load_model(model)
        hook = resolve(at, hooked)
        positive, negative = read_activations(hooked, contrast.texts, hook, read).split(
            len(contrast)
        )
        difference = (positive - negative).double()
        # Uncentred on purpose: the shared part of the differences is the concept, centring would
        # remove it.
        component = torch.linalg.svd(difference, full_matrices=False).Vh[0]
        gap = float(difference.mean(0) @ component)
        return cls._learnt(
            (gap * component).float(),
            torch.cat([positive, negative]),
            hooked,
            contrast,
            hook,
            read,
            "principal_component",
        )

    def relearnt(
        self, model: ModelLike, contrast: ContrastSet, *, at: int | str
    ) -> "SteeringVector":
        """A vector by this one's recipe (method and read position) on another model, hook point or
        contrast set.
        """
        recipes = {
            "mean_difference": SteeringVector.mean_difference,
            "principal_component": SteeringVector.principal_component,
        }
        if self.method not in recipes or self.read == "given":
            raise ValueError(
                f"vector {self.name!r} was made by {self.method!r}; "
                f"only {sorted(recipes)} can be learnt again from texts"
            )
        return recipes[self.method](model, contrast, at=at, read=self.read)

    @classmethod
    def _learnt(
        cls,
        direction: Tensor,
        seen: Tensor,
        model: HookedModel,
        contrast: ContrastSet,
        hook: str,
        read: Read,
        method: str,
    ) -> "SteeringVector":
        return cls(
            direction=direction,
            hook=hook,
            model=model.identity,
            name=contrast.name,
            method=method,
            read=read,
            contrast=contrast.digest,
            median_norm=float(seen.norm(dim=1).median()),
            contrast_set=contrast,
        )

    # ----------------------------------------------------------------------------------- arithmetic

    def __add__(self, other: "SteeringVector") -> "SteeringVector":
        if not same_place(self.hook, other.hook):
            raise MismatchError(
                f"vectors at {self.hook!r} and {other.hook!r} do not add; carry one to the other's hook point first"
            )
        if self.model is not None and other.model is not None:
            self.model.refuse_other(other.model, "the other vector's model")
        return replace(
            self,
            direction=self.direction + other.direction,
            name=f"{self.name} + {other.name}",
            method="sum",
            contrast="",
            contrast_set=None,
        )

    def __mul__(self, factor: float) -> "SteeringVector":
        contrast = self.contrast_set
        if contrast is not None and factor < 0:
            # What is learnt again from its texts must point the same way.
            contrast = ContrastSet(contrast.negative, contrast.positive, name=contrast.name)
        digest = self.contrast if contrast is None else contrast.digest
        return replace(
            self,
            direction=self.direction * factor,
            name=f"{factor:g} * {self.name}",
            contrast=digest,
            contrast_set=contrast,
        )

    __rmul__ = __mul__

    def __neg__(self) -> "SteeringVector":
        return self * -1.0

    def __sub__(self, other: "SteeringVector") -> "SteeringVector":
        return self + -other

    @property
    def transferred(self) -> bool:
        """Whether the vector was learnt on another model."""
        return self.transferred_by is not None

    @property
    def norm(self) -> float:
        """‖direction‖."""
        return float(self.direction.norm())

    def cosine(self, other: "SteeringVector") -> float:
        """Cosine to another vector at the same hook point."""
        if not same_place(self.hook, other.hook):
            raise MismatchError(
                f"vectors at {self.hook!r} and {other.hook!r} are in different streams; compare at one hook point"
            )
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
            "texts": f"{len(self.contrast_set)} pairs" if self.contrast_set is not None else None,
            "norm": self.norm,
            "share of the median residual norm": self._share,
            "dimensions": len(self.direction),
        }
        return card("SteeringVector", facts(about))

    @property
    def _origin(self) -> str:
        """How it was learnt, where it was read, whether it was transferred."""
        return f"{self.method}, read {self.read}{', transferred' if self.transferred else ''}"

    @property
    def _share(self) -> str | None:
        """The norm as a share of the median residual norm; None if that is unknown."""
        if math.isnan(self.median_norm):
            return None
        return f"{self.norm / self.median_norm:.0%}"

    # ------------------------------------------------------------------------------------- steering

    def hooks(
        self,
        *,
        scale: float = 1.0,
        mode: Mode = "add",
        positions: Positions = "all",
        level: float | None = None,
    ) -> list[tuple[str, "SteeringHook"]]:
        """``[(name, fn)]`` for plain ``model.hooks(fwd_hooks=...)`` of TransformerLens.

        Args:
            scale: multiples of the vector that ``"add"`` adds; negative steers away. ``"clamp"``
                and ``"ablate"`` go this share of the way, 0 to 1. ValueError for NaN.
            mode: ``"add"``; ``"clamp"`` sets the component along the vector to ``level``;
                ``"ablate"`` to 0.
            positions: ``"all"``, the ``"last"`` of every prompt, or ``"generated"`` tokens; the
                first ``skip_first`` stay as they are.
            level: component along the unit vector under ``"clamp"``; see `mean_component`.
        """
        if not torch.isfinite(torch.tensor(float(scale))):
            raise ValueError(
                f"scale is {scale}; expected a finite number (calibrate_scale finds one)"
            )
        if mode not in ("add", "clamp", "ablate") or positions not in ("all", "last", "generated"):
            raise ValueError(
                f"mode {mode!r}, positions {positions!r}; expected add, clamp or ablate, and all, last or generated"
            )
        if mode != "add" and not (0 <= scale <= 1 and self.norm > 0):
            raise ValueError(
                f"mode {mode!r} goes a share of the way, scale 0 to 1 (given: {scale}), along a vector that is not zero (norm {self.norm:.3g})"
            )
        if mode == "clamp" and level is None:
            raise ValueError(
                "mode 'clamp' needs level=...; vector.mean_component(model, texts) recomputes it in the model that is steered"
            )
        change = {
            "add": adding(self.direction * scale),
            "clamp": setting(self.direction, level or 0.0, scale),
            "ablate": setting(self.direction, 0.0, scale),
        }[mode]
        return [(self.hook, SteeringHook(change, positions, self.skip_first))]

    def hook_at(self, scale: float, *, positions: Positions = "all") -> SteeringHook:
        """The hook that adds the vector at one strength."""
        return self.hooks(scale=scale, positions=positions)[0][1]

    def apply(
        self,
        model: ModelLike,
        *,
        scale: float = 1.0,
        mode: Mode = "add",
        positions: Positions = "all",
        level: float | None = None,
    ) -> Handle:
        """Put the vector on a model: ``with vector.apply(model): ...``, or keep the handle.

        Returns:
            A handle; its ``remove()`` takes the vector off.

        Raises:
            MismatchError: the vector belongs to another model.
            ValueError: as `hooks`.
        """
        hooked = load_model(model)
        self.refuse_other_model(hooked)
        hooks = self.hooks(scale=scale, mode=mode, positions=positions, level=level)
        return hooked.intervene(dict(hooks))

    def mean_component(self, model: ModelLike, texts: Sequence[str]) -> float:
        """Mean component along the unit vector over the unmasked tokens of ``texts``: the level for
        ``mode="clamp"`` (Stitching §4).
        """
        hooked = load_model(model)
        unit = self.direction / self.direction.norm()
        return float(
            (read_activations(hooked, texts, self.hook, "mean") @ unit.to(torch.float32)).mean()
        )

    def refuse_other_model(self, model: HookedModel) -> None:
        """Raise `MismatchError` unless this vector belongs to ``model``."""
        if self.model is not None:
            # A direction belongs to weights and basis; how texts become tokens does not matter to
            # it.
            self.model.refuse_other(model.identity, "the model to steer", tokens=False)
        elif model.d_model != len(self.direction):
            raise MismatchError(
                f"the vector has {len(self.direction)} dimensions, {model.name!r} has {model.d_model}; transfer it with a stitch first"
            )

    # ---------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file."""
        fields = {
            key: value
            for key, value in asdict(self).items()
            if key not in ("direction", "contrast_set")
        }
        return write_tensors(
            Path(path),
            {"direction": self.direction},
            {"schema_version": VECTOR_SCHEMA, "vector": json.dumps(fields)},
        )

    @classmethod
    def load(cls, path: str | Path) -> "SteeringVector":
        """Read what `save` wrote; FileFormatError for anything else."""
        tensors, metadata = read_tensors(Path(path), VECTOR_SCHEMA)
        fields: dict[str, Any] = json.loads(metadata["vector"])
        if "direction" not in tensors:
            raise FileFormatError(
                f"{str(path)!r} holds no 'direction'; it is no steering vector of ours"
            )
        fields["model"] = ModelIdentity(**fields["model"]) if fields["model"] else None
        return cls(direction=tensors["direction"], **_of_earlier_form(fields))


def _of_earlier_form(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a vector file, those of the earlier form translated.

    Files before version 0.1 wrote ``"mean_difference, transferred"`` as the method, and positions
    as text.
    """
    if "transferred_by" in fields:
        return fields
    method, _, way = str(fields["method"]).partition(", ")
    read = str(fields["read"])
    transferred_by = {"transferred": "stitch", "concept map": "concept map"}.get(way)
    return fields | {
        "method": method,
        "read": int(read) if read.lstrip("-").isdigit() else read,
        "transferred_by": transferred_by,
    }


@transfer_artefact.register
def transfer_vector(
    vector: SteeringVector,
    stitch: Stitch,
    *,
    bias: Literal["none", "add"] = "none",
    norm: Literal["match", "mapped", "unit"] = "match",
    through: Any = None,
) -> SteeringVector:
    """A steering vector carried to the stitch's target.

    Args:
        vector: learnt at the stitch's source hook.
        stitch: see `Stitch`.
        bias: ``"none"`` maps the direction (v W); ``"add"`` is LRT's rule (v W + b).
        norm: ``"match"`` keeps the number of standard deviations; ``"mapped"`` takes the mapped
            length; ``"unit"`` gives length 1.
        through: another `AffineMap` between the same hook points (a shuffled-pair map, a refit),
            for controls.
    """
    stitch.refuse_foreign(vector.hook, vector.model)
    if bias not in ("none", "add") or norm not in ("match", "mapped", "unit"):
        raise ValueError(
            f"bias {bias!r}, norm {norm!r}; expected none or add, and match, mapped or unit"
        )
    affine = through if through is not None else stitch.up
    direction = vector.direction.double()
    mapped = affine.points(direction) if bias == "add" else affine.directions(direction)
    length = mapped.norm()
    if not length > 0:
        raise ValueError(
            f"the map sends vector {vector.name!r} to zero; its direction carries nothing that the target's stream shows"
        )
    if norm == "unit":
        mapped = mapped / length
    elif norm == "match":
        deviations = vector.norm / max(stitch.source_statistics.deviation(direction), 1e-30)
        mapped = mapped / length * deviations * stitch.target_statistics.deviation(mapped)
    return replace(
        vector,
        direction=mapped.float(),
        hook=stitch.target_hook,
        model=stitch.target,
        median_norm=stitch.target_statistics.median_norm,
        transferred_by="stitch",
    )
