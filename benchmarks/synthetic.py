"""Moments of all layer pairs in the shapes of Pythia-70m and -160m, without running a model.

Rows are random: a shared latent and noise, with a power law of scales over dimensions, as
activations have. There are few rows, but more than dimensions; the cost of a fit depends only on
the shapes of the moments. There is no token hook and no null, so that only the maps of the grid are
fitted.
"""

import torch
from torch import Tensor

from benchmarks.measuring import Settings
from benchmarks.models import PYTHIA, TINY, PairShape, Shape
from lrt_lens.data import N_PARTS
from lrt_lens.models import residual_post
from lrt_lens.moments import CrossMoments

_LATENT = 64
"""Dimensions of the shared latent."""


def grid_shape(settings: Settings) -> PairShape:
    """The shapes of the two models of the grid."""
    return TINY if settings.quick else PYTHIA


def synthetic_moments(settings: Settings) -> CrossMoments:
    """Moments of all pairs, with 1,024 rows per part (128 with ``--quick``)."""
    shape, rows = grid_shape(settings), 128 if settings.quick else 1024
    generator = torch.Generator().manual_seed(settings.seed)
    mixing = [_mixing(decoder, generator) for decoder in (shape.source, shape.target)]
    sources, targets = list(mixing[0]), list(mixing[1])
    moments = CrossMoments(pairs=tuple((s, t) for s in sources for t in targets))
    for part in range(N_PARTS):
        latent = torch.randn(rows, _LATENT, generator=generator)
        x, y = (
            {hook: _rows(latent, mix, generator) for hook, mix in side.items()} for side in mixing
        )
        moments.add_block(part, x, y)
    return moments


def _mixing(decoder: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """Random maps from the latent to every hook point, [latent, d]."""
    return {
        residual_post(layer): torch.randn(_LATENT, decoder.d_model, generator=generator)
        / _LATENT**0.5
        for layer in range(decoder.n_layers)
    }


def _rows(latent: Tensor, mixing: Tensor, generator: torch.Generator) -> Tensor:
    """Rows of one hook point, [token, d], of which dimension k has scale k^(−1/2)."""
    d = mixing.shape[1]
    scales = torch.arange(1, d + 1).float() ** -0.5
    return (latent @ mixing + 0.5 * torch.randn(len(latent), d, generator=generator)) * scales
