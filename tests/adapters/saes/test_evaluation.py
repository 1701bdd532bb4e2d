"""SAE evaluation against plain sums over the Hugging Face model's states, and known answers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

from lrt_lens.adapters.saes import SAEEvaluation, evaluate_sae
from lrt_lens.adapters.saes._evaluation_result import ARMS
from lrt_lens.adapters.saes._initialisation import threshold_table
from lrt_lens.adapters.saes._random_maps import random_rotation
from lrt_lens.data import BlockPlan, cut_windows
from lrt_lens.errors import MismatchError, NonFiniteError, TooFewDocumentsError
from lrt_lens.models import ModelPair
from lrt_lens.moments import Provenance
from lrt_lens.stitching import AffineMap, MapPair, Stitch, StreamStatistics

A_HOOK, B_HOOK = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"


def _random_stitch(pair: ModelPair) -> Stitch:
    generator = torch.Generator().manual_seed(0)
    d_s, d_t = pair.source.d_model, pair.target.d_model

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / 4

    def maps() -> MapPair:
        return MapPair(
            AffineMap(draw(d_s, d_t), draw(d_t), A_HOOK, B_HOOK),
            AffineMap(draw(d_t, d_s), draw(d_s), B_HOOK, A_HOOK),
        )

    source, target = (StreamStatistics(draw(d), torch.eye(d).double(), 1.0) for d in (d_s, d_t))
    provenance = Provenance(source=pair.source.identity, target=pair.target.identity, skip_first=4)
    return Stitch(maps(), source, target, provenance=provenance, null=maps())


def _topk(d: int, hook: str = A_HOOK, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sae = TopKSAE(TopKSAEConfig(d_in=d, d_sae=3 * d, k=4, apply_b_dec_to_input=True))
    sae.b_enc.data.normal_()
    sae.b_dec.data.normal_()
    sae.cfg.metadata.hook_name = hook
    return sae.eval()


@pytest.fixture(scope="module")
def stitch(pair: ModelPair) -> Stitch:
    return _random_stitch(pair)


@pytest.fixture(scope="module")
def native(pair: ModelPair) -> Any:
    return _topk(pair.target.d_model, B_HOOK, seed=1)


@pytest.fixture(scope="module")
def result(pair: ModelPair, stitch: Stitch, native: Any, corpus: list[str]) -> SAEEvaluation:
    sae = _topk(pair.source.d_model)
    return evaluate_sae(
        pair,
        stitch,
        sae,
        corpus[:10],
        native=native,
        folds="all",
        context_length=32,
        n_random=2,
        progress=False,
    )


def _row(result: SAEEvaluation, arm: str) -> dict[str, Any]:
    (row,) = [row for row in result.table.to_dict("records") if row["arm"] == arm]
    return {str(key): value for key, value in row.items()}


def test_random_maps_show_where_a_new_map_falls(result: SAEEvaluation) -> None:
    row, draws = _row(result, "random"), result.draws
    assert len(draws) == row["n_draws"] == 2
    for name in ("l0", "fvu", "delta_ce", "dead_fraction"):
        values = draws[name].to_numpy()
        # t(.975, 1) = 12.706; mean ± t · s · √(1 + 1/n)
        reach = 12.706 * values.std(ddof=1) * np.sqrt(1.5)
        ends = (values.mean() - reach, values.mean() + reach)
        ends = np.clip(ends, 0, 1) if name == "dead_fraction" else ends
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(tuple(ends), rel=1e-3)
    assert (row["contains"], row["interval_flag"], row["p_floor"]) == ("draws", "2 draws", 1 / 3)
    better = int((draws["delta_ce"] <= _row(result, "transferred")["delta_ce"]).sum())
    assert row["transferred_p"] == (1 + better) / 3
    assert _row(result, "transferred")["contains"] == "documents"
    # The mean over two maps is known less well than the documents say.
    wide = result.difference("transferred", "random", "fvu")
    reach = 12.706 * draws["fvu"].std() / np.sqrt(2)
    assert wide.high - wide.value > reach * 0.999


def _naive(pair: ModelPair, stitch: Stitch, sae: Any, texts: list[str]) -> dict[str, float]:
    """Metrics computed window by window in float64.

    The states are captured, reconstructed by an explicit top-k, and put back by an intervention.
    """
    model, hook = pair.target, stitch.target_hook
    plan = BlockPlan(context_length=32, skip_first=4)
    mean = stitch.target_statistics.mean.double()
    sums: dict[str, float] = dict.fromkeys(
        ("n", "l0", "error", "variance", "own", "ce", "mean"), 0.0
    )
    fired = np.zeros(sae.cfg.d_sae, dtype=bool)
    weights = {key: value.detach().double() for key, value in sae.state_dict().items()}
    for text in texts:
        for window in cut_windows(model.encode_bodies([text])[0], 0, model, plan):
            tokens = torch.tensor([window.ids])
            x = model.capture(tokens, hook)[0].double()  # pyright: ignore[reportArgumentType] (one hook: a tensor)
            pre = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
            codes = torch.zeros_like(pre)
            top = pre.topk(sae.cfg.k, dim=1)
            codes.scatter_(1, top.indices, top.values.clamp_min(0))
            rebuilt = codes @ weights["W_dec"] + weights["b_dec"]
            rows = [int(row) for row in window.rows]
            counted = [row for row in rows if row < len(window.ids) - 1]
            sums["n"] += len(counted)
            sums["l0"] += float((codes[counted] != 0).sum())
            fired |= (codes[counted] != 0).any(0).numpy()
            sums["error"] += float((x - rebuilt)[counted].square().sum())
            sums["variance"] += float((x - mean)[counted].square().sum())
            for kind, state in (("own", x), ("ce", rebuilt), ("mean", mean.expand_as(x))):
                put = x.clone()
                put[rows] = state[rows]
                with model.intervene({hook: lambda a, hook, put=put: put[None].to(a)}):
                    logits = model.logits(tokens)[0].double()
                losses = torch.nn.functional.cross_entropy(
                    logits[:-1], tokens[0, 1:], reduction="none"
                )
                sums[kind] += float(losses[counted].sum())
    return {
        "l0": sums["l0"] / sums["n"],
        "fvu": sums["error"] / sums["variance"],
        "delta_ce": (sums["ce"] - sums["own"]) / sums["n"],
        "ce_recovered": (sums["mean"] - sums["ce"]) / (sums["mean"] - sums["own"]),
        "dead_fraction": float((~fired).mean()),
        "n_tokens": sums["n"],
    }


def test_metrics_are_those_of_plain_sums(
    pair: ModelPair, stitch: Stitch, native: Any, result: SAEEvaluation, corpus: list[str]
) -> None:
    found, expected = _row(result, "native"), _naive(pair, stitch, native, corpus[:10])
    for name in ("l0", "fvu", "delta_ce", "dead_fraction", "n_tokens"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    if not np.isnan(found["ce_recovered"]):
        assert found["ce_recovered"] == pytest.approx(expected["ce_recovered"], rel=1e-3)


def test_with_two_tokenizers_every_unmasked_token_of_either_model_counts(
    pair: ModelPair,
    load: Callable[..., Any],
    train_tokenizer: Callable[..., Any],
    native: Any,
    corpus: list[str],
) -> None:
    other = ModelPair(
        pair.source,
        load("llama", d=24, layers=3, seed=2, tokenizer=train_tokenizer(vocabulary=300)),
    )
    stitch, texts = _random_stitch(other), [" ".join(text.split()[:7]) for text in corpus[:10]]
    found = evaluate_sae(
        other,
        stitch,
        _topk(16),
        texts,
        native=native,
        folds="all",
        context_length=32,
        n_random=1,
        progress=False,
    )
    expected, row = _naive(other, stitch, native, texts), _row(found, "native")
    for name in ("l0", "fvu", "delta_ce", "dead_fraction", "n_tokens"):
        assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    assert _row(found, "source")["n_tokens"] != row["n_tokens"]


def test_arms_come_in_order_with_intervals_around_them(result: SAEEvaluation) -> None:
    assert (
        list(result.table["arm"])
        == [arm for arm in ARMS if arm in set(result.table["arm"])]
        == [arm for arm in ARMS if "refitted" not in arm]
    )
    for name in ("l0", "fvu", "delta_ce", "dead_fraction"):
        values, low, high = (
            result.table[f"{name}{end}"].to_numpy(dtype=float) for end in ("", "_low", "_high")
        )
        assert np.all(low <= values + 1e-9)
        assert np.all(values <= high + 1e-9)


def test_difference_is_the_difference_of_the_arms(result: SAEEvaluation) -> None:
    for metric in ("l0", "fvu", "delta_ce"):
        found = result.difference("transferred", "native", metric)
        assert found.value == pytest.approx(
            _row(result, "transferred")[metric] - _row(result, "native")[metric]
        )
        assert found.low <= found.value <= found.high
    assert list(result.summary)[2:-1] == ["l0", "fvu", "delta_ce", "ce_recovered"]
    with pytest.raises(ValueError, match=r"expected one of \['l0', 'fvu', 'delta_ce'\]"):
        result.difference("transferred", "native", "ce_recovered")
    with pytest.raises(ValueError, match="no arm 'nobody'"):
        result.difference("nobody", "native")


def test_a_perfect_sae_costs_nothing(pair: ModelPair, stitch: Stitch, corpus: list[str]) -> None:
    d = pair.source.d_model
    perfect = StandardSAE(StandardSAEConfig(d_in=d, d_sae=2 * d))
    eye = torch.eye(d)
    perfect.load_state_dict(
        {
            "W_enc": torch.cat([eye, -eye], 1),
            "b_enc": torch.zeros(2 * d),
            "W_dec": torch.cat([eye, -eye]),
            "b_dec": torch.zeros(d),
        }
    )
    found = evaluate_sae(
        pair,
        stitch,
        perfect,
        corpus[:6],
        folds="all",
        context_length=32,
        n_random=0,
        progress=False,
    )
    row = _row(found, "source")
    assert row["fvu"] == pytest.approx(0, abs=1e-10)
    assert row["delta_ce"] == pytest.approx(0, abs=1e-5)
    assert _row(found, "transferred")["fvu"] > 0.01


def test_a_random_rotation_keeps_means_and_total_variance(stitch: Stitch) -> None:
    maps = random_rotation(stitch, torch.Generator().manual_seed(0))
    source, target = stitch.source_statistics, stitch.target_statistics
    torch.testing.assert_close(maps.up.points(source.mean), target.mean)
    torch.testing.assert_close(maps.down.points(target.mean), source.mean)
    w = maps.up.weight
    assert float((w.T @ source.covariance @ w).trace()) == pytest.approx(
        float(target.covariance.trace())
    )
    singular = torch.linalg.svdvals(w)
    assert float(singular.max() / singular.min()) == pytest.approx(1)


def test_bad_saes_are_refused(pair: ModelPair, stitch: Stitch, corpus: list[str]) -> None:
    def run(sae: Any, texts: list[str] | None = None, **options: Any) -> SAEEvaluation:
        return evaluate_sae(
            pair,
            stitch,
            sae,
            corpus[:6] if texts is None else texts,
            folds="all",
            context_length=32,
            progress=False,
            **options,
        )

    good = _topk(pair.source.d_model)
    with pytest.raises(MismatchError, match="this SAE has width"):
        run(_topk(pair.source.d_model + 1))
    with pytest.raises(MismatchError, match="trained at 'blocks.2"):
        run(_topk(pair.source.d_model, "blocks.2.hook_resid_post"))
    with pytest.raises(MismatchError, match="trained at 'blocks.2.*expected 'blocks.1"):
        run(good, native=_topk(pair.target.d_model, "blocks.2.hook_resid_post"))
    other = _topk(pair.source.d_model)
    other.cfg.metadata.model_hash = "another"
    with pytest.raises(MismatchError, match="set sae.cfg.metadata.model_hash"):
        run(other)
    broken = _topk(pair.source.d_model)
    broken.W_dec.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="W_dec"):
        run(broken)
    with pytest.raises(TooFewDocumentsError):
        run(good, corpus[:1])
    with pytest.raises(TypeError, match="a Tensor has no cfg and W_dec; give a SAELens SAE"):
        run(torch.zeros(3))


def test_without_a_null_there_is_no_shuffled_arm(
    pair: ModelPair, stitch: Stitch, corpus: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    found = evaluate_sae(
        pair,
        replace(stitch, null=None),
        _topk(pair.source.d_model),
        corpus[:6],
        folds="all",
        context_length=32,
        progress=False,
    )
    assert list(found.table["arm"]) == ["source", "transferred", "random"]
    assert "shuffled" in caplog.text


def test_thresholds_are_shares_of_scratch() -> None:
    tokens = np.array([0, 10, 20, 40])
    make: Callable[..., pd.DataFrame] = lambda arm, values: pd.DataFrame(  # noqa: E731
        {
            "arm": arm,
            "seed": 0,
            "tokens": tokens,
            "flops": tokens * 3.0,
            "explained_variance": values,
        }
    )
    history = pd.concat(
        [
            make("scratch", [0, 0.4, 0.6, 0.8]),
            make("transferred", [0.5, 0.7, 0.8, 0.9]),
            make("rotated", [0.0, 0.1, 0.2, 0.3]),
        ]
    )
    costs = {"scratch": 0.0, "transferred": 6.0, "rotated": 0.0}
    table = threshold_table(history, [0.5, 0.95], costs)
    row = {(r["arm"], r["share_of_final"]): r for r in table.to_dict("records")}
    assert row["scratch", 0.95]["tokens"] == pytest.approx(36)
    assert row["transferred", 0.95]["tokens"] == pytest.approx(16)
    assert row["transferred", 0.95]["flops_with_stitch"] == pytest.approx(54)
    assert row["transferred", 0.95]["flops_share"] == pytest.approx(54 / 108)
    assert row["transferred", 0.5]["tokens"] == 0
    assert np.isnan(row["rotated", 0.95]["tokens"])


def test_the_figure_shows_every_arm(result: SAEEvaluation) -> None:
    labels = {trace.y[0] for trace in result.figure().data}
    # Without a refit its three arms are left out.
    assert len(labels) == len(ARMS) - 3
    assert "<table" in result._repr_html_()
