"""Timing of two calls A and B in turns, in one process, with a fixed number of threads.

    timings = alternate(lambda: ours(), lambda: theirs(), repetitions=3)     # A B, B A, A B
    timings.ratio            # median over repetitions of the seconds of A ÷ the seconds of B

The alternating order cancels a drift of the machine. A ratio measured in this way can be compared
across machines; seconds cannot.
"""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Settings:
    """Settings that all benchmarks share."""

    threads: int = 2
    quick: bool = False
    """Use tiny shapes and few tokens, to see that a benchmark runs; its numbers mean nothing."""
    seed: int = 0

    @property
    def n_tokens(self) -> int:
        """Number of unmasked tokens of a harvest."""
        return 16_000 if self.quick else 65_536

    def repetitions(self, usual: int) -> int:
        """Number of times that both sides are timed; one of them with ``quick``."""
        return 1 if self.quick else usual


@dataclass(frozen=True)
class Measurement:
    """The result of one benchmark."""

    name: str
    value: float
    """The ratio."""
    target: float
    at_most: bool
    """True if the target is an upper bound, False if it is a lower bound."""
    what: str
    """One sentence that says what was measured."""
    raw: dict[str, Any]
    """The values from which the ratio was computed: all repetitions, their medians, sizes."""
    notes: tuple[str, ...] = field(default=())
    """Facts that a reader needs to interpret the value, such as that it is a bound."""

    @property
    def met(self) -> bool:
        """True if the value reaches the target."""
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass(frozen=True)
class Timings:
    """Seconds of A and of B, one of each per repetition."""

    a: tuple[float, ...]
    b: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over repetitions of A ÷ B."""
        return statistics.median(a / b for a, b in zip(self.a, self.b, strict=True))

    def raw(self, a: str, b: str) -> dict[str, Any]:
        """The values for results.json, with the names of A and B."""
        return {
            f"{a}_seconds": list(self.a),
            f"{b}_seconds": list(self.b),
            f"{a}_seconds_median": statistics.median(self.a),
            f"{b}_seconds_median": statistics.median(self.b),
            "ratios": [x / y for x, y in zip(self.a, self.b, strict=True)],
        }


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call; its result is freed outside the measurement."""
    gc.collect()
    start = time.perf_counter()
    result = run()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def alternate(a: Callable[[], object], b: Callable[[], object], repetitions: int) -> Timings:
    """Timings of both in turns (A B, B A, A B, …); the caller warms up both before."""
    timed: tuple[list[float], list[float]] = ([], [])
    for repetition in range(repetitions):
        for side in (0, 1) if repetition % 2 == 0 else (1, 0):
            timed[side].append(seconds((a, b)[side]))
    return Timings(tuple(timed[0]), tuple(timed[1]))


def check_threads(threads: int) -> None:
    """Raise a RuntimeError if the number of torch's threads has changed.

    Importing a model class of transformers can change it.
    """
    if torch.get_num_threads() != threads:
        raise RuntimeError(
            f"torch uses {torch.get_num_threads()} threads, expected {threads}: an import has "
            "changed the number; call torch.set_num_threads after that import"
        )
