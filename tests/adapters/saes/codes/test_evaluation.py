"""Scores of both maps on the test fold against rows, and of features by their effects."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from lrt_lens.adapters.saes import CodeMap, evaluate_code_map, fit_code_map
from lrt_lens.adapters.vectors import steering_agreement
from lrt_lens.data import N_FOLDS, BlockPlan, iterate_blocks
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.moments._block_rows import block_rows
from lrt_lens.stitching import Stitch, fit_stitches
from tests.adapters.saes.codes.test_code_map import TinySae
from tests.figures.counts import counts_of

OPTIONS: dict[str, Any] = {"context_length": 32, "progress": False}


@pytest.fixture(scope="module")
def fitted(pair: ModelPair, corpus: list[str]) -> tuple[Stitch, TinySae, CodeMap]:
    stitch = fit_stitches(
        pair, corpus, source_layers=[0], target_layers=[1], null=False, **OPTIONS
    ).best()
    sae = TinySae(pair.source.d_model)
    return stitch, sae, fit_code_map(pair, stitch, sae, corpus, alphas=[0.1, 0.01], **OPTIONS)


def test_scores_are_scikit_learns_on_rows_of_the_test_fold(
    pair: ModelPair, corpus: list[str], fitted: Any
) -> None:
    stitch, sae, codes = fitted
    found = evaluate_code_map(pair, stitch, sae, codes, corpus, **OPTIONS)
    x, y, n_documents = [], [], 0
    for block in iterate_blocks(corpus, pair.source, BlockPlan(context_length=32)):
        if block.part >= N_FOLDS:
            n_documents += block.n_documents
            x.append(block_rows(pair.source, [stitch.source_hook], block, 4096)[stitch.source_hook])
            y.append(block_rows(pair.target, [stitch.target_hook], block, 4096)[stitch.target_hook])
    rows, truth = torch.cat(x), torch.cat(y).double().numpy()
    acts = sae.encode(rows)
    guesses = {
        "s2l": acts.double()[:, codes.live].numpy() @ codes.weight.numpy() + codes.bias.numpy(),
        "l2l": stitch.up.points(rows.double()).numpy(),
        "reconstruction": stitch.up.points((acts @ sae.W_dec).double()).numpy(),
    }
    assert found.table["arm"].tolist() == list(guesses)
    for row in found.table.to_dict("records"):
        guess = guesses[str(row["arm"])]
        assert row["r2"] == pytest.approx(
            r2_score(truth, guess, multioutput="variance_weighted"), abs=1e-6
        )
        assert row["r2_uniform"] == pytest.approx(
            r2_score(truth, guess, multioutput="uniform_average"), abs=1e-6
        )
        assert row["r2_low"] < row["r2"] < row["r2_high"]
        assert row["n_tokens"] == len(truth)
        assert row["n_documents"] == n_documents
    assert counts_of(found.figure()) == f"n = {n_documents} test documents"
    assert found.features.empty
    assert found.summary.empty


def test_features_are_compared_by_direction_and_by_effect(
    pair: ModelPair, corpus: list[str], fitted: Any
) -> None:
    stitch, sae, codes = fitted
    texts = [text for text in corpus if len(text) > 60][:4]
    chosen = codes.live[[4, 9, 2]].tolist()
    found = evaluate_code_map(
        pair, stitch, sae, codes, corpus, texts=texts, features=chosen, **OPTIONS
    )
    assert found.features["feature"].tolist() == chosen
    for place, feature in enumerate(chosen):
        row, image = (
            codes.row(feature).numpy(),
            (sae.W_dec[feature].double() @ stitch.up.weight.double()).numpy(),
        )
        cosine = row @ image / np.linalg.norm(row) / np.linalg.norm(image)
        assert found.features["cosine"].to_numpy()[place] == pytest.approx(cosine, abs=1e-6)
    images = torch.stack([codes.row(feature) for feature in chosen]).float()
    expected = steering_agreement(
        pair, stitch, sae.W_dec[chosen], texts, images=images, progress=False
    )
    np.testing.assert_allclose(found.features["agreement_s2l"], expected.numpy(), atol=1e-5)
    plain = steering_agreement(pair, stitch, sae.W_dec[chosen], texts, progress=False)
    np.testing.assert_allclose(found.features["agreement_l2l"], plain.numpy(), atol=1e-5)
    measured = {row["measure"]: row["mean"] for row in found.summary.to_dict("records")}
    assert measured["agreement, s2l − l2l"] == pytest.approx(
        float((expected - plain).mean()), abs=1e-5
    )
    assert counts_of(found.figure()).endswith(" test documents, 3 features")
    assert "s2l" in found._repr_html_()


def test_drawn_features_are_live_and_of_every_frequency(
    pair: ModelPair, corpus: list[str], fitted: Any
) -> None:
    stitch, sae, codes = fitted
    texts = [text for text in corpus if len(text) > 60][:2]
    one, again = (
        evaluate_code_map(
            pair, stitch, sae, codes, corpus, texts=texts, n_features=4, seed=3, **OPTIONS
        ).features
        for _ in range(2)
    )
    assert one["feature"].tolist() == again["feature"].tolist()
    assert set(one["feature"]) <= set(codes.live.tolist())
    assert one["firings"].tolist() == sorted(one["firings"], reverse=True)


def test_other_places_are_refused(pair: ModelPair, corpus: list[str], fitted: Any) -> None:
    stitch, sae, codes = fitted
    with pytest.raises(MismatchError, match="fit both between the same hook points"):
        evaluate_code_map(
            pair,
            stitch,
            sae,
            replace(codes, target_hook="blocks.2.hook_resid_post"),
            corpus,
            **OPTIONS,
        )
    with pytest.raises(
        MismatchError, match="the SAE has 30 features; this map was fitted on an SAE of 24"
    ):
        evaluate_code_map(pair, stitch, TinySae(16, n_features=30), codes, corpus, **OPTIONS)
