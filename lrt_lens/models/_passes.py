"""Parts that every engine's forward pass is made of: captures, hooks by name, and comparisons.

capture_with(names, add_hook, run)          # {name: activation}, ends at the deepest hook
relative_difference(bridged, logits)        # ‖a − b‖ / ‖b‖
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


class Handle:
    """Registered hooks; `remove`, or the end of a ``with`` block, removes them."""

    def __init__(self, removers: Iterable[Callable[[], None]]) -> None:
        self._removers = list(removers)

    def remove(self) -> None:
        """Remove the hooks; a second call does nothing."""
        # In reverse order, as hooks were stacked. `pop` makes a second call do nothing.
        while self._removers:
            self._removers.pop()()

    def __enter__(self) -> "Handle":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


@dataclass(frozen=True)
class HookName:
    """The ``hook`` argument of a hook function, where no ``HookPoint`` of TransformerLens is."""

    name: str
    """Name of the hook point, such as ``"blocks.3.hook_resid_post"``."""

    def layer(self) -> int:
        """Return the number of the block, as ``HookPoint.layer`` does.

        Raises:
            ValueError: the hook point belongs to no block.
        """
        parts = self.name.split(".")
        if parts[0] != "blocks":
            raise ValueError(f"{self.name!r} belongs to no block; expected 'blocks.N.…'")
        return int(parts[1])


class DeepestHookReached(Exception):  # noqa: N818 (control flow, no error)
    """Ends a forward pass once all requested activations are recorded."""


class Capture:
    """Activations by name; recording the last of the names ends the forward pass."""

    def __init__(self, names: Sequence[str]) -> None:
        self.n_names = len(set(names))
        self.activations: dict[str, Tensor] = {}

    def record(self, name: str, activation: Tensor) -> None:
        """Keep one activation.

        Raises:
            DeepestHookReached: it was the last one that is needed.
        """
        self.activations[name] = activation
        if len(self.activations) == self.n_names:
            raise DeepestHookReached


@contextmanager
def replacing(engine: Any, name: str, residual: Tensor) -> Iterator[None]:
    """Return a context in which a hook replaces the stream at a hook point by ``residual``."""
    remove = engine.add_hook(name, lambda _activation, hook: residual)
    try:
        yield
    finally:
        remove()


def add_lens_hook(hook_point: Any, fn: Callable[..., Tensor | None]) -> Callable[[], None]:
    """Add a hook to a TransformerLens ``HookPoint`` and return the function that removes it."""
    # `HookPoint.remove_hooks` removes all hooks. To remove just this one, its handle is identified
    # by what `add_hook` has appended.
    before = list(hook_point.fwd_hooks)
    hook_point.add_hook(fn)
    added = [handle for handle in hook_point.fwd_hooks if all(handle is not old for old in before)]

    def remove() -> None:
        for handle in added:
            handle.hook.remove()
            hook_point.fwd_hooks = [other for other in hook_point.fwd_hooks if other is not handle]

    return remove


def capture_with(
    names: Sequence[str],
    add_hook: Callable[[str, Callable[..., None]], Callable[[], None]],
    run: Callable[[], Any],
) -> dict[str, Tensor]:
    """Return activations by hook point of one pass, which ends at the deepest of them.

    Args:
        names: hook points; without any nothing runs.
        add_hook: registers a function of an activation at a hook point, and returns the function
            that removes it.
        run: runs the model.
    """
    if not names:
        return {}
    capture = Capture(names)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for name in names:

            def record(activation: Tensor, hook: Any = None, name: str = name) -> None:
                capture.record(name, activation)

            stack.callback(add_hook(name, record))
        stack.enter_context(suppress(DeepestHookReached))
        run()
    return {name: capture.activations[name] for name in names}


def capture_through_bridge(bridge: Any, tokens: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return activations by hook point, read from the bridge's own ``HookPoint`` objects."""
    # The base model has no unembedding, and its last layers do not run either.
    decoder = bridge.original_model.base_model
    return capture_with(
        names,
        lambda name, record: add_lens_hook(bridge.hook_dict[name], record),
        lambda: decoder(input_ids=tokens.to(first_device(decoder)), use_cache=False),
    )


