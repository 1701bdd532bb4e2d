"""Cosines over n/d: exactly 1 while a map interpolates, for any source, and numpy's otherwise."""

from typing import Any

import numpy as np
import pytest

from lrt_lens.adapters.concepts import ConceptInterpolation, evaluate_interpolation
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.stitching import Stitch, fit_stitches
from tests.adapters.concepts.small_concepts import small_concepts
from tests.figures.counts import counts_of

MOOD, COLOUR = (concept.contrast for concept in small_concepts(28))


@pytest.fixture(scope="module")
def stitch(pair: ModelPair, corpus: list[str]) -> Stitch:
    return fit_stitches(pair, corpus, n_tokens=None, context_length=32, null=False, progress=False)[
        1, 2
    ]


@pytest.fixture(scope="module")
def interpolation(pair: ModelPair, stitch: Stitch) -> ConceptInterpolation:
    return evaluate_interpolation(
        pair,
        [MOOD, COLOUR],
        source_hook=1,
        target_hook=2,
        counts=[8, 14, 40],
        stitch=stitch,
        n_draws=2,
        progress=False,
    )


def cosines(interpolation: ConceptInterpolation, arm: str, n: int) -> np.ndarray:
    table = interpolation.table
    return table.loc[(table["arm"] == arm) & (table["n"] == n), "cosine"].to_numpy()


def test_below_d_texts_the_own_map_returns_the_native_vector_even_of_a_random_source(
    interpolation: ConceptInterpolation,
) -> None:
    for n in (8, 14):
        for arm in ("own", "noise_source"):
            np.testing.assert_allclose(cosines(interpolation, arm, n), 1, atol=1e-6)
    assert (cosines(interpolation, "own", 40) < 1 - 1e-5).all()
    assert (cosines(interpolation, "noise_source", 40) < 0.995).all()
    assert interpolation.table.loc[interpolation.table["arm"] == "own"].groupby("n")[
        "interpolates"
    ].all().to_dict() == {8: True, 14: True, 40: False}


def test_arms_learnt_elsewhere_do_not(interpolation: ConceptInterpolation) -> None:
    for arm in ("own_disjoint", "other", "random", "shuffled"):
        assert (cosines(interpolation, arm, 8) < 0.999).all(), arm


def test_every_arm_is_there_for_both_concepts(interpolation: ConceptInterpolation) -> None:
    arms = {
        "own",
        "noise_source",
        "own_disjoint",
        "own_disjoint_ridge",
        "other",
        "other_ridge",
        "shuffled",
        "random",
        "native_other_texts",
        "stitch",
    }
    assert set(
        map(tuple, interpolation.table[["concept", "arm"]].drop_duplicates().to_numpy().tolist())
    ) == {(concept, arm) for concept in ("mood", "colour") for arm in arms}
    assert interpolation.n_held_out == {"mood": 7, "colour": 7}
    assert len(interpolation.summary) == len(interpolation.table) // 2
    assert "noise_source" in interpolation._repr_html_()
    assert len(interpolation.figure().data) == 20
    assert counts_of(interpolation.figure()) == "n = 2 draws per point, 7 held-out pairs"


def test_the_stitch_is_a_straight_line(interpolation: ConceptInterpolation) -> None:
    for concept in ("mood", "colour"):
        part = interpolation.table[
            (interpolation.table["arm"] == "stitch") & (interpolation.table["concept"] == concept)
        ]
        assert part["cosine"].std() < 1e-9


@pytest.mark.usefixtures("unchecked")
def test_bad_counts_sets_and_stitches_are_refused(pair: ModelPair, stitch: Stitch) -> None:
    options: dict[str, Any] = {"source_hook": 1, "target_hook": 2, "progress": False}
    for counts in ([7], [2], [400], []):
        with pytest.raises(ValueError, match=r"expected even numbers from 4 to 42"):
            evaluate_interpolation(pair, [MOOD, COLOUR], counts=counts, **options)
    with pytest.raises(
        ValueError,
        match=r"1 contrast set\(s\) given; a map fitted on another concept needs at least two",
    ):
        evaluate_interpolation(pair, [MOOD], **options)
    for source_hook, target_hook in ((0, 2), (1, 1)):
        with pytest.raises(MismatchError, match=r"this stitch maps .*1.hook.* → .*expected .*hook"):
            evaluate_interpolation(
                pair,
                [MOOD, COLOUR],
                source_hook=source_hook,
                target_hook=target_hook,
                stitch=stitch,
                progress=False,
            )
