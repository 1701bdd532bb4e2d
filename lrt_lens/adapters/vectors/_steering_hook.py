"""The function that changes a residual stream while a model runs.

Problem: a hook sees activations only, but whether a position is steered depends on where it is in
its text, and with a KV cache a call after the first one holds a single position. Mechanism:
`SteeringHook` counts the positions that it has seen, masks those that are steered, and applies one
change: h + step (`adding`), or a component along a direction set to a level (`setting`).

    hook = SteeringHook(adding(2.0 * vector.direction), "all", skip_first=4)
    with model.intervene({vector.hook: hook}):
        model.generate("This film was")

Limits: without ``prompt_lengths`` all rows of a call must have prompts of the same length.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

Mode = Literal["add", "clamp", "ablate"]
"""Change of the component along a vector: add to it, set it, remove it."""
Positions = Literal["all", "last", "generated"]
"""Steered positions: all after the first ones, the last of the prompt, or generated tokens."""


class SteeringHook:
    """Changes a residual stream at selected positions, with and without a KV cache.

    With a cache the first call has the whole prompt and each later one a single position, so the
    position of a token is counted here. The first call, and each call with more than one position,
    starts a new text.

    Args:
        change: returns the changed activation [batch, position, d_model].
        positions: which positions are changed.
        skip_first: first positions of a text that are never changed.
    """

    def __init__(
        self, change: Callable[[Tensor], Tensor], positions: Positions, skip_first: int
    ) -> None:
        self.change, self.positions, self.skip_first = change, positions, skip_first
        self._seen = 0
        self.prompt_lengths: Tensor | None = None
        """Lengths of the prompts, if prompts and continuations come in one padded call, [batch]."""
        self.followers: tuple[SteeringHook, ...] = ()
        """Hooks at later hook points of the same pass."""

    def restarted(self) -> "SteeringHook":
        """Return this hook, for which the next call starts a new text.

        The followers restart too and receive the lengths of the prompts.
        """
        self._seen = 0
        for hook in self.followers:
            # A hook may be used in several passes, so the lengths of an earlier batch are replaced.
            hook.prompt_lengths = self.prompt_lengths
            hook.restarted()
        return self

    def __call__(self, activation: Tensor, hook: Any = None) -> Tensor:
        """Return the activation [batch, position, d_model], changed at the selected positions."""
        length = activation.shape[1]
        # One position after others is the next token of a pass with a KV cache.
        start = self._seen if length == 1 and self._seen else 0
        self._seen = start + length
        steered = self._steered(activation, start)[..., None]
        # torch.where leaves unsteered positions bit for bit as they are.
        return torch.where(steered, self.change(activation), activation)

    def _steered(self, activation: Tensor, start: int) -> Tensor:
        """Return a mask [batch, position]: True where the activation is changed.

        ``start`` is the position of the first column within its text.
        """
        n_rows, length = activation.shape[:2]
        device = activation.device
        position = torch.arange(start, start + length, device=device)[None].expand(n_rows, -1)
        # With a KV cache, every call after the first one is a generated token.
        is_later_call = torch.full_like(position, start > 0, dtype=torch.bool)
        generated = is_later_call
        prompt_end = torch.full((n_rows, 1), start + length, device=device)
        if self.prompt_lengths is not None and start == 0:
            prompt_end = self.prompt_lengths.to(device)[:, None]
            generated = position >= prompt_end
        steered = {
            "all": torch.ones_like(generated),
            "generated": generated,
            "last": (position == prompt_end - 1) & ~is_later_call,
        }[self.positions]
        return steered & (position >= self.skip_first)


def adding(step: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the change h + step."""
    return lambda activation: activation + step.to(activation)


def setting(direction: Tensor, level: float, share: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Return the change that sets the component along a direction to ``level``; 0 ablates it.

    Clamp of Stitching (arXiv 2506.06609, §4). ``share`` is the part of the way to the level, 0 to
    1.
    """
    # v̂ = v / ‖v‖; a direction of length 0 is refused by the callers.
    unit = direction / direction.norm()

    def change(activation: Tensor) -> Tensor:
        along = unit.to(activation)
        # h + share · (level − ⟨h, v̂⟩) v̂
        return activation + share * (level - activation @ along)[..., None] * along

    return change
