"""SAEs with decoder rows of length 1 that compute the same reconstruction.

    unit = unit_norm_decoder(sae)    # unit(x) = sae(x); its activations are ‖row‖ times as large

Problem: decoder rows of different lengths make activations of different features incomparable.
Mechanism: ReLU, JumpReLU and gated encoders commute with a positive factor, so encoder column, bias
and threshold are multiplied by the row's length.

Limits: an encoder that keeps the k largest activations compares features with each other, which the
factor would change; it is accepted only if the SAE has ``rescale_acts_by_decoder_norm``, because it
then compares the multiplied activations already.
"""

from typing import Any

import torch

from lrt_lens.adapters.saes._folding import SELECTING, FoldedSae


def unit_norm_decoder(sae: Any, *, input_scale: float | None = None) -> Any:
    """SAELens SAE with the same reconstruction and decoder rows of length 1.

    Rows of length 0 stay 0. ``b_dec`` and the flags of the config are folded (`FoldedSae.of`).

    Raises:
        ValueError: the factor would change which features the encoder selects.
    """
    folded = FoldedSae.of(sae, input_scale=input_scale)
    if sae.cfg.architecture() in SELECTING:
        if not sae.cfg.rescale_acts_by_decoder_norm:
            raise ValueError(
                f"an SAE of architecture {sae.cfg.architecture()!r} selects its largest "
                "activations, and decoder rows of length 1 would change the selection; expected "
                "an SAE that was trained with rescale_acts_by_decoder_norm=True"
            )
        if input_scale is not None:
            raise ValueError(
                f"input_scale {input_scale} leaves rows of length 1/{input_scale}; leave "
                "input_scale out and multiply the inputs instead"
            )
        # Folding rescale_acts_by_decoder_norm has divided every row by its norm.
        return folded.build(sae)
    lengths = folded.W_dec.norm(dim=1)
    return folded.rescaled(torch.where(lengths > 0, lengths, 1.0), thresholds=True).build(sae)
