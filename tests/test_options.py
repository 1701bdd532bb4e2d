"""Every option of every command: bad values are refused before any work, and names are text."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import module_from_spec, spec_from_file_location
from io import StringIO
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pandas as pd
import pytest

import lrt_lens as lrt
from lrt_lens import _progress
from lrt_lens._messages import lines, one_line, printable
from lrt_lens._numbers import checked_number, checked_seconds, checked_whole
from lrt_lens._refusals import is_refusal
from lrt_lens._terminal import print_table
from lrt_lens.cli import Demo, Fit, Merge, main
from lrt_lens.reproduction import FigureOptions

ROOT = Path(lrt.__file__).parent
COMMANDS = {"demo": Demo, "fit": Fit, "merge": Merge}
BAD_NUMBERS = ["-1", "nan", "inf", "-inf", "x", "", "1e999", "9" * 5000, "²", "True"]


def numeric(kind: type) -> Iterator[tuple[str, list[str]]]:
    """Names of the options that are numbers, and texts that none of them may be."""
    for name, hint in get_type_hints(kind).items():
        kinds = {hint, *get_args(hint)} | {one for part in get_args(hint) for one in get_args(part)}
        if kinds & {int, float} and not hasattr(kind, "UNUSED"):
            yield name, BAD_NUMBERS if name == "seed" else [*BAD_NUMBERS, "0"]


OPTIONS = [
    *((command, name, bad) for command, kind in COMMANDS.items() for name, bad in numeric(kind)),
    ("fit", "shard", ["²/8", "8/8", "-1/8", "1", "a/b", "0/0", "1/" + "9" * 40, "nan/2"]),
    ("fit", "memory_budget", ["0GB", "-1GB", "nan", "lots", "9" * 400 + "TB"]),
    ("fit", "device", ["xyz", "cuda:99", "cpu:x", "meta"]),
    ("fit", "dtype", ["int8", "xyz", "float33", "nn"]),
    ("fit", "moment_dtype", ["int8", "float16"]),
    ("fit", "null", ["maybe", "True"]),
]


def given(command: str, folder: Path) -> list[str]:
    """A command line whose other options are good."""
    out, documents = str(folder / "out"), str(ROOT / "bundled/data/documents.jsonl.gz")
    if command == "merge":
        return ["merge", out, str(folder / "a.safetensors")]
    if command == "demo":
        return ["demo", "--out", out]
    models = ["--source", str(ROOT / "bundled/small"), "--target", str(ROOT / "bundled/large")]
    return ["fit", *models, "--documents", documents, "--out", out]


def test_the_table_has_every_option_that_is_a_number() -> None:
    names = {(command, name) for command, name, _ in OPTIONS}
    for expected in ("n_tokens", "max_document_tokens", "context_length", "alpha", "seed"):
        assert ("fit", expected) in names
    assert {("fit", "checkpoint_every"), ("merge", "alpha"), ("demo", "damage")} <= names
    assert ("demo", "n_random") in names


@pytest.mark.parametrize(("command", "name", "values"), OPTIONS, ids=lambda value: str(value)[:20])
def test_a_bad_value_is_refused_in_one_line_before_a_model_is_loaded(
    command: str,
    name: str,
    values: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(*_: Any, **__: Any) -> None:
        pytest.fail("work began")

    for place in (
        "lrt_lens.models._pair.ModelPair.load",
        "lrt_lens.demo.run_demo",
        "lrt_lens.moments._scale_out.merge_shards",
    ):
        monkeypatch.setattr(place, work)
    for value in values:
        with pytest.raises(SystemExit) as stopped:
            main([*given(command, tmp_path), f"--{name.replace('_', '-')}={value}"])
        assert stopped.value.code in (1, 2), value
        shown = capsys.readouterr()
        assert shown.out == ""
        if stopped.value.code == 1:
            assert shown.err.startswith("error: "), value
            assert shown.err.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_cuda_without_cuda_is_refused_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_cuda(*_: Any, **__: Any) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr("torch.empty", no_cuda)
    with pytest.raises(SystemExit):
        main([*given("fit", tmp_path), "--device", "cuda"])
    assert "error: --device is 'cuda', and PyTorch finds no such device" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(Path("examples").glob("*.py")), ids=lambda path: path.stem)
def test_every_number_of_every_script_is_checked(path: Path) -> None:
    spec = spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    kind = getattr(module, "Options", FigureOptions)
    kind().check_numbers()
    kind().shrunk(()).check_numbers()
    quick = kind(quick=True).shrunk(())
    quick.check_numbers()
    for field in fields(kind):
        default = getattr(kind(), field.name)
        first = default[0] if isinstance(default, tuple) and default else default
        if isinstance(first, bool) or not isinstance(first, int | float):
            continue
        is_layer = "layer" in field.name or "hook" in field.name
        bad: list[Any] = [float("nan"), float("inf")] if isinstance(first, float) else [10**30]
        if field.name not in ("scales", "betas") and not is_layer:
            bad.append(type(first)(-1))
        for value in bad:
            changed = (value,) if isinstance(default, tuple) else value
            with pytest.raises(ValueError, match=f"--{field.name.replace('_', '-')} is "):
                kind(**{field.name: changed}).check_numbers()


# ------------------------------------------------------------------------------------------- Python


@pytest.mark.parametrize("name", ["n_tokens", "context_length", "seed", "lag", "block_rows"])
@pytest.mark.parametrize("value", [-1, True, 2**63, pytest.param(10**5000, id="huge")])
def test_settings_of_a_harvest_refuse_numbers_out_of_their_range(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is "):
        lrt.HarvestSettings(**{name: value})


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1.5, "3", None, True, -1, 2**63, 1j])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="n is .*; expected a whole number of at least 0"):
        checked_whole("n", value, least=0)


def test_numbers_of_any_type_are_read() -> None:
    assert checked_whole("n", np.int32(7), least=0) == 7
    assert checked_whole("n", 1e6, least=0) == 1_000_000
    assert checked_number("x", np.float32(0.5), above=0.0) == 0.5


@pytest.mark.parametrize(
    "value", [0, -1.0, NAN, INF, True, "5", None, pytest.param(10**5000, id="huge")]
)
def test_seconds_between_checkpoints_are_checked(value: Any) -> None:
    with pytest.raises(ValueError, match="checkpoint_every is .*; expected seconds above 0"):
        checked_seconds(value)


# -------------------------------------------------------------------------------------------- names

NAME = "[bold]a\x1b[31m\u202eb\nc[/bold]"


def test_names_are_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(NAME, pd.DataFrame({NAME: [NAME, "[red]x"], "n": [1.0, float("nan")]}))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert shown.count("[bold]a\\x1b[31m\\u202eb\\nc[/bold]") == 3
    assert "[red]x" in shown
    assert one_line("a\n  b\x07") == "a b\\x07"
    assert lines("a\nb\x1b[2J") == "a\nb\\x1b[2J"
    assert printable("é漢 😀") == "é漢 😀"


def test_a_bar_in_a_log_writes_lines_and_in_a_terminal_redraws_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    log, terminal = StringIO(), Terminal()
    monkeypatch.setattr(_progress, "LOG_SECONDS", 0.02)
    for stream in (log, terminal):
        monkeypatch.setattr(sys, "stderr", stream)
        for _ in _progress.tqdm(range(20), desc=NAME, leave=False):
            time.sleep(0.01)
    shown = log.getvalue()
    assert "\r" not in shown
    assert "\x1b" not in shown
    assert 1 <= shown.count("\n") <= 12
    assert shown.startswith("[bold]a\\x1b[31m\\u202eb\\nc[/bold]: ")
    assert "\r" in terminal.getvalue()
    assert "\x1b[31m" not in terminal.getvalue()
    monkeypatch.setattr(_progress, "LOG_SECONDS", 30.0)
    log.truncate(0)
    monkeypatch.setattr(sys, "stderr", log)
    for _ in _progress.tqdm(range(20), desc="short"):
        pass
    assert not log.getvalue().strip("\0")


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("raised", "is_shown_as_line"),
    [
        (AssertionError("impossible"), False),
        (RuntimeError("shape"), False),
        (KeyError("x"), False),
        (TypeError("no iterable"), False),
        (OSError(28, "No space left on device"), True),
        (PermissionError(13, "Permission denied"), True),
        (IsADirectoryError(21, "Is a directory"), True),
        (MemoryError(), True),
        (ImportError("accelerate is missing"), True),
        (lrt.errors.FileFormatError("broken\nfile \x1b[31m"), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_bug_keeps_its_traceback_and_anything_else_is_one_line(
    raised: Exception,
    is_shown_as_line: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**_: Any) -> None:
        raise raised

    monkeypatch.setattr("lrt_lens.demo.run_demo", fail)
    kind: type[BaseException] = SystemExit if is_shown_as_line else type(raised)
    with pytest.raises(kind) as stopped:
        main(["demo", "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().err
    if is_shown_as_line:
        assert isinstance(stopped.value, SystemExit)
        assert stopped.value.code == 1
        assert shown.startswith("error: ")
        assert shown.count("\n") == 1
        assert "\x1b" not in shown


def test_what_the_library_raises_on_purpose_is_no_bug() -> None:
    calls = {
        lambda: lrt.HarvestSettings(n_tokens=-1): True,
        lambda: lrt.harvest(pair=1, documents=[], n_token=2): True,
        lambda: int("²"): False,
        lambda: len(5): False,  # type: ignore[arg-type]
        lambda: pd.DataFrame({"a": [1]}).set_axis(["b", "c"], axis=1): False,
    }
    for call, expected in calls.items():
        with pytest.raises((ValueError, TypeError)) as caught:
            call()
        assert is_refusal(caught.value) is expected, caught.value


# ---------------------------------------------------------------------------------------- processes

STANDING_IN = """
import os, sys, time
from types import SimpleNamespace
import lrt_lens.demo._run as run_module, lrt_lens.demo._report as report_module
from lrt_lens.cli import main
def run_demo(**_):
    sys.stderr.write("running\\n"); sys.stderr.flush()
    {body}
