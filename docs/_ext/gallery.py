"""Directive that shows examples/README.md, the gallery of figures, as a page of the site.

Problem: the gallery is written to be read in its own folder, so its relative links and pictures
point nowhere from another page. Mechanism: the directive removes its heading, because the page has
one, and rewrites the relative targets for the folder of the page. In a page:

    ```{gallery} ../../examples/README.md
    :part: opening
    ```

and again with `:part: figures`. Limits: two directives are needed, because MyST appends the
sections of a directive to the page while it parses them, before the nodes that `run` returns.
"""

import os
import re
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

# Targets of Markdown links and of `src` and `href`, except URLs with a scheme, anchors and absolute
# paths.
LINK = re.compile(r"(\]\(|src=\"|href=\")(?!\w+:|#|/)([^)\s\"]+)")


def moved(text: str, written_in: Path, shown_in: Path) -> str:
    """Return the text with relative targets rewritten for a page in another folder."""
    return LINK.sub(
        lambda found: found[1] + os.path.relpath(os.path.normpath(written_in / found[2]), shown_in),
        text,
    )


def parts(text: str) -> dict[str, str]:
    """Return the text before the first section, without the heading, and the sections."""
    opening, bar, figures = re.sub(r"\A# .*\n", "", text).partition("\n## ")
    return {"opening": opening, "figures": bar + figures}


class Gallery(SphinxDirective):
    """Directive `{gallery} FILE`, with the path of the file relative to the page."""

    required_arguments = 1
    option_spec: ClassVar = {"part": lambda value: directives.choice(value, ("opening", "figures"))}

    def run(self) -> list[nodes.Node]:
        """Return the nodes of one part of the text, parsed with the parser of the page."""
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
    """Register the directive."""
    app.add_directive("gallery", Gallery)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
