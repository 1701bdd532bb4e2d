"""Two models with different tokenizers.

Harvest, maps and scores use the positions at which both models have read the same characters.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.data import BlockPlan, iterate_blocks
from lrt_lens.data._blocks import Corpus, WindowCutter
from lrt_lens.errors import MismatchError, TooFewDocumentsError
from lrt_lens.models import HookedModel, ModelPair
from lrt_lens.moments import (
    FIT_PARTS,
    TEST_PARTS,
    ActivationCache,
    CrossMoments,
    harvest,
    merge_shards,
)
from lrt_lens.moments._scale_out import shard_name
from lrt_lens.stitching import Stitch, score_rows
from tests.moments.small_blocks import OPTIONS, assert_same

SOURCE, TARGET, SKIP = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post", 4
QUIET: dict[str, Any] = {"n_tokens": None, "progress": False, "moment_dtype": "float64"}


@pytest.fixture(scope="module")
def two(load: Any, train_tokenizer: Any) -> ModelPair:
    """Pair of a Llama with 340 tokens and BOS, and a GPT-2 with 300 tokens and no BOS."""
    other = train_tokenizer(bos=False, vocabulary=300)
    return ModelPair(
        load("llama", d=16, layers=2, seed=1), load("gpt2", d=24, layers=3, seed=2, tokenizer=other)
    )


@pytest.fixture(scope="module")
def short(corpus: list[str]) -> list[str]:
    """Documents of 8 to 14 words: one window in either tokenization."""
    return [" ".join(text.split()[: 8 + number % 7]) for number, text in enumerate(corpus)]


def _shared_places(two: ModelPair, text: str) -> tuple[list[int], list[int], list[list[int]]]:
    """Return positions at which both models have read the same characters, and the ids.

    They are computed by decoding prefixes. BOS counts as a position; masked positions are left out.
    """
    ends: list[dict[str, int]] = []
    everything = []
    for model in (two.source, two.target):
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        bos = [model.tokenizer.bos_token_id] if model.prepend_bos else []
        ends.append({model.tokenizer.decode(ids[: i + 1]): i + len(bos) for i in range(len(ids))})
        everything.append([*bos, *ids])
    pairs = [
        (i, ends[1][prefix])
        for prefix, i in ends[0].items()
        if prefix in ends[1] and i >= SKIP and ends[1][prefix] >= SKIP
    ]
    return [i for i, _ in pairs], [j for _, j in pairs], everything


def _hidden(model: HookedModel, ids: list[int], layer: int) -> torch.Tensor:
    with torch.inference_mode():
        output: Any = (
            model.bridge.original_model.model
            if hasattr(model.bridge.original_model, "model")
            else model.bridge.original_model.transformer
        )
        seen: list[torch.Tensor] = []
        block = list(model.bridge.blocks)[layer].original_component
        remover = block.register_forward_hook(
            lambda _m, _a, out: seen.append((out[0] if isinstance(out, tuple) else out)[0].double())
        )
        try:
            output(input_ids=torch.tensor([ids]), use_cache=False)
        finally:
            remover.remove()
    return seen[0]


@pytest.fixture(scope="module")
def gathered(two: ModelPair, short: list[str]) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Return rows of both models at shared positions, by plain hooks on Hugging Face models."""
    x, y, documents = [], [], []
    for text in short:
        i, j, (source_ids, target_ids) = _shared_places(two, text)
        if len(i) < 4:
            continue
        x.append(_hidden(two.source, source_ids, 1)[i])
        y.append(_hidden(two.target, target_ids, 2)[j])
        documents += [text] * len(i)
    return torch.cat(x), torch.cat(y), documents


@pytest.fixture(scope="module")
def harvested(two: ModelPair, short: list[str]) -> CrossMoments:
    return harvest(
        two, short, context_length=64, source_layers=[0, 1], target_layers=[0, 2], **QUIET
    )


def test_moments_are_those_of_rows_at_the_same_places_of_the_text(
    harvested: CrossMoments, gathered: Any
) -> None:
    x, y, documents = gathered
    naive = CrossMoments.from_activations(
        x,
        y,
        documents=documents,
        source_hook=SOURCE,
        target_hook=TARGET,
        moment_dtype=torch.float64,
    )
    assert torch.equal(harvested.n, naive.n)
    for parts in (FIT_PARTS, TEST_PARTS):
        found, expected = (
            harvested.scatter((SOURCE, TARGET), parts),
            naive.scatter((SOURCE, TARGET), parts),
        )
        for name in ("mean_x", "mean_y", "xx", "yy", "xy"):
            a, b = getattr(found, name), getattr(expected, name)
            assert float((a - b).norm() / b.norm()) < 1e-5, name


