"""Survey of all hook pairs of two models: their scores, from a few gigabytes and few tokens.

Problem: a choice of layers needs the scores of every hook pair, and exact moments of all of them do
not fit into memory. Mechanism: one pass over both models on 20,000 tokens harvests sketched moments
(`lrt_lens.moments._survey_moments`), and ridge maps are scored on their random columns
(`lrt_lens.stitching._sketched_ridge`). Folds, test fold, shuffled pairs and the choice by
cross-validation are those of `harvest`, so the test fold stays untouched by the choice.

    survey = lrt.survey(pair, documents)
    survey.scores                                    # one row per hook pair
    moments = lrt.harvest(pair, documents, pairs=survey.best(8))

Limits: scores of ridge maps only, which carry the error of the sketch (``sketch_error``).
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lrt_lens._byte_sizes import human_bytes
from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, facts, note
from lrt_lens._settings import resolve, takes
from lrt_lens._short_repr import ShortRepr
from lrt_lens.data._documents import Documents
from lrt_lens.figures._grid import grid_figure
from lrt_lens.models._hook_points import HookPair
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._harvest_settings import SurveySettings
from lrt_lens.moments._harvesting import harvest_survey
from lrt_lens.moments._scatter import FIT_PARTS
from lrt_lens.moments._survey_moments import SurveyMoments
from lrt_lens.statistics._intervals import LEVEL
from lrt_lens.statistics._jackknife import few_groups, reach
from lrt_lens.stitching._choices import choices, fold_sizes, gain_over_token, leave_one_out
from lrt_lens.stitching._pair_table import choosing_column, heat_of_pairs, name_of_best
from lrt_lens.stitching._sketched_ridge import SketchedRidge, SketchedScore, column_error
from lrt_lens.stitching.solvers._ridge import Ridge
from lrt_lens.stitching.solvers._solver import FoldErrors, PairFolds, Setting

SURVEY_COLUMNS = (
    "source_hook",
    "target_hook",
    "n_tokens",
    "alpha",
    "gain_cv",
    "gain_low",
    "gain_high",
    "r2_cv",
    "r2_cv_low",
    "r2_cv_high",
    "r2_uniform_cv",
    "r2_uniform_cv_low",
    "r2_uniform_cv_high",
    "sketch_error",
    "r2",
    "r2_uniform",
    "r2_null",
    "r2_token",
    "r2_uniform_token",
    "flag",
)
"""Columns of ``survey.scores``."""
DOWN_COLUMNS = ("alpha_down", "r2_down_cv", "r2_uniform_down_cv", "r2_down", "r2_uniform_down")
"""Further columns of a survey of both directions."""


@dataclass(frozen=True, repr=False)
class Survey(ShortRepr):
    """Scores of all hook pairs, from sketched moments."""

    moments: SurveyMoments = field(repr=False)
    """Sketched moments from which all scores are computed."""
    solver: Ridge
    """Ridge regression whose maps are scored."""
    scores: pd.DataFrame = field(repr=False)
    """One row per hook pair, with the columns ``SURVEY_COLUMNS``: cross-validated scores with 95%
    intervals over documents, which include the error of the random columns; scores of the test
    fold; the null; and token identity. ``sketch_error`` is the standard error of ``gain_cv``
    because of the columns (of ``r2_uniform_cv`` without an embedding).
    """
    folds: dict[HookPair, PairFolds] = field(default_factory=dict, repr=False)
    """Held-out errors of each hook pair by fold."""

    @property
    def table(self) -> pd.DataFrame:
        """Scores by the name that evaluations have for their table."""
        return self.scores

    def best(self, n: int = 1, *, by: str | None = None) -> list[HookPair]:
        """Return the ``n`` hook pairs with the highest cross-validated score ``by``, best first.

        It is ``gain_cv`` if ``by`` is None, and ``r2_uniform_cv`` if token identity is unknown.

        Raises:
            ValueError: ``by`` is not a cross-validated column, or ``n`` is below 1.
        """
        if n < 1:
            raise ValueError(f"n is {n}; expected the number of hook pairs, at least 1")
        best = self._ordered(by).head(n)
        return list(zip(best["source_hook"], best["target_hook"], strict=True))

    def choices(self, *, by: str | None = None) -> pd.DataFrame:
        """Return all hook pairs, best first, with simultaneous intervals of their distance to it.

        The columns are those of `StitchGrid.choices`. The intervals are over documents; the error
        of the random columns, which all pairs of a target share, is in ``scores`` only.

        Raises:
            ValueError: ``by`` is not a cross-validated column.
        """
        by = choosing_column(self.scores, by)
        table = choices(self.folds, self._ordered(by), by)
        return table.assign(flag=_flag_of(self.moments))

    def figure(self, value: str | None = None, *, chosen: HookPair | None = None) -> Any:
        """Return a plotly heat map of a score over all hook pairs, next to that of its null."""
        return grid_figure(self.scores, value=value, chosen=chosen)

    def joined(self, exact: pd.DataFrame) -> pd.DataFrame:
        """Return scores of exact moments, and those of the survey for all other hook pairs.

        Args:
            exact: rows of ``grid.scores``, with the column ``exact``.
        """
        keys = ["source_hook", "target_hook"]
        rows = exact.set_index(keys, drop=False)
        others = self.scores.assign(solver=f"{self.solver.name}, surveyed", exact=False)
        others = others.set_index(keys, drop=False).drop(rows.index)
        whole = pd.concat([rows, others.reindex(columns=exact.columns)])
        return whole.loc[list(self.moments.pairs)].reset_index(drop=True)

    def merge(self, other: "Survey") -> "Survey":
        """Return the survey of the rows of both, such as of two shards of one run.

        Raises:
            MismatchError: they are not parts of one survey; the message names what differs.
        """
        return score_survey(self.moments.merge(other.moments), self.solver)

    def save(self, path: str | Path) -> Path:
        """Write the sketched moments as one safetensors file and return its path."""
        return self.moments.save(path)

    @classmethod
    def load(cls, path: str | Path, solver: Ridge | None = None) -> "Survey":
        """Return the survey that `save` wrote, with its scores computed again.

        Raises:
            FileFormatError: the file is truncated, of another kind or of another schema.
        """
        return score_survey(SurveyMoments.load(path), solver)

    def __len__(self) -> int:
        return len(self.scores)

    def _ordered(self, by: str | None) -> pd.DataFrame:
        by = choosing_column(self.scores, by)
        return self.scores.sort_values(by, ascending=False, kind="stable")

    def _repr_html_(self) -> str:
        moments, by = self.moments, choosing_column(self.scores, None)
        lines = {
            "pairs": len(self),
            "tokens": f"{moments.n_tokens:,}, of which {moments.n_fit:,} fit",
            "documents": moments.provenance.n_documents or None,
            "random columns": moments.sketch.columns,
            "size of the sums": human_bytes(moments.n_bytes),
            f"best pair ({by})": name_of_best(self.scores, by),
            "flag": _flag_of(moments) or None,
        }
        legend = f"{by}, by cross-validation: source hook points down, target hook points across."
        return card("Survey", facts(lines), heat_of_pairs(self.scores, by), note(legend))


@takes(SurveySettings)
def survey(
    pair: ModelPair,
    documents: Documents,
    *,
    solver: Ridge | None = None,
    settings: SurveySettings | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 120.0,
    progress: bool = True,
    **options: Any,
) -> Survey:
    """Return scores of all hook pairs of two models, from sketched moments of one short pass.

    Args:
        pair: source model and target model.
        documents: texts, chats, a file, a table or a data set, as for `harvest`.
        solver: ridge regression; its penalty is chosen by cross-validation if None.
        settings: a `SurveySettings`, whose fields are described there.
        checkpoint: folder for checkpoints, from which an interrupted survey resumes.
        checkpoint_every: seconds between two checkpoints.
        progress: show progress bars.
        **options: fields of `SurveySettings` as keywords; they replace those of ``settings``.

    Raises:
        HookPointError, TooFewDocumentsError, MismatchError, NonFiniteError: as `harvest` does.
        ValueError: a setting is out of range, or the sums need more memory than is free.
    """
    settings = resolve(SurveySettings, settings, options)
    moments = harvest_survey(
        pair,
        documents,
        settings,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
    )
    return score_survey(moments, solver, progress=progress)


def score_survey(
    moments: SurveyMoments, solver: Ridge | None = None, *, progress: bool = False
) -> Survey:
    """Return the scores of all hook pairs of sketched moments; needs no model.

    Raises:
        TooFewDocumentsError: a fold has no documents.
    """
    solver = solver or Ridge()
    moments.warn_of_heavy_rows()
    up: dict[HookPair, SketchedScore] = {}
    down: dict[HookPair, SketchedScore] = {}
    directions = moments.sketch.directions
    n_pairs = sum(len(moments.pairs_of(direction)) for direction in directions)
    with tqdm(total=n_pairs, desc="score", disable=not progress, leave=False) as bar:
        for direction in directions:
            scorer = SketchedRidge(moments, solver, direction)
            # Pairs with one predictor follow each other, so that they share its spectra.
            for predictor, outcome in sorted(moments.pairs_of(direction)):
                scored = scorer.score((predictor, outcome))
                if direction == "up":
                    up[predictor, outcome] = scored
                else:
                    down[outcome, predictor] = scored
                bar.update()
    folds, rows = {}, []
    for pair in moments.pairs:
        token = None if moments.token_hook is None else up[moments.token_hook, pair[1]]
        of_down = down.get(pair)
        folds[pair] = PairFolds(
            up[pair].folds,
            of_down.folds if of_down else _unknown(up[pair].folds),
            token and token.folds,
        )
        rows.append(_row(moments, pair, up[pair], token, folds[pair]) | _down_row(of_down))
    columns = [*SURVEY_COLUMNS, *(DOWN_COLUMNS if moments.sketch.down else ())]
    scores = pd.DataFrame(rows, columns=columns).assign(flag=_flag_of(moments))
    return Survey(moments, solver, scores, folds)


def _unknown(like: FoldErrors) -> FoldErrors:
    """Return errors of a direction that was not surveyed: all NaN."""
    nothing = like.errors * math.nan
    return FoldErrors(Setting(alpha=math.nan), nothing, like.variances)


def _row(
    moments: SurveyMoments,
    pair: HookPair,
    scored: SketchedScore,
    token: SketchedScore | None,
    folds: PairFolds,
) -> dict[str, Any]:
    """Return the columns of one hook pair."""
    of_token = token.folds.r2_uniform if token else None
    row = {
        "source_hook": pair[0],
        "target_hook": pair[1],
        "n_tokens": moments.n_fit,
        "alpha": scored.folds.setting.alpha,
        "gain_cv": gain_over_token(scored.folds.r2_uniform, of_token),
        "r2_cv": scored.folds.r2,
        "r2_uniform_cv": scored.folds.r2_uniform,
        "r2": scored.test[0],
        "r2_uniform": scored.test[1],
        "r2_null": math.nan if scored.null is None else scored.null,
        "sketch_error": _gain_noise(scored, token),
    }
    if token is not None:
        row |= {"r2_token": token.test[0], "r2_uniform_token": token.test[1]}
    noise = {"r2_cv": scored.noise[0], "r2_uniform_cv": scored.noise[1]}
    for column, error in (*noise.items(), ("gain_cv", row["sketch_error"])):
        low, high = _interval(row[column], folds, column, error)
        name = column if column != "gain_cv" else "gain"
        row |= {f"{name}_low": low, f"{name}_high": high}
    return row


def _down_row(scored: SketchedScore | None) -> dict[str, Any]:
    if scored is None:
        return {}
    values = (scored.folds.setting.alpha, scored.folds.r2, scored.folds.r2_uniform, *scored.test)
    return dict(zip(DOWN_COLUMNS, values, strict=True))


def _gain_noise(scored: SketchedScore, token: SketchedScore | None) -> float:
    """Return the standard error of the gain because of the columns, which both scores share."""
    error = 1 - scored.folds.r2_uniform
    if token is None:
        return scored.noise[1]
    of_token = 1 - token.folds.r2_uniform
    if of_token <= 0:
        return math.nan
    # gain = 1 − e/τ, so that d gain = −(de − (e/τ)·dτ)/τ
    rest = scored.residuals[1] - error / of_token * token.residuals[1]
    return column_error(rest) / of_token


def _interval(value: float, folds: PairFolds, by: str, sketch_error: float) -> tuple[float, float]:
    """Return the 95% interval of a cross-validated score, over documents and random columns."""
    from scipy.stats import norm

    without = np.array(leave_one_out(folds, by))
    over_documents = float(reach(value, without, fold_sizes(folds, by)))
    half = math.hypot(over_documents, float(norm.ppf((1 + LEVEL) / 2)) * sketch_error)
    return value - half, value + half


def _flag_of(moments: SurveyMoments) -> str:
    """Return why the intervals may be too short; empty if no reason is known."""
    sizes = [float(moments.n[k]) for k in FIT_PARTS]
    documents = moments.provenance.documents_of(FIT_PARTS)
    return few_groups(sizes, documents, folds=len(FIT_PARTS))
