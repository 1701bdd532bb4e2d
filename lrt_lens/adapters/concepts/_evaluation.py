"""L-Cross's tables 1-3 and figures 4-8 with their controls: does a vector work in the target when
its map was fitted on this concept, on another, on none?

    result = evaluate_concept_transfer(pair, [Concept(contrast, items), …], source_hook=2,
    target_hook=3, neutral=texts)
    result.summary                # an arm a row: cosine to the native vector, effect at β = 1 and at equal damage, with intervals
    result.paper_table()          # probability of the concept's choice: No, Self, own, other, random
    result.figure("beta")

The paper (arXiv 2501.02009, §3-4) reads success off the probability of the concept's choice at a β
tuned by hand. Here every arm (`lrt_lens.adapters.concepts._arms`) is measured at the same β, a
multiple of its own length as mapped, and where ``damage`` is given also at the strength that costs
the same on neutral text. *Propensity* is log p(positive continuation) − log p(negative one) in
nats; *probability* its logistic, the share of the concept's choice among both, in per cent;
*effect* the change of propensity. The arm ``source`` is the source model steered by its own vector
on the same items: what a weak model can do itself (figure 4).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, note, table
from lrt_lens.adapters.concepts._arms import DRAWN, ConceptArm, LayerRows, concept_arms, vector_part
from lrt_lens.adapters.concepts._concept_map import (
    Extraction,
    Hooks,
    TextRead,
    contrast_sets,
    model_sides,
    paired_hooks,
)
from lrt_lens.adapters.concepts._rows import PairRows, known_rows, read_rows
from lrt_lens.adapters.vectors._arms import VectorArm
from lrt_lens.adapters.vectors._calibration import MAX_PASSES, NeutralText, search_scale
from lrt_lens.adapters.vectors._evaluation import Curve
from lrt_lens.adapters.vectors._intervention import Intervention
from lrt_lens.adapters.vectors._preferences import PreferenceText
from lrt_lens.adapters.vectors._steering_hook import Positions, SteeringHook
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._behaviours import answer_contrast
from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.models._hook_points import depth
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._intervals import Interval, bootstrap_mean, bootstrap_ratio, spread
from lrt_lens.stitching._stitch import Stitch

BETAS = (-1.5, -1.0, 1.0, 1.5)
"""The paper's grid (figures 7 and 8); β = 0 is always measured."""
_AROUND = (0.85, 1.2)
"""Multiples of the calibrated strength between which effects at equal damage are interpolated."""


@dataclass(frozen=True)
class Concept:
    """A concept: texts that maps and vectors are learnt from, and items that share none of them."""

    contrast: ContrastSet
    items: ChoiceItems

    @property
    def name(self) -> str:
        """The contrast set's."""
        return self.contrast.name

    @classmethod
    def from_items(cls, items: ChoiceItems, *, n_test: int = 50, seed: int = 0) -> "Concept":
        """Questions split in two: ``n_test`` are measured, each of the others with either answer is
        a pair (CAA).
        """
        if not len(items) - n_test > 1 or n_test < 4:
            raise ValueError(
                f"{len(items)} items, {n_test} to be measured: give at least 4 of them and 2 others to learn from"
            )
        train, test = items.split(1 - n_test / len(items), seed=seed)
        return cls(answer_contrast(train), test)


