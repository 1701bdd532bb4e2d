"""The alternative to a closed form: an affine map trained by Adam over rows in memory.

The comparison favours Adam: neither the search for its learning rate nor its evaluations on
held-out rows are timed, and the optimiser is torch's fused one.
"""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LEARNING_RATES = (1e-3, 3e-4, 1e-4)
BATCH = 1024
_TESTS_PER_EPOCH = 4
"""Evaluations on held-out rows per epoch."""


@dataclass(frozen=True)
class Race:
    """The outcome of one training run by Adam."""

    learning_rate: float
    reached: bool
    """True if the held-out error came within 1% of that of ridge."""
    steps: int
    """Number of steps until then, or of all steps."""
    seconds: float
    """Seconds of the training steps alone."""
    epochs: float
    fvu: float
    """Least held-out fraction of variance unexplained of all evaluations."""


class AdamMap:
    """``y ≈ x W + b`` by mini-batches of ``BATCH`` rows, in a new random order each epoch."""

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
    """Train on the fitting rows until the held-out FVU is at most ``goal``, or ``max_epochs``."""
    fit, held_out = (x[~tests], y[~tests]), (x[tests], y[tests])
    adam = AdamMap(*fit, learning_rate, seed)
    steps_per_epoch = math.ceil(len(fit[0]) / BATCH)
    interval = max(1, steps_per_epoch // _TESTS_PER_EPOCH)
    steps, spent, best = 0, 0.0, float("inf")
    while steps < max_epochs * steps_per_epoch:
        spent += adam.step(interval)
        steps += interval
        best = min(best, adam.fvu(*held_out))
        if best <= goal:
            break
    return Race(learning_rate, best <= goal, steps, spent, steps / steps_per_epoch, best)


def best_race(
    x: Tensor, y: Tensor, tests: Tensor, goal: float, max_epochs: float, seed: int
) -> tuple[Race, list[Race]]:
    """The run that reaches the goal in the fewest steps, and all runs, one per learning rate.

    If no run reaches the goal, the run with the least error is the best. A run stops at the number
    of epochs of the best run so far, because it cannot become the best after that.
    """
    races: list[Race] = []
    for learning_rate in LEARNING_RATES:
        limit = min([max_epochs, *(r.epochs for r in races if r.reached)])
        races.append(race(x, y, tests, goal, learning_rate, limit, seed))
    return min(races, key=lambda r: (not r.reached, r.steps if r.reached else r.fvu)), races
