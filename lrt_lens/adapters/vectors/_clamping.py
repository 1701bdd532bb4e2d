"""Clamp steering: how often do continuations show a concept, with the component held at its mean?

    result = evaluate_clamping(pair, stitch, vector, prompts, classifier, concept_texts=texts)
    result.summary    # share of continuations per arm, with intervals and the clipped ratio

Problem: does a transferred direction make the target write about its concept? Mechanism: Stitching
(arXiv 2506.06609, §4). With the unit vector v̂ and z̄ the mean component ⟨h, v̂⟩ over texts of the
concept, ``h' = h + (z̄ − ⟨h, v̂⟩) v̂``. The vector is transferred without the bias of the map. z̄
is computed in the target, so the transferred arm does use the target on concept texts: the
direction is transferred, its level is not. ``level="recentred"`` transfers it: every arm is clamped
as many standard deviations above the mean of unlabelled texts as z̄ is in the source
(`recentre_level`); the summary shows this level and that of the source beside each other. The
paper's outcome is the *clipped transfer ratio*, clip(share under transferred ÷ share under native,
0, 1), with 0/0 := 0. It counts what the model does without steering as success; ``ratio_of_rises``
therefore subtracts the share without steering from both shares.

Controls are clamped in the same way, each to its own level: random directions, maps of shuffled
pairs, and the untransformed vector if widths agree. A draw of a control is generated once per
prompt (``draw_samples``), so that 20 draws cost as much as five of four samples.

Limits: intervals hold for other prompts of the same kind (continuations of one prompt are one
cluster), not for other contrast pairs or another map: generation is too slow for refits. A draw of
few samples varies more than a direction does, which makes p-values larger.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.vectors._arms import behaviour_arms, known_contrast_of
from lrt_lens.adapters.vectors._continuations import Classifier, Continuations
from lrt_lens.adapters.vectors._levels import level_between
from lrt_lens.adapters.vectors._steering_hook import Positions
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.adapters.vectors._vector_arm import VectorArm
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.figures._behaviour import clamp_figure
from lrt_lens.figures._template import count_range, with_counts
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._reading import readable
from lrt_lens.models._text_codec import text_list
from lrt_lens.statistics._bootstrap import bootstrap_ratio
from lrt_lens.statistics._correlations import bootstrap_rank_correlation
from lrt_lens.statistics._draws import prediction_interval, rank_test, typical_size
from lrt_lens.statistics._intervals import NOTHING, Interval, joined_flags
from lrt_lens.statistics._shares import clustered_share
from lrt_lens.stitching._stitch import Stitch

MOST_UNDEFINED = 0.05
"""Share of resamples without a value above which `frequency_trend` returns no interval."""


@dataclass(frozen=True)
class ClampSettings(Settings):
    """Settings of `evaluate_clamping`: sampling of continuations, positions and controls."""

    n_samples: int = 4
    """Number of continuations per prompt."""
    max_new_tokens: int = 40
    """Number of tokens per continuation."""
    temperature: float = 0.8
    """Temperature of sampling."""
    top_k: int | None = 40
    """Number of most probable tokens to sample from; None for all."""
    positions: Positions = "all"
    """Clamped positions, see `SteeringVector.hooks`."""
    level: Literal["target", "recentred"] = "target"
    """``"target"``: z̄ of each arm, measured in the target on texts of the concept (the paper's).
    ``"recentred"``: z̄ of the source, transferred with the contrast texts as unlabelled texts, so
    that nothing in the target says which texts show the concept; native keeps its own."""
    n_random: int = 20
    """Number of random directions: half isotropic, half with the covariance of the target's
    stream."""
    n_shuffled: int = 20
    """Number of maps of shuffled pairs: that of the stitch, and draws of such maps."""
    draw_samples: int = 1
    """Number of continuations per prompt for each draw of a control, at most ``n_samples``."""
    seed: int = 0
    """Seed of directions, samples (the same for all arms) and bootstraps."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True, repr=False)
class ClampEvaluation(ShortRepr):
    """Continuations under clamp steering, and the share of them that show the concept, per arm."""

    table: pd.DataFrame
    """One row per arm, draw, prompt and sample: concept, level, text, shows (the classifier's
    answer)."""
    summary: pd.DataFrame
    """One row per arm.

    Columns: concept, n_draws, count, n, share with low and high, clipped_ratio and ratio_of_rises
    (to native), each with its low and high, level (the clamped component; mean over draws),
    level_raw (z̄ of the source, for ``transferred``) and level_recentred (that level in units of
    the target, from unlabelled texts), cosine to the native vector, contains (what the intervals
    hold for), interval_flag (what is doubtful about them).

    Intervals are over prompts, of which all continuations are one cluster. For ``random`` and
    ``shuffled`` they are where a new draw falls. These have three more columns: typical_size (root
    mean square over draws of the change of the share), transferred_p (two-sided p-value of the
    change under ``transferred`` among those of the draws), p_floor (the smallest one that so many
    draws can give).
    """

    def figure(self) -> Any:
        """Return a plotly figure of the shares of continuations with their intervals."""
        counts = {"continuations per arm": count_range(self.summary, "n")}
        return with_counts(clamp_figure(self.summary), counts)

    def _repr_html_(self) -> str:
        return card("ClampEvaluation", table(self.summary))


@takes(ClampSettings)
def evaluate_clamping(
    pair: ModelPair,
    stitch: Stitch,
    vector: SteeringVector,
    prompts: Sequence[str],
    classifier: Classifier,
    *,
    concept_texts: Sequence[str] | None = None,
    contrast: ContrastSet | None = None,
    settings: ClampSettings | None = None,
    **options: Any,
) -> ClampEvaluation:
    """Return the share of the target's continuations that show the concept, per arm.

    Clamp and clipped ratio of Stitching (arXiv 2506.06609, §4).

    Args:
        pair: both models.
        stitch: a stitch from the vector's hook point to a hook point of the target.
        vector: learnt on the source.
        prompts: texts to continue, neutral with respect to the concept.
        classifier: function of a continuation (without its prompt) that returns True or False.
        concept_texts: texts of the concept, on which z̄ is computed in the target; the positive
            texts of the contrast set by default.
        contrast: texts from which the native vector is learnt; by default those of the vector, if
            it still holds them.
        settings: all settings; see `ClampSettings`.
        options: fields of `ClampSettings` as keywords.

    Raises:
        ValueError: no prompts, or the contrast texts are unknown.
        TypeError: the classifier does not return a bool.
        MismatchError: a stitch of other models, a vector of another model or hook point, or
            contrast texts that the vector was not learnt from.
    """
    settings = resolve(ClampSettings, settings, options)
    if settings.level not in ("target", "recentred"):
        raise ValueError(f"level is {settings.level!r}; expected 'target' or 'recentred'")
    stitch.check(pair.source, pair.target)
    stitch.refuse_foreign(vector.origin)
    contrast = known_contrast_of(vector, contrast)
    outcome = Continuations(
        prompts,
        classifier,
        settings.n_samples,
        settings.max_new_tokens,
        settings.temperature,
        settings.top_k,
        settings.seed,
    )
    level_texts = text_list(contrast.positive if concept_texts is None else concept_texts)
    arms = behaviour_arms(
        pair,
        stitch,
        vector,
        contrast,
        n_random=settings.n_random,
        n_shuffled=settings.n_shuffled,
        seed=settings.seed,
    )
    draws = replace(outcome, n_samples=min(settings.draw_samples, settings.n_samples))
    parts = [_rows("none", None, math.nan, outcome, outcome.generate(pair.target))]
    bar = tqdm(arms, desc=f"clamp {vector.name}", disable=not settings.progress, leave=False)
    transfer = _LevelTransfer(pair, vector, level_texts, contrast.texts)
    for arm in bar:
        # z̄ of this arm: the mean of ⟨h, v̂⟩ on the target, not on the source.
        level = arm.vector.mean_component(pair.target, level_texts)
        if settings.level == "recentred" and arm.name != "native":
            level = transfer.to(arm.vector)
        rule: dict[str, Any] = {"mode": "clamp", "level": level, "positions": settings.positions}
        intervene = partial(arm.vector.apply, pair.target, scale=1.0, **rule)
        of = outcome if arm.draw is None else draws
        texts = of.generate(pair.target, intervene)
        parts.append(_rows(arm.name, arm.draw, level, of, texts))
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "concept", vector.name)
    summary = _summary(table, arms, settings.seed)
    return ClampEvaluation(table=table, summary=_with_levels(summary, transfer, arms))


