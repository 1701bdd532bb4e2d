"""Tensors of the numbers that users give: tensors, numpy arrays and lists.

Problem: a direction comes out of numpy, a notebook or another library as often as out of torch, and
the number of a block may be a number of numpy. Mechanism: one function makes a tensor of floating
point of all of them, and refuses what is none.

    float_tensor("direction", np.ones(64, "float32"))      # torch.float32, [64]
    float_tensor("direction", [0.5, -1, 2])                # whole numbers are numbers too

Limits: tensors and arrays keep their precision. A tensor is not copied, everything else is.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def float_tensor(name: str, value: Any) -> Tensor:
    """Return numbers as a tensor of floating point; a tensor of floating point as it is.

    Lists and whole numbers become float32.

    Raises:
        TypeError: ``value`` holds other things than real numbers.
    """
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    try:
        # A list of tensors of one number each is a list of numbers for numpy too.
        numbers = (
            value if isinstance(value, Tensor) else torch.from_numpy(np.array(value, order="C"))
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(_refusal(name, type(value).__name__)) from error
    if numbers.is_complex() or numbers.dtype == torch.bool:
        raise TypeError(_refusal(name, f"{type(value).__name__} of {numbers.dtype}"))
    is_list = not hasattr(value, "dtype")
    return numbers.float() if is_list or not numbers.is_floating_point() else numbers


def _refusal(name: str, observed: str) -> str:
    return f"{name} is a {observed}; expected a tensor, a numpy array or a list of real numbers"
