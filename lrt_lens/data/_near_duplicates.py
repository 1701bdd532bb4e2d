"""Near-duplicates: documents that say almost the same, and whether they share a fold.

Problem: a copy in the test fold of a document that a map was fitted on raises the score. Copies
that differ in blanks, case or punctuation share a fold by themselves (`document_key`); others, such
as two versions of one article, do not. Mechanism: documents are sets of shingles, five words in a
row of the normalised text. datasketch finds candidates by MinHash and locality-sensitive hashing,
and the Jaccard similarity of their shingles decides.

    report = near_duplicates(documents, threshold=0.8)
    report.n_across_folds                     # documents with a near-duplicate in another fold
    report.table                              # one row per group
    harvest(pair, documents, group=report.group)

Source: Broder, "On the resemblance and containment of documents" (1997); Lee et al., arXiv
2107.06499, for language models.

Limits: shingles of all documents are in memory; a pair near the threshold may be missed, with a
probability of about 2 % at a similarity of 0.85 for the default threshold.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xxhash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lrt_lens._repr_html import card, facts, table
from lrt_lens.data._documents import DocumentReader, Documents, DocumentSource
from lrt_lens.data._parts import N_FOLDS, Parts, document_key, normalised

_PERMUTATIONS = 128
"""Hashes per document; the standard deviation of an estimated similarity is at most 0.044."""
_MISS_LESS = (0.1, 0.9)
"""Weights of false candidates, which are checked, and of missed pairs, which are not."""
_LARGEST_THRESHOLD = 0.95
"""Threshold above which datasketch has too few bands; its candidates are compared exactly."""
_CHARACTERS_PER_WORD = 20
"""Mean length of a word above which a text has no blanks between words."""
_WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Letters of Thai, Lao, Tibetan, Burmese, Khmer, Japanese and Chinese, whose words have no blanks
between them.
"""


@dataclass(frozen=True)
class NearDuplicates:
    """Groups of documents that are near-duplicates of each other."""

    n_documents: int
    """Number of documents that were compared."""
    threshold: float
    """Smallest Jaccard similarity of the shingles of a pair."""
    pairs: pd.DataFrame = field(repr=False)
    """Pairs of near-duplicates: the numbers of their documents ``first`` and ``second``, counted
    from 0, their ``similarity``, and ``across_folds``. Of documents with the same shingles, the
    first one is paired with each other one, and it alone with further documents.
    """
    group: list[int] = field(repr=False)
    """Group of each document, missing and blank ones included, for ``harvest(…, group=…)``.
    Documents are in one group if a chain of pairs, or of documents that share a ``group`` of the
    caller's, connects them; the group is the smallest hash of their texts, so it does not depend on
    their order.
    """
    table: pd.DataFrame = field(repr=False)
    """One row per group of at least two documents, largest first: its ``n_documents``, the number
    of ``folds`` that it is in, the first document's number and the beginning of its text.
    """

    @property
    def n_duplicates(self) -> int:
        """Number of documents beyond the first one of each group."""
        return sum(self.table["n_documents"]) - len(self.table)

    @property
    def n_across_folds(self) -> int:
        """Number of groups that are in more than one fold."""
        return sum(n_folds > 1 for n_folds in self.table["folds"])

    def __repr__(self) -> str:
        return (
            f"NearDuplicates({self.n_duplicates:,} of {self.n_documents:,} documents repeat another"
            f" at similarity {self.threshold:g}, in {len(self.table):,} groups, of which"
            f" {self.n_across_folds:,} are in more than one fold)"
        )

    def _repr_html_(self) -> str:
        counts = {
            "documents": self.n_documents,
            "that repeat another": self.n_duplicates,
            "groups": len(self.table),
            "groups in several folds": self.n_across_folds,
            "similarity": self.threshold,
        }
        return card("NearDuplicates", facts(counts), table(self.table))


