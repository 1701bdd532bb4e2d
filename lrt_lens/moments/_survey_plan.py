"""Memory and time of a survey, and of the exact moments that fit after it, from the configs alone.

Problem: exact moments of all hook pairs of two large models fit no machine, and a plan should say
what does. Mechanism: `MomentSizes` gives the bytes of the exact moments of any hook pairs,
`narrowed` the widest survey that fits a budget, and `answer` one line for this machine:

    answer(plan, survey_plan, budget, throughput)
    # "survey of 1092 pairs: at least 4.1 min and 9.02 GB; then exact moments of the best 1: …"

Limits: time is arithmetic divided by the measured speed of matrix products: a lower bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch

from lrt_lens._byte_sizes import human_bytes
from lrt_lens.data._parts import DEFAULT_PARTS, N_FOLDS, N_TEST_GROUPS, Parts
from lrt_lens.models._hook_points import SOURCE, TARGET, HookPair, depth, hooks_of, joint_parts
from lrt_lens.moments._harvest_settings import HarvestSettings, SurveySettings
from lrt_lens.moments._placement import most_free
from lrt_lens.moments._plan import (
    HarvestPlan,
    ModelShape,
    Throughput,
    duration,
    moment_bytes,
    null_kind,
)
from lrt_lens.moments._survey_sums import N_SURVEY_PARTS, Sketch, survey_bytes

SHARE_OF_FREE_MEMORY = 0.25
"""Share of the free memory that is the budget by default."""
_NARROWER = (None, 1024, 512, 256, 128)
"""Values of ``source_columns`` that are tried until the sums of a survey fit."""
_FLOP_OF_EIGH = 9
"""FLOP of the eigendecomposition of a symmetric [d, d] matrix with vectors, in units of d³."""


@dataclass(frozen=True)
class MomentSizes:
    """Everything that decides the bytes of the exact moments of some hook pairs."""

    token_hook: str | None
    null: Any
    """``null=`` of the harvest."""
    d_source: int
    d_target: int
    parts: Parts = DEFAULT_PARTS

    def of(self, pairs: Sequence[HookPair]) -> int:
        """Return the bytes of the exact moments of hook pairs."""
        kind = null_kind(self.null, pairs, self.d_source, self.d_target)
        widths = (self.d_source, self.d_target)
        n_bytes = moment_bytes(pairs, self.token_hook, kind, *widths, self.parts.n_parts)
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
                "that, null='none', or fewer n_folds and n_test_groups; lrt.survey scores all "
                "pairs without them"
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


@dataclass(frozen=True)
class SurveyPlan:
    """Memory and arithmetic of a survey."""

    source: ModelShape
    target: ModelShape
    pairs: tuple[HookPair, ...]
    settings: SurveySettings
    token_hook: str | None
    itemsize: int = 4
    """Bytes of one number of the hook pairs' columns."""

    @property
    def sketch(self) -> Sketch:
        """Numbers of random columns."""
        return self.settings.sketch

    @cached_property
    def moments(self) -> int:
        """Bytes of the sums."""
        widths = (self.source.d_model, self.target.d_model)
        sizes = survey_bytes(self.pairs, self.token_hook, self.sketch, *widths, self.itemsize)
        return sum(sizes.values())

    def seconds(self, throughput: Throughput) -> float:
        """Return the time of the passes, the products and the scores: a lower bound."""
        length = min(
            self.settings.context_length, self.source.context_length, self.target.context_length
        )
        models = 0.0
        for model, side in ((self.source, SOURCE), (self.target, TARGET)):
            hooks = [name for pair in self.pairs for name in joint_parts(pair[side])]
            models += model.flops_per_token(hooks, length)
        models *= length / max(1, length - self.settings.skip_first)
        n_tokens = self.settings.n_tokens or 0
        return (
            n_tokens * (models / throughput.model + self._products / throughput.products)
            # Scores are computed in float64, at half the speed of float32.
            + 2 * self._scoring / throughput.products
        )

    @property
    def _products(self) -> float:
        """FLOP per token of all products."""
        columns = 2 * self.sketch.columns + self.sketch.null_columns
        total = 0.0
        for d_x, d_y, n_x, n_y in self._directions:
            total += 2 * (n_x * d_x**2 + n_y * d_y * 2 * self.sketch.columns)
            total += 2 * n_x * d_x * n_y * columns
        return total

    @property
    def _scoring(self) -> float:
        """FLOP of the scores, for spectra of all folds, and products of all pairs on every fold."""
        columns, n_parts = 2 * self.sketch.columns, N_SURVEY_PARTS
        return float(
            sum(
                n_parts * n_x * d_x**3 * (_FLOP_OF_EIGH + 4)
                + n_parts * n_x * n_y * 5 * 2 * d_x**2 * columns
                for d_x, _, n_x, n_y in self._directions
            )
        )

    @property
    def _directions(self) -> list[tuple[int, int, int, int]]:
        """Widths and numbers of the hook points, as (d_x, d_y, n_x, n_y) of each direction."""
        n_source, n_target = (len(hooks_of(self.pairs, side)) for side in (SOURCE, TARGET))
        d_s, d_t = self.source.d_model, self.target.d_model
        n_tokens = int(self.token_hook is not None)
        up = (self.sketch.width(d_s), d_t, n_source + n_tokens, n_target)
        down = (self.sketch.width(d_t), d_s, n_target, n_source)
        return [up, down] if self.sketch.down else [up]


