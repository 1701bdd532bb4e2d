"""The Python on the how-to pages runs, each page after the quick start."""

import contextlib
import io
import re
import sys
from pathlib import Path

import pytest

from tests.docs.conftest import DOCS, QuickStart, python_blocks

PAGES = sorted((DOCS / "how-to").glob("*.md"))
WITH_CODE = [page for page in PAGES if python_blocks(page)]


# One worker runs all tests that need the quick start, and so runs it once.
NEEDS_QUICK_START = pytest.mark.xdist_group("quick start")


@pytest.mark.slow
@pytest.mark.minutes
@NEEDS_QUICK_START
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(
    page: Path, quick_start: QuickStart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Pages import modules that they have written.
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "steer", raising=False)
    namespace, printed = dict(quick_start.names), io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, code in enumerate(python_blocks(page), start=1):
            exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)
    assert printed.getvalue().strip() or "print(" not in page.read_text(encoding="utf-8")


@pytest.mark.slow
@NEEDS_QUICK_START
def test_the_quick_start_prints_what_is_shown_below_it(quick_start: QuickStart) -> None:
    shown = (DOCS / "quick_start.txt").read_text(encoding="utf-8").strip().splitlines()
    printed = quick_start.printed.strip().splitlines()
    assert printed[:2] == shown[:2]
    (measured,), (scale,) = (
        re.findall(r"^scale (\d+\.\d+)$", line) for line in (printed[2], shown[2])
    )
    assert float(measured) == pytest.approx(float(scale), abs=0.05)
    assert printed[3].startswith("This film was")


@pytest.mark.slow
@NEEDS_QUICK_START
def test_the_quick_start_defines_the_names_that_the_pages_use(quick_start: QuickStart) -> None:
    index = (DOCS / "how-to" / "index.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(\w+)`", index))
    assert {"lrt", "pair", "documents", "grid", "stitch", "contrast", "vector"} <= names
    assert names <= set(quick_start.names)


@pytest.mark.parametrize(
    "page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS))
)
def test_python_on_any_page_is_python(page: Path) -> None:
    for code in python_blocks(page, also_not_run=True):
        compile(code, page.name, "exec")


def test_most_how_to_pages_have_code_that_is_run() -> None:
    without = {page.stem for page in PAGES} - {page.stem for page in WITH_CODE}
    assert without <= {"index", "command_line", "run_on_a_cluster"}
