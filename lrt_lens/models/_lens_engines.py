"""Engines of models that a user brings from TransformerLens: bridges and ``HookedTransformer``.

Problem: a `TransformerBridge` and a ``HookedTransformer`` may compute another function than the
Hugging Face model of the same name (processed weights, other attention). Mechanism: what a user
hands in stays what it is. `BridgeEngine` and `HookedTransformerEngine` run it through its own
``HookPoint`` objects, and an exception ends the forward pass at the deepest hook point, so that
later layers and the unembedding do not run. A bridge that differs from its own Hugging Face model
is reported once, with the relative difference of the logits.

    engine = BridgeEngine(bridge)
    engine.capture(tokens, ["blocks.3.hook_resid_post"])    # {name: [batch, position, d_model]}

Limits: capturing through a bridge is slower than from a Hugging Face model, and `resuming` runs all
layers.
"""

import copy
import logging
import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from lrt_lens.errors import OtherThreadError
from lrt_lens.models._comparing import first_device, relative_difference, short_row, tolerance
from lrt_lens.models._drawing import WithinDrawing, outside_of_drawing
from lrt_lens.models._hook_points import depth, place, residual_names
from lrt_lens.models._long_rope import LongRope, by_row, padding_id
from lrt_lens.models._ownership import Entry, entering, evaluating, registered
from lrt_lens.models._passes import (
    Handle,
    LensHooks,
    capture_through_bridge,
    capture_with,
    generate_with,
    replacing,
    twin_of,
)
from lrt_lens.models._running_call import tell_running_call
from lrt_lens.models._weights import weights_hash
from lrt_lens.typing import HookFunction, LongerTokens, Residual, Tokens

logger = logging.getLogger(__name__)


class BridgeEngine:
    """Runs a ``TransformerBridge`` that the user has made."""

    def __init__(self, bridge: Any) -> None:
        self._bridge = bridge
        self._hooks = LensHooks()
        self.model = bridge.original_model
        self.n_layers = int(bridge.cfg.n_layers)
        self.d_model = int(bridge.cfg.d_model)
        self.d_vocab = int(bridge.cfg.d_vocab)
        self.context_length = int(bridge.cfg.n_ctx)
        self._rope = LongRope.of(self.model)
        self.padding_id = padding_id(self._rope, self.d_vocab)
        names = residual_names(self.n_layers)
        self.hook_points = tuple(name for name in names if name in bridge.hook_dict)
        # Compatibility mode rewrites weights in the bridge, so the original modules say nothing,
        # and a hook changes what the bridge computes.
        hooked = any(point.fwd_hooks for point in bridge.hook_dict.values())
        if not hooked and not getattr(bridge, "compatibility_mode", False):
            _report_difference(weakref.ref(bridge))

    def lens_model(self) -> Any:
        """Return the bridge that was given."""
        return self._bridge

    @property
    def device(self) -> torch.device:
        """Device that token ids are moved to."""
        return first_device(self.model)

    def capture(self, tokens: Tokens, names: Sequence[str]) -> dict[str, Residual]:
        """Return activations by hook point."""
        self._hooks.restore()
        with evaluating(self.model), by_row(self._rope, tokens, self.padding_id):
            return capture_through_bridge(self._bridge, self._hooks, tokens, names)

    def logits(self, tokens: Tokens) -> Tensor:
        """Return next-token logits [batch, position, vocabulary]; registered hooks take effect."""
        self._hooks.restore()
        with evaluating(self.model), by_row(self._rope, tokens, self.padding_id):
            return self.model(input_ids=tokens.to(self.device), use_cache=False).logits

    def logits_at(self, tokens: Tokens, rows: Tensor, positions: Tensor) -> Tensor:
        """Return the logits [selected, vocabulary] of some positions; all are unembedded."""
        logits = self.logits(tokens)
        return logits[rows.to(logits.device), positions.to(logits.device)]

    def generate(self, tokens: Tokens, config: Any, **options: Any) -> LongerTokens:
        """Return prompts with their continuations."""
        self._hooks.restore()
        with evaluating(self.model):
            return generate_with(self.model, tokens.to(self.device), config, **options)

    def weights_hash(self) -> str:
        """Return the hash of the Hugging Face model inside, under its own names of weights."""
        return weights_hash(_original_modules(self.model))

    def add_hook(self, name: str, fn: HookFunction) -> Callable[[], None]:
        """Register a hook and return the function that removes it."""
        modules = (self.model, self.model.base_model)
        entry = Entry(OtherThreadError)
        hook = self._hooks.add(self._bridge.hook_dict[name], entry.only_here(WithinDrawing(fn)))
        told = tell_running_call(modules, fn, entry, generators=(self.model, self._bridge))
        # The entry is closed first: a pass of another thread may be calling the hooks.
        return Handle([hook, *told, entry.close]).remove

    def resuming(self, name: str, residual: Residual) -> AbstractContextManager[None]:
        """Return a context in which passes continue from ``residual``; all layers still run."""
        return replacing(self, name, residual)


