"""A stitch between the two small models and SAEs of random weights for its source."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

HOOK, TARGET_HOOK = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
N_FEATURES = 40


@pytest.fixture(scope="session")
def stitch(pair: Any, corpus: list[str]) -> Any:
    """Stitch from layer 0 of the source to layer 1 of the target, with a map of shuffled pairs."""
    from lrt_lens.stitching import fit_stitches

    grid = fit_stitches(
        pair,
        corpus,
        source_layers=[0],
        target_layers=[1],
        context_length=32,
        null="full",
        progress=False,
    )
    return grid[HOOK, TARGET_HOOK]


@pytest.fixture(scope="session")
def make_sae() -> Callable[..., Any]:
    """Function that builds an SAE of random weights at ``HOOK``: ``make_sae("topk", d=16)``.

    Other options go to its configuration.
    """

    def make(
        architecture: str = "topk",
        *,
        d: int = 16,
        features: int = N_FEATURES,
        seed: int = 0,
        hook: str | None = HOOK,
        **options: Any,
    ) -> Any:
        import sae_lens
        from sae_lens.saes.sae import SAEMetadata

        kinds = {
            "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": 6}),
            "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig, {}),
            "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig, {}),
        }
        kind, config, defaults = kinds[architecture]
        torch.manual_seed(seed)
        sae = kind(
            config(
                d_in=d, d_sae=features, metadata=SAEMetadata(hook_name=hook), **defaults | options
            )
        )
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.copy_(torch.randn_like(parameter) / 4)
        return sae

    return make


@pytest.fixture(scope="session")
def sae(make_sae: Callable[..., Any]) -> Any:
    """A TopK SAE of 40 features, six of them active at a time."""
    return make_sae()
