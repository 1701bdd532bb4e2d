"""What `HookedModel` needs from a model that runs, whichever library runs it.

Problem: Hugging Face models, bridges of TransformerLens and its ``HookedTransformer`` have
different calls. Mechanism: one protocol, `Engine`, with three implementations: `HuggingFaceEngine`
(`lrt_lens.models._hugging_face_engine`), `BridgeEngine` and `HookedTransformerEngine`
(`lrt_lens.models._lens_engines`). Each engine takes every number, text and intervention from one
forward pass, its own.

    engine.capture(tokens, ["blocks.3.hook_resid_post"])    # {name: [batch, position, d_model]}
    remove = engine.add_hook("blocks.3.hook_resid_post", lambda activation, hook: activation + v)

Limits: rows are padded on the right and no attention mask is passed. Attention must be causal, so
that no position reads the padding after it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lrt_lens.typing import HookFunction, LongerTokens, Residual, Tokens


@runtime_checkable
class Engine(Protocol):
    """A model that runs: everything that `HookedModel` needs from it."""

    n_layers: int
    d_model: int
    d_vocab: int
    context_length: int
    hook_points: tuple[str, ...]
    model: Any
    """Module whose weights are the model: that of Hugging Face, or the ``HookedTransformer``."""

    @property
    def bridge(self) -> Any:
        """TransformerLens model with the same weights; an error says why there is none."""
        ...

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

    def generate(self, tokens: Tokens, config: Any, **options: Any) -> LongerTokens:
        """Return prompts with their continuations.

        ``config`` is a ``transformers.GenerationConfig`` that holds for this call alone.
        """
        ...

    def weights_hash(self) -> str:
        """Return a hash of every weight, see `lrt_lens.models._identity.weights_hash`."""
        ...

    def add_hook(self, name: str, fn: HookFunction) -> Callable[[], None]:
        """Register a hook and return the function that removes it."""
        ...

    def resuming(self, name: str, residual: Residual) -> AbstractContextManager[None]:
        """Return a context in which passes over the same tokens continue from ``residual``.

        ``residual`` [batch, position, d_model] replaces the stream at hook point ``name``.
        """
        ...


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
def replacing(engine: Engine, name: str, residual: Residual) -> Iterator[None]:
    """Return a context in which a hook replaces the stream at a hook point by ``residual``."""
    remove = engine.add_hook(name, lambda _activation, hook: residual)
    try:
        yield
    finally:
        remove()


def short_row(d_vocab: int) -> Tokens:
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


def is_centred(residual: Residual) -> bool:
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
