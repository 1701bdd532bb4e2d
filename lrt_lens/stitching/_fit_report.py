"""The HTML report of ``lrt-lens fit``: scores of every hook pair, with the null."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lrt_lens.figures._steering import grid_figure
from lrt_lens.report._html import KeyNumbers, Paragraph, Plot, Section, Table, render_html
from lrt_lens.stitching._choices import count_not_worse


def fit_report(
    names: tuple[str, str],
    scores: pd.DataFrame,
    choices: pd.DataFrame,
    best: Mapping[str, Any],
    alignment: str,
) -> str:
    """Return the report as one self-contained HTML text.

    Args:
        names: names of the source and of the target model.
        scores: scores of all hook pairs, as ``grid.scores``.
        choices: hook pairs among which was chosen, as ``grid.choices()``.
        best: scores of the best hook pair, which are shown first.
        alignment: how rows of both models were paired.
    """
    hooks = str(best["source_hook"]), str(best["target_hook"])
    tiles: list[tuple[str, str | int | float, str]] = [
        ("best pair, R²", f"{best['r2']:.3f}", f"{hooks[0]} to {hooks[1]}"),
        (
            "mean R² over dimensions",
            f"{best['r2_uniform']:.3f}",
            "far below R² if a few dimensions have most of the variance",
        ),
        ("shuffled pairs", f"{best['r2_null']:.3f}", "the same fit on shuffled pairs, the control"),
        (
            "token identity alone",
            f"{best['r2_token']:.3f}",
            "the same target predicted from the source's embedding",
        ),
    ]
    tiles.append(not_worse_tile(choices, "grid.choices()"))
    body = [
        KeyNumbers(tiles),
        Paragraph(f"Pairing of rows: {alignment}."),
        Plot(grid_figure(scores, value="r2", chosen=hooks)),
        Table(scores, caption="All pairs"),
    ]
    return render_html(
        "Stitches of every layer pair",
        [Section("Scores on the test fold", body)],
        subtitle=f"{names[0]} to {names[1]}",
    )


def not_worse_tile(choices: pd.DataFrame, source: str) -> tuple[str, str, str]:
    """Return the tile with the number of pairs that may be as good as the best.

    ``source`` is the call that gave the table ``choices``.
    """
    return (
        "not shown to be worse",
        f"{count_not_worse(choices)} of {len(choices) - 1}",
        "other pairs whose gain_cv may be as high as that of the best pair (simultaneous 95% "
        f"intervals of {source})",
    )
