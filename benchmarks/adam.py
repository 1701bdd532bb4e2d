"""The rival: an affine map trained by Adam over rows in memory, as the papers do it, in its most
favourable light.

Its search for a learning rate is not charged, nor are its looks at the held-out rows; the optimiser
is torch's fused one.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LEARNING_RATES = (1e-3, 3e-4, 1e-4)
BATCH = 1024
_LOOKS_AN_EPOCH = 4


@dataclass(frozen=True)
class Race:
    """How far Adam came."""

    learning_rate: float
    reached: bool
    """Whether its held-out error came within 1% of ridge's."""
    steps: int
    """Until then, or in all."""
    seconds: float
    """Of those steps alone."""
    epochs: float
    fvu: float
    """Least held-out fraction of variance unexplained that was seen."""


class AdamMap:
    """``y ≈ x W + b`` by mini-batches of ``BATCH`` rows, in a new random order every epoch."""

    def __init__(self, x: Tensor, y: Tensor, learning_rate: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.x, self.y = x, y
        self.map = nn.Linear(x.shape[1], y.shape[1])
        self.optimizer = torch.optim.Adam(self.map.parameters(), lr=learning_rate, fused=True)
        self._batches: list[Tensor] = []

    def step(self, n: int) -> float:
        """Take ``n`` steps; returns their seconds."""
        start = time.perf_counter()
        for _ in range(n):
            if not self._batches:
                self._batches = list(torch.randperm(len(self.x)).split(BATCH))
            rows = self._batches.pop()
            loss = nn.functional.mse_loss(self.map(self.x[rows]), self.y[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - start

    @torch.no_grad()
    def fvu(self, x: Tensor, y: Tensor) -> float:
        """Fraction of variance unexplained on held-out rows: 1 − R²."""
        error, variance = (
            (self.map(x) - y).double().pow(2).sum(),
            (y.double() - y.double().mean(0)).pow(2).sum(),
        )
        return float(error / variance)


def race(
    x: Tensor,
    y: Tensor,
    tests: Tensor,
    goal: float,
    learning_rate: float,
    max_epochs: float,
    seed: int,
) -> Race:
    """Train on the rows that do not test until the held-out FVU is at most ``goal``, or for
    ``max_epochs``.
    """
    fit, held_out = (x[~tests], y[~tests]), (x[tests], y[tests])
    adam = AdamMap(*fit, learning_rate, seed)
    steps_an_epoch = -(-len(fit[0]) // BATCH)
    look = max(1, steps_an_epoch // _LOOKS_AN_EPOCH)
    steps, spent, best = 0, 0.0, float("inf")
    while steps < max_epochs * steps_an_epoch:
        spent += adam.step(look)
        steps += look
        best = min(best, adam.fvu(*held_out))
        if best <= goal:
            break
    return Race(learning_rate, best <= goal, steps, spent, steps / steps_an_epoch, best)


def best_race(
    x: Tensor, y: Tensor, tests: Tensor, goal: float, max_epochs: float, seed: int
) -> tuple[Race, list[Race]]:
    """(the learning rate that reaches the goal first, all that were tried); the closest one where
    none does.

    A rate runs no further than the best so far: it could not win any more.
    """
    tried: list[Race] = []
    for learning_rate in LEARNING_RATES:
        limit = min([max_epochs, *(r.epochs for r in tried if r.reached)])
        tried.append(race(x, y, tests, goal, learning_rate, limit, seed))
    return min(tried, key=lambda r: (not r.reached, r.steps if r.reached else r.fvu)), tried
