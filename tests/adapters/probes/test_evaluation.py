"""Evaluation of transferred probes and controls: known answers, naive counts, errors."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from lrt_lens.adapters.probes import (
    LinearProbe,
    ProbeEvaluation,
    ProbeEvaluationSettings,
    Recentring,
    evaluate_probe,
)
from lrt_lens.adapters.probes._evaluation import _tables
from lrt_lens.adapters.probes._logistic import stratified_folds
from lrt_lens.adapters.probes._probe_arms import shuffled_draws
from lrt_lens.adapters.probes._probe_fits import METHODS, LinearFits
from lrt_lens.adapters.probes._split import Labelled, separate_texts, split_texts
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.stitching import AffineMap, Stitch, StreamStatistics, fit_stitches

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
    "n_shuffled": 3,
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
    transferred = ("transferred", "transferred_raw")
    single = {(arm, 0, 1) for arm in ("source", *transferred, "token_identity")}
    drawn = {("random", 0, 4), ("permuted", 0, 2), ("shuffled", 0, 3)}
    assert found == {*curves, *single, *drawn, ("native", 30, 1)}
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


def test_the_first_shuffled_draw_is_the_probe_through_the_shuffled_map(
    pair: ModelPair, stitch: Stitch
) -> None:
    options = {**QUICK, "n_shuffled": 1}
    result = evaluate_probe(pair, stitch, TEXTS, LABELS, test_share=0.5, **options)
    train, split = separate_texts((TEXTS, LABELS, None), (None, None, None), share=0.5, seed=0)
    through: dict[str, Any] = {"through": stitch.null.down}  # type: ignore[union-attr]
    source = result.probes["source"]
    # Controls are recentred like the transferred probe.
    shuffled = stitch.transfer(source, **through, recentre=Recentring(pair, train.texts))
    row = _row(result, "shuffled")
    assert row["accuracy"] == pytest.approx(
        shuffled.accuracy(pair.target, split.texts, split.labels)
    )
    assert row["interval_flag"].startswith("1 draw")
    assert (row["p_floor"], row["contains"]) == (0.5, "draws")


def test_draws_of_shuffled_maps_have_the_distribution_of_other_derangements() -> None:
    """Compare weights and biases through many real derangements with those of the draws."""
    torch.manual_seed(0)
    n, d_s, d_t = 3000, 5, 4
    x = torch.randn(n, d_s, dtype=torch.float64) * torch.tensor([4.0, 2.0, 1.0, 1.0, 0.2]) + 1
    y = torch.randn(n, d_t, dtype=torch.float64) * torch.tensor([5.0, 2.0, 1.0, 0.1]) - 2
    y[:, 1] += x[:, 0]
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    inverse = torch.linalg.inv(centred_y.T @ centred_y + 0.05 * n * torch.eye(d_t))

    def shuffled() -> torch.Tensor:
        return inverse @ centred_y[torch.randperm(n)].T @ centred_x

    weight = torch.tensor([[0.5, 0.1], [-1.0, 0.4], [2.0, 0.0], [0.3, 3.0], [1.0, -2.0]])
    probe = LinearProbe(
        torch.cat([weight, weight[:, :1]], 1).double(), torch.ones(3), (0, 1, 2), "a"
    )
    covariance = centred_x.T @ centred_x / n
    statistics = StreamStatistics(x.mean(0), covariance, float("nan"))
    real = torch.stack([shuffled() @ probe.weight for _ in range(3000)])
    drawn = torch.stack(
        [
            shuffled() @ list(shuffled_draws(statistics, probe, 2, seed))[1].weight
            for seed in range(3000)
        ]
    )
    for one in (real, drawn):
        assert one.mean(0).abs().max() < 0.1 * one.std(0).max()
    expected, found = (torch.einsum("ndk,nel->dkel", one, one) / 3000 for one in (real, drawn))
    scale = torch.einsum("dkdk->dk", expected).sqrt()
    relative = (found - expected) / torch.einsum("dk,el->dkel", scale, scale)
    assert float(relative.abs().max()) < 0.12  # ± 4 standard errors, √2/√3000 = .026
    # Draws have the logits' covariance of the probe on the source, and its mean logits.
    one = list(shuffled_draws(statistics, probe, 2, 0))[1]
    for other in (one, probe):
        logits = x @ other.weight.double() + other.bias.double()
        torch.testing.assert_close(logits.mean(0), (x @ probe.weight + probe.bias).mean(0))
        torch.testing.assert_close(torch.cov(logits.T), torch.cov((x @ probe.weight).T))


def test_controls_are_compared_without_their_sign(result: ProbeEvaluation) -> None:
    ours = _row(result, "transferred")
    for arm in ("random", "permuted", "shuffled"):
        row = _row(result, arm)
        assert row["typical_size"] >= max(row["accuracy"], 0.5)
        assert row["auroc_typical_size"] >= max(row["auroc"], 0.5)
        assert row["p_floor"] == 1 / (row["n_draws"] + 1)
        assert row["p_floor"] <= row["transferred_p"] <= 1
        assert row["interval_flag"].startswith(f"{row['n_draws']} draws")
    assert ours["contains"] == "test texts"
    assert _row(result, "scratch", 4)["contains"] == "test texts, draws of labels"


def test_draws_that_predict_one_class_are_flagged() -> None:
    truth = np.arange(20) % 2
    right = np.stack([1 - truth, truth], 1).astype(float)
    constant = np.tile([0.6, 0.4], (20, 1))
    arms = {("source", 0): [right], ("native", 28): [right], ("transferred", 0): [right]}
    arms |= {("shuffled", 0): [constant] * 15 + [right] * 5}
    test = Labelled(["t"] * 20, [int(one) for one in truth])
    table = _tables("task", arms, truth, test)[0].set_index("arm")
    assert table["interval_flag"]["shuffled"] == "15 of 20 draws predict one class: read auroc_p"
    assert table["transferred_p"]["shuffled"] == 6 / 21
    assert table["typical_size"]["shuffled"] == pytest.approx(0.625)


def test_there_are_twenty_draws_of_each_control_by_default() -> None:
    settings = ProbeEvaluationSettings()
    assert (settings.n_random, settings.n_permuted, settings.n_shuffled) == (20, 20, 20)


def test_a_transferred_probe_better_than_its_source_is_noted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    truth = np.arange(40) % 2
    right = np.stack([1 - truth, truth], 1).astype(float)
    worse = right.copy()
    worse[:8] = worse[:8, ::-1]
    arms = {("source", 0): [worse], ("native", 28): [right], ("transferred", 0): [right]}
    test = Labelled(["t"] * 40, truth.tolist())
    summary = _tables("truth", arms, truth, test)[1].set_index("arm")
    # Bonett and Price add ½ to each cell of the table of both answers: 8 + ½ and 0 + ½ of 42.
    middle, n = 8 / 42, 42
    variance = (9 / n - middle**2) / n * 44 / 43
    reach = student.ppf(0.975, 39) * np.sqrt(variance)
    found = summary.loc["transferred", "note"]
    low, high = middle - reach, middle + reach
    assert found == f"better than its source probe by 0.200 ({low:+.3f} to {high:+.3f})"
    assert summary.loc["source", "note"] == ""
    assert "better than its source probe" in caplog.text


def test_groups_stay_on_one_side_and_are_the_units_of_intervals(
    pair: ModelPair, stitch: Stitch
) -> None:
    # The happy and the sad text of one person and place are a pair.
    pairs = [f"pair {i % 30}" for i in range(60)]
    train, test = separate_texts((TEXTS, LABELS, pairs), (None, None, None), share=0.3, seed=1)
    assert train.groups is not None
    assert test.groups is not None
    assert not set(train.groups) & set(test.groups)
    assert len(set(test.groups)) == 9
    assert sorted(test.labels) == [0] * 9 + [1] * 9
    result = evaluate_probe(pair, stitch, TEXTS, LABELS, groups=pairs, test_share=0.4, **QUICK)
    assert (result.n_test, result.n_test_groups) == (24, 12)
    assert _row(result, "transferred")["contains"] == "groups of test texts"
    assert "24 test texts in 12 groups" in result._repr_html_()


def test_splits_of_unequal_groups_have_all_classes_in_nearly_their_shares() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), rng.integers(1, 6, 40)).tolist()
    labels = [int(group % 5 == 0) for group in groups]
    given = Labelled([f"text {i}" for i in range(len(groups))], labels, groups)
    train, test = split_texts(given, share=0.3, seed=0)
    assert np.mean(test.labels) == pytest.approx(np.mean(labels), abs=0.04)
    assert sorted(train.texts + test.texts) == sorted(given.texts)


def test_groups_that_cannot_be_separated_are_refused(pair: ModelPair, stitch: Stitch) -> None:
    def evaluate(texts: list[str] = TEXTS, **options: Any) -> ProbeEvaluation:
        return evaluate_probe(pair, stitch, texts, LABELS, **QUICK | options)

    held_out = {"test_texts": TEXTS[1::2], "test_labels": LABELS[1::2]}
    with pytest.raises(ValueError, match=r"59 group\(s\) and 60 text"):
        evaluate(groups=list(range(59)))
    with pytest.raises(ValueError, match="splitting needs 2 groups"):
        evaluate(groups=["one"] * 60)
    with pytest.raises(ValueError, match="no split of 2 groups"):
        evaluate(groups=LABELS)
    with pytest.raises(ValueError, match="groups and test_groups come together"):
        evaluate(groups=list(range(60)), **held_out)
    with pytest.raises(ValueError, match="test_groups need test_texts"):
        evaluate(test_groups=list(range(60)))
    with pytest.raises(ValueError, match=r"groups \['7'\] have training and test texts"):
        evaluate(groups=list(range(60)), test_groups=[7, *range(60, 89)], **held_out)


def test_the_folds_of_a_probe_keep_groups_together(
    pair: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray | None] = []
    real = METHODS["logistic_regression"].fit

    def fit(*arguments: Any, **options: Any) -> Any:
        seen.append(options.get("groups"))
        return real(*arguments, **options)

    monkeypatch.setitem(METHODS, "logistic_regression", LinearFits(fit, fit))
    pairs = [f"pair {i % 30}" for i in range(60)]
    LinearProbe.fit(pair.source, TEXTS, LABELS, at=1, groups=pairs)
    LinearProbe.fit(pair.source, TEXTS, LABELS, at=1, groups=pairs, read="every", penalties=(1.0,))
    assert seen[0] is not None
    assert seen[0].tolist() == [i % 30 for i in range(60)]
    assert seen[1] is not None
    assert set(seen[1].tolist()) == set(range(30))
    for train, held in stratified_folds(np.array(LABELS), 5, seen[0], 0):
        assert not {i % 30 for i in train} & {i % 30 for i in held}
    with pytest.raises(ValueError, match=r"1 group\(s\) and 60 text"):
        LinearProbe.fit(pair.source, TEXTS, LABELS, at=1, groups="pairs")


def test_the_token_identity_arm_reads_the_targets_embedding(
    result: ProbeEvaluation, pair: ModelPair, token_map: AffineMap
) -> None:
    probe = result.probes["source"]

    def states(texts: list[str]) -> np.ndarray:
        captured = [pair.target.capture(text, "hook_embed")[0, 4:] for text in texts]
        return np.stack([one.double().mean(0).numpy() for one in captured])

    test, train = (
        (rows @ token_map.weight.double().numpy() + token_map.bias.double().numpy())
        @ probe.weight.numpy()
        + probe.bias.numpy()
        for rows in (states(TEXTS[1::2]), states(TEXTS[::2]))
    )
    # Recentred on the training texts, like the transferred probe.
    source = probe.logits(probe.rows(pair.source, TEXTS[::2])[0])
    logits = (test - train.mean()) / train.std() * source.std() + source.mean()
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
    with pytest.raises(TypeError, match="unknown option n_draws; ProbeEvaluationSettings has"):
        evaluate_probe(pair, stitch, TEXTS, LABELS, n_draws=3)


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
