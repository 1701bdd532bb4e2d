"""How everything here is timed: A and B in turns, in one process, on a fixed number of threads.

    timings = alternate(lambda: ours(), lambda: theirs(), repetitions=3)     # A B, B A, A B: a drift of the machine cancels
    timings.ratio                                                            # median over repetitions of A's seconds ÷ B's

A ratio of two things measured side by side survives a slow machine; seconds do not.
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
    """What every benchmark is told."""

    threads: int = 2
    quick: bool = False
    """Tiny shapes and few tokens: shows that a benchmark runs, its numbers mean nothing."""
    seed: int = 0

    @property
    def n_tokens(self) -> int:
        """Unmasked tokens of a harvest."""
        return 16_000 if self.quick else 65_536


@dataclass(frozen=True)
class Measurement:
    """One benchmark's outcome."""

    name: str
    value: float
    """The ratio."""
    target: float
    at_most: bool
    """Whether the ratio should stay below its target (else above)."""
    what: str
    """What was measured, in one sentence."""
    raw: dict[str, Any]
    """Everything the ratio was computed from: all repetitions, their medians, sizes."""
    notes: tuple[str, ...] = field(default=())
    """What a reader must know to read the value rightly, such as that it is a bound."""

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass(frozen=True)
class Timings:
    """Seconds of A and B, a pair per repetition."""

    a: tuple[float, ...]
    b: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over repetitions of A ÷ B."""
        return statistics.median(a / b for a, b in zip(self.a, self.b, strict=True))

    def raw(self, a: str, b: str) -> dict[str, Any]:
        """As it stands in results.json, under the names of the two."""
        return {
            f"{a}_seconds": list(self.a),
            f"{b}_seconds": list(self.b),
            f"{a}_seconds_median": statistics.median(self.a),
            f"{b}_seconds_median": statistics.median(self.b),
            "ratios": [x / y for x, y in zip(self.a, self.b, strict=True)],
        }


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call; its result is dropped outside the measurement."""
    gc.collect()
    start = time.perf_counter()
    result = run()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def alternate(a: Callable[[], object], b: Callable[[], object], repetitions: int) -> Timings:
    """Time both in turns: A B, B A, A B, …; warm up before."""
    timed: tuple[list[float], list[float]] = ([], [])
    for repetition in range(repetitions):
        for side in (0, 1) if repetition % 2 == 0 else (1, 0):
            timed[side].append(seconds((a, b)[side]))
    return Timings(tuple(timed[0]), tuple(timed[1]))


def check_threads(threads: int) -> None:
    """Raise where something changed torch's number of threads: importing a model class of
    transformers can.
    """
    if torch.get_num_threads() != threads:
        raise RuntimeError(
            f"torch uses {torch.get_num_threads()} threads; this benchmark wants {threads}: an import has reset them"
        )
