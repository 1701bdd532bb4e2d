"""Decoder geometry against numpy and scikit-learn, and random rows of the rows' own norms."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from lrt_lens.adapters.saes import (
    DecoderGeometry,
    FeatureMatches,
    chance_residual,
    decoder_geometry,
    match_features,
)
from lrt_lens.adapters.saes._decoder_geometry import _ALPHAS, _Predictor
from lrt_lens.errors import MismatchError, NonFiniteError
from lrt_lens.models import ModelPair
from lrt_lens.stitching import AffineMap, fit_stitches
from tests.adapters.saes.codes.test_code_map import TinySae
from tests.figures.counts import counts_of


def _unit(*shape: int, seed: int) -> torch.Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def _row(found: DecoderGeometry, arm: str) -> dict[str, Any]:
    return next(row for row in found.summary.to_dict("records") if row["arm"] == arm)


def test_the_papers_number_is_what_random_rows_leave() -> None:
    assert chance_residual(np.sqrt(16384), 16384, 3584) == pytest.approx(113.1, abs=0.05)
    assert chance_residual(np.sqrt(16384 * 2304), 16384, 3584) == pytest.approx(5430, abs=1)
    assert chance_residual(3.0, 10, 20) == 0.0
    # The same law at a sixteenth of the size, fitted: unit rows on columns that have nothing to do
    # with them.
    x, y = _unit(1024, 224, seed=0), _unit(1024, 144, seed=1)
    left = np.linalg.norm(
        y.numpy() - x.numpy() @ np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)[0]
    )
    found = decoder_geometry(x, y, n_draws=2)
    assert _row(found, "index")["residual"] == pytest.approx(left, rel=1e-9)
    assert left == pytest.approx(chance_residual(np.sqrt(1024), 1024, 224), rel=0.003)
    for arm, scale in (
        ("permuted", np.sqrt(1024)),
        ("random_unit", np.sqrt(1024)),
        ("random_gaussian", np.sqrt(1024 * 144)),
    ):
        assert _row(found, arm)["residual"] == pytest.approx(
            chance_residual(scale, 1024, 224), rel=0.01
        )
        assert abs(_row(found, arm)["r2"]) < 0.02


def test_unrelated_decoders_score_nothing_and_related_ones_nearly_all() -> None:
    x = _unit(300, 20, seed=2)
    mixing = torch.randn(20, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noise = 0.1 * torch.randn(
        300, 30, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    found = decoder_geometry(
        x,
        x @ mixing + noise,
        affine=AffineMap(mixing, torch.zeros(30, dtype=torch.float64)),
        n_draws=3,
    )
    related, permuted, stitch = (_row(found, arm) for arm in ("index", "permuted", "stitch"))
    assert related["r2"] > 0.95
    assert related["r2_low"] < related["r2"] < related["r2_high"]
    assert np.isnan(related["p"])
    assert permuted["r2"] < 0.02
    # No draw is as large: p is at its floor, which three draws leave at a quarter.
    assert permuted["p"] == permuted["p_floor"] == 0.25
    assert permuted["interval_flag"] == "3 draws"
    assert stitch["r2"] > 0.95
    assert related["residual"] < 0.3 * related["chance"]
    assert permuted["residual"] == pytest.approx(permuted["chance"], rel=0.05)
    unrelated = decoder_geometry(x, _unit(300, 30, seed=5), n_draws=1)
    assert _row(unrelated, "index")["r2"] < 0.02


def test_held_out_features_are_predicted_as_by_a_naive_ridge_with_leave_one_out() -> None:
    x = _unit(60, 8, seed=6)
    y = x @ torch.randn(
        8, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    ) + 0.3 * _unit(60, 5, seed=8)
    predictor = _Predictor(x, np.random.default_rng(0))
    for fold in predictor.folds:
        a, b = x[fold.fit].numpy(), y[fold.fit].numpy()
        unit = np.square(a - a.mean(0)).sum() / 8

        def ridge(c: np.ndarray, t: np.ndarray, at: np.ndarray, penalty: float) -> np.ndarray:
            centre = c - c.mean(0)
            w = np.linalg.solve(centre.T @ centre + penalty * np.eye(8), centre.T @ (t - t.mean(0)))
            return (at - c.mean(0)) @ w + t.mean(0)

        def loo(penalty: float, a: np.ndarray = a, b: np.ndarray = b) -> float:
            # With a fixed penalty: leave each row out and fit again.
            rest = [np.delete(np.arange(len(a)), i) for i in range(len(a))]
            return float(
                sum(
                    np.square(b[i] - ridge(a[r], b[r], a[i], penalty)).sum()
                    for i, r in enumerate(rest)
                )
            )

        best = min(_ALPHAS, key=lambda alpha: loo(alpha * unit))
        guess, mean, leverage = fold.predict(y)
        assert 0 < leverage < 1
        np.testing.assert_allclose(
            guess.numpy(), ridge(a, b, x[fold.held_out].numpy(), best * unit), atol=1e-9
        )
        np.testing.assert_allclose(mean.numpy(), b.mean(0))
    assert sorted(torch.cat([fold.held_out for fold in predictor.folds]).tolist()) == list(
        range(60)
    )


def test_the_stitch_arm_fits_one_scale() -> None:
    x, y = _unit(50, 6, seed=9), _unit(50, 4, seed=10)
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    found = decoder_geometry(
        x, y, affine=AffineMap(weight, torch.zeros(4, dtype=torch.float64)), n_draws=1, seed=5
    )
    image = (x @ weight).numpy()
    left = y.numpy().ravel() - LinearRegression(fit_intercept=False).fit(
        image.reshape(-1, 1), y.numpy().ravel()
    ).predict(image.reshape(-1, 1))
    assert _row(found, "stitch")["residual"] == pytest.approx(np.linalg.norm(left), rel=1e-9)


@pytest.fixture(scope="module")
def matched(pair: ModelPair, corpus: list[str]) -> tuple[Any, TinySae, TinySae, FeatureMatches]:
    itself = ModelPair(pair.source, pair.source)
    stitch = fit_stitches(
        itself,
        corpus,
        source_layers=[0],
        target_layers=[0],
        null=False,
        context_length=32,
        progress=False,
    ).best()
    one, other = TinySae(16), TinySae(16)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    other.W_enc, other.W_dec, other.b_enc = one.W_enc[:, order], one.W_dec[order], one.b_enc[order]
    found = match_features(
        itself, stitch, one, other, corpus, min_firings=5, context_length=32, progress=False
    )
    return order, one, other, found


def test_a_renumbered_sae_is_matched_back(
    matched: tuple[Any, TinySae, TinySae, FeatureMatches],
) -> None:
    order, one, other, found = matched
    assert len(found.table) == found.n_source == found.n_target > 15
    assert order[found.table["target"].tolist()].tolist() == found.table["source"].tolist()
    np.testing.assert_allclose(found.table["correlation"], 1, atol=1e-5)
    by_match = decoder_geometry(one.W_dec, other.W_dec, matches=found, n_draws=2)
    rows = by_match.table.set_index("arm")
    assert rows.loc["matched", "residual"] < 1e-4
    assert rows.loc["index", "residual"] > 0.5


def test_correlations_are_numpys_and_come_from_other_documents(
    pair: ModelPair, corpus: list[str]
) -> None:
    from lrt_lens.data import N_FOLDS, BlockPlan, iterate_blocks
    from lrt_lens.moments._block_rows import block_rows

    stitch = fit_stitches(
        pair,
        corpus,
        source_layers=[0],
        target_layers=[1],
        null=False,
        context_length=32,
        progress=False,
    ).best()
    one, other = TinySae(16), TinySae(24, n_features=30, seed=1)
    found = match_features(
        pair, stitch, one, other, corpus, min_firings=5, context_length=32, progress=False
    )
    codes: dict[bool, list[tuple[np.ndarray, np.ndarray]]] = {True: [], False: []}
    for block in iterate_blocks(corpus, pair.source, BlockPlan(context_length=32)):
        a = one.encode(
            block_rows(pair.source, [stitch.source_hook], block, 4096)[stitch.source_hook]
        )
        b = other.encode(
            block_rows(pair.target, [stitch.target_hook], block, 4096)[stitch.target_hook]
        )
        codes[block.part < N_FOLDS].append((a.double().numpy(), b.double().numpy()))
    for fits, column in ((True, "correlation"), (False, "correlation_test")):
        a, b = (np.concatenate([rows[side] for rows in codes[fits]]) for side in (0, 1))
        for row in found.table.to_dict("records"):
            expected = np.corrcoef(a[:, row["source"]], b[:, row["target"]])[0, 1]
            assert row[column] == pytest.approx(expected, abs=1e-5, nan_ok=True)
    assert found.table["source"].is_unique
    assert found.table["target"].is_unique


def test_results_show_themselves(matched: tuple[Any, TinySae, TinySae, FeatureMatches]) -> None:
    _, one, other, matches = matched
    found = decoder_geometry(one.W_dec, other.W_dec, matches=matches, n_draws=2)
    n = len(matches.table)
    # The arm index compares all 24 features of both decoders.
    assert counts_of(found.figure()) == f"n = {n}–24 features, 2 draws of random rows"
    tokens = f"{matches.n_test:,} test tokens"
    assert counts_of(matches.figure()) == f"n = {n} pairs of features, {tokens}"
    assert "matched" in found._repr_html_()
    assert "correlation" in matches._repr_html_()


def test_wrong_decoders_are_refused(unchecked: None) -> None:
    good = _unit(40, 6, seed=0)
    with pytest.raises(MismatchError, match="decoders have 40 and 30 features and no matches"):
        decoder_geometry(good, _unit(30, 6, seed=1))
    with pytest.raises(
        ValueError,
        match=r"the target decoder has shape \(4, 6\); expected .* with at least 10 features",
    ):
        decoder_geometry(good, good[:4])
    broken = good.clone()
    broken[3, 2] = float("nan")
    with pytest.raises(NonFiniteError, match="1 rows of the source decoder hold NaN"):
        decoder_geometry(broken, good)
    with pytest.raises(MismatchError, match=r"affine maps \(3, 6\); expected \(6, 6\)"):
        decoder_geometry(good, good, affine=AffineMap(torch.zeros(3, 6), torch.zeros(6)))
    with pytest.raises(ValueError, match="n_draws is 0"):
        decoder_geometry(good, good, n_draws=0)
