"""The engine of a Hugging Face model: one forward pass, with hooks of our own on its blocks.

Problem: a ``TransformerBridge`` replaces the modules of the model it wraps, and some of them
compute another function (GPT-2 without attention scaling differs by .57 of the logits' norm).
Mechanism: every number, text and intervention comes from the model as Hugging Face runs it.
``hook_resid_pre``, ``hook_resid_post`` and ``hook_embed`` are PyTorch hooks on its blocks and its
embedding (or on the norm behind that, if TransformerLens has ``hook_embed`` there), and an
exception ends the pass at the deepest of them; ``hook_resid_mid`` is the input of the norm that
begins the MLP branch, where the block is shown to have no other way around it. The model stays as
it was: the bridge is built around a second tree of modules that shares its weights. On loading, one
short row runs through both. Only if they agree does a pass run the bridge, which it does while the
user has hooks there.

    engine = HuggingFaceEngine(model, tokenizer, "gpt2")
    engine.capture(tokens, ["blocks.3.hook_resid_post"])    # {name: [batch, position, d_model]}
    engine.lens_model().run_with_cache(tokens)              # TransformerLens' own

Limits: rows are padded on the right and no attention mask is passed. Calls of the model by the user
may pad on the left; hooks with an attribute ``running`` are told of their masks.
"""

import copy
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lrt_lens.errors import MismatchError, OtherThreadError
from lrt_lens.models._comparing import (
    first_line,
    relative_difference,
    short_row,
    tolerance,
    without_cache,
)
from lrt_lens.models._decoder import find_decoder, stream_of, with_stream
from lrt_lens.models._drawing import WithinDrawing
from lrt_lens.models._hook_points import EMBED, residual_names
from lrt_lens.models._loading import boot_bridge, text_model
from lrt_lens.models._long_rope import LongRope, by_row, padding_id
from lrt_lens.models._ownership import (
    REGISTERING,
    Entry,
    entering,
    evaluating,
    registered,
    replace_forward,
)
from lrt_lens.models._passes import (
    Handle,
    HookName,
    LensHooks,
    SelectedPositions,
    capture_through_bridge,
    capture_with,
    generate_with,
    generation_problem,
    replacing,
)
from lrt_lens.models._running_call import tell_running_call
from lrt_lens.models._weights import weights_hash
from lrt_lens.typing import HookFunction, LongerTokens, Residual, Tokens

logger = logging.getLogger(__name__)