def generate_with(model: Any, tokens: Tensor, config: Any, **options: Any) -> Tensor:
    """Return prompts with continuations of a Hugging Face model, under ``config`` alone."""
    own = model.generation_config
    # `generate` fills what a config leaves open from the model's own, which is set aside meanwhile.
    model.generation_config = config
    try:
        with torch.inference_mode():
            return model.generate(input_ids=tokens, generation_config=config, **options)
    finally:
        model.generation_config = own


def short_row(d_vocab: int) -> Tensor:
    """Return eight token ids [1, 8] on which properties of a model are measured at loading."""
    # Token ids 1 to 8, modulo the vocabulary for models with a tiny one.
    return torch.arange(1, 9).remainder(d_vocab)[None]


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """Return ‖value − reference‖ / ‖reference‖ in float64; infinite if ``value`` has a NaN."""
    value, reference = value.double(), reference.double().to(value.device)
    difference = float((value - reference).norm() / reference.norm().clamp_min(1e-30))
    return difference if difference == difference else float("inf")


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative difference below which two orders of arithmetic give one function.

    Two implementations of attention agree to about 1e-6 in float32 and to about 1e-2 in bfloat16.
    """
    return 1e-3 if dtype in (torch.float32, torch.float64) else 5e-2


class SelectedPositions:
    """A pre-hook of an unembedding, which then sees only some positions of the batch.

    Args:
        shape: (batch, position) of the tokens.
        rows: row of each selected position, [selected].
        positions: position within the row, [selected].
    """

    def __init__(self, shape: tuple[int, int], rows: Tensor, positions: Tensor) -> None:
        self.shape, self.rows, self.positions = shape, rows, positions
        self.n_calls = 0

    def __call__(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments with [1, selected, d_model] in place of the whole batch."""
        self.n_calls += 1
        hidden = args[0]
        if tuple(hidden.shape[:2]) != self.shape:
            # Not the states of these tokens: the caller sees the number of logits and runs again.
            return args
        at = (self.rows.to(hidden.device), self.positions.to(hidden.device))
        return (hidden[at][None], *args[1:])


def is_centred(residual: Tensor) -> bool:
    """Return whether states have mean 0 over their dimensions (``center_writing_weights``).

    It is measured, because TransformerLens does not record which weights it has processed.
    """
    # Centred if |mean over d_model| < tolerance · root mean square of the stream. Rounding alone
    # gives a mean of up to one eps: 0.8 % in bfloat16. float32 gets 1e-5, for sums over d_model.
    allowed = max(1e-5, torch.finfo(residual.dtype).eps)
    residual = residual.double()
    return bool(residual.mean(-1).abs().max() < allowed * residual.pow(2).mean().sqrt())


def first_device(model: nn.Module) -> torch.device:
    """Return the device of a module's first parameter."""
    return next(model.parameters()).device


def ignores_mean(model: nn.Module, d_model: int) -> bool | None:
    """Return whether the norms of a model subtract the mean of the stream over its dimensions.

    True with LayerNorm, False if any is an RMSNorm; None if no norm of that width is found. The
    norms are run, because their names do not tell (T5LayerNorm is an RMSNorm).
    """
    states = torch.randn(1, 4, d_model, generator=torch.Generator().manual_seed(0))
    answers = [
        answer
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        and (answer := _norm_ignores_mean(module, states)) is not None
    ]
    return all(answers) if answers else None


def _norm_ignores_mean(norm: nn.Module, states: Tensor) -> bool | None:
    parameter = next(norm.parameters(), None)
    if parameter is not None:
        states = states.to(device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad():
            # `forward`, because no hook on the module should act.
            out, shifted = norm.forward(states), norm.forward(states + 1)
    except Exception:  # another width, or an adaptive norm with more arguments
        return None
    if not isinstance(out, Tensor) or out.shape != states.shape or not out.any():
        return None
    # The shift by one standard deviation changes what an RMSNorm returns by more than a half.
    return relative_difference(shifted, out) < tolerance(torch.bfloat16)
