"""Shape aliases used in signatures.

Rows are tokens. A map is ``y ≈ x @ W + b`` with ``W: [d_source, d_target]``. *Source* is the model
where something was learnt, *target* the one it is carried to. The aliases are checked in the tests
(jaxtyping + beartype) and cost users nothing.
"""

from collections.abc import Callable

from jaxtyping import Bool, Float, Int
from torch import Tensor

Rows = Float[Tensor, "token d"]
"""Activations at one hook point, a row per token."""
Residual = Float[Tensor, "batch position d_model"]
"""Activations at one hook point, as the model has them."""
Tokens = Int[Tensor, "batch position"]
"""Token ids, padded on the right."""
LongerTokens = Int[Tensor, "batch longer"]
"""Prompts with their continuations."""
TokenMask = Bool[Tensor, "batch position"]
"""True where a position takes part."""
Direction = Float[Tensor, " d_model"]
"""A direction in the residual stream."""
Square = Float[Tensor, "d d"]
"""Second moments of one hook point."""

HookFunction = Callable[..., Tensor | None]
"""``fn(activation, hook=...)`` as TransformerLens calls it; returns the new activation or None."""
