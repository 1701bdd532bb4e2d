"""Every layer pair fitted and scored from one set of moments, and the choice among them.

    grid = moments.fit(Ridge())
    grid.scores                                   # a row per pair; *_cv columns choose, the others report
    grid.best(source="blocks.3.hook_resid_post")  # a Stitch

Choices (penalty, layer) read cross-validated columns only. The test fold takes part in no fit and in no choice: the columns without
``_cv`` are its verdict. ``r2_null`` is the same fit on shuffled pairs, ``r2_token`` the same target predicted from the source's
embedding: what token identity alone explains. Early target layers are little more than token identity and are easy to predict, so the
default choice goes by ``gain_cv``: the share of what token identity leaves unexplained that the stitch explains,
``(r2_uniform_cv − token's) / (1 − token's)``, cross-validated.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from lrt_lens.errors import HookPointError, TooFewDocumentsError
from lrt_lens.models.hook_points import depth, residual_post, same_place
from lrt_lens.stitching.affine import AffineMap, MapPair
from lrt_lens.stitching.moments import FIT_PARTS, TEST_PARTS, CrossMoments, Pair
from lrt_lens.stitching.ridge import HeldOutFold, Ridge, Spectrum, score_weights
from lrt_lens.stitching.scatter import MapScore, Scatter, between_folds, cka_of, score_map
from lrt_lens.stitching.stitch import Stitch, StreamStatistics

logger = logging.getLogger(__name__)

COLUMNS = (
    "source_hook", "target_hook", "solver", "n_tokens", "alpha", "alpha_down", "r2_cv", "r2_uniform_cv", "gain_cv", "r2_down_cv",
    "r2_uniform_down_cv", "r2", "r2_uniform", "r2_down", "r2_uniform_down", "cosine", "cka", "r2_null", "r2_token", "r2_uniform_token",
)  # fmt: skip
"""Columns of ``grid.scores``."""


class Side:
    """One direction of a pair (``up`` or ``down``): scatters by parts and the spectra that all partners share."""

    def __init__(self, moments: CrossMoments, solver: Ridge, down: bool) -> None:
        self.moments, self.solver, self.down = moments, solver, down
        self._hook: str | None = None
        self._total: Spectrum
        self._folds: list[HeldOutFold]
        self.own_terms: dict[tuple[str, str], float] = {}
        """CKA's terms of single hook points, which all their pairs share."""

    def scatter(self, pair: Pair, parts: Iterable[int]) -> Scatter:
        """Scatter of a pair, seen from the side that predicts."""
        scatter = self.moments.scatter(pair, tuple(parts))
        return scatter.swapped() if self.down else scatter

    def fold(self, pair: Pair, k: int) -> tuple[Scatter, Scatter]:
        """(fitting folds without ``k``, fold ``k``)."""
        return self.scatter(pair, (p for p in FIT_PARTS if p != k)), self.scatter(pair, (k,))

    def prepare(self, pair: Pair) -> None:
        """Decompose the predicting hook point's scatter, unless the last pair had the same one."""
        hook = pair[int(self.down)]
        if hook == self._hook:
            return
        self._hook = hook
        self._total = self.solver.decompose(self.scatter(pair, FIT_PARTS).xx)
        self._folds = []
        for k in FIT_PARTS:
            fit, held_out = self.fold(pair, k)
            self._folds.append(HeldOutFold(self.solver.decompose(fit.xx), fit, held_out))

    def cross_validate(self, pair: Pair) -> tuple[float, float, float]:
        """(alpha, r2_cv, r2_uniform_cv): errors pooled over held-out folds, the penalty with the least of them."""
        self.prepare(pair)
        folds = [self.fold(pair, k) for k in FIT_PARTS]
        weights = score_weights(torch.stack([held_out.variance for _, held_out in folds]).sum(0))
        alphas = torch.tensor(self.solver.candidates, dtype=weights.dtype, device=weights.device)
        errors = sum(
            shared.errors(fit, held_out, shared.spectrum.shrink(alphas), weights)
            for shared, (fit, held_out) in zip(self._folds, folds, strict=True)
        )
        best = int(torch.as_tensor(errors)[:, 0].argmin())
        r2, r2_uniform = (1 - torch.as_tensor(errors)[best]).tolist()
        return float(alphas[best]), r2, r2_uniform

    def fit(self, pair: Pair, alpha: float) -> AffineMap:
        """The map of all fitting folds."""
        self.prepare(pair)
        return self._total.solve(self.scatter(pair, FIT_PARTS), alpha, *self._names(pair))

    def fit_null(self, pair: Pair, alpha: float) -> AffineMap:
        """The map of shuffled pairs; shuffling keeps Sxx, so the spectrum serves."""
        self.prepare(pair)
        scatter = self.moments.null_scatter(pair, test=False)
        return self._total.solve(scatter.swapped() if self.down else scatter, alpha, *self._names(pair))

    def refit_without(self, pair: Pair, k: int, alpha: float) -> AffineMap:
        """The map of all fitting folds but one: for the delete-a-group jackknife."""
        self.prepare(pair)
        return self._folds[k].spectrum.solve(self.fold(pair, k)[0], alpha, *self._names(pair))

    def _names(self, pair: Pair) -> tuple[str, str]:
        return (pair[1], pair[0]) if self.down else pair


