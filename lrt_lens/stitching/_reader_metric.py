"""Explained variance as natural-language autoencoders measure it: of states of equal length.

    fve_nrm(stitch.up.points(x), y)          # 1 for states with the right directions

Problem: readers of activations see the direction of a state and not its length, which differs
between tokens and models; R² counts lengths. Mechanism: both states are brought to the norm √d, and

    fve_nrm = 1 − Σ‖v̂ − v‖² / Σ‖v − μ‖²,        μ = mean of the normalised v, not normalised itself

as in natural_language_autoencoders (`nla/schema.py`, ``compute_predict_mean_baselines``), whose
``fve_nrm`` this is. It needs the norm of each row, so it is no function of moments.

Limits: a prediction that is always μ has no ``fve_nrm`` of 0 but a lower one, because μ is brought
to norm √d too.
"""

import math

import torch
from torch import Tensor

from lrt_lens.errors import MismatchError

_SHORTEST = 1e-12
"""Norm below which a state has no direction and stays as it is."""


def normalised_states(states: Tensor) -> Tensor:
    """Return states [row, d] in float64 with norm √d; states of norm 0 stay 0."""
    states = states.double()
    norms = states.norm(dim=-1, keepdim=True).clamp_min(_SHORTEST)
    return states / norms * math.sqrt(states.shape[-1])


def fve_sums(predicted: Tensor, states: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Return Σ‖v̂ − v‖², Σ‖v‖², number of rows and Σv of each group, [group, 3 + d].

    Args:
        predicted: [row, d].
        states: [row, d], the true states.
        groups: [row], number of the group of each row.
        n_groups: number of groups.
    """
    v, guess = normalised_states(states), normalised_states(predicted)
    numbers = [(guess - v).square().sum(1), v.square().sum(1), torch.ones_like(v[:, 0])]
    rows = torch.cat([torch.stack(numbers, 1), v], 1)
    return rows.new_zeros(n_groups, rows.shape[1]).index_add_(0, groups, rows)


def fve_of(sums: Tensor) -> float:
    """Return ``fve_nrm`` from the sums [3 + d] of `fve_sums`; NaN if the states do not vary."""
    error, square, n, total = float(sums[0]), float(sums[1]), float(sums[2]), sums[3:]
    # Σ‖v − μ‖² = Σ‖v‖² − ‖Σv‖²/n
    spread = square - float(total.square().sum()) / n if n else 0.0
    return 1 - error / spread if spread > _SHORTEST * square else math.nan


def fve_nrm(predicted: Tensor, states: Tensor) -> float:
    """Return the fraction of variance explained of states brought to norm √d.

    Args:
        predicted: predicted states [row, d].
        states: true states [row, d].

    Raises:
        MismatchError: the shapes differ.

    Source: ``fve_nrm`` of natural_language_autoencoders, `nla/schema.py`.
    """
    if predicted.shape != states.shape or states.ndim != 2:
        raise MismatchError(
            f"predicted states have shape {tuple(predicted.shape)} and true ones "
            f"{tuple(states.shape)}; expected one shape [row, d]"
        )
    groups = torch.zeros(len(states), dtype=torch.int64, device=states.device)
    return fve_of(fve_sums(predicted.to(states.device), states, groups, 1)[0])
