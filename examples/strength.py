"""How strong? Strengths calibrated to a damage, beside strengths picked by hand and beside a
prediction without any steered pass.

    python examples/strength.py                                     # bundled pair
    python examples/strength.py --source FOLDER --target FOLDER --tasks FOLDER   # files of model-written questions, a vector a task

L-Cross (arXiv 2501.02009, limitations) calls the choice of its strength β an open question and
tunes it by hand. Here every vector (by difference of means, by principal component, carried from
the source; several layers) gets the strength at which it costs ``damage`` nats per token on neutral
text, and is compared with a hand that looks at two grids of round numbers: 1, 2, 4, 8 times the
vector, and 5, 10, 20, 40, 80% of the median residual norm. The hand is a rule: of what stays within
the damage it takes the strongest effect (and has to measure the damage of the whole grid to know).
No researcher picks just like that.

The second figure asks what foretells the strength from moments and weights alone: one constant
times (share of the median residual norm, standard deviations along the vector, Mahalanobis length,
effect on the logits), the constant taken from the other vectors.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

import lrt_lens as lrt
from lrt_lens.adapters.saes.features._unembedding import Unembedding
from lrt_lens.adapters.vectors._calibration import calibrate_on
from lrt_lens.adapters.vectors._neutral_text import NeutralText
from lrt_lens.adapters.vectors._preferences import PreferenceText
from lrt_lens.adapters.vectors._scale_prediction import predict_scale
from lrt_lens.bundled._texts import CONCEPTS
from lrt_lens.figures._template import HIGHLIGHT, TEMPLATE_NAME, short_hook
from lrt_lens.models._hook_points import residual_post
from lrt_lens.reproduction import (
    Compared,
    FigureOptions,
    MissingInputError,
    Reproduction,
    Verdict,
    run,
)

ROUND = (1.0, 2.0, 4.0, 8.0)
SHARES = (0.05, 0.1, 0.2, 0.4, 0.8)
CLOSE = 1.5
"""A prediction within this factor is near enough to start from."""
ENOUGH = 0.7
"""Share of the directions that have to be foretold so closely."""
SHIPPED = "predict_scale (fixed constant)"
PREDICTORS = {
    "share of the median norm": "norm",
    "standard deviations": "deviations",
    "Mahalanobis length": "mahalanobis",
    "effect on the logits": "logits",
    "norm and deviations": "both",
}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")


@dataclass(frozen=True)
class Options(FigureOptions):
    """Strengths."""

    QUICK: ClassVar = {
        "n_tokens": 6_000,
        "n_neutral": 4,
        "n_items": 6,
        "n_random": 1,
        "n_tasks": 1,
        "depths": (0.5,),
    }
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 20_000
    """Tokens of the harvest that the stitches and the streams' moments come from."""
    damage: float = 0.1
    """Budget, nats per token by which the loss rises on neutral text."""
    depths: tuple[float, ...] = (0.3, 0.5, 0.8)
    """Layers of both models, as shares of their depth."""
    tasks: Path | None = None
    """Folder of model-written questions, a .jsonl file a task; the bundled concepts without it."""
    n_tasks: int = 4
    """Tasks of that folder, the first by name."""
    n_items: int = 20
    """Items on which a concept's effect is measured."""
    n_pairs: int = 40
    """Contrast pairs that a vector is learnt from."""
    n_neutral: int = 10
    """Neutral texts."""
    n_random: int = 2
    """Random directions a layer, for the predictions."""


Concept = tuple[lrt.ContrastSet, lrt.ChoiceItems]


def reproduce(options: Options) -> Reproduction:
    """Every vector at its calibrated strength, at the hand's, and where a prediction would have
    begun.
    """
    pair, concepts = options.pair(), concepts_of(options)
    source_layers, target_layers = (
        [round(share * (model.n_layers - 1)) for share in options.depths]
        for model in (pair.source, pair.target)
    )
    grid = lrt.fit_stitches(
        pair,
        options.texts(),
        source_layers=source_layers,
        target_layers=target_layers,
        n_tokens=options.n_tokens,
        seed=options.seed,
        progress=True,
    )
    weights = Unembedding.of(pair.target)
    rows: list[dict[str, Any]] = []
    for below, layer in zip(source_layers, target_layers, strict=True):
        stitch = grid[residual_post(below), residual_post(layer)]
        neutral = NeutralText(pair.target, lrt.demo_neutral()[: options.n_neutral], layer)
        for contrast, items in concepts:
            choices = PreferenceText(pair.target, items, layer)
            rows += [
                strengths(neutral, vector, choices, options.damage)
                | lengths(vector, stitch, weights)
                for vector in learnt(pair, stitch, contrast)
            ]
        for vector in drawn(stitch, options.n_random, options.seed + layer):
            rows.append(
                strengths(neutral, vector, None, options.damage) | lengths(vector, stitch, weights)
            )
    table = pd.DataFrame(rows)
    predictions = foretold(table)
    return found(options, table, predictions)


