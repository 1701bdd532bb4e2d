"""Stitching, figures 3b, 3c and 11: clamp steering over many concepts, rare and common.

    python examples/clamp_steering.py                           # bundled pair

Transferring Features with Model Stitching (arXiv 2506.06609) clamps the component of Gemma-2's
activations along a language's direction to the mean of that language, and counts how often the
answer is in that language. For 20 languages it gives the clipped ratio of transferred to native,
which grows with the language's frequency. Its table 6 goes from 2B to 9B, small to large as here;
its table 5, from 9B to 2B, has means of .540 and .290. The native arm of table 6 looks broken: for
fr, hu, it, lt, lv, nl, pl, pt and ro it is at .09 or less, while the transferred arm reaches .53 to
.69 for four of them. These are the languages with ratios of 1.

The bundled models know one language. The concepts here are words, from rare to common: a
continuation contains the word or does not. Each concept is compared with no steering, with random
directions and with the map of shuffled pairs, each clamped to its own level. If native clamping is
no better than no steering, a transfer cannot be observed: the ratio then divides noise by noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import lrt_lens as lrt
from lrt_lens.adapters.vectors import clipped_ratio, frequency_trend
from lrt_lens.bundled import demo_prompts
from lrt_lens.figures import TEMPLATE_NAME, arm_style
from lrt_lens.reproduction import (
    Compared,
    FigureOptions,
    Reproduction,
    Topic,
    Verdict,
    frequent_topics,
    run,
)
from lrt_lens.statistics import Interval, bootstrap_mean

PAPER = {
    "bg": (0.24, 0.00),
    "cs": (0.55, 0.00),
    "da": (0.65, 0.14),
    "de": (0.85, 0.83),
    "el": (0.87, 0.04),
    "es": (0.80, 0.69),
    "et": (0.36, 0.00),
    "fi": (0.17, 0.01),
    "fr": (0.09, 0.69),
    "hu": (0.02, 0.01),
    "it": (0.07, 0.56),
    "lt": (0.00, 0.00),
    "lv": (0.00, 0.00),
    "nl": (0.09, 0.53),
    "pl": (0.01, 0.01),
    "pt": (0.09, 0.62),
    "ro": (0.00, 0.01),
    "sk": (0.40, 0.01),
    "sl": (0.27, 0.00),
    "sv": (0.79, 0.31),
}
"""Table 6, Gemma-2 2B → 9B: share of answers in the language with (native, transferred) direction.
"""
PAPER_SHARES = dict(
    zip(("native", "transferred"), np.mean(list(PAPER.values()), axis=0).tolist(), strict=True)
)
PAPER_RATIOS = np.array(
    [clipped_ratio(transferred, native) for native, transferred in PAPER.values()]
)
ARMS = ("native", "transferred", "shuffled", "random")


@dataclass(frozen=True)
class Options(FigureOptions):
    """Concepts and continuations."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 6_000,
        "n_concepts": 3,
        "n_samples": 1,
        "n_random": 1,
        "new_tokens": 8,
        "target_layer": 3,
    }
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 60_000
    """Tokens of the harvest."""
    source_layer: int = 2
    """Layer of the source where directions are learnt."""
    target_layer: int | None = None
    """Layer of the target to which they are transferred; by default chosen by cross-validation."""
    n_concepts: int = 10
    """Number of words, evenly spread over the logarithm of their frequency."""
    n_samples: int = 2
    """Number of continuations per opening."""
    new_tokens: int = 30
    """Number of tokens per continuation."""
    n_random: int = 20
    """Number of draws of each control: random directions or maps, and shuffled maps."""


