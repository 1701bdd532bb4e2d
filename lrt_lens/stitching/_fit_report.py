"""The HTML report of ``lrt-lens fit``: scores of every hook pair, with the null."""

from lrt_lens.figures._steering import grid_figure
from lrt_lens.report._html import KeyNumbers, Paragraph, Plot, Section, Table, render_html
from lrt_lens.stitching._choices import count_not_worse
from lrt_lens.stitching._grid import StitchGrid
from lrt_lens.stitching._stitch import Stitch


def fit_report(source: str, target: str, grid: StitchGrid, best: Stitch) -> str:
    """Return the report as one self-contained HTML text.

    Args:
        source: name of the source model.
        target: name of the target model.
        grid: the fitted grid.
        best: the best stitch of the grid, whose scores are shown first.
    """
    scores = best.scores
    tiles: list[tuple[str, str | int | float, str]] = [
        ("best pair, R²", f"{scores['r2']:.3f}", f"{best.source_hook} to {best.target_hook}"),
        (
            "mean R² over dimensions",
            f"{scores['r2_uniform']:.3f}",
            "far below R² if a few dimensions have most of the variance",
        ),
        (
            "shuffled pairs",
            f"{scores['r2_null']:.3f}",
            "the same fit on shuffled pairs, the control",
        ),
        (
            "token identity alone",
            f"{scores['r2_token']:.3f}",
            "the same target predicted from the source's embedding",
        ),
    ]
    table = grid.choices()
    tiles.append(
        (
            "not shown to be worse",
            f"{count_not_worse(table)} of {len(table) - 1}",
            "other pairs whose gain_cv may be as high as that of the best pair (simultaneous 95% "
            "intervals of grid.choices())",
        )
    )
    body = [
        KeyNumbers(tiles),
        Paragraph(f"Pairing of rows: {grid.moments.provenance.alignment}."),
        Plot(grid_figure(grid.scores, chosen=(best.source_hook, best.target_hook))),
        Table(grid.scores, caption="All pairs"),
    ]
    return render_html(
        "Stitches of every layer pair",
        [Section("Scores on the test fold", body)],
        subtitle=f"{source} to {target}",
    )
