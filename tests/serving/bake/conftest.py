"""Fixtures of the tests of baking: small models of many architectures."""

from collections.abc import Callable
from typing import Any

import pytest

from lrt_lens.models import HookedModel
from tests.models.decoders import DECODERS, build_decoder


@pytest.fixture(scope="session")
def decoder(tokenizer: Any) -> Callable[[str], HookedModel]:
    """Return a function that gives a small random model by the name of its recipe."""
    recipes = {one.name: one for one in DECODERS}
    built: dict[str, HookedModel] = {}

    def load(name: str) -> HookedModel:
        if name not in built:
            hf = build_decoder(recipes[name], len(tokenizer))
            built[name] = HookedModel.load(hf, tokenizer=tokenizer, name=name)
        return built[name]

    return load
