"""Moments of SAE codes and target states: what a map straight from codes is fitted on.

Codes are wide (thousands of features) and sparse (tens of them at a token). Two passes over the
documents of the *fitting* folds: the first counts on how many tokens every feature is active, the
second sums over the features that are (the live ones), for each fold,

    n, Σc, Σ(y−s), Σ(y−s)², Σc(y−s)ᵀ          about a fixed shift s of the target's states, in float64

and keeps the codes' own second moments Σccᵀ in one of two forms that answer the same question,
``Σccᵀ · W``:

    DenseGram    [live, live] in float64: 8·F² bytes a fold, whatever the number of tokens; factored by Cholesky
    SparseGram   the codes themselves, row by row: 16 bytes an active code; multiplied, never formed, for conjugate gradients

Documents of the test fold are not read here at all. Limits: the sparse form grows with the tokens
and lives on the CPU.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrt_lens.data._blocks import Block, iterate_blocks
from lrt_lens.data._documents import Documents
from lrt_lens.data._parts import N_FOLDS
from lrt_lens.data._windows import BlockPlan
from lrt_lens.errors import MismatchError, NonFiniteError
from lrt_lens.models._hook_points import same_place
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._block_rows import block_rows, window_length
from lrt_lens.moments._scatter import gram
from lrt_lens.stitching._stitch import Stitch

_BATCH_TOKENS = 4096
_SPARSE_BYTES = 16
"""A float64 value, an int32 column, and some slack for the transpose."""


@runtime_checkable
class Gram(Protocol):
    """Σccᵀ, [live, live], in whatever form."""

    def times(self, weight: Tensor) -> Tensor:
        """Σccᵀ · weight, [live, ...]."""
        ...

    @property
    def matrix(self) -> Tensor:
        """Σccᵀ itself; the sparse form makes it anew each time."""
        ...

    @property
    def diagonal(self) -> Tensor:
        """Σc² of every live feature, [live]."""
        ...

    def add(self, codes: Tensor) -> None:
        """Rows of codes, [token, live]."""
        ...


class DenseGram:
    """The matrix itself, float64."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._matrix = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, codes: Tensor) -> None:
        """Rows of codes, [token, live]."""
        self._matrix += gram(codes.double())

    @property
    def matrix(self) -> Tensor:
        """[live, live]."""
        return self._matrix

    def times(self, weight: Tensor) -> Tensor:
        """Σccᵀ · weight."""
        return self.matrix @ weight

    @property
    def diagonal(self) -> Tensor:
        """Σc², [live]."""
        return self.matrix.diagonal()


class SparseGram:
    """The codes, kept as a sparse matrix [token, live]; products through it cost two passes over
    its entries.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._pieces: list[Any] = []

    def add(self, codes: Tensor) -> None:
        """Rows of codes, [token, live]."""
        from scipy.sparse import csr_matrix

        self._pieces.append(csr_matrix(codes.double().cpu().numpy()))

    @property
    def codes(self) -> Any:
        """[token, live], scipy's CSR."""
        from scipy.sparse import csr_matrix, vstack

        if len(self._pieces) != 1:
            self._pieces = [
                vstack(self._pieces, format="csr") if self._pieces else csr_matrix((0, self.width))
            ]
        return self._pieces[0]

    def times(self, weight: Tensor) -> Tensor:
        """Σccᵀ · weight."""
        codes = self.codes
        return torch.from_numpy(np.ascontiguousarray(codes.T @ (codes @ weight.cpu().numpy())))

    @property
    def matrix(self) -> Tensor:
        """[live, live], made anew."""
        return torch.from_numpy((self.codes.T @ self.codes).toarray())

    @property
    def diagonal(self) -> Tensor:
        """Σc², [live]."""
        return torch.from_numpy(np.asarray(self.codes.multiply(self.codes).sum(0)).ravel())


