"""Which layer of the large model? SVCCA as in figure 6 of Transferring Features with Model
Stitching, beside a calibrated score.

    python examples/layer_choice.py                             # bundled pair, under a minute on two cores

The paper fixes a source layer and takes the target layer with the highest mean SVCCA correlation
(arXiv 2506.06609, §2.1 and figure 6; neither threshold nor sample size is given: 99% of the
variance here). Like every measure of similarity it is high wherever both streams are still mostly
token identity. Ours (``gain_cv``) is the cross-validated share of what token identity leaves
unexplained that the map explains. Both are shown with intervals by the delete-a-group jackknife,
SVCCA also against shuffled pairs, and the table says for each source layer what each of them would
choose, what the choice scores on the test fold, and whether the runner-up is really worse.
"""

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import lrt_lens as lrt
from lrt_lens.figures._template import TEMPLATE_NAME, short_hook
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#767676")
TOLERANCE = 0.01
"""Of the gain on the test fold: choices this close are as good."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """How layers are chosen."""

    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 150_000
    """Tokens of the harvest."""
    svcca_variance: float = 0.99
    """Share of each stream's variance that SVCCA keeps."""


def reproduce(options: Options) -> Reproduction:
    """Every layer pair once, both scores, and what their choices are worth."""
    grid = lrt.fit_stitches(
        options.pair(),
        options.texts(),
        n_tokens=options.n_tokens,
        null="full",
        seed=options.seed,
        progress=True,
    )
    svcca = grid.similarities(measures=["svcca"], svcca_variance=options.svcca_variance)
    table = choices_by_source(grid, svcca)
    same = int((table["by_svcca"] == table["by_gain"]).sum())
    by_svcca, by_gain = (
        float(table["test_gain_svcca"].mean()),
        float(table["test_gain_gain"].mean()),
    )
    above_null = bool(
        (svcca.loc[svcca.groupby("source_hook")["value"].idxmax()].eval("low > null")).all()
    )
    verdict: Verdict = (
        "does not survive its null"
        if not above_null
        else "holds"
        if by_gain - by_svcca <= TOLERANCE
        else "holds with a caveat"
    )
    return Reproduction(
        name="layer_choice",
        title="Which layer of the large model: SVCCA beside a calibrated score",
        paper="Stitching, figure 6",
        claim="For each layer of A, the layer of B with the highest mean SVCCA correlation is the one to stitch to.",
        compared=[
            Compared(
                "highest mean SVCCA correlation",
                float(svcca["value"].max()),
                "plot, about .65 (Pythia)",
                control=float(svcca["null"].max()),
                control_name="shuffled pairs",
            ),
            Compared(
                "share of the residual that the map to SVCCA's choice explains (test fold, mean over source layers)",
                by_svcca,
                control=by_gain,
                control_name="calibrated choice",
            ),
            Compared("source layers where both choose the same", f"{same} of {len(table)}"),
        ],
        says="Whether an argmax of similarity finds the best layer for a map, between these two models; the paper shows SVCCA alone, "
        "without a score of the choice.",
        verdict=verdict,
        because=f"SVCCA is above shuffled pairs and chooses the calibrated score's layer for {same} of {len(table)} source layers; its choices "
        f"explain {by_svcca:.3f} of what token identity leaves, the others {by_gain:.3f}.",
        figures={"A line per source layer; bars are 95% jackknife intervals": figure(grid, svcca)},
        tables={"What each would choose": table, "SVCCA of all pairs": svcca.drop(columns="note")},
        details={"n_tokens": grid.moments.n_tokens},
    )


def choices_by_source(grid: lrt.StitchGrid, svcca: pd.DataFrame) -> pd.DataFrame:
    """A row per source layer: the target layer that SVCCA would take, the one that ``gain_cv``
    takes, and the test scores of both.
    """
    scores = grid.scores.set_index(["source_hook", "target_hook"])
    rows = []
    for source, part in svcca.groupby("source_hook"):
        ranked = grid.choices(source=str(source))
        by_svcca, by_gain = (
            str(part.loc[part["value"].idxmax(), "target_hook"]),
            str(ranked["target_hook"][0]),
        )
        row: dict[str, object] = {
            "source": short_hook(str(source)),
            "by_svcca": short_hook(by_svcca),
            "by_gain": short_hook(by_gain),
        }
        for name, target in (("svcca", by_svcca), ("gain", by_gain)):
            found = scores.loc[(source, target)]
            token = found["r2_uniform_token"]
            row |= {
                f"r2_uniform_{name}": found["r2_uniform"],
                f"test_gain_{name}": (found["r2_uniform"] - token) / (1 - token),
            }
        rows.append(
            row
            | {
                "runner_up": short_hook(str(ranked["target_hook"][1])),
                "really_worse": bool(ranked["really_worse"][1]),
            }
        )
    return pd.DataFrame(rows)


def figure(grid: lrt.StitchGrid, svcca: pd.DataFrame) -> go.Figure:
    """Left SVCCA with its null, right the calibrated score: a line per source layer over the
    target's layers.
    """
    plot = make_subplots(
        cols=2,
        subplot_titles=[
            "mean SVCCA correlation (dotted: shuffled pairs)",
            "gain over token identity, cross-validated",
        ],
    )
    for index, (source, part) in enumerate(svcca.groupby("source_hook")):
        colour, name = _COLOURS[index % len(_COLOURS)], short_hook(str(source))
        ranked = grid.choices(source=str(source)).set_index("target_hook").loc[part["target_hook"]]
        at = [short_hook(str(target)) for target in part["target_hook"]]
        _line(plot, 1, at, part["value"], part["low"], part["high"], colour, name, legend=True)
        plot.add_scatter(
            x=at,
            y=part["null"],
            mode="lines",
            line={"color": colour, "dash": "dot"},
            showlegend=False,
            hoverinfo="skip",
            row=1,
            col=1,
        )
        _line(
            plot, 2, at, ranked["score"], ranked["low"], ranked["high"], colour, name, legend=False
        )
    plot.update_xaxes(title_text="target layer")
    plot.update_yaxes(title_text="mean correlation", row=1, col=1).update_yaxes(
        title_text="share explained", row=1, col=2
    )
    return plot.update_layout(template=TEMPLATE_NAME, height=480, legend_title="source layer")


def _line(
    plot: go.Figure,
    column: int,
    at: list[str],
    value: pd.Series,
    low: pd.Series,
    high: pd.Series,
    colour: str,
    name: str,
    *,
    legend: bool,
) -> None:
    above = [upper - v for upper, v in zip(high, value, strict=True)]
    below = [v - lower for v, lower in zip(value, low, strict=True)]
    plot.add_scatter(
        x=at,
        y=list(value),
        name=name,
        legendgroup=name,
        showlegend=legend,
        mode="lines+markers",
        line={"color": colour},
        error_y={"array": above, "arrayminus": below, "symmetric": False, "thickness": 1},
        row=1,
        col=column,
    )


if __name__ == "__main__":
    run(reproduce)
