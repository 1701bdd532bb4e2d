"""Directive that shows how to cite the software and its papers, from CITATION.cff.

Problem: a BibTeX entry typed into a page differs sooner or later from CITATION.cff. Mechanism: the
directive reads the file at build time and writes a sentence, a BibTeX entry for the software, and
one for each paper whose method the package implements. In a page:

    ```{citation} ../CITATION.cff
    ```

Limits: it knows the types of entries in `KINDS`; another type raises `KeyError`.
"""

from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

KINDS = {"article": "article", "conference-paper": "inproceedings", "software": "software"}


def full_name(author: dict[str, str]) -> str:
    """Return an author as "Given Family", or the name of a group."""
    return author.get("name") or f"{author['given-names']} {author['family-names']}"


def bibtex(entry: dict[str, Any]) -> str:
    """Return one entry of CITATION.cff as BibTeX, with the key FAMILYNAME + YEAR."""
    # A group has `name` instead of `family-names`.
    first = (
        entry["authors"][0]
        .get("family-names", entry["authors"][0].get("name", "anonymous"))
        .split()[0]
    )
    year = entry.get("year")
    fields = {
        "title": f"{{{entry['title']}}}",
        # Double braces keep BibTeX from splitting the name of a group into given and family name.
        "author": " and ".join(
            f"{{{a['name']}}}" if "name" in a else full_name(a) for a in entry["authors"]
        ),
        "year": year,
        "journal": entry.get("journal"),
        "booktitle": entry.get("collection-title"),
        "pages": f"{entry['start']}--{entry['end']}" if "start" in entry else None,
        "version": entry.get("version"),
        "url": entry.get("url"),
    }
    lines = [f"  {name:<9} = {{{value}}}," for name, value in fields.items() if value]
    return f"@{KINDS[entry['type']]}{{{first.lower()}{year or ''},\n" + "\n".join(lines) + "\n}"


def markdown(citation: dict[str, Any]) -> str:
    """Return the Markdown of the page: message, software, papers."""
    parts = [citation["message"], f"```bibtex\n{bibtex(citation)}\n```", "## The papers"]
    for paper in citation["references"]:
        authors = ", ".join(full_name(author) for author in paper["authors"])
        parts += [
            f"{authors} ({paper['year']}): [{paper['title']}]({paper['url']}).",
            f"```bibtex\n{bibtex(paper)}\n```",
        ]
    return "\n\n".join(parts) + "\n"


class Citation(SphinxDirective):
    """Directive `{citation} FILE`, with the path of the file relative to the page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the text, parsed with the parser of the page."""
        _, path = self.env.relfn2path(self.arguments[0])
        # Sphinx then reads the page again when the file changes.
        self.env.note_dependency(path)
        return self.parse_text_to_nodes(
            markdown(yaml.safe_load(Path(path).read_text(encoding="utf-8"))),
            allow_section_headings=True,
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("citation", Citation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
