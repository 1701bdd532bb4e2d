"""The same sentence about something else: content words replaced, function words and punctuation
kept.

    rewriter = ContentWords.of(documents, tokenizer_of=model)
    versions = rewriter.versions("The cat sat under the old table.", n=5, rng=rng)   # [original, five others], all of equal length

Stitching (§5, appendix H.1) lets a language model rewrite sentences so; here content words are
exchanged for other words of the corpus. A word is a content word if it is none of scikit-learn's
English stop words (318 function words; the dozen among them that are nouns, verbs or adjectives
count as content). Its substitute has the same case, the same ending (-ing, -ed, -ly, -s, …) and the
same number of tokens, and where the corpus has enough of them it has stood between the same
neighbours, function words or punctuation, so that syntax mostly and length exactly stay.

Limits: English. Words are exchanged one by one: sense is lost where a rewriting model would keep
it, and parts of speech agree only as far as endings show them. Rewrites of the user's own go to
`evaluate_features(rewrites=…)`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lrt_lens.models._hooked_model import HookedModel

_WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*")
_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’]?\s+")
_ENDINGS = ("ing", "ed", "ly", "est", "er", "'s", "s", "y")
_CONTENT_ANYWAY = frozenset(
    {
        "amount",
        "bill",
        "bottom",
        "cry",
        "describe",
        "detail",
        "etc",
        "fill",
        "find",
        "fire",
        "front",
        "interest",
        "mill",
        "serious",
        "show",
        "side",
        "sincere",
        "system",
        "thick",
        "thin",
        "top",
    }
)
"""Words that scikit-learn's list calls stop words although they name, do or describe something."""
_CONTRACTED = re.compile(
    r"^(?:[a-z]+n['’]t|(?:i|you|he|she|it|we|they|that|there|who|what|let)['’](?:m|s|re|ve|ll|d))$"
)
_NEIGHBOUR = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*|[^\w\s]")
_ENOUGH = 5
"""Words that must fit between the same neighbours, else one neighbour is enough, or none."""
_ATTEMPTS = 6
"""Draws of a version before a sentence is given up."""
MINIMUM_WORDS, MAXIMUM_WORDS, MINIMUM_CONTENT = 5, 40, 3
"""Words of a sentence that is used, and content words in it."""


