"""How a model is run: the small protocol behind `HookedModel`, and its two implementations.

`BridgeEngine` runs a TransformerLens ``TransformerBridge``. Capturing whole-stream hook points
(``hook_resid_pre/post``, ``hook_embed``) takes the bridged children out of the Hugging Face decoder
for the duration and reads plain forward hooks on its layers: bit-equal to Hugging Face and as fast
(a bridge's own ``run_with_cache`` unembeds every token and costs 2 to 3 times the decoder). Other
hook points are read from the bridge's ``HookPoint``. Either way an exception of our own ends the
pass at the deepest hook, so later layers and the unembedding never run. While somebody's hooks are
on, everything is read from ``HookPoint`` objects: the bare decoder would not see what they change.

`HookedTransformerEngine` runs an existing ``HookedTransformer`` (TransformerLens 3.x) through its
own ``run_with_cache``.

Rows are padded on the right and no attention mask is passed: attention is causal, so positions
never see padding that follows them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lrt_lens.models._hook_points import EMBED, depth, place, residual_post
from lrt_lens.typing import HookFunction, LongerTokens, Residual, Tokens


@runtime_checkable
class Engine(Protocol):
    """What a model must be able to do for us."""

    n_layers: int
    d_model: int
    d_vocab: int
    context_length: int
    hook_points: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        ...

    def capture(self, tokens: Tokens, names: Sequence[str]) -> dict[str, Residual]:
        """Activations at the named hook points."""
        ...

    def logits(self, tokens: Tokens) -> Tensor:
        """Next-token logits, [batch, position, vocabulary], with whatever hooks are on."""
        ...

    def generate(self, tokens: Tokens, **options: Any) -> LongerTokens:
        """Continuations, prompt included; ``attention_mask`` marks left padding."""
        ...

    def add_hook(self, name: str, fn: HookFunction) -> Callable[[], None]:
        """Put a hook on; returns the function that takes it off."""
        ...

    def resuming(self, name: str, residual: Residual) -> AbstractContextManager[None]:
        """While open, passes over the same tokens continue from ``residual`` at hook point
        ``name``.
        """
        ...


class _DeepestHookReached(Exception):  # noqa: N818 (control flow, no error)
    """Ends a forward pass once everything asked for has been seen."""


class _Capture:
    """Collects activations by name and stops the pass at the last of them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.wanted = set(names)
        self.seen: dict[str, Tensor] = {}

    def put(self, name: str, activation: Tensor) -> None:
        self.seen[name] = activation
        if len(self.seen) == len(self.wanted):
            raise _DeepestHookReached


def _hook_names(n_layers: int, has: Callable[[str], bool]) -> tuple[str, ...]:
    names = [
        f"blocks.{layer}.hook_resid_{part}"
        for layer in range(n_layers)
        for part in ("pre", "mid", "post")
    ]
    return tuple(name for name in [EMBED, *names] if has(name))


def _add_lens_hook(hook_point: Any, fn: HookFunction) -> Callable[[], None]:
    """Add one hook to a TransformerLens ``HookPoint``; `remove_hooks` there takes all of them off,
    this takes just ours.
    """
    before = list(hook_point.fwd_hooks)
    hook_point.add_hook(fn)
    added = [handle for handle in hook_point.fwd_hooks if all(handle is not old for old in before)]

    def remove() -> None:
        for handle in added:
            handle.hook.remove()
            hook_point.fwd_hooks = [kept for kept in hook_point.fwd_hooks if kept is not handle]

    return remove


