"""Appearance shared by all figures: one plotly template and one style per arm.

Problem: a reader compares figures with each other, on a white page, on a dark one, on paper, and
with any kind of colour vision. Mechanism: an arm of a comparison ("transferred", "random", …) has
the same colour, dash and marker in every figure, so colour is never the only sign. Colours are
those of Okabe and Ito (2008); their black and yellow, which are invisible on a dark or a white
page, are replaced by a neutral grey and a darkened yellow. Backgrounds are transparent and text is
a grey that is legible on both; the HTML report repaints text in the page's own ink.

Example:
    import plotly.graph_objects as go
    from lrt_lens.figures._template import TEMPLATE_NAME, arm_style

    style = arm_style("transferred")
    figure = go.Figure(go.Scatter(x=[0, 1], y=[0, 2], name=style.label, line=style.line))
    figure.update_layout(template=TEMPLATE_NAME)

Limits: importing `TEMPLATE_NAME` imports plotly and registers the template under that name; it does
not become plotly's default, so other figures keep their looks.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from lrt_lens.figures._plotly import go, graph_objects
from lrt_lens.models._hook_points import short_hook as short_hook  # figures label axes with it

if TYPE_CHECKING:
    TEMPLATE_NAME: str

NEUTRAL = "#767676"
"""Colour of text and lines: contrast 4.5:1 against white and 4.6:1 against black."""
FAINT = "rgba(128,128,128,0.25)"
"""Colour of grid lines and of anything else that must not compete with data."""
HIGHLIGHT = "#D55E00"
"""Colour of the selected pair and the selected scale."""
HEAT_SCALE = "Cividis"
"""Name of a sequential colour scale, even in lightness, made for colour-vision deficiency."""

MENU_LOOKS: dict[str, object] = {
    "bgcolor": "#ffffff",
    "bordercolor": "#c8ccd0",
    "font": {"size": 12, "color": "#4a4a4a"},
}
"""Looks of menus and buttons inside a figure: opaque, because an open menu lies over the data."""


DOTTED: dict[str, object] = {"color": NEUTRAL, "dash": "dot", "width": 1}
"""Line at a reference value, such as 0 or chance."""


@dataclass(frozen=True)
class ArmStyle:
    """Appearance of one arm, the same in every figure."""

    label: str
    """Name of the arm in legends and on axes."""
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
        """Plotly's `marker` of a scatter trace."""
        # The neutral rim keeps light colours visible on white.
        rim = {"color": NEUTRAL, "width": 1}
        return {"color": self.colour, "symbol": self.symbol, "size": 8, "line": rim}

    def fill(self, *, opacity: float = 0.14) -> str:
        """Return the colour as `rgba(…)`, for a band around the line."""
        # A hex colour is #rrggbb: two digits per channel.
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
"""One style per arm, in the order in which figures list them."""

_MARGIN = {"l": 60, "r": 16, "t": 64, "b": 60}
"""Pixels around the panels."""
_LINE_OF_SUBTITLE = 18
"""Height of a line under the title, in pixels."""
_NAME = "lrt_lens"
"""Name under which plotly knows the template."""
_HOOK_KINDS = ("pre", "mid", "post")
"""Hook points of the residual stream within a block, in the order of the forward pass."""


def arm_style(arm: str) -> ArmStyle:
    """Return the arm's style; an unknown arm is drawn in neutral grey under its own name."""
    return ARM_STYLES.get(arm, ArmStyle(arm, NEUTRAL, dash="dashdot", symbol="hexagon"))


def ordered_arms(arms: Iterable[str], styles: Mapping[str, ArmStyle] = ARM_STYLES) -> list[str]:
    """Return the distinct arms: known ones in the order of `styles`, then the others.

    The others keep the order in which they first appear.
    """
    distinct = list(dict.fromkeys(arms))
    return [arm for arm in styles if arm in distinct] + [
        arm for arm in distinct if arm not in styles
    ]


def hook_order(hook_point: str) -> tuple[int, int, str]:
    """Return a sort key that follows the forward pass.

    The embedding comes first, then layer by layer pre, mid and post; other hook points of a layer
    follow these, and unknown names come last.
    """
    # Embedding: layer −1; unknown names: after every layer.
    match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|mid|post)", hook_point)
    if match:
        return int(match[1]), _HOOK_KINDS.index(match[2]), hook_point
    layer = re.match(r"blocks\.(\d+)\.", hook_point)
    if layer:
        return int(layer[1]), len(_HOOK_KINDS), hook_point
    return (-1 if "embed" in hook_point else 10**9), 0, hook_point


