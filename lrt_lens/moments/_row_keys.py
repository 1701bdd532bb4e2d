"""Keys and parts of rows whose documents a user names by ids.

    keys = document_keys(["a", "a", "b"], seed=0)       # [row], one key per document
    parts_of(keys)                                      # [row], 0 … 12

Limits: an id is taken as it is written; ids of copies have nothing in common.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lrt_lens.data._parts import exact_key, part_of


def document_keys(documents: Sequence[Any] | Tensor | np.ndarray, seed: int) -> np.ndarray:
    """Return the key of the document of each row, [row] of uint64, from the ids of documents.

    Keys and parts are those of `CrossMoments.from_activations`.
    """
    ids = (
        list(documents.tolist()) if isinstance(documents, Tensor | np.ndarray) else list(documents)
    )
    # Ids are no texts: "a-1" and "a 1" are two documents.
    key_by_id = {identifier: exact_key(identifier, seed) for identifier in set(ids)}
    return np.array([key_by_id[identifier] for identifier in ids], dtype=np.uint64)


def parts_of(keys: np.ndarray) -> np.ndarray:
    """Return the part of each row, [row], from the keys of its document."""
    # `part_of` once per document, not per row.
    distinct, inverse = np.unique(keys, return_inverse=True)
    return np.array([part_of(int(key)) for key in distinct])[inverse]