class BridgeEngine:
    """Runs a ``TransformerBridge``."""

    def __init__(self, bridge: Any) -> None:
        self.bridge = bridge
        self.n_layers = int(bridge.cfg.n_layers)
        self.d_model = int(bridge.cfg.d_model)
        self.d_vocab = int(bridge.cfg.d_vocab)
        self.context_length = int(bridge.cfg.n_ctx)
        self.hook_points = _hook_names(self.n_layers, bridge.hook_dict.__contains__)
        self._layers = [block.original_component for block in bridge.blocks]
        self._embedding = bridge.embed.original_component
        # Compatibility mode rewrites weights inside the bridged components, so the bare decoder is
        # another model there.
        self._bare_is_faithful = not getattr(bridge, "compatibility_mode", False)
        self._points = list({id(point): point for point in bridge.hook_dict.values()}.values())
        self._returns_tuple: bool | None = None

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return next(self.bridge.original_model.parameters()).device

    def capture(self, tokens: Tokens, names: Sequence[str]) -> dict[str, Residual]:
        """Activations at the named hook points."""
        capture = _Capture(names)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if (
                self._bare_is_faithful
                and not self._is_hooked
                and all("resid_mid" not in name for name in names)
            ):
                stack.enter_context(self._bare_decoder())
                for name in names:
                    stack.callback(self._add_plain_hook(name, capture))
            else:
                for name in names:
                    stack.callback(
                        self.add_hook(
                            name, lambda activation, hook, name=name: capture.put(name, activation)
                        )
                    )
            stack.enter_context(suppress(_DeepestHookReached))
            self.bridge.original_model.base_model(input_ids=tokens.to(self.device), use_cache=False)
        return {name: capture.seen[name] for name in names}

    def logits(self, tokens: Tokens) -> Tensor:
        """Next-token logits, with whatever hooks are on."""
        return self.bridge.original_model(input_ids=tokens.to(self.device), use_cache=False).logits

    def generate(self, tokens: Tokens, **options: Any) -> LongerTokens:
        """Continuations, prompt included."""
        with torch.inference_mode():
            return self.bridge.original_model.generate(input_ids=tokens.to(self.device), **options)

    def add_hook(self, name: str, fn: HookFunction) -> Callable[[], None]:
        """Put a hook on; returns the function that takes it off."""
        return _add_lens_hook(self.bridge.hook_dict[name], fn)

    @contextmanager
    def resuming(self, name: str, residual: Residual) -> Iterator[None]:
        """Passes continue from ``residual``: layers up to a ``hook_resid_post`` hand their input
        on, the last of them returns it.

        At other hook points, and where hooks are on that the bare decoder would run past, a hook
        puts the residual in place instead.
        """
        bare = self._bare_is_faithful and not self._is_hooked
        if not (bare and name.endswith("hook_resid_post") and self._returns_tuple is not None):
            with _replacing(self, name, residual):
                yield
            return
        skipped = self._layers[: int(name.split(".")[1]) + 1]
        try:
            for layer in skipped:
                layer.forward = _shortcut(
                    self._returns_tuple, residual if layer is skipped[-1] else None
                )
            with self._bare_decoder():
                yield
        finally:
            for layer in skipped:
                # The override lives on the instance; deleting it uncovers the class's own method.
                layer.__dict__.pop("forward", None)

    @property
    def _is_hooked(self) -> bool:
        """Whether somebody's hooks are on: the bare decoder would run past them."""
        return any(point.fwd_hooks for point in self._points)

    @contextmanager
    def _bare_decoder(self) -> Iterator[None]:
        """Put the Hugging Face modules back in the place of the bridged ones, and undo it whatever
        happens.
        """
        swapped = list(_bridged_children(self.bridge.original_model))
        try:
            for parent, name, child in swapped:
                parent._modules[name] = child._modules["_original_component"]
            yield
        finally:
            for parent, name, child in swapped:
                parent._modules[name] = child

    def _add_plain_hook(self, name: str, capture: _Capture) -> Callable[[], None]:
        if name == EMBED:
            return self._embedding.register_forward_hook(
                lambda _module, _args, output: capture.put(name, output)
            ).remove
        layer = self._layers[int(name.split(".")[1])]
        if name.endswith("_pre"):

            def read_input(_module: nn.Module, args: tuple, kwargs: dict) -> None:
                capture.put(name, args[0] if args else kwargs["hidden_states"])

            return layer.register_forward_pre_hook(read_input, with_kwargs=True).remove

        def read_output(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
            self._returns_tuple = isinstance(output, tuple)
            capture.put(name, output[0] if isinstance(output, tuple) else output)

        return layer.register_forward_hook(read_output).remove


@contextmanager
def _replacing(engine: Engine, name: str, residual: Residual) -> Iterator[None]:
    """Put a residual in the place of whatever arrives at a hook point."""
    remove = engine.add_hook(name, lambda _activation, hook: residual)
    try:
        yield
    finally:
        remove()


def _shortcut(returns_tuple: bool, residual: Tensor | None) -> Callable[..., Any]:
    """A layer's forward that computes nothing, in the layer's own return convention (a tensor, or a
    tuple that starts with it).
    """

    def skip(*args: Any, **kwargs: Any) -> Any:
        hidden = (
            residual if residual is not None else (args[0] if args else kwargs["hidden_states"])
        )
        return (hidden,) if returns_tuple else hidden

    return skip


def _bridged_children(root: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, bridged child) for every bridged component below ``root``."""
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if (
                child is not None
                and name != "_original_component"
                and "_original_component" in child._modules
            ):
                yield parent, name, child


class HookedTransformerEngine:
    """Runs a ``HookedTransformer`` of TransformerLens 3.x."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.n_layers = int(model.cfg.n_layers)
        self.d_model = int(model.cfg.d_model)
        self.d_vocab = int(model.cfg.d_vocab)
        self.context_length = int(model.cfg.n_ctx)
        self.hook_points = _hook_names(self.n_layers, model.hook_dict.__contains__)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return next(self.model.parameters()).device

    def capture(self, tokens: Tokens, names: Sequence[str]) -> dict[str, Residual]:
        """Activations at the named hook points."""
        # The input of a block is read as the output of the one before, which saves a block:
        # `stop_at_layer` is exclusive.
        places = {name: place(name) for name in names}
        # 0 would stop before the first block, whose input has no other name.
        stop = max(1, math.ceil(max(depth(name) for name in names)))
        with torch.inference_mode():
            _, cache = self.model.run_with_cache(
                tokens.to(self.device),
                names_filter=list(places.values()),
                stop_at_layer=stop,
                return_type=None,
            )
        return {name: cache[where] for name, where in places.items()}

    def logits(self, tokens: Tokens) -> Tensor:
        """Next-token logits, with whatever hooks are on."""
        return self.model(tokens.to(self.device), return_type="logits", padding_side="right")

    def generate(self, tokens: Tokens, **options: Any) -> LongerTokens:
        """Continuations, prompt included."""
        # Its own generate knows neither; prompts of one length come together, so nothing is padded.
        options = {
            key: value
            for key, value in options.items()
            if key not in ("attention_mask", "pad_token_id")
        }
        with torch.inference_mode():
            return self.model.generate(
                tokens.to(self.device),
                verbose=False,
                return_type="tokens",
                prepend_bos=False,
                **options,
            )

    def add_hook(self, name: str, fn: HookFunction) -> Callable[[], None]:
        """Put a hook on; returns the function that takes it off."""
        return _add_lens_hook(self.model.hook_dict[name], fn)

    def resuming(self, name: str, residual: Residual) -> AbstractContextManager[None]:
        """Passes continue from ``residual``; the layers before it run all the same."""
        return _replacing(self, name, residual)


def engine_for(model: Any) -> Engine:
    """The engine for a TransformerLens model; TypeError says what is accepted."""
    if hasattr(model, "original_model") and hasattr(model, "hook_dict"):
        return BridgeEngine(model)
    if hasattr(model, "run_with_cache") and hasattr(model, "hook_dict"):
        return HookedTransformerEngine(model)
    raise TypeError(
        f"{type(model).__name__} is no model we can run; give a hub id, a folder, a Hugging Face model, a TransformerBridge, "
        "a HookedTransformer or a HookedModel"
    )


def centred_residual(engine: Engine) -> bool:
    """Whether the residual stream has its mean over dimensions projected out
    (``center_writing_weights``).

    Measured, not read from a flag: TransformerLens does not record which weights it processed.
    """
    tokens = torch.arange(1, 9).remainder(engine.d_vocab)[None]
    residual = engine.capture(tokens, [residual_post(0)])[residual_post(0)]
    # A projection leaves rounding: in bfloat16 that is a share of a per cent of the stream, in
    # float32 next to nothing.
    tolerance = max(1e-5, torch.finfo(residual.dtype).eps)
    residual = residual.double()
    return bool(residual.mean(-1).abs().max() < tolerance * residual.pow(2).mean().sqrt())