class HuggingFaceEngine:
    """Runs a Hugging Face decoder."""

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model, self._name = model.eval(), name
        decoder = find_decoder(model, name)
        self._layers, self._embedding = decoder.blocks, decoder.embedding
        self._containers = decoder.containers
        self.n_layers = len(decoder.blocks)
        self.d_model, self.d_vocab = decoder.d_model, decoder.d_vocab
        self.context_length = decoder.context_length
        self._rope = LongRope.of(model)
        self.padding_id = padding_id(self._rope, self.d_vocab)
        self._hooks: tuple[tuple[str, Entry], ...] = ()  # hook points of the registered hooks
        self._lens_hooks = LensHooks()  # the same on the bridge, where they act there
        self._problem = ""
        self._build_bridge(tokenizer, decoder.row_logits)
        self._embedded = self._find_embedded()
        self._mids = self._find_mids()
        mids = {f"blocks.{layer}.hook_resid_mid" for layer in self._mids}
        names = residual_names(self.n_layers)
        self.hook_points = tuple(n for n in names if "resid_mid" not in n or n in mids)
        self._can_skip = self._resumes_exactly(decoder.row_logits)
        # With two new tokens behind it, the row must fit the context.
        row = short_row(self.d_vocab)[:, : max(1, self.context_length - 2)].to(self.device)
        self._generation_problem = generation_problem(self.model, row)
        self._can_select = True

    # --------------------------------------------------------------------------------- the bridge

    def lens_model(self) -> Any:
        """Return the ``TransformerBridge`` with the same weights, in modules of its own.

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
            with REGISTERING:  # other threads may register hooks on the model
                twin = copy.deepcopy(self.model, memo)
            originals = {id(memo[id(module)]): module for module in self.model.modules()}
            twin = text_model(twin)
            # TransformerLens chooses its adapter by this field, which a model that was made in
            # memory does not have.
            twin.config.architectures = twin.config.architectures or [type(self.model).__name__]
            bridge = boot_bridge(twin, tokenizer, self._name)
            with torch.inference_mode():
                row = short_row(self.d_vocab).to(self.device)
                bridged = bridge.original_model(row, **without_cache(self.model)).logits
        except Exception as error:  # TransformerLens has no error class for what it cannot bridge
            self._problem = f"{type(error).__name__}: {first_line(error)}"
            logger.warning(
                "TransformerLens cannot bridge %r (%s); model.bridge and hook_resid_mid do not"
                " exist, everything else does",
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
                "%r: %s; every number comes from the Hugging Face model, and passes with hooks on"
                " model.bridge are refused",
                self._name,
                self._problem,
            )

    def _find_embedded(self) -> nn.Module:
        """Return the module whose output is ``hook_embed``, where TransformerLens has it.

        That is the norm behind the embedding in models that have one (BLOOM, BERT).
        """
        bridge: Any = self._bridge
        norm = getattr(bridge, "embed_ln", None)
        if norm is None or bridge.hook_dict.get(EMBED) is not norm.hook_out:
            return self._embedding
        return self._originals.get(id(norm.original_component), self._embedding)

    def _find_mids(self) -> dict[int, nn.Module]:
        """Return, by block, the norm that begins the MLP branch; its input is ``hook_resid_mid``.

        A block is left out if its output depends on its input in any other way than through the
        stream there: attention and MLP run in parallel, or a norm follows the MLP.
        """
        norms: dict[int, nn.Module] = {}
        for layer, block in enumerate(getattr(self._bridge, "blocks", ())):
            parts = [getattr(block, name, None) for name in ("attn", "ln2", "mlp")]
            modules = [
                self._originals.get(id(getattr(part, "original_component", None))) for part in parts
            ]
            if all(module is not None for module in modules):
                norms[layer] = modules[1]  # type: ignore[assignment]
        self._mids = dict(norms)
        try:
            return {layer: norms[layer] for layer in self._cut_by(norms)}
        except Exception as error:  # a component is called in a way of its own
            logger.info("%r has no hook_resid_mid (%s)", self._name, first_line(error))
            return {}

    def _cut_by(self, norms: dict[int, nn.Module]) -> list[int]:
        """Return the blocks whose output stays when their input changes and the mid does not."""
        row = short_row(self.d_vocab)
        names = {layer: f"blocks.{layer}.hook_resid_mid" for layer in norms}
        posts = [f"blocks.{layer}.hook_resid_post" for layer in norms]
        if not norms:
            return []
        seen = self._captured(row, [*names.values(), *posts])
        generator = torch.Generator().manual_seed(0)
        with ExitStack() as stack:
            entry = stack.enter_context(entering())
            for layer, name in names.items():
                mid = seen[name]
                noise = torch.randn(mid.shape, generator=generator).to(mid)
                changes = {
                    f"blocks.{layer}.hook_resid_pre": lambda x, noise=noise: x + noise,
                    name: lambda _x, mid=mid: mid,
                }
                for hook, change in changes.items():
                    stack.callback(self._add_plain_hook(hook, entry.only_here(change)))
            again = self._captured(row, posts)
        return [
            layer
            for layer, post in zip(norms, posts, strict=True)
            if relative_difference(again[post], seen[post]) < tolerance(seen[post].dtype)
            # An MLP that adds nothing here would pass anything off as its input.
            and relative_difference(seen[names[layer]], seen[post]) > 1e-6
        ]

    def _hooked_bridge(self) -> Any:
        """Return the bridge, for a pass in which the user's hooks on it act.

        Raises:
            MismatchError: it computes another function than the model, or an intervention at
                hook_resid_mid is on, which it cannot carry out.
        """
        problem = self._problem or (
            "its hooks at hook_resid_mid change the input of the MLP and not the stream"
            if any(name.endswith("_mid") and entry.acts() for name, entry in self._hooks)
            else ""
        )
        if problem:
            raise MismatchError(
                f"hooks on the bridge of {self._name!r} are registered, and a pass through it would"
                f" give other numbers: {problem}. Use model.intervene, whose hooks act in the model"
                " itself, or remove those on the bridge"
            )
        self._lens_hooks.restore()
        return self._bridge

    @property
    def _runs_bridge(self) -> bool:
        """True while the user has a hook on the bridge, which acts nowhere else."""
        return self._bridge is not None and self._lens_hooks.others(self._points)

    def _acts_on_bridge(self, name: str) -> bool:
        """Return whether a hook of ours at a hook point is registered on the bridge too.

        At hook_resid_mid it is not: there a hook of the bridge changes the input of the MLP and not
        the stream.
        """
        on_bridge = self._bridge is not None and name in self._bridge.hook_dict
        return on_bridge and not name.endswith("_mid")

    # -------------------------------------------------------------------------------- running

    @property
    def device(self) -> torch.device:
        """Device that token ids are moved to."""
        return self._embedding.weight.device  # type: ignore[return-value]

    @property
    def _running(self) -> Any:
        """Model that runs. It is the bridge's if hooks on it must act, else Hugging Face's own."""
        return self._hooked_bridge().original_model if self._runs_bridge else self.model

    def capture(self, tokens: Tokens, names: Sequence[str]) -> dict[str, Residual]:
        """Return activations by hook point."""
        with self._reading(tokens):
            if self._runs_bridge:
                return capture_through_bridge(
                    self._hooked_bridge(), self._lens_hooks, tokens, names
                )
            return self._captured(tokens, names)

    def logits(self, tokens: Tokens) -> Tensor:
        """Return next-token logits [batch, position, vocabulary]; registered hooks take effect."""
        with self._reading(tokens):
            return self._running(tokens.to(self.device), **without_cache(self.model)).logits

    def logits_at(self, tokens: Tokens, rows: Tensor, positions: Tensor) -> Tensor:
        """Return the logits [selected, vocabulary] of some positions; only these are unembedded.

        In small models, and behind a late hook point, the unembedding is most of a pass.
        """
        head = self.model.get_output_embeddings()
        if self._can_select and head is not None and not self._runs_bridge:
            select = SelectedPositions((tokens.shape[0], tokens.shape[1]), rows, positions)
            with entering() as entry:
                remove = registered(head.register_forward_pre_hook, entry.only_here(select))
                with Handle([remove]):
                    logits = self.logits(tokens)
            if select.n_calls == 1 and logits.shape[:2] == (1, len(rows)):
                return logits[0]
            # The model computes its logits in another way: no further pass is tried.
            self._can_select = False
        logits = self.logits(tokens)
        return logits[rows.to(logits.device), positions.to(logits.device)]

    def generate(self, tokens: Tokens, config: Any, **options: Any) -> LongerTokens:
        """Return prompts with their continuations.

        Raises:
            ValueError: ``generate`` of the model writes something else than its logits say.
        """
        if self._generation_problem:
            raise ValueError(
                f"{self._name!r} cannot generate as its logits say: {self._generation_problem};"
                " take the tokens from model.logits one by one"
            )
        with evaluating(self._running):
            return generate_with(self._running, tokens.to(self.device), config, **options)

    def weights_hash(self) -> str:
        """Return a hash of every weight."""
        return weights_hash(self.model)

    def add_hook(self, name: str, fn: HookFunction) -> Callable[[], None]:
        """Register a hook and return the function that removes it.

        It acts in the Hugging Face model and in the bridge, whichever runs.
        """
        point, entry = HookName(name), Entry(OtherThreadError)
        act = entry.only_here(WithinDrawing(fn))
        removers = [
            self._note_hook(name, entry),
            self._add_plain_hook(name, partial(act, hook=point)),
        ]
        models, bridges = [self.model], []
        if self._acts_on_bridge(name):
            removers.append(self._lens_hooks.add(self.lens_model().hook_dict[name], act))
            models.append(self.lens_model().original_model)
            bridges.append(self.lens_model())
        modules = [module for model in models for module in (model, model.base_model)]
        removers += tell_running_call(modules, fn, entry, generators=[*models, *bridges])
        # The entry is closed first: a pass of another thread may be calling the hooks.
        return Handle([*removers, entry.close]).remove

    def _note_hook(self, name: str, entry: Entry) -> Callable[[], None]:
        """Note the hook point of a hook that is registered, and return what ends this."""
        noted = name, entry
        with REGISTERING:
            self._hooks = (*self._hooks, noted)

        return partial(self._forget_hook, noted)

    def _forget_hook(self, noted: tuple[str, Entry]) -> None:
        with REGISTERING:
            self._hooks = tuple(one for one in self._hooks if one is not noted)

    @contextmanager
    def resuming(self, name: str, residual: Residual) -> Iterator[None]:
        """Return a context in which passes over the same tokens continue from ``residual``.

        At a ``hook_resid_post`` the layers up to it are skipped: the last of them returns
        ``residual``, the others return their input. At other hook points, and while any hook of
        this thread is registered, all layers run and a hook replaces the stream.
        """
        hooked = any(entry.acts() for _, entry in self._hooks) or self._runs_bridge
        if hooked or not (self._can_skip and name.endswith("hook_resid_post")):
            with replacing(self, name, residual):
                yield
            return
        with self._skipping(int(name.split(".")[1]), residual):
            yield

    # -------------------------------------------------------------------------------- private

    def _by_row(self, tokens: Tokens) -> AbstractContextManager[None]:
        """Return a context in which no row of a batch depends on the length of another."""
        if self._rope is None:
            return nullcontext()
        rope = LongRope.of(self._running) if self._runs_bridge else self._rope
        return by_row(rope, tokens, self.padding_id)

    def _reading(self, tokens: Tokens) -> AbstractContextManager[Any]:
        """Return the context of a pass: without dropout, and each row as if it were alone."""
        stack = ExitStack()
        stack.enter_context(evaluating(self._running))
        stack.enter_context(self._by_row(tokens))
        return stack

    def _captured(self, tokens: Tokens, names: Sequence[str]) -> dict[str, Residual]:
        """Return activations read from hooks on the blocks."""
        # The base model has no unembedding, and its last layers do not run either.
        base = self.model.base_model
        return capture_with(
            names,
            self._add_plain_hook,
            lambda: base(input_ids=tokens.to(self.device), **without_cache(base)),
        )

    def _add_plain_hook(self, name: str, fn: Callable[[Any], Tensor | None]) -> Callable[[], None]:
        """Register a PyTorch hook at a hook point and return the function that removes it.

        ``fn`` gets the activation and returns the new one, or None to leave it unchanged.
        """
        if name == EMBED:
            return registered(self._embedded.register_forward_hook, partial(_change_embedded, fn))
        index = int(name.split(".")[1])
        layer = self._layers[index]
        if name.endswith("_mid"):
            return self._add_mid_hook(index, fn)
        if name.endswith("_pre"):
            return registered(
                layer.register_forward_pre_hook, partial(_change_input, fn), with_kwargs=True
            )
        return registered(layer.register_forward_hook, partial(_change_output, fn))

    def _add_mid_hook(self, index: int, fn: Callable[[Any], Tensor | None]) -> Callable[[], None]:
        """Register hooks that read, and change, the stream between attention and MLP of a block.

        The block adds the stream there to its MLP's output: out = mid + MLP(norm(mid)). So a new
        mid' is given to the norm, and mid' − mid is added to what the block returns.
        """
        changes: dict[int, Tensor] = {}  # by thread, because several may run the block at once

        def change_input(_module: nn.Module, args: tuple) -> Any:
            mid = args[0]
            changed = fn(mid)
            if changed is None:
                # Of a pass that ended within the block.
                changes.pop(threading.get_ident(), None)
                return None
            changes[threading.get_ident()] = changed - mid
            return (changed, *args[1:])

        def add_change(_module: nn.Module, _args: tuple, output: Any) -> Any:
            change = changes.pop(threading.get_ident(), None)
            if change is None:
                return None
            # OPT flattens the stream to [batch · position, d] between attention and MLP.
            stream = stream_of(output)
            return with_stream(output, stream + change.reshape(stream.shape))

        # First among the block's hooks, because those at hook_resid_post read what it adds.
        return Handle(
            [
                registered(self._layers[index].register_forward_hook, add_change, prepend=True),
                registered(self._mids[index].register_forward_pre_hook, change_input),
            ]
        ).remove

    @contextmanager
    def _skipping(self, layer: int, residual: Residual) -> Iterator[None]:
        """Return a context in which blocks 0 to ``layer`` do not run and give ``residual``."""
        with ExitStack() as stack:
            entry = stack.enter_context(entering())
            for index, block in enumerate(self._layers[: layer + 1]):
                last = residual if index == layer else None
                skip = _Shortcut(self._containers[index], last)
                stack.callback(replace_forward(block, entry, skip))
            yield

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
            logger.info("%r cannot skip blocks (%s)", self._name, first_line(error))
            return False
        return relative_difference(resumed, logits) < tolerance(logits.dtype)


# Functions of the module with a bound first argument: the engine registers its hooks in each pass.


def _change_embedded(fn: Callable[[Any], Tensor | None], *call: Any) -> Tensor | None:
    """Return what ``fn`` makes of a module's output, as a forward hook."""
    return fn(call[-1])


