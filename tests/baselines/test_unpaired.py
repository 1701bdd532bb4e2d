"""Alignment without pairs recovers planted permutations and rotations, and nothing from noise."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lrt_lens.baselines import MiniVec2Vec, unpaired_stitch
from lrt_lens.baselines._anchor_methods import rotation
from lrt_lens.baselines._unpaired import match_cosine, matched
from lrt_lens.models import ModelPair

SMALL = MiniVec2Vec(n_clusters=8, n_rounds=4, n_neighbours=5, n_matching=4, n_fine=30)


def clouds(n: int, turn: Tensor, seed: int) -> Tensor:
    """Return unit rows in clusters of different centres and sizes, rotated by `turn`."""
    places = torch.randn(8, len(turn), generator=torch.Generator().manual_seed(0)) * torch.linspace(
        0.5, 3, len(turn)
    )
    generator = torch.Generator().manual_seed(seed)
    member = torch.multinomial(torch.linspace(1, 3, 8), n, replacement=True, generator=generator)
    rows = (places[member] + 0.2 * torch.randn(n, len(turn), generator=generator)) @ turn
    rows = rows - rows.mean(0)
    return rows / rows.norm(dim=1, keepdim=True)


def test_centroids_are_matched_by_their_similarities() -> None:
    generator = np.random.default_rng(0)
    points = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    shuffled = points[order]
    found = matched(points @ points.T, shuffled @ shuffled.T, generator)
    torch.testing.assert_close(shuffled[found], points)


@pytest.mark.parametrize("d_target", [10, 14])
def test_a_rotation_is_found_from_different_rows(d_target: int) -> None:
    turn = rotation(torch.randn(10, d_target, generator=torch.Generator().manual_seed(3)))
    x, y = clouds(400, torch.eye(10), seed=4), clouds(500, turn, seed=5)
    q = SMALL.align(x, y)
    assert q.shape == (10, d_target)
    right = torch.nn.functional.cosine_similarity(x @ q, x @ turn, dim=1).mean()
    random = rotation(torch.randn(10, d_target, generator=torch.Generator().manual_seed(6)))
    assert right > 0.95
    assert torch.nn.functional.cosine_similarity(x @ random, x @ turn, dim=1).mean() < 0.5


def test_the_same_seed_gives_the_same_map() -> None:
    x, y = clouds(200, torch.eye(6), seed=4), clouds(200, torch.eye(6), seed=5)
    torch.testing.assert_close(SMALL.align(x, y, seed=3), SMALL.align(x, y, seed=3))
    assert not torch.allclose(SMALL.align(x, y, seed=3), SMALL.align(x, y, seed=4), atol=1e-6)


def test_match_cosine_is_the_mean_over_nearest_rows() -> None:
    images, y = torch.randn(30, 4, dtype=torch.float64), torch.randn(20, 4, dtype=torch.float64)
    expected = [
        max(float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for b in y) for a in images
    ]
    assert match_cosine(images, y) == pytest.approx(np.mean(expected))


def test_a_stitch_without_pairs_sends_means_and_spreads_to_each_other(
    pair: ModelPair, corpus: list[str]
) -> None:
    stitch = unpaired_stitch(
        pair, corpus[:40], corpus[40:90], source_hook=1, target_hook=2, method=SMALL, max_rows=600
    )
    assert (stitch.scores["n_source"], stitch.scores["n_target"]) == (600, 600)
    assert stitch.null is not None
    assert stitch.refits == ()
    assert "r2" not in stitch.scores
    weight = stitch.null.up.weight
    spread = float(weight.norm() / 16**0.5)
    torch.testing.assert_close(
        weight @ weight.T, spread**2 * torch.eye(16, dtype=torch.float64), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(stitch.null.down.weight, weight.T / spread**2)
    # A rotation is at most as long as one that is semi-orthogonal: an average of rotations never
    # stretches.
    assert float(torch.linalg.matrix_norm(stitch.up.weight, 2)) <= spread * (1 + 1e-5)


def test_one_row_a_text_is_offered(pair: ModelPair, corpus: list[str]) -> None:
    stitch = unpaired_stitch(
        pair, corpus[:40], corpus[40:90], source_hook=1, target_hook=2, method=SMALL, read="mean"
    )
    assert (stitch.scores["n_source"], stitch.scores["n_target"]) == (40, 50)


def test_pairs_and_too_little_text_are_refused(pair: ModelPair, corpus: list[str]) -> None:
    options = {"source_hook": 1, "target_hook": 2}
    with pytest.raises(
        ValueError, match=r"2 text\(s\) are on both sides; they are pairs: use anchor_stitch"
    ):
        unpaired_stitch(pair, corpus[:10], corpus[8:20], **options)
    with pytest.raises(ValueError, match=r"1 text\(s\) given"):
        unpaired_stitch(pair, corpus[:1], corpus[8:20], **options)
    with pytest.raises(
        ValueError, match="10 and 12 rows for 20 clusters; give at least 80 rows per side"
    ):
        unpaired_stitch(pair, corpus[:10], corpus[10:22], read="mean", **options)


def test_settings_that_make_no_sense_are_refused() -> None:
    for settings in ({"n_clusters": 2}, {"smoothing": 0.0}, {"n_rounds": 0}, {"n_matching": -1}):
        with pytest.raises(ValueError, match="expected at least 3 clusters"):
            MiniVec2Vec(**settings)  # type: ignore[arg-type]
