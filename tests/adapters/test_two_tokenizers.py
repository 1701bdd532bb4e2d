"""Evaluations of a stitch between two models with different tokenizers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import lrt_lens as lrt
from lrt_lens.adapters.vectors import steering_agreement
from lrt_lens.data import ChoiceItems, ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.models import HookedModel, ModelPair
from lrt_lens.moments import CrossMoments, harvest
from lrt_lens.stitching import Stitch, StitchLoss, evaluate_stitch_loss
from lrt_lens.stitching._stitch_loss import ROUTES
from tests.adapters.saes.codes.test_code_map import TinySae

SKIP = 4


@pytest.fixture(scope="module")
def two(load: Any, train_tokenizer: Any) -> ModelPair:
    """A Llama with a vocabulary of 340 and BOS, and a GPT-2 with one of 300 and no BOS."""
    other = train_tokenizer(bos=False, vocabulary=300)
    return ModelPair(
        load("llama", d=16, layers=2, seed=1), load("gpt2", d=24, layers=3, seed=2, tokenizer=other)
    )


@pytest.fixture(scope="module")
def moments(two: ModelPair, corpus: list[str]) -> CrossMoments:
    return harvest(
        two,
        corpus,
        n_tokens=None,
        context_length=64,
        moment_dtype="float64",
        null="full",
        progress=False,
    )


@pytest.fixture(scope="module")
def stitch(moments: CrossMoments) -> Stitch:
    return moments.fit()[0, 1]


@pytest.fixture(scope="module")
def texts(corpus: list[str]) -> list[str]:
    """Texts that fit into one window each."""
    return [" ".join(text.split()[:12]) for text in corpus[:20]]


@pytest.fixture(scope="module")
def result(two: ModelPair, stitch: Stitch, texts: list[str]) -> StitchLoss:
    return evaluate_stitch_loss(two, stitch, texts, folds="all", context_length=64, progress=False)


# ------------------------------------------------------------------------------------ stitched loss


def _read(model: HookedModel, text: str) -> tuple[list[int], dict[str, int]]:
    """Return token ids, and the position of each prefix of the text that ends with a token.

    BOS is added if the model reads one.
    """
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = [model.tokenizer.bos_token_id] if model.prepend_bos else []
    return [*bos, *ids], {
        model.tokenizer.decode(ids[: i + 1]): i + len(bos) for i in range(len(ids))
    }


@contextmanager
def _hooked(model: HookedModel, layer: int, hook: Any) -> Iterator[None]:
    remover = list(model.bridge.blocks)[layer].original_component.register_forward_hook(hook)
    try:
        yield
    finally:
        remover.remove()


def _stream(model: HookedModel, ids: list[int], layer: int) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    with _hooked(
        model,
        layer,
        lambda _m, _a, out: seen.append((out[0] if isinstance(out, tuple) else out)[0].double()),
    ):
        model.bridge.original_model(input_ids=torch.tensor([ids]), use_cache=False)
    return seen[0]


def _log_p(
    model: HookedModel, ids: list[int], layer: int, places: list[int], state: torch.Tensor
) -> torch.Tensor:
    def put(_module: Any, _args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[0, places] = state.to(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with _hooked(model, layer, put):
        return (
            model.bridge.original_model(input_ids=torch.tensor([ids]), use_cache=False)
            .logits[0]
            .double()
            .log_softmax(-1)
        )


def _row(result: StitchLoss, route: str, arm: str) -> dict[str, Any]:
    (row,) = [
        row for row in result.table.to_dict("records") if (row["route"], row["arm"]) == (route, arm)
    ]
    return {str(key): value for key, value in row.items()}


@pytest.mark.parametrize("route", ROUTES)
def test_the_loss_is_that_of_plain_hooks_at_shared_positions(
    two: ModelPair, stitch: Stitch, result: StitchLoss, texts: list[str], route: str
) -> None:
    models, layers, means = (
        {"A": two.source, "B": two.target},
        {"A": 0, "B": 1},
        {"A": stitch.source_statistics, "B": stitch.target_statistics},
    )
    start, *stops = route.split("→")
    finish = stops[-1]
    losses: dict[str, list[np.ndarray]] = {"stitched": [], "mean": [], "all": [], "replaced": []}
    with torch.inference_mode():
        for text in texts:
            (a_ids, a_ends), (b_ids, b_ends) = (_read(models[letter], text) for letter in "AB")
            pairs = [
                (i, b_ends[prefix])
                for prefix, i in a_ends.items()
                if prefix in b_ends and min(i, b_ends[prefix]) >= SKIP
            ]
            if len(pairs) < 4:
                continue
            places = {"A": [i for i, _ in pairs], "B": [j for _, j in pairs]}
            ids = {"A": a_ids, "B": b_ids}
            state = _stream(models[start], ids[start], layers[start])[places[start]]
            for stop in stops:
                step = stitch.up if stop == "B" else stitch.down
                state = state @ step.weight + step.bias
            following = torch.tensor(ids[finish][1:])[:, None]
            counted = [place for place in places[finish] if place < len(ids[finish]) - 1]
            for name, put in (
                ("stitched", state),
                ("mean", means[finish].mean.expand(len(pairs), -1)),
            ):
                log_p = _log_p(models[finish], ids[finish], layers[finish], places[finish], put)
                loss = -log_p[:-1].gather(1, following)[:, 0].numpy()
                losses[name].append(loss[counted])
                if name == "stitched":
                    losses["all"].append(loss)
            losses["replaced"].append(np.isin(np.arange(len(ids[finish]) - 1), places[finish]))
    stitched, ablated = (_row(result, route, arm) for arm in ("stitched", "mean"))
    flat = {name: np.concatenate(parts) for name, parts in losses.items()}
    assert stitched["ce"] == pytest.approx(flat["stitched"].mean(), rel=2e-5)
    assert ablated["ce"] == pytest.approx(flat["mean"].mean(), rel=2e-5)
    assert stitched["ce_all_positions"] == pytest.approx(flat["all"].mean(), rel=2e-5)
    assert stitched["replaced"] == ablated["replaced"] == pytest.approx(flat["replaced"].mean())
    assert 0.2 < stitched["replaced"] < 0.9
    assert stitched["n_tokens"] == len(flat["stitched"])


def test_the_token_arm_reads_the_source_token_that_ends_there(
    two: ModelPair, moments: CrossMoments, stitch: Stitch, texts: list[str]
) -> None:
    token = lrt.token_identity_map(moments, stitch.target_hook)
    loss = evaluate_stitch_loss(
        two, stitch, texts, routes=["A→B"], token_maps=token, folds="all", progress=False
    )
    assert set(loss.table["arm"]) == {"own", "stitched", "token", "shuffled", "mean", "zero"}
    assert len(set(loss.table["replaced"])) == 1


# ------------------------------------------------------------------ vectors, probes, SAEs, refusals


PLACES = ("house", "garden", "tree", "river", "stone", "bird")
CONTRAST = ContrastSet(
    [f"the happy cat sang in the {p} and it was good" for p in PLACES],
    [f"the sad dog slept on the {p} and it was bad" for p in PLACES],
    name="mood",
)
ITEMS = ChoiceItems(
    [f"the little boy saw the {p} and he" for p in PLACES],
    [" sang"] * 6,
    [" slept"] * 6,
    name="mood",
)


def test_a_vector_is_evaluated_with_each_model_reading_its_own_tokens(
    two: ModelPair, stitch: Stitch, corpus: list[str]
) -> None:
    vector = lrt.SteeringVector.mean_difference(two.source, CONTRAST, at=0)
    evaluation = lrt.evaluate_steering(
        two,
        stitch,
        vector,
        ITEMS,
        neutral=corpus[:6],
        damage=0.05,
        n_random=4,
        n_permuted=1,
        progress=False,
    )
    assert {"transferred", "native", "random", "shuffled", "permuted"} <= set(
        evaluation.summary["arm"]
    )
    mapped = (vector.direction.double() * 1.0) @ stitch.up.weight
    assert evaluation.vectors[
        "transferred"
    ].direction.double() @ mapped / mapped.norm() == pytest.approx(
        float(evaluation.vectors["transferred"].direction.norm()), rel=1e-4
    )


def test_a_transferred_probe_reads_the_target_through_the_map_down(
    two: ModelPair, stitch: Stitch
) -> None:
    texts = [*CONTRAST.positive, *CONTRAST.negative] * 3
    labels = [1] * 6 + [0] * 6
    probe = lrt.LinearProbe.fit(two.source, texts, labels * 3, at=0, read="mean")
    transferred = stitch.transfer(probe)
    hook = "blocks.1.hook_resid_post"
    states = two.target.engine.capture(two.target.pad(two.target.encode(texts[:1])), [hook])[hook][
        0, SKIP:
    ].double()
    naive = (states @ stitch.down.weight + stitch.down.bias).mean(
        0
    ) @ probe.weight.double() + float(probe.bias)
    assert transferred.logits(transferred.rows(two.target, texts[:1])[0]).item() == pytest.approx(
        float(naive), rel=1e-4, abs=1e-4
    )


def test_comparisons_of_tokens_are_refused_with_an_alternative(
    two: ModelPair, stitch: Stitch, texts: list[str]
) -> None:
    with pytest.raises(
        MismatchError,
        match=r"steering_agreement compares models token by token, .*evaluate_steering",
    ):
        steering_agreement(two, stitch, torch.eye(16)[:1], texts)


def test_texts_for_a_code_map_are_refused_before_both_models_run(
    two: ModelPair,
    stitch: Stitch,
    corpus: list[str],
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sae = TinySae(two.source.d_model)
    codes = lrt.fit_code_map(two, stitch, sae, corpus, context_length=32, progress=False)
    assert np.isfinite(
        lrt.evaluate_code_map(
            two, stitch, sae, codes, corpus, context_length=32, progress=False
        ).table["r2"]
    ).all()
    monkeypatch.setattr(
        "lrt_lens.adapters.saes.codes._evaluation._score",
        lambda *_: pytest.fail("scores were computed before the refusal"),
    )
    with pytest.raises(
        MismatchError,
        match=r"texts= of evaluate_code_map compares models token by token, .*leave texts out",
    ):
        lrt.evaluate_code_map(
            two, stitch, sae, codes, corpus, texts=texts, context_length=32, progress=False
        )
