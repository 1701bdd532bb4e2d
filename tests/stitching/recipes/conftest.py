"""Rows that a linear map explains in part, and a way to kill a training run between two steps."""

from typing import Any

import pytest
import torch

from lrt_lens.stitching import RowsInMemory
from lrt_lens.stitching.recipes._learner import Learner

ROWS_PER_DOCUMENT = 15


@pytest.fixture(scope="session")
def linear_rows() -> RowsInMemory:
    """3,000 rows of 200 documents, 6 → 5 dimensions of order 1, with noise and means."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 6, generator=generator) + 0.5
    y = (
        x @ torch.randn(6, 5, generator=generator) / 3
        + 0.4 * torch.randn(3000, 5, generator=generator)
        - 1
    )
    return RowsInMemory(x, y, [i // ROWS_PER_DOCUMENT for i in range(3000)])


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return ``killed_after(n)``, after which the n-th step of a learner is interrupted."""
    original = Learner.step

    def arm(n: int) -> None:
        taken = []

        def step(self: Learner, *arguments: Any) -> None:
            taken.append(1)
            if len(taken) == n:
                monkeypatch.setattr(Learner, "step", original)
                raise KeyboardInterrupt
            original(self, *arguments)

        monkeypatch.setattr(Learner, "step", step)

    return arm
