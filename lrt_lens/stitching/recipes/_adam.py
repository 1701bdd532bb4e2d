"""Affine maps by Adam over rows, with the papers' settings.

**For comparison only**: `Ridge` and `TwoWay` are exact and take seconds.

    one way (LRT, arXiv 2506.00653, §2.3 and table 2; up and down apart)
        E‖y − xW − b‖² / d_target
    both ways (Stitching, arXiv 2506.06609, equation 3)
        mse(T↑x, y) + mse(T↓y, x) + α mse(T↓T↑x, x) + α mse(T↑T↓y, y)

with ``mse`` the mean over tokens and dimensions.

    hooks = ("blocks.3.hook_resid_post", "blocks.5.hook_resid_post")
    result = AdamFit.stitching().fit(cache, hooks=hooks)
    result.maps.up, result.history, result.score(cache)
    grid.compare([TwoWay(), FixedMaps(result.maps, "adam_stitching")])

What the papers leave open is torch's default: weight decay of LRT's AdamW, initial weights of both.
LRT's "L2 loss" is read as the mean square. Batches are of tokens, not of whole sequences, and the
validation share is of documents: no row of a document that is trained on is looked at.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lrt_lens.moments._hook_pairs import HookPair as Pair
from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching.recipes._learner import Learner, TrainingSettings
from lrt_lens.stitching.recipes._rows import paired_rows
from lrt_lens.stitching.recipes._scores import RowScores, score_functions
from lrt_lens.stitching.recipes._training import Training, one_way_learners, seeded


@dataclass(frozen=True)
class AdamResult:
    """Maps that were trained."""

    maps: MapPair
    history: pd.DataFrame = field(repr=False)
    """A row a look: ``direction``, ``epoch``, ``step``, ``tokens``, ``train_loss`` since the last
    look, ``held_out_loss``, ``seconds``.
    """
    steps: int
    tokens: int
    """Rows that went through, those of every epoch counted."""
    seconds: float
    """Of training and looking; both directions together where they are trained apart."""
    settings: "AdamFit"

    def score(self, rows: Any, *, hooks: Pair | None = None) -> RowScores:
        """Return R² on ``(x, y)``, or on the test fold of a cache or of ``(x, y, documents)``.

        The definition is scikit-learn's; see `RowScores`.
        """
        return score_functions(
            self.maps.up.points,
            self.maps.down.points,
            rows,
            (self.maps.up.source_hook, self.maps.up.target_hook),
            hooks,
        )


@dataclass(frozen=True, kw_only=True)
class AdamFit(TrainingSettings):
    """Affine maps by Adam; `lrt` and `stitching` have the papers' settings.

    For comparison with the closed forms only.
    """

    inversion_weight: float | None = None
    """α of eq. 3; None fits the two directions apart, without round trips."""
    zero_bias: bool = False
    """Whether biases start at 0 (else torch's default)."""

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

        AdamW at 1e-4, batches of 32 × 512 tokens, four epochs, one tenth held out; its chat mixture
        takes 1e-3.
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

        Equation 3 with α = 1 by Adam at 1e-4 with cosine decay, gradients clipped at norm 1, two
        epochs, biases from 0.

        Batches of 5,120 tokens follow from the paper's 36k iterations. It evaluates on 1k documents
        after its 180k; here a tenth is set aside.
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
        hooks: Pair | None = None,
        device: str | torch.device = "cpu",
        checkpoint: str | Path | None = None,
        checkpoint_every: float = 120.0,
        progress: bool = True,
    ) -> AdamResult:
        """Train on rows.

        Args:
            rows: an `ActivationCache`, a pair of one (``cache[source_hook, target_hook]``), or
                ``(x, y, documents)``.
            hooks: which pair of a cache; needed where it has several.
            device: where the maps are trained; they come back to the CPU.
            checkpoint: folder, from which a run that was killed goes on; MismatchError where it
                holds another one.
            checkpoint_every: seconds between two checkpoints.
            progress: show a bar.

        Raises:
            HookPointError: where the cache has not these hook points.
            NonFiniteError: for rows, or a loss, that are NaN or infinite.
            TooFewDocumentsError: where no document is left to train or to validate on.
        """
        found = paired_rows(rows, hooks)
        learners, linears = self._learners(*found.widths, torch.device(device))
        done = Training(learners, found, self, torch.device(device)).run(
            checkpoint=checkpoint, checkpoint_every=checkpoint_every, progress=progress
        )
        up, down = (_affine(linears[way]) for way in ("up", "down"))
        here, there = found.source_hook, found.target_hook
        maps = MapPair(AffineMap(*up, here, there), AffineMap(*down, there, here))
        return AdamResult(maps, done.table, done.step, done.tokens, done.seconds, self)

    def _learners(
        self, d_source: int, d_target: int, device: torch.device
    ) -> tuple[dict[str, Learner], dict[str, nn.Linear]]:
        with seeded(self.seed):
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
    """Eq. 3 of Stitching as a function of a batch (x, y)."""
    mse = nn.functional.mse_loss

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
    return linear.weight.detach().T.contiguous().cpu(), linear.bias.detach().clone().cpu()
