"""Similarities from moments equal those of rows, and have the stated invariances."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.spatial import procrustes as scipy_procrustes
from torch import Tensor

from lrt_lens.moments._scatter import between_folds
from lrt_lens.stitching._measures import MEASURES, Paired, ShuffledPairs, Stream

N_GROUPS = 5


def paired(x: Tensor, y: Tensor, **options: Any) -> Paired:
    """Streams of rows, in five groups of equal size."""

    def covariances(a: Tensor, b: Tensor) -> float:
        groups = zip(a.chunk(N_GROUPS), b.chunk(N_GROUPS), strict=True)
        return between_folds(
            torch.stack([(p - p.mean(0)).T @ (q - q.mean(0)) / len(p) for p, q in groups])
        )

    a, b, n = x - x.mean(0), y - y.mean(0), float(len(x))
    streams = (
        Stream(a.T @ a, n, covariances(x, x), **options),
        Stream(b.T @ b, n, covariances(y, y), **options),
    )
    return Paired(*streams, a.T @ b, covariances(x, y))


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(n: int = 400, d_x: int = 12, d_y: int = 9, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    x = randn(0, n, d_x) @ randn(1, d_x, d_x) + 5
    return x, x @ randn(2, d_x, d_y) + noise * 3 * randn(3, n, d_y)


def rotation(seed: int, d: int) -> Tensor:
    return torch.linalg.qr(randn(seed, d, d))[0]


def naive_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return CKA from centred Gram matrices of rows: HSIC(K, L) / √(HSIC(K, K) HSIC(L, L))."""
    h = np.eye(len(x)) - 1 / len(x)
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def naive_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return singular values of QₓᵀQᵧ from QR of the centred rows (Björck and Golub 1973)."""
    (q, _), (p, _) = (np.linalg.qr(a - a.mean(0)) for a in (x, y))
    return np.linalg.svd(q.T @ p, compute_uv=False)


def naive_svcca(x: np.ndarray, y: np.ndarray, share: float) -> float:
    """Return canonical correlations of the principal components with this share of variance."""
    cut = []
    for rows in (x, y):
        u, s, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
        cut.append((u * s)[:, : int(np.searchsorted(np.cumsum(s**2) / (s**2).sum(), share)) + 1])
    return float(naive_correlations(*cut).mean())


# ------------------------------------------------------------------------------------------- values


def test_biased_cka_is_that_of_centred_gram_matrices() -> None:
    x, y = related()
    assert MEASURES["cka_biased"].value(paired(x, y)) == pytest.approx(
        naive_cka(x.numpy(), y.numpy()), rel=1e-10
    )


def test_debiased_cka_is_a_double_loop_over_groups() -> None:
    x, y = related()

    def terms(a: Tensor, b: Tensor) -> float:
        groups = [
            np.cov(np.hstack([p, q]).T, bias=True)[: p.shape[1], p.shape[1] :]
            for p, q in zip(a.chunk(5), b.chunk(5), strict=True)
        ]
        return float(
            sum((groups[j] * groups[k]).sum() for j in range(5) for k in range(5) if j != k)
        )

    expected = terms(x, y) / np.sqrt(terms(x, x) * terms(y, y))
    assert MEASURES["cka"].value(paired(x, y)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(400, 12, 9), (400, 9, 12), (40, 30, 5)])
def test_mean_canonical_correlation_is_that_of_qr_on_rows(shape: tuple[int, int, int]) -> None:
    x, y = related(*shape)
    assert MEASURES["cca"].value(paired(x, y)) == pytest.approx(
        naive_correlations(x.numpy(), y.numpy()).mean(), rel=1e-8
    )


def test_canonical_correlations_agree_with_scikit_learn() -> None:
    from sklearn.cross_decomposition import CCA

    x, y = related(noise=0.3)
    a, b = (
        CCA(n_components=9, scale=False, max_iter=20000, tol=1e-12)
        .fit(x.numpy(), y.numpy())
        .transform(x.numpy(), y.numpy())
    )
    expected = np.mean([np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(9)])
    assert MEASURES["cca"].value(paired(x, y)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_svcca_correlates_principal_components_of_rows(share: float) -> None:
    x, y = related()
    value = MEASURES["svcca"].value(paired(x, y, kept_variance=share))
    assert value == pytest.approx(naive_svcca(x.numpy(), y.numpy(), share), rel=1e-8)


def test_svcca_that_keeps_all_variance_is_cca() -> None:
    streams = paired(*related(), kept_variance=1.0)
    assert MEASURES["svcca"].value(streams) == pytest.approx(
        MEASURES["cca"].value(streams), rel=1e-8
    )


def test_procrustes_similarity_gives_scipys_disparity_and_the_rotated_distance() -> None:
    x, y = related(d_x=9, d_y=9)
    s = MEASURES["procrustes"].value(paired(x, y))
    assert 1 - s**2 == pytest.approx(scipy_procrustes(x.numpy(), y.numpy())[2], rel=1e-9)
    a, b = (
        (rows - rows.mean(0)) / torch.linalg.matrix_norm(rows - rows.mean(0)) for rows in (x, y)
    )
    u, _, v = torch.linalg.svd(a.T @ b)
    assert 2 * (1 - s) == pytest.approx(float((a @ u @ v - b).square().sum()), rel=1e-9)


# -------------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("name", list(MEASURES))
def test_rotations_scales_and_shifts_of_a_side_change_nothing(name: str) -> None:
    x, y = related()
    moved = paired(3 * x @ rotation(5, 12) - 7, 0.01 * y @ rotation(6, 9) + 2)
    assert MEASURES[name].value(moved) == pytest.approx(
        MEASURES[name].value(paired(x, y)), rel=1e-7
    )


def test_cca_alone_does_not_change_under_any_invertible_map() -> None:
    x, y = related()
    plain, moved = (
        paired(x, y),
        paired(
            x @ (randn(7, 12, 12) + 2 * torch.eye(12, dtype=x.dtype)),
            y @ torch.diag(torch.logspace(0, 5, 9)).double(),
        ),
    )
    assert MEASURES["cca"].value(moved) == pytest.approx(MEASURES["cca"].value(plain), rel=1e-7)
    for name in ("cka", "cka_biased", "svcca", "procrustes"):
        assert abs(MEASURES[name].value(moved) - MEASURES[name].value(plain)) > 0.01, name


@pytest.mark.parametrize("name", list(MEASURES))
def test_a_stream_is_one_with_itself_rotated(name: str) -> None:
    x, _ = related()
    streams = paired(x, 2 * x @ rotation(8, 12) + 1)
    assert MEASURES[name].value(streams) == pytest.approx(1, abs=1e-7)
    assert MEASURES[name].held_out(streams, streams) == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("name", list(MEASURES))
def test_the_order_of_sides_does_not_matter(name: str) -> None:
    x, y = related()
    assert MEASURES[name].value(paired(x, y)) == pytest.approx(
        MEASURES[name].value(paired(y, x)), rel=1e-9
    )


# --------------------------------------------------------------------------------------------- rank


def test_dimensions_that_repeat_others_or_never_vary_do_not_count() -> None:
    x, y = related()
    wider = torch.cat(
        [x, x[:, :3] @ randn(9, 3, 4), torch.full((len(x), 2), 4.0, dtype=x.dtype)], 1
    )
    assert (
        Stream((wider - wider.mean(0)).T @ (wider - wider.mean(0)), 400.0).whitening.shape[1] == 12
    )
    assert MEASURES["cca"].value(paired(wider, y)) == pytest.approx(
        MEASURES["cca"].value(paired(x, y)), rel=1e-7
    )


def test_a_dimension_that_is_only_small_counts() -> None:
    x, y = related()
    small = x * torch.cat([torch.full((1,), 1e-5, dtype=x.dtype), torch.ones(11, dtype=x.dtype)])
    assert MEASURES["cca"].value(paired(small, y)) == pytest.approx(
        MEASURES["cca"].value(paired(x, y)), rel=1e-6
    )


def test_few_rows_force_correlations_and_say_how_many() -> None:
    x, y = randn(1, 20, 30), randn(2, 20, 8)
    streams = paired(x, y)
    cca: Any = MEASURES["cca"]
    assert streams.x.whitening.shape[1] == 19
    assert paired(x, y, tolerance=0.0).x.whitening.shape[1] == 19  # rounding above zero is no rank
    assert cca.n_forced(streams) == 8
    assert cca.value(streams) == pytest.approx(1, abs=1e-6)
    assert cca.n_forced(paired(*related())) == 0


@pytest.mark.parametrize("name", list(MEASURES))
def test_a_stream_that_never_varies_is_like_nothing(name: str) -> None:
    x, _ = related()
    streams = paired(x, torch.full((400, 4), 2.0, dtype=x.dtype))
    assert math.isnan(MEASURES[name].value(streams))
    assert math.isnan(MEASURES[name].held_out(streams, streams))


# ----------------------------------------------------------------------------------------- held out


def test_canonical_directions_of_one_half_are_correlated_on_the_other() -> None:
    x, y = related(800)
    fit, test = (x[:400], y[:400]), (x[400:], y[400:])
    (q, r), (p, s) = (np.linalg.qr((rows - rows.mean(0)).numpy()) for rows in fit)
    u, _, v = np.linalg.svd(q.T @ p, full_matrices=False)
    a, b = test[0].numpy() @ np.linalg.solve(r, u), test[1].numpy() @ np.linalg.solve(s, v.T)
    expected = np.mean([np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(9)])
    assert MEASURES["cca"].held_out(paired(*fit), paired(*test)) == pytest.approx(
        expected, rel=1e-8
    )
    assert MEASURES["cca"].held_out(paired(*fit), paired(*test)) < MEASURES["cca"].value(
        paired(*fit)
    )


def test_held_out_procrustes_keeps_the_rotation() -> None:
    x, y = related(800)
    fit, test = (x[:400], y[:400]), (x[400:], y[400:])
    a, b = (rows - rows.mean(0) for rows in fit)
    u, _, v = torch.linalg.svd(a.T @ b, full_matrices=False)
    a, b = (rows - rows.mean(0) for rows in test)
    expected = float(((a @ u @ v) * b).sum() / (a.norm() * b.norm()))
    assert MEASURES["procrustes"].held_out(paired(*fit), paired(*test)) == pytest.approx(
        expected, rel=1e-9
    )


def test_cka_held_out_is_that_of_the_other_rows() -> None:
    x, y = related(800)
    fit, test = paired(x[:400], y[:400]), paired(x[400:], y[400:])
    for name in ("cka", "cka_biased"):
        assert MEASURES[name].held_out(fit, test) == MEASURES[name].value(test)


# -------------------------------------------------------------------------------------------- nulls


def shuffled(
    x: Tensor, y: Tensor, basis: Tensor | None = None, seed: int = 0, n_fit: int | None = None
) -> ShuffledPairs:
    """Return the null moments of shuffled rows; by default the last fifth is the test fold."""
    n_fit = n_fit or len(x) * 4 // 5
    cross = []
    for a, b in ((x[:n_fit], y[:n_fit]), (x[n_fit:], y[n_fit:])):
        permuted = b[torch.randperm(len(b), generator=torch.Generator().manual_seed(seed))]
        scatter = (a - a.mean(0)).T @ (permuted - permuted.mean(0))
        cross.append(scatter if basis is None else scatter @ basis)
    expansion = 1.0 if basis is None else y.shape[1] / basis.shape[1]
    return ShuffledPairs(*cross, float(n_fit), float(len(x) - n_fit), N_GROUPS, expansion)


def wachter_mean(d_x: int, d_y: int, n: int) -> float:
    """Return the mean canonical correlation of independent Gaussian streams.

    Wachter (1980) gives the limiting distribution of the squared correlations.
    """
    p, q = max(d_x, d_y) / n, min(d_x, d_y) / n
    low, high = (
        (math.sqrt(p * (1 - q)) - math.sqrt(q * (1 - p))) ** 2,
        (math.sqrt(p * (1 - q)) + math.sqrt(q * (1 - p))) ** 2,
    )

    def density(t: float) -> float:
        return math.sqrt(max(0.0, (t - low) * (high - t))) / (2 * math.pi * q * t * (1 - t))

    assert integrate.quad(density, low, high)[0] == pytest.approx(1, abs=1e-6)
    return integrate.quad(lambda t: math.sqrt(t) * density(t), low, high)[0]


def test_the_null_of_cca_is_the_limiting_law_of_independent_streams() -> None:
    x, y = related(1000, 60, 40)
    assert MEASURES["cca"].null(paired(x, y), shuffled(x, y, n_fit=999)) == pytest.approx(
        wachter_mean(60, 40, 998), rel=0.03
    )


def test_the_null_of_biased_cka_is_the_mean_over_permutations() -> None:
    x, y = related(500, 60, 40)
    streams = paired(x[:400], y[:400])
    nulls = [MEASURES["cka_biased"].null(streams, shuffled(x, y, seed=seed)) for seed in range(20)]
    # E over permutations of ‖XᵀPY‖²_F is tr Sxx tr Syy / (n − 1) for centred rows.
    assert np.mean(nulls) == pytest.approx(
        streams.x.total * streams.y.total / 399 / (streams.x.norm * streams.y.norm), rel=0.03
    )


def test_the_null_of_debiased_cka_has_no_bias_where_the_biased_has() -> None:
    x, y = related(250, 60, 40)
    streams = paired(x[:200], y[:200])
    nulls = np.array(
        [MEASURES["cka"].null(streams, shuffled(x, y, seed=seed)) for seed in range(200)]
    )
    assert abs(nulls.mean()) < 3 * nulls.std() / math.sqrt(200)
    assert MEASURES["cka_biased"].null(streams, shuffled(x, y)) > 20 * abs(nulls.mean())


def test_the_null_of_debiased_cka_keeps_what_shuffling_keeps() -> None:
    x, y = related(50000, 6, 5, noise=0.2)
    streams = paired(x[:40000], y[:40000])
    # Pairs that were not shuffled at all: the null estimates the very CKA.
    whole = [rows - rows.mean(0) for rows in (x[:40000], y[:40000], x[40000:], y[40000:])]
    unshuffled = ShuffledPairs(
        whole[0].T @ whole[1], whole[2].T @ whole[3], 40000.0, 10000.0, N_GROUPS, 1.0
    )
    assert MEASURES["cka"].null(streams, unshuffled) == pytest.approx(
        MEASURES["cka"].value(streams), rel=0.03
    )
    assert MEASURES["cka"].value(streams) > 0.5


@pytest.mark.parametrize("name", ["cka", "cka_biased"])
def test_a_sketch_of_the_target_gives_the_same_null_on_average(name: str) -> None:
    x, y = related(1000, 30, 40)
    y = y + 0.5 * x[:, :1]
    streams = paired(x[:800], y[:800])
    a, b, c, d = (rows - rows.mean(0) for rows in (x[:800], y[:800], x[800:], y[800:]))

    def pairs(
        basis: Tensor, expansion: float
    ) -> ShuffledPairs:  # true pairs: something that is not about 0
        return ShuffledPairs(a.T @ b @ basis, c.T @ d @ basis, 800.0, 200.0, N_GROUPS, expansion)

    whole = MEASURES[name].null(streams, pairs(torch.eye(40, dtype=x.dtype), 1.0))
    sketched = [
        MEASURES[name].null(streams, pairs(rotation(seed, 40)[:, :8], 5.0)) for seed in range(300)
    ]
    assert np.mean(sketched) == pytest.approx(
        whole, abs=3 * float(np.std(sketched)) / math.sqrt(300)
    )


@pytest.mark.parametrize("name", ["cca", "svcca", "procrustes"])
def test_sums_of_singular_values_have_no_null_through_a_sketch(name: str) -> None:
    x, y = related(1000, 30, 40)
    assert math.isnan(MEASURES[name].null(paired(x, y), shuffled(x, y, rotation(0, 40)[:, :8])))
