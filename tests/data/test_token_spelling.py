"""Tests of token spellings: equal for all families of tokenizers."""

from typing import Any

import pytest

from lrt_lens.data._token_spelling import shared_tokens, token_strings


class Vocabulary:
    """Replacement of a tokenizer, with the attributes that spelling reads."""

    def __init__(self, tokens: list[str], special: tuple[int, ...] = (0,)) -> None:
        self.tokens, self.all_special_ids = tokens, list(special)

    def get_vocab(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}


BYTE_LEVEL = Vocabulary(
    ["<|endoftext|>", "Ġthe", "the", "Ġ", "Ċ", "Ã©", "âĢ", "Ġcafé", "Ġriver", "ing"]
)
SENTENCE_PIECE = Vocabulary(
    ["<s>", "<0x0A>", "<0x74>", "▁the", "the", "▁", "▁river", "\n", "é", "t"]
)
WORD_PIECE = Vocabulary(["[CLS]", "the", "##ing", "river", "##the", "##é"])


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (BYTE_LEVEL, {" the": 1, "the": 2, " ": 3, "\n": 4, "é": 5, " river": 8, "ing": 9}),
        (SENTENCE_PIECE, {" the": 3, "the": 4, " ": 5, " river": 6, "\n": 7, "é": 8, "t": 9}),
        (WORD_PIECE, {" the": 1, "ing": 2, " river": 3, "the": 4, "é": 5}),
    ],
    ids=["byte-level", "sentencepiece", "wordpiece"],
)
def test_spellings(tokenizer: Any, expected: dict[str, int]) -> None:
    found = token_strings(tokenizer)
    assert {text: number for text, number in found.items() if "caf" not in text} == expected


def test_special_tokens_and_parts_of_characters_spell_nothing() -> None:
    found = token_strings(BYTE_LEVEL)
    assert "<|endoftext|>" not in found
    assert all("\ufffd" not in text for text in found)
    assert 6 not in found.values()


def test_shared_tokens_pair_ids_of_one_spelling() -> None:
    assert shared_tokens(BYTE_LEVEL, SENTENCE_PIECE) == [
        (" the", 1, 3),
        ("the", 2, 4),
        (" ", 3, 5),
        ("\n", 4, 7),
        ("é", 5, 8),
        (" river", 8, 6),
    ]
    assert shared_tokens(SENTENCE_PIECE, WORD_PIECE) == [
        (" the", 3, 1),
        ("the", 4, 4),
        (" river", 6, 3),
        ("é", 8, 5),
    ]


def test_of_two_tokens_that_spell_the_same_the_first_counts() -> None:
    assert token_strings(Vocabulary(["<s>", "▁a", " a"]))[" a"] == 1


def test_a_real_tokenizer_spells_what_it_decodes(tokenizer: Any) -> None:
    found = token_strings(tokenizer)
    assert len(found) > 150
    for text, number in found.items():
        assert tokenizer.decode([number]) == text
