"""The Python on the how-to pages runs, each page after the ten lines of *Start here*."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from tests.docs.conftest import DOCS, python_blocks

PAGES = sorted((DOCS / "how-to").glob("*.md"))
WITH_CODE = [page for page in PAGES if python_blocks(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(
    page: Path, ten_lines: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace, printed = dict(ten_lines), io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, code in enumerate(python_blocks(page), start=1):
            exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)
    assert printed.getvalue().strip() or "print(" not in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_start_here_leaves_what_the_how_to_pages_go_on_from(ten_lines: dict[str, Any]) -> None:
    assert {"lrt", "pair", "documents", "grid", "stitch", "contrast", "vector", "moved"} <= set(
        ten_lines
    )


@pytest.mark.parametrize(
    "page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS))
)
def test_python_on_any_page_is_python(page: Path) -> None:
    for code in python_blocks(page, also_not_run=True):
        compile(code, page.name, "exec")


def test_most_how_to_pages_have_code_that_is_run() -> None:
    without = {page.stem for page in PAGES} - {page.stem for page in WITH_CODE}
    assert without <= {"index", "run_on_a_cluster"}
