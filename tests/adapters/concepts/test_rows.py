"""Rows of pairs: vectors and maps agree with numpy and with the adapters of the same texts."""

from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.adapters.concepts import ConceptMap, read_rows
from lrt_lens.adapters.concepts._rows import PairRows, known_rows, mean_only
from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.data import ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair

PLACES = ("house", "garden", "tree", "river", "stone")
CONTRAST = ContrastSet(
    [f"the happy cat sang in the {p}" for p in PLACES],
    [f"the sad dog slept on the {p} then" for p in PLACES],
    name="mood",
)


@pytest.fixture(scope="module")
def rows(pair: ModelPair) -> PairRows:
    return read_rows(pair, CONTRAST, source_hook=1, target_hook=2)["mood"]


@pytest.mark.parametrize("by", ["mean_difference", "principal_component"])
def test_gaps_are_the_steering_vectors_of_the_same_texts(
    pair: ModelPair, rows: PairRows, by: Any
) -> None:
    for side, model, hook in (("source", pair.source, 1), ("target", pair.target, 2)):
        vector = getattr(SteeringVector, by)(model, CONTRAST, at=hook)
        torch.testing.assert_close(
            rows.gap(side, by), vector.direction.double(), atol=1e-5, rtol=1e-5
        )  # type: ignore[arg-type]


def test_the_map_is_the_concept_maps(pair: ModelPair, rows: PairRows) -> None:
    concept_map = ConceptMap.fit(pair, CONTRAST, source_hook=1, target_hook=2)
    torch.testing.assert_close(
        rows.fit().weight.float(), concept_map.layers[0].map.weight, atol=1e-4, rtol=1e-3
    )


def test_shuffling_keeps_the_rows_and_breaks_the_pairs(rows: PairRows) -> None:
    shuffled = rows.shuffled(torch.Generator().manual_seed(0))
    assert torch.equal(shuffled.source, rows.source)
    before, after = (
        sorted(map(tuple, one.target.flatten(0, 1).tolist())) for one in (rows, shuffled)
    )
    assert before == after
    assert not torch.equal(shuffled.target, rows.target)


def test_without_its_source_nothing_of_the_source_is_left(rows: PairRows) -> None:
    noise = rows.without_source(torch.Generator().manual_seed(0))
    assert torch.equal(noise.target, rows.target)
    assert (
        abs(np.corrcoef(noise.source.flatten().numpy(), rows.source.flatten().numpy())[0, 1]) < 0.2
    )
    torch.testing.assert_close(
        noise.gap("source") @ noise.fit().weight, rows.gap("target"), atol=1e-8, rtol=1e-8
    )


def test_the_map_of_means_is_least_squares_on_the_mean_row_alone(rows: PairRows) -> None:
    x, y = (side.flatten(0, 1).mean(0, keepdim=True).numpy() for side in (rows.source, rows.target))
    np.testing.assert_allclose(mean_only(rows).numpy(), np.linalg.pinv(x) @ y, atol=1e-10)


def test_rows_of_other_sets_are_refused(rows: PairRows) -> None:
    with pytest.raises(MismatchError, match="read them again with read_rows"):
        known_rows({"mood": rows[:3]}, [CONTRAST], rows.ends, "last")
    with pytest.raises(MismatchError, match="read them again with read_rows"):
        known_rows({"other": rows}, [CONTRAST], rows.ends, "last")
