"""All closed-form solvers on one pair, compared with ridge alone."""

import time
from functools import partial

from benchmarks.measuring import Measurement, Settings, alternate
from benchmarks.synthetic import synthetic_moments
from lrt_lens.stitching.solvers import (
    AxisScaling,
    LeastSquares,
    Mean,
    Procrustes,
    ReducedRank,
    Ridge,
    Solver,
    Translation,
)

SOLVERS: tuple[Solver, ...] = (
    Mean(),
    Translation(),
    AxisScaling(),
    Procrustes(scale=False),
    Procrustes(),
    ReducedRank(),
    LeastSquares(),
    LeastSquares(intercept=False),
    Ridge(),
)


def all_solvers_time_over_ridge(settings: Settings) -> Measurement:
    """Seconds of all closed-form solvers ÷ seconds of `Ridge` alone, on one pair.

    Every solver fits up and down, with cross-validated and test scores.
    """
    moments = synthetic_moments(settings)
    hook_pair = moments.pairs[len(moments.pairs) // 2]
    fit = partial(moments.fit, pairs=[hook_pair])
    timings = alternate(lambda: [fit(solver) for solver in SOLVERS], lambda: fit(Ridge()), 2)
    alone = {}
    for solver in SOLVERS:
        started = time.perf_counter()
        fit(solver)
        alone[solver.name] = time.perf_counter() - started
    iterative = sum(seconds for name, seconds in alone.items() if name.startswith("procrustes"))
    return Measurement(
        name="all_solvers_time_over_ridge",
        value=timings.ratio,
        target=10.0,
        at_most=True,
        what=f"{len(SOLVERS)} closed-form solvers on one pair from ready moments, up and down, "
        "cross-validated and tested ÷ ridge with 20 penalties alone.",
        raw=timings.raw("all_solvers", "ridge")
        | {
            "seconds_of_each": alone,
            "ratio_without_procrustes": (sum(alone.values()) - iterative) / alone["ridge"],
        },
        notes=(
            "Procrustes to the narrower model has no closed form; its alternation takes nearly all "
            "of the time",
        ),
    )
