"""Every example runs with ``--quick`` from the command line and leaves its figure and its numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
QUICK = sorted(path.stem for path in EXAMPLES.glob("*.py") if "quick: bool" in path.read_text(encoding="utf-8"))


def test_there_are_examples() -> None:
    assert {"maps_compared", "layer_choice", "two_way_beside_adam", "map_algebra"} <= set(QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(tmp_path.glob("*.html"))
    (numbers,) = tmp_path.glob("*.json")
    assert json.loads(numbers.read_text(encoding="utf-8"))
