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

from lrt_lens.data._parts import N_FOLDS, N_PARTS, PART_NAMES

FEW_DOCUMENTS = 10
"""Number of documents below which the score of a fold says more about them than about text."""
_LEAST, _MOST = 0.5, 1.5
"""Shares of tokens, relative to a sixth, outside which a fold is called uneven."""
_LARGEST_UNIT = 1 / 3
"""Share of a fold's tokens above which one document or group decides its score."""
_COUNTED = 10_000
"""Number of units per fold whose tokens are counted one by one."""


@dataclass
class FoldCounts:
    """Documents and unmasked tokens of each part of a corpus."""

    documents: list[int] = field(default_factory=lambda: [0] * N_PARTS)
    """Number of documents that gave a token [part]."""
    tokens: list[int] = field(default_factory=lambda: [0] * N_PARTS)
    """Number of unmasked tokens [part]."""
    has_groups: bool = False
    """True if units are groups of documents, which changes the words of `complaint`."""
    _units: list[dict[int, int]] = field(
        default_factory=lambda: [{} for _ in range(N_FOLDS + 1)], repr=False
    )
    """Tokens by unit [fold]."""

    def add(self, part: int, n_tokens: int, n_documents: int, unit: int) -> None:
        """Add tokens of a part, and the documents that begin with them.

        Documents with the same ``unit`` (the hash of their group, or else of their text) are not
        independent.
        """
        self.tokens[part] += n_tokens
        self.documents[part] += n_documents
        units = self._units[min(part, N_FOLDS)]
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
        return fold_table(self.documents, self.tokens)

    @property
    def complaint(self) -> str | None:
        """Sentence on uneven folds, with the numbers and the remedy; None if they are even."""
        table, expected = self.table, 1 / (N_FOLDS + 1)
        named = []
        rows: list[dict[str, Any]] = table.to_dict("records")
        for name, row, units in zip(table.index, rows, self._units, strict=True):
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
            f" about {expected:.0%} of the tokens each, and at most a third of a fold from one of"
            f" them, or the scores of these folds depend on single {units}: give more {units}, or"
            " "
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


def fold_table(documents: Sequence[int] | None, tokens: Sequence[int]) -> pd.DataFrame:
    """Return the number of documents, the number of tokens and the share of tokens of each fold.

    The rows are fold0 to fold4, and test for all groups of the test fold.

    Args:
        documents: documents of each part; None if they are not known, which leaves the column NA.
        tokens: unmasked tokens of each part.
    """

    def by_fold(counts: Sequence[int]) -> list[int]:
        return [*counts[:N_FOLDS], sum(counts[N_FOLDS:])]

    names, n_tokens = [*PART_NAMES[:N_FOLDS], "test"], by_fold(tokens)
    n_documents = [pd.NA] * len(names) if documents is None else by_fold(documents)
    whole = sum(n_tokens) or float("nan")
    columns = {
        "documents": pd.array(n_documents, dtype="Int64"),
        "tokens": n_tokens,
        "share": [n / whole for n in n_tokens],
    }
    return pd.DataFrame(columns, index=pd.Index(names, name="fold"))
