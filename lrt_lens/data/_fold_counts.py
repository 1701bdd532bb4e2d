"""Documents and tokens of each fold, and a warning if they are few or far from equal.

    counts = FoldCounts(documents=[…], tokens=[…])      # one number per part
    counts.add(part=0, n_tokens=24, n_documents=1, unit=document.key)
    counts.table                                        # fold0 … fold4 and test, with their shares
    counts.complaint                                    # a sentence, or None

Documents of one group, and copies, are one *unit*: only units are independent.

Limits: `near_duplicates` finds units that are nearly copies. Of a fold with thousands of units only
those with most tokens are counted, so that the largest share may be slightly too small.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lrt_lens.data._parts import DEFAULT_PARTS, Parts

FEW_DOCUMENTS = 10
"""Number of documents below which the score of a fold says more about them than about text."""
_LEAST, _MOST = 0.5, 1.5
"""Shares of tokens, relative to the expected one, outside which a fold is called uneven."""
_LARGEST_UNIT = 1 / 3
"""Share of a fold's tokens above which one document or group decides its score."""
_COUNTED = 10_000
"""Number of units per fold whose tokens are counted one by one."""


@dataclass
class FoldCounts:
    """Documents and unmasked tokens of each part of a corpus."""

    documents: list[int] = field(default_factory=list)
    """Number of documents that gave a token [part]; zeros if none are given."""
    tokens: list[int] = field(default_factory=list)
    """Number of unmasked tokens [part]; zeros if none are given."""
    has_groups: bool = False
    """True if units are groups of documents, which changes the words of `complaint`."""
    parts: Parts = DEFAULT_PARTS
    """Numbers of folds and test groups."""
    _units: list[dict[int, int]] = field(default_factory=list, init=False, repr=False)
    """Tokens by unit [fold]; the test fold is the last."""

    def __post_init__(self) -> None:
        self.documents = self.documents or [0] * self.parts.n_parts
        self.tokens = self.tokens or [0] * self.parts.n_parts
        self._units = [{} for _ in self.parts.shares]

    def add(self, part: int, n_tokens: int, n_documents: int, unit: int) -> None:
        """Add tokens of a part, and the documents that begin with them.

        Documents with the same ``unit`` (the hash of their group, or else of their text) are not
        independent.
        """
        self.tokens[part] += n_tokens
        self.documents[part] += n_documents
        units = self._units[min(part, self.parts.n_folds)]
        units[unit] = units.get(unit, 0) + n_tokens
        if len(units) > 2 * _COUNTED:
            # Small units cannot have a third of the tokens; they would fill the memory.
            largest = sorted(units.items(), key=lambda item: -item[1])[:_COUNTED]
            units.clear()
            units.update(largest)

    @property
    def n_units(self) -> int:
        """Number of documents or groups that are counted in all folds."""
        return sum(map(len, self._units))

    @property
    def table(self) -> pd.DataFrame:
        """Table of these counts; see `fold_table`."""
        return fold_table(self.documents, self.tokens, self.parts)

    @property
    def complaint(self) -> str | None:
        """Sentence on uneven folds, with the numbers and the remedy; None if they are even."""
        table, shares = self.table, [float(share) for share in self.parts.shares]
        named = []
        rows: list[dict[str, Any]] = table.to_dict("records")
        folds = zip(table.index, rows, self._units, shares, strict=True)
        for name, row, units, expected in folds:
            largest = max(units.values(), default=0) / max(1, row["tokens"])
            is_even = _LEAST * expected <= row["share"] <= _MOST * expected
            are_many = self._n_independent(row, units) >= FEW_DOCUMENTS
            if not (is_even and are_many and largest <= _LARGEST_UNIT):
                named.append(f"{name} {self._described(row, units, largest)}")
        if not named:
            return None
        units = "groups" if self.has_groups else "documents"
        return (
            f"uneven folds: {', '.join(named)}; expected at least {FEW_DOCUMENTS} {units} and"
            f" about {_expected(shares)} of the tokens each, and at most a third of a fold from one"
            f" of them, or the scores of these folds depend on single {units}: give more {units},"
            " or "
            + (
                "finer ones, or shuffle the rows if those of one group follow each other"
                if self.has_groups
                else "split long ones"
            )
        )

    def _n_independent(self, row: dict[str, Any], units: dict[int, int]) -> int:
        # Copies of a text are one unit too, but they count as documents that were given.
        return len(units) if self.has_groups else row["documents"]

    def _described(self, row: dict[str, Any], units: dict[int, int], largest: float) -> str:
        groups = f" in {len(units)} group(s)" if self.has_groups else ""
        one = "group" if self.has_groups else "document"
        part = f", {largest:.0%} of them from one {one}" if largest > _LARGEST_UNIT else ""
        return (
            f"{row['documents']} document(s){groups} with {row['tokens']:,.0f} tokens"
            f" ({row['share']:.0%}){part}"
        )


def _expected(shares: Sequence[float]) -> str:
    """Return the expected shares of a fold and of the test fold as text, one if they are equal."""
    of_fold, of_test = f"{shares[0]:.0%}", f"{shares[-1]:.0%}"
    return of_fold if of_fold == of_test else f"{of_fold} (the test fold: {of_test})"


def fold_table(
    documents: Sequence[int] | None, tokens: Sequence[int], parts: Parts = DEFAULT_PARTS
) -> pd.DataFrame:
    """Return the number of documents, the number of tokens and the share of tokens of each fold.

    The rows are fold0, fold1, …, and test for all groups of the test fold.

    Args:
        documents: documents of each part; None if they are not known, which leaves the column NA.
        tokens: unmasked tokens of each part.
        parts: numbers of folds and test groups.
    """
    n_folds = parts.n_folds

    def by_fold(counts: Sequence[int]) -> list[int]:
        return [*counts[:n_folds], sum(counts[n_folds:])]

    names, n_tokens = [*parts.names[:n_folds], "test"], by_fold(tokens)
    n_documents = [pd.NA] * len(names) if documents is None else by_fold(documents)
    whole = sum(n_tokens) or float("nan")
    columns = {
        "documents": pd.array(n_documents, dtype="Int64"),
        "tokens": n_tokens,
        "share": [n / whole for n in n_tokens],
    }
    return pd.DataFrame(columns, index=pd.Index(names, name="fold"))
