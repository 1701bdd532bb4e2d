"""The Python on the how-to pages runs, each page after the quick start."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from tests.docs.conftest import DOCS, python_blocks

PAGES = sorted((DOCS / "how-to").glob("*.md"))
WITH_CODE = [page for page in PAGES if python_blocks(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(
    page: Path, quick_start: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace, printed = dict(quick_start), io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, code in enumerate(python_blocks(page), start=1):
            exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)
    assert printed.getvalue().strip() or "print(" not in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_quick_start_defines_the_names_that_the_pages_use(quick_start: dict[str, Any]) -> None:
    index = (DOCS / "how-to" / "index.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(\w+)`", index))
    assert {"lrt", "pair", "documents", "grid", "stitch", "contrast", "vector"} <= names
    assert names <= set(quick_start)


@pytest.mark.parametrize(
    "page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS))
)
def test_python_on_any_page_is_python(page: Path) -> None:
    for code in python_blocks(page, also_not_run=True):
        compile(code, page.name, "exec")


def test_most_how_to_pages_have_code_that_is_run() -> None:
    without = {page.stem for page in PAGES} - {page.stem for page in WITH_CODE}
    assert without <= {"index", "run_on_a_cluster"}
