"""One ridge map from streamed moments, compared with scikit-learn's ridge in memory."""

from functools import partial

import numpy as np
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.measuring import Measurement, Settings, alternate
from benchmarks.models import PYTHIA, TINY
from lrt_lens.data import N_PARTS
from lrt_lens.moments import CrossMoments
from lrt_lens.stitching import AffineMap
from lrt_lens.stitching.solvers import Ridge

_ALPHA = 1e-3
_ROWS_PER_DOCUMENT = 400
_LARGEST_DIFFERENCE = 1e-3
"""Largest relative difference between the two maps, both computed in float32."""


def fit_time_over_sklearn(settings: Settings) -> Measurement:
    """Seconds of `CrossMoments` with one map up ÷ seconds of scikit-learn's ridge.

    A: `CrossMoments.from_activations` and one map up at one penalty, from all rows. Products are
    float32 and per fold. The target's second moments are accumulated too, though this map does not
    need them, because the function that users call does so. B: scikit-learn's
    ``Ridge(solver="cholesky")`` on the same float32 rows with the same penalty.
    """
    x, y = _rows(settings)
    documents = torch.arange(len(x)) // _ROWS_PER_DOCUMENT
    # α·tr(Sxx)/d: the penalty of our relative α in scikit-learn's unit
    penalty = _ALPHA * float((x - x.mean(0)).double().pow(2).sum() / x.shape[1])
    arrays = x.numpy(), y.numpy()
    with threadpool_limits(limits=settings.threads):
        difference = _difference(_ours(x, y, documents).weight, _theirs(*arrays, penalty))
        timings = alternate(
            lambda: _ours(x, y, documents),
            lambda: _theirs(*arrays, penalty),
            settings.repetitions(5),
        )
        parts = alternate(
            lambda: CrossMoments.from_activations(x, y, documents=documents, null=False),
            lambda: (x.T @ x, x.T @ y),
            3,
        )
    if difference > _LARGEST_DIFFERENCE:
        raise RuntimeError(
            f"the two maps differ by {difference:.2g} of their norm, expected at most "
            f"{_LARGEST_DIFFERENCE} from rounding: they no longer solve the same problem"
        )
    return Measurement(
        name="fit_time_over_sklearn",
        value=timings.ratio,
        target=1.3,
        at_most=True,
        what=f"Accumulating moments of {len(x):,} rows and solving the up map ({x.shape[1]} → "
        f"{y.shape[1]}, float32, one penalty) ÷ scikit-learn's Ridge(solver='cholesky') on the "
        "same rows in memory.",
        raw=timings.raw("moments", "sklearn")
        | {
            "rows": len(x),
            "relative_difference_of_maps": difference,
            "accumulation_alone_seconds": list(parts.a),
            "two_bare_products_seconds": list(parts.b),
        },
    )


def _ours(x: Tensor, y: Tensor, documents: Tensor) -> AffineMap:
    """The ridge map up from moments of all rows."""
    moments = CrossMoments.from_activations(x, y, documents=documents, null=False)
    (pair,) = moments.pairs
    scatter = moments.scatter(pair, range(N_PARTS))
    return Ridge(alpha=_ALPHA).decompose(scatter.xx).solve(scatter, _ALPHA, *pair)


def _theirs(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """Weight of scikit-learn's ridge, [d_source, d_target]."""
    return SklearnRidge(alpha=penalty, solver="cholesky").fit(x, y).coef_.T


def _difference(ours: Tensor, theirs: np.ndarray) -> float:
    """Relative difference of two weights, in the Frobenius norm."""
    return float((ours - torch.from_numpy(theirs).double()).norm() / ours.norm())


def _rows(settings: Settings) -> tuple[Tensor, Tensor]:
    """Correlated random rows with a non-zero mean, as activations are."""
    shape = TINY if settings.quick else PYTHIA
    generator = torch.Generator().manual_seed(settings.seed)
    rows = 4_000 if settings.quick else settings.n_tokens
    draw = partial(torch.randn, generator=generator)
    x = draw(rows, shape.source.d_model) + draw(shape.source.d_model)
    y = x @ draw(shape.source.d_model, shape.target.d_model) * shape.source.d_model**-0.5 + draw(
        rows, shape.target.d_model
    )
    return x, y
