"""Labelled texts of one task, with seeded samples and splits.

    train, test = Task("sentiment", texts, labels).sample(400).split()

Problem: probes of all scripts must be trained and tested on the same texts. Mechanism: one class of
texts and labels, whose random state is its own.

Limits: splits are not stratified by label.
"""

import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """Labelled texts of one task."""

    name: str
    """Name of the task, for tables."""
    texts: list[str]
    """Texts in the order of the file."""
    labels: list[Any]
    """One label per text."""

    def sample(self, n_texts: int, seed: int = 0) -> "Task":
        """Return ``n_texts`` of the texts at random, or all if there are fewer."""
        # random.Random has a state of its own, so the caller's random numbers do not change.
        order = list(range(len(self.texts)))
        random.Random(seed).shuffle(order)
        drawn = order[:n_texts]
        return Task(self.name, [self.texts[i] for i in drawn], [self.labels[i] for i in drawn])

    def split(self, share: float = 2 / 3) -> tuple["Task", "Task"]:
        """Return the first ``share`` of the texts, and the others."""
        # Callers shuffle with `sample` first, so the first texts are random ones.
        at = int(share * len(self.texts))
        first = Task(self.name, self.texts[:at], self.labels[:at])
        return first, Task(self.name, self.texts[at:], self.labels[at:])
