"""Check that an SAE belongs to a model, a hook point, a residual basis and a way to read texts.

Problem: an SAE of other weights or of another hook point gives wrong numbers without an error.
Mechanism: one function per question; every function that takes an SAE asks all of them, so that
transfer, evaluation, code maps, sparse probing, features and training accept the same SAEs.

    identity = pair.source.identity
    refuse_foreign_sae(sae, stitch.source_hook, identity)    # MismatchError unless the SAE fits
    refuse_other_model(sae, identity)                        # one question alone

SAEs of SAELens record the name and the hook point, ``model_from_pretrained_kwargs``,
``prepend_bos`` and ``context_size``; those of `train_sae` and ``stitch.transfer`` also the hash of
the weights, the basis and the tokenizer. Of the keywords that SAELens passes to TransformerLens'
``from_pretrained_no_processing``, ``center_writing_weights`` changes the residual stream and so the
basis. Folding LayerNorm, centring the unembedding and refactoring attention leave it as it is.

Limits: what the metadata does not record is not checked. If a recorded value is wrong, or its
difference does not matter, set it: ``sae.cfg.metadata.prepend_bos = False``.
"""

from typing import Any

from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.models._hook_points import joint_parts, same_place
from lrt_lens.models._hooked_model import ModelIdentity
from lrt_lens.stitching._stitch_data import StitchData

_OTHER_WEIGHTS = (
    "revision",
    "checkpoint_index",
    "checkpoint_value",
    "load_in_4bit",
    "load_in_8bit",
    "quantization_config",
)
"""Keywords of SAELens' model loading that select or change the weights of a model of one name."""


def refuse_foreign_sae(
    sae: Any,
    hook: str,
    model: ModelIdentity | None,
    *,
    width: int | None = None,
    context_length: int | None = None,
) -> None:
    """Raise `MismatchError` unless an SAE belongs to ``hook`` of ``model``; the only entry point.

    Args:
        sae: a SAELens SAE, or an object with ``encode``; metadata is read if there is any.
        hook: the hook point at which the SAE reads.
        model: the model that is read; None if it is not known, which skips the questions about it.
        width: dimensions at ``hook``; ``model.d_model`` by default.
        context_length: tokens of the longest window or text that the SAE will read; None if it
            reads none.
    """
    # An explicit width counts more than d_model: the maps or rows in use decide what fits.
    expected = model.d_model if width is None and model is not None else width
    if expected is not None:
        refuse_other_width(sae, hook, expected)
    refuse_other_hook_point(sae, hook)
    if model is not None:
        refuse_other_model(sae, model)
        refuse_other_basis(sae, model)
        refuse_other_tokenizer(sae, model)
        refuse_other_bos(sae, model)
    refuse_longer_context(sae, context_length)


def model_identity_fields(model: ModelIdentity | None) -> dict[str, Any]:
    """The metadata by which the functions of this module recognise ``model``; empty for None."""
    if model is None:
        return {}
    return {
        "model_hash": model.config_hash,
        "basis": model.basis,
        "tokenizer_hash": model.tokenizer_hash,
        "prepend_bos": model.prepend_bos,
        # With these, SAELens' own loaders give the model in this basis.
        "model_from_pretrained_kwargs": loading_keywords(model.basis),
    }


def loading_keywords(basis: str) -> dict[str, bool]:
    """Keywords with which TransformerLens loads a model in a residual basis, as SAELens does."""
    return {"center_writing_weights": basis == "centred"}


def recorded_basis(sae: Any) -> str | None:
    """Residual basis in an SAE's metadata, ``"raw"`` or ``"centred"``; None if it is not recorded.

    The field ``basis`` counts more than ``model_from_pretrained_kwargs``.
    """
    basis = _recorded(sae, "basis")
    keywords = _recorded(sae, "model_from_pretrained_kwargs")
    if basis or keywords is None:
        return basis or None
    # SAELens loads with `from_pretrained_no_processing`: what is not named is off.
    return "centred" if keywords.get("center_writing_weights") else "raw"


def refuse_other_width(sae: Any, hook: str, width: int) -> None:
    """Raise `MismatchError` if the SAE reads or writes another number of dimensions."""
    decoder = getattr(sae, "W_dec", None)
    widths = [getattr(getattr(sae, "cfg", None), "d_in", None)]
    widths += [None if decoder is None else decoder.shape[-1]]
    # `cfg.d_in` and the decoder are both read, because an SAE may have only one of them.
    for found in widths:
        if found is not None and found != width:
            raise MismatchError(
                f"this SAE has width {found}; expected {width} dimensions at {hook!r}: give an SAE "
                "of that hook point and model, or transfer it first with stitch.transfer(sae)"
            )


def refuse_other_hook_point(sae: Any, hook: str) -> None:
    """Raise `MismatchError` if the SAE was trained at another hook point than ``hook``."""
    theirs = _recorded(sae, "hook_name")
    if theirs and not same_place(str(theirs), hook):
        raise MismatchError(
            f"this SAE was trained at {theirs!r}; expected {hook!r}: give an SAE of that hook "
            f"point, or a stitch, rows or a model read at {theirs!r} (stitch.reversed() swaps the "
            "source and the target of a stitch)"
        )


