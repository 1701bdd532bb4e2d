"""Which layer of the large model? SVCCA as in figure 6 of Transferring Features with Model Stitching, beside a calibrated score.

    python examples/layer_choice.py --out layer-choice-report          # bundled pair, under a minute on two cores

The paper fixes a source layer and takes the target layer with the highest mean SVCCA correlation (arXiv 2506.06609, §2.1 and figure 6; neither
threshold nor sample size is given: 99% of the variance here). Like every measure of similarity it is high wherever both streams are still mostly
token identity. Ours (``gain_cv``) is the cross-validated share of what token identity leaves unexplained that the map explains. Both
are shown with intervals by the delete-a-group jackknife, SVCCA also against shuffled pairs, and the table says for each source layer what each of them
would choose, what the choice scores on the test fold, and whether the runner-up is really worse.
"""

import json
import logging
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import tyro
from plotly.subplots import make_subplots

import lrt_lens as lrt
from lrt_lens.report.template import TEMPLATE_NAME, short_hook

logger = logging.getLogger("layer_choice")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#767676")


def main(
    source: str | None = None, target: str | None = None, documents: str | None = None, out: Path = Path("layer-choice-report"),
    n_tokens: int = 150_000, svcca_variance: float = 0.99, seed: int = 0, device: str | None = None, quick: bool = False,
) -> None:  # fmt: skip
    """Compare how layers are chosen.

    Args:
        source: small model, a hub id or folder; the bundled one without it.
        target: large model.
        documents: text file or data set; the bundled text without it.
        out: folder for layer_choice.html and layer_choice.json.
        n_tokens: tokens of the harvest.
        svcca_variance: share of each stream's variance that SVCCA keeps.
        seed: of folds and shuffled pairs.
        device: where the models run.
        quick: few tokens: shows that it runs.
    """
    pair = lrt.demo_pair() if source is None or target is None else lrt.ModelPair.load(source, target, device=device)
    texts = lrt.demo_documents() if documents is None else documents
    grid = lrt.fit_stitches(pair, texts, n_tokens=20_000 if quick else n_tokens, null="full", seed=seed)
    svcca = grid.similarities(measures=["svcca"], svcca_variance=svcca_variance)
    table = choices_by_source(grid, svcca)
    out.mkdir(parents=True, exist_ok=True)
    figure(grid, svcca).write_html(out / "layer_choice.html", include_plotlyjs=True)
    (out / "layer_choice.json").write_text(
        json.dumps({"choices": table.to_dict("records"), "svcca": svcca.drop(columns="note").to_dict("records")}, indent=1),
        encoding="utf-8",
    )
    logger.info("%s\nOpen %s", table.round(3).to_string(index=False), out / "layer_choice.html")


def choices_by_source(grid: lrt.StitchGrid, svcca: pd.DataFrame) -> pd.DataFrame:
    """A row per source layer: the target layer that SVCCA would take, the one that ``gain_cv`` takes, and the test scores of both."""
    scores = grid.scores.set_index(["source_hook", "target_hook"])
    rows = []
    for source, part in svcca.groupby("source_hook"):
        ranked = grid.choices(source=str(source))
        by_svcca, by_gain = str(part.loc[part["value"].idxmax(), "target_hook"]), str(ranked["target_hook"][0])
        row: dict[str, object] = {"source": short_hook(str(source)), "by_svcca": short_hook(by_svcca), "by_gain": short_hook(by_gain)}
        for name, target in (("svcca", by_svcca), ("gain", by_gain)):
            found = scores.loc[(source, target)]
            token = found["r2_uniform_token"]
            row |= {f"r2_uniform_{name}": found["r2_uniform"], f"test_gain_{name}": (found["r2_uniform"] - token) / (1 - token)}
        rows.append(row | {"runner_up": short_hook(str(ranked["target_hook"][1])), "really_worse": bool(ranked["really_worse"][1])})
    return pd.DataFrame(rows)


def figure(grid: lrt.StitchGrid, svcca: pd.DataFrame) -> go.Figure:
    """Left SVCCA with its null, right the calibrated score: a line per source layer over the target's layers."""
    plot = make_subplots(
        cols=2, subplot_titles=["mean SVCCA correlation (dotted: shuffled pairs)", "gain over token identity, cross-validated"]
    )
    for index, (source, part) in enumerate(svcca.groupby("source_hook")):
        colour, name = _COLOURS[index % len(_COLOURS)], short_hook(str(source))
        ranked = grid.choices(source=str(source)).set_index("target_hook").loc[part["target_hook"]]
        at = [short_hook(str(target)) for target in part["target_hook"]]
        _line(plot, 1, at, part["value"], part["low"], part["high"], colour, name, legend=True)
        plot.add_scatter(
            x=at, y=part["null"], mode="lines", line={"color": colour, "dash": "dot"}, showlegend=False, hoverinfo="skip", row=1, col=1
        )
        _line(plot, 2, at, ranked["score"], ranked["low"], ranked["high"], colour, name, legend=False)
    plot.update_xaxes(title_text="target layer")
    return plot.update_layout(template=TEMPLATE_NAME, height=480, width=1100, legend_title="source layer")


def _line(
    plot: go.Figure, column: int, at: list[str], value: pd.Series, low: pd.Series, high: pd.Series, colour: str, name: str, *, legend: bool
) -> None:
    above = [upper - v for upper, v in zip(high, value, strict=True)]
    below = [v - lower for v, lower in zip(value, low, strict=True)]
    plot.add_scatter(
        x=at, y=list(value), name=name, legendgroup=name, showlegend=legend, mode="lines+markers", line={"color": colour},
        error_y={"array": above, "arrayminus": below, "symmetric": False, "thickness": 1}, row=1, col=column,
    )  # fmt: skip


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
