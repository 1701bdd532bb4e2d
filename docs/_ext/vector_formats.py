"""Directives that show the formats of vectors, and what real engines did with exported files.

Problem: a table of formats that is typed into a page stops being true when the code changes.
Mechanism: one directive reads `lrt_lens.serving.FORMATS`, by which files are written, the other the
measurements of `make engines-check`. In a page:

    ```{vector-formats}
    ```
    ```{engine-table} engines.json
    ```

Limits: the measurements are those of one machine and of the versions that they name.
"""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from lrt_lens.serving import FORMATS, VectorFormat


def cell(text: str) -> str:
    """Return a text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def what(row: VectorFormat) -> str:
    """Return the operations of a format and its limits, in words."""
    limits = []
    if row.first_block:
        limits.append(f"from block {row.first_block} on")
    if not row.reaches_last_block:
        limits.append("not the last block")
    if not row.several_blocks:
        limits.append("one block a file")
    if row.subspaces:
        limits.append("ablates subspaces")
    return ", ".join(row.modes) + (f" ({'; '.join(limits)})" if limits else "")


def formats_table() -> str:
    """Return a Markdown table with one row per format."""
    lines = [
        "| `to=` | program | direction behind block 13 | operations | positions |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in FORMATS.values():
        cells = [f"`{row.name}`", row.program, f"`{row.key(13)}`", what(row), row.positions]
        lines.append("| " + " | ".join(cell(one) for one in cells) + " |")
    uses = [f"- `{row.name}`: `{row.use('FILE')}`" for row in FORMATS.values()]
    return "\n".join([*lines, "", "How the programs are told to use a file:", "", *uses])


def engines_table(results: dict[str, Any]) -> str:
    """Return a Markdown table with one row per engine and operation that was run."""
    lines = [
        "| engine | operation | positions | max abs Δ | one block before, after | damage |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for row in results["steering"]:
        name, version = next(iter(row["versions"].items()))
        first = row["steered_from"]
        cells = [
            f"{row['engine']} ({name} {version})",
            f"{row['operation']}, block {row['block']}",
            f"from {first} on" if first else "all",
            f"{row['at_block']:.1e}",
            f"{row['before']:.2g}, {row['after']:.2g}",
            f"{row['damage_engine']:.4f} of {row['damage_ours']:.4f}",
        ]
        lines.append("| " + " | ".join(cell(one) for one in cells) + " |")
    return "\n".join(lines)


class VectorFormats(SphinxDirective):
    """Show the table of formats."""

    def run(self) -> list[nodes.Node]:
        """Return the table as nodes."""
        return self.parse_text_to_nodes(formats_table())


class EngineTable(SphinxDirective):
    """Show the measurements of `make engines-check`; the argument is the file."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table as nodes."""
        _, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(path)
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        return self.parse_text_to_nodes(engines_table(results))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("vector-formats", VectorFormats)
    app.add_directive("engine-table", EngineTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
