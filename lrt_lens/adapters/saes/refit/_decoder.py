"""Decoder of an SAE on another model's states, by ridge regression on its codes.

    fit = refit_decoder(folded, sae, states, folds, settings)
    fit.folded, fit.alpha, fit.r2_cv, fit.live

Problem: the decoder rows of a transferred SAE are images of the source's rows, not the directions
that its codes predict in the target. Mechanism: the codes f of the fitting rows are sums per fold
(`CodeMoments`), and the decoder that predicts the states best has a closed form. The penalty pulls
it towards the decoder D₀ that it replaces, not towards 0:

    D = D₀ + (S + λ·tr(S)/F·I)⁻¹ Σ(f − f̄)(r − r̄)ᵀ,    r = y − f D₀ − b₀,    b = b₀ + r̄ − f̄(D − D₀)

over the F features that fire on at least ``min_firings`` rows; all other features keep their row.
S is the centred second moments of the codes, factored by Cholesky or, where that does not fit,
used by conjugate gradients. λ is chosen on the folds; above 4,096 features on one of them.

Limits: features that always fire together share what they explain, as in any regression.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrt_lens.adapters.saes._folding import FoldedSae
from lrt_lens.adapters.saes.codes._moments import CodeMoments, encoded
from lrt_lens.adapters.saes.codes._ridge import choose_solver, fit_codes
from lrt_lens.adapters.saes.refit._settings import RefitSettings
from lrt_lens.moments._placement import available_memory

logger = logging.getLogger(__name__)

_ALL_FOLDS = 4096
"""Largest number of live features for which every fold is held out in turn."""


@dataclass(frozen=True)
class DecoderFit:
    """Weights with a refitted decoder, and how it was fitted."""

    folded: FoldedSae
    """Weights of the SAE."""
    alpha: float
    """Penalty, relative to the mean variance of a live feature."""
    r2_cv: float
    """Cross-validated share of the variance of the old decoder's residuals that is explained."""
    n_live: int
    """Number of features whose decoder row was fitted."""
    n_active: int
    """Number of active codes of the rows."""
    solver: str
    """Solver: ``"cholesky"`` or ``"cg"``."""


def refit_decoder(
    folded: FoldedSae, sae: Any, states: Tensor, folds: Tensor, settings: RefitSettings
) -> DecoderFit:
    """Weights whose decoder and bias predict the states from the codes of ``sae``.

    Args:
        folded: weights of ``sae``.
        sae: SAELens SAE with these weights.
        states: states of the target, [row, d].
        folds: fold of each row, [row].
        settings: penalties, least number of firings, solver and memory.

    Raises:
        ValueError: no feature fires often enough; there are fewer rows than live features and the
            only penalty is 0; more memory is needed than allowed.
    """
    firings = torch.zeros(folded.W_dec.shape[0], dtype=torch.int64)
    for _, codes in encoded(sae, states):
        firings += (codes != 0).sum(0)
    live = (firings >= settings.min_firings).nonzero()[:, 0]
    _refuse_too_little(firings, live, len(states), settings)
    n_active = int(firings[live].sum())
    free = available_memory("cpu") if settings.memory is None else settings.memory
    solver = choose_solver(
        settings.solver, len(live), n_active, states.shape[1], {"cholesky": free, "cg": free}
    )
    shift = torch.zeros(states.shape[1], dtype=torch.float64)
    moments = CodeMoments.empty(firings, live, shift, sparse=solver == "cg")
    old = folded.W_dec.float(), folded.b_dec.float()
    for rows, codes in encoded(sae, states):
        # r = y − f D₀ − b₀: the penalty then pulls towards the old decoder.
        residual = states[rows] - codes @ old[0] - old[1]
        for fold in folds[rows].unique():
            of_fold = folds[rows] == fold
            moments.add(int(fold), codes[of_fold], residual[of_fold])
    n_held_out = None if len(live) <= _ALL_FOLDS else 1
    try:
        fit = fit_codes(moments, settings.alphas, n_held_out=n_held_out)
    except RuntimeError as error:  # torch's error of a failed Cholesky factor is one
        raise ValueError(
            f"the second moments of {len(live)} live features are singular and alphas is "
            f"{list(settings.alphas)}; expected a penalty above 0: leave alphas out"
        ) from error
    W_dec = folded.W_dec.clone()
    W_dec[live] += fit.weight
    changed = replace(folded, W_dec=W_dec, b_dec=folded.b_dec + fit.bias)
    return DecoderFit(changed, fit.alpha, fit.r2_cv, len(live), n_active, solver)


def _refuse_too_little(firings: Tensor, live: Tensor, n_rows: int, settings: RefitSettings) -> None:
    """Raise ValueError if no decoder can be fitted to the rows."""
    if not len(live):
        raise ValueError(
            f"none of {len(firings)} features is active on {settings.min_firings} of {n_rows:,} "
            f"rows (the most active one on {int(firings.max())}); expected an SAE that fires on "
            "these states: match its firing rates (rates=True, with a source), lower min_firings, "
            "or give more text"
        )
    if n_rows <= len(live) and not any(settings.alphas):
        raise ValueError(
            f"{n_rows:,} rows for {len(live)} live features, and the only penalty is 0; expected "
            "more rows than features or a penalty, because the decoder would interpolate the rows: "
            "give more text, raise min_firings, or leave alphas out"
        )
