"""Facts of the running call that a hook is told: attention mask, cache, length of the prompt.

Problem: activations alone do not tell where in its text a position is. A call of ``generate`` has
the whole prompt, one new token behind a cache, a part of a prompt (``prefill_chunk_size``), or,
without a cache, the whole text again; masks of a static cache show what the last query reads, and
recurrent models drop the mask after the first call. Mechanism: a hook before the forward pass reads
the mask and the cache. While a model generates, its ``prepare_inputs_for_generation`` is given the
whole mask at every step, and ``generate`` the prompt; both are wrapped, on this model alone, as
long as any hook is registered. What a call tells is known in the thread that makes it.

    removers = tell_running_call([model, model.base_model], fn, entry)
    # during every call: fn.running = RunningCall(attention_mask, n_cached, n_prompt)

Limits: a loop of one's own without a cache tells nothing of its prompt: every call is a new text.
"""

import inspect
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from types import MethodType
from typing import Any

from torch import Tensor, nn

from lrt_lens.errors import OtherThreadError
from lrt_lens.models._ownership import REGISTERING, Entry, registered

_CACHES = ("past_key_values", "past_kv_cache_entry")
"""Names of the key-value cache in calls of transformers and of a block of TransformerLens."""
_RECURRENT_CACHES = ("cache_params", "state")
"""Names of caches that do not count positions, in calls of Mamba and RWKV."""


@dataclass(frozen=True)
class RunningCall:
    """Positions of a running call, which activations alone do not tell."""

    attention_mask: Tensor | None = None
    """True at tokens, False at padding, [batch, position]; the positions in the key-value cache
    come first. None in a call without a mask.
    """
    n_cached: int | None = None
    """Number of positions in the key-value cache; None if the call does not tell."""
    n_prompt: int | None = None
    """Number of positions of the prompt, padding included; None outside of ``generate``, and if its
    prompt is what the first call has.
    """
    generation: object | None = None
    """Object that all calls of one ``generate`` share; None outside of it."""


@dataclass
class _Wrapped:
    """The methods of a model that are wrapped while hooks are registered."""

    entries: tuple[Entry, ...] = ()
    """Entries of the hooks that listen."""
    own: dict[str, Any] = field(default_factory=dict)
    """Attributes of the instance that the wrappers replaced."""


@dataclass
class _Generation:
    """Facts of a ``generate`` that runs."""

    wrapped: _Wrapped
    """The wrappers of the model that generates; a twin of the model has the same."""
    n_prompt: int | None
    attention_mask: Tensor | None = None


_STATE = "_lrt_lens_generation"
"""Attribute of a model in which `_Wrapped` is kept while hooks are registered."""
_GENERATIONS: ContextVar[tuple[_Generation, ...]] = ContextVar("lrt_lens_generations", default=())
"""The calls of ``generate`` that run in a thread or task, the innermost last."""


def tell_running_call(
    modules: Iterable[nn.Module],
    fn: Callable[..., Any],
    entry: Entry,
    *,
    until: nn.Module | None = None,
    generators: Iterable[nn.Module] = (),
) -> list[Callable[[], None]]:
    """Set ``fn.running`` while one of the modules runs, and return what ends this.

    It is a `RunningCall`, and None between calls. Functions without that attribute are left alone.

    Args:
        modules: modules whose calls take ``attention_mask`` and a key-value cache, such as a whole
            model and its decoder.
        fn: hook that reads the call.
        entry: thread or task in whose calls the hook acts.
        until: module at whose end the call is forgotten; each of ``modules`` by default.
        generators: models in whose ``generate`` the modules may run.
    """
    if not hasattr(fn, "running"):
        return []
    hook: Any = fn
    generating = list({id(model): model for model in generators}.values())
    removers = [remove for model in generating for remove in _watch(model, entry)]

    def forget(*_: Any) -> None:
        if entry.acts():
            hook.running = None

    for module in {id(module): module for module in modules}.values():
        names = list(inspect.signature(module.forward).parameters)

        def remember(
            _module: Any,
            args: tuple,
            kwargs: dict[str, Any] | None = None,
            names: list[str] = names,
        ) -> None:
            # PyTorch passes no kwargs to a hook that another thread has just removed.
            if kwargs is None or not entry.acts():
                return
            given = dict(zip(names, args, strict=False)) | kwargs
            call = hook.running or RunningCall()
            mask, cached = _mask_of_positions(given.get("attention_mask")), call.n_cached
            cache = next((name for name in _CACHES + _RECURRENT_CACHES if name in names), None)
            if cache is not None:
                is_counted = cache in _CACHES or given.get(cache) is None
                cached = _cache_length(given.get(cache)) if is_counted else None
            # A decoder may be called without the mask that the whole model was called with.
            mask = call.attention_mask if mask is None else mask
            hook.running = _in_generation(generating, mask, cached)

        removers += [
            registered(module.register_forward_pre_hook, remember, with_kwargs=True),
            registered((until or module).register_forward_hook, forget, always_call=True),
        ]
    return removers