def near_duplicates(
    documents: Documents,
    *,
    threshold: float = 0.8,
    n_words: int = 5,
    seed: int = 0,
    text_field: str | None = None,
    group: Any = None,
    n_folds: int = N_FOLDS,
) -> NearDuplicates:
    """Return the near-duplicates among documents, and how many of them are in different folds.

    Args:
        documents: documents in any form that `harvest` accepts, except chats.
        threshold: smallest Jaccard similarity ``|A ∩ B| / |A ∪ B|`` of the shingles of a pair.
        n_words: words per shingle; characters in texts without blanks between words.
        seed: seed of the folds, as in the harvest.
        text_field: column of the texts, as in the harvest.
        group: documents that share a fold, as in the harvest; they stay together in the groups of
            the result.
        n_folds: number of cross-validation folds, as in the harvest.

    Raises:
        ValueError: the threshold is not between 0 and 1, ``n_words`` is below 1, ``n_folds`` is
            out of its range, or there is no document.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a similarity above 0 and at most 1")
    if n_words < 1:
        raise ValueError(f"n_words is {n_words}; expected at least 1 word per shingle")
    parts = Parts(n_folds)
    rows, keys, folds, shingles = list[int](), list[int](), list[int](), list[np.ndarray]()
    starts, shared = list[str](), dict[int, list[int]]()
    reader = DocumentReader(DocumentSource.of(documents, text_field, group))
    for document in reader:
        if document.group is not None:
            shared.setdefault(document.key(seed), []).append(len(rows))
        # Missing documents are numbered too, as for `group` of a harvest.
        rows.append(len(rows) + reader.n_empty)
        keys.append(document_key(document.text, seed))
        # All groups of the test fold are one fold.
        folds.append(min(parts.of(document.key(seed)), n_folds))
        shingles.append(_shingles(document.text, n_words))
        starts.append(document.text[:80])
    if not shingles:
        raise ValueError("there is no document to compare; give at least two")
    pairs = _similar_pairs(shingles, threshold)
    fold, row = np.array(folds), np.array(rows)
    first, second = pairs["first"].to_numpy(), pairs["second"].to_numpy()
    duplicates = list(zip(first.tolist(), second.tolist(), strict=True))
    component = _components(len(fold), duplicates)
    together = [(same[0], other) for same in shared.values() for other in same[1:]]
    groups = _group_values(_components(len(fold), duplicates + together), keys)
    by_row = dict(zip(rows, groups, strict=True))
    # A document that is missing is in no fold; any value stands for it.
    groups = [by_row.get(number, 0) for number in range(len(rows) + reader.n_empty)]
    frame = pd.DataFrame({"group": component, "fold": fold, "document": row, "text": starts})
    pairs = pairs.assign(
        first=row[first], second=row[second], across_folds=fold[first] != fold[second]
    )
    return NearDuplicates(len(fold), threshold, pairs, groups, _group_table(frame))


def _components(n: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the connected component of each of ``n`` documents in the graph of ``pairs``."""
    first, second = np.array(pairs, dtype=int).reshape(-1, 2).T
    edges = coo_array((np.ones(len(pairs)), (first, second)), shape=(n, n))
    return connected_components(edges, directed=False)[1]


def _group_values(component: np.ndarray, keys: Sequence[int]) -> list[int]:
    """Return for each document the smallest key in its component."""
    smallest: dict[int, int] = {}
    for key, number in zip(keys, component.tolist(), strict=True):
        smallest[number] = min(key, smallest.get(number, key))
    return [smallest[number] for number in component.tolist()]


def _shingles(text: str, n_words: int) -> np.ndarray:
    """Return the sorted hashes of a text's shingles, each once; a short text is one shingle."""
    content = normalised(text)
    words, letters = content.split(" "), content.replace(" ", "")
    # Blanks come from punctuation there: they separate clauses, not words.
    has_no_blanks = 2 * len(_WITHOUT_BLANKS.findall(letters)) > len(letters)
    if has_no_blanks or len(content) > _CHARACTERS_PER_WORD * len(words):
        words = list(letters)
    runs = range(max(1, len(words) - n_words + 1))
    hashes = [xxhash.xxh3_64_intdigest(" ".join(words[k : k + n_words]).encode()) for k in runs]
    return np.unique(np.array(hashes, dtype=np.uint64))


def _similar_pairs(shingles: list[np.ndarray], threshold: float) -> pd.DataFrame:
    """Return (first, second, similarity) of all pairs whose shingles are similar enough."""
    import datasketch

    # Equal sets are compared once: a text with a thousand copies would make a million pairs.
    by_content: dict[bytes, list[int]] = defaultdict(list)
    for number, hashes in enumerate(shingles):
        by_content[hashes.tobytes()].append(number)
    rows = [(same[0], other, 1.0) for same in by_content.values() for other in same[1:]]
    # A similarity of 1 has only equal sets, and datasketch has no bands for it.
    distinct = [same[0] for same in by_content.values()] if threshold < 1 else []
    index = datasketch.MinHashLSH(
        min(threshold, _LARGEST_THRESHOLD), num_perm=_PERMUTATIONS, weights=_MISS_LESS
    )
    for first in distinct:
        sketch = datasketch.MinHash(num_perm=_PERMUTATIONS, hashfunc=_low_bits)
        sketch.update_batch(shingles[first].tolist())
        for other in map(int, index.query(sketch)):  # pyright: ignore[reportArgumentType] (keys are ints)
            similarity = _jaccard(shingles[first], shingles[other])
            if similarity >= threshold:
                rows.append((other, first, similarity))
        index.insert(first, sketch, check_duplication=False)
    columns = {"first": int, "second": int, "similarity": float}
    return pd.DataFrame(sorted(rows), columns=list(columns)).astype(columns)


def _low_bits(number: int) -> int:
    # datasketch permutes numbers of 32 bits.
    return number & 0xFFFFFFFF


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    # |A ∩ B| / (|A| + |B| − |A ∩ B|)
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def _group_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per group of several documents, from one row per document."""
    by_group = frame.groupby("group").agg(
        n_documents=("document", "size"),
        folds=("fold", "nunique"),
        first=("document", "first"),
        text=("text", "first"),
    )
    several = by_group[by_group["n_documents"] > 1]
    order = np.lexsort((several["first"], -several["n_documents"]))
    return several.iloc[order].reset_index(drop=True)
