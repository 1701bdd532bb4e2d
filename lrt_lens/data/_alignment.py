"""Pairs of positions in two tokenizations of one text at which both models have read exactly the
same characters.

A map between two streams is fitted on pairs of states that know the same text. With one tokenizer
these are equal positions; with two they are, for every character boundary at which tokens of both
end, the last token of each that ends there.

    aligner = Aligner(small.tokenizer, large.tokenizer)
    for alignment in aligner.align(texts):
        x[alignment.first_positions], y[alignment.second_positions]        # states behind the same characters

Tokenizers of one vocabulary fall through to identical positions: one tokenization, no offsets.
Positions count body tokens, without BOS. Limits: what a tokenizer drops (accents, white space,
unknown characters) it has read without knowing it; see `boundaries`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from lrt_lens.data._boundaries import (
    NO_BOUNDARY,
    TextTokens,
    boundary_reader,
    text_starts,
    tokenize,
)
from lrt_lens.errors import MismatchError
from lrt_lens.models._identity import tokenizer_hash


@dataclass(frozen=True, eq=False)
class Alignment:
    """One text in the tokens of two tokenizers, and the positions at which both have read the same
    characters.
    """

    first_ids: Int[np.ndarray, " first"]
    second_ids: Int[np.ndarray, " second"]
    first_positions: Int[np.ndarray, " pair"]
    """Places in ``first_ids``, strictly increasing."""
    second_positions: Int[np.ndarray, " pair"]
    """Their partners in ``second_ids``, strictly increasing."""

    @property
    def n_pairs(self) -> int:
        """Pairs of positions."""
        return len(self.first_positions)

    @property
    def share(self) -> tuple[float, float]:
        """Share of the first's and of the second's tokens that are aligned; NaN for a text without
        tokens.
        """
        return aligned_share([self])

    @property
    def swapped(self) -> "Alignment":
        """The same with the roles exchanged."""
        return Alignment(
            self.second_ids, self.first_ids, self.second_positions, self.first_positions
        )


class Aligner:
    """Aligns texts under two tokenizers; prepared once, used for any number of batches.

    ``same`` says whether both have one vocabulary and cut alike, so that positions are identical.
    ValueError where one of two different tokenizers gives neither offsets nor text back.
    """

    def __init__(self, first: Any, second: Any, *, same: bool | None = None) -> None:
        """``same`` where the answer is known already; the tokenizers are compared without it."""
        self.same = (
            first is second or tokenizer_hash(first) == tokenizer_hash(second)
            if same is None
            else same
        )
        self._tokenizer = first
        self._readers = None if self.same else (boundary_reader(first), boundary_reader(second))

    def align(self, texts: Sequence[str]) -> list[Alignment]:
        """The alignment of each text; one in which nothing aligns has no pairs."""
        if not texts:
            return []
        if self._readers is None:
            return [
                _identical(np.array(ids, dtype=np.int64))
                for ids in tokenize(self._tokenizer, texts)["input_ids"]
            ]
        first, second = (reader.read(texts) for reader in self._readers)
        return _shared(first, second, texts)


def align(text: str, first: Any, second: Any) -> Alignment:
    """Positions of equal content in one text under two tokenizers; `Aligner` does many texts.

    Raises `MismatchError` where the text has no pair of positions, ValueError where a tokenizer
    gives neither offsets nor text back.
    """
    alignments = Aligner(first, second).align([text])
    refuse_unaligned(alignments)
    return alignments[0]


def refuse_unaligned(alignments: Sequence[Alignment]) -> None:
    """Raise `MismatchError` where not one position is aligned in any of the texts, saying how many
    tokens there were.
    """
    if not any(alignment.n_pairs for alignment in alignments):
        n_first, n_second = (sum(len(ids) for ids in side) for side in _ids(alignments))
        raise nothing_aligns(len(alignments), n_first, n_second)


def nothing_aligns(n_texts: int, n_first: int, n_second: int) -> MismatchError:
    """The error for texts of so many tokens in which not one position is aligned."""
    if n_first == n_second == 0:
        return MismatchError(
            f"{n_texts} text(s) have no token at all, so nothing aligns; give texts that are not empty"
        )
    return MismatchError(
        f"no boundary between characters is shared in {n_texts} text(s) of {n_first} and {n_second} tokens; expected at least one: "
        "both tokenizers must be able to spell the texts (unknown characters and dropped text align nowhere): give texts in their language"
    )


def aligned_share(alignments: Sequence[Alignment]) -> tuple[float, float]:
    """Share of all tokens of the first and of the second tokenizer that are aligned; NaN where
    there are no tokens.
    """
    n_pairs = sum(alignment.n_pairs for alignment in alignments)
    n_first, n_second = (sum(len(ids) for ids in side) for side in _ids(alignments))
    return n_pairs / n_first if n_first else float(
        "nan"
    ), n_pairs / n_second if n_second else float("nan")


def _ids(alignments: Sequence[Alignment]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [alignment.first_ids for alignment in alignments], [
        alignment.second_ids for alignment in alignments
    ]


def _identical(ids: np.ndarray) -> Alignment:
    positions = np.arange(len(ids))
    return Alignment(ids, ids, positions, positions)


def _shared(
    first: list[TextTokens], second: list[TextTokens], texts: Sequence[str]
) -> list[Alignment]:
    """Boundaries that both close, for all texts at once: a table over characters instead of a
    search.
    """
    starts = text_starts(texts)
    n_characters = int(starts[-1]) + len(texts[-1]) + 1
    (first_places, first_tokens, first_counts), (second_places, second_tokens, _) = (
        _closed(side, starts) for side in (first, second)
    )
    token_at = np.full(n_characters, NO_BOUNDARY, dtype=np.int64)
    token_at[second_places] = second_tokens
    partners = token_at[first_places]
    both = partners != NO_BOUNDARY
    bounds = np.append(0, np.cumsum(both))[np.append(0, np.cumsum(first_counts))].tolist()
    a, b = first_tokens[both], partners[both]
    return [
        Alignment(x.ids, y.ids, a[begin:end], b[begin:end])
        for x, y, begin, end in zip(first, second, bounds, bounds[1:], strict=False)
    ]


def _closed(
    side: list[TextTokens], starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of all boundaries in the joined texts, the tokens that close them (counted within
    their text), and their number a text.
    """
    lengths = np.fromiter((len(tokens.ids) for tokens in side), np.int64, len(side))
    ends = np.concatenate([tokens.ends for tokens in side])
    text = np.repeat(np.arange(len(side)), lengths)
    token = np.arange(len(ends)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    closes = ends != NO_BOUNDARY
    return (
        (ends + starts[text])[closes],
        token[closes],
        np.bincount(text[closes], minlength=len(side)),
    )
