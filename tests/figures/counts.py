"""Reader of the line of counts under the title of a figure."""

import plotly.graph_objects as go


def counts_of(figure: go.Figure) -> str:
    """Return the first line under the title, which says n."""
    return str(figure.layout.title.subtitle.text).split("<br>")[0]
