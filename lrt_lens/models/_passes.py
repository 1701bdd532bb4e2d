"""Parts that every engine's forward pass is made of: captures and hooks by name.

capture_with(names, add_hook, run)          # {name: activation}, ends at the deepest hook
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from inspect import signature
from types import MethodType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lrt_lens.models._comparing import (
    first_device,
    first_line,
    padded_positions,
    relative_difference,
    tolerance,
    without_cache,
)
from lrt_lens.models._drawing import outside_of_drawing
from lrt_lens.models._ownership import REGISTERING, entering


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

    @property
    def is_complete(self) -> bool:
        """True once every activation is recorded."""
        return len(self.activations) == self.n_names

    def record(self, name: str, activation: Tensor, hook: Any = None) -> None:
        """Keep one activation; ``hook`` is the hook point, which TransformerLens passes on.

        Raises:
            DeepestHookReached: it was the last one that is needed.
        """
        self.activations[name] = activation
        if self.is_complete:
            raise DeepestHookReached


@contextmanager
def replacing(engine: Any, name: str, residual: Tensor) -> Iterator[None]:
    """Return a context in which a hook replaces the stream at a hook point by ``residual``."""
    with entering(), Handle([engine.add_hook(name, lambda _activation, hook: residual)]):
        yield


class LensHook:
    """A hook on a ``HookPoint`` of TransformerLens that stays until `remove` is called.

    ``reset_hooks`` of the user leaves it there, because it is registered as permanent; if it was
    told to remove permanent hooks too, `restore` registers it again.
    """

    def __init__(self, hook_point: Any, fn: Callable[..., Tensor | None]) -> None:
        self._point, self._fn = hook_point, fn
        self._handle: Any = None
        self.restore()

    def restore(self) -> None:
        """Register the hook, unless it is registered."""
        if self.is_one_of(self._point.fwd_hooks):
            return
        with REGISTERING:
            # The handle is identified by what `add_hook` has appended.
            before = list(self._point.fwd_hooks)
            self._point.add_hook(self._fn, is_permanent=True)
            [self._handle] = [
                handle
                for handle in self._point.fwd_hooks
                if all(handle is not old for old in before)
            ]

    def is_one_of(self, handles: Iterable[Any]) -> bool:
        """Return whether the handle of this hook is among ``handles``."""
        return any(handle is self._handle for handle in handles)

    def remove(self) -> None:
        """Remove this hook alone, which `HookPoint.remove_hooks` cannot."""
        with REGISTERING:
            self._handle.hook.remove()
            self._point.fwd_hooks = [
                one for one in self._point.fwd_hooks if one is not self._handle
            ]


class LensHooks:
    """The hooks that an engine has registered on hook points of TransformerLens."""

    def __init__(self) -> None:
        self._hooks: list[LensHook] = []

    def add(self, hook_point: Any, fn: Callable[..., Tensor | None]) -> Callable[[], None]:
        """Add a hook and return the function that removes it."""
        with REGISTERING:
            hook = LensHook(hook_point, fn)
            self._hooks.append(hook)

        def remove() -> None:
            with REGISTERING:
                self._hooks = [other for other in self._hooks if other is not hook]
                hook.remove()

        return remove

    def restore(self) -> None:
        """Register again the hooks that were removed behind the engine's back."""
        with REGISTERING:
            for hook in self._hooks:
                hook.restore()

    def others(self, hook_points: Iterable[Any]) -> bool:
        """Return whether a hook of anybody else is registered on one of ``hook_points``."""
        with REGISTERING:
            return any(
                not any(hook.is_one_of([handle]) for hook in self._hooks)
                for point in hook_points
                for handle in point.fwd_hooks
            )


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
        entry = stack.enter_context(entering())
        stack.enter_context(torch.inference_mode())
        for name in names:
            record = partial(capture.record, name)
            stack.callback(add_hook(name, entry.only_here(record)))
        try:
            run()
        except Exception:
            # `DeepestHookReached`, or what PyTorch makes of it if another thread registers a hook
            # on a module that this exception is just leaving.
            if not capture.is_complete:
                raise
    return {name: capture.activations[name] for name in names}