run_module.run_demo = run_demo
main(["demo", "--out", {out!r}])
"""


def process(body: str, out: Path, **options: Any) -> "subprocess.Popen[str]":
    code = STANDING_IN.format(body=body, out=str(out))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([sys.executable, "-c", code], **pipes)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_is_one_line_and_its_status(tmp_path: Path, name: str, status: int) -> None:
    child = process("time.sleep(60)", tmp_path / "out")
    assert child.stderr is not None
    assert child.stderr.readline() == "running\n"
    child.send_signal(getattr(signal, name))
    _, shown = child.communicate(timeout=60)
    assert child.returncode == status
    assert shown.count("\n") == 1
    assert "no incomplete file was left behind" in shown


@pytest.mark.slow
def test_an_ignored_hang_up_stays_ignored(tmp_path: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    body = "time.sleep(3); raise OSError('the end')"
    child = process(body, tmp_path / "out", preexec_fn=ignore)
    assert child.stderr is not None
    assert child.stderr.readline() == "running\n"
    child.send_signal(signal.SIGHUP)
    _, shown = child.communicate(timeout=60)
    assert (child.returncode, shown) == (1, "error: the end\n")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["pipe", "full", "closed", "limit"])
def test_an_output_that_is_closed_or_full_is_one_line(tmp_path: Path, case: str) -> None:
    options: dict[str, Any] = {}
    body = "[sys.stdout.write('a line\\n') for _ in range(100_000)]; raise OSError('the end')"
    if case == "full":
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full")
        options["stdout"] = open("/dev/full", "w")  # noqa: SIM115
    if case == "closed":
        options |= {"stdout": None, "preexec_fn": lambda: os.close(1)}
    if case == "limit":
        import resource

        # CPython would cut the bytecode of the modules that the child imports, for all processes.
        options["env"] = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        options["preexec_fn"] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        body = f"open({str(tmp_path / 'big')!r}, 'w').write('a' * 10_000)"
    child = process(body, tmp_path / "out", **options)
    if case == "pipe":
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.close()
    assert child.stderr is not None
    shown = child.stderr.read()
    child.wait(timeout=60)
    assert child.returncode == 1, shown
    assert shown.splitlines()[0] == "running"
    assert len(shown.splitlines()) == 2, shown
    assert "Traceback" not in shown
