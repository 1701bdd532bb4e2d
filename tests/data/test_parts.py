"""Tests of keys and parts: copies of a document, and documents of a group, share a fold."""

import string

from hypothesis import given
from hypothesis import strategies as st

from lrt_lens.data import document_key, exact_key, part_of
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
