"""Decoder rows of length 1 without changing what the SAE computes.

    unit = unit_norm_decoder(sae)          # unit(x) = sae(x); activations are ‖row‖ times what they were

ReLU, JumpReLU and gated encoders commute with a positive factor: encoder column, bias and threshold
take the row's length. An encoder that keeps the largest k compares features with each other: there
the lengths may move only where ``rescale_acts_by_decoder_norm`` compares them so already.
"""

from typing import Any

import torch

from lrt_lens.adapters.saes._folding import SELECTING, FoldedSae


def unit_norm_decoder(sae: Any, *, input_scale: float | None = None) -> Any:
    """A SAELens SAE with the same reconstruction and decoder rows of length 1; rows of length 0
    stay.

    ``b_dec`` and flags are folded on the way (`FoldedSae.of`). ValueError where the factor would
    change which features are selected.
    """
    folded = FoldedSae.of(sae, input_scale=input_scale)
    if sae.cfg.architecture() in SELECTING:
        if not sae.cfg.rescale_acts_by_decoder_norm:
            raise ValueError(
                f"an SAE of architecture {sae.cfg.architecture()!r} selects its largest activations, and decoder rows of length 1 would change "
                "the selection; this is possible only where it was trained with rescale_acts_by_decoder_norm=True"
            )
        if input_scale is not None:
            raise ValueError(
                f"input_scale {input_scale} leaves rows of length 1/{input_scale}; scale the inputs instead"
            )
        return folded.build(sae)
    lengths = folded.W_dec.norm(dim=1)
    return folded.rescaled(torch.where(lengths > 0, lengths, 1.0), thresholds=True).build(sae)