def require_columns(table: pd.DataFrame, *columns: str) -> None:
    """Check that the table has all columns.

    Raises:
        ValueError: a column is missing; the message names it and the columns of the table.
    """
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(
            f"the table lacks columns {missing}; it has {list(table.columns)}: give the table that "
            "the docstring of the figure names"
        )


def require_rows(table: pd.DataFrame) -> None:
    """Check that the table has at least one row.

    Raises:
        ValueError: the table is empty.
    """
    if table.empty:
        raise ValueError("the table has no rows; there is nothing to show: give one with rows")


def rows_where(table: pd.DataFrame, column: str, *values: object) -> pd.DataFrame:
    """Return the rows of the table whose `column` is one of the values."""
    return pd.DataFrame(table.loc[table[column].isin(values)])


def panel(row: int, column: int) -> dict[str, Any]:
    """Return the keywords that put a trace or a line into one panel of a figure."""
    return {"row": row, "col": column}


def error_bars(value: Any, low: Any, high: Any, **looks: Any) -> dict[str, Any]:
    """Return plotly's `error_x` or `error_y` for an interval around numbers or around a column.

    Args:
        value: estimate, one number or a column of them.
        low: lower ends of the intervals.
        high: upper ends.
        looks: further fields, such as `color` and `thickness`.
    """
    # plotly wants distances from the estimate, not the ends of the interval.
    above, below = high - value, value - low
    # plotly takes lists (or columns), even for a single point.
    single = not isinstance(above, pd.Series)
    return {
        "array": [above] if single else above,
        "arrayminus": [below] if single else below,
        **looks,
    }


def categories(labels: list[str]) -> dict[str, Any]:
    """Return the settings of a vertical axis that lists labels from top to bottom."""
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": labels[::-1],  # plotly counts categories from below
        "range": [-0.6, len(labels) - 0.4],
        "ticks": "",
    }


def count_range(table: pd.DataFrame, column: str) -> tuple[int, int] | None:
    """Return the smallest and the largest count in a column; None if there is none."""
    values = table[column].tolist() if column in table.columns else []
    counts = [int(n) for n in values if n == n]  # NaN is not equal to itself
    return (min(counts), max(counts)) if counts else None


def with_counts(
    figure: "graph_objects.Figure", counts: Mapping[str, int | tuple[int, int] | None]
) -> "graph_objects.Figure":
    """Return the figure with how many of what was measured, in a line under its title.

    The line has its own height: behind the title, the counts would be cut off on a phone.

    Args:
        figure: a figure with a title.
        counts: number by unit in the plural, such as ``{"items": 240}``, or the smallest and the
            largest number; None and 0 are unknown and left out.
    """
    known = [
        f"{_whole(count)} {_unit(unit, count)}" for unit, count in counts.items() if _whole(count)
    ]
    if not known:
        return figure
    layout = figure.layout
    lines = [f"n = {', '.join(known)}", layout.title.subtitle.text]
    top = _MARGIN["t"] if layout.margin.t is None else layout.margin.t
    return figure.update_layout(
        title_subtitle_text="<br>".join(line for line in lines if line),
        margin_t=top + _LINE_OF_SUBTITLE,
        height=None if layout.height is None else layout.height + _LINE_OF_SUBTITLE,
    )


def _whole(count: int | tuple[int, int] | None) -> str:
    """Return a count, or a range of counts, as text; empty if it is unknown."""
    ends = count if isinstance(count, tuple) else (count, count)
    texts = dict.fromkeys(f"{end:,}" for end in ends if end)
    return "–".join(texts)


def _unit(plural: str, count: int | tuple[int, int] | None) -> str:
    """Return the unit of a count: the first noun is in the singular if the count is 1."""
    return re.sub(r"s\b", "", plural, count=1) if _whole(count) == "1" else plural


def use_template() -> str:
    """Register the template with plotly, if it is not yet there, and return its name."""
    import plotly.io as pio

    # Registering twice would build the template again for every figure.
    if _NAME not in pio.templates:
        pio.templates[_NAME] = _template()
    return _NAME


def __getattr__(name: str) -> Any:
    # `from … import TEMPLATE_NAME` registers the template, so that the name works in any figure.
    if name == "TEMPLATE_NAME":
        return use_template()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _template() -> "go.layout.Template":
    """Return the template: transparent background, neutral text, legend below the panels."""
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
        # Traces without a style of their own take these colours in turn.
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
        "margin": _MARGIN,
    }
    return go.layout.Template(layout=layout)
