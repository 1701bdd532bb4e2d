"""Evaluation of transferred probes and controls: known answers, naive counts, errors."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lrt_lens.adapters.probes import (
    LinearProbe,
    ProbeEvaluation,
    ProbeEvaluationSettings,
    evaluate_probe,
)
from lrt_lens.adapters.probes._linear_probe import METHODS, LinearFits
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.statistics._classification import auroc, auroc_interval
from lrt_lens.stitching import AffineMap, Stitch, fit_stitches

WORDS = (
    ("cat", "dog", "bird", "child", "man", "woman"),
    ("house", "garden", "tree", "river", "stone"),
)
TEXTS = [
    f"the {mood} little {who} was in the {place} and {mood}"
    for mood in ("happy", "sad")
    for who in WORDS[0]
    for place in WORDS[1]
]
LABELS = [1] * 30 + [0] * 30
QUICK: dict[str, Any] = {
    "ks": (4, 12),
    "n_seeds": 2,
    "n_random": 4,
    "n_permuted": 2,
    "progress": False,
}


@pytest.fixture(scope="module")
def stitch(pair: ModelPair, corpus: list[str]) -> Stitch:
    return fit_stitches(
        pair,
        corpus,
        source_layers=[1],
        target_layers=[2],
        n_tokens=None,
        context_length=32,
        null="full",
        progress=False,
    ).best()


@pytest.fixture(scope="module")
def token_map(pair: ModelPair) -> AffineMap:
    d_s, d_t = pair.source.d_model, pair.target.d_model
    return AffineMap(
        torch.randn(d_t, d_s, generator=torch.Generator().manual_seed(0)),
        torch.zeros(d_s),
        "hook_embed",
        "blocks.1.hook_resid_post",
    )


@pytest.fixture(scope="module")
def result(pair: ModelPair, stitch: Stitch, token_map: AffineMap) -> ProbeEvaluation:
    return evaluate_probe(
        pair,
        stitch,
        TEXTS[::2],
        LABELS[::2],
        test_texts=TEXTS[1::2],
        test_labels=LABELS[1::2],
        token_map=token_map,
        **QUICK,
    )


def _row(result: ProbeEvaluation, arm: str, k: int | None = None) -> dict[str, Any]:
    (row,) = [
        row
        for row in result.table.to_dict("records")
        if row["arm"] == arm and k in (None, row["k"])
    ]
    return row


def test_every_arm_is_there(result: ProbeEvaluation) -> None:
    found = {(row["arm"], row["k"], row["n_draws"]) for row in result.table.to_dict("records")}
    curves = {(arm, k, 2) for arm in ("fine_tuned", "scratch") for k in (4, 12)}
    single = {(arm, 0, 1) for arm in ("source", "transferred", "shuffled", "token_identity")}
    assert found == {*curves, *single, ("native", 30, 1), ("random", 0, 4), ("permuted", 0, 2)}
    assert result.chance == 0.5
    assert result.n_test == 30
    assert (result.table["low"] <= result.table["accuracy"]).all()
    assert (result.table["accuracy"] <= result.table["high"]).all()


def test_the_arms_are_what_the_probes_predict_themselves(
    result: ProbeEvaluation, pair: ModelPair, stitch: Stitch
) -> None:
    texts, labels = TEXTS[1::2], LABELS[1::2]
    for arm, model in (
        ("source", pair.source),
        ("native", pair.target),
        ("transferred", pair.target),
    ):
        probe, row = result.probes[arm], _row(result, arm)
        assert row["accuracy"] == pytest.approx(probe.accuracy(model, texts, labels))
        assert row["auroc"] == pytest.approx(probe.auroc(model, texts, labels))
    own = LinearProbe.fit(pair.target, TEXTS[::2], LABELS[::2], at=stitch.target_hook, read="mean")
    torch.testing.assert_close(result.probes["native"].weight, own.weight)
    shuffled = stitch.transfer(result.probes["source"], through=stitch.null.down)  # type: ignore[union-attr]
    assert _row(result, "shuffled")["accuracy"] == pytest.approx(
        shuffled.accuracy(pair.target, texts, labels)
    )


def test_the_token_identity_arm_reads_the_targets_embedding(
    result: ProbeEvaluation, pair: ModelPair, token_map: AffineMap
) -> None:
    probe = result.probes["source"]
    rows = np.stack(
        [
            pair.target.capture(text, "hook_embed")[0, 4:].double().mean(0).numpy()
            for text in TEXTS[1::2]
        ]
    )
    logits = (
        rows @ token_map.weight.double().numpy() + token_map.bias.double().numpy()
    ) @ probe.weight.numpy() + probe.bias.numpy()
    expected = float(((logits[:, 0] > 0) == np.array(LABELS[1::2])).mean())
    assert _row(result, "token_identity")["accuracy"] == pytest.approx(expected)


def test_the_share_of_native_is_counted_above_chance(result: ProbeEvaluation) -> None:
    row = next(row for row in result.summary.to_dict("records") if row["arm"] == "transferred")
    native = _row(result, "native")["accuracy"]
    assert row["share_of_native"] == pytest.approx((row["accuracy"] - 0.5) / (native - 0.5))
    assert row["share_low"] <= row["share_of_native"] <= row["share_high"]


@pytest.mark.parametrize("read", ["mean", "max", "last"])
def test_between_identical_models_the_transferred_probe_is_the_sources(
    pair: ModelPair, corpus: list[str], read: Any
) -> None:
    same = ModelPair(pair.source, pair.source)
    identity = AffineMap(
        torch.eye(16), torch.zeros(16), "blocks.1.hook_resid_post", "blocks.1.hook_resid_post"
    )
    stitch = fit_stitches(
        same,
        corpus,
        source_layers=[1],
        target_layers=[1],
        n_tokens=2000,
        context_length=32,
        progress=False,
    ).best()
    stitch = replace(stitch, maps=replace(stitch.maps, up=identity, down=identity))
    result = evaluate_probe(same, stitch, TEXTS, LABELS, read=read, test_share=0.5, **QUICK)
    assert (
        _row(result, "transferred")["accuracy"]
        == _row(result, "source")["accuracy"]
        == _row(result, "native")["accuracy"]
    )


def test_the_controls_come_out_as_controls(pair: ModelPair, stitch: Stitch) -> None:
    # These classes lie far apart, so each draw's AUROC is near 0 or 1: a mean over n draws has a
    # standard error of up to .5/√n.
    options: dict[str, Any] = {**QUICK, "n_random": 100, "n_permuted": 100}
    result = evaluate_probe(pair, stitch, TEXTS, LABELS, read="mean", **options)
    assert _row(result, "native")["accuracy"] > 0.9
    assert _row(result, "random")["auroc"] == pytest.approx(0.5, abs=0.15)
    assert _row(result, "permuted")["auroc"] == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_bootstrapped_auroc_is_scikit_learns_on_every_resample(n_classes: int) -> None:
    generator = np.random.default_rng(0)
    chances = generator.integers(1, 6, (40, n_classes)).astype(float)  # few values: many ties
    chances /= chances.sum(1, keepdims=True)
    truth = np.arange(40) % n_classes

    def naive(index: np.ndarray) -> float:
        columns = [1] if n_classes == 2 else range(n_classes)
        return float(
            np.mean([roc_auc_score(truth[index] == j, chances[index, j]) for j in columns])
        )

    assert auroc(chances, truth) == pytest.approx(naive(np.arange(40)))
    drawn = np.random.default_rng(3).integers(0, 40, size=(2000, 40))
    low, high = np.percentile([naive(index) for index in drawn[:2000]], [2.5, 97.5])
    found = auroc_interval([chances], truth, seed=3)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_figures_and_tables_are_shown(result: ProbeEvaluation) -> None:
    figure = result.figure()
    assert {trace.name for trace in figure.data} >= {
        "transferred",
        "native",
        "token identity",
        "from scratch",
    }
    assert "share_of_native" in result._repr_html_()


def test_what_cannot_be_evaluated_is_refused(
    pair: ModelPair, stitch: Stitch, token_map: AffineMap
) -> None:
    def evaluate(
        texts: list[str] = TEXTS, labels: list[Any] = LABELS, **options: Any
    ) -> ProbeEvaluation:
        return evaluate_probe(pair, stitch, texts, labels, **QUICK | options)

    with pytest.raises(ValueError, match="all 60 labels are 1"):
        evaluate(labels=[1] * 60)
    with pytest.raises(ValueError, match=r"60 text\(s\) and 59 label"):
        evaluate(labels=LABELS[1:])
    with pytest.raises(ValueError, match=r"ks is \[4, 1000\]"):
        evaluate(ks=(4, 1000))
    with pytest.raises(ValueError, match="come together"):
        evaluate(test_texts=TEXTS)
    with pytest.raises(ValueError, match="a class has 1 text"):
        evaluate(labels=[7, *[1] * 29, *[0] * 30])
    with pytest.raises(MismatchError, match="token_map maps"):
        evaluate(token_map=replace(token_map, target_hook="blocks.0.hook_resid_post"))
    with pytest.raises(MismatchError, match=r"fitted at 'blocks\.0"):
        evaluate(probe=LinearProbe.fit(pair.source, TEXTS, LABELS, at=0))
    with pytest.raises(ValueError, match="no independent items"):
        evaluate(
            probe=LinearProbe.fit(pair.source, TEXTS, LABELS, at=1, read="every", penalties=(1.0,))
        )
    with pytest.raises(MismatchError, match="the source model"):
        evaluate_probe(pair.reversed(), stitch, TEXTS, LABELS, **QUICK)


def test_settings_can_be_keywords_or_an_object(pair: ModelPair, stitch: Stitch) -> None:
    fields: dict[str, Any] = {"ks": (4,), "n_seeds": 1, "n_random": 1, "n_permuted": 0}
    by_keyword = evaluate_probe(pair, stitch, TEXTS, LABELS, progress=False, **fields)
    settings = ProbeEvaluationSettings(**fields)
    by_object = evaluate_probe(pair, stitch, TEXTS, LABELS, progress=False, settings=settings)
    assert by_keyword.table.equals(by_object.table)
    with pytest.raises(TypeError, match="unknown option n_shuffled; ProbeEvaluationSettings has"):
        evaluate_probe(pair, stitch, TEXTS, LABELS, n_shuffled=3)


def test_every_fitted_arm_uses_the_method_of_the_probe(
    pair: ModelPair, stitch: Stitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"fit": 0, "fit_towards": 0}
    logistic = METHODS["logistic_regression"]

    def counted(name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return getattr(logistic, name)(*arguments, **options)

        return call

    monkeypatch.setitem(METHODS, "counted", LinearFits(counted("fit"), counted("fit_towards")))
    at = stitch.source_hook
    probe = LinearProbe.fit(pair.source, TEXTS, LABELS, at=at, read="mean", method="counted")
    assert (probe.method, calls["fit"]) == ("counted", 1)
    result = evaluate_probe(pair, stitch, TEXTS, LABELS, probe=probe, **QUICK)
    assert result.probes["native"].method == result.probes["transferred"].method == "counted"
    # One source probe, one native, 2 permuted, and 2 draws of each of two k for `scratch`.
    assert calls == {"fit": 1 + 1 + 2 + 4, "fit_towards": 4}
    with pytest.raises(ValueError, match="method is 'svm'; expected one of"):
        LinearProbe.fit(pair.source, TEXTS, LABELS, at=at, method="svm")