def refuse_other_model(sae: Any, model: ModelIdentity) -> None:
    """Raise `MismatchError` if the SAE was trained on other weights, or on a model of other name.

    The hash of the weights decides if the SAE records one, because names differ between libraries
    and folders. Names are compared without owner and case.
    """
    name, weights = _recorded(sae, "model_name"), _recorded(sae, "model_hash")
    # Equal weights are the same model, whatever both are called.
    if weights == model.config_hash:
        return
    selected = _selected_weights(sae, model)
    if weights:
        theirs, ours = f"{name!r} (weights {weights})", f"{model.name!r} (weights"
        ours, remedy = f"{ours} {model.config_hash})", f"model_hash = {model.config_hash!r}"
    elif name and plain_name(str(name)) != plain_name(model.name):
        theirs, ours, remedy = repr(name), repr(model.name), f"model_name = {model.name!r}"
    elif selected:
        theirs, ours = f"{name!r} with {selected}", f"{model.name!r} (revision {model.revision})"
        remedy = f"model_hash = {model.config_hash!r}"
    else:
        return
    raise MismatchError(
        f"this SAE was trained on {theirs}; expected {ours}: give an SAE of that model, or load "
        f"the SAE's own (if both are the same model, set sae.cfg.metadata.{remedy})"
    )


def _selected_weights(sae: Any, model: ModelIdentity) -> str:
    """Keywords by which an SAE's model had other weights than ``model``; empty if there is none."""
    keywords = _recorded(sae, "model_from_pretrained_kwargs") or {}
    selected = {
        key: keywords[key] for key in _OTHER_WEIGHTS if keywords.get(key) not in (None, False)
    }
    if selected.get("revision") in (model.revision, "main"):
        del selected["revision"]
    return ", ".join(f"{key}={value!r}" for key, value in selected.items())


def refuse_other_basis(sae: Any, model: ModelIdentity) -> None:
    """Raise `MismatchError` if the SAE was trained in another residual basis than the model's."""
    theirs = recorded_basis(sae)
    if theirs is None or theirs == model.basis:
        return
    if theirs == "centred":
        remedy = (
            "convert it with lrt.uncentred_sae(sae), or load the model with "
            "center_writing_weights=True; if the model has RMSNorm, TransformerLens did not centre "
            "it: set sae.cfg.metadata.basis = 'raw'"
        )
    else:
        remedy = "load the model without center_writing_weights, or give an SAE of this basis"
    raise MismatchError(
        f"this SAE was trained in the {theirs!r} residual basis "
        f"(center_writing_weights={theirs == 'centred'}); expected {model.basis!r}, as in "
        f"{model.name!r}: {remedy}"
    )


def refuse_other_tokenizer(sae: Any, model: ModelIdentity) -> None:
    """Raise `MismatchError` if the SAE records another tokenizer than the model's."""
    theirs = _recorded(sae, "tokenizer_hash")
    if theirs and theirs != model.tokenizer_hash:
        raise MismatchError(
            f"this SAE was trained with another tokenizer (hash {theirs}); expected that of "
            f"{model.name!r} (hash {model.tokenizer_hash}): load the model with the tokenizer of "
            "the SAE, or train an SAE with this one"
        )


def refuse_other_bos(sae: Any, model: ModelIdentity) -> None:
    """Raise `MismatchError` if the SAE was trained with another BOS policy than the model's."""
    theirs = _recorded(sae, "prepend_bos")
    if theirs is not None and bool(theirs) != model.prepend_bos:
        raise MismatchError(
            f"this SAE was trained on texts with prepend_bos={bool(theirs)}; expected "
            f"prepend_bos={model.prepend_bos}, as {model.name!r} reads them: load the model with "
            f"prepend_bos={bool(theirs)} (if the difference does not matter, set "
            f"sae.cfg.metadata.prepend_bos = {model.prepend_bos})"
        )


def refuse_longer_context(sae: Any, context_length: int | None) -> None:
    """Raise `MismatchError` if the SAE was trained on shorter windows than it will read."""
    theirs = trained_context(sae)
    if theirs is not None and context_length is not None and context_length > theirs:
        raise MismatchError(
            f"this SAE was trained on windows of {theirs} tokens; expected at least "
            f"{context_length}, the longest that it would read here: give texts or a "
            f"context_length of at most {theirs} tokens (if it describes later positions too, set "
            f"sae.cfg.metadata.context_size = {context_length})"
        )


def trained_context(sae: Any) -> int | None:
    """Number of tokens of the windows on which an SAE was trained; None if it is not recorded."""
    return _recorded(sae, "context_size") or None


def refuse_joined_hook_points(stitch: StitchData) -> None:
    """Raise `HookPointError` if either end of a stitch joins several hook points."""
    for hook in (stitch.source_hook, stitch.target_hook):
        if len(joint_parts(hook)) > 1:
            raise HookPointError(
                f"{hook!r} joins several hook points, and an SAE reads and writes a single one; "
                "give a stitch between single hook points"
            )


def require_sae(sae: Any, *attributes: str) -> None:
    """Raise `TypeError` if an object lacks an attribute that an SAE must have."""
    missing = [name for name in attributes if not hasattr(sae, name)]
    if missing:
        raise TypeError(
            f"a {type(sae).__name__} has no {' and '.join(missing)}; give a SAELens SAE, such as "
            "SAE.load_from_disk(folder)"
        )


def plain_name(name: str) -> str:
    """A model's name in lower case without its owner; gpt2-small becomes gpt2."""
    plain = name.rstrip("/").rsplit("/", 1)[-1].lower()
    # TransformerLens calls the smallest GPT-2 "gpt2-small", Hugging Face calls it "gpt2".
    return "gpt2" if plain == "gpt2-small" else plain


def _recorded(sae: Any, name: str) -> Any:
    """One field of the SAE's metadata; None if there is no metadata or no such field."""
    # SAELens' metadata answers None to any unknown name; other objects raise AttributeError.
    return getattr(getattr(getattr(sae, "cfg", None), "metadata", None), name, None)
