"""Rules of transfer compared with each other: one native vector, one damage, paired differences.

    rules = {
        "ridge": TransferRule(ridge, vector),
        "two-way": TransferRule(two_way, vector),
        "ridge, LDA": TransferRule(ridge, SteeringVector.lda(pair.source, contrast, at=2)),
    }
    comparison = compare_transfers(pair, rules, items, neutral=texts)
    comparison.summary      # fraction of native per rule, and its difference from the first rule
    comparison.figure()

Problem: there are many ways to bring a direction to another model (a map of another family, from
several layers or to several, a vector that is learnt or cleaned in another way), and the intervals
of two of them overlap although one is better, because both were measured on the same items and
texts. Mechanism: a `TransferRule` is a map (or several) and a vector. All rules are measured as
`evaluate_steering` measures its transferred vector, against one native vector, which is measured
once. A difference from the first rule is paired: the same resample of items and neutral texts, the
same fold left out of both maps, the same contrast pairs left out of both vectors.

Limits: controls (random directions, shuffled maps, permuted labels) are those of
`evaluate_steering`. The best of several rules was picked by the items on which it is shown: confirm
it on another concept.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, note, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.vectors._arm_meter import ArmMeter
from lrt_lens.adapters.vectors._arms import known_contrast_of
from lrt_lens.adapters.vectors._contrast_states import ContrastStates, states_without_groups
from lrt_lens.adapters.vectors._equal_damage import ITEMS, TEXTS, item_clusters
from lrt_lens.adapters.vectors._evaluation import refuse_unmeasurable
from lrt_lens.adapters.vectors._sources import CONTRAST, MAP, total
from lrt_lens.adapters.vectors._steering_hook import Positions
from lrt_lens.adapters.vectors._steering_summary import QUANTITIES, Quantity, SteeringSummary
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.adapters.vectors._vector_arm import MeasuredArm, VectorArm
from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.figures import _transfer as figures
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._bootstrap import Clusters, Resamples
from lrt_lens.statistics._intervals import NOTHING, Interval
from lrt_lens.statistics._jackknife import jackknife_error
from lrt_lens.stitching._affine import MapPair
from lrt_lens.stitching._stitch import Stitch

Prepare = Callable[[SteeringVector], SteeringVector]
"""Change of a vector on the source before its transfer."""


def unchanged(vector: SteeringVector) -> SteeringVector:
    """Return the vector itself."""
    return vector


@dataclass(frozen=True)
class TransferRule:
    """One way to bring a steering vector to another model."""

    stitch: Stitch
    """Stitch from the vector's hook point. From a joint hook point (`ManyToOne`), the vector is
    learnt there too: ``SteeringVector.mean_difference(…, at=stitch.source_hook)``."""
    vector: SteeringVector
    """Vector as it was learnt on the source from contrast texts."""
    others: tuple[Stitch, ...] = ()
    """Stitches from the same hook point to further hook points of the target. All transferred
    vectors act together, at one scale."""
    prepare: Prepare = unchanged
    """Change of the vector before its transfer, such as `SteeringVector.without`; vectors that are
    learnt without some contrast pairs are changed in the same way."""

    @property
    def stitches(self) -> tuple[Stitch, ...]:
        """Stitches of this rule, the first one and the others."""
        return (self.stitch, *self.others)

    def arm(
        self,
        name: str,
        vector: SteeringVector,
        options: Mapping[str, Any],
        *,
        maps: Sequence[MapPair] | None = None,
        draw: int | None = None,
    ) -> VectorArm:
        """Return the arm of a vector that was learnt on the source.

        Args:
            name: name of the arm.
            vector: learnt on the source, not yet prepared.
            options: rules of `transfer_vector`.
            maps: maps that replace those of the stitches, one for each.
            draw: number of the vector in an arm of several.
        """
        prepared = self.prepare(vector)
        through = [None] * len(self.stitches) if maps is None else [one.up for one in maps]
        first, *later = (
            stitch.transfer(prepared, through=affine, **options)
            for stitch, affine in zip(self.stitches, through, strict=True)
        )
        return VectorArm(name, first, draw, tuple(later))


@dataclass(frozen=True)
class TransferComparisonSettings(Settings):
    """Settings of `compare_transfers`."""

    damage: float = 0.1
    """Damage at which rules are compared, in nats per token on the neutral texts."""
    bias: Literal["none", "add"] = "none"
    """Rule for the bias of the map in the transfer, see `transfer_vector`."""
    norm: Literal["match", "mapped", "unit"] = "match"
    """Rule for the length of the transferred vector, see `transfer_vector`."""
    positions: Positions = "all"
    """Steered positions, see `SteeringVector.hooks`."""
    both_signs: bool = True
    """Measure the negative of every vector too."""
    n_contrast_groups: int = 8
    """Number of groups of contrast pairs that are left out one at a time; 0 leaves the share of the
    contrast pairs out of the intervals."""
    seed: int = 0
    """Seed of the bootstrap."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True, repr=False)
