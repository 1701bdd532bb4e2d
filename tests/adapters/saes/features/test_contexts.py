"""The stored contexts are the strongest positions of all text, with their surroundings."""

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
    """Values of a window around a position."""
    return [values[p].item() if ok else missing for p, ok in zip(around, inside, strict=True)]


def test_the_strongest_positions_of_all_batches_are_stored_one_per_window() -> None:
    shapes = [(4, 9), (1, 5), (7, 12), (3, 9)]
    batches = [_batch(seed, *shape) for seed, shape in enumerate(shapes)]
    contexts = TopContexts(6, 5, REACH)
    for batch in batches:
        contexts.add(*batch)
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
            assert float(contexts.peaks[feature, rank]) == peak
            assert contexts.tokens[feature, rank].tolist() == tokens
            assert contexts.ranked[feature, rank].tolist() == ranked
            assert contexts.other[feature, rank].tolist() == other


def test_a_feature_that_never_fires_has_no_context() -> None:
    contexts = TopContexts(6, 3, REACH)
    contexts.add(*_batch(0, 4, 8))
    assert not contexts.peaks[5].any()
    assert (contexts.tokens[5] == -1).all()
