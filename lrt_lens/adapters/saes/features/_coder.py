"""Encoder and decoder of an SAE's features, on its own model and transferred to another model.

Problem: a feature must be read and written on two models with exactly the same definition.
Mechanism: a transferred SAE is ``up ∘ SAE ∘ down`` (Stitching, arXiv 2506.06609, §3). A feature is
therefore read on the target by mapping the target's states down and encoding them, and written
along its decoder row mapped up. This needs no folded weights and holds for every SAE architecture.

    source = FeatureCoder(sae)                   # encode [row, d_source] → [row, feature]
    target = source.transferred(stitch.maps)     # encode [row, d_target] → [row, feature]
    target.decoder                               # [feature, d_target]

Limits: activations are dense tensors. If an SAE normalises each input by its own length, its
decoder rows are in normalised units.
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
    """Encoder and decoder of one SAE's features, on its own model or transferred to another."""

    sae: Any
    """A SAELens SAE, or any object with ``encode`` and ``W_dec`` [feature, d]."""
    maps: MapPair | None = None
    """Maps between the SAE's model and the model to read; None reads the SAE's own model."""

    @property
    def n_features(self) -> int:
        """Number of features."""
        return int(self.sae.W_dec.shape[0])

    @property
    def decoder(self) -> Tensor:
        """Decoder rows [feature, d], the effect of one unit of each feature on the stream.

        float32, on the CPU.
        """
        rows = self.sae.W_dec.detach().float().cpu()
        if getattr(getattr(self.sae, "cfg", None), "rescale_acts_by_decoder_norm", False):
            # Such an SAE multiplies its activations by the row norms and divides by them again
            # when it decodes, so one unit of a feature adds a row of norm 1.
            rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        return rows if self.maps is None else self.maps.up.directions(rows)

    def encode(self, rows: Tensor) -> Tensor:
        """Activations, [..., d] → [..., feature], float32 on the SAE's device."""
        parameter = self.sae.W_dec
        # The maps are float32; activations may be bfloat16.
        states = rows.detach().float()
        if self.maps is not None:
            states = self.maps.down.points(states)
        with torch.no_grad():
            activations = self.sae.encode(states.to(parameter.device, parameter.dtype))
        # Some TopK SAEs return sparse tensors.
        return (activations.to_dense() if activations.is_sparse else activations).float()

    def transferred(self, maps: MapPair) -> "FeatureCoder":
        """Coder of the same features on the target stream of ``maps``."""
        return FeatureCoder(self.sae, maps)


def random_coder(sae: Any, seed: int) -> FeatureCoder:
    """Coder of an SAE with random encoder and decoder directions.

    Architecture, biases, thresholds and norms are those of ``sae``. It is the baseline "random
    SAE" of Stitching, figure 14.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = copy.deepcopy(sae)
    with torch.no_grad():
        # W_enc is [d, feature] and W_dec [feature, d]: `dim` is the stream's dimension.
        for name, dim in (("W_enc", 0), ("W_dec", 1)):
            weight = getattr(drawn, name, None)
            if weight is None:
                continue
            draw = torch.randn(weight.shape, generator=generator).to(weight)
            # A random direction of the norm of the row (or column) that it replaces.
            unit = draw / draw.norm(dim=dim, keepdim=True)
            weight.copy_(unit * weight.norm(dim=dim, keepdim=True))
    return FeatureCoder(drawn)


def encoder_columns(sae: Any) -> Tensor | None:
    """Direction that each feature reads, [feature, d]; None if the SAE has no ``W_enc``."""
    weight = getattr(sae, "W_enc", None)
    return None if weight is None else weight.detach().float().cpu().T


def check_sae(sae: Any, pair: ModelPair, stitch: Stitch, context_length: int) -> None:
    """Raise unless an SAE belongs to the source model and source hook point of a stitch.

    Raises:
        TypeError: the object has no ``encode`` and ``W_dec``.
        HookPointError: the stitch joins several hook points.
        MismatchError: see `refuse_foreign_sae`.
    """
    require_sae(sae, "encode", "W_dec")
    refuse_joined_hook_points(stitch)
    width = stitch.up.weight.shape[0]
    refuse_foreign_sae(
        sae,
        stitch.source_hook,
        pair.source.identity,
        width=width,
        context_length=min(context_length, pair.context_length),
    )


def check_transferred(
    sae: Any, transferred: Any, pair: ModelPair, stitch: Stitch, context_length: int
) -> None:
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
    refuse_foreign_sae(
        transferred,
        stitch.target_hook,
        pair.target.identity,
        width=width,
        context_length=min(context_length, pair.context_length),
    )


def check_index(index: int, n_features: int) -> int:
    """Return ``index``, or raise an IndexError that names the valid range."""
    if not 0 <= index < n_features:
        raise IndexError(
            f"feature {index} is not in this SAE; it has {n_features} features: use 0 to "
            f"{n_features - 1}"
        )
    return int(index)
