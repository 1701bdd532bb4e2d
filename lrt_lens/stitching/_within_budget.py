"""Choice of the hook pairs whose exact moments fit a memory budget.

Problem: exact moments of all hook pairs of two large models take a terabyte. Mechanism: if they do
not fit, all hook pairs are surveyed, and exact moments are harvested of the best ones only.

    wanted = needs_survey(pair, settings, memory_budget="8GB")    # the budget in bytes, or None
    chosen = affordable(survey.best(len(survey)), shape, budget)

Limits: the budget is for moments; weights and the rows of one block come on top (`plan_harvest`).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import tee
from pathlib import Path
from typing import Any

from lrt_lens._byte_sizes import human_bytes, parse_bytes
from lrt_lens._files import write_atomically
from lrt_lens._numbers import shown_number
from lrt_lens._stored_fields import read_json_file, stored_value
from lrt_lens.data._documents import DocumentSource
from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_points import HookPair
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._checkpoint import CHOSEN_NAME
from lrt_lens.moments._harvest_settings import HarvestSettings, SurveySettings
from lrt_lens.moments._harvesting import settle
from lrt_lens.moments._plan import available_memory, moment_bytes, null_kind
from lrt_lens.moments._survey_sums import survey_bytes

SHARE_OF_FREE_MEMORY = 0.25
"""Share of the free memory that is the budget by default."""
_CHOSEN_SCHEMA = "lrt_lens.chosen/1"
_NARROWER = (None, 1024, 512, 256, 128)
"""Values of ``source_columns`` that are tried until the sums of a survey fit."""


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
class MomentSizes:
    """Everything that decides the bytes of the moments of some hook pairs."""

    token_hook: str | None
    null: Any
    d_source: int
    d_target: int

    def of(self, pairs: Sequence[HookPair]) -> int:
        """Return the bytes of the exact moments of hook pairs."""
        kind = null_kind(self.null, pairs, self.d_source, self.d_target)
        n_bytes = moment_bytes(pairs, self.token_hook, kind, self.d_source, self.d_target)
        return sum(n_bytes.values())

    def affordable(self, ordered: Sequence[HookPair], budget: int) -> list[HookPair]:
        """Return the first of these hook pairs, best first, whose exact moments fit a budget.

        Raises:
            ValueError: the moments of the best hook pair alone need more.
        """
        least = self.of(ordered[:1])
        if least > budget:
            raise ValueError(
                f"memory_budget is {human_bytes(budget)}, and the exact moments of one hook pair, "
                f"{ordered[0][0]!r} → {ordered[0][1]!r}, take {human_bytes(least)}: give at least "
                "that, or null='none'; lrt.survey scores all pairs without them"
            )
        # Bytes grow with every pair, so the number is found by bisection.
        fits, too_many = 1, len(ordered) + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self.of(ordered[:middle]) <= budget:
                fits = middle
            else:
                too_many = middle
        return list(ordered[:fits])


def sizes_of(pair: ModelPair, settings: HarvestSettings) -> tuple[MomentSizes, int]:
    """Return what decides the bytes of moments, and those of all hook pairs of the settings."""
    run = settle(pair, settings=settings)
    sizes = MomentSizes(run.token_hook, settings.null, pair.source.d_model, pair.target.d_model)
    return sizes, sizes.of(run.pairs)


def default_budget(pair: ModelPair) -> int | None:
    """Return a quarter of the memory that is free on the source's device; None if unknown."""
    free = available_memory(pair.source.device)
    return None if free is None else int(SHARE_OF_FREE_MEMORY * free)


def survey_settings(pair: ModelPair, settings: HarvestSettings, budget: int) -> SurveySettings:
    """Return the settings of a survey whose sums fit a budget, for the same hook pairs and folds.

    The predicting streams are whole if they fit, else seen through fewer and fewer columns.
    """
    shared: dict[str, Any] = {
        field.name: getattr(settings, field.name) for field in fields(HarvestSettings)
    }
    shared["n_tokens"] = SurveySettings().n_tokens
    whole = SurveySettings(**shared)
    if settings.n_tokens is not None and whole.n_tokens is not None:
        whole = replace(whole, n_tokens=min(whole.n_tokens, settings.n_tokens))
    run = settle(pair, settings=whole)
    widths = (pair.source.d_model, pair.target.d_model)
    fits = [
        narrow
        for narrow in (replace(whole, source_columns=columns) for columns in _NARROWER)
        if sum(
            survey_bytes(
                run.pairs, run.token_hook, narrow.sketch, *widths, run.moment_dtype.itemsize
            ).values()
        )
        <= budget
    ]
    return fits[0] if fits else replace(whole, source_columns=_NARROWER[-1])


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
