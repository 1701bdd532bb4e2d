"""Check that an SAE belongs to a model, a hook point, a residual basis and a way to read texts.

Problem: an SAE of other weights or of another hook point gives wrong numbers without an error.
Mechanism: one function per question; every function that takes an SAE asks all of them, so that
transfer, evaluation, code maps, sparse probing, features and training accept the same SAEs.
SAEs whose inputs SAELens scales outside the SAE are refused too (`refuse_unfolded_input`).

    identity = pair.source.identity
    refuse_foreign_sae(sae, stitch.source_hook, identity)    # MismatchError unless the SAE fits
    refuse_other_model(sae, identity)                        # one question alone

SAEs of SAELens record the name and the hook point, ``model_from_pretrained_kwargs``,
``prepend_bos`` and ``context_size``; those of `train_sae` and ``stitch.transfer`` also the hash of
the weights, the basis and the tokenizer. Of the keywords that SAELens passes to TransformerLens'
``from_pretrained_no_processing``, ``center_writing_weights`` changes the residual stream and so the
basis. Folding LayerNorm, centring the unembedding and refactoring attention leave it as it is.
Every keyword that is not known to leave the weights as they are counts as a choice of weights, and
a model without a recorded revision is the one that SAELens loads: revision ``"main"``.

Limits: what the metadata does not record is not checked. If a recorded value is wrong, or its
difference does not matter, set it: ``sae.cfg.metadata.prepend_bos = False``.
"""

from typing import Any

from lrt_lens.adapters.saes._folding import refuse_unfolded_input
from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.models._hook_points import joint_parts, same_place
from lrt_lens.models._hooked_model import ModelIdentity
from lrt_lens.stitching._stitch_data import StitchData

BASES = {
    "raw": "Hugging Face's unprocessed weights",
    "centred": "weights that TransformerLens centred (center_writing_weights)",
}
"""Description of a residual basis in the metadata of a transferred SAE."""
_SAME_WEIGHTS = frozenset(
    {
        # Processing by TransformerLens; `center_writing_weights` is the question of the basis.
        *("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"),
        *("refactor_factored_attn_matrices", "default_prepend_bos", "default_padding_side"),
        *("first_n_layers", "n_ctx"),
        # Where and how the weights are loaded and run.
        *("device", "device_map", "n_devices", "move_to_device", "max_memory", "dtype"),
        *("torch_dtype", "attn_implementation", "low_cpu_mem_usage", "offload_folder"),
        *("use_safetensors", "weights_only", "trust_remote_code", "cache_dir", "proxies"),
        *("local_files_only", "force_download", "token", "use_auth_token"),
    }
)
"""Keywords of SAELens' model loading that leave the residual stream as it is, or are asked about
elsewhere. Each other one (``checkpoint_index``, ``subfolder``, ``adapter_kwargs``, …) can select or
change the weights of a model of one name.
"""
_DEFAULT_REVISION = "main"
"""Revision that the Hugging Face hub gives if none is asked for."""


def refuse_foreign_sae(
    sae: Any,
    hook: str,
    model: ModelIdentity | None,
    *,
    width: int | None = None,
    context_length: int | None = None,
    input_scale: float | None = None,
) -> None:
    """Raise `MismatchError` unless an SAE belongs to ``hook`` of ``model``; the only entry point.

    Args:
        sae: a SAELens SAE, or an object with ``encode``; metadata is read if there is any.
        hook: the hook point at which the SAE reads.
        model: the model that is read; None if it is not known, which skips the questions about it.
        width: dimensions at ``hook``; ``model.d_model`` by default.
        context_length: tokens of the longest window or text that the SAE will read; None if it
            reads none.
        input_scale: factor on the inputs, if the caller applies it, see `refuse_unfolded_input`.

    Raises:
        MismatchError: the SAE belongs to something else; the message says to what.
        ValueError: SAELens scales or whitens the inputs of this SAE outside the SAE.
    """
    refuse_unfolded_input(sae, input_scale)
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
    refuse_other_positions(sae, context_length)


