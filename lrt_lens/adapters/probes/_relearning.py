"""A probe of one model, learnt again from rows of another, by the same method.

Arms that learn a probe on the target differ from the transferred one in their data only: read
position, classes and method are those of the probe.

    native = relearnt_from(transferred, rows, numbers, seed=0)

Limits: a probe that was not fitted here has no method; logistic regression is its reference.
"""

from dataclasses import replace

import numpy as np
import torch

from lrt_lens.adapters.probes._linear_probe import LinearProbe
from lrt_lens.adapters.probes._probe_fits import METHODS, LinearFits


def method_of(probe: LinearProbe) -> str:
    """Return the key of ``METHODS`` by which the arms of a probe are fitted."""
    return probe.method if probe.method in METHODS else "logistic_regression"


def fits_of(probe: LinearProbe) -> LinearFits:
    """Return the functions by which the arms of a probe are fitted."""
    return METHODS[method_of(probe)]


def relearnt_from(
    like: LinearProbe,
    rows: np.ndarray,
    y: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> LinearProbe:
    """Return a probe of the model and hook point of ``like``, fitted on its rows.

    Args:
        like: probe of the model that the rows are from.
        rows: states that the probe reads, without a map before them, [text, d].
        y: number of the class of each row.
        groups: group of each row; rows of a group share a fold.
        seed: seed of the folds.
    """
    fit = fits_of(like).fit(rows, y, len(like.classes), groups=groups, seed=seed)
    return replace(
        like,
        weight=torch.from_numpy(fit.weight),
        bias=torch.from_numpy(fit.bias),
        method=method_of(like),
        penalty=fit.penalty,
        before=None,
    )
