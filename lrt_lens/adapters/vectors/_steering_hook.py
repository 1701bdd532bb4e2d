"""The function that changes a residual stream while a model runs.

Problem: a hook sees activations only, but whether a position is steered depends on where it is in
its text, and with a KV cache a call after the first one holds a single position. Mechanism:
`SteeringHook` counts the positions that it has seen, masks those that are steered, and applies one
change: h + step (`adding`), or a component along a direction set to a level (`setting`).

    hook = SteeringHook(adding(2.0 * vector.direction), "all", skip_first=4)
    with model.intervene({vector.hook: hook}):
        model.generate("This film was")

The model tells the hook of the running call's attention mask, cache and prompt (`RunningCall`), so
that positions are counted in the tokens of each row: a row that is padded on the left is steered as
it is alone, and ``generate`` without a cache, which passes the whole text again and again, steers
the tokens that it would steer with one.

Limits: without ``prompt_lengths`` and without an attention mask, all rows of a call must have
prompts of the same length. Outside of ``generate``, a call without a cache is a prompt as a whole.
Plain ``model.hooks(fwd_hooks=vector.hooks())`` of TransformerLens tells nothing: there a prompt of
one token is taken for the next token of the text before, and without a cache every call is taken
for a prompt.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lrt_lens.models._running_call import RunningCall

Mode = Literal["add", "clamp", "ablate"]
"""Change of the component along a vector: add to it, set it, remove it."""
Positions = Literal["all", "last", "generated", "every"]
"""Steered positions: all after the first ones, the last of the prompt, generated tokens, or every
token from the first on, as serving engines steer."""


class _TextPosition(threading.local):
    """Progress of a hook through the text of the running thread."""

    n_seen = 0
    is_padded = False
    generation: object | None = None
    n_prompt = 0
    running: RunningCall | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Return how a copy is made: it begins at the start of a text."""
        return type(self), ()


