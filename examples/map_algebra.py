"""What maps lose when they are joined, turned round, or given all layers to read.

    python examples/map_algebra.py --out algebra-report          # bundled pair, about two minutes on two cores

*Composition*: source → a layer of the target → a later layer of the target, against the direct map, for every later layer. *Inversion*: the
pseudo-inverse of the map up, against the map down that was fitted. *Many to one*: all source layers jointly into one target layer, which LRT (arXiv
2506.00653, appendix A) proposes and trains nothing for: R² from the best single layer, from all, and what each layer adds to the others. All
scores are of the test fold, and every map comes from moments.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import tyro
from plotly.subplots import make_subplots

import lrt_lens as lrt
from lrt_lens.models.hook_points import depth
from lrt_lens.report.template import TEMPLATE_NAME

logger = logging.getLogger("map_algebra")


def main(
    source: str | None = None, target: str | None = None, documents: str | None = None, out: Path = Path("algebra-report"),
    source_layer: int = 2, through_layer: int = 2, n_tokens: int = 150_000, seed: int = 0, device: str | None = None, quick: bool = False,
) -> None:  # fmt: skip
    """Harvest twice (source with target, target with itself) and once for all source layers side by side.

    Args:
        source: small model, a hub id or folder; the bundled one without it.
        target: large model.
        documents: text file or data set; the bundled text without it.
        out: folder for map_algebra.html and map_algebra.json.
        source_layer: where compositions start.
        through_layer: layer of the target that they go through.
        n_tokens: tokens of each harvest.
        seed: of the folds.
        device: where the models run.
        quick: few tokens: shows that it runs.
    """
    n_tokens = 20_000 if quick else n_tokens
    pair = lrt.demo_pair() if source is None or target is None else lrt.ModelPair.load(source, target, device=device)
    texts: Any = lrt.demo_documents() if documents is None else documents
    options: dict[str, Any] = {"n_tokens": n_tokens, "seed": seed, "null": False}
    later = list(range(through_layer + 1, pair.target.n_layers))
    across = lrt.fit_stitches(pair, texts, source_layers=[source_layer], target_layers=[through_layer, *later], **options)
    own = lrt.ModelPair(pair.target, pair.target)
    within = lrt.fit_stitches(own, texts, source_layers=[through_layer], target_layers=later, **options)
    composed = compositions(across, within, source_layer, through_layer, later)
    inverted = inversions(across, source_layer, [through_layer, *later])
    joint = lrt.harvest(pair, texts, target_layers=[through_layer], joint=True, **options)
    layers = lrt.layer_contributions(joint)
    many = float(joint.fit(lrt.ManyToOne()).scores["r2"].iloc[0])
    out.mkdir(parents=True, exist_ok=True)
    figure(composed, inverted, layers, many).write_html(out / "map_algebra.html", include_plotlyjs=True)
    results = {
        "composition": composed.to_dict("records"), "inversion": inverted.to_dict("records"), "many_to_one": layers.to_dict("records"),
        "r2_many_to_one_group_penalties": many, "paper": "LRT proposes many-to-one maps and trains none",
        "note": "Ridge throughout, scores on documents that no map saw; small models.",
    }  # fmt: skip
    (out / "map_algebra.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    for name, table in (("Composition", composed), ("Inversion", inverted), ("Many layers to one", layers)):
        logger.info("%s\n%s\n", name, table.round(3).to_string(index=False))
    logger.info("All layers with a penalty for each: R² %.3f\nOpen %s", many, out / "map_algebra.html")


def compositions(across: lrt.StitchGrid, within: lrt.StitchGrid, source: int, through: int, later: list[int]) -> pd.DataFrame:
    """Source → through → layer against source → layer, for every later layer of the target."""
    first, rows = across[source, through].up, []
    for layer in later:
        direct, second = across[source, layer].up, within[through, layer].up
        scores = across.score(direct), across.score(first.compose(second))
        rows.append({"layer": layer, "direct_r2": scores[0].r2, "composed_r2": scores[1].r2, "lost": scores[0].r2 - scores[1].r2})
    return pd.DataFrame(rows)


def inversions(grid: lrt.StitchGrid, source: int, layers: list[int]) -> pd.DataFrame:
    """The way down: fitted, and the pseudo-inverse of the way up, with all singular values and with those above a tenth of the largest."""
    rows = []
    for layer in layers:
        stitch = grid[source, layer]
        row = {"layer": layer, "fitted_r2": grid.score(stitch.down).r2, "inverse_r2": grid.score(stitch.up.inverse()).r2}
        rows.append(row | {"truncated_inverse_r2": grid.score(stitch.up.inverse(rcond=0.1)).r2})
    return pd.DataFrame(rows)


def figure(composed: pd.DataFrame, inverted: pd.DataFrame, layers: pd.DataFrame, many: float) -> go.Figure:
    """Three panels, R² on the test fold."""
    shown = make_subplots(cols=3, subplot_titles=("composition", "the way down", "many layers to one"), horizontal_spacing=0.09)
    depth_of_source = layers["source_hook"].map(lambda hook: depth(hook) - 1)
    panels = (
        (1, composed["layer"], {"direct": composed["direct_r2"], "composed": composed["composed_r2"]}),
        (2, inverted["layer"], {"fitted": inverted["fitted_r2"], "inverse": inverted["inverse_r2"], "inverse, cut": inverted["truncated_inverse_r2"]}),
        (3, depth_of_source, {"alone": layers["r2_alone"], "up to it": layers["r2_up_to"], "all without it": layers["r2_without"]}),
    )  # fmt: skip
    for column, x, curves in panels:
        for name, y in curves.items():
            shown.add_trace(
                go.Scatter(x=x, y=y.clip(lower=-1), name=name, mode="lines+markers", hovertemplate="%{y:.3f}"), row=1, col=column
            )
        shown.update_xaxes(title="source layer" if column == 3 else "target layer", dtick=1, row=1, col=column)
    shown.add_hline(y=many, line={"dash": "dot"}, row=1, col=3)  # pyright: ignore[reportArgumentType] (plotly's stubs know "all" only)
    shown.update_yaxes(title="R² (below −1 shown as −1)", range=[0, 1], row=1, col=1)
    shown.update_layout(template=TEMPLATE_NAME, height=440, margin={"t": 90}, legend={"orientation": "h", "y": -0.25})
    return shown.update_layout(title="Maps joined, turned round, and from many layers")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
