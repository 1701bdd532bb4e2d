"""Learning curve: would more text improve the map, or is the relation not linear?

    curve = lrt.learning_curve(pair, documents, hooks=(3, 5), n_tokens=100_000, mlp=True)
    curve.verdict              # "more data helps", "not linear", "saturated", …
    curve.summary, curve.figure()
    stitch = curve.grid.best() # the stitch of all tokens

Problem: a map explains 60 % of the target's variance. With more text it may explain more; or no
linear map can, and text is wasted. Fitting again on more and more text takes as many passes over
both models as there are points. Mechanism: moments add, so the first half of a harvest is nested in
the whole. One harvest copies its sums at each point (`lrt_lens.moments._nested_moments`), maps are
fitted from each copy, with a penalty chosen on that copy, and all are scored on the one test fold
of the whole harvest. Points lie at n, n/√2, n/2, … tokens. With ``mlp=True`` a network with one
hidden layer is trained on all rows (`Mlp`), the end of the same curve without linearity.

**Scores.** ``r2``, ``r2_uniform``, ``gain`` (over token identity of all tokens) and ``fve_nrm``
(`lrt_lens.stitching._reader_metric`; it needs rows, so it is computed from a sample of the test
fold's rows), and the fidelity of directions (``write=``, ``read=``). Intervals are 95%, by the
jackknife over groups of test documents.

**Verdict.** Let D be the last doubling: R² of all tokens minus R² of half of them, the two maps
scored on the same text, with an interval over test documents (paired; it holds the expected rise in
.92 to .98 of simulated samples). Let M be R² of the network minus that of the map. A difference
counts from ``worth`` on, .005 by default:

- *more data helps*: D is at least ``worth``, also at the low end of its interval;
- flat if D is below ``worth`` at the high end; then *not linear* if M is at least ``worth`` at its
  low end, *saturated* if M is below ``worth`` at its high end, *flat* if M is unknown or between;
- *undecided*: the interval of D contains ``worth``, or no point has about half of the tokens:
  harvest more text.

If more data helps and M counts too, it is *more data helps, and not linear*.

Limits: one hook pair and one process, without checkpoints. The network sees the rows of one
harvest; better training may raise it, so "saturated" means for this network.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lrt_lens._given_tensors import float_tensor
from lrt_lens._repr_html import card, facts, note, table
from lrt_lens._settings import resolve, takes
from lrt_lens._short_repr import ShortRepr
from lrt_lens.data._documents import Documents
from lrt_lens.figures._learning_curve import learning_curve_figure
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._harvest_settings import HarvestSettings
from lrt_lens.moments._harvesting import HarvestRun, settle, with_fields_of
from lrt_lens.moments._nested_moments import NestedMoments, NestedRun
from lrt_lens.moments.cache._activation_cache import ActivationCache
from lrt_lens.moments.cache._selection import RowSelection
from lrt_lens.moments.cache._writer import CacheWriter
from lrt_lens.statistics._group_scores import GroupScore
from lrt_lens.statistics._intervals import NOTHING, Interval
from lrt_lens.stitching._curve_point import CurvePoint, Kind, fit_point
from lrt_lens.stitching._curve_scores import HeldOutGroups, RowSample
from lrt_lens.stitching._fit import fit_grid
from lrt_lens.stitching._grid import StitchGrid
from lrt_lens.stitching.recipes._mlp import Mlp, MlpResult
from lrt_lens.stitching.recipes._rows import PairedRows
from lrt_lens.stitching.solvers._ridge import Ridge, RidgeFitter
from lrt_lens.stitching.solvers._solver import Solver
from lrt_lens.typing import ArrayLike

CURVE_COLUMNS = ("map", "n_tokens", "score", "direction", "value", "low", "high")
"""Columns of the table of a learning curve."""
WORTH = 0.005
"""Smallest difference of R² that counts."""
_SAMPLE_ROWS = 8192
"""Rows of the test fold from which ``fve_nrm`` is computed, at most about that many."""
_NEARLY_ALL = 0.9
"""Share of all tokens above which a point is so near the last one that it is left out."""
_HALF = (0.4, 0.6)
"""Shares of all tokens that pass for half of them."""
_FEWEST_ROWS = 16
"""Fewest rows per fold of a point."""


@dataclass(frozen=True, repr=False)
class LearningCurve(ShortRepr):
    """Scores of the maps of nested beginnings of one harvest, on the same held-out text."""

    table: pd.DataFrame
    """One row per map, number of tokens and score.

    - ``map``: ``affine`` or ``mlp``; ``n_tokens``: tokens that fitted;
    - ``score``: ``r2``, ``r2_uniform``, ``gain``, ``fve_nrm``, ``write``, ``read``;
    - ``direction``: name of the direction of a fidelity, else empty;
    - ``value``, ``low``, ``high``: the score with its 95% interval over test documents.
    """
    last_doubling: Interval
    """D: R² of all tokens minus R² of half as many, with its 95% interval."""
    mlp_gain: Interval | None
    """M: R² of the network minus that of the map of all tokens; None without a network."""
    grid: StitchGrid = field(repr=False)
    """The fit of all tokens, from which `StitchGrid.best` takes the stitch."""
    n_test_tokens: int
    """Tokens of the test fold."""
    mlp: MlpResult | None = field(default=None, repr=False)
    """The trained network."""
    worth: float = WORTH
    """Smallest difference of R² that counts."""

    @property
    def verdict(self) -> str:
        """Answer by the rule of the module docstring, such as ``"more data helps"``."""
        more, curved = (_against(one, self.worth) for one in (self.last_doubling, self.mlp_gain))
        if more == "above":
            return "more data helps" + (", and not linear" if curved == "above" else "")
        if more == "between":
            return "undecided"
        return {"above": "not linear", "below": "saturated"}.get(curved, "flat")

    @property
    def next_doubling(self) -> float:
        """Expected rise of R² with twice the tokens, if it shrinks as it did; NaN if it grew.

        It is D²/D′ with D the last doubling and D′ the one before, a power law in n.
        """
        rows = self.scores("r2")
        half, quarter = (_nearest(rows, share) for share in (2.0, 4.0))
        last, before = rows[-1][1] - half, half - quarter
        return last * last / before if 0 < last < before else math.nan

    def scores(self, score: str) -> list[tuple[int, float]]:
        """Return (tokens, value) of one score of the affine map, by number of tokens."""
        rows = self.table[(self.table["map"] == "affine") & (self.table["score"] == score)]
        return sorted(zip(rows["n_tokens"].tolist(), rows["value"].tolist(), strict=True))

    @property
    def summary(self) -> pd.DataFrame:
        """One row per map and number of tokens, with one column per score."""
        named = self.table["score"] + self.table["direction"].map(
            lambda name: f" {name}" if name else ""
        )
        wide = self.table.assign(score=named).pivot(
            index=["map", "n_tokens"], columns="score", values="value"
        )
        return wide[list(dict.fromkeys(named))].reset_index().rename_axis(columns=None)

    def figure(self) -> Any:
        """Return a plotly figure of the scores against the number of tokens."""
        return learning_curve_figure(self.table, verdict=self.verdict, n_test=self.n_test_tokens)

    def _repr_html_(self) -> str:
        about = {
            "verdict": self.verdict,
            "last doubling of R²": str(self.last_doubling),
            "network minus map, R²": str(self.mlp_gain) if self.mlp_gain else None,
            "held-out tokens": self.n_test_tokens,
        }
        legend = f"A difference of R² counts from {self.worth:g} on."
        return card("LearningCurve", facts(about), table(self.summary), note(legend))


def _against(interval: Interval | None, worth: float) -> str:
    """Return whether an interval is above, below or around the smallest difference that counts."""
    if interval is None:
        return "unknown"
    if interval.low >= worth:
        return "above"
    return "below" if interval.high < worth else "between"


def _nearest(rows: list[tuple[int, float]], divisor: float) -> float:
    """Return the value at the number of tokens nearest to the last one over ``divisor``."""
    wanted = math.log(rows[-1][0] / divisor)
    return min(rows, key=lambda row: abs(math.log(row[0]) - wanted))[1]


@takes(HarvestSettings)
def learning_curve(
    pair: ModelPair,
    documents: Documents,
    hooks: tuple[int | str, int | str],
    *,
    n_points: int = 12,
    solver: Solver | None = None,
    write: Mapping[str, ArrayLike] | None = None,
    read: Mapping[str, ArrayLike] | None = None,
    mlp: bool | Mlp = False,
    settings: HarvestSettings | None = None,
    progress: bool = True,
    **options: Any,
) -> LearningCurve:
    """Return held-out scores against the number of tokens, from one harvest of one hook pair.

    Args:
        pair: source model and target model.
        documents: texts, chats, a file or a dataset, as for `harvest`.
        hooks: hook points or layers (source, target).
        n_points: number of points, at n, n/√2, n/2, … tokens; at least 5. Points with fewer than
            16 rows per fold are left out.
        solver: family of maps; `Ridge` if None.
        write: directions [d_source] that are added to the stream, by name, for ρ_write.
        read: directions [d_source] on which the stream is projected, by name, for ρ_read.
        mlp: True, or settings of the network: also train it on all rows, which are then kept in
            a temporary folder.
        settings: a `HarvestSettings`; ``n_tokens`` is n, the test fold included.
        progress: show a progress bar.
        options: fields of `HarvestSettings` as keywords.

    Raises:
        ValueError: ``n_tokens`` is None, ``n_points`` is below 5, there is a shard, or a direction
            has another width.
        TooFewDocumentsError, HookPointError, MismatchError, NonFiniteError: as `harvest` does.
    """
    chosen = with_fields_of(documents, resolve(HarvestSettings, settings, options))
    _check(chosen, n_points)
    run = settle(pair, settings=replace(chosen, pairs=[hooks]))
    hook_pair = run.pairs[0]
    directions: dict[Kind, dict[str, Tensor]] = {
        "write": _checked("write", write, pair.source.d_model),
        "read": _checked("read", read, pair.source.d_model),
    }
    recipe = Mlp() if mlp is True else mlp or None
    sample = RowSample(hook_pair, run.plan.parts, _every(chosen))
    nested = NestedRun.of(run, _marks(chosen, n_points))
    with _rows_for(recipe, run) as writer:
        moments: NestedMoments = nested.harvest_share(
            documents,
            checkpoint=None,
            checkpoint_every=math.inf,
            on_block=sample.take,
            cache=writer,
            progress=progress,
        )
        curve = curve_of(moments, solver or Ridge(), directions, sample)
        if writer is None or recipe is None:
            return curve
        writer.close()
        cache = ActivationCache.open(writer.folder)
        network = recipe.fit(cache, hooks=hook_pair, device=pair.source.device, progress=progress)
        return with_network(curve, network, cache[hook_pair], sample)


def curve_of(
    moments: NestedMoments,
    solver: Solver,
    directions: Mapping[Kind, Mapping[str, Tensor]],
    sample: RowSample | None = None,
) -> LearningCurve:
    """Return the learning curve of nested moments, without a network.

    Args:
        moments: the moments of one hook pair, with its copies.
        solver: family of maps.
        directions: directions [d_source] by role and name.
        sample: rows of the test fold for ``fve_nrm``; None: without that score.
    """
    pair = moments.pairs[0]
    grid = fit_grid(moments, solver, pairs=[pair])
    test = HeldOutGroups(moments, pair)
    token = _token_score(grid, test)
    beginnings = [*map(moments.at, _usable_marks(moments)), moments]
    half = _half([one.n_fit for one in beginnings])
    points = [fit_point(one, pair, solver, test, directions) for one in beginnings]
    rows = [row for point in points for row in _rows(point, test, token, sample)]
    return LearningCurve(
        table=pd.DataFrame(rows, columns=list(CURVE_COLUMNS)),
        last_doubling=NOTHING
        if half is None
        else (points[-1].scores["r2"] - points[half].scores["r2"]).interval(test.sizes),
        mlp_gain=None,
        grid=grid,
        n_test_tokens=test.n_tokens,
    )


def with_network(
    curve: LearningCurve, network: MlpResult, rows: PairedRows, sample: RowSample | None = None
) -> LearningCurve:
    """Return a curve with a network that was trained on rows of the same harvest.

    Args:
        curve: the curve of the affine maps.
        network: the network.
        rows: the rows of the harvest, in the same parts.
        sample: rows of the test fold for ``fve_nrm``; None: without that score.
    """
    pair = (network.source_hook, network.target_hook)
    moments = curve.grid.moments
    test = HeldOutGroups(moments, pair)
    errors = torch.stack([_network_errors(network, rows, part) for part in test.parts])
    scores = test.scores(errors.to(test.groups[0].xy))
    affine = test.scores(test.errors(curve.grid.maps(pair)[0]))
    token = _token_score(curve.grid, test)
    added = _score_rows("mlp", moments.n_fit, scores, test, token)
    if sample is not None:
        added += _fve_rows("mlp", moments.n_fit, network.points, sample)
    return replace(
        curve,
        table=pd.concat([curve.table, pd.DataFrame(added)], ignore_index=True),
        mlp_gain=(scores["r2"] - affine["r2"]).interval(test.sizes),
        mlp=network,
    )


def _network_errors(network: MlpResult, rows: PairedRows, part: int) -> Tensor:
    """Return Σ(y − ŷ)² of the rows of one part, per target dimension [d_target]."""
    total = torch.zeros(rows.widths[1], dtype=torch.float64)
    for x, y in rows.batches(RowSelection(parts=(part,)), _SAMPLE_ROWS):
        total += (y.double() - network.points(x).double()).square().sum(0)
    return total


# ---------------------------------------------------------------------------------------- arguments


def _check(settings: HarvestSettings, n_points: int) -> None:
    if settings.n_tokens is None:
        raise ValueError(
            "n_tokens is None; the points of a learning curve are shares of it: give the number of "
            "tokens to read"
        )
    if settings.shard is not None or settings.file_shares is not None:
        raise ValueError(
            f"shard is {settings.shard} and file_shares {settings.file_shares}; a learning curve "
            "is computed by one process from one stream: leave them out"
        )
    if n_points < 5:
        raise ValueError(
            f"n_points is {n_points}; expected at least 5, so that n, n/2 and n/4 are among them"
        )


def _checked(
    role: str, directions: Mapping[str, ArrayLike] | None, width: int
) -> dict[str, Tensor]:
    """Return the directions as tensors, by name."""
    tensors = {n: float_tensor(role, v).detach() for n, v in (directions or {}).items()}
    for name, direction in tensors.items():
        if direction.shape != (width,):
            raise ValueError(
                f"{role}[{name!r}] has shape {tuple(direction.shape)}; expected [{width}], a "
                "direction of the source's stream"
            )
    return tensors


def _every(settings: HarvestSettings) -> int:
    """Return of how many rows of the test fold one is kept."""
    share = float(settings.parts.shares[-1])
    return max(1, round((settings.n_tokens or 0) * share / _SAMPLE_ROWS))


def _marks(settings: HarvestSettings, n_points: int) -> tuple[int, ...]:
    """Return the rows per fold of all points but the last, ascending."""
    fold = (settings.n_tokens or 0) * float(settings.parts.shares[0])
    marks = [round(fold * 2 ** (-k / 2)) for k in range(n_points - 1, 0, -1)]
    return tuple(dict.fromkeys(mark for mark in marks if mark >= _FEWEST_ROWS))


@contextmanager
def _rows_for(recipe: Mlp | None, run: HarvestRun) -> Iterator[CacheWriter | None]:
    """Return a context with the writer of a temporary cache; None without a network."""
    if recipe is None:
        yield None
        return
    with (
        TemporaryDirectory(prefix="lrt-curve-") as folder,
        CacheWriter(Path(folder) / "rows", run.cache_manifest("float32")) as writer,
    ):
        yield writer


# --------------------------------------------------------------------------------------- the points


def _usable_marks(moments: NestedMoments) -> list[int]:
    """Return the marks whose points have clearly fewer tokens than the whole harvest."""
    counts = {
        mark: sum(min(mark, float(moments.n[k])) for k in moments.parts.fit)
        for mark in moments.marks
    }
    return [mark for mark, n in counts.items() if n < _NEARLY_ALL * moments.n_fit]


def _half(tokens: list[int]) -> int | None:
    """Return the index of the number of tokens nearest to half of the last one.

    None if there is none between .4 and .6 of it: the folds ended at very different lengths.
    """
    nearest = min(range(len(tokens)), key=lambda i: abs(math.log(2 * tokens[i] / tokens[-1])))
    share = tokens[nearest] / tokens[-1]
    return nearest if _HALF[0] <= share <= _HALF[1] else None


def _token_score(grid: StitchGrid, test: HeldOutGroups) -> GroupScore | None:
    """Return ``r2_uniform`` of token identity, fitted on all tokens; None if it is unknown."""
    moments, errors = grid.moments, grid.folds[test.pair].token
    if moments.token_hook is None or errors is None:
        return None
    solver = grid.solver if isinstance(grid.solver, Ridge) else Ridge()
    token_pair = (moments.token_hook, test.pair[1])
    affine = RidgeFitter(moments, solver, down=False).fit(token_pair, errors.setting)
    groups = [moments.scatter(token_pair, (part,)) for part in test.parts]
    return test.scores(test.errors(affine, groups))["r2_uniform"]


def _rows(
    point: CurvePoint, test: HeldOutGroups, token: GroupScore | None, sample: RowSample | None
) -> list[dict[str, Any]]:
    """Return the rows of the table of one affine map."""
    rows = _score_rows("affine", point.n_tokens, point.scores, test, token)
    if sample is not None:
        rows += _fve_rows("affine", point.n_tokens, point.up.points, sample)
    about = {"map": "affine", "n_tokens": point.n_tokens}
    return rows + [about | row for row in point.fidelities]


def _score_rows(
    name: str,
    n_tokens: int,
    scores: dict[str, GroupScore],
    test: HeldOutGroups,
    token: GroupScore | None,
) -> list[dict[str, Any]]:
    if token is not None:
        scores = scores | {"gain": scores["r2_uniform"].over(token)}
    return [
        _row(name, n_tokens, score, value.interval(test.sizes)) for score, value in scores.items()
    ]


def _fve_rows(name: str, n_tokens: int, points: Any, sample: RowSample) -> list[dict[str, Any]]:
    score, sizes = sample.fve(points)
    return [_row(name, n_tokens, "fve_nrm", score.interval(sizes))] if sizes else []


def _row(name: str, n_tokens: int, score: str, interval: Interval) -> dict[str, Any]:
    ends = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {"map": name, "n_tokens": n_tokens, "score": score, "direction": ""} | ends
