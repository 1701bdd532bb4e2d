"""The grid: every hook pair fitted and scored from one set of moments, and the choice among them.

    grid = moments.fit(Ridge())
    grid.scores            # one row per hook pair; choose by *_cv columns, report the others
    grid.best(source=3)    # a Stitch
    grid.choices(source=3) # all candidates, with the intervals of their differences
    grid.compare([Ridge(), ReducedRank(), Procrustes()])  # families of maps on the same moments

Every choice (penalty, rank, layer) reads cross-validated columns only. The test fold takes part in
no fit and in no choice; the columns without ``_cv`` are test-fold scores. ``r2_null`` is the score
of the map fitted on shuffled pairs. ``r2_token`` is the score of a ridge map from the source's
embedding to the same target, that is, of token identity. Early target layers are little more than
token identity and easy to predict, so the default choice uses ``gain_cv``: of the variance that
tokens cannot explain, the fraction that the map explains, ``(r2_uniform_cv − token) / (1 −
token)``, where token is the cross-validated ``r2_uniform`` of token identity. Moments of
activations without tokens have no such gain (NaN), and the default choice uses ``r2_uniform_cv``.

The highest of many scores may be the highest by chance: `StitchGrid.choices` gives the intervals of
all candidates and says which are shown to be worse (`lrt_lens.stitching._choices`).

Limits: scores of a map say how well activations are predicted, not how well an artefact works after
its transfer; each adapter has its own evaluation.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from lrt_lens._late import implementation
from lrt_lens._repr_html import card, facts, note
from lrt_lens._short_repr import ShortRepr
from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.figures._steering import grid_figure
from lrt_lens.models._belonging import map_ends, refuse_other_map
from lrt_lens.models._hook_points import EMBED, HookPair, depth, residual_post, same_place
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._scatter import MapScore, score_map
from lrt_lens.statistics._jackknife import few_groups
from lrt_lens.stitching._affine import AffineMap, MapPair, StreamStatistics
from lrt_lens.stitching._choices import choices, count_not_worse, gain_over_token
from lrt_lens.stitching._diagnostics import moment_ends
from lrt_lens.stitching._pair_table import (
    NO_GAIN,
    choosing_column,
    heat_of_pairs,
    knows_tokens,
    name_of_best,
)
from lrt_lens.stitching._similarity import similarities
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.stitching.solvers._ridge import Ridge, RidgeFitter
from lrt_lens.stitching.solvers._solver import PairFolds, Setting, Solver

logger = logging.getLogger(__name__)

COLUMNS = (
    "source_hook",
    "target_hook",
    "solver",
    "n_tokens",
    "alpha",
    "alpha_down",
    "rank",
    "rank_down",
    "r2_cv",
    "r2_uniform_cv",
    "gain_cv",
    "r2_down_cv",
    "r2_uniform_down_cv",
    "r2",
    "r2_uniform",
    "r2_down",
    "r2_uniform_down",
    "cosine",
    "cka",
    "r2_null",
    "r2_token",
    "r2_uniform_token",
    "exact",
)
"""Columns of ``grid.scores``; ``exact`` is False for hook pairs that were only surveyed."""


@dataclass(frozen=True, repr=False)
class StitchGrid(ShortRepr):
    """Scores of every hook pair; its maps are fitted on request."""

    moments: CrossMoments
    """Cross-moments from which all scores and maps are computed."""
    solver: Solver
    """Family of maps."""
    scores: pd.DataFrame = field(repr=False)
    """One row per hook pair, with the columns ``COLUMNS``; `best` and maps need exact rows."""
    folds: dict[HookPair, PairFolds] = field(default_factory=dict, repr=False)
    """Held-out errors by fold, and selected settings, of each hook pair."""
    _stitches: dict[HookPair, Stitch] = field(default_factory=dict, init=False, repr=False)
    """Stitches that were requested so far; each is fitted once."""

    def best(
        self,
        source: str | int | None = None,
        target: str | int | None = None,
        *,
        by: str | None = None,
    ) -> Stitch:
        """Return the stitch with the highest cross-validated score.

        The maps of a stitch, its null and its refits, one per fold, are fitted on the first request
        and cached in the grid.

        Args:
            source: source hook point or layer; None for any.
            target: target hook point or layer; None for any.
            by: a ``_cv`` column of `scores`; None: ``gain_cv``, or ``r2_uniform_cv`` if token
                identity is unknown. The other columns are refused: test scores after a choice by
                them would be too high.

        Raises:
            ValueError: ``by`` is not a cross-validated column, or is a gain that is unknown.
            HookPointError: the grid has no such hook pair.
        """
        by = choosing_column(self.scores, by)
        table = self._candidates(source, target)
        row = table.loc[table[by].idxmax()]
        return self[str(row["source_hook"]), str(row["target_hook"])]

    def choices(
        self,
        source: str | int | None = None,
        target: str | int | None = None,
        *,
        by: str | None = None,
    ) -> pd.DataFrame:
        """Return the hook pairs among which `best` chooses, best first, with 95% intervals.

        ``low`` and ``high`` are intervals of each score. ``behind_low`` and ``behind_high`` are
        simultaneous intervals of the differences from the best: if all candidates are equally
        good, at most 5% of such tables call one of them ``really_worse``. `best` describes the
        arguments and errors.

        Returns:
            One row per hook pair: ``source_hook``, ``target_hook``, ``score``, ``low``, ``high``,
            ``behind``, ``behind_low``, ``behind_high``, ``really_worse`` (``behind_low`` is above
            0), ``r2_null``, ``r2_token`` and ``flag`` (why the intervals may be too short, such as
            few documents, or empty).
        """
        by, fit = choosing_column(self.scores, by), self.moments.parts.fit
        sizes = [float(self.moments.n[k]) for k in fit]
        documents = self.moments.provenance.documents_of(fit)
        table = choices(self.folds, self._candidates(source, target), by)
        return table.assign(flag=few_groups(sizes, documents, folds=len(fit)))

    def compare(
        self,
        solvers: Sequence[Solver],
        *,
        pairs: Sequence[HookPair] | None = None,
        progress: bool = False,
    ) -> Any:
        """Return a `SolverComparison` of families of maps on the same moments.

        It is ``compare_solvers(grid.moments, solvers, pairs=pairs)``, with the hook pairs of this
        grid if ``pairs`` is None.
        """
        return implementation("StitchGrid.compare")(
            self.moments, solvers, pairs=pairs or list(self.folds), progress=progress
        )

    def score(
        self, affine: AffineMap, *, direction: Literal["up", "down"] | None = None
    ) -> MapScore:
        """Return test-fold scores of any map between two hook points of these moments.

        The map may be composed, inverted or trained elsewhere.

        Args:
            affine: the map; its hook points and widths select the hook pair.
            direction: ``"up"`` or ``"down"``. If None, hook points and widths decide; a map that
                fits both directions is scored as a map up.

        Raises:
            HookPointError: the moments have no such hook pair.
            MismatchError: the moments are of other models than the map.
        """
        widths = tuple(affine.weight.shape)
        foreign: MismatchError | None = None
        # The first match decides, so up comes before down.
        for down in (False, True) if direction is None else (direction == "down",):
            for hook_pair in self.moments.kept_pairs:
                ends = moment_ends(self.moments, hook_pair, down=down)
                if not (
                    widths == (ends[0].width, ends[1].width)
                    and same_place(affine.source_hook, str(ends[0].hook))
                    and same_place(affine.target_hook, str(ends[1].hook))
                ):
                    continue
                try:
                    refuse_other_map("this map", map_ends(affine), ends)
                except MismatchError as error:
                    foreign = error
                    continue
                scatter = self.moments.scatter(hook_pair, self.moments.parts.test)
                return score_map(affine.weight, affine.bias, scatter.swapped() if down else scatter)
        if foreign is not None:
            raise foreign
        raise HookPointError(
            f"these moments hold no hook pair {affine.source_hook!r} [{widths[0]}] → "
            f"{affine.target_hook!r} [{widths[1]}]; they hold "
            f"{len(self.moments.pairs)}, such as {self.moments.pairs[0]}: give a map of one of them"
        )

    def __getitem__(self, hook_pair: tuple[str | int, str | int]) -> Stitch:
        """Return the stitch of one hook pair, given as hook points or layers.

        Raises:
            HookPointError: the hook pair was not fitted.
        """
        names = (self._name(hook_pair[0], "source_hook"), self._name(hook_pair[1], "target_hook"))
        rows = self.scores[
            (self.scores["source_hook"] == names[0]) & (self.scores["target_hook"] == names[1])
        ]
        if rows.empty:
            raise HookPointError(
                f"the pair {names} was not fitted; see grid.scores for the {len(self.scores)} that "
                "were"
            )
        self._refuse_surveyed(pd.DataFrame(rows))
        if names not in self._stitches:
            self._stitches[names] = self._stitch(names, rows.iloc[0].to_dict())
        return self._stitches[names]

    def _refuse_surveyed(self, rows: pd.DataFrame) -> None:
        """Raise HookPointError if none of some rows of ``scores`` has exact moments."""
        if not rows["exact"].to_numpy(bool).any():
            pairs = list(zip(rows["source_hook"], rows["target_hook"], strict=True))
            raise HookPointError(
                f"{pairs[0]} was only surveyed, and a map needs exact moments: harvest them with "
                f"pairs=[{pairs[0]}], or give a larger memory_budget"
            )

    def maps(self, hook_pair: HookPair) -> tuple[AffineMap, AffineMap]:
        """Return the maps (up, down) of one hook pair, without null, refits and statistics."""
        up, down = self.solver.fitters(self.moments)
        setting, setting_down = self._settings(hook_pair)
        models = (self.moments.provenance.source, self.moments.provenance.target)
        return (
            up.fit(hook_pair, setting).between(*models),
            down.fit(hook_pair, setting_down).between(*models[::-1]),
        )

    def similarities(self, **options: Any) -> pd.DataFrame:
        """Return similarities of the streams of every hook pair of this grid, with their null.

        Args:
            **options: options of `lrt_lens.stitching.similarities`.
        """
        return similarities(self.moments, list(self.folds), **options)

    def round_trips(self, hook_pair: HookPair) -> tuple[float, float]:
        """Return test-fold R² of both round trips: (up then down, down then up).

        The first predicts the source's activations from themselves, the second the target's.
        """
        up, down = self.maps(hook_pair)
        test = self.moments.scatter(hook_pair, self.moments.parts.test)
        around, back = up.compose(down), down.compose(up)
        return (
            score_map(around.weight, around.bias, test.onto_itself()).r2,
            score_map(back.weight, back.bias, test.swapped().onto_itself()).r2,
        )

    def __iter__(self) -> Iterator[HookPair]:
        """Yield the hook pairs, the keys of ``grid[source_hook, target_hook]``."""
        return zip(self.scores["source_hook"], self.scores["target_hook"], strict=True)

    def __len__(self) -> int:
        return len(self.scores)

    def figure(self, value: str | None = None, *, chosen: HookPair | None = None) -> Any:
        """Return a plotly heat map of a score over all hook pairs, next to that of its null.

        Args:
            value: column of `scores`; None: ``gain_cv``, by which `best` chooses, if it is known,
                else ``r2_uniform_cv``.
            chosen: hook pair to outline.
        """
        return grid_figure(self.scores, value=value, chosen=chosen)

    def _repr_html_(self) -> str:
        by = choosing_column(self.scores, None)
        # gain_cv is NaN if token identity explains everything.
        named = self.scores.dropna(subset=[by]).query("exact")
        best = None if named.empty else named.loc[named[by].idxmax()]
        lines = {
            "pairs": len(self),
            "surveyed only": int((~self.scores["exact"].to_numpy(bool)).sum()) or None,
            "solver": self.solver.name,
            "tokens that fitted": self.moments.n_fit,
            f"best pair ({by})": name_of_best(named, by),
        }
        if best is not None and set(self.folds) >= self._pairs_of(named):
            table = choices(self.folds, named, by)
            lines["not shown to be worse"] = f"{count_not_worse(table)} other pairs"
        if best is not None:
            names = ("r2", "r2_uniform", "r2_null", "r2_token", "r2_uniform_token")
            lines["its scores"] = ", ".join(
                f"{name} {best[name]:.2f}" for name in names if best[name] == best[name]
            )
        value = "r2_uniform_cv" if best is None else by
        legend = (
            f"{value}, by cross-validation: source hook points down, target hook points across."
        )
        if not knows_tokens(self.scores):
            legend += f" {NO_GAIN}."
        return card("StitchGrid", facts(lines), heat_of_pairs(self.scores, value), note(legend))

    @staticmethod
    def _pairs_of(table: pd.DataFrame) -> set[HookPair]:
        """Return the hook pairs of some rows of ``scores``."""
        return set(zip(table["source_hook"], table["target_hook"], strict=True))

    def _candidates(self, source: str | int | None, target: str | int | None) -> pd.DataFrame:
        table: pd.DataFrame = self.scores
        for column, hook in (("source_hook", source), ("target_hook", target)):
            if hook is not None:
                name = self._name(hook, column)
                table = table.loc[table[column] == name]
        if len(table):
            self._refuse_surveyed(table)
        table = table.loc[table["exact"].to_numpy(bool)]
        if table.empty:
            raise HookPointError(
                f"no hook pair from {source!r} to {target!r} in this grid of {len(self.scores)}; "
                "see grid.scores"
            )
        return table

    def _name(self, hook: str | int, column: str) -> str:
        """Return the name that this grid uses for a hook point or layer of one of its columns."""
        names = sorted(self.scores[column].unique(), key=depth)
        if not isinstance(hook, str):
            wanted = residual_post(hook if hook >= 0 else hook + self._n_layers(column, names))
            matches = [name for name in names if same_place(name, wanted)]
        else:
            matches = [name for name in names if same_place(name, hook)]
        if not matches:
            raise HookPointError(
                f"{hook!r} is no {column.replace('_', ' ')} of this grid; use one of {names}"
            )
        return matches[0]

    def _n_layers(self, column: str, names: Sequence[str]) -> int:
        """Return the number of layers of a model, to which negative layers are added.

        If the model is unknown, this is the depth of the deepest hook point of the grid.
        """
        provenance = self.moments.provenance
        model = provenance.source if column == "source_hook" else provenance.target
        return model.n_layers if model else math.ceil(max(map(depth, names)))

    def _further_scores_down(
        self, hook_pair: HookPair, down: AffineMap, null: AffineMap | None
    ) -> dict[str, float]:
        """Return the scores of the map down that the rows of ``scores`` have of the map up alone.

        They are those of the map up of a stitch that is fitted the other way, from the same tokens
        and shuffled pairs.
        """
        moments, row = self.moments, {}
        test = moments.scatter(hook_pair, moments.parts.test).swapped()
        row["cosine_down"] = score_map(down.weight, down.bias, test).cosine
        if null is not None:
            shuffled = moments.null_scatter(hook_pair, test=True).swapped()
            row["r2_null_down"] = score_map(null.weight, null.bias, shuffled).r2
        # Of the other direction, the target's embedding is token identity.
        token_pair = (hook_pair[0], EMBED)
        if token_pair in moments.kept_pairs:
            solver = self.solver if isinstance(self.solver, Ridge) else Ridge()
            fitter = RidgeFitter(moments, solver, down=True)
            errors = fitter.cross_validate(token_pair)
            token = fitter.fit(token_pair, errors.setting)
            known = moments.scatter(token_pair, moments.parts.test).swapped()
            score = score_map(token.weight, token.bias, known)
            row |= {"r2_token_down": score.r2, "r2_uniform_token_down": score.r2_uniform}
            held_out = self.folds[hook_pair].down.r2_uniform
            row["gain_down_cv"] = gain_over_token(held_out, errors.r2_uniform)
        return row

    def _settings(self, hook_pair: HookPair) -> tuple[Setting, Setting]:
        return self.folds[hook_pair].up.setting, self.folds[hook_pair].down.setting

    def _stitch(self, hook_pair: HookPair, row: dict[str, Any]) -> Stitch:
        moments, (up, down) = self.moments, self.solver.fitters(self.moments)
        setting, setting_down = self._settings(hook_pair)
        null = None
        # A sketched null gives a score, but no map to the whole target.
        if hook_pair in moments.cross_null and moments.null == "full":
            null = MapPair(up.fit_null(hook_pair, setting), down.fit_null(hook_pair, setting_down))
        maps = MapPair(up.fit(hook_pair, setting), down.fit(hook_pair, setting_down))
        total = moments.scatter(hook_pair, moments.parts.fit)
        # A group with one row has no variance.
        groups = [
            moments.scatter(hook_pair, (part,))
            for part in moments.parts.test
            if moments.n[part] >= 2
        ]
        # `detached` copies the sums of the groups, so that a stitch does not hold all moments.
        return Stitch(
            maps=maps,
            source_statistics=StreamStatistics(
                total.mean_x, total.xx / total.n, moments.source[hook_pair[0]].median_norm
            ),
            target_statistics=StreamStatistics(
                total.mean_y, total.yy / total.n, moments.target[hook_pair[1]].median_norm
            ),
            scores={
                key: (value if isinstance(value, str) else float(value))
                for key, value in row.items()
            }
            | self._further_scores_down(hook_pair, maps.down, null and null.down),
            provenance=moments.provenance,
            null=null,
            refits=tuple(
                MapPair(
                    up.refit_without(hook_pair, k, setting),
                    down.refit_without(hook_pair, k, setting_down),
                )
                for k in moments.parts.fit
            ),
            held_out=tuple(group.detached() for group in groups),
        )
