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
from pathlib import Path
from typing import Any

from lrt_lens._settings import resolve, takes
from lrt_lens.data._documents import Documents
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._checkpoint_files import SURVEY_FOLDER
from lrt_lens.moments._harvest_settings import HarvestSettings
from lrt_lens.moments._harvesting import harvest
from lrt_lens.moments._survey_plan import default_budget
from lrt_lens.stitching._fit import fit_grid
from lrt_lens.stitching._grid import StitchGrid
from lrt_lens.stitching._within_budget import checked_budget, read_twice, sizes_of, survey_within
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
            of the memory that is free where the moments may live (of the disk with
            ``placement="disk"``).
        progress: show progress bars.
        **options: fields of `HarvestSettings` as keywords; they replace those of ``settings``.

    Raises:
        HookPointError, TooFewDocumentsError, MismatchError, NonFiniteError: as `harvest` does.
        ValueError: as `harvest` does, or the budget is too small for a single hook pair.
    """
    settings = resolve(HarvestSettings, settings, options)
    budget = checked_budget(memory_budget)
    budget = default_budget(settings, pair.source.device) if budget is None else budget
    surveyed = None
    # The layers of a joint hook point are fitted together: there is nothing to choose.
    if not settings.joint and budget is not None and sizes_of(pair, settings).of_all > budget:
        first, documents = read_twice(documents)
        surveyed, chosen, sentence = survey_within(
            pair,
            first,
            settings,
            budget,
            solver=solver,
            folder=None if checkpoint is None else Path(checkpoint) / SURVEY_FOLDER,
            progress=progress,
        )
        logger.warning("%s", sentence)
        settings = replace(settings, pairs=chosen)
    moments = harvest(pair, documents, settings=settings, checkpoint=checkpoint, progress=progress)
    grid = fit_grid(moments, solver, progress=progress)
    if surveyed is None:
        return grid
    return replace(grid, scores=surveyed.joined(grid.scores))
