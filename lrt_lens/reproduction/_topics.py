"""Many concepts from texts alone: a topic is a word, from the rare to the common, and a text shows
it when it says the word.

Clamp steering over many concepts (Stitching, figures 3b, 3c and 11) needs concepts that a model can
express and a judge of what it writes. The paper takes languages and langdetect; models of one
language have topics: words that occur in between a few and a third of the texts.

    topics = frequent_topics(lrt.demo_documents("story"), n=12)
    topics[0].word, topics[0].frequency, topics[0].contrast, topics[0].shows("The dog ran.")
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from lrt_lens.data._contrast import ContrastSet

PIECE_WORDS = 60
"""Length of the pieces that texts are cut to, about that of a continuation."""
_WORD = re.compile(r"[a-z]{3,}")


@dataclass(frozen=True)
class Topic:
    """A word that texts say or do not say."""

    word: str
    frequency: float
    """Share of the pieces that say it."""
    contrast: ContrastSet
    """Pieces that say it, and as many that do not."""

    def shows(self, text: str) -> bool:
        """Whether a text says the word, in the singular or the plural."""
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
    """Topics whose frequencies are spread evenly on a logarithmic axis, rare ones first.

    Args:
        texts: cut to pieces of ``PIECE_WORDS`` words.
        n: how many at most; function words are never topics.
        least: smallest share of pieces.
        most: largest share of pieces.
        pairs: pieces of either kind in a contrast set at most.
        fewest: pieces that have to say the word.
        seed: which pieces.

    Raises:
        ValueError: no word lies between the shares.
    """
    pieces = [" ".join(text.split()[:PIECE_WORDS]) for text in texts]
    said = [_words(piece) for piece in pieces]
    counts = Counter(word for words in said for word in words if word not in ENGLISH_STOP_WORDS)
    known = sorted(
        (count, word)
        for word, count in counts.items()
        if least <= count / len(pieces) <= most and count >= fewest
    )
    if not known:
        raise ValueError(
            f"no word is in {least:.0%} to {most:.0%} of the {len(pieces)} texts, and in {fewest} at least; give more texts"
        )
    levels = np.geomspace(known[0][0], known[-1][0], n)
    chosen = sorted(
        {
            known[int(np.argmin([abs(np.log(count / level)) for count, _ in known]))]
            for level in levels
        }
    )
    rng = np.random.default_rng(seed)
    return [_topic(word, count / len(pieces), pieces, said, pairs, rng) for count, word in chosen]


def _topic(
    word: str,
    frequency: float,
    pieces: list[str],
    said: list[set[str]],
    pairs: int,
    rng: np.random.Generator,
) -> Topic:
    having, lacking = (
        [i for i, words in enumerate(said) if (word in words) is wanted] for wanted in (True, False)
    )
    size = min(pairs, len(having), len(lacking))
    drawn = [
        [pieces[i] for i in rng.choice(places, size, replace=False)] for places in (having, lacking)
    ]
    return Topic(word, frequency, ContrastSet(*drawn, name=word))


def _words(text: str) -> set[str]:
    """Words in lower case, those in -s also without it: "dogs", not "this"."""
    found = set(_WORD.findall(text.lower()))
    return found | {
        word[:-1] for word in found - ENGLISH_STOP_WORDS if word.endswith("s") and len(word) > 3
    }
