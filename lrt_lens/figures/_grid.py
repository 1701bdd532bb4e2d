"""The figure of a grid of layer pairs: how well each is stitched, and its control beside it.

Problem: an R² of .6 says little until one knows what R² pairs of unrelated texts reach, or what the
token alone predicts. Mechanism: two heat maps on one colour scale, the fit on the left and a
control on the right, each with a menu that exchanges the column; the numbers stand in the cells
while the grid is small, and in the hover text always.

Example:
    from lrt_lens.figures._grid import grid_figure

    grid_figure(grid.scores, value="r2_uniform", chosen=(stitch.source_hook,
    stitch.target_hook)).show()

Limits: one row a pair; a table of several solvers or sample sizes is refused, so select one first.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real

import pandas as pd

from lrt_lens.figures._plotly import go, make_subplots
from lrt_lens.figures._template import (
    HEAT_SCALE,
    HIGHLIGHT,
    MENU_LOOKS,
    hook_order,
    require_columns,
    short_hook,
    use_template,
)

GRID_VALUES: dict[str, str] = {
    "r2": "R², test fold",
    "r2_uniform": "R², test fold,<br>mean over dimensions",
    "r2_cv": "R², cross-validated",
    "r2_uniform_cv": "R², cross-validated,<br>mean over dimensions",
    "cka": "CKA (no map)",
    "cosine": "cosine, test fold",
    "r2_null": "null: R² of a map<br>fitted to shuffled pairs",
    "r2_token": "rival: R² from the<br>token embedding alone",
    "r2_uniform_token": "rival: the token embedding,<br>mean over dimensions",
}
"""Columns that `grid_figure` can show, with the heading of their panel."""

GRID_CONTROLS = ("r2_null", "r2_token", "r2_uniform_token")
"""What the second panel of `grid_figure` can show beside them."""

_HOVER = ("r2", "r2_uniform", "r2_null", "r2_token", "n_tokens", "alpha")
_TEXT_LIMIT = 12


def grid_figure(
    scores: pd.DataFrame, *, value: str = "r2", chosen: tuple[str, str] | None = None
) -> "go.Figure":
    """Returns two heat maps, target hook (up) by source hook (right): the fit of each pair, and its
    control beside it.

    Both share one colour scale from 0; what lies below 0 takes the colour of 0. A menu over each
    panel switches the column: any of `GRID_VALUES` on the left, the null or the token baseline on
    the right. Without a control in the table there is one panel.

    Args: scores: a row per layer pair: `source_hook`, `target_hook` and columns of `GRID_VALUES`;
        for the hover text also
            `n_tokens` and `alpha`.
        value: the column shown first.
        chosen: (source hook, target hook) of the pair to outline.

    Raises:
        ValueError: a column or the chosen pair is not in the table, or a pair has two rows.
    """
    require_columns(scores, "source_hook", "target_hook", value)
    layers = _LayerPairs.of(scores)
    if value not in layers.values:
        raise ValueError(
            f"cannot show column {value!r}; columns with values here are {list(layers.values)}"
        )
    if chosen is not None and not (chosen[0] in layers.sources and chosen[1] in layers.targets):
        raise ValueError(
            f"the chosen pair {chosen} is not in the table; sources are {layers.sources}, targets {layers.targets}"
        )
    shown = [value, *layers.controls[:1]]
    figure = make_subplots(
        cols=len(shown),
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=[GRID_VALUES[c] for c in shown],
    )
    for number, column in enumerate(shown, start=1):
        figure.add_trace(layers.heat_map(column), row=1, col=number)
        if chosen is not None:
            figure.add_shape(layers.outline(*chosen), row=1, col=number)
    figure.update_layout(
        updatemenus=_menus(layers, shown), meta={"panels": len(shown)}
    )  # the report stacks two panels on a phone
    return _lay_out(
        figure, n_targets=len(layers.targets), top=layers.scale_top(value), chosen=chosen
    )


@dataclass(frozen=True)
class _LayerPairs:
    """The table as matrices, target by source, in the order of the forward pass."""

    sources: list[str]
    targets: list[str]
    values: dict[str, list[list[float]]]
    """Columns of `GRID_VALUES` that hold numbers."""
    details: dict[str, list[list[float]]]
    """Columns of the hover text."""

    @classmethod
    def of(cls, scores: pd.DataFrame) -> "_LayerPairs":
        cells = {(row["target_hook"], row["source_hook"]): row for row in scores.to_dict("records")}
        if len(cells) < len(scores):
            raise ValueError(
                f"{len(scores)} rows for {len(cells)} layer pairs; keep one solver and one number of tokens"
            )
        sources = sorted({source for _, source in cells}, key=hook_order)
        targets = sorted({target for target, _ in cells}, key=hook_order)

        def matrices(columns: Iterable[str]) -> dict[str, list[list[float]]]:
            found = {
                c: [[_number(cells.get((t, s), {}).get(c)) for s in sources] for t in targets]
                for c in columns
            }
            return {
                c: matrix
                for c, matrix in found.items()
                if any(math.isfinite(number) for row in matrix for number in row)
            }

        return cls(sources, targets, matrices(GRID_VALUES), matrices(_HOVER))

    @property
    def controls(self) -> list[str]:
        return [column for column in GRID_CONTROLS if column in self.values]

    def scale_top(self, column: str) -> float:
        """Returns the upper end of the colour scale: the next tenth above the column and all
        controls.
        """
        shown = [self.values[name] for name in (column, *self.controls)]
        numbers = [
            number for matrix in shown for row in matrix for number in row if math.isfinite(number)
        ]
        return max(0.1, math.ceil(10 * max(numbers) - 1e-9) / 10)

    def heat_map(self, column: str) -> "go.Heatmap":
        rows, columns = range(len(self.targets)), range(len(self.sources))
        custom = [
            [[matrix[row][col] for matrix in self.details.values()] for col in columns]
            for row in rows
        ]
        lines = [
            f"{name}: %{{customdata[{i}]:{',.0f' if name == 'n_tokens' else '.3g'}}}"
            for i, name in enumerate(self.details)
        ]
        small = max(len(self.sources), len(self.targets)) <= _TEXT_LIMIT
        trace = go.Heatmap(
            z=self.values[column], coloraxis="coloraxis", xgap=1, ygap=1, hoverongaps=False
        )
        trace.update(
            x=[short_hook(hook) for hook in self.sources],
            y=[short_hook(hook) for hook in self.targets],
        )
        trace.update(
            hovertemplate="<br>".join(["<b>%{x} → %{y}</b>", "shown: %{z:.3f}", *lines])
            + "<extra></extra>"
        )
        return trace.update(
            customdata=custom if lines else None, texttemplate="%{z:.2f}" if small else None
        )

    def outline(self, source: str, target: str) -> "go.layout.Shape":
        column, row = self.sources.index(source), self.targets.index(target)
        line = {"color": HIGHLIGHT, "width": 3}
        return go.layout.Shape(
            type="rect", x0=column - 0.5, x1=column + 0.5, y0=row - 0.5, y1=row + 0.5, line=line
        )


def _number(value: object) -> float:
    return float(value) if isinstance(value, Real) else math.nan


def _menus(layers: _LayerPairs, shown: list[str]) -> list[dict[str, object]]:
    """Returns a menu over each panel; the left one also sets the colour scale, for both."""
    choices = [list(layers.values), layers.controls][: len(shown)]
    menus: list[dict[str, object]] = []
    for panel, (columns, active) in enumerate(zip(choices, shown, strict=True)):
        buttons = []
        for column in columns:
            layout: dict[str, object] = {f"annotations[{panel}].text": GRID_VALUES[column]}
            if panel == 0:
                layout["coloraxis.cmax"] = layers.scale_top(column)
            buttons.append(
                {
                    "label": column,
                    "method": "update",
                    "args": [{"z": [layers.values[column]]}, layout, [panel]],
                }
            )
        place = {
            "x": panel * 0.525,
            "xanchor": "left",
            "y": 1.0,
            "yanchor": "bottom",
            "pad": {"b": 42},
        }
        menus.append({"buttons": buttons, "active": columns.index(active), **place, **MENU_LOOKS})
    return menus


def _lay_out(
    figure: "go.Figure", *, n_targets: int, top: float, chosen: tuple[str, str] | None
) -> "go.Figure":
    pair = (
        f"<br>outlined: the chosen pair, {short_hook(chosen[0])} → {short_hook(chosen[1])}"
        if chosen
        else ""
    )
    explanation = "null: each x paired with another document's y" + pair
    figure.update_layout(
        template=use_template(),
        title={"text": "Fit of each layer pair", "subtitle": {"text": explanation}},
    )
    bar = {"thickness": 12, "outlinewidth": 0, "title": {"text": "score", "side": "right"}}
    figure.update_layout(
        coloraxis={"colorscale": HEAT_SCALE, "cmin": 0, "cmax": top, "colorbar": bar}
    )
    figure.update_layout(height=min(900, 280 + 26 * max(n_targets, 5)), margin={"t": 170})
    figure.update_annotations(font={"size": 13})
    figure.update_xaxes(type="category", title_text="source hook", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False)
    return figure.update_yaxes(title_text="target hook", row=1, col=1)
