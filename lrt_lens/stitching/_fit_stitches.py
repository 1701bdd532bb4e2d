"""Harvest and fit of all layer pairs of two models, within a memory budget.

Problem: exact moments of every hook pair are the wrong currency for choosing layers of large
models: they take a terabyte for a pair of 2 and 9 billion parameters. Mechanism: if they fit the
budget, they are harvested; if not, all hook pairs are surveyed, and exact moments are harvested of
the best ones only.

    grid = fit_stitches(pair, documents)                          # a quarter of the free memory
    grid = fit_stitches(pair, documents, memory_budget="8GB")
    grid.scores["exact"]                                          # False: surveyed only

Limits: both models run twice over the first documents if a survey is needed.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from lrt_lens._byte_sizes import human_bytes
from lrt_lens._settings import resolve, takes
from lrt_lens.data._documents import Documents
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._checkpoint import SURVEY_FOLDER
from lrt_lens.moments._harvest_settings import HarvestSettings
from lrt_lens.moments._harvesting import harvest, settle
from lrt_lens.stitching._fit import fit_grid
from lrt_lens.stitching._grid import COLUMNS, StitchGrid
from lrt_lens.stitching._survey import Survey, survey
from lrt_lens.stitching._within_budget import (
    checked_budget,
    chosen_once,
    default_budget,
    read_twice,
    sizes_of,
    survey_settings,
)
from lrt_lens.stitching.solvers._ridge import Ridge
from lrt_lens.stitching.solvers._solver import Solver

logger = logging.getLogger(__name__)


@takes(HarvestSettings)
def fit_stitches(
    pair: ModelPair,
    documents: Documents,
    *,
    solver: Solver | None = None,
    settings: HarvestSettings | None = None,
    checkpoint: str | Path | None = None,
    memory_budget: int | str | None = None,
    progress: bool = True,
    **options: Any,
) -> StitchGrid:
    """Return the `StitchGrid` of every layer pair, from both models' states on ``documents``.

    This is `harvest` followed by `fit_grid`. If the exact moments of all hook pairs do not fit the
    memory budget, all are surveyed first (`lrt_lens.survey`, 20,000 tokens), and exact moments are
    harvested of the best ones only; the column ``exact`` of ``grid.scores`` says which.

    Args:
        pair: source model and target model.
        documents: texts, chats, a file or a dataset, as for `harvest`.
        solver: family of maps; `Ridge` if None.
        settings: a `HarvestSettings`, whose fields are described there.
        checkpoint: folder for checkpoints, from which an interrupted harvest resumes.
        memory_budget: bytes that the moments may take, or a text such as ``"8GB"``; None: a quarter
            of the memory that is free.
        progress: show progress bars.
        **options: fields of `HarvestSettings` as keywords; they replace those of ``settings``.

    Raises:
        HookPointError, TooFewDocumentsError, MismatchError, NonFiniteError: as `harvest` does.
        ValueError: as `harvest` does, or the budget is too small for a single hook pair.
    """
    settings = resolve(HarvestSettings, settings, options)
    budget = checked_budget(memory_budget)
    budget = default_budget(pair) if budget is None else budget
    sizes, n_bytes = sizes_of(pair, settings)
    surveyed = None
    # The layers of a joint hook point are fitted together: there is nothing to choose.
    if budget is not None and n_bytes > budget and not settings.joint:
        # Before the survey, so that a budget that is too small is refused at once.
        sizes.affordable(settle(pair, settings=settings).pairs, budget)
        first, documents = read_twice(documents)
        folder = None if checkpoint is None else Path(checkpoint) / SURVEY_FOLDER
        surveyed = survey(
            pair,
            first,
            solver=solver if isinstance(solver, Ridge) else None,
            settings=survey_settings(pair, settings, budget),
            checkpoint=folder,
            progress=progress,
        )
        best = surveyed.best(len(surveyed))
        chosen = chosen_once(folder, best, partial(sizes.affordable, best, budget))
        logger.warning(
            "exact moments of all %d hook pairs take %s, more than the budget of %s: all were "
            "surveyed on %s tokens, and the best %d are harvested exactly (%s); give "
            "memory_budget= to change this",
            len(surveyed),
            human_bytes(n_bytes),
            human_bytes(budget),
            f"{surveyed.moments.n_tokens:,}",
            len(chosen),
            human_bytes(sizes.of(chosen)),
        )
        settings = replace(settings, pairs=chosen)
    moments = harvest(pair, documents, settings=settings, checkpoint=checkpoint, progress=progress)
    grid = fit_grid(moments, solver, progress=progress)
    return grid if surveyed is None else _with_surveyed(grid, surveyed)


def _with_surveyed(grid: StitchGrid, surveyed: Survey) -> StitchGrid:
    """Return a grid whose scores also have the hook pairs that were only surveyed."""
    exact = grid.scores.set_index(["source_hook", "target_hook"], drop=False)
    others = surveyed.scores.assign(solver=f"{surveyed.solver.name}, surveyed", exact=False)
    others = others.set_index(["source_hook", "target_hook"], drop=False).drop(exact.index)
    rows = pd.concat([exact, others.reindex(columns=list(COLUMNS))])
    return replace(grid, scores=rows.loc[list(surveyed.moments.pairs)].reset_index(drop=True))
