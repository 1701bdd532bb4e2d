"""The house rules that a linter does not know: imports point down, modules stay small."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lrt_lens"
ORDER = (
    "errors",
    "typing",
    "_repr_html",
    "_settings",
    "_late",
    "_byte_sizes",
    "_files",
    "statistics",
    "models",
    "data",
    "figures",
    "moments",
    "report",
    "stitching",
    "adapters",
    "baselines",
    "bundled",
    "exploration",
    "reproduction",
    "demo",
    "cli",
    "__main__",
)
"""Each may import only from those before it; report/results.py writes what any of them found."""


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """First parts below the package of what a module imports at run time, wherever in the module."""
    tree = ast.parse(path.read_text())
    checked = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    names = {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in checked
    }
    return {name.split(".")[1] for name in names if name.startswith("lrt_lens.")}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        return
    place = ORDER.index(parts[0])
    # `result.figure()` is a method of what was found; figures are functions of its tables and
    # import nothing of it.
    upward = {name for name in imported(path) if ORDER.index(name) > place} - {"report"}
    assert not upward, f"{path.relative_to(PACKAGE)} imports upwards: {upward}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            documented = ast.get_docstring(node)
            size = (
                node.end_lineno
                - node.lineno
                + 1
                - (len(documented.splitlines()) if documented else 0)
            )  # type: ignore[operator]
            assert size <= 95, f"{node.name} has {size} lines"
