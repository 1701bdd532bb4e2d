"""The gallery of the examples' own page, as a page of the site.

In a page: a block of code named `{gallery} ../../examples/README.md`, once with the option `part:
opening`, once with `part: figures`. Two, because MyST appends the sections of a directive to the
page as it reads them, before whatever else the directive returns.

The file is written to be read where it lies. Here its heading goes (the page has one), and its
relative links and pictures are made to point from this page to where they pointed from there.
"""

import os
import re
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

LINK = re.compile(r"(\]\(|src=\"|href=\")(?!\w+:|#|/)([^)\s\"]+)")


def moved(text: str, written_in: Path, shown_in: Path) -> str:
    """The text with relative targets rewritten for a page in another folder."""
    return LINK.sub(
        lambda found: found[1] + os.path.relpath(os.path.normpath(written_in / found[2]), shown_in),
        text,
    )


def parts(text: str) -> dict[str, str]:
    """What stands before the first section, without the heading, and the sections."""
    opening, bar, figures = re.sub(r"\A# .*\n", "", text).partition("\n## ")
    return {"opening": opening, "figures": bar + figures}


class Gallery(SphinxDirective):
    """`{gallery} FILE`, the file relative to the page."""

    required_arguments = 1
    option_spec: ClassVar = {"part": lambda value: directives.choice(value, ("opening", "figures"))}

    def run(self) -> list[nodes.Node]:
        """One part of the text, parsed as the page is."""
        _, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(path)
        if not Path(path).exists():
            return self.parse_text_to_nodes(
                "The gallery is not in this copy of the repository: `make figures` writes it."
            )
        text = parts(Path(path).read_text(encoding="utf-8"))[self.options["part"]]
        here = Path(self.env.doc2path(self.env.docname)).parent
        return self.parse_text_to_nodes(
            moved(text, Path(path).parent, here), allow_section_headings=True
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("gallery", Gallery)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