def concepts_of(options: Options) -> list[Concept]:
    """(contrast pairs to learn from, items to measure on): a folder's tasks, or the bundled
    concepts.
    """
    if options.tasks is None:
        if not options.bundled:
            raise MissingInputError(
                "--tasks is missing: the bundled concepts are for the bundled models; give a folder of model-written questions"
            )
        return [
            (
                first(lrt.demo_contrast(name), options.n_pairs),
                first_items(lrt.demo_items(name), options.n_items),
            )
            for name in CONCEPTS
        ]
    files = sorted(options.tasks.glob("*.jsonl"))
    if not files:
        raise MissingInputError(
            f"--tasks {str(options.tasks)!r}: no .jsonl file there; give a folder with a file of questions a task"
        )
    found = []
    for path in files[: options.n_tasks]:
        train, test = lrt.behaviour_items(
            path, n=options.n_pairs + options.n_items, seed=options.seed
        ).split(options.n_pairs / (options.n_pairs + options.n_items))
        found.append((lrt.answer_contrast(train), test))
    return found


def first(contrast: lrt.ContrastSet, n: int) -> lrt.ContrastSet:
    """``n`` pairs spread over a set."""
    return contrast.split(n / len(contrast))[0] if n < len(contrast) else contrast


def first_items(items: lrt.ChoiceItems, n: int) -> lrt.ChoiceItems:
    """``n`` items spread over a set."""
    return items.split(n / len(items))[0] if n < len(items) else items


def learnt(
    pair: lrt.ModelPair, stitch: lrt.Stitch, contrast: lrt.ContrastSet
) -> list[lrt.SteeringVector]:
    """Of one concept at one layer: by difference of means, by principal component, and where there
    are two models carried from the source.
    """
    recipes = (lrt.SteeringVector.mean_difference, lrt.SteeringVector.principal_component)
    made = [make(pair.target, contrast, at=stitch.target_hook) for make in recipes]
    if pair.source is pair.target:
        return made
    return [
        *made,
        stitch.transfer(
            lrt.SteeringVector.mean_difference(pair.source, contrast, at=stitch.source_hook)
        ),
    ]


def drawn(stitch: lrt.Stitch, n: int, seed: int) -> list[lrt.SteeringVector]:
    """Random directions, of even spread and spread as the stream is: they foretell without a
    concept.
    """
    statistics, generator = stitch.target_statistics, torch.Generator().manual_seed(seed)
    values, axes = torch.linalg.eigh(statistics.covariance.double())
    isotropic = torch.randn(n, len(values), generator=generator, dtype=torch.float64)
    like = (
        torch.randn(n, len(values), generator=generator, dtype=torch.float64)
        * values.clamp_min(0).sqrt()
        @ axes.T
    )
    return [
        lrt.SteeringVector(
            row.float(),
            stitch.target_hook,
            stitch.target,
            name="random",
            method=method,
            median_norm=statistics.median_norm,
        )
        for method, rows in (("isotropic", isotropic), ("as the stream", like))
        for row in rows
    ]


def strengths(
    neutral: NeutralText, vector: lrt.SteeringVector, choices: PreferenceText | None, damage: float
) -> dict[str, Any]:
    """The calibrated scale in both units and, where there are items, what the hand would have
    taken.
    """
    vector = replace(vector, median_norm=neutral.median_norm(vector.hook))
    found = calibrate_on(neutral, vector, damage)
    blind = calibrate_on(neutral, vector, damage, first_guess=1.0)
    kl = calibrate_on(
        neutral, vector, damage, unit="kl", first_guess=found.scale if found.reached else 1.0
    )
    row: dict[str, Any] = {
        "concept": vector.name,
        "method": vector.method,
        "layer": short_hook(vector.hook),
        "scale": found.scale,
        "damage": found.damage,
        "scale_kl": kl.scale,
        "predicted": predict_scale(vector, damage),
        "passes": len(found.curve) - 1,
        "passes_from_1": len(blind.curve) - 1,
        "length": vector.norm,
        "median_norm": vector.median_norm,
        "damage_at_1": damage_at(blind, 1.0),
    }
    if choices is None or not found.reached:
        return row
    plain = choices.propensity()
    effect = lambda scale: float((choices.propensity(vector.hook_at(scale)) - plain).mean())  # noqa: E731
    row["effect"] = effect(found.scale)
    for name, scales in (
        ("round", ROUND),
        ("share", [share * vector.median_norm / vector.norm for share in SHARES]),
    ):
        within = [scale for scale in scales if neutral.damage(vector.hook_at(scale)) <= damage]
        tried = {scale: effect(scale) for scale in within}
        best = max(tried, key=tried.__getitem__, default=0.0)
        row |= {f"hand_{name}": best, f"effect_{name}": tried.get(best, 0.0)}
    return row