def _with_levels(
    summary: pd.DataFrame, transfer: "_LevelTransfer", arms: list[VectorArm]
) -> pd.DataFrame:
    """Return the summary with both forms of the transferred level, whichever was clamped to."""
    ours = next(arm.vector for arm in arms if arm.name == "transferred")
    is_ours, after = summary["arm"] == "transferred", list(summary).index("level")
    levels = {"level_raw": transfer.level, "level_recentred": transfer.to(ours)}
    for place, (name, value) in enumerate(levels.items(), start=after + 1):
        summary.insert(place, name, np.where(is_ours, value, math.nan))
    return summary


class _LevelTransfer:
    """The level z̄ of the source, and what it is for other directions of the target."""

    def __init__(
        self,
        pair: ModelPair,
        vector: SteeringVector,
        concept_texts: Sequence[str],
        texts: Sequence[str],
    ) -> None:
        self.target = pair.target
        self.texts = readable([pair.source, pair.target], texts, "mean").of(texts)
        self.level = vector.mean_component(pair.source, concept_texts)
        self.components = vector.components(pair.source, self.texts)

    def to(self, vector: SteeringVector) -> float:
        """Return the level along a vector of the target, from the unlabelled texts."""
        own = vector.components(self.target, self.texts)
        return level_between(self.level, self.components, own)


