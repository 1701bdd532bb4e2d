"""Benchmarks run with tiny shapes, whose numbers mean nothing; a run keeps what it measured."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import run as runner
from benchmarks.measuring import Measurement, Settings

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
    assert set(case["works"]) == {"proportional", "one_pair", "survey"}
    for work in case["works"].values():
        assert work["tokens_per_second"] > 0
        assert work["overhead"] > 0
    assert (
        results["accumulation"]["scatter_float64"]
        < 1e-12
        < results["accumulation"]["scatter_float32"]
        < 1e-5
    )


def test_split_products_have_the_accuracy_of_float32() -> None:
    """The maps' errors in docs/design.md: three TF32 products, or six of bfloat16, are enough."""
    from benchmarks.products import LARGEST_ERROR, SCHEMES, product_of, ridge_weights, streams

    x, y = streams(20_000, seed=1)
    exact = ridge_weights(x, y, torch.matmul, torch.float64)
    errors = {
        name: float(
            (
                ridge_weights(x, y, product_of(name, tensor_cores=False), torch.float32) - exact
            ).norm()
            / exact.norm()
        )
        for name in SCHEMES
    }
    accurate = {name for name, error in errors.items() if error <= LARGEST_ERROR}
    assert accurate == {"float32", "tf32, 2 terms, 3 products", "bfloat16, 3 terms, 6 products"}
    assert errors["tf32, 2 terms, 3 products"] < 2 * errors["float32"]
    # One product of rounded factors costs three digits.
    assert errors["tf32"] > 100 * errors["float32"]


@pytest.mark.slow
@pytest.mark.minutes
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


class TestAnInterruptedRun:
    """Values are printed and saved as they are measured."""

    @pytest.fixture
    def measured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., tuple[int, list[dict[str, Any]]]]:
        """Return a function that runs benchmarks of its own: (exit status, entries written)."""
        monkeypatch.setattr(runner, "_prepare", lambda threads: None)

        def run_of(**benchmarks: Callable[[Settings], Measurement]) -> Any:
            module = ModuleType("benchmarks.of_this_test")
            for name, benchmark in benchmarks.items():
                setattr(module, name, benchmark)
            monkeypatch.setitem(sys.modules, module.__name__, module)
            monkeypatch.setattr(runner, "MODULES", dict.fromkeys(benchmarks, "of_this_test"))
            out, status = tmp_path / "results.json", 0
            try:
                runner.main(quick=True, out=out, threads=torch.get_num_threads())
            except SystemExit as stopped:
                status = stopped.code
            entries = json.loads(out.read_text())["benchmarks"] if out.exists() else []
            return status, entries

        return run_of

    @staticmethod
    def of(name: str, value: float) -> Callable[[Settings], Measurement]:
        return lambda _: Measurement(name, value, target=2.0, at_most=True, what="", raw={})

    @staticmethod
    def stop(_: Settings) -> Measurement:
        raise KeyboardInterrupt

    def test_keeps_what_was_measured_before_the_interrupt(
        self, measured: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, entries = measured(a=self.of("a", 1.0), b=self.stop, c=self.of("c", 3.0))
        assert status == 130
        assert [(entry["name"], entry["value"]) for entry in entries] == [("a", 1.0)]
        printed = capsys.readouterr()
        assert "a: 1, target ≤ 2, met, 0 s" in printed.out
        assert "--only b c" in printed.err

    def test_writes_a_value_before_the_next_benchmark_starts(
        self, measured: Any, tmp_path: Path
    ) -> None:
        def second(_: Settings) -> Measurement:
            (entry,) = json.loads((tmp_path / "results.json").read_text())["benchmarks"]
            return self.of("b", entry["value"] + 1)(Settings())

        status, entries = measured(a=self.of("a", 1.0), b=second)
        assert (status, [entry["value"] for entry in entries]) == (0, [1.0, 2.0])

    def test_interrupted_at_once_it_writes_nothing(self, measured: Any) -> None:
        assert measured(a=self.stop) == (130, [])

    def test_a_failed_benchmark_loses_no_other(
        self, measured: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fails(_: Settings) -> Measurement:
            raise RuntimeError("no such thing")

        status, entries = measured(a=self.of("a", 1.0), b=fails, c=self.of("c", 3.0))
        assert status == 1
        assert [entry["name"] for entry in entries] == ["a", "b", "c"]
        assert entries[1]["error"] == "RuntimeError: no such thing"
        assert "b: failed (RuntimeError: no such thing)" in capsys.readouterr().out
