"""The arms of a steering evaluation: the transferred vector beside its controls.

``native`` and ``native_best`` are learnt on the target, at the stitch's hook point and at the best
of all; ``shuffled`` goes through the map of shuffled pairs; ``permuted`` takes the true map on
vectors learnt from shuffled labels; ``random`` draws half isotropic directions and half from N(0,
Syy); ``bias_only`` is the stitch's bias where the bias was added; ``untransformed`` where widths
agree. Each is a `SteeringVector` on the target, so all go through the same measurement.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arm:
    """One vector to be measured on the target."""

    name: str
    vector: SteeringVector
    draw: int | None = None
    """Number of the draw, for arms that are drawn many times; None for the others."""


def transferred_arms(
    stitch: Stitch, vector: SteeringVector, options: dict[str, Any]
) -> Iterator[Arm]:
    """The transferred vector, the same through each leave-one-fold-out map, and through the map of
    shuffled pairs.
    """
    yield Arm("transferred", stitch.transfer(vector, **options))
    for k, refit in enumerate(stitch.refits):
        yield Arm("refit", stitch.transfer(vector, through=refit.up, **options), draw=k)
    if stitch.null is not None:
        yield Arm("shuffled", stitch.transfer(vector, through=stitch.null.up, **options))
    else:
        logger.warning(
            "the stitch has no map of shuffled pairs; the arm 'shuffled' is left out: fit this pair alone with null='full'"
        )


def learnt_arms(
    pair: ModelPair,
    stitch: Stitch,
    vector: SteeringVector,
    contrast: ContrastSet,
    options: dict[str, Any],
    n_permuted: int,
) -> Iterator[Arm]:
    """Vectors that need the contrast set: native on the target, and transferred ones learnt from
    shuffled labels.
    """
    yield Arm("native", vector.relearnt(pair.target, contrast, at=stitch.target_hook))
    for seed in range(n_permuted):
        shuffled = vector.relearnt(pair.source, contrast.permuted(seed), at=stitch.source_hook)
        yield Arm("permuted", stitch.transfer(shuffled, **options), draw=seed)


def drawn_arms(stitch: Stitch, like: SteeringVector, n_random: int, seed: int) -> Iterator[Arm]:
    """Random directions as long as ``like``: the first half isotropic, the others with the target
    stream's own covariance.
    """
    generator = torch.Generator().manual_seed(seed)
    covariance = stitch.target_statistics.covariance.double().cpu()
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt()
    for draw in range(n_random):
        noise = torch.randn(len(covariance), generator=generator, dtype=torch.float64)
        direction = noise if draw < n_random // 2 else root @ noise
        direction = direction / direction.norm() * like.norm
        yield Arm(
            "random",
            replace(like, direction=direction.float(), name=f"random {draw}", method="random"),
            draw=draw,
        )


def plain_arms(
    stitch: Stitch, vector: SteeringVector, like: SteeringVector, options: dict[str, Any]
) -> Iterator[Arm]:
    """Controls that explain a transfer away: the bias by itself, and the vector without any map."""
    if options.get("bias") == "add":
        bias = stitch.up.bias.float()
        yield Arm(
            "bias_only",
            replace(
                like, direction=bias / bias.norm() * like.norm, name="bias only", method="bias"
            ),
        )
    if len(vector.direction) == len(like.direction):
        untransformed = vector.direction / vector.norm * like.norm
        yield Arm(
            "untransformed",
            replace(
                like, direction=untransformed.float(), name="untransformed", method="untransformed"
            ),
        )
