"""Arms of an evaluation of steering vectors: the transferred vector and its controls.

Problem: the effect of a transferred vector means little without that of a native vector and of
vectors that should have no effect. Mechanism: each arm is a `SteeringVector` on the target, so that
one measurement serves all of them.

| arm | vector |
| --- | --- |
| ``transferred`` | the vector through the stitch |
| ``map_refit`` | the vector through each map that was fitted without one fold |
| ``contrast_refit`` | the vector learnt without each group of contrast pairs, through the stitch |
| ``native`` | learnt on the target, at the stitch's target hook point |
| ``native_refit`` | as ``native``, without each group of contrast pairs |
| ``native_best`` | learnt on the target, at the hook point with the largest effect |
| ``shuffled`` | the vector through the map of shuffled pairs, and draws of such maps |
| ``permuted`` | learnt from permuted labels, through the stitch |
| ``random`` | random directions: half isotropic, half with the target stream's covariance |
| ``bias_only`` | the bias of the map alone, if the transfer adds it |
| ``untransformed`` | the vector without any map, if both models have the same width |

**Shuffled pairs.** A stitch has the map of one derangement. With W = (Sxx + λI)⁻¹ Σᵢ xᵢ yᵀ_π(i), it
sends v to Σᵢ (xᵢ·a) y_π(i) with a = (Sxx + λI)⁻¹ v: a sum over tokens of the target's states with
weights that have nothing to do with them. By the permutation central limit theorem that is normal
with covariance ∝ Syy. A shuffled map therefore sends every vector to a random direction that has
the covariance of the target's stream. Such directions point mostly along massive dimensions, and
may steer either way: one derangement is one draw. Further draws are made from that distribution.

A subspace (`SteeringSubspace`) has the same arms: its span and what it adds take the place of the
direction, and a random or shuffled subspace has as many random rows.

Limits: an arm has a direction and a length; whether lengths matter depends on the evaluation.
"""

import logging
from collections.abc import Iterator
from typing import Any

import torch

from lrt_lens.adapters.vectors._contrast_states import states_without_groups
from lrt_lens.adapters.vectors._steers import Steers
from lrt_lens.adapters.vectors._vector_arm import VectorArm
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._random_directions import covariance_root, random_directions
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)


DRAWN_ARMS = ("random", "permuted", "shuffled")
"""Controls of several draws each: a new draw falls into the prediction interval of theirs."""


def transferred_arms(
    stitch: Stitch, vector: Steers, options: dict[str, Any]
) -> Iterator[VectorArm]:
    """Yield the vector through the stitch, and through each refit of the map without one fold.

    ``options`` are the rules of transfer (``bias``, ``norm``) of `transfer_vector`.
    """
    # Callers take the first arm as the transferred one.
    yield VectorArm("transferred", stitch.transfer(vector, **options))
    # A refit has its own map but the statistics of the whole stitch, so only the map differs.
    for k, refit in enumerate(stitch.refits):
        yield VectorArm("map_refit", stitch.transfer(vector, through=refit.up, **options), draw=k)


def shuffled_arms(
    stitch: Stitch, vector: Steers, options: dict[str, Any], n_shuffled: int, seed: int
) -> Iterator[VectorArm]:
    """Yield the vector through ``n_shuffled`` maps of shuffled pairs; none without a null.

    The first is that of the stitch. The others are drawn from the distribution of such maps, see
    the description of this module; their lengths are that of the first.
    """
    if n_shuffled < 1:
        return
    if stitch.null is None:
        logger.warning(
            "the stitch has no map of shuffled pairs, so the arm 'shuffled' is left out; "
            "fit this hook pair alone with null='full' to have it"
        )
        return
    first = stitch.transfer(vector, through=stitch.null.up, **options)
    yield VectorArm("shuffled", first, draw=0)
    covariance = stitch.target_statistics.covariance
    # A stream of its own: the random directions of `drawn_arms` come from `seed` too.
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    root = covariance_root(covariance)
    length = stitch.null.up.directions(vector.direction.double().cpu()).norm()
    for draw in range(1, n_shuffled):
        rows = [
            root @ torch.randn(len(covariance), generator=generator, dtype=torch.float64)
            for _ in vector.basis
        ]
        images = torch.stack([row / row.norm() * length for row in rows])
        # The bias of a shuffled map is the mean of the target's stream, and no draw changes it.
        if options.get("bias") == "add":
            images = images + stitch.null.up.bias.double().cpu()
        yield VectorArm("shuffled", first.redirected(images), draw=draw)


