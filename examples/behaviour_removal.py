"""LRT, figure 4: a behaviour steered away over α, by the large model's own vector and by the small
one's, under two maps.

    python examples/behaviour_removal.py                        # bundled pair, about three minutes on two cores

The paper (arXiv 2506.00653, §3.3) removes refusal from Gemma-2-9b-it with vectors of 2b, carried by
a map fitted on a third of chats and by one fitted on the Pile alone, and finds the curves of native
and transferred vectors over α alike. The bundled models do not refuse; they do close reviews by
"Verdict: positive". Behaviour: the preference for that verdict behind positive reviews. Its
direction is steered away at growing strength, under a map of stories and reviews and under one of
stories alone, beside random directions and shuffled pairs, with the damage on neutral text. Second
figure: the direction ablated (Arditi et al., which the paper follows).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import lrt_lens as lrt
from lrt_lens.figures._template import TEMPLATE_NAME, arm_style
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run
from lrt_lens.reproduction._concepts import first_items

ARMS = ("native", "transferred", "shuffled", "random")
CLOSE = 0.25
"""Of native's drop: curves this close coincide."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Strengths and items."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 6_000,
        "n_items": 8,
        "n_random": 1,
        "n_neutral": 3,
        "scales": (1.0, 3.0),
    }
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 60_000
    """Tokens of either harvest."""
    source_layer: int = 2
    """Where the direction is learnt."""
    target_layer: int = 3
    """Where it is carried to."""
    scales: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0, 4.0)
    """Strengths α, multiples of each vector's own length."""
    n_items: int = 80
    """Positive reviews whose verdict is measured."""
    n_random: int = 4
    """Random directions."""
    n_neutral: int = 24
    """Neutral texts that damage is measured on."""


def reproduce(options: Options) -> Reproduction:
    """Steer under both maps, and ablate under the first."""
    pair = options.pair()
    learnt, held_out = lrt.demo_contrast("sentiment").split(0.5, seed=options.seed)
    items = first_items(verdicts(held_out.positive), options.n_items)
    # The direction away from the behaviour: negative texts first.
    away = lrt.ContrastSet(learnt.negative, learnt.positive, name="away from positive")
    mixed = options.texts()
    maps = (
        {"stories and reviews": mixed, "stories alone": lrt.demo_documents("story")}
        if options.documents is None
        else {"the documents": mixed}
    )
    neutral = lrt.demo_neutral()[: options.n_neutral]
    curves, first = [], None
    for name, texts in maps.items():
        stitch = options.grid(pair, texts, options.source_layer, options.target_layer).best()
        first = first or stitch
        vector = lrt.SteeringVector.mean_difference(
            pair.source, away, at=stitch.source_hook, read="mean"
        )
        found = lrt.evaluate_steering(
            pair,
            stitch,
            vector,
            items,
            neutral=neutral,
            scales=list(options.scales),
            n_random=options.n_random,
            n_permuted=0,
            seed=options.seed,
        )
        curves.append(found.table.assign(map=name))
    assert first is not None
    vector = lrt.SteeringVector.mean_difference(
        pair.source, learnt, at=first.source_hook, read="mean"
    )
    ablated = lrt.evaluate_ablation(
        pair,
        first,
        vector,
        neutral=neutral,
        items=items,
        n_random=options.n_random,
        seed=options.seed,
    )
    table = pd.concat(curves, ignore_index=True)
    drops = drop_table(table)
    at = drops.set_index(["map", "arm"])["drop"]
    own, gone = (
        ablated.summary[ablated.summary["where"] == "everywhere"].set_index("arm")["drop"],
        {name: float(at[name, "transferred"] / at[name, "native"]) for name in maps},
    )
    name = next(iter(maps))
    null = max(float(at[name, "random"]), float(at[name, "shuffled"]))
    verdict: Verdict = (
        "does not survive its null"
        if at[name, "transferred"] <= null
        else "holds"
        if abs(1 - gone[name]) <= CLOSE
        else "holds with a caveat"
    )
    return Reproduction(
        name="behaviour_removal",
        title="A behaviour steered away, by the large model's own vector and by the small one's",
        paper="LRT, figure 4",
        claim="Over α, the carried vector removes a behaviour as the model's own does, under a map of mixed text and of plain text alike.",
        compared=[
            *(
                Compared(
                    f"drop of the behaviour (mean over α), share of native's, map of {name}",
                    share,
                    "curves coincide",
                    control=max(float(at[name, "random"]), float(at[name, "shuffled"]))
                    / float(at[name, "native"]),
                    control_name="random or shuffled",
                )
                for name, share in gone.items()
            ),
            Compared(
                "drop when the direction is ablated everywhere, share of native's",
                float(own["transferred"] / own["native"]),
                None,
                control=float(own["random"] / own["native"]),
                control_name="random",
            ),
        ],
        says="A preference between two verdicts of a small model is not refusal judged by GPT-4.1: what is compared is whether both curves "
        "run together over α, "
        "beside what any direction of the same size does.",
        verdict=verdict,
        because="the carried vector has "
        + ", ".join(
            f"{share:.2f} of native's drop under the map of {name}" for name, share in gone.items()
        )
        + f"; random or shuffled directions have {null / float(at[name, 'native']):.2f}.",
        figures={
            "Preference for the positive verdict, and damage, over α (± 1 s.e. from 95% intervals)": figure(
                table
            ),
            "Ablated": ablated.figure(),
        },
        tables={"Drops": drops, "Curves": table, "Ablation": ablated.summary},
        details={"stitch": repr(first)},
    )


def verdicts(texts: list[str]) -> lrt.ChoiceItems:
    """Positive texts followed by "Verdict:"; the behaviour is the positive one."""
    n = len(texts)
    return lrt.ChoiceItems(
        [f"{text}\nVerdict:" for text in texts],
        [" positive"] * n,
        [" negative"] * n,
        name="positive verdict",
    )


def drop_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean drop of the propensity over the strengths, nats, a row a map and arm."""
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
    """A column a map: preference above, damage below."""
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
            part = table[
                (table["map"] == name)
                & (table["arm"].isin([arm, "none"] if arm == "none" else [arm]))
            ]
            means = (
                part.groupby("scale")[["propensity", "propensity_low", "propensity_high", "damage"]]
                .mean()
                .reset_index()
            )
            style, drawn = arm_style(arm), arm == "random"
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
                error_y=None if drawn else {"array": error, "thickness": 1},
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
