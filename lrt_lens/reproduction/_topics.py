"""Many concepts from texts alone: a topic is a word, and a text shows it if it contains the word.

Problem: clamp steering over many concepts (Stitching, figures 3b, 3c and 11) needs concepts that a
model can express, and a classifier of generated text. The paper uses languages and langdetect; a
model of one language has none. Mechanism: topics are words that occur in a few to a third of the
texts, from rare to common ones.

    topics = frequent_topics(lrt.demo_documents("story"), n=12)
    topics[0].word, topics[0].frequency, topics[0].contrast, topics[0].shows("The dog ran.")

Limits: English only (stop words, plural in -s).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from lrt_lens.data._contrast import ContrastSet

PIECE_WORDS = 60
"""Number of words per piece of text, about the length of a continuation."""
# Words of at least three letters; shorter ones are mostly function words.
_WORD = re.compile(r"[a-z]{3,}")


@dataclass(frozen=True)
class Topic:
    """A word that a text contains or does not contain."""

    word: str
    """The word, in lower case."""
    frequency: float
    """Share of the pieces that contain the word."""
    contrast: ContrastSet
    """Pieces with the word, and as many without it."""

    def shows(self, text: str) -> bool:
        """Return whether a text contains the word, in the singular or the plural."""
        return self.word in _words(text)


def frequent_topics(
    texts: Sequence[str],
    *,
    n: int = 12,
    least: float = 0.01,
    most: float = 0.3,
    pairs: int = 60,
    fewest: int = 20,
    seed: int = 0,
) -> list[Topic]:
    """Return topics whose frequencies are evenly spaced on a logarithmic axis, rare ones first.

    Args:
        texts: cut into pieces of ``PIECE_WORDS`` words.
        n: largest number of topics; function words are never topics.
        least: smallest share of pieces.
        most: largest share of pieces.
        pairs: largest number of pieces of each kind in a contrast set.
        fewest: smallest number of pieces that contain the word.
        seed: seed of the choice of pieces.

    Raises:
        ValueError: no word has a frequency between the shares.
    """
    pieces = [" ".join(text.split()[:PIECE_WORDS]) for text in texts]
    words_of = [_words(piece) for piece in pieces]
    # Sets of words, so that a piece counts once however often it repeats the word.
    counts = Counter(word for words in words_of for word in words if word not in ENGLISH_STOP_WORDS)
    known = sorted(
        (count, word)
        for word, count in counts.items()
        if least <= count / len(pieces) <= most and count >= fewest
    )
    if not known:
        raise ValueError(
            f"no word is in {least:.0%} to {most:.0%} of the {len(pieces)} texts, and in at least "
            f"{fewest}; give more texts"
        )
    # The word nearest to each level in log count; a set, because levels may share a word.
    levels = np.geomspace(known[0][0], known[-1][0], n)
    counted = np.array([count for count, _ in known])
    nearest = {known[int(np.argmin(np.abs(np.log(counted / level))))] for level in levels}
    rng = np.random.default_rng(seed)
    return [
        _topic(word, count / len(pieces), pieces, words_of, pairs, rng)
        for count, word in sorted(nearest)
    ]


def _topic(
    word: str,
    frequency: float,
    pieces: list[str],
    words_of: list[set[str]],
    pairs: int,
    rng: np.random.Generator,
) -> Topic:
    having, lacking = (
        [i for i, words in enumerate(words_of) if (word in words) is wanted]
        for wanted in (True, False)
    )
    # As many pieces with the word as without it.
    # Contrast sets are pairs, so both sides have the same number of pieces.
    size = min(pairs, len(having), len(lacking))
    positive, negative = (
        [pieces[i] for i in rng.choice(numbers, size, replace=False)]
        for numbers in (having, lacking)
    )
    return Topic(word, frequency, ContrastSet(positive, negative, name=word))


def _words(text: str) -> set[str]:
    """Return the words in lower case; those in -s also without it ("dogs", but not "this")."""
    words = set(_WORD.findall(text.lower()))
    plurals = (word for word in words - ENGLISH_STOP_WORDS if word.endswith("s") and len(word) > 3)
    return words | {word[:-1] for word in plurals}
