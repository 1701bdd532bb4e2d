"""Result of `choose_layers`: one row per hook pair, with predictions of how well it serves.

choice = choose_layers(pair, grid, contrast)
choice.table            # best first
choice.best             # (source hook point, target hook point)
choice.stitch           # its Stitch
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from lrt_lens._repr_html import card, facts, note, table
from lrt_lens.errors import HookPointError
from lrt_lens.figures._layer_choice import layer_choice_figure
from lrt_lens.models._hook_points import HookPair
from lrt_lens.stitching._grid import StitchGrid
from lrt_lens.stitching._pair_table import heat_of_pairs
from lrt_lens.stitching._stitch import Stitch

LAYER_COLUMNS = (
    "source_hook",
    "target_hook",
    "predicted",
    "fidelity",
    "fidelity_low",
    "fidelity_high",
    "fidelity_of",
    "rho_read",
    "rho_write",
    "rho_random",
    "gain_cv",
    "auroc",
    "auroc_low",
    "auroc_high",
    "n_texts",
    "d_prime",
    "split_half",
    "norm_share",
    "native_auroc",
    "agreement",
    "transferred_auroc",
    "native_effect",
    "flag",
)
"""Columns of `LayerChoice.table`."""
_SHOWN = ("source_hook", "target_hook", "predicted", "fidelity", "gain_cv", "auroc", "flag")
"""Columns of the table in a notebook."""


@dataclass(frozen=True, eq=False)
class LayerChoice:
    """Hook pairs of two models, ordered by how well an artefact is predicted to serve there."""

    table: pd.DataFrame = field(repr=False)
    """One row per hook pair, best first.

    - ``source_hook``, ``target_hook``;
    - ``predicted``: what the rows are ordered by; ``rule`` says what it is;
    - ``fidelity`` with its 95% interval, and ``fidelity_of``: ``"direction"`` if it is the
      cross-validated fidelity of this artefact, ``"mean direction"`` if only √R² of the map is
      known (surveyed hook pairs), which is not compared with the former;
    - ``rho_read``, ``rho_write``, and ``rho_random``: the same as ``fidelity`` for random
      directions, its control;
    - ``gain_cv``: what `grid.best` chooses by (NaN if token identity is unknown);
    - ``auroc`` with its 95% interval, ``n_texts``, ``d_prime``, ``split_half``, ``norm_share``: how
      well the artefact reads held-out texts on the source, the number of these texts, the cosine
      of the directions of two halves of the texts, and the length of a vector relative to the
      median state;
    - ``native_auroc``, ``agreement``: the same reading of an artefact learnt on the target, and the
      cosine of the transferred direction to it (NaN without ``target=True``);
    - ``transferred_auroc``: AUROC of the transferred probe on the target's states of held-out texts
      (probes with ``target=True`` only);
    - ``native_effect``: effect of the target's own vector at equal damage (NaN without ``items``);
    - ``flag``: why a row has no prediction or its interval may be too short, or empty.
    """
    role: Literal["vector", "probe"]
    """Kind of artefact that the layers were chosen for."""
    rule: str
    """Meaning of ``predicted``, in words."""
    grid: StitchGrid | None = field(default=None, repr=False)
    """The grid that was given; None if it was a survey."""

    @property
    def best(self) -> HookPair:
        """Source and target hook point with the highest prediction."""
        row = self.table.iloc[0]
        return str(row["source_hook"]), str(row["target_hook"])

    @property
    def stitch(self) -> Stitch:
        """Stitch of the best hook pair.

        Raises:
            HookPointError: the layers were chosen from a survey, which has no maps.
        """
        if self.grid is None:
            raise HookPointError(
                f"{self.best} was chosen from a survey, and a map needs exact moments: harvest"
                " them with lrt.harvest(pair, documents, pairs=[choice.best])"
            )
        return self.grid[self.best]

    def figure(self, value: str = "predicted") -> Any:
        """Return a plotly heat map of a column over hook pairs, with the source's reading."""
        return layer_choice_figure(self.table, value=value, chosen=self.best, rule=self.rule)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        row = self.table.iloc[0]
        return (
            f"LayerChoice({self.role}, {len(self)} hook pairs; best {self.best[0]} → "
            f"{self.best[1]}, predicted {row['predicted']:.3f})"
        )

    def _repr_html_(self) -> str:
        lines = {"artefact": self.role, "best pair": " → ".join(self.best), "predicted": self.rule}
        return card(
            "LayerChoice",
            facts(lines),
            heat_of_pairs(self.table, "predicted"),
            table(self.table.filter(items=_SHOWN), max_rows=5),
            note("predicted: source hook points down, target hook points across."),
        )
