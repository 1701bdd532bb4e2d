"""Engines: how a TransformerLens model runs, behind one protocol with two implementations.

Problem: capturing through a bridge's own ``run_with_cache`` unembeds every token and takes 2 to 3
times as long as the decoder. Mechanism: `BridgeEngine` runs a ``TransformerBridge``. For hook
points that hold the residual stream between blocks (``hook_resid_pre``, ``hook_resid_post``,
``hook_embed``) it puts the original Hugging Face modules back for the duration of a capture and
reads plain PyTorch hooks on the layers: the values are bit-equal to those of Hugging Face, at the
same speed. All other hook points, and all hook points while any hook is registered, are read from
the bridge's ``HookPoint`` objects, because the original modules would run past those hooks. In
either case an exception ends the forward pass at the deepest hook point, so that later layers and
the unembedding do not run. `HookedTransformerEngine` runs an existing ``HookedTransformer``
(TransformerLens 3.x) through its own ``run_with_cache``.

    engine = engine_for(bridge)
    engine.capture(tokens, ["blocks.3.hook_resid_post"])    # {name: [batch, position, d_model]}

Limits: rows are padded on the right and no attention mask is passed. Attention must be causal, so
that no position reads the padding after it.
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
    """A model that runs: everything that `HookedModel` needs from it."""

    n_layers: int
    d_model: int
    d_vocab: int
    context_length: int
    hook_points: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        """Device that token ids are moved to."""
        ...

    def capture(self, tokens: Tokens, names: Sequence[str]) -> dict[str, Residual]:
        """Return activations by hook point."""
        ...

    def logits(self, tokens: Tokens) -> Tensor:
        """Return next-token logits [batch, position, vocabulary]; registered hooks take effect."""
        ...

    def generate(self, tokens: Tokens, **options: Any) -> LongerTokens:
        """Return prompts with their continuations; ``attention_mask`` marks left padding."""
        ...

    def add_hook(self, name: str, fn: HookFunction) -> Callable[[], None]:
        """Register a hook and return the function that removes it."""
        ...

    def resuming(self, name: str, residual: Residual) -> AbstractContextManager[None]:
        """Return a context in which passes over the same tokens continue from ``residual``.

        ``residual`` [batch, position, d_model] replaces the stream at hook point ``name``.
        """
        ...


class _DeepestHookReached(Exception):  # noqa: N818 (control flow, no error)
    """Ends a forward pass once all requested activations are recorded."""


class _Capture:
    """Activations by name; recording the last of the names ends the forward pass."""

    def __init__(self, names: Sequence[str]) -> None:
        # Distinct names, because one name may be requested twice and is recorded once.
        self.n_names = len(set(names))
        self.activations: dict[str, Tensor] = {}

    def record(self, name: str, activation: Tensor) -> None:
        self.activations[name] = activation
        if len(self.activations) == self.n_names:
            raise _DeepestHookReached


def _hook_names(n_layers: int, has: Callable[[str], bool]) -> tuple[str, ...]:
    # Models whose attention and MLP run in parallel have no `hook_resid_mid`.
    names = [
        f"blocks.{layer}.hook_resid_{part}"
        for layer in range(n_layers)
        for part in ("pre", "mid", "post")
    ]
    return tuple(name for name in [EMBED, *names] if has(name))


def _add_lens_hook(hook_point: Any, fn: HookFunction) -> Callable[[], None]:
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
        # Compatibility mode rewrites weights inside the bridged components. The original modules
        # then compute another function than the bridge does.
        self._originals_are_faithful = not getattr(bridge, "compatibility_mode", False)
        # TransformerLens gives one `HookPoint` several names.
        self._points = list({id(point): point for point in bridge.hook_dict.values()}.values())
        # Whether the layers return a tuple; None until a capture has seen one of them return.
        self._returns_tuple: bool | None = None

    @property
    def device(self) -> torch.device:
        """Device that token ids are moved to."""
        return next(self.bridge.original_model.parameters()).device

    def capture(self, tokens: Tokens, names: Sequence[str]) -> dict[str, Residual]:
        """Return activations by hook point."""
        capture = _Capture(names)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if (
                self._originals_are_faithful
                and not self._is_hooked
                and all("resid_mid" not in name for name in names)
            ):
                stack.enter_context(self._original_modules())
                for name in names:
                    stack.callback(self._add_plain_hook(name, capture))
            else:
                for name in names:
                    stack.callback(
                        self.add_hook(
                            name,
                            lambda activation, hook, name=name: capture.record(name, activation),
                        )
                    )
            # The base model has no unembedding, and its last layers do not run either.
            stack.enter_context(suppress(_DeepestHookReached))
            self.bridge.original_model.base_model(input_ids=tokens.to(self.device), use_cache=False)
        return {name: capture.activations[name] for name in names}

    def logits(self, tokens: Tokens) -> Tensor:
        """Return next-token logits [batch, position, vocabulary]; registered hooks take effect."""
        return self.bridge.original_model(input_ids=tokens.to(self.device), use_cache=False).logits

    def generate(self, tokens: Tokens, **options: Any) -> LongerTokens:
        """Return prompts with their continuations."""
        with torch.inference_mode():
            return self.bridge.original_model.generate(input_ids=tokens.to(self.device), **options)

    def add_hook(self, name: str, fn: HookFunction) -> Callable[[], None]:
        """Register a hook and return the function that removes it."""
        return _add_lens_hook(self.bridge.hook_dict[name], fn)

    @contextmanager
    def resuming(self, name: str, residual: Residual) -> Iterator[None]:
        """Return a context in which passes over the same tokens continue from ``residual``.

        At a ``hook_resid_post`` the layers up to it are skipped: the last of them returns
        ``residual``, the others return their input. At other hook points, and while any hook is
        registered, all layers run and a hook replaces the stream.
        """
        originals = self._originals_are_faithful and not self._is_hooked
        # How a layer returns the stream is known only after a capture has run the layers once.
        if not (originals and name.endswith("hook_resid_post") and self._returns_tuple is not None):
            with _replacing(self, name, residual):
                yield
            return
        skipped = self._layers[: int(name.split(".")[1]) + 1]
        try:
            for layer in skipped:
                layer.forward = _shortcut(
                    self._returns_tuple, residual if layer is skipped[-1] else None
                )
            with self._original_modules():
                yield
        finally:
            for layer in skipped:
                # The override is an attribute of the instance; without it, attribute lookup gives
                # the class's own method again.
                layer.__dict__.pop("forward", None)

    @property
    def _is_hooked(self) -> bool:
        """True if any hook is registered; the original modules would not call it."""
        return any(point.fwd_hooks for point in self._points)

    @contextmanager
    def _original_modules(self) -> Iterator[None]:
        """Return a context in which the model runs its original Hugging Face modules."""
        swapped = list(_bridged_children(self.bridge.original_model))
        try:
            # A bridge replaces modules of the Hugging Face model by components that wrap them.
            # torch looks submodules up in `_modules`, so a new entry there swaps the module.
            for parent, name, child in swapped:
                parent._modules[name] = child._modules["_original_component"]
            yield
        finally:
            for parent, name, child in swapped:
                parent._modules[name] = child

    def _add_plain_hook(self, name: str, capture: _Capture) -> Callable[[], None]:
        """Register a PyTorch hook that records ``name`` and return the function that removes it."""
        if name == EMBED:
            return self._embedding.register_forward_hook(
                lambda _module, _args, output: capture.record(name, output)
            ).remove
        layer = self._layers[int(name.split(".")[1])]
        if name.endswith("_pre"):
            # Decoders of transformers pass the stream by position or by keyword.
            def read_input(_module: nn.Module, args: tuple, kwargs: dict) -> None:
                capture.record(name, args[0] if args else kwargs["hidden_states"])

            return layer.register_forward_pre_hook(read_input, with_kwargs=True).remove

        def read_output(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
            self._returns_tuple = isinstance(output, tuple)
            capture.record(name, output[0] if isinstance(output, tuple) else output)

        return layer.register_forward_hook(read_output).remove


@contextmanager
def _replacing(engine: Engine, name: str, residual: Residual) -> Iterator[None]:
    """Return a context in which a hook replaces the stream at a hook point by ``residual``."""
    remove = engine.add_hook(name, lambda _activation, hook: residual)
    try:
        yield
    finally:
        remove()


def _shortcut(returns_tuple: bool, residual: Tensor | None) -> Callable[..., Any]:
    """Return a ``forward`` for a layer that returns ``residual``, or its input if that is None.

    ``returns_tuple`` says whether layers of this model return a tuple that starts with the stream.
    """

    def skip(*args: Any, **kwargs: Any) -> Any:
        hidden = (
            residual if residual is not None else (args[0] if args else kwargs["hidden_states"])
        )
        return (hidden,) if returns_tuple else hidden

    return skip


def _bridged_children(root: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield (parent, name, bridged child) for every bridged component below ``root``."""
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
        """Device that token ids are moved to."""
        return next(self.model.parameters()).device

    def capture(self, tokens: Tokens, names: Sequence[str]) -> dict[str, Residual]:
        """Return activations by hook point."""
        # The input of block l is read as the output of block l - 1. That saves running block l,
        # because `stop_at_layer` is exclusive.
        canonical = {name: place(name) for name in names}
        # At least 1: with 0 the pass would stop before `blocks.0.hook_resid_pre`, which has no
        # other name.
        stop = max(1, math.ceil(max(depth(name) for name in names)))
        with torch.inference_mode():
            _, cache = self.model.run_with_cache(
                tokens.to(self.device),
                names_filter=list(canonical.values()),
                stop_at_layer=stop,
                return_type=None,
            )
        return {name: cache[other] for name, other in canonical.items()}

    def logits(self, tokens: Tokens) -> Tensor:
        """Return next-token logits [batch, position, vocabulary]; registered hooks take effect."""
        return self.model(tokens.to(self.device), return_type="logits", padding_side="right")

    def generate(self, tokens: Tokens, **options: Any) -> LongerTokens:
        """Return prompts with their continuations."""
        # `HookedTransformer.generate` has neither option. Both can be left out, because
        # `HookedModel.generate` runs prompts of equal length together, without padding.
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
        """Register a hook and return the function that removes it."""
        return _add_lens_hook(self.model.hook_dict[name], fn)

    def resuming(self, name: str, residual: Residual) -> AbstractContextManager[None]:
        """Return a context in which passes continue from ``residual``; all layers still run."""
        return _replacing(self, name, residual)


