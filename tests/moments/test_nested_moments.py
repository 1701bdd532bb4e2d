"""Sums of nested beginnings of a harvest, compared with sums of the rows themselves."""

import numpy as np
import pytest
import torch

from lrt_lens.moments import CrossMoments
from lrt_lens.moments._nested_moments import NestedMoments

PAIR = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
N_PARTS = 13


def blocks(seed: int = 0) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """Return blocks of 10 to 40 rows in changing parts, far from the origin."""
    rng = np.random.default_rng(seed)
    return [
        (
            number % N_PARTS,
            torch.from_numpy(rng.normal(size=(n, 4)) + 3),
            torch.from_numpy(rng.normal(size=(n, 3)) - 2),
        )
        for number, n in enumerate(rng.integers(10, 41, 5 * N_PARTS))
    ]


def fed(moments: CrossMoments, *, pairing: bool = False) -> CrossMoments:
    for part, x, y in blocks():
        partner = torch.arange(len(x)).roll(1) if pairing else None
        moments.add_block(part, {PAIR[0]: x}, {PAIR[1]: y}, partner)
    return moments


def rows_of(part: int, n: int | None) -> tuple[np.ndarray, np.ndarray]:
    mine = [(x, y) for number, x, y in blocks() if number == part]
    x, y = (torch.cat(one).numpy()[:n] for one in zip(*mine, strict=True))
    return x, y


@pytest.mark.parametrize("mark", [7, 33, 60])
def test_a_copy_has_the_first_rows_of_each_fold_and_the_whole_test_fold(mark: int) -> None:
    nested = NestedMoments((PAIR,), None, torch.float64, marks=(7, 33, 60))
    fed(nested)
    moments = nested.at(mark)
    for parts, n in ((moments.parts.fit, mark), (moments.parts.test, None)):
        rows = [rows_of(part, n) for part in parts]
        x, y = (np.concatenate(one) for one in zip(*rows, strict=True))
        scatter = moments.scatter(PAIR, parts)
        assert scatter.n == len(x)
        centred = x - x.mean(0), y - y.mean(0)
        np.testing.assert_allclose(scatter.xx, centred[0].T @ centred[0], atol=1e-9)
        np.testing.assert_allclose(scatter.xy, centred[0].T @ centred[1], atol=1e-9)
        np.testing.assert_allclose(scatter.yy, centred[1].T @ centred[1], atol=1e-9)
        np.testing.assert_allclose(scatter.mean_x, x.mean(0))


def test_the_whole_moments_are_those_without_copies_and_so_is_the_null() -> None:
    plain = fed(CrossMoments((PAIR,), None, torch.float64, "full"), pairing=True)
    nested = NestedMoments((PAIR,), None, torch.float64, "full", marks=(7, 33, 60))
    fed(nested, pairing=True)
    for name, tensor in plain.tensors().items():
        torch.testing.assert_close(nested.tensors()[name], tensor, rtol=1e-12, atol=1e-9)


def test_a_fold_that_ends_before_a_mark_has_all_its_rows() -> None:
    nested = NestedMoments((PAIR,), None, torch.float64, marks=(7, 10_000))
    fed(nested)
    assert nested.at(10_000).n_fit == nested.n_fit
    assert nested.at(7).n_fit == 35
