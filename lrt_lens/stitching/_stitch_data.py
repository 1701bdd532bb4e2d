"""Content of a stitch, and the function that every adapter registers its transfer with.

The content is the maps and the evidence for them. `Stitch` adds what a user does with a stitch;
adapters, fidelity and the stitch folder need the content alone.
"""

from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any

from lrt_lens._late import implementation, provided
from lrt_lens.models._belonging import Ends, Origin, map_ends, refuse_foreign, refuse_other_map
from lrt_lens.models._hook_points import EMBED
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.moments._provenance import Provenance
from lrt_lens.moments._scatter import Scatter
from lrt_lens.stitching._affine import AffineMap, MapPair, StreamStatistics


@dataclass(frozen=True, eq=False)
class StitchData:
    """Maps between one hook point of the source and one of the target, and their evidence."""

    maps: MapPair
    source_statistics: StreamStatistics
    target_statistics: StreamStatistics
    scores: dict[str, Any] = field(default_factory=dict)
    """Row of ``grid.scores`` of this hook pair, and where they are known the counterparts for the
    map down of ``cosine``, ``r2_null``, ``r2_token``, ``r2_uniform_token`` and ``gain_cv``, such as
    ``r2_null_down``."""
    provenance: Provenance = field(default_factory=Provenance)
    """Models, documents and settings of the harvest."""
    null: MapPair | None = None
    """Maps fitted on shuffled pairs, the control of every transfer; None if the moments do not
    allow them.
    """
    refits: tuple[MapPair, ...] = ()
    """Maps fitted without one fold each, for intervals over the map."""
    held_out: tuple[Scatter, ...] = ()
    """Scatter of each group of the test fold, from which `fidelity` is computed."""

    def __post_init__(self) -> None:
        # The maps know their models, so that they are recognised without the stitch.
        models = (self.provenance.source, self.provenance.target)
        object.__setattr__(self, "maps", self.maps.between(*models))
        object.__setattr__(self, "null", self.null and self.null.between(*models))
        object.__setattr__(self, "refits", tuple(maps.between(*models) for maps in self.refits))

    @property
    def up(self) -> AffineMap:
        """Map from the source to the target."""
        return self.maps.up

    @property
    def down(self) -> AffineMap:
        """Map from the target to the source."""
        return self.maps.down

    @property
    def source_hook(self) -> str:
        """Hook point in the source model."""
        return self.up.source_hook

    @property
    def target_hook(self) -> str:
        """Hook point in the target model."""
        return self.up.target_hook

    @property
    def skip_first(self) -> int:
        """Number of first positions of a text on which no map was fitted."""
        # Unknown for maps that were fitted on a user's own activations: the default is used.
        return SKIP_FIRST if self.provenance.skip_first is None else self.provenance.skip_first

    @property
    def source(self) -> ModelIdentity | None:
        """Identity of the source model, in which artefacts were learnt; None if unknown."""
        return self.provenance.source

    @property
    def target(self) -> ModelIdentity | None:
        """Identity of the target model, to which artefacts are transferred; None if unknown."""
        return self.provenance.target

    @property
    def start(self) -> Origin:
        """Origin of the artefacts that this stitch transfers."""
        width = len(self.up.weight)
        return Origin("this stitch", self.source_hook, self.source, width, "starts")

    @property
    def end(self) -> Origin:
        """Origin of transferred artefacts."""
        width = len(self.down.weight)
        return Origin("this stitch", self.target_hook, self.target, width, "ends")

    def ends_in(self, source: ModelIdentity, target: ModelIdentity) -> Ends:
        """Return start and end in two models, which `Stitch.check` has compared."""
        return replace(self.start, model=source), replace(self.end, model=target)

    def refuse_foreign(self, artefact: Origin) -> None:
        """Raise `MismatchError` unless an artefact belongs to this stitch's source."""
        remedy = (
            f"learn it there, or take grid.best(source={artefact.hook!r}) (to go the other way use "
            "stitch.reversed())"
        )
        refuse_foreign(artefact, self.start, remedy=remedy)

    def refuse_other_ends(
        self, source: Origin, target: Origin, *, what: str = "this stitch", remedy: str = ""
    ) -> None:
        """Raise `MismatchError` unless this stitch joins these two hook points.

        ``what`` and ``remedy`` are the subject and the end of the message.
        """
        remedy = remedy or f"give grid[{source.hook!r}, {target.hook!r}]"
        refuse_other_map(what, (self.start, self.end), (source, target), remedy=remedy)

    def refuse_other_map(self, what: str, affine: AffineMap, *, down: bool = False) -> None:
        """Raise `MismatchError` unless a map joins the same two hook points as this stitch.

        Args:
            what: subject of the message, such as ``"through="``.
            affine: the map.
            down: True for a map from the target to the source.
        """
        ends: Ends = (self.end, self.start) if down else (self.start, self.end)
        refuse_other_map(what, map_ends(affine), ends)

    def refuse_other_token_map(
        self,
        affine: AffineMap,
        source: ModelIdentity,
        target: ModelIdentity,
        *,
        to_source: bool = True,
        what: str = "token_map",
    ) -> None:
        """Raise `MismatchError` unless a map leads from a model's embedding to the other's stream.

        Args:
            affine: the map of token identity.
            source: the source model.
            target: the target model.
            to_source: True for a map from the target's embedding to the source hook point of this
                stitch, False for one from the source's embedding to its target hook point.
            what: subject of the message.
        """
        ends = self.ends_in(source, target)
        model, end = (target, ends[0]) if to_source else (source, ends[1])
        start = Origin(what, EMBED, model, model.d_model, "starts")
        harvested = "pair.reversed()" if to_source else "pair"
        remedy = f"take token_identity_map of a harvest of {harvested}"
        refuse_other_map(what, map_ends(affine), (start, end), remedy=remedy)


@singledispatch
def transfer_artefact(artefact: Any, stitch: StitchData, **options: Any) -> Any:
    """Return the artefact transferred to the stitch's target model.

    An adapter registers its class with ``@transfer_artefact.register``. The adapter of a library
    that is slow to import is not registered: `lrt_lens/__init__.py` names it, and it is imported
    for the first object of that library.

    Raises:
        TypeError: no adapter transfers this class.
    """
    # Reached only by classes that are not registered: look for an adapter by the name of the
    # class, or of the library in which it or one of its bases is defined.
    for kind in type(artefact).__mro__:
        for name in (kind.__name__, kind.__module__.partition(".")[0]):
            if provided(f"Stitch.transfer {name}"):
                return implementation(f"Stitch.transfer {name}")(artefact, stitch, **options)
    # The package's own classes register when their module is imported, which may not have happened.
    raise TypeError(
        f"a stitch cannot transfer a {type(artefact).__name__}; it transfers a SteeringVector, a "
        f"LinearProbe{_others()}, a JacobianLens, a TunedLens and an SAE of SAELens: make a "
        "direction of your own a vector, SteeringVector(direction, hook, model), and weights of "
        "your own a probe, "
        "LinearProbe(weight, bias, classes, hook, model); map states with stitch.up.points(x)"
    )


def _others() -> str:
    """Return the names of classes that users have registered, for a message."""
    names = {kind.__name__ for kind in transfer_artefact.registry if kind is not object}
    return "".join(f", a {name}" for name in sorted(names - {"SteeringVector", "LinearProbe"}))