class TransferComparison(ShortRepr):
    """Effects of all rules at equal damage, as fractions of native and as differences."""

    summary: pd.DataFrame
    """One row for the native vector and one per rule, the reference first.

    The columns are those of `SteeringEvaluation.summary`, with ``rule`` instead of ``arm``, and the
    difference of the fraction of native from that of the reference, each with the ends of its
    interval: difference (difference_low, difference_high) of the vector, difference_negated of its
    negative, difference_mean of (E(v) − E(−v)) / 2.
    """
    budget: float
    """Damage at which rules are compared, in nats per token."""
    reference: str
    """Name of the rule from which differences are taken."""
    vectors: dict[str, tuple[SteeringVector, ...]] = field(default_factory=dict, repr=False)
    """Vectors on the target by rule, and that of ``native``."""

    @property
    def concept(self) -> str:
        """Name of the concept that was steered."""
        return str(self.summary["concept"].iloc[0])

    def figure(self, fraction: Literal["vector", "mean"] = "vector") -> Any:
        """Return a plotly figure of the fraction of native per rule.

        ``"vector"`` shows the vector itself, ``"mean"`` the mean of both signs.
        """
        return figures.transfer_figure(self.summary, fraction=fraction)

    def _repr_html_(self) -> str:
        legend = (
            f"{self.concept}: effect at a damage of {self.budget:g} nats per token as a fraction of"
            f" native, and its difference from {self.reference!r} (paired)."
        )
        columns = ["rule", "fraction_of_native", "fraction_low", "fraction_high"]
        columns += ["difference", "difference_low", "difference_high", "fraction_mean", "flag"]
        shown = cast(pd.DataFrame, self.summary[columns])
        return card("TransferComparison", note(legend), table(shown))


@takes(TransferComparisonSettings)
def compare_transfers(
    pair: ModelPair,
    rules: Mapping[str, TransferRule],
    items: ChoiceItems,
    *,
    neutral: Sequence[str],
    contrast: ContrastSet | None = None,
    settings: TransferComparisonSettings | None = None,
    **options: Any,
) -> TransferComparison:
    """Return the effects of several rules of transfer at equal damage, and their differences.

    Args:
        pair: both models.
        rules: rules by name. The first is the reference of all differences; the native vector is
            learnt by the method and the read position of its vector, at its target hook point.
        items: prompts with a positive and a negative continuation; all are measured.
        neutral: texts on which damage is measured.
        contrast: texts that the vectors were learnt from; by default those that the first one
            holds.
        settings: all settings; see `TransferComparisonSettings`.
        options: fields of `TransferComparisonSettings` as keywords.

    Raises:
        ValueError: no rule, a damage that is not positive, fewer than 4 items, or no neutral text
            that is long enough.
        MismatchError: a stitch of other models, or a vector of another model, hook point or set of
            contrast texts.
    """
    settings = resolve(TransferComparisonSettings, settings, options)
    if not rules:
        raise ValueError("rules is empty; give at least one, such as {'ridge': TransferRule(…)}")
    refuse_unmeasurable(items, settings.damage)
    contrast = _checked_contrast(pair, rules, contrast)
    reference, first = next(iter(rules.items()))
    native = first.vector.states(pair.target, contrast, at=first.stitch.target_hook)
    meter = ArmMeter(
        pair.target,
        items,
        neutral,
        budget=settings.damage,
        positions=settings.positions,
        both_signs=settings.both_signs,
    )
    shared = [meter.measure(arm) for arm in _native_arms(native, first.vector.method, settings)]
    resamples = Resamples(
        {ITEMS: item_clusters(items), TEXTS: Clusters.single(len(shared[0].plus.n_tokens))},
        seed=settings.seed,
    )
    bar = tqdm(rules.items(), desc="rules", disable=not settings.progress, leave=False)
    measured = {
        name: [
            # Lengths of another rule's steps are no guess for those of this one.
            *map(meter.afresh().measure, _rule_arms(pair, rule, contrast, native, settings))
        ]
        for name, rule in bar
    }
    table = _ComparedRows(contrast.name, shared, measured, settings.damage, resamples).table()
    vectors = {"native": (shared[0].arm.vector,)} | {
        name: (arms[0].arm.vector, *arms[0].arm.later) for name, arms in measured.items()
    }
    return TransferComparison(table, settings.damage, reference, vectors)


