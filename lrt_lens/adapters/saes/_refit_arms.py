"""The refitted SAE and its controls, all refitted by the same steps on the same rows.

    arms = refit_arms(stitch, sae, SAERefit(pair, documents), seed=0)
    arms["refitted"], arms["shuffled_refitted"], arms["random_refitted"]

Problem: a ridge decoder makes the best of *any* sparse code, so a low error alone does not show
that something was transferred. Mechanism: every control gets the rates and the decoder of the
refit too, and lacks one thing:

| arm | starts from | read-out of the encoder |
| --- | --- | --- |
| refitted | ``stitch.transfer(sae)`` | codes of the source on the same tokens |
| shuffled_refitted | the maps of shuffled pairs | codes of the source on other tokens |
| random_refitted | random states of the target as encoder columns | none |

Random states are a stronger control than random directions: on the bundled pair, 30,000 rows, their
FVU is .35 and that of Gaussian directions .39.

Limits: one draw of each control.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lrt_lens.adapters.saes._folding import FoldedSae
from lrt_lens.adapters.saes.refit._rows import SAERefit, stitch_rows
from lrt_lens.adapters.saes.refit._settings import RefitSettings
from lrt_lens.adapters.saes.refit._states import RefitRows
from lrt_lens.adapters.saes.refit._steps import WeightsRefit, codes_of, refit_weights
from lrt_lens.stitching._stitch import Stitch


def refit_arms(
    stitch: Stitch, sae: Any, refit: SAERefit, *, seed: int = 0
) -> dict[str, WeightsRefit]:
    """Refitted SAE and its controls, by the names of the arms.

    A stitch without a null has no arm ``shuffled_refitted``.

    Args:
        stitch: transfers the SAE.
        sae: a SAELens SAE of the source's hook point.
        refit: models, documents and settings.
        seed: seed of the shuffled rows and of the random encoder.
    """
    rows, settings = stitch_rows(stitch, refit), refit.settings
    codes = None if rows.source is None else codes_of(sae, rows.source)
    transferred = stitch.transfer(sae)
    arms = {"refitted": _refit(transferred, rows, codes, settings)}
    generator = torch.Generator().manual_seed(seed)
    if stitch.null is not None:
        start = stitch.transfer(sae, through=stitch.null)
        arms["shuffled_refitted"] = _refit(start, rows, _shuffled(codes, generator), settings)
    # Without the read-out, which would replace the random encoder by that of the refitted arm.
    without = replace(settings, encoder=False, decoder=True)
    start = random_encoder(transferred, rows.target, generator)
    return arms | {"random_refitted": _refit(start, rows, codes, without)}


def _refit(start: Any, rows: RefitRows, codes: Any, settings: RefitSettings) -> WeightsRefit:
    return refit_weights(FoldedSae.of(start), start, rows, codes, settings)


def _shuffled(codes: Any, generator: torch.Generator) -> Any:
    """Codes whose rows are those of other tokens: one random cycle through all rows."""
    order = torch.randperm(codes.shape[0], generator=generator)
    other = torch.empty_like(order)
    # A cycle through all rows has no fixed point, so no row keeps its own codes.
    other[order] = order.roll(-1)
    return codes[other.numpy()]


def random_encoder(sae: Any, states: Tensor, generator: torch.Generator) -> Any:
    """SAE of the same class whose encoder columns are random centred states.

    Pre-activations have mean 0 and variance 1 on the states; decoder rows have the direction of the
    encoder columns and the lengths of those of ``sae``.
    """
    folded = FoldedSae.of(sae)
    n_features, centre = folded.W_dec.shape[0], states.double().mean(0)
    # With replacement where there are more features than states.
    chosen = torch.randint(len(states), (n_features,), generator=generator)
    if n_features <= len(states):
        chosen = torch.randperm(len(states), generator=generator)[:n_features]
    directions = states[chosen].double() - centre
    # Variance wᵀSw of each pre-activation, from the covariance S of the states.
    covariance = torch.cov(states.double().T)
    deviation = ((directions @ covariance) * directions).sum(1).sqrt().clamp_min(1e-12)
    encoder = (directions / deviation[:, None]).T
    lengths = folded.W_dec.norm(dim=1) / directions.norm(dim=1).clamp_min(1e-12)
    bias = -centre @ encoder
    others = dict(folded.other_weights)
    if "r_mag" in others:
        others["r_mag"] = torch.zeros_like(others["r_mag"])
    drawn = replace(
        folded,
        W_enc=encoder,
        W_dec=directions * lengths[:, None],
        b_dec=centre,
        biases={name: bias.clone() for name in folded.biases},
        other_weights=others,
    )
    return drawn.build(sae)