def clipped_ratio(transferred: float, native: float) -> float:
    """Return clip(transferred ÷ native, 0, 1) with 0/0 := 0 (Stitching, §4)."""
    # x/0 with x > 0 is infinity, which is clipped to 1.
    if native == 0:
        return 1.0 if transferred > 0 else 0.0
    return min(max(transferred / native, 0.0), 1.0)


def frequency_trend(
    frequency: Sequence[float], ratio: Sequence[float], *, seed: int = 0
) -> tuple[Interval, float]:
    """Return Spearman's correlation of clipped ratio and frequency, and the undefined share.

    Stitching, figure 11. Concepts are resampled with both of their numbers, and percentiles are
    widened for their number; the interval has a flag with fewer than ten concepts. A resample in
    which all ratios or all frequencies are equal has no correlation and is left out of the
    percentiles. The second number returned is the share of such resamples; if it exceeds
    ``MOST_UNDEFINED``, the ends of the interval are NaN. The correlation is NaN if the concepts
    themselves have none.

    Args:
        frequency: frequency of each concept, on any scale, because only ranks count.
        ratio: clipped ratio of each concept.
        seed: seed of the resamples.
    """
    correlation, undefined = bootstrap_rank_correlation(
        np.asarray(frequency, dtype=float), np.asarray(ratio, dtype=float), seed=seed
    )
    if undefined > MOST_UNDEFINED:
        flag = f"no correlation in {undefined:.0%} of resamples"
        correlation = Interval(correlation.value, math.nan, math.nan, flag)
    return correlation, undefined


def _rows(
    arm: str, draw: int | None, level: float, outcome: Continuations, texts: list[str]
) -> pd.DataFrame:
    # `Continuations.generate` returns all prompts of sample 0, then all of sample 1, and so on.
    sample, prompt = np.divmod(np.arange(len(texts)), outcome.n_prompts)
    columns = {
        "arm": arm,
        "draw": draw,
        "level": level,
        "prompt": prompt,
        "sample": sample,
        "text": texts,
        "shows": outcome.judge(texts),
    }
    return pd.DataFrame(columns).astype({"draw": "Int64"})


class _Answers:
    """Answers of the classifier under one arm."""

    def __init__(self, part: pd.DataFrame) -> None:
        self.by_draw = [
            # Rows are sorted by prompt, then by sample: [prompt, sample]
            one.sort_values(["prompt", "sample"])["shows"]
            .to_numpy(dtype=float)
            .reshape(one["prompt"].nunique(), -1)
            for _, one in cast(Any, part.groupby("draw", dropna=False, sort=True))
        ]
        self.is_drawn = bool(part["draw"].notna().any())

    @property
    def by_prompt(self) -> np.ndarray:
        """Share of each prompt's continuations, [prompt], of an arm of one vector."""
        return self.by_draw[0].mean(1)

    def rises(self, none: "_Answers") -> list[float]:
        """Return the change of the share in each draw, on the samples that the draw has."""
        # Sample k has the same seed in all arms.
        [base] = none.by_draw
        return [float(one.mean() - base[:, : one.shape[1]].mean()) for one in self.by_draw]

    def share(self) -> Interval:
        """Return the share of continuations: over prompts, or where a new draw falls."""
        if self.is_drawn:
            new_draw = prediction_interval([float(one.mean()) for one in self.by_draw])
            return new_draw.within()
        [one] = self.by_draw
        return clustered_share(one.sum(1), one.shape[1])