def reproduce(options: Options) -> Reproduction:
    """Clamp every concept with every arm."""
    pair, texts = options.pair(), options.texts()
    stitch = options.grid(pair, texts, options.source_layer, options.target_layer).best()
    topics = frequent_topics(
        lrt.demo_documents("story") if options.documents is None else list(texts),
        n=options.n_concepts,
        seed=options.seed,
    )
    table = pd.concat(
        [clamped(pair, stitch, topic, options) for topic in topics], ignore_index=True
    )
    wide = table.pivot_table(
        index=["concept", "frequency"], columns="arm", values=["share", "clipped_ratio"]
    ).sort_index(level="frequency")
    ratio = {
        arm: wide["clipped_ratio"][arm].to_numpy() for arm in ARMS if arm in wide["clipped_ratio"]
    }
    shares = {arm: float(wide["share"][arm].mean()) for arm in wide["share"]}
    rise = bootstrap_mean(
        (wide["share"]["native"] - wide["share"]["none"]).to_numpy(), seed=options.seed
    )
    mean = bootstrap_mean(ratio["transferred"], seed=options.seed)
    gain = bootstrap_mean(
        ratio["transferred"] - np.maximum(ratio["shuffled"], ratio["random"]), seed=options.seed
    )
    frequencies = list(wide.index.get_level_values("frequency"))
    trend, undefined = frequency_trend(frequencies, list(ratio["transferred"]), seed=options.seed)
    verdict, because = judged(ratio["transferred"], shares, rise, gain, trend, undefined)
    return Reproduction(
        name="clamp_steering",
        title="Clamp steering over many concepts",
        paper="Stitching, figures 3b, 3c and 11",
        claim="Transferred directions steer as well as native ones for some concepts and not at "
        "all for others, and better for more frequent concepts.",
        compared=compared_rows(shares, mean, float(np.mean(ratio["random"])), trend),
        says="Words written by models of 1.5 and 5 million parameters are not languages spoken by "
        "Gemma: they show the measure, its controls and its dependence on frequency. The clipped "
        "ratio gives credit for what the model says without steering, which is more for common "
        "words.",
        verdict=verdict,
        because=because,
        figures={"Shares per concept, ratios, and ratios over frequency": figure(table)},
        tables={"All concepts and arms": table},
        details={
            "stitch": repr(stitch),
            "concepts": {topic.word: topic.frequency for topic in topics},
            "native_minus_none": [rise.value, rise.low, rise.high],
            "resamples_without_a_rank_correlation": undefined,
        },
    )


def compared_rows(
    shares: Mapping[str, float], ratio: Interval, random_ratio: float, trend: Interval
) -> list[Compared]:
    """Shares, clipped ratio and its trend over frequency, compared with the means of table 6."""
    paper_ratio = (
        f"{PAPER_RATIOS.mean():.2f}; of 20 languages {counted(PAPER_RATIOS)} (2B → 9B, table 6)"
    )
    return [
        Compared(
            "share of continuations that show the concept, transferred, mean over concepts "
            "(paper: mean of table 6)",
            shares["transferred"],
            PAPER_SHARES["transferred"],
            control=max(shares["shuffled"], shares["random"]),
            control_name="shuffled map or random",
        ),
        Compared(
            "share of continuations that show the concept, native (paper: mean of table 6)",
            shares["native"],
            PAPER_SHARES["native"],
            control=shares["none"],
            control_name="no steering",
        ),
        Compared(
            "clipped ratio of transferred to native, mean over concepts",
            ratio.value,
            paper_ratio,
            ratio.low,
            ratio.high,
            control=random_ratio,
            control_name="random",
        ),
        Compared(
            "rank correlation of the ratio with frequency",
            trend.value,
            "positive; r not printed",
            trend.low,
            trend.high,
        ),
    ]


def judged(
    ratio: np.ndarray,
    shares: Mapping[str, float],
    rise: Interval,
    gain: Interval,
    trend: Interval,
    undefined: float,
) -> tuple[Verdict, str]:
    """The verdict and the sentence with its numbers; NaN never counts as a pass."""
    ranked = "undefined (all ratios are equal)"
    if np.isfinite(trend.value):
        ends = f"{trend.low:.2f} to {trend.high:.2f}" if np.isfinite(trend.low) else "no interval"
        ranked = f"{trend.value:.2f} ({ends}; undefined in {undefined:.1%} of resamples)"
    numbers = (
        f"over {len(ratio)} concepts the clipped ratio is {ratio.mean():.2f} ({counted(ratio)}), "
        f"{gain.value:+.2f} ({gain.low:+.2f} to {gain.high:+.2f}) above the better of shuffled and "
        f"random; its rank correlation with frequency is {ranked}"
    )
    # `not low > 0` instead of `low <= 0`: a comparison with NaN is False.
    if not rise.low > 0:
        return "does not survive its null", (
            "native clamping does not steer here: the target's own direction gives a share of "
            f"{shares['native']:.3f}, no steering {shares['none']:.3f} (difference "
            f"{rise.value:+.3f}, {rise.low:+.3f} to {rise.high:+.3f}), so a transfer cannot be "
            f"observed; {numbers}."
        )
    if not gain.low > 0:
        return "does not survive its null", f"{numbers}."
    both_kinds = bool((ratio >= 0.8).any() and (ratio <= 0.2).any())
    return "holds" if trend.low > 0 and both_kinds else "holds with a caveat", f"{numbers}."


