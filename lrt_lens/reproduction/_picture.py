"""PNG files of a plotly figure, drawn by kaleido and an installed Chrome or Chromium.

    write_pictures(figure, Path("name.png"), Path("name.thumbnail.png"))    # True if both exist

Problem: README files and papers need pictures, and a browser is not installed everywhere.
Mechanism: pictures are optional; without a browser there is a warning of one line and no picture.

Limits: the pictures have a white background, whatever the theme of the page.
"""

import logging
from pathlib import Path
from typing import Any

from lrt_lens.figures._plotly import graph_objects

logger = logging.getLogger(__name__)

WIDTH, HEIGHT = 1100, 520
"""Size in pixels of figures without a size of their own."""
THUMBNAIL_WIDTH, THUMBNAIL_BYTES = 1000, 120_000
"""Width in pixels at which the text of a thumbnail is legible, and its largest size in bytes."""
# Shown with the reason if no picture can be drawn.
_REMEDY = (
    "NAME.html and NAME.json are written. For pictures: pip install 'kaleido>=1' and a Chrome or "
    "Chromium (plotly_get_chrome fetches one)"
)


def write_pictures(figure: "graph_objects.Figure", picture: Path, thumbnail: Path) -> bool:
    """Write both pictures and return True; without a browser, warn and return False.

    Args:
        figure: the figure; menus are left out of the pictures.
        picture: PNG file at 1.5 times the figure's size.
        thumbnail: PNG file of at most `THUMBNAIL_BYTES`.
    """
    import plotly.io as pio

    shown = graph_objects.Figure(figure)
    shown.update_layout(
        # Transparent figures are drawn on white, with dark text, because a PNG has no theme.
        paper_bgcolor="white",
        plot_bgcolor="white",
        font_color="#3a3a3a",
        updatemenus=[],
    )
    layout = shown.to_dict()["layout"]
    width, height = int(layout.get("width") or WIDTH), int(layout.get("height") or HEIGHT)
    looks: dict[str, Any] = {"format": "png", "width": width, "height": height}
    scale = THUMBNAIL_WIDTH / width
    try:
        # Both in one call, because starting the browser takes most of the time.
        pio.write_images([shown, shown], [picture, thumbnail], scale=[1.5, scale], **looks)
        # Smaller until it fits: the size of a PNG cannot be computed from its dimensions.
        while thumbnail.stat().st_size > THUMBNAIL_BYTES:
            scale *= 0.8
            pio.write_image(shown, thumbnail, scale=scale, **looks)
    # kaleido raises a dozen kinds: not installed, no browser, a browser that dies.
    except Exception as error:
        # A picture of an earlier try must not remain next to newer numbers.
        picture.unlink(missing_ok=True)
        thumbnail.unlink(missing_ok=True)
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        logger.warning("no PNG: %s; %s", reason, _REMEDY)
        return False
    return True