def capture_through_bridge(
    bridge: Any, hooks: LensHooks, tokens: Tensor, names: Sequence[str]
) -> dict[str, Tensor]:
    """Return activations by hook point, read from the bridge's own ``HookPoint`` objects.

    ``hooks`` are those of the engine that asks.
    """
    # The base model has no unembedding, and its last layers do not run either.
    decoder = bridge.original_model.base_model
    return capture_with(
        names,
        lambda name, record: hooks.add(bridge.hook_dict[name], record),
        lambda: decoder(input_ids=tokens.to(first_device(decoder)), use_cache=False),
    )


def twin_of(model: Any, **attributes: Any) -> Any:
    """Return an object with the modules, weights and hooks of a model and attributes of its own.

    Attributes that are set on it stay unknown to the model, and so to other threads.
    """
    twin = object.__new__(type(model))
    twin.__dict__.update(model.__dict__)
    for name, value in model.__dict__.items():
        if isinstance(value, MethodType) and value.__self__ is model:
            twin.__dict__[name] = MethodType(value.__func__, twin)
    twin.__dict__.update(attributes)
    return twin


def generate_with(model: Any, tokens: Tensor, config: Any, **options: Any) -> Any:
    """Return what a Hugging Face model generates under ``config`` alone.

    These are token ids, prompts included, unless the config asks for more.
    """
    # `generate` fills what a config leaves open from the model's own, which the twin lacks.
    twin = twin_of(model, generation_config=config)
    twin.__dict__["forward"] = outside_of_drawing(twin.forward)
    _count_own_positions(twin)
    with torch.inference_mode():
        return twin.generate(input_ids=tokens, generation_config=config, **options)


def _count_own_positions(model: Any) -> None:
    """Let ``generate`` count positions as the model itself does; this changes the model.

    RoBERTa and its relatives count from the row behind that of padding, and do not count padding
    tokens. ``generate`` gives them the positions 0, 1, 2 …, which mean something else.
    """
    table = padded_positions(model)
    if table is None or "position_ids" not in signature(model.forward).parameters:
        return
    padding = table.padding_idx
    prepare = model.prepare_inputs_for_generation

    @wraps(prepare)  # `generate` reads the names of the arguments
    def with_positions(input_ids: Tensor, *args: Any, **options: Any) -> dict[str, Any]:
        inputs = prepare(input_ids, *args, **options)
        if inputs.get("input_ids") is not None:
            # The rule of fairseq: position = padding + number of tokens so far that are no padding.
            is_token = (input_ids != padding).long()
            positions = is_token.cumsum(1) * is_token + padding
            inputs["position_ids"] = positions[:, -inputs["input_ids"].shape[1] :]
        return inputs

    model.__dict__["prepare_inputs_for_generation"] = with_positions


def generation_problem(model: Any, row: Tensor) -> str:
    """Return why ``generate`` of a Hugging Face model does not follow its logits; "" if it does.

    Two tokens are written behind ``row`` [1, position], and the logits at which they were chosen
    are compared with those of plain passes.
    """
    from transformers import GenerationConfig

    # XLM masks as many of the last positions as there are padding tokens anywhere in a row.
    padding = getattr(model.config, "pad_token_id", None)
    row = row if padding is None else row[row != padding][None]
    config = GenerationConfig(
        max_new_tokens=2,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    try:
        out: Any = generate_with(model, row, config, attention_mask=torch.ones_like(row))
        for number, chosen in enumerate(out.logits):
            before = out.sequences[:, : row.shape[1] + number]
            with torch.inference_mode():
                logits = model(before, **without_cache(model)).logits[:, -1]
            # NaN is refused where numbers are read, and some models mask tokens with -inf.
            is_finite = chosen.isfinite() & logits.isfinite()
            difference = relative_difference(chosen[is_finite], logits[is_finite])
            # A cache changes the order of arithmetic, and with it what is rounded.
            if difference > (tolerance(logits.dtype) if number == 0 else 5e-2):
                return (
                    f"{type(model).__name__}.generate calls the model in another way than for its"
                    f" logits, which differ by {difference:.2g} (relative, token {number + 1})"
                )
    except Exception as error:  # whatever a model that cannot write raises
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


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
