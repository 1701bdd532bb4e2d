"""Content of a stitch, and the function that every adapter registers its transfer with.

The content is the maps and the evidence for them. `Stitch` adds what a user does with a stitch;
adapters, fidelity and the stitch folder need the content alone.
"""

from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

from lrt_lens._late import implementation, provided
from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_points import same_place
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
    """Row of ``grid.scores`` of this hook pair."""
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

    def refuse_foreign(self, hook: str, model: ModelIdentity | None) -> None:
        """Raise `MismatchError` unless an artefact belongs to this stitch's source.

        Args:
            hook: hook point at which the artefact was learnt.
            model: model on which it was learnt; None if unknown, which is accepted.
        """
        if not same_place(hook, self.source_hook):
            raise MismatchError(
                f"learnt at {hook!r}, but this stitch starts at {self.source_hook!r}; "
                f"learn it there, or take grid.best(source={hook!r}) (to go the other way use "
                "stitch.reversed())"
            )
        if model is not None and self.source is not None:
            self.source.refuse_other(model, "what is to be transferred was learnt on a model that")


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
    # library in which the class, or one of its bases, is defined.
    for kind in type(artefact).__mro__:
        method = f"Stitch.transfer {kind.__module__.partition('.')[0]}"
        if provided(method):
            return implementation(method)(artefact, stitch, **options)
    registered = {kind.__name__ for kind in transfer_artefact.registry if kind is not object}
    # The package's own classes register when their module is imported, which may not have happened.
    known = sorted(registered | {"LinearProbe", "SteeringVector"})
    raise TypeError(
        f"a stitch cannot transfer a {type(artefact).__name__}; "
        f"it transfers {[*known, 'SAELens SAE']}"
    )