def fit_grid(moments: CrossMoments, solver: Ridge, *, pairs: Sequence[Pair] | None = None, progress: bool = False) -> "StitchGrid":
    """Fit and score every pair; see `StitchGrid`."""
    chosen = list(moments.pairs if pairs is None else pairs)
    for pair in chosen:
        if pair not in moments.kept_pairs:
            raise HookPointError(f"these moments hold no pair {pair}; they hold {len(moments.pairs)}, such as {moments.pairs[0]}")
    if not moments.source or not chosen:
        raise TooFewDocumentsError(
            f"nothing to fit: {moments.n_tokens} tokens and {len(chosen)} pair(s); add rows and choose at least one pair"
        )
    _warn_if_interpolating(moments, chosen)
    up, down = Side(moments, solver, down=False), Side(moments, solver, down=True)
    with tqdm(total=2 * len(chosen), desc="fit", disable=not progress, leave=False) as bar:
        tokens = _token_scores(up, moments, chosen)
        rows = {pair: {"source_hook": pair[0], "target_hook": pair[1], "solver": solver.name, "n_tokens": moments.n_fit} for pair in chosen}
        # Pairs that share the predicting hook point follow each other: its spectra are computed once.
        for pair in sorted(chosen, key=lambda p: p[0]):
            rows[pair] |= _scores_up(up, pair) | tokens.get(pair[1], {})
            baseline = rows[pair].get("gain_cv", 0.0)
            rows[pair]["gain_cv"] = (rows[pair]["r2_uniform_cv"] - baseline) / (1 - baseline) if baseline < 1 else float("nan")
            bar.update()
        for pair in sorted(chosen, key=lambda p: p[1]):
            rows[pair] |= _scores_down(down, pair)
            bar.update()
    return StitchGrid(moments=moments, solver=solver, scores=pd.DataFrame(list(rows.values()), columns=list(COLUMNS)))


def _token_scores(side: Side, moments: CrossMoments, pairs: list[Pair]) -> dict[str, dict[str, float]]:
    """By target hook: what token identity alone predicts of it."""
    if moments.token_hook is None:
        return {}
    scores = {}
    for target in dict.fromkeys(t for _, t in pairs):
        pair = (moments.token_hook, target)
        alpha, _, r2_uniform_cv = side.cross_validate(pair)
        score = _test_score(side, pair, alpha)
        scores[target] = {"r2_token": score.r2, "r2_uniform_token": score.r2_uniform, "gain_cv": r2_uniform_cv}
    return scores


def _scores_up(side: Side, pair: Pair) -> dict[str, Any]:
    alpha, r2_cv, r2_uniform_cv = side.cross_validate(pair)
    score = _test_score(side, pair, alpha)
    row = {"alpha": alpha, "r2_cv": r2_cv, "r2_uniform_cv": r2_uniform_cv, "r2": score.r2, "r2_uniform": score.r2_uniform}
    row |= {"cosine": score.cosine, "cka": _cka(side, pair)}
    if pair in side.moments.cross_null:
        null = side.fit_null(pair, alpha)
        row["r2_null"] = score_map(null.weight, null.bias, side.moments.null_scatter(pair, test=True)).r2
    return row


def _scores_down(side: Side, pair: Pair) -> dict[str, Any]:
    alpha, r2_cv, r2_uniform_cv = side.cross_validate(pair)
    score = _test_score(side, pair, alpha)
    return {
        "alpha_down": alpha,
        "r2_down_cv": r2_cv,
        "r2_uniform_down_cv": r2_uniform_cv,
        "r2_down": score.r2,
        "r2_uniform_down": score.r2_uniform,
    }


def _test_score(side: Side, pair: Pair, alpha: float) -> MapScore:
    affine = side.fit(pair, alpha)
    return score_map(affine.weight, affine.bias, side.scatter(pair, TEST_PARTS))


def _cka(side: Side, pair: Pair) -> float:
    folds = [side.scatter(pair, (k,)) for k in FIT_PARTS]
    for hook, name in ((pair[0], "xx"), (pair[1], "yy")):
        if (name, hook) not in side.own_terms:
            side.own_terms[name, hook] = between_folds(torch.stack([getattr(fold, name) / fold.n for fold in folds]))
    cross = between_folds(torch.stack([fold.xy / fold.n for fold in folds]))
    return cka_of(cross, side.own_terms["xx", pair[0]], side.own_terms["yy", pair[1]])


