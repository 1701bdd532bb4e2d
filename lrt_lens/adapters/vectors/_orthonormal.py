"""Orthonormal rows that span given rows, each as close to its own row as all can be.

    basis = orthonormal_rows(images)             # [rank, d]

Problem: a map sends orthonormal directions to oblique ones, and the algorithm of Gram and Schmidt
leaves the first as it is and turns the last. Mechanism: the orthonormal rows with the smallest sum
of squared distances to the given ones are the orthogonal factor of their polar decomposition
(symmetric orthonormalisation of Löwdin 1950; the orthogonal Procrustes problem of Schönemann 1966).
A rotation of the given rows rotates the result alike, so that coordinates keep their meaning, and
one row is divided by its length.

Limits: independent rows only; lengths of the given rows weigh how close each stays.
"""

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST = 1e-6
"""Smallest singular value of independent rows, relative to the largest one."""


def orthonormal_rows(
    rows: Float[Tensor, "rank d"], what: str = "the directions", remedy: str = "give other ones"
) -> Float[Tensor, "rank d"]:
    """Return orthonormal rows with the span of ``rows``, in float64 on their device.

    Raises:
        ValueError: the rows depend on each other; the message names ``what`` and a ``remedy``.
    """
    # R = U Σ Vᵀ, polar factor U Vᵀ
    left, values, right = torch.linalg.svd(rows.double(), full_matrices=False)
    n_independent = int((values > SMALLEST * values.max()).sum())
    if n_independent < len(rows):
        raise ValueError(
            f"{what} span {n_independent} dimension(s) instead of {len(rows)}; expected independent"
            f" ones: {remedy}"
        )
    return left @ right
