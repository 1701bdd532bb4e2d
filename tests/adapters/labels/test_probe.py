"""Probes that combine a transfer with labelled texts of the target."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

import lrt_lens as lrt
from lrt_lens.adapters.probes._logistic import Logistic, Whitening, fit_towards, probabilities
from lrt_lens.errors import MismatchError


@pytest.fixture(scope="module")
def labelled(mood: lrt.ContrastSet) -> tuple[list[str], list[str]]:
    texts = [text for both in zip(mood.positive, mood.negative, strict=True) for text in both]
    return texts, ["happy", "sad"] * len(mood)


@pytest.fixture(scope="module")
def transferred(
    pair: Any, label_stitch: lrt.Stitch, labelled: tuple[list[str], list[str]]
) -> lrt.LinearProbe:
    hook = label_stitch.source_hook
    probe = lrt.LinearProbe.fit(pair.source, *labelled, at=hook, read="mean", name="mood")
    return label_stitch.transfer(probe)


@pytest.fixture(scope="module")
def combine(
    pair: Any, label_stitch: lrt.Stitch, transferred: lrt.LinearProbe
) -> Callable[..., lrt.LinearProbe]:
    def combined(texts: list[str], labels: list[str], **options: Any) -> lrt.LinearProbe:
        options = {"statistics": label_stitch.target_statistics} | options
        return lrt.combine_probe(pair.target, transferred, texts, labels, **options)

    return combined


# ------------------------------------------------------------------------------- the classifier


def rows(n: int, d: int, n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * np.geomspace(0.3, 5, d) + rng.standard_normal(d)
    return x, np.arange(n) % n_classes


def whitening(d: int) -> Whitening:
    rng = np.random.default_rng(7)
    root = rng.standard_normal((d, d)) * np.geomspace(0.5, 4, d)
    return Whitening.of(rng.standard_normal(d), root.T @ root, 1e-3)


def test_whitened_rows_have_the_covariance_1_and_fold_back() -> None:
    x, _ = rows(500, 6, 2)
    metric = Whitening.of(x.mean(0), np.cov(x.T, bias=True), 0.0)
    np.testing.assert_allclose(np.cov(metric.rows(x).T, bias=True), np.eye(6), atol=1e-10)
    rng = np.random.default_rng(0)
    plain = Logistic(rng.standard_normal((6, 1)), rng.standard_normal(1))
    folded = metric.folded(*metric.unfolded(plain), penalty=1.0)
    np.testing.assert_allclose(folded.weight, plain.weight)
    np.testing.assert_allclose(folded.bias, plain.bias)


@pytest.mark.parametrize(("n", "d"), [(60, 8), (12, 30)])
def test_with_a_prior_of_0_it_is_the_logistic_regression_of_sklearn(n: int, d: int) -> None:
    """The bias is penalised like a weight, which a column of ones says to scikit-learn."""
    x, y = rows(n, d, 2)
    y = (x[:, 0] + np.random.default_rng(1).standard_normal(n) > x[:, 0].mean()).astype(int)
    metric, penalty = whitening(d), 0.05
    # In the whitened coordinates, a prior of 0 is a classifier whose plain weights are 0.
    start = metric.folded(np.zeros((d, 1)), np.zeros(1), penalty)
    fit = fit_towards(x, y, start, penalties=(penalty,), scaling=metric)
    z = np.hstack([metric.rows(x), np.ones((n, 1))])
    theirs = LogisticRegression(
        C=1 / (penalty * n), fit_intercept=False, tol=1e-10, max_iter=5000
    ).fit(z, y)
    expected = probabilities(z @ theirs.coef_.T)
    np.testing.assert_allclose(fit.probabilities(x), expected, atol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(60, 8), (12, 30)])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_with_a_prior_it_minimises_the_objective_in_plain_coordinates(
    n: int, d: int, n_classes: int
) -> None:
    x, y = rows(n, d, n_classes)
    rng = np.random.default_rng(2)
    columns = 1 if n_classes == 2 else n_classes
    metric, penalty = whitening(d), 0.03
    start = Logistic(0.1 * rng.standard_normal((d, columns)), rng.standard_normal(columns))
    sigma = metric.root @ metric.root
    offset = start.bias + metric.mean @ start.weight

    def objective(step: np.ndarray) -> float:
        weight, bias = step[:-columns].reshape(d, columns), step[-columns:]
        p = probabilities((x - metric.mean) @ weight + bias)[np.arange(n), y]
        change = weight - start.weight
        # mean cross-entropy + λ/2 ((w − w₀)ᵀ Σ (w − w₀) + (c − c₀)²), c about the mean μ
        prior = np.trace(change.T @ sigma @ change) + ((bias - offset) ** 2).sum()
        return float(-np.log(p).mean() + penalty / 2 * prior)

    def at(fit: Logistic) -> float:
        bias = fit.bias + metric.mean @ fit.weight
        return objective(np.concatenate([fit.weight.ravel(), bias]))

    fit = fit_towards(x, y, start, penalties=(penalty,), scaling=metric)
    first = np.concatenate([start.weight.ravel(), offset])
    expected = minimize(objective, first, method="L-BFGS-B", options={"maxfun": 10**6}).fun
    assert at(fit) < at(start) - 1e-3
    assert at(fit) <= expected + 1e-6


# ------------------------------------------------------------------------------------- the probe


def test_no_text_leaves_the_transferred_probe(
    combine: Callable[..., Any], transferred: lrt.LinearProbe
) -> None:
    assert combine([], []) is transferred


def test_a_large_penalty_changes_nothing_and_a_small_one_fits_the_labels(
    combine: Callable[..., Any],
    transferred: lrt.LinearProbe,
    labelled: tuple[list[str], list[str]],
    pair: Any,
) -> None:
    texts, labels = labelled[0][:12], labelled[1][:12][::-1]
    unchanged = combine(texts, labels, penalty=1e9)
    before, after = (probe.predict_proba(pair.target, texts) for probe in (transferred, unchanged))
    np.testing.assert_allclose(before, after, atol=1e-5)
    assert combine(texts, labels, penalty=1e-6).accuracy(pair.target, texts, labels) == 1


def test_too_few_labels_for_folds_change_nothing(
    combine: Callable[..., Any],
    transferred: lrt.LinearProbe,
    labelled: tuple[list[str], list[str]],
    pair: Any,
) -> None:
    texts, labels = labelled[0][:2], labelled[1][:2]
    combined = combine(texts, labels)
    assert combined.penalty == 1e4
    np.testing.assert_allclose(
        combined.predict_proba(pair.target, texts),
        transferred.predict_proba(pair.target, texts),
        atol=1e-3,
    )


def test_it_says_how_it_was_made_and_keeps_that_in_a_file(
    combine: Callable[..., Any], labelled: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    texts, labels = labelled[0][:20], labelled[1][:20]
    combined = combine(texts, labels)
    assert combined.method == "combined"
    assert combined.transferred
    assert combined.labels is not None
    assert (combined.labels.n, combined.labels.rule) == (20, "cv")
    loaded = lrt.LinearProbe.load(combined.save(tmp_path / "probe.safetensors"))
    assert loaded.labels is not None
    assert (loaded.labels.n, loaded.labels.corpus) == (20, combined.labels.corpus)
    assert loaded.penalty == combined.penalty
    assert torch.equal(loaded.weight, combined.weight)
    assert combine(texts, labels, penalty=0.5).labels.rule == "given"


def test_a_probe_of_maxima_takes_the_statistics_of_the_source(
    pair: Any, label_stitch: lrt.Stitch, labelled: tuple[list[str], list[str]]
) -> None:
    hook = label_stitch.source_hook
    probe = lrt.LinearProbe.fit(pair.source, *labelled, at=hook, read="max")
    moved, texts = label_stitch.transfer(probe), (labelled[0][:20], labelled[1][:20])
    with pytest.raises(MismatchError, match="stream of 24 dimensions, and the probe has width 16"):
        lrt.combine_probe(pair.target, moved, *texts, statistics=label_stitch.target_statistics)
    combined = lrt.combine_probe(
        pair.target, moved, *texts, statistics=label_stitch.source_statistics, penalty=1e-6
    )
    assert combined.accuracy(pair.target, *texts) == 1


def test_a_probe_of_another_model_is_refused(
    pair: Any,
    label_stitch: lrt.Stitch,
    transferred: lrt.LinearProbe,
    labelled: tuple[list[str], list[str]],
) -> None:
    statistics = label_stitch.target_statistics
    with pytest.raises(MismatchError):
        lrt.combine_probe(pair.source, transferred, *labelled, statistics=statistics)


def test_a_probe_of_tokens_is_refused(
    pair: Any,
    label_stitch: lrt.Stitch,
    transferred: lrt.LinearProbe,
    labelled: tuple[list[str], list[str]],
) -> None:
    every = replace(transferred, read="every")
    with pytest.raises(ValueError, match="reads every token"):
        lrt.combine_probe(pair.target, every, *labelled, statistics=label_stitch.target_statistics)


def test_labels_that_do_not_fit_are_refused(
    combine: Callable[..., Any], labelled: tuple[list[str], list[str]]
) -> None:
    texts = labelled[0][:4]
    with pytest.raises(ValueError, match="all 4 labels are 'sad'"):
        combine(texts, ["sad"] * 4)
    with pytest.raises(ValueError, match=r"labels \['angry'\] are not among the probe's classes"):
        combine(texts, ["sad", "angry"] * 2)
    with pytest.raises(ValueError, match=r"4 text\(s\) and 2 label\(s\)"):
        combine(texts, ["sad", "happy"])


@pytest.mark.usefixtures("unchecked")
def test_other_penalties_are_refused(
    combine: Callable[..., Any], labelled: tuple[list[str], list[str]]
) -> None:
    with pytest.raises(ValueError, match="penalty is 'best'; expected 'cv' or a number above 0"):
        combine(*labelled, penalty="best")
    with pytest.raises(ValueError, match="penalty is 0; expected a finite number above 0"):
        combine(*labelled, penalty=0)
