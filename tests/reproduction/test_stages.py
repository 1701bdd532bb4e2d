"""Stages of a long run are measured once per setting, and a file is there as a whole or not."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lrt_lens.data import N_FOLDS, document_key, part_of
from lrt_lens.errors import FileFormatError
from lrt_lens.reproduction import Stages, Task, capital_statements, held_out


def test_a_stage_is_measured_once_per_setting(tmp_path: Path) -> None:
    calls: list[int] = []

    def measure() -> pd.DataFrame:
        calls.append(1)
        return pd.DataFrame(
            {
                "arm": ["a", "b"],
                "value": [1 / 3, np.nan],
                "nothing": [np.nan] * 2,
                "unbounded": [np.inf, -np.inf],
                "n": [1, 2],
                "shown": [True, False],
            }
        )

    stages = Stages(tmp_path / "cache", {"seed": 0})
    first = stages.table("loss", {"n": 1}, measure)
    again = Stages(tmp_path / "cache", {"seed": 0}).table("loss", {"n": 1}, measure)
    assert len(calls) == 1
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    pd.testing.assert_frame_equal(first, measure(), check_exact=True)
    stages.table("loss", {"n": 2}, measure)
    Stages(tmp_path / "cache", {"seed": 1}).table("loss", {"n": 1}, measure)
    stages.table("other", {"n": 1}, measure)
    assert len(calls) == 5  # one of them above, for the comparison
    assert len(list((tmp_path / "cache").iterdir())) == 4
    empty = stages.table("empty", {}, lambda: pd.DataFrame(columns=["arm", "value"]))
    assert list(empty) == ["arm", "value"]
    assert len(empty) == 0


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    stages = Stages(tmp_path)

    def broken(*_: object) -> None:
        raise OSError("disk")

    def half(made: str, path: Path) -> None:
        path.write_text(made[:1])
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        stages.stored("model", {}, ".txt", lambda: "whole", save=half, load=Path.read_text)
    with pytest.raises(OSError, match="disk"):
        stages.stored("model", {}, ".txt", broken, save=half, load=Path.read_text)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    save = lambda made, path: path.write_text(made)  # noqa: E731
    for make in (lambda: "whole", broken):
        made = stages.stored("model", {}, ".txt", make, save=save, load=Path.read_text)
        assert made == "whole"


def test_a_stage_can_be_a_folder(tmp_path: Path) -> None:
    def save(made: str, path: Path) -> None:
        path.mkdir()
        (path / "weights").write_text(made)

    for make in ("first", "second"):
        made = Stages(tmp_path).stored(
            "sae",
            {},
            "",
            lambda make=make: make,
            save=save,
            load=lambda path: (path / "weights").read_text(),
        )
        assert made == "first"


def test_a_damaged_stage_is_named(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    measure = lambda: pd.DataFrame({"a": [1]})  # noqa: E731
    stages.table("loss", {}, measure)
    path = stages.path("loss", {}, ".json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "table": None}))
    with pytest.raises(FileFormatError, match=f"{path.name}' has no table; remove it"):
        stages.table("loss", {}, measure)
    path.write_text("{")
    with pytest.raises(FileFormatError, match=path.name):
        stages.table("loss", {}, measure)


@pytest.mark.parametrize("seed", [0, 1])
def test_words_of_statements_say_nothing_of_their_truth(seed: int) -> None:
    task, groups = capital_statements(seed)
    counts = {label: Counter[str]() for label in ("true", "false")}
    for text, label in zip(task.texts, task.labels, strict=True):
        counts[label].update(text.split())
    assert counts["true"] == counts["false"]
    assert len(set(task.texts)) == len(task.texts) == len(groups)
    assert set(Counter(groups).values()) == {4}
    # No word of the names occurs in two groups, except those that several countries share.
    of_group = {group: set[str]() for group in groups}
    for text, group in zip(task.texts, groups, strict=True):
        of_group[group] |= set(text.rstrip(".").split()) - {"The", "capital", "of", "is"}
    shared = Counter(word for words in of_group.values() for word in words)
    assert {word for word, n in shared.items() if n > 1} <= {"North", "South", "Korea", "New"}
    index = task.texts.index("The capital of France is Paris.")
    assert task.labels[index] == "true"


def test_held_out_texts_are_those_of_the_test_fold() -> None:
    texts = [f"Text number {number} has some more words than that." for number in range(300)]
    task = held_out(Task("numbers", texts, list(range(300))), 3, n_words=4)
    wanted = [n for n in range(300) if part_of(document_key(texts[n], 3)) >= N_FOLDS]
    assert task.labels == wanted
    assert task.texts == [f"Text number {n} has" for n in wanted]