@dataclass(frozen=True)
class ConceptTransfer:
    """Every arm of every concept over β."""

    table: pd.DataFrame
    """A row per concept, arm, draw and beta: propensity, probability (per cent) and effect with low
    and high (bootstrap over items), damage.
    """
    summary: pd.DataFrame
    """A row per concept and arm: cosine, norm_ratio, n, d, interpolates, r2, r2_uniform (held out),
    effect, effect_low, effect_high (at β = 1), beta_at_equal_damage, effect_at_equal_damage, low,
    high, fraction_of_native with low and high, n_draws, flag."""
    vectors: dict[tuple[str, str], tuple[SteeringVector, ...]] = field(repr=False)
    """By concept and arm, those of many draws left out."""
    budget: float | None = None
    """Nats per token at which arms are compared; None where they were not."""

    def paper_table(self, beta: float = 1.0) -> pd.DataFrame:
        """Probability of the concept's choice in per cent, a row a concept and a column an arm:
        ``none`` is the paper's No, ``native`` its Self.
        """
        at = self.table["beta"].eq(beta) & self.table["arm"].ne("none") | self.table["arm"].eq(
            "none"
        )
        if beta not in set(self.table["beta"]):
            raise ValueError(
                f"β = {beta:g} was not measured; choose from {sorted(set(self.table['beta']))}"
            )
        wide = self.table.loc[at].pivot_table(
            index="concept", columns="arm", values="probability", sort=False
        )
        return wide.rename_axis(columns=None).reset_index()

    def distance_to_self(self, beta: float = 1.0) -> pd.DataFrame:
        """For each arm the mean and largest distance of its probability to that of ``native``,
        points, over concepts (the paper: own .39, other 3.78).
        """
        wide = self.paper_table(beta).set_index("concept")
        gaps = (
            wide.drop(columns=["native", "none", "source"], errors="ignore")
            .sub(wide["native"], axis=0)
            .abs()
        )
        return pd.DataFrame(
            {"arm": gaps.columns, "mean": gaps.mean().to_numpy(), "largest": gaps.max().to_numpy()}
        )

    def figure(self, kind: Literal["summary", "beta", "weak_to_strong"] = "summary") -> Any:
        """Effects by arm (at equal damage where measured, else at β = 1), probability over β, or
        L-Cross's figure 4 (plotly).
        """
        from lrt_lens.figures import _concept_map as figures

        if kind == "summary":
            return figures.concept_summary_figure(
                self.summary, equal_damage=self.budget is not None
            )
        return (
            figures.beta_figure(self.table)
            if kind == "beta"
            else figures.weak_to_strong_figure(self.table)
        )

    def _repr_html_(self) -> str:
        return card(
            "ConceptTransfer",
            note("Effects in nats, changes against no steering."),
            table(self.summary),
        )


