"""Stitching, figure 7: benefit and cost of the inversion term in eq. 3.

    python examples/inversion_penalty.py    # bundled pair and SAE, about two minutes on two cores

Transferring Features with Model Stitching (arXiv 2506.06609) weights both round trips by α in {0,
0.1, 1, 10} and selects 1. This script takes the exact minimum of eq. 3 (`TwoWay`) for each α, and
measures the next-token loss of A→B, B→A and both round trips, and of B with A's SAE transferred by
the same maps. Differences to α = 0, where each way is fitted alone, have paired intervals.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go

import lrt_lens as lrt
from lrt_lens.figures._template import TEMPLATE_NAME
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run
from lrt_lens.stitching._affine import MapPair

ROUTES = ("A→B", "B→A", "A→B→A", "B→A→B")
PAPER_CHOICE = 1.0
_LOOKS = {
    "A→B": ("#D55E00", "circle"),
    "B→A": ("#0072B2", "square"),
    "A→B→A": ("#56B4E9", "square-open"),
    "B→A→B": ("#E69F00", "circle-open"),
    "SAE A→B": ("#009E73", "diamond"),
}


@dataclass(frozen=True)
class Options(FigureOptions):
    """Weights of the inversion term."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 6_000,
        "loss_tokens": 600,
        "weights": (0.0, 1.0),
    }
    target_layer: int | str = 3
    """Layer of the target; the layer of the source is that of the SAE."""
    weights: tuple[float, ...] = (0.0, 0.1, 1.0, 10.0)
    """Values of α in eq. 3; 0 and the paper's 1 are always added."""
    ridge: float = 1e-3
    """Relative ridge term of all fits."""
    loss_tokens: int = 12_000
    """Number of predicted tokens, from documents on which no map was fitted."""


def reproduce(options: Options) -> Reproduction:
    """Fit the maps for every α from one harvest, and measure all losses on the same documents."""
    pair, texts, sae = options.pair(), options.texts(), options.source_sae()
    stitches = fitted(pair, texts, sae.cfg.metadata.hook_name, options)
    others: dict[str, MapPair] = {
        f"α = {w:g}": stitch.maps for w, stitch in stitches.items() if w != PAPER_CHOICE
    }
    loss = lrt.evaluate_stitch_loss(
        pair,
        stitches[PAPER_CHOICE],
        texts,
        routes=ROUTES,
        n_tokens=options.loss_tokens,
        others=others,
        controls=("zero",),
        seed=options.seed,
    )
    table = pd.concat(
        [losses(loss, tuple(stitches)), sae_losses(pair, stitches, sae, texts, options)],
        ignore_index=True,
    )
    gaps = {route: loss.difference("stitched", "α = 0", route=route) for route in ROUTES}
    helps = [route for route in ROUTES[2:] if gaps[route].high < 0]
    hurts = [route for route in ROUTES[:2] if gaps[route].low > 0]
    verdict: Verdict = (
        "does not survive its null" if not helps else "holds with a caveat" if hurts else "holds"
    )
    losses_at_0 = table[table["weight"] == 0].set_index("route")["ce"]
    return Reproduction(
        name="inversion_penalty",
        title="Benefit and cost of the inversion term",
        paper="Stitching, figure 7",
        claim="Weighting round trips by α = 1 (of 0, 0.1, 1, 10) makes the two maps invert each "
        "other without a loss in the prediction of either way.",
        compared=[
            Compared(
                f"{route}: loss at α = 1 minus loss at α = 0, nats per token",
                gaps[route].value,
                "plot",
                gaps[route].low,
                gaps[route].high,
                control=float(losses_at_0[route]),
                control_name="loss at α = 0:",
            )
            for route in ("A→B→A", "A→B", "B→A→B", "B→A")
        ],
        says="All maps are exact minima from the same moments, so they differ in α alone. The "
        "paper's curves are from Adam on Pythia and come without numbers.",
        verdict=verdict,
        because="loss at α = 1 minus loss at α = 0: "
        + ", ".join(
            f"{route} {gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
            for route, gap in gaps.items()
        )
        + " nats per token.",
        figures={"Loss over α (dotted: the unmodified models A and B)": figure(table, loss)},
        tables={"Loss per α": table, "All arms": loss.table},
        details={"stitch": repr(stitches[PAPER_CHOICE])},
    )


