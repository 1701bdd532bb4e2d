"""The README's Python does what the README says."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_ten_lines_print_what_stands_below_them() -> None:
    code, expected = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, flags=re.S).groups()  # type: ignore[union-attr]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    printed, promised = out.getvalue().strip().splitlines(), expected.strip().splitlines()
    assert printed[:2] == promised[:2]
    assert printed[3].startswith("This film was")


def test_every_file_that_the_readme_names_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (Path(__file__).parent.parent / link).exists()] == []
