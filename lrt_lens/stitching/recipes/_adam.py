"""Affine maps trained by Adam on rows, with the settings of the papers.

Problem: are the closed forms as good as the training of the papers? Mechanism: train on the
objectives of the papers, where ``mse`` is the mean over tokens and dimensions:

    one way (LRT, arXiv 2506.00653, §2.3 and table 2; up and down separately)
        E‖y − xW − b‖² / d_target
    both ways (Stitching, arXiv 2506.06609, equation 3)
        mse(T↑x, y) + mse(T↓y, x) + α mse(T↓T↑x, x) + α mse(T↑T↓y, y)

    hooks = ("blocks.3.hook_resid_post", "blocks.5.hook_resid_post")
    result = AdamFit.stitching().fit(cache, hooks=hooks)
    result.maps.up, result.history, result.score(cache)
    grid.compare([TwoWay(), FixedMaps(result.maps, "adam_stitching")])

Limits: it is for comparison only; `Ridge` and `TwoWay` are exact and take seconds. Settings that
the papers do not give are torch's defaults: the weight decay of LRT's AdamW, and the initial
weights of both. LRT's "L2 loss" is understood as the mean square. Batches are of tokens, not of
whole sequences. The validation share is of documents, so that no document is both trained on and
validated on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lrt_lens.models._drawing import drawing
from lrt_lens.models._hook_points import HookPair
from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching.recipes._learner import Learner, TrainingSettings
from lrt_lens.stitching.recipes._rows import paired_rows
from lrt_lens.stitching.recipes._scores import RowScores, score_functions
from lrt_lens.stitching.recipes._training import Training, one_way_learners


@dataclass(frozen=True)
class AdamResult:
    """Two trained affine maps with the history of their training."""

    maps: MapPair
    """Trained maps up and down, on the CPU."""
    history: pd.DataFrame = field(repr=False)
    """One row per validation and learner: ``direction``, ``epoch``, ``step``, ``tokens``,
    ``train_loss`` since the last validation, ``held_out_loss``, ``seconds``.
    """
    steps: int
    """Number of optimiser steps."""
    tokens: int
    """Number of rows that were trained on, summed over epochs."""
    seconds: float
    """Time of training and validation of both directions together."""
    settings: "AdamFit"
    """Settings of the training."""

    def score(self, rows: Any, *, hooks: HookPair | None = None) -> RowScores:
        """Return R² on ``(x, y)``, or on the test fold of a cache or of ``(x, y, documents)``."""
        return score_functions(
            self.maps.up.points,
            self.maps.down.points,
            rows,
            (self.maps.up.source_hook, self.maps.up.target_hook),
            hooks,
        )


@dataclass(frozen=True, kw_only=True)
class AdamFit(TrainingSettings):
    """Affine maps trained by Adam; `lrt` and `stitching` have the settings of the papers."""

    inversion_weight: float | None = None
    """Weight α of the round trips in eq. 3; None trains the two directions separately."""
    zero_bias: bool = False
    """True if biases start at 0; False uses torch's default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inversion_weight is not None and self.inversion_weight < 0:
            raise ValueError(
                f"inversion_weight is {self.inversion_weight!r}; expected a number of at least 0, "
                "or None"
            )

    @classmethod
    def lrt(cls, **changes: Any) -> "AdamFit":
        """Return the settings of LRT, table 2.

        They are AdamW at 1e-4, batches of 32 × 512 tokens, four epochs, and one tenth held out. For
        its mixture of chats the paper uses a learning rate of 1e-3.
        """
        paper: dict[str, Any] = {
            "optimizer": "adamw",
            "learning_rate": 1e-4,
            "weight_decay": 0.01,
            "batch_rows": 32 * 512,
            "epochs": 4,
            "validation_share": 0.1,
        }
        return cls(**paper | changes)

    @classmethod
    def stitching(cls, **changes: Any) -> "AdamFit":
        """Return the settings of Stitching, appendix A.

        They are equation 3 with α = 1, Adam at 1e-4 with cosine decay, gradients clipped at norm 1,
        two epochs, and biases that start at 0.

        Batches of 5,120 tokens follow from the 36k iterations of the paper. The paper trains on
        180k documents and evaluates on the next 1k; here one tenth of the documents is held out.
        """
        paper: dict[str, Any] = {
            "optimizer": "adam",
            "learning_rate": 1e-4,
            "weight_decay": 0.0,
            "batch_rows": 5120,
            "epochs": 2,
            "schedule": "cosine",
            "clip_norm": 1.0,
            "inversion_weight": 1.0,
            "zero_bias": True,
            "validation_share": 0.1,
        }
        return cls(**paper | changes)

    def fit(
        self,
        rows: Any,
        *,
        hooks: HookPair | None = None,
        device: str | torch.device = "cpu",
        checkpoint: str | Path | None = None,
        checkpoint_every: float = 120.0,
        progress: bool = True,
    ) -> AdamResult:
        """Return maps trained on rows.

        Args:
            rows: an `ActivationCache`, a hook pair of one (``cache[source_hook, target_hook]``), or
                ``(x, y, documents)``.
            hooks: hook pair of a cache; needed if it has several.
            device: device of the training; the returned maps are on the CPU.
            checkpoint: folder for checkpoints, from which an interrupted run resumes.
            checkpoint_every: seconds between two checkpoints.
            progress: show a progress bar.

        Raises:
            HookPointError: the cache has no such hook pair, or several and ``hooks`` is None.
            NonFiniteError: a row, or the loss, is NaN or infinite.
            TooFewDocumentsError: no document is left for training or for validation.
            MismatchError: ``checkpoint`` has a run with other settings or rows.
        """
        row_pairs = paired_rows(rows, hooks)
        learners, linears = self._learners(*row_pairs.widths, torch.device(device))
        done = Training(learners, row_pairs, self, torch.device(device)).run(
            checkpoint=checkpoint, checkpoint_every=checkpoint_every, progress=progress
        )
        up, down = (_affine(linears[way]) for way in ("up", "down"))
        here, there = row_pairs.source_hook, row_pairs.target_hook
        maps = MapPair(AffineMap(*up, here, there), AffineMap(*down, there, here))
        return AdamResult(maps, done.table, done.step, done.tokens, done.seconds, self)

    def _learners(
        self, d_source: int, d_target: int, device: torch.device
    ) -> tuple[dict[str, Learner], dict[str, nn.Linear]]:
        # Both are initialised on the CPU, so that a seed gives the same weights on any device.
        with drawing(self.seed):
            linears = {"up": nn.Linear(d_source, d_target), "down": nn.Linear(d_target, d_source)}
        for linear in linears.values():
            if self.zero_bias:
                nn.init.zeros_(linear.bias)
            linear.to(device)
        up, down = linears["up"], linears["down"]
        if self.inversion_weight is not None:
            return {
                "both": Learner(
                    "both",
                    nn.ModuleDict(linears),
                    joint_loss(up, down, self.inversion_weight),
                    self,
                )
            }, linears
        return one_way_learners(up, down, self), linears


def joint_loss(
    up: Callable[[Tensor], Tensor], down: Callable[[Tensor], Tensor], inversion_weight: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of eq. 3 of Stitching, a function of a batch (x, y)."""
    mse = nn.functional.mse_loss

    # mse(T↑x, y) + mse(T↓y, x) + α mse(T↓T↑x, x) + α mse(T↑T↓y, y)
    def loss(x: Tensor, y: Tensor) -> Tensor:
        to_y, to_x = up(x), down(y)
        one_way = mse(to_y, y) + mse(to_x, x)
        return (
            one_way + inversion_weight * (mse(down(to_y), x) + mse(up(to_x), y))
            if inversion_weight
            else one_way
        )

    return loss


def _affine(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    # nn.Linear stores [d_out, d_in]; an AffineMap has [d_source, d_target].
    return linear.weight.detach().T.contiguous().cpu(), linear.bias.detach().clone().cpu()
