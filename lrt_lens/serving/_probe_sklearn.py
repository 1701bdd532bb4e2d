"""Probes as scikit-learn's logistic regression, and back.

    classifier = probe.to_sklearn()                       # a fitted LogisticRegression
    classifier.predict_proba(rows)                        # as probe.predict_proba of those states
    probe = probe_from_sklearn(classifier, at="blocks.3.hook_resid_post", model=identity)

Problem: monitors are kept as estimators of scikit-learn, which know their weights and not what they
read. Mechanism: the weights are the same numbers with other names: ``coef_ = wᵀ`` and
``intercept_ = b``. A `StandardScaler` before the classifier is part of an affine map,

    w·(x − m)/s + b = x·(w/s) + (b − m·(w/s))

so that a pipeline of both becomes one probe. ``rows`` are those of ``probe.rows(model, texts)``:
read, pooled, and mapped where the probe has a map.

Limits: the estimator says nothing of hook point, positions and model. scikit-learn has no file
format but pickles, which this library neither writes nor reads.
"""

from typing import Any

import numpy as np
import torch

from lrt_lens.adapters.probes._linear_probe import LinearProbe
from lrt_lens.models._identity import ModelIdentity

_WITH_SIGMOID = ("LogisticRegression", "LogisticRegressionCV")
"""Estimators whose probabilities are the sigmoid or softmax of their decision function."""


def probe_to_sklearn(probe: LinearProbe) -> Any:
    """Return a fitted `sklearn.linear_model.LogisticRegression` with a probe's weights.

    Its input are rows [row, d] that the weights multiply, see ``probe.rows``; its ``classes_`` are
    those of the probe, in scikit-learn's ascending order. ``n_iter_`` is 0: nothing was fitted.

    Raises:
        ValueError: the classes are text and numbers, which scikit-learn does not sort.
    """
    from sklearn.linear_model import LogisticRegression

    weight, bias = probe.weight.double().cpu().numpy().T, probe.bias.double().cpu().numpy()
    if len({type(name) for name in probe.classes}) > 1:
        raise ValueError(
            f"probe {probe.name!r} has classes of several types, {list(probe.classes)}; "
            "scikit-learn needs all text or all numbers: fit it with labels of one type"
        )
    classes = np.array(probe.classes)
    order = np.argsort(classes)
    if len(classes) == 2:
        # One logit, of the second class; with the classes exchanged it changes its sign.
        sign = 1.0 if order[0] == 0 else -1.0
        weight, bias = sign * weight, sign * bias
    else:
        weight, bias = weight[order], bias[order]
    # What `fit` sets, which scikit-learn's own type does not list.
    classifier: Any = LogisticRegression()
    classifier.classes_, classifier.coef_ = classes[order], np.ascontiguousarray(weight)
    classifier.intercept_, classifier.n_features_in_ = bias, weight.shape[1]
    classifier.n_iter_ = np.zeros(1, dtype=np.int32)
    return classifier


def probe_from_sklearn(
    classifier: Any, *, at: str, model: ModelIdentity | None = None, **fields: Any
) -> LinearProbe:
    """Return a probe with the weights of a fitted logistic regression of scikit-learn.

    Args:
        classifier: a fitted ``LogisticRegression`` or ``LogisticRegressionCV``, or a pipeline of a
            ``StandardScaler`` and one of these.
        at: full name of the hook point whose states it was fitted on.
        model: identity of that model, ``HookedModel.load(name).identity``; None if it is not known,
            and nothing then refuses another model.
        **fields: other fields of `LinearProbe`, such as ``read="mean"``, ``skip_first=0`` and
            ``name="honesty"``.

    Raises:
        TypeError: it is another estimator, whose probabilities are not those of a probe.
        ValueError: it is not fitted, or its weights do not belong to its classes.
    """
    scale, classifier = _without_scaler(classifier)
    kind = type(classifier).__name__
    if kind not in _WITH_SIGMOID:
        raise TypeError(
            f"a {kind} is no logistic regression; expected {' or '.join(_WITH_SIGMOID)}, or a "
            "pipeline of StandardScaler and one of them"
        )
    if not hasattr(classifier, "coef_"):
        raise ValueError(f"this {kind} is not fitted; fit it first")
    weight = torch.from_numpy(np.array(classifier.coef_, dtype=float).T)
    bias = torch.from_numpy(np.atleast_1d(np.array(classifier.intercept_, dtype=float)))
    if len(bias) != weight.shape[1]:  # fit_intercept=False has one zero
        bias = bias.expand(weight.shape[1]).clone()
    if scale is not None:
        shift, divisor = scale
        # w·(x − m)/s + b = x·(w/s) + (b − m·(w/s))
        weight = weight / divisor[:, None]
        bias = bias - shift @ weight
    classes = tuple(np.asarray(classifier.classes_).tolist())
    given: dict[str, Any] = {"name": "probe", "method": "logistic_regression"} | fields
    return LinearProbe(weight, bias, classes, hook=at, model=model, **given)


def _without_scaler(classifier: Any) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, Any]:
    """Return (mean, deviation) of a scaler, or None, and the estimator behind it."""
    steps = [step for _, step in getattr(classifier, "steps", [("", classifier)])]
    if len(steps) == 1:
        return None, steps[0]
    if len(steps) == 2 and type(steps[0]).__name__ == "StandardScaler":
        scaler, d = steps[0], steps[0].n_features_in_
        mean = scaler.mean_ if scaler.with_mean else np.zeros(d)
        deviation = scaler.scale_ if scaler.with_std else np.ones(d)
        return (torch.from_numpy(np.array(mean)), torch.from_numpy(np.array(deviation))), steps[1]
    names = [type(step).__name__ for step in steps]
    raise TypeError(
        f"a pipeline of {names} is no probe; expected StandardScaler and a logistic regression"
    )