@lru_cache(maxsize=64)
def _report_difference(reference: "weakref.ref[Any]") -> None:
    """Log a warning, once per bridge, if it computes another function than its Hugging Face model.

    A weak reference keeps no model in memory.
    """
    bridge: Any = reference()
    model = bridge.original_model
    row = short_row(int(bridge.cfg.d_vocab)).to(first_device(model))
    with torch.inference_mode():
        ours = model(input_ids=row, use_cache=False).logits
        theirs = _original_modules(model)(input_ids=row, use_cache=False).logits
    difference = relative_difference(ours, theirs)
    if difference > tolerance(ours.dtype):
        logger.warning(
            "this TransformerBridge differs from its own Hugging Face model by %.2g (relative,"
            " logits of %d tokens); every number comes from the bridge, because it was given."
            " Give the Hugging Face model to work with that",
            difference,
            row.shape[1],
        )


def _original_modules(bridged: nn.Module) -> nn.Module:
    """Return a bridged model in its original Hugging Face modules, which share its weights.

    They are twins of the modules, so that the bridged model can run meanwhile.
    """
    twins: dict[int, nn.Module] = {}

    def original(module: nn.Module) -> nn.Module:
        while (inner := module._modules.get("_original_component")) is not None:
            module = inner
        if id(module) not in twins:
            twins[id(module)] = twin_of(module)
            # A child may be None: torch keeps the names of modules that a model leaves out.
            twins[id(module)].__dict__["_modules"] = {
                name: None if child is None else original(child)
                for name, child in module._modules.items()
            }
        return twins[id(module)]

    return original(bridged)


class HookedTransformerEngine:
    """Runs a ``HookedTransformer`` of TransformerLens 3.x."""

    def __init__(self, model: Any) -> None:
        self.model, self._hooks = model, LensHooks()
        self.n_layers = int(model.cfg.n_layers)
        self.d_model = int(model.cfg.d_model)
        self.d_vocab = int(model.cfg.d_vocab)
        self.context_length = int(model.cfg.n_ctx)
        self.padding_id = 0
        names = residual_names(self.n_layers)
        self.hook_points = tuple(name for name in names if name in model.hook_dict)

    def lens_model(self) -> Any:
        """Return the ``HookedTransformer`` itself."""
        return self.model

    @property
    def device(self) -> torch.device:
        """Device that token ids are moved to."""
        return first_device(self.model)

    def capture(self, tokens: Tokens, names: Sequence[str]) -> dict[str, Residual]:
        """Return activations by hook point."""
        self._hooks.restore()
        points = self.model.hook_dict
        # The input of block l is read as the output of block l - 1. That saves running block l,
        # because `stop_at_layer` is exclusive.
        canonical = {name: place(name) for name in names}
        # At least 1: with 0 the pass would stop before `blocks.0.hook_resid_pre`, which has no
        # other name.
        stop = max(1, math.ceil(max(depth(name) for name in names)))
        # Not by `run_with_cache`, which removes the hooks of other threads at its end.
        cache = capture_with(
            list(canonical.values()),
            lambda name, record: self._hooks.add(points[name], record),
            lambda: _taking_every_token_as_text(self.model)(
                tokens.to(self.device), return_type=None, stop_at_layer=stop
            ),
        )
        return {name: cache[other] for name, other in canonical.items()}

    def logits(self, tokens: Tokens) -> Tensor:
        """Return next-token logits [batch, position, vocabulary]; registered hooks take effect."""
        self._hooks.restore()
        model = _taking_every_token_as_text(self.model)
        return model(tokens.to(self.device), return_type="logits")

    def logits_at(self, tokens: Tokens, rows: Tensor, positions: Tensor) -> Tensor:
        """Return the logits [selected, vocabulary] of some positions; all are unembedded."""
        logits = self.logits(tokens)
        return logits[rows.to(logits.device), positions.to(logits.device)]

    def generate(
        self,
        tokens: Tokens,
        config: Any,
        *,
        attention_mask: Tensor | None = None,
        logits_processor: Sequence[Callable[[Tensor, Tensor], Tensor]] = (),
        **options: Any,
    ) -> LongerTokens:
        """Return prompts with their continuations.

        ``HookedTransformer.generate`` knows length, temperature, top-k and top-p, and no attention
        mask; `HookedModel.generate` runs prompts of equal length together, without padding.
        ``logits_processor`` are called with the prompts and the logits of every new token.

        Raises:
            ValueError: ``config`` or ``options`` have what ``HookedTransformer.generate`` does not
                have, or ``attention_mask`` has padding.
        """
        lens_options = _lens_options(config, tokens.shape[1])
        if options:
            raise ValueError(
                f"HookedTransformer.generate does not have {', '.join(sorted(options))}; leave it"
                " out, or load the Hugging Face model instead of the HookedTransformer"
            )
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError(
                "the prompts are padded; HookedTransformer.generate takes no attention mask: give"
                " prompts of equal length"
            )
        self._hooks.restore()

        def process(_module: nn.Module, _args: tuple, logits: Tensor) -> Tensor:
            last = logits[:, -1]
            for processor in logits_processor:
                last = processor(tokens, last)
            return torch.cat([logits[:, :-1], last[:, None]], dim=1)

        with entering() as entry, torch.inference_mode():
            hook = registered(self.model.unembed.register_forward_hook, entry.only_here(process))
            with Handle([hook]):
                twin = _taking_every_token_as_text(self.model)
                twin.__dict__["forward"] = outside_of_drawing(twin.forward)
                return twin.generate(
                    tokens.to(self.device),
                    verbose=False,
                    return_type="tokens",
                    prepend_bos=False,
                    **lens_options,
                )

    def weights_hash(self) -> str:
        """Return a hash of every weight, under the names of TransformerLens."""
        return weights_hash(self.model)

    def add_hook(self, name: str, fn: HookFunction) -> Callable[[], None]:
        """Register a hook and return the function that removes it."""
        # The model finds out which tokens are padding and gives every block the whole mask.
        entry = Entry(OtherThreadError)
        told = tell_running_call(
            [self.model.blocks[0]], fn, entry, until=self.model, generators=[self.model]
        )
        hook = self._hooks.add(self.model.hook_dict[name], entry.only_here(WithinDrawing(fn)))
        # The entry is closed first: a pass of another thread may be calling the hooks.
        return Handle([hook, *told, entry.close]).remove

    def resuming(self, name: str, residual: Residual) -> AbstractContextManager[None]:
        """Return a context in which passes continue from ``residual``; all layers still run."""
        return replacing(self, name, residual)