def test_the_provenance_says_how_much_was_aligned(
    two: ModelPair, short: list[str], harvested: CrossMoments
) -> None:
    shared = n_source = n_target = 0
    for text in short:
        ids = [
            model.tokenizer(text, add_special_tokens=False)["input_ids"]
            for model in (two.source, two.target)
        ]
        prefixes = [
            {model.tokenizer.decode(own[: i + 1]) for i in range(len(own))}
            for model, own in zip((two.source, two.target), ids, strict=True)
        ]
        if harvested.provenance.n_documents < len(short) and len(_shared_places(two, text)[0]) < 4:
            continue
        shared, n_source, n_target = (
            shared + len(prefixes[0] & prefixes[1]),
            n_source + len(ids[0]),
            n_target + len(ids[1]),
        )
    assert harvested.provenance.aligned == (shared, n_source, n_target)
    assert (
        f"{shared / n_source:.1%} of the source's tokens and {shared / n_target:.1%} of the "
        "target's" in harvested.provenance.alignment
    )
    assert harvested.provenance.swapped().aligned == (shared, n_target, n_source)
    assert harvested.provenance.from_json(harvested.provenance.to_json()) == harvested.provenance


def test_the_way_back_is_the_harvest_of_the_reversed_pair(
    two: ModelPair, short: list[str], harvested: CrossMoments
) -> None:
    backwards = harvest(
        two.reversed(), short, context_length=64, source_layers=[2], target_layers=[1], **QUIET
    )
    found, expected = (
        backwards.scatter((TARGET, SOURCE), FIT_PARTS),
        harvested.scatter((SOURCE, TARGET), FIT_PARTS),
    )
    assert float((found.xy - expected.xy.T).norm() / expected.xy.norm()) < 1e-5
    assert backwards.provenance.aligned == harvested.provenance.swapped().aligned


def test_windows_of_long_documents_hold_the_same_text(two: ModelPair, corpus: list[str]) -> None:
    cutter = WindowCutter(BlockPlan(context_length=16), two.source, two.target)
    n = 0
    for document in cutter.cut(corpus):
        for window in document.windows:
            other = window.counterpart
            assert other is not None
            assert two.source.tokenizer.decode(window.ids[1:]) == two.target.tokenizer.decode(
                other.ids
            )
            assert len(window.rows) == len(other.rows)
            n += 1
    assert n > len(corpus)


@pytest.fixture(scope="module")
def stitch(harvested: CrossMoments) -> Stitch:
    return harvested.fit()[1, 2]


def test_a_stitch_scores_on_rows_what_a_naive_product_scores(
    two: ModelPair, short: list[str], stitch: Stitch, gathered: Any
) -> None:
    x, y, documents = gathered
    chosen = list(dict.fromkeys(documents))[:30]
    rows = torch.tensor([document in set(chosen) for document in documents])
    predicted = x[rows] @ stitch.up.weight + stitch.up.bias
    error, spread = ((y[rows] - predicted) ** 2).sum(), ((y[rows] - y[rows].mean(0)) ** 2).sum()
    found = score_rows(stitch, two, chosen)
    assert found.n_tokens == int(rows.sum())
    assert found.r2 == pytest.approx(float(1 - error / spread), abs=1e-5)


def test_a_lag_pairs_the_next_shared_place_and_says_so(
    two: ModelPair, short: list[str], gathered: Any
) -> None:
    late = harvest(
        two, short, context_length=64, source_layers=[1], target_layers=[2], lag=1, **QUIET
    )
    x, y, documents = gathered
    first = np.array([i > 0 and documents[i] == documents[i - 1] for i in range(len(documents))])
    last = np.append(first[1:], False)
    counts = {text: documents.count(text) for text in documents}
    enough = np.array([counts[text] >= 5 for text in documents])
    kept = [text for text, keep in zip(documents, last & enough, strict=True) if keep]
    naive = CrossMoments.from_activations(
        x[torch.from_numpy(last & enough)],
        y[torch.from_numpy(first & enough)],
        documents=kept,
        source_hook=SOURCE,
        target_hook=TARGET,
        moment_dtype=torch.float64,
    )
    assert torch.equal(late.n, naive.n)
    found, expected = (
        late.scatter((SOURCE, TARGET), FIT_PARTS),
        naive.scatter((SOURCE, TARGET), FIT_PARTS),
    )
    assert float((found.xy - expected.xy).norm() / expected.xy.norm()) < 1e-5
    assert late.provenance.lag == 1
    assert "1 row(s) later (a control)" in late.provenance.alignment
    with pytest.raises(MismatchError, match="shards differ in lag"):
        late.merge(
            harvest(two, short, context_length=64, source_layers=[1], target_layers=[2], **QUIET)
        )


