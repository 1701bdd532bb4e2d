"""Sums of one direction of a survey: predicting sides whole, predicted sides in random columns.

Problem and mechanism: `lrt_lens.moments._survey_moments`. A predicting hook point keeps its whole
second moments (`PredictingSums`), a predicted one the sums of its dimensions and of its columns
(`PredictedSums`), and a hook pair the products of the two (`SketchedDirection`).

    sums.add(part, rows_x, rows_y, pairing)      # centred rows by hook point
    survey_bytes(pairs, "hook_embed", Sketch(), 2304, 3584)

Limits: rows of a block that are far from the shift, or huge, are multiplied in float64.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from einops import einsum, rearrange
from torch import Tensor

from lrt_lens.data._parts import N_FOLDS
from lrt_lens.models._hook_points import SOURCE, TARGET, HookPair, hooks_of, joint_parts, with_token
from lrt_lens.moments._centred_rows import CentredRows, cross_products
from lrt_lens.moments._scatter import SecondMoment, cross_about
from lrt_lens.moments._sketches import sign_columns

SURVEY_PARTS = (*(f"fold{k}" for k in range(N_FOLDS)), "test")
"""Names of the parts: the fitting folds, then the test fold as one."""
SURVEY_TEST = (N_FOLDS,)
"""Part that scores the maps of all fitting folds."""
N_SURVEY_PARTS = len(SURVEY_PARTS)
_SMALLEST_DEVIATION = 1e-6
"""Standard deviation, relative to the largest of its hook point, below which a dimension counts as
constant in the first block.
"""
Direction = Literal["up", "down"]
"""``"up"`` predicts the target from the source, ``"down"`` the source from the target."""


@dataclass(frozen=True)
class Sketch:
    """Numbers of random columns through which a survey sees the streams."""

    columns: int = 64
    """Columns of each predicted hook point, as they are and again with dimensions standardised."""
    null_columns: int = 32
    """Columns of the shuffled pairs; 0 for none."""
    source_columns: int | None = None
    """Columns of each predicting hook point; None for the whole stream."""
    down: bool = False
    """Also predict the source from the target."""

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Directions that are surveyed."""
        return ("up", "down") if self.down else ("up",)

    def width(self, d: int) -> int:
        """Return the dimensions of a predicting hook point of width ``d``."""
        return d if self.source_columns is None else min(d, self.source_columns)


@dataclass
class PredictingSums:
    """Moments of a predicting hook point, per part."""

    shift: Tensor
    """Shift [d], of the projected stream if it is sketched."""
    total: Tensor
    """Sums Σ(x − c) [part, d]."""
    second: Tensor
    """Sums Σ(x − c)(x − c)ᵀ [part, d, d]."""

    @classmethod
    def zeros(cls, shift: Tensor) -> "PredictingSums":
        """Return empty sums about a shift [d]."""
        shift, d = shift.double(), len(shift)
        zeros = shift.new_zeros
        return cls(shift, zeros(N_SURVEY_PARTS, d), zeros(N_SURVEY_PARTS, d, d))

    @property
    def squares(self) -> Tensor:
        """Sums Σ(x − c)² [part, d]."""
        return self.second.diagonal(dim1=1, dim2=2)

    def about(self, shift: Tensor, n: Tensor) -> "PredictingSums":
        """Return these sums about another shift [d]; ``n`` [part] counts their rows."""
        delta = self.shift - shift
        moved = (delta, self.total)
        total = self.total + einsum(n, delta, "part, d -> part d")
        return PredictingSums(shift, total, cross_about(self.second, n, moved, moved))


