"""Labelled texts: bundled, from a file, cut to size."""

import importlib.util
import json
from pathlib import Path

import pytest

from lrt_lens.bundled import demo_documents
from lrt_lens.data import N_FOLDS, document_key, part_of
from lrt_lens.reproduction import (
    MissingInputError,
    Task,
    bundled_tasks,
    sae_probes_task,
    task_from_file,
)


def test_register_texts_open_documents_that_no_map_was_fitted_on() -> None:
    _, register = bundled_tasks(map_seed=5)
    held = {
        " ".join(text.split()[:30])
        for text in demo_documents()
        if part_of(document_key(text, 5)) >= N_FOLDS
    }
    assert set(register.texts) == held
    assert set(register.labels) == {"story", "review"}


def test_labels_stay_with_their_texts() -> None:
    task = Task("t", [str(i) for i in range(30)], list(range(30)))
    drawn = task.sample(12, seed=1)
    assert len(drawn.texts) == 12
    assert [int(text) for text in drawn.texts] == drawn.labels
    train, test = drawn.split()
    assert (len(train.texts), len(test.texts)) == (8, 4)
    assert train.labels + test.labels == drawn.labels


def test_a_file_without_labels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "film.jsonl"
    path.write_text(
        "\n".join(json.dumps(row) for row in ({"text": "good", "label": 1}, {"text": "open"}))
    )
    assert task_from_file(path) == Task("film", ["good"], [1])
    path.write_text(json.dumps({"text": "open"}))
    with pytest.raises(ValueError, match="'label'"):
        task_from_file(path)
    with pytest.raises(MissingInputError, match="--task-file"):
        task_from_file(tmp_path / "gone.jsonl")


def test_rows_that_are_no_objects_are_refused(tmp_path: Path, unchecked: None) -> None:
    (tmp_path / "list.jsonl").write_text('["good", 1]')
    with pytest.raises(ValueError, match="line 1 is a list .*; expected an object"):
        task_from_file(tmp_path / "list.jsonl")


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "sae_probes" else found("json")
    )
    with pytest.raises(MissingInputError, match=r"--sae-probes: .*pip install"):
        sae_probes_task("any")
