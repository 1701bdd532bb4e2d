"""The training loop of all recipes.

Problem: trained maps must be comparable with closed forms and reproducible after an interruption.
Mechanism: batches in a seeded order, losses on held-out documents, early stopping and checkpoints.
The test fold is neither trained on nor validated on (see `lrt_lens.data._blocks`); a share of the
*documents* of the other folds is held out for validation. Directions without common parameters are
separate learners, with their own optimiser and early stopping, on the same batches.

    learners = one_way_learners(up, down, settings)
    progress = Training(learners, rows, settings, torch.device("cpu")).run(checkpoint=folder)
    progress.table

A step depends only on the settings, the rows, its number, and the state in the checkpoint. A run
that is resumed gives the same result as one that was not interrupted; on a CPU with the same number
of threads, bit for bit.

Limits: one device; no mixed precision.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrt_lens._progress import tqdm
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.moments._scatter import full_precision
from lrt_lens.stitching.recipes._learner import COLUMNS, Learner, Progress, TrainingSettings
from lrt_lens.stitching.recipes._rows import PairedRows
from lrt_lens.stitching.recipes._training_checkpoint import TrainingCheckpoint


def one_way_learners(
    up: nn.Module, down: nn.Module, settings: TrainingSettings
) -> dict[str, Learner]:
    """Return one learner per direction, each with its own mean squared error."""
    mse = nn.functional.mse_loss
    return {
        "up": Learner("up", up, lambda x, y: mse(up(x), y), settings),
        "down": Learner("down", down, lambda x, y: mse(down(y), x), settings),
    }


@dataclass(frozen=True)
class Training:
    """One run of the training loop."""

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
        """Train to the end, resuming from ``checkpoint`` (a folder), and return the progress.

        Raises:
            TooFewDocumentsError: there is no row to train on, or none to validate on.
            MismatchError: the checkpoint is of a run with other settings or rows.
            NonFiniteError: a loss is NaN or infinite.
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
        # Batches after which to validate. The last batch is one of them, so that the training loss
        # of every row is in the history.
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
        """Settings and rows that determine the result; a resumed run must have the same."""
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
        """Train on the remaining batches of the current epoch, and validate after ``looks``."""
        started = time.perf_counter()
        batches = self.rows.batches(
            self.settings.training,
            self.settings.batch_rows,
            seed=self.settings.seed,
            epoch=done.epoch,
            skip=done.batch,
        )
        # Time is added after each step, so that a checkpoint has the time until then.
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
        """Validate the active learners and append to the history."""
        # `look` may stop a learner, so the list of active ones is fixed before.
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
        """Return the mean loss of each learner over the rows of the validation documents."""
        sums, n = [0.0] * len(learners), 0
        for x, y in self.rows.batches(self.settings.validation, self.settings.batch_rows):
            x, y = x.to(self.device), y.to(self.device)
            sums = [
                total + float(learner.loss(x, y)) * len(x)
                for total, learner in zip(sums, learners, strict=True)
            ]
            n += len(x)
        return [total / n for total in sums]
