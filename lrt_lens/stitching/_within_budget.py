"""Choice of the hook pairs whose exact moments fit a memory budget.

Problem: exact moments of all hook pairs of two large models take a terabyte. Mechanism: if they do
not fit, all hook pairs are surveyed, and exact moments are harvested of the best ones only.

    whole = sizes_of(pair, settings)
    chosen = whole.sizes.affordable(survey.best(len(survey)), budget)

Limits: the budget is for moments; weights and the rows of one block come on top (`plan_harvest`).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any

from lrt_lens._byte_sizes import human_bytes, parse_bytes
from lrt_lens._files import write_atomically
from lrt_lens._numbers import shown_number
from lrt_lens._stored_fields import read_json_file, stored_value
from lrt_lens.data._documents import Documents, DocumentSource
from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_points import HookPair
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._checkpoint_files import CHOSEN_NAME
from lrt_lens.moments._harvest_settings import HarvestSettings, SurveySettings
from lrt_lens.moments._harvesting import settle
from lrt_lens.moments._placement import most_free, refuse_unfit_folder
from lrt_lens.moments._plan import ModelShape
from lrt_lens.moments._survey_plan import MomentSizes, SurveyPlan, narrowed, survey_settings
from lrt_lens.stitching._survey import Survey, survey
from lrt_lens.stitching.solvers._ridge import Ridge
from lrt_lens.stitching.solvers._solver import Solver

_CHOSEN_SCHEMA = "lrt_lens.chosen/1"


def checked_budget(memory_budget: int | str | None) -> int | None:
    """Return a memory budget in bytes; None if there is none.

    Raises:
        ValueError: it is no positive amount of memory.
    """
    if isinstance(memory_budget, str):
        return parse_bytes(memory_budget)
    if memory_budget is not None and (isinstance(memory_budget, bool) or memory_budget < 1):
        raise ValueError(
            f"memory_budget is {shown_number(memory_budget)}; expected bytes, or a text like '8GB'"
        )
    return None if memory_budget is None else int(memory_budget)


@dataclass(frozen=True)
class PairSizes:
    """Bytes of the exact moments of hook pairs of two models."""

    pairs: tuple[HookPair, ...]
    """All hook pairs of the settings."""
    sizes: MomentSizes

    @property
    def of_all(self) -> int:
        """Bytes of the exact moments of all hook pairs."""
        return self.sizes.of(self.pairs)


def sizes_of(pair: ModelPair, settings: HarvestSettings) -> PairSizes:
    """Return the bytes of the exact moments of all hook pairs of the settings, or of some."""
    run = settle(pair, settings=settings)
    widths = (pair.source.d_model, pair.target.d_model)
    return PairSizes(run.pairs, MomentSizes(run.token_hook, settings.null, *widths, settings.parts))


def survey_that_fits(pair: ModelPair, settings: HarvestSettings, budget: int) -> SurveySettings:
    """Return the settings of a survey whose sums fit a budget, for the same hook pairs and text.

    The predicting streams are whole if they fit, else seen through fewer and fewer columns.
    """
    run = settle(pair, settings=survey_settings(settings))
    source, target = map(ModelShape.of_model, (pair.source, pair.target))
    itemsize = run.moment_dtype.itemsize
    plan = SurveyPlan(
        source, target, run.pairs, survey_settings(settings), run.token_hook, itemsize
    )
    return narrowed(plan, budget).settings


def survey_within(
    pair: ModelPair,
    documents: Documents,
    settings: HarvestSettings,
    budget: int,
    *,
    solver: Solver | None = None,
    folder: Path | None = None,
    progress: bool = True,
) -> tuple[Survey, list[HookPair], str]:
    """Return a survey, the best hook pairs whose exact moments fit, and a sentence that says so.

    Args:
        pair: source model and target model.
        documents: documents, of which the first are read.
        settings: settings of the harvest that follows.
        budget: bytes that moments may take.
        solver: family of maps; another one than ridge regression is surveyed as ridge regression.
        folder: folder for the checkpoints of the survey; None: none are written.
        progress: show progress bars.

    Raises:
        ValueError: the budget is too small for a single hook pair.
    """
    refuse_unfit_folder(settings.placement, settings.placement_folder)
    free = most_free(settings.placement, pair.source.device, settings.placement_folder)
    # A budget above what is free would be refused after the survey.
    budget = budget if free is None else min(budget, free)
    whole = sizes_of(pair, settings)
    sizes = whole.sizes
    # Before the survey, so that a budget that is too small is refused at once.
    sizes.affordable(whole.pairs, budget)
    surveyed = survey(
        pair,
        documents,
        solver=solver if isinstance(solver, Ridge) else None,
        settings=survey_that_fits(pair, settings, budget),
        checkpoint=folder,
        progress=progress,
    )
    best = surveyed.best(len(surveyed))
    chosen = chosen_once(folder, best, partial(sizes.affordable, best, budget))
    sentence = (
        f"exact moments of all {len(surveyed)} hook pairs take {human_bytes(whole.of_all)}, and "
        f"the budget is {human_bytes(budget)}: all were surveyed on {surveyed.moments.n_tokens:,} "
        f"tokens, and the best {len(chosen)} are harvested exactly "
        f"({human_bytes(sizes.of(chosen))}); give memory_budget= to change this"
    )
    return surveyed, chosen, sentence


def read_twice(documents: Any) -> tuple[Any, Any]:
    """Return two sources of the same documents; of an iterator, what one has read is kept."""
    source = DocumentSource.of(documents)
    copies = [
        tee(value) if hasattr(value, "__next__") else (value, value)
        for value in (source.documents, source.group)
    ]
    if source.documents is copies[0][0] and source.group is copies[1][0]:
        return documents, documents
    first, second = zip(*copies, strict=True)
    return (
        DocumentSource(first[0], source.text_field, first[1]),
        DocumentSource(second[0], source.text_field, second[1]),
    )


def chosen_once(
    folder: Path | None, surveyed: Sequence[HookPair], choose: Callable[[], list[HookPair]]
) -> list[HookPair]:
    """Return the hook pairs that ``choose`` chooses, or those that an interrupted run chose.

    Free memory differs between two starts, and a harvest resumes with its own hook pairs only.

    Args:
        folder: folder of the survey's checkpoints; None: nothing is kept.
        surveyed: hook pairs among which one chooses.
        choose: function that returns some of them.

    Raises:
        FileFormatError: the stored choice is damaged.
        MismatchError: it has other hook pairs than were surveyed.
    """
    if folder is None:
        return choose()
    path = folder / CHOSEN_NAME
    if not path.exists():
        chosen = choose()
        content = {"schema_version": _CHOSEN_SCHEMA, "pairs": chosen}
        write_atomically(path, lambda new: new.write_text(json.dumps(content), encoding="utf-8"))
        return chosen
    stored = read_json_file(path, _CHOSEN_SCHEMA)
    text = json.dumps(stored.get("pairs"))
    chosen = list(stored_value(path, tuple[tuple[str, str], ...], text, "'pairs'"))
    if not chosen or not set(chosen) <= set(surveyed):
        raise MismatchError(
            f"{str(path)!r} chose {chosen[:2]}, which are not among the {len(surveyed)} hook pairs "
            "of this survey; give the same layers, another checkpoint folder, or "
            "remove_checkpoints(folder) to begin again"
        )
    return chosen
