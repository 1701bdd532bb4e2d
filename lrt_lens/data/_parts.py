"""Parts of a corpus, and the keys of documents that decide them.

Problem: every process, shard and later run must assign a document to the same fold, and copies of a
document to one fold. Mechanism: the key of a document is a hash of its normalised text, or of its
group, and its part is a function of the key: one of five cross-validation folds, or one of eight
groups of the test fold.

    part_of(document_key("Some text.", seed=0))       # 0 … 12
    document_key("some  text", 0) == document_key("Some text.", 0)
    PART_NAMES[5]                                     # "test0"

Limits: copies that differ in more than blanks, case and punctuation have other keys
(`near_duplicates` finds them); two texts that differ only in punctuation are one document.
"""

import datetime
import hashlib
import re
import unicodedata
from typing import Any

import numpy as np

N_FOLDS = 5
"""Cross-validation folds."""
N_TEST_GROUPS = 8
"""Groups of documents inside the test fold, for intervals."""
N_PARTS = N_FOLDS + N_TEST_GROUPS
"""Parts in all: the folds, then the groups of the test fold."""
PART_NAMES = tuple(
    [f"fold{k}" for k in range(N_FOLDS)] + [f"test{g}" for g in range(N_TEST_GROUPS)]
)

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
"""Soft hyphen, zero-width characters, marks of direction, and the byte order mark."""
_BETWEEN_WORDS = re.compile(r"[\W_]+")
_WHOLE = re.compile(r"([+-]?\d+)\.0+")
"""A whole number as tables write it if the column also holds fractions or missing values."""
_MIDNIGHT = re.compile(r"(\d{4}-\d\d-\d\d)[T ]00:00:00(\.0+)?")
"""A date as tables write it in a column of times."""


def normalised(text: str) -> str:
    """Return the words of a text, in the form in which copies of a document are equal.

    Unicode NFKC, case folded, without invisible characters; runs of everything that is no letter
    and no digit (blanks, line feeds, quotes, dashes) become one space. A text without letters and
    digits keeps its characters, with each run of blanks as one space.
    """
    whole = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    # Case folding may leave a form that NFKC would change again.
    whole = unicodedata.normalize("NFKC", whole.casefold())
    return _BETWEEN_WORDS.sub(" ", whole).strip() or " ".join(whole.split())


def document_key(text: str, seed: int) -> int:
    """Return a 64-bit hash of a document's `normalised` text, which decides its fold.

    The fold therefore does not depend on the document's position, the shard or the process, and
    copies that differ in blanks, case or punctuation share it.
    """
    return exact_key(normalised(text), seed)


def group_text(value: Any) -> str:
    """Return a group, or the id of a document, as text; values that are equal have equal texts.

    1, 1.0, numpy's 1 and the text ``"1.0"`` are one group, and so are a date and its midnight,
    because a column changes its type with a missing value. True is not 1.
    """
    if isinstance(value, np.generic) and not isinstance(value, np.datetime64 | np.timedelta64):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, datetime.date):
        value = value.isoformat()
    text = str(value)
    whole = _WHOLE.fullmatch(text) or _MIDNIGHT.fullmatch(text)
    return whole[1] if whole else text


def exact_key(text: str, seed: int) -> int:
    """Return a 64-bit hash of a text as it is written, which tells copies apart."""
    # The seed is the key of the hash: another seed gives independent folds.
    content = text.encode("utf-8", "replace")
    digest = hashlib.blake2b(content, digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big")


def part_of(key: int) -> int:
    """Return the part of the document with this key: 0 to 4 are folds, 5 to 12 test groups."""
    # fold = key mod 6, the sixth value is the test fold; group = ⌊key / 6⌋ mod 8: other digits of
    # the hash, so that the test group does not depend on the fold.
    fold, group = key % (N_FOLDS + 1), (key // (N_FOLDS + 1)) % N_TEST_GROUPS
    return fold if fold < N_FOLDS else N_FOLDS + group
