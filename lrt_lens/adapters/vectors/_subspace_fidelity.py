"""Fidelity of a subspace: how well its directions transfer, predicted from the moments alone.

    result = subspace_fidelity(stitch, subspace, native=native)
    result.table        # canonical correlations and principal angles, beside random subspaces

Problem: of a subspace some directions may transfer and others not, and single rows of its basis say
nothing, because they can be rotated. Mechanism: the states of source and target are read along the
directions as `lrt_lens.stitching._fidelity` reads one, ``p = x (Sxx + λI)⁻¹ Bᵀ`` and ``q = y (Syy +
λI)⁻¹ (B W)ᵀ`` (``"write"``), and the canonical correlations of p and q on held-out text say how
much of the span arrives: the largest and the smallest over its directions. For one row it is the
size of ρ of that direction. The cosines of the principal angles compare the transferred span with
one that was learnt on the target. Both come with those of random subspaces of the same rank.

Limits: canonical correlations choose directions on the text that they are measured on, so they rise
with the rank; compare with the random ones. Intervals exist for what scale 1 adds alone (``step``).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrt_lens._repr_html import card, note, table
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.vectors._steering_subspace import SteeringSubspace
from lrt_lens.adapters.vectors._subspace_transfer import transfer_subspace
from lrt_lens.figures._subspaces import subspace_fidelity_figure
from lrt_lens.moments._scatter import Scatter
from lrt_lens.statistics._random_directions import random_directions
from lrt_lens.stitching._fidelity import (
    RIDGE,
    Fidelity,
    fidelity,
    held_out_groups,
    random_source_directions,
    regularised_solve,
)
from lrt_lens.stitching._stitch_data import StitchData


@dataclass(frozen=True, repr=False)
class SubspaceFidelity(ShortRepr):
    """Canonical correlations of a transferred subspace, and its angles to a native one."""

    table: pd.DataFrame
    """One row per measure and direction, the largest value first.

    Columns: measure (``correlation``, or ``angle`` for the cosine of a principal angle to the
    native subspace), direction (number from 1), value, random_mean, random_low and random_high
    (mean, 2.5% and 97.5% quantile of the same value of random subspaces).
    """
    kind: str
    """Role of the directions, ``"write"`` or ``"read"``."""
    step: Fidelity | None
    """Fidelity of what scale 1 adds, with its interval; None if the subspace adds nothing."""
    n: int
    """Number of held-out tokens."""
    n_random: int
    """Number of random subspaces."""

    @property
    def smallest(self) -> float:
        """Smallest canonical correlation over the directions of the span."""
        return float(self.values("correlation").min())

    @property
    def largest(self) -> float:
        """Largest canonical correlation over the directions of the span."""
        return float(self.values("correlation").max())

    def values(self, measure: Literal["correlation", "angle"]) -> np.ndarray:
        """Return the values of a measure, the largest first; empty if it was not computed."""
        rows = self.table["measure"] == measure
        return self.table.loc[rows, "value"].to_numpy(dtype=float)

    def figure(self) -> Any:
        """Return a plotly figure of both measures with the values of random subspaces."""
        return subspace_fidelity_figure(self.table, n_tokens=self.n, n_random=self.n_random)

    def _repr_html_(self) -> str:
        legend = (
            f"{self.kind}: canonical correlations of the span's role on the source with its role on"
            f" the target, on {self.n:,} held-out tokens; angle: cosines of the principal angles to"
            f" the native subspace; beside them those of {self.n_random} random subspaces."
        )
        return card("SubspaceFidelity", table(self.table), note(legend))


def subspace_fidelity(
    stitch: StitchData,
    subspace: SteeringSubspace,
    kind: Literal["write", "read"] = "write",
    *,
    native: SteeringSubspace | None = None,
    n_random: int = 100,
    seed: int = 0,
) -> SubspaceFidelity:
    """Return the predicted fidelity of a subspace on the stitch's held-out test fold.

    Args:
        stitch: a stitch with held-out moments.
        subspace: learnt at its source hook point.
        kind: ``"write"`` for directions that are added or ablated, ``"read"`` for directions on
            which the stream is projected.
        native: subspace learnt at the stitch's target hook point, with which the transferred span
            is compared.
        n_random: number of random subspaces: half isotropic, half with the covariance of the
            stream (of the source for correlations, of the target for angles).
        seed: seed of the random subspaces.

    Raises:
        ValueError: an unknown kind, fewer than two random subspaces, or a stitch without held-out
            moments.
        MismatchError: a subspace of another model or hook point.
    """
    stitch.refuse_foreign(subspace.origin)
    if kind not in ("write", "read") or n_random < 2:
        raise ValueError(
            f"kind is {kind!r} with {n_random} random subspaces; expected 'write' or 'read', and at"
            " least 2"
        )
    groups = held_out_groups(stitch)
    held_out = groups[0]
    for group in groups[1:]:
        held_out = held_out.joined(group)
    generator, rank = torch.Generator().manual_seed(seed), subspace.rank
    spans = torch.stack(
        [random_source_directions(stitch, n_random, generator) for _ in range(rank)], dim=1
    )
    every = torch.cat([subspace.basis.double().cpu()[None], spans])
    values = _correlations(stitch, every, kind, held_out)
    rows = _rows("correlation", values[0], values[1:])
    if native is not None:
        cosines = transfer_subspace(subspace, stitch).principal_cosines(native)
        covariance = stitch.target_statistics.covariance.double().cpu()
        noise = [
            torch.randn(n_random, len(covariance), generator=generator, dtype=torch.float64)
            for _ in range(rank)
        ]
        drawn = torch.stack([random_directions(one, covariance) for one in noise], dim=1)
        # Singular values of Q B₂ᵀ with orthonormal rows Q of each random span
        bases = torch.linalg.qr(drawn.mT).Q.mT
        random = torch.linalg.svdvals(bases @ native.basis.double().cpu().T)
        rows += _rows("angle", cosines.cpu(), random)
    has_step = subspace.norm > 0
    step = fidelity(stitch, subspace.direction, kind, n_random=n_random) if has_step else None
    return SubspaceFidelity(pd.DataFrame(rows), kind, step, int(held_out.n), n_random)


def _correlations(stitch: StitchData, spans: Tensor, kind: str, held_out: Scatter) -> Tensor:
    """Return the canonical correlations of spans [span, rank, d_source], as [span, rank]."""
    rows, shape = spans.flatten(0, 1), spans.shape[:2]
    if kind == "read":
        a, c = rows, rows @ stitch.down.weight.double().cpu().T
    else:
        # The ridge penalty of the map's own fit, as for single directions.
        alpha = float(stitch.scores.get("alpha", 0.0)) or RIDGE
        up = stitch.up.weight.double().cpu()
        a = regularised_solve(stitch.source_statistics.covariance, rows, alpha)
        c = regularised_solve(stitch.target_statistics.covariance, rows @ up, alpha)
    a, c = a.unflatten(0, shape), c.unflatten(0, shape)
    xx, yy, xy = (one.double().cpu() for one in (held_out.xx, held_out.yy, held_out.xy))
    # Lx⁻¹ Spq Ly⁻ᵀ with Spp = Lx Lxᵀ and Sqq = Ly Lyᵀ; its singular values are the correlations.
    left, right = torch.linalg.cholesky(a @ xx @ a.mT), torch.linalg.cholesky(c @ yy @ c.mT)
    cross = torch.linalg.solve_triangular(left, a @ xy @ c.mT, upper=False)
    cross = torch.linalg.solve_triangular(right, cross.mT, upper=False)
    return torch.linalg.svdvals(cross).clamp(0, 1)


def _rows(measure: str, values: Tensor, random: Tensor) -> list[dict[str, Any]]:
    """Return rows of the table for values [direction] and those of random spans [n, direction]."""
    low, high = torch.quantile(random, torch.tensor([0.025, 0.975]).to(random), dim=0)
    return [
        {
            "measure": measure,
            "direction": i + 1,
            "value": float(values[i]),
            "random_mean": float(random[:, i].mean()),
            "random_low": float(low[i]),
            "random_high": float(high[i]),
        }
        for i in range(len(values))
    ]
