"""Files and tables that the commands write: results.json, report.html and run.toml.

    refuse_foreign(out, command, ["vector.safetensors"])       # before the work
    write_run(out, command, {"grid": scores}, html)            # after it
    write_outputs(out, command, grid, ("small", "large"))      # the same with the best stitch

Problem: a run must be read, shown and repeated later, and a folder may hold somebody's own files.
Mechanism: three files with fixed names, each written as a whole; a file of that name that no
command wrote, and the results of another command, are refused before any work.

Limits: a grid of many hook pairs is printed in part; the report and results.json hold all.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrt_lens._terminal import print_table, say
from lrt_lens.cli._command import Command
from lrt_lens.cli._config import toml_text
from lrt_lens.cli._kinds import WRITTEN, words_of_options
from lrt_lens.cli._sections import run_page

if TYPE_CHECKING:
    import pandas as pd

    from lrt_lens.stitching._grid import StitchGrid

RESULTS, REPORT, OPTIONS = "results.json", "report.html", "run.toml"
"""Names of the files that a run writes."""
_ALIKE = {"merge": "fit", "fit-states": "fit"}
"""Commands that write the same results as another one, and may replace them."""
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


def write_run(
    out: Path, command: Command, tables: dict[str, Any], html: str = "", *, title: str = ""
) -> Path:
    """Write run.toml, results.json and report.html into a folder; return the report.

    Args:
        out: the folder.
        command: the command with its options.
        tables: tables of results.json by name.
        html: the report; empty for one that is made from the tables.
        title: title of a report that is made from the tables.
    """
    from lrt_lens.report import write_html, write_results
    from lrt_lens.report._results import plain_json

    write_options(out, command)
    whole = {"command": command.words, **tables}
    write_results(out / RESULTS, command.arguments, whole)
    content = plain_json({"arguments": command.arguments, **whole})
    html = html or run_page(title or f"lrt-lens {command.words}", content)
    # The report comes last, so that a folder with one is complete.
    return write_html(out / REPORT, html)


def write_options(out: Path, command: Command, name: str = OPTIONS) -> Path:
    """Write the options of a run, from which ``--config`` repeats it, and return the file."""
    from lrt_lens._files import write_atomically

    path = out / name
    text = (
        f"{WRITTEN} {command.words}`; repeat: lrt-lens {command.words} --config {name}\n"
        f"{toml_text(command.words, command.arguments, type(command))}"
    )
    octets = text.encode("utf-8", errors="replace")
    return write_atomically(path, lambda temporary: temporary.write_bytes(octets))


def refuse_foreign(out: Path, command: Command, names: Iterable[str] = ()) -> None:
    """Raise if a run would replace a file that no run wrote, or the results of another command.

    Args:
        out: folder of the run.
        command: the command that will write there.
        names: files that it writes besides run.toml, results.json and report.html.

    Raises:
        ValueError: such a file is there; the message names it.
    """
    for name in (RESULTS, REPORT, OPTIONS, *names):
        path = out / name
        if path.exists() and not _is_ours(path):
            raise ValueError(
                f"{str(path)!r} was not written by lrt-lens, and this command would replace it; "
                "choose another --out, or move that file away"
            )
    words = _words_at(out)
    if words and _ALIKE.get(words, words) != _ALIKE.get(command.words, command.words):
        raise ValueError(
            f"{str(out)!r} holds the results of lrt-lens {words}, and lrt-lens {command.words} "
            "would replace them; choose another --out, or move that folder away"
        )


def _words_at(out: Path) -> str:
    """Return the words of the command whose results a folder holds; empty if there are none."""
    if (out / RESULTS).is_file():
        words = json.loads((out / RESULTS).read_bytes()).get("command")
        if words:
            return str(words)
    if (out / OPTIONS).is_file():
        return words_of_options(out / OPTIONS)
    return ""


def _is_ours(path: Path) -> bool:
    """Return whether a run wrote this file; what cannot be read was not."""
    check = _CHECKS.get(path.name, _is_our_tensors if path.suffix == ".safetensors" else None)
    try:
        return _has_our_results(path) if check is None else check(path)
    except (OSError, ValueError):
        return False


def _is_our_tensors(path: Path) -> bool:
    from lrt_lens._tensor_files import mapped_tensors

    return mapped_tensors(path, None).metadata.get("schema_version", "").startswith("lrt_lens.")


def _is_our_json(path: Path) -> bool:
    content = json.loads(path.read_bytes())
    return isinstance(content, dict) and str(content.get("schema_version")).startswith("lrt_lens.")


def _is_our_page(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as page:
        start = page.read(2000)
    # Pages of earlier versions do not say who wrote them, and results.json stands beside them.
    return '<meta name="generator" content="lrt_lens">' in start or _has_our_results(path)


def _has_our_results(path: Path) -> bool:
    return (path.parent / RESULTS).exists() and _is_our_json(path.parent / RESULTS)


def is_our_options(path: Path) -> bool:
    """Return whether a run wrote this file of options."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(len(WRITTEN)) == WRITTEN


_CHECKS: dict[str, Callable[[Path], bool]] = {
    RESULTS: _is_our_json,
    REPORT: _is_our_page,
    OPTIONS: is_our_options,
}
"""Functions that recognise a file of ours, by its name."""


# --------------------------------------------------------------------------------------------- fits


def write_outputs(out: Path, command: Command, grid: "StitchGrid", names: tuple[str, str]) -> None:
    """Write the best stitch, results.json and report.html, and print the scores."""
    from lrt_lens.cli._facts import next_of_stitch
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
    report = write_run(
        out, command, tables, fit_report(names, grid.scores, grid.choices(), best.scores, alignment)
    )
    print_best_pairs(grid.scores, _FIT_COLUMNS)
    moments = grid.moments
    say(
        f"{moments.n_tokens:,} tokens of {moments.provenance.n_documents:,} documents: "
        f"{moments.n_fit:,} for the fit, the others for the test.\n"
        f"{moments.folds.to_string(formatters={'share': '{:.0%}'.format})}\n{best}\n"
        f"Open {report}; in Python: lrt.Stitch.from_pretrained({str(out / 'stitch')!r})\n"
        f"next: {next_of_stitch(best)}"
    )


def print_best_pairs(scores: "pd.DataFrame", columns: list[str]) -> None:
    """Print some columns of the hook pairs with the highest cross-validated gain."""
    from lrt_lens.models._hook_points import short_hook

    shown = scores.sort_values("gain_cv", ascending=False).head(_SHOWN_PAIRS)
    for column in ("source_hook", "target_hook"):
        shown[column] = shown[column].map(short_hook)
    part = "" if len(shown) == len(scores) else f" ({len(shown)} of {len(scores)})"
    print_table(f"Hook pairs, best first{part}", shown.loc[:, columns])


# -------------------------------------------------------------------------------- runs of any kind


def start_run(out: Path, command: Command, names: Iterable[str] = ()) -> None:
    """Check a folder before any work: it can be written, and nothing else would be lost.

    Args:
        out: folder of the run.
        command: the command that will write there.
        names: files that it writes besides run.toml, results.json and report.html.

    Raises:
        ValueError: a file of somebody else, or the results of another command, are in the way.
        OSError: the folder cannot be written to.
    """
    from lrt_lens._files import refuse_unwritable

    refuse_foreign(out, command, names)
    refuse_unwritable(out)


def say_facts(title: str, known: dict[str, str]) -> None:
    """Print facts about an artefact, one per line."""
    width = max(map(len, known), default=0)
    say("\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in known.items())]))
