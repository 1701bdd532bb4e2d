"""The function that changes a residual stream while a model runs."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

Mode = Literal["add", "clamp", "ablate"]
"""What a hook does with the component along a vector: add to it, set it, remove it."""
Positions = Literal["all", "last", "generated"]
"""Which positions are steered: all behind the masked first ones, the last of the prompt, or
generated tokens.
"""


class SteeringHook:
    """Changes the chosen positions of a residual stream; right with and without a KV cache.

    With a cache the first call sees the prompt and later ones a single position each, so the place
    of a token is counted here. A call of more than one position starts a new text; so does the
    first call of all.
    """

    def __init__(
        self, change: Callable[[Tensor], Tensor], positions: Positions, skip_first: int
    ) -> None:
        self.change, self.positions, self.skip_first = change, positions, skip_first
        self._seen = 0
        self.prompt_lengths: Tensor | None = None
        """[batch]: where prompts end, when prompts and continuations come in one call padded on the
        right.
        """
        self.followers: tuple[SteeringHook, ...] = ()
        """Hooks behind this one in the same pass."""

    def restarted(self) -> "SteeringHook":
        """This hook, told that the next call begins a new text; its followers learn so too, and
        where prompts end.
        """
        self._seen = 0
        for hook in self.followers:
            hook.prompt_lengths = self.prompt_lengths
            hook.restarted()
        return self

    def __call__(self, activation: Tensor, hook: Any = None) -> Tensor:
        """The activation, [batch, position, d_model], changed at the chosen positions."""
        length = activation.shape[1]
        start = self._seen if length == 1 and self._seen else 0
        self._seen = start + length
        return torch.where(
            self._chosen(activation, start)[..., None], self.change(activation), activation
        )

    def _chosen(self, activation: Tensor, start: int) -> Tensor:
        place = torch.arange(start, start + activation.shape[1], device=activation.device)[
            None
        ].expand(activation.shape[0], -1)
        generated = torch.full_like(place, start > 0, dtype=torch.bool)
        ends = torch.full(
            (activation.shape[0], 1), start + activation.shape[1], device=activation.device
        )
        if self.prompt_lengths is not None and start == 0:
            ends = self.prompt_lengths.to(activation.device)[:, None]
            generated = place >= ends
        chosen = {
            "all": torch.ones_like(generated),
            "generated": generated,
            "last": (place == ends - 1) & ~torch.full_like(generated, start > 0),
        }[self.positions]
        return chosen & (place >= self.skip_first)


def adding(step: Tensor) -> Callable[[Tensor], Tensor]:
    """Add a vector."""
    return lambda activation: activation + step.to(activation)


def setting(direction: Tensor, level: float, share: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Set the component along a direction: ``h + (level − ⟨h, v̂⟩) v̂`` (Stitching §4); level 0
    ablates it. ``share`` goes only part of the way.
    """
    unit = direction / direction.norm()

    def change(activation: Tensor) -> Tensor:
        along = unit.to(activation)
        return activation + share * (level - activation @ along)[..., None] * along

    return change
