"""Corrections of transferred probes from unlabelled texts, beside scikit-learn and the truth."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

import lrt_lens as lrt
from lrt_lens.adapters.probes._distilling import _PENALTIES, distilled_from

HOOK = "blocks.1.hook_resid_post"


def probe_of(weight: np.ndarray, bias: float = 0.0) -> lrt.LinearProbe:
    return lrt.LinearProbe(
        torch.from_numpy(weight)[:, None], torch.tensor([bias]), ("no", "yes"), HOOK
    )


def test_the_correction_is_the_ridge_with_the_least_leave_one_out_error() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 6)) * [1, 2, 3, 4, 5, 0] + 3
    truth = rng.normal(size=6)
    scores = rows @ truth + 0.3 * rng.normal(size=40)
    probe = probe_of(truth + 0.4 * rng.normal(size=6), 0.5)
    found = distilled_from(probe, torch.from_numpy(rows), scores[:, None], ["text"] * 40)
    spread = np.where(rows.std(0) > 0, rows.std(0), np.inf)
    z = (rows - rows.mean(0)) / spread
    missing = scores - rows @ probe.weight.numpy()[:, 0] - 0.5
    errors = [
        np.square(missing - cross_val_predict(Ridge(alpha=a), z, missing, cv=LeaveOneOut())).mean()
        for a in _PENALTIES
    ]
    fit = Ridge(alpha=_PENALTIES[int(np.argmin(errors))]).fit(z, missing)
    expected = rows @ probe.weight.numpy()[:, 0] + 0.5 + fit.predict(z)
    np.testing.assert_allclose(found.logits(torch.from_numpy(rows))[:, 0], expected, atol=1e-6)
    assert np.square(expected - scores).mean() < 0.2 * np.square(missing).mean()
    assert found.n_recentred == 40


def test_what_rows_do_not_predict_is_left_as_it_is() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(30, 50))
    weight = rng.normal(size=50)
    scores = rows @ weight + 1.0
    probe = probe_of(weight, 0.25)
    found = distilled_from(probe, torch.from_numpy(rows), scores[:, None], ["text"] * 30)
    np.testing.assert_allclose(found.weight, probe.weight, atol=1e-9)
    # The mean of the scores is matched in any case.
    assert float(found.bias[0]) == pytest.approx(1.0)
    changes = []
    for _ in range(20):
        noisy = scores + rng.normal(size=30)
        kept = distilled_from(probe, torch.from_numpy(rows), noisy[:, None], ["text"] * 30)
        changes.append(float((kept.weight - probe.weight).norm() / probe.weight.norm()))
    assert np.median(changes) < 0.02
    assert max(changes) < 0.2


def test_few_texts_and_maps_before_the_pooling_are_not_corrected(pair: Any) -> None:
    rows = torch.randn(5, 4)
    probe = probe_of(np.ones(4))
    assert distilled_from(probe, rows, np.zeros((5, 1)), ["text"] * 5) is probe
    through = lrt.AffineMap(torch.eye(4), torch.zeros(4), HOOK, HOOK)
    with pytest.raises(ValueError, match="maps tokens before it pools"):
        distilled_from(replace(probe, before=through), rows, np.zeros((5, 1)), ["text"] * 5)
