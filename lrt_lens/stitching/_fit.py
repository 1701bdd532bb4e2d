"""Fit and score every hook pair of one set of moments.

    grid = fit_grid(moments, Ridge())            # a `StitchGrid`; the same as moments.fit(Ridge())
    token = token_identity_map(moments, target_hook)     # what the current token alone explains

Each hook pair gets a map up and a map down. Cross-validation over the fitting folds chooses
penalties and ranks; the test fold only scores. ``r2_null`` is the score of the map fitted on
shuffled pairs, ``r2_token`` that of a ridge map from the source's embedding to the same target.
Moments without token identity have neither ``r2_token`` nor a gain over it: the columns are NaN.

Limits: every hook pair is fitted in memory, one after the other, on the device of the moments.
"""

import logging
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lrt_lens._progress import tqdm
from lrt_lens.errors import HookPointError
from lrt_lens.models._hook_points import HookPair, same_place
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._scatter import MapScore, between_folds, cka_of, score_map
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching._choices import gain_over_token
from lrt_lens.stitching._grid import COLUMNS, StitchGrid
from lrt_lens.stitching.solvers._ridge import Ridge, RidgeFitter
from lrt_lens.stitching.solvers._solver import (
    FoldErrors,
    MapFitter,
    PairFolds,
    Setting,
    Solver,
    wanted_pairs,
)

logger = logging.getLogger(__name__)


def fit_grid(
    moments: CrossMoments,
    solver: Solver | None = None,
    *,
    pairs: Sequence[HookPair] | None = None,
    progress: bool = False,
) -> StitchGrid:
    """Return the fitted and scored maps of all hook pairs, in both directions; needs no model.

    Args:
        moments: cross-moments of both models.
        solver: family of maps; `Ridge` if None.
        pairs: hook pairs to fit; all of the moments if None.
        progress: show a progress bar.

    Raises:
        HookPointError: the moments hold no cross-moments of a hook pair.
        TooFewDocumentsError: there is nothing to fit.
    """
    solver = solver or Ridge()
    fitted = wanted_pairs(moments, "fit", pairs)
    _warn_if_interpolating(moments, fitted)
    moments.warn_of_heavy_rows()
    fitters, similarity = solver.fitters(moments), GridCka(moments)
    # errors[0] is up, errors[1] is down, so that the flag ``down`` is the index.
    errors: tuple[dict[HookPair, FoldErrors], dict[HookPair, FoldErrors]] = ({}, {})
    about = {"solver": solver.name, "n_tokens": moments.n_fit, "exact": True}
    rows: dict[HookPair, dict[str, Any]] = {
        hook_pair: {"source_hook": hook_pair[0], "target_hook": hook_pair[1], **about}
        for hook_pair in fitted
    }
    with tqdm(total=2 * len(fitted), desc="fit", disable=not progress, leave=False) as bar:
        tokens, token_rows = _token_scores(moments, solver, fitted)
        for hook_pair, down in _in_order(fitted, solver):
            # The setting is chosen on the fitting folds; only then is the test fold scored.
            errors[down][hook_pair] = held_out = fitters[down].cross_validate(hook_pair)
            if down:
                rows[hook_pair] |= _scores_down(fitters[down], hook_pair, held_out)
            else:
                token = tokens[hook_pair[1]].r2_uniform if tokens else None
                rows[hook_pair] |= (
                    _scores_up(fitters[down], hook_pair, held_out)
                    | {"cka": similarity.cka(hook_pair)}
                    | token_rows.get(hook_pair[1], {})
                    | {"gain_cv": gain_over_token(held_out.r2_uniform, token)}
                )
            bar.update()
    folds = {
        hook_pair: PairFolds(errors[0][hook_pair], errors[1][hook_pair], tokens.get(hook_pair[1]))
        for hook_pair in fitted
    }
    return StitchGrid(
        moments=moments,
        solver=solver,
        scores=pd.DataFrame(list(rows.values()), columns=list(COLUMNS)),
        folds=folds,
    )


def _in_order(pairs: list[HookPair], solver: Solver) -> list[tuple[HookPair, int]]:
    """Return (hook pair, down) in an order in which spectra can be shared.

    Hook pairs with the same predicting hook point follow each other; so do both directions of a
    joint solver.
    """
    if solver.joint:
        return [(hook_pair, down) for hook_pair in pairs for down in (0, 1)]
    return [(p, 0) for p in sorted(pairs, key=lambda p: p[0])] + [
        (p, 1) for p in sorted(pairs, key=lambda p: p[1])
    ]


def _token_scores(
    moments: CrossMoments, solver: Solver, pairs: list[HookPair]
) -> tuple[dict[str, FoldErrors], dict[str, dict[str, float]]]:
    """Return errors and scores of token identity by target hook point.

    The prediction is by ridge regression, whichever solver the grid has: the strongest affine
    alternative explanation.
    """
    if moments.token_hook is None:
        return {}, {}
    fitter = RidgeFitter(moments, solver if isinstance(solver, Ridge) else Ridge(), down=False)
    # One fit per target hook point, whatever the number of source hook points.
    errors, rows = {}, {}
    for target in dict.fromkeys(t for _, t in pairs):
        hook_pair = (moments.token_hook, target)
        errors[target] = fitter.cross_validate(hook_pair)
        _, score = _fit_and_score(fitter, hook_pair, errors[target].setting)
        rows[target] = {"r2_token": score.r2, "r2_uniform_token": score.r2_uniform}
    return errors, rows