@lru_cache
def function_words() -> frozenset[str]:
    """Lower-case words that carry structure."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS) - _CONTENT_ANYWAY


def is_content(word: str) -> bool:
    """Whether a word names, does or describes something."""
    lower = word.lower()
    return len(word) > 1 and lower not in function_words() and not _CONTRACTED.match(lower)


def sentences(text: str) -> Iterator[str]:
    """Sentences of a usable length, by full stops, question and exclamation marks."""
    for piece in _SENTENCE.split(" ".join(text.split())):
        words = _WORD.findall(piece)
        if (
            MINIMUM_WORDS <= len(words) <= MAXIMUM_WORDS
            and sum(map(is_content, words)) >= MINIMUM_CONTENT
        ):
            yield piece.strip()


@dataclass(frozen=True)
class ContentWords:
    """Content words of a corpus by shape, and how one model cuts them."""

    by_shape: dict[tuple[str, str, int], list[str]]
    """(case, ending, tokens) → distinct words, in alphabetical order."""
    between: dict[tuple[str, str], set[str]]
    """("behind" or "before", function word or punctuation) → the words that stood there."""
    model: HookedModel

    @classmethod
    def of(
        cls, texts: Iterable[str], model: HookedModel, *, minimum_count: int = 2
    ) -> "ContentWords":
        """Of words that occur at least ``minimum_count`` times."""
        counts: Counter[str] = Counter()
        between: dict[tuple[str, str], set[str]] = defaultdict(set)
        for text in texts:
            for word, places in _neighbours(text):
                counts[word] += 1
                for neighbour in places:
                    between[neighbour].add(word)
        words = sorted(word for word, count in counts.items() if count >= minimum_count)
        by_shape: dict[tuple[str, str, int], list[str]] = defaultdict(list)
        for word, shape in zip(words, _shapes(words, model), strict=True):
            by_shape[shape].append(word)
        return cls(dict(by_shape), dict(between), model)

    def versions(self, sentence: str, n: int, rng: np.random.Generator) -> list[str] | None:
        """[sentence, n rewrites], different and of equal length in tokens; None where the corpus
        has no words for them.
        """
        length = len(self.model.encode_bodies([sentence])[0])
        found = [sentence]
        for _ in range(_ATTEMPTS * n):
            if len(found) == n + 1:
                break
            rewrite = self._rewrite(sentence, rng)
            if (
                rewrite not in found
                and rewrite is not None
                and len(self.model.encode_bodies([rewrite])[0]) == length
            ):
                found.append(rewrite)
        return found if len(found) == n + 1 else None

    def _rewrite(self, sentence: str, rng: np.random.Generator) -> str | None:
        """Every content word replaced, the same word by the same substitute; None where one has no
        substitute.
        """
        found = dict(reversed(list(_neighbours(sentence))))
        chosen: dict[str, str] = {}
        for (word, places), shape in zip(
            found.items(), _shapes(list(found), self.model), strict=True
        ):
            others = self._fitting(
                [other for other in self.by_shape.get(shape, []) if other not in found], places
            )
            if not others:
                return None
            chosen[word] = others[int(rng.integers(len(others)))]
        return _WORD.sub(lambda match: chosen.get(match[0], match[0]), sentence)

    def _fitting(self, words: list[str], places: list[tuple[str, str]]) -> list[str]:
        """Of these words, those that stood in all of these places, in one of them, or all of them,
        as soon as there are enough.
        """
        stood = [
            [word for word in words if word in self.between.get(place, ())] for place in places
        ]
        both = [word for word in stood[0] if word in set(stood[-1])] if stood else []
        return next((found for found in (both, *stood) if len(found) >= _ENOUGH), words)


def rewritten_sentences(
    texts: Sequence[str], model: HookedModel, *, n_sentences: int, n_rewrites: int, seed: int
) -> list[list[str]]:
    """Sentences with their rewrites, drawn from texts; ValueError where none can be rewritten at
    equal length.
    """
    rng = np.random.default_rng([seed, 5])
    pool = list(dict.fromkeys(sentence for text in texts for sentence in sentences(text)))
    words = ContentWords.of(texts, model)
    found: list[list[str]] = []
    for place in rng.permutation(len(pool)):
        if len(found) == n_sentences:
            break
        versions = words.versions(pool[int(place)], n_rewrites, rng)
        if versions is not None:
            found.append(versions)
    if not found:
        raise ValueError(
            f"none of {len(pool)} sentence(s) in the text could be rewritten at equal length with {n_rewrites} other sets of content words; give "
            "more text, rewrites=[[sentence, rewrite, …], …] of your own, or n_sentences=0 to leave this out"
        )
    return found


def _neighbours(text: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Every content word with the function words or punctuation on either side of it."""
    pieces = _NEIGHBOUR.findall(text)
    for at, word in enumerate(pieces):
        if _WORD.fullmatch(word) and is_content(word):
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
    """(case, ending, tokens behind a space) of each word."""
    tokens = model.encode_bodies([" " + word for word in words]) if words else []
    return [(_case(word), _ending(word), len(ids)) for word, ids in zip(words, tokens, strict=True)]


def _case(word: str) -> str:
    return (
        "upper"
        if word.isupper()
        else "lower"
        if word.islower()
        else "title"
        if word[0].isupper()
        else "mixed"
    )


def _ending(word: str) -> str:
    lower = word.lower().replace("’", "'")
    return next(
        (ending for ending in _ENDINGS if lower.endswith(ending) and len(lower) > len(ending) + 2),
        "",
    )