def engine_for(model: Any) -> Engine:
    """Return the engine for a TransformerLens model.

    Raises:
        TypeError: ``model`` is neither a bridge nor a ``HookedTransformer``.
    """
    if hasattr(model, "original_model") and hasattr(model, "hook_dict"):
        return BridgeEngine(model)
    if hasattr(model, "run_with_cache") and hasattr(model, "hook_dict"):
        return HookedTransformerEngine(model)
    raise TypeError(
        f"{type(model).__name__} is not a supported model; give a hub id, a folder, a Hugging Face"
        " model, a TransformerBridge, a HookedTransformer or a HookedModel"
    )


def centred_residual(engine: Engine) -> bool:
    """Return whether the residual stream has mean 0 over its dimensions.

    That is the basis after ``center_writing_weights``. It is measured on a few tokens, because
    TransformerLens does not record which weights it has processed.
    """
    # Token ids 1 to 8, modulo the vocabulary for models with a tiny one.
    tokens = torch.arange(1, 9).remainder(engine.d_vocab)[None]
    residual = engine.capture(tokens, [residual_post(0)])[residual_post(0)]
    # Centred if |mean over d_model| < tolerance · root mean square of the stream. Rounding alone
    # gives a mean of up to one eps: 0.8 % in bfloat16. float32 gets 1e-5, for sums over d_model.
    tolerance = max(1e-5, torch.finfo(residual.dtype).eps)
    residual = residual.double()
    return bool(residual.mean(-1).abs().max() < tolerance * residual.pow(2).mean().sqrt())
