"""Fidelity: a prediction, from the moments alone, of how well a direction transfers.

Problem: the R² of a map is a mean over directions; a single direction can transfer much better or
worse. Mechanism: correlate what the direction does on the source with what its image does on the
target. Let ``W`` be the map up, ``W_down`` the map down, and ``S`` the covariances of the fitting
folds; correlations are over the held-out test fold:

    read   ρ(w) = corr(x·w, y·(W_down w))
    write  ρ(v) = corr(x·a, y·c),  a = (Sxx + λI)⁻¹ v,  c = (Syy + λI)⁻¹ (vW)

``x·a`` is a ridge estimate of how much of ``v`` the state ``x`` contains; ρ_write correlates it
with the amount of ``vW`` in the target. ρ_read and ρ_write are 1 for a perfect map; the naive
``corr(x·v, y·vW)`` is not.

    stitch.fidelity(vector, "write")       # value, low, high, and those of random directions

Intervals are 95 %, by the delete-a-group jackknife, over the map (refits without one fold) and over
the held-out text (groups of the test fold, with their tokens as sizes), on Fisher's scale: they
hold the expected ρ of a map that is fitted on as many documents, on new text; they are NaN if the
test fold has one group. The chance level is
the same correlation for random directions: half isotropic, half drawn from the covariance of the
source.

Limits: it predicts a linear correlation, not the behaviour of the target model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from einops import reduce
from torch import Tensor

from lrt_lens._given_tensors import float_tensor
from lrt_lens._repr_html import card, note, table
from lrt_lens.errors import MismatchError
from lrt_lens.moments._scatter import Scatter
from lrt_lens.statistics._jackknife import few_groups, fisher, reach
from lrt_lens.statistics._random_directions import random_directions
from lrt_lens.stitching._affine import MapPair
from lrt_lens.stitching._stitch_data import StitchData
from lrt_lens.typing import ArrayLike

RIDGE = 1e-4
"""Penalty λ of the inverses of ``"write"``, relative to the mean variance, for stitches whose
solver has no penalty.
"""


@dataclass(frozen=True)
class Fidelity:
    """Predicted correlation of a direction's role on the source with its role on the target."""

    value: float
    """Predicted correlation ρ."""
    low: float
    """Lower end of the 95% interval over the map and the held-out text; NaN with one test group."""
    high: float
    """Upper end of the 95% interval, at most 1; NaN with one test group."""
    kind: str
    """Role of the direction, ``"write"`` or ``"read"``."""
    naive: float
    """Correlation corr(x·v, y·vW) on the same text, which ignores the role of the direction."""
    source_deviation: float
    """Standard deviation of the source's stream along the direction, which needs no target at all.

    It is the simplest rival of ρ: directions along which the stream varies more transfer better.
    """
    random_mean: float
    """Mean of ρ over random directions."""
    random_low: float
    """2.5% quantile of ρ over random directions."""
    random_high: float
    """97.5% quantile of ρ over random directions."""
    n: int
    """Number of held-out tokens."""
    flag: str = ""
    """Reason why the interval may be too short, such as few held-out documents, or empty."""

    @property
    def null_mean(self) -> float:
        """Earlier name of ``random_mean``."""
        return self.random_mean

    @property
    def null_low(self) -> float:
        """Earlier name of ``random_low``."""
        return self.random_low

    @property
    def null_high(self) -> float:
        """Earlier name of ``random_high``."""
        return self.random_high

    def __repr__(self) -> str:
        flag = self.flag and f"; {self.flag}"
        return (
            f"Fidelity({self.kind} {self.value:.3f}, 95% {self.low:.3f} to {self.high:.3f}; naive "
            f"{self.naive:.3f}; "
            f"random directions {self.random_mean:.3f}, 95% {self.random_low:.3f} to "
            f"{self.random_high:.3f}; {self.n:,} tokens{flag})"
        )

    def _repr_html_(self) -> str:
        row = {
            "role": self.kind,
            "predicted correlation": self.value,
            "predicted_low": self.low,
            "predicted_high": self.high,
            "naive": self.naive,
            "source deviation": self.source_deviation,
            "random directions": self.random_mean,
            "random_low": self.random_low,
            "random_high": self.random_high,
            "tokens": self.n,
        } | ({"flag": self.flag} if self.flag else {})
        return card(
            "Fidelity",
            table(pd.DataFrame([row])),
            note(
                "Correlation of the direction's role on the source with its role on the target, on "
                "held-out text, with 95% intervals."
            ),
        )


