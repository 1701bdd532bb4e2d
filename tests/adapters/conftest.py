"""One model twice, and the stitch between its own layers: what is carried must do exactly what it
did.
"""

from collections.abc import Callable
from typing import Any

import pytest

from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._fit import fit_stitches
from lrt_lens.stitching._stitch import Stitch


@pytest.fixture(scope="session")
def twins(load: Callable[..., Any]) -> ModelPair:
    """A small random model and itself."""
    return ModelPair(load("llama", d=16, layers=3, seed=7), load("llama", d=16, layers=3, seed=7))


@pytest.fixture(scope="session")
def stitch(twins: ModelPair, corpus: list[str]) -> Stitch:
    """Between layer 1 and layer 1, with the map of shuffled pairs."""
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