def evaluate_concept_transfer(
    models: ModelPair | tuple[ModelLike, ModelLike],
    concepts: Sequence[Concept],
    *,
    source_hook: Hooks,
    target_hook: Hooks,
    neutral: Sequence[str] | None = None,
    betas: Sequence[float] = BETAS,
    damage: float | None = 0.1,
    by: Extraction = "mean_difference",
    read: TextRead = "last",
    ridge: bool = True,
    stitch: Stitch | Sequence[Stitch] | None = None,
    positions: Positions = "all",
    n_pairs: int | None = None,
    rows: Sequence[dict[str, PairRows]] | None = None,
    n_random: int = 6,
    seed: int = 0,
    progress: bool = True,
) -> ConceptTransfer:
    """Measure every arm of every concept; see the module docstring.

    Args: models: a `ModelPair`, or (source, target) with any tokenizers. concepts: two or more;
        each is the other concept of the one before it. source_hook: where vectors are learnt: one
        hook point, or several that are steered together. target_hook: as many. neutral: texts on
        which damage is measured; needed unless ``damage`` is None. betas: strengths besides 0.
        damage: nats per token at which arms are compared too; None leaves that out. by: how vectors
        are learnt, CAA or RepE. read: ``"last"`` token or ``"mean"``. ridge: also fit ridge maps.
        stitch: maps of generic text, one for every pair of hook points. positions: which positions
        are steered (the paper: all for CAA, the last for RepE). n_pairs: pairs that vectors are
        learnt from, half of a concept's where None: few of them make ``own`` a map that
        interpolates. rows: for every pair of hook points what `read_rows` has read from these
        models and sets. n_random: random maps. seed: of splits, draws, folds and bootstraps.
        progress: show a bar.

    Raises: ValueError: fewer than two concepts, bad strengths, no neutral texts, a set of one
        class. HookPointError, NonFiniteError, MismatchError: as
        `lrt_lens.adapters.concepts._concept_map.ConceptMap.fit`, or a stitch of other hook points.
    """
    source, target = model_sides(models)
    hooks = paired_hooks(source, target, source_hook, target_hook)
    _check(concepts, betas, neutral, damage, n_pairs)
    stitches = _stitches(stitch, hooks, source, target)
    sets = [concept.contrast for concept in concepts]
    if rows is not None and len(rows) != len(hooks):
        raise ValueError(
            f"rows of {len(rows)} pair(s) of hook points given for {len(hooks)}; give one for each"
        )
    if rows is None:
        rows = [
            read_rows((source, target), sets, source_hook=at, target_hook=to, read=read)
            for at, to in hooks
        ]
    layers = [
        LayerRows(at, to, known_rows(one, sets), given)
        for (at, to), given, one in zip(hooks, stitches, rows, strict=True)
    ]
    budget = damage if neutral is not None else None
    found = []
    for concept in concepts:
        arms = concept_arms(
            concept.name,
            layers,
            target.identity,
            by=by,
            ridge=ridge,
            n_pairs=n_pairs,
            n_random=n_random,
            seed=seed,
        )
        home = tuple(
            SteeringVector(
                _own(layer, concept, by, n_pairs, seed),
                layer.source_hook,
                source.identity,
                name=concept.name,
            )
            for layer in layers
        )
        there = _Bench(target, concept, arms[0].vectors, neutral, betas, budget, positions)
        here = _Bench(source, concept, home, neutral, betas, budget, positions)
        curves = [here.measure(ConceptArm("source", home, {}))]
        curves += [
            there.measure(arm)
            for arm in tqdm(arms, desc=concept.name, disable=not progress, leave=False)
        ]
        found.append(_Found(concept.name, curves, budget, seed))
    return ConceptTransfer(
        table=pd.DataFrame([row for one in found for row in one.rows()]),
        summary=pd.DataFrame([row for one in found for row in one.summary()]),
        vectors={
            (one.concept, c.arm.name): c.arm.vectors
            for one in found
            for c in one.curves
            if c.arm.draw is None
        },
        budget=budget,
    )


def _check(
    concepts: Sequence[Concept],
    betas: Sequence[float],
    neutral: Sequence[str] | None,
    damage: float | None,
    n_pairs: int | None,
) -> None:
    contrast_sets([concept.contrast for concept in concepts])
    if len(concepts) < 2:
        raise ValueError(
            f"{len(concepts)} concept(s) given; a map fitted on another concept needs at least two"
        )
    small = [
        concept.name for concept in concepts if len(concept.contrast) < 4 or len(concept.items) < 4
    ]
    if small:
        raise ValueError(
            f"{small} have fewer than 4 pairs or items; vectors and maps share the pairs in halves: give more"
        )
    fewest = min(len(concept.contrast) for concept in concepts)
    if n_pairs is not None and not 2 <= n_pairs <= fewest - 2:
        raise ValueError(
            f"n_pairs is {n_pairs}; expected 2 to {fewest - 2}, so that 2 pairs of the smallest set are left for maps"
        )
    if (
        1.0 not in betas
        or not all(math.isfinite(beta) and beta != 0 for beta in betas)
        or len(set(betas)) < len(betas)
    ):
        raise ValueError(
            f"betas is {list(betas)}; expected different finite numbers other than 0, 1 among them (β = 0 is always measured)"
        )
    if damage is not None and (neutral is None or not 0 < damage < math.inf):
        raise ValueError(
            f"damage is {damage} and neutral {'missing' if neutral is None else 'given'}; give neutral texts and a positive damage, or damage=None"
        )


