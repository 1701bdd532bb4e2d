"""Ends of tokens in a text: which tokens have read exactly the first c characters.

Problem: two tokenizers split one text differently; only characters are common to both. Mechanism:
`TextTokens.ends` gives, for each token, the number of characters of the text that the tokens up to
it spell, if that is a whole number. Fast tokenizers return it as offsets (`OffsetReader`); for all
others, prefixes of the ids are decoded (`PrefixReader`). Normalised text (lower case, NFKC,
stripped accents) is counted in characters of the original.

    tokens = token_boundaries(tokenizer, "naïve 🙂")
    tokens.ids[tokens.ends == 5]          # the last token of "naïve"

Special tokens that are written in a text are read as text. A token closes a boundary only if no
later token begins before it: of the byte tokens of one emoji, only the last does. If a normaliser
composes or reorders characters (NFC and similar), a character and its combining marks stay
together, because offsets inside such a cluster are not reliable.

Limits: unknown tokens and dropped characters stay lost. `PrefixReader` finds no boundaries after a
token whose decoding differs from the text.
"""

import logging
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
from einops import rearrange
from jaxtyping import Int

from lrt_lens.models._tokenizer_copy import tokenizer_copy

logger = logging.getLogger(__name__)

NO_BOUNDARY = -1
"""Value in `TextTokens.ends` of a token that closes no character boundary.

It ends inside a character, or a later token ends at the same boundary.
"""

_PROBE = "The cat sat on the mat, and it was happy."
"""Text that tells whether a tokenizer's boundaries can be read at all."""
_COMPOSING = ("NFC", "NFD", "NFKC", "NFKD", "Precompiled", "BertNormalizer")
"""Normalisers of the tokenizers library that compose or reorder characters."""
_LOST_AFTER = 16
"""Number of successive tokens without a boundary after which `PrefixReader` gives up.

A character has at most 4 bytes, so at most 4 byte tokens.
"""


@dataclass(frozen=True, eq=False)
class TextTokens:
    """Tokens of one text, without special tokens added by the tokenizer."""

    ids: Int[np.ndarray, " token"]
    ends: Int[np.ndarray, " token"]
    """Number of characters that the tokens up to each one spell, or `NO_BOUNDARY`.

    The numbers are strictly increasing.
    """


@runtime_checkable
class BoundaryReader(Protocol):
    """Reader of tokens and boundaries for one tokenizer."""

    def read(self, texts: Sequence[str]) -> list[TextTokens]:
        """Return the tokens of each text with the boundaries that they close."""
        ...


def token_boundaries(tokenizer: Any, text: str) -> TextTokens:
    """Return the token ids of ``text`` and the character boundary that each token closes.

    Raises:
        ValueError: the tokenizer can neither return offsets nor decode.
    """
    return boundary_reader(tokenizer).read([text])[0]


def boundary_reader(tokenizer: Any) -> BoundaryReader:
    """Return a reader of this tokenizer's boundaries: by offsets, or else by decoding.

    Raises:
        ValueError: the tokenizer can do neither; the message says how it failed.
    """
    # Slow tokenizers have no `backend_tokenizer`, and some wrappers fail only when they are called:
    # read one text, and see whether the last token reaches its end.
    try:
        reader: BoundaryReader = OffsetReader(tokenizer)
        probe = reader.read([_PROBE])[0]
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        logger.info(
            "%s gives no offsets (%s); its boundaries are read by decoding",
            type(tokenizer).__name__,
            error,
        )
        return _decoding_reader(tokenizer, error)
    if len(_PROBE) not in probe.ends:
        reached = int(probe.ends.max(initial=0))
        error = ValueError(f"its offsets end at {reached} of {len(_PROBE)} characters")
        return _decoding_reader(tokenizer, error)
    return reader


def _decoding_reader(tokenizer: Any, no_offsets: Exception) -> BoundaryReader:
    name = type(tokenizer).__name__
    remedy = "load its fast version (a tokenizer.json), or implement decode()"
    try:
        reader = PrefixReader(tokenizer)
        probe = reader.read([_PROBE])[0]
        spelled = tokenizer.decode(probe.ids.tolist())
    except Exception as error:  # tokenizers with remote code can raise anything
        raise ValueError(
            f"{name} gives neither offsets ({no_offsets}) nor text back"
            f" ({type(error).__name__}: {error});"
            f" one of them is needed to align two tokenizers: {remedy}"
        ) from error
    if len(_PROBE) not in probe.ends:
        raise ValueError(
            f"{name} gives no offsets ({no_offsets}) and spells {_PROBE!r} as {spelled!r}, which no"
            f" known normalisation (lower case, NFKC, white space) explains: {remedy}"
        )
    return reader


