"""Curves over labels of the target, and the labels that a transfer saves."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import lrt_lens as lrt
from lrt_lens.adapters.labels._savings import _difference, _NativeCurve


@pytest.fixture(scope="module")
def vectors(pair: Any, label_stitch: lrt.Stitch, mood: lrt.ContrastSet) -> lrt.LabelSavings:
    return lrt.evaluate_vector_labels(
        pair, label_stitch, mood, ks=(0, 4, 16), n_draws=4, progress=False
    )


@pytest.fixture(scope="module")
def texts(mood: lrt.ContrastSet) -> tuple[list[str], list[str]]:
    return [*mood.positive, *mood.negative], ["happy"] * len(mood) + ["sad"] * len(mood)


@pytest.fixture(scope="module")
def probes(
    pair: Any, label_stitch: lrt.Stitch, texts: tuple[list[str], list[str]]
) -> lrt.LabelSavings:
    return lrt.evaluate_probe_labels(
        pair, label_stitch, *texts, ks=(0, 4, 16), n_draws=2, task="mood", progress=False
    )


def made(values: dict[tuple[str, int], list[float]]) -> lrt.LabelSavings:
    """A result with the given values of each draw, by arm and k."""
    rows = [
        {
            "task": "made",
            "unit": "pairs",
            "measure": "auroc",
            "arm": arm,
            "k": k,
            "draw": draw,
            "value": value,
            "weight": np.nan,
        }
        for (arm, k), draws in values.items()
        for draw, value in enumerate(draws)
    ]
    return lrt.LabelSavings(pd.DataFrame(rows), {"auroc": 0.5}, 16, 10)


def row(result: lrt.LabelSavings, arm: str, k: int, measure: str = "auroc") -> dict[Any, Any]:
    (one,) = [
        one
        for one in result.summary.to_dict("records")
        if (one["arm"], one["k"], one["measure"]) == (arm, k, measure)
    ]
    return one


# ------------------------------------------------------------------------------- labels saved


NATIVE = {("native", 4): [0.6, 0.6], ("native", 8): [0.8, 0.8], ("native", 16): [0.9, 0.9]}


def test_labels_saved_are_those_at_which_native_is_as_good() -> None:
    same = made(NATIVE | {("transferred", 0): [0.8, 0.8], ("combined", 4): [0.9, 0.9]})
    assert row(same, "transferred", 0)["labels_saved"] == pytest.approx(8)
    assert row(same, "combined", 4)["labels_saved"] == pytest.approx(12)
    assert row(same, "combined", 4)["above_native"] == pytest.approx(0.3)


def test_between_measured_numbers_native_is_linear_in_log_k_plus_1() -> None:
    half = row(made(NATIVE | {("combined", 4): [0.7, 0.7]}), "combined", 4)
    assert half["labels_saved"] == pytest.approx(np.sqrt(5 * 9) - 1 - 4)
    # Below the smallest measured number, from chance at k = 0.
    weak = row(made(NATIVE | {("transferred", 0): [0.55, 0.55]}), "transferred", 0)
    assert weak["labels_saved"] == pytest.approx(np.sqrt(5) - 1)


def test_an_arm_that_is_worse_than_native_saves_a_negative_number() -> None:
    assert row(made(NATIVE | {("combined", 8): [0.6, 0.6]}), "combined", 8)[
        "labels_saved"
    ] == pytest.approx(-4)
    assert row(made(NATIVE | {("combined", 8): [0.4, 0.4]}), "combined", 8)["labels_saved"] == -8


def test_an_arm_that_native_never_reaches_saves_at_least_the_pool() -> None:
    best = row(made(NATIVE | {("combined", 4): [0.95, 0.95]}), "combined", 4)
    assert best["labels_saved"] == 12
    assert best["at_least"]
    assert not row(made(NATIVE | {("combined", 4): [0.7, 0.7]}), "combined", 4)["at_least"]


def test_noise_that_makes_native_worse_with_more_labels_is_smoothed() -> None:
    noisy = NATIVE | {("native", 8): [0.55, 0.55], ("combined", 4): [0.75, 0.75]}
    # From the value at 4 labels, which the running maximum keeps at 8, to that at 16.
    expected = np.exp(np.log(9) + 0.5 * np.log(17 / 9)) - 1 - 4
    assert row(made(noisy), "combined", 4)["labels_saved"] == pytest.approx(expected)


def test_the_interval_of_labels_saved_contains_draws_of_both_arms() -> None:
    rng = np.random.default_rng(0)

    def draws(mean: float) -> list[float]:
        return (mean + 0.02 * rng.standard_normal(30)).tolist()

    values = {key: draws(value[0]) for key, value in NATIVE.items()}
    result = row(made(values | {("combined", 4): draws(0.7)}), "combined", 4)
    assert result["saved_low"] < np.sqrt(45) - 5 < result["saved_high"]
    assert result["saved_high"] - result["saved_low"] < 1


def test_intervals_cover_the_truth_in_95_percent() -> None:
    """Draws of both arms are correlated, because both see the same labels."""
    rng, n, n_draws = np.random.default_rng(1), 300, 20
    ks, mean = np.array([0, 2, 4, 8, 16]), np.array([0.0, 0.5, 0.65, 0.78, 0.87])
    spread = np.array([0.0, 0.12, 0.09, 0.06, 0.04])
    # Native reaches .72 between 4 and 8 labels, linear in log(k + 1).
    share = (0.72 - 0.65) / (0.78 - 0.65)
    truth = 5 * (9 / 5) ** share - 1 - 4
    saved = above = 0
    for _ in range(n):
        shared = rng.standard_normal((n_draws, 1))
        native = mean + spread * (shared + rng.standard_normal((n_draws, 5)))
        own = 0.72 + 0.05 * (shared[:, 0] + rng.standard_normal(n_draws))
        one = _NativeCurve(ks, native).saved(own, 4)
        saved += one["saved_low"] <= truth <= one["saved_high"]
        two = _difference(own - native[:, 2])
        above += two["above_low"] <= 0.72 - 0.65 <= two["above_high"]
    assert 0.91 <= saved / n <= 0.99
    assert 0.91 <= above / n <= 0.99


# -------------------------------------------------------------------------------- vectors


def test_every_arm_of_a_vector_is_measured_at_every_k(vectors: lrt.LabelSavings) -> None:
    keys = vectors.table.groupby(["measure", "arm"])["k"].unique().map(sorted).to_dict()
    for measure in ("cosine", "auroc"):
        assert keys[measure, "native"] == [2, 4, 8, 16, 20]
        assert keys[measure, "transferred"] == keys[measure, "shuffled"] == [0]
        for arm in ("combined", "combined_fidelity", "combined_shuffled"):
            assert keys[measure, arm] == [4, 16]
    assert (vectors.n_pool, vectors.n_held_out) == (20, 20)
    assert set(vectors.table["task"]) == {"mood"}


def test_one_draw_is_what_combine_vector_makes(
    pair: Any, label_stitch: lrt.Stitch, mood: lrt.ContrastSet, vectors: lrt.LabelSavings
) -> None:
    order = np.random.default_rng((0, 0)).permutation(len(mood))

    def some(index: np.ndarray) -> lrt.ContrastSet:
        positive, negative = list(mood.positive), list(mood.negative)
        chosen = index.tolist()
        return lrt.ContrastSet([positive[i] for i in chosen], [negative[i] for i in chosen])

    learnt = lrt.SteeringVector.mean_difference(
        pair.source, some(order[:20]), at=label_stitch.source_hook
    )
    combined = lrt.combine_vector(
        pair.target,
        label_stitch.transfer(learnt),
        some(order[:4]),
        statistics=label_stitch.target_statistics,
    )
    held_out = lrt.SteeringVector.mean_difference(
        pair.target, some(order[20:]), at=label_stitch.target_hook
    )
    rows = vectors.table.query("arm == 'combined' and k == 4 and draw == 0 and measure == 'cosine'")
    assert rows["value"].item() == pytest.approx(combined.cosine(held_out), abs=1e-5)
    assert combined.labels is not None
    assert rows["weight"].item() == pytest.approx(combined.labels.weight, abs=1e-5)


def test_draws_depend_on_the_seed_alone(
    pair: Any, label_stitch: lrt.Stitch, mood: lrt.ContrastSet, vectors: lrt.LabelSavings
) -> None:
    options: dict[str, Any] = {"ks": (0, 4, 16), "n_draws": 4, "progress": False}
    torch.manual_seed(5)
    again = lrt.evaluate_vector_labels(pair, label_stitch, mood, **options)
    pd.testing.assert_frame_equal(again.table, vectors.table)
    other = lrt.evaluate_vector_labels(pair, label_stitch, mood, seed=1, **options)
    assert not other.table["value"].equals(vectors.table["value"])


def test_the_result_has_a_figure_and_a_view(
    vectors: lrt.LabelSavings, probes: lrt.LabelSavings
) -> None:
    figure = vectors.figure()
    assert {trace.name for trace in figure.data} == {
        "transferred and k labels",
        "the same, weighed by predicted fidelity",
        "k labels alone (native)",
        "transferred, no label",
        "shuffled map and k labels",
        "shuffled map, no label",
    }
    assert "20 pairs to draw labels from, 20 held out" in vectors._repr_html_()
    assert "texts" in probes._repr_html_()
    assert len(probes.figure().data) == 10


def test_more_pairs_than_the_pool_are_refused(
    pair: Any, label_stitch: lrt.Stitch, mood: lrt.ContrastSet
) -> None:
    with pytest.raises(ValueError, match=r"ks is \[21\].*numbers from 2 to 20"):
        lrt.evaluate_vector_labels(pair, label_stitch, mood, ks=[21])
    with pytest.raises(ValueError, match=r"ks is \[1\]"):
        lrt.evaluate_vector_labels(pair, label_stitch, mood, ks=[1])
    with pytest.raises(ValueError, match=r"held_out_share is 1\.0 of 40"):
        lrt.evaluate_vector_labels(pair, label_stitch, mood, held_out_share=1.0)


def test_models_that_are_not_the_stitchs_are_refused(
    pair: Any, label_stitch: lrt.Stitch, mood: lrt.ContrastSet, texts: tuple[list[str], list[str]]
) -> None:
    for call in (
        lambda: lrt.evaluate_vector_labels(pair.reversed(), label_stitch, mood),
        lambda: lrt.evaluate_probe_labels(pair.reversed(), label_stitch, *texts),
    ):
        with pytest.raises(lrt.errors.MismatchError):
            call()


# --------------------------------------------------------------------------------- probes


def test_every_arm_of_a_probe_is_measured_at_every_k(probes: lrt.LabelSavings) -> None:
    keys = probes.table.groupby(["measure", "arm"])["k"].unique().map(sorted).to_dict()
    for measure in ("accuracy", "auroc"):
        assert keys[measure, "native"] == [2, 4, 8, 16, 32, 40]
        assert keys[measure, "transferred"] == keys[measure, "shuffled"] == [0]
        assert keys[measure, "combined"] == keys[measure, "combined_shuffled"] == [4, 16]
    assert probes.chance == {"accuracy": 0.5, "auroc": 0.5}
    assert probes.summary["value"].between(0, 1).all()


def test_a_stitch_without_a_null_has_no_control(
    pair: Any,
    corpus: list[str],
    mood: lrt.ContrastSet,
    texts: tuple[list[str], list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    stitch = lrt.fit_stitches(
        pair, corpus, source_layers=[1], target_layers=[1], null=False, progress=False
    )[1, 1]
    options: dict[str, Any] = {"ks": (0, 4), "n_draws": 1, "progress": False}
    for result in (
        lrt.evaluate_vector_labels(pair, stitch, mood, **options),
        lrt.evaluate_probe_labels(pair, stitch, *texts, **options),
    ):
        assert not result.table["arm"].str.contains("shuffled").any()
    assert "has no map of shuffled pairs" in caplog.text


def test_labels_that_cannot_be_studied_are_refused(
    pair: Any, label_stitch: lrt.Stitch, texts: tuple[list[str], list[str]]
) -> None:
    with pytest.raises(ValueError, match="all 80 labels are 'happy'"):
        lrt.evaluate_probe_labels(pair, label_stitch, texts[0], ["happy"] * 80)
    with pytest.raises(ValueError, match=r"ks is \[41\].*numbers from 2 to 40"):
        lrt.evaluate_probe_labels(pair, label_stitch, *texts, ks=[41])
    with pytest.raises(ValueError, match="at least one draw"):
        lrt.evaluate_probe_labels(pair, label_stitch, *texts, n_draws=0, ks=[4])


@pytest.mark.usefixtures("unchecked")
def test_a_probe_of_maxima_is_not_studied(
    pair: Any, label_stitch: lrt.Stitch, texts: tuple[list[str], list[str]]
) -> None:
    other: Any = "max"
    with pytest.raises(ValueError, match="read is 'max'; expected 'last', 'mean' or a position"):
        lrt.evaluate_probe_labels(pair, label_stitch, *texts, read=other)
