"""Stitching, figure 6: the choice of the target layer by SVCCA, compared with a calibrated score.

    python examples/layer_choice.py                 # bundled pair, under a minute on two cores

Transferring Features with Model Stitching (arXiv 2506.06609, §2.1 and figure 6) fixes a source
layer and takes the target layer with the highest mean SVCCA correlation. It gives neither a
threshold nor a sample size; here SVCCA keeps 99% of the variance. Like every similarity measure,
SVCCA is high in all layers whose states are still mostly token identity. Our score (``gain_cv``)
is the fraction that the map explains, cross-validated, of the variance that tokens cannot explain.

Both scores have intervals by the delete-a-group jackknife, and SVCCA is compared with shuffled
pairs. The table gives for each source layer the choice of each score, the score of that choice on
the test fold, and whether the second best layer is shown to be worse, in intervals that hold
together for all layers and account for the choice of the best.
"""

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import lrt_lens as lrt
from lrt_lens.figures import TEMPLATE_NAME
from lrt_lens.models import short_hook
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#767676")
TOLERANCE = 0.01
"""Difference of the gain on the test fold up to which two choices count as equally good."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """The harvest and the settings of SVCCA."""

    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 150_000
    """Tokens of the harvest."""
    svcca_variance: float = 0.99
    """Fraction of the variance of each model's activations that SVCCA keeps."""


def reproduce(options: Options) -> Reproduction:
    """Score every layer pair with both measures, and compare their choices on the test fold."""
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
    by_svcca, by_gain = (float(table[f"test_gain_{name}"].mean()) for name in ("svcca", "gain"))
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
        title="Which layer of the large model: SVCCA and a calibrated score",
        paper="Stitching, figure 6",
        claim="For each layer of A, the layer of B with the highest mean SVCCA correlation is the "
        "layer to stitch to.",
        compared=[
            Compared(
                "highest mean SVCCA correlation",
                float(svcca["value"].max()),
                "plot, about .65 (Pythia)",
                control=float(svcca["null"].max()),
                control_name="shuffled pairs",
            ),
            Compared(
                "fraction explained of the variance that tokens cannot explain, SVCCA's choice "
                "(test fold, mean over source layers)",
                by_svcca,
                control=by_gain,
                control_name="calibrated choice",
            ),
            Compared("source layers with the same choice", f"{same} of {len(table)}"),
        ],
        says="This tests, for these two models, whether the highest similarity finds the best "
        "layer for a map. The paper shows SVCCA alone, without a score of the choice.",
        verdict=verdict,
        because=f"SVCCA is above shuffled pairs and agrees with the calibrated score on {same} of "
        f"{len(table)} source layers; of the variance that tokens cannot explain, maps to SVCCA's "
        f"choices explain {by_svcca:.3f}, maps to the calibrated choices {by_gain:.3f}.",
        figures={
            "One line per source layer; 95% jackknife intervals of each score": figure(grid, svcca)
        },
        tables={
            "Choices per source layer": table,
            "SVCCA of all pairs": svcca.drop(columns="note"),
        },
        details={"n_tokens": grid.moments.n_tokens},
    )


def choices_by_source(grid: lrt.StitchGrid, svcca: pd.DataFrame) -> pd.DataFrame:
    """Choices of SVCCA and of ``gain_cv`` with their test scores, one row per source layer."""
    scores = grid.scores.set_index(["source_hook", "target_hook"])
    rows = []
    for source, part in svcca.groupby("source_hook"):
        ranked = grid.choices(source=str(source))
        by_svcca = str(part.loc[part["value"].idxmax(), "target_hook"])
        by_gain = str(ranked["target_hook"][0])
        row: dict[str, object] = {
            "source": short_hook(str(source)),
            "by_svcca": short_hook(by_svcca),
            "by_gain": short_hook(by_gain),
        }
        for name, target in (("svcca", by_svcca), ("gain", by_gain)):
            r2, token = scores.loc[(source, target), ["r2_uniform", "r2_uniform_token"]]
            # gain = (R² − R²_token) / (1 − R²_token)
            row |= {f"r2_uniform_{name}": r2, f"test_gain_{name}": (r2 - token) / (1 - token)}
        rows.append(
            row
            | {
                "runner_up": short_hook(str(ranked["target_hook"][1])),
                "really_worse": bool(ranked["really_worse"][1]),
            }
        )
    return pd.DataFrame(rows)


def figure(grid: lrt.StitchGrid, svcca: pd.DataFrame) -> go.Figure:
    """SVCCA with shuffled pairs (left) and the calibrated score (right), over target layers."""
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
        title_text="fraction explained", row=1, col=2
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
    """Add one line with error bars to a panel."""
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
