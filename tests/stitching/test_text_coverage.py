"""Coverage of texts: distances against scipy, p-values of like and unlike texts, abstention."""

import random
from typing import Any

import numpy as np
import pytest
import scipy.spatial.distance
import torch

import lrt_lens as lrt
from lrt_lens.adapters.probes import LinearProbe
from lrt_lens.errors import MismatchError, TooFewDocumentsError
from lrt_lens.models import ModelPair
from lrt_lens.stitching import COVERAGE_COLUMNS, Stitch, TextCoverage, fit_coverage, fit_stitches
from tests.conftest import WORDS


def documents(n: int, seed: int, words: list[str] = WORDS) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=rng.randint(12, 26))) + "." for _ in range(n)]


@pytest.fixture(scope="module")
def stitch(pair: ModelPair) -> Stitch:
    return fit_stitches(
        pair,
        documents(300, 0),
        source_layers=[1],
        target_layers=[2],
        n_tokens=None,
        context_length=48,
        moment_dtype="float64",
        progress=False,
    )[1, 2]


@pytest.fixture(scope="module")
def covers(pair: ModelPair, stitch: Stitch) -> TextCoverage:
    return fit_coverage(stitch, pair.target, documents(300, 0))


def test_distances_are_those_of_scipy(
    pair: ModelPair, stitch: Stitch, covers: TextCoverage
) -> None:
    texts = documents(3, 5)
    table = covers.score(pair.target, texts)
    assert tuple(table.columns) == COVERAGE_COLUMNS
    statistics = stitch.target_statistics
    covariance = statistics.covariance.double()
    ridge = 1e-4 * covariance.trace() / len(covariance) * torch.eye(len(covariance)).double()
    inverse = torch.linalg.inv(covariance + ridge).numpy()
    for number, text in enumerate(texts):
        states = pair.target.capture(text, stitch.target_hook)[0].double().numpy()[4:]
        expected = [
            scipy.spatial.distance.mahalanobis(row, statistics.mean.double().numpy(), inverse) ** 2
            for row in states
        ]
        assert table["n_tokens"][number] == len(states)
        assert table["distance"][number] == pytest.approx(
            np.mean(expected) / len(covariance), rel=1e-5
        )
        far = np.array(expected) / len(covariance) > covers.token_limit
        assert table["share_beyond"][number] == pytest.approx(far.mean())


def test_p_is_the_share_of_documents_whose_first_tokens_are_as_far(
    pair: ModelPair, covers: TextCoverage
) -> None:
    row = covers.score(pair.target, documents(1, 9)).iloc[0]
    means = np.array([tokens[: row["n_tokens"]].mean() for tokens in covers.reference])
    expected = (1 + (means >= row["distance"]).sum()) / (1 + len(means))
    assert row["p"] == pytest.approx(expected)


def test_documents_of_the_test_fold_are_the_reference(
    pair: ModelPair, stitch: Stitch, covers: TextCoverage
) -> None:
    n_held_out = sum(stitch.provenance.documents_of(stitch.provenance.parts.test))
    assert len(covers.reference) == n_held_out
    everything = fit_coverage(stitch, pair.target, documents(300, 0), folds="all", n_documents=50)
    assert len(everything.reference) == 50


def test_new_text_like_the_fit_is_left_out_as_often_as_the_level_says(
    pair: ModelPair, stitch: Stitch
) -> None:
    # Text and reference are new, so each text is one more document of the reference's kind.
    rule = fit_coverage(stitch, pair.target, documents(200, 1), folds="all", level=0.2)
    left_out = 1 - rule.score(pair.target, documents(200, 2))["covered"].mean()
    # Standard error .04: .03 of the 200 texts and .03 of the 200 reference documents.
    assert left_out == pytest.approx(0.2, abs=0.12)


def test_text_of_another_kind_is_far(pair: ModelPair, covers: TextCoverage) -> None:
    letters = ["".join(random.Random(seed).choices("qxzjkvw", k=60)) for seed in range(20)]
    like, unlike = covers.score(pair.target, documents(20, 3)), covers.score(pair.target, letters)
    assert unlike["distance"].mean() > like["distance"].max()
    assert unlike["covered"].mean() < 0.5
    assert like["covered"].mean() > 0.7
    assert covers.at(0.5).covered(pair.target, documents(20, 3)).mean() < like["covered"].mean()


