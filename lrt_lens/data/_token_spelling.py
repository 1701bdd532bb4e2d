"""What a vocabulary's tokens spell, the same for every family.

Byte-level BPE's ``Ġthe``, SentencePiece's ``▁the`` and WordPiece's ``the`` are all " the".

    shared_tokens(tokenizer_a, tokenizer_b)      # [(" the", 262, 278), …]

The family is told by its mark, the one that most tokens of the vocabulary carry; without any mark
tokens spell themselves. Special tokens and tokens that are part of a character (byte-level pieces
of UTF-8, SentencePiece's ``<0xE2>``) spell nothing and are left out. WordPiece marks the inside of
words, so its other tokens get the space that the others have.
"""

import re
from collections.abc import Callable
from typing import Any

from tokenizers import decoders

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_MARKS = ("Ġ", "▁", "##")
_BROKEN = "\ufffd"


def token_strings(tokenizer: Any) -> dict[str, int]:
    """Id of every token by what it spells; where two spell the same, the one with the smaller id."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    spell = _speller(vocabulary)
    found: dict[str, int] = {}
    for token, number in sorted(vocabulary.items(), key=lambda item: item[1]):
        text = "" if number in special else spell(token)
        if text and _BROKEN not in text:
            found.setdefault(text, number)
    return found


def shared_tokens(source: Any, target: Any) -> list[tuple[str, int, int]]:
    """(spelling, id in the source's vocabulary, id in the target's) of every token that both have,
    in the source's order.
    """
    ours, theirs = token_strings(source), token_strings(target)
    return [(text, number, theirs[text]) for text, number in ours.items() if text in theirs]


def _speller(vocabulary: dict[str, int]) -> Callable[[str], str]:
    counts = {mark: sum(token.startswith(mark) for token in vocabulary) for mark in _MARKS}
    mark = max(counts, key=counts.__getitem__)
    return (
        {"Ġ": _byte_level, "▁": _sentence_piece, "##": _word_piece}[mark] if counts[mark] else str
    )


def _byte_level(token: str) -> str:
    return decoders.ByteLevel().decode([token])


def _sentence_piece(token: str) -> str:
    # A byte that is a character of its own is spelt by a token that comes later, if at all.
    return _BROKEN if _BYTE.fullmatch(token) else token.replace("▁", " ")


def _word_piece(token: str) -> str:
    return token.removeprefix("##") if token.startswith("##") else f" {token}"