def damage_at(found: lrt.Calibration, scale: float) -> float:
    """What was measured at a scale that the search tried."""
    at = found.curve.loc[found.curve["scale"] == scale, "damage"]
    return float(at.iloc[0]) if len(at) else math.nan


def lengths(
    vector: lrt.SteeringVector, stitch: lrt.Stitch, weights: Unembedding
) -> dict[str, float]:
    """What each predictor calls one unit of the step: the scale it foretells is a constant times
    this.
    """
    statistics, direction = stitch.target_statistics, vector.direction.double()
    covariance = statistics.covariance.double()
    ridge = (
        0.1 * covariance.trace() / len(covariance) * torch.eye(len(covariance), dtype=torch.float64)
    )
    mahalanobis = float((direction @ torch.linalg.solve(covariance + ridge, direction)).sqrt())
    logits = float(weights.logit_weights(vector.direction[None]).std())
    norm, deviations = (
        statistics.median_norm / vector.norm,
        statistics.deviation(direction) / vector.norm,
    )
    return {
        "norm": norm,
        "deviations": deviations,
        "mahalanobis": 1 / mahalanobis,
        "logits": 1 / logits,
        "both": math.sqrt(norm * deviations),
    }


def foretold(table: pd.DataFrame) -> pd.DataFrame:
    """A row per predictor and vector: foretold ÷ calibrated scale, its constant the median of all
    vectors of other concepts.
    """
    known = table.loc[table["scale"].notna()]
    rows = []
    for label, column in PREDICTORS.items():
        log_ratio = np.log(known["scale"] / known[column])
        for place in known.index:
            others = log_ratio[known["concept"] != known.at[place, "concept"]]
            rows.append(
                {
                    "predictor": label,
                    "vector": place,
                    "factor": float(np.exp(others.median() - log_ratio[place])),
                }
            )
    shipped = [
        {
            "predictor": SHIPPED,
            "vector": i,
            "factor": known.at[i, "predicted"] / known.at[i, "scale"],
        }
        for i in known.index
    ]
    return pd.DataFrame(rows + shipped)


def summary(predictions: pd.DataFrame) -> pd.DataFrame:
    """A row a predictor: how often and how far it is off."""
    rows = []
    for label, part in predictions.groupby("predictor", sort=False):
        off = np.exp(np.abs(np.log(part["factor"])))
        within = {f"within_{factor:g}": float((off <= factor).mean()) for factor in (CLOSE, 2.0)}
        rows.append(
            {
                "predictor": label,
                **within,
                "median_factor": float(off.median()),
                "worst_factor": float(off.max()),
            }
        )
    return pd.DataFrame(rows)


