"""Seconds to compare two streams by their moments: `lrt_lens.diff` with all kinds of directions."""

import numpy as np
import scipy.linalg
import torch
from threadpoolctl import threadpool_limits

import lrt_lens as lrt
from benchmarks.measuring import Measurement, Settings, alternate

_ROWS_PER_DOCUMENT = 20
_NEW = 0.5
"""Standard deviation of what the target has and the source has not."""


def diff_seconds_1024(settings: Settings) -> Measurement:
    """Median seconds of a comparison of two streams of 1024 dimensions, from moments with a null.

    The result also holds the seconds of one ``scipy.linalg.eigh`` of the same size, measured in
    turns, and the ratio of both.
    """
    d, rows = (32, 2_000) if settings.quick else (1024, 12_000)
    moments = _moments(d, rows, settings.seed)
    (pair,) = moments.pairs
    matrix = moments.scatter(pair, moments.parts.fit).yy.numpy()
    with threadpool_limits(limits=settings.threads):
        result = lrt.diff(moments)  # the warm-up of both
        values = scipy.linalg.eigh(matrix)[0]
        timings = alternate(
            lambda: lrt.diff(moments), lambda: scipy.linalg.eigh(matrix), settings.repetitions(5)
        )

    if list(result.kinds) != ["gained", "lost", "difference", "shift", "shared"]:
        raise RuntimeError(f"the comparison has the kinds {result.kinds}, expected all five")
    # No direction has more variance than the stream itself.
    if not result.table["variance"].max() <= values[-1] / result.n_tokens * (1 + 1e-9):
        raise RuntimeError("a direction has more variance than the first principal component")
    return Measurement(
        name="diff_seconds_1024",
        value=float(np.median(timings.a)),
        target=2.0,
        at_most=True,
        what=f"Seconds of lrt.diff from moments of {d} and {d} dimensions: all five kinds, ten "
        "directions each, with intervals, levels of noise and the shuffled pairs.",
        raw=timings.raw("diff", "eigh") | {"d": d, "rows": rows, "ratio_over_eigh": timings.ratio},
        notes=("seconds on this machine, not a ratio",),
    )


def _moments(d: int, rows: int, seed: int) -> lrt.CrossMoments:
    """Moments of correlated streams of one width, with a full null."""
    generator = torch.Generator().manual_seed(seed)
    # Variances fall as those of a residual stream do.
    x = torch.randn(rows, d, generator=generator) * torch.arange(1, d + 1) ** -0.5 + 1
    turn = torch.randn(d, d, generator=generator) * d**-0.5
    y = x @ turn + _NEW * torch.randn(rows, d, generator=generator) * d**-0.5
    return lrt.CrossMoments.from_activations(
        x, y, documents=np.arange(rows) // _ROWS_PER_DOCUMENT, null="full"
    )
