"""Kinds of linear classifier and the settings of their fit.

    fit, classes = fit_rows(rows, labels, method="logistic_regression")
    fit.weight, fit.bias                              # [d, column], [column]

Problem: a probe and the controls of its evaluation must be fitted in the same way, whatever that
is. Mechanism: a kind of classifier is a pair of functions in ``METHODS``, which a probe names by
its ``method``.

Limits: a probability is the sigmoid or softmax of the logits, whatever was fitted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lrt_lens._settings import Settings
from lrt_lens.adapters.probes._labels import Label, class_numbers, classes_of
from lrt_lens.adapters.probes._logistic import (
    N_FOLDS,
    PENALTIES,
    Logistic,
    fit_logistic,
    fit_towards,
)
from lrt_lens.models._reading import ShortTexts
from lrt_lens.models._text_codec import Truncation
from lrt_lens.models._text_reader import SKIP_FIRST


@dataclass(frozen=True)
class LinearFits:
    """Functions that fit one kind of linear classifier, with the signatures of logistic regression.

    They return weight and bias as `Logistic`. Its probabilities are a sigmoid or softmax of the
    logits, whatever was fitted.
    """

    fit: Callable[..., Logistic]
    """Fit from labels alone, as `fit_logistic`."""
    fit_towards: Callable[..., Logistic]
    """Fit from few labels, shrunk to another classifier, as `fit_towards`."""


METHODS = {"logistic_regression": LinearFits(fit_logistic, fit_towards)}
"""Kinds of classifier by `LinearProbe.method`; `evaluate_probe` fits its arms with the probe's."""


@dataclass(frozen=True)
class ProbeSettings(Settings):
    """Settings of `LinearProbe.fit`: classifier, mask, and rules for texts that do not fit it."""

    penalties: tuple[float, ...] = PENALTIES
    """Candidates for λ, chosen over stratified folds; a text stays in one fold."""
    n_folds: int = N_FOLDS
    """Number of these folds."""
    skip_first: int = SKIP_FIRST
    """Number of first positions that are masked."""
    short_texts: ShortTexts = "drop"
    """Rule for texts that the mask leaves nothing of: ``"drop"`` leaves them out and lists
    them, ``"refuse"`` raises, ``"unmasked"`` reads them without the mask. The probe reads other
    texts by the same rule."""
    truncation: Truncation | None = None
    """End that is cut off texts longer than the context, here and when the probe reads others."""
    name: str = "probe"
    """Name of the probe, such as the concept that it classifies."""
    method: str = "logistic_regression"
    """Kind of classifier, a key of ``METHODS``."""
    seed: int = 0
    """Seed of the folds."""


def fit_rows(
    rows: Tensor,
    labels: Sequence[Label],
    *,
    method: str = "logistic_regression",
    groups: np.ndarray | None = None,
    **options: Any,
) -> tuple[Logistic, tuple[Label, ...]]:
    """Return the classifier and the classes of rows with one label each.

    ``method`` is a key of ``METHODS``; ``options`` are those of `fit_logistic`.
    """
    classes = classes_of(labels)
    x, y = rows.cpu().double().numpy(), class_numbers(labels, classes)
    return METHODS[method].fit(x, y, len(classes), groups=groups, **options), classes
