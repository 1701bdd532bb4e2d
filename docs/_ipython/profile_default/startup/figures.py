"""In the kernels of a documentation build: figures leave their JSON in the page
(docs/_ext/plotly_figures.py draws them there).
"""

import sys
from pathlib import Path

import plotly.io as pio
from plotly.io.base_renderers import MimetypeRenderer

sys.path.append(str(Path(__file__).parents[3] / "_ext"))

from plotly_figures import figure_html  # docs/_ext comes onto the path above


class PageRenderer(MimetypeRenderer):
    """A figure as its JSON inside a marked place."""

    def to_mimebundle(self, fig_dict: dict[str, object]) -> dict[str, str]:
        """What the notebook keeps of a figure."""
        return {"text/html": figure_html(pio.to_json(fig_dict, validate=False) or "")}


pio.renderers["page"] = PageRenderer()
pio.renderers.default = "page"
