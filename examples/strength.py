"""Steering strength: calibrated to a damage, picked from round numbers, or predicted.

    python examples/strength.py                                     # bundled pair
    # files of model-written questions, one vector per task
    python examples/strength.py --source FOLDER --target FOLDER --tasks FOLDER

L-Cross (arXiv 2501.02009, limitations) calls the choice of its strength β an open question and
tunes it by hand. Here every vector (difference of means, principal component, transferred from the
source; several layers) gets the strength at which it costs ``damage`` nats per token on neutral
text. It is compared with a choice by hand from two grids of round numbers: 1, 2, 4, 8 times the
vector, and 5, 10, 20, 40, 80% of the median residual norm. The choice by hand is a rule: take the
strongest effect within the damage (which requires measuring the damage of the whole grid). It is
not a study of how researchers choose.

The second figure compares predictions of the strength from moments and weights alone. Each is one
constant times a measure (fraction of the median residual norm, standard deviations along the
vector, Mahalanobis length, effect on the logits); the constant comes from the other vectors.
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
"""Factor within which a prediction is good enough to start a calibration."""
ENOUGH = 0.7
"""Fraction of the directions that have to be predicted within that factor."""
SHIPPED = "predict_scale (fixed constant)"
PREDICTORS = {
    "fraction of the median norm": "norm",
    "standard deviations": "deviations",
    "Mahalanobis length": "mahalanobis",
    "effect on the logits": "logits",
    "norm and deviations": "both",
}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")


@dataclass(frozen=True)
class Options(FigureOptions):
    """Vectors, and texts to measure their effects and damage on."""

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
    """Tokens of the harvest for the stitches and for the moments of the activations."""
    damage: float = 0.1
    """Budget: rise of the loss on neutral text, nats per token."""
    depths: tuple[float, ...] = (0.3, 0.5, 0.8)
    """Layers of both models, as fractions of their depth."""
    tasks: Path | None = None
    """Folder of model-written questions, one .jsonl file per task; by default bundled concepts."""
    n_tasks: int = 4
    """Number of tasks from that folder, in the order of their names."""
    n_items: int = 20
    """Number of items on which the effect of a concept is measured."""
    n_pairs: int = 40
    """Number of contrast pairs from which a vector is learnt."""
    n_neutral: int = 10
    """Number of neutral texts."""
    n_random: int = 2
    """Number of random directions of each kind per layer, for the predictions."""


Concept = tuple[lrt.ContrastSet, lrt.ChoiceItems]


def reproduce(options: Options) -> Reproduction:
    """Compare the calibrated strength of every vector with picked and predicted strengths."""
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
        for vector in random_vectors(stitch, options.n_random, options.seed + layer):
            rows.append(
                strengths(neutral, vector, None, options.damage) | lengths(vector, stitch, weights)
            )
    table = pd.DataFrame(rows)
    return report(options, table, predicted(table))


def concepts_of(options: Options) -> list[Concept]:
    """Contrast pairs to learn from and items to measure on, per task or bundled concept."""
    if options.tasks is None:
        if not options.bundled:
            raise MissingInputError(
                "--tasks is missing: the bundled concepts are for the bundled models; give a "
                "folder of model-written questions"
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
            f"--tasks {str(options.tasks)!r}: no .jsonl file there; give a folder with one file of "
            "questions per task"
        )
    concepts = []
    for path in files[: options.n_tasks]:
        train, test = lrt.behaviour_items(
            path, n=options.n_pairs + options.n_items, seed=options.seed
        ).split(options.n_pairs / (options.n_pairs + options.n_items))
        concepts.append((lrt.answer_contrast(train), test))
    return concepts


def first(contrast: lrt.ContrastSet, n: int) -> lrt.ContrastSet:
    """At most n pairs, spread over the set."""
    return contrast.split(n / len(contrast))[0] if n < len(contrast) else contrast


def first_items(items: lrt.ChoiceItems, n: int) -> lrt.ChoiceItems:
    """At most n items, spread over the set."""
    return items.split(n / len(items))[0] if n < len(items) else items


def learnt(
    pair: lrt.ModelPair, stitch: lrt.Stitch, contrast: lrt.ContrastSet
) -> list[lrt.SteeringVector]:
    """Vectors of one concept at one layer of the target.

    By difference of means, by principal component and, if there are two models, transferred from
    the source.
    """
    methods = (lrt.SteeringVector.mean_difference, lrt.SteeringVector.principal_component)
    vectors = [learn(pair.target, contrast, at=stitch.target_hook) for learn in methods]
    if pair.source is pair.target:
        return vectors
    own = lrt.SteeringVector.mean_difference(pair.source, contrast, at=stitch.source_hook)
    return [*vectors, stitch.transfer(own)]


def random_vectors(stitch: lrt.Stitch, n: int, seed: int) -> list[lrt.SteeringVector]:
    """Random directions: n isotropic ones, and n with the covariance of the activations."""
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
    """The calibrated scale in both units and, if there are items, the choices by hand."""
    vector = replace(vector, median_norm=neutral.median_norm(vector.hook))
    calibration = calibrate_on(neutral, vector, damage)
    from_1 = calibrate_on(neutral, vector, damage, first_guess=1.0)
    kl = calibrate_on(
        neutral,
        vector,
        damage,
        unit="kl",
        first_guess=calibration.scale if calibration.reached else 1.0,
    )
    row: dict[str, Any] = {
        "concept": vector.name,
        "method": vector.method,
        "layer": short_hook(vector.hook),
        "scale": calibration.scale,
        "damage": calibration.damage,
        "scale_kl": kl.scale,
        "predicted": predict_scale(vector, damage),
        # A curve begins with a row of scale 0, which needs no steered pass.
        "passes": len(calibration.curve) - 1,
        "passes_from_1": len(from_1.curve) - 1,
        "length": vector.norm,
        "median_norm": vector.median_norm,
        "damage_at_1": damage_at(from_1, 1.0),
    }
    if choices is None or not calibration.reached:
        return row
    unsteered = choices.propensity()

    def effect(scale: float) -> float:
        return float((choices.propensity(vector.hook_at(scale)) - unsteered).mean())

    row["effect"] = effect(calibration.scale)
    for name, scales in (
        ("round", ROUND),
        ("share", [share * vector.median_norm / vector.norm for share in SHARES]),
    ):
        within = [scale for scale in scales if neutral.damage(vector.hook_at(scale)) <= damage]
        effects = {scale: effect(scale) for scale in within}
        best = max(effects, key=effects.__getitem__, default=0.0)
        row |= {f"hand_{name}": best, f"effect_{name}": effects.get(best, 0.0)}
    return row


def damage_at(calibration: lrt.Calibration, scale: float) -> float:
    """The damage measured at a scale; NaN if the search did not try that scale."""
    at = calibration.curve.loc[calibration.curve["scale"] == scale, "damage"]
    return float(at.iloc[0]) if len(at) else math.nan


def lengths(
    vector: lrt.SteeringVector, stitch: lrt.Stitch, weights: Unembedding
) -> dict[str, float]:
    """One unit of scale for each predictor: the predicted scale is a constant times this."""
    statistics, direction = stitch.target_statistics, vector.direction.double()
    covariance = statistics.covariance.double()
    ridge = (
        0.1 * covariance.trace() / len(covariance) * torch.eye(len(covariance), dtype=torch.float64)
    )
    # ‖v‖_M = √(vᵀ (Σ + 0.1·tr(Σ)/d·I)⁻¹ v)
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


def predicted(table: pd.DataFrame) -> pd.DataFrame:
    """Predicted ÷ calibrated scale per predictor and vector.

    The constant of a predictor is the median over all vectors of other concepts.
    """
    known = table.loc[table["scale"].notna()]
    rows = []
    for label, column in PREDICTORS.items():
        log_ratio = np.log(known["scale"] / known[column])
        for index in known.index:
            others = log_ratio[known["concept"] != known.at[index, "concept"]]
            factor = float(np.exp(others.median() - log_ratio[index]))
            rows.append({"predictor": label, "vector": index, "factor": factor})
    for index in known.index:
        factor = known.at[index, "predicted"] / known.at[index, "scale"]
        rows.append({"predictor": SHIPPED, "vector": index, "factor": factor})
    return pd.DataFrame(rows)


def summary(predictions: pd.DataFrame) -> pd.DataFrame:
    """Fraction of predictions within two factors, median and largest factor, per predictor."""
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


def report(options: Options, table: pd.DataFrame, predictions: pd.DataFrame) -> Reproduction:
    """Numbers, verdict and figures."""
    steered = table.loc[table["effect"].notna()]
    ratios = {
        name: float(steered[f"effect_{name}"].sum() / steered["effect"].sum())
        for name in ("round", "share")
    }
    by_predictor = summary(predictions).set_index("predictor")[f"within_{CLOSE:g}"]
    close = float(by_predictor[SHIPPED])
    n_none = int((steered["hand_round"] == 0).sum())
    damages = steered["damage_at_1"]
    verdict: Verdict = (
        "does not survive its null"
        if close < ENOUGH
        else "holds"
        if max(ratios.values()) <= 1.05
        else "holds with a caveat"
    )
    return Reproduction(
        name="strength",
        title="Steering strength: calibrated, by hand, predicted",
        paper="lrt_lens, strength",
        claim="A strength calibrated to a damage has at least the effect of one picked by hand "
        "from round numbers, and a fraction of the residual norm predicts it well enough to "
        "start the calibration.",
        compared=compared_rows(table, ratios, by_predictor),
        says="Effects grow with the strength, so a choice within the budget on a coarse grid is "
        "weaker by construction: the comparison shows the cost of the coarse grid. Round numbers "
        "are our rule, not a study of researchers. Effects are mean changes of propensity on few "
        "items; the budget is one number on one kind of neutral text.",
        verdict=verdict,
        because=f"the damage of {len(steered)} vectors at scale 1 goes from {damages.min():.3g} to "
        f"{damages.max():.3g} nats; for {n_none} of them, none of 1, 2, 4, 8 is within "
        f"{options.damage:g} nats; {close:.0%} of {len(table)} directions are predicted within a "
        f"factor {CLOSE}.",
        figures={
            "Effect of each vector at the calibrated strength and at the strength by hand": (
                effects_figure(steered)
            ),
            "Predicted ÷ calibrated scale, one point per direction": prediction_figure(predictions),
        },
        tables={"Predictors": summary(predictions), "Vectors": table},
        details={
            "n_vectors": len(steered),
            "n_directions": len(table),
            "not_reached": int(table["scale"].isna().sum()),
        },
    )


def compared_rows(
    table: pd.DataFrame, ratios: dict[str, float], by_predictor: pd.Series
) -> list[Compared]:
    """Effects by hand ÷ calibrated, accuracy of the prediction, and passes of a calibration."""
    ratio = "within the damage ÷ effect of the calibrated strength"
    return [
        Compared(f"effect of the best of 1, 2, 4, 8 times the vector {ratio}", ratios["round"]),
        Compared(f"effect of the best of 5 to 80% of the residual norm {ratio}", ratios["share"]),
        Compared(
            f"fraction predicted within a factor {CLOSE}",
            float(by_predictor[SHIPPED]),
            control=float(by_predictor["standard deviations"]),
            control_name="standard deviations",
        ),
        Compared(
            "steered passes of a calibration that starts from the prediction",
            float(table["passes"].mean()),
            control=float(table["passes_from_1"].mean()),
            control_name="started at scale 1",
        ),
    ]


def effects_figure(steered: pd.DataFrame) -> go.Figure:
    """Effect by hand over effect at the calibrated strength, one panel per grid.

    The choice by hand is weaker for the points below the line.
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
    """Predicted ÷ calibrated scale, one row per predictor; the band is a factor of 1.5."""
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
        title_text="predicted ÷ calibrated scale",
        tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
    )
    return plot.update_layout(template=TEMPLATE_NAME, height=460).update_yaxes(autorange="reversed")


if __name__ == "__main__":
    run(reproduce)