@dataclass
class CodeFold:
    """Sums over the tokens of one fold; target states are counted from the shift."""

    gram: Gram
    total_codes: Tensor
    """[live], Σc."""
    total_y: Tensor
    """[d_target], Σ(y − s)."""
    square_y: Tensor
    """[d_target], Σ(y − s)²."""
    cross: Tensor
    """[live, d_target], Σc(y − s)ᵀ."""
    n: int = 0

    def add(self, codes: Tensor, y: Tensor) -> None:
        """Rows: codes [token, live], y [token, d_target] already about the shift."""
        codes, y = codes.double(), y.double()
        self.gram.add(codes)
        self.total_codes += codes.sum(0)
        self.total_y += y.sum(0)
        self.square_y += (y * y).sum(0)
        self.cross += codes.T @ y
        self.n += len(codes)

    def errors(self, weight: Tensor, bias: Tensor) -> Tensor:
        """[d_target]: Σ(y − s − cW − b)² over the fold's tokens, from the sums alone."""
        predicted = (
            (weight * self.gram.times(weight)).sum(0)
            + 2 * bias * (self.total_codes @ weight)
            + self.n * bias**2
        )
        return self.square_y - 2 * ((weight * self.cross).sum(0) + bias * self.total_y) + predicted

    @property
    def variance(self) -> Tensor:
        """[d_target]: Σ(y − ȳ)²."""
        return self.square_y - self.total_y**2 / max(1, self.n)


@dataclass
class CodeMoments:
    """Sums of every fitting fold, over the live features."""

    live: Tensor
    """[live], ascending indices into the SAE's features."""
    firings: Tensor
    """[feature]: tokens of the fitting folds on which a feature is active, dead ones included."""
    shift: Tensor
    """[d_target]."""
    folds: list[CodeFold] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        """Tokens of all fitting folds."""
        return sum(fold.n for fold in self.folds)

    @classmethod
    def empty(cls, firings: Tensor, live: Tensor, shift: Tensor, *, sparse: bool) -> "CodeMoments":
        """Sums over nothing yet, on the shift's device (the sparse form: on the CPU)."""
        device = torch.device("cpu") if sparse else shift.device
        width, d = len(live), len(shift)
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=device)  # noqa: E731
        folds = [
            CodeFold(
                SparseGram(width) if sparse else DenseGram(width, device),
                zeros(width),
                zeros(d),
                zeros(d),
                zeros(width, d),
            )
            for _ in range(N_FOLDS)
        ]
        return cls(live, firings, shift.double().to(device), folds)

    def add(self, fold: int, codes: Tensor, y: Tensor) -> None:
        """Rows of one fold: codes of all features [token, feature], states [token, d_target]."""
        device = self.shift.device
        self.folds[fold].add(
            codes[:, self.live.to(codes.device)].to(device), y.double().to(device) - self.shift
        )


# -------------------------------------------------------------------------------------------- codes


def encode(sae: Any, rows: Tensor) -> Tensor:
    """An SAE's codes [token, feature] of rows [token, d], float32 and dense; NonFiniteError where
    it answers NaN or infinity.
    """
    parameter = sae.W_dec
    with torch.no_grad():
        codes = sae.encode(rows.detach().to(parameter.device, parameter.dtype))
    codes = (codes.to_dense() if codes.is_sparse else codes).detach().float()
    if not torch.isfinite(codes).all():
        bad = (~torch.isfinite(codes)).any(0).nonzero()[:, 0].tolist()
        raise NonFiniteError(
            f"the SAE answers NaN or infinity for {len(bad)} of {codes.shape[1]} features (the first: {bad[0]}); "
            "check its weights, and that it was trained on this stream"
        )
    return codes


def check_sae(sae: Any, model: HookedModel, hook: str) -> None:
    """Raise where an SAE cannot read ``hook`` of ``model``: no SAE, another width, trained at
    another hook point.
    """
    if not (hasattr(sae, "encode") and hasattr(sae, "W_dec")):
        raise TypeError(
            f"a {type(sae).__name__} has no encode and W_dec; give a SAELens SAE, or an object with both"
        )
    if sae.W_dec.ndim != 2 or sae.W_dec.shape[1] != model.d_model:
        raise MismatchError(
            f"the SAE's W_dec has shape {tuple(sae.W_dec.shape)}; expected [feature, {model.d_model}] for {hook!r} of {model.name!r}: "
            "give an SAE of that model"
        )
    found = getattr(getattr(getattr(sae, "cfg", None), "metadata", None), "hook_name", None)
    if found is not None and not same_place(str(found), hook):
        raise MismatchError(
            f"the SAE was trained at {found!r}, but codes are read at {hook!r}; give an SAE, or a stitch, of the same place"
        )


