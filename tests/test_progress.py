"""Bars in a log: few lines, whatever is nested, and none of other libraries."""

import re
import sys
import time
from io import StringIO
from pathlib import Path

import pytest

import lrt_lens as lrt
from lrt_lens import _progress
from lrt_lens.models._loading import quiet_in_logs


def test_nested_bars_in_a_log_write_no_more_lines_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    log = StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(_progress, "LOG_SECONDS", 0.1)
    monkeypatch.setattr(_progress, "_LOG", _progress._Log())
    start = time.monotonic()
    for _ in _progress.tqdm(range(4), desc="outer", leave=False):
        for _ in _progress.tqdm(range(3), desc="middle", leave=False):
            for _ in _progress.tqdm(range(12), desc="inner", leave=False):
                time.sleep(0.02)
    seconds = time.monotonic() - start
    n_lines = log.getvalue().count("\n")
    assert 3 <= n_lines <= seconds / 0.1 + 1, log.getvalue()
    # A bar that stays ends with a line of its own, however short ago another was written.
    log.truncate(0)
    for _ in _progress.tqdm(range(8), desc="stays"):
        time.sleep(0.02)
    assert log.getvalue().strip("\0").splitlines()[-1].startswith("stays: 100%")


def test_every_bar_of_the_package_is_one_that_suits_a_log() -> None:
    package = Path(lrt.__file__).parent
    own = [
        str(path.relative_to(package))
        for path in sorted(package.rglob("*.py"))
        if re.search(r"^\s*(from|import) tqdm", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert own == ["_log_stream.py", "_progress.py"]


def test_loading_a_model_writes_no_bar_into_a_log(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import logging as bars

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    for stream, is_enabled in ((StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        with quiet_in_logs():
            assert bars.is_progress_bar_enabled() is is_enabled
        assert bars.is_progress_bar_enabled()
    monkeypatch.setattr(sys, "stderr", StringIO())
    lrt.HookedModel.load(model_folder)
    assert not sys.stderr.getvalue()  # type: ignore[attr-defined]
