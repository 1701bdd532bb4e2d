"""Decoder of an SAE on another model's states, by ridge regression on its codes.

    fit = refit_decoder(folded, codes, states, folds, settings)
    fit.folded, fit.alpha, fit.n_live

Problem: the decoder rows of a transferred SAE are images of the source's rows, not the directions
that its codes predict in the target. Mechanism: the codes f of the fitting rows are sums per fold
(`CodeMoments`), and the decoder that predicts the states best has a closed form. The penalty pulls
it towards the decoder D₀ that it replaces, not towards 0:

    D = D₀ + (S + λ·tr(S)/F·I)⁻¹ Σ(f − f̄)(r − r̄)ᵀ,    r = y − f D₀ − b₀,    b = b₀ + r̄ − f̄(D − D₀)

over the F features that fire on at least ``min_firings`` rows; all other features keep their row.
S is the centred second moments of the codes, factored by Cholesky or, where that does not fit,
used by conjugate gradients. λ is chosen on ``n_held_out`` of the folds.

Limits: features that always fire together share what they explain, as in any regression.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrt_lens.adapters.saes._folding import FoldedSae
from lrt_lens.adapters.saes.codes._moments import CodeMoments
from lrt_lens.adapters.saes.codes._ridge import choose_solver, fit_codes
from lrt_lens.adapters.saes.refit._settings import RefitSettings
from lrt_lens.moments._placement import available_memory

_ROWS = 2048
"""Number of rows whose codes are dense at once."""


@dataclass(frozen=True)
class DecoderFit:
    """Weights with a refitted decoder, and how it was fitted."""

    folded: FoldedSae
    """Weights of the SAE."""
    alpha: float
    """Penalty, relative to the mean variance of a live feature."""
    n_live: int
    """Number of features whose decoder row was fitted."""
    n_active: int
    """Number of active codes of the rows."""
    solver: str
    """Solver: ``"cholesky"`` or ``"cg"``."""
    n_factors: int
    """Number of systems of equations that were solved."""


def refit_decoder(
    folded: FoldedSae,
    codes: Any,
    states: Tensor,
    folds: Tensor,
    settings: RefitSettings,
    *,
    alpha: float | None = None,
) -> DecoderFit:
    """Weights whose decoder and bias predict the states from codes.

    Args:
        folded: weights of the SAE.
        codes: CSR matrix of scipy with the SAE's codes of the rows, [row, feature].
        states: states of the target, [row, d].
        folds: fold of each row, [row].
        settings: penalties, held-out folds, least number of firings, solver and memory.
        alpha: penalty that was chosen before; None chooses it.

    Raises:
        ValueError: no feature fires often enough; there are fewer rows than live features and the
            only penalty is 0; more memory is needed than allowed.
    """
    firings = torch.from_numpy(np.bincount(codes.indices, minlength=codes.shape[1]))
    live = (firings >= settings.min_firings).nonzero()[:, 0]
    alphas = tuple(settings.alphas) if alpha is None else (alpha,)
    _refuse_too_little(firings, live, len(states), settings)
    n_active = int(firings[live].sum())
    n_held_out = settings.n_held_out if len(alphas) > 1 else 0
    pieces = _held_out_first(folds, n_held_out)
    free = available_memory("cpu") if settings.memory is None else settings.memory
    solver = choose_solver(
        settings.solver,
        len(live),
        n_active,
        states.shape[1],
        {"cholesky": free, "cg": free},
        n_folds=int(pieces.max()) + 1,
    )
    moments = _moments(folded, codes, states, pieces, (firings, live), sparse=solver == "cg")
    try:
        fit = fit_codes(moments, alphas, n_held_out=n_held_out)
    except RuntimeError as error:  # torch's error of a failed Cholesky factor is one
        raise ValueError(
            f"the second moments of {len(live)} live features are singular and alphas is "
            f"{list(alphas)}; expected a penalty above 0: leave alphas out"
        ) from error
    W_dec = folded.W_dec.clone()
    W_dec[live] += fit.weight
    changed = replace(folded, W_dec=W_dec, b_dec=folded.b_dec + fit.bias)
    n_factors = len(alphas) * min(n_held_out, len(moments.folds) - 1) + 1
    return DecoderFit(changed, fit.alpha, len(live), n_active, solver, n_factors)


def _held_out_first(folds: Tensor, n_held_out: int) -> Tensor:
    """Piece of each row: the held-out folds 0, 1, …, and one piece for all other folds, [row].

    Second moments are kept per piece, so that fewer of them are in memory.
    """
    used = folds.unique()
    # One fold at least is fitted.
    n_pieces = min(n_held_out, len(used) - 1)
    return torch.searchsorted(used, folds).clamp_max(n_pieces)


def _moments(
    folded: FoldedSae,
    codes: Any,
    states: Tensor,
    folds: Tensor,
    features: tuple[Tensor, Tensor],
    *,
    sparse: bool,
) -> CodeMoments:
    """Moments of the codes and of what the old decoder leaves of the states.

    ``features`` are the numbers of firings and the indices of the live features.
    """
    shift = torch.zeros(states.shape[1], dtype=torch.float64)
    n_folds = int(folds.max()) + 1
    moments = CodeMoments.empty(*features, shift, sparse=sparse, n_folds=n_folds)
    old = folded.W_dec.float(), folded.b_dec.float()
    for start in range(0, len(states), _ROWS):
        rows = slice(start, start + _ROWS)
        dense = torch.from_numpy(codes[rows].toarray()).float()
        # r = y − f D₀ − b₀: the penalty then pulls towards the old decoder.
        residual = states[rows] - dense @ old[0] - old[1]
        for fold in folds[rows].unique():
            of_fold = folds[rows] == fold
            moments.add(int(fold), dense[of_fold], residual[of_fold])
    return moments


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
