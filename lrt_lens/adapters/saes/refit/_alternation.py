"""Improvement of an encoder for a given decoder, without a learning rate.

    better = improve_encoder(folded, codes, states)

Problem: an encoder that reads the source's codes is not the one with which the decoder reconstructs
best. Mechanism: with the active features of each row and the decoder D held fixed, the
reconstruction is linear in the encoder, so the squared error

    Σ_rows ‖ y − b_dec − Σ_{i active} (y·w_i + b_i) D_i ‖²  +  μ Σ_i ‖(w_i, b_i) − (w_i, b_i)₀‖²

is quadratic, and conjugate gradients reduce it without a step size. They need the active features
alone: a product costs in proportion to the number of active codes. After that the encoder chooses
other features on some rows, and the decoder is fitted again: one *alternation*.

Limits: not for gated SAEs, whose gate and magnitude are two functions. The correlation of a feature
with the source's feature falls while the reconstruction improves.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrt_lens.adapters.saes._folding import FoldedSae

N_STEPS = 10
"""Number of conjugate-gradient steps per alternation."""
_DAMPING = 1e-3
"""Weight μ of the distance to the old encoder, relative to the mean diagonal of the problem."""
_CHUNK = 2**12
"""Number of active codes whose rows are multiplied at once; few enough for a processor's cache."""


@dataclass(frozen=True)
class _Active:
    """Active features of rows, and the products that the quadratic problem needs."""

    states: Tensor
    """States with a column of ones, [row, d + 1], float64."""
    decoder: Tensor
    """Decoder rows, [feature, d], float64."""
    pattern: Any
    """CSR matrix [row, feature] whose stored entries are the active codes."""

    def values(self, encoder: Tensor) -> np.ndarray:
        """Pre-activations (y, 1)·v of the active codes, [code]; ``encoder`` is [feature, d + 1]."""
        return self._paired(self.states, encoder)

    def reconstruct(self, values: np.ndarray) -> Tensor:
        """Sum Σ_i value_i D_i of each row, [row, d]."""
        return torch.from_numpy(self._filled(values) @ self.decoder.numpy())

    def gradient(self, errors: Tensor) -> Tensor:
        """Gradient Σ_rows (y, 1) ⟨error, D_i⟩ of each feature, [feature, d + 1]."""
        slopes = self._filled(self._paired(errors, self.decoder))
        return torch.from_numpy(np.ascontiguousarray(slopes.T @ self.states.numpy()))

    def _paired(self, of_rows: Tensor, of_features: Tensor) -> np.ndarray:
        """Dot products of row and feature for each active code, [code]."""
        rows = torch.from_numpy(np.repeat(np.arange(len(of_rows)), np.diff(self.pattern.indptr)))
        columns = torch.from_numpy(self.pattern.indices).long()
        pieces = [
            (of_rows[r] * of_features[c]).sum(1)
            for r, c in zip(rows.split(_CHUNK), columns.split(_CHUNK), strict=True)
        ]
        return torch.cat(pieces).numpy() if pieces else np.zeros(0)

    def _filled(self, values: np.ndarray) -> Any:
        """CSR matrix with the pattern and other values."""
        from scipy.sparse import csr_matrix

        parts = (values, self.pattern.indices, self.pattern.indptr)
        return csr_matrix(parts, shape=self.pattern.shape)


def improve_encoder(folded: FoldedSae, codes: Any, states: Tensor) -> FoldedSae:
    """Weights whose encoder reconstructs the rows better with the given decoder.

    Args:
        folded: weights of the SAE.
        codes: CSR matrix of scipy with the SAE's codes of the rows, [row, feature]; its stored
            entries say which features are active on which row.
        states: states of the target, [row, d].

    Source: preconditioned conjugate gradients, Saad, Iterative Methods, algorithm 9.1.
    """
    ones = torch.ones(len(states), 1, dtype=torch.float64)
    active = _Active(torch.cat([states.double(), ones], 1), folded.W_dec, codes)
    start = torch.cat([folded.W_enc, folded.biases["b_enc"][None]]).T.contiguous()
    goal = states.double() - folded.b_dec
    # The diagonal of the problem is about firings · ‖D_i‖² · mean y² for each coordinate of v_i.
    firings = torch.from_numpy(np.bincount(codes.indices, minlength=len(start))).double()
    diagonal = firings * folded.W_dec.square().sum(1) * float(active.states.square().mean())
    damping = _DAMPING * float(diagonal.mean())
    inverse = (1 / (diagonal + damping))[:, None]

    def times(direction: Tensor) -> Tensor:
        fitted = active.reconstruct(active.values(direction))
        return active.gradient(fitted) + damping * direction

    moved = _conjugate_gradients(
        times, active.gradient(goal - active.reconstruct(active.values(start))), inverse
    )
    encoder = start + moved
    return replace(
        folded, W_enc=encoder[:, :-1].T.contiguous(), biases={"b_enc": encoder[:, -1].clone()}
    )


def _conjugate_gradients(times: Any, right: Tensor, inverse: Tensor) -> Tensor:
    """Approximate solution of ``times(x) = right`` from x = 0, after `N_STEPS` steps."""
    tiny = torch.finfo(torch.float64).tiny
    solution = torch.zeros_like(right)
    residual, preconditioned = right, inverse * right
    direction, rho = preconditioned, float((residual * preconditioned).sum())
    for _ in range(N_STEPS):
        product = times(direction)
        # α = rᵀz / pᵀAp; x ← x + αp; r ← r − αAp; z = M⁻¹r; p ← z + (r'ᵀz' / rᵀz) p
        step = rho / max(float((direction * product).sum()), tiny)
        solution = solution + step * direction
        residual = residual - step * product
        preconditioned = inverse * residual
        following = float((residual * preconditioned).sum())
        direction = preconditioned + following / max(rho, tiny) * direction
        rho = following
    return solution
