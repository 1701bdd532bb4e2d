"""Shape aliases for signatures.

Rows are tokens. A map is ``y ≈ x @ W + b`` with ``W: [d_source, d_target]``. The *source* model is
where an adapter is learnt, the *target* model is where it is transferred to. The tests check the
aliases with jaxtyping and beartype; at run time they cost nothing.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

Rows = Float[Tensor, "token d"]
"""Activations at one hook point, one row per token, [token, d]."""
Residual = Float[Tensor, "batch position d_model"]
"""Activations at one hook point, in the model's own shape."""
Tokens = Int[Tensor, "batch position"]
"""Token ids, padded on the right."""
LongerTokens = Int[Tensor, "batch longer"]
"""Token ids of prompts with their continuations."""
TokenMask = Bool[Tensor, "batch position"]
"""True at the positions that are used."""
Direction = Float[Tensor, " d_model"]
"""Direction in the residual stream, [d_model]."""
Square = Float[Tensor, "d d"]
"""Second moments at one hook point, [d, d]."""

ArrayLike = Any
"""Numbers of a user: a tensor, an array of numpy or a list, see `lrt_lens._given_tensors`."""

HookFunction = Callable[..., Tensor | None]
"""A hook: TransformerLens calls ``fn(activation, hook=...)``.

It returns the new activation, or None to leave the activation unchanged.
"""
