"""Seconds to transfer an SAE: folding, both products in float64, a SAELens object."""

import statistics
from dataclasses import replace

import torch

from benchmarks.measuring import Measurement, Settings, seconds
from lrt_lens.adapters.saes import transfer_sae
from lrt_lens.stitching import AffineMap, MapPair, Stitch, StreamStatistics

_HOOK = "blocks.0.hook_resid_post"


def sae_transfer_seconds_16k(settings: Settings) -> Measurement:
    """Median seconds of the transfer of a TopK SAE with 16,384 features."""
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    d_source, d_target, width = (48, 64, 256) if settings.quick else (768, 1024, 16384)
    torch.manual_seed(settings.seed)
    sae = TopKSAE(TopKSAEConfig(d_in=d_source, d_sae=width, k=32))
    stitch = _stitch(d_source, d_target)
    transferred = transfer_sae(sae, stitch)  # the warm-up
    y = torch.randn(64, d_target)
    # The transferred SAE is the map down, the SAE, and the map up.
    torch.testing.assert_close(
        transferred(y), stitch.up.points(sae(stitch.down.points(y))), rtol=1e-3, atol=1e-3
    )
    timed = [seconds(lambda: transfer_sae(sae, stitch)) for _ in range(3 if settings.quick else 7)]
    return Measurement(
        name="sae_transfer_seconds_16k",
        value=statistics.median(timed),
        target=1.0,
        at_most=True,
        what=f"Seconds of stitch.transfer of a TopK SAE of {width:,} features, {d_source} → "
        f"{d_target} dimensions.",
        raw={"seconds": timed, "d_source": d_source, "d_target": d_target, "features": width},
        notes=("seconds on this machine, not a ratio",),
    )


def _stitch(d_source: int, d_target: int) -> Stitch:
    """A stitch of random maps."""
    up = AffineMap(
        torch.randn(d_source, d_target) / d_source**0.5, torch.randn(d_target), _HOOK, _HOOK
    )
    down = replace(
        up, weight=torch.randn(d_target, d_source) / d_target**0.5, bias=torch.randn(d_source)
    )
    return Stitch(
        MapPair(up, down),
        *(StreamStatistics(torch.zeros(d), torch.eye(d), 1.0) for d in (d_source, d_target)),
    )
