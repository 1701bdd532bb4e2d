"""Plotly figures of notebooks: one copy of plotly.js for the whole site, in the page's own colours.

Problem: by default a notebook's figures load plotly.js from another host, or bring 5 MB along with
every page. Mechanism: in the kernels of a build a figure leaves its JSON in the page
(docs/_ipython, `figure_html`); pages that hold one load `plotly.min.js`, copied from the installed
plotly, and `plotly_figures.js`, which draws them and repaints them when the reader changes between
light and dark.

Limits: without JavaScript a figure is a line of text that says so.
"""

from pathlib import Path
from typing import Any

import plotly
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

MARK = 'class="lrt-plot"'
LIBRARY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def figure_html(figure_json: str) -> str:
    """The place of a figure in a page; `</` is escaped so that no text in it can end the script."""
    data = figure_json.replace("</", "<\\/")
    return f'<div {MARK}><script type="application/json">{data}</script><noscript>This figure needs JavaScript.</noscript></div>'


def bundle_library(_: Sphinx, config: Config) -> None:
    """plotly.min.js becomes one of the site's static files."""
    config.html_static_path.append(str(LIBRARY))


def load_where_needed(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Adds both scripts to pages with figures, and to no other."""
    del page, template, context
    if doctree is not None and any(MARK in node.astext() for node in doctree.findall(nodes.raw)):
        app.add_js_file("plotly.min.js")
        app.add_js_file("plotly_figures.js")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects both steps."""
    app.connect("config-inited", bundle_library)
    app.connect("html-page-context", load_where_needed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