def _summary(table: pd.DataFrame, arms: list[VectorArm], seed: int) -> pd.DataFrame:
    # pandas' stubs take a group's column for a number.
    groups = cast(Any, table.groupby("arm", sort=False))
    answers = {str(name): _Answers(part) for name, part in groups}
    native, none = answers["native"], answers["none"]
    [transferred] = answers["transferred"].rises(none)
    rows = []
    for name, part in groups:
        arm = answers[str(name)]
        share = arm.share()
        # The paper's ratio subtracts nothing; the ratio of rises subtracts the unsteered share.
        ratio = _ratio(arm, native, None, seed)
        rises = _ratio(arm, native, none, seed)
        row = {
            "concept": part["concept"].iloc[0],
            "arm": name,
            "n_draws": len(arm.by_draw),
            "count": int(part["shows"].sum()),
            "n": len(part),
            "share": share.value,
            "low": share.low,
            "high": share.high,
            "clipped_ratio": ratio.value,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
            "ratio_of_rises": rises.value,
            "rises_low": rises.low,
            "rises_high": rises.high,
            "level": part["level"].mean(),
            "cosine": _cosine(arms, str(name)),
            "contains": "draws" if arm.is_drawn else "prompts",
            "interval_flag": joined_flags([share.flag, ratio.flag, rises.flag]),
        }
        if arm.is_drawn:
            test = rank_test(transferred, arm.rises(none))
            row |= {"typical_size": typical_size(arm.rises(none))}
            row |= {"transferred_p": test.p, "p_floor": test.floor}
        rows.append(row)
    return pd.DataFrame(rows)


def _ratio(arm: _Answers, native: _Answers, none: _Answers | None, seed: int) -> Interval:
    """Return the clipped ratio of shares above those of ``none``, with its interval.

    Over prompts for an arm of one vector (Fieller's ends, clipped), else where a new draw falls.
    It is undefined if native is not above ``none``, and may be anything if native may be at
    ``none``.
    """
    base = np.zeros_like(native.by_prompt) if none is None else none.by_prompt
    own = float((native.by_prompt - base).mean())
    # If native steering does not raise the share, there is no rise to divide by.
    if base.any() and own <= 0:
        return NOTHING
    if arm.is_drawn:
        rises = [float(x.mean()) for x in arm.by_draw] if none is None else arm.rises(none)
        new_draw = prediction_interval([clipped_ratio(rise, own) for rise in rises])
        return new_draw.within()
    rise = arm.by_prompt - base
    # clip((transferred − none) / max(native − none, 0), 0, 1)
    value = clipped_ratio(float(rise.mean()), max(own, 0.0))
    if arm is native and own > 0:
        return Interval(1.0, 1.0, 1.0)
    ratio = bootstrap_ratio(rise, native.by_prompt - base, seed=seed)
    if math.isnan(ratio.low):
        return Interval(value, 0.0, 1.0, "native may do nothing, so its ratio may be anything")
    low, high, flag = ratio.low, ratio.high, ratio.flag.replace("items", "prompts")
    # An arm that shows the concept never or always has no variation to resample.
    if none is None and value in (0.0, 1.0) and np.ptp(arm.by_prompt) == 0:
        ours, theirs = arm.share(), native.share()
        low = min(low, ours.low / theirs.high)
        high = max(high, ours.high / theirs.low) if theirs.low > 0 else 1.0
        flag = ours.flag
    return Interval(value, low, high, flag).within()


def _cosine(arms: list[VectorArm], name: str) -> float:
    """Return the mean cosine of an arm's vectors to the native one; NaN for an arm without any."""
    cosines = [arms[0].vector.cosine(arm.vector) for arm in arms if arm.name == name]
    return float(np.mean(cosines)) if cosines else math.nan