class SteeringHook:
    """Changes a residual stream at selected positions, with and without a KV cache.

    With a cache the first call has the whole prompt and each later one a single position, so the
    position of a token is read from the running call, or counted here if nothing is known of it:
    then the first call and each call with more than one position start a new text.

    Args:
        change: returns the changed activation [batch, position, d_model].
        positions: which positions are changed.
        skip_first: first positions of a text that are never changed.
    """

    def __init__(
        self, change: Callable[[Tensor], Tensor], positions: Positions, skip_first: int
    ) -> None:
        # "every" is "all" without first positions that are left out.
        is_every = positions == "every"
        self.change: Callable[[Tensor], Tensor] = change
        self.positions: Positions = "all" if is_every else positions
        self.skip_first = 0 if is_every else skip_first
        self._progress = _TextPosition()
        self.prompt_lengths: Tensor | None = None
        """Lengths of the prompts, if prompts and continuations come in one padded call, [batch]."""
        self.followers: tuple[SteeringHook, ...] = ()
        """Hooks at later hook points of the same pass."""

    @property
    def running(self) -> RunningCall | None:
        """Attention mask and cache of the running call of this thread, which the model sets."""
        return self._progress.running

    @running.setter
    def running(self, call: RunningCall | None) -> None:
        self._progress.running = call

    def restarted(self) -> "SteeringHook":
        """Return this hook, for which the next call starts a new text.

        The followers restart too and receive the lengths of the prompts.
        """
        self._progress.n_seen = 0
        for hook in self.followers:
            # A hook may be used in several passes, so the lengths of an earlier batch are replaced.
            hook.prompt_lengths = self.prompt_lengths
            hook.restarted()
        return self

    def __call__(self, activation: Tensor, hook: Any = None) -> Tensor:
        """Return the activation [batch, position, d_model], changed at the selected positions.

        Raises:
            ValueError: the prompts were padded, and this call has no mask that says where.
        """
        length, progress = activation.shape[1], self._progress
        mask = self._mask(activation)
        start = self._start(length, mask)
        if start and progress.is_padded and mask is None:
            raise ValueError(
                "the first call of this text had padded rows, and a later one has no attention"
                " mask, so the positions of its tokens are unknown; pass the attention mask of all"
                " positions in every call, or steer texts of equal length together"
            )
        n_prompt = self._prompt_columns(start, length)
        if not start or start != progress.n_seen:
            # Whether rows are padded is asked once per text: on a GPU it waits for the answer.
            progress.is_padded = mask is not None and not bool(mask.all())
        progress.n_seen = start + length
        # Later calls steer every token of rows without padding, and need no mask of positions.
        if start and start >= max(self.skip_first, n_prompt) and not progress.is_padded:
            return activation if self.positions == "last" else self.change(activation)
        steered = self._steered(activation, start, n_prompt, mask)[..., None]
        # torch.where leaves unsteered positions bit for bit as they are.
        return torch.where(steered, self.change(activation), activation)

    def _start(self, length: int, mask: Tensor | None) -> int:
        """Return the column of a call's first position within its row."""
        if mask is not None:
            return mask.shape[1] - length
        running = self.running
        if running is not None and running.n_cached is not None:
            return running.n_cached
        # One position after others is the next token of a pass with a KV cache.
        n_seen = self._progress.n_seen
        return n_seen if length == 1 and n_seen else 0

    def _prompt_columns(self, start: int, length: int) -> int:
        """Return the number of columns of the prompt, padding included."""
        progress = self._progress
        running = progress.running
        if running is None or running.generation is None:
            # Every call behind a cache is new text, every other one a prompt.
            return start or length
        if running.generation is not progress.generation:
            progress.generation = running.generation
            told = running.n_prompt
            progress.n_prompt = start + length if told is None else told
        return progress.n_prompt

    def _mask(self, activation: Tensor) -> Tensor | None:
        """Return the attention mask of the running call if it is one of these rows."""
        running = self.running
        mask = running.attention_mask if running is not None else None
        if mask is None or mask.shape[0] != activation.shape[0]:
            return None
        return mask.to(activation.device) if mask.shape[1] >= activation.shape[1] else None

    def _steered(
        self, activation: Tensor, start: int, n_prompt: int, mask: Tensor | None
    ) -> Tensor:
        """Return a mask [batch, position]: True where the activation is changed.

        ``start`` is the column of the first position within its row, ``n_prompt`` the number of
        columns of the prompt, and ``mask`` the attention mask, which covers the columns before.
        """
        n_rows, length = activation.shape[:2]
        device = activation.device
        column = torch.arange(start, start + length, device=device)[None].expand(n_rows, -1)
        position = column
        is_token = torch.ones_like(position, dtype=torch.bool)
        prompt_end = torch.full((n_rows, 1), n_prompt, device=device)
        if mask is not None:
            # The position of a token is the number of tokens before it in its row.
            position = mask.cumsum(1)[:, -length:] - 1
            is_token = mask[:, -length:]
            prompt_end = mask[:, :n_prompt].sum(1, keepdim=True)
        generated = column >= n_prompt
        if self.prompt_lengths is not None and start == 0:
            prompt_end = self.prompt_lengths.to(device)[:, None]
            generated = position >= prompt_end
        is_last = position == prompt_end - 1
        if mask is not None and mask.shape[1] < n_prompt:
            # A part of a prompt that ends later.
            is_last = torch.zeros_like(is_last)
        steered = {
            "all": torch.ones_like(generated),
            "generated": generated,
            "last": is_last & ~generated,
        }[self.positions]
        return steered & is_token & (position >= self.skip_first)


def change_of(
    direction: Tensor, scale: float, mode: Mode, level: float | None
) -> Callable[[Tensor], Tensor]:
    """Return the change of a mode along a direction.

    Raises:
        ValueError: an unknown mode, a scale outside its range, or a clamp without a level.
    """
    if not torch.isfinite(torch.tensor(float(scale))):
        raise ValueError(
            f"scale is {scale}; expected a finite number (calibrate_scale returns one)"
        )
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode!r}; expected add, clamp or ablate")
    if mode != "add" and not 0 <= scale <= 1:
        raise ValueError(
            f"mode {mode!r} with scale {scale}; expected a scale from 0 (no change) to 1"
        )
    if mode == "clamp" and level is None:
        raise ValueError(
            "mode 'clamp' needs level=...; vector.mean_component(model, texts) computes one "
            "on the model that is steered"
        )
    # add: h + scale · v; clamp and ablate: h + scale · (level − ⟨h, v̂⟩) v̂, level 0 to ablate
    if mode == "add":
        return adding(direction * scale)
    return setting(direction, (level or 0.0) if mode == "clamp" else 0.0, scale)


def adding(step: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the change h + step."""
    return lambda activation: activation + step.to(activation)


def setting(direction: Tensor, level: float, share: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Return the change that sets the component along a direction to ``level``; 0 ablates it.

    Clamp of Stitching (arXiv 2506.06609, §4). ``share`` is the part of the way to the level, 0 to
    1.
    """
    # v̂ = v / ‖v‖; a direction of length 0 is refused by the callers.
    return partial(_set, direction / direction.norm(), level, share)


def _set(unit: Tensor, level: float, share: float, activation: Tensor) -> Tensor:
    along = unit.to(activation)
    # h + share · (level − ⟨h, v̂⟩) v̂
    return activation + share * (level - activation @ along)[..., None] * along
