"""Comparison of maps between families: prediction of held-out text, and transferred artefacts.

    texts = fitting_texts(documents, moments)  # not in the test fold: for use as anchors
    stitches = {
        "ridge": grid[2, 3],
        "procrustes": anchor_stitch(pair, texts[:400], source_hook=2, target_hook=3),
    }
    result = evaluate_family_baselines(
        pair, stitches, moments=grid.moments, contrast=contrast, items=items, …
    )
    result.summary  # one row per method, with native, token identity and random
    result.figure()

Problem: methods without paired tokens are reported on tasks of their own. Mechanism: three
questions, for all methods on the same data:

- *Prediction*: R² and cosine of ``stitch.up`` on the test fold of the moments, over all its tokens,
  with intervals by the delete-a-group jackknife.
- *Steering*: the change of propensity by the transferred vector at equal damage (see
  `evaluate_steering`), as a share of the native vector's.
- *Reading*: the AUROC of the transferred probe on test texts, above chance, as a share of the
  native probe's.

Controls: every stitch's own ``null`` (the same method on shuffled or random pairs), random
directions and probes, native ones, and ``token_identity``, if the moments hold the source's
embedding: it predicts states, and reads by ``token_map``, but there is no vector to transfer.

Intervals of effects hold for other items, neutral texts and contrast pairs (the column
``effect_contains``), those of AUROCs for other test texts; neither holds for other training texts
of the probes or another map. Random directions and probes have the interval that a new draw falls
into, and each method a two-sided p-value among them.

A map of shuffled pairs is one draw and may point either way, so ``effect_null`` and ``auroc_null``
come with the interval that another such map falls into, and each method with its p-value among
these draws. They are drawn as in `lrt_lens.adapters.vectors._arms` and
`lrt_lens.adapters.probes._probe_arms`: exactly what ridge gives for shuffled pairs, and for other
methods an approximation.

Limits: the methods use different amounts of data, which is intended for some of them: a map of
anchors has hundreds of rows, ridge has all tokens. ``anchor_ridge`` has the anchors' data without a
method. Maps of texts' means are evaluated on tokens here. R² penalises a wrong length of the
prediction; cosine, equal damage and AUROC do not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, note, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.concepts._concept_map import contrast_sets
from lrt_lens.adapters.probes._labels import class_numbers, label_list
from lrt_lens.adapters.probes._linear_probe import LinearProbe, probe_through
from lrt_lens.adapters.probes._logistic import probabilities
from lrt_lens.adapters.probes._probe_arms import shuffled_draws
from lrt_lens.adapters.probes._probe_rows import read_rows
from lrt_lens.adapters.vectors._arm_meter import ArmMeter
from lrt_lens.adapters.vectors._arms import drawn_arms, shuffled_arms
from lrt_lens.adapters.vectors._contrast_states import ContrastStates, states_without_groups
from lrt_lens.adapters.vectors._equal_damage import ITEMS, TEXTS, Curve, item_clusters
from lrt_lens.adapters.vectors._sources import CONTRAST, ratio_error, total
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.adapters.vectors._vector_arm import VectorArm
from lrt_lens.baselines._text_rows import RowRead
from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.data._parts import N_FOLDS, document_key, part_of
from lrt_lens.errors import HookPointError
from lrt_lens.figures._family_baselines import family_figure
from lrt_lens.figures._template import with_counts
from lrt_lens.models._belonging import refuse_other_models
from lrt_lens.models._hook_points import EMBED, HookPair
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._reading import ShortTexts, readable, row_rule
from lrt_lens.models._text_codec import text_list
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._scatter import score_map
from lrt_lens.statistics._bootstrap import Clusters, Resamples, bootstrap_statistic
from lrt_lens.statistics._classification import auroc, auroc_interval
from lrt_lens.statistics._draws import prediction_interval, rank_test, typical_size
from lrt_lens.statistics._intervals import NOTHING, Interval, joined_flags
from lrt_lens.statistics._jackknife import jackknife_error
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching._diagnostics import score_intervals
from lrt_lens.stitching._fit import token_identity_map
from lrt_lens.stitching._stitch import Stitch

CONTROLS = ("native", "token_identity", "random")
"""Rows of the summary that are no stitch."""


@dataclass(frozen=True, repr=False)
class FamilyBaselines(ShortRepr):
    """Prediction, steering and reading of every method, with their controls."""

    summary: pd.DataFrame
    """One row per method, best prediction first, controls last.

    Columns: r2, r2_uniform and cosine with low and high, r2_down, r2_uniform_down, r2_null; effect
    (nats at equal damage) and fraction_of_native with low and high, effect_null; auroc and
    share_of_native with low and high, auroc_null; flag; interval_flag (what is doubtful about an
    interval); effect_p and auroc_p (two-sided p-value of the effect, and of the AUROC's distance
    from ½, among those of random draws), effect_p_floor and auroc_p_floor (the smallest ones that
    so many draws can give); effect_null_low and effect_null_high, auroc_null_low and
    auroc_null_high (where another map of shuffled pairs falls), effect_shuffled_p and
    auroc_shuffled_p (p-values among such maps) with their floors; effect_contains (what varies in
    the intervals of effect and fraction), effect_contrast_error and fraction_contrast_error
    (standard errors that the contrast pairs cause).

    The row ``random`` has the intervals that a new draw falls into, and typical_size (root mean
    square of the effects).
    """
    budget: float
    """Damage in nats per token at which vectors are compared."""
    source_hook: str
    """Hook point of the source."""
    target_hook: str
    """Hook point of the target."""
    n_items: int
    """Number of choice items of the steering comparison."""
    n_test: int
    """Number of test texts of the probes."""
    n_dropped: int = 0
    """Number of texts of the probes left out because the mask leaves nothing of them in one of the
    models."""

    def figure(self) -> Any:
        """Return a plotly figure of prediction, steering and reading per method."""
        counts = {"items": self.n_items, "test texts": self.n_test}
        return with_counts(family_figure(self.summary), counts)

    def _repr_html_(self) -> str:
        about = (
            f"{self.source_hook} → {self.target_hook}: R² on held-out tokens, effects in nats at a "
            f"damage of {self.budget:g} nats per token ({self.n_items} items), AUROC on "
            f"{self.n_test} texts."
        )
        return card("FamilyBaselines", note(about), table(self.summary))


@dataclass(frozen=True)
class FamilyBaselineSettings(Settings):
    """Settings of `evaluate_family_baselines`: damage, read position, controls and seed."""

    token_map: AffineMap | None = None
    """Map from the target's embedding to the source hook point, for reading by token identity.

    It is the ``token_identity_map`` of a harvest of ``pair.reversed()``.
    """
    damage: float = 0.1
    """Damage in nats per token on neutral text at which vectors are compared."""
    read: RowRead = "mean"
    """Tokens that probes read: ``"mean"`` over a text, or the ``"last"`` one."""
    short_texts: ShortTexts = "drop"
    """Rule for texts that the mask leaves nothing of in one of the models: ``"drop"``,
    ``"refuse"`` or ``"unmasked"``."""
    n_random: int = 20
    """Number of random directions, and of random probes."""
    n_shuffled: int = 20
    """Number of maps of shuffled pairs: that of each stitch, and draws of such maps."""
    n_contrast_groups: int = 8
    """Number of groups of contrast pairs that are left out one at a time, for the share of an
    interval that the contrast texts cause; 0 leaves that share out."""
    seed: int = 0
    """Seed of draws and bootstraps."""
    progress: bool = True
    """Show a progress bar."""


@takes(FamilyBaselineSettings)
def evaluate_family_baselines(
    pair: ModelPair,
    stitches: Mapping[str, Stitch],
    *,
    moments: CrossMoments,
    contrast: ContrastSet,
    items: ChoiceItems,
    neutral: Sequence[str],
    texts: Sequence[str],
    labels: Sequence[Any],
    test_texts: Sequence[str],
    test_labels: Sequence[Any],
    settings: FamilyBaselineSettings | None = None,
    **options: Any,
) -> FamilyBaselines:
    """Return prediction, steering and reading of every stitch, with controls.

    Args:
        pair: both models; their tokenizers may differ.
        stitches: stitches by the name of their method, all between the same two hook points.
        moments: moments of that hook pair. Their test fold is the test set, so no anchor may come
            from it (`fitting_texts`).
        contrast: texts from which the vectors are learnt.
        items: prompts with continuations.
        neutral: texts on which damage is measured.
        texts: texts from which probes are learnt.
        labels: their labels, of two classes.
        test_texts: texts on which probes are tested.
        test_labels: their labels.
        settings: the options; each may be passed as a keyword instead.
        options: fields of `FamilyBaselineSettings`.

    Raises:
        ValueError: no stitch, a stitch with the name of a control, one class, or fewer than 4
            items.
        MismatchError: stitches of several hook pairs, or stitches, moments or a token map of other
            models; a token map between other hook points.
        HookPointError: the moments do not hold that hook pair.
    """
    settings = resolve(FamilyBaselineSettings, settings, options)
    first = _check_stitches(pair, stitches, moments)
    _check_data(contrast, items, settings)
    if settings.token_map is not None:
        models = (pair.source.identity, pair.target.identity)
        first.refuse_other_token_map(settings.token_map, *models)
    hooks = (first.source_hook, first.target_hook)
    steering = _Steering(pair, first, contrast, items, neutral, settings)
    reading = _Reading(pair, hooks, (texts, labels), (test_texts, test_labels), settings)
    questions = (
        _prediction(stitches, moments, hooks),
        steering.rows(stitches),
        reading.rows(stitches),
    )
    # Methods are sorted by the score that counts every dimension alike; controls come last.
    order = [*sorted(stitches, key=lambda name: -questions[0][name]["r2_uniform"]), *CONTROLS]
    rows: list[dict[str, Any]] = [{"method": name} for name in order]
    for row in rows:
        for answers in questions:
            answer: dict[str, Any] = dict(answers.get(row["method"], {}))
            # Two questions may each have a doubt about their intervals.
            flags = [str(one.get("interval_flag", "")) for one in (row, answer)]
            row |= answer | {"interval_flag": joined_flags(flags)}
    summary = pd.DataFrame(rows)
    # A null that no stitch has is left out; a score that was not reached stays, as NaN.
    nulls = summary.filter(regex="_null$")
    known = nulls.dropna(axis="columns", how="all")
    summary = summary.drop(columns=[name for name in nulls if name not in known])
    counts = (len(items), len(reading.texts), reading.n_dropped)
    return FamilyBaselines(summary, settings.damage, *hooks, *counts)


def fitting_texts(documents: Sequence[str], moments: CrossMoments) -> list[str]:
    """Return the documents that are not in the test fold of these moments, each once.

    Anchors and unpaired texts may be taken from them.

    Raises:
        MismatchError: groups, which the texts alone do not tell, decided the folds.
    """
    seed = moments.provenance.seed
    moments.provenance.refuse_other_folds(None)
    return [
        # dict.fromkeys drops repeats and keeps the order.
        text
        for text in dict.fromkeys(documents)
        if part_of(document_key(text, seed)) < N_FOLDS
    ]


def _check_data(
    contrast: ContrastSet, items: ChoiceItems, settings: FamilyBaselineSettings
) -> None:
    contrast_sets(contrast)
    if len(items) < 4:
        raise ValueError(
            f"{len(items)} item(s) given; an interval over items needs at least 4: give more items"
        )
    if settings.read not in ("mean", "last"):
        raise ValueError(f"read is {settings.read!r}; expected 'mean' or 'last'")


def _check_stitches(
    pair: ModelPair, stitches: Mapping[str, Stitch], moments: CrossMoments
) -> Stitch:
    """Return the first stitch, after a check that all connect the same hook points."""
    if not stitches or set(stitches) & set(CONTROLS):
        raise ValueError(
            f"stitches is {sorted(stitches)}; "
            f"expected at least one, none of them called {list(CONTROLS)}"
        )
    first = next(iter(stitches.values()))
    hooks = (first.source_hook, first.target_hook)
    # All methods are compared at one hook pair, that of the first stitch.
    for name, stitch in stitches.items():
        stitch.check(pair.source, pair.target)
        stitch.refuse_other_ends(
            first.start, first.end, what=f"stitch {name!r}", remedy="compare maps of one hook pair"
        )
    if hooks not in moments.pairs:
        raise HookPointError(
            f"these moments hold no hook pair {hooks[0]!r} → {hooks[1]!r}; "
            f"they hold {len(moments.pairs)}, such as {moments.pairs[0]}: harvest that pair, or "
            "give stitches of a harvested one"
        )
    of = moments.provenance
    models = (pair.source.identity, pair.target.identity)
    refuse_other_models("these moments", (of.source, of.target), models)
    return first


# ---------------------------------------------------------------- prediction


def _prediction(
    stitches: Mapping[str, Stitch], moments: CrossMoments, hooks: HookPair
) -> dict[str, dict[str, float]]:
    test = moments.scatter(hooks, moments.parts.test)
    rows = {}
    for name, stitch in stitches.items():
        # `down` predicts the source from the target, so the sides of the moments are exchanged.
        down = score_map(stitch.down.weight.double(), stitch.down.bias.double(), test.swapped())
        scores = {"r2_down": down.r2, "r2_uniform_down": down.r2_uniform}
        if stitch.null is not None:
            null = stitch.null.up
            scores["r2_null"] = score_map(null.weight.double(), null.bias.double(), test).r2
        rows[name] = _scores(stitch.up, moments, hooks) | scores
    if moments.token_hook is not None:
        token = token_identity_map(moments, hooks[1])
        rows["token_identity"] = _scores(token, moments, (moments.token_hook, hooks[1]))
    return rows


def _scores(affine: AffineMap, moments: CrossMoments, hook_pair: HookPair) -> dict[str, float]:
    columns = {"value": "", "low": "_low", "high": "_high"}
    return {
        f"{row['score']}{ending}": float(row[column])
        for row in score_intervals(affine, moments, hook_pair).to_dict("records")
        for column, ending in columns.items()
    }


# ---------------------------------------------------------------- steering


class _Steering:
    """Items and neutral texts, prepared once at the target's hook point."""

    def __init__(
        self,
        pair: ModelPair,
        first: Stitch,
        contrast: ContrastSet,
        items: ChoiceItems,
        neutral: Sequence[str],
        settings: FamilyBaselineSettings,
    ) -> None:
        self.first, self.settings = first, settings
        self.meter = ArmMeter(pair.target, items, neutral, budget=settings.damage, both_signs=False)
        n_texts = len(self.meter.at(first.target_hook)[1].n_tokens)
        self.resamples = Resamples(
            {ITEMS: item_clusters(items), TEXTS: Clusters.single(n_texts)}, seed=settings.seed
        )
        # The source's vector is learnt once and transferred by every stitch.
        rule: dict[str, Any] = {"short_texts": settings.short_texts}
        hook = first.source_hook
        self.vector = SteeringVector.mean_difference(pair.source, contrast, at=hook, **rule)
        self.own, self.states = (
            self.vector.states(model, contrast, at=at)
            for model, at in ((pair.source, hook), (pair.target, first.target_hook))
        )
        self.native = SteeringVector.learnt_from(self.states, self.vector.method)

    def rows(self, stitches: Mapping[str, Stitch]) -> dict[str, dict[str, Any]]:
        """Return the effects at equal damage per method."""
        native = self.meter.measure(VectorArm("native", self.native)).plus
        groups = list(states_without_groups(self.own, self.states, self.settings.n_contrast_groups))
        reference = [self._refit("native", states, k) for k, (_, states) in enumerate(groups)]
        rows = {"native": self._row(native, native, reference, reference)}
        shuffled = self._shuffled()
        is_quiet = not self.settings.progress
        for name, stitch in tqdm(stitches.items(), desc="steer", disable=is_quiet, leave=False):
            transferred = VectorArm(name, stitch.transfer(self.vector))
            curve = self.meter.measure(transferred).plus
            refits = [self._refit(name, own, k, stitch) for k, (own, _) in enumerate(groups)]
            rows[name] = self._row(curve, native, refits, reference)
            if stitch.null is not None and self.settings.n_shuffled:
                image = stitch.transfer(self.vector, through=stitch.null.up)
                own = self._effect(VectorArm("shuffled", image, draw=0))
                rows[name] |= _beside_shuffled("effect", rows[name]["effect"], [own, *shuffled])
        arms = drawn_arms(self.first, self.native, self.settings.n_random, self.settings.seed)
        drawn = [self._effect(arm) for arm in arms]
        for row in rows.values():
            test = rank_test(row["effect"], drawn)
            row |= {"effect_p": test.p, "effect_p_floor": test.floor}
        if drawn:
            new_draw = prediction_interval(drawn)
            rows["random"] = _named("effect", new_draw) | {"interval_flag": new_draw.flag}
            rows["random"] |= {"typical_size": typical_size(drawn)}
        return rows

    def _shuffled(self) -> list[float]:
        """Return the effects of draws of maps of shuffled pairs, without that of a stitch.

        At equal damage only directions matter, and these have one distribution for all methods.
        """
        first, n, seed = self.first, self.settings.n_shuffled, self.settings.seed
        arms = shuffled_arms(first, self.vector, {}, n if first.null is not None else 0, seed)
        return [self._effect(arm) for arm in arms][1:]

    def _refit(
        self, name: str, states: ContrastStates, k: int, through: Stitch | None = None
    ) -> float:
        """Return the effect of a vector without one group of pairs, transferred by a stitch."""
        vector = SteeringVector.learnt_from(states, self.vector.method)
        vector = vector if through is None else through.transfer(vector)
        # The search begins at the step of the arm of this name.
        return self._effect(VectorArm(name, vector, draw=k))

    def _effect(self, arm: VectorArm) -> float:
        """Return the mean effect at the budget; NaN if no scale reaches it."""
        return self.meter.measure(arm).effect(self.settings.damage)

    def _row(
        self, curve: Curve, native: Curve, refits: list[float], reference: list[float]
    ) -> dict[str, Any]:
        """Return the effect and its fraction of native, with intervals over items, texts and pairs.

        ``refits`` are the effects without each group of pairs, ``reference`` those of native.
        """
        budget = self.settings.damage
        effect, own = (one.effect(budget, self.resamples) for one in (curve, native))
        error, share_error = jackknife_error(refits), ratio_error(refits, reference)
        groups = {CONTRAST: len(refits)}
        interval = total(effect.interval(self.resamples), {CONTRAST: error}, groups)
        share = total(effect.ratio(own, self.resamples), {CONTRAST: share_error}, groups)
        row: dict[str, Any] = _named("effect", interval)
        sources = [*self.resamples.sources, *([] if math.isnan(error) else [CONTRAST])]
        row |= {"effect_contains": ", ".join(sources), "effect_contrast_error": error}
        row |= {"fraction_contrast_error": share_error}
        row |= _named("fraction_of_native", share, "fraction")
        missed = "damage not bracketed" if math.isnan(interval.value) else ""
        doubts = joined_flags([interval.flag, share.flag])
        return row | {"flag": missed, "interval_flag": doubts}


