"""Hooks that act in the thread or task that registered them, and nowhere else.

Problem: a hook of PyTorch acts in every pass of its module, whichever thread runs it. Two threads
that steer one model would each be steered by both vectors, and a capture would end the pass of
another thread. Mechanism: whoever registers hooks enters an `Entry`, which is noted in the context
(`contextvars`) of the running thread or task; a hook acts only in a pass whose context has its
entry. Nothing waits for anything, so passes of several threads run side by side.

    entry = Entry(OtherThreadError)
    handle = module.register_forward_hook(entry.only_here(hook))
    …
    entry.close()

A new thread begins with an empty context, a task and `asyncio.to_thread` with a copy of the
caller's. So a thread that a steering one has started would run without steering and tell nobody:
if it has entered nothing, what it predicts is refused (`OtherThreadError`). Captures and other
threads are not affected.

Limits: a module's own state is shared by all threads (see `turn_of`). A thread that C++ code has
started counts as started by every thread.
"""

import asyncio
import contextvars
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn

REGISTERING = threading.RLock()
"""Held while hooks are registered or removed, and never during a pass: PyTorch numbers hooks
without a lock."""

_ENTERED: contextvars.ContextVar["tuple[Entry, ...] | None"] = contextvars.ContextVar(
    "lrt_lens_entered", default=None
)
"""Open entries of the running thread or task; None if it has entered nothing."""


