"""LRT, appendix A: compose maps, invert them, and map many layers to one.

    python examples/map_algebra.py              # bundled pair, about two minutes on two cores

*Composition*: source → a layer of the target → a later layer of the target, compared with the
direct map, for every later layer. *Inversion*: the pseudo-inverse of the map up, compared with the
fitted map down. *Many to one*: all source layers jointly to one target layer, which LRT (arXiv
2506.00653, appendix A) proposes without training such a map. The script gives R² from the best
single layer and from all layers, and the contribution of each layer. All scores are from the test
fold, and every map is fitted from moments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import lrt_lens as lrt
from lrt_lens.figures._template import TEMPLATE_NAME
from lrt_lens.models._hook_points import depth
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run

WORTH = 0.01
"""Least gain of R² over the best single layer that makes a map of many layers worth its fit."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Layers of the composed maps."""

    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 6_000}
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 150_000
    """Tokens of each harvest."""
    source_layer: int = 2
    """Layer of the source at which compositions start."""
    through_layer: int = 2
    """Layer of the target through which they go."""


def reproduce(options: Options) -> Reproduction:
    """Compose, invert and join maps, and score them on the test fold."""
    composed, inverted, layers, many = measured(options)
    alone, lost = float(layers["r2_alone"].max()), float(composed["lost"].mean())
    inverse, fitted = (
        float(inverted[f"{name}_r2"].mean()) for name in ("truncated_inverse", "fitted")
    )
    verdict: Verdict = "holds" if many > alone + WORTH else "does not survive its null"
    return Reproduction(
        name="map_algebra",
        title="Composed maps, inverted maps, and maps from many layers to one",
        paper="LRT, appendix A",
        claim="A map from all source layers to one target layer (many-to-one) is proposed and "
        "expected to predict more than a single layer does; none is trained.",
        compared=[
            Compared(
                "R² from all source layers, test fold",
                many,
                None,
                control=alone,
                control_name="best single layer",
            ),
            Compared("R² lost by going through a layer of the target, mean", lost, None),
            Compared(
                "R² of the inverted map up",
                inverse,
                None,
                control=fitted,
                control_name="fitted map down",
            ),
        ],
        says="All maps are fitted by ridge and scored on held-out documents. The gain of many "
        "layers over one layer is a property of these small models.",
        verdict=verdict,
        because=f"all layers explain {many:.3f}, the best single layer {alone:.3f}; composition "
        f"costs {lost:.3f} of R²; the inverse of the map up has an R² of {inverse:.2f}, the fitted "
        f"map down {fitted:.2f}.",
        figures={
            "R² on the test fold (dotted: all layers, with one penalty per layer)": figure(
                composed, inverted, layers, many
            )
        },
        tables={"Composition": composed, "Maps down": inverted, "Many layers to one": layers},
    )


def measured(options: Options) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, float]:
    """Scores of compositions, of inversions and of each source layer, and R² from all layers."""
    pair, texts = options.pair(), options.texts()
    source, through = options.source_layer, options.through_layer
    shared: dict[str, Any] = {
        "n_tokens": options.n_tokens,
        "seed": options.seed,
        "null": False,
        "progress": True,
    }
    later = list(range(through + 1, pair.target.n_layers))
    across = lrt.fit_stitches(
        pair, texts, source_layers=[source], target_layers=[through, *later], **shared
    )
    # A pair of the target with itself gives the maps between its layers.
    within = lrt.fit_stitches(
        lrt.ModelPair(pair.target, pair.target),
        texts,
        source_layers=[through],
        target_layers=later,
        **shared,
    )
    joint = lrt.harvest(pair, texts, target_layers=[through], joint=True, **shared)
    return (
        compositions(across, within, source, through, later),
        inversions(across, source, [through, *later]),
        lrt.layer_contributions(joint),
        float(joint.fit(lrt.ManyToOne()).scores["r2"].iloc[0]),
    )


def compositions(
    across: lrt.StitchGrid, within: lrt.StitchGrid, source: int, through: int, later: list[int]
) -> pd.DataFrame:
    """R² of source → through → layer and of source → layer, per later layer of the target."""
    first, rows = across[source, through].up, []
    for layer in later:
        direct, second = across[source, layer].up, within[through, layer].up
        scores = across.score(direct), across.score(first.compose(second))
        rows.append(
            {
                "layer": layer,
                "direct_r2": scores[0].r2,
                "composed_r2": scores[1].r2,
                "lost": scores[0].r2 - scores[1].r2,
            }
        )
    return pd.DataFrame(rows)


def inversions(grid: lrt.StitchGrid, source: int, layers: list[int]) -> pd.DataFrame:
    """R² of maps down: fitted, and the pseudo-inverse of the map up.

    The pseudo-inverse has all singular values, or those above a tenth of the largest.
    """
    rows = []
    for layer in layers:
        stitch = grid[source, layer]
        row = {
            "layer": layer,
            "fitted_r2": grid.score(stitch.down).r2,
            "inverse_r2": grid.score(stitch.up.inverse()).r2,
        }
        rows.append(row | {"truncated_inverse_r2": grid.score(stitch.up.inverse(rcond=0.1)).r2})
    return pd.DataFrame(rows)


def figure(
    composed: pd.DataFrame, inverted: pd.DataFrame, layers: pd.DataFrame, many: float
) -> go.Figure:
    """R² on the test fold in three panels: composition, maps down, many layers to one."""
    shown = make_subplots(
        cols=3,
        subplot_titles=("composition", "maps down", "many layers to one"),
        horizontal_spacing=0.09,
    )
    # `depth` of blocks.L.hook_resid_post is L + 1.
    depth_of_source = layers["source_hook"].map(lambda hook: depth(hook) - 1)
    inverses = {"fitted": "fitted", "inverse": "inverse", "inverse, truncated": "truncated_inverse"}
    contributions = {"alone": "alone", "up to this layer": "up_to", "all but this layer": "without"}
    panels = (
        (composed["layer"], {name: composed[f"{name}_r2"] for name in ("direct", "composed")}),
        (inverted["layer"], {name: inverted[f"{key}_r2"] for name, key in inverses.items()}),
        (depth_of_source, {name: layers[f"r2_{key}"] for name, key in contributions.items()}),
    )
    for column, (x, curves) in enumerate(panels, start=1):
        for name, y in curves.items():
            shown.add_trace(
                go.Scatter(
                    x=x,
                    y=y.clip(lower=-1),
                    name=name,
                    mode="lines+markers",
                    hovertemplate="%{y:.3f}",
                ),
                row=1,
                col=column,
            )
        shown.update_xaxes(
            title="source layer" if column == 3 else "target layer", dtick=1, row=1, col=column
        )
    shown.add_hline(y=many, line={"dash": "dot"}, row=1, col=3)
    shown.update_yaxes(title="R² (below −1 shown as −1)", range=[0, 1], row=1, col=1)
    shown.update_layout(
        template=TEMPLATE_NAME,
        height=440,
        margin={"t": 60},
        legend={"orientation": "h", "y": -0.25},
    )
    return shown


if __name__ == "__main__":
    run(reproduce)
