"""Changes of a residual stream along several directions at once.

    hook = SteeringHook(setting_span(basis, torch.zeros(len(basis))), "all", skip_first=4)

Problem: one direction after the other is not the span, unless they are orthogonal. Mechanism:
orthonormal rows B give the coordinates ``h Bᵀ`` of a state h and its part ``h Bᵀ B`` in the span.
`setting_span` sets the coordinates, `keeping_span` leaves nothing but the span, and `span_change`
chooses by name.

Limits: rows that are not orthonormal are taken for orthonormal ones.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens._given_tensors import float_tensor
from lrt_lens.adapters.vectors._steering_hook import adding

SpanMode = Literal["add", "clamp", "ablate", "project"]
"""Change of a stream: add a vector of the span, set the coordinates in it, remove it, keep it."""


def span_change(
    basis: Float[Tensor, "rank d_model"],
    step: Float[Tensor, " d_model"],
    scale: float,
    mode: SpanMode,
    *,
    level: Tensor | None = None,
    centre: Any = None,
) -> Callable[[Tensor], Tensor]:
    """Return the change of a mode in the span of orthonormal rows.

    Args:
        basis: orthonormal rows B.
        step: vector that scale 1 adds.
        scale: multiple of the step, or the share of the change, 0 to 1.
        mode: ``"add"``, ``"clamp"``, ``"ablate"`` or ``"project"``.
        level: coordinates that ``"clamp"`` sets, [rank].
        centre: state outside of the span after ``"project"``, [d_model].

    Raises:
        ValueError: a scale outside the range of the mode, or no level or centre of the right shape.
    """
    in_range = abs(scale) < float("inf") if mode == "add" else 0 <= scale <= 1
    if not in_range:
        raise ValueError(
            f"mode {mode!r} with scale {scale}; expected a finite number to add, and a scale"
            " from 0 (no change) to 1 for the other modes"
        )
    if mode == "add":
        return adding(step * scale)
    rank, width = basis.shape
    if mode == "project":
        state = None if centre is None else float_tensor("centre", centre)
        if state is None or state.shape != (width,):
            raise ValueError(
                f"mode 'project' keeps the span about a centre, which is {_shape(state)}; give"
                f" centre=… [{width}], such as the mean of the stream,"
                " stitch.target_statistics.mean"
            )
        return keeping_span(basis, state, scale)
    if mode == "ablate":
        return setting_span(basis, torch.zeros(rank), scale)
    if level is None or level.shape != (rank,):
        raise ValueError(
            f"mode 'clamp' needs level=… with {rank} number(s), and it is {_shape(level)};"
            " subspace.mean_coordinates(model, texts) computes them on the model that is steered"
        )
    return setting_span(basis, level, scale)


def setting_span(
    basis: Float[Tensor, "rank d_model"], levels: Float[Tensor, " rank"], share: float = 1.0
) -> Callable[[Tensor], Tensor]:
    """Return the change that sets the coordinates in a span to ``levels``; 0 ablates the span.

    ``share`` is the part of the way to the levels, 0 to 1.
    """
    return partial(_set_span, basis, levels, share)


def keeping_span(
    basis: Float[Tensor, "rank d_model"], centre: Float[Tensor, " d_model"], share: float = 1.0
) -> Callable[[Tensor], Tensor]:
    """Return the change to c + (h − c) Bᵀ B: what is outside of the span becomes that of a centre.

    ``share`` is the part of the way there, 0 to 1.
    """
    return partial(_keep_span, basis, centre, share)


def _set_span(basis: Tensor, levels: Tensor, share: float, activation: Tensor) -> Tensor:
    rows = basis.to(activation)
    # h + share · (levels − h Bᵀ) B
    return activation + share * (levels.to(activation) - activation @ rows.T) @ rows


def _keep_span(basis: Tensor, centre: Tensor, share: float, activation: Tensor) -> Tensor:
    rows, from_centre = basis.to(activation), activation - centre.to(activation)
    # h + share · ((h − c) Bᵀ B − (h − c)), which at share 1 is c + (h − c) Bᵀ B
    return activation + share * (from_centre @ rows.T @ rows - from_centre)


def _shape(tensor: Tensor | None) -> str:
    return "not given" if tensor is None else f"of the shape {tuple(tensor.shape)}"