# ---------------------------------------------------------------- reading


class _Reading:
    """Probes of the source and of the target, learnt from the same texts, and test rows."""

    def __init__(
        self,
        pair: ModelPair,
        hooks: HookPair,
        train: tuple[Sequence[str], Sequence[Any]],
        test: tuple[Sequence[str], Sequence[Any]],
        settings: FamilyBaselineSettings,
    ) -> None:
        self.pair, self.settings = pair, settings
        rule: dict[str, Any] = {"read": settings.read, "short_texts": settings.short_texts}
        kept = [readable([pair.source, pair.target], texts, **rule) for texts, _ in (train, test)]
        self.n_dropped = sum(one.n_dropped for one in kept)
        train, test = (
            (one.of(text_list(texts)), one.of(label_list(labels)))
            for one, (texts, labels) in zip(kept, (train, test), strict=True)
        )
        self.texts = test[0]
        options: dict[str, Any] = rule | {"seed": settings.seed}
        self.probe = LinearProbe.fit(pair.source, *train, at=hooks[0], **options)
        self.native = LinearProbe.fit(pair.target, *train, at=hooks[1], **options)
        if len(self.probe.classes) != 2:
            raise ValueError(
                f"labels are {list(self.probe.classes)}; this comparison takes two classes"
            )
        self.truth = class_numbers(list(test[1]), self.probe.classes)
        if len(set(self.truth.tolist())) != 2:
            raise ValueError(
                f"all {len(self.truth)} test labels are {test[1][0]!r}; "
                "an AUROC needs texts of both classes"
            )
        # All probes but token identity read these rows, so the texts are read once.
        self.x = self._states(hooks[1])

    def rows(self, stitches: Mapping[str, Stitch]) -> dict[str, dict[str, Any]]:
        """Return the AUROCs per method."""
        native = self._probabilities(self.native)
        rows = {"native": self._row(native, native)}
        for name, stitch in stitches.items():
            rows[name] = self._row(self._probabilities(stitch.transfer(self.probe)), native)
            if stitch.null is not None and self.settings.n_shuffled:
                shuffled = np.array(self._shuffled(stitch, stitch.null.down))
                centred = _beside_shuffled(
                    "auroc", rows[name]["auroc"] - 0.5, shuffled - 0.5, within=(-0.5, 0.5)
                )
                # Reading backwards is as far from chance as reading forwards.
                ends = ("auroc_null", "auroc_null_low", "auroc_null_high")
                rows[name] |= centred | {end: centred[end] + 0.5 for end in ends}
        token_map, n_random = self.settings.token_map, self.settings.n_random
        if token_map is not None:
            tokens = probe_through(self.probe, token_map, EMBED, self.pair.target.identity)
            scores = probabilities(tokens.logits(self._states(EMBED)))
            rows["token_identity"] = self._row(scores, native)
        drawn = np.array(self._random(n_random))
        for row in rows.values():
            # Reading backwards is as far from chance as reading forwards.
            test = rank_test(row["auroc"] - 0.5, drawn - 0.5)
            row |= {"auroc_p": test.p, "auroc_p_floor": test.floor}
        if n_random:
            new_draw = prediction_interval(drawn).within()
            rows["random"] = _named("auroc", new_draw) | {"interval_flag": new_draw.flag}
        return rows

    def _states(self, hook: str) -> Tensor:
        model, probe = self.pair.target, self.probe
        rule = row_rule(self.settings.short_texts)
        rows, _ = read_rows(model, self.texts, hook, probe.read, probe.skip_first, short_texts=rule)
        return rows

    def _probabilities(self, probe: LinearProbe) -> np.ndarray:
        return probabilities(probe.logits(self.x))

    def _row(self, scores: np.ndarray, native: np.ndarray) -> dict[str, Any]:
        seed = self.settings.seed
        row = _named("auroc", auroc_interval([scores], self.truth))
        columns = np.stack([scores[:, 1], native[:, 1], self.truth])
        own = auroc_interval([native], self.truth)
        # A native probe that may be at chance has no share.
        share = (
            bootstrap_statistic(_share_above_chance, columns, seed=seed)
            if own.low > 0.5
            else NOTHING
        )
        row |= _named("share_of_native", share, "share")
        return row | {"interval_flag": share.flag.replace("items", "test texts")}

    def _shuffled(self, stitch: Stitch, through: AffineMap) -> list[float]:
        """Return the AUROCs through maps of shuffled pairs, that of the stitch first."""
        n, seed = self.settings.n_shuffled, self.settings.seed
        draws = shuffled_draws(stitch.source_statistics, self.probe, n, seed)
        return [
            auroc(self._probabilities(stitch.transfer(probe, through=through)), self.truth)
            for probe in draws
        ]

    def _random(self, n: int) -> list[float]:
        generator = torch.Generator().manual_seed(self.settings.seed)
        weights = torch.randn(self.x.shape[1], n, generator=generator, dtype=torch.float64)
        logits = (self.x @ weights).T.numpy()
        # Only the order of the texts counts for an AUROC, so logits need no sigmoid.
        return [auroc(np.stack([-logit, logit], 1), self.truth) for logit in logits]