def _scores_up(fitter: MapFitter, hook_pair: HookPair, held_out: FoldErrors) -> dict[str, Any]:
    """Return the columns of the map up, with its null if the moments have one that counts."""
    setting, moments = held_out.setting, fitter.moments
    affine, score = _fit_and_score(fitter, hook_pair, setting)
    row = {
        "alpha": setting.alpha,
        "rank": _rank(setting, affine),
        "r2_cv": held_out.r2,
        "r2_uniform_cv": held_out.r2_uniform,
        "r2": score.r2,
        "r2_uniform": score.r2_uniform,
        "cosine": score.cosine,
    }
    # A sketched null has random orthonormal combinations of the target's dimensions as outputs. A
    # solver fits them as it fits the dimensions only if it fits each output separately.
    if hook_pair in moments.cross_null and (fitter.separable or moments.null == "full"):
        null = fitter.fit_null(hook_pair, setting)
        row["r2_null"] = score_map(
            null.weight, null.bias, moments.null_scatter(hook_pair, test=True)
        ).r2
    return row


def _scores_down(fitter: MapFitter, hook_pair: HookPair, held_out: FoldErrors) -> dict[str, Any]:
    """Return the columns of the map down."""
    affine, score = _fit_and_score(fitter, hook_pair, held_out.setting)
    return {
        "alpha_down": held_out.setting.alpha,
        "rank_down": _rank(held_out.setting, affine),
        "r2_down_cv": held_out.r2,
        "r2_uniform_down_cv": held_out.r2_uniform,
        "r2_down": score.r2,
        "r2_uniform_down": score.r2_uniform,
    }


def _rank(setting: Setting, affine: AffineMap) -> int:
    """Return the rank limit of the map; without one, the smaller width."""
    return setting.rank or min(affine.weight.shape)


def _fit_and_score(
    fitter: MapFitter, hook_pair: HookPair, setting: Setting
) -> tuple[AffineMap, MapScore]:
    """Return the map of all fitting folds and its score on the test fold."""
    affine = fitter.fit(hook_pair, setting)
    return affine, score_map(
        affine.weight, affine.bias, fitter.scatter(hook_pair, fitter.parts.test)
    )


class GridCka:
    """Debiased linear CKA of hook pairs; terms of a single hook point are computed only once."""

    def __init__(self, moments: CrossMoments) -> None:
        self.moments = moments
        self._own: dict[tuple[str, str], float] = {}

    def cka(self, hook_pair: HookPair) -> float:
        """Return the debiased linear CKA of a hook pair over the fitting folds.

        `lrt_lens.moments._scatter.cka_of` has the formula.
        """
        folds = [self.moments.scatter(hook_pair, (k,)) for k in self.moments.parts.fit]
        for hook, name in ((hook_pair[0], "xx"), (hook_pair[1], "yy")):
            if (name, hook) not in self._own:
                self._own[name, hook] = between_folds(
                    getattr(fold, name) / fold.n for fold in folds
                )
        cross = between_folds(fold.xy / fold.n for fold in folds)
        return cka_of(cross, self._own["xx", hook_pair[0]], self._own["yy", hook_pair[1]])


def _warn_if_interpolating(moments: CrossMoments, pairs: list[HookPair]) -> None:
    """Log a warning if the fitting folds have no more rows than the widest stream dimensions."""
    widest = max(max(len(moments.source[s].shift), len(moments.target[t].shift)) for s, t in pairs)
    if moments.n_fit <= widest:
        logger.warning(
            "%d tokens for %d dimensions: a map fitted on fewer rows than dimensions interpolates "
            "them; read the held-out columns, and harvest more tokens",
            moments.n_fit,
            widest,
        )


def token_identity_map(moments: CrossMoments, target_hook: str) -> AffineMap:
    """Return the ridge map from the source's token embedding to a target hook point.

    A stitch that is no better than this map transfers only token identity.

    Raises:
        HookPointError: the moments have no token embedding, or not this target hook point.
    """
    if moments.token_hook is None:
        raise HookPointError(
            "these moments hold no token identity; harvest them from a pair of models, or give "
            "tokens=… with activations of your own"
        )
    hooks = [
        hook
        for source, hook in moments.kept_pairs
        if source == moments.token_hook and same_place(hook, target_hook)
    ]
    if not hooks:
        raise HookPointError(
            f"these moments hold no hook pair {moments.token_hook!r} → {target_hook!r}; harvest "
            "that target hook point"
        )
    # Ridge, as for the column ``r2_token`` of a grid.
    hook_pair = (moments.token_hook, hooks[0])
    return fit_grid(moments, Ridge(), pairs=[hook_pair]).maps(hook_pair)[0]
