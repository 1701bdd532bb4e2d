"""The content of a stitch: its maps, and what is needed to judge them.

`Stitch` adds to it what a user does with a stitch. Fidelity and the stitch folder need the content
alone.
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
