"""Pairs of positions in two tokenizations of one text that have read the same characters.

Problem: a map between two streams is fitted on pairs of states that know the same text, and two
tokenizers split a text differently. Mechanism: with one tokenizer, equal positions form the pairs.
With two, each character boundary at which a token of both ends gives a pair: of each tokenization,
the last token that ends there.

    aligner = Aligner(small.tokenizer, large.tokenizer)
    for alignment in aligner.align(texts):
        x[alignment.first_positions], y[alignment.second_positions]     # states of the same text

Tokenizers that give the same ids are not aligned by characters: one tokenization serves both.
Positions count body tokens, without BOS.

Limits: characters that a tokenizer drops (accents, white space, unknown characters) count as read,
although the model does not know them; see `lrt_lens.data._boundaries`.
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
from lrt_lens.models._identity import same_tokens


@dataclass(frozen=True, eq=False)
class Alignment:
    """One text in the tokens of two tokenizers, with the pairs of aligned positions."""

    first_ids: Int[np.ndarray, " first"]
    second_ids: Int[np.ndarray, " second"]
    first_positions: Int[np.ndarray, " pair"]
    """Aligned positions in ``first_ids``, strictly increasing."""
    second_positions: Int[np.ndarray, " pair"]
    """Their partners in ``second_ids``, strictly increasing."""

    @property
    def n_pairs(self) -> int:
        """Number of aligned pairs of positions."""
        return len(self.first_positions)

    @property
    def share(self) -> tuple[float, float]:
        """Shares of the first's and of the second's tokens that are aligned; NaN without tokens."""
        return aligned_share([self])

    @property
    def swapped(self) -> "Alignment":
        """This alignment with the two tokenizers exchanged."""
        return Alignment(
            self.second_ids, self.first_ids, self.second_positions, self.first_positions
        )


class Aligner:
    """Aligner of texts under two tokenizers, for any number of batches.

    The attribute ``same`` is True if both tokenizers give the same ids, so that equal positions are
    aligned.

    Raises:
        ValueError: the tokenizers differ, and one of them can neither return offsets nor decode.
    """

    def __init__(self, first: Any, second: Any, *, same: bool | None = None) -> None:
        """``same`` says whether the tokenizers give the same ids; None compares them."""
        self.same = same_tokens(first, second) if same is None else same
        self._tokenizer = first
        self._readers = None if self.same else (boundary_reader(first), boundary_reader(second))

    def align(self, texts: Sequence[str]) -> list[Alignment]:
        """Return the alignment of each text; it has no pairs if nothing aligns."""
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
    """Return the aligned positions of one text under two tokenizers; for many texts see `Aligner`.

    Raises:
        MismatchError: no pair of positions is aligned.
        ValueError: a tokenizer can neither return offsets nor decode.
    """
    alignments = Aligner(first, second).align([text])
    refuse_unaligned(alignments)
    return alignments[0]


def refuse_unaligned(alignments: Sequence[Alignment]) -> None:
    """Raise `MismatchError` if no position is aligned in any of the texts."""
    if not any(alignment.n_pairs for alignment in alignments):
        raise nothing_aligns(len(alignments), *_token_counts(alignments))


def nothing_aligns(n_texts: int, n_first: int, n_second: int) -> MismatchError:
    """Return the error for texts of which no position is aligned, with their token counts."""
    if n_first == n_second == 0:
        return MismatchError(
            f"{n_texts} text(s) have no token at all, so nothing aligns;"
            " give texts that are not empty"
        )
    return MismatchError(
        f"no boundary between characters is shared in {n_texts} text(s) of {n_first} and"
        f" {n_second} tokens; expected at least one."
        " Unknown and dropped characters have no boundaries:"
        " give texts that both tokenizers can spell"
    )


def aligned_share(alignments: Sequence[Alignment]) -> tuple[float, float]:
    """Return the shares of both tokenizers' tokens that are aligned; NaN without tokens."""
    n_pairs = sum(alignment.n_pairs for alignment in alignments)
    n_first, n_second = _token_counts(alignments)
    nan = float("nan")
    return n_pairs / (n_first or nan), n_pairs / (n_second or nan)


def _token_counts(alignments: Sequence[Alignment]) -> tuple[int, int]:
    return (
        sum(len(alignment.first_ids) for alignment in alignments),
        sum(len(alignment.second_ids) for alignment in alignments),
    )


def _identical(ids: np.ndarray) -> Alignment:
    positions = np.arange(len(ids))
    return Alignment(ids, ids, positions, positions)


def _shared(
    first: list[TextTokens], second: list[TextTokens], texts: Sequence[str]
) -> list[Alignment]:
    """Return the alignments of all texts, from the boundaries that tokens of both close."""
    starts = text_starts(texts)
    n_characters = int(starts[-1]) + len(texts[-1]) + 1
    first_boundaries, first_tokens, first_counts = _closed(first, starts)
    second_boundaries, second_tokens, _ = _closed(second, starts)
    # A table over the characters of the joined texts: boundary → the second's token that closes it.
    token_at = np.full(n_characters, NO_BOUNDARY, dtype=np.int64)
    token_at[second_boundaries] = second_tokens
    partners = token_at[first_boundaries]
    shared = partners != NO_BOUNDARY
    # n_shared[k] is the number of shared boundaries among the first k; text i has those between the
    # sums of the counts before and after it.
    n_shared = np.append(0, np.cumsum(shared))
    bounds = n_shared[np.append(0, np.cumsum(first_counts))].tolist()
    a, b = first_tokens[shared], partners[shared]
    return [
        Alignment(x.ids, y.ids, a[begin:end], b[begin:end])
        for x, y, begin, end in zip(first, second, bounds, bounds[1:], strict=False)
    ]


def _closed(
    tokenized: list[TextTokens], starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all boundaries of the joined texts, the tokens that close them, and counts per text.

    Tokens are counted within their text.
    """
    lengths = np.fromiter((len(tokens.ids) for tokens in tokenized), np.int64, len(tokenized))
    ends = np.concatenate([tokens.ends for tokens in tokenized])
    text = np.repeat(np.arange(len(tokenized)), lengths)
    # Index within the text = index among all tokens − number of tokens in the texts before.
    token = np.arange(len(ends)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    closes = ends != NO_BOUNDARY
    return (
        (ends + starts[text])[closes],
        token[closes],
        np.bincount(text[closes], minlength=len(tokenized)),
    )
