"""Maps with one hidden layer, trained on rows, for comparison with affine maps.

Problem: how much of the relation of two streams is not affine? Mechanism: train the "autoencoder"
of Oozeer et al. 2025 (arXiv 2503.04429), one network per direction, on E‖y − ŷ‖² / d_target:

    ŷ = W₂ relu(W₁x + b₁) + b₂        with √(d_source · d_target) hidden units

    result = Mlp().fit(cache, hooks=("blocks.3.hook_resid_post", "blocks.5.hook_resid_post"))
    result.points(x), result.down_points(y), result.score(cache)

Limits: it maps activations only. A direction has no single image under a map that is not linear, so
no artefact can be transferred with it.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lrt_lens.errors import MismatchError
from lrt_lens.models._drawing import drawing
from lrt_lens.models._hook_points import HookPair
from lrt_lens.stitching.recipes._learner import TrainingSettings
from lrt_lens.stitching.recipes._rows import paired_rows
from lrt_lens.stitching.recipes._scores import RowScores, score_functions
from lrt_lens.stitching.recipes._training import Training, one_way_learners


@dataclass(frozen=True)
class MlpResult:
    """Two trained networks, one per direction."""

    up: nn.Module = field(repr=False)
    """Network from the source to the target."""
    down: nn.Module = field(repr=False)
    """Network from the target to the source."""
    source_hook: str
    target_hook: str
    history: pd.DataFrame = field(repr=False)
    """One row per validation and direction: ``direction``, ``epoch``, ``step``, ``tokens``,
    ``train_loss`` since the last validation, ``held_out_loss``, ``seconds``.
    """
    steps: int
    """Number of optimiser steps."""
    tokens: int
    """Number of rows that were trained on, summed over epochs."""
    seconds: float
    """Time of training and validation of both directions together."""
    settings: "Mlp"
    """Settings of the training."""

    def points(self, x: Tensor) -> Tensor:
        """Return activations mapped up, [..., d_source] → [..., d_target]."""
        return _applied(self.up, x, self.source_hook)

    def down_points(self, y: Tensor) -> Tensor:
        """Return activations mapped down, [..., d_target] → [..., d_source]."""
        return _applied(self.down, y, self.target_hook)

    def score(self, rows: Any, *, hooks: HookPair | None = None) -> RowScores:
        """Return R² on ``(x, y)``, or on the test fold of a cache or of ``(x, y, documents)``."""
        return score_functions(
            self.points, self.down_points, rows, (self.source_hook, self.target_hook), hooks
        )


@dataclass(frozen=True, kw_only=True)
class Mlp(TrainingSettings):
    """Networks with one hidden ReLU layer, one per direction; `oozeer` has the paper's settings."""

    learning_rate: float = 1e-3
    batch_rows: int = 1024
    epochs: int = 100
    """Most epochs; ``patience`` stops earlier."""
    patience: int | None = 6
    hidden: int | None = None
    """Number of hidden units; None is √(d_source · d_target), rounded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden is not None and self.hidden <= 0:
            raise ValueError(
                f"hidden is {self.hidden}; expected a number of units above 0, or None for "
                "√(d_source · d_target)"
            )

    @classmethod
    def oozeer(cls, **changes: Any) -> "Mlp":
        """Return the settings of Oozeer et al., tables 21 and 22.

        They are AdamW at 1e-4, three epochs in batches of 16 × 4 sequences of 720 tokens, and one
        tenth of the data held out. The paper trained on the data of its task.
        """
        paper: dict[str, Any] = {
            "learning_rate": 1e-4,
            "batch_rows": 16 * 4 * 720,
            "epochs": 3,
            "validation_share": 0.1,
            "patience": None,
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
    ) -> MlpResult:
        """Return networks trained on rows; arguments and errors are those of `AdamFit.fit`."""
        row_pairs = paired_rows(rows, hooks)
        d_source, d_target = row_pairs.widths
        units = self.hidden or round(math.sqrt(d_source * d_target))
        # Both are initialised on the CPU, so that a seed gives the same weights on any device.
        with drawing(self.seed):
            up, down = (
                nn.Sequential(nn.Linear(a, units), nn.ReLU(), nn.Linear(units, b))
                for a, b in ((d_source, d_target), (d_target, d_source))
            )
        up, down = up.to(device), down.to(device)
        done = Training(
            one_way_learners(up, down, self), row_pairs, self, torch.device(device)
        ).run(checkpoint=checkpoint, checkpoint_every=checkpoint_every, progress=progress)
        # The result is for inference: on the CPU and without gradients.
        up, down = (module.cpu().eval().requires_grad_(False) for module in (up, down))
        return MlpResult(
            up,
            down,
            row_pairs.source_hook,
            row_pairs.target_hook,
            done.table,
            done.step,
            done.tokens,
            done.seconds,
            self,
        )


@torch.no_grad()
def _applied(network: nn.Module, points: Tensor, hook: str) -> Tensor:
    """Return ``network(points)`` in the device and precision of ``points``."""
    weight = next(network.parameters())
    if points.shape[-1] != weight.shape[1]:
        raise MismatchError(
            f"last dimension is {points.shape[-1]}; this network starts at {hook!r} with "
            f"{weight.shape[1]} dimensions: give states of that hook point"
        )
    return network(points.to(weight)).to(points)
