"""The gallery of the examples' own page, as a page of the site.

In a page: a block of code named `{gallery} ../../examples/README.md`.

The file is written to be read where it lies. Here its heading goes (the page has one), and its relative links and pictures are made to
point from this page to where they pointed from there.
"""

import os
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

LINK = re.compile(r"(\]\(|src=\"|href=\")(?!\w+:|#|/)([^)\s\"]+)")


def moved(text: str, written_in: Path, shown_in: Path) -> str:
    """The text with relative targets rewritten for a page in another folder."""
    return LINK.sub(lambda found: found[1] + os.path.relpath(os.path.normpath(written_in / found[2]), shown_in), text)


class Gallery(SphinxDirective):
    """`{gallery} FILE`, the file relative to the page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The text without its first heading, parsed as the page is."""
        _, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(path)
        if not Path(path).exists():
            return self.parse_text_to_nodes("The gallery is not in this copy of the repository: `make figures` writes it.")
        text = re.sub(r"\A# .*\n", "", Path(path).read_text(encoding="utf-8"))
        here = Path(self.env.doc2path(self.env.docname)).parent
        return self.parse_text_to_nodes(moved(text, Path(path).parent, here), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("gallery", Gallery)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
