"""Random maps in place of a stitch's maps, as a control.

    control = stitch.transfer(sae, through=random_rotation(stitch, generator))

Problem: how much of an SAE's score comes from the geometry of a trained SAE alone? Mechanism: the
SAE is transferred by a random (semi-)orthogonal matrix with the target's mean and total variance.
The control keeps the geometry and contains no other information about the target.

Limits: dimensions of large variance are not aligned, which a harder control would do.
"""

import torch

from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching._stitch_data import StitchData


def random_rotation(stitch: StitchData, generator: torch.Generator) -> MapPair:
    """Maps with a random (semi-)orthogonal matrix that match means and total variances.

    All singular values of the matrix are equal, so the geometry of the decoder survives: the score
    of an SAE through these maps is what geometry alone explains.
    """
    source, target = stitch.source_statistics, stitch.target_statistics
    d_source, d_target = len(source.mean), len(target.mean)
    width = max(d_source, d_target)
    square = torch.randn(width, width, generator=generator, dtype=torch.float64)
    # Q of a Gaussian matrix, cut to [d_source, d_target]: orthonormal rows or columns.
    rotation = torch.linalg.qr(square).Q[:d_source, :d_target]
    S_x, S_y = source.covariance.double(), target.covariance.double()
    # up = s Q with s² = tr(S_y) / tr(Qᵀ S_x Q), so that images have the total variance tr(S_y).
    up = rotation * (S_y.trace() / (rotation.T @ S_x @ rotation).trace()).sqrt()
    down = rotation.T * (S_x.trace() / (rotation @ S_y @ rotation.T).trace()).sqrt()
    m_x, m_y = source.mean.double(), target.mean.double()
    # b = m_y − m_x W maps the source's mean to the target's.
    return MapPair(
        AffineMap(up, m_y - m_x @ up, stitch.source_hook, stitch.target_hook),
        AffineMap(down, m_x - m_y @ down, stitch.target_hook, stitch.source_hook),
    )
