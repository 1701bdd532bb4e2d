"""CONTRIBUTING names files, targets and error classes that exist."""

import inspect
import re

import pytest

import lrt_lens
from lrt_lens import errors
from tests.docs.conftest import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FOLDERS = ("lrt_lens", "tests", "docs", "examples", "build_demo", "benchmarks")


def exists(path: str) -> bool:
    """Return True if a path exists, from the root or from any folder of the package."""
    package = ROOT / "lrt_lens"
    return any((folder / path).exists() for folder in (ROOT, package, *package.rglob("*/")))


def named_paths() -> set[str]:
    """Return the paths with a folder in them that the page names in code."""
    spans = re.findall(r"`([\w./]+/[\w./]*)`", PAGE)
    return {span for span in spans if not span.startswith((".", "build/", "demo-report"))}


def test_every_named_path_exists() -> None:
    assert len(named_paths()) > 50
    assert {path for path in named_paths() if not exists(path)} == set()


def test_every_package_is_in_the_layout() -> None:
    layout = PAGE[PAGE.index("## Layout") : PAGE.index("## Commands")]
    folders = [path for path in (ROOT / "lrt_lens").iterdir() if (path / "__init__.py").exists()]
    assert {path.name for path in folders if f"{path.name}/" not in layout} == set()


def test_every_error_is_explained() -> None:
    table = PAGE[PAGE.index("## What an error means") : PAGE.index("## Conventions")]
    names = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert len(names) >= 5
    assert {name for name in names if f"| `{name}` |" not in table} == set()


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"make ([a-z][\w-]+)", PAGE)) - {"it"}
    assert {name for name in targets if f"\n{name}:" not in makefile} == set()


@pytest.mark.parametrize(
    "name",
    [
        "transfer_artefact",
        "METRICS",
        "_ratios",
        "CodeTally",
        "sae_figure",
        "ClosedForm",
        "METHODS",
        "read_activations",
        "_positions",
        "_dead",
        "_PANELS",
        "_AVERAGED",
    ],
)
def test_the_named_places_of_code_exist(name: str) -> None:
    assert f"`{name}`" in PAGE or name in PAGE
    sources = (ROOT / "lrt_lens").rglob("*.py")
    defined = re.compile(rf"^(?:class|def) {name}\b|^{name} =", flags=re.M)
    assert any(defined.search(path.read_text(encoding="utf-8")) for path in sources)


def test_the_quoted_message_is_one() -> None:
    [part] = re.findall(r'grep -rn "([^"]+)" lrt_lens', " ".join(PAGE.split()))
    package = ROOT / "lrt_lens"
    assert any(part in path.read_text(encoding="utf-8") for path in package.rglob("*.py"))


def test_the_top_level_has_about_thirty_names() -> None:
    assert "about 30 names" in PAGE
    assert 25 <= len([name for name in lrt_lens.__all__ if name[0] != "_"]) <= 45