class Entry:
    """Marks the thread or task that registers hooks; its hooks act there until it is closed.

    Args:
        refusal: error by which passes without these hooks are refused in threads that this one has
            started; None if such a pass would not be taken for one with them.
        alone: True if no entry from before acts in this thread or task meanwhile.
    """

    def __init__(self, refusal: type[Exception] | None = None, *, alone: bool = False) -> None:
        entered = _ENTERED.get() or ()
        # What a capture or an evaluation registers is its own affair.
        by_user = all(entry.refusal is not None for entry in entered if entry.is_open)
        self.is_open, self.alone = True, alone
        self.refusal = refusal if by_user else None
        self._thread = threading.current_thread()
        task = _running_task()
        self._task = None if task is None else weakref.ref(task)
        if refusal is not None:
            _watch_threads()
        self._hidden = entered if alone else ()
        # Without those that another thread or task has closed.
        _ENTERED.set((*(entry for entry in entered if entry.is_open and not alone), self))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Entry":
        """Return this entry, of which a copied model's hooks are too."""
        return self

    def close(self) -> None:
        """Let the hooks act nowhere from here on, in this context and in every other."""
        self.is_open = False
        entered = (*self._hidden, *(_ENTERED.get() or ()))
        _ENTERED.set(tuple(entry for entry in entered if entry.is_open) or None)

    def acts(self) -> bool:
        """Return whether the hooks act in the running thread or task."""
        if not self.is_open:
            return False
        entered = _ENTERED.get()
        return (entered is not None and self in entered) or self._outlives_its_task(entered)

    def only_here(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``fn`` for the thread or task of this entry; elsewhere it does nothing.

        Raises:
            Exception: the entry's refusal, by the returned function, in a thread that this one has
                started and that has not said that it means to run without the hooks.
        """
        return _OnlyHere(self, fn)

    def refuse_unsteered(self) -> None:
        """Raise the entry's refusal if the running thread probably takes itself for steered."""
        if self.refusal is None or not self.is_open:
            return
        if any(entry.is_open for entry in _ENTERED.get() or ()):
            return
        here = threading.current_thread()
        if here is self._thread or not _has_started(self._thread, here):
            return
        raise self.refusal(
            f"thread {here.name!r} runs a model on which thread {self._thread.name!r}, which has"
            " started it, has an intervention open; interventions act only in the thread that"
            " entered them: enter it in this thread (model.intervene({}) for none), or give"
            " contextvars.copy_context().run to the thread as its target, and the function as the"
            " first of its arguments"
        )

    def _outlives_its_task(self, entered: "tuple[Entry, ...] | None") -> bool:
        """Return whether the hooks were left registered by a task of this thread that has ended.

        Notebooks may run each cell in a task; a handle of one cell acts in the next.
        """
        if self._task is None or self._thread is not threading.current_thread():
            return False
        task = self._task()
        is_hidden = entered is not None and entered[0].alone
        return (task is None or task.done()) and not is_hidden


class _OnlyHere:
    """A hook that does nothing outside of the thread or task of its entry."""

    def __init__(self, entry: Entry, fn: Callable[..., Any]) -> None:
        self.entry, self.fn = entry, fn

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the hook where its entry acts."""
        if self.entry.acts():
            return self.fn(*args, **options)
        self.entry.refuse_unsteered()
        return None


@contextmanager
def entering(*, alone: bool = False) -> Iterator[Entry]:
    """Return a context with an `Entry` of hooks that are no intervention, such as a capture's.

    With ``alone`` no intervention from outside acts in it, so that a model runs as it is.
    """
    entry = Entry(alone=alone)
    try:
        yield entry
    finally:
        entry.close()


def registered(
    register: Callable[..., Any], fn: Callable[..., Any], **options: Any
) -> Callable[[], None]:
    """Register a hook, such as by ``module.register_forward_hook``; return what removes it."""
    with REGISTERING:
        return register(fn, **options).remove


class _Forward:
    """The ``forward`` of a module, which other functions replace in their own threads only."""

    def __init__(self, module: nn.Module) -> None:
        self.own = module.__dict__.get("forward")
        self.original: Callable[..., Any] = module.forward
        self.others: tuple[tuple[Entry, Callable[..., Any]], ...] = ()

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run the last function that acts here, or else the module's own."""
        for entry, fn in reversed(self.others):
            if entry.acts():
                return fn(*args, **options)
        return self.original(*args, **options)


def replace_forward(module: nn.Module, entry: Entry, fn: Callable[..., Any]) -> Callable[[], None]:
    """Replace ``forward`` of a module where an entry acts, and return what ends this."""
    replacement = entry, fn
    with REGISTERING:
        forward = module.__dict__.get("forward")
        if not isinstance(forward, _Forward):
            forward = _Forward(module)
            module.__dict__["forward"] = forward
        forward.others = (*forward.others, replacement)

    return partial(_put_back, module, forward, replacement)


def _put_back(
    module: nn.Module, forward: _Forward, replacement: tuple[Entry, Callable[..., Any]]
) -> None:
    """End one replacement of a module's ``forward``, and the last one's all of it."""
    with REGISTERING:
        forward.others = tuple(one for one in forward.others if one is not replacement)
        if not forward.others and module.__dict__.pop("forward") and forward.own is not None:
            module.__dict__["forward"] = forward.own


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Return a context without dropout, also if the user has called ``train()`` on a model.

    The last of several threads that run the model switches dropout on again.
    """
    with turn_of(model):
        with REGISTERING:
            shared = _EVALUATED.setdefault(model, _Evaluated())
            shared.n_passes += 1
            training = [module for module in model.modules() if module.training]
            shared.training += training
            for module in training:
                module.training = False
        try:
            yield
        finally:
            with REGISTERING:
                shared.n_passes -= 1
                if not shared.n_passes:
                    for module in shared.training:
                        module.training = True
                    shared.training.clear()


@contextmanager
def while_any(key: Hashable, change: Callable[[], Callable[[], None]]) -> Iterator[None]:
    """Return a context of a change to what all threads share, such as a setting of torch.

    The first that enters makes the change, and the last of all threads that leaves undoes it.

    Args:
        key: name of the change.
        change: makes the change and returns the function that undoes it.
    """
    with REGISTERING:
        n_users, undo = _CHANGES.get(key) or (0, change())
        _CHANGES[key] = n_users + 1, undo
    try:
        yield
    finally:
        with REGISTERING:
            n_users, undo = _CHANGES.pop(key)
            if n_users > 1:
                _CHANGES[key] = n_users - 1, undo
            else:
                undo()


_CHANGES: dict[Hashable, tuple[int, Callable[[], None]]] = {}
"""Changes that are made now, with the number of those that need them."""


class _Evaluated:
    """Number of passes that run a model, and the modules that train when none does."""

    def __init__(self) -> None:
        self.n_passes = 0
        self.training: list[nn.Module] = []


_EVALUATED: "weakref.WeakKeyDictionary[nn.Module, _Evaluated]" = weakref.WeakKeyDictionary()
_TURNS: "weakref.WeakKeyDictionary[nn.Module, Any]" = weakref.WeakKeyDictionary()


def turn_of(model: nn.Module) -> AbstractContextManager[Any]:
    """Return a lock if passes of a model change the model itself, so that they take turns.

    Rotary embeddings with frequencies that depend on the length of a text (LongRoPE, dynamic NTK)
    keep those of the last text. For other models the context does nothing.
    """
    turn = _TURNS.get(model)
    if turn is None:
        # A type, or one for each kind of layer.
        kinds = [str(getattr(module, "rope_type", "")) for module in model.modules()]
        changes = any("dynamic" in kind or "longrope" in kind for kind in kinds)
        with REGISTERING:
            turn = _TURNS.setdefault(model, threading.RLock() if changes else nullcontext())
    return turn


def _running_task() -> Any:
    """Return the running task of asyncio, or None outside of one."""
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None


# ---------------------------------------------------------------------------------- whose thread

_STARTERS = "_lrt_lens_starters"
"""Attribute of a thread in which the threads that started it are kept, the last one last."""
_WATCHED: list[bool] = []
"""Not empty once the start of threads is watched."""


def _watch_threads() -> None:
    """Note from here on which thread starts which."""
    with REGISTERING:
        if not _WATCHED:
            _WATCHED.append(True)
            sys.addaudithook(_note_starter)


def _note_starter(event: str, args: tuple[Any, ...]) -> None:
    """Note the running thread in a thread that it starts; Python calls this for its audit events.

    The start is an event in the thread that starts (PEP 578), and nothing else tells who did.
    """
    if event not in ("_thread.start_new_thread", "_thread.start_joinable_thread"):
        return
    thread = getattr(args[0], "__self__", None) if args else None
    if isinstance(thread, threading.Thread):
        here = threading.current_thread()
        thread.__dict__[_STARTERS] = (*_known_starters(here), weakref.ref(here))


def _known_starters(thread: threading.Thread) -> tuple[Any, ...]:
    # What started before the watch was, at the beginning, started by the main thread.
    return thread.__dict__.get(_STARTERS, (weakref.ref(threading.main_thread()),))


def _has_started(starter: threading.Thread, thread: threading.Thread) -> bool:
    """Return whether one thread has started another, directly or not."""
    # Python knows nothing of a thread that C++ code has started (as autograd does).
    if isinstance(thread, threading._DummyThread):
        return True
    return any(reference() is starter for reference in _known_starters(thread))
