"""A model paired with itself, for which a transferred artefact must act as the original."""

from collections.abc import Callable
from typing import Any

import pytest

from lrt_lens.models import ModelPair
from lrt_lens.stitching import Stitch, fit_stitches


@pytest.fixture(scope="session")
def twins(load: Callable[..., Any]) -> ModelPair:
    """A pair of one small random model and itself."""
    return ModelPair(load("llama", d=16, layers=3, seed=7), load("llama", d=16, layers=3, seed=7))


@pytest.fixture(scope="session")
def stitch(twins: ModelPair, corpus: list[str]) -> Stitch:
    """A stitch from layer 1 to layer 1 of the same model, with the map of shuffled pairs."""
    return fit_stitches(
        twins,
        corpus,
        source_layers=[1],
        target_layers=[1],
        n_tokens=None,
        context_length=32,
        moment_dtype="float64",
        null="full",
        progress=False,
    )[1, 1]
