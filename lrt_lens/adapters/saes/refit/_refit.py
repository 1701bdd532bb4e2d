"""Refit of an SAE to the states of a model, in closed form.

    transferred = stitch.transfer(sae)
    refitted = refit_sae(transferred, pair.target, documents)          # the decoder alone
    refitted = refit_sae(
        transferred, pair.target, documents, source=pair.source, source_sae=sae
    )                                                    # encoder, firing rates and decoder
    refitted = stitch.transfer(sae, refit=SAERefit(pair, documents))   # the same in one call
    refit_sae(sae, tuned, documents, source=base)        # from a base model to its fine-tune
    refit_sae(sae, model, documents, source=model, at=4) # from one layer to another

Problem: a transferred SAE computes exactly ``up ∘ SAE ∘ down`` and reconstructs the target poorly,
because the maps are imperfect. Mechanism: what is linear or quadratic in the weights is fitted to
the target's states, with the codes of the source as labels (`lrt_lens.adapters.saes.refit`):

    encoder     regression of the source's codes on the target's states of the same tokens
    rates       biases with which each feature fires as often as in the source
    decoder     ridge regression of the states on the codes, pulled towards the transferred decoder
    alternation encoder for the decoder, then decoder for the encoder, ``n_alternations`` times

No gradient step is taken. Documents of the test fold are not read, so that `evaluate_sae` measures
the result on text that no part of it has seen.

Source: ours; the transfer itself is Stitching (arXiv 2506.06609) §3.

Limits: the states are held in memory (`RefitRows`). A refit makes an SAE a better one of the
target; how far a feature still means what it meant in the source is a question for
`evaluate_features` and `evaluate_sparse_probes`.
"""

from typing import Any

from lrt_lens._settings import resolve, takes
from lrt_lens.adapters.saes._compatibility import (
    model_identity_fields,
    refuse_foreign_sae,
    require_sae,
)
from lrt_lens.adapters.saes._folding import FoldedSae, refuse_unfoldable
from lrt_lens.adapters.saes.refit._rows import (
    ReadPoint,
    RowCache,
    cached_rows,
    read_rows,
    refit_plan,
)
from lrt_lens.adapters.saes.refit._settings import RefitSettings
from lrt_lens.adapters.saes.refit._states import RefitRows
from lrt_lens.adapters.saes.refit._steps import codes_of, refit_weights, resolve_steps
from lrt_lens.data._documents import Documents
from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_points import resolve as resolve_hook
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._text_reader import SKIP_FIRST


@takes(RefitSettings)
def refit_sae(
    sae: Any,
    model: HookedModel,
    documents: Documents | RowCache,
    *,
    at: int | str | None = None,
    source: HookedModel | None = None,
    source_sae: Any = None,
    settings: RefitSettings | None = None,
    **options: Any,
) -> Any:
    """SAE of the same class whose weights are refitted to a model's states, in closed form.

    ``cfg.metadata.refit`` of the result says which steps were taken, with their penalties, rows
    and FLOPs.

    Args:
        sae: a SAELens SAE of an architecture that `transfer_sae` accepts; without ``source`` one of
            ``model`` (a transferred one, for example), with ``source`` alone one of the source.
        model: the model whose states the result reads.
        documents: text in any form that `fit_stitches` accepts, or an `ActivationCache` of both
            models.
        at: hook point or layer of ``model``; by default the one in the SAE's metadata.
        source: model in which the features were learnt; its codes are the labels of the encoder
            and give the firing rates.
        source_sae: the SAE of ``source`` whose features ``sae`` has; ``sae`` itself by default.
        settings: all settings, see `RefitSettings`.
        options: single fields of the settings, such as ``n_tokens=50_000``.

    Raises:
        MismatchError: an SAE belongs to another width, hook point, model, basis or tokenizer; the
            two SAEs have different numbers of features; the SAE was transferred by a stitch of
            another seed, on whose test documents the refit would be fitted.
        ValueError: a step needs a source; no feature fires; more memory is needed than allowed.
        TooFewDocumentsError: the documents fill fewer than two fitting folds.
        NonFiniteError: weights or states are NaN or infinite.
    """
    run = resolve(RefitSettings, settings, options)
    refuse_unfoldable(sae)
    resolve_steps(run, has_source=source is not None)
    own = sae if source_sae is None else source_sae
    hooks = _hook_points(sae, own, model, at, source)
    _check(sae, own, model, source, hooks, run)
    _refuse_other_seed(sae, run)
    rows = _rows(documents, model, source, hooks, run)
    codes = codes_of(own, rows.source) if rows.source is not None else None
    refit = refit_weights(FoldedSae.of(sae), sae, rows, codes, run).sae
    if source is not None and source_sae is None:
        _rename(refit, sae, model, hooks)
    return refit


