"""Effects of vectors through concept maps: L-Cross's tables 1-3 and figures 4-8, with controls.

    result = evaluate_concept_transfer(
        pair, [Concept(contrast, items), …], source_hook=2, target_hook=3, neutral=texts
    )
    result.summary          # one row per arm: cosine, effect at β = 1 and at equal damage
    result.paper_table()    # probability of the concept's choice: No, Self, own, other, random
    result.figure("beta")

The question is whether a vector works on the target if its map was fitted on the same concept, on
another one, or on none. The paper (arXiv 2501.02009, §3-4) reads success from the probability of
the concept's choice at a β that is tuned by hand. Here every arm
(`lrt_lens.adapters.concepts._arms`) is measured at the same β, a multiple of the length of its
vector on the target, and, if ``damage`` is given, at the strength that does the same damage on
neutral text.

- *Propensity* is log p(positive continuation) − log p(negative one), in nats.
- *Probability* is its logistic function: the share of the concept's choice among both, in per cent.
- *Effect* is the change of propensity.

Intervals of the summary hold for other items (those that share a prompt or a continuation are one
cluster), other neutral texts and other contrast pairs: vector and map are learnt again without each
group of pairs. The column ``contains`` says so. Arms of several draws have the interval that a new
draw falls into, and every other arm a two-sided p-value among the draws. ``noise_source`` has
several draws if its map does not interpolate (n > d); up to n = d all draws give the native vector.

The arm ``source`` is the source model, steered by its own vector on the same items. It shows what
the small model can do by itself (figure 4).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, note, table
from lrt_lens._settings import resolve, takes
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.concepts._arms import LayerRows, concept_arms, contrast_refits, source_arm
from lrt_lens.adapters.concepts._concept_arm import ConceptArm
from lrt_lens.adapters.concepts._concept_curves import ArmCurve, ConceptCurves, ContrastRefit
from lrt_lens.adapters.concepts._concept_map import contrast_sets
from lrt_lens.adapters.concepts._rows import PairRows, ends_of, known_rows, read_rows
from lrt_lens.adapters.concepts._settings import ConceptTransferSettings
from lrt_lens.adapters.vectors._arm_meter import bracketing_curve, joined_curve
from lrt_lens.adapters.vectors._calibration import NeutralText
from lrt_lens.adapters.vectors._equal_damage import ITEMS, TEXTS, Curve, item_clusters
from lrt_lens.adapters.vectors._intervention import Intervention
from lrt_lens.adapters.vectors._preferences import PreferenceText
from lrt_lens.adapters.vectors._scale_search import search_scale
from lrt_lens.adapters.vectors._steering_hook import Positions, SteeringHook
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._behaviours import answer_contrast
from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.figures import _concept_map as figures
from lrt_lens.figures._steering import steering_counts
from lrt_lens.figures._template import with_counts
from lrt_lens.models._hook_points import depth
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._ownership import entering
from lrt_lens.models._pair import Hooks, ModelPair, model_sides, paired_hooks
from lrt_lens.statistics._bootstrap import Clusters, Resamples
from lrt_lens.stitching._stitch import Stitch

_AROUND = (0.85, 1.2)
"""Multiples of the calibrated strength between which effects at equal damage are interpolated."""


@dataclass(frozen=True)
class Concept:
    """A concept: texts for maps and vectors, and items for the measurement, without overlap."""

    contrast: ContrastSet
    """Pairs of texts from which maps are fitted and vectors are learnt."""
    items: ChoiceItems
    """Choice items on which the effect is measured."""

    @property
    def name(self) -> str:
        """Name of the contrast set."""
        return self.contrast.name

    @classmethod
    def from_items(cls, items: ChoiceItems, *, n_test: int = 50, seed: int = 0) -> "Concept":
        """Concept from questions: ``n_test`` of them are items, the others contrast pairs (CAA).

        The two texts of a pair are a question with either answer.

        Raises:
            ValueError: fewer than 4 items, or fewer than 2 other questions.
        """
        if not len(items) - n_test > 1 or n_test < 4:
            raise ValueError(
                f"{len(items)} items, {n_test} to be measured: give at least 4 of them and 2 "
                "others to learn from"
            )
        train, test = items.split(1 - n_test / len(items), seed=seed)
        return cls(answer_contrast(train), test)


@dataclass(frozen=True, repr=False)
class ConceptTransfer(ShortRepr):
    """Propensities, probabilities and effects of every arm of every concept over β."""

    table: pd.DataFrame
    """One row per concept, arm, draw and beta.

    Columns: propensity, probability (per cent) and effect, each with low and high (bootstrap over
    items), and damage.
    """
    summary: pd.DataFrame
    """One row per concept and arm.

    Columns: cosine, norm_ratio, n, d, interpolates, r2, r2_uniform (held out), effect, effect_low,
    effect_high (at β = 1), beta_at_equal_damage, effect_at_equal_damage, low, high,
    fraction_of_native with fraction_low and fraction_high, n_draws, flag, interval_flag (what is
    doubtful about an interval), contains (what the intervals hold for), n_items and n_texts
    (numbers of items and of neutral texts that were measured), and the standard errors that the
    contrast pairs cause: effect_contrast_error (at β = 1), contrast_error (at equal damage) and
    fraction_contrast_error.

    For ``random``, ``random_matched``, ``shuffled`` and ``noise_source`` (if n > d), ends are where
    a new draw falls, and there is typical_size (root mean square of the effects). The other arms of
    the target have random_p and shuffled_p (two-sided p-value of the effect among those of
    ``random_matched`` or ``shuffled``), each with its floor, the smallest one that so many draws
    can give. Sizes and p-values are at equal damage if that was measured, else at β = 1.
    """
    vectors: dict[tuple[str, str], tuple[SteeringVector, ...]] = field(repr=False)
    """Vectors by concept and arm, except arms with many draws."""
    budget: float | None = None
    """Damage in nats per token at which arms are compared; None if they were not."""

    def paper_table(self, beta: float = 1.0) -> pd.DataFrame:
        """Probability of the concept's choice in per cent, one row per concept, one column per arm.

        The column ``none`` is the paper's No, and ``native`` its Self.

        Raises:
            ValueError: ``beta`` was not measured.
        """
        if beta not in set(self.table["beta"]):
            raise ValueError(
                f"β = {beta:g} was not measured; choose from {sorted(set(self.table['beta']))}"
            )
        # The arm "none" has a single row, at β = 0.
        unsteered = self.table["arm"].eq("none")
        # `&` binds tighter than `|`: (β and steered) or unsteered.
        at = self.table["beta"].eq(beta) & ~unsteered | unsteered
        wide = self.table.loc[at].pivot_table(
            index="concept", columns="arm", values="probability", sort=False
        )
        return wide.rename_axis(columns=None).reset_index()

    def distance_to_self(self, beta: float = 1.0) -> pd.DataFrame:
        """Distance of each arm's probability to that of ``native``, in points, one row per arm.

        Columns: arm, mean and largest over concepts. The paper reports means of .39 (own) and 3.78
        (other).
        """
        wide = self.paper_table(beta).set_index("concept")
        arms = wide.drop(columns=["native", "none", "source"], errors="ignore")
        gaps = arms.sub(wide["native"], axis=0).abs()
        return pd.DataFrame(
            {"arm": gaps.columns, "mean": gaps.mean().to_numpy(), "largest": gaps.max().to_numpy()}
        )

    def figure(self, kind: Literal["summary", "beta", "weak_to_strong"] = "summary") -> Any:
        """Figure of the effects by arm, of the probability over β, or L-Cross's figure 4 (plotly).

        ``"summary"`` shows effects at equal damage if that was measured, else at β = 1.
        """
        counts, is_equal = steering_counts(self.summary), self.budget is not None
        # Neutral texts have no part in effects over β.
        if kind != "summary" or not is_equal:
            counts.pop("neutral texts")
        if kind == "summary":
            figure = figures.concept_summary_figure(self.summary, equal_damage=is_equal)
        elif kind == "beta":
            figure = figures.beta_figure(self.table)
        else:
            figure = figures.weak_to_strong_figure(self.table)
        return with_counts(figure, counts)

    def _repr_html_(self) -> str:
        return card(
            "ConceptTransfer",
            note("Effects in nats: change of propensity against no steering."),
            table(self.summary),
        )


@takes(ConceptTransferSettings)
def evaluate_concept_transfer(
    models: ModelPair | tuple[ModelLike, ModelLike],
    concepts: Sequence[Concept],
    *,
    source_hook: Hooks,
    target_hook: Hooks,
    neutral: Sequence[str] | None = None,
    stitch: Stitch | Sequence[Stitch] | None = None,
    rows: Sequence[dict[str, PairRows]] | None = None,
    progress: bool = True,
    settings: ConceptTransferSettings | None = None,
    **options: Any,
) -> ConceptTransfer:
    """Propensity, effect and damage of every arm of every concept over β, with intervals.

    Args:
        models: a `ModelPair`, or (source, target) with any tokenizers.
        concepts: two or more; the arm ``other`` of each takes the next concept in the list.
        source_hook: hook point at which vectors are learnt, or several that are steered together.
        target_hook: equally many hook points.
        neutral: texts on which damage is measured; required unless ``damage`` is None.
        stitch: maps of ordinary text, one per hook pair.
        rows: the results of `read_rows` for these models and sets, one per hook pair.
        progress: show a progress bar.
        settings: the remaining settings; each field can be passed as a keyword instead.
        **options: fields of `ConceptTransferSettings`.

    Raises:
        ValueError: fewer than two concepts, invalid strengths, no neutral texts, or a set of one
            class.
        HookPointError: a model has no such hook point, or the numbers of hook points differ.
        NonFiniteError: activations are NaN or infinite.
        MismatchError: a stitch or rows belong to other hook points or models, or rows to other
            texts or another ``read``.

    Source: L-Cross (arXiv 2501.02009), §3-4.
    """
    settings = resolve(ConceptTransferSettings, settings, options)
    source, target = model_sides(models)
    hook_pairs = paired_hooks(source, target, source_hook, target_hook)
    _check(concepts, neutral, settings)
    stitches = _stitches(stitch, hook_pairs, source, target)
    layers = _layer_rows(concepts, (source, target), hook_pairs, stitches, rows, settings)
    results = []
    for concept in concepts:
        arms = concept_arms(concept.name, layers, target.identity, settings)
        own = source_arm(concept.name, layers, source.identity, settings)
        # Native vectors decide at which hook point the passes start.
        on_target = _SteeredModel(target, concept, arms[0].vectors, neutral, settings)
        on_source = _SteeredModel(source, concept, own.vectors, neutral, settings)
        bar = tqdm(arms, desc=concept.name, disable=not progress, leave=False)
        curves = [on_source.measure(own), *(on_target.measure(arm) for arm in bar)]
        single = {one.arm.name: one for one in curves if one.arm.draw is None}
        identities = (source.identity, target.identity)
        refits: dict[str, list[ContrastRefit]] = {}
        for arm in contrast_refits(concept.name, layers, identities, settings, single):
            steered = on_source if arm.name == "source" else on_target
            refits.setdefault(arm.name, []).append(steered.refit(arm, single[arm.name]))
        n_texts = 0 if neutral is None else len(on_target.n_tokens)
        sources = {ITEMS: item_clusters(concept.items)}
        # Without neutral texts there is no budget, and nothing is resampled over them.
        sources |= {TEXTS: Clusters.single(n_texts)} if n_texts else {}
        resamples = Resamples(sources, seed=settings.seed)
        results.append(ConceptCurves(concept.name, curves, settings.damage, resamples, refits))
    return ConceptTransfer(
        table=pd.DataFrame([row for one in results for row in one.rows()]),
        summary=pd.DataFrame([row for one in results for row in one.summary()]),
        vectors={
            (one.concept, curve.arm.name): curve.arm.vectors
            for one in results
            for curve in one.curves
            if curve.arm.draw is None
        },
        budget=settings.damage,
    )


# ---------------------------------------------------------------------------------------- arguments


def _check(
    concepts: Sequence[Concept], neutral: Sequence[str] | None, settings: ConceptTransferSettings
) -> None:
    """Raise a ValueError for concepts, strengths or a damage that cannot be measured."""
    contrast_sets([concept.contrast for concept in concepts])
    if len(concepts) < 2:
        raise ValueError(
            f"{len(concepts)} concept(s) given; a map fitted on another concept needs at least two"
        )
    # Halves of fewer than 4 pairs would leave a map with one pair, which cannot be held out.
    small = [
        concept.name for concept in concepts if len(concept.contrast) < 4 or len(concept.items) < 4
    ]
    if small:
        raise ValueError(
            f"{small} have fewer than 4 pairs or items; vectors and maps take one half of the "
            "pairs each: give more"
        )
    fewest = min(len(concept.contrast) for concept in concepts)
    n_pairs = settings.n_pairs
    if n_pairs is not None and not 2 <= n_pairs <= fewest - 2:
        raise ValueError(
            f"n_pairs is {n_pairs}; expected 2 to {fewest - 2}, so that 2 pairs of the smallest "
            "set are left for maps"
        )
    betas = settings.betas
    valid = all(math.isfinite(beta) and beta != 0 for beta in betas)
    if 1.0 not in betas or not valid or len(set(betas)) < len(betas):
        raise ValueError(
            f"betas is {list(betas)}; expected different finite numbers other than 0, 1 among them "
            "(β = 0 is always measured)"
        )
    damage = settings.damage
    if damage is not None and (neutral is None or not 0 < damage < math.inf):
        raise ValueError(
            f"damage is {damage} and neutral {'missing' if neutral is None else 'given'}; give "
            "neutral texts and a positive damage, or damage=None"
        )


def _stitches(
    stitch: Stitch | Sequence[Stitch] | None,
    hook_pairs: list[tuple[str, str]],
    source: HookedModel,
    target: HookedModel,
) -> list[Stitch | None]:
    """One stitch per hook pair, or None for each."""
    if stitch is None:
        return [None] * len(hook_pairs)
    stitches = [stitch] if isinstance(stitch, Stitch) else list(stitch)
    if len(stitches) != len(hook_pairs):
        raise ValueError(
            f"{len(stitches)} stitch(es) for {len(hook_pairs)} pair(s) of hook points; give one "
            "for each"
        )
    for one, (at, to) in zip(stitches, hook_pairs, strict=True):
        one.refuse_other_ends(*ends_of(source, target, at, to))
    return [*stitches]


def _layer_rows(
    concepts: Sequence[Concept],
    models: tuple[HookedModel, HookedModel],
    hook_pairs: list[tuple[str, str]],
    stitches: list[Stitch | None],
    rows: Sequence[dict[str, PairRows]] | None,
    settings: ConceptTransferSettings,
) -> list[LayerRows]:
    """Rows of all concepts per hook pair, read from the models if ``rows`` is None."""
    sets = [concept.contrast for concept in concepts]
    if rows is None:
        rows = [
            read_rows(
                models,
                sets,
                source_hook=at,
                target_hook=to,
                read=settings.read,
                short_texts=settings.short_texts,
            )
            for at, to in hook_pairs
        ]
    if len(rows) != len(hook_pairs):
        raise ValueError(
            f"rows of {len(rows)} pair(s) of hook points given for {len(hook_pairs)}; give one for "
            "each"
        )
    return [
        LayerRows(at, to, known_rows(one, sets, ends_of(*models, at, to), settings.read), stitch)
        for (at, to), stitch, one in zip(hook_pairs, stitches, rows, strict=True)
    ]


# -------------------------------------------------------------------------------------- measurement


class _SteeredModel:
    """Items and neutral texts of one model, prepared for steering at one or several hook points.

    Prompts are computed up to the first hook point once; vectors at later hook points are added by
    hooks.
    """

    def __init__(
        self,
        model: HookedModel,
        concept: Concept,
        vectors: tuple[SteeringVector, ...],
        neutral: Sequence[str] | None,
        settings: ConceptTransferSettings,
    ) -> None:
        first = min(vectors, key=lambda vector: depth(vector.hook)).hook
        self.model, self.betas, self.budget = model, settings.betas, settings.damage
        self.positions: Positions = settings.positions
        self.items = PreferenceText(model, concept.items, first)
        self.neutral = None
        if neutral is not None:
            skip_first = Intervention.of(vectors, positions=settings.positions).skip_first
            self.neutral = NeutralText(model, neutral, first, skip_first=skip_first)
        self.unsteered = self.items.propensity()
        # Length of the vectors at the budget, by arm of several draws.
        self._last_step: dict[str, float] = {}

    def measure(self, arm: ConceptArm) -> ArmCurve:
        """Propensities at every β, and with a budget at further strengths around equal damage."""
        curve = self._at(arm, self.betas)
        # `random` and `random_matched` differ in length only, so they agree at equal damage.
        if self.budget is not None and arm.name != "random":
            curve = joined_curve(curve, self._around(arm, self.budget))
        return ArmCurve(arm, curve)

    def refit(self, arm: ConceptArm, whole: ArmCurve) -> ContrastRefit:
        """Effects of an arm without a group of contrast pairs, whose ``whole`` curve is known."""
        first, later = self._hooks(arm, 1.0)
        with entering(), self.model.intervene(later):
            at_one = float((self.items.propensity(first) - self.unsteered).mean())
        budget = self.budget
        step = math.nan if budget is None else whole.upward.scale_at(budget) * whole.arm.length
        if budget is None or math.isnan(step):
            return ContrastRefit(at_one, math.nan)
        curve = self._near(arm, budget, step)
        return ContrastRefit(at_one, float(curve.effect_at(budget).mean()))

    @property
    def n_tokens(self) -> np.ndarray:
        """Number of tokens of each neutral text that count, [text]; empty without such texts."""
        return np.zeros(0) if self.neutral is None else self.neutral.n_tokens

    def _at(self, arm: ConceptArm, betas: Sequence[float]) -> Curve:
        """Return the curve at these β and at 0, ascending."""
        # β = 0 needs no pass: nothing is steered, and the damage is 0 by definition.
        measured = {0.0: (self.unsteered, np.zeros(len(self.n_tokens)))}
        for beta in betas:
            first, later = self._hooks(arm, beta)
            with entering(), self.model.intervene(later):
                measured[float(beta)] = self.items.propensity(first), self._rises(first)
        scales = sorted(measured)
        rises, propensities = (
            np.array([measured[beta][part] for beta in scales]) for part in (1, 0)
        )
        return Curve(np.array(scales), rises, self.n_tokens, propensities)

    def _rises(self, first: SteeringHook) -> np.ndarray:
        if self.neutral is None:
            return np.zeros(0)
        return self.neutral.losses(first) - self.neutral.unsteered

    def _around(self, arm: ConceptArm, budget: float) -> Curve:
        """Return the curve at strengths around the budget; none if the budget is not met."""
        # Draws of one arm need steps of about the same length, so only the first is searched.
        step = self._last_step.get(arm.name)
        if step is not None:
            curve = self._near(arm, budget, step)
            if not math.isnan(scale := curve.scale_at(budget)):
                self._last_step[arm.name] = scale * arm.length
            return curve

        # The item passes and the neutral passes share the hooks, so later hooks are registered
        # here.
        def measure(beta: float) -> float:
            first, later = self._hooks(arm, beta)
            with entering(), self.model.intervene(later):
                return float(self._rises(first).sum() / self.n_tokens.sum())

        found = search_scale(measure, budget, first_guess=1.0, tolerance=0.05)
        if not found.reached:
            return self._at(arm, [])
        if arm.draw is not None:
            self._last_step[arm.name] = found.scale * arm.length
        return self._at(arm, [found.scale * share for share in _AROUND])

    def _near(self, arm: ConceptArm, budget: float, step: float) -> Curve:
        """Return a curve of few β around the budget, which a step of this length should meet."""
        return bracketing_curve(lambda betas: self._at(arm, betas), budget, step / arm.length)

    def _hooks(self, arm: ConceptArm, beta: float) -> tuple[SteeringHook, dict[int | str, Any]]:
        """Return the hook at the first hook point, and the hooks at the later ones.

        Later hooks are told by the first one at which positions prompts end.
        """
        first, *later = Intervention.of(arm.vectors, positions=self.positions).hooks(beta).items()
        return first[1], dict(later)
