"""Sentences rewritten about something else: content words replaced, function words unchanged.

    words = ContentWords.of(documents, model)
    words.versions("The cat sat under the old table.", n=5, rng=rng)   # [original, five rewrites]

Problem: the test of `_semantics` needs rewrites that keep the structure of a sentence; Stitching
(arXiv 2506.06609, §5 and appendix H.1) asks a language model for them. Mechanism: here content
words are exchanged for other words of the corpus. A word is a content word unless it is one of
scikit-learn's English stop words (318 function words; the two dozen among them that are nouns,
verbs or adjectives count as content). A substitute has the same case, the same ending (-ing, -ed,
-ly, -s, …) and the same number of tokens. If the corpus has enough such words, the substitute has
also occurred between the same neighbours (function words or punctuation). The length in tokens is
therefore exactly preserved, and syntax mostly.

Limits: English only. Words are exchanged one by one, so rewrites make less sense than those of a
language model, and parts of speech agree only as far as endings show them. Pass other rewrites to
`evaluate_features(rewrites=…)`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lrt_lens.models._hooked_model import HookedModel

# Letters, with apostrophes inside: "don't" is one word.
_WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*")
# A sentence ends at . ! or ?, with a closing quotation mark if there is one.
_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’]?\s+")
# The first match counts, so longer endings come before shorter ones.
_ENDINGS = ("ing", "ed", "ly", "est", "er", "'s", "s", "y")
_CONTENT_ANYWAY = (
    "amount bill bottom cry describe detail etc fill find fire front interest mill serious show "
    "side sincere system thick thin top"
)
"""Nouns, verbs and adjectives that are stop words in scikit-learn's list."""
# Contractions such as "don't" and "she'll" carry structure but are not in scikit-learn's list.
_CONTRACTED = re.compile(
    r"^(?:[a-z]+n['’]t|(?:i|you|he|she|it|we|they|that|there|who|what|let)['’](?:m|s|re|ve|ll|d))$"
)
# A word, or one mark of punctuation.
_NEIGHBOUR = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*|[^\w\s]")
_ENOUGH = 5
"""Number of words with the same neighbours that are enough to choose a substitute from."""
_ATTEMPTS = 6
"""Number of draws per version before a sentence is given up."""
MINIMUM_WORDS, MAXIMUM_WORDS, MINIMUM_CONTENT = 5, 40, 3
"""Fewest and most words of a usable sentence, and fewest content words in it."""