def _hook_points(
    sae: Any, own: Any, model: HookedModel, at: int | str | None, source: HookedModel | None
) -> tuple[str, str]:
    """Hook points of the source (the target's without one) and of the target.

    Raises:
        ValueError: neither ``at`` nor the metadata of the SAE names one.
    """
    recorded = getattr(sae.cfg.metadata, "hook_name", None)
    if at is None and recorded is None:
        raise ValueError(
            "the metadata of this SAE names no hook point; expected one: give at=, for example at=3"
        )
    target = str(recorded) if at is None else resolve_hook(at, model)
    if source is None:
        return target, target
    return str(getattr(own.cfg.metadata, "hook_name", None) or target), target


def _check(
    sae: Any,
    own: Any,
    model: HookedModel,
    source: HookedModel | None,
    hooks: tuple[str, str],
    run: RefitSettings,
) -> None:
    """Raise unless the SAEs belong to the models and hook points, and to each other."""
    require_sae(own, "encode", "W_dec")
    if sae.W_dec.shape != (own.W_dec.shape[0], model.d_model):
        raise MismatchError(
            f"this SAE has {sae.W_dec.shape[0]} features of {sae.W_dec.shape[1]} dimensions, the "
            f"source's has {own.W_dec.shape[0]}, and {model.name!r} has {model.d_model} dimensions;"
            " expected as many features as the source's SAE and the width of the model: transfer "
            "the SAE through a stitch first (stitch.transfer(sae))"
        )
    lengths = [min(run.context_length, one.context_length) for one in (model, source or model)]
    if source is None or own is not sae:
        refuse_foreign_sae(sae, hooks[1], model.identity, context_length=lengths[0])
    if source is not None:
        refuse_foreign_sae(own, hooks[0], source.identity, context_length=lengths[1])


def _refuse_other_seed(sae: Any, run: RefitSettings) -> None:
    """Raise unless the seed of the folds is that of the stitch through which the SAE came.

    Raises:
        MismatchError: the seeds differ.
    """
    transferred = getattr(sae.cfg.metadata, "transferred", None) or {}
    seed = transferred.get("seed")
    if seed is not None and seed != run.seed:
        raise MismatchError(
            f"the SAE was transferred by a stitch of seed {seed}, and seed is {run.seed}: documents"
            f" on which the stitch is tested would be fitted; expected seed={seed}"
        )


def _rows(
    documents: Documents | RowCache,
    model: HookedModel,
    source: HookedModel | None,
    hooks: tuple[str, str],
    run: RefitSettings,
) -> RefitRows:
    """Rows of the fitting folds at both hook points, from text or from a cache."""
    if isinstance(documents, RowCache):
        return cached_rows(documents, model, source, hooks, run)
    models = [model] if source is None else [source, model]
    plan = refit_plan(run.context_length, run.n_tokens, run.seed, SKIP_FIRST, *models)
    origin = None if source is None else ReadPoint(source, hooks[0])
    return read_rows(
        documents, ReadPoint(model, hooks[1]), origin, plan=plan, progress=run.progress
    )


def _rename(refit: Any, sae: Any, model: HookedModel, hooks: tuple[str, str]) -> None:
    """Write the new model and hook point into the metadata of an SAE that changed them."""
    metadata = refit.cfg.metadata
    moved = {"source_model": sae.cfg.metadata.model_name, "source_hook": hooks[0], **metadata.refit}
    fields = {"model_name": model.name, "hook_name": hooks[1], "model_hash": None, "refit": moved}
    for key, value in (fields | model_identity_fields(model.identity)).items():
        setattr(metadata, key, value)