def _checked_contrast(
    pair: ModelPair, rules: Mapping[str, TransferRule], contrast: ContrastSet | None
) -> ContrastSet:
    """Return the texts that all vectors were learnt from; raise unless all rules fit the pair."""
    known: list[ContrastSet] = []
    for rule in rules.values():
        known.append(known_contrast_of(rule.vector, known[-1] if known else contrast))
        for stitch in rule.stitches:
            stitch.check(pair.source, pair.target)
            stitch.refuse_foreign(rule.vector.origin)
    return known[-1]


def _native_arms(
    states: ContrastStates, method: str, settings: TransferComparisonSettings
) -> Iterator[VectorArm]:
    yield VectorArm("native", SteeringVector.learnt_from(states, method))
    for k, (part, _) in enumerate(
        states_without_groups(states, states, settings.n_contrast_groups)
    ):
        yield VectorArm("native_refit", SteeringVector.learnt_from(part, method), draw=k)


def _rule_arms(
    pair: ModelPair,
    rule: TransferRule,
    contrast: ContrastSet,
    native: ContrastStates,
    settings: TransferComparisonSettings,
) -> Iterator[VectorArm]:
    """Yield the vector through a rule, and through each refit of its maps and of the vector."""
    options = {"bias": settings.bias, "norm": settings.norm}
    yield rule.arm("transferred", rule.vector, options)
    # Each refit leaves the same fold out of every map of the rule.
    for k, maps in enumerate(zip(*(stitch.refits for stitch in rule.stitches), strict=True)):
        yield rule.arm("map_refit", rule.vector, options, maps=maps, draw=k)
    own = rule.vector.states(pair.source, contrast, at=rule.vector.hook)
    for k, (part, _) in enumerate(states_without_groups(own, native, settings.n_contrast_groups)):
        refit = SteeringVector.learnt_from(part, rule.vector.method)
        yield rule.arm("contrast_refit", refit, options, draw=k)


_DIFFERENCES = dict(
    zip(QUANTITIES, ("difference", "difference_negated", "difference_mean"), strict=True)
)
"""Column of the difference of a fraction of native, by quantity."""


@dataclass(frozen=True)
class _ComparedRows:
    """Rows of the summary of a comparison."""

    concept: str
    shared: Sequence[MeasuredArm]
    """The native vector and its refits."""
    measured: Mapping[str, Sequence[MeasuredArm]]
    """The transferred vector of each rule, followed by its refits."""
    budget: float
    resamples: Resamples

    def table(self) -> pd.DataFrame:
        """Return one row for the native vector and one per rule."""
        rows = []
        reference = next(iter(self.measured))
        for name, arms in self.measured.items():
            summary = SteeringSummary(
                self.concept, [*self.shared, *arms], self.budget, self.resamples
            )
            by_arm = {row["arm"]: row for row in summary.rows()}
            if not rows:
                rows.append(by_arm["native"])
            row = by_arm["transferred"] | {"arm": name}
            for quantity, column in _DIFFERENCES.items():
                difference = self._difference(quantity, name, reference)
                row |= {
                    column: difference.value,
                    f"{column}_low": difference.low,
                    f"{column}_high": difference.high,
                }
            rows.append(row)
        return pd.DataFrame(rows).rename(columns={"arm": "rule"})

    def _difference(self, quantity: Quantity, name: str, reference: str) -> Interval:
        """Return (E_rule − E_reference) / E_native, with its interval."""
        if name == reference:
            return Interval(0.0, 0.0, 0.0)
        ours, theirs = self.measured[name], self.measured[reference]
        estimates = [
            quantity.estimate(one, self.budget, self.resamples)
            for one in (ours[0], theirs[0], self.shared[0])
        ]
        known = [one for one in estimates if one is not None and not np.isnan(one.values[0])]
        if len(known) < len(estimates):
            return NOTHING
        own, other, native = known
        # As for a fraction: of an effect that may be 0 there is none.
        if not native.interval(self.resamples).excludes(0.0):
            return NOTHING
        sampled = ((own - other) / native).interval(self.resamples)
        errors: dict[str, float] = {}
        groups: dict[str, int] = {}
        for source, arm in ((CONTRAST, "contrast_refit"), (MAP, "map_refit")):
            a, b = (self._values(quantity, arms, arm) for arms in (ours, theirs))
            # Without the same groups left out of both there is no paired difference of refits.
            if not len(a) or len(a) != len(b):
                continue
            natives = self._values(quantity, self.shared, "native_refit")
            # The pairs that the transferred vectors lack are missing from the native one too.
            below = natives if source == CONTRAST else quantity.value(self.shared[0], self.budget)
            errors[source], groups[source] = jackknife_error(((a - b) / below).tolist()), len(a)
        return total(sampled, errors, groups)

    def _values(self, quantity: Quantity, arms: Sequence[MeasuredArm], name: str) -> np.ndarray:
        """Return the effects of all vectors of an arm."""
        return np.array([quantity.value(one, self.budget) for one in arms if one.arm.name == name])
