"""Settings, parameters and progress of the training of a recipe.

A `Learner` has the parameters that are trained together, their optimiser and their early stopping.
`Progress` counts epochs, batches and steps. A checkpoint stores both.

    learner = Learner("up", module, loss, settings)
    learner.step(x, y, settings.rate(step, n_steps))
    learner.look(held_out_loss)                     # early stopping
    learner.finish()                                # best weights
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from lrt_lens.errors import NonFiniteError
from lrt_lens.moments._scatter import FIT_PARTS
from lrt_lens.moments.cache._selection import RowSelection

Loss = Callable[[Tensor, Tensor], Tensor]
"""A function of a batch (x, y) that returns the mean loss of its rows."""


COLUMNS = ("direction", "epoch", "step", "tokens", "train_loss", "held_out_loss", "seconds")
"""Columns of the history of a training."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of the training, common to all recipes."""

    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    """Weight decay: decoupled for AdamW (0.01 is torch's default there), added to the gradient for
    Adam.
    """
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moment of the gradient."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the steps: constant, or ``"cosine"`` from ``learning_rate`` to 0."""
    clip_norm: float | None = None
    """Norm to which larger gradients are scaled down; None does not clip."""
    batch_rows: int = 4096
    """Rows (tokens) per step."""
    epochs: int = 4
    """Number of passes over the training documents."""
    validation_share: float = 0.1
    """Share of the documents of the fitting folds that is held out for validation."""
    looks_per_epoch: int = 2
    """Number of validations per epoch."""
    patience: int | None = None
    """Number of validations without improvement after which training stops and the best weights are
    used; None trains all epochs and uses the last weights.
    """
    min_improvement: float = 0.0
    """Relative decrease of the held-out loss that counts as an improvement."""
    seed: int = 0
    """Seed of the initial weights and of the order of rows."""

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
        """Selection of the rows on which parameters are trained."""
        return RowSelection(FIT_PARTS, self.validation_share, "training")

    @property
    def validation(self) -> RowSelection:
        """Selection of the rows on which the held-out loss is computed."""
        return RowSelection(FIT_PARTS, self.validation_share, "validation")

    def rate(self, step: int, n_steps: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if self.schedule == "cosine":
            # η_t = η·(1 + cos(π·t/T)) / 2
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / n_steps))
        return self.learning_rate

    def build_optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser of some parameters."""
        build = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
        return build(
            parameters, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay
        )


class Learner:
    """Parameters that are trained together, with their optimiser and early stopping.

    Args:
        name: direction in the history: ``"up"``, ``"down"`` or ``"both"``.
        module: the module that has the parameters.
        loss: loss of a batch.
        settings: settings of the training.
    """

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
        """Take one optimiser step on a batch.

        Raises:
            NonFiniteError: the loss is NaN or infinite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss = self.loss(x, y)
        loss.backward()
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_norm)
        # Checked before the step, so that the weights stay finite.
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the loss of {self.name!r} became {value} at step {self.steps}; lower "
                "learning_rate, or check the rows for outliers"
            )
        self.optimizer.step()
        # The last batch can be smaller, so batches are weighted by their rows.
        self.loss_sum += value * len(x)
        self.loss_rows += len(x)
        self.steps += 1

    def look(self, held_out: float) -> float:
        """Record a held-out loss; return the mean training loss since the last validation.

        It may set ``is_stopped`` (early stopping).
        """
        # NaN if no batch was trained on since the last validation.
        mean = self.loss_sum / self.loss_rows if self.loss_rows else math.nan
        self.loss_sum, self.loss_rows = 0.0, 0
        if self.settings.patience is None:
            return mean
        if held_out < self.best_loss * (1 - self.settings.min_improvement):
            self.best_loss, self.looks_since = held_out, 0
            # Copies, because the optimiser changes the weights in place.
            self.best = {
                name: value.detach().clone() for name, value in self.module.state_dict().items()
            }
        else:
            self.looks_since += 1
            self.is_stopped = self.looks_since >= self.settings.patience
        return mean

    def finish(self) -> None:
        """Load the best weights if early stopping stored any."""
        if self.best:
            self.module.load_state_dict(self.best)


@dataclass
class Progress:
    """Progress of a run; all of it is written to the checkpoint."""

    epoch: int = 0
    """Number of finished epochs."""
    batch: int = 0
    """Number of finished batches of the current epoch."""
    step: int = 0
    """Number of finished steps of all epochs."""
    tokens: int = 0
    """Number of rows that were trained on, summed over epochs."""
    seconds: float = 0.0
    """Time of training and validation, over all processes of a resumed run."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Records with the keys `COLUMNS`."""

    @property
    def table(self) -> pd.DataFrame:
        """History with the columns `COLUMNS`, one row per validation and learner."""
        return pd.DataFrame(self.history, columns=list(COLUMNS))