_SAMPLING = ("temperature", "top_k", "top_p")
_KNOWN = {
    *("max_new_tokens", "max_length", "do_sample", *_SAMPLING, "use_cache"),
    *("eos_token_id", "bos_token_id", "pad_token_id", "transformers_version"),
}
"""Options of a ``GenerationConfig`` that ``HookedTransformer.generate`` can follow."""


def _lens_options(config: Any, n_prompt: int) -> dict[str, Any]:
    """Return a ``GenerationConfig`` as options of ``HookedTransformer.generate``.

    Raises:
        ValueError: it has an option that TransformerLens does not have.
    """
    given = {name: value for name, value in config.to_diff_dict().items() if value is not None}
    neutral = config._get_default_generation_params()
    unknown = [name for name in given if name not in _KNOWN and given[name] != neutral.get(name)]
    if unknown:
        listed = ", ".join(f"{name}={given[name]!r:.40}" for name in sorted(unknown))
        raise ValueError(
            f"generation_config has {listed}, which HookedTransformer.generate does not have;"
            " leave it out, or load the Hugging Face model instead of the HookedTransformer"
        )
    # The default length of transformers, prompt included, is 20.
    longest = (config.max_length or 20) - n_prompt
    n_new = longest if config.max_new_tokens is None else config.max_new_tokens
    if n_new < 1:
        raise ValueError(
            f"max_length {config.max_length or 20} leaves no new token behind prompts of {n_prompt}"
            " tokens; give max_new_tokens, or a larger max_length"
        )
    return {
        "max_new_tokens": n_new,
        "do_sample": bool(config.do_sample),
        "use_past_kv_cache": config.use_cache is not False,
        "stop_at_eos": config.eos_token_id is not None,
        "eos_token_id": config.eos_token_id,
        **(_sampling(given, neutral) if config.do_sample else {}),
    }


def _sampling(given: dict[str, Any], neutral: dict[str, Any]) -> dict[str, Any]:
    """Return the options of sampling; what is not given is as in transformers (top-k 50).

    Raises:
        ValueError: both top-k and top-p are on, of which TransformerLens follows one.
    """
    temperature, top_k, top_p = (given.get(name, neutral[name]) for name in _SAMPLING)
    # transformers switches top-k off by 0 and top-p by 1, TransformerLens both by None.
    top_k, top_p = top_k or None, top_p if top_p < 1 else None
    if top_k is not None and top_p is not None:
        raise ValueError(
            f"generation_config has top_k={top_k} and top_p={top_p}, and HookedTransformer.generate"
            " follows one of them; give top_k=0 or top_p=1.0"
        )
    return {"temperature": temperature, "top_k": top_k, "top_p": top_p}


class _WithoutPadding:
    """A tokenizer that pads on the right with an id that no token has."""

    padding_side = "right"
    pad_token_id = -1

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._tokenizer(*args, **options)


def _taking_every_token_as_text(model: Any) -> Any:
    """Return a twin of a ``HookedTransformer`` that takes no token id as padding.

    The model masks pad tokens at the end that its tokenizer pads, and they may be text here.
    """
    tokenizer = None if model.tokenizer is None else _WithoutPadding(model.tokenizer)
    # `generate` changes defaults in the config while it runs.
    return twin_of(model, tokenizer=tokenizer, cfg=copy.copy(model.cfg))
