"""Every script of a figure runs with ``--quick`` from the command line and leaves its page, its
picture and its numbers.
"""

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
OTHERS = {"demo_model_card", "train_demo_models", "train_demo_saes"}
"""They made what is bundled."""
SHARED = {"source", "target", "sae", "documents", "n_tokens", "seed", "device"}
"""Options of every script that change what it finds."""
BROWSER = any(
    map(
        shutil.which,
        ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"),
    )
)


def test_every_example_makes_a_figure() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} - OTHERS == set(SCRIPTS)
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
    made = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Reproduction"
    ]
    (named,) = [keyword.value for keyword in made[0].keywords if keyword.arg == "name"]
    assert isinstance(named, ast.Constant)
    assert named.value == name


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_stands_alone(name: str) -> None:
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
    imported = {
        node.module.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert not imported & set(SCRIPTS), "what scripts share belongs into lrt_lens.reproduction"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_declares_the_shared_options_that_it_does_not_read(name: str) -> None:
    """What its code asks of ``options``, and what the methods of `FigureOptions` that it calls ask
    of themselves.
    """
    functions = [
        node
        for node in ast.walk(parsed(lrt_lens.reproduction._options.__file__))
        if isinstance(node, ast.FunctionDef)
    ]
    methods = {node.name: asked(node, "self") for node in functions}
    read = asked(parsed(EXAMPLES / f"{name}.py"), "options")
    while not (more := set().union(*(methods.get(method, set()) for method in read))) <= read:
        read |= more
    assert SHARED - read == loaded(name).Options.UNUSED


def parsed(path: Path | str) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"))


def asked(tree: ast.AST, owner: str) -> set[str]:
    """Attributes of a name."""
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
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has imported everything once; one of them from the command line,
    below.
    """
    module = loaded(name)
    reproduce, read = watched(module.reproduce, monkeypatch)
    run(reproduce, ["--quick", "--out", str(tmp_path)])
    _check_record(name, tmp_path)
    assert not read & module.Options.UNUSED, "read, though declared as unused"


def watched(
    reproduce: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[..., Any], set[str]]:
    """(the function, what it reads of its options once it runs)."""
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
    assert "nan" not in record["because"], "a sentence without its number"
    assert (folder / f"{name}.html").is_file()
    assert (folder / f"{name}.png").is_file() or not BROWSER
