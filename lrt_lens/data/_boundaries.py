"""Where tokens end in a text: which tokens have read exactly the first c characters.

Two tokenizers cut one text differently; what they share is characters. For each token this module
says how many characters of the text the tokens up to it spell, where that is a whole number:
`TextTokens.ends`. Fast tokenizers say it through their offsets, all others by decoding prefixes.
Normalised text (lower case, NFKC, stripped accents) is counted in characters of the original.

    tokens = token_boundaries(tokenizer, "naïve 🙂")
    tokens.ids[tokens.ends == 5]          # the last token of "naïve"

Special tokens written in a text are text. A token closes a boundary only where no later token
reaches back behind it: of the byte tokens of one emoji, the last. Where a normaliser composes or
reorders (NFC and its kin), a character and its combining marks stay together, because its offsets
inside such a cluster are not to be trusted. Limits: a tokenizer's own losses (unknown tokens,
dropped characters) stay losses; text behind a token that decoding cannot explain has no boundaries
on the slow way.
"""

import copy
import logging
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

logger = logging.getLogger(__name__)

NO_BOUNDARY = -1
"""In `TextTokens.ends`: behind this token no boundary between characters lies, or a later token
ends there too.
"""

_PROBE = "The cat sat on the mat, and it was happy."
"""What a tokenizer must be able to spell."""
_COMPOSING = ("NFC", "NFD", "NFKC", "NFKD", "Precompiled", "BertNormalizer")
"""Normalisers of the tokenizers library that join or reorder characters."""
_LOST_AFTER = 16
"""Tokens in a row that spell nothing of the text, after which the slow way stops looking: a
character has at most 4 bytes.
"""


@dataclass(frozen=True, eq=False)
class TextTokens:
    """One text's tokens, without any that the tokenizer would add."""

    ids: Int[np.ndarray, " token"]
    ends: Int[np.ndarray, " token"]
    """Characters of the text that the tokens up to this one spell, strictly increasing, or
    `NO_BOUNDARY`.
    """


@runtime_checkable
class BoundaryReader(Protocol):
    """Tokens and boundaries of texts, for one tokenizer."""

    def read(self, texts: Sequence[str]) -> list[TextTokens]:
        """Tokens of each text with the boundaries that they close."""
        ...


def token_boundaries(tokenizer: Any, text: str) -> TextTokens:
    """Token ids of ``text`` and the character boundary that each closes; see `boundary_reader` for
    what is refused.
    """
    return boundary_reader(tokenizer).read([text])[0]


def boundary_reader(tokenizer: Any) -> BoundaryReader:
    """How this tokenizer's boundaries are read: by its offsets, or else by decoding.

    Raises ValueError where it gives neither, with what it answered.
    """
    try:
        reader: BoundaryReader = OffsetReader(tokenizer)
        found = reader.read([_PROBE])[0]
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        logger.info(
            "%s gives no offsets (%s); its boundaries are read by decoding",
            type(tokenizer).__name__,
            error,
        )
        return _decoding_reader(tokenizer, error)
    if len(_PROBE) not in found.ends:
        return _decoding_reader(
            tokenizer,
            ValueError(
                f"its offsets end at {int(found.ends.max(initial=0))} of {len(_PROBE)} characters"
            ),
        )
    return reader


def _decoding_reader(tokenizer: Any, no_offsets: Exception) -> BoundaryReader:
    name = type(tokenizer).__name__
    remedy = "load its fast version (a tokenizer.json), or implement decode()"
    try:
        reader = PrefixReader(tokenizer)
        found = reader.read([_PROBE])[0]
        spelled = tokenizer.decode(found.ids.tolist())
    except Exception as error:  # tokenizers of remote code fail in their own ways
        raise ValueError(
            f"{name} gives neither offsets ({no_offsets}) nor text back ({type(error).__name__}: {error}); "
            f"one of them is needed to align two tokenizers: {remedy}"
        ) from error
    if len(_PROBE) not in found.ends:
        raise ValueError(
            f"{name} gives no offsets ({no_offsets}) and spells {_PROBE!r} as {spelled!r}, which no known normalisation (lower case, NFKC, "
            f"white space) explains: {remedy}"
        )
    return reader


