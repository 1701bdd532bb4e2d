"""Encoder of an SAE on another model's states: read-out of the source's codes, and firing rates.

    fit = read_out(states, folds, source_codes, alphas)       # W [d, feature], b [feature]
    matched = match_rates(folded, "jumprelu", states, source_codes)

Problem: a transferred encoder reads what the map down keeps of a state, ``y W_down W_enc``, and its
features fire more or less often than in the source. Mechanism: both models read the same tokens, so
the source's codes c are labels of the target's states y.

*Read-out.* Ridge regression of each code on the states, for all features at once from second
moments, with one penalty per feature chosen on the folds:

    W_enc = (Syy + λ·tr(Syy)/d·I)⁻¹ Syc,    b_enc = c̄ − ȳ W_enc

*Rates.* With z the pre-activations of a feature on the rows, k the number of rows on which the
source's feature fires and τ halfway between the k-th and the (k + 1)-th largest z, the feature
fires on exactly k rows if z is compared with τ instead of its threshold θ:

    ReLU, JumpReLU    z ← s (z − τ) + θ,   s such that the mean of the k activations is the source's
    gated             gate ← gate − τ, and the magnitude is shifted to the source's mean, or further
                      where it would be negative on one of the k rows
    TopK and the like z ← z − τ + c, one constant c for all features, so that 98% of the rows have k
                      positive values; k of them are active, and rates are matched approximately

Limits: AbsTopK keeps its biases, because its features fire on both sides. Rates hold on the rows of
the fit; on other text they vary as in the source.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from lrt_lens.adapters.saes._folding import SELECTING, FoldedSae

_BLOCK = 1024
"""Number of features that are computed at once."""
_FILLED = 0.98
"""Share of rows that have k positive values after the biases of a TopK encoder were shifted."""


@dataclass(frozen=True)
class ReadOut:
    """Affine read-out of the source's codes from the target's states."""

    weight: Tensor
    """Weights, [d, feature], float64."""
    bias: Tensor
    """Biases, [feature], float64."""
    alpha: Tensor
    """Penalty of each feature, relative to the mean variance of a dimension, [feature]."""
    r2_cv: Tensor
    """Cross-validated R² of each feature's code, [feature]; NaN if it never fires."""


@dataclass(frozen=True)
class _FoldSums:
    """Sums over the rows of one fold, or of several, about the origin that the caller chose."""

    n: int
    y: Tensor
    """Sum Σy, [d]."""
    yy: Tensor
    """Sum Σyyᵀ, [d, d]."""

    def __add__(self, other: "_FoldSums") -> "_FoldSums":
        return _FoldSums(self.n + other.n, self.y + other.y, self.yy + other.yy)

    def __sub__(self, other: "_FoldSums") -> "_FoldSums":
        return _FoldSums(self.n - other.n, self.y - other.y, self.yy - other.yy)

    def centred(self) -> Tensor:
        """Scatter matrix Σ(y − ȳ)(y − ȳ)ᵀ, [d, d]."""
        return self.yy - torch.outer(self.y, self.y) / self.n


def read_out(states: Tensor, folds: Tensor, codes: Any, alphas: tuple[float, ...]) -> ReadOut:
    """Ridge regression of codes [row, feature] on states [row, d], with a penalty per feature.

    Args:
        states: states of the target, [row, d].
        folds: fold of each row, [row].
        codes: CSR matrix of scipy with the source's codes of the same rows.
        alphas: penalties to choose from, relative to the mean variance of a dimension.
    """
    # About the mean, so that sums of squares lose no digits.
    origin = states.double().mean(0)
    used = [int(fold) for fold in folds.unique()]
    rows = {fold: (folds == fold).nonzero()[:, 0] for fold in used}
    centred = {fold: states[rows[fold]].double() - origin for fold in used}
    sums = {fold: _FoldSums(len(y), y.sum(0), y.T @ y) for fold, y in centred.items()}
    systems = _Systems.of(sums)
    parts = {fold: codes[rows[fold].numpy()].tocsc() for fold in used}
    blocks = [
        _read_out_block(
            systems,
            centred,
            {f: part[:, start : start + _BLOCK] for f, part in parts.items()},
            alphas,
        )
        for start in range(0, codes.shape[1], _BLOCK)
    ]
    weight, bias, alpha, r2 = (torch.cat(values, dim=-1) for values in zip(*blocks, strict=True))
    # y W + b with b in the units of the states: b ← b − origin W.
    return ReadOut(weight, bias - origin @ weight, alpha, r2)


