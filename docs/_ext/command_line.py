"""The page of the reference with every command and option of ``lrt-lens``.

Problem: options are added often, and a list that is kept by hand misses some. Mechanism: commands
are dataclasses; the page shows the docstring of each, and the docstrings, values and defaults of
its fields. It is written into docs/reference, beside the pages of the packages.

Limits: it is Markdown, because docstrings of commands have file patterns such as `*.jsonl`, which
reStructuredText would read as markup.
"""

import ast
import inspect
import textwrap
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

from sphinx.application import Sphinx

from lrt_lens.cli import COMMANDS
from lrt_lens.cli._command import Command
from lrt_lens.cli._config import type_in_words


def command_line_page() -> str:
    """Return the page in Markdown: one section per command."""
    lines = [
        "# lrt-lens, the command line",
        "",
        "Every command and option. `lrt-lens COMMAND --help` says the same. What a job looks like, "
        "files of options, exit status and shell completion: [the command "
        "line](../how-to/command_line.md).",
    ]
    for kind in COMMANDS:
        lines += ["", f"## lrt-lens {kind.words}", "", *description(kind), "", *table(kind)]
    return "\n".join(lines) + "\n"


def description(kind: type[Command]) -> list[str]:
    """Return the docstring of a command, with its indented lines as code."""
    lines: list[str] = []
    for paragraph in (inspect.getdoc(kind) or "").split("\n\n"):
        is_code = paragraph.startswith("    ")
        text = textwrap.dedent(paragraph).splitlines()
        lines += ["```bash", *text, "```", ""] if is_code else [*text, ""]
    return lines[:-1]


def table(kind: type[Command]) -> list[str]:
    """Return a Markdown table of the options of a command."""
    described, hints = field_docs(kind), get_type_hints(kind)
    lines = ["| option | values | default | meaning |", "| --- | --- | --- | --- |"]
    annotations = get_type_hints(kind, include_extras=True)
    own = vars(kind).get("__annotations__", {})
    # Options of the command itself come before those that it shares with others.
    for field in sorted(fields(kind), key=lambda field: field.name not in own):
        name = field.name.replace("_", "-")
        is_positional = "Positional" in str(getattr(annotations[field.name], "__metadata__", ""))
        option = f"`{field.name.upper()}`" if is_positional else f"`--{name}`"
        values = type_in_words(hints[field.name])
        cells = [option, values, default(field), described[field.name]]
        lines.append("| " + " | ".join(cell(one) for one in cells) + " |")
    return lines


def default(field: "Field[Any]") -> str:
    """Return the default of an option in words."""
    if field.default is MISSING:
        return "required"
    if field.default is None or field.default == ():
        return ""
    if isinstance(field.default, tuple):
        return f"`{' '.join(map(str, field.default))}`"
    return f"`{field.default}`"


def field_docs(kind: type[Command]) -> dict[str, str]:
    """Return the docstring of each field, also of those of its base classes."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base is object:
            continue
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                docs[field.target.id] = inspect.cleandoc(str(text.value.value))
    return docs


def cell(text: str) -> str:
    """Return a text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def write_page(app: Sphinx) -> None:
    """Write the page if its text has changed, so that Sphinx does not read it again."""
    folder = Path(app.srcdir) / "reference"
    folder.mkdir(exist_ok=True)
    path, text = folder / "command_line.md", command_line_page()
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the page before Sphinx looks for pages."""
    app.connect("builder-inited", write_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
