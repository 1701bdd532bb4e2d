"""Diagnostics of a fitted map: spectrum, ranks, conditioning, and intervals of its test scores.

Problem: of two maps with equal R², one can be a rotation of the whole stream and the other can use
a hundred directions; and a map that was fitted on fewer rows than dimensions looks like any other.
Mechanism: numbers computed from the weight matrix W [d_source, d_target] and from the scatter of
the fit; and test-fold scores with each group of documents left out in turn.

    diagnostics = map_diagnostics(stitch.up, moments.scatter(pair, moments.parts.fit))
    diagnostics.effective_rank, diagnostics.interpolates
    diagnostics.figure()                               # the singular values
    score_intervals(stitch.up, moments, pair)          # r2, r2_uniform, cosine with 95% intervals

With σ₁ ≥ σ₂ ≥ … the singular values of W and p_i = σ_i / Σσ:

- `rank`: number of singular values above max(d_source, d_target)·ε·σ₁, with ε of W's precision
  (numpy's `matrix_rank`).
- `stable_rank`: ‖W‖²_F / σ₁² (Rudelson and Vershynin 2007).
- `effective_rank`: exp(−Σ p_i ln p_i) (Roy and Vetterli 2007, equation 4).
- `condition`: σ₁ / σ_min(d_source, d_target); infinite if the rank is smaller.
- `source_condition`: λ₁ / λ_d of the source's scatter; a large value needs a ridge penalty. It is
  infinite if there are too few rows.
- `reachable`: tr(PSyyP) / tr Syy, with P the projector on the span of W's outputs. No score of this
  map can exceed it.
- `reachable_by_rank`: the largest `rank` eigenvalues of Syy as a share of all. No map of this rank
  can exceed it (Eckart and Young 1936).

Limits: the spectrum of W depends on the scales of both streams. `predicted_effective_rank`, from
the covariance WᵀSxxW of the predictions, does not depend on the scale of the source. Intervals are
over documents for one fitted map and do not contain the spread over refits (`Stitch.refits`).
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lrt_lens._short_repr import ShortRepr
from lrt_lens.errors import MismatchError
from lrt_lens.figures._similarity import spectrum_figure
from lrt_lens.figures._template import with_counts
from lrt_lens.models._belonging import Ends, Origin, map_ends, refuse_other_map
from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._scatter import MapScore, Scatter, score_map
from lrt_lens.statistics._jackknife import few_groups, jackknife
from lrt_lens.stitching._affine import AffineMap

INTERVAL_COLUMNS = ("score", "value", "low", "high", "standard_error", "n_groups", "flag")
"""Columns of `score_intervals`; ``flag`` says why an interval may be too short, or is empty."""


@dataclass(frozen=True, eq=False, repr=False)
class MapDiagnostics(ShortRepr):
    """Numbers of one map and of its fitting rows; the module docstring has the formulas."""

    singular_values: Tensor = field(repr=False)
    """Singular values of W in descending order, float64 [min(d_source, d_target)]."""
    d_source: int
    d_target: int
    rank: int
    """Number of singular values above rounding error."""
    stable_rank: float
    """Squared Frobenius norm ÷ squared largest singular value."""
    effective_rank: float
    """Exponential of the entropy of the singular values."""
    predicted_effective_rank: float
    """Effective rank of the covariance of the predictions, from its eigenvalues."""
    frobenius_norm: float
    condition: float
    """Largest ÷ smallest singular value; infinite if W has not full rank."""
    source_condition: float
    """Largest ÷ smallest eigenvalue of the source's scatter; infinite with too few rows."""
    reachable: float
    """Share of the target's variance that lies in the span of this map's outputs."""
    reachable_by_rank: float
    """Share of the target's variance in the best subspace of this rank."""
    n: int
    """Number of fitting rows."""
    interpolates: bool
    """True if n − 1 ≤ d_source: without a penalty, a map then predicts any fitting rows without
    error, so only held-out scores mean anything.
    """

    @property
    def row(self) -> dict[str, float | int | bool]:
        """Return the diagnostics without the spectrum, as one row of a table."""
        return {name: value for name, value in asdict(self).items() if name != "singular_values"}

    @property
    def spectrum(self) -> pd.DataFrame:
        """Return one row per singular value with ``index`` (from 1), ``singular_value``, ``share``.

        ``share`` is relative to the largest singular value; NaN if that is 0.
        """
        values = self.singular_values.numpy(force=True)
        largest = values[0] or math.nan
        index = range(1, len(values) + 1)
        return pd.DataFrame({"index": index, "singular_value": values, "share": values / largest})

    def figure(self) -> Any:
        """Return the singular values against their index, both axes logarithmic (plotly)."""
        return with_counts(spectrum_figure(self.spectrum), {"fitting rows": self.n})


def map_diagnostics(affine: AffineMap, fit: Scatter) -> MapDiagnostics:
    """Return spectrum, ranks and conditioning of a map.

    Args:
        affine: the map.
        fit: scatter of its fitting rows; ``scatter.swapped()`` for a map down.

    Raises:
        MismatchError: the scatter has other widths than the map.
    """
    _refuse_other_widths(affine, fit)
    weight = affine.weight.to(fit.xy)
    _, singular, right = torch.linalg.svd(weight, full_matrices=False)
    largest = float(singular[0])
    # numpy's matrix_rank. ε is that of the map's own precision: a float32 map that was converted
    # to float64 has singular values of the size of float32 rounding errors.
    rank = int(
        (singular > max(weight.shape) * torch.finfo(affine.weight.dtype).eps * largest).sum()
    )
    # The rows of `right` up to the rank are an orthonormal basis of W's outputs.
    span, total = right[:rank], float(fit.variance.sum())
    leading = torch.linalg.eigvalsh(fit.yy).flip(0)[:rank]
    return MapDiagnostics(
        singular_values=singular,
        d_source=weight.shape[0],
        d_target=weight.shape[1],
        rank=rank,
        stable_rank=float(singular.square().sum()) / largest**2 if largest else 0.0,
        effective_rank=effective_rank(singular),
        predicted_effective_rank=effective_rank(torch.linalg.eigvalsh(weight.T @ fit.xx @ weight)),
        frobenius_norm=float(singular.norm()),
        condition=largest / float(singular[-1]) if rank == len(singular) else math.inf,
        source_condition=condition_number(fit.xx, fit.n),
        reachable=float(((span @ fit.yy) * span).sum()) / total if total else math.nan,
        reachable_by_rank=float(leading.sum()) / total if total else math.nan,
        n=int(fit.n),
        interpolates=fit.n - 1 <= weight.shape[0],
    )


