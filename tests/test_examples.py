"""Every figure script runs with ``--quick`` and writes its page, its picture and its numbers."""

import ast
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lrt_lens.reproduction._options
from lrt_lens.reproduction import FigureOptions, run

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(
    path.stem
    for path in EXAMPLES.glob("*.py")
    if "run(reproduce)" in path.read_text(encoding="utf-8")
)
SHARED = {"source", "target", "sae", "documents", "n_tokens", "seed", "device"}
"""Options of every script that change its numbers."""
BROWSER = any(
    map(
        shutil.which,
        ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"),
    )
)


def test_every_example_makes_a_figure() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SCRIPTS)
    assert {
        "stitched_loss",
        "inversion_penalty",
        "clamp_steering",
        "behaviour_removal",
        "fit_losses",
        "concept_directions",
    } <= set(SCRIPTS)


def test_the_table_of_results_names_every_script_and_no_other() -> None:
    page = (EXAMPLES.parent / "docs" / "results" / "index.md").read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert {name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[-2])} == set(
        SCRIPTS
    )


def test_the_gallery_shows_every_script() -> None:
    shown = json.loads((EXAMPLES / "gallery.json").read_text(encoding="utf-8"))["figures"]
    assert {one["name"] for one in shown} == set(SCRIPTS)
    assert all(one["thumbnail"] for one in shown)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_figure_has_the_name_of_its_script(name: str) -> None:
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
    named = reproduction_keywords(tree)["name"]
    assert isinstance(named, ast.Constant)
    assert named.value == name


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_gallery_quotes_the_script(name: str) -> None:
    """Title, claim and limits in gallery.json are the sentences that the script writes."""
    shown = json.loads((EXAMPLES / "gallery.json").read_text(encoding="utf-8"))["figures"]
    (entry,) = [one for one in shown if one["name"] == name]
    keywords = reproduction_keywords(parsed(EXAMPLES / f"{name}.py"))
    for key in ("title", "paper", "claim", "says"):
        assert ast.literal_eval(keywords[key]) == entry[key]


def reproduction_keywords(tree: ast.AST) -> dict[str | None, ast.expr]:
    """Keyword arguments of the script's call of ``Reproduction``."""
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Reproduction"
    ]
    return {keyword.arg: keyword.value for keyword in calls[0].keywords}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_stands_alone(name: str) -> None:
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
    imported = {
        node.module.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert not imported & set(SCRIPTS), "shared code belongs in lrt_lens.reproduction"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_declares_the_shared_options_that_it_does_not_read(name: str) -> None:
    """``UNUSED`` is exact.

    An option is read if the script's code reads ``options.NAME``, or if a method of
    `FigureOptions` that the script calls reads ``self.NAME``.
    """
    functions = [
        node
        for node in ast.walk(parsed(lrt_lens.reproduction._options.__file__))
        if isinstance(node, ast.FunctionDef)
    ]
    methods = {node.name: attributes(node, "self") for node in functions}
    read = attributes(parsed(EXAMPLES / f"{name}.py"), "options")
    while not (more := set().union(*(methods.get(method, set()) for method in read))) <= read:
        read |= more
    assert SHARED - read == loaded(name).Options.UNUSED


def parsed(path: Path | str) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"))


def attributes(tree: ast.AST, owner: str) -> set[str]:
    """Names of the attributes that are read from a variable."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {
        node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == owner
    }


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.minutes
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each script runs in this process, which has imported everything once.

    One script also runs from the command line, in the test below.
    """
    module = loaded(name)
    reproduce, read = watched(module.reproduce, monkeypatch)
    run(reproduce, ["--quick", "--out", str(tmp_path)])
    _check_record(name, tmp_path)
    assert not read & module.Options.UNUSED, "the script reads options that it declares as unused"


def watched(
    reproduce: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[..., Any], set[str]]:
    """The function, wrapped, and the set of options that it reads while it runs."""
    read: set[str] = set()
    is_running = False

    def note(options: FigureOptions, attribute: str) -> Any:
        if is_running:
            read.add(attribute)
        return object.__getattribute__(options, attribute)

    @functools.wraps(reproduce)
    def watch(options: FigureOptions) -> Any:
        nonlocal is_running
        is_running = True
        try:
            return reproduce(options)
        finally:
            is_running = False

    monkeypatch.setattr(FigureOptions, "__getattribute__", note)
    return watch, read


@pytest.mark.slow
def test_an_example_runs_from_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "layer_choice.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        command,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    _check_record("layer_choice", tmp_path)


def _check_record(name: str, folder: Path) -> None:
    record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert record["quick"]
    assert record["compared"]
    assert record["because"]
    assert "nan" not in record["because"], "a number is missing in the sentence"
    assert (folder / f"{name}.html").is_file()
    assert (folder / f"{name}.png").is_file() or not BROWSER
