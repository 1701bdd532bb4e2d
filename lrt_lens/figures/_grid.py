"""Figure of a grid of hook pairs: the score of each pair, next to its control.

Problem: an R² of .6 means little unless one knows the R² of pairs of unrelated texts, or that of
the token alone. Mechanism: two heat maps on one colour scale, the score on the left and a control
on the right, each with a menu that selects the column; small grids show the numbers in the cells,
all grids show them in the hover text. Source hook points are rows and target hook points columns,
as in the table of a notebook.

Example:
    from lrt_lens.figures._grid import grid_figure

    best = (stitch.source_hook, stitch.target_hook)
    grid_figure(grid.scores, value="r2_uniform", chosen=best).show()

Limits: one row per hook pair; a table of several solvers or sample sizes is refused, so select one
first.
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
    count_range,
    hook_order,
    panel,
    require_columns,
    short_hook,
    use_template,
    with_counts,
)

GRID_VALUES: dict[str, str] = {
    "gain_cv": "gain over token identity,<br>cross-validated",
    "r2": "R², test fold",
    "r2_uniform": "R², test fold,<br>mean over dimensions",
    "r2_cv": "R², cross-validated",
    "r2_uniform_cv": "R², cross-validated,<br>mean over dimensions",
    "cka": "CKA (no map)",
    "cosine": "cosine, test fold",
    "r2_null": "null: R² of a map<br>fitted to shuffled pairs",
    "r2_token": "token identity: R² from<br>the embedding alone",
    "r2_uniform_token": "token identity: embedding,<br>mean over dimensions",
}
"""Columns that `grid_figure` can show, with the title of their panel."""

GRID_CONTROLS = ("r2_null", "r2_token", "r2_uniform_token")
"""Columns that the second panel of `grid_figure` can show."""

_FIRST = ("gain_cv", "r2_uniform_cv", "r2")
"""Columns that a figure opens on, the first that holds numbers."""
_HOVER = ("r2", "r2_uniform", "r2_null", "r2_token", "n_tokens", "alpha")
"""Columns of the hover text."""
_TEXT_LIMIT = 12
"""Largest number of rows or columns at which numbers are legible inside the cells."""


def grid_figure(
    scores: pd.DataFrame, *, value: str | None = None, chosen: tuple[str, str] | None = None
) -> "go.Figure":
    """Return two heat maps over hook pairs: the score of each pair, and its control.

    Source hook points are listed from top to bottom, target hook points from left to right. Both
    maps share one colour scale from 0; a value below 0 has the colour of 0. A menu above each panel
    selects the column: any of `GRID_VALUES` on the left, the null or token identity on the right.
    If the table holds no control, there is one panel.

    Args:
        scores: one row per hook pair: `source_hook`, `target_hook` and columns of `GRID_VALUES`;
            for the hover text also `n_tokens` and `alpha`.
        value: the column shown first; None: ``gain_cv`` if it is known, else ``r2_uniform_cv`` or
            ``r2``.
        chosen: (source hook point, target hook point) of the pair to outline.

    Raises:
        ValueError: a column or the chosen pair is not in the table, or a pair has two rows.
    """
    require_columns(scores, "source_hook", "target_hook", *([] if value is None else [value]))
    layers = _LayerPairs.of(scores)
    if value is None:
        value = next((name for name in _FIRST if name in layers.values), "r2")
    if value not in layers.values:
        raise ValueError(
            f"cannot show column {value!r}; columns with values here are {list(layers.values)}: "
            "choose one of them"
        )
    if chosen is not None and not (chosen[0] in layers.sources and chosen[1] in layers.targets):
        raise ValueError(
            f"the chosen pair {chosen} is not in the table; "
            f"sources are {layers.sources}, targets {layers.targets}: choose one of each"
        )
    shown = [value, *layers.controls[:1]]
    figure = make_subplots(
        cols=len(shown),
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=[GRID_VALUES[column] for column in shown],
    )
    for number, column in enumerate(shown, start=1):
        figure.add_trace(layers.heat_map(column), **panel(1, number))
        if chosen is not None:
            figure.add_shape(layers.outline(*chosen), **panel(1, number))
    # The HTML report reads from `meta` how many panels to stack on a phone.
    figure.update_layout(updatemenus=_menus(layers, shown), meta={"panels": len(shown)})
    _lay_out(figure, n_sources=len(layers.sources), top=layers.scale_top(value), chosen=chosen)
    return with_counts(figure, {"fitting tokens": count_range(scores, "n_tokens")})


@dataclass(frozen=True)
class _LayerPairs:
    """The table as matrices [source, target], in the order of the forward pass."""

    sources: list[str]
    """Hook points of the source, in the order of the forward pass."""
    targets: list[str]
    """Hook points of the target, in the same order."""
    values: dict[str, list[list[float]]]
    """Matrix of each column of `GRID_VALUES` that holds numbers."""
    details: dict[str, list[list[float]]]
    """Matrix of each column of the hover text that holds numbers."""

    @classmethod
    def of(cls, scores: pd.DataFrame) -> "_LayerPairs":
        cells = {(row["target_hook"], row["source_hook"]): row for row in scores.to_dict("records")}
        if len(cells) < len(scores):
            raise ValueError(
                f"{len(scores)} rows for {len(cells)} hook pairs; "
                "keep one solver and one number of tokens"
            )
        sources = sorted({source for _, source in cells}, key=hook_order)
        targets = sorted({target for target, _ in cells}, key=hook_order)

        # A pair that is not in the table has NaN, which plotly leaves blank.
        def matrices(columns: Iterable[str]) -> dict[str, list[list[float]]]:
            every = {
                column: [
                    [_number(cells.get((target, source), {}).get(column)) for target in targets]
                    for source in sources
                ]
                for column in columns
            }
            return {column: matrix for column, matrix in every.items() if _finite(matrix)}

        return cls(sources, targets, matrices(GRID_VALUES), matrices(_HOVER))

    @property
    def controls(self) -> list[str]:
        return [column for column in GRID_CONTROLS if column in self.values]

    def scale_top(self, column: str) -> float:
        """Return the upper end of the colour scale: the maximum, rounded up to a tenth.

        The maximum is taken over the column and all controls, so that both panels share the scale.
        """
        matrices = [self.values[name] for name in (column, *self.controls)]
        highest = max(number for matrix in matrices for number in _finite(matrix))
        # 1e-9: a maximum such as 0.3, stored as 0.30000000000000004, stays at 0.3.
        return max(0.1, math.ceil(10 * highest - 1e-9) / 10)

    def heat_map(self, column: str) -> "go.Heatmap":
        details = list(self.details.values())
        # customdata is [row, column, detail]; the template numbers the details.
        custom = [
            [[matrix[row][col] for matrix in details] for col in range(len(self.targets))]
            for row in range(len(self.sources))
        ]
        lines = [
            f"{name}: %{{customdata[{i}]:{',.0f' if name == 'n_tokens' else '.3g'}}}"
            for i, name in enumerate(self.details)
        ]
        hover = "<br>".join(["<b>%{y} → %{x}</b>", "shown: %{z:.3f}", *lines])
        small = max(len(self.sources), len(self.targets)) <= _TEXT_LIMIT
        return go.Heatmap(
            z=self.values[column],
            x=[short_hook(hook) for hook in self.targets],
            y=[short_hook(hook) for hook in self.sources],
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            hoverongaps=False,
            hovertemplate=hover + "<extra></extra>",
            customdata=custom if lines else None,
            texttemplate="%{z:.2f}" if small else None,
        )

    def outline(self, source: str, target: str) -> "go.layout.Shape":
        # Categories have the coordinates 0, 1, 2, …, and a cell reaches half a unit to each side.
        row, column = self.sources.index(source), self.targets.index(target)
        # A rectangle around the cell, drawn above the heat map.
        line = {"color": HIGHLIGHT, "width": 3}
        return go.layout.Shape(
            type="rect", x0=column - 0.5, x1=column + 0.5, y0=row - 0.5, y1=row + 0.5, line=line
        )


def _number(value: object) -> float:
    return float(value) if isinstance(value, Real) else math.nan


def _finite(matrix: list[list[float]]) -> list[float]:
    return [number for row in matrix for number in row if math.isfinite(number)]


def _menus(layers: _LayerPairs, shown: list[str]) -> list[dict[str, object]]:
    """Return one menu per panel; the left one also sets the colour scale of both."""
    choices = [list(layers.values), layers.controls][: len(shown)]
    menus: list[dict[str, object]] = []
    for number, (columns, active) in enumerate(zip(choices, shown, strict=True)):
        buttons = []
        for column in columns:
            layout: dict[str, object] = {f"annotations[{number}].text": GRID_VALUES[column]}
            if number == 0:
                layout["coloraxis.cmax"] = layers.scale_top(column)
            # plotly's "update" takes new data, new layout, and the numbers of the traces that
            # change.
            arguments = [{"z": [layers.values[column]]}, layout, [number]]
            buttons.append({"label": column, "method": "update", "args": arguments})
        # (1 + 0.05) / 2 = 0.525 is the left end of the second panel, with a gap of 0.05 between
        # both.
        position = {"x": number * 0.525, "xanchor": "left", "y": 1.0, "yanchor": "bottom"}
        menu = {"buttons": buttons, "active": columns.index(active), "pad": {"b": 42}}
        menus.append(menu | position | MENU_LOOKS)
    return menus


def _lay_out(
    figure: "go.Figure", *, n_sources: int, top: float, chosen: tuple[str, str] | None
) -> "go.Figure":
    explanation = "null: each x paired with another document's y"
    if chosen:
        hook_pair = f"{short_hook(chosen[0])} → {short_hook(chosen[1])}"
        explanation += f"<br>outlined: the chosen pair, {hook_pair}"
    bar = {"thickness": 12, "outlinewidth": 0, "title": {"text": "score", "side": "right"}}
    # One colour axis for both panels, so that equal colours mean equal scores.
    figure.update_layout(
        template=use_template(),
        title={"text": "Fit of each hook pair", "subtitle": {"text": explanation}},
        coloraxis={"colorscale": HEAT_SCALE, "cmin": 0, "cmax": top, "colorbar": bar},
        height=min(900, 280 + 26 * max(n_sources, 5)),
        margin={"t": 170},
    )
    figure.update_annotations(font={"size": 13})
    figure.update_xaxes(type="category", title_text="target hook point", showgrid=False)
    # plotly counts categories from below.
    figure.update_yaxes(type="category", showgrid=False, autorange="reversed")
    return figure.update_yaxes(title_text="source hook point", **panel(1, 1))
