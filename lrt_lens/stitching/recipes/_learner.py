"""Settings, parameters and progress of a recipe's training.

A `Learner` holds the parameters that are trained together, their optimiser and their early
stopping; `Progress` is how far a run is. Both go into its checkpoint.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from lrt_lens.errors import NonFiniteError
from lrt_lens.moments._cross_moments import FIT_PARTS
from lrt_lens.moments.cache._selection import RowSelection

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
                f"the loss of {self.name!r} became {value} at step {self.steps}; lower "
                "learning_rate, or look at the rows"
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


@dataclass
class Progress:
    """Progress of a run; all of it is written to the checkpoint."""

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
