"""The check that a model's logits are numbers."""

from torch import Tensor

from lrt_lens.errors import NonFiniteError


def refuse_nan(logits: Tensor, name: str) -> Tensor:
    """Return the logits of a model unchanged.

    Raises:
        NonFiniteError: one of them is NaN or +inf. Minus infinity is allowed: some models mask
            unused tokens with it.
    """
    # The maximum of an array with a NaN is NaN, so one pass without a second array is enough.
    if logits.numel() and not logits.amax() < float("inf"):
        wrong = logits.isnan() | (logits == float("inf"))
        raise NonFiniteError(
            f"the logits of {name!r} have {int(wrong.sum())} NaN or infinite values"
            f" ({logits.dtype}); load the model with dtype='bfloat16' or 'float32'"
        )
    return logits
