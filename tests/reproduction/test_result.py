"""The result of a script, and that it is written whole or not at all."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrt_lens.reproduction import Compared, Reproduction
from lrt_lens.reproduction._picture import THUMBNAIL_BYTES

Make = Callable[..., Reproduction]
BROWSER = any(
    map(
        shutil.which,
        ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"),
    )
)


@pytest.mark.skipif(not BROWSER, reason="no Chrome or Chromium here")
def test_all_files_are_written_and_the_pictures_are_pictures(made: Make, tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    written = made().save(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(
        f"stitched_loss{ending}" for ending in written
    )
    assert list(written)[-1] == ".json"
    assert set(written) == {".html", ".png", ".thumbnail.png", ".json"}
    for ending in (".png", ".thumbnail.png"):
        assert written[ending].read_bytes().startswith(b"\x89PNG")
    assert written[".thumbnail.png"].stat().st_size <= THUMBNAIL_BYTES


@pytest.mark.usefixtures("no_pictures")
def test_the_json_holds_the_papers_value_beside_ours(made: Make, tmp_path: Path) -> None:
    record = json.loads(made().save(tmp_path)[".json"].read_text(encoding="utf-8"))
    (row,) = record["compared"]
    assert (row["paper"], row["ours"], row["low"], row["control"]) == (3.99, 4.256, 4.2, 6.0)
    assert record["verdict"] == "holds"
    assert record["says"] == "Little."
    assert record["tables"]["All"] == [{"route": "A→B", "ce": None}]
    assert not record["quick"]


@pytest.mark.usefixtures("no_pictures")
def test_the_page_says_what_was_found_and_loads_nothing(made: Make, tmp_path: Path) -> None:
    page = made(claim="<b>It</b> is low.").save(tmp_path)[".html"].read_text(encoding="utf-8")
    assert "&lt;b&gt;It&lt;/b&gt; is low." in page
    assert "paper: 3.99" in page
    assert "mean 6.00" in page
    assert "default-src 'none'" in page


def test_without_a_browser_the_numbers_are_written_and_one_line_names_the_remedy(
    made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no browser\nmany more lines")

    (tmp_path / "stitched_loss.png").write_bytes(b"of an earlier run")
    monkeypatch.setattr("plotly.io.write_images", fail)
    with caplog.at_level(logging.WARNING):
        written = made().save(tmp_path)
    assert set(written) == {".html", ".json"}
    assert not (tmp_path / "stitched_loss.png").exists()
    (warning,) = caplog.messages
    assert "no browser" in warning
    assert "plotly_get_chrome" in warning
    assert "\n" not in warning


@pytest.mark.parametrize("step", ["write_results", "write_pictures", "_moved"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_run_leaves_what_was_there(
    made: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: type[BaseException],
) -> None:
    (tmp_path / "stitched_loss.json").write_text("before")

    def stop(*_: Any) -> None:
        raise error

    monkeypatch.setattr("lrt_lens.reproduction._result.write_pictures", lambda *_: False)
    monkeypatch.setattr(f"lrt_lens.reproduction._result.{step}", stop)
    with pytest.raises(error):
        made().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["stitched_loss.json"]
    assert (tmp_path / "stitched_loss.json").read_text() == "before"


@pytest.mark.usefixtures("no_pictures")
def test_a_failure_while_files_are_moved_brings_the_old_ones_back(
    made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace = Path.replace

    def fail_at_json(path: Path, target: Path) -> Path:
        if (
            path.suffix == ".json"
            and path.parent.parent == tmp_path
            and Path(target).parent == tmp_path
        ):
            raise OSError("disk full")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail_at_json)
    with pytest.raises(OSError, match="disk full"):
        made(title="Another").save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_verdict_or_a_paper_of_no_kind_is_refused(made: Make, unchecked: None) -> None:
    with pytest.raises(ValueError, match="holds with a caveat"):
        made(verdict="perhaps")
    with pytest.raises(ValueError, match="L-Cross"):
        made(paper="Nature, figure 1")
    with pytest.raises(ValueError, match="0 figures"):
        made(figures={})


def test_numbers_are_told_with_their_interval() -> None:
    assert Compared("x", 0.5, low=0.4, high=0.6).ours_text == "0.500 (0.400 to 0.600)"
    assert Compared("x", 0.5, low=float("nan"), high=0.6).ours_text == "0.500"
    assert Compared("x", 0.5).paper_text == "none"
    assert Compared("x", 0.5, control=0.1).control_text == "control 0.100"


@pytest.mark.usefixtures("no_pictures")
def test_further_pages_are_of_the_same_run(made: Make, tmp_path: Path) -> None:
    made(pages={"7": "<p>seven", "8": "<p>eight"}).save(tmp_path)
    made(pages={"9": "<p>nine"}).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "stitched_loss-9.html",
        "stitched_loss.html",
        "stitched_loss.json",
    ]
