"""Content of a stitch, and the function that every adapter registers its transfer with.

The content is the maps and the evidence for them. `Stitch` adds what a user does with a stitch;
adapters, fidelity and the stitch folder need the content alone.
"""

from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

from lrt_lens._late import implementation, provided
from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_names import same_place
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
    """This pair's row of ``grid.scores``."""
    provenance: Provenance = field(default_factory=Provenance)
    null: MapPair | None = None
    """The same fit on shuffled pairs: the control of everything that is transferred."""
    refits: tuple[MapPair, ...] = ()
    """Fits that leave one fold out each, for intervals over the map."""
    held_out: tuple[Scatter, ...] = ()
    """Scatter of each group of the test fold: what `fidelity` is measured on."""

    @property
    def up(self) -> AffineMap:
        """Source → target."""
        return self.maps.up

    @property
    def down(self) -> AffineMap:
        """Target → source."""
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
        """First positions of a text that the maps never saw."""
        return SKIP_FIRST if self.provenance.skip_first is None else self.provenance.skip_first

    @property
    def source(self) -> ModelIdentity | None:
        """The model that artefacts come from."""
        return self.provenance.source

    @property
    def target(self) -> ModelIdentity | None:
        """The model that artefacts go to."""
        return self.provenance.target

    def refuse_foreign(self, hook: str, model: ModelIdentity | None) -> None:
        """Raise `MismatchError` unless an artefact belongs to this stitch's source.

        ``hook`` and ``model`` say where it was learnt.
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
    """Return the artefact in the stitch's target model.

    An adapter registers its class with ``@transfer_artefact.register``. The adapter of a library
    that is slow to import is not registered: `lrt_lens/__init__.py` names it, and it is imported
    when the first object of that library arrives.

    Raises:
        TypeError: no adapter knows this class.
    """
    for kind in type(artefact).__mro__:
        method = f"Stitch.transfer {kind.__module__.partition('.')[0]}"
        if provided(method):
            return implementation(method)(artefact, stitch, **options)
    registered = {kind.__name__ for kind in transfer_artefact.registry if kind is not object}
    # The package's own classes register when their module is first imported.
    known = sorted(registered | {"LinearProbe", "SteeringVector"})
    raise TypeError(
        f"a stitch cannot transfer a {type(artefact).__name__}; "
        f"it transfers {[*known, 'SAELens SAE']}"
    )
