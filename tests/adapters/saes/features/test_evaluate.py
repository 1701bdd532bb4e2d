"""Every column of the table against an explicit computation in float64, and errors."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lrt_lens.adapters.saes import (
    FeatureEvaluation,
    FeatureEvaluationSettings,
    Unembedding,
    evaluate_features,
)
from lrt_lens.adapters.saes.features._coder import FeatureCoder, check_sae, random_coder
from lrt_lens.data import N_FOLDS, BlockPlan, DocumentSource, cut_windows, document_key, part_of
from lrt_lens.errors import HookPointError, MismatchError, TooFewDocumentsError
from lrt_lens.models import ModelPair
from lrt_lens.stitching import AffineMap, MapPair, Stitch, StreamStatistics
from tests.figures.counts import counts_of

HOOK, TARGET_HOOK = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
QUIET: dict[str, Any] = {
    "context_length": 32,
    "n_sentences": 0,
    "attention_features": 0,
    "progress": False,
}


@pytest.fixture(scope="module")
def result(pair: Any, stitch: Any, sae: Any, corpus: list[str]) -> FeatureEvaluation:
    return evaluate_features(
        pair, stitch, sae, corpus, **QUIET | {"n_sentences": 12, "attention_features": [0, 3]}
    )


def _rows(
    pair: Any, stitch: Any, corpus: list[str]
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return (source rows, target rows, next tokens) at the counted positions of the test fold."""
    xs, ys, following = [], [], []
    for text in corpus:
        key = document_key(text, 0)
        if part_of(key) < N_FOLDS:
            continue
        for window in cut_windows(
            pair.source.encode_bodies([text])[0], key, pair.source, BlockPlan(context_length=32)
        ):
            at = [p for p in window.rows if p + 1 < len(window.ids)]
            tokens = torch.tensor([window.ids])
            xs.append(pair.source.capture(tokens, HOOK)[0, at].double())
            ys.append(pair.target.capture(tokens, TARGET_HOOK)[0, at].double())
            following += [window.ids[p + 1] for p in at]
    return torch.cat(xs), torch.cat(ys), following


def _topk(rows: torch.Tensor, sae: Any, k: int = 6) -> np.ndarray:
    """Activations of a TopK SAE by the formula of its paper."""
    before = (
        ((rows - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()).detach().numpy()
    )
    lowest = np.sort(before, axis=1)[:, -k][:, None]
    return np.where(before >= lowest, np.maximum(before, 0), 0)


def test_activations_and_attributions_are_those_of_rows(
    pair: Any, stitch: Any, sae: Any, corpus: list[str], result: FeatureEvaluation
) -> None:
    x, y, following = _rows(pair, stitch, corpus)
    up, down = stitch.up.weight.double(), stitch.down
    source = _topk(x, sae)
    target = _topk(y @ down.weight.double() + down.bias.double(), sae)
    decoder = sae.W_dec.detach().double()
    weights = [Unembedding.of(model).weight.double() for model in (pair.source, pair.target)]
    effects = [
        activations * (rows @ w[:, following]).numpy().T
        for activations, rows, w in zip(
            (source, target), (decoder, decoder @ up), weights, strict=True
        )
    ]
    table = result.table
    np.testing.assert_allclose(table["density_source"], (source > 0).mean(0), atol=1e-9)
    np.testing.assert_allclose(table["density_target"], (target > 0).mean(0), atol=1e-9)
    np.testing.assert_allclose(table["max_activation_target"], target.max(0), rtol=1e-4)
    assert result.n_tokens == len(x)
    live = (source.std(0) > 0) & (target.std(0) > 0)
    assert live.sum() > 10
    for column, (a, b) in {"activation_r": (source, target), "attribution_r": effects}.items():
        expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in np.flatnonzero(live)]
        np.testing.assert_allclose(table[column][live], expected, atol=1e-4)
        assert table[column][~live].isna().all()