# ------------------------------------------------------------------------------------------- passes


@dataclass(frozen=True)
class CodePasses:
    """The documents as a stitch's harvest cut them: the same folds, the same masked positions. May
    be walked more than once.
    """

    pair: ModelPair
    stitch: Stitch
    documents: Documents
    n_tokens: int | None
    context_length: int
    progress: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.documents, Iterator):
            raise TypeError(
                f"documents is a {type(self.documents).__name__}, which can be read once; give a list, a file or a data set"
            )
        if self.n_tokens is not None and self.n_tokens < 1:
            raise ValueError(
                f"n_tokens is {self.n_tokens}; expected a positive number, or None for all documents"
            )
        self.stitch.check(self.pair.source, self.pair.target)

    def blocks(self, parts: Sequence[int], what: str) -> Iterator[Block]:
        """Blocks of some parts, in the stream's order."""
        length = window_length(self.context_length, self.pair.source, self.pair.target)
        seed = self.stitch.provenance.seed
        plan = BlockPlan(
            context_length=length,
            skip_first=self.stitch.skip_first,
            n_tokens=self.n_tokens,
            seed=seed,
        )
        blocks = iterate_blocks(self.documents, self.pair.source, plan, target=self.pair.target)
        yield from (
            block
            for block in tqdm(blocks, desc=what, disable=not self.progress, leave=False)
            if block.part in parts
        )

    def source_rows(self, block: Block) -> Tensor:
        """[token, d_source]."""
        return block_rows(self.pair.source, [self.stitch.source_hook], block, _BATCH_TOKENS)[
            self.stitch.source_hook
        ]

    def target_rows(self, block: Block) -> Tensor:
        """[token, d_target], of the same tokens."""
        return block_rows(
            self.pair.target, [self.stitch.target_hook], block, _BATCH_TOKENS, "target"
        )[self.stitch.target_hook]


def count_firings(passes: CodePasses, sae: Any) -> tuple[Tensor, int]:
    """(tokens of the fitting folds on which each feature is active [feature], how many tokens there
    are); reads the source alone.
    """
    firings, n = torch.zeros(sae.W_dec.shape[0], dtype=torch.int64), 0
    for block in passes.blocks(range(N_FOLDS), "live features"):
        codes = encode(sae, passes.source_rows(block))
        firings += (codes != 0).sum(0).cpu()
        n += len(codes)
    return firings, n


def collect_moments(
    passes: CodePasses, sae: Any, firings: Tensor, live: Tensor, *, sparse: bool
) -> CodeMoments:
    """Sums over the fitting folds; reads both models."""
    moments: CodeMoments | None = None
    for block in passes.blocks(range(N_FOLDS), "codes and states"):
        codes, y = encode(sae, passes.source_rows(block)), passes.target_rows(block)
        if not torch.isfinite(y).all():
            raise NonFiniteError(
                f"{passes.pair.target.name!r} has NaN or infinity at {passes.stitch.target_hook!r}; load it in float32"
            )
        if moments is None:
            moments = CodeMoments.empty(firings, live, y.double().mean(0), sparse=sparse)
        moments.add(block.part, codes, y)
    if moments is None:
        raise ValueError("no document falls into a fitting fold; give more text")
    return moments


def gram_bytes(n_live: int, n_active: int, d_target: int, *, sparse: bool) -> int:
    """Bytes that moments and solving take: sums of five folds, their total and a factor;
    ``n_active`` counts active codes.
    """
    cross = 8 * n_live * d_target * (2 * N_FOLDS)
    return cross + (2 * _SPARSE_BYTES * n_active if sparse else 8 * n_live * n_live * (N_FOLDS + 3))
