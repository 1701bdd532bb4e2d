"""Diagnostics of a map, compared with numpy on its weight and on rows.

Intervals are compared with scores of rows with one group left out.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import r2_score

from lrt_lens.errors import MismatchError
from lrt_lens.moments import FIT_PARTS
from lrt_lens.stitching import AffineMap, map_diagnostics, score_intervals
from lrt_lens.stitching._diagnostics import condition_number, effective_rank
from tests.figures.counts import counts_of
from tests.statistics.explicit_jackknife import explicit_jackknife

PAIR = ("source", "target")


@pytest.fixture(scope="module")
def moments(rows: Any, moments_of: Any) -> Any:
    return moments_of(rows)


@pytest.fixture(scope="module")
def affine(moments: Any) -> AffineMap:
    return moments.fit()[PAIR].up


def low_rank(rank: int) -> AffineMap:
    generator = torch.Generator().manual_seed(4)
    left, right = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((12, rank), (rank, 9))
    )
    return AffineMap(left @ right, torch.zeros(9, dtype=torch.float64), *PAIR)


def test_spectrum_ranks_and_condition_are_numpys(moments: Any, affine: AffineMap) -> None:
    found = map_diagnostics(affine, moments.scatter(PAIR, FIT_PARTS))
    weight = affine.weight.double().numpy()
    values = np.linalg.svd(weight, compute_uv=False)
    assert found.singular_values.numpy() == pytest.approx(values, rel=1e-9)
    assert found.rank == np.linalg.matrix_rank(weight) == 9
    assert found.condition == pytest.approx(np.linalg.cond(weight), rel=1e-9)
    assert found.frobenius_norm == pytest.approx(np.linalg.norm(weight), rel=1e-9)
    assert found.stable_rank == pytest.approx(
        (weight**2).sum() / np.linalg.norm(weight, 2) ** 2, rel=1e-9
    )
    assert found.effective_rank == pytest.approx(
        math.exp(stats.entropy(values / values.sum())), rel=1e-9
    )
    assert (found.d_source, found.d_target) == weight.shape


def test_the_source_and_the_predictions_are_those_of_rows(
    rows: Any, moments: Any, affine: AffineMap
) -> None:
    found = map_diagnostics(affine, moments.scatter(PAIR, FIT_PARTS))
    x, _ = rows.numpy(rows.fits)
    assert found.source_condition == pytest.approx(np.linalg.cond(np.cov(x.T)), rel=1e-6)
    spectrum = np.linalg.eigvalsh(np.cov((x @ affine.weight.double().numpy()).T))
    assert found.predicted_effective_rank == pytest.approx(
        math.exp(stats.entropy(spectrum / spectrum.sum())), rel=1e-6
    )
    assert found.n == rows.fits.sum()
    assert not found.interpolates


def test_a_map_of_low_rank_reaches_a_share_of_the_variance(rows: Any, moments: Any) -> None:
    affine, (_, y) = low_rank(3), rows.numpy(rows.fits)
    found = map_diagnostics(affine, moments.scatter(PAIR, FIT_PARTS))
    centred = y - y.mean(0)
    q, _ = np.linalg.qr(affine.weight.numpy().T[:, :3])
    assert found.rank == 3
    assert found.condition == math.inf
    assert found.reachable == pytest.approx(
        ((centred @ q) ** 2).sum() / (centred**2).sum(), rel=1e-9
    )
    s = np.linalg.svd(centred, compute_uv=False) ** 2
    assert found.reachable_by_rank == pytest.approx(s[:3].sum() / s.sum(), rel=1e-9)
    assert found.reachable < found.reachable_by_rank < 1


def test_no_score_exceeds_what_is_reachable(rows: Any, moments: Any) -> None:
    x, y = rows.numpy(rows.fits)
    affine = low_rank(3)
    best = np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=None)[0]
    q, _ = np.linalg.qr(affine.weight.numpy().T[:, :3])
    predicted = (x - x.mean(0)) @ best @ q @ q.T + y.mean(0)
    reachable = map_diagnostics(affine, moments.scatter(PAIR, FIT_PARTS)).reachable
    assert r2_score(y, predicted, multioutput="variance_weighted") <= reachable + 1e-9


def test_a_rotation_has_every_rank_full_and_a_map_of_one_direction_has_all_of_them_one() -> None:
    rotation, _ = torch.linalg.qr(
        torch.randn(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    assert effective_rank(torch.linalg.svdvals(rotation)) == pytest.approx(9)
    assert effective_rank(torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64)) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0


def test_a_map_to_nothing_has_rank_nought(moments: Any) -> None:
    nothing = AffineMap(
        torch.zeros(12, 9, dtype=torch.float64), torch.zeros(9, dtype=torch.float64), *PAIR
    )
    found = map_diagnostics(nothing, moments.scatter(PAIR, FIT_PARTS))
    assert (found.rank, found.stable_rank, found.effective_rank, found.reachable) == (
        0,
        0.0,
        0.0,
        0.0,
    )


def test_few_rows_interpolate_and_leave_the_source_singular(
    rows: Any, moments_of: Any, affine: AffineMap
) -> None:
    fits = np.flatnonzero(rows.fits)
    for n, interpolates in ((13, True), (14, False)):
        few = moments_of(rows.taken(fits[:: len(fits) // n][:n]))
        parts = [p for p in FIT_PARTS if float(few.n[p])]
        found = map_diagnostics(affine, few.scatter(PAIR, parts))
        assert (found.n, found.interpolates) == (n, interpolates)
    assert condition_number(torch.eye(5, dtype=torch.float64), 5.0) == math.inf
    assert condition_number(torch.eye(5, dtype=torch.float64), 6.0) == 1
    assert (
        condition_number(torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)), 100.0)
        == math.inf
    )


def test_numbers_make_a_row_and_the_spectrum_a_table(moments: Any, affine: AffineMap) -> None:
    fit = moments.scatter(PAIR, FIT_PARTS)
    diagnostics = map_diagnostics(affine, fit)
    assert counts_of(diagnostics.figure()) == f"n = {int(fit.n):,} fitting rows"
    assert diagnostics.row["rank"] == 9
    assert "singular_values" not in diagnostics.row
    spectrum = diagnostics.spectrum
    assert spectrum["singular_value"].tolist() == diagnostics.singular_values.tolist()
    assert spectrum["index"].tolist() == list(range(1, 10))
    assert spectrum["share"].iloc[0] == 1
    assert list(diagnostics.figure().data[0].y) == spectrum["singular_value"].tolist()


# ---------------------------------------------------------------------------------------- intervals


def scores_of_rows(
    rows: Any, affine: AffineMap, chosen: np.ndarray, down: bool
) -> tuple[float, float, float]:
    x, y = rows.numpy(chosen)
    x, y = (y, x) if down else (x, y)
    predicted = x @ affine.weight.double().numpy() + affine.bias.double().numpy()
    a, b = predicted - y.mean(0), y - y.mean(0)
    cosine = (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())
    return (
        r2_score(y, predicted, multioutput="variance_weighted"),
        r2_score(y, predicted, multioutput="uniform_average"),
        cosine,
    )


@pytest.mark.parametrize("down", [False, True])
def test_intervals_are_those_of_rows_with_each_group_left_out(
    rows: Any, moments: Any, down: bool
) -> None:
    maps = moments.fit()[PAIR]
    affine = maps.down if down else maps.up
    table = score_intervals(affine, moments, PAIR, down=down)
    groups = np.unique(rows.parts[~rows.fits])
    assert (table["n_groups"] == len(groups)).all()
    full = scores_of_rows(rows, affine, ~rows.fits, down)
    left_out = np.array(
        [scores_of_rows(rows, affine, ~rows.fits & (rows.parts != g), down) for g in groups]
    )
    sizes = [(rows.parts == g).sum() for g in groups]
    assert len(set(sizes)) > 1
    error, reach = np.transpose(
        [explicit_jackknife(*one, sizes) for one in zip(full, left_out.T, strict=True)]
    )
    assert table["score"].tolist() == ["r2", "r2_uniform", "cosine"]
    assert table["value"].to_numpy() == pytest.approx(full, rel=1e-6)
    assert table["standard_error"].to_numpy() == pytest.approx(error, rel=1e-5)
    low, high = full - reach, full + reach
    # The cosine is a correlation; its interval is that of artanh.
    z = np.arctanh(full[2])
    _, half = explicit_jackknife(z, np.arctanh(left_out[:, 2]), sizes)
    low[2], high[2] = np.tanh([z - half, z + half])
    assert table["low"].to_numpy() == pytest.approx(low, rel=1e-5)
    assert table["high"].to_numpy() == pytest.approx(high, rel=1e-5)
    assert (table["flag"] == "").all()


def test_the_values_are_those_of_the_grid(moments: Any, affine: AffineMap) -> None:
    row = moments.fit().scores.iloc[0]
    values = score_intervals(affine, moments, PAIR).set_index("score")["value"]
    for name in ("r2", "r2_uniform", "cosine"):
        assert values[name] == pytest.approx(row[name], rel=1e-9)


def test_one_group_gives_a_score_and_no_interval(
    rows: Any, moments_of: Any, affine: AffineMap
) -> None:
    one = next(part for part in range(5, 13) if (rows.parts == part).any())
    table = score_intervals(
        affine, moments_of(rows.taken(np.flatnonzero(rows.fits | (rows.parts == one)))), PAIR
    )
    assert table["value"].notna().all()
    assert table[["low", "high", "standard_error"]].isna().all().all()


def test_maps_of_other_widths_are_refused(moments: Any) -> None:
    wrong = AffineMap(torch.zeros(9, 12), torch.zeros(12), "target", "source")
    with pytest.raises(MismatchError, match=r"widths \(9, 12\), the moments \(12, 9\)"):
        map_diagnostics(wrong, moments.scatter(PAIR, FIT_PARTS))
    with pytest.raises(MismatchError, match="down=True"):
        score_intervals(wrong, moments, PAIR)
    assert score_intervals(wrong, moments, PAIR, down=True)["value"][0] < 0
