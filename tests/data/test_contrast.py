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
    with pytest.raises(ValueError, match=r"does not pair up: \{'positive': 3, 'negative': 2\}"):
        ContrastSet(["a", "b", "c"], ["d", "e"], paired=True)
    with pytest.raises(ValueError, match=r"holds \{'positive': 2, 'negative': 1\} row\(s\)"):
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


# ------------------------------------------------------------------------ texts that are not paired


def test_lists_of_different_lengths_are_no_pairs_and_nor_are_others_that_say_so() -> None:
    assert ContrastSet(POSITIVE, NEGATIVE).paired
    unequal = ContrastSet(POSITIVE, NEGATIVE[:5])
    assert (unequal.paired, len(unequal)) == (False, 5)
    assert not ContrastSet(POSITIVE, NEGATIVE, paired=False).paired
    with pytest.raises(
        ValueError, match=r"9 positive and 5 negative texts that are not pairs; why:"
    ):
        unequal.refuse_unpaired("why")
    ContrastSet(POSITIVE, NEGATIVE).refuse_unpaired("why")


@pytest.mark.parametrize(("n_positive", "n_negative"), [(9, 9), (9, 4), (3, 8), (2, 2), (2, 9)])
def test_permuted_labels_of_texts_that_are_not_paired_cancel_the_concept(
    n_positive: int, n_negative: int
) -> None:
    contrast = ContrastSet(POSITIVE[:n_positive], NEGATIVE[:n_negative], paired=False)
    permuted = contrast.permuted(seed=3)
    assert sorted(permuted.texts) == sorted(contrast.texts)
    assert (len(permuted.positive), len(permuted.negative)) == (n_positive, n_negative)
    assert not permuted.paired
    shares = [
        sum(text.startswith("good") for text in side) / len(side)
        for side in (permuted.positive, permuted.negative)
    ]
    # Exchanging one text more or less would change the difference of the shares by this.
    step = 1 / n_positive + 1 / n_negative
    assert abs(shares[0] - shares[1]) <= step / 2 + 1e-12


def test_parts_of_texts_that_are_not_paired_stay_so() -> None:
    # Halves of 8 and 9 texts have equally many of both sides.
    first, second = ContrastSet(POSITIVE, NEGATIVE[:8]).split()
    assert (len(first.positive), len(first.negative), first.paired) == (4, 4, False)
    assert sorted(first.texts + second.texts) == sorted(POSITIVE + NEGATIVE[:8])
    paired, _ = ContrastSet(POSITIVE, NEGATIVE).split()
    numbers = [[text.split()[1] for text in side] for side in (paired.positive, paired.negative)]
    assert numbers[0] == numbers[1]
