"""The engine of a Hugging Face model: one forward pass, with hooks of our own on its blocks.

Problem: a ``TransformerBridge`` replaces the modules of the model it wraps, and some of them
compute another function (GPT-2 without attention scaling differs by .57 of the logits' norm).
Mechanism: every number, text and intervention comes from the model as Hugging Face runs it.
``hook_resid_pre``, ``hook_resid_post`` and ``hook_embed`` are PyTorch hooks on its blocks and its
embedding, and an exception ends the pass at the deepest of them. The model stays as it was: the
bridge is built around a second tree of modules that shares its weights. On loading, one short row
runs through both. Only if they agree does the bridge supply what has no other place:
``hook_resid_mid``, and passes while the user has hooks on the bridge.

    engine = HuggingFaceEngine(model, tokenizer, "gpt2")
    engine.capture(tokens, ["blocks.3.hook_resid_post"])    # {name: [batch, position, d_model]}
    engine.bridge.run_with_cache(tokens)                    # TransformerLens' own

Limits: rows are padded on the right and no attention mask is passed.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from lrt_lens.errors import MismatchError
from lrt_lens.models._decoder import find_decoder, stream_of, without_cache
from lrt_lens.models._engine import (
    Capture,
    DeepestHookReached,
    HookName,
    relative_difference,
    replacing,
    short_row,
    tolerance,
)
from lrt_lens.models._hook_points import EMBED, residual_names
from lrt_lens.models._identity import weights_hash
from lrt_lens.models._lens_engines import add_lens_hook, capture_through_bridge, generate_with
from lrt_lens.models._loading import boot_bridge
from lrt_lens.typing import HookFunction, LongerTokens, Residual, Tokens

logger = logging.getLogger(__name__)


class HuggingFaceEngine:
    """Runs a Hugging Face decoder."""

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model, self._name = model.eval(), name
        decoder = find_decoder(model, name)
        self._layers, self._embedding = decoder.blocks, decoder.embedding
        self._returns_tuple = decoder.returns_tuple
        self.n_layers = len(decoder.blocks)
        self.d_model, self.d_vocab = decoder.d_model, decoder.d_vocab
        self.context_length = decoder.context_length
        self._lens_hooks: list[tuple[Any, Callable[[], None]]] = []
        self._n_hooks = 0
        self._problem = ""
        self._build_bridge(tokenizer, decoder.row_logits)
        mids = set() if self._problem else self._true_mids()
        names = residual_names(self.n_layers)
        self.hook_points = tuple(n for n in names if "resid_mid" not in n or n in mids)
        self._can_skip = self._resumes_exactly(decoder.row_logits)

    # --------------------------------------------------------------------------------- the bridge

    @property
    def bridge(self) -> Any:
        """``TransformerBridge`` with the same weights, in a tree of modules of its own.

        Raises:
            ValueError: TransformerLens cannot bridge this model.
        """
        if self._bridge is None:
            raise ValueError(f"{self._name!r} has no TransformerBridge: {self._problem}")
        return self._bridge

    def original_module(self, component: Any) -> nn.Module:
        """Return the module of the Hugging Face model that a component of the bridge wraps."""
        return self._originals[id(component.original_component)]

    def _build_bridge(self, tokenizer: Any, logits: Tensor) -> None:
        """Build the bridge and compare one short row with the model's own logits."""
        self._bridge, self._originals = None, {}
        tensors = [*self.model.parameters(), *self.model.buffers()]
        # `deepcopy` takes what is in the memo as already copied: modules are new, weights shared.
        memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
        try:
            twin = copy.deepcopy(self.model, memo)
            originals = {id(memo[id(module)]): module for module in self.model.modules()}
            # TransformerLens chooses its adapter by this field, which a model that was made in
            # memory does not have.
            twin.config.architectures = twin.config.architectures or [type(self.model).__name__]
            bridge = boot_bridge(twin, tokenizer, self._name)
            with torch.inference_mode():
                row = short_row(self.d_vocab).to(self.device)
                bridged = bridge.original_model(row, **without_cache(self.model)).logits
        except Exception as error:  # TransformerLens has no error class for what it cannot bridge
            self._problem = f"{type(error).__name__}: {_first_line(error)}"
            logger.warning(
                "TransformerLens cannot bridge %r (%s); model.bridge and hook_resid_mid are not"
                " available, everything else is",
                self._name,
                self._problem,
            )
            return
        self._bridge, self._originals = bridge, originals
        self._points = list({id(point): point for point in bridge.hook_dict.values()}.values())
        difference = relative_difference(bridged, logits)
        if difference > tolerance(logits.dtype):
            self._problem = (
                f"TransformerLens' bridge of it differs from the Hugging Face model by"
                f" {difference:.2g} (relative, logits of {logits.shape[1]} tokens)"
            )
            logger.warning(
                "%r: %s; every number comes from the Hugging Face model, and what only the bridge"
                " has (hook_resid_mid, hooks on model.bridge) is refused",
                self._name,
                self._problem,
            )

    def _true_mids(self) -> set[str]:
        """Return the ``hook_resid_mid`` that are the input of the MLP branch of their block.

        The branch begins at its norm, or at the MLP itself if the norm comes after it. A name is
        kept if the bridge's value is the input of one of those, read between attention and MLP.
        """
        points = self.bridge.hook_dict
        events: list[tuple[str, Tensor]] = []

        def read(name: str) -> HookFunction:
            return lambda activation, hook: events.append((name, activation))

        parts = ("hook_resid_mid", "ln2.hook_in", "mlp.hook_in", "mlp.in.hook_in", "attn.hook_out")
        names = [
            name
            for layer in range(self.n_layers)
            for part in parts
            if (name := f"blocks.{layer}.{part}") in points
        ]
        with ExitStack() as stack, torch.inference_mode():
            for name in names:
                stack.callback(add_lens_hook(points[name], read(name)))
            self.bridge.original_model(
                short_row(self.d_vocab).to(self.device), **without_cache(self.model)
            )
        return {
            f"blocks.{layer}.hook_resid_mid"
            for layer in range(self.n_layers)
            if _is_true_mid(f"blocks.{layer}.", events)
        }

    def _require_bridge(self, what: str) -> Any:
        """Return the bridge.

        Raises:
            MismatchError: there is none, or it computes another function than the model.
        """
        if self._problem:
            raise MismatchError(
                f"{what} of {self._name!r} needs TransformerLens' bridge, which is not used: "
                f"{self._problem}; use hook_resid_pre, hook_resid_post or hook_embed"
            )
        return self._bridge

    @property
    def _runs_bridge(self) -> bool:
        """True while a hook acts that only the bridge has: the user's own, or one at resid_mid."""
        if self._bridge is None:
            return False
        n_hooks = sum(len(point.fwd_hooks) for point in self._points)
        return n_hooks > len(self._lens_hooks)

    # -------------------------------------------------------------------------------- running

    @property
    def device(self) -> torch.device:
        """Device that token ids are moved to."""
        return self._embedding.weight.device  # type: ignore[return-value]

    @property
    def _running(self) -> Any:
        """The model that runs: the bridge's if hooks on it must act, else Hugging Face's own."""
        if self._runs_bridge:
            return self._require_bridge("a pass with hooks on the bridge").original_model
        return self.model

    def capture(self, tokens: Tokens, names: Sequence[str]) -> dict[str, Residual]:
        """Return activations by hook point."""
        if self._runs_bridge:
            return capture_through_bridge(self._require_bridge("a pass with hooks"), tokens, names)
        # Two passes rather than one through the bridge, so that the values of a hook point do not
        # depend on what else is captured.
        mids = [name for name in names if "resid_mid" in name]
        captured = self._captured(tokens, [name for name in names if name not in mids])
        if mids:
            captured |= capture_through_bridge(self._require_bridge(mids[0]), tokens, mids)
        return {name: captured[name] for name in names}

    def logits(self, tokens: Tokens) -> Tensor:
        """Return next-token logits [batch, position, vocabulary]; registered hooks take effect."""
        return self._running(tokens.to(self.device), **without_cache(self.model)).logits

    def generate(self, tokens: Tokens, config: Any, **options: Any) -> LongerTokens:
        """Return prompts with their continuations."""
        return generate_with(self._running, tokens.to(self.device), config, **options)

    def weights_hash(self) -> str:
        """Return a hash of every weight."""
        return weights_hash(self.model)

    def add_hook(self, name: str, fn: HookFunction) -> Callable[[], None]:
        """Register a hook and return the function that removes it.

        It acts in the Hugging Face model and in the bridge, whichever runs.
        """
        if "resid_mid" in name:
            # Not among `_lens_hooks`, so while it is registered every pass runs the bridge.
            return add_lens_hook(self._require_bridge(name).hook_dict[name], fn)
        point = HookName(name)
        remove_plain = self._add_plain_hook(name, lambda activation: fn(activation, hook=point))
        on_bridge = []
        if self._bridge is not None and name in self._bridge.hook_dict:
            on_bridge.append((point, add_lens_hook(self._bridge.hook_dict[name], fn)))
            self._lens_hooks += on_bridge
        self._n_hooks += 1

        def remove() -> None:
            remove_plain()
            for entry in on_bridge:
                entry[1]()
                self._lens_hooks = [one for one in self._lens_hooks if one is not entry]
            on_bridge.clear()
            self._n_hooks -= 1

        return remove

    @contextmanager
    def resuming(self, name: str, residual: Residual) -> Iterator[None]:
        """Return a context in which passes over the same tokens continue from ``residual``.

        At a ``hook_resid_post`` the layers up to it are skipped: the last of them returns
        ``residual``, the others return their input. At other hook points, and while any hook is
        registered, all layers run and a hook replaces the stream.
        """
        hooked = self._n_hooks or self._runs_bridge
        if hooked or not (self._can_skip and name.endswith("hook_resid_post")):
            with replacing(self, name, residual):
                yield
            return
        with self._skipping(int(name.split(".")[1]), residual):
            yield

    # -------------------------------------------------------------------------------- private

    def _captured(self, tokens: Tokens, names: Sequence[str]) -> dict[str, Residual]:
        """Return activations read from hooks on the blocks."""
        if not names:
            return {}
        capture = Capture(names)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            for name in names:
                stack.callback(
                    self._add_plain_hook(
                        name, lambda activation, name=name: capture.record(name, activation)
                    )
                )
            # The base model has no unembedding, and its last layers do not run either.
            stack.enter_context(suppress(DeepestHookReached))
            base = self.model.base_model
            base(input_ids=tokens.to(self.device), **without_cache(base))
        return {name: capture.activations[name] for name in names}

    def _add_plain_hook(self, name: str, fn: Callable[[Any], Tensor | None]) -> Callable[[], None]:
        """Register a PyTorch hook at a hook point and return the function that removes it.

        ``fn`` gets the activation and returns the new one, or None to leave it unchanged.
        """
        if name == EMBED:
            return self._embedding.register_forward_hook(
                lambda _module, _args, output: fn(output)
            ).remove
        layer = self._layers[int(name.split(".")[1])]
        if name.endswith("_pre"):
            # Decoders of transformers pass the stream by position or by keyword.
            def change_input(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
                changed = fn(args[0] if args else kwargs["hidden_states"])
                if changed is None:
                    return None
                if args:
                    return (changed, *args[1:]), kwargs
                new_kwargs: dict[str, Any] = {**kwargs, "hidden_states": changed}
                return args, new_kwargs

            return layer.register_forward_pre_hook(change_input, with_kwargs=True).remove

        def change_output(_module: nn.Module, _args: tuple, output: Any) -> Any:
            changed = fn(stream_of(output))
            if changed is None:
                return None
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return layer.register_forward_hook(change_output).remove

    @contextmanager
    def _skipping(self, layer: int, residual: Residual) -> Iterator[None]:
        """Return a context in which blocks 0 to ``layer`` do not run and give ``residual``."""
        skipped = self._layers[: layer + 1]
        try:
            for index, block in enumerate(skipped):
                block.forward = _shortcut(
                    self._returns_tuple[index], residual if index == layer else None
                )
            yield
        finally:
            for block in skipped:
                # The override is an attribute of the instance; without it, attribute lookup gives
                # the class's own method again.
                block.__dict__.pop("forward", None)

    def _resumes_exactly(self, logits: Tensor) -> bool:
        """Return True if skipping the first blocks gives the logits of a whole pass.

        It does not in models whose later blocks read more of earlier ones than the stream.
        """
        if self.n_layers < 2:
            return False
        row, hook = short_row(self.d_vocab), f"blocks.{self.n_layers // 2 - 1}.hook_resid_post"
        try:
            residual = self._captured(row, [hook])[hook]
            with self._skipping(self.n_layers // 2 - 1, residual), torch.inference_mode():
                resumed = self.model(row.to(self.device), **without_cache(self.model)).logits
        except Exception as error:  # whatever a block misses that was skipped
            logger.info("%r cannot skip blocks (%s)", self._name, _first_line(error))
            return False
        return relative_difference(resumed, logits) < tolerance(logits.dtype)


def _is_true_mid(block: str, events: list[tuple[str, Tensor]]) -> bool:
    """Return True if a block's ``hook_resid_mid`` is what its MLP branch reads."""
    order = [name.removeprefix(block) for name, _ in events if name.startswith(block)]
    values = {name.removeprefix(block): value for name, value in events if name.startswith(block)}
    mlp = next((part for part in ("mlp.hook_in", "mlp.in.hook_in") if part in values), None)
    if mlp is None or "hook_resid_mid" not in values or "attn.hook_out" not in values:
        return False
    # A norm that comes after the MLP does not begin the branch.
    norm_first = "ln2.hook_in" in values and order.index("ln2.hook_in") < order.index(mlp)
    begins = "ln2.hook_in" if norm_first else mlp
    in_between = order.index("attn.hook_out") < order.index("hook_resid_mid") < order.index(mlp)
    mid, read = values["hook_resid_mid"], values[begins]
    return in_between and mid.shape == read.shape and bool(torch.equal(mid, read))


def _shortcut(returns_tuple: bool, residual: Tensor | None) -> Callable[..., Any]:
    """Return a ``forward`` for a block that returns ``residual``, or its input if that is None.

    ``returns_tuple`` says whether the block returns a tuple that starts with the stream.
    """

    def skip(*args: Any, **kwargs: Any) -> Any:
        hidden = (
            residual if residual is not None else (args[0] if args else kwargs["hidden_states"])
        )
        return (hidden,) if returns_tuple else hidden

    return skip


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]
