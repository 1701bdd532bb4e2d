"""Parts of a corpus, and the keys of documents that decide them.

Problem: every process, shard and later run must assign a document to the same fold, and copies of a
document to one fold. Mechanism: the key of a document is a hash of its normalised text, or of its
group, and its part is a function of the key: one of the cross-validation folds (five by default),
or one of the groups of the test fold (eight by default). `Parts` holds both numbers. The test fold
has the same documents, a sixth of all, whatever the numbers are.

    part_of(document_key("Some text.", seed=0))       # 0 … 12, with the default numbers
    document_key("some  text", 0) == document_key("Some text.", 0)
    PART_NAMES[5]                                     # "test0"
    Parts(n_folds=3, n_test_groups=2).of(key)         # 0 … 4

Limits: surveys, activation caches, and rows of SAEs and code maps always have the default numbers.
Copies that differ in more than blanks, case and punctuation have other keys (`near_duplicates`
finds them); two texts that differ only in punctuation are one document.
"""

import datetime
import hashlib
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

N_FOLDS = 5
"""Default number of cross-validation folds."""
N_TEST_GROUPS = 8
"""Default number of groups of documents inside the test fold, for intervals."""
_MOST_FOLDS, _MOST_TEST_GROUPS = 20, 64
_TEST_FOLD = 6
"""One of so many documents is in the test fold."""
_KEYS_IN_USE = 48
"""Keys are divided by it before another number of folds is drawn from them: test fold and default
groups depend on the remainder alone.
"""


@dataclass(frozen=True)
class Parts:
    """Numbers of cross-validation folds and of groups of the test fold.

    Parts are numbered: first the folds, then the groups of the test fold. A document's part depends
    on its key and on these numbers; whether it is in the test fold depends on its key alone.

    Raises:
        ValueError: a number is out of its range.
    """

    n_folds: int = N_FOLDS
    """Cross-validation folds, 2 to 20."""
    n_test_groups: int = N_TEST_GROUPS
    """Groups of documents inside the test fold, 1 to 64. With one group, scores of the test fold
    have no intervals.
    """

    def __post_init__(self) -> None:
        ranges = {"n_folds": (2, _MOST_FOLDS), "n_test_groups": (1, _MOST_TEST_GROUPS)}
        for name, (least, most) in ranges.items():
            number: Any = getattr(self, name)
            is_number = isinstance(number, int | float | np.integer | np.floating)
            is_whole = is_number and not isinstance(number, bool) and number == number // 1
            if not is_whole or not least <= number <= most:
                raise ValueError(
                    f"{name} is {number!r}; expected a whole number from {least} to {most}: give "
                    f"such a number, or leave {name} out for {getattr(type(self), name)}"
                )
            object.__setattr__(self, name, int(number))

    @property
    def n_parts(self) -> int:
        """Number of parts, which is that of the folds and of the test groups."""
        return self.n_folds + self.n_test_groups

    @property
    def fit(self) -> tuple[int, ...]:
        """Numbers of the parts on which maps are fitted and chosen, which are the folds."""
        return tuple(range(self.n_folds))

    @property
    def test(self) -> tuple[int, ...]:
        """Numbers of the parts that are only scored, which are the groups of the test fold."""
        return tuple(range(self.n_folds, self.n_parts))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts in files, ``fold0``, ``fold1``, …, ``test0``, ``test1``, …."""
        groups = range(self.n_test_groups)
        return (*(f"fold{k}" for k in self.fit), *(f"test{g}" for g in groups))

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """Expected share of the documents in each fold, and at the end in the whole test fold."""
        of_fold = Fraction(_TEST_FOLD - 1, _TEST_FOLD * self.n_folds)
        return (*(of_fold,) * self.n_folds, Fraction(1, _TEST_FOLD))

    @property
    def enough_documents(self) -> int:
        """Number of documents among which hardly any fold is empty."""
        # Among 100, one of six shares of 1/6 is empty with probability 6·(5/6)¹⁰⁰ = 7e-8; among
        # 400, one of the smallest shares, 20 of 1/24, with 20·(23/24)⁴⁰⁰ = 8e-7.
        return max(100, 20 * self.n_folds)

    def of(self, key: int) -> int:
        """Return the part of the document with this key."""
        # The sixth remainder is the test fold; its group is ⌊key / 6⌋ mod n_test_groups: other
        # digits of the hash, so that the group does not depend on the fold.
        fold = key % _TEST_FOLD
        if fold == _TEST_FOLD - 1:
            return self.n_folds + key // _TEST_FOLD % self.n_test_groups
        # The other five remainders are the five default folds.
        return fold if self.n_folds == N_FOLDS else key // _KEYS_IN_USE % self.n_folds


DEFAULT_PARTS = Parts()
"""Five folds, and eight groups of the test fold."""
N_PARTS = DEFAULT_PARTS.n_parts
"""Default number of parts: the folds, then the groups of the test fold."""
PART_NAMES = DEFAULT_PARTS.names
"""Names of the default parts."""

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
    """Return the default part of the document with this key: 0 to 4 are folds, 5 to 12 test groups.

    `Parts.of` has other numbers of folds and groups. A part of 5 or more is the test fold, whose
    documents are the same for all of them.
    """
    return DEFAULT_PARTS.of(key)
