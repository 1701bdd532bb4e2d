"""Startup of the kernels of a documentation build: plotly figures are written as JSON.

The page draws them, see docs/_ext/plotly_figures.py.
"""

import sys
from pathlib import Path

import plotly.io as pio
from plotly.io.base_renderers import MimetypeRenderer

sys.path.append(str(Path(__file__).parents[3] / "_ext"))

from plotly_figures import figure_html  # the line above adds docs/_ext to the path


class PageRenderer(MimetypeRenderer):
    """Renderer that writes a figure as JSON in an HTML element with the class of MARK."""

    def to_mimebundle(self, fig_dict: dict[str, object]) -> dict[str, str]:
        """Return the output of a cell that shows a figure, by MIME type."""
        return {"text/html": figure_html(pio.to_json(fig_dict, validate=False) or "")}


pio.renderers["page"] = PageRenderer()
pio.renderers.default = "page"
