"""Commands in documentation and docstrings name scripts and options that exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lrt_lens.reproduction._options
from tests.docs.conftest import DOCS, ROOT

FOLDERS = ("examples", "build_demo")
"""Folders of scripts that are run from the command line."""
EXAMPLES = ROOT / "examples"
COMMAND = re.compile(r"(?:examples|build_demo)/(\w+)\.py((?:\\\n|[^\n`#])*)")
"""Script and its options, over continued lines, up to a comment or the end of the code."""
OPTION = re.compile(r"(?<!\S)--([a-z][\w-]*)")
CLASSES = ("Options", "Arguments")
"""Names of the dataclass with a script's options; without one its function ``main`` has them."""


def commands() -> Iterator[tuple[str, str, list[str]]]:
    """Return (file, script, options) of every command in documentation and docstrings."""
    pages = [
        *DOCS.rglob("*.md"),
        *DOCS.rglob("*.ipynb"),
        *ROOT.glob("*.md"),
        *EXAMPLES.glob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
    ]
    code = [
        path
        for folder in ("lrt_lens", "benchmarks", *FOLDERS)
        for path in (ROOT / folder).rglob("*.py")
    ]
    for path in [*pages, *code, *(ROOT / "lrt_lens").rglob("*.md")]:
        for script, rest in COMMAND.findall(path.read_text(encoding="utf-8")):
            yield str(path.relative_to(ROOT)), script, OPTION.findall(rest)


def options_of(script: Path, inherited: set[str]) -> set[str]:
    """Option names that tyro makes from a script's dataclass, or from the arguments of ``main``."""
    body = ast.parse(script.read_text(encoding="utf-8")).body
    names = {
        name
        for node in body
        if isinstance(node, ast.ClassDef) and node.name in CLASSES
        for name in fields(node)
    }
    if not names:
        names = {
            each.arg
            for node in body
            if isinstance(node, ast.FunctionDef) and node.name == "main"
            for each in node.args.args
        }
    own = any(isinstance(node, ast.ClassDef) and node.name == "Options" for node in body)
    return {name.replace("_", "-") for name in names | (inherited if own else set())}


def fields(definition: ast.ClassDef) -> set[str]:
    return {
        node.target.id
        for node in definition.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and "ClassVar" not in ast.unparse(node.annotation)
    }


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Options of every script, flags with their negations."""
    shared = ast.parse(Path(lrt_lens.reproduction._options.__file__).read_text(encoding="utf-8"))
    (base,) = [
        node
        for node in shared.body
        if isinstance(node, ast.ClassDef) and node.name == "FigureOptions"
    ]
    names_of = {
        path.stem: options_of(path, fields(base))
        for folder in FOLDERS
        for path in (ROOT / folder).glob("*.py")
    }
    return {
        script: names | {f"no-{name}" for name in names} | {"help"}
        for script, names in names_of.items()
    }


def test_every_command_names_a_script_and_its_options(options: dict[str, set[str]]) -> None:
    wrong = [
        f"{path}: {script}.py {' '.join(f'--{name}' for name in given)}"
        for path, script, given in commands()
        if script not in options or not set(given) <= options[script]
    ]
    assert wrong == []


def test_commands_are_found_over_lines_and_without_their_comments() -> None:
    text = (
        "    python examples/strength.py --source A \\\n        --n-tokens 3   # not --this\n"
        "`examples/l_cross.py --pairs 3` and --that\n"
    )
    assert [(script, OPTION.findall(rest)) for script, rest in COMMAND.findall(text)] == [
        ("strength", ["source", "n-tokens"]),
        ("l_cross", ["pairs"]),
    ]
    assert len(list(commands())) > 40


def test_options_are_those_of_the_command_line(options: dict[str, set[str]]) -> None:
    assert {"source", "documents", "quick", "task-file", "target-sae"} <= options["probe_transfer"]
    assert {"card-only", "n-rows"} <= options["train_demo_saes"]
    assert {"data", "work", "sizes"} <= options["train_demo_models"]
    assert not {"QUICK", "texts", "native"} & options["probe_transfer"]
