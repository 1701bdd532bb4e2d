"""Fidelity is a correlation over rows, is 1 for perfect maps, and predicts what transfers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.errors import MismatchError
from lrt_lens.moments import CrossMoments
from lrt_lens.stitching import Stitch, fidelities, naive_fidelities
from lrt_lens.stitching.solvers import Ridge


@pytest.fixture(scope="module")
def stitch(rows: Any, moments_of: Any) -> Any:
    return moments_of(rows).fit(Ridge(alpha=1e-3)).best(by="r2_cv")


def test_read_and_naive_are_correlations_of_the_test_rows(rows: Any, stitch: Any) -> None:
    x, y = rows.numpy(~rows.fits)
    direction = np.random.default_rng(0).normal(size=12)
    found = stitch.fidelity(torch.from_numpy(direction), kind="read")
    down, up = stitch.down.weight.numpy(), stitch.up.weight.numpy()
    assert found.value == pytest.approx(
        np.corrcoef(x @ direction, y @ (down @ direction))[0, 1], rel=1e-9
    )
    assert found.naive == pytest.approx(
        np.corrcoef(x @ direction, y @ (direction @ up))[0, 1], rel=1e-9
    )
    assert found.n == len(x)


def test_write_is_the_correlation_of_the_read_outs_that_belong_to_the_directions(
    rows: Any, stitch: Any
) -> None:
    x, y = rows.numpy(rows.fits)
    test_x, test_y = rows.numpy(~rows.fits)
    direction = np.random.default_rng(1).normal(size=12)

    def read_out(stream: np.ndarray, written: np.ndarray) -> np.ndarray:
        covariance = np.cov(stream.T, bias=True)
        return np.linalg.solve(
            covariance + 1e-3 * covariance.trace() / len(covariance) * np.eye(len(covariance)),
            written,
        )

    expected = np.corrcoef(
        test_x @ read_out(x, direction), test_y @ read_out(y, direction @ stitch.up.weight.numpy())
    )[0, 1]
    assert stitch.fidelity(torch.from_numpy(direction)).value == pytest.approx(expected, rel=1e-8)


def test_an_invertible_relation_without_noise_has_fidelity_one_where_the_naive_correlation_has_not(
    rows: Any, moments_of: Any
) -> None:
    mixing = torch.randn(12, 12, generator=torch.Generator().manual_seed(2)).double()
    perfect = moments_of(replace(rows, y=rows.x @ mixing)).fit(Ridge(alpha=1e-9)).best(by="r2_cv")
    directions = torch.randn(20, 12, generator=torch.Generator().manual_seed(3))
    for kind in ("write", "read"):
        torch.testing.assert_close(
            fidelities(perfect, directions, kind), torch.ones(20).double(), rtol=0, atol=1e-4
        )
    assert naive_fidelities(perfect, directions).mean() < 0.9


def test_a_direction_that_only_the_source_has_does_not_carry(rows: Any, moments_of: Any) -> None:
    y = rows.x[:, :6] @ torch.randn(6, 9, generator=torch.Generator().manual_seed(4)).double()
    # Independent dimensions, so that the last six say nothing of the target.
    x = torch.randn(len(rows.x), 12, generator=torch.Generator().manual_seed(5)).double()
    half = (
        moments_of(replace(rows, x=x, y=x[:, :6] @ torch.linalg.pinv(rows.x[:, :6]) @ y))
        .fit(Ridge(alpha=1e-6))
        .best(by="r2_cv")
    )
    basis = torch.eye(12)
    assert fidelities(half, basis[:6], "read").min() > 0.99
    assert fidelities(half, basis[6:], "read").abs().max() < 0.2


def test_the_interval_holds_the_value_and_the_null_is_that_of_random_directions(
    stitch: Any,
) -> None:
    found = stitch.fidelity(torch.ones(12), kind="read", n_random=200)
    assert found.low < found.value < found.high <= 1
    assert found.random_low < found.random_mean < found.random_high
    assert stitch.fidelity(torch.ones(12), kind="read", n_random=200) == found
    assert "read 0." in repr(found)


def test_the_interval_narrows_as_the_root_of_the_text() -> None:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(48_000, 12, generator=generator).double()
    y = (
        x @ torch.randn(12, 9, generator=generator).double()
        + 3 * torch.randn(48_000, 9, generator=generator).double()
    )
    directions, widths = torch.randn(6, 12, generator=generator), []
    for n in (3_000, 48_000):
        moments = CrossMoments.from_activations(x[:n], y[:n], documents=[i // 10 for i in range(n)])
        found = [
            moments.fit(Ridge(alpha=1e-3)).best(by="r2_cv").fidelity(v, kind="read")
            for v in directions
        ]
        widths.append(sum(f.high - f.low for f in found))
    assert 2 < widths[0] / widths[1] < 8


def test_it_survives_saving_and_turning_round(stitch: Any, tmp_path: Any) -> None:
    stitch.save_pretrained(tmp_path / "stitch")
    loaded = Stitch.from_pretrained(tmp_path / "stitch")
    for kind in ("write", "read"):
        assert loaded.fidelity(torch.ones(12), kind=kind).value == pytest.approx(
            stitch.fidelity(torch.ones(12), kind=kind).value, rel=1e-4
        )
    back = stitch.reversed().fidelity(torch.ones(9), kind="read")
    x, y = stitch.up.weight, stitch.held_out[0]
    assert back.n == stitch.fidelity(torch.ones(12)).n
    assert x.shape == y.xy.shape


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_direction_or_no_kind_is_refused(stitch: Any) -> None:
    with pytest.raises(
        MismatchError,
        match=r"direction has shape \(9,\); this stitch starts at 'source' with \[12\]",
    ):
        stitch.fidelity(torch.ones(9))
    with pytest.raises(ValueError, match="zero, NaN or infinite"):
        stitch.fidelity(torch.zeros(12))
    with pytest.raises(ValueError, match="kind is 'both'; expected 'write'"):
        stitch.fidelity(torch.ones(12), kind="both")
    with pytest.raises(ValueError, match="has no held-out moments"):
        replace(stitch, held_out=()).fidelity(torch.ones(12))
