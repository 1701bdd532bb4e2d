"""Import of plotly when the first figure is drawn.

Problem: results offer `.figure()`, so their modules import the modules of figures; plotly takes
about half a second to import and is not needed to compute. Mechanism: `go` stands for
`plotly.graph_objects` and `make_subplots` for the function of that name; both import plotly when
they are used. Their figures are those of `lrt_lens.figures._notebook_figure`, which survive the
conversion of a notebook. `graph_objects` is plotly's own, for the types of parameters that take any
figure.

    from lrt_lens.figures._plotly import go, make_subplots

    def figure() -> "go.Figure":  # in quotes: otherwise evaluated, and plotly imported, at import
        return go.Figure(go.Scatter(x=[0, 1], y=[0, 2]))

Limits: `isinstance(x, go.Figure)` imports plotly too.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from lrt_lens.figures._notebook_figure import InNotebooks

# Type checkers see plotly itself; at run time each name imports it when it is used.
if TYPE_CHECKING:
    import plotly.graph_objects as go
    import plotly.graph_objects as graph_objects
    from plotly.subplots import make_subplots
else:

    class _GraphObjects:
        """Stand-in for `plotly.graph_objects`, which is imported when a name is used."""

        def __getattr__(self, name: str) -> Any:
            import plotly.graph_objects

            return getattr(plotly.graph_objects, name)

    class _OurGraphObjects(_GraphObjects):
        """Stand-in that gives our figures for plotly's."""

        def __getattr__(self, name: str) -> Any:
            return _figure_class() if name == "Figure" else super().__getattr__(name)

    go, graph_objects = _OurGraphObjects(), _GraphObjects()

    def make_subplots(**options: Any) -> Any:
        """Return `plotly.subplots.make_subplots(**options)`: an empty figure of several panels."""
        from plotly import subplots

        return subplots.make_subplots(figure=go.Figure(), **options)


@cache
def _figure_class() -> Any:
    """Return the class of our figures: plotly's, with what it does in notebooks."""
    import plotly.graph_objects

    return type(
        "NotebookFigure", (InNotebooks, plotly.graph_objects.Figure), {"__module__": __name__}
    )


def __getattr__(name: str) -> Any:
    # A copy of a figure in another process finds its class by this name.
    if name == "NotebookFigure":
        return _figure_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["go", "graph_objects", "make_subplots"]