def _in_generation(
    models: list[nn.Module], mask: Tensor | None, n_cached: int | None
) -> RunningCall:
    """Return the running call, with what a ``generate`` that runs in one of the models tells."""
    for generation in reversed(_GENERATIONS.get()):
        if any(model.__dict__.get(_STATE) is generation.wrapped for model in models):
            mask = mask if generation.attention_mask is None else generation.attention_mask
            return RunningCall(mask, n_cached, generation.n_prompt, generation)
    return RunningCall(mask, n_cached)


def _watch(model: nn.Module, entry: Entry) -> list[Callable[[], None]]:
    """Wrap the methods by which a model generates, and return what ends this."""
    if not hasattr(type(model), "generate"):
        return []
    with REGISTERING:
        state: _Wrapped | None = model.__dict__.get(_STATE)
        if state is None:
            state = _Wrapped()
            object.__setattr__(model, _STATE, state)
            for name, wrapper in _WRAPPERS.items():
                if hasattr(type(model), name):
                    _wrap(model, name, wrapper, state)
        state.entries = (*state.entries, entry)

    def remove() -> None:
        with REGISTERING:
            state.entries = tuple(one for one in state.entries if one is not entry)
            if state.entries:
                return
            for name, method in state.own.items():
                model.__dict__.pop(name, None)
                if method is not None:
                    model.__dict__[name] = method
            model.__dict__.pop(_STATE, None)

    return [remove]


def _wrap(model: nn.Module, name: str, wrapper: Callable[..., Any], state: _Wrapped) -> None:
    """Replace a method of one model by one that calls it within ``wrapper``."""
    own = model.__dict__.get(name)
    state.own[name] = own

    @wraps(getattr(type(model), name))
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        # A twin of the model runs its methods on itself.
        function = getattr(own, "__func__", None) or (own is None and getattr(type(self), name))
        method = MethodType(function, self) if function else own
        # Another thread may have looked the method up before it was restored.
        return wrapper(self.__dict__.get(_STATE, state), method, args, kwargs)

    # A bound method: a copy of the model, made meanwhile, calls its own methods.
    model.__dict__[name] = MethodType(wrapped, model)


def _generate(state: _Wrapped, method: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Run ``generate``, whose prompt is as long as the longest of its inputs.

    Raises:
        OtherThreadError: a thread generates that would take itself for steered.
    """
    try:
        for entry in state.entries:
            entry.refuse_unsteered()
    except OtherThreadError:
        # Who reads from the streamer in another thread would wait for ever.
        if kwargs.get("streamer") is not None:
            kwargs["streamer"].end()
        raise
    names = ("input_ids", "inputs", "input", "inputs_embeds", "attention_mask")
    inputs = [*args[:1], *(kwargs.get(name) for name in names)]
    widths = [one.shape[1] for one in inputs if isinstance(one, Tensor) and one.ndim > 1]
    generation = _Generation(state, max(widths, default=None))
    reset = _GENERATIONS.set((*_GENERATIONS.get(), generation))
    try:
        return method(*args, **kwargs)
    finally:
        _GENERATIONS.reset(reset)


def _prepare(state: _Wrapped, method: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Run ``prepare_inputs_for_generation``, which has the mask of the whole text as yet."""
    running = [one for one in _GENERATIONS.get() if one.wrapped is state]
    if running:
        mask = kwargs.get("attention_mask")
        running[-1].attention_mask = None
        if isinstance(mask, Tensor) and mask.ndim == 2:
            running[-1].attention_mask = mask.bool()
    return method(*args, **kwargs)


_WRAPPERS = {"generate": _generate, "prepare_inputs_for_generation": _prepare}


def _cache_length(cache: Any) -> int | None:
    """Return the number of positions in a cache; None for a cache that does not count them."""
    if cache is None:
        return 0
    if hasattr(cache, "past_keys"):  # TransformerLens: [batch, position, head, d_head]
        return cache.past_keys.shape[1]
    return int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else None


def _mask_of_positions(mask: Any) -> Tensor | None:
    """Return an attention mask as [batch, position], True at text; None if it is of another kind.

    Masks [batch, 1, query, key], one per kind of layer, are passed with a static cache.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        return None
    if mask.ndim == 2:
        return mask.bool()
    # What any query reads, because with a sliding window the last one misses the beginning;
    # additive masks have 0 there. Keys behind are not written yet.
    read = (mask[:, 0] >= 0 if mask.is_floating_point() else mask[:, 0].bool()).any(1)
    last = int(read.any(0).nonzero().max()) if read.any() else 0
    return read[:, : last + 1]
