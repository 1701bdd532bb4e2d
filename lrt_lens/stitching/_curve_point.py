"""One point of a learning curve: the maps of one number of tokens, and their scores.

    point = fit_point(moments, pair, Ridge(), test, {"write": {}, "read": {}})
    point.up, point.scores["r2"]

Limits: the map down is fitted only if directions ask for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.statistics._group_scores import GroupScore
from lrt_lens.stitching._affine import AffineMap, MapPair, StreamStatistics
from lrt_lens.stitching._curve_scores import HeldOutGroups
from lrt_lens.stitching._fidelity import fidelity
from lrt_lens.stitching._stitch_data import StitchData
from lrt_lens.stitching.solvers._solver import MapFitter, Setting, Solver

Kind = Literal["write", "read"]
"""Roles of a direction, as in `fidelity`."""


@dataclass(frozen=True)
class CurvePoint:
    """The map up that was fitted on some tokens, with its scores on the test fold."""

    n_tokens: int
    """Tokens that fitted."""
    alpha: float
    """Selected penalty."""
    up: AffineMap
    scores: dict[str, GroupScore]
    """``r2`` and ``r2_uniform``."""
    fidelities: list[dict[str, Any]] = field(repr=False)
    """One row per direction: ``score``, ``direction``, ``value``, ``low``, ``high``."""


def fit_point(
    moments: CrossMoments,
    pair: HookPair,
    solver: Solver,
    test: HeldOutGroups,
    directions: Mapping[Kind, Mapping[str, Tensor]],
) -> CurvePoint:
    """Return the map of the fitting folds of ``moments`` with its scores.

    Args:
        moments: moments of one number of tokens.
        pair: hook pair.
        solver: family of maps; cross-validation chooses its setting anew.
        test: groups of the test fold, of the whole harvest.
        directions: directions [d_source] by role and name.
    """
    up, down = solver.fitters(moments)
    setting = up.cross_validate(pair).setting
    affine = up.fit(pair, setting)
    rows = []
    if any(directions.values()):
        data = _stitch_data(moments, pair, (up, down), (affine, setting), test)
        rows = [
            {"score": kind, "direction": name, "value": one.value, "low": one.low, "high": one.high}
            for kind, named in directions.items()
            for name, direction in named.items()
            for one in [fidelity(data, direction, kind, n_random=2)]
        ]
    return CurvePoint(
        n_tokens=moments.n_fit,
        alpha=setting.alpha,
        up=affine,
        scores=test.scores(test.errors(affine)),
        fidelities=rows,
    )


def _without_folds(fitter: MapFitter, pair: HookPair, setting: Setting) -> list[AffineMap]:
    """Return the maps of all fitting folds except one each."""
    return [fitter.refit_without(pair, k, setting) for k in fitter.parts.fit]


def _stitch_data(
    moments: CrossMoments,
    pair: HookPair,
    fitters: tuple[MapFitter, MapFitter],
    fitted: tuple[AffineMap, Setting],
    test: HeldOutGroups,
) -> StitchData:
    """Return the content of the stitch of these moments, from which fidelity is computed."""
    (up, down), (affine, setting) = fitters, fitted
    setting_down = down.cross_validate(pair).setting
    total = moments.scatter(pair, moments.parts.fit)
    refits = zip(
        _without_folds(up, pair, setting), _without_folds(down, pair, setting_down), strict=True
    )
    return StitchData(
        maps=MapPair(affine, down.fit(pair, setting_down)),
        source_statistics=StreamStatistics(
            total.mean_x, total.xx / total.n, moments.source[pair[0]].median_norm
        ),
        target_statistics=StreamStatistics(
            total.mean_y, total.yy / total.n, moments.target[pair[1]].median_norm
        ),
        scores={"alpha": setting.alpha},
        provenance=moments.provenance,
        refits=tuple(MapPair(*both) for both in refits),
        held_out=tuple(test.groups),
    )