def tokenize(tokenizer: Any, texts: Sequence[str], **options: bool) -> Any:
    """The tokenizer's own encoding of texts, nothing added and no special token parsed."""
    return tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False, **options
    )


# --------------------------------------------------------------------------------------- by offsets


class OffsetReader:
    """Boundaries of a fast tokenizer: one pass of numpy over its offsets, whatever the number of
    texts.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = tokenizer.backend_tokenizer
        if _trims(backend.post_processor):
            # Trimmed offsets hide the white space that a token has read. Post-processors only add
            # special tokens, which are off here.
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.backend_tokenizer.post_processor = None
        self._tokenizer = tokenizer
        self._composes = backend.normalizer is not None and any(
            f'"type":"{name}"'.encode() in backend.normalizer.__getstate__() for name in _COMPOSING
        )

    def read(self, texts: Sequence[str]) -> list[TextTokens]:
        """Tokens of each text with the boundaries that they close."""
        encoded = tokenize(
            self._tokenizer,
            texts,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        counts = np.fromiter(map(len, encoded["input_ids"]), np.int64, len(texts))
        n = int(counts.sum())
        ids = np.fromiter(chain.from_iterable(encoded["input_ids"]), np.int64, n)
        offsets = np.fromiter(
            chain.from_iterable(chain.from_iterable(encoded["offset_mapping"])), np.int64, 2 * n
        ).reshape(n, 2)
        firsts = text_starts(texts)
        shift = np.repeat(firsts, counts)
        joined = "\n".join(texts)
        together = _clings(joined) if self._composes and not joined.isascii() else None
        ends = (
            _closed_boundaries(offsets[:, 0] + shift, offsets[:, 1] + shift, len(joined), together)
            - shift
        )
        ends[ends <= 0] = NO_BOUNDARY
        bounds = [0, *np.cumsum(counts).tolist()]
        return [TextTokens(ids[a:b], ends[a:b]) for a, b in pairwise(bounds)]


def text_starts(texts: Sequence[str]) -> np.ndarray:
    """Where each text starts when all are joined with one character between them: no two share a
    boundary.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    return np.cumsum(lengths) - lengths


def _trims(post_processor: Any) -> bool:
    return post_processor is not None and b'"trim_offsets":true' in post_processor.__getstate__()


def _closed_boundaries(
    starts: Int[np.ndarray, " token"],
    ends: Int[np.ndarray, " token"],
    length: int,
    together: np.ndarray | None,
) -> Int[np.ndarray, " token"]:
    """The boundary that each token closes in the joined texts, or 0.

    ``together[c]`` is the end of the run of characters from c on that cling to the one before; None
    where nothing clings.
    """
    if not len(ends):
        return ends
    reached = np.maximum.accumulate(ends)
    # Where the tokens behind this one begin: byte tokens of one character and reordered ones reach
    # back.
    later = np.append(np.minimum.accumulate(starts[::-1])[::-1][1:], length)
    if together is not None:
        # Marks that a normaliser composed into a character, or dropped, lie in no token: they
        # belong to the one before.
        reached = np.minimum(together[reached], np.maximum(later, reached))
    closed = later >= reached
    if together is not None:
        closed &= together[reached] == reached
    closed[:-1] &= reached[:-1] != reached[1:]
    return np.where(closed, reached, 0)


def _clings(joined: str) -> np.ndarray:
    """For each place in the text, the first place from there on whose character does not cling to
    the one before.
    """
    codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
    places = np.arange(len(codes) + 1)
    kinds = np.unique(codes[codes >= 0x300])
    clinging = (
        kinds[[_clings_to_the_one_before(chr(code)) for code in kinds.tolist()]]
        if len(kinds)
        else kinds
    )
    places[:-1][np.isin(codes, clinging)] = len(codes)
    return np.minimum.accumulate(places[::-1])[::-1]


