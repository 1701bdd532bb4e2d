"""The strongest places that are kept are the strongest of all text, with what stood around them."""

import torch

from lrt_lens.adapters.saes.features._contexts import TopContexts

REACH = 2


def _batch(
    seed: int, windows: int, length: int, features: int = 6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ranked = torch.randn(windows, length, features, generator=generator).relu()
    ranked[..., 5] = 0
    lengths = torch.randint(3, length + 1, (windows,), generator=generator)
    ranked *= (torch.arange(length) < lengths[:, None])[..., None]
    other = torch.randn(windows, length, features, generator=generator)
    return ranked, other, torch.randint(0, 90, (windows, length), generator=generator), lengths


def _row(around: range, inside: list[bool], values: torch.Tensor, missing: float) -> list[float]:
    """A window's values around a place."""
    return [values[p].item() if ok else missing for p, ok in zip(around, inside, strict=True)]


def test_the_best_places_of_all_batches_are_kept_one_a_window_with_their_surroundings() -> None:
    shapes = [(4, 9), (1, 5), (7, 12), (3, 9)]
    batches = [_batch(seed, *shape) for seed, shape in enumerate(shapes)]
    kept = TopContexts(6, 5, REACH)
    for batch in batches:
        kept.add(*batch)
    for feature in range(5):
        places = []
        for ranked, other, tokens, lengths in batches:
            for window in range(len(ranked)):
                at = int(ranked[window, :, feature].argmax())
                around = range(at - REACH, at + REACH + 1)
                inside = [0 <= p < int(lengths[window]) for p in around]
                places.append(
                    (
                        float(ranked[window, at, feature]),
                        _row(around, inside, tokens[window], -1),
                        _row(around, inside, ranked[window, :, feature], 0.0),
                        _row(around, inside, other[window, :, feature], 0.0),
                    )
                )
        places.sort(key=lambda place: -place[0])
        for rank, (peak, tokens, ranked, other) in enumerate(places[:5]):
            assert float(kept.peaks[feature, rank]) == peak
            assert kept.tokens[feature, rank].tolist() == tokens
            assert kept.ranked[feature, rank].tolist() == ranked
            assert kept.other[feature, rank].tolist() == other


def test_a_feature_that_never_fires_has_no_place() -> None:
    kept = TopContexts(6, 3, REACH)
    kept.add(*_batch(0, 4, 8))
    assert not kept.peaks[5].any()
    assert (kept.tokens[5] == -1).all()
