r"""Does the first direction between a model and its fine-tune say what it was tuned on?

    python examples/model_diff.py                                      # bundled large model
    python examples/model_diff.py --source BASE --target TUNED --documents corpus.jsonl.gz \
        --items items.jsonl

A copy of the bundled large model is trained on positive reviews. `lrt.diff` compares both at a
layer, from moments of other text. The first directions of the kinds "shift" and "difference" are
added to the base, each at a strength that costs equal damage on neutral text, and the log-odds of
positive against negative continuations are measured beside random directions of equal damage. The
prompts and continuations share no content word with the texts of the fine-tune.

None of the three papers compares a model with its fine-tune.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
import torch

import lrt_lens as lrt
from lrt_lens.adapters.vectors import NeutralText, PreferenceText, calibrate_on
from lrt_lens.figures import HIGHLIGHT, TEMPLATE_NAME
from lrt_lens.reproduction import (
    Compared,
    FigureOptions,
    MissingInputError,
    Reproduction,
    Verdict,
    fine_tune,
    run,
)
from lrt_lens.statistics import random_directions

KINDS = ("shift", "difference")


@dataclass(frozen=True)
class Options(FigureOptions):
    """The layers, the fine-tune, and the sizes."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 6_000,
        "n_steps": 4,
        "n_random": 4,
        "n_neutral": 6,
        "layers": (3,),
    }
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 20_000
    """Number of tokens of a harvest."""
    layers: tuple[int, ...] = (2, 3)
    """Layers at which the two models are compared."""
    n_steps: int = 200
    """Number of steps of the fine-tune."""
    learning_rate: float = 3e-4
    """Largest learning rate of the fine-tune."""
    damage: float = 0.1
    """Damage at which directions are compared, in nats per token."""
    n_random: int = 40
    """Number of random directions: half isotropic, half with the covariance of the base."""
    n_neutral: int = 24
    """Number of neutral texts."""
    items: Path | None = None
    """File with choice items of the topic (prompt, positive, negative); bundled by default."""


def reproduce(options: Options) -> Reproduction:
    """Fine-tune, compare, and add the directions to the base."""
    pair, items = revisions(options), topic_items(options)
    texts = lrt.demo_documents("review") if options.documents is None else options.texts()
    hooks = [f"blocks.{layer}.hook_resid_post" for layer in options.layers]
    moments = lrt.harvest(
        pair,
        texts,
        pairs=[(hook, hook) for hook in hooks],
        n_tokens=options.n_tokens,
        null=False,
        seed=options.seed,
        progress=True,
    )
    table = pd.concat([rows_at(pair, moments, hook, items, options) for hook in hooks])
    change = float((propensity(pair.target, items) - propensity(pair.source, items)).mean())
    ranks = [
        (row["kind"], row["hook"], row["n_random_above"])
        for row in table.to_dict("records")
        if row["kind"] != "random"
    ]
    beyond = [count == 0 for _, _, count in ranks]
    verdict: Verdict = (
        "holds"
        if all(beyond)
        else "holds with a caveat"
        if any(beyond)
        else "does not survive its null"
    )
    return Reproduction(
        name="model_diff",
        title="What a fine-tune added, as a direction",
        paper="lrt_lens, comparison of models",
        claim="The first direction from a base to its fine-tune, found from moments alone and "
        "added to the base, moves the log-odds of the fine-tuning topic more than random "
        "directions of equal damage do.",
        compared=compared_rows(table, change),
        says="The topic is one kind of short review, and the random directions cost equal damage "
        "on few neutral texts. A direction that moves the topic need not be how the fine-tune does "
        "it.",
        verdict=verdict,
        because="; ".join(
            f"{kind} at {hook}: {count} of {options.n_random} random directions move the log-odds "
            "further"
            for kind, hook, count in ranks
        )
        + f". The fine-tune itself moves them by {change:.2f} nats.",
        figures={"Change of the log-odds at equal damage": effects_figure(table)},
        tables={"Directions": table},
        details={"n_items": len(items), "change_of_the_fine_tune": change},
    )


def revisions(options: Options) -> lrt.ModelPair:
    """The base and its fine-tune: made here, or both given."""
    if not options.bundled:
        return options.pair()
    base = options.pair().target
    texts = list(lrt.demo_contrast("sentiment").positive)
    tuned = fine_tune(
        base, texts, n_steps=options.n_steps, learning_rate=options.learning_rate, seed=options.seed
    )
    return lrt.ModelPair(base, tuned)


