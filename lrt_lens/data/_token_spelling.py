"""Spellings of a vocabulary's tokens, equal for all families of tokenizers.

Problem: a token has another spelling in each family: byte-level BPE's ``Ġthe``, SentencePiece's
``▁the`` and WordPiece's ``the`` all stand for " the". Mechanism: the mark that most tokens of the
vocabulary have tells the family. Tokens of a vocabulary without any mark spell themselves.

    shared_tokens(tokenizer_a, tokenizer_b)      # [(" the", 262, 278), ...]

Limits: special tokens have no spelling, nor have tokens that are part of a character (byte-level
pieces of UTF-8, SentencePiece's ``<0xE2>``). WordPiece marks the inside of words, so each of its
other tokens is spelled with a space before it.
"""

import re
from collections.abc import Callable
from typing import Any

from tokenizers import decoders

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_MARKS = ("Ġ", "▁", "##")
_BROKEN = "\ufffd"
"""The replacement character, for bytes that are no whole character."""


def token_strings(tokenizer: Any) -> dict[str, int]:
    """Return the id of every token by its spelling; the smallest id if several share a spelling."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    spell = _speller(vocabulary)
    ids: dict[str, int] = {}
    # In the order of ids, so that `setdefault` keeps the smallest id of a spelling.
    for token, number in sorted(vocabulary.items(), key=lambda item: item[1]):
        text = "" if number in special else spell(token)
        if text and _BROKEN not in text:
            ids.setdefault(text, number)
    return ids


def shared_tokens(source: Any, target: Any) -> list[tuple[str, int, int]]:
    """Return (spelling, id in the source's vocabulary, id in the target's) of all shared tokens.

    They are in the order of the source's ids.
    """
    ours, theirs = token_strings(source), token_strings(target)
    return [(text, number, theirs[text]) for text, number in ours.items() if text in theirs]


def _speller(vocabulary: dict[str, int]) -> Callable[[str], str]:
    # A vocabulary may have a few tokens with the mark of another family; the most frequent decides.
    counts = {mark: sum(token.startswith(mark) for token in vocabulary) for mark in _MARKS}
    mark = max(counts, key=counts.__getitem__)
    spellers = {"Ġ": _byte_level, "▁": _sentence_piece, "##": _word_piece}
    return spellers[mark] if counts[mark] else str


def _byte_level(token: str) -> str:
    return decoders.ByteLevel().decode([token])


def _sentence_piece(token: str) -> str:
    # Byte tokens have no spelling. If the byte is a whole character, a later token may spell it.
    return _BROKEN if _BYTE.fullmatch(token) else token.replace("▁", " ")


def _word_piece(token: str) -> str:
    return token.removeprefix("##") if token.startswith("##") else f" {token}"
