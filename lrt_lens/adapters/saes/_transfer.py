"""SAEs carried by a stitch: exactly ``up ∘ SAE ∘ down``, as weights (Stitching, §3).

    moved = stitch.transfer(sae)                 # a SAELens SAE of width d_target, at the stitch's target hook
    moved.encode(y)                              # = sae.encode(stitch.down.points(y))
    moved.save_model("moved")                    # SAE.load_from_disk("moved") of plain SAELens reads it

    W_enc' = W_down W_enc    b_enc' = b_enc + b_down W_enc    W_dec' = W_dec W_up    b_dec' = b_dec W_up + b_up

Thresholds and the number of active features stay. Training SAEs stay training SAEs: they are a
start for more training, and ``save_inference_model`` writes what plain SAELens loads. Limits: see
`lrt_lens.adapters.saes._folding`.
"""

from dataclasses import replace
from typing import Any

from lrt_lens.adapters.saes._folding import FoldedSae, refuse_unfoldable
from lrt_lens.errors import MismatchError
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.stitching._affine import MapPair
from lrt_lens.stitching._stitch import Stitch

_OF_THE_SOURCE = (
    "neuronpedia_id",
    "hf_hook_name",
    "hook_head_index",
    "hook_layer",
    "model_from_pretrained_kwargs",
    "model_hash",
)
"""Metadata that is wrong for another model."""


def transfer_sae(
    sae: Any, stitch: Stitch, *, through: MapPair | None = None, input_scale: float | None = None
) -> Any:
    """A SAELens SAE carried to the stitch's target: ``encode(y) = sae.encode(down(y))``,
    ``decode(f) = up(sae.decode(f))``.

    Args: sae: standard, gated, TopK, AbsTopK, JumpReLU, BatchTopK or Matryoshka, for inference or
        training; ValueError with the
            reason for others, MismatchError for one of another width, hook point or model.
        stitch: see `Stitch`.
        through: another pair of maps between the same hook points (``stitch.null``, one of
            ``stitch.refits``), for controls.
        input_scale: constant factor on the inputs of an SAE whose config says
            ``expected_average_only_in``.

    Returns: The same class, width d_target, at least float32, on the same device; ``cfg.metadata``
        says where it comes from.
    """
    maps = stitch.maps if through is None else through
    refuse_unfoldable(sae, input_scale)
    _refuse_foreign(sae, stitch, maps)
    folded = FoldedSae.of(sae, input_scale=input_scale)
    return carried(folded, maps).build(sae, _metadata(sae, stitch, maps))


def carried(folded: FoldedSae, maps: MapPair) -> FoldedSae:
    """``up ∘ SAE ∘ down`` as weights, float64."""
    like = folded.W_enc
    (down, b_down), (up, b_up) = (
        (m.weight.to(like), m.bias.to(like)) for m in (maps.down, maps.up)
    )
    moved = folded.shifted(b_down)
    return replace(
        moved, W_enc=down @ folded.W_enc, W_dec=folded.W_dec @ up, b_dec=folded.b_dec @ up + b_up
    )


def plain_name(name: str) -> str:
    """A model's name without owner, case and the suffix by which TransformerLens calls the smallest
    GPT-2.
    """
    plain = name.rstrip("/").rsplit("/", 1)[-1].lower()
    return "gpt2" if plain == "gpt2-small" else plain


def other_model(metadata: Any, model: ModelIdentity) -> str | None:
    """What to set in an SAE's metadata if, against what it says, it does belong to ``model``; None
    where it says nothing against that.
    """
    name, known = getattr(metadata, "model_name", None), getattr(metadata, "model_hash", None)
    # The weights' hash decides where the SAE has one; names differ between libraries and folders.
    if known:
        return None if known == model.config_hash else "model_hash = None"
    return (
        None
        if name is None or plain_name(str(name)) == plain_name(model.name)
        else f"model_name = {model.name!r}"
    )


def _refuse_foreign(sae: Any, stitch: Stitch, maps: MapPair) -> None:
    metadata = sae.cfg.metadata
    if metadata.hook_name is not None:
        stitch.refuse_foreign(str(metadata.hook_name), None)
    here = stitch.up.weight.shape
    if sae.cfg.d_in != here[0]:
        raise MismatchError(
            f"this SAE has width {sae.cfg.d_in}, but the stitch starts at {stitch.source_hook!r} with {here[0]} dimensions; "
            "give an SAE of that hook point (to go the other way use stitch.reversed())"
        )
    if maps.up.weight.shape != here or maps.down.weight.shape != here[::-1]:
        found = f"{tuple(maps.up.weight.shape)} up and {tuple(maps.down.weight.shape)} down"
        raise MismatchError(
            f"through= holds maps of {found}; expected {tuple(here)} and {tuple(here[::-1])}, as in this stitch"
        )
    if stitch.source is not None and (remedy := other_model(metadata, stitch.source)):
        raise MismatchError(
            f"this SAE was trained on {metadata.model_name!r}, but the stitch starts in {stitch.source.name!r}; give an SAE of that model "
            f"(if both are one model after all, set sae.cfg.metadata.{remedy})"
        )


def _metadata(sae: Any, stitch: Stitch, maps: MapPair) -> dict[str, Any]:
    """The SAE's own, with the target's hook point and model, and where it was carried from."""
    kept = {
        key: value for key, value in sae.cfg.metadata.to_dict().items() if key not in _OF_THE_SOURCE
    }
    source, target = stitch.source, stitch.target
    provenance = {
        "method": "up ∘ SAE ∘ down (lrt_lens)",
        "source_model": source.name if source else sae.cfg.metadata.model_name,
        "source_revision": source.revision if source else None,
        "source_hook": stitch.source_hook,
        "own_maps": maps is stitch.maps,
        "scores": {
            key: stitch.scores[key]
            for key in ("r2", "r2_uniform", "r2_down", "r2_null", "r2_token")
            if key in stitch.scores
        },
    }
    known = {
        "hook_name": stitch.target_hook,
        "model_name": target.name if target else None,
        "transferred": provenance,
    }
    return (
        kept
        | known
        | ({"model_hash": target.config_hash, "prepend_bos": target.prepend_bos} if target else {})
    )
