"""The result of an evaluation of a steering vector: its tables, its views and its figures."""

from dataclasses import dataclass, field
from typing import Any, Literal, cast

import pandas as pd

from lrt_lens._repr_html import card, note, table
from lrt_lens._short_repr import ShortRepr
from lrt_lens.figures import _steering as figures
from lrt_lens.figures._template import count_range, with_counts
from lrt_lens.stitching._stitch import RowScore

_HOW = (
    "Interval of an arm of one vector: over what 'contains' lists. Interval of several draws: "
    "where a new draw falls. transferred_p: share of draws at least as large in size as the "
    "transferred effect, counting that effect itself; never below p_floor."
)
"""Note below the table in a notebook."""


@dataclass(frozen=True, repr=False)
class SteeringEvaluation(ShortRepr):
    """Curves of all arms over scales, and their effects at equal damage."""

    table: pd.DataFrame
    """One row per arm, draw and scale.

    Columns: concept, arm, draw, hook, scale (negative for a vector's negative), propensity with
    propensity_low and propensity_high (over items), damage with damage_low and damage_high (over
    neutral texts).
    """
    summary: pd.DataFrame
    """One row per arm.

    Effects in nats at equal damage, each with the ends of its interval: effect_at_equal_damage
    (low, high) of the vector, effect_negated (negated_low, negated_high) of its negative, and
    effect_mean (mean_low, mean_high) = (E(v) − E(−v)) / 2. As fractions of native:
    fraction_of_native (fraction_low, fraction_high), fraction_negated and fraction_mean, with ends
    likewise.

    For an arm of one vector the interval contains what ``contains`` says; items_error,
    neutral_error, contrast_error and map_error are the standard errors of effect_at_equal_damage
    by source, and fraction_items_error … those of fraction_of_native. For an arm of several draws
    the value is their mean and the interval that of a *new draw*; typical_size is the root mean
    square of the draws, transferred_p the two-sided p-value of the transferred effect among their
    sizes, and p_floor the smallest p-value that so many draws can give.

    Others: concept, arm, hook, n_draws, scale, flag (no scale has the damage), interval_flag (what
    is doubtful about the intervals, such as few independent items; empty if nothing), n_items and
    n_texts (numbers of items and of neutral texts that were measured).
    """
    budget: float
    """Damage at which arms are compared, in nats per token."""
    vectors: dict[str, Any] = field(repr=False)
    """Vector of each arm that has only one, or subspace."""
    contrast_score: RowScore | None = None
    """R² of the stitch on the texts of the contrast set; None if these are unknown."""
    n_spanning: int = 0
    """Number of items in which a token spans the end of the prompt; it is scored as one."""

    @property
    def n_items(self) -> int:
        """Number of items on which arms are compared; 0 if unknown."""
        return _largest(self.summary, "n_items")

    @property
    def n_texts(self) -> int:
        """Number of neutral texts on which damage is measured; 0 if unknown."""
        return _largest(self.summary, "n_texts")

    @property
    def concept(self) -> str:
        """Name of the concept that was steered."""
        return str(self.table["concept"].iloc[0])

    def figure(self, kind: Literal["summary", "curves", "damage"] = "summary") -> Any:
        """Return a plotly figure of effects at equal damage.

        ``"curves"`` shows propensity over scale instead, ``"damage"`` effect over damage.
        """
        concept = self.concept
        if kind == "summary":
            return figures.summary_figure(self.summary, concept=concept)
        if kind == "curves":
            figure = figures.steering_figure(self.table, concept=concept)
        else:
            figure = figures.effect_damage_figure(self.table, concept=concept, budget=self.budget)
        return with_counts(figure, figures.steering_counts(self.summary))

    def _repr_html_(self) -> str:
        legend = (
            f"{self.concept}: effect in nats, the change of propensity from no steering, "
            f"with every arm at a damage of {self.budget:g} nats per token."
        )
        return card(
            "SteeringEvaluation",
            note(legend),
            table(cast(pd.DataFrame, self.summary[_shown(self.summary)])),
            note(_HOW),
        )


def _shown(summary: pd.DataFrame) -> list[str]:
    """Return the columns of the view in a notebook: those that differ between arms.

    Errors by source are left out.
    """
    same = ("concept", "n_items", "n_texts")
    return [name for name in summary.columns if not name.endswith("_error") and name not in same]


def _largest(summary: pd.DataFrame, column: str) -> int:
    """Return the largest count of a column; 0 if there is none."""
    counts = count_range(summary, column)
    return 0 if counts is None else counts[1]
