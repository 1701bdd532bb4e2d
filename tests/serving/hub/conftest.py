"""A hub on localhost, one for all tests, and the artefacts that are shared there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from lrt_lens.adapters.probes import LinearProbe
from lrt_lens.adapters.vectors import SteeringVector
from tests.serving.hub.hub_server import TOKEN, Hub

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="session")
def running_hub() -> Iterator[Hub]:
    with Hub.running() as hub:
        yield hub


@pytest.fixture
def hub(running_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The hub, empty, as the only one that `huggingface_hub` knows, with a token for it."""
    running_hub.repositories.clear()
    running_hub.requests.clear()
    running_hub.fails_with.clear()
    for name, value in {
        "ENDPOINT": running_hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": running_hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return running_hub


@pytest.fixture(scope="session")
def vector(pair: Any) -> SteeringVector:
    return SteeringVector(
        torch.linspace(-1, 1, 24), HOOK, pair.target.identity, name="mood", median_norm=8.0
    )


@pytest.fixture(scope="session")
def probe(pair: Any, passages: list[str]) -> LinearProbe:
    labels = ["yes" if "cat" in text else "no" for text in passages]
    return LinearProbe.fit(pair.target, passages, labels, at=HOOK, read="mean", name="cat")
