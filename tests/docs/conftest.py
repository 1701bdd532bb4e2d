"""The built documentation, and a server for it."""

import contextlib
import functools
import http.server
import io
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BUILT = ROOT / os.environ.get("LRT_LENS_DOCS_BUILT", "build/docs")
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```python\n(.*?)^```$", flags=re.S | re.M)


def python_blocks(page: Path, *, also_not_run: bool = False) -> list[str]:
    """Return the blocks of Python of a page, in order.

    A comment `<!-- not run: REASON -->` on the line before leaves a block out.
    """
    return [
        code
        for skip, code in BLOCK.findall(page.read_text(encoding="utf-8"))
        if also_not_run or not skip
    ]


@dataclass(frozen=True)
class QuickStart:
    """The names that the quick start defined, and what it printed."""

    names: dict[str, Any]
    """The names that it defines; the how-to pages use them."""
    printed: str


@pytest.fixture(scope="session")
def quick_start() -> QuickStart:
    """Run the quick start."""
    names, printed = dict[str, Any](), io.StringIO()
    code = (DOCS / "quick_start.py").read_text(encoding="utf-8")
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "quick_start.py", "exec"), names)
    return QuickStart(names, printed.getvalue())


@pytest.fixture(scope="session")
def built() -> Path:
    if not (BUILT / "index.html").exists():
        pytest.skip(f"no documentation in {BUILT}: `make docs` builds it")
    return BUILT


@pytest.fixture(scope="session")
def site(built: Path) -> Iterator[str]:
    """Yield the address of the built pages on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(built))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
