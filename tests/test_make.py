"""``make figures`` passes each script the options that it has."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def figures(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``make figures`` with a python that prints its arguments."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    python = programs / "python"
    python.write_text('#!/bin/sh\necho "ran $*"\ncase "$1" in *strength*) exit 1;; esac\n')
    python.chmod(0o755)
    (tmp_path / "installed").touch()
    return subprocess.run(
        ["make", "figures", f"BIN={programs}", f"STAMP={tmp_path / 'installed'}", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_real_figures_get_the_models_and_the_options_that_they_have(tmp_path: Path) -> None:
    done = figures(
        tmp_path,
        "PAIR=real",
        "SOURCE=org/a",
        "TARGET=org/b",
        "TARGET_LAYER=5",
        "DOCUMENTS=web.jsonl",
        "TOPIC=news.jsonl",
        "REAL_SCRIPTS=real_pair concept_directions maps_compared",
        "ARGS=--quick",
    )
    assert done.returncode == 0, done.stderr
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran ")]
    models = "--out figures-real --source org/a --target org/b"
    assert ran == [
        # It surveys the layers.
        f"ran examples/real_pair.py {models} --documents web.jsonl --topic news.jsonl --quick",
        # It reads no documents and has no layers.
        f"ran examples/concept_directions.py {models} --quick",
        f"ran examples/maps_compared.py {models} --target-layer 5 --documents web.jsonl --quick",
    ]
    usual = figures(tmp_path, "PAIR=real", "REAL_SCRIPTS=maps_compared").stdout
    assert "--source-layer 27 --target-layer 15" in usual


def test_all_real_scripts_exist_and_a_failure_is_named(tmp_path: Path) -> None:
    done = figures(tmp_path, "PAIR=real")
    assert done.returncode != 0
    assert "these made no figure: examples/strength.py" in done.stderr
    ran = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("ran ")]
    assert len(ran) >= 10
    assert all((ROOT / script).is_file() for script in ran)
    # The gallery shows the bundled pair.
    assert not any(line.startswith("ran -m lrt_lens.reproduction") for line in done.stdout.split())


def test_the_bundled_pair_is_the_default(tmp_path: Path) -> None:
    done = figures(tmp_path)
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran ")]
    assert "ran examples/real_pair.py --out figures" in ran
    assert ran[-1] == "ran -m lrt_lens.reproduction figures"
    assert figures(tmp_path, "PAIR=other").returncode != 0
