"""LRT, figure 4: remove a behaviour with a native and with a transferred vector, over α.

    python examples/behaviour_removal.py          # bundled pair, about three minutes on two cores

The paper (arXiv 2506.00653, §3.3) removes refusal from Gemma-2-9b-it with vectors of
Gemma-2-2b-it. It transfers them through a map fitted on one third of chats, and through a map
fitted on the Pile alone. It finds that the curves of native and transferred vectors over α
coincide.

The bundled models do not refuse, but they end reviews with "Verdict: positive". The behaviour here
is the preference for that verdict after positive reviews. The script steers against its direction
with growing strength, through a map of stories and reviews and through a map of stories alone, and
compares with random directions and with the map of shuffled pairs. It also measures the damage on
neutral text. The second figure ablates the direction (Arditi et al., whom the paper follows).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import lrt_lens as lrt
from lrt_lens.figures import TEMPLATE_NAME, arm_style
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, first_items, run

ARMS = ("native", "transferred", "shuffled", "random")
CLOSE = 0.25
"""Curves coincide if their drops differ by at most this fraction of the native drop."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Strengths and items."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 6_000,
        "n_items": 8,
        "n_random": 1,
        "n_contrast_groups": 2,
        "n_neutral": 3,
        "scales": (1.0, 3.0),
    }
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 60_000
    """Tokens of each harvest."""
    source_layer: int = 2
    """Layer of the source where the direction is learnt."""
    target_layer: int = 3
    """Layer of the target to which the direction is transferred."""
    scales: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0, 4.0)
    """Strengths α, as multiples of each vector's own length."""
    n_items: int = 80
    """Number of positive reviews whose verdict is measured."""
    n_contrast_groups: int = 8
    """Groups of contrast pairs that are left out in turn, for the error that they cause."""
    n_random: int = 20
    """Number of draws of each control: random directions or maps, and shuffled maps."""
    n_neutral: int = 24
    """Number of neutral texts on which damage is measured."""


def reproduce(options: Options) -> Reproduction:
    """Steer through both maps, and ablate through the first."""
    pair = options.pair()
    stitches = {
        name: options.grid(pair, texts, options.source_layer, options.target_layer).best()
        for name, texts in map_texts(options).items()
    }
    table, ablated = measured(pair, stitches, options)
    drops = drop_table(table)
    at = drops.set_index(["map", "arm"])["drop"]
    shares = {name: float(at[name, "transferred"] / at[name, "native"]) for name in stitches}
    nulls = {name: max(float(at[name, "random"]), float(at[name, "shuffled"])) for name in stitches}
    name = next(iter(stitches))
    verdict: Verdict = (
        "does not survive its null"
        if at[name, "transferred"] <= nulls[name]
        else "holds"
        if abs(1 - shares[name]) <= CLOSE
        else "holds with a caveat"
    )
    return Reproduction(
        name="behaviour_removal",
        title="A behaviour steered away, by the large model's own vector and by the small one's",
        paper="LRT, figure 4",
        claim="Over α, the transferred vector removes a behaviour as the target's own vector does, "
        "through a map of mixed text as well as through a map of plain text.",
        compared=compared_rows(at, shares, nulls, ablated.summary),
        says="A preference between two verdicts of a small model is not refusal judged by GPT-4.1. "
        "The comparison shows whether both curves run together over α, and what any direction of "
        "the same size does.",
        verdict=verdict,
        because="the transferred vector has "
        + ", ".join(
            f"{share:.2f} of the native drop with the map of {name}"
            for name, share in shares.items()
        )
        + f"; random or shuffled directions have {nulls[name] / float(at[name, 'native']):.2f}.",
        figures={
            "Preference for the positive verdict, and damage, over α "
            "(± 1 s.e. from 95% intervals)": figure(table),
            "Effect of ablating the direction": ablated.figure(),
        },
        tables={"Drops": drops, "Curves": table, "Ablation": ablated.summary},
        details={"stitch": repr(stitches[name])},
    )


def map_texts(options: Options) -> dict[str, list[str]]:
    """Texts on which each map is fitted."""
    mixed = options.texts()
    if options.documents is not None:
        return {"the documents": mixed}
    return {"stories and reviews": mixed, "stories alone": lrt.demo_documents("story")}