def fitted(
    pair: lrt.ModelPair, texts: Any, source_hook: str, options: Options
) -> dict[float, lrt.Stitch]:
    """The exact minimum of eq. 3 for every weight α, all from the same moments."""
    moments = lrt.harvest(
        pair,
        texts,
        source_layers=[source_hook],
        target_layers=[options.target_layer],
        n_tokens=options.n_tokens,
        null=False,
        seed=options.seed,
        progress=True,
    )
    (where,) = moments.pairs
    return {
        w: moments.fit(lrt.TwoWay(inversion_weight=w, alpha=options.ridge), pairs=[where])[where]
        for w in sorted({*options.weights, 0.0, PAPER_CHOICE})
    }


def losses(loss: lrt.StitchLoss, weights: tuple[float, ...]) -> pd.DataFrame:
    """Cross-entropy with its interval, one row per route and weight."""
    by_arm = loss.table.set_index(["route", "arm"])
    rows = []
    for route in ROUTES:
        for weight in weights:
            arm = "stitched" if weight == PAPER_CHOICE else f"α = {weight:g}"
            ce, low, high = by_arm.loc[(route, arm), ["ce", "ce_low", "ce_high"]]
            rows.append({"route": route, "weight": weight, "ce": ce, "low": low, "high": high})
    return pd.DataFrame(rows)


def sae_losses(
    pair: lrt.ModelPair,
    stitches: Mapping[float, lrt.Stitch],
    sae: Any,
    texts: Any,
    options: Options,
) -> pd.DataFrame:
    """Cross-entropy of B with its activations reconstructed by A's transferred SAE, per weight."""
    rows = []
    for weight, stitch in stitches.items():
        table = lrt.evaluate_sae(
            pair, stitch, sae, texts, n_random=1, n_tokens=options.loss_tokens, seed=options.seed
        ).table.set_index("arm")
        transferred = table.loc["transferred"]
        own = transferred["own_ce"]
        rows.append(
            {
                "route": "SAE A→B",
                "weight": weight,
                "ce": transferred["ce"],
                "low": own + transferred["delta_ce_low"],
                "high": own + transferred["delta_ce_high"],
            }
        )
    return pd.DataFrame(rows)


def figure(table: pd.DataFrame, loss: lrt.StitchLoss) -> go.Figure:
    """Loss over α, one line per route; α is categorical because one value is 0."""
    plot = go.Figure()
    for route, part in table.groupby("route", sort=False):
        colour, symbol = _LOOKS[str(route)]
        plot.add_scatter(
            x=[f"{weight:g}" for weight in part["weight"]],
            y=part["ce"],
            name=str(route),
            mode="lines+markers",
            line={"color": colour},
            marker={"symbol": symbol, "size": 10, "color": colour},
            error_y={
                "array": part["high"] - part["ce"],
                "arrayminus": part["ce"] - part["low"],
                "symmetric": False,
                "thickness": 1,
            },
        )
    unmodified = loss.table[loss.table["arm"] == "own"].drop_duplicates("finishes_in")
    for row in unmodified.to_dict("records"):
        plot.add_hline(
            y=row["ce"],
            line={"dash": "dot", "width": 1.5},
            annotation_text=f"{str(row['route'])[-1]} unmodified",
            annotation_position="top left",
        )
    plot.update_xaxes(type="category", title_text="α, weight of the round trips in eq. 3")
    plot.update_yaxes(title_text="next-token cross-entropy (nats per token)")
    return plot.update_layout(template=TEMPLATE_NAME, height=520)


if __name__ == "__main__":
    run(reproduce)
