"""One intervention at any strength: vectors at one or several hook points that are put on together.

    step = Intervention.of(vectors, mode="clamp", levels=[2.0, 3.5])
    with step.apply(model, scale=0.7): ...

One number, the scale, turns all vectors up at once. What it multiplies depends on the mode (v̂ the
unit vector, c = ⟨h, v̂⟩):

    add      h + scale · v
    clamp    the mean component moves scale times the way from where it is (μ) to the level:
             scale ≤ 1   h + scale · (level − c) v̂              every token keeps a share 1 − scale of its own deviation
             scale > 1   h + (μ + scale · (level − μ) − c) v̂    all tokens at one component, beyond the level
    ablate   h − scale · c v̂, scale ≤ 1                         there is no more than all of it

At 1 these are CAA's and LRT's sum, Stitching's clamp (arXiv 2506.06609, §4) and directional
ablation (arXiv 2406.11717, eq. 4). Every mode begins with no intervention at 0, so that damage
begins at 0 too: had the scale multiplied the clamp's level instead, 0 would already be a full
ablation, with a damage of its own that no budget below it could reach.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lrt_lens.adapters.vectors._steering_hook import Mode, Positions, SteeringHook, setting
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.models._hook_points import depth, same_place
from lrt_lens.models._hooked_model import Handle, load_model
from lrt_lens.models._loading import ModelLike
from lrt_lens.typing import HookFunction


@dataclass(frozen=True)
class Intervention:
    """Vectors, put on together at one strength; see the module docstring."""

    vectors: tuple[SteeringVector, ...]
    """One for each hook point, the first in the forward pass first."""
    mode: Mode = "add"
    positions: Positions = "all"
    levels: tuple[float, ...] = ()
    """Component along each unit vector that a clamp of scale 1 sets."""
    means: tuple[float, ...] = ()
    """Mean component along each unit vector without intervention: where a clamp starts. Needed
    beyond scale 1.
    """

    @classmethod
    def of(
        cls,
        vectors: SteeringVector | Sequence[SteeringVector],
        *,
        mode: Mode = "add",
        positions: Positions = "all",
        levels: Sequence[float] = (),
        means: Sequence[float] = (),
    ) -> "Intervention":
        """From vectors in any order, levels and means in the same; ValueError where two share a
        hook point or a clamp lacks levels.
        """
        given = (vectors,) if isinstance(vectors, SteeringVector) else tuple(vectors)
        hooks = [vector.hook for vector in given]
        if not given or any(same_place(a, b) for i, a in enumerate(hooks) for b in hooks[:i]):
            raise ValueError(
                f"the vectors are at {hooks}; give at least one, and one for each hook point (add those that share one)"
            )
        if mode == "clamp" and len(levels) != len(given):
            raise ValueError(
                f"mode 'clamp' has {len(levels)} level(s) for {len(given)} vector(s); give one for each (vector.mean_component)"
            )
        order = sorted(range(len(given)), key=lambda i: depth(given[i].hook))
        sorted_levels, sorted_means = (
            tuple(float(some[i]) for i in order) if len(some) else () for some in (levels, means)
        )
        return cls(tuple(given[i] for i in order), mode, positions, sorted_levels, sorted_means)

    @property
    def limit(self) -> float:
        """The largest scale that means anything."""
        return 1.0 if self.mode == "ablate" else math.inf

    def hooks(self, scale: float) -> dict[str, SteeringHook]:
        """The hook of every vector by hook point, first place first; ValueError for a scale that
        the mode does not have.
        """
        if self.mode != "add" and not 0 <= scale <= self.limit:
            raise ValueError(
                f"scale is {scale}; mode {self.mode!r} goes from 0 (nothing) to {self.limit:g}"
            )
        made = {vector.hook: self._hook(i, scale) for i, vector in enumerate(self.vectors)}
        first, *others = made.values()
        first.followers = tuple(others)
        return made

    def apply(self, model: ModelLike, *, scale: float = 1.0) -> Handle:
        """Put all of it on a model: a context manager, or keep the handle and call ``remove()``."""
        hooked = load_model(model)
        for vector in self.vectors:
            vector.refuse_other_model(hooked)
        hooks: dict[int | str, HookFunction] = {**self.hooks(scale)}
        return hooked.intervene(hooks)

    def _hook(self, i: int, scale: float) -> SteeringHook:
        vector = self.vectors[i]
        if self.mode != "clamp" or scale <= 1:
            level = self.levels[i] if self.mode == "clamp" else None
            return vector.hooks(scale=scale, mode=self.mode, positions=self.positions, level=level)[
                0
            ][1]
        if not self.means:
            raise ValueError(
                f"scale is {scale}: a clamp goes beyond its level from the mean component; give means, or a further level"
            )
        level = self.means[i] + scale * (self.levels[i] - self.means[i])
        return SteeringHook(setting(vector.direction, level), self.positions, vector.skip_first)
