"""Seconds to refit an SAE on rows in memory, and their share of the passes that gave the rows."""

import statistics

import torch

from benchmarks.measuring import Measurement, Settings, seconds
from benchmarks.models import PYTHIA, TINY, random_models
from lrt_lens.adapters.saes import RefitSettings
from lrt_lens.adapters.saes._folding import FoldedSae
from lrt_lens.adapters.saes.refit._states import RefitRows
from lrt_lens.adapters.saes.refit._steps import codes_of, refit_weights
from lrt_lens.models import HookedModel


def refit_seconds_16k(settings: Settings) -> Measurement:
    """Seconds of encoder, rates and decoder of a TopK SAE with 16,384 features."""
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    d, width, n_rows = (48, 128, 600) if settings.quick else (768, 16384, 25_000)
    torch.manual_seed(settings.seed)
    k = 8 if settings.quick else 32
    source, target = (TopKSAE(TopKSAEConfig(d_in=d, d_sae=width, k=k)) for _ in range(2))
    x = torch.randn(n_rows, d)
    # The target's states are an affine image of the source's, with noise.
    y = x @ torch.randn(d, d) / d**0.5 + torch.randn(n_rows, d) / 2
    rows = RefitRows(y, x, torch.arange(n_rows) % 5)
    codes = codes_of(source, x)
    folded = FoldedSae.of(target)
    fits = []
    timed = [
        seconds(lambda: fits.append(refit_weights(folded, target, rows, codes, RefitSettings())))
        for _ in range(1 if settings.quick else 2)
    ]
    value, record = statistics.median(timed), fits[-1].record
    passes = _seconds_of_passes(settings, n_rows)
    return Measurement(
        name="refit_seconds_16k",
        value=value,
        target=600.0,
        at_most=True,
        what=f"Seconds of a refit (encoder, rates, decoder) of a TopK SAE of {width:,} features, "
        f"{d} dimensions, on {n_rows:,} rows in memory.",
        raw={
            "seconds": timed,
            "share_of_passes": value / passes,
            "seconds_of_passes": passes,
            "n_live": record.n_live,
            "solver": record.solver,
            "flops": record.flops,
        },
        notes=(
            "seconds on this machine, not a ratio",
            f"{value / passes:.2f} of the time in which the two models of the pair read as many "
            "tokens, by a pass over fewer of them",
        ),
    )


def _seconds_of_passes(settings: Settings, n_rows: int) -> float:
    """Seconds in which both models of the pair read ``n_rows`` tokens, from a shorter pass."""
    shape = TINY if settings.quick else PYTHIA
    n_windows, length = (2, 32) if settings.quick else (8, 256)
    total = 0.0
    with random_models(shape) as folder:
        for role in ("source", "target"):
            model = HookedModel.load(folder / role)
            tokens = torch.randint(5, model.d_vocab, (n_windows, length))
            hook = f"blocks.{model.n_layers - 1}.hook_resid_post"
            model.engine.capture(tokens, [hook])  # the warm-up
            total += seconds(lambda m=model, h=hook, t=tokens: m.engine.capture(t, [h]))
    return total * n_rows / (n_windows * length)
