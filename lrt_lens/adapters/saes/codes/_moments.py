"""Moments of SAE codes and target states, on which a map from codes is fitted.

Problem: codes are wide (thousands of features) and sparse (tens of active features per token), so
their second moments may not fit into memory. Mechanism: sums over the active (live) features alone,
for each fitting fold,

    n, Σc, Σ(y−s), Σ(y−s)², Σc(y−s)ᵀ    about a fixed shift s of the target's states, in float64

and holds the second moments Σccᵀ of the codes in one of two forms, both of which compute
``Σccᵀ · W``:

    DenseGram     [live, live] in float64: 8·F² bytes per fold, independent of the number of
                  tokens; factored by Cholesky
    SparseGram    the codes themselves, row by row: 16 bytes per active code; multiplied by vectors
                  and never formed, for conjugate gradients

    moments = CodeMoments.empty(firings, live, shift, sparse=False)
    moments.add(fold, codes, states)        # [token, feature], [token, d_target]

On the CPU products of codes are sparse, so that they cost in proportion to the active codes.

Limits: the sparse form grows with the number of tokens and is held on the CPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lrt_lens.data._parts import N_FOLDS
from lrt_lens.errors import NonFiniteError
from lrt_lens.moments._scatter import gram

_ROWS = 2048
"""Number of rows that are encoded at once."""
_SPARSE_BYTES = 16
"""Bytes per active code: a float64 value, an int32 column, and a margin for the transpose."""


@runtime_checkable
class Gram(Protocol):
    """Second moments Σccᵀ of codes, [live, live], dense or sparse."""

    def times(self, weight: Tensor) -> Tensor:
        """Product Σccᵀ · weight, [live, ...]."""
        ...

    @property
    def matrix(self) -> Tensor:
        """Matrix Σccᵀ, [live, live]; the sparse form computes it at each access."""
        ...

    @property
    def diagonal(self) -> Tensor:
        """Sum of squares Σc² of each live feature, [live]."""
        ...

    def add(self, codes: Tensor) -> None:
        """Add rows of codes, [token, live]."""
        ...


class DenseGram:
    """Second moments Σccᵀ as a float64 matrix."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._matrix = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, codes: Tensor) -> None:
        """Add rows of codes, [token, live]."""
        if self._matrix.device.type == "cpu":
            rows = sparse_rows(codes)
            self._matrix += torch.from_numpy((rows.T @ rows).toarray())
        else:
            self._matrix += gram(codes.double())

    @property
    def matrix(self) -> Tensor:
        """Matrix Σccᵀ, [live, live]."""
        return self._matrix

    def times(self, weight: Tensor) -> Tensor:
        """Product Σccᵀ · weight, [live, ...]."""
        return self.matrix @ weight

    @property
    def diagonal(self) -> Tensor:
        """Sum of squares Σc² of each live feature, [live]."""
        return self.matrix.diagonal()


class SparseGram:
    """Second moments Σccᵀ, represented by the sparse codes [token, live].

    A product costs two passes over the active codes.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._pieces: list[Any] = []

    def add(self, codes: Tensor) -> None:
        """Add rows of codes, [token, live]."""
        self._pieces.append(sparse_rows(codes))

    @property
    def codes(self) -> Any:
        """Codes of all rows added so far, [token, live], as a CSR matrix of scipy."""
        from scipy.sparse import csr_matrix, vstack

        if len(self._pieces) != 1:
            # Pieces are joined once: a CSR matrix cannot grow in place.
            self._pieces = [
                vstack(self._pieces, format="csr") if self._pieces else csr_matrix((0, self.width))
            ]
        return self._pieces[0]

    def times(self, weight: Tensor) -> Tensor:
        """Product Σccᵀ · weight, [live, ...]."""
        codes = self.codes
        # Σccᵀ W = Cᵀ (C W): two sparse products, the [live, live] matrix is never formed.
        return torch.from_numpy(np.ascontiguousarray(codes.T @ (codes @ weight.cpu().numpy())))

    @property
    def matrix(self) -> Tensor:
        """Matrix Σccᵀ, [live, live], computed at each access."""
        return torch.from_numpy((self.codes.T @ self.codes).toarray())

    @property
    def diagonal(self) -> Tensor:
        """Sum of squares Σc² of each live feature, [live]."""
        return torch.from_numpy(np.asarray(self.codes.multiply(self.codes).sum(0)).ravel())


@dataclass
class CodeFold:
    """Sums over the tokens of one fold; the shift s is subtracted from the target states."""

    gram: Gram
    """Second moments Σccᵀ, dense or sparse."""
    total_codes: Tensor
    """Sum Σc of the codes, [live]."""
    total_y: Tensor
    """Sum Σ(y − s) of the shifted target states, [d_target]."""
    square_y: Tensor
    """Sum of squares Σ(y − s)², [d_target]."""
    cross: Tensor
    """Cross-moments Σc(y − s)ᵀ, [live, d_target]."""
    n: int = 0
    """Number of tokens."""

    def add(self, codes: Tensor, y: Tensor) -> None:
        """Add rows: codes [token, live], target states minus the shift [token, d_target]."""
        # float64: sums of a hundred thousand tokens lose digits in float32.
        codes, y = codes.double(), y.double()
        self.gram.add(codes)
        self.total_codes += codes.sum(0)
        self.total_y += y.sum(0)
        self.square_y += (y * y).sum(0)
        if codes.device.type == "cpu":
            self.cross += torch.from_numpy(sparse_rows(codes).T @ y.numpy())
        else:
            self.cross += codes.T @ y
        self.n += len(codes)

    def errors(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Squared errors Σ(y − s − cW − b)² over the fold's tokens, [d_target], from its sums."""
        # Σ(y − s)² − 2 [Wᵀ Σc(y − s)ᵀ + b Σ(y − s)] + [Wᵀ Σccᵀ W + 2 b (Σc)W + n b²], per column.
        predicted = (
            (weight * self.gram.times(weight)).sum(0)
            + 2 * bias * (self.total_codes @ weight)
            + self.n * bias**2
        )
        return self.square_y - 2 * ((weight * self.cross).sum(0) + bias * self.total_y) + predicted