def test_the_gradient_attribution_is_the_slope_of_the_log_probability(
    pair: Any, stitch: Any, sae: Any, corpus: list[str]
) -> None:
    from lrt_lens.adapters.saes.features._attribution import log_probability_gradient
    from lrt_lens.adapters.saes.features._text import TokenBatch

    window = cut_windows(
        pair.target.encode_bodies([corpus[0]])[0], 1, pair.target, BlockPlan(context_length=24)
    )[0]
    batch = TokenBatch.of([window, window], 0, pair.target)
    residual = pair.target.engine.capture(batch.tokens, [TARGET_HOOK])[TARGET_HOOK]
    gradient = log_probability_gradient(pair.target, TARGET_HOOK, batch, residual)
    direction, at = torch.randn(24, generator=torch.Generator().manual_seed(0)), int(window.rows[2])

    def total(step: float) -> float:
        shifted = residual.clone()
        shifted[0, at] += step * direction
        with pair.target.engine.resuming(TARGET_HOOK, shifted):
            log_p = pair.target.logits(batch.tokens)[0].double().log_softmax(-1)
        counted = [p for p in window.rows if p + 1 < len(window.ids)]
        return float(sum(log_p[p, window.ids[p + 1]] for p in counted))

    slope = (total(1e-2) - total(-1e-2)) / 2e-2
    assert float(gradient[0, at] @ direction) == pytest.approx(slope, rel=1e-2, abs=1e-3)
    assert all(
        parameter.requires_grad for parameter in pair.target.bridge.original_model.parameters()
    )
    evaluation = evaluate_features(pair, stitch, sae, corpus, attribution="gradient", **QUIET)
    paper = evaluate_features(pair, stitch, sae, corpus, **QUIET)
    assert evaluation.table["attribution_r"].notna().sum() > 10
    assert not np.allclose(
        evaluation.table["attribution_r"].dropna(), paper.table["attribution_r"].dropna()
    )
    np.testing.assert_allclose(evaluation.table["activation_r"], paper.table["activation_r"])


def test_a_model_and_itself_share_every_feature_and_no_baseline_comes_near(
    pair: Any, sae: Any, corpus: list[str]
) -> None:
    same = AffineMap(torch.eye(16), torch.zeros(16), HOOK, HOOK)
    statistics = StreamStatistics(torch.zeros(16), torch.eye(16), 1.0)
    itself = Stitch(MapPair(same, same), statistics, statistics)
    evaluation = evaluate_features(
        ModelPair(pair.source, pair.source), itself, sae, corpus, **QUIET
    ).live
    np.testing.assert_allclose(evaluation["attribution_r"], 1, atol=1e-6)
    np.testing.assert_allclose(evaluation["attribution_r_random"].dropna(), 1, atol=1e-6)
    np.testing.assert_allclose(
        evaluation["entropy_share_source"], evaluation["entropy_share_target"]
    )
    assert evaluation["attribution_r_other"].abs().mean() < 0.3
    assert evaluation["rho_write"].isna().all()


def test_columns_from_moments_are_the_stitchs_own(
    stitch: Any, sae: Any, result: FeatureEvaluation
) -> None:
    for index in (0, 7):
        write = stitch.fidelity(sae.W_dec[index].detach(), kind="write", n_random=2).value
        read = stitch.fidelity(sae.W_enc[:, index].detach(), kind="read", n_random=2).value
        assert result.table["rho_write"][index] == pytest.approx(write, abs=1e-6)
        assert result.table["rho_read"][index] == pytest.approx(read, abs=1e-6)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
