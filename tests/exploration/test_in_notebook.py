"""The explorer in a notebook server, driven by Chromium, without requests to other servers."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ipywidgets", reason="pip install 'lrt-lens[widgets]'")
pytest.importorskip("jupyterlab", reason="no notebook server; pip install 'lrt-lens[docs]'")

pytestmark = pytest.mark.browser

CELL = """
import lrt_lens as lrt
from lrt_lens.exploration import explore
pair = lrt.demo_pair()
contrast = lrt.demo_contrast("sentiment")
few = lrt.ContrastSet(contrast.positive[:24], contrast.negative[:24], name="sentiment")
vector = lrt.SteeringVector.mean_difference(pair.target, few, at=3)
native = lrt.SteeringVector.mean_difference(pair.target, few, at=2)
neutral = lrt.demo_neutral()[:2]
explore(
    pair, vector, native=native, neutral=neutral, prompt="This film was", max_new_tokens=12
)
"""
LONG = 300_000
"""Milliseconds for a kernel to start, load two models and calibrate."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a notebook server whose folder has one notebook."""
    folder = tmp_path_factory.mktemp("notebooks")
    cell = {
        "cell_type": "code",
        "execution_count": None,
        "id": "explore",
        "metadata": {},
        "outputs": [],
        "source": CELL.strip(),
    }
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    (folder / "explore.ipynb").write_text(
        json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "port": port,
        "token": "",
        "password": "",
        "root_dir": str(folder),
        "allow_root": True,
        "open_browser": False,
        "ip": "127.0.0.1",
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--LabApp.expose_app_in_browser=True",
        *(f"--ServerApp.{name}={value}" for name, value in options.items()),
    ]
    places = {
        f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")
    }
    where = (
        os.environ | places | {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    )
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=where, cwd=folder)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api", process)
            yield f"http://127.0.0.1:{port}/lab/tree/explore.ipynb"
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(address: str, process: subprocess.Popen) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"the notebook server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"no answer from {address}")


@pytest.fixture(scope="module")
def page(browser: Any, server: str) -> Iterator[Any]:
    """Yield the page of the notebook after its cell has run.

    ``page.asked`` lists every address that it requested, and ``page.failed`` its script errors.
    """
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.asked, page.failed = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.failed.append(str(error)))
    page.goto(server)
    page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.sessionContext"
        "?.session?.kernel?.status === 'idle'",
        timeout=LONG,
    )
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(".lrt-lens-explorer", timeout=LONG)
    yield page
    page.close()


def _shown(page: Any) -> str:
    return page.inner_text(".lrt-lens-explorer")


def _damages(page: Any) -> list[float]:
    return [
        float(number)
        for number in re.findall(r"scale \S+, damage (\S+) nats per token", _shown(page))
    ]


def _after(page: Any, what: Any, change: Any) -> Any:
    """Do something, wait until the text that ``what`` reads has changed, and return it."""
    before = what(page)
    change()
    for _ in range(300):
        if what(page) != before and "running" not in _shown(page):
            return what(page)
        page.wait_for_timeout(100)
    raise TimeoutError(f"still {before!r}")


def test_continuations_and_damage_stand_side_by_side(page: Any) -> None:
    text = _shown(page)
    for word in ("none", "native", "transferred", "This film was", "draw 1"):
        assert word in text
    assert len(_damages(page)) == 2
    assert all(abs(damage - 0.4) < 0.02 for damage in _damages(page))


def test_the_slider_turns_both_vectors_up(page: Any) -> None:
    handle = page.locator(".lrt-lens-explorer .noUi-handle")
    handle.focus()
    before = _damages(page)

    def press() -> None:
        for _ in range(5):
            handle.press("ArrowRight")

    after = _after(page, _damages, press)
    assert all(high > low for high, low in zip(after, before, strict=True))


def test_another_prompt_and_another_draw_are_continued(page: Any) -> None:
    read = lambda p: p.inner_text(".lrt-lens-explorer table >> nth=-1")  # noqa: E731
    page.locator(".lrt-lens-explorer textarea").fill("My <b>grandmother</b> said")
    _after(
        page,
        lambda p: "My <b>grandmother</b> said" in read(p),
        lambda: page.get_by_role("button", name="Run", exact=True).last.click(),
    )
    first = read(page)
    assert (
        _after(page, read, lambda: page.get_by_role("button", name="Another draw").click()) != first
    )
    assert "draw 2" in _shown(page)


def test_an_empty_prompt_is_said(page: Any) -> None:
    page.locator(".lrt-lens-explorer textarea").fill("  ")
    _after(
        page,
        lambda p: "the prompt is empty" in _shown(p),
        lambda: page.get_by_role("button", name="Run", exact=True).last.click(),
    )


def test_it_fits_the_page_and_asks_nobody_else(page: Any, server: str, tmp_path: Path) -> None:
    page.screenshot(path=os.environ.get("LRT_LENS_SCREENSHOT", str(tmp_path / "explorer.png")))
    box = page.locator(".lrt-lens-explorer").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 1280
    host = server.split("/lab/")[0]
    assert [
        address
        for address in page.asked
        if not address.startswith((host, host.replace("http", "ws"), "data:", "blob:"))
    ] == []
    assert page.failed == []
