"""Comparison of families of maps on the same moments.

Problem: a full affine map may be no better than a rotation, a map of low rank, or a translation.
Mechanism: fit each solver on the same moments and score it on the same test fold.

    comparison = grid.compare([Mean(), Translation(), Procrustes(), ReducedRank(), Ridge(),
                               TwoWay()])
    comparison.table      # one row per solver, hook pair and direction
    comparison.figure()
    comparison.choices()  # which solvers are shown to be worse than the best, on one hook pair

Limits: scores of the test fold have no intervals here; `lrt_lens.stitching.score_intervals` gives
them per map.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, note, table
from lrt_lens._short_repr import ShortRepr
from lrt_lens.errors import HookPointError
from lrt_lens.figures._comparison import comparison_figure
from lrt_lens.figures._template import count_range, with_counts
from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.stitching._choices import behind_columns
from lrt_lens.stitching._diagnostics import map_diagnostics
from lrt_lens.stitching._fit import fit_grid
from lrt_lens.stitching._grid import StitchGrid
from lrt_lens.stitching.solvers._solver import PairFolds, Solver

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

_CHOICES = {
    "r2_cv": ("up", "r2"),
    "r2_uniform_cv": ("up", "r2_uniform"),
    "r2_down_cv": ("down", "r2"),
    "r2_uniform_down_cv": ("down", "r2_uniform"),
}
"""Direction and attribute of `FoldErrors` of each score that solvers can be chosen by."""


@dataclass(frozen=True, repr=False)
class SolverComparison(ShortRepr):
    """Held-out scores of several solvers on the same hook pairs."""

    table: pd.DataFrame = field(repr=False)
    """Tidy table with one row per solver, hook pair and direction; `COMPARISON_COLUMNS`."""

    folds: dict[tuple[str, HookPair], PairFolds] = field(default_factory=dict, repr=False)
    """Held-out errors by fold of each solver and hook pair."""

    def choices(
        self, hook_pair: HookPair | None = None, *, by: str = "r2_uniform_cv"
    ) -> pd.DataFrame:
        """Return the solvers of one hook pair, best first, with 95% intervals.

        ``low`` and ``high`` are intervals of one score each. ``behind_low`` and ``behind_high`` are
        simultaneous: if all solvers are equally good, at most 5% of such tables call one of them
        ``really_worse``.

        Args:
            hook_pair: (source hook point, target hook point); None if only one was compared.
            by: ``r2_cv``, ``r2_uniform_cv``, ``r2_down_cv`` or ``r2_uniform_down_cv``.

        Returns:
            One row per solver: ``solver``, ``score``, ``low``, ``high``, ``behind``,
            ``behind_low``, ``behind_high``, ``really_worse``.

        Raises:
            HookPointError: no or another hook pair than those compared.
            ValueError: ``by`` is not one of these columns.
        """
        pairs = list(dict.fromkeys(pair for _, pair in self.folds))
        if hook_pair is None and len(pairs) == 1:
            hook_pair = pairs[0]
        if hook_pair not in pairs:
            raise HookPointError(
                f"choices(hook_pair={hook_pair!r}), but solvers were compared on {pairs[:4]}"
                f"{' …' if len(pairs) > 4 else ''}; give one of these hook pairs"
            )
        if by not in _CHOICES:
            raise ValueError(f"choices(by={by!r}); expected one of {list(_CHOICES)}")
        side, score = _CHOICES[by]
        scored = {
            solver: (float(getattr(getattr(folds, side), score)), folds)
            for (solver, pair), folds in self.folds.items()
            if pair == hook_pair
        }
        ordered = sorted(scored, key=lambda solver: -scored[solver][0])
        columns = behind_columns(
            [scored[name][0] for name in ordered], [scored[name][1] for name in ordered], by
        )
        columns.insert(0, "solver", ordered)
        return columns

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
        hook_pairs = self.table[["source_hook", "target_hook"]].drop_duplicates()
        counts = {"hook pairs": len(hook_pairs), "fitting tokens": count_range(self.table, "n")}
        return with_counts(comparison_figure(self.table, value=value), counts)

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
    rows, folds = [], {}
    for solver in tqdm(solvers, desc="compare", disable=not progress, leave=False):
        # Maps, null and scores together; every solver works on the same moments.
        started = time.perf_counter()
        grid = fit_grid(moments, solver, pairs=pairs)
        seconds = (time.perf_counter() - started) / len(pairs)
        for row in grid.scores.to_dict("records"):
            rows += _rows(grid, row, seconds)
        folds |= {(solver.name, hook_pair): one for hook_pair, one in grid.folds.items()}
    return SolverComparison(pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS)), folds)


def _rows(grid: StitchGrid, row: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    """Return the rows (up, down) of one solver and hook pair."""
    hook_pair = (str(row["source_hook"]), str(row["target_hook"]))
    fit = grid.moments.scatter(hook_pair, grid.moments.parts.fit)
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
