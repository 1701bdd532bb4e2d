"""A transferred probe, corrected on unlabelled texts until it scores them as the source's does.

Problem: a map is fitted on all tokens of all documents, and a probe reads one direction of few
texts: what the map loses of that direction, it loses in every text. Mechanism: both models read
unlabelled texts of the probe's own kind, and ridge regression predicts what is missing from the
target's rows y,

    s = y·w + c + residual,      residual ≈ (y − ȳ)·v + e,      w ← w + v

where s are the scores of the source's probe. The penalty has the smallest leave-one-out error; if
no penalty has a smaller one than v = 0, the probe stays as it is. The texts need no labels.

    distilled = distilled_from(transferred, rows, source_scores, texts)

Source: distillation (Hinton, Vinyals and Dean, arXiv 1503.02531) of a linear read-out, with the
transferred one as prior.

Limits: tens of texts correct little; a probe behind a map that is applied before the pooling cannot
be corrected.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor

from lrt_lens.adapters.probes._linear_probe import LinearProbe
from lrt_lens.adapters.probes._logistic import Scaling

_PENALTIES = np.logspace(-1, 6, 22)
"""Penalties on standardised rows."""
FEWEST_TEXTS = 8
"""Number of texts below which nothing is corrected."""


def distilled_from(
    probe: LinearProbe, rows: Tensor, scores: np.ndarray, texts: Sequence[str]
) -> LinearProbe:
    """Return the probe with the correction that leaves the smallest error, or as it is.

    Args:
        probe: transferred probe, without a map before the pooling.
        rows: rows that it reads of the texts, [text, d].
        scores: logits of the source's probe on the same texts, [text, column].
        texts: the unlabelled texts.

    Raises:
        ValueError: the probe has a map before its pooling.
    """
    if probe.before is not None:
        raise ValueError(
            f"probe {probe.name!r} maps tokens before it pools them; rows cannot correct it: "
            "give a probe that reads one token or a mean"
        )
    if len(texts) < FEWEST_TEXTS:
        return probe
    y = rows.double().cpu().numpy()
    scaling = Scaling.of(y)
    standardised = scaling.rows(y)
    residual = scores - probe.logits(rows)
    weight, bias = np.zeros((y.shape[1], scores.shape[1])), np.zeros(scores.shape[1])
    for column, missing in enumerate(residual.T):
        # The error of leaving out one text, for v = 0: the mean of the others predicts it.
        nothing = missing.var() * (len(missing) / (len(missing) - 1)) ** 2
        fit: Any = RidgeCV(alphas=_PENALTIES).fit(standardised, missing)
        bias[column] = missing.mean()
        if -fit.best_score_ < nothing:
            weight[:, column] = fit.coef_
    correction = scaling.folded(weight, bias, penalty=0.0)
    return probe.reweighted(
        probe.weight.double().cpu() + torch.from_numpy(correction.weight),
        probe.bias.double().cpu() + torch.from_numpy(correction.bias),
        texts,
    )
