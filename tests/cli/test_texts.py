"""Labelled texts from files of every kind, and which of them belong together."""

from pathlib import Path

import pandas as pd
import pytest

from lrt_lens.cli._texts import read_labelled, read_texts
from lrt_lens.errors import FileFormatError

ROWS = pd.DataFrame(
    {
        "text": ["a cat", "a dog", "a bird", "a tree"],
        "label": ["x", "y", "x", None],
        "story": ["one", "one", "two", "two"],
    }
)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_rows_without_a_label_are_left_out_and_groups_are_kept(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{ending}"
    if ending == "csv":
        ROWS.to_csv(path, index=False)
    elif ending == "jsonl":
        ROWS.to_json(path, orient="records", lines=True)
    else:
        ROWS.to_parquet(path)
    rows = read_labelled(str(path), group="story")
    assert rows.texts == ["a cat", "a dog", "a bird"]
    assert rows.labels == ["x", "y", "x"]
    assert rows.groups == ["one", "one", "two"]
    assert read_labelled(str(path)).groups is None


def test_both_texts_of_a_pair_are_labelled_and_share_a_group(tmp_path: Path) -> None:
    path = tmp_path / "contrast.csv"
    pd.DataFrame({"positive": ["good", "fine"], "negative": ["bad", "poor"]}).to_csv(path)
    rows = read_labelled(str(path))
    assert rows.texts == ["good", "fine", "bad", "poor"]
    assert rows.labels == ["positive", "positive", "negative", "negative"]
    assert rows.groups == [0, 1, 0, 1]


def test_a_row_without_a_text_or_a_group_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": 1, "story": 2}\n{"label": 2, "story": 3}\n')
    with pytest.raises(FileFormatError, match=r"rows.jsonl, line 2 lacks \['text'\]; it has"):
        read_labelled(str(path))
    with pytest.raises(FileFormatError, match=r"lacks \['author'\]"):
        read_labelled(str(path), group="author")


def test_texts_without_labels_are_read_from_any_file_of_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert read_texts(str(tmp_path / "a.txt")) == ["one", "two"]
