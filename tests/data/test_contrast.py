"""Tests of contrast sets and choice items."""

import json
from pathlib import Path

import pytest

from lrt_lens.data import ChoiceItems, ContrastSet

POSITIVE = [f"good {i}" for i in range(9)]
NEGATIVE = [f"bad {i}" for i in range(9)]


def test_rows_come_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "taste.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"positive": p, "negative": n})
            for p, n in zip(POSITIVE, NEGATIVE, strict=True)
        )
    )
    contrast = ContrastSet.from_jsonl(path)
    assert (list(contrast.positive), list(contrast.negative), contrast.name) == (
        POSITIVE,
        NEGATIVE,
        "taste",
    )
    path.write_text(json.dumps({"prompt": "It was", "positive": " good", "negative": " bad"}))
    assert ChoiceItems.from_jsonl(path).prompts == ["It was"]


def test_a_line_without_both_sides_is_named(tmp_path: Path) -> None:
    path = tmp_path / "taste.jsonl"
    path.write_text('{"positive": "a", "negative": "b"}\n{"positive": "c"}')
    with pytest.raises(ValueError, match=r"line 2 lacks \['negative'\]"):
        ContrastSet.from_jsonl(path)


def test_columns_of_different_length_empty_texts_and_single_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"does not pair up: \{'positive': 2, 'negative': 1\}"):
        ContrastSet(["a", "b"], ["c"])
    with pytest.raises(ValueError, match=r"negative\[1\] of the contrast set is ' '"):
        ContrastSet(["a", "b"], ["c", " "])
    with pytest.raises(ValueError, match=r"holds 1 row\(s\); give at least 2"):
        ContrastSet(["a"], ["b"])
    with pytest.raises(ValueError, match=r"holds 0 row\(s\); give at least 1"):
        ChoiceItems([], [], [])


def test_permuting_exchanges_exactly_half_the_pairs_and_keeps_them_together() -> None:
    contrast = ContrastSet(POSITIVE, NEGATIVE)
    permuted = contrast.permuted(seed=3)
    assert sum(text.startswith("bad") for text in permuted.positive) == len(contrast) // 2
    assert [{p, n} for p, n in zip(permuted.positive, permuted.negative, strict=True)] == [
        {p, n} for p, n in zip(POSITIVE, NEGATIVE, strict=True)
    ]
    assert list(contrast.permuted(seed=4).positive) != list(permuted.positive)


def test_splits_are_disjoint_and_complete() -> None:
    items = ChoiceItems([f"p{i}" for i in range(9)], POSITIVE, NEGATIVE)
    first, second = items.split(1 / 3, seed=1)
    assert len(first) == 3
    assert sorted([*first.prompts, *second.prompts]) == sorted(items.prompts)
    assert all(
        prompt[1:] == positive.split()[1]
        for prompt, positive in zip(second.prompts, second.positive, strict=True)
    )


def test_the_digest_follows_the_texts_and_nothing_else() -> None:
    assert (
        ContrastSet(POSITIVE, NEGATIVE, name="a").digest
        == ContrastSet(POSITIVE, NEGATIVE, name="b").digest
    )
    assert ContrastSet(POSITIVE, NEGATIVE).digest != ContrastSet(NEGATIVE, POSITIVE).digest
