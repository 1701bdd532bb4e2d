"""Export of steering vectors to the files of other programs.

Problem: a calibrated vector is served by a program that counts layers, positions and scales in its
own way, and that says nothing if a file means something else than its author thought. Mechanism:
the table of `lrt_lens.serving._formats` says what a program does; what it cannot express is
refused. Programs steer from the first token on, where `SteeringVector.apply` leaves out the first
positions, so a scale for them is calibrated by their rule. A record beside the file says all of it.

    export_vectors(moved, "mood.gguf", "llama.cpp", damage=0.1, model=pair.target, neutral=texts)
    # mood.gguf, mood.gguf.export.json

Limits: the record says what was written; `lrt_lens.check_export` measures what the program does.
"""

import json
import logging
import math
import numbers
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lrt_lens._files import make_folder, write_atomically
from lrt_lens._stored_fields import schema_of
from lrt_lens.adapters.vectors._calibration import Calibration, calibrate_scale
from lrt_lens.adapters.vectors._neutral_text import Neutral
from lrt_lens.adapters.vectors._steering_hook import Mode, Positions
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.adapters.vectors._strength import Strength
from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_points import RESIDUAL, place
from lrt_lens.models._hooked_model import HookedModel, load_model
from lrt_lens.models._loading import ModelLike
from lrt_lens.report._results import plain_json
from lrt_lens.serving._formats import VectorFormat, format_named, refuse_inexpressible
from lrt_lens.serving.formats._content import ServedVectors
from lrt_lens.serving.formats._record import EXPORT_SCHEMA, file_hash, record_path, write_record

logger = logging.getLogger(__name__)


def export_vectors(
    vectors: SteeringVector | Sequence[SteeringVector],
    path: str | Path,
    to: str,
    *,
    scale: float | None = None,
    damage: float | None = None,
    neutral: Neutral | None = None,
    model: ModelLike = None,
    mode: Mode | None = None,
    level: float | None = None,
) -> Path:
    """Write vectors as a file of another program, with a record beside it, and return its path.

    Args:
        vectors: one vector, or several of one model at different hook points; several at one hook
            point are a subspace, which the format ``"glp"`` can ablate.
        path: the file, or the folder for ``"transformers"``. The ending that the program expects is
            added if there is none.
        to: name of a format in `FORMATS`.
        scale: multiple of the vectors that the program adds, or the share of an ablation; by
            default that of their ``strength``, else 1.
        damage: damage in nats per token on ``neutral``, for which the scale is calibrated at the
            positions that the program steers; excludes ``scale``.
        neutral: neutral texts, see `lrt_lens.calibrate_scale`.
        model: the model of the vectors; needed for ``damage``, and for vectors that do not know it.
        mode: ``"add"``, ``"clamp"`` or ``"ablate"``; by default that of their ``strength``, else
            ``"add"``.
        level: component along the unit vector that a clamp sets; by default that of their
            ``strength``.

    Raises:
        ValueError: the format cannot express the vectors, the damage cannot be met, or arguments
            exclude each other.
        MismatchError: the vectors belong to different models, or not to ``model``.
        OSError: the file cannot be written.
    """
    row, listed = format_named(to), _listed(vectors)
    if neutral is not None and damage is None:
        raise ValueError("neutral is given without damage; the texts measure a damage: give both")
    hooked = None if model is None else load_model(model)
    plan = _Plan.of(listed, row, hooked, scale=scale, damage=damage, mode=mode, level=level)
    target = _target(Path(path), row)
    # Before a calibration, which takes long.
    refuse_inexpressible(row, plan.served(), plan.n_layers)
    if damage is not None:
        plan = plan.calibrated(hooked, neutral, damage)
    served = plan.served()
    refuse_inexpressible(row, served, plan.n_layers)
    make_folder(target.parent)
    if row.is_folder:
        row.write(served, target)
    else:
        write_atomically(target, lambda temporary: row.write(served, temporary))
        write_record(target, {**served.record, "sha256": file_hash(target)})
    if plan.own is not None and damage is None:
        # The damage of the file is not the one that the vectors remember.
        logger.warning("%s", plan.note)
    return target


