"""Tests of questions with two answers: reading files, and refusing bad rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from lrt_lens.data import ChoiceItems, answer_contrast, behaviour_items

ROW = {
    "question": "Is it {so}?",
    "answer_matching_behavior": " (A)",
    "answer_not_matching_behavior": " (B)",
}


def written(folder: Path, rows: list[Any]) -> Path:
    path = folder / "some-task.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_answers_lose_their_bracket_and_questions_keep_their_braces(tmp_path: Path) -> None:
    items = behaviour_items(written(tmp_path, [ROW]))
    assert (items.name, items.prompts, items.positive, items.negative) == (
        "some-task",
        ["Is it {so}?\n\nAnswer:"],
        [" (A"],
        [" (B"],
    )
    whole = behaviour_items(
        written(tmp_path, [ROW]), drop="", template="Q: {question} A:", name="own"
    )
    assert (whole.name, whole.prompts, whole.positive) == ("own", ["Q: Is it {so}? A:"], [" (A)"])


def test_a_draw_is_seeded_without_repeats_and_not_the_head_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, [{**ROW, "question": f"number {i}"} for i in range(50)])
    first, again, other = (behaviour_items(path, n=20, seed=seed).prompts for seed in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 20
    assert set(first) != {f"number {i}\n\nAnswer:" for i in range(20)}
    assert len(behaviour_items(path, n=1000)) == 50


def test_the_contrast_is_each_prompt_with_either_answer() -> None:
    contrast = answer_contrast(
        ChoiceItems(["one", "two"], [" yes", " no"], [" no", " yes"], name="task")
    )
    assert contrast.positive == ["one yes", "two no"]
    assert contrast.negative == ["one no", "two yes"]
    assert contrast.name == "task"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answer_not_matching_behavior": None},
            r"line 2 lacks \['answer_not_matching_behavior'\]",
        ),
        ({"answer_matching_behavior": "  "}, r"line 2 lacks \['answer_matching_behavior'\]"),
        ({"answer_matching_behavior": " (B) "}, "for both answers"),
    ],
)
def test_items_without_two_different_answers_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        behaviour_items(written(tmp_path, [ROW, {**ROW, **change}]))


def test_a_line_that_is_no_item_is_refused(tmp_path: Path, unchecked: None) -> None:
    with pytest.raises(ValueError, match="line 1 (lacks|is a list)"):
        behaviour_items(written(tmp_path, [["question"]]))


def test_an_empty_file_and_a_template_without_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no place for the question"):
        behaviour_items(written(tmp_path, [ROW]), template="Question:")
    with pytest.raises(ValueError, match="n is 0"):
        behaviour_items(written(tmp_path, [ROW]), n=0)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="no item"):
        behaviour_items(empty)