@dataclass(frozen=True)
class _Systems:
    """Eigendecompositions of the scatter of all folds but one, and of all folds."""

    sums: dict[int, _FoldSums]
    """Sums of each fold."""
    total: _FoldSums
    """Sums of all folds."""
    spectra: dict[int | None, tuple[Tensor, Tensor]]
    """Eigenvalues and eigenvectors without each fold; key None: of all folds."""

    @classmethod
    def of(cls, sums: dict[int, _FoldSums]) -> "_Systems":
        """Decompositions of the sums of folds."""
        total = sum(list(sums.values())[1:], next(iter(sums.values())))
        without = {fold: (total - one).centred() for fold, one in sums.items()}
        spectra: dict[int | None, tuple[Tensor, Tensor]] = {
            fold: tuple(torch.linalg.eigh(scatter)) for fold, scatter in without.items()
        }
        return cls(sums, total, spectra | {None: tuple(torch.linalg.eigh(total.centred()))})


def _read_out_block(
    systems: _Systems, states: dict[int, Tensor], codes: dict[int, Any], alphas: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights [d, block], biases, penalties and cross-validated R² [block] of some features."""
    cross = {f: torch.from_numpy((codes[f].T @ y.numpy()).T.copy()) for f, y in states.items()}
    count = {f: torch.from_numpy(np.asarray(part.sum(0)).ravel()) for f, part in codes.items()}
    square = {
        f: torch.from_numpy(np.asarray(part.multiply(part).sum(0)).ravel())
        for f, part in codes.items()
    }
    all_cross = torch.stack([*cross.values()]).sum(0)
    all_codes = torch.stack([*count.values()]).sum(0)
    errors = torch.zeros(len(alphas), len(all_codes), dtype=torch.float64)
    for fold, held in systems.sums.items():
        train = systems.total - held
        mean_y, mean_c = train.y / train.n, (all_codes - count[fold]) / train.n
        values, vectors = systems.spectra[fold]
        # G = Vᵀ Σ(y − ȳ)(c − c̄)ᵀ of the other folds, with Σyc − n ȳ c̄ᵀ.
        right = vectors.T @ (all_cross - cross[fold] - train.n * torch.outer(mean_y, mean_c))
        # Sums of the held-out fold about the means of the others: Σ(y − ȳ)(c − c̄)ᵀ, and so on.
        inner = (
            cross[fold]
            - torch.outer(held.y, mean_c)
            - torch.outer(mean_y, count[fold])
            + held.n * torch.outer(mean_y, mean_c)
        )
        scatter = (
            held.yy
            - torch.outer(held.y, mean_y)
            - torch.outer(mean_y, held.y)
            + held.n * torch.outer(mean_y, mean_y)
        )
        own = square[fold] - 2 * mean_c * count[fold] + held.n * mean_c**2
        turned, inner = vectors.T @ scatter @ vectors, vectors.T @ inner
        for index, alpha in enumerate(alphas):
            weight = right / rearrange(values + alpha * values.mean(), "d -> d 1")
            # Σ(c − c̄ − (y − ȳ)w)² = Σ(c − c̄)² − 2 wᵀΣ(y − ȳ)(c − c̄) + wᵀ Σ(y − ȳ)(y − ȳ)ᵀ w
            errors[index] += own - 2 * (weight * inner).sum(0) + (weight * (turned @ weight)).sum(0)
    best = errors.argmin(0)
    alpha = torch.tensor(alphas, dtype=torch.float64)[best]
    values, vectors = systems.spectra[None]
    mean_y, mean_c = systems.total.y / systems.total.n, all_codes / systems.total.n
    right = vectors.T @ (all_cross - systems.total.n * torch.outer(mean_y, mean_c))
    weight = vectors @ (right / (values[:, None] + alpha * values.mean()))
    variance = torch.stack([*square.values()]).sum(0) - systems.total.n * mean_c**2
    r2 = torch.where(all_codes != 0, 1 - errors.amin(0) / variance, torch.nan)
    return weight, mean_c - mean_y @ weight, alpha, r2


def with_read_out(folded: FoldedSae, fit: ReadOut) -> FoldedSae:
    """Weights of an SAE whose encoder is a read-out; features that never fired keep theirs."""
    known = ~fit.r2_cv.isnan()
    biases = {name: torch.where(known, fit.bias, old) for name, old in folded.biases.items()}
    others = dict(folded.other_weights)
    if "r_mag" in others:
        # A gated SAE's magnitudes read W_enc exp(r_mag): the read-out is in units of the codes.
        others["r_mag"] = torch.where(known, 0.0, others["r_mag"].double())
    weight = torch.where(known, fit.weight, folded.W_enc)
    return replace(folded, W_enc=weight, biases=biases, other_weights=others)


# ------------------------------------------------------------------------------------ firing rates


def match_rates(
    folded: FoldedSae, architecture: str, k: int | None, states: Tensor, codes: Any
) -> FoldedSae:
    """Weights whose features fire on as many of the rows as the source's features.

    Args:
        folded: weights of the SAE on the target.
        architecture: SAELens' name of its architecture.
        k: active features per row of a TopK encoder; None for other encoders.
        states: states of the target, [row, d].
        codes: CSR matrix of scipy with the source's codes of the same rows.
    """
    if architecture == "abstopk":
        return folded
    counts = torch.from_numpy(np.diff(codes.tocsc().indptr)).long()
    totals = torch.from_numpy(np.asarray(codes.sum(0)).ravel())
    # Mean activation of the source where it fires.
    goal = totals / counts.clamp_min(1)
    gate = "b_gate" if "b_gate" in folded.biases else "b_enc"
    levels, above, magnitude, least = _levels(folded, gate, states, counts)
    if gate == "b_gate":
        # A gated feature fires only if its magnitude is positive too.
        positive = -least + 1e-6 * magnitude.abs()
        shift = torch.where(counts > 0, torch.maximum(goal - magnitude, positive), 0.0)
        biases = {
            "b_gate": folded.biases["b_gate"] - levels,
            "b_mag": folded.biases["b_mag"] + shift,
        }
        return replace(folded, biases=folded.biases | biases)
    bias = folded.biases["b_enc"] - levels
    if architecture in SELECTING:
        shifted = replace(folded, biases=folded.biases | {"b_enc": bias})
        return replace(shifted, biases={"b_enc": bias + _common(shifted, k or 1, states)})
    threshold = folded.other_weights.get("threshold")
    theta = torch.zeros_like(bias) if threshold is None else threshold.double()
    # s (E[z | fires] − τ) + θ = E[c | fires]; features that never fire keep their scale.
    known = (counts > 0) & (above > levels) & (goal > theta)
    scale = torch.where(known, (goal - theta) / (above - levels).clamp_min(1e-30), 1.0)
    return replace(folded, W_enc=folded.W_enc * scale, biases={"b_enc": bias * scale + theta})


def _levels(
    folded: FoldedSae, gate: str, states: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Level τ that ``counts`` rows exceed, and numbers of those rows, [feature] each.

    The numbers are the mean pre-activation, and mean and least magnitude (of a gated SAE; else of
    the pre-activations).
    """
    levels, above, means, least = [], [], [], []
    for start in range(0, folded.W_enc.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        values = pre_activations(folded, states, block, gate)
        ordered = descending(values)
        n = counts[block].clamp_max(len(states) - 1)
        last = ordered.gather(0, (n - 1).clamp_min(0)[None])[0]
        following = ordered.gather(0, n[None])[0]
        # Halfway between the n-th and the next: n rows are above. With n = 0, none is.
        levels.append(torch.where(n > 0, (last + following) / 2, last))
        fires = torch.arange(len(states))[:, None] < n
        above.append((ordered * fires).sum(0) / n.clamp_min(1))
        size = ordered
        if gate == "b_gate":
            order = values.argsort(0, descending=True)
            size = pre_activations(folded, states, block, "b_mag").gather(0, order)
        means.append((size * fires).sum(0) / n.clamp_min(1))
        least.append(size.where(fires, torch.inf).amin(0))
    return torch.cat(levels), torch.cat(above), torch.cat(means), torch.cat(least)


def descending(values: Tensor) -> Tensor:
    """Each column sorted from the largest value down, [row, feature].

    numpy sorts values without their indices with vector instructions, torch does not.
    """
    # Rows of the transpose are contiguous, and a negative sign reverses the order.
    return torch.from_numpy(-np.sort(-values.T.cpu().numpy(), axis=1)).T.to(values.device)


def pre_activations(folded: FoldedSae, states: Tensor, block: slice, bias: str = "b_enc") -> Tensor:
    """Pre-activations ``y W_enc + b`` of some features, [row, feature], float64."""
    weight = folded.W_enc[:, block]
    if bias == "b_mag":
        weight = weight * folded.other_weights["r_mag"].double().exp()[block]
    return torch.addmm(folded.biases[bias][block], states.to(weight), weight)


def _common(folded: FoldedSae, k: int, states: Tensor) -> Tensor:
    """Constant c with which most rows have k positive pre-activations, a scalar of at least 0."""
    smallest = [
        pre_activations(folded, rows, slice(None)).topk(min(k, folded.W_enc.shape[1])).values[:, -1]
        for rows in states.split(_BLOCK)
    ]
    return -torch.cat(smallest).quantile(1 - _FILLED).clamp_max(0.0)