def _share_above_chance(columns: np.ndarray) -> float:
    """Return (AUROC − ½) as a share of native's, from [score, native's score, class] per text.

    It is NaN if a resample holds one class, and 0 if native is at chance.
    """
    truth = columns[2].astype(int)
    ours, native = (auroc(np.stack([-score, score], 1), truth) for score in columns[:2])
    # Without one of the classes an AUROC is NaN; `bootstrap_statistic` leaves such resamples out.
    return 0.0 if native <= 0.5 else float((ours - 0.5) / (native - 0.5))


def _beside_shuffled(
    name: str,
    value: float,
    draws: Sequence[float] | np.ndarray,
    *,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> dict[str, float]:
    """Return the columns that compare a value with those of maps of shuffled pairs.

    The first of ``draws`` is that of the method's own map; ``within`` are the least and the largest
    value that there can be.
    """
    new_draw, test = prediction_interval(draws).within(*within), rank_test(value, draws)
    return {
        f"{name}_null": float(draws[0]),
        f"{name}_null_low": new_draw.low,
        f"{name}_null_high": new_draw.high,
        f"{name}_shuffled_p": test.p,
        f"{name}_shuffled_p_floor": test.floor,
    }


def _named(name: str, interval: Interval, prefix: str | None = None) -> dict[str, float]:
    """Return an interval as the columns of a value, its low and its high end."""
    prefix = prefix or name
    return {name: interval.value, f"{prefix}_low": interval.low, f"{prefix}_high": interval.high}
