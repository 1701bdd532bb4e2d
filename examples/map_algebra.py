"""What maps lose when they are joined, turned round, or given all layers to read. LRT, appendix A,
and more.

    python examples/map_algebra.py                               # bundled pair, about two minutes on two cores

*Composition*: source → a layer of the target → a later layer of the target, against the direct map,
for every later layer. *Inversion*: the pseudo-inverse of the map up, against the map down that was
fitted. *Many to one*: all source layers jointly into one target layer, which LRT (arXiv 2506.00653,
appendix A) proposes and trains nothing for: R² from the best single layer, from all, and what each
layer adds to the others. All scores are of the test fold, and every map comes from moments.
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
"""Of R²: what many layers must add to the best one to be worth their fit."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Layers that maps go through."""

    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 6_000}
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 150_000
    """Tokens of each harvest."""
    source_layer: int = 2
    """Where compositions start."""
    through_layer: int = 2
    """Layer of the target that they go through."""


def reproduce(options: Options) -> Reproduction:
    """Harvest twice (source with target, target with itself) and once for all source layers side by
    side.
    """
    pair, texts, source, through = (
        options.pair(),
        options.texts(),
        options.source_layer,
        options.through_layer,
    )
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
    within = lrt.fit_stitches(
        lrt.ModelPair(pair.target, pair.target),
        texts,
        source_layers=[through],
        target_layers=later,
        **shared,
    )
    composed, inverted = (
        compositions(across, within, source, through, later),
        inversions(across, source, [through, *later]),
    )
    joint = lrt.harvest(pair, texts, target_layers=[through], joint=True, **shared)
    layers = lrt.layer_contributions(joint)
    many = float(joint.fit(lrt.ManyToOne()).scores["r2"].iloc[0])
    alone = float(layers["r2_alone"].max())
    inverse, fitted = (
        float(inverted["truncated_inverse_r2"].mean()),
        float(inverted["fitted_r2"].mean()),
    )
    verdict: Verdict = "holds" if many > alone + WORTH else "does not survive its null"
    return Reproduction(
        name="map_algebra",
        title="Maps joined, turned round, and from many layers to one",
        paper="LRT, appendix A",
        claim="A map from all source layers to one target layer is proposed (many-to-one), and expected to predict more than one layer "
        "does; none is trained.",
        compared=[
            Compared(
                "R² from all source layers, test fold",
                many,
                None,
                control=alone,
                control_name="best single layer",
            ),
            Compared(
                "R² lost by going through a layer of the target, mean",
                float(composed["lost"].mean()),
                None,
            ),
            Compared(
                "R² of the inverted map up",
                inverse,
                None,
                control=fitted,
                control_name="fitted map down",
            ),
        ],
        says="Ridge throughout, scores on documents that no map saw; how much more than one layer many layers know is a property of these "
        "small models.",
        verdict=verdict,
        because=f"all layers explain {many:.3f}, the best single one {alone:.3f}; composition costs {composed['lost'].mean():.3f} of R², and "
        "inverting the map up gives "
        f"{inverse:.2f} where the fitted map down has {fitted:.2f}.",
        figures={
            "R² on the test fold; dotted: all layers with a penalty for each": figure(
                composed, inverted, layers, many
            )
        },
        tables={"Composition": composed, "The way down": inverted, "Many layers to one": layers},
    )


def compositions(
    across: lrt.StitchGrid, within: lrt.StitchGrid, source: int, through: int, later: list[int]
) -> pd.DataFrame:
    """Source → through → layer against source → layer, for every later layer of the target."""
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
    """The way down: fitted, and the pseudo-inverse of the way up, with all singular values and with
    those above a tenth of the largest.
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
    """Three panels, R² on the test fold."""
    shown = make_subplots(
        cols=3,
        subplot_titles=("composition", "the way down", "many layers to one"),
        horizontal_spacing=0.09,
    )
    depth_of_source = layers["source_hook"].map(lambda hook: depth(hook) - 1)
    panels = (
        (
            1,
            composed["layer"],
            {"direct": composed["direct_r2"], "composed": composed["composed_r2"]},
        ),
        (
            2,
            inverted["layer"],
            {
                "fitted": inverted["fitted_r2"],
                "inverse": inverted["inverse_r2"],
                "inverse, cut": inverted["truncated_inverse_r2"],
            },
        ),
        (
            3,
            depth_of_source,
            {
                "alone": layers["r2_alone"],
                "up to it": layers["r2_up_to"],
                "all without it": layers["r2_without"],
            },
        ),
    )
    for column, x, curves in panels:
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
    shown.add_hline(y=many, line={"dash": "dot"}, row=1, col=3)  # pyright: ignore[reportArgumentType] (plotly's stubs know "all" only)
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
