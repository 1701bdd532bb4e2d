"""A plotly figure that is still there after a notebook was saved and converted.

Problem: in a kernel of Jupyter plotly writes a figure as JSON alone, which JupyterLab and VS Code
draw with an extension and `jupyter nbconvert --to html` does not draw at all. Mechanism: where
plotly would do that, our figures write HTML beside the JSON. The first figure of a kernel brings
plotly.js with it, so that a page needs no network; the others find it there, and load it from
plotly's host if its cell is gone. Each program shows what it prefers.

    grid.figure()        # JupyterLab, VS Code: the JSON; nbconvert, and where no extension is: HTML

Limits: a notebook grows by plotly.js, 5 MB, once. Any other renderer of plotly, which the user,
Colab, Quarto or a terminal chose (`plotly.io.renderers.default`), is left as it is.
"""

import sys
import uuid
from dataclasses import dataclass
from typing import Any

_JSON_ALONE = "plotly_mimetype"
"""Renderer that plotly chooses by itself in a kernel of Jupyter."""
_PAGE = """\
{library}<div id="{name}" style="width:100%;height:{height}px"></div>
<script>
(function () {{
  const figure = {figure};
  const draw = () => Plotly.newPlot("{name}", figure.data, figure.layout, {{responsive: true}});
  if (window.Plotly) {{ draw(); return; }}
  const script = document.createElement("script");
  script.src = "https://cdn.plot.ly/plotly-{version}.min.js";
  script.onload = draw;
  document.head.appendChild(script);
}})();
</script>
"""
_HEIGHT = 450
"""Height in pixels of a figure that has none: plotly's own."""


@dataclass
class _Library:
    """Cell of the running kernel whose output holds plotly.js; None if no output does."""

    cell: str | None = None

    def is_needed_in(self, cell: str) -> bool:
        """Return whether the output of a cell must bring plotly.js, and note that it does."""
        # A cell that runs again loses its earlier output, and plotly.js with it.
        is_needed = self.cell in (None, cell)
        self.cell = cell if is_needed else self.cell
        return is_needed


_LIBRARY = _Library()


class InNotebooks:
    """Methods of figures in notebooks; `plotly.graph_objects.Figure` is the base class after it."""

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        figure: Any = super()
        bundle = figure._repr_mimebundle_(*args, **kwargs)
        if _is_json_alone():
            bundle["text/html"] = _page(self, _running_cell())
        return bundle

    def _ipython_display_(self) -> None:
        from plotly.io import renderers

        if renderers.render_on_display and renderers.default:
            self.show()
        else:
            print(repr(self))  # noqa: T201 (as plotly does)

    def show(self, *args: Any, **kwargs: Any) -> None:
        """Show the figure as plotly does; in a kernel of Jupyter as JSON and HTML."""
        if args or kwargs or not _is_json_alone():
            figure: Any = super()
            figure.show(*args, **kwargs)
            return
        from IPython.display import display

        display(self._repr_mimebundle_(), raw=True)


def _is_json_alone() -> bool:
    from plotly.io import renderers

    return renderers.default == _JSON_ALONE


def _page(figure: Any, cell: str) -> str:
    """Return the HTML of a figure, with plotly.js if the page has it from no other cell."""
    from plotly.offline import get_plotlyjs, get_plotlyjs_version

    library = f"<script>{get_plotlyjs()}</script>\n" if _LIBRARY.is_needed_in(cell) else ""
    return _PAGE.format(
        library=library,
        name=f"lrt-{uuid.uuid4()}",
        height=figure.layout.height or _HEIGHT,
        # In HTML any `</script` ends the script; JSON reads `<\/` as `</`.
        figure=str(figure.to_json()).replace("</", "<\\/"),
        version=get_plotlyjs_version(),
    )


def _running_cell() -> str:
    """Return the id of the cell that runs, or the number of its execution; empty if unknown."""
    ipython = sys.modules.get("IPython")
    shell: Any = None if ipython is None else ipython.get_ipython()
    # nbclient sends no ids of cells; each of its cells runs once.
    parent = getattr(shell, "parent_header", None) or {}
    return str(
        (parent.get("metadata") or {}).get("cellId") or getattr(shell, "execution_count", "")
    )