@dataclass(frozen=True)
class _Plan:
    """Vectors of one model that are exported at one strength."""

    vectors: tuple[SteeringVector, ...]
    row: VectorFormat
    model: HookedModel | None
    strength: Strength
    own: Strength | None = None
    """Strength for the same damage at the positions of `SteeringVector.apply`."""
    note: str = ""
    """Sentence about positions or texts that the reader of the record must know."""

    @classmethod
    def of(
        cls,
        vectors: tuple[SteeringVector, ...],
        row: VectorFormat,
        model: HookedModel | None,
        *,
        scale: float | None,
        damage: float | None,
        mode: Mode | None,
        level: float | None,
    ) -> "_Plan":
        """Return the plan with the scale that was given, or that the vectors remember."""
        if model is not None:
            for vector in vectors:
                vector.refuse_other_model(model)
        if scale is not None and damage is not None:
            raise ValueError(
                f"scale is {scale} and damage {damage}; give one: a damage is met by a scale"
            )
        known = {vector.strength for vector in vectors}
        if len(known) > 1 and scale is None and damage is None:
            raise ValueError(
                f"the vectors have {len(known)} different strengths; give scale=, or damage= with"
                " model= and neutral="
            )
        first = vectors[0].strength
        mode = mode or (first.mode if first is not None else "add")
        level = _level(mode, level, first)
        uses_known = scale is None and damage is None and first is not None and first.mode == mode
        known_first = first if uses_known else None
        skip_first = _skip_first(vectors, known_first) if row.leaves_first else 0
        rule: Any = {"mode": mode, "level": level, "skip_first": skip_first}
        rule["positions"] = "all" if skip_first else "every"
        if known_first is not None:
            return cls._of_known(vectors, row, model, known_first, rule)
        strength = Strength(scale=1.0 if scale is None else _finite("scale", scale), **rule)
        return cls(vectors, row, model, strength)

    @classmethod
    def _of_known(
        cls,
        vectors: tuple[SteeringVector, ...],
        row: VectorFormat,
        model: HookedModel | None,
        known: Strength,
        rule: dict[str, Any],
    ) -> "_Plan":
        """Return the plan with the strength that the vectors remember."""
        if known.positions in ("last", "generated"):
            raise ValueError(
                f"the strength was calibrated for positions={known.positions!r}, which no program"
                " has alone; give scale=, or damage= with model= and neutral="
            )
        if known.hooks and set(known.hooks) != {vector.hook for vector in vectors}:
            known = known.without_damage()
        is_same = known.skip_first == rule["skip_first"]
        if is_same or known.damage != known.damage:
            known = replace(known, positions=rule["positions"], skip_first=rule["skip_first"])
            return cls(vectors, row, model, known)
        # The damage was measured at other positions, so it is not that of the program.
        strength = Strength(scale=known.scale, **rule)
        note = (
            f"the scale {known.scale:.4g} was calibrated at {known.where}, and {row.name} steers"
            f" {strength.where}: the damage is another one; give damage= with model= and neutral="
            " for a scale of its own"
        )
        return cls(vectors, row, model, strength, known, note)

    def calibrated(
        self, model: HookedModel | None, neutral: Neutral | None, damage: float
    ) -> "_Plan":
        """Return the plan with a scale that costs ``damage`` at the program's positions."""
        if model is None or neutral is None:
            raise ValueError(
                f"damage is {damage}, and model or neutral is missing; give both: the damage is"
                " measured on neutral texts"
            )
        found = self._calibration(model, neutral, damage, self.strength.positions)
        own, note = None, ""
        if self.strength.positions == "every" and any(one.skip_first for one in self.vectors):
            other = self._calibration(model, neutral, damage, "all", needed=False)
            own = other.vectors[0].strength if other.reached else None
            note = (
                f"{damage:g} nats per token take the scale {found.scale:.4g} at all positions, as"
                f" {self.row.name} steers, and {own.scale if own else float('nan'):.4g} without"
                " the first ones, as `apply` steers"
            )
        strength = found.vectors[0].strength
        return replace(self, strength=strength or self.strength, own=own, note=note)

    def _calibration(
        self,
        model: HookedModel,
        neutral: Neutral,
        damage: float,
        positions: Positions,
        *,
        needed: bool = True,
    ) -> Calibration:
        levels = None if self.strength.level is None else [self.strength.level] * len(self.vectors)
        found = calibrate_scale(
            model,
            self.vectors,
            neutral,
            damage,
            mode=self.strength.mode,
            level=levels,
            positions=positions,
        )
        if needed and not found.reached:
            raise ValueError(
                f"no scale costs {damage:g} nats per token ({found.flag}); ask for a damage that"
                " the curve reaches, see calibrate_scale(...).figure()"
            )
        return found

    @property
    def n_layers(self) -> int | None:
        """Number of blocks of the model; None if it is not known."""
        identity = self.vectors[0].model
        if self.model is not None:
            return self.model.n_layers
        return None if identity is None else identity.n_layers

    def served(self) -> ServedVectors:
        """Return what the file will say."""
        identity = self.model.identity if self.model is not None else self.vectors[0].model
        layers: dict[int, list[torch.Tensor]] = {}
        for vector in self.vectors:
            block, row = _block(vector), _as_in_file(vector)
            if self.n_layers is not None and block >= self.n_layers:
                raise ValueError(
                    f"vector {vector.name!r} is behind block {block}, and the model has"
                    f" {self.n_layers} blocks; expected one of its own"
                )
            if not torch.isfinite(row.float() * self.strength.scale).all():
                raise ValueError(
                    f"scale {self.strength.scale:g} makes vector {vector.name!r} infinite; expected"
                    " a smaller one"
                )
            layers.setdefault(block, []).append(row)
        file = self.vectors[0].file
        content = ServedVectors(
            layers={block: torch.stack(rows) for block, rows in layers.items()},
            mode=self.strength.mode,
            scale=self.strength.scale,
            level=self.strength.level,
            skip_first=self.strength.skip_first if self.row.leaves_first else 0,
            model_type=(identity.model_type if identity is not None else "")
            or (file.model_type if file is not None else ""),
            blocks=self._blocks(identity),
            facts={} if file is None else file.facts,
        )
        return replace(content, record=self._record(content, identity))

    def _blocks(self, identity: Any) -> str:
        """Return the name of the list of blocks, which some formats hold."""
        if identity is None or identity.blocks or not self.row.names_blocks:
            return "" if identity is None else identity.blocks
        raise ValueError(
            f"the format {self.row.name!r} names the blocks of a Hugging Face model, and those of"
            f" {identity.name!r} are not known; give model=, loaded by its name or folder"
        )

    def _record(self, content: ServedVectors, identity: Any) -> dict[str, Any]:
        keeps = self.row.keeps_scale or self.strength.mode != "add"
        return {
            "schema_version": EXPORT_SCHEMA,
            "lrt_lens": version("lrt-lens"),
            "format": self.row.name,
            "program": self.row.program,
            "positions": self.strength.where if self.row.leaves_first else self.row.positions,
            "layers": {str(block): self.row.key(block) for block in sorted(content.layers)},
            "scale_is": "beside the directions" if keeps else "multiplied into the directions",
            "model": None if identity is None else plain_json(asdict(identity)),
            "strength": plain_json(asdict(self.strength)),
            "strength_of_apply": None if self.own is None else plain_json(asdict(self.own)),
            "note": self.note,
            "vectors": [plain_json(json.loads(vector.stored())) for vector in self.vectors],
            "checks": [],
        }


