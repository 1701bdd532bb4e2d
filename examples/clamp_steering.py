"""Stitching, figures 3b, 3c and 11: clamp steering over many concepts, and whether common concepts carry better.

    python examples/clamp_steering.py                           # bundled pair, about four minutes on two cores

Transferring Features with Model Stitching (arXiv 2506.06609) clamps the component along a language's direction to the language's mean in Gemma-2, counts how
often the answer is in that language, and gives for 20 languages the clipped ratio of transferred to native, which grows with the language's frequency. The bundled
models know one language: concepts here are words, from rare to common, that a continuation says or does not say. Each stands beside no
steering, random directions and the map of shuffled pairs, which are clamped to levels of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import lrt_lens as lrt
from lrt_lens.data.demo import demo_prompts
from lrt_lens.evaluation.intervals import bootstrap_mean, bootstrap_statistic
from lrt_lens.report.template import TEMPLATE_NAME, arm_style
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run
from lrt_lens.reproduction.topics import Topic, frequent_topics

PAPER_RATIO, PAPER_SHARES = "6 of 20 languages ≥ .8, 9 of 20 ≤ .2 (9B → 2B)", {"native": 0.540, "transferred": 0.290}
"""From table 5: languages by clipped ratio, and mean shares of answers in the language."""
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
    n_tokens: int = 60_000
    """Tokens of the harvest."""
    source_layer: int = 2
    """Where directions are learnt."""
    target_layer: int | None = None
    """Where they are carried to; chosen by cross-validation without it."""
    n_concepts: int = 10
    """Words, evenly spread over the logarithm of their frequency."""
    n_samples: int = 2
    """Continuations of each opening."""
    new_tokens: int = 30
    """Tokens of a continuation."""
    n_random: int = 2
    """Random directions a concept."""


def reproduce(options: Options) -> Reproduction:
    """Clamp every concept, under every arm."""
    pair, texts = options.pair(), options.texts()
    stitch = options.grid(pair, texts, options.source_layer, options.target_layer).best()
    topics = frequent_topics(
        lrt.demo_documents("story") if options.documents is None else list(texts), n=options.n_concepts, seed=options.seed
    )
    table = pd.concat([clamped(pair, stitch, topic, options) for topic in topics], ignore_index=True)
    wide = table.pivot_table(index=["concept", "frequency"], columns="arm", values=["share", "clipped_ratio"]).sort_index(level="frequency")
    ratio = {arm: wide["clipped_ratio"][arm].to_numpy() for arm in ARMS if arm in wide["clipped_ratio"]}
    shares = {arm: float(wide["share"][arm].mean()) for arm in wide["share"]}
    mean = bootstrap_mean(ratio["transferred"], seed=options.seed)
    gain = bootstrap_mean(ratio["transferred"] - np.maximum(ratio["shuffled"], ratio["random"]), seed=options.seed)
    trend = rank_correlation(wide.index.get_level_values("frequency").to_numpy(), ratio["transferred"], options.seed)
    verdict: Verdict = "does not survive its null" if gain.low <= 0 else "holds" if trend.low > 0 else "holds with a caveat"
    ranked = f"{trend.value:.2f} ({trend.low:.2f} to {trend.high:.2f})" if np.isfinite(trend.value) else "undefined (all ratios are equal)"
    high, none = int((ratio["transferred"] >= 0.8).sum()), int((ratio["transferred"] <= 0.2).sum())
    return Reproduction(
        name="clamp_steering",
        title="Clamp steering over many concepts",
        paper="Stitching, figures 3b, 3c and 11",
        claim="Carried directions steer as well as native ones for some concepts and not at all for others, and better for more frequent ones.",
        compared=[
            Compared(
                "share of continuations that show the concept, transferred, mean over concepts (paper: mean of table 5)",
                shares["transferred"],
                PAPER_SHARES["transferred"],
                control=max(shares["shuffled"], shares["random"]),
                control_name="shuffled map or random",
            ),
            Compared(
                "the same, native (paper: mean of table 5)",
                shares["native"],
                PAPER_SHARES["native"],
                control=shares["none"],
                control_name="no steering",
            ),
            Compared(
                "clipped ratio of transferred to native, mean over concepts",
                mean.value,
                PAPER_RATIO,
                mean.low,
                mean.high,
                control=float(np.mean(ratio["random"])),
                control_name="random",
            ),
            Compared("rank correlation of the ratio with frequency", trend.value, "positive; r not printed", trend.low, trend.high),
        ],
        says="Words said by models of 1.5 and 5 million parameters are no languages spoken by Gemma: they show the measure, its controls "
        "and its dependence on frequency. The "
        "clipped ratio gives credit for what the model says unsteered; common words have more of that.",
        verdict=verdict,
        because=f"over {len(topics)} concepts the clipped ratio is {mean.value:.2f} ({high} at .8 or more, {none} at .2 or less), "
        f"{gain.value:+.2f} ({gain.low:+.2f} to {gain.high:+.2f}) above the better of "
        f"shuffled and random; its rank correlation with frequency is {ranked}.",
        figures={"Shares by concept, ratios, and ratios over frequency": figure(table)},
        tables={"All concepts and arms": table},
        details={"stitch": repr(stitch), "concepts": {topic.word: topic.frequency for topic in topics}},
    )


def clamped(pair: lrt.ModelPair, stitch: lrt.Stitch, topic: Topic, options: Options) -> pd.DataFrame:
    """A row an arm."""
    vector = lrt.SteeringVector.mean_difference(pair.source, topic.contrast, at=stitch.source_hook, read="mean")
    found = lrt.evaluate_clamping(
        pair, stitch, vector, demo_prompts("mood"), topic.shows, n_samples=options.n_samples, max_new_tokens=options.new_tokens,
        n_random=options.n_random, seed=options.seed,
    )  # fmt: skip
    return found.summary.assign(concept=topic.word, frequency=topic.frequency)


def rank_correlation(frequency: np.ndarray, ratio: np.ndarray, seed: int) -> Any:
    """Spearman's correlation with its bootstrap over concepts; NaN where all ratios are equal."""

    def statistic(drawn: np.ndarray) -> float:
        ranks = [pd.Series(row).rank() for row in drawn]
        return float(ranks[0].corr(ranks[1]))

    return bootstrap_statistic(statistic, np.stack([frequency, ratio]), seed=seed)