def topic_items(options: Options) -> lrt.ChoiceItems:
    """Prompts with a continuation of the topic and one against it."""
    if options.items is not None:
        return lrt.ChoiceItems.from_file(options.items)
    if not options.bundled:
        raise MissingInputError(
            "--items is missing: the bundled items are about film reviews; give a file with "
            "prompts and continuations of the topic of your fine-tune"
        )
    return lrt.demo_items("sentiment")


def propensity(model: lrt.HookedModel, items: lrt.ChoiceItems) -> Any:
    """Log-odds of the continuations of an unsteered model, in nats [item]."""
    return PreferenceText(model, items, 0).propensity()


def rows_at(
    pair: lrt.ModelPair,
    moments: lrt.CrossMoments,
    hook: str,
    items: lrt.ChoiceItems,
    options: Options,
) -> pd.DataFrame:
    """Effects of the first directions and of random ones on the base, at one hook point."""
    base, result = pair.source, lrt.diff(moments, (hook, hook), kinds=KINDS, n_directions=1)
    neutral = NeutralText(base, lrt.demo_neutral()[: options.n_neutral], hook)
    choices = PreferenceText(base, items, hook)
    unsteered = choices.propensity()

    def row(kind: str, vector: lrt.SteeringVector) -> dict[str, Any]:
        calibration = calibrate_on(neutral, vector, options.damage)
        if not calibration.reached:
            return {"hook": hook, "kind": kind, "effect": float("nan"), "damage": float("nan")}
        effect = float((choices.propensity(vector.hook_at(calibration.scale)) - unsteered).mean())
        return {"hook": hook, "kind": kind, "effect": effect, "damage": calibration.damage}

    found = [row(kind, result.vector(kind, on="source")) for kind in KINDS]
    drawn = [row("random", one) for one in random_vectors(base, moments, hook, options)]
    table = pd.DataFrame([*found, *drawn])
    draws = pd.DataFrame(drawn)["effect"].to_numpy()
    # A direction that never reaches the damage has no effect, and counts as beaten by all.
    table["n_random_above"] = [int((~(draws < effect)).sum()) for effect in table["effect"]]
    table["n_above_noise"] = [
        result.n_above_noise(kind) if kind in result.kinds else 0 for kind in table["kind"]
    ]
    return table


def random_vectors(
    base: lrt.HookedModel, moments: lrt.CrossMoments, hook: str, options: Options
) -> list[lrt.SteeringVector]:
    """Random directions: half isotropic, half with the covariance of the base."""
    scatter = moments.scatter((hook, hook), moments.parts.fit)
    covariance = scatter.xx / scatter.n
    generator = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(options.n_random, len(covariance), generator=generator, dtype=torch.float64)
    return [
        lrt.SteeringVector(
            row.float(),
            hook,
            base.identity,
            name="random",
            method="random",
            median_norm=moments.source[hook].median_norm,
        )
        for row in random_directions(noise, covariance)
    ]


def compared_rows(table: pd.DataFrame, change: float) -> list[Compared]:
    """Effect of each direction beside the largest of the random ones, and that of the fine-tune."""
    records = table.to_dict("records")
    # Without those that never reach the damage.
    drawn = [one for one in records if one["kind"] == "random" and one["effect"] == one["effect"]]
    largest = {
        hook: max(one["effect"] for one in drawn if one["hook"] == hook)
        for hook in {one["hook"] for one in drawn}
    }
    rows = [
        Compared(
            f"change of the log-odds by the {row['kind']} at {row['hook']}, nats",
            row["effect"],
            "none",
            control=largest.get(row["hook"]),
            control_name="largest of the random directions",
        )
        for row in records
        if row["kind"] != "random"
    ]
    return [*rows, Compared("change of the log-odds by the fine-tune itself, nats", change, "none")]


def effects_figure(table: pd.DataFrame) -> go.Figure:
    """Change of the log-odds of every direction, one row of points per hook point."""
    plot = go.Figure()
    looks = {
        "random": {"color": "rgba(128,128,128,0.6)", "size": 7},
        "shift": {"color": HIGHLIGHT, "size": 13, "symbol": "diamond"},
        "difference": {"color": "#0072B2", "size": 13},
    }
    for kind, marker in looks.items():
        part = table[table["kind"] == kind]
        plot.add_scatter(
            x=list(part["effect"]),
            y=list(part["hook"]),
            mode="markers",
            name=kind,
            marker=marker,
            hovertemplate=f"{kind}: %{{x:.2f}} nats<extra></extra>",
        )
    plot.add_vline(x=0, line={"color": "grey", "dash": "dot", "width": 1})
    plot.update_xaxes(title_text="change of the log-odds of the topic, nats")
    return plot.update_layout(template=TEMPLATE_NAME, height=320)


if __name__ == "__main__":
    run(reproduce)
