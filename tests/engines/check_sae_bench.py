"""sae-bench: its core evaluation of a transferred SAE, on the bundled model.

Its command line loads models by the names that ``HookedTransformer`` knows, and a folder has none.
So the model is a ``TransformerBridge``, handed to ``run_evals``, which does the measuring; nothing
of sae-bench is changed. The tokens that it drew are written down, so that the same numbers can be
computed by other code.
"""
# pyright: reportMissingImports=false

import time
from typing import Any

import torch
from _consumer import Run
from datasets import Dataset
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import run_evals
from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
from sae_lens import SAE
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens.model_bridge import TransformerBridge

N_BATCHES = 4
"""Batches for each of the two groups of metrics."""
BATCH_SIZE = 8
"""Rows per batch."""
CONTEXT_SIZE = 64
"""Tokens per row."""
PACKAGES = ("sae-bench", "sae-lens", "transformer-lens", "torch")
"""Distributions whose versions are recorded."""


def evaluated(task: dict[str, Any]) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Return sae-bench's metrics, and the batches of tokens [row, position] that it drew."""
    model = TransformerBridge.boot_transformers(task["model"], device="cpu", dtype=torch.float32)
    sae = SAE.load_from_disk(task["sae"], device="cpu")
    _, sae, _ = load_and_format_sae("transferred", sae, "cpu")
    store = ActivationsStore.from_sae(
        model,  # type: ignore[arg-type]
        sae,
        dataset=Dataset.from_dict({"text": task["texts"]}),
        context_size=CONTEXT_SIZE,
        streaming=False,
        store_batch_size_prompts=BATCH_SIZE,
    )
    drawn: list[torch.Tensor] = []
    draw = store.get_batch_tokens

    def recorded(*args: Any, **options: Any) -> torch.Tensor:
        drawn.append(draw(*args, **options))
        return drawn[-1]

    store.get_batch_tokens = recorded
    settings = CoreEvalConfig(
        model_name="large",
        batch_size_prompts=BATCH_SIZE,
        n_eval_reconstruction_batches=N_BATCHES,
        n_eval_sparsity_variance_batches=N_BATCHES,
        context_size=CONTEXT_SIZE,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
    )
    special = set(model.tokenizer.all_special_ids)
    metrics, _ = run_evals(sae, store, model, settings, ignore_tokens=special)
    return metrics, drawn


def main() -> None:
    """Write the metrics and the tokens, unless those of this task are there."""
    run = Run.begun("sae-bench", PACKAGES)
    if run.has("core"):
        return
    start = time.perf_counter()
    metrics, drawn = evaluated(run.task)
    facts = {
        "how": "run_evals(SAE.load_from_disk(…), ActivationsStore.from_sae(…), TransformerBridge)",
        "seconds": round(time.perf_counter() - start, 1),
        "n_batches": N_BATCHES,
        "metrics": metrics,
    }
    run.write("core", {"tokens": torch.stack(drawn)}, facts)


if __name__ == "__main__":
    main()