@lru_cache(maxsize=4096)
def _clings_to_the_one_before(character: str) -> bool:
    """Whether a normaliser may join it with, or move it before, what stands in front: marks, and
    vowels and finals of Hangul.
    """
    first = unicodedata.normalize("NFKD", character)[0]
    return (
        unicodedata.category(first)[0] == "M"
        or "\u1160" <= first <= "\u11ff"
        or "\ud7b0" <= first <= "\ud7ff"
    )


# -------------------------------------------------------------------------------------- by decoding


class PrefixReader:
    """Boundaries of a tokenizer that can only decode: a token closes one where the tokens up to it
    decode to the start of the text.

    Prefixes are decoded from a few tokens back, so that the time grows with the text's length and
    not with its square.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def read(self, texts: Sequence[str]) -> list[TextTokens]:
        """Tokens of each text with the boundaries that they close."""
        found = []
        for text, ids in zip(texts, tokenize(self._tokenizer, texts)["input_ids"], strict=True):
            array = np.array(ids, dtype=np.int64)
            found.append(TextTokens(array, self._ends(text, ids)))
        return found

    def _ends(self, text: str, ids: list[int]) -> np.ndarray:
        spelling = _spelling(text, self._decode(ids))
        ends = np.full(len(ids), NO_BOUNDARY, dtype=np.int64)
        anchor = read = n_spelled = 0
        for index in range(len(ids)):
            now, known = self._decode(ids[anchor : index + 1]), self._decode(ids[anchor:read])
            n_behind = (
                spelling.advance(n_spelled, now[len(known) :]) if now.startswith(known) else None
            )
            # A token that adds nothing has read on all the same: decoders drop the first bytes of a
            # character.
            if (
                n_behind is not None
                and n_behind > n_spelled
                and (end := spelling.characters(n_behind)) > 0
            ):
                ends[index] = end
                anchor, read, n_spelled = read, index + 1, n_behind
            elif index - read >= _LOST_AFTER:
                break
        return ends

    def _decode(self, ids: list[int]) -> str:
        return (
            self._tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            if ids
            else ""
        )


@dataclass(frozen=True)
class _Spelling:
    """A text as a tokenizer spells it, with the way back to the text's own characters."""

    spelled: str
    counts: dict[int, int]
    """Length in ``spelled`` → the fewest characters of the text that make it up."""
    spaced: bool = True
    """Whether white space is spelled."""

    def advance(self, n: int, piece: str) -> int | None:
        """Length spelled once ``piece`` is added to the first ``n`` characters; None where the text
        goes on otherwise.
        """
        if not self.spaced:
            if piece != piece.rstrip():
                return None
            piece = _without_space(piece)
        return n + len(piece) if self.spelled.startswith(piece, n) else None

    def characters(self, n: int) -> int:
        """Characters of the text behind a spelled length; `NO_BOUNDARY` inside a character."""
        return self.counts.get(n, NO_BOUNDARY)


def _without_space(text: str) -> str:
    return "".join(text.split())


_FOLDS: tuple[Callable[[str], str], ...] = (
    str,
    str.lower,
    lambda c: unicodedata.normalize("NFKC", c),
    lambda c: unicodedata.normalize("NFKC", c).lower(),
)
"""What a tokenizer may do to each character, from the exact to the loose."""


def _spelling(text: str, decoded: str) -> _Spelling:
    """The first normalisation under which ``decoded`` is the whole of ``text``; the text itself
    where none is.
    """
    for spaced in (True, False):
        for fold in _FOLDS:
            pieces = [fold(c) if spaced or not c.isspace() else "" for c in text]
            whole, target = "".join(pieces), decoded if spaced else _without_space(decoded)
            lengths = list(accumulate(map(len, pieces), initial=0))
            for spelled, shift in (
                (whole, 0),
                (whole[1:] if whole[:1] == " " else whole, -1),
                (" " + whole, 1),
            ):
                if spelled == target:
                    counts: dict[int, int] = {}
                    for characters, length in enumerate(lengths):
                        counts.setdefault(length + shift, characters)
                    return _Spelling(spelled, counts, spaced)
    return _Spelling(text, {n: n for n in range(len(text) + 1)})
