"""A transferred probe, combined with labelled texts of the target.

    transferred = stitch.transfer(probe)
    combined = lrt.combine_probe(
        pair.target, transferred, few_texts, few_labels, statistics=stitch.target_statistics
    )

Problem: a probe that is fitted on a few labels of the target alone is poor, and a transferred one
cannot learn. Mechanism: logistic regression whose weights have a normal prior around the
transferred weights w₀, in the metric of the target's stream (covariance Σ):

    minimise  mean cross-entropy + λ/2 ((w − w₀)ᵀ Σ (w − w₀) + (c − c₀)²)

``(w − w₀)ᵀ Σ (w − w₀)`` is the variance of the change of the logit over the stream. With
``z = Σ^-½ (x − μ)`` this is `lrt_lens.adapters.probes._logistic.fit_towards`. λ is chosen by
cross-validation over the labels; with too few of them for that, the probe stays as it is.

Limits: the bias is held to the transferred one too, because a free bias follows the class counts of
few labels; it becomes free as labels increase.
"""

import hashlib
import json
import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from lrt_lens._numbers import checked_number
from lrt_lens.adapters.labels._posterior_mean import RIDGE
from lrt_lens.adapters.labels._vector import COMBINED, refuse_other_statistics
from lrt_lens.adapters.probes._labels import check_labels, class_numbers, group_numbers, plain_label
from lrt_lens.adapters.probes._linear_probe import LinearProbe
from lrt_lens.adapters.probes._logistic import TOWARDS_PENALTIES, Logistic, Whitening, fit_towards
from lrt_lens.adapters.vectors._label_share import LabelShare
from lrt_lens.models._hooked_model import load_model
from lrt_lens.models._loading import ModelLike
from lrt_lens.stitching._affine import StreamStatistics


def combine_probe(
    model: ModelLike,
    transferred: LinearProbe,
    texts: Sequence[str],
    labels: Sequence[Any],
    *,
    statistics: StreamStatistics,
    penalty: Literal["cv"] | float = "cv",
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> LinearProbe:
    """Return a transferred probe combined with labelled texts of the target.

    Args:
        model: the target, on which the texts are read.
        transferred: a probe at a hook point of this model, with one label per text (no
            ``read="every"``).
        texts: labelled texts; no text returns ``transferred`` unchanged.
        labels: one per text, of at least two of the probe's classes.
        statistics: those of the stream that the weights multiply: ``stitch.target_statistics``, or
            ``stitch.source_statistics`` for a transferred probe with ``read="max"``.
        penalty: λ, or ``"cv"`` for the λ with the lowest held-out cross-entropy. With too few
            labels for two folds with all classes, that is the largest candidate, which changes
            nothing.
        groups: one per text; texts of one group stay in one fold.
        seed: seed of the folds.

    Returns:
        A probe at the same hook point. Its ``labels`` say how many texts it was combined with, its
        ``penalty`` is λ.

    Raises:
        MismatchError: the probe belongs to another model, or the statistics to another width.
        ValueError: labels of one class or of a class that the probe does not have, not one label
            per text, a penalty that is not above 0, or a probe that reads every token.
    """
    hooked = load_model(model)
    transferred.refuse_other_model(hooked)
    refuse_other_statistics(statistics, len(transferred.weight), "probe")
    penalties = candidates(penalty)
    if transferred.read == "every":
        raise ValueError(
            "the probe reads every token, and labels of one text are no independent items; give a "
            "probe that is read once per text"
        )
    if len(texts) == 0 and len(labels) == 0:
        return transferred
    listed, given = check_labels(texts, labels)
    numbers = group_numbers(groups, len(listed))
    kept = transferred.readable([hooked], listed)
    listed, plain = kept.of(listed), [plain_label(label) for label in kept.of(given)]
    y = class_numbers(plain, transferred.classes)
    x = transferred.rows(hooked, listed)[0].cpu().numpy()
    fit = fit_towards(
        x,
        y,
        plain_classifier(transferred),
        penalties=penalties,
        groups=None if numbers is None else np.array(kept.of(numbers.tolist())),
        scaling=whitening(statistics),
        seed=seed,
    )
    content = json.dumps([listed, plain]).encode()
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    return replace(
        transferred,
        weight=torch.from_numpy(fit.weight),
        bias=torch.from_numpy(fit.bias),
        method=COMBINED,
        penalty=fit.penalty,
        labels=LabelShare(len(listed), "cv" if penalty == "cv" else "given", math.nan, digest),
    )


def candidates(penalty: str | float) -> tuple[float, ...]:
    """Return the candidates for λ: those of `fit_towards`, or one that is given.

    Raises:
        ValueError: it is neither ``"cv"`` nor a finite number above 0.
    """
    if isinstance(penalty, str):
        if penalty != "cv":
            raise ValueError(f"penalty is {penalty!r}; expected 'cv' or a number above 0")
        return TOWARDS_PENALTIES
    return (checked_number("penalty", penalty, above=0.0),)


def whitening(statistics: StreamStatistics) -> Whitening:
    """Return the whitening of a stream, in which the prior of the weights is isotropic."""
    mean, covariance = (
        part.detach().double().cpu().numpy() for part in (statistics.mean, statistics.covariance)
    )
    return Whitening.of(mean, covariance, RIDGE)


def plain_classifier(probe: LinearProbe) -> Logistic:
    """Return the weights and biases of a probe as arrays in float64."""
    weight, bias = (part.detach().double().cpu().numpy() for part in (probe.weight, probe.bias))
    return Logistic(weight, bias, probe.penalty)