def test_one_model_under_two_tokenizations_is_not_quite_itself_and_a_lag_is_worse(
    load: Any, train_tokenizer: Any, corpus: list[str]
) -> None:
    """Compare other tokens, which lower R², with a pairing that is one token late."""
    fine = load("llama", d=16, layers=2, seed=1, tokenizer=train_tokenizer(vocabulary=300))
    whole = load("llama", d=16, layers=2, seed=1)
    options: dict[str, Any] = {
        "context_length": 64,
        "source_layers": [1],
        "target_layers": [1],
        **QUIET,
    }
    same = harvest(ModelPair(whole, whole), corpus, **options).fit()[1, 1].scores["r2"]
    other = harvest(ModelPair(whole, fine), corpus, **options).fit()[1, 1].scores["r2"]
    late = harvest(ModelPair(whole, fine), corpus, lag=1, **options).fit()[1, 1].scores["r2"]
    assert same > 0.999
    assert 0.1 < other < 0.99
    assert late < other - 0.1


def test_shards_and_a_cache_of_two_tokenizations(
    two: ModelPair, corpus: list[str], tmp_path: Path
) -> None:
    options = {**OPTIONS, "progress": False}
    whole = harvest(two, corpus, cache=tmp_path / "cache", **options)
    for shard in ((0, 2), (1, 2)):
        harvest(two, corpus, shard=shard, **options).save(tmp_path / shard_name(shard))
    assert_same(merge_shards([tmp_path / shard_name((0, 2)), tmp_path / shard_name((1, 2))]), whole)
    cache = ActivationCache.open(tmp_path / "cache")
    again = cache.moments(moment_dtype="float64", progress=False)
    assert torch.equal(again.n, whole.n)
    found, expected = (
        again.scatter(again.pairs[0], FIT_PARTS),
        whole.scatter(again.pairs[0], FIT_PARTS),
    )
    assert float((found.xy - expected.xy).norm() / expected.xy.norm()) < 0.01
    assert again.provenance.alignment == "positions behind the same characters"
    cache.record(two.source, hooks=[0], role="source", progress=False)
    with pytest.raises(MismatchError, match="tokenizer_hash"):
        cache.record(two.target, hooks=[1], role="target", progress=False)


def test_a_block_is_known_by_both_sides_tokens(two: ModelPair, corpus: list[str]) -> None:
    plan = BlockPlan(context_length=24, block_rows=250)
    alone = [block.fingerprint for block in iterate_blocks(corpus, two.source, plan)]
    both = [
        block.fingerprint for block in iterate_blocks(corpus, two.source, plan, target=two.target)
    ]
    assert set(alone).isdisjoint(both)


def test_texts_of_too_few_shared_places_are_refused_with_how_many(two: ModelPair) -> None:
    with pytest.raises(
        TooFewDocumentsError,
        match=r"40 have 40 aligned positions in all, which are 100.0% of the source's .* "
        r"needs 4 others",
    ):
        list(iterate_blocks(["a"] * 40, two.source, BlockPlan(), target=two.target))


def test_texts_without_a_shared_boundary_and_chats_are_refused(
    two: ModelPair, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        MismatchError, match=r"document 0 is a chat, but the two models have different tokenizers"
    ):
        harvest(two, [[{"role": "user", "content": "the cat"}]], **QUIET)
    monkeypatch.setattr("lrt_lens.data._boundaries.NO_BOUNDARY", -1)
    from lrt_lens.data import _alignment as alignment

    monkeypatch.setattr(
        alignment,
        "_closed",
        lambda side, _starts: (np.empty(0, int), np.empty(0, int), np.zeros(len(side), int)),
    )
    with pytest.raises(
        MismatchError,
        match=r"no boundary between characters is shared in 150 text\(s\) of \d+ and \d+ tokens",
    ):
        list(iterate_blocks(corpus, two.source, BlockPlan(), Corpus(), two.target))
