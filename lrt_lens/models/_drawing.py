"""Random numbers of torch from a seed of one's own, without touching its global generator.

Problem: `transformers.generate` and the constructors of modules draw from torch's global generator,
which all threads share: whoever seeds or restores it changes what another thread draws. Mechanism:
while a `drawing` context is open, calls that take a generator and are given none get one that was
made for the context. It acts in the thread that opens it only, and gives the numbers that
``torch.manual_seed(seed)`` would.

    with drawing(seed=0):
        torch.rand(3)                                   # the same three numbers every time

Every call of torch in such a context costs a microsecond more. So a model that generates leaves it
for its passes (`outside_of_drawing`), and only hooks enter it again (`WithinDrawing`).

Limits: dropout and other functions without an argument ``generator`` draw from the global one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import torch
from torch.nn import init
from torch.overrides import TorchFunctionMode, _get_current_function_mode

_METHODS = (
    *("bernoulli", "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_"),
    *("multinomial", "normal_", "random_", "uniform_"),
)
_FUNCTIONS = ("bernoulli", "multinomial", "normal", "poisson", "rand", "randint", "randn")
_INITIALISERS = (
    *("kaiming_normal_", "kaiming_uniform_", "normal_", "orthogonal_", "sparse_"),
    *("trunc_normal_", "uniform_", "xavier_normal_", "xavier_uniform_"),
)
_DRAWS = frozenset(
    [getattr(torch.Tensor, name) for name in _METHODS]
    + [getattr(torch, name) for name in (*_FUNCTIONS, "randperm")]
    + [getattr(init, name) for name in _INITIALISERS]
)
"""Functions that draw random numbers and take an argument ``generator``."""
_LIKE = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}
"""Functions that take none, with others that draw the same numbers."""


DRAWING: ContextVar["drawing | None"] = ContextVar("lrt_lens_drawing", default=None)
"""The context that a pass of the running thread or task has left."""


def outside_of_drawing(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that leaves the innermost `drawing` while it runs."""

    @wraps(fn)
    def outside(*args: Any, **options: Any) -> Any:
        mode = _get_current_function_mode()
        if not isinstance(mode, drawing):
            return fn(*args, **options)
        mode.__exit__(None, None, None)
        reset = DRAWING.set(mode)
        try:
            return fn(*args, **options)
        finally:
            DRAWING.reset(reset)
            mode.__enter__()

    return outside


class WithinDrawing:
    """A function that enters the `drawing` which the running pass has left, if any."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function within the drawing."""
        mode = DRAWING.get()
        if mode is None:
            return self.fn(*args, **options)
        with mode:
            return self.fn(*args, **options)


class drawing(TorchFunctionMode):  # noqa: N801 (a context, named like a function)
    """A context in which torch draws from generators with a seed, one per device."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed, self._generators = seed, dict[torch.device, torch.Generator]()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, with the context's generator if it draws random numbers."""
        kwargs = kwargs or {}
        if func in _DRAWS and kwargs.get("generator") is None:
            kwargs = {**kwargs, "generator": self._generator_for(args, kwargs)}
        elif func in _LIKE and len(args) == 1:
            like = {"dtype": args[0].dtype, "device": args[0].device} | kwargs
            like.pop("memory_format", None)
            generator = self._generator_for(args, kwargs)
            return _LIKE[func](args[0].shape, **like, generator=generator)
        return func(*args, **kwargs)

    def _generator_for(self, args: tuple, kwargs: dict[str, Any]) -> torch.Generator:
        """Return the generator of the device on which a call draws."""
        tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
        device = tensors[0].device if tensors else kwargs.get("device")
        device = torch.get_default_device() if device is None else torch.device(device)
        if device.type == "meta":
            device = torch.device("cpu")
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


@contextmanager
def drawing_in_hooks(seed: int) -> Iterator[None]:
    """Return a context in which only hooks draw from a seed, for a model that draws nothing."""
    reset = DRAWING.set(drawing(seed))
    try:
        yield
    finally:
        DRAWING.reset(reset)
