"""Transfer of SAEs through a stitch: exactly ``up ∘ SAE ∘ down``, as weights (Stitching, §3).

Problem: an SAE reads and writes the stream of one model. Mechanism: the maps of a stitch before the
encoder and after the decoder, folded into the weights:

    transferred = stitch.transfer(sae)    # a SAELens SAE of width d_target at stitch.target_hook
    transferred.encode(y)                 # = sae.encode(stitch.down.points(y))
    transferred.save_model("folder")      # plain SAELens reads it: SAE.load_from_disk("folder")

    W_enc' = W_down W_enc    b_enc' = b_enc + b_down W_enc
    W_dec' = W_dec W_up      b_dec' = b_dec W_up + b_up

Thresholds and the number of active features stay the same. Training SAEs remain training SAEs: they
are starting points for further training, and ``save_inference_model`` writes what plain SAELens
loads.

What arrives is exact and reconstructs the target poorly, because the maps are imperfect. With
``refit=`` encoder, firing rates and decoder are then fitted to the target's states in closed form
(`lrt_lens.adapters.saes.refit`):

    stitch.transfer(sae, refit=SAERefit(pair, documents))

Limits: only SAEs that `lrt_lens.adapters.saes._folding` can fold are transferred.
"""

from dataclasses import replace
from typing import Any

from lrt_lens.adapters.saes._compatibility import (
    BASES,
    model_identity_fields,
    refuse_foreign_sae,
    trained_context,
)
from lrt_lens.adapters.saes._folding import FoldedSae, refuse_unfoldable
from lrt_lens.adapters.saes.refit._rows import SAERefit, stitch_rows
from lrt_lens.adapters.saes.refit._steps import codes_of, refit_weights
from lrt_lens.stitching._affine import MapPair
from lrt_lens.stitching._stitch import Stitch

_OF_THE_SOURCE = (
    "neuronpedia_id",
    "hf_hook_name",
    "hook_head_index",
    "hook_layer",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "model_hash",
    "basis",
    "tokenizer_hash",
    "prepend_bos",
    "prefix",
    "center_writing_weights",
    "converted",
    # Ids of the source's tokenizer.
    "exclude_special_tokens",
    "sequence_separator_token",
    # How long a context the target has is decided in `_context_size`.
    "context_size",
    "seqpos_slice",
)
"""Metadata of the source model and its tokenizer that would be wrong for the target."""
_SCORES = ("r2", "r2_uniform", "r2_down", "r2_null", "r2_token")
"""Scores of the stitch that the metadata of a transferred SAE repeats."""


def transfer_sae(
    sae: Any,
    stitch: Stitch,
    *,
    through: Any = None,
    input_scale: float | None = None,
    refit: SAERefit | None = None,
) -> Any:
    """SAE of the same class on the stitch's target model, with exactly transferred weights.

    It satisfies ``encode(y) = sae.encode(down(y))`` and ``decode(f) = up(sae.decode(f))``, has
    width d_target, at least float32, and the device of ``sae``. ``cfg.metadata.transferred`` says
    from which model and hook point it was transferred.

    Args:
        sae: a standard, gated, TopK, AbsTopK, JumpReLU, BatchTopK or Matryoshka SAE of SAELens,
            for inference or training.
        stitch: the stitch whose source hook point the SAE reads.
        through: another pair of maps between the same hook points (``stitch.null``, one of
            ``stitch.refits``), for controls.
        input_scale: constant factor on the inputs of an SAE whose config says
            ``expected_average_only_in``.
        refit: models, documents and settings of a refit in closed form; None transfers exactly.

    Raises:
        TypeError: ``sae`` is no SAE of SAELens, or ``through`` is one map.
        ValueError: the encoder is no function of an affine image of its input; or the refit is
            refused, see `refit_sae`.
        MismatchError: the SAE belongs to another width, hook point, model, basis or tokenizer, or
            ``through`` to other hook points, models or widths.
        NonFiniteError: a weight is NaN or infinite.

    Source: Stitching (arXiv 2506.06609) §3.
    """
    maps = stitch.maps if through is None else through
    if not isinstance(maps, MapPair):
        raise TypeError(
            f"through is an {type(maps).__name__}; an SAE needs the maps of both directions, a"
            " MapPair such as stitch.null"
        )
    refuse_unfoldable(sae, input_scale)
    width = stitch.up.weight.shape[0]
    refuse_foreign_sae(sae, stitch.source_hook, stitch.source, width=width, input_scale=input_scale)
    stitch.refuse_other_map("through.up", maps.up)
    stitch.refuse_other_map("through.down", maps.down, down=True)
    folded = FoldedSae.of(sae, input_scale=input_scale)
    weights = composed(folded, maps)
    transferred = weights.build(sae, _metadata(sae, stitch, maps))
    if refit is None:
        return transferred
    rows = stitch_rows(stitch, refit)
    # The source's SAE with its input scale folded in, as SAELens would run it.
    own = sae if input_scale is None else folded.build(sae)
    codes = None if rows.source is None else codes_of(own, rows.source)
    return refit_weights(weights, transferred, rows, codes, refit.settings).sae


def composed(folded: FoldedSae, maps: MapPair) -> FoldedSae:
    """Weights of ``up ∘ SAE ∘ down``, float64."""
    like = folded.W_enc
    down, b_down = maps.down.weight.to(like), maps.down.bias.to(like)
    up, b_up = maps.up.weight.to(like), maps.up.bias.to(like)
    # Encoder of the row y W_down + b_down: b_enc' = b_enc + b_down W_enc, W_enc' = W_down W_enc.
    shifted = folded.shifted(b_down)
    return replace(
        shifted,
        W_enc=down @ folded.W_enc,
        # Reconstruction (f W_dec + b_dec) W_up + b_up.
        W_dec=folded.W_dec @ up,
        b_dec=folded.b_dec @ up + b_up,
    )


def _metadata(sae: Any, stitch: Stitch, maps: MapPair) -> dict[str, Any]:
    """Metadata of a transferred SAE: the target's hook point and model, and its provenance."""
    source, target = stitch.source, stitch.target
    # Fields that describe the source model would be wrong for the target and are left out.
    metadata = {
        key: value for key, value in sae.cfg.metadata.to_dict().items() if key not in _OF_THE_SOURCE
    }
    metadata |= {
        "hook_name": stitch.target_hook,
        "model_name": target.name if target else None,
        "transferred": {
            "method": "up ∘ SAE ∘ down (lrt_lens)",
            "source_model": source.name if source else sae.cfg.metadata.model_name,
            "source_revision": source.revision if source else None,
            "source_hook": stitch.source_hook,
            "target_basis": BASES.get(target.basis) if target else None,
            "own_maps": maps is stitch.maps,
            "seed": stitch.provenance.seed,
            "scores": {key: stitch.scores[key] for key in _SCORES if key in stitch.scores},
        },
    }
    context = _context_size(sae, stitch)
    if context is not None:
        metadata["context_size"] = context
    return metadata | model_identity_fields(target)


def _context_size(sae: Any, stitch: Stitch) -> int | None:
    """Tokens of the windows that a transferred SAE describes; None if the source records none.

    It is that of the source's training, at most the target's context.
    """
    trained = trained_context(sae)
    longest = stitch.target.context_length if stitch.target else None
    return trained if trained is None or longest is None else min(trained, longest)
