"""Rewrites change all content words; function words, punctuation, case and length stay."""

import re
from itertools import product
from typing import Any

import numpy as np
import pytest

from lrt_lens.adapters.saes.features._substitution import (
    ContentWords,
    is_content,
    rewritten_sentences,
    sentences,
)

WORDS = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*")


@pytest.mark.parametrize("word", ["cat", "running", "Fire", "system", "river"])
def test_words_that_name_something_are_content(word: str) -> None:
    assert is_content(word)


@pytest.mark.parametrize("word", ["the", "Because", "they", "don't", "it's", "I’m", "a", "under"])
def test_words_that_carry_structure_are_not(word: str) -> None:
    assert not is_content(word)


def test_sentences_are_cut_at_their_ends_and_short_ones_left_out() -> None:
    text = (
        "Oh no. The little cat saw a big red river! "
        "Then the dog and the bird ran under\nthe old stone house?"
    )
    assert list(sentences(text)) == [
        "The little cat saw a big red river!",
        "Then the dog and the bird ran under the old stone house?",
    ]


def test_every_content_word_changes_and_nothing_else(pair: Any, corpus: list[str]) -> None:
    rewritten = rewritten_sentences(list(corpus), pair.source, n_sentences=8, n_rewrites=3, seed=0)
    assert len(rewritten) == 8
    for original, *rewrites in rewritten:
        assert len(rewrites) == 3
        assert len({original, *rewrites}) == 4
        for rewrite in rewrites:
            assert WORDS.sub("", rewrite) == WORDS.sub("", original)
            assert len(pair.source.encode([rewrite])[0]) == len(pair.source.encode([original])[0])
            pairs = list(zip(WORDS.findall(original), WORDS.findall(rewrite), strict=True))
            assert all((a != b) == is_content(a) for a, b in pairs)
            assert len(set(pairs)) == len({a for a, _ in pairs}), "a word has one substitute"
    assert (
        rewritten_sentences(corpus, pair.source, n_sentences=8, n_rewrites=3, seed=0) == rewritten
    )


def test_substitutes_have_the_shape_and_where_possible_the_neighbours(
    pair: Any, monkeypatch: Any
) -> None:
    nouns, verbs = (
        ["cats", "dogs", "stones", "kings", "queens", "trees", "boys"],
        ["sings", "runs", "makes", "gives", "sees", "takes", "finds"],
    )
    texts = [
        f"the {noun} and the {other} then they {verb} it."
        for noun in nouns
        for other in nouns
        for verb in verbs
    ]
    words = ContentWords.of(texts, pair.source)
    monkeypatch.setattr("lrt_lens.adapters.saes.features._substitution._ENOUGH", 1)
    length = lambda word: len(pair.source.encode_bodies([f" {word}"])[0])  # noqa: E731
    a, b, verb = next(  # words that have others of their length and role
        (a, b, verb)
        for a, b, verb in product(nouns, nouns, verbs)
        if a != b
        and all(any(length(x) == length(word) for x in set(nouns) - {a, b}) for word in (a, b))
        and any(length(x) == length(verb) for x in set(verbs) - {verb})
    )
    rng = np.random.default_rng(0)
    for _ in range(20):
        rewrite = words._rewrite(f"the {a} and the {b} then they {verb} it.", rng)
        assert rewrite is not None
        _, first, _, _, second, _, _, third, _ = WORDS.findall(rewrite)
        assert {first, second} <= set(nouns) - {a, b}
        assert third in set(verbs) - {verb}


def test_a_text_without_words_to_exchange_is_refused(pair: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"none of 1 sentence\(s\) .* could be rewritten at equal length with 5 other sets "
        r".* rewrites=",
    ):
        rewritten_sentences(
            ["The little cat saw a big red river."],
            pair.source,
            n_sentences=4,
            n_rewrites=5,
            seed=0,
        )