@dataclass
class PredictedSums:
    """Moments of a predicted hook point, per part."""

    shift: Tensor
    """Shift [d]."""
    scale: Tensor
    """Factors that standardise the dimensions, from the first block; 0 for a constant one [d]."""
    total: Tensor
    """Sums Σ(y − c) [part, d]."""
    squares: Tensor
    """Sums Σ(y − c)² [part, d]."""
    sketched: Tensor
    """Sums Σ((y − c) B)² of the columns [part, column]."""
    columns: Tensor
    """Columns B = [R, diag(s) R] [d, column]."""

    @classmethod
    def zeros(cls, shift: Tensor, scale: Tensor, columns: int, seed: int) -> "PredictedSums":
        """Return empty sums about a shift [d], with 2 · ``columns`` columns."""
        shift, scale = shift.double(), scale.double()
        signs = sign_columns(len(shift), columns, seed).to(shift.device)
        both = torch.cat([signs, rearrange(scale, "d -> d 1") * signs], 1)
        zeros = shift.new_zeros
        d, n_parts = len(shift), N_SURVEY_PARTS
        return cls(
            shift, scale, zeros(n_parts, d), zeros(n_parts, d), zeros(n_parts, both.shape[1]), both
        )

    @cached_property
    def single_columns(self) -> Tensor:
        """Columns in float32, in which rows are usually projected."""
        return self.columns.float()

    def project(self, light: Tensor) -> Tensor:
        """Return rows [row, d] in the columns, [row, column]."""
        is_single = light.dtype == torch.float32
        return light @ (self.single_columns if is_single else self.columns)

    def add(self, part: int, block: CentredRows, projected: Tensor) -> None:
        """Add the rows of a block; ``projected`` are its light rows in the columns."""
        if block.is_plain:
            light = block.light
            self.total[part] += block.total
            self.squares[part] += light.square().sum(0)
            self.sketched[part] += projected.square().sum(0)
            return
        # Rare: rows far from the shift, or huge ones, in float64.
        exact = block.raw.double() - self.shift
        self.total[part] += exact.sum(0)
        self.squares[part] += exact.square().sum(0)
        self.sketched[part] += (exact @ self.columns).square().sum(0)

    def about(self, shift: Tensor, n: Tensor) -> "PredictedSums":
        """Return these sums about another shift [d]; ``n`` [part] counts their rows."""
        # Σ(y − c′)² = Σ(y − c)² + 2·s·δ + n·δ², for dimensions and for columns
        delta = self.shift - shift
        in_columns = delta @ self.columns
        moved = lambda squares, total, by: (  # noqa: E731
            squares + 2 * total * by + einsum(n, by**2, "part, d -> part d")
        )
        return replace(
            self,
            shift=shift,
            total=self.total + einsum(n, delta, "part, d -> part d"),
            squares=moved(self.squares, self.total, delta),
            sketched=moved(self.sketched, self.total @ self.columns, in_columns),
        )


class ColumnVariance(SecondMoment):
    """Sums of squares of columns of which no products are kept."""

    def __init__(self, diagonal: Tensor) -> None:
        self.diagonal = diagonal

    @cached_property
    def matrix(self) -> Tensor:
        """Refuse, because products of the columns are not kept.

        Raises:
            ValueError: always.
        """
        raise ValueError("a survey keeps no products of the predicted side; harvest exact moments")


@dataclass
class SketchedDirection:
    """Sums of one direction: of all predicting and predicted hook points and their pairs."""

    predictors: dict[str, PredictingSums]
    outcomes: dict[str, PredictedSums]
    cross: dict[HookPair, Tensor]
    """Σ(x − cₓ)(y − c_y)ᵀB by (predictor, outcome) [part, d_x, column]."""
    cross_null: dict[HookPair, Tensor]
    """Sums ``cross`` of shuffled pairs: fitting folds, test fold [2, d_x, null column]."""

    def tensors(self, direction: str) -> Iterator[tuple[str, Tensor]]:
        """Yield (name in a file, tensor), all of them views."""
        for hook, x in self.predictors.items():
            yield f"total/{direction}/x/{hook}", x.total
            yield f"second/{direction}/x/{hook}", x.second
        for hook, y in self.outcomes.items():
            yield f"total/{direction}/y/{hook}", y.total
            yield f"squares/{direction}/y/{hook}", y.squares
            yield f"sketched/{direction}/y/{hook}", y.sketched
        for kind, sums in (("cross", self.cross), ("null", self.cross_null)):
            for (x_hook, y_hook), tensor in sums.items():
                yield f"{kind}/{direction}/{x_hook}/{y_hook}", tensor

    def add(
        self,
        part: int,
        x: Mapping[str, CentredRows],
        y: Mapping[str, CentredRows],
        pairing: Tensor | None,
    ) -> None:
        """Add the rows of a block, centred, by hook point."""
        projected = {hook: side.project(y[hook].light) for hook, side in self.outcomes.items()}
        for hook, predictor in self.predictors.items():
            total, second = x[hook].sums()
            predictor.total[part] += total
            predictor.second[part] += second
        for hook, outcome in self.outcomes.items():
            outcome.add(part, y[hook], projected[hook])
        light = {hook: x[hook].light for hook in self.predictors}
        self._add_cross(self.cross, part, light, projected, (x, y), None)
        if pairing is not None and self.cross_null:
            width = next(iter(self.cross_null.values())).shape[-1]
            shuffled = {hook: rows[:, :width][pairing] for hook, rows in projected.items()}
            half = int(part >= N_FOLDS)
            self._add_cross(self.cross_null, half, light, shuffled, (x, y), pairing)

    def _add_cross(
        self,
        sums: dict[HookPair, Tensor],
        index: int,
        light: Mapping[str, Tensor],
        columns: Mapping[str, Tensor],
        rows: tuple[Mapping[str, CentredRows], Mapping[str, CentredRows]],
        pairing: Tensor | None,
    ) -> None:
        x, y = rows
        for (x_hook, y_hook), product in cross_products(list(sums), light, columns):
            mine = sums[x_hook, y_hook][index]
            mine += product
            if not (x[x_hook].is_plain and y[y_hook].is_plain):
                basis = self.outcomes[y_hook].columns[:, : mine.shape[1]]
                mine += x[x_hook].rest(y[y_hook], pairing, basis)


