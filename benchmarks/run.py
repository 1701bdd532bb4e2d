"""Run the benchmarks and write results.json; see README.md (``make bench`` does the same).

    # all, on 2 cores; writes benchmarks/results.json
    python -m benchmarks.run
    # some; their entries in results.json are replaced
    python -m benchmarks.run --only seconds_per_map
    # tiny shapes, to see that they run; writes nothing without --out
    python -m benchmarks.run --quick

Each benchmark is a function ``(Settings) -> Measurement`` with the name of its results. A value is
printed and written as soon as it is measured, so that an interrupted run keeps what it has.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

if TYPE_CHECKING:
    from benchmarks.measuring import Measurement, Settings

SCHEMA_VERSION = 1
RESULTS = Path(__file__).parent / "results.json"

Name = Literal[
    "harvest_overhead_one_pair",
    "harvest_overhead_all_pairs",
    "survey_overhead_all_pairs",
    "fit_speedup_over_adam",
    "sweep_speedup_over_adam",
    "fit_time_over_sklearn",
    "peak_memory_10x_tokens",
    "seconds_per_map",
    "all_solvers_time_over_ridge",
    "learning_curve_over_fit",
    "diff_seconds_1024",
    "two_way_speedup_over_adam",
    "two_way_objective_over_adam",
    "two_rank_speedup",
    "resume_cost",
    "first_block_files_over_blocks",
    "reading_files_over_blocks",
    "cache_write_over_safetensors",
    "states_memory_10x_files",
    "states_throughput_over_reading",
    "sae_transfer_seconds_16k",
    "refit_seconds_16k",
    "evaluate_sae_over_saelens",
    "alignment_tokens_per_second_over_tokenizer",
    "alignment_share_of_harvest",
    "aligner_build_over_loading",
    "steered_generate_over_plain",
    "evaluate_steering_per_draw",
]
MODULES: dict[Name, str] = {
    "harvest_overhead_one_pair": "harvesting",
    "harvest_overhead_all_pairs": "harvesting",
    "survey_overhead_all_pairs": "harvesting",
    "fit_speedup_over_adam": "fitting",
    "sweep_speedup_over_adam": "sweeping",
    "fit_time_over_sklearn": "against_sklearn",
    "peak_memory_10x_tokens": "memory",
    "seconds_per_map": "sweeping",
    "all_solvers_time_over_ridge": "solvers",
    "learning_curve_over_fit": "learning",
    "diff_seconds_1024": "diffing",
    "two_way_speedup_over_adam": "two_way",
    "two_way_objective_over_adam": "two_way",
    "two_rank_speedup": "scaling",
    "resume_cost": "scaling",
    "first_block_files_over_blocks": "starting",
    "reading_files_over_blocks": "starting",
    "cache_write_over_safetensors": "caching",
    "states_memory_10x_files": "states",
    "states_throughput_over_reading": "states",
    "sae_transfer_seconds_16k": "sae_transfer",
    "refit_seconds_16k": "refitting",
    "evaluate_sae_over_saelens": "sae_evaluation",
    "alignment_tokens_per_second_over_tokenizer": "aligning",
    "alignment_share_of_harvest": "aligning",
    "aligner_build_over_loading": "aligning",
    "steered_generate_over_plain": "steering",
    "evaluate_steering_per_draw": "steering",
}
"""The module of each benchmark, in the order in which they run."""


def main(
    only: tuple[Name, ...] = (), quick: bool = False, out: Path | None = None, threads: int = 2
) -> None:
    """Measure the claims of the documentation, as ratios of two calls timed in turns.

    Args:
        only: benchmarks to run; by default all.
        quick: use tiny shapes and few tokens; the numbers then mean nothing.
        out: file to write; by default benchmarks/results.json, or none with --quick.
        threads: number of threads of both sides of every ratio.
    """
    _prepare(threads)
    from benchmarks.machine import describe_machine, load_average
    from benchmarks.measuring import Settings

    machine, load = describe_machine(threads), load_average()
    if load > 0.5:
        print(
            f"note: the load average is {load}; another program is running, so ratios are rough",
            file=sys.stderr,
        )
    path = out or (None if quick else RESULTS)
    names = [name for name in MODULES if not only or name in only]
    records: list[dict[str, Any]] = []
    interrupted = False
    try:
        for name in names:
            print(f"[{len(records) + 1}/{len(names)}] {name} …", file=sys.stderr, flush=True)
            records.append(_run(name, Settings(threads=threads, quick=quick), load))
            # Saved before it is printed: a value that was seen is in the file.
            if path is not None:
                write_results(path, records, machine, quick)
            print(one_line(records[-1]), flush=True)
    except KeyboardInterrupt:
        interrupted = True
        print(
            f"interrupted: {len(records)} of {len(names)} benchmarks are measured; measure the "
            f"others with --only {' '.join(names[len(records) :])}",
            file=sys.stderr,
        )
    if path is not None and records:
        # Once more, because Ctrl-C may have come between a measurement and its writing.
        write_results(path, records, machine, quick)
        print(f"written: {path}")
    _show(records, quick)
    if interrupted:
        raise SystemExit(130)  # as a shell reports a program that Ctrl-C ended
    if any("error" in record for record in records):
        raise SystemExit(1)


def _prepare(threads: int) -> None:
    """Set the number of threads.

    The environment is set before torch, numpy and scikit-learn are imported. The number of torch's
    threads is set again after the import of transformers, which changes it.
    """
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    import transformers
    from transformers import GPTNeoXForCausalLM  # noqa: F401

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(threads)


def _run(name: Name, settings: "Settings", load: float) -> dict[str, Any]:
    """One entry of results.json; if the benchmark fails, the entry has its error."""
    from benchmarks.measuring import check_threads

    start = time.perf_counter()
    try:
        benchmark: Callable[[Settings], Measurement] = getattr(
            import_module(f"benchmarks.{MODULES[name]}"), name
        )
        check_threads(settings.threads)
        measurement = benchmark(settings)
        check_threads(settings.threads)
    except Exception as error:  # no error may discard the other measurements of a long run
        traceback.print_exc()
        return {"name": name, "error": f"{type(error).__name__}: {error}", "date": _now()}
    fields = asdict(measurement)
    direction = "at most" if fields.pop("at_most") else "at least"
    return fields | {
        "direction": direction,
        "met": measurement.met,
        "date": _now(),
        "took_seconds": time.perf_counter() - start,
        "load_average_at_start": load,
    }


def write_results(
    path: Path, records: Sequence[dict[str, Any]], machine: dict[str, Any], quick: bool
) -> None:
    """Write the records to a file.

    Entries of other benchmarks stay if they were measured on the same machine and versions.
    """
    from lrt_lens._files import write_atomically

    earlier = json.loads(path.read_text()) if path.exists() else {}
    same = (
        earlier.get("machine") == machine
        and earlier.get("quick") == quick
        and earlier.get("schema_version") == SCHEMA_VERSION
    )
    by_name = {
        record["name"]: record for record in [*(earlier["benchmarks"] if same else []), *records]
    }
    results = {
        "schema_version": SCHEMA_VERSION,
        "date": _now(),
        "quick": quick,
        "machine": machine,
        "benchmarks": [_rounded(by_name[name]) for name in MODULES if name in by_name],
    }
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def one_line(record: dict[str, Any]) -> str:
    """Return one entry of results.json as a line of text: value, target, met, seconds."""
    if "error" in record:
        return f"{record['name']}: failed ({record['error']})"
    return (
        f"{record['name']}: {record['value']:.3g}, target {_target(record)}, "
        f"{'met' if record['met'] else 'missed'}, {record['took_seconds']:.0f} s"
    )


def _target(record: dict[str, Any]) -> str:
    """Return the target of an entry with its direction, such as ``≤ 1.1``."""
    return f"{'≤' if record['direction'] == 'at most' else '≥'} {record['target']:,g}"


def _show(records: Sequence[dict[str, Any]], quick: bool) -> None:
    """Print the results as a table."""
    from rich.console import Console
    from rich.table import Table

    title = "--quick: these numbers mean nothing" if quick else None
    table = Table("benchmark", "ratio", "target", "met", "took", title=title)
    for record in records:
        if "error" in record:
            table.add_row(record["name"], "–", "–", "[red]failed[/red]", "–")
            continue
        met = "[green]yes[/green]" if record["met"] else "[red]no[/red]"
        table.add_row(
            record["name"],
            f"{record['value']:.3g}",
            _target(record),
            met,
            f"{record['took_seconds']:.0f} s",
        )
    console = Console()
    console.print(table)
    for record in records:
        for note in record.get("notes", ()):
            console.print(f"{record['name']}: {note}", style="yellow")


def _rounded(value: Any) -> Any:
    """The value with all its floats rounded to six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _now() -> str:
    """The current time in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    tyro.cli(main)
