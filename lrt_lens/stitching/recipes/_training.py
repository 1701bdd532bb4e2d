"""The loop that all recipes share: batches in a seeded order, looks at held-out documents, early
stopping, checkpoints, a bar.

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
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lrt_lens.errors import NonFiniteError, TooFewDocumentsError
from lrt_lens.moments._cross_moments import FIT_PARTS
from lrt_lens.moments._side_moments import full_precision
from lrt_lens.moments.cache._selection import RowSelection
from lrt_lens.stitching.recipes._rows import PairedRows

Loss = Callable[[Tensor, Tensor], Tensor]
COLUMNS = ("direction", "epoch", "step", "tokens", "train_loss", "held_out_loss", "seconds")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a recipe trains."""

    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    """Decoupled for AdamW (torch's default there), added to the gradient for Adam."""
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["constant", "cosine"] = "constant"
    """``"cosine"``: from the learning rate to 0 over all steps."""
    clip_norm: float | None = None
    """Gradients are scaled down to this norm."""
    batch_rows: int = 4096
    """Tokens a step."""
    epochs: int = 4
    validation_share: float = 0.1
    """Documents of the fitting folds that are not trained on."""
    looks_per_epoch: int = 2
    """How often the validation documents are looked at."""
    patience: int | None = None
    """Looks without improvement after which training stops and the best weights are taken; None
    runs through and takes the last.
    """
    min_improvement: float = 0.0
    """Share by which the held-out loss must fall to count as improved."""
    seed: int = 0
    """Of the initial weights and of the order of rows."""

    def __post_init__(self) -> None:
        positive = (
            "learning_rate",
            "batch_rows",
            "epochs",
            "looks_per_epoch",
            *(() if self.patience is None else ("patience",)),
        )
        for name in (*positive, *(() if self.clip_norm is None else ("clip_norm",))):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a number above 0")
        for name in ("weight_decay", "min_improvement"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; expected a number of at least 0"
                )
        if not 0 < self.validation_share < 1:
            raise ValueError(
                f"validation_share is {self.validation_share!r}; expected a share between 0 and 1"
            )
        for name, allowed in (
            ("optimizer", ("adam", "adamw")),
            ("schedule", ("constant", "cosine")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {allowed}")

    @property
    def training(self) -> RowSelection:
        """Rows that are trained on."""
        return RowSelection(FIT_PARTS, self.validation_share, "training")

    @property
    def validation(self) -> RowSelection:
        """Rows that are looked at."""
        return RowSelection(FIT_PARTS, self.validation_share, "validation")

    def rate(self, step: int, n_steps: int) -> float:
        """The learning rate of a step, from 0."""
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / n_steps))
        return self.learning_rate

    def build_optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam or AdamW."""
        build = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
        return build(
            parameters, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay
        )


class Learner:
    """Parameters that are trained together, with what early stopping knows of them."""

    def __init__(
        self, name: str, module: nn.Module, loss: Loss, settings: TrainingSettings
    ) -> None:
        self.name, self.module, self.loss, self.settings = name, module, loss, settings
        self.optimizer = settings.build_optimizer(list(module.parameters()))
        self.best: dict[str, Tensor] = {}
        self.best_loss = math.inf
        self.looks_since = 0
        self.is_stopped = False
        self.loss_sum, self.loss_rows, self.steps = 0.0, 0, 0

    def step(self, x: Tensor, y: Tensor, rate: float) -> None:
        """One step; NonFiniteError where the loss is none."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss = self.loss(x, y)
        loss.backward()
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_norm)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the loss of {self.name!r} became {value} at step {self.steps}; lower learning_rate, or look at the rows"
            )
        self.optimizer.step()
        self.loss_sum += value * len(x)
        self.loss_rows += len(x)
        self.steps += 1

    def look(self, held_out: float) -> float:
        """Take note of a held-out loss; returns the training loss since the last look."""
        mean = self.loss_sum / self.loss_rows if self.loss_rows else math.nan
        self.loss_sum, self.loss_rows = 0.0, 0
        if self.settings.patience is None:
            return mean
        if held_out < self.best_loss * (1 - self.settings.min_improvement):
            self.best_loss, self.looks_since = held_out, 0
            self.best = {
                name: value.detach().clone() for name, value in self.module.state_dict().items()
            }
        else:
            self.looks_since += 1
            self.is_stopped = self.looks_since >= self.settings.patience
        return mean

    def finish(self) -> None:
        """Take the best weights, where early stopping kept some."""
        if self.best:
            self.module.load_state_dict(self.best)


def one_way_learners(
    up: nn.Module, down: nn.Module, settings: TrainingSettings
) -> dict[str, Learner]:
    """The two directions apart, each by its own mean squared error."""
    mse = nn.functional.mse_loss
    return {
        "up": Learner("up", up, lambda x, y: mse(up(x), y), settings),
        "down": Learner("down", down, lambda x, y: mse(down(y), x), settings),
    }


@dataclass
class Progress:
    """Where a run is; all of it goes into the checkpoint."""

    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that are done."""
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def table(self) -> pd.DataFrame:
        """`COLUMNS`, a row a look and direction."""
        return pd.DataFrame(self.history, columns=list(COLUMNS))


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
        """Train to the end, from where ``checkpoint`` (a folder) left off; TooFewDocumentsError
        where either side of the split is empty.
        """
        from lrt_lens.stitching.recipes._training_checkpoint import TrainingCheckpoint

        n_batches = self._n_batches()
        done = Progress()
        saved = (
            None
            if checkpoint is None
            else TrainingCheckpoint(Path(checkpoint), self, every=checkpoint_every)
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

    def _n_batches(self) -> int:
        n_training, n_validation = (
            self.rows.count(self.settings.training),
            self.rows.count(self.settings.validation),
        )
        if not n_training or not n_validation:
            raise TooFewDocumentsError(
                f"{n_training} rows to train on and {n_validation} to validate on (documents of the fitting folds, {self.settings.validation_share:.0%} of them "
                "set aside); give more documents, or another validation_share"
            )
        return math.ceil(n_training / self.settings.batch_rows)

    def _active(self) -> list[Learner]:
        return [learner for learner in self.learners.values() if not learner.is_stopped]

    def _epoch(self, done: Progress, looks: set[int], n_steps: int, saved: Any, bar: Any) -> None:
        """What is left of an epoch."""
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