def survey_bytes(
    pairs: Sequence[HookPair],
    token_hook: str | None,
    sketch: Sketch,
    d_source: int,
    d_target: int,
    itemsize: int = 4,
) -> dict[str, int]:
    """Return the bytes of the sums of a survey, by what they hold.

    ``itemsize`` are the bytes of one number of the hook pairs' columns. Keys: ``predicting``,
    ``predicted``, ``cross`` and ``null``.
    """
    sizes: dict[str, int] = dict.fromkeys(("predicting", "predicted", "cross", "null"), 0)
    width = {hook: d_source * len(joint_parts(hook)) for hook, _ in with_token(pairs, token_hook)}
    n_null = min(sketch.null_columns, sketch.columns)
    for direction in sketch.directions:
        up = direction == "up"
        of_direction = with_token(pairs, token_hook) if up else [(t, s) for s, t in pairs]
        wide = (lambda hook: width.get(hook, d_source)) if up else (lambda _: d_target)
        narrow = (lambda _: d_target) if up else (lambda hook: width.get(hook, d_source))
        for hook in hooks_of(of_direction, SOURCE):
            d = sketch.width(wide(hook))
            sizes["predicting"] += 8 * (d + N_SURVEY_PARTS * (d + d * d))
        for hook in hooks_of(of_direction, TARGET):
            d = narrow(hook)
            # Shift, scale, columns; sums and squares of dimensions; squares of columns
            per_part = 2 * d + 2 * sketch.columns
            sizes["predicted"] += 8 * (2 * d + 2 * sketch.columns * d + N_SURVEY_PARTS * per_part)
        for hook, _ in of_direction:
            d = sketch.width(wide(hook))
            sizes["cross"] += itemsize * N_SURVEY_PARTS * d * 2 * sketch.columns
            sizes["null"] += itemsize * 2 * d * n_null * (hook != token_hook)
    return sizes


def first_scale(rows: Tensor) -> Tensor:
    """Return 1 / standard deviation of each dimension [d]; 0 for a constant dimension."""
    deviation = rows.double().std(0, correction=0)
    varies = deviation > _SMALLEST_DEVIATION * deviation.max()
    return torch.where(varies, 1 / torch.where(varies, deviation, 1.0), 0.0)


def add_direction(whole: SketchedDirection, part: SketchedDirection, n: Tensor) -> None:
    """Add sums about other shifts in place; ``n`` [part] counts their rows."""
    n = n.to(next(iter(whole.predictors.values())).shift)
    for hook, mine in whole.predictors.items():
        moved = part.predictors[hook].about(mine.shift, n)
        mine.total += moved.total
        mine.second += moved.second
    for hook, outcome in whole.outcomes.items():
        other = part.outcomes[hook].about(outcome.shift, n)
        outcome.total += other.total
        outcome.squares += other.squares
        outcome.sketched += other.sketched
    halves = torch.stack([n[:N_FOLDS].sum(), n[N_FOLDS]])
    for sums, others, rows in (
        (whole.cross, part.cross, n),
        (whole.cross_null, part.cross_null, halves),
    ):
        for pair, tensor in sums.items():
            x, y = part.predictors[pair[0]], part.outcomes[pair[1]]
            columns = y.columns[:, : tensor.shape[-1]]
            delta_x = x.shift - whole.predictors[pair[0]].shift
            delta_y = (y.shift - whole.outcomes[pair[1]].shift) @ columns
            total_x, total_y = x.total, y.total @ columns
            if sums is whole.cross_null:
                total_x, total_y = (
                    torch.stack([total[:N_FOLDS].sum(0), total[N_FOLDS]])
                    for total in (total_x, total_y)
                )
            tensor += cross_about(
                others[pair].double(), rows, (delta_x, total_x), (delta_y, total_y)
            )
