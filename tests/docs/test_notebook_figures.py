"""Plotly figures of notebooks are drawn in their page, from the site's own copy of plotly.js."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.conftest import DOCS

CELLS = [
    "import plotly.graph_objects as go",
    "go.Figure(go.Scatter(x=[0, 1], y=[0, 2]), layout={'title': '</script>', 'template': 'none'})",
]
CONF = """
import sys
sys.path.insert(0, "_ext")
extensions = ["myst_nb", "plotly_figures"]
html_theme = "furo"
html_static_path = ["_static"]
nb_execution_mode, nb_execution_raise_on_error = "force", True
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a site of two pages, one of them with a figure, with our extensions."""
    for needed in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(
            needed, reason=f"{needed} is not installed: `make docs-check` brings it"
        )
    folder = tmp_path_factory.mktemp("site")
    for part in ("_ext", "_static", "_ipython"):
        shutil.copytree(
            DOCS / part,
            folder / part,
            ignore=shutil.ignore_patterns("*.sqlite*", "db", "log", "security"),
        )
    cells = [
        {
            "cell_type": "code",
            "metadata": {},
            "source": code,
            "outputs": [],
            "execution_count": None,
        }
        for code in CELLS
    ]
    cells.insert(0, {"cell_type": "markdown", "metadata": {}, "source": "# A figure"})
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (folder / "figure.ipynb").write_text(
        json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 4})
    )
    (folder / "index.md").write_text("# Start\n\n```{toctree}\nfigure\n```\n")
    (folder / "conf.py").write_text(CONF)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", str(folder), str(folder / "out")]
    subprocess.run(
        command, check=True, cwd=folder, env={**os.environ, "IPYTHONDIR": str(folder / "_ipython")}
    )
    return folder / "out"


@pytest.mark.browser
def test_only_pages_with_figures_load_plotly(pages: Path) -> None:
    with_figure, without = (pages / "figure.html").read_text(), (pages / "index.html").read_text()
    assert with_figure.count('class="lrt-plot"') == 1
    assert "plotly.min.js" in with_figure
    assert "plotly" not in without
    assert "cdn" not in with_figure
    assert (pages / "_static" / "plotly.min.js").stat().st_size > 1e6


@pytest.mark.browser
def test_the_figure_is_drawn_and_repainted(pages: Path, browser: Any) -> None:
    tab, asked, complaints = browser.new_page(color_scheme="light"), [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto((pages / "figure.html").resolve().as_uri(), wait_until="load")
    tab.wait_for_selector(
        ".lrt-plot .main-svg .scatterlayer path", state="attached", timeout=20_000
    )
    ink = "() => getComputedStyle(document.querySelector('.lrt-plot .xtick text')).fill"
    tab.wait_for_timeout(300)
    light = tab.evaluate(ink)
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_timeout(300)
    assert tab.evaluate(ink) != light
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    tab.close()