def counted(ratio: np.ndarray) -> str:
    """The numbers of ratios near 1 and near 0, in words."""
    return f"{int((ratio >= 0.8).sum())} at .8 or more, {int((ratio <= 0.2).sum())} at .2 or less"


def clamped(
    pair: lrt.ModelPair, stitch: lrt.Stitch, topic: Topic, options: Options
) -> pd.DataFrame:
    """Clamping results for one concept, one row per arm."""
    vector = lrt.SteeringVector.mean_difference(
        pair.source, topic.contrast, at=stitch.source_hook, read="mean"
    )
    evaluation = lrt.evaluate_clamping(
        pair,
        stitch,
        vector,
        demo_prompts("mood"),
        topic.shows,
        n_samples=options.n_samples,
        max_new_tokens=options.new_tokens,
        n_random=options.n_random,
        n_shuffled=options.n_random,
        seed=options.seed,
    )
    return evaluation.summary.assign(concept=topic.word, frequency=topic.frequency)


def figure(table: pd.DataFrame) -> go.Figure:
    """Bars of shares (figure 3b), a histogram of ratios (3c), ratios over frequency (11)."""
    plot = make_subplots(
        rows=2,
        cols=2,
        specs=[[{"colspan": 2}, None], [{}, {}]],
        vertical_spacing=0.2,
        subplot_titles=[
            "continuations that show the concept",
            "clipped ratio to native",
            "clipped ratio over frequency",
        ],
    )
    order = table.drop_duplicates("concept").sort_values("frequency")["concept"].tolist()
    for arm in ("none", *ARMS):
        part = table[table["arm"] == arm].set_index("concept").loc[order].reset_index()
        style = arm_style(arm)
        plot.add_bar(
            x=part["concept"],
            y=part["share"],
            name=style.label,
            marker_color=style.colour,
            legendgroup=arm,
            row=1,
            col=1,
        )
        if arm in ("transferred", "random"):
            plot.add_histogram(
                x=part["clipped_ratio"],
                xbins={"start": 0, "end": 1.1, "size": 0.1},
                marker_color=style.colour,
                opacity=0.6,
                name=style.label,
                legendgroup=arm,
                showlegend=False,
                row=2,
                col=1,
            )
            plot.add_scatter(
                x=part["frequency"],
                y=part["clipped_ratio"],
                mode="markers+text" if arm == "transferred" else "markers",
                text=part["concept"],
                textposition="top center",
                marker=style.marker,
                name=style.label,
                legendgroup=arm,
                showlegend=False,
                row=2,
                col=2,
            )
    plot.update_yaxes(title_text="share", range=[0, 1], row=1, col=1).update_yaxes(
        title_text="concepts", row=2, col=1
    )
    plot.update_yaxes(title_text="clipped ratio", range=[-0.05, 1.15], row=2, col=2)
    plot.update_xaxes(title_text="concept, from the rarest to the most common", row=1, col=1)
    plot.update_xaxes(title_text="clipped ratio", row=2, col=1)
    plot.update_xaxes(title_text="share of texts with the word (log)", type="log", row=2, col=2)
    return plot.update_layout(
        template=TEMPLATE_NAME, height=760, barmode="group", margin={"t": 50}, legend={"y": -0.12}
    )


if __name__ == "__main__":
    run(reproduce)
