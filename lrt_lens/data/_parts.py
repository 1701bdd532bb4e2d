"""Parts of a corpus: five cross-validation folds, and a test fold in eight groups.

Problem: a fold must hold whole documents, and every process, shard and later run must assign a
document to the same fold. Mechanism: the hash of a document's text (`document_key`) decides its
part, wherever the document stands in the stream.

    part_of(document_key("Some text.", seed=0))       # 0 … 12
    PART_NAMES[5]                                     # "test0"

Limits: parts are of about equal size only over many documents; with fewer than 100 documents a
part may stay empty.
"""

N_FOLDS = 5
"""Cross-validation folds."""
N_TEST_GROUPS = 8
"""Groups of documents inside the test fold, for intervals."""
N_PARTS = N_FOLDS + N_TEST_GROUPS
"""Parts in all: the folds, then the groups of the test fold."""
PART_NAMES = tuple(
    [f"fold{k}" for k in range(N_FOLDS)] + [f"test{g}" for g in range(N_TEST_GROUPS)]
)


def part_of(key: int) -> int:
    """Return the part of the document with this key: 0 to 4 are folds, 5 to 12 test groups."""
    # fold = key mod 6, the sixth value is the test fold; group = ⌊key / 6⌋ mod 8: other digits of
    # the hash, so that the test group does not depend on the fold.
    fold, group = key % (N_FOLDS + 1), (key // (N_FOLDS + 1)) % N_TEST_GROUPS
    return fold if fold < N_FOLDS else N_FOLDS + group
