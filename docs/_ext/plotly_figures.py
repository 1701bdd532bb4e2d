"""Plotly figures of notebooks: one copy of plotly.js for the site, and the colours of the page.

Problem: by default the figures of a notebook load plotly.js from another host, or add 5 MB to every
page. Mechanism: the kernels of a build write a figure into the page as JSON (docs/_ipython,
`figure_html`). Pages with such a figure load `plotly.min.js`, copied from the installed plotly, and
`plotly_figures.js`, which draws the figures, and draws them again when the reader changes between
the light and the dark theme.

Limits: without JavaScript the page shows a line of text instead of the figure.
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
    """Return the HTML element with the JSON of a figure, which plotly_figures.js draws."""
    # In HTML any `</script` ends the script; JSON reads `<\\/` as `</`.
    data = figure_json.replace("</", "<\\/")
    return (
        f'<div {MARK}><script type="application/json">{data}</script>'
        "<noscript>This figure needs JavaScript.</noscript></div>"
    )


def bundle_library(_: Sphinx, config: Config) -> None:
    """Add plotly.min.js of the installed plotly to the static files of the site."""
    config.html_static_path.append(str(LIBRARY))


def load_where_needed(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Add both scripts to pages with a figure, and to no other page."""
    del page, template, context
    if doctree is not None and any(MARK in node.astext() for node in doctree.findall(nodes.raw)):
        app.add_js_file("plotly.min.js")
        app.add_js_file("plotly_figures.js")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect both steps to the events of Sphinx."""
    app.connect("config-inited", bundle_library)
    app.connect("html-page-context", load_where_needed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
