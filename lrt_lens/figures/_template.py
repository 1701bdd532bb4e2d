"""How every figure looks: one plotly template and one style an arm.

Problem: a reader compares figures with each other, on a white page, on a dark one, on paper, and
with any kind of colour vision. Mechanism: an arm of a comparison ("transferred", "random", …) has
the same colour, dash and marker everywhere, so that colour is never the only sign. Colours are
those of Okabe and Ito (2008), where black and yellow, which vanish on a dark or a white page, are
replaced by a neutral grey and a darkened yellow. Backgrounds are transparent and text is a grey
that is legible on both; the HTML report repaints text in the page's own ink.

Example:
    import plotly.graph_objects as go
    from lrt_lens.figures._template import TEMPLATE_NAME, arm_style

    style = arm_style("transferred")
    figure = go.Figure(go.Scatter(x=[0, 1], y=[0, 2], name=style.label, line=style.line))
    figure.update_layout(template=TEMPLATE_NAME)

Limits: importing this module registers the template under the name "lrt_lens"; it does not become
plotly's default, so figures of the user's own keep their looks.
"""

import re
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

from lrt_lens.models._hook_points import short_hook as short_hook  # figures label axes with it

TEMPLATE_NAME = "lrt_lens"
NEUTRAL = "#767676"
"""Text and lines: 4.5:1 against white, 4.6:1 against black."""
FAINT = "rgba(128,128,128,0.25)"
"""Grid lines and other things that must not compete with data."""
HIGHLIGHT = "#D55E00"
"""What the reader is pointed at: the chosen pair, the chosen scale."""
HEAT_SCALE = "Cividis"
"""Sequential, even in lightness, made for colour-vision deficiency."""

MENU_LOOKS: dict[str, object] = {
    "bgcolor": "#ffffff",
    "bordercolor": "#c8ccd0",
    "font": {"size": 12, "color": "#4a4a4a"},
}
"""Menus and buttons inside a figure: opaque, because an open menu lies over the data."""


@dataclass(frozen=True)
class ArmStyle:
    """The looks of one arm, the same in every figure."""

    label: str
    """The name shown to readers."""
    colour: str
    """Hex colour of line and marker."""
    dash: str = "solid"
    """Plotly's name of the line pattern."""
    symbol: str = "circle"
    """Plotly's name of the marker."""
    width: float = 2.0
    """Line width in pixels."""

    @property
    def line(self) -> dict[str, str | float]:
        """Plotly's `line` of a scatter trace."""
        return {"color": self.colour, "dash": self.dash, "width": self.width}

    @property
    def marker(self) -> dict[str, object]:
        """Plotly's `marker` of a scatter trace; the neutral rim keeps light colours visible on
        white.
        """
        return {
            "color": self.colour,
            "symbol": self.symbol,
            "size": 8,
            "line": {"color": NEUTRAL, "width": 1},
        }

    def fill(self, *, opacity: float = 0.14) -> str:
        """Returns the colour as `rgba(…)`, for a band round the line."""
        red, green, blue = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{opacity})"


ARM_STYLES: dict[str, ArmStyle] = {
    "transferred": ArmStyle("transferred", "#D55E00", width=3.0),
    "native": ArmStyle("native", "#0072B2", symbol="square"),
    "native_best": ArmStyle("native, best hook", "#56B4E9", dash="dash", symbol="square-open"),
    "untransformed": ArmStyle(
        "untransformed", "#9A8C00", dash="longdashdot", symbol="star-triangle-up"
    ),
    "shuffled": ArmStyle("shuffled map", "#CC79A7", dash="dashdot", symbol="diamond"),
    "permuted": ArmStyle("permuted labels", "#009E73", dash="dot", symbol="triangle-up"),
    "bias_only": ArmStyle("bias only", "#E69F00", dash="longdash", symbol="cross"),
    "random": ArmStyle("random", "#8C8C8C", symbol="circle-open", width=1.0),
    "none": ArmStyle("no steering", NEUTRAL, dash="dot", symbol="x", width=1.5),
}
"""One style an arm, in the order in which figures list them."""

_HOOK_KINDS = ("pre", "mid", "post")


def arm_style(arm: str) -> ArmStyle:
    """Returns the arm's style; an arm without one is drawn in neutral grey under its own name."""
    return ARM_STYLES.get(arm, ArmStyle(arm, NEUTRAL, dash="dashdot", symbol="hexagon"))


def ordered_arms(arms: list[str]) -> list[str]:
    """Returns the distinct arms: known ones in the order of `ARM_STYLES`, then the others as they
    first appear.
    """
    distinct = list(dict.fromkeys(arms))
    return [arm for arm in ARM_STYLES if arm in distinct] + [
        arm for arm in distinct if arm not in ARM_STYLES
    ]


def hook_order(hook_point: str) -> tuple[int, int, str]:
    """Returns a sort key that follows the forward pass: embedding, then by layer pre, mid, post,
    then the rest.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|mid|post)", hook_point)
    if match:
        return int(match[1]), _HOOK_KINDS.index(match[2]), hook_point
    layer = re.match(r"blocks\.(\d+)\.", hook_point)
    if layer:
        return int(layer[1]), len(_HOOK_KINDS), hook_point
    return (-1 if "embed" in hook_point else 10**9), 0, hook_point


def require_columns(table: pd.DataFrame, *columns: str) -> None:
    """Raises ValueError, naming what is missing and what is there, unless the table has all
    columns.
    """
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"the table lacks columns {missing}; it has {list(table.columns)}")


def _template() -> go.layout.Template:
    axis = {
        "gridcolor": FAINT,
        "zerolinecolor": "rgba(128,128,128,0.6)",
        "linecolor": FAINT,
        "ticks": "outside",
        "tickcolor": FAINT,
        "automargin": True,
        "title": {"standoff": 10, "font": {"size": 13}},
    }
    layout = {
        "font": {
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
            "size": 13,
            "color": NEUTRAL,
        },
        "title": {
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "pad": {"l": 12},
            "y": 0.98,
            "yanchor": "top",
            "font": {"size": 16},
            "subtitle": {"font": {"size": 12}},
        },
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": [style.colour for style in ARM_STYLES.values()],
        "xaxis": axis,
        "yaxis": axis,
        "legend": {
            "orientation": "h",
            "y": -0.2,
            "yanchor": "top",
            "x": 0,
            "xanchor": "left",
            "font": {"size": 12},
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": NEUTRAL, "activecolor": HIGHLIGHT},
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "margin": {"l": 60, "r": 16, "t": 64, "b": 60},
    }
    return go.layout.Template(layout=layout)


pio.templates[TEMPLATE_NAME] = _template()
