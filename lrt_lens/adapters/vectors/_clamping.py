"""Clamp steering: how often do continuations show a concept, with the component held at its mean?

    result = evaluate_clamping(pair, stitch, vector, prompts, classifier, concept_texts=texts)
    result.summary    # share of continuations per arm, with intervals and the clipped ratio

Problem: does a transferred direction make the target write about its concept? Mechanism: Stitching
(arXiv 2506.06609, §4). With the unit vector v̂ and z̄ the mean component ⟨h, v̂⟩ over texts of the
concept, ``h' = h + (z̄ − ⟨h, v̂⟩) v̂``. The vector is transferred without the bias of the map. z̄
is computed in the target, so the transferred arm does use the target on concept texts: the
direction is transferred, its level is not. The paper's outcome is the *clipped transfer ratio*,
clip(share under transferred ÷ share under native, 0, 1), with 0/0 := 0. It counts what the model
does without steering as success; ``ratio_of_rises`` therefore subtracts the share without steering
from both shares.

Controls are clamped in the same way, each to its own z̄: random directions, the map of shuffled
pairs, and the untransformed vector if widths agree.

Limits: Clopper–Pearson intervals treat all continuations as independent, as the paper does; ratios
have a bootstrap over prompts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens.adapters.vectors._arms import behaviour_arms, known_contrast_of
from lrt_lens.adapters.vectors._continuations import Classifier, Continuations
from lrt_lens.adapters.vectors._steering_hook import Positions
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.adapters.vectors._vector_arm import VectorArm
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.figures._behaviour import clamp_figure
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._text_codec import text_list
from lrt_lens.statistics._bootstrap import bootstrap_statistic
from lrt_lens.statistics._correlations import bootstrap_rank_correlation
from lrt_lens.statistics._draws import prediction_interval
from lrt_lens.statistics._intervals import NOTHING, Interval, clopper_pearson
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
    n_random: int = 4
    """Number of random directions: half isotropic, half with the covariance of the target's
    stream."""
    n_shuffled: int = 4
    """Number of maps of shuffled pairs: that of the stitch, and draws of such maps."""
    seed: int = 0
    """Seed of directions, samples (the same for all arms) and bootstraps."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True)
class ClampEvaluation:
    """Continuations under clamp steering, and the share of them that show the concept, per arm."""

    table: pd.DataFrame
    """One row per arm, draw, prompt and sample: concept, level, text, shows (the classifier's
    answer)."""
    summary: pd.DataFrame
    """One row per arm.

    Columns: concept, n_draws, count, n, share with low and high (Clopper–Pearson; range over draws
    for ``random``), clipped_ratio and ratio_of_rises, each with its low and high (bootstrap over
    prompts), level (z̄; mean over draws), cosine to the native vector.
    """

    def figure(self) -> Any:
        """Return a plotly figure of the shares of continuations with their intervals."""
        return clamp_figure(self.summary)

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
    parts = [_rows("none", None, math.nan, outcome, outcome.generate(pair.target))]
    bar = tqdm(arms, desc=f"clamp {vector.name}", disable=not settings.progress, leave=False)
    for arm in bar:
        # z̄ of this arm: the mean of ⟨h, v̂⟩ on the target, not on the source.
        level = arm.vector.mean_component(pair.target, level_texts)
        intervene = partial(
            arm.vector.apply, pair.target, mode="clamp", level=level, positions=settings.positions
        )
        texts = outcome.generate(pair.target, intervene)
        parts.append(_rows(arm.name, arm.draw, level, outcome, texts))
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "concept", vector.name)
    return ClampEvaluation(table=table, summary=_summary(table, arms, settings.seed))


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

    Stitching, figure 11. Concepts are resampled with both of their numbers. A resample in which all
    ratios or all frequencies are equal has no correlation and is left out of the percentiles. The
    second number returned is the share of such resamples; if it exceeds ``MOST_UNDEFINED``, the
    ends of the interval are NaN. The correlation is NaN if the concepts themselves have none.

    Args:
        frequency: frequency of each concept, on any scale, because only ranks count.
        ratio: clipped ratio of each concept.
        seed: seed of the resamples.
    """
    correlation, undefined = bootstrap_rank_correlation(
        np.asarray(frequency, dtype=float), np.asarray(ratio, dtype=float), seed=seed
    )
    if undefined > MOST_UNDEFINED:
        correlation = Interval(correlation.value, math.nan, math.nan)
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


def _summary(table: pd.DataFrame, arms: list[VectorArm], seed: int) -> pd.DataFrame:
    # pandas' stubs take a group's column for a number.
    groups = cast(Any, table.groupby("arm", sort=False))
    by_prompt = {
        str(arm): part.groupby("prompt")["shows"].mean().to_numpy() for arm, part in groups
    }
    native, none = by_prompt["native"], by_prompt["none"]
    rows = []
    for name, part in groups:
        count, n, is_drawn = int(part["shows"].sum()), len(part), part["draw"].notna().any()
        # Draws of an arm vary more than their texts do, so their range is the interval.
        share = (
            prediction_interval(part.groupby("draw")["shows"].mean().tolist())
            if is_drawn
            else clopper_pearson(count, n)
        )
        # The paper's ratio subtracts nothing; the ratio of rises subtracts the unsteered share.
        ratio = _ratio(by_prompt[str(name)], native, np.zeros_like(none), seed)
        rises = _ratio(by_prompt[str(name)], native, none, seed)
        rows.append(
            {
                "concept": part["concept"].iloc[0],
                "arm": name,
                "n_draws": part["draw"].nunique() if is_drawn else 1,
                "count": count,
                "n": n,
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
            }
        )
    return pd.DataFrame(rows)


def _ratio(arm: np.ndarray, native: np.ndarray, none: np.ndarray, seed: int) -> Interval:
    """Return the clipped ratio of mean shares above ``none``, with a bootstrap over prompts.

    Each array holds one share per prompt. Undefined if native is not above ``none``.
    """

    def statistic(shares: np.ndarray) -> float:
        # clip((transferred − none) / max(native − none, 0), 0, 1)
        transferred, own, base = shares.mean(1)
        return clipped_ratio(transferred - base, max(own - base, 0.0))

    # If native steering does not raise the share, there is no rise to divide by.
    if none.any() and native.mean() <= none.mean():
        return NOTHING
    return bootstrap_statistic(statistic, np.stack([arm, native, none]), seed=seed)


def _cosine(arms: list[VectorArm], name: str) -> float:
    """Return the mean cosine of an arm's vectors to the native one; NaN for an arm without any."""
    cosines = [arms[0].vector.cosine(arm.vector) for arm in arms if arm.name == name]
    return float(np.mean(cosines)) if cosines else math.nan
