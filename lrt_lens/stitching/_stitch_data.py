"""The content of a stitch: its maps and their evidence, without methods that transfer.

`Stitch` adds the methods. Fidelity and the stitch folder need only the content, and would import
`Stitch` in a circle.
"""

from dataclasses import dataclass, field
from typing import Any

from lrt_lens.models._hooked_model import SKIP_FIRST
from lrt_lens.models._identity import ModelIdentity
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
