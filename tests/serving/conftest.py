"""A small model, and a vector of it."""

from typing import Any

import pytest

from lrt_lens.adapters.vectors import SteeringVector
from tests.serving.vectors import make_vector


@pytest.fixture(scope="package")
def model(load: Any) -> Any:
    """A Llama of 4 blocks, d 16, with random weights."""
    return load("llama", d=16, layers=4, seed=3)


@pytest.fixture(scope="package")
def vector(model: Any) -> SteeringVector:
    """A random direction behind block 2, about as long as the states there."""
    return make_vector(model, 2)
