"""A stitch of two small models, and labelled texts of one concept."""

from typing import Any

import pytest

import lrt_lens as lrt


@pytest.fixture(scope="session")
def label_stitch(pair: Any, corpus: list[str]) -> lrt.Stitch:
    """A stitch from layer 1 to layer 1, with the map of shuffled pairs."""
    return lrt.fit_stitches(
        pair,
        corpus,
        source_layers=[1],
        target_layers=[1],
        n_tokens=None,
        context_length=32,
        null="full",
        progress=False,
    )[1, 1]


@pytest.fixture(scope="session")
def mood(passages: list[str]) -> lrt.ContrastSet:
    """Forty pairs that differ in their last word."""
    texts = [" ".join(text.split()[:12]) for text in passages[:40]]
    return lrt.ContrastSet(
        [f"{text} happy" for text in texts], [f"{text} sad" for text in texts], name="mood"
    )