def _change_input(
    fn: Callable[[Any], Tensor | None],
    _module: nn.Module,
    args: tuple,
    kwargs: dict[str, Any] | None = None,
) -> Any:
    """Return a block's arguments with what ``fn`` makes of the stream, as a forward pre-hook."""
    if kwargs is None:
        return None  # called without them once another thread has removed this hook
    # Decoders of transformers pass the stream by position or by keyword.
    changed = fn(args[0] if args else kwargs["hidden_states"])
    if changed is None:
        return None
    if args:
        return (changed, *args[1:]), kwargs
    new_kwargs: dict[str, Any] = {**kwargs, "hidden_states": changed}
    return args, new_kwargs


def _change_output(
    fn: Callable[[Any], Tensor | None], _module: nn.Module, _args: tuple, output: Any
) -> Any:
    """Return a block's output with what ``fn`` makes of the stream, as a forward hook."""
    changed = fn(stream_of(output))
    if changed is None:
        return None  # PyTorch keeps the output
    return with_stream(output, changed)


class _Shortcut:
    """A ``forward`` for a block that returns ``residual``, or its input if that is None.

    ``container`` is the tuple or list in which the block returns the stream, or None.
    """

    def __init__(self, container: type | None, residual: Tensor | None) -> None:
        self.container, self.residual = container, residual

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the stream as the block returns it."""
        hidden = self.residual
        if hidden is None:
            hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if self.container is None else self.container((hidden,))