def _stitches(
    stitch: Stitch | Sequence[Stitch] | None,
    hooks: list[tuple[str, str]],
    source: HookedModel,
    target: HookedModel,
) -> list[Stitch | None]:
    if stitch is None:
        return [None] * len(hooks)
    given = [stitch] if isinstance(stitch, Stitch) else list(stitch)
    if len(given) != len(hooks):
        raise ValueError(
            f"{len(given)} stitch(es) for {len(hooks)} pair(s) of hook points; give one for each"
        )
    for one, (at, to) in zip(given, hooks, strict=True):
        one.refuse_foreign(at, source.identity)
        one.reversed().refuse_foreign(to, target.identity)
    return [*given]


def _own(
    layer: LayerRows, concept: Concept, by: Extraction, n_pairs: int | None, seed: int
) -> Tensor:
    """The source's own vector, from the same part of the pairs as all arms."""
    return vector_part(layer.rows[concept.name], n_pairs, seed)[0].gap("source", by).float()


@dataclass(frozen=True)
class _Measured:
    """One arm's propensities and damages over strengths."""

    arm: ConceptArm
    curve: Curve
    """All strengths that were measured, ascending, 0 among them."""

    def at(self, beta: float) -> tuple[np.ndarray, float]:
        """(propensity [item], damage) at a measured strength."""
        place = int(np.flatnonzero(self.curve.scales == beta)[0])
        return self.curve.propensity[place], float(self.curve.damage[place])

    def effect(self, beta: float) -> np.ndarray:
        """[item], change of propensity at a measured strength."""
        return self.at(beta)[0] - self.at(0.0)[0]

    @property
    def upward(self) -> Curve:
        """Strengths from 0 up: where equal damage is looked for."""
        keep = self.curve.scales >= 0
        return Curve(
            self.curve.arm,
            self.curve.scales[keep],
            self.curve.damage[keep],
            self.curve.propensity[keep],
        )


class _Bench:
    """Items and neutral texts made ready at the first of the hook points; vectors at the others are
    put on as hooks.
    """

    def __init__(
        self,
        model: HookedModel,
        concept: Concept,
        vectors: tuple[SteeringVector, ...],
        neutral: Sequence[str] | None,
        betas: Sequence[float],
        budget: float | None,
        positions: Positions,
    ) -> None:
        first = min(vectors, key=lambda vector: depth(vector.hook)).hook
        self.model, self.betas, self.budget, self.first = model, sorted(betas), budget, first
        self.positions: Positions = positions
        self.items = PreferenceText(model, concept.items, first)
        self.neutral = NeutralText(model, neutral, first) if neutral is not None else None
        self.unsteered = self.items.propensity()

    def measure(self, arm: ConceptArm) -> _Measured:
        """Propensities at every β, and where a budget is set at two strengths around it."""
        strengths = set(self.betas)
        if self.budget is not None and arm.name != "random":
            strengths |= self._bracket(arm)
        measured = {0.0: (self.unsteered, 0.0)} | {beta: self._at(arm, beta) for beta in strengths}
        scales = sorted(measured)
        curve = Curve(
            VectorArm(arm.name, arm.vectors[0], arm.draw),
            np.array(scales),
            np.array([measured[beta][1] for beta in scales]),
            np.array([measured[beta][0] for beta in scales]),
        )
        return _Measured(arm, curve)

    def _at(self, arm: ConceptArm, beta: float) -> tuple[np.ndarray, float]:
        first, later = self._hooks(arm, beta)
        with self.model.intervene(later):
            return self.items.propensity(
                first
            ), math.nan if self.neutral is None else self.neutral.damage(first)

    def _bracket(self, arm: ConceptArm) -> set[float]:
        """Two strengths around the one that does the damage; those that were tried where none does."""
        budget = self.budget or 0.0

        def measure(beta: float) -> float:
            first, later = self._hooks(arm, beta)
            with self.model.intervene(later):
                return math.nan if self.neutral is None else self.neutral.damage(first)

        tried = search_scale(
            measure, budget, first_guess=1.0, tolerance=0.05, max_evaluations=MAX_PASSES - 1
        )
        if max((damage for _, damage in tried), default=0.0) < 0.95 * budget:
            return set()
        found = min(tried, key=lambda point: abs(point[1] - budget))[0]
        return {found * share for share in _AROUND}

    def _hooks(self, arm: ConceptArm, beta: float) -> tuple[SteeringHook, dict[int | str, Any]]:
        """The hook at the first of the hook points, and those behind it, which learn from it where
        prompts end.
        """
        first, *later = Intervention.of(arm.vectors, positions=self.positions).hooks(beta).items()
        return first[1], dict(later)