def tokenize(tokenizer: Any, texts: Sequence[str], **options: bool) -> Any:
    """Return the encoding of texts without added tokens, special tokens in them read as text."""
    return tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False, **options
    )


# --------------------------------------------------------------------------------------- by offsets


class OffsetReader:
    """Reader of boundaries from a fast tokenizer's offsets, in one NumPy pass over all texts."""

    def __init__(self, tokenizer: Any) -> None:
        backend = tokenizer.backend_tokenizer
        # A copy, because reading special tokens as text is a setting of the tokenizer itself, which
        # other threads may use.
        tokenizer = tokenizer_copy(tokenizer)
        if _trims(backend.post_processor):
            # Trimmed offsets leave out white space that a token has read. Without a post-processor
            # nothing is trimmed; otherwise it only adds special tokens, which are not used here.
            tokenizer.backend_tokenizer.post_processor = None
        self._tokenizer = tokenizer
        self._composes = backend.normalizer is not None and any(
            f'"type":"{name}"'.encode() in backend.normalizer.__getstate__() for name in _COMPOSING
        )

    def read(self, texts: Sequence[str]) -> list[TextTokens]:
        """Return the tokens of each text with the boundaries that they close."""
        encoded = tokenize(
            self._tokenizer,
            texts,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        # One flat array for all texts, because a loop over their tokens in Python would be slow.
        counts = np.fromiter(map(len, encoded["input_ids"]), np.int64, len(texts))
        n = int(counts.sum())
        ids = np.fromiter(chain.from_iterable(encoded["input_ids"]), np.int64, n)
        flat = np.fromiter(
            chain.from_iterable(chain.from_iterable(encoded["offset_mapping"])), np.int64, 2 * n
        )
        offsets = rearrange(flat, "(token edge) -> token edge", edge=2)
        # Offsets in the joined texts = offsets in the text + start of the text.
        shift = np.repeat(text_starts(texts), counts)
        joined = "\n".join(texts)
        clusters = _cluster_ends(joined) if self._composes and not joined.isascii() else None
        begins, reaches = offsets[:, 0] + shift, offsets[:, 1] + shift
        ends = _closed_boundaries(begins, reaches, len(joined), clusters) - shift
        ends[ends <= 0] = NO_BOUNDARY
        bounds = [0, *np.cumsum(counts).tolist()]
        return [TextTokens(ids[a:b], ends[a:b]) for a, b in pairwise(bounds)]


def text_starts(texts: Sequence[str]) -> np.ndarray:
    """Return the start of each text when all are joined with one character between them.

    That character keeps the end of a text and the start of the next apart.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    return np.cumsum(lengths) - lengths


def _trims(post_processor: Any) -> bool:
    """Return whether a post-processor of the tokenizers library trims offsets."""
    # The library has no attribute for it; the pickled state is JSON in bytes.
    return post_processor is not None and b'"trim_offsets":true' in post_processor.__getstate__()


def _closed_boundaries(
    starts: Int[np.ndarray, " token"],
    ends: Int[np.ndarray, " token"],
    length: int,
    clusters: np.ndarray | None,
) -> Int[np.ndarray, " token"]:
    """Return the boundary that each token closes in the joined texts, or 0.

    ``clusters`` is the result of `_cluster_ends`; None if no character combines with another.
    """
    if not len(ends):
        return ends
    # reached[k] = max(ends[:k + 1]): the characters read after token k.
    reached = np.maximum.accumulate(ends)
    # later[k] = min(starts[k + 1:]): byte tokens of one character, and reordered ones, begin before
    # characters that are read already.
    later = np.append(np.minimum.accumulate(starts[::-1])[::-1][1:], length)
    if clusters is not None:
        # A mark that a normaliser composed or dropped is in no token's offsets; it is read with
        # the character before it.
        reached = np.minimum(clusters[reached], np.maximum(later, reached))
    closed = later >= reached
    if clusters is not None:
        closed &= clusters[reached] == reached
    # Of several tokens that reach the same boundary, the last closes it.
    closed[:-1] &= reached[:-1] != reached[1:]
    return np.where(closed, reached, 0)


def _cluster_ends(joined: str) -> np.ndarray:
    """Return, for each boundary c, the first boundary from c on that splits no cluster.

    A cluster is a character with the characters after it that combine with it.
    """
    codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
    boundaries = np.arange(len(codes) + 1)
    # No character below U+0300 combines with the previous one.
    distinct = np.unique(codes[codes >= 0x300])
    combining = [code for code in distinct.tolist() if _combines_with_previous(chr(code))]
    boundaries[:-1][np.isin(codes, np.array(combining, dtype=np.uint32))] = len(codes)
    return np.minimum.accumulate(boundaries[::-1])[::-1]


@lru_cache(maxsize=4096)
def _combines_with_previous(character: str) -> bool:
    """Return whether a normaliser may join a character with the previous one, or move it before.

    These are combining marks, and vowels and final consonants of Hangul.
    """
    first = unicodedata.normalize("NFKD", character)[0]
    return (
        unicodedata.category(first)[0] == "M"
        or "\u1160" <= first <= "\u11ff"
        or "\ud7b0" <= first <= "\ud7ff"
    )


# -------------------------------------------------------------------------------------- by decoding


class PrefixReader:
    """Reader of boundaries for a tokenizer that returns no offsets but can decode.

    A token closes a boundary if the tokens up to it decode to the start of the text. Decoding
    begins a few tokens back, so that the time grows with the text's length, not with its square.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def read(self, texts: Sequence[str]) -> list[TextTokens]:
        """Return the tokens of each text with the boundaries that they close."""
        encoded = tokenize(self._tokenizer, texts)["input_ids"]
        return [
            TextTokens(np.array(ids, dtype=np.int64), self._ends(text, ids))
            for text, ids in zip(texts, encoded, strict=True)
        ]

    def _ends(self, text: str, ids: list[int]) -> np.ndarray:
        spelling = _spelling(text, self._decode(ids))
        ends = np.full(len(ids), NO_BOUNDARY, dtype=np.int64)
        # ids[anchor:read] spells the text up to `n_spelled`, ids[:read] included. The ids from
        # `anchor` on give the decoder some context, because it may treat a first token differently.
        anchor = read = n_spelled = 0
        for index in range(len(ids)):
            decoded, known = self._decode(ids[anchor : index + 1]), self._decode(ids[anchor:read])
            length = None
            if decoded.startswith(known):
                length = spelling.advance(n_spelled, decoded[len(known) :])
            # Without progress the token closes no boundary: decoders drop the first bytes of a
            # character until the last one is there.
            end = NO_BOUNDARY
            if length is not None and length > n_spelled:
                end = spelling.characters(length)
            if length is not None and end > 0:
                ends[index] = end
                anchor, read, n_spelled = read, index + 1, length
            elif index - read >= _LOST_AFTER:
                break
        return ends

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        return self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


@dataclass(frozen=True)
class _Spelling:
    """Text as a tokenizer spells it, with the number of original characters per prefix."""

    spelled: str
    counts: dict[int, int]
    """Length of a prefix of ``spelled`` → the fewest characters of the text that give it."""
    spaced: bool = True
    """True if ``spelled`` contains the text's white space."""

    def advance(self, n: int, piece: str) -> int | None:
        """Return the length of the prefix of ``n`` characters extended by ``piece``.

        None if ``spelled`` does not continue with ``piece`` there.
        """
        if not self.spaced:
            if piece != piece.rstrip():
                return None
            piece = _without_space(piece)
        return n + len(piece) if self.spelled.startswith(piece, n) else None

    def characters(self, n: int) -> int:
        """Return the number of characters of the text for a prefix; `NO_BOUNDARY` inside one."""
        return self.counts.get(n, NO_BOUNDARY)


def _without_space(text: str) -> str:
    return "".join(text.split())


_FOLDS: tuple[Callable[[str], str], ...] = (
    str,
    str.lower,
    lambda c: unicodedata.normalize("NFKC", c),
    lambda c: unicodedata.normalize("NFKC", c).lower(),
)
"""Normalisations of single characters that a tokenizer may apply, the exact one first."""


def _spelling(text: str, decoded: str) -> _Spelling:
    """Return the spelling under the first normalisation that turns ``text`` into ``decoded``.

    If there is none, the text itself is the spelling.
    """
    for spaced in (True, False):
        target = decoded if spaced else _without_space(decoded)
        for fold in _FOLDS:
            pieces = [fold(c) if spaced or not c.isspace() else "" for c in text]
            whole = "".join(pieces)
            # Decoders may remove a space at the start of the text, or add one.
            candidates = (
                (whole, 0),
                (whole[1:] if whole[:1] == " " else whole, -1),
                (" " + whole, 1),
            )
            for spelled, shift in candidates:
                if spelled == target:
                    return _Spelling(spelled, _prefix_counts(pieces, shift), spaced)
    return _Spelling(text, {n: n for n in range(len(text) + 1)})


def _prefix_counts(pieces: list[str], shift: int) -> dict[int, int]:
    """Return, per length of the joined pieces plus ``shift``, the fewest pieces that give it."""
    counts: dict[int, int] = {}
    for n_pieces, length in enumerate(accumulate(map(len, pieces), initial=0)):
        counts.setdefault(length + shift, n_pieces)
    return counts
