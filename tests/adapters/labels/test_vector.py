"""Vectors that combine a transfer with labelled pairs of the target."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lrt_lens as lrt
from lrt_lens.errors import MismatchError


@pytest.fixture(scope="module")
def transferred(pair: Any, label_stitch: lrt.Stitch, mood: lrt.ContrastSet) -> lrt.SteeringVector:
    vector = lrt.SteeringVector.mean_difference(pair.source, mood, at=label_stitch.source_hook)
    return label_stitch.transfer(vector)


@pytest.fixture(scope="module")
def few(mood: lrt.ContrastSet) -> lrt.ContrastSet:
    return lrt.ContrastSet(mood.positive[:6], mood.negative[:6], name="few")


@pytest.fixture(scope="module")
def combine(
    pair: Any, label_stitch: lrt.Stitch, transferred: lrt.SteeringVector
) -> Callable[..., lrt.SteeringVector]:
    def combined(contrast: lrt.ContrastSet | None, **options: Any) -> lrt.SteeringVector:
        options = {"statistics": label_stitch.target_statistics} | options
        return lrt.combine_vector(pair.target, transferred, contrast, **options)

    return combined


def test_no_pair_leaves_the_transferred_vector(
    combine: Callable[..., Any], transferred: lrt.SteeringVector
) -> None:
    assert combine(None) is transferred


def test_a_weight_of_1_is_the_mean_difference_of_the_pairs(
    combine: Callable[..., Any], few: lrt.ContrastSet, pair: Any, transferred: lrt.SteeringVector
) -> None:
    own = lrt.SteeringVector.mean_difference(pair.target, few, at=transferred.hook)
    torch.testing.assert_close(combine(few, weight=1.0).direction, own.direction)


def test_a_weight_of_0_has_the_direction_of_the_transferred_vector(
    combine: Callable[..., Any], few: lrt.ContrastSet, transferred: lrt.SteeringVector
) -> None:
    assert combine(few, weight=0.0).cosine(transferred) == pytest.approx(1, abs=1e-6)


def test_it_says_how_it_was_made_and_keeps_that_in_a_file(
    combine: Callable[..., Any],
    few: lrt.ContrastSet,
    transferred: lrt.SteeringVector,
    tmp_path: Path,
) -> None:
    combined = combine(few)
    assert (combined.hook, combined.model) == (transferred.hook, transferred.model)
    assert combined.method == "combined"
    assert combined.transferred
    assert combined.labels == lrt.LabelShare(6, "cv", combined.labels.weight, few.digest)
    assert 0 < combined.labels.weight < 1
    loaded = lrt.SteeringVector.load(combined.save(tmp_path / "combined.safetensors"))
    assert loaded.labels == combined.labels
    assert torch.equal(loaded.direction, combined.direction)
    assert combine(few, weight=0.25).labels == lrt.LabelShare(6, "given", 0.25, few.digest)
    assert lrt.SteeringVector.load(transferred.save(tmp_path / "v.safetensors")).labels is None
    assert (combined + transferred).labels is None


def test_the_weight_by_fidelity_falls_with_the_fidelity(
    combine: Callable[..., Any], few: lrt.ContrastSet
) -> None:
    weights = [
        combine(few, weight="fidelity", fidelity=rho).labels.weight for rho in (0.99, 0.5, 0.1)
    ]
    assert weights == sorted(weights)
    assert combine(few, weight="fidelity", fidelity=0.5).labels.rule == "fidelity"


def test_it_cannot_be_learnt_again_from_texts(
    combine: Callable[..., Any], few: lrt.ContrastSet, pair: Any
) -> None:
    with pytest.raises(ValueError, match="made by 'combined'"):
        combine(few).relearnt(pair.target, few, at=1)


def test_a_vector_of_another_model_is_refused(
    pair: Any, label_stitch: lrt.Stitch, transferred: lrt.SteeringVector, few: lrt.ContrastSet
) -> None:
    statistics = label_stitch.target_statistics
    with pytest.raises(MismatchError):
        lrt.combine_vector(pair.source, transferred, few, statistics=statistics)


def test_statistics_of_another_stream_are_refused(
    combine: Callable[..., Any], few: lrt.ContrastSet, label_stitch: lrt.Stitch
) -> None:
    with pytest.raises(
        MismatchError, match=r"stream of 16 dimensions, and the vector has width 24"
    ):
        combine(few, statistics=label_stitch.source_statistics)


def test_a_vector_of_unknown_texts_is_refused(
    pair: Any, label_stitch: lrt.Stitch, transferred: lrt.SteeringVector, few: lrt.ContrastSet
) -> None:
    unknown = replace(transferred, method="given", read="given")
    with pytest.raises(ValueError, match="made by 'given'"):
        lrt.combine_vector(pair.target, unknown, few, statistics=label_stitch.target_statistics)


def test_pairs_of_equal_texts_are_refused(
    combine: Callable[..., Any], few: lrt.ContrastSet
) -> None:
    with pytest.raises(ValueError, match="have the same states"):
        combine(lrt.ContrastSet(few.positive, few.positive, name="same"))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.5}, r"weight is 1\.5; expected a finite number of at least 0 and at most 1"),
        ({"weight": float("nan")}, r"weight is nan"),
        ({"weight": "best"}, r"weight is 'best'; expected 'cv', 'fidelity' or a number"),
        ({"weight": "fidelity"}, r"fidelity is None; expected a correlation"),
        ({"weight": "fidelity", "fidelity": 2.0}, r"fidelity is 2\.0; expected a correlation"),
    ],
)
def test_other_weights_are_refused(
    combine: Callable[..., Any], few: lrt.ContrastSet, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        combine(few, **options)