@dataclass
class CodeMoments:
    """Sums over the live features, one `CodeFold` per fitting fold."""

    live: Tensor
    """Indices of the live features within the SAE, in ascending order, [live]."""
    firings: Tensor
    """Number of tokens of the fitting folds on which each feature is active, dead ones included,
    [feature]."""
    shift: Tensor
    """Shift s that is subtracted from the target's states before they are summed, [d_target]."""
    folds: list[CodeFold] = field(default_factory=list)
    """Sums of each fitting fold."""

    @property
    def n_tokens(self) -> int:
        """Tokens of all fitting folds."""
        return sum(fold.n for fold in self.folds)

    @classmethod
    def empty(
        cls, firings: Tensor, live: Tensor, shift: Tensor, *, sparse: bool, n_folds: int = N_FOLDS
    ) -> "CodeMoments":
        """Moments of zero tokens, on the shift's device (on the CPU if ``sparse``)."""
        device = torch.device("cpu") if sparse else shift.device
        width, d = len(live), len(shift)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        def fold() -> CodeFold:
            moments = SparseGram(width) if sparse else DenseGram(width, device)
            return CodeFold(moments, zeros(width), zeros(d), zeros(d), zeros(width, d))

        folds = [fold() for _ in range(n_folds)]
        return cls(live, firings, shift.double().to(device), folds)

    def add(self, fold: int, codes: Tensor, y: Tensor) -> None:
        """Add rows to one fold: codes of all features [token, feature], states [token, d]."""
        device = self.shift.device
        self.folds[fold].add(
            codes[:, self.live.to(codes.device)].to(device), y.double().to(device) - self.shift
        )


# -------------------------------------------------------------------------------------------- codes


def sparse_rows(codes: Tensor) -> Any:
    """Codes [token, feature] as a CSR matrix of scipy in float64, on the CPU."""
    from scipy.sparse import csr_matrix

    return csr_matrix(codes.detach().double().cpu().numpy())


def encode(sae: Any, rows: Tensor) -> Tensor:
    """Codes [token, feature] of rows [token, d], float32 and dense.

    Raises:
        NonFiniteError: a code is NaN or infinite.
    """
    parameter = sae.W_dec
    with torch.no_grad():
        codes = sae.encode(rows.detach().to(parameter.device, parameter.dtype))
    codes = (codes.to_dense() if codes.is_sparse else codes).detach().float()
    if not torch.isfinite(codes).all():
        bad = (~torch.isfinite(codes)).any(0).nonzero()[:, 0].tolist()
        raise NonFiniteError(
            f"the SAE returns NaN or infinity for {len(bad)} of {codes.shape[1]} features "
            f"(the first: {bad[0]}); check its weights, and that it was trained at this hook point"
        )
    return codes


def encoded(sae: Any, states: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their codes [row, feature] in float32, on the CPU, piece by piece."""
    for start in range(0, len(states), _ROWS):
        rows = slice(start, start + _ROWS)
        yield rows, encode(sae, states[rows]).cpu()


def gram_bytes(
    n_live: int, n_active: int, d_target: int, *, sparse: bool, n_folds: int = N_FOLDS
) -> int:
    """Bytes that the moments and the solver take.

    Args:
        n_live: live features.
        n_active: active codes over all tokens.
        d_target: width of the target states.
        sparse: True if the codes are held instead of their second moments.
        n_folds: number of folds.
    """
    # Dense: one [live, live] matrix per fold, and three more for their sum and its factor.
    cross = 8 * n_live * d_target * (2 * n_folds)
    return cross + (2 * _SPARSE_BYTES * n_active if sparse else 8 * n_live * n_live * (n_folds + 3))
