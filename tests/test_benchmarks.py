"""Benchmarks run with tiny shapes; the numbers of such a run mean nothing."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

DIFFERENCES = {
    "peak_memory_10x_tokens",
    "alignment_tokens_per_second_over_tokenizer",
    "alignment_share_of_harvest",
}
"""Benchmarks that measure a difference (of memory before and after, of time with and without).

With shapes this tiny, noise may make such a difference 0 or negative.
"""
ROOT = Path(__file__).parent.parent


def run(*command: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_accelerator_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    run("benchmarks.gpu", "--device", "cpu", "--quick", "--out", str(tmp_path / "gpu.json"))
    results = json.loads((tmp_path / "gpu.json").read_text())
    (case,) = results["cases"]
    assert case["tokens_per_second"] > 0
    assert case["overhead"] > 0
    assert (
        results["accumulation"]["scatter_float64"]
        < 1e-12
        < results["accumulation"]["scatter_float32"]
        < 1e-5
    )


@pytest.mark.slow
def test_every_benchmark_of_ratios_runs(tmp_path: Path) -> None:
    run("benchmarks.run", "--quick", "--threads", "1", "--out", str(tmp_path / "results.json"))
    results = json.loads((tmp_path / "results.json").read_text())["benchmarks"]
    assert len(results) >= 10
    assert not [result["name"] for result in results if "error" in result]
    assert all(math.isfinite(result["value"]) for result in results)
    assert not [
        result["name"]
        for result in results
        if result["name"] not in DIFFERENCES and result["value"] <= 0
    ]