def model_identity_fields(model: ModelIdentity | None) -> dict[str, Any]:
    """The metadata by which the functions of this module recognise ``model``.

    For None it is only that no keyword is needed to load the model: SAELens passes the keywords on
    without asking whether there are any.
    """
    if model is None:
        return {"model_from_pretrained_kwargs": {}}
    return {
        "model_hash": model.config_hash,
        "basis": model.basis,
        "tokenizer_hash": model.tokenizer_hash,
        "prepend_bos": model.prepend_bos,
        "prefix": None if model.prefix is None else list(model.prefix),
        # With these, SAELens' own loaders give the model in this basis and of this revision.
        "model_from_pretrained_kwargs": loading_keywords(model.basis)
        | ({} if model.revision == "unknown" else {"revision": model.revision}),
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
    """Raise `MismatchError` unless the SAE was trained on the whole state at ``hook``."""
    theirs, head = _recorded(sae, "hook_name"), _recorded(sae, "hook_head_index")
    output = _recorded(sae, "hook_name_out")
    if head is not None:
        raise MismatchError(
            f"this SAE was trained on attention head {head} alone (hook_head_index={head}); "
            f"expected an SAE of the whole state at {hook!r}: give such an SAE (if it reads the "
            "whole state, set sae.cfg.metadata.hook_head_index = None)"
        )
    if output and not same_place(str(output), hook):
        raise MismatchError(
            f"this SAE writes {output!r} (a transcoder); expected one that reads and writes "
            f"{hook!r}: give an SAE of that hook point"
        )
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
    other_name = bool(name) and plain_name(str(name)) != plain_name(model.name)
    if weights and not other_name:
        # Centring changes the hash too, and then the conversion is the remedy.
        refuse_other_basis(sae, model)
    if weights:
        theirs, ours = f"{name!r} (weights {weights})", f"{model.name!r} (weights"
        ours, remedy = f"{ours} {model.config_hash})", f"model_hash = {model.config_hash!r}"
        basis = recorded_basis(sae)
        if basis not in (None, model.basis):
            theirs, ours = f"{theirs} in the {basis!r} basis", f"{ours} in the {model.basis!r} one"
    elif other_name:
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
    keywords = _recorded(sae, "model_from_pretrained_kwargs")
    selected = {
        key: value
        for key, value in (keywords or {}).items()
        # Not `in (None, False, "")`: 0 == False, and checkpoint 0 is a choice.
        if key not in _SAME_WEIGHTS and value is not None and value is not False and value != ""
    }
    ours = _DEFAULT_REVISION if model.revision == "unknown" else model.revision
    value = selected.get("checkpoint_value")
    # TransformerLens loads checkpoint_value=1000 of Pythia as the revision "step1000".
    if value is not None and ours in (f"step{value}", f"checkpoint-{value}"):
        selected = {key: kept for key, kept in selected.items() if "checkpoint" not in key}
        selected.setdefault("revision", ours)
    if selected.get("revision") == ours:
        del selected["revision"]
    elif not selected and ours != _DEFAULT_REVISION and _names_a_model(sae):
        return f"no revision (that is, {_DEFAULT_REVISION!r})"
    return ", ".join(f"{key}={value!r}" for key, value in selected.items())


def _names_a_model(sae: Any) -> bool:
    """Return whether the metadata of an SAE says which model SAELens loads for it."""
    keywords = _recorded(sae, "model_from_pretrained_kwargs")
    return bool(_recorded(sae, "model_name")) or keywords is not None


def refuse_other_basis(sae: Any, model: ModelIdentity) -> None:
    """Raise `MismatchError` if the SAE was trained in another residual basis than the model's.

    An SAE that `uncentred_sae` converted is refused on a model with RMSNorm, which TransformerLens
    does not centre: it subtracts a mean that was in the states of its training.
    """
    theirs = recorded_basis(sae)
    if _is_uncentred(sae) and model.ignores_mean is False:
        raise MismatchError(
            f"this SAE was converted by lrt.uncentred_sae, which is for models with LayerNorm;"
            f" {model.name!r} has RMSNorm, whose weights TransformerLens does not centre: give the"
            " SAE as it was trained, with sae.cfg.metadata.basis = 'raw'"
        )
    if theirs is None or theirs == model.basis:
        return
    if theirs != "centred":
        remedy = "load the model without center_writing_weights, or give an SAE of this basis"
    elif model.ignores_mean is False:
        remedy = (
            "the model has RMSNorm, so that TransformerLens did not centre it, whatever the "
            "keywords of the SAE say: set sae.cfg.metadata.basis = 'raw'"
        )
    else:
        remedy = (
            "convert it with lrt.uncentred_sae(sae), or load the model with "
            "center_writing_weights=True"
        )
        if model.ignores_mean is None:
            remedy += (
                "; if the model has RMSNorm, TransformerLens did not centre it: set "
                "sae.cfg.metadata.basis = 'raw'"
            )
    raise MismatchError(
        f"this SAE was trained in the {theirs!r} residual basis "
        f"(center_writing_weights={theirs == 'centred'}); expected {model.basis!r}, as in "
        f"{model.name!r}: {remedy}"
    )


def _is_uncentred(sae: Any) -> bool:
    """Return whether an SAE is a result of `uncentred_sae`."""
    converted = _recorded(sae, "converted")
    return isinstance(converted, dict) and converted.get("from_basis") == "centred"


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
    # Which special tokens these are is only in the metadata of our own SAEs.
    prefix = _recorded(sae, "prefix")
    if prefix is not None and model.prefix is not None and tuple(prefix) != model.prefix:
        raise MismatchError(
            f"this SAE was trained on texts behind the special tokens {list(prefix)}; expected"
            f" {list(model.prefix)}, as {model.name!r} reads them: load the model with the"
            " tokenizer of the SAE (if the difference does not matter, set"
            f" sae.cfg.metadata.prefix = {list(model.prefix)})"
        )


def refuse_other_positions(sae: Any, context_length: int | None) -> None:
    """Raise `MismatchError` if the SAE will read positions of a window that its training left out.

    Args:
        sae: a SAELens SAE, or an object with ``encode``; metadata is read if there is any.
        context_length: tokens of the longest window that it will read; None if it reads none.
    """
    if context_length is None:
        return
    trained, theirs = _trained_positions(sae), trained_context(sae)
    record = f"(seqpos_slice={_recorded(sae, 'seqpos_slice')!r})"
    # A start at 1 only leaves out BOS, which is masked wherever SAEs are read.
    if trained.start not in (None, 0, 1) or trained.step not in (None, 1):
        raise MismatchError(
            f"this SAE was trained on some positions of its windows {record}; expected every "
            "position from 0 or 1 on, as they are read here: give an SAE of all positions (if it "
            "describes the other positions too, set sae.cfg.metadata.seqpos_slice = None)"
        )
    if theirs is not None and context_length > theirs:
        sliced = trained.stop is not None
        where = (
            f"the first {theirs} positions {record}" if sliced else f"windows of {theirs} tokens"
        )
        field = "sae.cfg.metadata.seqpos_slice = None and " if sliced else ""
        raise MismatchError(
            f"this SAE was trained on {where}; expected at least "
            f"{context_length}, the longest that it would read here: give texts or a "
            f"context_length of at most {theirs} tokens (if it describes later positions too, set "
            f"{field}sae.cfg.metadata.context_size = {context_length})"
        )


def trained_context(sae: Any) -> int | None:
    """Number of tokens of the windows on which an SAE was trained; None if it is not recorded.

    If the training left out the ends of its windows (``seqpos_slice``), they do not count.
    """
    size, stop = _recorded(sae, "context_size") or None, _trained_positions(sae).stop
    if stop is None:
        return size
    if size is None:
        # A stop from the end of a window of unknown length tells nothing.
        return stop if stop > 0 else None
    return len(range(size)[:stop]) or None


def _trained_positions(sae: Any) -> slice:
    """Positions of a window on which an SAE was trained, from SAELens' ``seqpos_slice``."""
    recorded = _recorded(sae, "seqpos_slice")
    # A tuple of arguments of `slice`; files contain it as a list.
    return slice(*recorded) if recorded else slice(None)


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
