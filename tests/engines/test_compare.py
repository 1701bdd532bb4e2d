"""``make engines-check`` fails where an engine steers otherwise, and covers every script."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.engines.compare import checked, main

ENGINES = Path(__file__).parent
MAKEFILE = (ENGINES.parent.parent / "Makefile").read_text(encoding="utf-8")
N_ROWS, N_POSITIONS, N_TOKENS = 3, 5, 11


def logits(kind: str) -> list[Tensor]:
    """Return logits [position, token] per row; each kind has its own."""
    seed = {"-1": 1, "0": 2, "1": 3, "plain": 4}[kind]
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N_POSITIONS, N_TOKENS, generator=generator) for _ in range(N_ROWS)]


def written(work: Path, engine: list[Tensor], skip_first: int = 0, **facts: Any) -> dict[str, Any]:
    """Write a task and one reading, and return the case."""
    rows = [{"prompt": [1, 2, 3], "continuation": [4, 5, 6]}] * N_ROWS
    case = {
        "name": "one",
        "block": 2,
        "mode": "add",
        "skip_first": skip_first,
        "files": {"engine": "file"},
        "rows": rows,
    }
    task = json.dumps({"cases": [case], "neutral": [[1, 2, 3]]})
    (work / "task.json").write_text(task)
    ours = {
        f"{i}.{kind}": row
        for kind in ("-1", "0", "1", "plain")
        for i, row in enumerate(logits(kind))
    }
    for i in range(N_ROWS):
        ours[f"{i}.0"][:skip_first] = ours[f"{i}.plain"][:skip_first]
    (work / "expected").mkdir()
    save_file(ours, work / "expected" / "one.safetensors")
    sums = {"plain": [-4.0], "one": [-5.0]}
    (work / "expected" / "neutral.json").write_text(json.dumps(sums))
    reading = {
        "task": hashlib.sha256(task.encode()).hexdigest(),
        "versions": {"engine": "1.0"},
        "how": "",
        "seconds": 1.0,
        "plain": [-4.0],
        "steered": [-5.0],
        "continuations": None,
    }
    folder = work / "readings" / "engine"
    folder.mkdir(parents=True)
    (folder / "one.json").write_text(json.dumps(reading | facts))
    tensors = {str(i): row.contiguous() for i, row in enumerate(engine)}
    save_file(tensors, folder / "one.safetensors")
    return case


def faults(work: Path, engine: list[Tensor], skip_first: int = 0, **facts: Any) -> list[str]:
    case = written(work, engine, skip_first, **facts)
    return checked(work, case, "engine", n_tokens=2)["faults"]


def test_an_engine_that_steers_as_our_hook_does_passes(tmp_path: Path) -> None:
    # Log probabilities and logits are compared alike, whatever constant a logit has.
    engine = [row.log_softmax(-1) + 3 for row in logits("0")]
    assert not faults(tmp_path, engine, continuations=[[4, 5, 6]] * N_ROWS)


@pytest.mark.parametrize(
    ("kind", "name"), [("-1", "before"), ("1", "after"), ("plain", "unsteered")]
)
def test_another_block_and_no_steering_are_faults(tmp_path: Path, kind: str, name: str) -> None:
    found = faults(tmp_path, logits(kind))
    assert "at block 2" in found[0]
    (near,) = [fault for fault in found if f"from {name}" in fault]
    assert near.startswith("5 of 5 positions")
    assert near.endswith("differs by 0")


def test_blocks_that_cannot_be_told_apart_are_a_fault(tmp_path: Path) -> None:
    case = written(tmp_path, logits("0"))
    path = tmp_path / "expected" / "one.safetensors"
    ours = load_file(path)
    save_file(ours | {f"{i}.1": ours[f"{i}.0"].clone() for i in range(N_ROWS)}, path)
    (found,) = checked(tmp_path, case, "engine", n_tokens=2)["faults"]
    assert "5 of 5 positions" in found
    assert "from after" in found


def test_one_unsteered_position_is_a_fault(tmp_path: Path) -> None:
    engine = logits("0")
    engine[1][0] = logits("plain")[1][0]
    found = faults(tmp_path, engine)
    assert "at block 2" in found[0]
    assert any("from unsteered" in fault and "differs by 0" in fault for fault in found)


def test_first_positions_that_must_stay_are_compared_with_the_unsteered_model(
    tmp_path: Path,
) -> None:
    skipping = logits("0")
    for row, plain in zip(skipping, logits("plain"), strict=True):
        row[:2] = plain[:2]
    (tmp_path / "right").mkdir()
    (tmp_path / "wrong").mkdir()
    assert not faults(tmp_path / "right", skipping, skip_first=2)
    assert any("first 2" in fault for fault in faults(tmp_path / "wrong", logits("0"), 2))


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        ({"steered": [-5.2]}, "damage 0.6000, expected 0.5000"),
        ({"steered": [float("nan")]}, "damage nan"),
        ({"continuations": [[4, 5, 7]] * N_ROWS}, "decodes other tokens"),
        ({"task": "another"}, "did not run"),
    ],
)
def test_another_damage_other_tokens_and_an_old_reading_are_faults(
    tmp_path: Path, facts: dict[str, Any], fault: str
) -> None:
    (found,) = faults(tmp_path, logits("0"), **facts)
    assert fault in found


def test_a_damage_within_a_tenth_passes(tmp_path: Path) -> None:
    assert not faults(tmp_path, logits("0"), steered=[-5.09])


def test_a_missing_engine_fails_the_whole_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, logits("0"))
    assert main(tmp_path) == 1  # sae-bench has not run
    assert "FAILED: sae-bench" in capsys.readouterr().err
    results = json.loads((tmp_path / "results.json").read_text())
    assert not results["passed"]
    assert not results["steering"][0]["faults"]


def test_make_runs_every_script() -> None:
    listed = re.search(r"^ENGINES +\?= (.*)$", MAKEFILE, re.MULTILINE)
    scripts = {path.stem.removeprefix("check_") for path in ENGINES.glob("check_*.py")}
    assert listed is not None
    assert set(listed[1].split()) == scripts


@pytest.mark.parametrize("name", ["requirements-vllm.txt", "requirements-engines.txt"])
def test_versions_are_exact(name: str) -> None:
    lines = (ENGINES / name).read_text(encoding="utf-8").splitlines()
    required = [line for line in lines if not line.startswith("#")]
    assert required
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in required)