def fidelity(
    stitch: StitchData,
    direction: ArrayLike,
    kind: Literal["write", "read"] = "write",
    *,
    n_random: int = 100,
    seed: int = 0,
) -> Fidelity:
    """Return ρ_write or ρ_read of one direction [d_source] on the stitch's held-out test fold.

    Raises:
        ValueError: ``kind`` is unknown, the direction is zero or not finite, or the stitch has no
            held-out moments.
        MismatchError: the direction has another width.
    """
    if kind not in ("write", "read"):
        raise ValueError(
            f"kind is {kind!r}; expected 'write' (steering vectors, decoder rows) or 'read' (probe "
            "weights, encoder columns)"
        )
    direction = float_tensor("direction", direction).detach().double().cpu()
    d_source = stitch.up.weight.shape[0]
    if direction.shape != (d_source,):
        raise MismatchError(
            f"direction has shape {tuple(direction.shape)}; this stitch starts at "
            f"{stitch.source_hook!r} with [{d_source}]: give a direction of that hook point"
        )
    if not torch.isfinite(direction).all() or not direction.any():
        raise ValueError("the direction is zero, NaN or infinite; expected a finite, non-zero one")
    groups = held_out_groups(stitch)
    value = fidelities(stitch, direction[None], kind)[0]
    # Leave out one test group at a time; the maps stay. One group says nothing about other text.
    others = [[*groups[:g], *groups[g + 1 :]] for g in range(len(groups)) if len(groups) > 1]
    over_text = [
        _with(stitch, stitch.maps, direction[None], kind, _union(left))[0] for left in others
    ]
    # Leave out one fitting fold at a time (the refits); the test fold stays whole.
    whole = _union(groups)
    over_map = [_with(stitch, maps, direction[None], kind, whole)[0] for maps in stitch.refits]
    # Map and held-out text come from different documents, so their variances add, on Fisher's scale
    # artanh ρ.
    sizes = [group.n for group in groups]
    of_text = _reach(value, over_text, sizes) if over_text else math.nan
    half = math.hypot(of_text, _reach(value, over_map))
    low, high = np.tanh(fisher(float(value)) + np.array([-half, half]))
    generator = torch.Generator().manual_seed(seed)
    draws = random_source_directions(stitch, n_random, generator)
    random = fidelities(stitch, draws, kind)
    chance = torch.quantile(random, torch.tensor([0.025, 0.975], dtype=random.dtype)).tolist()
    return Fidelity(
        value=float(value),
        low=float(low),
        high=float(high),
        kind=kind,
        naive=float(naive_fidelities(stitch, direction[None])[0]),
        source_deviation=float(source_deviations(stitch, direction[None])[0]),
        random_mean=float(random.mean()),
        random_low=chance[0],
        random_high=chance[1],
        n=int(whole.n),
        flag=few_groups(sizes, stitch.provenance.documents_of(stitch.provenance.parts.test)),
    )


def fidelities(stitch: StitchData, directions: Tensor, kind: Literal["write", "read"]) -> Tensor:
    """Return ρ_write or ρ_read of many directions [direction, d_source], as [direction]."""
    return _with(
        stitch, stitch.maps, directions.double().cpu(), kind, _union(held_out_groups(stitch))
    )


def naive_fidelities(stitch: StitchData, directions: Tensor) -> Tensor:
    """Return the correlation corr(x·v, y·vW) of each direction with its image, as [direction]."""
    directions = directions.double().cpu()
    return _correlation(
        directions, directions @ stitch.up.weight.double().cpu(), _union(held_out_groups(stitch))
    )