@dataclass(frozen=True)
class _Found:
    """What was measured of one concept."""

    concept: str
    curves: list[_Measured]
    """``source`` first, ``native`` second."""
    budget: float | None
    seed: int

    def rows(self) -> list[dict[str, Any]]:
        """A row per arm, draw and β; the target without steering is the arm ``none``, the source's
        own is β = 0 of ``source``.
        """
        rows = []
        for measured in self.curves:
            for beta in measured.curve.scales.tolist():
                if beta == 0 and measured.arm.name not in ("source", "native"):
                    continue
                values, damage = measured.at(beta)
                name = "none" if beta == 0 and measured.arm.name == "native" else measured.arm.name
                row: dict[str, Any] = {
                    "concept": self.concept,
                    "arm": name,
                    "draw": measured.arm.draw,
                    "beta": beta,
                }
                percent = 100 / (1 + np.exp(-values))
                for column, numbers in (
                    ("propensity", values),
                    ("probability", percent),
                    ("effect", measured.effect(beta)),
                ):
                    found = bootstrap_mean(numbers, seed=self.seed)
                    row |= {
                        column: found.value,
                        f"{column}_low": found.low,
                        f"{column}_high": found.high,
                    }
                rows.append(row | {"damage": damage})
        return rows

    def summary(self) -> list[dict[str, Any]]:
        """A row an arm."""
        by_arm: dict[str, list[_Measured]] = {}
        for measured in self.curves:
            by_arm.setdefault(measured.arm.name, []).append(measured)
        return [self._summary_row(name, draws) for name, draws in by_arm.items()]

    def _summary_row(self, name: str, draws: list[_Measured]) -> dict[str, Any]:
        facts = [one.arm.facts for one in draws]
        row: dict[str, Any] = {"concept": self.concept, "arm": name, "n_draws": len(draws)}
        row |= {key: float(np.mean([fact.get(key, math.nan) for fact in facts])) for key in _FACTS}
        effect = self._interval(name, [one.effect(1.0) for one in draws])
        row |= {"effect": effect.value, "effect_low": effect.low, "effect_high": effect.high}
        if self.budget is None:
            return row
        equal = [one.upward.effect_at(self.budget) for one in draws]
        interval = self._interval(name, equal)
        native = next(one for one in self.curves if one.arm.name == "native").upward.effect_at(
            self.budget
        )
        # The source is another model: a ratio to what the target does under its own vector would
        # mix two scales.
        ratio = bootstrap_ratio(np.mean(equal, axis=0), native, seed=self.seed)
        missed = sum(bool(np.isnan(one).any()) for one in equal)
        return row | {
            "beta_at_equal_damage": float(
                np.mean([one.upward.scale_at(self.budget) for one in draws])
            ),
            "effect_at_equal_damage": interval.value,
            "low": interval.low,
            "high": interval.high,
            "fraction_of_native": math.nan if name == "source" else ratio.value,
            "fraction_low": math.nan if name == "source" else ratio.low,
            "fraction_high": math.nan if name == "source" else ratio.high,
            "flag": f"damage not bracketed in {missed} of {len(draws)}" if missed else "",
        }

    def _interval(self, name: str, effects: list[np.ndarray]) -> Interval:
        if name in DRAWN:
            return spread([float(effect.mean()) for effect in effects])
        return bootstrap_mean(effects[0], seed=self.seed)


_FACTS = ("cosine", "norm_ratio", "n", "d", "interpolates", "r2", "r2_uniform")
