"""PNG files of a plotly figure, by kaleido and whatever Chrome or Chromium there is; a warning of
one line where there is none.
"""

import logging
from pathlib import Path

import plotly.graph_objects as go
import plotly.io as pio

logger = logging.getLogger(__name__)

WIDTH, HEIGHT = 1100, 520
"""Pixels; for figures without a size of their own."""
THUMBNAIL_WIDTH, THUMBNAIL_BYTES = 1000, 120_000
"""Wide enough for its text to be read at the width of a page."""
_REMEDY = "; NAME.html and NAME.json are written. For pictures: pip install 'kaleido>=1' and a Chrome or Chromium (plotly_get_chrome fetches one)"


def write_pictures(figure: go.Figure, picture: Path, thumbnail: Path) -> bool:
    """Write both; False, with a warning and neither file, where no browser draws them."""
    shown = go.Figure(figure)
    shown.update_layout(
        paper_bgcolor="white", plot_bgcolor="white", font_color="#3a3a3a", updatemenus=[]
    )
    layout = shown.to_dict()["layout"]
    width, height = int(layout.get("width") or WIDTH), int(layout.get("height") or HEIGHT)
    scale = THUMBNAIL_WIDTH / width
    try:
        # Both in one call: starting the browser is what takes the time.
        pio.write_images(
            [shown, shown],
            [picture, thumbnail],
            format="png",
            scale=[1.5, scale],
            width=width,
            height=height,
        )
        while thumbnail.stat().st_size > THUMBNAIL_BYTES:
            scale *= 0.8
            pio.write_image(shown, thumbnail, format="png", scale=scale, width=width, height=height)
    except (
        Exception
    ) as error:  # kaleido raises a dozen kinds: not installed, no browser, a browser that dies
        picture.unlink(missing_ok=True)
        thumbnail.unlink(missing_ok=True)
        logger.warning(
            "no PNG: %s%s", str(error).strip().split("\n")[0][:160] or type(error).__name__, _REMEDY
        )
        return False
    return True