@lru_cache
def function_words() -> frozenset[str]:
    """Function words of English, in lower case."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS) - frozenset(_CONTENT_ANYWAY.split())


def is_content(word: str) -> bool:
    """Return True if a word is a content word."""
    lower = word.lower()
    return len(word) > 1 and lower not in function_words() and not _CONTRACTED.match(lower)


def sentences(text: str) -> Iterator[str]:
    """Sentences of usable length, split at full stops, question marks and exclamation marks."""
    for piece in _SENTENCE.split(" ".join(text.split())):
        words = _WORD.findall(piece)
        if (
            MINIMUM_WORDS <= len(words) <= MAXIMUM_WORDS
            and sum(map(is_content, words)) >= MINIMUM_CONTENT
        ):
            yield piece.strip()


@dataclass(frozen=True)
class ContentWords:
    """Content words of a corpus, grouped by shape, for the tokenizer of one model."""

    by_shape: dict[tuple[str, str, int], list[str]]
    """Content words by their case, ending and number of tokens after a space."""
    between: dict[tuple[str, str], set[str]]
    """Content words by a neighbour: the side (``"behind"`` or ``"before"``) and its function
    word."""
    model: HookedModel
    """Model whose tokenizer counts the tokens."""

    @classmethod
    def of(
        cls, texts: Iterable[str], model: HookedModel, *, minimum_count: int = 2
    ) -> "ContentWords":
        """Content words that occur at least ``minimum_count`` times in the texts."""
        counts: Counter[str] = Counter()
        between: dict[tuple[str, str], set[str]] = defaultdict(set)
        for text in texts:
            for word, neighbours in _neighbours(text):
                counts[word] += 1
                for neighbour in neighbours:
                    between[neighbour].add(word)
        # Alphabetical order: draws do not depend on the order of the texts.
        words = sorted(word for word, count in counts.items() if count >= minimum_count)
        by_shape: dict[tuple[str, str, int], list[str]] = defaultdict(list)
        for word, shape in zip(words, _shapes(words, model), strict=True):
            by_shape[shape].append(word)
        return cls(dict(by_shape), dict(between), model)

    def versions(self, sentence: str, n: int, rng: np.random.Generator) -> list[str] | None:
        """Return ``n`` different rewrites of each sentence, all of equal length in tokens.

        None if the corpus has too few substitutes, or the sentence is longer than the context.
        """
        length = len(self.model.encode_bodies([sentence])[0])
        if self.model.codec.longer([sentence]):
            return None
        versions = [sentence]
        for _ in range(_ATTEMPTS * n):
            if len(versions) == n + 1:
                break
            rewrite = self._rewrite(sentence, rng)
            # Equal numbers of tokens per word do not guarantee an equal total: tokens may merge
            # across words.
            if (
                rewrite not in versions
                and rewrite is not None
                and len(self.model.encode_bodies([rewrite])[0]) == length
            ):
                versions.append(rewrite)
        return versions if len(versions) == n + 1 else None

    def _rewrite(self, sentence: str, rng: np.random.Generator) -> str | None:
        """The sentence with every content word replaced; None if a word has no substitute.

        All occurrences of a word get the same substitute.
        """
        # Reversed, so that the neighbours of a repeated word are those of its first occurrence.
        neighbours = dict(reversed(list(_neighbours(sentence))))
        shapes = _shapes(list(neighbours), self.model)
        substitutes: dict[str, str] = {}
        for (word, sides), shape in zip(neighbours.items(), shapes, strict=True):
            candidates = self._fitting(
                [other for other in self.by_shape.get(shape, []) if other not in neighbours], sides
            )
            if not candidates:
                return None
            substitutes[word] = candidates[int(rng.integers(len(candidates)))]
        return _WORD.sub(lambda match: substitutes.get(match[0], match[0]), sentence)

    def _fitting(self, words: list[str], neighbours: list[tuple[str, str]]) -> list[str]:
        """Words that occurred between both neighbours, or next to one of them, or all words.

        The first of these lists with at least ``_ENOUGH`` words is returned.
        """
        beside = [
            [word for word in words if word in self.between.get(neighbour, ())]
            for neighbour in neighbours
        ]
        between = [word for word in beside[0] if word in set(beside[-1])] if beside else []
        return next((fitting for fitting in (between, *beside) if len(fitting) >= _ENOUGH), words)


def rewritten_sentences(
    texts: Sequence[str], model: HookedModel, *, n_sentences: int, n_rewrites: int, seed: int
) -> list[list[str]]:
    """Sentences drawn from the texts with their rewrites, [sentence][version], the original first.

    Raises:
        ValueError: no sentence can be rewritten at equal length.
    """
    rng = np.random.default_rng([seed, 5])
    # A sentence that occurs several times is drawn at most once.
    pool = list(dict.fromkeys(sentence for text in texts for sentence in sentences(text)))
    words = ContentWords.of(texts, model)
    rewrites: list[list[str]] = []
    for index in rng.permutation(len(pool)):
        if len(rewrites) == n_sentences:
            break
        versions = words.versions(pool[int(index)], n_rewrites, rng)
        if versions is not None:
            rewrites.append(versions)
    if not rewrites:
        raise ValueError(
            f"none of {len(pool)} sentence(s) in the text could be rewritten at equal length with "
            f"{n_rewrites} other sets of content words; give more text, "
            "rewrites=[[sentence, rewrite, …], …] of your own, or n_sentences=0 to leave this out"
        )
    return rewrites


def _neighbours(text: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Every content word with the function words or punctuation on either side of it."""
    pieces = _NEIGHBOUR.findall(text)
    for at, word in enumerate(pieces):
        if not (_WORD.fullmatch(word) and is_content(word)):
            continue
        # The start and the end of a text count as a full stop.
        sides = (
            ("behind", pieces[at - 1] if at else "."),
            ("before", pieces[at + 1] if at + 1 < len(pieces) else "."),
        )
        yield (
            word,
            [
                (side, other.lower())
                for side, other in sides
                if not (_WORD.fullmatch(other) and is_content(other))
            ],
        )


def _shapes(words: list[str], model: HookedModel) -> list[tuple[str, str, int]]:
    """Return case, ending and number of tokens after a space of each word."""
    tokens = model.encode_bodies([" " + word for word in words]) if words else []
    return [(_case(word), _ending(word), len(ids)) for word, ids in zip(words, tokens, strict=True)]


def _case(word: str) -> str:
    if word.isupper():
        return "upper"
    if word.islower():
        return "lower"
    return "title" if word[0].isupper() else "mixed"


def _ending(word: str) -> str:
    lower = word.lower().replace("’", "'")
    return next(
        # Short words such as "king" and "red" have these letters without an ending.
        (ending for ending in _ENDINGS if lower.endswith(ending) and len(lower) > len(ending) + 2),
        "",
    )