def test_any_architecture_is_read_and_the_transferred_one_is_up_sae_down(
    stitch: Any, make_sae: Any, architecture: str
) -> None:
    sae = make_sae(architecture)
    target = FeatureCoder(sae).transferred(stitch.maps)
    y = torch.randn(5, 24, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(target.encode(y), sae.encode(stitch.down.points(y)).detach())
    torch.testing.assert_close(target.decoder, sae.W_dec.detach() @ stitch.up.weight.float())


def test_decoder_rows_of_a_rescaling_sae_are_those_that_one_unit_adds(make_sae: Any) -> None:
    sae = make_sae("topk", rescale_acts_by_decoder_norm=True)
    nothing = sae.decode(torch.zeros(1, 40)).detach()
    torch.testing.assert_close(
        FeatureCoder(sae).decoder,
        sae.decode(torch.eye(40)).detach() - nothing,
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_random_sae_keeps_norms_and_biases_and_nothing_else(sae: Any) -> None:
    drawn = random_coder(sae, 1).sae
    torch.testing.assert_close(drawn.W_dec.norm(dim=1), sae.W_dec.norm(dim=1))
    torch.testing.assert_close(drawn.W_enc.norm(dim=0), sae.W_enc.norm(dim=0))
    assert torch.equal(drawn.b_enc, sae.b_enc)
    cosine = torch.nn.functional.cosine_similarity(drawn.W_dec, sae.W_dec).abs().mean()
    assert cosine < 0.4
    assert torch.equal(random_coder(sae, 1).sae.W_enc, drawn.W_enc)


def test_a_targets_own_sae_replaces_the_transferred_one(
    pair: Any, stitch: Any, sae: Any, make_sae: Any, corpus: list[str], result: FeatureEvaluation
) -> None:
    own_sae = make_sae("topk", d=24, hook=TARGET_HOOK, apply_b_dec_to_input=False)
    with torch.no_grad():
        down = stitch.down
        own_sae.W_enc.copy_(down.weight.float() @ sae.W_enc)
        own_sae.b_enc.copy_((down.bias.float() - sae.b_dec) @ sae.W_enc + sae.b_enc)
        own_sae.W_dec.copy_(sae.W_dec @ stitch.up.weight.float())
    evaluation = evaluate_features(pair, stitch, sae, corpus, transferred=own_sae, **QUIET)
    np.testing.assert_allclose(
        evaluation.table["attribution_r"], result.table["attribution_r"], atol=1e-3
    )


def test_batches_do_not_change_a_number(
    pair: Any, stitch: Any, sae: Any, corpus: list[str], result: FeatureEvaluation, monkeypatch: Any
) -> None:
    monkeypatch.setattr("lrt_lens.adapters.saes.features._text._NUMBERS_AT_ONCE", 1)
    evaluation = evaluate_features(pair, stitch, sae, corpus, **QUIET)
    for column in (
        "density_source",
        "attribution_r",
        "attribution_r_low",
        "attribution_r_random",
        "attribution_r_other",
    ):
        np.testing.assert_allclose(evaluation.table[column], result.table[column], atol=1e-4)
    torch.testing.assert_close(
        evaluation.contexts[0].peaks, result.contexts[0].peaks, rtol=1e-4, atol=1e-5
    )


def test_result_shows_itself_and_names_what_is_missing(
    pair: Any, result: FeatureEvaluation
) -> None:
    assert result.summary["features"].iloc[0] == "all"
    row = result.summary.iloc[0]
    assert row["attribution_r"] == pytest.approx(result.live["attribution_r"].mean())
    assert row["low"] < row["attribution_r"] < row["high"]
    assert set(result.predictors["predictor"]) >= {"rho_write", "rho_read"}
    assert "attribution_r" in result._repr_html_()
    for figure in (
        result.figure(),
        result.fidelity_figure(),
        result.entropy_figure(),
        result.attention_figure(),
    ):
        assert figure.data
    n_known = int(result.table["attribution_r"].notna().sum())
    assert counts_of(result.figure()) == f"n = {n_known} features, {result.n_tokens:,} positions"
    n_active = int((result.table["density_source"] > 0).sum())
    assert counts_of(result.entropy_figure()).startswith(f"n = {n_active} features, ")
    page = result.page(int(result.live["feature"].iloc[0]))
    contexts = [one for role in page.contexts.values() for one in role]
    n_tokens = sum(len(one.tokens) for one in contexts)
    assert counts_of(page.figure()) == f"n = {len(contexts)} contexts, {n_tokens} tokens"
    context = page.contexts["source"][0]
    assert context.source[context.peak] == pytest.approx(
        result.table["max_activation_source"][page.index], rel=1e-4
    )
    assert max(context.source) == context.source[context.peak]
    with pytest.raises(
        IndexError, match="feature 40 is not in this SAE; it has 40 features: use 0 to 39"
    ):
        result.page(40)
    with pytest.raises(IndexError, match="feature -1 is not"):
        result.page(-1)


def test_kinds_are_compared_at_equal_density(result: FeatureEvaluation) -> None:
    density = np.repeat([0.01, 0.1], 20)
    table = pd.DataFrame(
        {"density_source": density, "density_target": density, "attribution_r": 0.3 + 5 * density}
    )
    table["kind"] = ["semantic"] * 15 + ["structural"] * 5 + ["semantic"] * 5 + ["structural"] * 15
    alike = replace(result, table=table).structural_advantage
    assert alike.value == pytest.approx(0, abs=1e-12)
    table.loc[table["kind"] == "structural", "attribution_r"] += 0.1
    assert replace(result, table=table).structural_advantage.value == pytest.approx(0.1)
    assert np.isnan(replace(result, table=table.assign(kind="semantic")).structural_advantage.value)


def test_an_sae_of_another_model_or_hook_point_is_refused(
    pair: Any, stitch: Any, sae: Any, make_sae: Any, corpus: list[str]
) -> None:
    with pytest.raises(
        MismatchError, match=r"width 12; expected 16 dimensions at 'blocks.0.hook_resid_post'"
    ):
        evaluate_features(pair, stitch, make_sae(d=12), corpus, **QUIET)
    with pytest.raises(
        MismatchError, match="trained at 'blocks.1.hook_resid_post'; expected 'blocks.0"
    ):
        evaluate_features(pair, stitch, make_sae(hook=TARGET_HOOK), corpus, **QUIET)
    foreign = make_sae(hook="blocks.1.hook_resid_pre")  # another name of the same place
    foreign.cfg.metadata.model_name = "gpt2-small"
    with pytest.raises(
        MismatchError, match="trained on 'gpt2-small'; expected .* set sae.cfg.metadata.model_name"
    ):
        evaluate_features(pair, stitch, foreign, corpus, **QUIET)
    known = make_sae()
    known.cfg.metadata.model_name, known.cfg.metadata.model_hash = (
        "another name",
        pair.source.identity.config_hash,
    )
    check_sae(known, pair, stitch, 32)
    known.cfg.metadata.model_hash = pair.target.identity.config_hash
    with pytest.raises(
        MismatchError, match="trained on 'another name' .* set sae.cfg.metadata.model_hash = '"
    ):
        check_sae(known, pair, stitch, 32)
    with pytest.raises(TypeError, match="a Linear has no encode and W_dec"):
        evaluate_features(pair, stitch, torch.nn.Linear(16, 16), corpus, **QUIET)
    with pytest.raises(MismatchError, match="transferred SAE has 30 features, the source's 40"):
        evaluate_features(
            pair,
            stitch,
            sae,
            corpus,
            transferred=make_sae(d=24, features=30, hook=TARGET_HOOK),
            **QUIET,
        )
    joined = replace(stitch.up, source_hook="blocks.0.hook_resid_post+blocks.1.hook_resid_post")
    with pytest.raises(
        HookPointError, match="joins several hook points, and an SAE reads and writes a single one"
    ):
        evaluate_features(
            pair, replace(stitch, maps=replace(stitch.maps, up=joined)), sae, corpus, **QUIET
        )


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_measured_is_an_error(
    pair: Any, stitch: Any, sae: Any, make_sae: Any, corpus: list[str]
) -> None:
    dead = make_sae("standard")
    with torch.no_grad():
        dead.b_enc.fill_(-1e6)
    with pytest.raises(ValueError, match=r"none of the 40 features fires at any of \d+ positions"):
        evaluate_features(pair, stitch, dead, corpus, **QUIET)
    # The documents are read several times, and so are their groups.
    groups = map(str, range(len(corpus)))
    for once, name in (
        (iter(corpus), "documents is a list_iterator"),
        (DocumentSource(iter(corpus)), "documents is a list_iterator"),
        (DocumentSource(corpus, group=groups), "group is a map"),
    ):
        with pytest.raises(TypeError, match=f"{name}, which can be read once, .* several times"):
            evaluate_features(pair, stitch, sae, once, **QUIET)
    with pytest.raises(IndexError, match="feature 99 is not in this SAE"):
        evaluate_features(pair, stitch, sae, corpus, **QUIET | {"attention_features": [99]})
    with pytest.raises(TooFewDocumentsError, match=r"none of 2 document\(s\) offers a position"):
        evaluate_features(pair, stitch, sae, ["a", "b"], folds="all", **QUIET)
    with pytest.raises(ValueError, match="attribution is 'loss'; expected one of"):
        evaluate_features(pair, stitch, sae, corpus, attribution="loss", **QUIET)  # type: ignore[arg-type]


def test_settings_can_be_keywords_or_an_object(
    pair: Any, stitch: Any, sae: Any, corpus: list[str]
) -> None:
    fields: dict[str, Any] = {"context_length": 32, "n_sentences": 0, "attention_features": 0}
    by_keyword = evaluate_features(pair, stitch, sae, corpus, progress=False, **fields)
    settings = FeatureEvaluationSettings(**fields)
    by_object = evaluate_features(pair, stitch, sae, corpus, progress=False, settings=settings)
    assert by_keyword.table.equals(by_object.table)
    with pytest.raises(TypeError, match="unknown option n_token; FeatureEvaluationSettings has"):
        evaluate_features(pair, stitch, sae, corpus, n_token=3)