def _listed(vectors: SteeringVector | Sequence[SteeringVector]) -> tuple[SteeringVector, ...]:
    """Return the vectors, of one model, sorted by block.

    Raises:
        ValueError: there is none, or one is at a place in the stream that no program reaches.
        MismatchError: they are of different models or widths.
    """
    listed = (vectors,) if isinstance(vectors, SteeringVector) else tuple(vectors)
    if not listed:
        raise ValueError("there is no vector; give at least one")
    for vector in listed[1:]:
        if vector.model is not None and listed[0].model is not None:
            listed[0].model.refuse_other(vector.model, f"vector {vector.name!r}", tokens=False)
        if len(vector.direction) != len(listed[0].direction):
            raise MismatchError(
                f"the vectors have widths {[len(one.direction) for one in listed]}; expected one:"
                " export those of one model"
            )
    return tuple(sorted(listed, key=_block))


def _block(vector: SteeringVector) -> int:
    """Return the number of the block behind which a vector acts."""
    match = RESIDUAL.fullmatch(place(vector.hook))
    if match is None or match[2] != "post":
        raise ValueError(
            f"vector {vector.name!r} is at {vector.hook!r}, and every program steers the stream"
            " behind a block; learn it at blocks.L.hook_resid_post, steer with vector.apply, or"
            " bake it"
        )
    return int(match[1])


