"""How to cite, from CITATION.cff: a sentence and a BibTeX entry for the software and for each paper
whose method it has.

```{citation} ../CITATION.cff
```
"""

from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

KINDS = {"article": "article", "conference-paper": "inproceedings", "software": "software"}


def full_name(author: dict[str, str]) -> str:
    """Given name, then family name; or the name of a group."""
    return author.get("name") or f"{author['given-names']} {author['family-names']}"


def bibtex(entry: dict[str, Any]) -> str:
    """One BibTeX entry."""
    first = (
        entry["authors"][0]
        .get("family-names", entry["authors"][0].get("name", "anonymous"))
        .split()[0]
    )
    year = entry.get("year")
    fields = {
        "title": f"{{{entry['title']}}}",
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
    """The page's text."""
    parts = [citation["message"], f"```bibtex\n{bibtex(citation)}\n```", "## The papers"]
    for paper in citation["references"]:
        authors = ", ".join(full_name(author) for author in paper["authors"])
        parts += [
            f"{authors} ({paper['year']}): [{paper['title']}]({paper['url']}).",
            f"```bibtex\n{bibtex(paper)}\n```",
        ]
    return "\n\n".join(parts) + "\n"


class Citation(SphinxDirective):
    """`{citation} FILE`, the file relative to the page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The text, parsed as the page is."""
        _, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(path)
        return self.parse_text_to_nodes(
            markdown(yaml.safe_load(Path(path).read_text(encoding="utf-8"))),
            allow_section_headings=True,
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("citation", Citation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