def effective_rank(spectrum: Tensor) -> float:
    """Return the exponential of the entropy of a spectrum [d], taken as a distribution.

    It is 0 for a spectrum of zeros. Source: Roy and Vetterli 2007, equation 4.
    """
    # exp(−Σ p_i ln p_i) with p_i = σ_i / Σσ; entr(p) = −p ln p, and 0 for p = 0. Eigenvalues that
    # rounding made negative count as 0.
    spectrum = spectrum.clamp_min(0)
    total = spectrum.sum()
    if not float(total):
        return 0.0
    return float(torch.special.entr(spectrum / total).sum().exp())


def condition_number(second: Tensor, n: float) -> float:
    """Return λ₁/λ_d of a centred scatter matrix of ``n`` rows.

    It is infinite if n − 1 < d, or if the smallest eigenvalue is rounding error.
    """
    # eigvalsh sorts ascending; eigenvalues below d·ε·λ₁ are rounding errors.
    values = torch.linalg.eigvalsh(second)
    smallest, largest = float(values[0]), float(values[-1])
    if n - 1 < len(values) or smallest <= len(values) * torch.finfo(values.dtype).eps * largest:
        return math.inf
    return largest / smallest


def score_intervals(
    affine: AffineMap, moments: CrossMoments, hook_pair: HookPair, *, down: bool = False
) -> pd.DataFrame:
    """Return test-fold scores of any affine map with 95% intervals.

    The table has one row each for r2, r2_uniform and cosine, with the columns `INTERVAL_COLUMNS`.
    The interval is for the score of this map on new text. It is the delete-a-group jackknife over
    the groups of the test fold that have rows (eight, with enough documents and the default
    ``n_test_groups``), with their tokens as sizes. With one group, the ends and the error are NaN.
    Each score without a group is about the mean of the other groups. The interval of the cosine
    lies between −1 and 1. ``flag`` names few documents, and few or uneven groups; numbers of
    documents are known for moments from `harvest` only.

    Args:
        affine: the map, which may be fitted on other moments.
        moments: cross-moments whose test fold scores the map.
        hook_pair: (source hook point, target hook point) of the moments.
        down: True if the map leads from the pair's target to its source.

    Raises:
        MismatchError: the map joins other hook points, models or widths than the pair.
    """
    refuse_other_map(
        "this map",
        map_ends(affine),
        moment_ends(moments, hook_pair, down=down),
        remedy="give the hook pair and the moments on which it was fitted, and for a map down give "
        "down=True",
    )
    # With an empty test fold, all groups are used, and `CrossMoments.scatter` raises the error.
    test = moments.parts.test
    groups = [p for p in test if float(moments.n[p]) > 0]
    full = _test_score(affine, moments, hook_pair, groups or list(test), down)
    left_out = (
        [
            _test_score(affine, moments, hook_pair, [p for p in groups if p != g], down)
            for g in groups
        ]
        if len(groups) > 1
        else []
    )
    sizes = [float(moments.n[group]) for group in groups] if left_out else []
    flag = few_groups(sizes, moments.provenance.documents_of(groups))
    rows = []
    for name in ("r2", "r2_uniform", "cosine"):
        value = float(getattr(full, name))
        interval = jackknife(
            value,
            [float(getattr(score, name)) for score in left_out],
            sizes,
            scale="correlation" if name == "cosine" else "plain",
        )
        rows.append((name, value, *interval, len(groups), flag))
    return pd.DataFrame(rows, columns=list(INTERVAL_COLUMNS))


def moment_ends(moments: CrossMoments, pair: HookPair, *, down: bool = False) -> Ends:
    """Return where a map that these moments can score starts and ends."""
    of = moments.provenance
    sides = ((pair[0], of.source, moments.source), (pair[1], of.target, moments.target))
    source, target = (
        # Moments without rows have no widths.
        Origin("these moments", hook, model, len(side[hook].shift) if hook in side else None)
        for hook, model, side in sides
    )
    return (target, source) if down else (source, target)


def _test_score(
    affine: AffineMap, moments: CrossMoments, hook_pair: HookPair, parts: list[int], down: bool
) -> MapScore:
    """Return the scores of a map on some groups of the test fold."""
    scatter = moments.scatter(hook_pair, parts)
    scatter = scatter.swapped() if down else scatter
    return score_map(affine.weight.to(scatter.xy), affine.bias.to(scatter.xy), scatter)


def _refuse_other_widths(affine: AffineMap, scatter: Scatter) -> None:
    if affine.weight.shape != scatter.xy.shape:
        raise MismatchError(
            f"the map has widths {tuple(affine.weight.shape)}, the moments "
            f"{tuple(scatter.xy.shape)}; give the hook pair on which it was fitted, "
            "and for a map down give down=True or scatter.swapped()"
        )
