"""The protocol of a model that runs, whichever library runs it.

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

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lrt_lens.typing import HookFunction, LongerTokens, Residual, Tokens


@runtime_checkable
class Engine(Protocol):
    """A model that runs: everything that `HookedModel` needs from it."""

    n_layers: int
    d_model: int
    d_vocab: int
    context_length: int
    padding_id: int
    """Id that rows are filled with on the right."""
    hook_points: tuple[str, ...]
    model: Any
    """Module whose weights are the model: that of Hugging Face, or the ``HookedTransformer``."""

    def lens_model(self) -> Any:
        """Return the TransformerLens model with the same weights.

        Raises:
            ValueError: TransformerLens cannot bridge this model.
        """
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

    def logits_at(self, tokens: Tokens, rows: Tensor, positions: Tensor) -> Tensor:
        """Return the logits of some positions only, [selected, vocabulary].

        ``rows`` and ``positions`` [selected] say which. An engine that can unembeds no others.
        """
        ...

    def generate(self, tokens: Tokens, config: Any, **options: Any) -> LongerTokens:
        """Return prompts with their continuations.

        ``config`` is a ``transformers.GenerationConfig`` that holds for this call alone.
        """
        ...

    def weights_hash(self) -> str:
        """Return a hash of every weight, see `lrt_lens.models._weights.weights_hash`."""
        ...

    def add_hook(self, name: str, fn: HookFunction) -> Callable[[], None]:
        """Register a hook and return the function that removes it."""
        ...

    def resuming(self, name: str, residual: Residual) -> AbstractContextManager[None]:
        """Return a context in which passes over the same tokens continue from ``residual``.

        ``residual`` [batch, position, d_model] replaces the stream at hook point ``name``.
        """
        ...