def source_deviations(stitch: StitchData, directions: Tensor) -> Tensor:
    """Return the standard deviation of the source's stream along each direction, as [direction].

    Directions are [direction, d_source], of any length. The target plays no part, so a predictor
    of transfer that does not beat this one says nothing about the map.
    """
    rows = [stitch.source_statistics.deviation(direction) for direction in directions]
    return torch.tensor(rows, dtype=torch.float64)


def random_source_directions(stitch: StitchData, n: int, generator: torch.Generator) -> Tensor:
    """Return random source directions [n, d_source].

    One half is isotropic, the other half is drawn from the source's covariance.
    """
    covariance = stitch.source_statistics.covariance
    noise = torch.randn(n, len(covariance), generator=generator, dtype=torch.float64)
    return random_directions(noise, covariance)


def held_out_groups(stitch: StitchData) -> tuple[Scatter, ...]:
    """Return the scatter of each group of the test fold.

    Raises:
        ValueError: the stitch has none.
    """
    if not stitch.held_out:
        raise ValueError(
            "this stitch has no held-out moments, from which fidelity is computed; take it from "
            "a grid, or save it again from one"
        )
    return stitch.held_out


def _with(
    stitch: StitchData, maps: MapPair, directions: Tensor, kind: str, held_out: Scatter
) -> Tensor:
    """Return ρ_write or ρ_read of directions [direction, d_source] under ``maps``."""
    up, down = maps.up.weight.double().cpu(), maps.down.weight.double().cpu()
    if kind == "read":
        # W_down: [d_target, d_source], so rows w become rows (W_down w)ᵀ = wᵀW_downᵀ
        return _correlation(directions, directions @ down.T, held_out)
    # The ridge penalty of the map's own fit. 0.0, or no entry `alpha`, means a solver without one.
    alpha = float(stitch.scores.get("alpha", 0.0)) or RIDGE
    read_x = regularised_solve(stitch.source_statistics.covariance, directions, alpha)
    read_y = regularised_solve(stitch.target_statistics.covariance, directions @ up, alpha)
    return _correlation(read_x, read_y, held_out)


def regularised_solve(covariance: Tensor, rows: Tensor, alpha: float) -> Tensor:
    """Return ``(S + alpha·tr(S)/d·I)⁻¹ r`` for each row r of ``rows``, as rows."""
    covariance = covariance.double().cpu()
    penalty = alpha * covariance.diagonal().mean()
    return torch.linalg.solve(
        covariance + penalty * torch.eye(len(covariance), dtype=covariance.dtype), rows.T
    ).T


def _correlation(a: Tensor, c: Tensor, held_out: Scatter) -> Tensor:
    """Return corr(x·a, y·c) over held-out rows, as [direction]."""
    return correlation_of(correlation_sums(a, c, held_out))


def correlation_sums(a: Tensor, c: Tensor, held_out: Scatter) -> Tensor:
    """Return the sums Σ(x·a)(y·c), Σ(x·a)² and Σ(y·c)² over centred rows, as [3, direction]."""
    over_dimensions = "direction d -> direction"
    covariance = reduce((a @ held_out.xy.cpu()) * c, over_dimensions, "sum")
    variance_x = reduce((a @ held_out.xx.cpu()) * a, over_dimensions, "sum")
    variance_y = reduce((c @ held_out.yy.cpu()) * c, over_dimensions, "sum")
    return torch.stack([covariance, variance_x, variance_y])


def correlation_of(sums: Tensor) -> Tensor:
    """Return the correlations [direction] of the sums of `correlation_sums`."""
    covariance, variance_x, variance_y = sums
    # aᵀSxy'c / √(aᵀSxx'a · cᵀSyy'c)
    variance = variance_x * variance_y
    return covariance / variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()


def _union(groups: "tuple[Scatter, ...] | list[Scatter]") -> Scatter:
    total = groups[0]
    for group in groups[1:]:
        total = total.joined(group)
    return total


def _reach(
    value: Tensor, left_out: Sequence[Tensor], sizes: Sequence[float] | None = None
) -> float:
    """Return half of the width of the 95% interval of artanh ρ.

    It is 0 if fewer than two groups can be left out.
    """
    if len(left_out) < 2:
        return 0.0
    others = fisher(np.array([float(one) for one in left_out]))
    return float(reach(fisher(float(value)), others, sizes))
