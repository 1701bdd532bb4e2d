"""The loss behind a stitch, compared with known values.

They come from a model paired with itself, and from plain hooks on the Hugging Face model.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lrt_lens.data import N_FOLDS, BlockPlan, cut_windows, document_key, part_of
from lrt_lens.errors import HookPointError, MismatchError, TooFewDocumentsError
from lrt_lens.models import ModelPair, residual_post
from lrt_lens.moments import Provenance
from lrt_lens.stitching import (
    AffineMap,
    MapPair,
    Stitch,
    StitchLoss,
    StreamStatistics,
    evaluate_stitch_loss,
    fit_stitches,
    token_identity_map,
)
from lrt_lens.stitching._stitch_loss import ROUTES
from lrt_lens.stitching._stitched_pass import ModelWindows, batches

A_HOOK, B_HOOK = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
SKIP = 4


def _random_stitch(
    pair: ModelPair, *, seed: int = 0, source_hook: str = A_HOOK, target_hook: str = B_HOOK
) -> Stitch:
    generator = torch.Generator().manual_seed(seed)
    d_s, d_t = pair.source.d_model, pair.target.d_model

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / 4

    def maps() -> MapPair:
        up = AffineMap(draw(d_s, d_t), draw(d_t), source_hook, target_hook)
        return MapPair(up, AffineMap(draw(d_t, d_s), draw(d_s), target_hook, source_hook))

    source, target = (StreamStatistics(draw(d), torch.eye(d).double(), 1.0) for d in (d_s, d_t))
    provenance = Provenance(
        source=pair.source.identity, target=pair.target.identity, skip_first=SKIP
    )
    return Stitch(maps(), source, target, provenance=provenance, null=maps())


def _identity_stitch(d: int, hook: str) -> Stitch:
    same = AffineMap(torch.eye(d), torch.zeros(d), hook, hook)
    statistics = StreamStatistics(torch.zeros(d), torch.eye(d), 1.0)
    return Stitch(MapPair(same, same), statistics, statistics)


@pytest.fixture(scope="module")
def texts(corpus: list[str]) -> list[str]:
    return corpus[:14]


@pytest.fixture(scope="module")
def stitch(pair: ModelPair) -> Stitch:
    return _random_stitch(pair)


@pytest.fixture(scope="module")
def result(pair: ModelPair, stitch: Stitch, texts: list[str]) -> StitchLoss:
    return evaluate_stitch_loss(pair, stitch, texts, folds="all", context_length=32, progress=False)


def test_a_pair_of_two_models_of_one_name_is_told_apart_in_the_table(
    pair: ModelPair, result: StitchLoss
) -> None:
    assert pair.source.name == pair.target.name
    finishes_in = dict(zip(result.table["route"], result.table["finishes_in"], strict=True))
    assert finishes_in["A→B"] == f"{pair.target.name} (target)"
    assert finishes_in["B→A"] == f"{pair.source.name} (source)"


def _row(result: StitchLoss, route: str, arm: str) -> dict[str, Any]:
    (row,) = [
        row for row in result.table.to_dict("records") if (row["route"], row["arm"]) == (route, arm)
    ]
    return {str(key): value for key, value in row.items()}


def _hf_log_probabilities(
    model: Any,
    ids: list[int],
    layer: int | None = None,
    state: torch.Tensor | None = None,
    kept: int = 1,
) -> torch.Tensor:
    """Return logits [position, vocabulary] of the Hugging Face model on one text, without padding.

    A plain forward hook replaces the output of one block.
    """
    bare = model.bridge.original_model
    removers = []
    if state is not None:

        def put(_module: Any, _args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            changed = torch.cat([hidden[:, :kept], state[None, kept:].to(hidden)], 1)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        removers.append(
            list(model.bridge.blocks)[layer or 0].original_component.register_forward_hook(put)
        )
    try:
        with torch.inference_mode():
            return (
                bare(input_ids=torch.tensor([ids]), use_cache=False)
                .logits[0]
                .double()
                .log_softmax(-1)
            )
    finally:
        for remover in removers:
            remover.remove()


def _windows(model: Any, texts: list[str], length: int) -> list[tuple[int, list[int]]]:
    out = []
    for number, text in enumerate(texts):
        body = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = [
            [model.tokenizer.bos_token_id, *body[i : i + length - 1]]
            for i in range(0, len(body), length - 1)
        ]
        out += [(number, piece) for piece in pieces if len(piece) >= SKIP + 4]
    return out


def _naive(
    pair: ModelPair, stitch: Stitch, texts: list[str], route: str, maps: MapPair, *, kept: int = 1
) -> dict[str, float]:
    """Return the loss text by text, with plain hooks, Hugging Face logits and maps in float64."""
    models, layers = {"A": pair.source, "B": pair.target}, {"A": 0, "B": 1}
    start, *stops = route.split("→")
    finish = models[stops[-1]]
    mean = (stitch.source_statistics if stops[-1] == "A" else stitch.target_statistics).mean
    values: dict[str, list[np.ndarray]] = {
        name: [] for name in ("ce", "all", "kl", "own", "mean", "top1")
    }
    for _, ids in _windows(pair.source, texts, 32):
        x = (
            models[start]
            .engine.capture(torch.tensor([ids]), [residual_post(layers[start])])[
                residual_post(layers[start])
            ][0]
            .double()
        )
        for stop in stops:
            step = maps.up if stop == "B" else maps.down
            x = x @ step.weight + step.bias
        layer = layers[stops[-1]]
        changed = _hf_log_probabilities(finish, ids, layer, x, kept)
        own = _hf_log_probabilities(finish, ids)
        ablated = _hf_log_probabilities(finish, ids, layer, mean.expand(len(ids), -1), kept)
        following = torch.tensor(ids[1:])[:, None]
        loss, own_loss, mean_loss = (
            -p[:-1].gather(1, following)[:, 0].numpy() for p in (changed, own, ablated)
        )
        values["all"].append(loss)
        for name, value in (
            ("ce", loss),
            ("own", own_loss),
            ("mean", mean_loss),
            ("kl", (own.exp() * (own - changed)).sum(1).numpy()[:-1]),
            ("top1", (own.argmax(1) == changed.argmax(1)).numpy()[:-1]),
        ):
            values[name].append(value[SKIP:])
    flat = {name: np.concatenate(parts) for name, parts in values.items()}
    ce, own, mean_ce = flat["ce"].mean(), flat["own"].mean(), flat["mean"].mean()
    return {
        "ce": ce,
        "ce_all_positions": flat["all"].mean(),
        "kl": flat["kl"].mean(),
        "top1": flat["top1"].mean(),
        "n_tokens": len(flat["ce"]),
        "recovered": (mean_ce - ce) / (mean_ce - own),
        "win_rate": (flat["ce"] < flat["mean"]).mean(),
        "increase_percent": 100 * (ce / own - 1),
    }


@pytest.mark.parametrize("route", ROUTES)
def test_every_number_is_that_of_plain_hooks_on_the_hugging_face_model(
    pair: ModelPair, stitch: Stitch, result: StitchLoss, texts: list[str], route: str
) -> None:
    assert stitch.null is not None
    for arm, maps in (("stitched", stitch.maps), ("shuffled", stitch.null)):
        expected = _naive(pair, stitch, texts, route, maps)
        found = _row(result, route, arm)
        if math.isnan(found["recovered"]):
            # A random model need not predict better than an ablated one; then there is nothing to
            # take a share of.
            assert not result.difference("mean", "own", route=route).excludes(0.0)
            expected.pop("recovered")
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=2e-5, abs=2e-5)
        assert found["ce_low"] < found["ce"] < found["ce_high"]


@pytest.mark.parametrize("architecture", ["gpt2", "neox"])
def test_it_holds_for_other_architectures_and_for_names_of_the_same_place(
    load: Any, texts: list[str], architecture: str
) -> None:
    pair = ModelPair(
        load(architecture, d=16, layers=2, seed=1), load("llama", d=24, layers=3, seed=2)
    )
    stitch = _random_stitch(pair, target_hook="blocks.2.hook_resid_pre")
    found = evaluate_stitch_loss(
        pair, stitch, texts, routes=["A→B", "B→A→B"], folds="all", context_length=32, progress=False
    )
    for route in ("A→B", "B→A→B"):
        expected = _naive(pair, stitch, texts, route, stitch.maps)
        expected.pop("recovered")
        assert {key: _row(found, route, "stitched")[key] for key in expected} == pytest.approx(
            expected, rel=2e-5, abs=2e-5
        )


def test_between_attention_and_mlp_it_works_too(pair: ModelPair, texts: list[str]) -> None:
    stitch = _identity_stitch(16, "blocks.1.hook_resid_mid")
    found = evaluate_stitch_loss(
        ModelPair(pair.source, pair.source),
        stitch,
        texts,
        folds="all",
        context_length=32,
        progress=False,
    )
    assert np.ptp(found.table.loc[found.table["arm"].isin(["own", "stitched"]), "ce"]) == 0


def test_through_the_identity_a_model_finishes_its_own_thought(
    pair: ModelPair, texts: list[str]
) -> None:
    model, hook = pair.target, "blocks.1.hook_resid_post"
    found = evaluate_stitch_loss(
        ModelPair(model, model),
        _identity_stitch(24, hook),
        texts,
        folds="all",
        context_length=64,
        progress=False,
    )
    losses = [model.token_losses([ids])[0].numpy() for _, ids in _windows(model, texts, 64)]
    assert set(found.table["route"]) == set(ROUTES)
    for route in ROUTES:
        stitched, own = _row(found, route, "stitched"), _row(found, route, "own")
        keys = ("ce", "ce_low", "ce_high", "ce_all_positions")
        assert [stitched[key] for key in keys] == [own[key] for key in keys]
        assert stitched["ce"] == pytest.approx(
            np.concatenate([loss[SKIP:] for loss in losses]).mean(), rel=1e-5
        )
        assert stitched["ce_all_positions"] == pytest.approx(
            np.concatenate(losses).mean(), rel=1e-5
        )
        assert (
            stitched["recovered"],
            stitched["kl"],
            stitched["top1"],
            stitched["increase_percent"],
        ) == (1, 0, 1, 0)
        mean = _row(found, route, "mean")
        assert (
            mean["recovered"],
            mean["recovered_low"],
            mean["recovered_high"],
            mean["win_rate"],
        ) == (0, 0, 0, 0)


def test_bos_keeps_its_state_and_masked_positions_do_so_on_request(
    pair: ModelPair,
    stitch: Stitch,
    texts: list[str],
    result: StitchLoss,
    load: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    everything = _naive(pair, stitch, texts, "A→B", stitch.maps, kept=0)
    masked = _naive(pair, stitch, texts, "A→B", stitch.maps, kept=SKIP)
    assert abs(_row(result, "A→B", "stitched")["ce"] - everything["ce"]) > 1e-3
    found = evaluate_stitch_loss(
        pair, stitch, texts, keep="masked", folds="all", context_length=32, progress=False
    )
    assert _row(found, "A→B", "stitched")["ce"] == pytest.approx(masked["ce"], rel=2e-5)
    assert not caplog.messages
    bare = [
        load("llama", d=m.d_model, layers=m.n_layers, seed=s, prepend_bos=False)
        for m, s in ((pair.source, 1), (pair.target, 2))
    ]
    windows = next(batches(cut_windows(list(range(5, 20)), 0, bare[0], BlockPlan()), *bare))
    assert not ModelWindows(windows, bare[0], "bos").keeps_own.any()
    no_bos = ModelPair(*bare)
    evaluate_stitch_loss(
        no_bos,
        replace(stitch, provenance=Provenance()),
        texts,
        folds="all",
        n_tokens=100,
        progress=False,
    )
    assert "these models read no BOS" in caplog.text


def test_arms_stand_on_the_same_tokens_and_are_compared_in_pairs(
    pair: ModelPair, stitch: Stitch, result: StitchLoss
) -> None:
    assert set(result.table["arm"]) == {"own", "stitched", "shuffled", "mean", "zero"}
    assert len(set(result.table["n_tokens"])) == 1
    found = result.difference("stitched", "mean", route="B→A")
    rows: dict[Any, Any] = dict(iter(result.by_document.query("route == 'B→A'").groupby("arm")))
    gaps, counts = (
        (rows["stitched"]["ce"].to_numpy() - rows["mean"]["ce"].to_numpy()),
        rows["mean"]["n_tokens"].to_numpy(),
    )
    draws = np.random.default_rng(0).integers(0, len(gaps), size=(2000, len(gaps)))
    means = (gaps * counts)[draws].sum(1) / counts[draws].sum(1)
    # Percentiles are too near to each other with few documents: studentised ends are outside.
    low, high = np.percentile(means, [2.5, 97.5])
    assert found.value == pytest.approx(np.average(gaps, weights=counts))
    assert found.low < low < high < found.high
    assert found.high - found.low < 2 * (high - low)
    swapped = result.difference("mean", "stitched", route="B→A")
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    assert result.difference("own", "own", route="A→B").high == 0
    assert (rows["stitched"]["ce"] * counts).sum() / counts.sum() == pytest.approx(
        _row(result, "B→A", "stitched")["ce"]
    )
    with pytest.raises(
        ValueError,
        match=r"no arm 'tokn' on route 'A→B'; use one of its arms "
        r"\['own', 'stitched', 'shuffled', 'mean', 'zero'\]",
    ):
        result.difference("stitched", "tokn", route="A→B")


def test_every_measured_number_has_an_interval_and_doubts_are_named(result: StitchLoss) -> None:
    for row in result.table.to_dict("records"):
        for name in ("ce", "kl", "win_rate", "top1", "increase_percent"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    row = _row(result, "A→B", "stitched")
    n = row["n_documents"]
    documents = result.by_document.query("route == 'A→B' and arm == 'stitched'")
    own = result.by_document.query("route == 'A→B' and arm == 'own'")
    counts = documents["n_tokens"].to_numpy()
    sums, base = (one["ce"].to_numpy() * counts for one in (documents, own))
    assert row["increase_percent"] == pytest.approx(100 * (sums.sum() / base.sum() - 1))
    assert (f"{n} independent documents" in row["interval_flag"]) == (n < 10)


def test_what_does_not_depend_on_the_start_runs_once(
    pair: ModelPair, stitch: Stitch, texts: list[str], monkeypatch: Any
) -> None:
    passes = {"captures": 0, "logits": 0}
    for model in (pair.source, pair.target):
        for name in ("capture", "logits"):
            plain = getattr(model.engine, name)

            def counted(*args: Any, plain: Any = plain, name: str = name, **options: Any) -> Any:
                passes["captures" if name == "capture" else name] += 1
                return plain(*args, **options)

            monkeypatch.setattr(model.engine, name, counted)
    evaluate_stitch_loss(pair, stitch, texts[:6], folds="all", progress=False)
    # For either finishing model: own, mean, zero, and stitched and shuffled on two routes.
    assert passes == {"captures": 2, "logits": 14}


def test_other_solvers_and_token_identity_are_arms_of_the_same_run(
    pair: ModelPair, stitch: Stitch, texts: list[str], corpus: list[str]
) -> None:
    grid = fit_stitches(
        pair,
        corpus,
        n_tokens=None,
        context_length=32,
        source_layers=[0],
        target_layers=[1],
        progress=False,
    )
    fitted, token = grid[A_HOOK, B_HOOK], token_identity_map(grid.moments, B_HOOK)
    assert token.source_hook == "hook_embed"
    found = evaluate_stitch_loss(
        pair,
        fitted,
        corpus,
        context_length=32,
        token_maps=token,
        others={"drawn": stitch.maps},
        progress=False,
    )
    expected = _naive(pair, fitted, _held_out(corpus), "A→B", stitch.maps)
    assert _row(found, "A→B", "drawn")["ce"] == pytest.approx(expected["ce"], rel=2e-5)
    assert set(found.table.loc[found.table["arm"] == "token", "route"]) == {"A→B", "B→A→B"}
    ids = _windows(pair.source, _held_out(corpus), 32)[0][1]
    table = pair.source.bridge.original_model.get_input_embeddings().weight.detach()
    predicted = _hf_log_probabilities(
        pair.target, ids, 1, table[ids].double() @ token.weight.double() + token.bias.double()
    )
    loss = -predicted[:-1].gather(1, torch.tensor(ids[1:])[:, None])[SKIP:].mean()
    alone = evaluate_stitch_loss(
        pair,
        fitted,
        [pair.source.tokenizer.decode(ids[1:])] * 2,
        routes=["A→B"],
        folds="all",
        token_maps=token,
        progress=False,
    )
    assert _row(alone, "A→B", "token")["ce"] == pytest.approx(float(loss), rel=2e-5)


def _held_out(corpus: list[str]) -> list[str]:
    return [text for text in corpus if part_of(document_key(text, 0)) >= N_FOLDS]


def test_only_the_test_fold_is_read_unless_told_otherwise(
    pair: ModelPair, stitch: Stitch, corpus: list[str]
) -> None:
    options: dict[str, Any] = {"context_length": 32, "routes": ["A→B"], "progress": False}
    by_default = evaluate_stitch_loss(pair, stitch, corpus, **options)
    pd.testing.assert_frame_equal(
        by_default.table,
        evaluate_stitch_loss(pair, stitch, _held_out(corpus), folds="all", **options).table,
    )
    assert _row(by_default, "A→B", "own")["n_documents"] < len(corpus) / 3
    with pytest.raises(
        TooFewDocumentsError,
        match=r"0 of 3 document\(s\) can be measured \(a sixth is in the test fold\).*folds='all'",
    ):
        evaluate_stitch_loss(
            pair, stitch, [text for text in corpus if text not in _held_out(corpus)][:3]
        )


def test_it_stops_at_so_many_tokens_and_says_the_same_twice(
    pair: ModelPair, stitch: Stitch, texts: list[str]
) -> None:
    short = [
        evaluate_stitch_loss(
            pair, stitch, texts, folds="all", n_tokens=100, context_length=32, progress=False
        )
        for _ in range(2)
    ]
    pd.testing.assert_frame_equal(short[0].table, short[1].table)
    with pytest.raises(
        TooFewDocumentsError, match="n_tokens=20 was reached after 1 document; raise n_tokens"
    ):
        evaluate_stitch_loss(pair, stitch, texts, folds="all", n_tokens=20)
    n_tokens, n_documents = (
        _row(short[0], "A→B", "own")["n_tokens"],
        _row(short[0], "A→B", "own")["n_documents"],
    )
    last = short[0].by_document.to_dict("records")[n_documents - 1]["n_tokens"]
    assert n_tokens - last < 100 <= n_tokens
    assert n_documents < len(texts)


def test_the_summary_is_the_papers_table_upright(result: StitchLoss) -> None:
    summary = result.summary
    assert summary["route"].tolist() == ["A", "B", *ROUTES]
    assert summary["ce"].tolist()[:2] == [
        _row(result, "B→A", "own")["ce"],
        _row(result, "A→B", "own")["ce"],
    ]
    assert summary["ce"].tolist()[2:] == [_row(result, route, "stitched")["ce"] for route in ROUTES]
    assert (
        summary["ce_mean"].tolist()[0]
        == summary["ce_mean"].tolist()[3]
        == _row(result, "A→B→A", "mean")["ce"]
    )
    assert math.isnan(summary["ce_shuffled"].tolist()[0])
    assert "A→B→A" in result._repr_html_()
    assert len([trace for trace in result.figure().data if trace.mode == "markers"]) == len(
        result.table
    )


def test_foreign_models_maps_and_tokenizers_are_refused(
    pair: ModelPair, stitch: Stitch, texts: list[str], load: Any, train_tokenizer: Any
) -> None:
    with pytest.raises(MismatchError, match="the target model is"):
        evaluate_stitch_loss(
            ModelPair(pair.source, load("llama", d=24, layers=3, seed=9)), stitch, texts
        )
    elsewhere = _random_stitch(pair, target_hook="blocks.0.hook_resid_post").maps
    with pytest.raises(
        MismatchError,
        match=r"two_way maps 'blocks.0.hook_resid_post' → 'blocks.0.hook_resid_post'; expected",
    ):
        evaluate_stitch_loss(pair, stitch, texts, others={"two_way": elsewhere})
    with pytest.raises(
        MismatchError, match=r"token_maps maps 'blocks.0.hook_resid_post' → .*expected 'hook_embed'"
    ):
        # The documents cannot be read: the maps are checked first.
        evaluate_stitch_loss(pair, stitch, "no-such-file.jsonl", token_maps=stitch.up)
    with pytest.raises(
        ValueError, match="others has the name 'mean', which is the name of another arm"
    ):
        evaluate_stitch_loss(pair, stitch, texts, others={"mean": stitch.maps})
    mixed = ModelPair(
        pair.source,
        load("llama", d=24, layers=3, seed=2, tokenizer=train_tokenizer(vocabulary=300)),
    )
    with pytest.raises(MismatchError, match=r"the target model is .* with tokenizer_hash"):
        evaluate_stitch_loss(mixed, stitch, texts)


def test_wrong_arguments_say_what_is_expected(
    pair: ModelPair,
    stitch: Stitch,
    texts: list[str],
    unchecked: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for wrong, message in (
        ({"routes": ["A→C"]}, r"routes is \['A→C'\]; expected a list of"),
        ({"routes": "A→B"}, r"routes is 'A→B'; expected a list of"),
        ({"routes": []}, r"routes is \[\]"),
        (
            {"controls": ["none"]},
            r"controls is \['none'\]; expected a list of \['zero', 'shuffled'\]",
        ),
        ({"n_tokens": 0}, "n_tokens is 0; expected a positive number"),
    ):
        options: dict[str, Any] = wrong
        with pytest.raises(ValueError, match=message):
            evaluate_stitch_loss(pair, stitch, texts, **options)
    joint = AffineMap(
        torch.zeros(32, 24), torch.zeros(24), "hook_embed+blocks.0.hook_resid_post", B_HOOK
    )
    back = AffineMap(torch.zeros(24, 32), torch.zeros(32), B_HOOK, joint.source_hook)
    wide = replace(stitch, maps=MapPair(joint, back), null=None)
    with pytest.raises(
        HookPointError, match="route 'B→A' would finish at .*choose routes that end in B"
    ):
        evaluate_stitch_loss(pair, wide, texts, folds="all")
    found = evaluate_stitch_loss(
        pair, wide, texts, routes=["A→B"], folds="all", controls=["shuffled"], progress=False
    )
    assert "the arm 'shuffled' is left out" in caplog.text
    assert set(found.table["arm"]) == {"own", "stitched", "mean"}


def test_half_precision_models_are_measured_in_their_own(load: Any, texts: list[str]) -> None:
    model = load("llama", d=16, layers=2, seed=1, dtype="bfloat16")
    found = evaluate_stitch_loss(
        ModelPair(model, model),
        _identity_stitch(16, A_HOOK),
        texts,
        folds="all",
        context_length=32,
        progress=False,
    )
    assert _row(found, "A→B", "stitched")["ce"] == _row(found, "A→B", "own")["ce"]
