"""Figures of a saved notebook are there after `jupyter nbconvert`, with and without a network."""

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import plotly.graph_objects
import plotly.io as pio
import pytest

from lrt_lens.figures import _notebook_figure
from lrt_lens.figures._notebook_figure import InNotebooks
from lrt_lens.figures._plotly import go, make_subplots

JSON_TYPE = "application/vnd.plotly.v1+json"
LIBRARY = "plotly.js v"
"""Beginning of plotly.js."""
CELLS = [
    "from lrt_lens.figures._plotly import go, make_subplots\n"
    "go.Figure(go.Scatter(x=[0, 1], y=[0, 2]), layout={'title': '</script>', 'height': 300})",
    "make_subplots(cols=2).add_scatter(y=[1, 3]).show()",
]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plotly as it is in a kernel of Jupyter, and a function that begins a cell."""
    monkeypatch.setattr(_notebook_figure, "_LIBRARY", _notebook_figure._Library())
    before = pio.renderers.default
    pio.renderers.default = "plotly_mimetype"

    def begin(cell: str) -> None:
        shell = SimpleNamespace(parent_header={"metadata": {"cellId": cell}}, execution_count=1)
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))

    yield begin
    pio.renderers.default = before


def test_our_figures_are_figures_of_plotly() -> None:
    for figure in (go.Figure(go.Scatter(y=[1, 2])), make_subplots(rows=2)):
        assert isinstance(figure, InNotebooks)
        assert isinstance(figure, plotly.graph_objects.Figure)
        again = pickle.loads(pickle.dumps(figure))
        assert (type(again), again) == (type(figure), figure)


def test_the_first_figure_of_a_kernel_brings_the_library_and_others_use_it(kernel: Any) -> None:
    figure = go.Figure(go.Scatter(y=[1, 2]), layout={"height": 321})
    pages = {}
    for run, cell in enumerate(["a", "b", "a", "b"]):
        kernel(cell)
        bundle = figure._repr_mimebundle_()
        assert bundle[JSON_TYPE]["layout"]["height"] == 321
        pages[run] = bundle["text/html"]
        assert "height:321px" in pages[run]
        assert "https://cdn.plot.ly/plotly-" in pages[run], "if the first cell is gone"
    # Cell a ran again, and its earlier output, which held the library, was replaced.
    assert [LIBRARY in page for page in pages.values()] == [True, False, True, False]


def test_a_renderer_that_somebody_chose_stays(kernel: Any) -> None:
    kernel("a")
    figure = go.Figure(go.Scatter(y=[1, 2]))
    for renderer in ("json", "plotly_mimetype+json"):
        pio.renderers.default = renderer
        assert "text/html" not in figure._repr_mimebundle_()


@pytest.mark.browser
def test_figures_survive_the_conversion_of_a_notebook(browser: Any, tmp_path: Path) -> None:
    needed = "is not installed: `make docs-check` brings it"
    nbformat = pytest.importorskip("nbformat", reason=f"nbformat {needed}")
    nbclient = pytest.importorskip("nbclient", reason=f"nbclient {needed}")
    nbconvert = pytest.importorskip("nbconvert", reason=f"nbconvert {needed}")
    pytest.importorskip("ipykernel", reason=f"ipykernel {needed}")
    cells = [nbformat.v4.new_code_cell(code) for code in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=300).execute()
    html, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    assert html.count(LIBRARY) == 1, "once in a page"
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 4")
    assert page.locator(".js-plotly-plot").count() == 2
    assert page.locator(".gtitle").first.text_content() == "</script>"
    context.close()
