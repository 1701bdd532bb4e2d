"""The training loop that all recipes share.

Batches in a seeded order, losses on held-out documents, early stopping, checkpoints and a progress
bar.

Held out are *documents*: the test fold takes part in nothing here (see `lrt_lens.data._blocks`),
and of the documents of the other folds a share is set aside for validation. Directions that have no
parameters in common are learners of their own, with their own optimiser and stopping, on the same
batches.

Everything that a step depends on follows from the settings, the rows and the number of the step, or
is in the checkpoint: a run that was killed and is called again goes on to the same result, on a CPU
with the same number of threads bit for bit.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.moments._side_moments import full_precision
from lrt_lens.stitching.recipes._learner import COLUMNS, Learner, Progress, TrainingSettings
from lrt_lens.stitching.recipes._rows import PairedRows
from lrt_lens.stitching.recipes._training_checkpoint import TrainingCheckpoint


def one_way_learners(
    up: nn.Module, down: nn.Module, settings: TrainingSettings
) -> dict[str, Learner]:
    """The two directions apart, each by its own mean squared error."""
    mse = nn.functional.mse_loss
    return {
        "up": Learner("up", up, lambda x, y: mse(up(x), y), settings),
        "down": Learner("down", down, lambda x, y: mse(down(y), x), settings),
    }


@dataclass(frozen=True)
class Training:
    """One run of the loop."""

    learners: Mapping[str, Learner]
    rows: PairedRows
    settings: TrainingSettings
    device: torch.device

    def run(
        self,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_every: float = 120.0,
        progress: bool = True,
    ) -> Progress:
        """Train to the end, resuming from ``checkpoint`` (a folder).

        Raises:
            TooFewDocumentsError: either side of the split is empty.
        """
        n_batches = self._n_batches()
        done = Progress()
        saved = (
            None
            if checkpoint is None
            else TrainingCheckpoint(
                Path(checkpoint), self.learners, self.arguments, every=checkpoint_every
            )
        )
        if saved is not None:
            done = saved.resume()
        # The last batch is a look: every row that was trained on is in the history.
        looks = {
            math.ceil(n_batches * (k + 1) / self.settings.looks_per_epoch)
            for k in range(self.settings.looks_per_epoch)
        }
        total = n_batches * self.settings.epochs
        with (
            tqdm(
                total=total,
                initial=done.step,
                desc="train",
                unit="step",
                disable=not progress,
                leave=False,
            ) as bar,
            full_precision(),
        ):
            while done.epoch < self.settings.epochs and self._active():
                self._epoch(done, looks, total, saved, bar)
                if done.batch >= n_batches:
                    done.epoch, done.batch = done.epoch + 1, 0
        if saved is not None:
            saved.write(done)
        for learner in self.learners.values():
            learner.finish()
        return done

    @property
    def arguments(self) -> dict[str, Any]:
        """Return what decides the result: a resumed run must have the same."""
        return asdict(self.settings) | {
            "recipe": type(self.settings).__name__,
            "rows": self.rows.fingerprint,
            "hooks": [self.rows.source_hook, self.rows.target_hook],
            "widths": self.rows.widths,
        }

    def _n_batches(self) -> int:
        n_training, n_validation = (
            self.rows.count(self.settings.training),
            self.rows.count(self.settings.validation),
        )
        if not n_training or not n_validation:
            raise TooFewDocumentsError(
                f"{n_training} rows to train on and {n_validation} to validate on (documents of "
                f"the fitting folds, {self.settings.validation_share:.0%} of them "
                "set aside); give more documents, or another validation_share"
            )
        return math.ceil(n_training / self.settings.batch_rows)

    def _active(self) -> list[Learner]:
        return [learner for learner in self.learners.values() if not learner.is_stopped]

    def _epoch(self, done: Progress, looks: set[int], n_steps: int, saved: Any, bar: Any) -> None:
        """Train on the remaining batches of an epoch."""
        started = time.perf_counter()
        batches = self.rows.batches(
            self.settings.training,
            self.settings.batch_rows,
            seed=self.settings.seed,
            epoch=done.epoch,
            skip=done.batch,
        )
        for x, y in batches:
            x, y = x.to(self.device), y.to(self.device)
            for learner in self._active():
                learner.step(x, y, self.settings.rate(done.step, n_steps))
            done.step, done.batch, done.tokens = done.step + 1, done.batch + 1, done.tokens + len(x)
            started, done.seconds = (
                time.perf_counter(),
                done.seconds + time.perf_counter() - started,
            )
            if done.batch in looks:
                self._look(done, bar)
                started, done.seconds = (
                    time.perf_counter(),
                    done.seconds + time.perf_counter() - started,
                )
            bar.update(1)
            if saved is not None:
                saved.write_if_due(done)
            if not self._active():
                return
            started = time.perf_counter()

    def _look(self, done: Progress, bar: Any) -> None:
        active = self._active()
        for learner, held_out in zip(active, self.held_out_losses(active), strict=True):
            train = learner.look(held_out)
            row = (learner.name, done.epoch, done.step, done.tokens, train, held_out, done.seconds)
            done.history.append(dict(zip(COLUMNS, row, strict=True)))
        bar.set_postfix(
            {
                learner.name: f"{done.history[i - len(active)]['held_out_loss']:.4g}"
                for i, learner in enumerate(active)
            }
        )

    @torch.no_grad()
    def held_out_losses(self, learners: Sequence[Learner]) -> list[float]:
        """Mean loss over the rows of the validation documents."""
        sums, n = [0.0] * len(learners), 0
        for x, y in self.rows.batches(self.settings.validation, self.settings.batch_rows):
            x, y = x.to(self.device), y.to(self.device)
            sums = [
                total + float(learner.loss(x, y)) * len(x)
                for total, learner in zip(sums, learners, strict=True)
            ]
            n += len(x)
        return [total / n for total in sums]


@contextmanager
def seeded(seed: int) -> Any:
    """Initial weights from a seed, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
