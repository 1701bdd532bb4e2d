"""Random columns through which wide streams are seen; they depend on a seed and the width only.

Problem: cross-moments of every hook pair take d_source · d_target numbers each, and many questions
need only sums over all dimensions of a side. Mechanism: such sums are estimated from a few random
columns, which all shards and ranks draw alike:

    orthonormal_columns(768, 64, seed=0)    # Q of a Gaussian matrix: uniform among such columns
    sign_columns(768, 64, seed=0)           # entries ±1: E‖yR‖²/64 = ‖y‖² (Hutchinson 1990)
    subsampled_columns(2304, 512, seed=0)   # random signs, a cosine transform, 512 of its columns

The subsampled randomised transform (Woolfe et al. 2008; Tropp 2011) keeps the geometry of a stream:
its columns are orthonormal up to a common factor, and every dimension reaches every column.

Limits: columns are drawn on the CPU, because generators of other devices give other numbers.
"""

import torch
from torch import Tensor

SKETCH_WIDTH = 64
"""Dimensions onto which the sketched null projects a target hook point.

Ridge fits each output dimension separately, so R² on random dimensions is an unbiased estimate.
"""


def orthonormal_columns(d: int, k: int, seed: int) -> Tensor:
    """Return k random orthonormal columns, [d, k] in float64."""
    generator = torch.Generator().manual_seed(seed + d)
    basis, _ = torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))
    return basis


def sign_columns(d: int, k: int, seed: int) -> Tensor:
    """Return k columns of random signs, [d, k] in float64."""
    generator = torch.Generator().manual_seed(seed + d)
    return torch.randint(0, 2, (d, k), generator=generator).double() * 2 - 1


def subsampled_columns(d: int, k: int, seed: int) -> Tensor:
    """Return k of the d columns of a randomised cosine transform, times √(d/k): [d, k], float64.

    Squared norms are kept in the mean: E‖xΩ‖² = ‖x‖².
    """
    from scipy.fft import dct

    generator = torch.Generator().manual_seed(seed + d)
    signs = torch.randint(0, 2, (d,), generator=generator).double() * 2 - 1
    chosen = torch.randperm(d, generator=generator)[:k].sort().values
    transform = torch.from_numpy(dct(torch.eye(d, dtype=torch.float64).numpy(), norm="ortho"))
    return signs[:, None] * transform[:, chosen] * (d / k) ** 0.5