def found(options: Options, table: pd.DataFrame, predictions: pd.DataFrame) -> Reproduction:
    """Numbers, verdict and figures."""
    steered, best = table.loc[table["effect"].notna()], summary(predictions).set_index("predictor")
    kept = {
        name: float(steered[f"effect_{name}"].sum() / steered["effect"].sum())
        for name in ("round", "share")
    }
    close = float(best.at[SHIPPED, f"within_{CLOSE:g}"])
    deviations = float(best.at["standard deviations", f"within_{CLOSE:g}"])
    passes, from_1 = float(table["passes"].mean()), float(table["passes_from_1"].mean())
    none = int((steered["hand_round"] == 0).sum())
    spread = steered["damage_at_1"]
    verdict: Verdict = (
        "does not survive its null"
        if close < ENOUGH
        else "holds"
        if max(kept.values()) <= 1.05
        else "holds with a caveat"
    )
    return Reproduction(
        name="strength",
        title="How strong: calibrated, by hand, foretold",
        paper="lrt_lens, strength",
        claim=(
            "A strength calibrated to a damage does at least what one picked by hand from round numbers does, "
            "and a share of the residual norm foretells it well enough to start from."
        ),
        compared=[
            Compared(
                "effect of the best of 1, 2, 4, 8 times the vector within the damage ÷ that of the calibrated strength",
                kept["round"],
            ),
            Compared(
                "effect of the best of 5 to 80% of the residual norm within the damage ÷ that of the calibrated strength",
                kept["share"],
            ),
            Compared(
                f"foretold within a factor {CLOSE}",
                close,
                control=deviations,
                control_name="standard deviations",
            ),
            Compared(
                "steered passes of a calibration that begins there",
                passes,
                control=from_1,
                control_name="begun at scale 1",
            ),
        ],
        says=(
            "Effects grow with the strength, so a hand that stays within the budget on a coarse grid is weaker by construction: this is what the "
            "coarse grid costs, and round numbers are a rule that we wrote down, no study of researchers. Effects are mean changes of propensity "
            "on few items; the budget is one number on one kind of neutral text."
        ),
        verdict=verdict,
        because=(
            f"of {len(steered)} vectors, at scale 1 the damage goes from {spread.min():.3g} to {spread.max():.3g} nats, and none of 1, 2, 4, 8 "
            f"is within {options.damage:g} for {none}; {close:.0%} of {len(table)} directions are foretold within a factor {CLOSE}."
        ),
        figures={
            "Effect of each vector at the calibrated strength and at the hand's": effects_figure(
                steered
            ),
            "Foretold ÷ calibrated scale, a point a direction": prediction_figure(predictions),
        },
        tables={"Predictors": summary(predictions), "Vectors": table},
        details={
            "n_vectors": len(steered),
            "n_directions": len(table),
            "not_reached": int(table["scale"].isna().sum()),
        },
    )


def effects_figure(steered: pd.DataFrame) -> go.Figure:
    """Calibrated against hand-picked, one panel a grid: a point under the line is effect that the
    hand left on the table.
    """
    plot = make_subplots(
        cols=2,
        subplot_titles=[
            "best of 1, 2, 4, 8 times the vector",
            "best of 5, 10, 20, 40, 80% of the residual norm",
        ],
    )
    ends = [min(0.0, float(steered["effect"].min())), 1.05 * float(steered["effect"].max())]
    line = {"color": HIGHLIGHT, "dash": "dash", "width": 1}
    hover = "%{text}<br>calibrated %{x:.2f}, by hand %{y:.2f} nats<extra></extra>"
    for column, name in enumerate(("round", "share"), start=1):
        for (concept, part), colour in zip(
            steered.groupby("concept", sort=False), _COLOURS * 9, strict=False
        ):
            plot.add_scatter(
                x=list(part["effect"]),
                y=list(part[f"effect_{name}"]),
                text=list(part["method"] + ", " + part["layer"]),
                mode="markers",
                name=str(concept),
                legendgroup=str(concept),
                showlegend=column == 1,
                marker={"color": colour, "size": 9},
                hovertemplate=hover,
                row=1,
                col=column,
            )
        plot.add_scatter(
            x=ends,
            y=ends,
            mode="lines",
            line=line,
            showlegend=False,
            hoverinfo="skip",
            row=1,
            col=column,
        )
    plot.update_xaxes(title_text="effect at the calibrated strength, nats").update_yaxes(
        title_text="effect by hand, nats", col=1
    )
    return plot.update_layout(template=TEMPLATE_NAME, height=480)


def prediction_figure(predictions: pd.DataFrame) -> go.Figure:
    """A row a predictor, on a logarithmic axis; the band is a factor of 1.5 either way."""
    plot = go.Figure()
    for index, (label, part) in enumerate(predictions.groupby("predictor", sort=False)):
        marker = {"color": _COLOURS[index % len(_COLOURS)], "size": 5, "opacity": 0.7}
        looks = {
            "boxpoints": "all",
            "jitter": 0.5,
            "pointpos": 0,
            "line": {"width": 1},
            "fillcolor": "rgba(0,0,0,0)",
        }
        plot.add_box(
            x=list(part["factor"]), name=str(label), marker=marker, showlegend=False, **looks
        )
    plot.add_vrect(x0=1 / CLOSE, x1=CLOSE, fillcolor="rgba(128,128,128,0.15)", line_width=0)
    plot.add_vline(x=1, line={"color": HIGHLIGHT, "dash": "dash", "width": 1})
    ticks = [0.125, 0.25, 0.5, 1, 2, 4, 8]
    plot.update_xaxes(
        type="log",
        title_text="foretold ÷ calibrated scale",
        tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
    )
    return plot.update_layout(template=TEMPLATE_NAME, height=460).update_yaxes(autorange="reversed")


if __name__ == "__main__":
    run(reproduce)