def _warn_if_interpolating(moments: CrossMoments, pairs: list[Pair]) -> None:
    widest = max(max(len(moments.source[s].shift), len(moments.target[t].shift)) for s, t in pairs)
    if moments.n_fit <= widest:
        logger.warning(
            "%d tokens for %d dimensions: a map fitted on fewer rows than dimensions interpolates them; read the held-out columns, and harvest more tokens",
            moments.n_fit,
            widest,
        )


@dataclass(frozen=True)
class StitchGrid:
    """Scores of every layer pair, and its maps on request."""

    moments: CrossMoments
    """What everything here was computed from."""
    solver: Ridge
    scores: pd.DataFrame = field(repr=False)
    """A row per pair; columns as in ``COLUMNS``."""

    def best(self, source: str | int | None = None, target: str | int | None = None, *, by: str = "gain_cv") -> Stitch:
        """The pair with the highest cross-validated score (``by``), among those with the given hook points.

        ``by`` must be a ``_cv`` column: a choice that read the test fold would spoil its verdict.
        """
        if by not in self.scores.columns or not by.endswith("_cv"):
            options = [c for c in self.scores.columns if c.endswith("_cv")]
            raise ValueError(f"best(by={by!r}) would choose by a column that is not cross-validated; use one of {options}")
        table: pd.DataFrame = self.scores
        for column, hook in (("source_hook", source), ("target_hook", target)):
            if hook is not None:
                name = self._name(hook, column)
                table = table.loc[table[column] == name]
        if table.empty:
            raise HookPointError(f"no pair from {source!r} to {target!r} in this grid of {len(self.scores)}; see grid.scores")
        row = table.loc[table[by].idxmax()]
        return self[str(row["source_hook"]), str(row["target_hook"])]

    def __getitem__(self, pair: tuple[str | int, str | int]) -> Stitch:
        """The stitch of one pair of hook points (names or layers)."""
        names = (self._name(pair[0], "source_hook"), self._name(pair[1], "target_hook"))
        chosen = self.scores[(self.scores["source_hook"] == names[0]) & (self.scores["target_hook"] == names[1])]
        if chosen.empty:
            raise HookPointError(f"the pair {names} was not fitted; see grid.scores for the {len(self.scores)} that were")
        return self._stitch(names, chosen.iloc[0].to_dict())

    def __len__(self) -> int:
        return len(self.scores)

    def figure(self, value: str = "r2", *, chosen: Pair | None = None) -> Any:
        """Heat map of a score over all pairs beside its null (plotly)."""
        from lrt_lens.report.figures import grid_figure

        return grid_figure(self.scores, value=value, chosen=chosen)

    def _repr_html_(self) -> str:
        return self.scores.round(3).to_html(index=False)

    def _name(self, hook: str | int, column: str) -> str:
        names = sorted(self.scores[column].unique(), key=depth)
        if isinstance(hook, int):
            wanted = residual_post(hook if hook >= 0 else hook + self._n_layers(column, names))
            matches = [name for name in names if same_place(name, wanted)]
        else:
            matches = [name for name in names if same_place(name, hook)]
        if not matches:
            raise HookPointError(f"{hook!r} is no {column.replace('_', ' ')} of this grid; it has {names}")
        return matches[0]

    def _n_layers(self, column: str, names: Sequence[str]) -> int:
        """Layers of a model, against which negative layers count; up to the deepest hook point here where the model is unknown."""
        provenance = self.moments.provenance
        model = provenance.source if column == "source_hook" else provenance.target
        return model.n_layers if model else math.ceil(max(map(depth, names)))

    def _stitch(self, pair: Pair, row: dict[str, Any]) -> Stitch:
        moments = self.moments
        up, down = Side(moments, self.solver, down=False), Side(moments, self.solver, down=True)
        alpha, alpha_down = float(row["alpha"]), float(row["alpha_down"])
        null = None
        if pair in moments.cross_null and moments.null == "full":
            null = MapPair(up.fit_null(pair, alpha), down.fit_null(pair, alpha_down))
        total = moments.scatter(pair, FIT_PARTS)
        return Stitch(
            maps=MapPair(up.fit(pair, alpha), down.fit(pair, alpha_down)),
            source_statistics=StreamStatistics(total.mean_x, total.xx / total.n, moments.source[pair[0]].median_norm),
            target_statistics=StreamStatistics(total.mean_y, total.yy / total.n, moments.target[pair[1]].median_norm),
            scores={key: (value if isinstance(value, str) else float(value)) for key, value in row.items()},
            provenance=moments.provenance,
            null=null,
            refits=tuple(MapPair(up.refit_without(pair, k, alpha), down.refit_without(pair, k, alpha_down)) for k in FIT_PARTS),
        )
