"""How a model reads texts: all that the cutting of windows needs to know of it.

Windows depend on a model's tokenizer and on its BOS policy, never on its weights. So the functions
that cut them take a `TextReader`, which every `lrt_lens.models.HookedModel` is.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

SKIP_FIRST = 4
"""Number of masked positions at the start of a text.

Many models have massive activations there, so no map is fitted on them.
"""


@runtime_checkable
class TextReader(Protocol):
    """A model as far as its texts are concerned: tokenizer and BOS policy."""

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the Hugging Face interface."""
        ...

    @property
    def prepend_bos(self) -> bool:
        """True if BOS is the first token of every text."""
        ...

    @property
    def prefix(self) -> list[int]:
        """Ids of the special tokens before every text."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokenizer's special tokens."""
        ...

    @property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer; equal hashes mean that both split texts into the same ids."""
        ...

    def encode_bodies(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the token ids of each text without special tokens, at full length."""
        ...


def special_tokens(model: TextReader) -> np.ndarray:
    """Return the ids of a model's special tokens, ascending.

    Callers ask once for many windows, because a tokenizer builds the list at every call.
    """
    return np.array(sorted(model.special_ids))


def unmasked(ids: Sequence[int], special: np.ndarray, skip_first: int) -> np.ndarray:
    """Return the positions after the first ``skip_first`` whose tokens are not special."""
    keep = ~np.isin(ids, special)
    keep[:skip_first] = False
    return np.flatnonzero(keep)
