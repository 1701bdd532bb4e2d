"""Evaluation of an SAE, compared with that of SAELens on the same tokens and metrics."""

from itertools import cycle
from typing import Any

import numpy as np
import torch

import lrt_lens as lrt
from benchmarks.measuring import Measurement, Settings, alternate
from lrt_lens.adapters.saes._sae_pass import CodeTally, Reconstruction
from lrt_lens.bundled import demo_sae
from lrt_lens.data._windows import Window
from lrt_lens.stitching._stitched_pass import Arm, Batch, End, Tally, batches, run_batch

_CONTEXT, _REPETITIONS = 128, 5


def evaluate_sae_over_saelens(settings: Settings) -> Measurement:
    """Seconds of our evaluation ÷ seconds of SAELens' `run_evals`, for one SAE on one model.

    Both measure L0, FVU, and the loss with the SAE, with zero ablation, and of the unmodified
    model.
    """
    from datasets import Dataset
    from sae_lens.evals import EvalConfig, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler
    from sae_lens.training.activations_store import ActivationsStore

    model = lrt.demo_pair().source
    sae = demo_sae("small")
    sae.cfg.metadata.context_size, sae.cfg.metadata.prepend_bos = _CONTEXT, model.prepend_bos
    documents = lrt.demo_documents()
    n_batches, batch_windows = (1, 8) if settings.quick else (5, 32)
    store = ActivationsStore.from_sae(
        model.bridge,
        sae,
        Dataset.from_dict({"text": documents}),
        streaming=False,
        store_batch_size_prompts=batch_windows,
    )
    tokens = [store.get_batch_tokens(batch_windows) for _ in range(n_batches)]
    config = EvalConfig(
        batch_size_prompts=batch_windows,
        n_eval_reconstruction_batches=n_batches,
        n_eval_sparsity_variance_batches=n_batches,
        compute_ce_loss=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )
    # SAELens takes its batches from the store. The store is made to return the same batches that
    # our evaluation gets, tokenised in advance for both.
    batch_of = cycle(tokens)
    store.get_batch_tokens = lambda *_, **__: next(batch_of)  # type: ignore[method-assign]
    timed = alternate(
        lambda: _ours(model, sae, tokens),
        lambda: run_evals(sae, store, model.bridge, ActivationScaler(), config),
        settings.repetitions(_REPETITIONS),
    )
    raw: dict[str, Any] = timed.raw("ours", "saelens") | {
        "tokens": n_batches * batch_windows * _CONTEXT,
        "d_sae": sae.cfg.d_sae,
    }
    return Measurement(
        name="evaluate_sae_over_saelens",
        value=timed.ratio,
        target=1.0,
        at_most=True,
        what="Seconds of our SAE evaluation ÷ seconds of SAELens' run_evals: L0, explained "
        "variance, loss with the SAE, with zero ablation and untouched, for the bundled small "
        "model and its SAE, windows of 128 tokens.",
        raw=raw,
        notes=("our pass also measures KL and top-1 agreement, which SAELens' does not",),
    )


def _ours(model: lrt.HookedModel, sae: Any, tokens: list[torch.Tensor]) -> Tally:
    """The pass of `evaluate_sae` over prepared windows, for one model."""
    rows = [ids.tolist() for batch in tokens for ids in batch]
    windows = [Window(ids, np.arange(4, len(ids)), number) for number, ids in enumerate(rows)]
    end = End(model, sae.cfg.metadata.hook_name)
    tally, codes = Tally(len(windows)), CodeTally(len(windows), sae.cfg.d_sae)
    mean = torch.zeros(model.d_model)
    for windows_of_batch in batches(windows, model):
        batch = Batch(windows_of_batch, {"A": end}, "masked")
        arms = [
            Arm("zero", "A", ("A",), mean),
            Arm("own", "A", ("A",), lambda streams: streams["A"]),
            Arm("sae", "A", ("A",), Reconstruction(sae, "A", mean, batch.by_model["A"], codes)),
        ]
        run_batch({"A": end}, arms, batch, tally)
    return tally
