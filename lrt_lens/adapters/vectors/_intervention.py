"""An intervention of any strength: vectors at one or several hook points that act together.

    step = Intervention.of(vectors, mode="clamp", levels=[2.0, 3.5])
    with step.apply(model, scale=0.7):
        model.generate("This film was")

One number, the scale, sets the strength of all vectors. Its meaning depends on the mode (v̂ is the
unit vector, c = ⟨h, v̂⟩ the component along it, μ the mean component without intervention):

    add     h + scale · v
    clamp   scale ≤ 1:  h + scale · (level − c) v̂             (1 − scale) of (c − level) remains
            scale > 1:  h + (μ + scale · (level − μ) − c) v̂   all tokens at one component,
                                                              farther from μ than the level
    ablate  h − scale · c v̂, scale ≤ 1                        at 1 nothing is left to remove

At scale 1 these are the sum of CAA and LRT, the clamp of Stitching (arXiv 2506.06609, §4) and
directional ablation (arXiv 2406.11717, eq. 4). At scale 0 every mode changes nothing, so that
damage begins at 0. If the scale multiplied the level of a clamp instead, scale 0 would be a full
ablation, and no smaller damage could be reached.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lrt_lens.adapters.vectors._steering_hook import Mode, Positions, SteeringHook, setting
from lrt_lens.adapters.vectors._steers import Steers
from lrt_lens.models._hook_points import depth, same_place
from lrt_lens.models._hooked_model import Handle, load_model
from lrt_lens.models._loading import ModelLike
from lrt_lens.typing import HookFunction


@dataclass(frozen=True)
class Intervention:
    """Vectors at one or several hook points that share mode, positions and scale.

    Use `Intervention.of`, which sorts and checks the vectors.
    """

    vectors: tuple[Any, ...]
    """One vector or subspace (`Steers`) per hook point, in the order of the forward pass."""
    mode: Mode = "add"
    """Change of the component along each vector: ``"add"``, ``"clamp"`` or ``"ablate"``."""
    positions: Positions = "all"
    """Steered positions, see `SteeringVector.hooks`."""
    levels: tuple[float, ...] = ()
    """Component along each unit vector that a clamp of scale 1 sets."""
    means: tuple[float, ...] = ()
    """Mean component along each unit vector without intervention; needed for a clamp beyond 1."""

    @classmethod
    def of(
        cls,
        vectors: Steers | Sequence[Steers],
        *,
        mode: Mode = "add",
        positions: Positions = "all",
        levels: Sequence[float] = (),
        means: Sequence[float] = (),
    ) -> "Intervention":
        """Return the intervention of vectors in any order; levels and means have the same order.

        Raises:
            ValueError: no vector, two vectors at one hook point, a clamp without a level for
                each vector, or of a subspace of more than one direction.
        """
        unsorted = tuple(vectors) if isinstance(vectors, Sequence) else (vectors,)
        hooks = [vector.hook for vector in unsorted]
        # Hooks at one hook point would act one after the other, and a clamp would undo the others.
        if not unsorted or any(same_place(a, b) for i, a in enumerate(hooks) for b in hooks[:i]):
            raise ValueError(
                f"the vectors are at {hooks}; give at least one, and one for each hook point "
                "(add up those at the same hook point)"
            )
        if mode == "clamp" and len(levels) != len(unsorted):
            raise ValueError(
                f"mode 'clamp' has {len(levels)} level(s) for {len(unsorted)} vector(s); "
                "give one for each (vector.mean_component)"
            )
        ranks = [len(one.basis) for one in unsorted]
        if mode == "clamp" and max(ranks) > 1:
            raise ValueError(
                f"mode 'clamp' with a subspace of rank {max(ranks)}, which has one level per row of"
                " its basis; clamp it with subspace.apply(model, mode='clamp', level=[…])"
            )
        # Damage is measured by resuming passes at the first hook point, so it must come first.
        order = sorted(range(len(unsorted)), key=lambda i: depth(hooks[i]))
        sorted_levels, sorted_means = (
            tuple(float(values[i]) for i in order) if len(values) else ()
            for values in (levels, means)
        )
        return cls(tuple(unsorted[i] for i in order), mode, positions, sorted_levels, sorted_means)

    @property
    def limit(self) -> float:
        """Largest scale of the mode, which is 1 for ``"ablate"``, infinity for the others."""
        return 1.0 if self.mode == "ablate" else math.inf

    @property
    def skip_first(self) -> int:
        """Number of first positions of a text that no vector changes."""
        return 0 if self.positions == "every" else min(one.skip_first for one in self.vectors)

    def hooks(self, scale: float) -> dict[str, SteeringHook]:
        """Return the hook of each vector by hook point, in the order of the forward pass.

        Raises:
            ValueError: a scale outside the range of the mode.
        """
        if self.mode != "add" and not 0 <= scale <= self.limit:
            raise ValueError(
                f"scale is {scale}; mode {self.mode!r} takes 0 (no change) to {self.limit:g}"
            )
        hooks = {vector.hook: self._hook(i, scale) for i, vector in enumerate(self.vectors)}
        # `TokenBatches` restarts the first hook only, which passes the lengths of prompts on.
        first, *followers = hooks.values()
        first.followers = tuple(followers)
        return hooks

    def apply(self, model: ModelLike, *, scale: float = 1.0) -> Handle:
        """Register all hooks on a model and return a handle.

        Use the handle as a context manager, or call its ``remove()``. The hooks act in the thread
        or task that registers them; for others see `lrt_lens.models.HookedModel.intervene`.

        Raises:
            MismatchError: a vector belongs to another model.
            ValueError: a scale outside the range of the mode.
        """
        hooked = load_model(model)
        for vector in self.vectors:
            vector.refuse_other_model(hooked)
        hooks: dict[int | str, HookFunction] = {**self.hooks(scale)}
        return hooked.intervene(hooks)

    def _hook(self, i: int, scale: float) -> SteeringHook:
        vector = self.vectors[i]
        # Up to scale 1, a vector's own hook goes a share of the way: h + scale · (level − c) v̂
        if self.mode != "clamp" or scale <= 1:
            level = self.levels[i] if self.mode == "clamp" else None
            [(_, hook)] = vector.hooks(
                scale=scale, mode=self.mode, positions=self.positions, level=level
            )
            return hook
        if not self.means:
            raise ValueError(
                f"scale is {scale}; a clamp beyond scale 1 starts at the mean component: "
                "give means=..., or a level farther away and a scale of at most 1"
            )
        # Beyond the level: h + (μ + scale · (level − μ) − c) v̂
        level = self.means[i] + scale * (self.levels[i] - self.means[i])
        return SteeringHook(setting(vector.direction, level), self.positions, vector.skip_first)
