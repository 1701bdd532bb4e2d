"""Documents and tokens of each fold, and a warning if they are few or far from equal.

    counts = FoldCounts(documents=[…], tokens=[…])      # one number per part
    counts.table                                        # fold0 … fold4 and test, with their shares
    counts.complaint                                    # a sentence, or None

Limits: it counts documents, not what they share; `near_duplicates` finds copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from lrt_lens.data._parts import N_FOLDS, N_PARTS, PART_NAMES

FEW_DOCUMENTS = 10
"""Number of documents below which the score of a fold says more about them than about text."""
_LEAST, _MOST = 0.5, 1.5
"""Shares of tokens, relative to a sixth, outside which a fold is called uneven."""


@dataclass
class FoldCounts:
    """Documents and unmasked tokens of each part of a corpus."""

    documents: list[int] = field(default_factory=lambda: [0] * N_PARTS)
    """Number of documents that gave a token [part]."""
    tokens: list[int] = field(default_factory=lambda: [0] * N_PARTS)
    """Number of unmasked tokens [part]."""

    def add(self, part: int, n_tokens: int, n_documents: int) -> None:
        """Add tokens of a part, and the documents that begin with them."""
        self.tokens[part] += n_tokens
        self.documents[part] += n_documents

    @property
    def table(self) -> pd.DataFrame:
        """Table of these counts; see `fold_table`."""
        return fold_table(self.documents, self.tokens)

    @property
    def complaint(self) -> str | None:
        """Sentence on uneven folds, with the numbers and the remedy; None if they are even."""
        rows = self.table.to_dict("records")
        expected = 1 / len(rows)
        named = [
            f"{name} {row['documents']} document(s) with {row['tokens']:,} tokens"
            f" ({row['share']:.0%})"
            for name, row in zip(self.table.index, rows, strict=True)
            if row["documents"] < FEW_DOCUMENTS
            or not _LEAST * expected <= row["share"] <= _MOST * expected
        ]
        if not named:
            return None
        return (
            f"uneven folds: {', '.join(named)}; expected at least {FEW_DOCUMENTS} documents and"
            f" about {expected:.0%} of the tokens each, or the scores of these folds depend on"
            " single documents: give more documents, or split long ones"
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
