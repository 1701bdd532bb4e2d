"""Keys and parts of rows whose documents a user names by ids.

    keys = document_keys(["a", "a", "b"], seed=0)       # [row], one key per document
    parts_of(keys)                                      # [row], 0 … 12 with the default parts

Limits: ids that differ only in case or punctuation share a part, as texts do.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lrt_lens.data._parts import DEFAULT_PARTS, Parts, document_key, group_text


def document_keys(documents: Sequence[Any] | Tensor | np.ndarray, seed: int) -> np.ndarray:
    """Return the key of the document of each row, [row] of uint64, from the ids of documents.

    Keys and parts are those of `CrossMoments.from_activations`.
    """
    ids = (
        list(documents.tolist()) if isinstance(documents, Tensor | np.ndarray) else list(documents)
    )
    # Texts may serve as ids; their rows are then in the folds of a harvest of these texts.
    key_by_id = {identifier: document_key(group_text(identifier), seed) for identifier in set(ids)}
    return np.array([key_by_id[identifier] for identifier in ids], dtype=np.uint64)


def parts_of(keys: np.ndarray, parts: Parts = DEFAULT_PARTS) -> np.ndarray:
    """Return the part of each row, [row], from the keys of its document."""
    # `Parts.of` once per document, not per row.
    distinct, inverse = np.unique(keys, return_inverse=True)
    return np.array([parts.of(int(key)) for key in distinct])[inverse]