def measured(
    pair: lrt.ModelPair, stitches: Mapping[str, lrt.Stitch], options: Options
) -> tuple[pd.DataFrame, lrt.AblationEvaluation]:
    """Curves over α through every map, and the ablation through the first map."""
    learnt, held_out = lrt.demo_contrast("sentiment").split(0.5, seed=options.seed)
    # Swapping the two sides turns the direction away from the behaviour.
    away = lrt.ContrastSet(learnt.negative, learnt.positive, name="away from positive")
    items = first_items(verdicts(held_out.positive), options.n_items)
    shared: dict[str, Any] = {
        "neutral": lrt.demo_neutral()[: options.n_neutral],
        "n_random": options.n_random,
        "n_shuffled": options.n_random,
        "n_contrast_groups": options.n_contrast_groups,
        "seed": options.seed,
    }
    curves = []
    for name, stitch in stitches.items():
        vector = lrt.SteeringVector.mean_difference(
            pair.source, away, at=stitch.source_hook, read="mean"
        )
        evaluation = lrt.evaluate_steering(
            pair, stitch, vector, items, scales=list(options.scales), n_permuted=0, **shared
        )
        curves.append(evaluation.table.assign(map=name))
    first = next(iter(stitches.values()))
    vector = lrt.SteeringVector.mean_difference(
        pair.source, learnt, at=first.source_hook, read="mean"
    )
    ablated = lrt.evaluate_ablation(pair, first, vector, items=items, **shared)
    return pd.concat(curves, ignore_index=True), ablated


def compared_rows(
    at: pd.Series, shares: Mapping[str, float], nulls: Mapping[str, float], ablated: pd.DataFrame
) -> list[Compared]:
    """Drops as fractions of the native drop, per map, and the drop under ablation."""
    drop = ablated[ablated["where"] == "everywhere"].set_index("arm")["drop"]
    return [
        *(
            Compared(
                f"drop of the behaviour (mean over α), fraction of native, map of {name}",
                share,
                "curves coincide",
                control=nulls[name] / float(at[name, "native"]),
                control_name="random or shuffled",
            )
            for name, share in shares.items()
        ),
        Compared(
            "drop when the direction is ablated everywhere, fraction of native",
            float(drop["transferred"] / drop["native"]),
            None,
            control=float(drop["random"] / drop["native"]),
            control_name="random",
        ),
    ]


def verdicts(texts: list[str]) -> lrt.ChoiceItems:
    """Choice items: each text followed by "Verdict:"; the behaviour is the positive verdict."""
    n = len(texts)
    return lrt.ChoiceItems(
        [f"{text}\nVerdict:" for text in texts],
        [" positive"] * n,
        [" negative"] * n,
        name="positive verdict",
    )


def drop_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean drop of the propensity over the strengths (nats), one row per map and arm."""
    rows = []
    for (name, arm), part in table.groupby(["map", "arm"], sort=False):
        start = table[(table["map"] == name) & (table["scale"] == 0)]["propensity"].mean()
        steered = part[part["scale"] > 0]
        if len(steered):
            rows.append(
                {
                    "map": name,
                    "arm": arm,
                    "drop": start - steered["propensity"].mean(),
                    "damage": steered["damage"].mean(),
                }
            )
    return pd.DataFrame(rows)


def figure(table: pd.DataFrame) -> go.Figure:
    """One column per map: preference above, damage below."""
    maps = list(dict.fromkeys(table["map"]))
    titles = [f"map of {name}" for name in maps] + [""] * len(maps)
    plot = make_subplots(
        rows=2,
        cols=len(maps),
        shared_xaxes=True,
        shared_yaxes=True,
        row_heights=[0.68, 0.32],
        vertical_spacing=0.08,
        subplot_titles=titles,
    )
    for column, name in enumerate(maps, start=1):
        for arm in ARMS:
            part = table[(table["map"] == name) & (table["arm"] == arm)]
            means = (
                part.groupby("scale")[["propensity", "propensity_low", "propensity_high", "damage"]]
                .mean()
                .reset_index()
            )
            style, is_random = arm_style(arm), arm == "random"
            # The half-width of a 95% interval is 1.96 standard errors.
            error = (means["propensity_high"] - means["propensity_low"]) / (2 * 1.96)
            plot.add_scatter(
                x=means["scale"],
                y=means["propensity"],
                name=style.label,
                legendgroup=arm,
                showlegend=column == 1,
                line=style.line,
                marker=style.marker,
                mode="lines+markers",
                error_y=None if is_random else {"array": error, "thickness": 1},
                row=1,
                col=column,
            )
            plot.add_scatter(
                x=means["scale"],
                y=means["damage"],
                legendgroup=arm,
                showlegend=False,
                line=style.line,
                mode="lines",
                row=2,
                col=column,
            )
        plot.update_xaxes(title_text="α (multiples of the vector's length)", row=2, col=column)
    plot.update_yaxes(title_text="preference (nats)", row=1, col=1).update_yaxes(
        title_text="damage (nats/token)", row=2, col=1
    )
    return plot.update_layout(
        template=TEMPLATE_NAME, height=620, margin={"t": 50}, legend={"y": -0.15}
    )


if __name__ == "__main__":
    run(reproduce)