def figure(table: pd.DataFrame) -> go.Figure:
    """Bars of shares (F3b), a histogram of ratios (F3c), ratios over frequency (F11)."""
    plot = make_subplots(
        rows=2, cols=2, specs=[[{"colspan": 2}, None], [{}, {}]], vertical_spacing=0.2,
        subplot_titles=["continuations that show the concept", "clipped ratio to native", "clipped ratio over frequency"],
    )  # fmt: skip
    order = table.drop_duplicates("concept").sort_values("frequency")["concept"].tolist()
    for arm in ("none", *ARMS):
        part = table[table["arm"] == arm].set_index("concept").loc[order].reset_index()
        style = arm_style(arm)
        plot.add_bar(x=part["concept"], y=part["share"], name=style.label, marker_color=style.colour, legendgroup=arm, row=1, col=1)
        if arm in ("transferred", "random"):
            plot.add_histogram(
                x=part["clipped_ratio"], xbins={"start": 0, "end": 1.1, "size": 0.1}, marker_color=style.colour, opacity=0.6, name=style.label,
                legendgroup=arm, showlegend=False, row=2, col=1,
            )  # fmt: skip
            plot.add_scatter(
                x=part["frequency"], y=part["clipped_ratio"], mode="markers+text" if arm == "transferred" else "markers", text=part["concept"],
                textposition="top center", marker=style.marker, name=style.label, legendgroup=arm, showlegend=False, row=2, col=2,
            )  # fmt: skip
    plot.update_yaxes(title_text="share", range=[0, 1], row=1, col=1).update_yaxes(title_text="concepts", row=2, col=1)
    plot.update_yaxes(title_text="clipped ratio", range=[-0.05, 1.15], row=2, col=2)
    plot.update_xaxes(title_text="clipped ratio", row=2, col=1)
    plot.update_xaxes(title_text="share of texts with the word (log)", type="log", row=2, col=2)
    return plot.update_layout(template=TEMPLATE_NAME, height=760, barmode="group", margin={"t": 50}, legend={"y": -0.12})


if __name__ == "__main__":
    run(reproduce)
