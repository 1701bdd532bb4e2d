"""Random directions as controls: one half isotropic, the other half with a stream's covariance.

Problem: a direction that does nothing in particular is not the same in every stream. An isotropic
one is hardly used by a stream that varies along few axes; one drawn from the stream's own
covariance is used as much as its activations are. Mechanism: standard normal rows, of which the
second half is multiplied by a root of the covariance.

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(100, len(covariance), generator=generator, dtype=torch.float64)
    directions = random_directions(noise, covariance)

Limits: the lengths of the rows are those of the draws; a caller that needs one length divides.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def covariance_root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Return R in float64 on the CPU with R Rᵀ = covariance, so that R z ~ N(0, covariance)."""
    values, vectors = torch.linalg.eigh(covariance.double().cpu())
    # S = V Λ Vᵀ, R = V √Λ. Rounding gives a singular S eigenvalues just below 0: they count as 0.
    return vectors * values.clamp_min(0).sqrt()


def random_directions(
    noise: Float[Tensor, "direction d"], covariance: Float[Tensor, "d d"]
) -> Float[Tensor, "direction d"]:
    """Return random directions: the first half isotropic, the others drawn from a covariance.

    Args:
        noise: [direction, d] standard normal float64 numbers. The caller draws them, because
            ``torch.randn(n, d)`` and n calls of ``torch.randn(d)`` give different numbers unless d
            is a multiple of 16.
        covariance: [d, d] of the stream that the second half imitates.
    """
    # With n odd, the additional direction has the covariance.
    n_isotropic = len(noise) // 2
    # z ~ N(0, I) is a column, so a row becomes zᵀ Rᵀ.
    imitating = noise[n_isotropic:] @ covariance_root(covariance).T
    return torch.cat([noise[:n_isotropic], imitating])
