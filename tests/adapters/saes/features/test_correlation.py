"""Streamed correlations equal numpy's on all rows, and intervals equal an explicit jackknife."""

import numpy as np
import torch

from lrt_lens.adapters.saes.features._correlation import Correlations
from tests.statistics.explicit_jackknife import explicit_jackknife


def _rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(300, 5)) * (rng.random((300, 5)) < 0.3)
    b = 0.5 * a + 3 + rng.normal(size=(300, 5)) * 0.2
    b[:, 4] = 7.0
    return a, b, rng.integers(0, 4, 300)


def _streamed(a: np.ndarray, b: np.ndarray, groups: np.ndarray, order: np.ndarray) -> Correlations:
    correlations = Correlations(5, 4)
    for chunk in np.array_split(order, 17):
        for group in np.unique(groups[chunk]):
            rows = chunk[groups[chunk] == group]
            correlations.add(int(group), torch.from_numpy(a[rows]), torch.from_numpy(b[rows]))
    return correlations


def test_values_are_numpys_whatever_the_order_and_a_constant_column_has_none() -> None:
    a, b, groups = _rows()
    expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(4)]
    for order in (np.arange(300), np.random.default_rng(1).permutation(300)):
        values = _streamed(a, b, groups, order).values()
        np.testing.assert_allclose(values[:4], expected, rtol=1e-9)
        assert np.isnan(values[4])


def test_the_interval_is_the_jackknife_over_groups() -> None:
    a, b, groups = _rows()
    correlations = _streamed(a, b, groups, np.arange(300)).interval()
    centred = (a - a.mean(0)) ** 2, (b - b.mean(0)) ** 2
    for i in range(4):
        left_out = [np.corrcoef(a[groups != g, i], b[groups != g, i])[0, 1] for g in range(4)]
        sizes = [np.sqrt(np.prod([c[groups == g, i].sum() for c in centred])) for g in range(4)]
        z = np.arctanh(np.corrcoef(a[:, i], b[:, i])[0, 1])
        _, half = explicit_jackknife(z, np.arctanh(left_out), sizes)
        np.testing.assert_allclose(
            [correlations.low[i], correlations.high[i]], np.tanh([z - half, z + half]), rtol=1e-7
        )


def test_groups_in_which_a_feature_is_silent_do_not_count() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(size=(400, 2))
    groups = np.repeat(np.arange(8), 50)
    a[groups > 1, 1] = 0.0
    correlations = Correlations(2, 8)
    for group in range(8):
        rows = torch.from_numpy(a[groups == group])
        correlations.add(group, rows, rows + 0.1 * torch.from_numpy(rng.normal(size=(50, 2))))
    several, two = correlations.effective_groups()
    assert 7 < several <= 8
    assert 2 <= two < 3


def test_large_means_in_single_precision_do_not_drown_the_correlation() -> None:
    rng = np.random.default_rng(2)
    a = rng.normal(size=(2000, 1)).astype(np.float32)
    b = (a + rng.normal(size=(2000, 1)) + 100).astype(np.float32)
    correlations = Correlations(1, 1)
    correlations.add(0, torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(
        correlations.values()[0], np.corrcoef(a[:, 0], b[:, 0])[0, 1], atol=1e-5
    )
