"""Tests of keys and parts: copies of a document, and documents of a group, share a fold."""

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrt_lens.data import DEFAULT_PARTS, Parts, document_key, exact_key, part_of
from lrt_lens.data._documents import Document
from lrt_lens.data._parts import normalised

TEXTS = ["the cat sat", "the dog ran\nand ran", "naïve 日本"]


def test_a_documents_key_depends_on_its_text_and_the_seed_alone() -> None:
    # Fixed numbers: with other keys, documents of earlier harvests would change their folds.
    assert document_key("the cat sat", 0) == 4895119469390227121
    assert len({document_key(text, seed) for text in TEXTS for seed in (0, 1)}) == 6


def test_copies_that_differ_in_blanks_case_and_quotes_have_one_key() -> None:
    copies = [
        'He said: "It\'s well-known."',
        "he said:   “it’s well‑known.”\r\n",
        "\ufeffHE SAID\n\n'IT'S WELL KNOWN'",
        "he said \u2014 \u00abit\u2019s well\u00ad-known\u00bb \u200b",
    ]
    assert {document_key(copy, 0) for copy in copies} == {document_key(copies[0], 0)}
    # Composed and decomposed accents, ligatures and full-width letters.
    assert normalised("cafe\u0301 ﬁn ＡＢＣ STRASSE") == normalised("café fin abc straße")


@given(
    st.lists(st.text(string.ascii_letters + string.digits + "éß日", min_size=1), min_size=1),
    st.data(),
)
def test_any_copy_with_other_blanks_and_case_has_the_same_part(
    words: list[str], data: st.DataObject
) -> None:
    blanks = st.sampled_from([" ", "  ", "\n", "\t", " - ", ", ", "\u00a0", "…"])
    copy = "".join(
        data.draw(st.sampled_from([word, word.lower(), word.upper()])) + data.draw(blanks)
        for word in words
    )
    assert part_of(document_key(copy, 3)) == part_of(document_key(" ".join(words), 3))


@given(st.text(), st.text())
def test_normalising_twice_changes_nothing_and_other_words_are_another_text(
    one: str, other: str
) -> None:
    assert normalised(normalised(one)) == normalised(one)
    if normalised(one) != normalised(other):
        assert document_key(one, 0) != document_key(other, 0)


def test_texts_without_letters_are_not_all_one_document() -> None:
    assert len({document_key(text, 0) for text in ("!!!", "???", "😀 😀", "😀\n😀")}) == 3


def test_an_exact_key_tells_copies_apart() -> None:
    assert len({exact_key(one, 0) for one in ("a-1", "a 1", "A 1")}) == 3


def test_a_group_decides_in_place_of_the_text() -> None:
    keys = {Document(text, group="one book").key(0) for text in TEXTS}
    assert keys == {document_key("one book", 0)}
    assert {Document("text", group=17).key(0)} == {document_key("17", 0)}
    assert {Document(text).key(0) for text in TEXTS} == {document_key(text, 0) for text in TEXTS}


KEYS = st.integers(0, 2**64 - 1)
PARTS = st.builds(Parts, st.integers(2, 20), st.integers(1, 64))


@given(KEYS)
def test_default_parts_are_those_of_earlier_harvests(key: int) -> None:
    fold, group = key % 6, key // 6 % 8
    assert DEFAULT_PARTS.of(key) == part_of(key) == (fold if fold < 5 else 5 + group)


@given(KEYS, PARTS)
def test_the_test_fold_has_the_same_documents_for_any_numbers(key: int, parts: Parts) -> None:
    part = parts.of(key)
    assert (part in parts.test) == (part_of(key) in DEFAULT_PARTS.test) == (key % 6 == 5)
    if key % 6 == 5:
        assert part - parts.n_folds == key // 6 % parts.n_test_groups
    elif parts.n_folds == 5:
        assert part == key % 6
    else:
        assert part == key // 48 % parts.n_folds


def test_numbers_and_names_of_the_parts() -> None:
    parts = Parts(n_folds=3, n_test_groups=2)
    assert (parts.fit, parts.test, parts.n_parts) == ((0, 1, 2), (3, 4), 5)
    assert parts.names == ("fold0", "fold1", "fold2", "test0", "test1")
    assert [parts.of(key) for key in (0, 5, 11, 48, 96, 101, 144)] == [0, 3, 4, 1, 2, 3, 0]
    assert Parts(4, 9) != Parts(5, 8), "thirteen parts have no meaning without their numbers"


@pytest.mark.parametrize("parts", [Parts(), Parts(3, 2), Parts(20, 1)])
def test_folds_have_the_shares_of_documents_that_are_expected(parts: Parts) -> None:
    counts = [0] * (parts.n_folds + 1)
    n = 24_000
    for k in range(n):
        counts[min(parts.of(document_key(f"text {k}", 0)), parts.n_folds)] += 1
    assert sum(parts.shares) == 1
    for count, share in zip(counts, parts.shares, strict=True):
        expected = float(n * share)
        # Five standard deviations of a count.
        assert abs(count - expected) < 5 * expected**0.5


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (
            {"n_folds": 1},
            "n_folds is 1; expected a whole number from 2 to 20: .* leave n_folds out",
        ),
        ({"n_folds": 21}, "n_folds is 21; expected a whole number from 2 to 20"),
        ({"n_folds": 2.5}, "n_folds is 2.5; expected"),
        ({"n_folds": True}, "n_folds is True; expected"),
        ({"n_test_groups": 0}, "n_test_groups is 0; expected a whole number from 1 to 64"),
        ({"n_test_groups": 65}, "n_test_groups is 65; expected .* leave n_test_groups out for 8"),
        ({"n_test_groups": float("nan")}, "n_test_groups is nan; expected"),
    ],
)
def test_other_numbers_are_refused(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parts(**numbers)
