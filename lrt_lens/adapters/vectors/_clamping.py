"""Clamp steering: the component along a direction is held at the concept's mean. How often is the
output the concept?

    result = evaluate_clamping(pair, stitch, vector, prompts, classifier, concept_texts=texts)
    result.summary          # share of continuations per arm with Clopper–Pearson intervals, clipped share of native

Stitching (arXiv 2506.06609, §4): with the unit vector v and z̄ the mean component ⟨h, v⟩ over texts
of the concept, ``h' = h + (z̄ − ⟨h, v⟩) v``. The vector is carried without the map's bias; z̄ is
taken again in the target, so the transferred arm does see the target on concept texts: it is the
direction that is carried, not its level. The paper's outcome is the *clipped transfer ratio*
clip(share under transferred ÷ share under native, 0, 1), with 0/0 := 0. It gives credit for what
the model does unsteered; ``ratio_of_rises`` therefore takes both shares above that of no steering.

Controls get the same treatment, each with its own z̄: random directions, the map of shuffled pairs,
the untransformed vector where widths agree. Clopper–Pearson treats all continuations as
independent, as the paper does; ratios have a bootstrap over prompts.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, table
from lrt_lens.adapters.vectors._arms import (
    Arm,
    drawn_arms,
    learnt_arms,
    plain_arms,
    transferred_arms,
)
from lrt_lens.adapters.vectors._continuations import Classifier, Continuations
from lrt_lens.adapters.vectors._steering_hook import Positions
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._correlations import bootstrap_rank_correlation
from lrt_lens.statistics._intervals import (
    NOTHING,
    Interval,
    bootstrap_statistic,
    clopper_pearson,
    spread,
)
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)

MOST_UNDEFINED = 0.05
"""Share of resamples without a value above which `frequency_trend` gives no interval."""


@dataclass(frozen=True)
class ClampEvaluation:
    """Continuations under clamp steering."""

    table: pd.DataFrame
    """A row per arm, draw, prompt and sample: concept, level, text, shows (whether the classifier
    said so).
    """
    summary: pd.DataFrame
    """A row per arm: concept, n_draws, count, n, share with low and high (Clopper–Pearson; range of
    draws for ``random``), clipped_ratio with low and high, ratio_of_rises with low and high
    (bootstrap over prompts), level (z̄; mean over draws), cosine to the native vector."""

    def figure(self) -> Any:
        """Shares of continuations with their intervals (plotly)."""
        from lrt_lens.figures._behaviour import clamp_figure

        return clamp_figure(self.summary)

    def _repr_html_(self) -> str:
        return card("ClampEvaluation", table(self.summary))


def evaluate_clamping(
    pair: ModelPair,
    stitch: Stitch,
    vector: SteeringVector,
    prompts: Sequence[str],
    classifier: Classifier,
    *,
    concept_texts: Sequence[str] | None = None,
    contrast: ContrastSet | None = None,
    n_samples: int = 4,
    max_new_tokens: int = 40,
    temperature: float = 0.8,
    top_k: int | None = 40,
    positions: Positions = "all",
    n_random: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> ClampEvaluation:
    """Share of the target's continuations that show the concept, under every arm; see the module
    docstring.

    Args:
        pair: both models.
        stitch: between the vector's hook point and one of the target.
        vector: learnt on the source.
        prompts: to be continued; neutral towards the concept.
        classifier: text → bool, given the continuation without its prompt.
        concept_texts: texts of the concept, on which the target's z̄ is taken; the contrast's
            positive texts where left out.
        contrast: what the native vector is learnt from; the vector's own where it still holds it.
        n_samples: continuations of each prompt.
        max_new_tokens, temperature, top_k: how they are drawn.
        positions: which positions are clamped.
        n_random: random directions, half isotropic, half as the target's stream.
        seed: of draws, samples and bootstraps; samples share it over arms.
        progress: show a bar.

    Raises:
        ValueError: no prompts, or no contrast texts are known.
        TypeError: the classifier does not return a bool.
    """
    stitch.check(pair.source, pair.target)
    contrast = contrast or vector.contrast_set
    if contrast is None:
        raise ValueError(
            f"vector {vector.name!r} does not hold the texts it was learnt from; give contrast=..., the native vector is learnt from it"
        )
    outcome = Continuations(
        prompts, classifier, n_samples, max_new_tokens, temperature, top_k, seed
    )
    levels_from = list(contrast.positive if concept_texts is None else concept_texts)
    arms = behaviour_arms(pair, stitch, vector, contrast, n_random, seed)
    parts = [_rows(vector.name, "none", None, math.nan, outcome, outcome.generate(pair.target))]
    for arm in tqdm(arms, desc=f"clamp {vector.name}", disable=not progress, leave=False):
        level = arm.vector.mean_component(pair.target, levels_from)
        intervene = partial(
            arm.vector.apply, pair.target, mode="clamp", level=level, positions=positions
        )
        parts.append(
            _rows(
                vector.name,
                arm.name,
                arm.draw,
                level,
                outcome,
                outcome.generate(pair.target, intervene),
            )
        )
    table = pd.concat(parts, ignore_index=True)
    return ClampEvaluation(table=table, summary=_summary(table, arms, seed))


def behaviour_arms(
    pair: ModelPair,
    stitch: Stitch,
    vector: SteeringVector,
    contrast: ContrastSet,
    n_random: int,
    seed: int,
) -> list[Arm]:
    """Native first, then transferred, shuffled, untransformed and random: directions whose lengths
    do not matter.
    """
    native = list(learnt_arms(pair, stitch, vector, contrast, {}, 0))
    carried = [arm for arm in transferred_arms(stitch, vector, {}) if arm.name != "refit"]
    like = native[0].vector
    return [
        *native,
        *carried,
        *plain_arms(stitch, vector, like, {}),
        *drawn_arms(stitch, like, n_random, seed),
    ]


def clipped_ratio(transferred: float, native: float) -> float:
    """clip(transferred ÷ native, 0, 1) with 0/0 := 0 (Stitching, §4)."""
    if native == 0:
        return 1.0 if transferred > 0 else 0.0
    return min(max(transferred / native, 0.0), 1.0)


def frequency_trend(
    frequency: Sequence[float], ratio: Sequence[float], *, seed: int = 0
) -> tuple[Interval, float]:
    """(Spearman's correlation of the clipped ratio with frequency, share of resamples that have
    none); Stitching, figure 11.

    Concepts are drawn, rows paired. A resample in which all ratios, or all frequencies, are equal
    has no correlation and is left out of the percentiles; where more than ``MOST_UNDEFINED`` of
    them have none, there is no interval. NaN where the concepts themselves have none.

    Args:
        frequency: of each concept, on any scale: ranks alone count.
        ratio: clipped ratio of each concept.
        seed: of the draws.
    """
    found, undefined = bootstrap_rank_correlation(
        np.asarray(frequency, dtype=float), np.asarray(ratio, dtype=float), seed=seed
    )
    return Interval(
        found.value, math.nan, math.nan
    ) if undefined > MOST_UNDEFINED else found, undefined


def _rows(
    concept: str, arm: str, draw: int | None, level: float, outcome: Continuations, texts: list[str]
) -> pd.DataFrame:
    n = len(outcome.prompts)
    columns = {
        "concept": concept,
        "arm": arm,
        "draw": draw,
        "level": level,
        "prompt": [i % n for i in range(len(texts))],
        "sample": [i // n for i in range(len(texts))],
        "text": texts,
        "shows": outcome.judge(texts),
    }
    return pd.DataFrame(columns).astype({"draw": "Int64"})


def _summary(table: pd.DataFrame, arms: list[Arm], seed: int) -> pd.DataFrame:
    # pandas' stubs take a group's column for a number.
    groups = cast(Any, table.groupby("arm", sort=False))
    by_prompt = {
        str(arm): part.groupby("prompt")["shows"].mean().to_numpy() for arm, part in groups
    }
    native, none = by_prompt["native"], by_prompt["none"]
    rows = []
    for name, part in groups:
        count, n, drawn = int(part["shows"].sum()), len(part), part["draw"].notna().any()
        share = (
            spread(part.groupby("draw")["shows"].mean().tolist())
            if drawn
            else clopper_pearson(count, n)
        )
        ratio = _ratio(by_prompt[str(name)], native, np.zeros_like(none), seed)
        rises = _ratio(by_prompt[str(name)], native, none, seed)
        rows.append(
            {
                "concept": part["concept"].iloc[0],
                "arm": name,
                "n_draws": part["draw"].nunique() if drawn else 1,
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
    """Clipped ratio of mean shares above ``none``, prompts drawn together; undefined where native
    does not rise above no steering.
    """

    def statistic(shares: np.ndarray) -> float:
        transferred, own, base = shares.mean(1)
        return clipped_ratio(transferred - base, max(own - base, 0.0))

    stacked = np.stack([arm, native, none])
    if none.any() and native.mean() <= none.mean():
        return NOTHING
    return bootstrap_statistic(statistic, stacked, seed=seed)


def _cosine(arms: list[Arm], name: str) -> float:
    native, found = arms[0].vector, [arm.vector for arm in arms if arm.name == name]
    return float(np.mean([native.cosine(vector) for vector in found])) if found else math.nan
