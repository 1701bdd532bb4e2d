"""Affine maps: points are mapped with the bias, directions without."""

import pytest
import torch

from lrt_lens.errors import MismatchError
from lrt_lens.stitching import AffineMap, MapPair, StreamStatistics

ONE, TWO, THREE = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post", "blocks.3.hook_resid_post"


def some_map(d_in: int, d_out: int, start: str, end: str, seed: int = 0) -> AffineMap:
    generator = torch.Generator().manual_seed(seed)
    return AffineMap(
        torch.randn(d_in, d_out, generator=generator, dtype=torch.float64),
        torch.randn(d_out, generator=generator, dtype=torch.float64),
        start,
        end,
    )


def test_points_move_with_the_bias_and_directions_without() -> None:
    affine = some_map(4, 3, ONE, TWO)
    x, y = torch.randn(2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(
        affine.points(x), torch.einsum("ti,ij->tj", x, affine.weight) + affine.bias
    )
    torch.testing.assert_close(affine.directions(x - y), affine.points(x) - affine.points(y))
    assert affine.points(x[0]).shape == (3,)
    assert affine.points(torch.zeros(2, 7, 4)).shape == (2, 7, 3)


def test_a_map_follows_the_dtype_of_what_it_carries() -> None:
    affine = some_map(4, 3, ONE, TWO)
    for dtype in (torch.float32, torch.bfloat16):
        assert affine.points(torch.ones(2, 4, dtype=dtype)).dtype == dtype
        assert affine.directions(torch.ones(4, dtype=dtype)).dtype == dtype
    assert affine.weight.dtype == torch.float64


def test_composing_is_one_map_after_the_other() -> None:
    first, second = some_map(4, 3, ONE, TWO), some_map(3, 5, TWO, THREE, seed=1)
    both = first.compose(second)
    x = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(both.points(x), second.points(first.points(x)))
    assert (both.source_hook, both.target_hook) == (ONE, THREE)


def test_maps_compose_where_two_names_mean_one_place() -> None:
    assert (
        some_map(4, 3, ONE, TWO)
        .compose(some_map(3, 5, "blocks.3.hook_resid_pre", THREE))
        .target_hook
        == THREE
    )


def test_maps_that_do_not_meet_do_not_compose() -> None:
    with pytest.raises(
        MismatchError, match=rf"this map ends at '{TWO}', the next starts at '{THREE}'"
    ):
        some_map(4, 3, ONE, TWO).compose(some_map(3, 5, THREE, ONE))


def test_rows_of_another_width_are_refused() -> None:
    affine = some_map(4, 3, ONE, TWO)
    for carry in (affine.points, affine.directions):
        with pytest.raises(
            MismatchError,
            match=rf"last dimension is 3; this map starts at '{ONE}' with 4 dimensions",
        ):
            carry(torch.zeros(2, 3))


def test_weight_and_bias_must_fit() -> None:
    with pytest.raises(MismatchError, match=r"weight \(4, 3\) and bias \(4,\) do not fit"):
        AffineMap(torch.zeros(4, 3), torch.zeros(4))


def test_reversing_a_pair_of_maps_exchanges_them() -> None:
    up, down = some_map(4, 3, ONE, TWO), some_map(3, 4, TWO, ONE)
    back = MapPair(up, down).reversed()
    assert (back.up, back.down) == (down, up)


def test_principal_directions_are_the_leading_eigenvectors() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    variances = torch.tensor([0.5, 4.0, 1.0, 9.0], dtype=torch.float64)
    statistics = StreamStatistics(torch.zeros(4), (axes * variances) @ axes.T, 1.0)
    found = statistics.principal_directions(2)
    torch.testing.assert_close((found @ axes[:, [3, 1]]).abs(), torch.eye(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="n is 5; expected a number of directions from 1 to 4"):
        statistics.principal_directions(5)