def default_budget(settings: HarvestSettings, device: str | torch.device) -> int | None:
    """Return a quarter of what is free where the moments may live; None if unknown."""
    free = most_free(settings.placement, device, settings.placement_folder)
    return None if free is None else int(SHARE_OF_FREE_MEMORY * free)


def survey_settings(settings: HarvestSettings) -> SurveySettings:
    """Return the settings of a survey of the same hook pairs, test fold and text.

    A survey has five fitting folds, whatever their number in the harvest.
    """
    shared: dict[str, Any] = {
        field.name: getattr(settings, field.name) for field in fields(HarvestSettings)
    }
    usual = SurveySettings().n_tokens
    if settings.n_tokens is not None and usual is not None:
        usual = min(usual, settings.n_tokens)
    shared |= {"n_tokens": usual, "n_folds": N_FOLDS, "n_test_groups": N_TEST_GROUPS}
    # Sketched moments are small and live with the models.
    shared |= {"placement": "auto", "placement_folder": None}
    return SurveySettings(**shared)


def narrowed(plan: SurveyPlan, budget: int) -> SurveyPlan:
    """Return the plan whose predicting streams are whole if that fits a budget, else narrower.

    If nothing fits, it is the narrowest one.
    """
    plans = [
        replace(plan, settings=replace(plan.settings, source_columns=columns))
        for columns in _NARROWER
    ]
    return next((narrow for narrow in plans if narrow.moments <= budget), plans[-1])


def survey_first(plan: HarvestPlan, settings: HarvestSettings, budget: int) -> SurveyPlan:
    """Return the survey that goes before a harvest whose moments do not fit a budget."""
    itemsize = plan.moment_dtype.itemsize
    whole = SurveyPlan(
        plan.source, plan.target, plan.pairs, survey_settings(settings), plan.token_hook, itemsize
    )
    return narrowed(whole, budget)


def answer(
    plan: HarvestPlan, settings: HarvestSettings, budget: int, throughput: Throughput
) -> str:
    """Return one line that says what a fit does on this machine, its time and its memory."""
    exact = exact_pairs(plan, settings, budget)
    if exact is not None and len(exact.pairs) == len(plan.pairs):
        return f"exact moments of all {len(plan.pairs)} pairs: {_needs(exact, throughput)}"
    first = survey_first(plan, settings, budget)
    narrow = first.sketch.source_columns
    through = f", sources through {narrow} columns" if narrow else ""
    survey = (
        f"survey of {len(plan.pairs)} pairs: at least {duration(first.seconds(throughput))} and "
        f"{human_bytes(first.moments)}{through}"
    )
    if exact is None:
        one = _sizes(plan, settings).of(plan.pairs[:1])
        return f"{survey}; exact moments of one pair take {human_bytes(one)}"
    n_exact = len(exact.pairs)
    return f"{survey}; then exact moments of the best {n_exact}: {_needs(exact, throughput)}"


def exact_pairs(plan: HarvestPlan, settings: HarvestSettings, budget: int) -> HarvestPlan | None:
    """Return the plan of what a fit harvests exactly within a budget; None if not even one pair."""
    sizes = _sizes(plan, settings)
    if sizes.of(plan.pairs) <= budget:
        return replace(plan, passes=(plan.pairs,))
    # Pairs with no common hook point take most, so at least this many fit.
    ordered = sorted(plan.pairs, key=_off_diagonal(plan.pairs))
    try:
        fits = tuple(sizes.affordable(ordered, budget))
    except ValueError:
        return None
    # Few pairs have a whole null where many have a sketch.
    null = null_kind(settings.null, fits, plan.source.d_model, plan.target.d_model)
    return replace(plan, passes=(fits,), null=null)


def _sizes(plan: HarvestPlan, settings: HarvestSettings) -> MomentSizes:
    """Return what decides the bytes of any hook pairs of a plan."""
    widths = (plan.source.d_model, plan.target.d_model)
    return MomentSizes(plan.token_hook, settings.null, *widths, plan.parts)


def _needs(plan: HarvestPlan, throughput: Throughput) -> str:
    """Return time and memory of a harvest as text."""
    size = human_bytes(plan.moments)
    if plan.n_tokens is None:
        return f"{size}, at least {duration(plan.seconds_per_million(throughput))} per million"
    seconds = plan.seconds_per_million(throughput) * plan.n_tokens / 1e6
    return f"at least {duration(seconds)} and {size}"


def _off_diagonal(pairs: Sequence[HookPair]) -> Any:
    """Return a key that sorts hook pairs without common hook points first."""
    sources, targets = (sorted(hooks_of(pairs, side), key=depth) for side in (SOURCE, TARGET))
    return lambda pair: (targets.index(pair[1]) - sources.index(pair[0])) % len(targets)
