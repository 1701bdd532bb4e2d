"""Random maps in a stitch's place: the control that keeps a trained SAE's own geometry and knows
nothing of the target.

moved = stitch.transfer(sae, through=random_rotation(stitch, generator))
"""

import torch

from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching._stitch import Stitch


def random_rotation(stitch: Stitch, generator: torch.Generator) -> MapPair:
    """Maps of a random (semi-)orthogonal matrix between the streams' means, scaled to their total
    variances.

    The singular values of a decoder survive, so what a transferred SAE owes to the mere geometry of
    a trained one is seen.
    """
    source, target = stitch.source_statistics, stitch.target_statistics
    d_source, d_target = len(source.mean), len(target.mean)
    square = torch.randn(
        max(d_source, d_target), max(d_source, d_target), generator=generator, dtype=torch.float64
    )
    rotation = torch.linalg.qr(square).Q[:d_source, :d_target]
    covariances = source.covariance.double(), target.covariance.double()
    up = (
        rotation
        * (covariances[1].trace() / (rotation.T @ covariances[0] @ rotation).trace()).sqrt()
    )
    down = (
        rotation.T
        * (covariances[0].trace() / (rotation @ covariances[1] @ rotation.T).trace()).sqrt()
    )
    means = source.mean.double(), target.mean.double()
    return MapPair(
        AffineMap(up, means[1] - means[0] @ up, stitch.source_hook, stitch.target_hook),
        AffineMap(down, means[0] - means[1] @ down, stitch.target_hook, stitch.source_hook),
    )
