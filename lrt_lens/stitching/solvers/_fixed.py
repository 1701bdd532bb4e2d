"""Ready maps as a solver, so that they are scored in one table with fitted ones.

Problem: some maps are not a function of these moments: they come from the models' weights, from
training on rows, or from other maps. Mechanism: `FixedMaps` has the interface of a solver and fits
nothing.

    adam = AdamFit.stitching().fit(cache)
    grid.compare([Ridge(), FixedMaps(adam.maps, "adam_stitching"), shared_embedding_maps(pair)])

Limits: the null and the refits of such a map are the map itself, so they say nothing about it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching.solvers._solver import (
    FoldErrors,
    MapFitter,
    Setting,
    Solver,
    held_out_errors,
)


@dataclass(frozen=True)
class FixedMaps(Solver):
    """Two ready maps, used for every hook pair of the same widths."""

    maps: MapPair
    label: str = "fixed"
    """Name of the solver in tables."""

    @property
    def name(self) -> str:
        """Name of the solver in tables."""
        return self.label

    def fitters(self, moments: CrossMoments) -> tuple["FixedMapsFitter", "FixedMapsFitter"]:
        """Return the fitters of both directions (up, down)."""
        return FixedMapsFitter(moments, self.maps.up, down=False), FixedMapsFitter(
            moments, self.maps.down, down=True
        )


class FixedMapsFitter(MapFitter):
    """One direction of `FixedMaps`.

    Nothing is fitted, so every refit and the null are the map itself.
    """

    def __init__(self, moments: CrossMoments, affine: AffineMap, *, down: bool) -> None:
        super().__init__(moments, down=down)
        self.affine = affine

    def cross_validate(self, hook_pair: HookPair) -> FoldErrors:
        """Return the errors of the map on each fitting fold."""
        held_out = [self.scatter(hook_pair, (k,)) for k in self.parts.fit]
        setting = Setting()
        return held_out_errors(
            held_out, [[self.solve(hook_pair, (), setting)] for _ in self.parts.fit], [setting]
        )

    # A fixed map ignores parts and setting, because nothing is fitted.
    def solve(
        self,
        hook_pair: HookPair,
        parts: Sequence[int],  # noqa: ARG002
        setting: Setting,  # noqa: ARG002
    ) -> AffineMap:
        """Return the map in float64, with the hook points of ``hook_pair``.

        Raises:
            MismatchError: the widths of the map are not those of the hook pair.
        """
        source, target = self.names(hook_pair)
        widths = tuple(self.scatter(hook_pair, self.parts.fit).xy.shape)
        if tuple(self.affine.weight.shape) != widths:
            raise MismatchError(
                f"the fixed map is {tuple(self.affine.weight.shape)}, but {source!r} → {target!r} "
                f"is {widths}; give a map with these widths"
            )
        # Scores are computed in float64, as the moments are.
        return replace(
            self.affine,
            weight=self.affine.weight.double(),
            bias=self.affine.bias.double(),
            source_hook=source,
            target_hook=target,
        )

    def fit_null(self, hook_pair: HookPair, setting: Setting) -> AffineMap:
        """Return the map itself, because it was not fitted on any pairs of rows."""
        return self.solve(hook_pair, (), setting)
