"""Files and tables that the commands write: the best stitch, results.json and report.html.

    write_outputs(out, json_arguments(command), grid, ("small", "large"))

Limits: a grid of many hook pairs is printed in part; the report and results.json hold all.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrt_lens._terminal import print_table, say

if TYPE_CHECKING:
    import pandas as pd

    from lrt_lens.stitching._grid import StitchGrid

_SHOWN_PAIRS = 12
"""Number of hook pairs that are printed."""
_FIT_COLUMNS = [
    "source_hook",
    "target_hook",
    "gain_cv",
    "r2",
    "r2_uniform",
    "r2_down",
    "r2_null",
    "r2_token",
]
"""Columns that fit into a terminal of 80 columns; the report and results.json hold all."""


def write_outputs(
    out: Path, arguments: dict[str, Any], grid: "StitchGrid", names: tuple[str, str]
) -> None:
    """Write the best stitch, results.json and report.html, and print the scores."""
    from lrt_lens.report._html import write_html
    from lrt_lens.report._results import write_results
    from lrt_lens.stitching._fit_report import fit_report

    alignment = grid.moments.provenance.alignment
    # The best pair by cross-validation; the test fold only scores it.
    best = grid.best()
    best.save_pretrained(out / "stitch")
    tables = {
        "pair": {"source": names[0], "target": names[1]},
        "grid": grid.scores,
        "stitch": best.scores,
    }
    write_results(out / "results.json", arguments, tables)
    report = write_html(
        out / "report.html", fit_report(names, grid.scores, grid.choices(), best.scores, alignment)
    )
    print_best_pairs(grid.scores, _FIT_COLUMNS)
    moments = grid.moments
    say(
        f"{moments.n_tokens:,} tokens of {moments.provenance.n_documents:,} documents: "
        f"{moments.n_fit:,} for the fit, the others for the test.\n"
        f"{moments.folds.to_string(formatters={'share': '{:.0%}'.format})}\n{best}\n"
        f"Open {report}; in Python: lrt.Stitch.from_pretrained({str(out / 'stitch')!r})"
    )


def print_best_pairs(scores: "pd.DataFrame", columns: list[str]) -> None:
    """Print some columns of the hook pairs with the highest cross-validated gain."""
    from lrt_lens.models._hook_points import short_hook

    shown = scores.sort_values("gain_cv", ascending=False).head(_SHOWN_PAIRS)
    for column in ("source_hook", "target_hook"):
        shown[column] = shown[column].map(short_hook)
    part = "" if len(shown) == len(scores) else f" ({len(shown)} of {len(scores)})"
    print_table(f"Hook pairs, best first{part}", shown.loc[:, columns])


def json_arguments(command: Any) -> dict[str, Any]:
    """Return the fields of a command as JSON values."""

    # tuples and paths are no JSON values
    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {key: plain(value) for key, value in asdict(command).items()}