def _as_in_file(vector: SteeringVector) -> torch.Tensor:
    """Return the direction in the precision of the file that it was read from."""
    dtype = "float32" if vector.file is None else vector.file.dtype
    return vector.direction.detach().cpu().to(getattr(torch, dtype))


def _level(mode: Mode, level: float | None, known: Strength | None) -> float | None:
    """Return the level of a clamp; None for the other modes."""
    if mode != "clamp":
        if level is not None:
            raise ValueError(f"level is {level} with mode {mode!r}; only a clamp has a level")
        return None
    if level is None and known is not None and known.mode == mode:
        level = known.level
    if level is None:
        raise ValueError(
            "mode 'clamp' needs level=...; vector.mean_component(model, texts) computes one"
        )
    return _finite("level", level, allow_zero=True)


def _skip_first(vectors: Sequence[SteeringVector], known: Strength | None) -> int:
    """Return the first positions that a script leaves out: those of the strength, or the vectors.

    Raises:
        ValueError: the vectors leave out different numbers of positions.
    """
    found = {one.skip_first for one in vectors} if known is None else {known.skip_first}
    if len(found) > 1:
        raise ValueError(
            f"the vectors leave out the first {sorted(found)} positions; expected one number: set"
            " skip_first of all of them with dataclasses.replace"
        )
    return found.pop()


def _finite(name: str, value: Any, *, allow_zero: bool = False) -> float:
    """Return a number as Python's own, after a check that it can be written."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or (value == 0 and not allow_zero):
        expected = "a finite number" if allow_zero else "a finite number other than 0"
        raise ValueError(f"{name} is {value!r}; expected {expected}")
    return float(value)


def _target(path: Path, row: VectorFormat) -> Path:
    """Return the path with the ending that the program expects."""
    needed = row.needed_suffixes
    if row.suffix and not path.suffix:
        path = path.with_name(path.name + row.suffix)
    if needed and path.suffix not in needed:
        raise ValueError(
            f"{str(path)!r} ends in {path.suffix!r}; {row.program} reads {' or '.join(needed)}"
        )
    is_empty = path.is_dir() and not any(path.iterdir())
    is_ours = schema_of(record_path(path)).startswith(EXPORT_SCHEMA.partition("/")[0])
    if path.exists() and not is_empty and not is_ours:
        raise FileExistsError(
            f"{str(path)!r} exists and is no earlier export; choose another path, or remove it"
        )
    return path