def test_the_other_side_is_measured_in_the_source(pair: ModelPair, stitch: Stitch) -> None:
    rule = fit_coverage(stitch, pair.source, documents(300, 0), side="source")
    assert rule.origin.hook == stitch.source_hook
    with pytest.raises(MismatchError):
        rule.score(pair.target, documents(2, 4))
    with pytest.raises(MismatchError):
        fit_coverage(stitch, pair.source, documents(300, 0))


def test_few_documents_and_impossible_settings_are_refused(pair: ModelPair, stitch: Stitch) -> None:
    with pytest.raises(TooFewDocumentsError, match=r"of 30 documents are in the test fold"):
        fit_coverage(stitch, pair.target, documents(30, 0))
    with pytest.raises(ValueError, match="level is 1.5"):
        fit_coverage(stitch, pair.target, documents(300, 0), level=1.5)
    with pytest.raises(ValueError, match="positive"):
        fit_coverage(stitch, pair.target, documents(300, 0), ridge=0.0)


# -------------------------------------------------------------------------------------- abstention


@pytest.mark.parametrize("read", ["mean", "every"])
def test_a_probe_answers_covered_texts_only(
    pair: ModelPair, stitch: Stitch, covers: TextCoverage, read: Any
) -> None:
    texts = documents(20, 6)
    labels = ["long" if len(text) > 85 else "short" for text in texts]
    probe = stitch.transfer(LinearProbe.fit(pair.source, texts, labels, at=1, read=read))
    mixed = [*documents(4, 7), "qxzjkvw" * 8, "wvkj zxq jjkw qqz xvvk wzz jqx kvw"]
    covered = covers.covered(pair.target, mixed)
    assert not covered[4:].any()
    plain = probe.predict_proba(pair.target, mixed)
    answered = probe.predict_proba(pair.target, mixed, abstain=covers)
    classes = probe.predict(pair.target, mixed, abstain=covers)
    for number, is_covered in enumerate(covered):
        if is_covered:
            np.testing.assert_array_equal(answered[number], plain[number])
            assert classes[number] == probe.predict(pair.target, mixed)[number]
        else:
            assert np.isnan(answered[number]).all()
            assert set(np.atleast_1d(np.array(classes[number], dtype=object))) == {None}


def test_a_rule_for_another_hook_point_or_of_another_shape_is_refused(
    pair: ModelPair, stitch: Stitch, covers: TextCoverage
) -> None:
    texts = documents(10, 6)
    own = LinearProbe.fit(pair.target, texts, ["one", "two"] * 5, at=1)
    with pytest.raises(MismatchError, match="fit the coverage of the stitch"):
        own.predict(pair.target, texts, abstain=covers)

    class Counts:
        origin = stitch.end

        def covered(self, model: Any, texts: Any) -> np.ndarray:
            return np.ones(len(texts))

    moved = stitch.transfer(LinearProbe.fit(pair.source, texts, ["one", "two"] * 5, at=1))
    with pytest.raises(ValueError, match="one truth value for each of 10 texts"):
        moved.predict(pair.target, texts, abstain=Counts())


@pytest.mark.slow
def test_abstention_raises_accuracy_on_covered_texts_of_the_bundled_pair() -> None:
    pair, corpus = lrt.demo_pair(), lrt.demo_documents()
    stitch = lrt.fit_stitches(
        pair, corpus, source_layers=[2], target_layers=[3], n_tokens=40_000, progress=False
    )[2, 3]
    texts, labels = lrt.demo_texts("sentiment", 400)
    order = np.random.default_rng(0).permutation(len(texts))
    fit, test = order[:200], order[200:]
    known = [texts[i] for i in fit]
    probe = LinearProbe.fit(pair.source, known, [labels[i] for i in fit], at=2, read="mean")
    moved = stitch.transfer(probe, recentre=lrt.Recentring(pair, known))
    # Half of the texts are in capitals, which neither model reads as words.
    mixed = [texts[i] for i in test] + [texts[i].upper() for i in test]
    truth = np.array([labels[i] for i in test] * 2)
    covers = fit_coverage(stitch, pair.target, known, folds="all")
    answers = np.array(moved.predict(pair.target, mixed, abstain=covers), dtype=object)
    answered = np.array([answer is not None for answer in answers])
    everything = (np.array(moved.predict(pair.target, mixed)) == truth).mean()
    assert answered[:200].mean() > 0.85
    assert answered[200:].mean() < 0.1
    assert (answers[answered] == truth[answered]).mean() > everything + 0.04
