"""The gallery is a function of the scripts' measurements, and the committed page is its result."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lrt_lens.errors import FileFormatError
from lrt_lens.reproduction import FigureOptions, Reproduction
from lrt_lens.reproduction._gallery import main, page, read_summary, write_gallery
from lrt_lens.reproduction._picture import THUMBNAIL_BYTES

ROOT = Path(__file__).parent.parent.parent
Make = Callable[..., Reproduction]


@pytest.mark.usefixtures("no_pictures")
def test_numbers_of_the_files_stand_on_the_page(made: Make, tmp_path: Path) -> None:
    figures, readme, images = (
        tmp_path / "figures",
        tmp_path / "examples" / "README.md",
        tmp_path / "docs" / "images",
    )
    made().save(figures)
    (figures / "stitched_loss.thumbnail.png").write_bytes(b"small")
    write_gallery(figures, readme, images)
    text = readme.read_text(encoding="utf-8")
    assert "| A→B, nats | 3.99 | 4.26 (4.20 to 4.31) | mean 6.00 |" in text
    assert "![Loss](../docs/images/stitched_loss.png)" in text
    assert "`python examples/stitched_loss.py`" in text
    assert "**holds**" in text
    assert (images / "stitched_loss.png").read_bytes() == b"small"


@pytest.mark.usefixtures("no_pictures")
def test_a_figure_that_was_not_made_again_keeps_its_entry(made: Make, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    for number, name in enumerate(("first", "second")):
        made(name=name).save(tmp_path / str(number))
        entries = write_gallery(tmp_path / str(number), readme, tmp_path / "images")
    assert [one["name"] for one in entries] == ["first", "second"]


@pytest.mark.usefixtures("no_pictures")
def test_quick_runs_foreign_files_and_empty_folders_are_refused(
    made: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(made(), options=FigureOptions(quick=True)).save(tmp_path / "quick")
    with pytest.raises(FileFormatError, match="--quick"):
        write_gallery(tmp_path / "quick", tmp_path / "README.md", tmp_path)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.json").write_text("{}")
    with pytest.raises(FileFormatError, match="lacks"):
        write_gallery(tmp_path / "foreign", tmp_path / "README.md", tmp_path)
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "empty"), "--readme", str(tmp_path / "README.md")])
    assert caught.value.code == 2
    assert "no .json file" in capsys.readouterr().err


def test_the_committed_page_agrees_with_the_committed_summary() -> None:
    entries = read_summary(ROOT / "examples" / "gallery.json")
    assert (ROOT / "examples" / "README.md").read_text(encoding="utf-8") == page(
        entries, "../docs/images/gallery"
    )
    for one in entries:
        assert (ROOT / "examples" / f"{one['name']}.py").is_file()
        thumbnail = ROOT / "docs" / "images" / "gallery" / f"{one['name']}.png"
        assert thumbnail.is_file() == one["thumbnail"]
        assert not one["thumbnail"] or thumbnail.stat().st_size <= THUMBNAIL_BYTES


def test_a_summary_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gallery.json").write_text(json.dumps({"schema_version": "other/9"}))
    with pytest.raises(FileFormatError, match="other/9"):
        read_summary(tmp_path / "gallery.json")
