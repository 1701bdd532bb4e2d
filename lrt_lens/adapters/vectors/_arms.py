"""Arms of an evaluation of steering vectors: the transferred vector and its controls.

Problem: the effect of a transferred vector means little without that of a native vector and of
vectors that should have no effect. Mechanism: each arm is a `SteeringVector` on the target, so that
one measurement serves all of them.

| arm | vector |
| --- | --- |
| ``transferred`` | the vector through the stitch |
| ``refit`` | the vector through each map that was fitted without one fold |
| ``native`` | learnt on the target, at the stitch's target hook point |
| ``native_best`` | learnt on the target, at the hook point with the largest effect |
| ``shuffled`` | the vector through the map of shuffled pairs |
| ``permuted`` | learnt from permuted labels, through the stitch |
| ``random`` | random directions: half isotropic, half with the target stream's covariance |
| ``bias_only`` | the bias of the map alone, if the transfer adds it |
| ``untransformed`` | the vector without any map, if both models have the same width |

Limits: an arm has a direction and a length; whether lengths matter depends on the evaluation.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._random_directions import random_directions
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VectorArm:
    """A vector on the target and the name of the arm that it belongs to."""

    name: str
    """Name of the arm, as in the table of the module docstring."""
    vector: SteeringVector
    """Vector on the target model."""
    draw: int | None = None
    """Number of the vector in an arm of several vectors; None in an arm of one vector."""


def transferred_arms(
    stitch: Stitch, vector: SteeringVector, options: dict[str, Any]
) -> Iterator[VectorArm]:
    """Yield the vector through the stitch, through each refit, and through the shuffled-pair map.

    ``options`` are the rules of transfer (``bias``, ``norm``) of `transfer_vector`.
    """
    # Callers take the first arm as the transferred one.
    yield VectorArm("transferred", stitch.transfer(vector, **options))
    # A refit has its own map but the statistics of the whole stitch, so only the map differs.
    for k, refit in enumerate(stitch.refits):
        yield VectorArm("refit", stitch.transfer(vector, through=refit.up, **options), draw=k)
    if stitch.null is not None:
        yield VectorArm("shuffled", stitch.transfer(vector, through=stitch.null.up, **options))
    else:
        logger.warning(
            "the stitch has no map of shuffled pairs, so the arm 'shuffled' is left out; "
            "fit this hook pair alone with null='full' to have it"
        )


def learnt_arms(
    pair: ModelPair,
    stitch: Stitch,
    vector: SteeringVector,
    contrast: ContrastSet,
    options: dict[str, Any],
    n_permuted: int,
) -> Iterator[VectorArm]:
    """Yield the arms that are learnt from the contrast set: ``native`` and ``permuted``.

    A permuted vector is learnt on the source from permuted labels, then transferred.
    """
    yield VectorArm("native", vector.relearnt(pair.target, contrast, at=stitch.target_hook))
    for seed in range(n_permuted):
        permuted = vector.relearnt(pair.source, contrast.permuted(seed), at=stitch.source_hook)
        yield VectorArm("permuted", stitch.transfer(permuted, **options), draw=seed)


def drawn_arms(
    stitch: Stitch, like: SteeringVector, n_random: int, seed: int
) -> Iterator[VectorArm]:
    """Yield ``n_random`` random directions of the length of ``like``.

    The first half is isotropic, the others have the covariance of the target's stream.
    """
    if n_random < 1:
        return
    # A generator of its own: drawing vectors must not change the samples of any other part.
    generator = torch.Generator().manual_seed(seed)
    covariance = stitch.target_statistics.covariance
    # One call per row: `torch.randn(n, d)` would give other numbers (see `random_directions`).
    rows = [
        torch.randn(len(covariance), generator=generator, dtype=torch.float64)
        for _ in range(n_random)
    ]
    for draw, direction in enumerate(random_directions(torch.stack(rows), covariance)):
        named = replace(like, name=f"random {draw}", method="random")
        yield VectorArm("random", _with_direction(named, direction), draw=draw)


def plain_arms(
    stitch: Stitch, vector: SteeringVector, like: SteeringVector, options: dict[str, Any]
) -> Iterator[VectorArm]:
    """Yield simpler explanations of a transfer, as long as ``like``: the bias, the vector unmapped.

    ``bias_only`` exists only if the transfer adds the bias, ``untransformed`` only if the widths of
    both models agree.
    """
    if options.get("bias") == "add":
        named = replace(like, name="bias only", method="bias")
        yield VectorArm("bias_only", _with_direction(named, stitch.up.bias.float()))
    # A source direction is a target direction only if both have the same number of entries.
    if len(vector.direction) == len(like.direction):
        named = replace(like, name="untransformed", method="untransformed")
        yield VectorArm("untransformed", _with_direction(named, vector.direction))


def contrast_of(vector: SteeringVector, contrast: ContrastSet | None) -> ContrastSet | None:
    """Return the texts that the vector was learnt from; None if they are unknown.

    Raises:
        MismatchError: ``contrast`` holds other texts than those of the vector.
    """
    if contrast is not None and vector.contrast and contrast.digest != vector.contrast:
        raise MismatchError(
            f"vector {vector.name!r} was learnt from other texts than contrast={contrast.name!r}; "
            "give the set it was learnt from"
        )
    return contrast or vector.contrast_set


def known_contrast_of(vector: SteeringVector, contrast: ContrastSet | None) -> ContrastSet:
    """Return the texts that the vector was learnt from, as `contrast_of`.

    Raises:
        ValueError: they are unknown.
    """
    texts = contrast_of(vector, contrast)
    if texts is None:
        raise ValueError(
            f"vector {vector.name!r} does not hold the texts it was learnt from; "
            "give contrast=..., from which the native vector is learnt"
        )
    return texts


def behaviour_arms(
    pair: ModelPair,
    stitch: Stitch,
    vector: SteeringVector,
    contrast: ContrastSet,
    n_random: int,
    seed: int,
) -> list[VectorArm]:
    """Return the arms native, transferred, shuffled, untransformed and random, in this order.

    Refits and permuted labels are left out; the lengths of the vectors do not matter here.
    """
    # Callers take the first arm as the native one. {}: transfer without bias, with matched length.
    native = list(learnt_arms(pair, stitch, vector, contrast, {}, 0))
    transferred = [arm for arm in transferred_arms(stitch, vector, {}) if arm.name != "refit"]
    like = native[0].vector
    return [
        *native,
        *transferred,
        *plain_arms(stitch, vector, like, {}),
        *drawn_arms(stitch, like, n_random, seed),
    ]


def _with_direction(like: SteeringVector, direction: Tensor) -> SteeringVector:
    """Return ``like`` with another direction of the same length."""
    # ‖like‖ · d / ‖d‖ in the precision of d; vectors are float32.
    scaled = direction / direction.norm() * like.norm
    return replace(like, direction=scaled.float())
