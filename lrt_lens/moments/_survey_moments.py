"""Sketched moments of every hook pair, from which ridge maps are scored but not made.

Problem: exact cross-moments of all layer pairs of two large models take a terabyte, and a choice of
layers needs only scores. Mechanism: ridge regression fits each output separately, so its held-out
error is the sum of those of single outputs, and such a sum is estimated from k random columns of
signs R [d_y, k]. For each direction, `SurveyMoments` hold the predicting side whole, and of the
predicted side

    y R   and   (y ∘ s) R       with s = 1 / standard deviation of each dimension in the first block

for R² and for the mean R² over dimensions. All hook pairs with one predicted hook point share its
columns, so that differences between predictors share their noise. The variances Σ(y − ȳ)² of the
dimensions themselves are exact (`SurveyMoments.variances`).

    moments = SurveyMoments(pairs, sketch=Sketch(columns=64))
    moments.scatter("up", hook_pair, FIT_PARTS)      # y are the 2 · 64 columns
    moments.save("survey.safetensors")

There are six parts, the five default folds and the whole test fold, whatever the numbers of the
harvest that follows (whose test fold has the same documents). Sums of the sides are float64, those
of the columns of hook pairs have the precision of the products. If the predicting side is too wide,
it is seen through ``source_columns`` of a randomised transform (`lrt_lens.moments._sketches`).

Limits: no map comes out of these sums, and a map from ``source_columns`` predicts less than one
from the whole side.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from lrt_lens._byte_sizes import human_bytes
from lrt_lens._stored_fields import json_object, stored_fields, stored_value
from lrt_lens._tensor_files import mapped_tensors
from lrt_lens.data._parts import N_FOLDS
from lrt_lens.errors import FileFormatError, MismatchError, TooFewDocumentsError
from lrt_lens.models._hook_points import SOURCE, TARGET, HookPair, hooks_of
from lrt_lens.moments._accumulator import Accumulator, add_whole, by_role, start_stored
from lrt_lens.moments._centred_rows import (
    CentredRows,
    first_shifts,
    refuse_non_finite,
    refuse_other_widths,
)
from lrt_lens.moments._heavy_rows import RowName, trace_about_mean
from lrt_lens.moments._layout import read_provenance
from lrt_lens.moments._provenance import Provenance
from lrt_lens.moments._scatter import Scatter, SecondMoment, part_sum
from lrt_lens.moments._sketches import subsampled_columns
from lrt_lens.moments._survey_sums import (
    N_SURVEY_PARTS,
    SURVEY_PARTS,
    ColumnVariance,
    Direction,
    PredictedSums,
    PredictingSums,
    Sketch,
    SketchedDirection,
    add_direction,
    first_scale,
)

logger = logging.getLogger(__name__)

SURVEY_SCHEMA = "lrt_lens.survey/1"


@dataclass
class SurveyMoments(Accumulator):
    """Sketched moments of hook pairs, by part of the documents.

    Raises:
        ValueError: ``moment_dtype`` is neither float32 nor float64.
    """

    pairs: tuple[HookPair, ...]
    """Hook pairs as (source hook point, target hook point)."""
    token_hook: str | None = None
    """Source hook point that stands for token identity."""
    moment_dtype: torch.dtype = torch.float32
    """Precision of products, and of the sums of hook pairs."""
    sketch: Sketch = field(default_factory=Sketch)
    """Numbers of random columns."""
    provenance: Provenance = field(default_factory=Provenance)
    """Models, texts and settings."""
    n: Tensor = field(default_factory=lambda: torch.zeros(N_SURVEY_PARTS, dtype=torch.float64))
    """Number of rows [part]."""
    directions: dict[Direction, SketchedDirection] = field(default_factory=dict)
    """Sums of each direction; empty before the first row."""
    _origin: dict[str, Tensor] = field(default_factory=dict, repr=False)
    """Shifts and scales by their names in a file, each [d]."""
    _logged: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    _transforms: dict[int, Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Columns of predicting streams, by their width [d, column]."""
    null: str = field(init=False)
    """``"sketch"`` if shuffled pairs are kept, else ``"none"``."""

    schema: ClassVar[str] = SURVEY_SCHEMA

    def __post_init__(self) -> None:
        self.refuse_other_precision()
        self.null = "sketch" if self.sketch.null_columns else "none"

    # --------------------------------------------------------------------------------- accumulation

    @property
    def is_begun(self) -> bool:
        """True if the sums are allocated; before the first row there are none."""
        return bool(self.directions)

    def pairs_of(self, direction: Direction) -> tuple[HookPair, ...]:
        """Return the (predicting, predicted) hook points of a direction."""
        if direction == "up":
            return self.kept_pairs
        return tuple((t, s) for s, t in self.pairs)

    def start(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> None:
        """Allocate the sums; mean and spread of these rows are the shifts and scales."""
        if self.is_begun:
            return
        refuse_non_finite([*x.items(), *y.items()], self.n)
        origin = {}
        for role, streams in (("source", x), ("target", y)):
            shifts = first_shifts(streams, self.moment_dtype)
            for hook, rows in streams.items():
                origin[f"shift/{role}/{hook}"] = shifts[hook]
                origin[f"scale/{role}/{hook}"] = first_scale(rows).to(self.moment_dtype)
        self.start_from(origin)

    def start_from(self, origin: Mapping[str, Tensor]) -> None:
        """Allocate empty sums about the shifts and scales of an origin, on their device."""
        self._origin = dict(origin)
        shifts, scales = by_role(origin, "shift"), by_role(origin, "scale")
        device = next(iter(origin.values())).device
        self.n, seed = self.n.to(device), self.provenance.seed
        sides = {"up": ("source", "target"), "down": ("target", "source")}
        for direction in self.sketch.directions:
            from_role, to_role = sides[direction]
            pairs = self.pairs_of(direction)
            predictors = {
                hook: PredictingSums.zeros(self._seen(shifts[from_role][hook].double()))
                for hook in hooks_of(pairs, SOURCE)
            }
            outcomes = {
                hook: PredictedSums.zeros(
                    shifts[to_role][hook], scales[to_role][hook], self.sketch.columns, seed
                )
                for hook in hooks_of(pairs, TARGET)
            }
            wanted = {"dtype": self.moment_dtype, "device": device}
            zeros = lambda parts, pair, columns, x=predictors, to=wanted: torch.zeros(  # noqa: E731
                parts, len(x[pair[0]].shift), columns, **to
            )
            true_pairs = [pair for pair in pairs if pair[0] != self.token_hook]
            n_null = min(self.sketch.null_columns, self.sketch.columns)
            self.directions[direction] = SketchedDirection(
                predictors,
                outcomes,
                {pair: zeros(N_SURVEY_PARTS, pair, 2 * self.sketch.columns) for pair in pairs},
                {pair: zeros(2, pair, n_null) for pair in true_pairs} if n_null else {},
            )

    def _seen(self, rows: Tensor) -> Tensor:
        """Return predicting rows [..., d] as the survey sees them: whole, or in fewer columns."""
        d = rows.shape[-1]
        width = self.sketch.width(d)
        if width == d:
            return rows
        return rows @ self._transform(d, width).to(rows.device, rows.dtype)

    def _transform(self, d: int, width: int) -> Tensor:
        if d not in self._transforms:
            self._transforms[d] = subsampled_columns(d, width, self.provenance.seed)
        return self._transforms[d]

    def add_block(
        self,
        part: int,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        pairing: Tensor | None = None,
        *,
        name: RowName | None = None,
    ) -> None:
        """Add paired rows of one part; `Accumulator.add_block` has arguments and errors."""
        refuse_non_finite([*x.items(), *y.items()], self.n)
        self.start(x, y)
        index = min(part, N_FOLDS)
        streams = {"source": x, "target": y}
        for role, shifts in by_role(self._origin, "shift").items():
            refuse_other_widths(streams[role], {h: len(shift) for h, shift in shifts.items()})
        for direction, sums in self.directions.items():
            roles = ("source", "target") if direction == "up" else ("target", "source")
            sides = (streams[role] for role in roles)
            seen, predicted = (
                {hook: rows for hook, rows in side.items() if hook in kept}
                for side, kept in zip(sides, (sums.predictors, sums.outcomes), strict=True)
            )
            seen = {hook: self._seen(self._wide(rows)) for hook, rows in seen.items()}
            rows_x, rows_y = (
                {
                    hook: CentredRows.of(
                        rows, side[hook].shift, self.moment_dtype, second=side is sums.predictors
                    )
                    for hook, rows in of_side.items()
                }
                for of_side, side in ((seen, sums.predictors), (predicted, sums.outcomes))
            )
            longest = {
                f"{role} {hook}": block.heaviest()
                for role, blocks in zip(roles, (rows_x, rows_y), strict=True)
                for hook, block in blocks.items()
            }
            self.record_heaviest(longest, name)
            sums.add(index, rows_x, rows_y, pairing)
        self.n[index] += len(next(iter(x.values())))

    def _wide(self, rows: Tensor) -> Tensor:
        """Return rows in at least the precision of products, if they will be projected."""
        if self.sketch.source_columns is None:
            return rows
        return rows.to(torch.promote_types(rows.dtype, self.moment_dtype))

    def finish(self) -> None:
        """Do nothing, because the sums of a survey live on the device of the rows."""

    def trace(self, role: str, hook: str) -> float | None:
        """Return the trace of the scatter of all rows at a hook point; None without sums of it."""
        for direction, sums in self.directions.items():
            is_predictor = (role == "source") == (direction == "up")
            side = sums.predictors.get(hook) if is_predictor else sums.outcomes.get(hook)
            if side is not None:
                return trace_about_mean(side.total, side.squares, self.n)
        return None

    # -------------------------------------------------------------------------------------- reading

    @property
    def n_bytes(self) -> int:
        """Size of all sums in memory, in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def scatter(self, direction: Direction, pair: HookPair, parts: Sequence[int]) -> Scatter:
        """Return the centred scatter of (predictor, outcome); y are the columns of the outcome.

        Raises:
            TooFewDocumentsError: the parts hold fewer than two rows.
        """
        sums, index = self.directions[direction], list(parts)
        n = float(self.n[index].sum())
        if n < 2:
            raise TooFewDocumentsError(
                f"parts {[SURVEY_PARTS[k] for k in index]} hold {int(n)} rows; every fold and the "
                "test fold need documents: give more"
            )
        x, y = sums.predictors[pair[0]], sums.outcomes[pair[1]]
        total_x, total_y = x.total[index].sum(0), y.total[index].sum(0)
        in_columns = total_y @ y.columns
        return Scatter(
            n=n,
            mean_x=x.shift + total_x / n,
            mean_y=(y.shift + total_y / n) @ y.columns,
            xy=part_sum(sums.cross[pair], index).double() - torch.outer(total_x, in_columns) / n,
            second_x=SecondMoment(x.second, total_x, n, index),
            second_y=ColumnVariance(y.sketched[index].sum(0) - in_columns**2 / n),
        )

    def null_xy(self, direction: Direction, pair: HookPair, *, test: bool) -> Tensor | None:
        """Return Σ(x − x̄)(y − ȳ)ᵀB of shuffled pairs [d_x, null column]; None without a null."""
        sums, index = self.directions[direction], [N_FOLDS] if test else list(range(N_FOLDS))
        cross = sums.cross_null.get(pair)
        if cross is None:
            return None
        x, y = sums.predictors[pair[0]], sums.outcomes[pair[1]]
        in_columns = y.total[index].sum(0) @ y.columns[:, : cross.shape[-1]]
        n = float(self.n[index].sum())
        return cross[int(test)].double() - torch.outer(x.total[index].sum(0), in_columns) / n

    def variances(self, direction: Direction, outcome: str, parts: Sequence[int]) -> Tensor:
        """Return the exact Σ(y − ȳ)² of each dimension of a predicted hook point, [d]."""
        y, index = self.directions[direction].outcomes[outcome], list(parts)
        return y.squares[index].sum(0) - y.total[index].sum(0) ** 2 / self.n[index].sum()

    # -------------------------------------------------------------------------------------- merging

    def merge(self, other: "SurveyMoments") -> "SurveyMoments":
        """Return the moments of the rows of both, about the shifts of this one.

        Raises:
            MismatchError: they are not parts of one survey; the message names what differs.
        """
        for name in ("pairs", "token_hook", "moment_dtype", "sketch"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise MismatchError(
                    f"surveys differ in {name}: {str(mine)[:100]} and {str(theirs)[:100]}; "
                    "make both with the same arguments"
                )
        provenance = self.provenance.merged(other.provenance)
        if not self.is_begun or not other.is_begun:
            return replace(self if self.is_begun else other, provenance=provenance)
        # Scales may differ by rounding only: the columns of other ones are other numbers.
        for name, tensor in self._origin.items():
            theirs = other._origin[name].to(tensor)
            if name.startswith("scale/") and not torch.allclose(tensor, theirs, rtol=1e-3, atol=0):
                raise MismatchError(
                    f"the surveys standardise {name.removeprefix('scale/')!r} by other factors, "
                    "because their first blocks differ; give shards of one run "
                    "(survey(…, shard=(i, N)))"
                )
        whole = replace(self, provenance=provenance, n=self.n + other.n.to(self.n), directions={})
        whole.start_from(self._origin)
        for direction in self.directions:
            add_direction(whole.directions[direction], self.directions[direction], self.n)
            add_direction(whole.directions[direction], other.directions[direction], other.n)
        return whole

    # ---------------------------------------------------------------------------------------- files

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums by their names in a file, as views of their own storage."""
        named = {"n": self.n} | self._origin
        for direction, sums in self.directions.items():
            named |= dict(sums.tensors(direction))
        return named

    def metadata(self) -> dict[str, str]:
        """Return the metadata of these moments in a file."""
        return {
            "pairs": json.dumps(self.pairs),
            "token_hook": json.dumps(self.token_hook),
            "moment_dtype": str(self.moment_dtype).removeprefix("torch."),
            "sketch": json.dumps(asdict(self.sketch)),
            "provenance": self.provenance.to_json(),
        }

    @classmethod
    def load(cls, path: str | Path) -> "SurveyMoments":
        """Return the moments that `save` wrote.

        Raises:
            FileFormatError: the file is truncated, of another kind or of another schema.
        """
        path = Path(path)
        opened = mapped_tensors(path, SURVEY_SCHEMA)
        value = lambda kind, name: stored_value(  # noqa: E731
            path, kind, opened.metadata.get(name), repr(name)
        )
        dtype = opened.metadata.get("moment_dtype")
        if dtype not in ("float32", "float64"):
            raise FileFormatError(
                f"{str(path)!r} has moment_dtype {dtype!r}; expected 'float32' or 'float64': copy "
                "the file, or survey again"
            )
        moments = cls(
            pairs=value(tuple[tuple[str, str], ...], "pairs"),
            token_hook=value(str | None, "token_hook"),
            moment_dtype=getattr(torch, dtype),
            sketch=_stored_sketch(path, opened.metadata.get("sketch")),
            provenance=read_provenance(path, opened.metadata),
        )
        start_stored(moments, opened)
        add_whole(moments, path)
        return moments

    def __repr__(self) -> str:
        return (
            f"SurveyMoments({self.n_tokens:,} tokens, {len(self.pairs)} pairs, "
            f"{self.sketch.columns} columns, {human_bytes(self.n_bytes)})"
        )


def _stored_sketch(path: Path, text: str | None) -> Sketch:
    """Return the sketch in the metadata of a file."""
    return Sketch(**stored_fields(path, Sketch, json_object(path, text, "'sketch'")))