def learnt_arms(
    pair: ModelPair,
    stitch: Stitch,
    vector: Steers,
    contrast: ContrastSet,
    options: dict[str, Any],
    *,
    n_permuted: int = 0,
    n_groups: int = 0,
) -> Iterator[VectorArm]:
    """Yield the arms that are learnt from the contrast set: ``native``, ``permuted`` and refits.

    A permuted vector is learnt on the source from permuted labels, then transferred. With
    ``n_groups``, native and transferred vectors are learnt again without each of that many groups
    of contrast pairs (`states_without_groups`). The texts are read once on each model.
    """
    native = vector.states(pair.target, contrast, at=stitch.target_hook)
    yield VectorArm("native", vector.learnt_like(native))
    if not n_permuted and n_groups < 2:
        return
    own = vector.states(pair.source, contrast, at=stitch.source_hook)
    for seed in range(n_permuted):
        permuted = vector.learnt_like(own.permuted(seed))
        yield VectorArm("permuted", stitch.transfer(permuted, **options), draw=seed)
    for k, (ours, theirs) in enumerate(states_without_groups(own, native, n_groups)):
        refit = vector.learnt_like(ours)
        yield VectorArm("contrast_refit", stitch.transfer(refit, **options), draw=k)
        yield VectorArm("native_refit", vector.learnt_like(theirs), draw=k)


def drawn_arms(stitch: Stitch, like: Steers, n_random: int, seed: int) -> Iterator[VectorArm]:
    """Yield ``n_random`` random directions of the length of ``like``.

    The first half is isotropic, the others have the covariance of the target's stream.
    """
    if n_random < 1:
        return
    # A generator of its own: drawing vectors must not change the samples of any other part.
    generator = torch.Generator().manual_seed(seed)
    covariance = stitch.target_statistics.covariance
    # One call per row: `torch.randn(n, d)` would give other numbers (see `random_directions`).
    noise = torch.stack(
        [
            torch.randn(len(covariance), generator=generator, dtype=torch.float64)
            for _ in range(n_random * len(like.basis))
        ]
    ).unflatten(0, (n_random, -1))
    # All rows of a subspace are of one kind, so each column of rows is one call.
    spans = torch.stack([random_directions(rows, covariance) for rows in noise.unbind(1)], dim=1)
    for draw, rows in enumerate(spans):
        random = like.redirected(rows, name=f"random {draw}", method="random")
        yield VectorArm("random", random, draw=draw)


def plain_arms(
    stitch: Stitch, vector: Steers, like: Steers, options: dict[str, Any]
) -> Iterator[VectorArm]:
    """Yield simpler explanations of a transfer, as long as ``like``: the bias, the vector unmapped.

    ``bias_only`` exists only if the transfer adds the bias, ``untransformed`` only if the widths of
    both models agree.
    """
    if options.get("bias") == "add":
        bias = stitch.up.bias.float()[None]
        yield VectorArm("bias_only", like.redirected(bias, name="bias only", method="bias"))
    # A source direction is a target direction only if both have the same number of entries.
    if len(vector.direction) == len(like.direction):
        named = {"name": "untransformed", "method": "untransformed"}
        same = like.redirected(vector.basis, vector.direction, **named)
        yield VectorArm("untransformed", same)


def contrast_of(vector: Steers, contrast: ContrastSet | None) -> ContrastSet | None:
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


def known_contrast_of(vector: Steers, contrast: ContrastSet | None) -> ContrastSet:
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
    vector: Steers,
    contrast: ContrastSet,
    *,
    n_random: int,
    n_shuffled: int,
    seed: int,
    n_groups: int = 0,
) -> list[VectorArm]:
    """Return the arms native, transferred, shuffled, untransformed and random, in this order.

    With ``n_groups`` the refits follow: of the map without each fold, and of both vectors without
    each group of contrast pairs. Permuted labels are left out; the lengths of the vectors do not
    matter here.
    """
    # Callers take the first arm as the native one. {}: transfer without bias, with matched length.
    native, *refits = learnt_arms(pair, stitch, vector, contrast, {}, n_groups=n_groups)
    transferred, *map_refits = transferred_arms(stitch, vector, {})
    like = native.vector
    return [
        native,
        transferred,
        *shuffled_arms(stitch, vector, {}, n_shuffled, seed),
        *plain_arms(stitch, vector, like, {}),
        *drawn_arms(stitch, like, n_random, seed),
        *(refits + map_refits if n_groups else []),
    ]
