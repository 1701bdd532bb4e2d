"""From the command line of a script to its files."""

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import lrt_lens as lrt
from lrt_lens.errors import (
    FileFormatError,
    HookPointError,
    MismatchError,
    NonFiniteError,
    TooFewDocumentsError,
)
from lrt_lens.reproduction import FigureOptions, MissingInputError, Reproduction, run
from lrt_lens.reproduction._script import given_options

pytestmark = pytest.mark.usefixtures("no_pictures")
Make = Callable[..., Reproduction]


def test_options_reach_the_script_and_the_files_are_written(made: Make, tmp_path: Path) -> None:
    seen: list[FigureOptions] = []

    def reproduce(options: FigureOptions) -> Reproduction:
        seen.append(options)
        return made()

    found = run(reproduce, ["--seed", "3", "--quick", "--out", str(tmp_path)])
    assert seen == [FigureOptions(seed=3, quick=True, out=tmp_path, n_tokens=6_000)]
    assert found.quick
    assert {path.name for path in tmp_path.iterdir()} == {
        "stitched_loss.html",
        "stitched_loss.json",
    }


@dataclass(frozen=True)
class Narrow(FigureOptions):
    UNUSED: ClassVar = frozenset({"sae", "n_tokens"})


REFUSED = (
    MissingInputError,
    FileFormatError,
    HookPointError,
    MismatchError,
    NonFiniteError,
    TooFewDocumentsError,
)


@pytest.mark.parametrize(
    ("error", "status"), [*((kind("no\nmodel"), 2) for kind in REFUSED), (KeyboardInterrupt(), 130)]
)
def test_what_is_refused_or_stopped_leaves_one_line_and_no_file(
    tmp_path: Path, error: BaseException, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    def reproduce(options: FigureOptions) -> Reproduction:
        raise error

    with pytest.raises(SystemExit) as caught:
        run(reproduce, ["--out", str(tmp_path)])
    assert caught.value.code == status
    assert caplog.messages == [
        "error: no model" if status == 2 else "interrupted; no file was written"
    ]
    assert not list(tmp_path.iterdir())


def test_what_a_function_of_the_library_refuses_is_one_line(
    tmp_path: Path, unchecked: None, caplog: pytest.LogCaptureFixture
) -> None:
    def reproduce(options: FigureOptions) -> Reproduction:
        lrt.harvest(options.pair(), options.texts(), n_tokens=-options.n_tokens)
        raise AssertionError("not refused")

    with pytest.raises(SystemExit) as caught:
        run(reproduce, ["--n-tokens", "3", "--out", str(tmp_path)])
    assert caught.value.code == 2
    assert caplog.records[-1].levelno == logging.ERROR
    assert caplog.messages[-1].startswith("error: n_tokens is -3")


def wrong_shape(make: Make) -> None:
    np.add(np.ones(2), np.ones(3))


def wrong_figure(make: Make) -> None:
    make(verdict="perhaps")


@pytest.mark.parametrize("bug", [wrong_shape, wrong_figure])
def test_a_bug_keeps_its_traceback(
    bug: Callable[[Make], None], made: Make, tmp_path: Path, unchecked: None
) -> None:
    def reproduce(options: FigureOptions) -> Reproduction:
        bug(made)
        raise AssertionError("no bug")

    with pytest.raises(ValueError):  # noqa: PT011 (each says something else)
        run(reproduce, ["--out", str(tmp_path)])


def test_a_device_that_is_not_there_is_refused_before_any_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def reproduce(options: FigureOptions) -> Reproduction:
        raise AssertionError("began to work")

    with pytest.raises(SystemExit) as caught:
        run(reproduce, ["--device", "cuda:99", "--out", str(tmp_path)])
    assert caught.value.code == 2
    assert "--device 'cuda:99'" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--sae=a"], "--sae:"),
        (["--n_tokens", "120000"], "--n-tokens:"),
        (["--n-tokens", "7", "--sae", "a"], "--n-tokens, --sae:"),
    ],
)
def test_an_option_that_the_script_does_not_read_is_refused(
    arguments: list[str], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    def reproduce(options: Narrow) -> Reproduction:
        raise AssertionError("began to work")

    with pytest.raises(SystemExit) as caught:
        run(reproduce, arguments)
    assert caught.value.code == 2
    (line,) = caplog.messages
    assert line.startswith(f"error: {named}")


def test_quick_leaves_what_was_given_at_its_default(made: Make, tmp_path: Path) -> None:
    seen: list[FigureOptions] = []

    def reproduce(options: FigureOptions) -> Reproduction:
        seen.append(options)
        return made()

    run(reproduce, ["--quick", "--n-tokens", "120000", "--out", str(tmp_path)])
    assert seen[0].n_tokens == 120_000


def test_options_are_found_on_a_command_line_in_all_their_forms() -> None:
    names = ["n_tokens", "quick", "sae", "out", "seed"]
    assert given_options(names, ["--n-tokens", "3", "--no-quick", "--sae=a-b=c", "-h"]) == {
        "n_tokens",
        "quick",
        "sae",
    }
    assert given_options(names, ["--n_tokens=3", "--outside", "seed"]) == {"n_tokens"}


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    ("name", "is_written"),
    [("stitched_loss.json", True), ("stitched_loss.html", True), (None, False)],
)
def test_an_interrupt_while_files_are_moved_is_told_as_it_ends(
    made: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    earlier: bool,
    name: str | None,
    is_written: bool,
) -> None:
    """One interrupt waits until all files are moved; a second one restores the earlier files."""
    if earlier:
        made(title="Earlier").save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    move = Path.replace

    def interrupted(path: Path, target: Path) -> Path:
        if (
            Path(target).parent == tmp_path
            and path.parent.name.startswith(".stitched_loss.")
            and path.name == (name or "stitched_loss.json")
        ):
            for _ in range(1 if name else 2):
                os.kill(os.getpid(), signal.SIGINT)
        return move(path, target)

    def reproduce(options: FigureOptions) -> Reproduction:
        return made()

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(SystemExit) as caught:
        run(reproduce, ["--out", str(tmp_path)])
    assert caught.value.code == 130
    assert caplog.messages == [
        f"interrupted; all files were written to {tmp_path}"
        if is_written
        else "interrupted; no file was written"
    ]
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(after) == (
        {"stitched_loss.html", "stitched_loss.json"} if is_written else set(before)
    )
    assert (after == before) is not is_written


def test_a_disk_that_fills_up_is_one_line(
    made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def reproduce(options: FigureOptions) -> Reproduction:
        return made()

    monkeypatch.setattr("lrt_lens.reproduction._result.write_results", full)
    with pytest.raises(SystemExit) as caught:
        run(reproduce, ["--out", str(tmp_path)])
    assert caught.value.code == 2
    assert caplog.messages == ["error: --out: [Errno 28] No space left on device"]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def reproduce(options: FigureOptions) -> Reproduction:
        raise AssertionError("began to work")

    with pytest.raises(SystemExit) as caught:
        run(reproduce, ["--out", str(tmp_path / "file" / "figures")])
    assert caught.value.code == 2


def test_every_script_has_the_same_options(capsys: Any) -> None:
    def reproduce(options: FigureOptions) -> Reproduction:
        raise AssertionError

    with pytest.raises(SystemExit):
        run(reproduce, ["--help"])
    shown = capsys.readouterr().out
    for option in (
        "source",
        "target",
        "sae",
        "documents",
        "n-tokens",
        "out",
        "seed",
        "device",
        "quick",
    ):
        assert f"--{option}" in shown
