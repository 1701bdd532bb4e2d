"""Directive that shows the table of measured ratios, from benchmarks/results.json.

Problem: a number of speed or memory that is typed into a page becomes wrong without a warning.
Mechanism: the directive reads the file at build time. In a page:

    ```{benchmark-table} ../benchmarks/results.json
    ```

Limits: it shows the numbers of one machine, which it names.
"""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

DIRECTIONS = {"at most": "≤", "at least": "≥"}


def figures(value: float) -> str:
    """Return a number with three significant figures, or rounded, with commas, from 1000 on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table with one row per benchmark; a missed target is a bold "no"."""
    lines = [
        "| ratio | measured | target | met | what it compares |",
        "| --- | ---: | ---: | --- | --- |",
    ]
    for entry in results["benchmarks"]:
        if "error" in entry:
            lines.append(f"| `{entry['name']}` | – | – | failed | {cell(entry['error'])} |")
            continue
        target = f"{DIRECTIONS[entry['direction']]} {figures(entry['target'])}"
        met = "yes" if entry["met"] else "**no**"
        lines.append(
            f"| `{entry['name']}` | {figures(entry['value'])} | {target} | {met} | "
            f"{cell(entry['what'])} |"
        )
    return "\n".join(lines)


def machine(results: dict[str, Any]) -> str:
    """Return a sentence with date, machine, versions, and the number of missed targets."""
    found = results["machine"]
    missed = [entry["name"] for entry in results["benchmarks"] if not entry.get("met", False)]
    verdict = (
        f"{len(missed)} of {len(results['benchmarks'])} miss their target"
        if missed
        else "all meet their targets"
    )
    return (
        f"Measured up to {results['date'][:10]} on {found['cores']} cores ({found['cpu']}, "
        f"{found['memory_gib']} GiB, {found['threads']} threads), "
        f"Python {found['python']}, torch {found['torch']}, transformers {found['transformers']}, "
        f"TransformerLens {found['transformer-lens']}: {verdict}."
    )


def cell(text: str) -> str:
    """Return the text without the characters that would end a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


class BenchmarkTable(SphinxDirective):
    """Directive `{benchmark-table} FILE`, with the path of the file relative to the page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the sentence and the table, parsed with the parser of the page."""
        _, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(path)
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        return self.parse_text_to_nodes(f"{machine(results)}\n\n{table(results)}\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("benchmark-table", BenchmarkTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
