"""From the command line to the files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrt_lens.reproduction import FigureOptions, MissingInputError, Reproduction, run

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
    assert {path.name for path in tmp_path.iterdir()} == {"stitched_loss.html", "stitched_loss.json"}


@pytest.mark.parametrize(("error", "status"), [(MissingInputError("no model"), 2), (KeyboardInterrupt(), 130)])
def test_what_is_missing_or_stopped_leaves_no_file(tmp_path: Path, error: BaseException, status: int) -> None:
    def reproduce(options: FigureOptions) -> Reproduction:
        raise error

    with pytest.raises(SystemExit) as caught:
        run(reproduce, ["--out", str(tmp_path)])
    assert caught.value.code == status
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
    for option in ("source", "target", "sae", "documents", "n-tokens", "out", "seed", "device", "quick"):
        assert f"--{option}" in shown
