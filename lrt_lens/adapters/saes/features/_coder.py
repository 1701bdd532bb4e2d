"""Features as something that reads a stream and writes to it, on the source and carried to the
target.

A transferred SAE is exactly ``up ∘ SAE ∘ down`` (Stitching, §3), so a feature of the target is read
by encoding the target's states carried down, and written along its decoder row carried up. That
needs no folded weights and holds for every architecture.

    source = FeatureCoder(sae)                       # encode [row, d_source] → [row, feature]; decoder [feature, d_source]
    target = source.carried(stitch.maps)             # the same features on the target's stream

Limits: activations are dense. Where an SAE normalises each input by its own length, decoder rows
are those before it is undone.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrt_lens.adapters.saes._compatibility import (
    refuse_foreign_sae,
    refuse_joined_hook_points,
    require_sae,
)
from lrt_lens.errors import MismatchError
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._affine import MapPair
from lrt_lens.stitching._stitch import Stitch


@dataclass(frozen=True)
class FeatureCoder:
    """Reads and writes the features of one SAE, on its own model or carried to another."""

    sae: Any
    """A SAELens SAE, or anything with ``encode`` and ``W_dec`` [feature, d]."""
    maps: MapPair | None = None
    """From the SAE's model to the one that is read; None reads the SAE's own."""

    @property
    def n_features(self) -> int:
        """How many features there are."""
        return int(self.sae.W_dec.shape[0])

    @property
    def decoder(self) -> Tensor:
        """What one unit of each feature adds to the stream, [feature, d], float32 on the CPU."""
        rows = self.sae.W_dec.detach().float().cpu()
        if getattr(getattr(self.sae, "cfg", None), "rescale_acts_by_decoder_norm", False):
            # Such an SAE multiplies its activations by the norms and divides by them again on
            # decoding.
            rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        return rows if self.maps is None else self.maps.up.directions(rows)

    def encode(self, rows: Tensor) -> Tensor:
        """Activations, [..., d] → [..., feature], float32 on the SAE's device."""
        parameter = self.sae.W_dec
        carried = (
            rows.detach().float()
            if self.maps is None
            else self.maps.down.points(rows.detach().float())
        )
        with torch.no_grad():
            activations = self.sae.encode(carried.to(parameter.device, parameter.dtype))
        return (activations.to_dense() if activations.is_sparse else activations).float()

    def carried(self, maps: MapPair) -> "FeatureCoder":
        """The same features on the stream that ``maps`` lead to."""
        return FeatureCoder(self.sae, maps)


def random_coder(sae: Any, seed: int) -> FeatureCoder:
    """An SAE of the same architecture, biases, thresholds and norms, whose encoder and decoder
    directions are random.

    The baseline of Stitching, figure 14 ("random SAE").
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = copy.deepcopy(sae)
    with torch.no_grad():
        for name, dim in (("W_enc", 0), ("W_dec", 1)):
            weight = getattr(drawn, name, None)
            if weight is None:
                continue
            draw = torch.randn(weight.shape, generator=generator).to(weight)
            weight.copy_(
                draw / draw.norm(dim=dim, keepdim=True) * weight.norm(dim=dim, keepdim=True)
            )
    return FeatureCoder(drawn)


def encoder_columns(sae: Any) -> Tensor | None:
    """[feature, d]: the direction each feature reads; None where the encoder has none."""
    weight = getattr(sae, "W_enc", None)
    return None if weight is None else weight.detach().float().cpu().T


def check_sae(sae: Any, pair: ModelPair, stitch: Stitch) -> None:
    """Raise unless an SAE belongs to the source model and source hook point of a stitch.

    Raises:
        TypeError: the object has no ``encode`` and ``W_dec``.
        HookPointError: the stitch joins several hook points.
        MismatchError: see `refuse_foreign_sae`.
    """
    require_sae(sae, "encode", "W_dec")
    refuse_joined_hook_points(stitch)
    width = stitch.up.weight.shape[0]
    refuse_foreign_sae(sae, stitch.source_hook, pair.source.identity, width=width)


def check_transferred(sae: Any, transferred: Any, pair: ModelPair, stitch: Stitch) -> None:
    """Raise unless ``transferred`` holds the features of ``sae`` on a stitch's target model.

    Raises:
        TypeError: the object has no ``encode`` and ``W_dec``.
        MismatchError: another number of features, or see `refuse_foreign_sae`.
    """
    require_sae(transferred, "encode", "W_dec")
    if transferred.W_dec.shape[0] != sae.W_dec.shape[0]:
        raise MismatchError(
            f"the transferred SAE has {transferred.W_dec.shape[0]} features, the source's "
            f"{sae.W_dec.shape[0]}; features are compared one by one: give the transfer of this SAE"
        )
    width = stitch.down.weight.shape[0]
    refuse_foreign_sae(transferred, stitch.target_hook, pair.target.identity, width=width)


def check_index(index: int, n_features: int) -> int:
    """The index itself; IndexError names the range."""
    if not 0 <= index < n_features:
        raise IndexError(
            f"feature {index} is not in this SAE; it has {n_features} features: use 0 to {n_features - 1}"
        )
    return int(index)
