"""SAEs of centred weights, rewritten for the unprocessed weights of Hugging Face.

Problem: TransformerLens' ``center_writing_weights`` subtracts from every state its mean over the
dimensions, and an SAE that was trained on such a model misreads the states of the model as
transformers runs it. Mechanism: with P = I − 11ᵀ/d the centred state is P x, so the SAE reads x if
P is folded into its encoder:

    W_enc' = P W_enc        σ(x W_enc' + b_enc) = σ((P x) W_enc + b_enc)

    sae = uncentred_sae(SAE.from_pretrained("gpt2-small-res-jb", "blocks.7.hook_resid_pre"))
    stitch.transfer(sae)

Its features are exactly those of the original on the centred model. Its reconstruction is that of
the centred state P x. It lacks the mean of x over the dimensions, which LayerNorm subtracts before
any part of the model reads the stream: loss and logits with the reconstruction are those of the
centred model, but the mean counts as an error of the reconstruction (FVU).

The metadata no longer has the hash of the centred weights: the result belongs to the unprocessed
weights of the same name and revision, which functions that take an SAE compare.

Limits: TransformerLens centres models with LayerNorm only. An SAE of a model with RMSNorm is in the
raw basis, whatever its metadata says, and functions that take an SAE and a model refuse its
conversion. The hash of the unprocessed weights is not known here; set
``sae.cfg.metadata.model_hash`` to ``model.identity.config_hash`` to have it compared.
"""

from dataclasses import replace
from typing import Any

from lrt_lens.adapters.saes._compatibility import BASES, loading_keywords, recorded_basis
from lrt_lens.adapters.saes._folding import FoldedSae, refuse_unfoldable


def uncentred_sae(sae: Any, *, input_scale: float | None = None) -> Any:
    """SAELens SAE that reads unprocessed states as ``sae`` reads centred ones.

    ``encode(x)`` is exactly ``sae.encode(x − x.mean(-1))``, and ``decode`` is that of ``sae``: it
    returns the reconstruction of the centred state. Its metadata names the raw basis, and
    ``converted`` has the hash of the centred weights, if ``sae`` recorded one.

    Args:
        sae: a SAELens SAE of an architecture that `transfer_sae` accepts, trained on a model with
            LayerNorm whose weights TransformerLens had centred.
        input_scale: constant factor on the inputs of an SAE whose config says
            ``expected_average_only_in``.

    Raises:
        TypeError: ``sae`` is no SAE of SAELens.
        ValueError: its metadata tells the raw basis, or its encoder cannot be folded.
        NonFiniteError: a weight is NaN or infinite.
    """
    refuse_unfoldable(sae, input_scale)
    if recorded_basis(sae) == "raw":
        raise ValueError(
            "this SAE was trained in the 'raw' residual basis; expected 'centred': use it as it is "
            "(if its model was centred, set sae.cfg.metadata.basis = 'centred')"
        )
    folded = FoldedSae.of(sae, input_scale=input_scale)
    # P W_enc = W_enc − 1 (1ᵀ W_enc) / d: every column loses its mean over the dimensions.
    centred = replace(folded, W_enc=folded.W_enc - folded.W_enc.mean(0))
    return centred.build(sae, _metadata(sae))


def _metadata(sae: Any) -> dict[str, Any]:
    """Metadata of a converted SAE: that of ``sae``, except what is true of centred weights only."""
    metadata = sae.cfg.metadata.to_dict()
    converted = {"method": "encoder ∘ centring (lrt_lens)", "from_basis": "centred"}
    # The hash is that of the centred weights, so it would refuse the unprocessed ones.
    centred_hash = metadata.pop("model_hash", None)
    if centred_hash:
        converted["from_model_hash"] = centred_hash
    if metadata.get("transferred"):
        metadata["transferred"] = metadata["transferred"] | {"target_basis": BASES["raw"]}
    keywords = (metadata.get("model_from_pretrained_kwargs") or {}) | loading_keywords("raw")
    return metadata | {
        "basis": "raw",
        "model_from_pretrained_kwargs": keywords,
        "converted": converted,
    }
