"""Every script of a figure runs with ``--quick`` from the command line and leaves its page, its picture and its numbers."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lrt_lens.reproduction import run

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if "run(reproduce)" in path.read_text(encoding="utf-8"))
OTHERS = {"demo_model_card", "train_demo_models", "train_demo_saes"}
"""They made what is bundled."""
BROWSER = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")))


def test_every_example_makes_a_figure() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} - OTHERS == set(SCRIPTS)
    assert {"stitched_loss", "inversion_penalty", "clamp_steering", "behaviour_removal", "fit_losses", "concept_directions"} <= set(SCRIPTS)


def test_the_table_of_results_names_every_script_and_no_other() -> None:
    page = (EXAMPLES.parent / "docs" / "results" / "index.md").read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert {name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[-2])} == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_figure_has_the_name_of_its_script(name: str) -> None:
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
    made = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Reproduction"]
    (named,) = [keyword.value for keyword in made[0].keywords if keyword.arg == "name"]
    assert isinstance(named, ast.Constant)
    assert named.value == name


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_stands_alone(name: str) -> None:
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
    imported = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert not imported & set(SCRIPTS), "what scripts share belongs into lrt_lens.reproduction"


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    """In this process, which has imported everything once; one of them from the command line, below."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    run(module.reproduce, ["--quick", "--out", str(tmp_path)])
    _check_record(name, tmp_path)


@pytest.mark.slow
def test_an_example_runs_from_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "layer_choice.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)
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
