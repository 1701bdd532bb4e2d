"""Comparison of families of maps on the same moments.

Problem: a full affine map may be no better than a rotation, a map of low rank, or a translation.
Mechanism: fit each solver on the same moments and score it on the same test fold.

    comparison = grid.compare([Mean(), Translation(), Procrustes(), ReducedRank(), Ridge(),
                               TwoWay()])
    comparison.table      # one row per solver, hook pair and direction
    comparison.figure()

Limits: scores have no intervals here; `lrt_lens.stitching.score_intervals` gives them per map.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, note, table
from lrt_lens.figures._comparison import comparison_figure
from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._cross_moments import FIT_PARTS, CrossMoments
from lrt_lens.stitching._diagnostics import map_diagnostics
from lrt_lens.stitching._fit import fit_grid
from lrt_lens.stitching._grid import StitchGrid
from lrt_lens.stitching.solvers._solver import Solver

COMPARISON_COLUMNS = (
    "solver",
    "source_hook",
    "target_hook",
    "direction",
    "alpha",
    "rank",
    "r2_cv",
    "r2_uniform_cv",
    "r2",
    "r2_uniform",
    "fvu",
    "round_trip_r2",
    "cosine",
    "effective_rank",
    "condition",
    "n",
    "interpolates",
    "r2_null",
    "r2_token",
    "seconds",
)
"""Columns of `SolverComparison.table`.

``round_trip_r2`` is R² of the map followed by the map back, on the stream where the map starts.
``fvu`` is 1 − r2. ``effective_rank``, ``condition`` and ``interpolates`` are diagnostics of the map
(`lrt_lens.stitching._diagnostics`). ``cosine``, ``r2_null`` and ``r2_token`` exist for the
direction up only. ``seconds`` is the mean time per hook pair.
"""


@dataclass(frozen=True)
class SolverComparison:
    """Held-out scores of several solvers on the same hook pairs."""

    table: pd.DataFrame = field(repr=False)
    """Tidy table with one row per solver, hook pair and direction; `COMPARISON_COLUMNS`."""

    @property
    def summary(self) -> pd.DataFrame:
        """Test scores of both directions as means over hook pairs, one row per solver."""
        scores = self.table.pivot_table(
            index="solver",
            columns="direction",
            values=["r2", "r2_uniform", "round_trip_r2"],
            aggfunc="mean",
        )
        # The columns of a pivot table are tuples (score, direction).
        scores.columns = [f"{name}_{direction}" for name, direction in scores.columns]
        return scores.sort_values("r2_up", ascending=False).reset_index()

    def figure(self, value: str = "r2_uniform") -> Any:
        """Return a plotly figure of test scores by solver and direction, with null and token."""
        return comparison_figure(self.table, value=value)

    def _repr_html_(self) -> str:
        return card(
            "SolverComparison",
            note("Test-fold scores, means over pairs of hook points."),
            table(self.summary),
        )


def compare_solvers(
    moments: CrossMoments,
    solvers: Sequence[Solver],
    *,
    pairs: Sequence[HookPair],
    progress: bool = False,
) -> SolverComparison:
    """Return the scores of each solver on each hook pair.

    Args:
        moments: cross-moments of both models.
        solvers: families of maps, with different names.
        pairs: hook pairs to fit.
        progress: show a progress bar.

    Raises:
        ValueError: no solver, or two solvers of one name.
        HookPointError: the moments hold no cross-moments of a hook pair.
    """
    if not solvers:
        raise ValueError(
            "no solver given; compare needs at least one, such as [Ridge(), Procrustes()]"
        )
    names = [solver.name for solver in solvers]
    if len(set(names)) < len(names):
        raise ValueError(
            f"solvers of equal name are not distinct in a table: {names}; give each name once"
        )
    rows = []
    for solver in tqdm(solvers, desc="compare", disable=not progress, leave=False):
        # Maps, null and scores together; every solver works on the same moments.
        started = time.perf_counter()
        grid = fit_grid(moments, solver, pairs=pairs)
        seconds = (time.perf_counter() - started) / len(pairs)
        for row in grid.scores.to_dict("records"):
            rows += _rows(grid, row, seconds)
    return SolverComparison(pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS)))


def _rows(grid: StitchGrid, row: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    """Return the rows (up, down) of one solver and hook pair."""
    hook_pair = (str(row["source_hook"]), str(row["target_hook"]))
    fit = grid.moments.scatter(hook_pair, FIT_PARTS)
    rows = []
    ways = zip(
        ("up", "down"),
        ("", "_down"),
        grid.maps(hook_pair),
        (fit, fit.swapped()),
        grid.round_trips(hook_pair),
        strict=True,
    )
    for direction, suffix, affine, scatter, trip in ways:
        about = map_diagnostics(affine, scatter)
        rows.append(
            {
                "solver": row["solver"],
                "source_hook": hook_pair[0],
                "target_hook": hook_pair[1],
                "direction": direction,
                "alpha": row[f"alpha{suffix}"],
                "rank": row[f"rank{suffix}"],
                "r2_cv": row[f"r2{suffix}_cv"],
                "r2_uniform_cv": row[f"r2_uniform{suffix}_cv"],
                "r2": row[f"r2{suffix}"],
                "r2_uniform": row[f"r2_uniform{suffix}"],
                "fvu": 1 - row[f"r2{suffix}"],
                "round_trip_r2": trip,
                "effective_rank": about.effective_rank,
                "condition": about.condition,
                "n": about.n,
                "interpolates": about.interpolates,
                "seconds": seconds,
            }
        )
    # These scores exist for the direction up only.
    rows[0] |= {name: row[name] for name in ("cosine", "r2_null", "r2_token")}
    return rows
