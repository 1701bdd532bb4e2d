"""One pass over two models gives the moments of rows from a naive loop over documents."""

from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.data import BlockPlan, cut_windows, document_key, exact_key
from lrt_lens.errors import HookPointError, NonFiniteError, TooFewDocumentsError
from lrt_lens.models import HookedModel, ModelPair
from lrt_lens.moments import FIT_PARTS, TEST_PARTS, CrossMoments, harvest
from lrt_lens.stitching import fit_stitches
from lrt_lens.stitching._grid import COLUMNS

SOURCE, TARGET = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"
QUIET: dict[str, Any] = {"n_tokens": None, "progress": False}


@pytest.fixture(scope="module")
def harvested(pair: ModelPair, corpus: list[str]) -> CrossMoments:
    return harvest(pair, corpus, context_length=24, moment_dtype="float64", **QUIET)


@pytest.fixture(scope="module")
def fitted(harvested: CrossMoments) -> Any:
    return harvested.fit()


@pytest.fixture(scope="module")
def gathered(
    pair: ModelPair, corpus: list[str]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[str]]:
    """Return the rows of windows that run one by one without padding, and the text of each row."""
    windows = [
        (text, window)
        for text, ids in zip(corpus, pair.source.encode_bodies(corpus), strict=True)
        for window in cut_windows(
            ids, document_key(text, 0), pair.source, BlockPlan(context_length=24)
        )
    ]

    def rows(model: HookedModel) -> dict[str, torch.Tensor]:
        hooks = [
            "hook_embed",
            *(f"blocks.{layer}.hook_resid_post" for layer in range(model.n_layers)),
        ]
        seen = [(window, model.capture(torch.tensor([window.ids]), hooks)) for _, window in windows]
        return {
            hook: torch.cat([streams[hook][0, window.rows] for window, streams in seen]).double()
            for hook in hooks
        }

    return (
        rows(pair.source),
        rows(pair.target),
        [text for text, window in windows for _ in window.rows],
    )


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (SOURCE, TARGET),
        ("hook_embed", TARGET),
        ("blocks.0.hook_resid_post", "blocks.0.hook_resid_post"),
    ],
)
def test_moments_are_those_of_a_naive_loop_over_documents(
    harvested: CrossMoments, gathered: Any, source: str, target: str
) -> None:
    sources, targets, documents = gathered
    x, y = sources[source], targets[target]
    naive = CrossMoments.from_activations(
        x,
        y,
        documents=documents,
        source_hook=source,
        target_hook=target,
        moment_dtype=torch.float64,
    )
    assert torch.equal(harvested.n, naive.n)
    for parts in ((2,), FIT_PARTS, TEST_PARTS):
        found, expected = (
            harvested.scatter((source, target), parts),
            naive.scatter((source, target), parts),
        )
        for name in ("mean_x", "mean_y", "xx", "yy", "xy"):
            a, b = getattr(found, name), getattr(expected, name)
            assert float((a - b).norm() / b.norm()) < 1e-5, name
    assert harvested.source[source].median_norm == pytest.approx(
        float(x.norm(dim=1).median()), rel=0.01
    )


def test_the_grid_holds_all_layer_pairs_and_every_column(fitted: Any) -> None:
    assert len(fitted) == 6
    assert tuple(fitted.scores.columns) == COLUMNS
    assert fitted.scores.notna().all(axis=None)


def test_a_model_explains_itself_and_shuffled_pairs_of_it_nothing(
    pair: ModelPair, corpus: list[str]
) -> None:
    grid = harvest(ModelPair(pair.source, pair.source), corpus, context_length=24, **QUIET).fit()
    for layer in (0, 1):
        scores = grid[layer, layer].scores
        assert scores["r2"] == pytest.approx(1, abs=1e-4)
        assert scores["cka"] == pytest.approx(1, abs=1e-4)
        assert -0.05 < scores["r2_null"] < 0.02
        assert 0.02 < scores["r2_token"] < 0.95


def test_the_order_of_documents_does_not_matter(
    pair: ModelPair, corpus: list[str], harvested: CrossMoments
) -> None:
    backwards = harvest(pair, corpus[::-1], context_length=24, moment_dtype="float64", **QUIET)
    assert torch.equal(backwards.n, harvested.n)
    assert backwards.provenance == harvested.provenance
    one, other = backwards.fit().scores, harvested.fit().scores
    np.testing.assert_array_equal(one["alpha"], other["alpha"])
    for column in ("r2", "r2_uniform", "r2_cv", "r2_down", "cosine", "cka", "r2_token"):
        np.testing.assert_allclose(one[column], other[column], rtol=1e-5)


def test_shards_of_the_documents_merge_to_the_whole(
    pair: ModelPair, corpus: list[str], harvested: CrossMoments
) -> None:
    """The documents are split so that each shard has documents of each fold."""
    parts = sorted(corpus, key=lambda text: document_key(text, 0) % 1000)
    shards = [
        harvest(pair, parts[i::2], context_length=24, moment_dtype="float64", **QUIET)
        for i in (0, 1)
    ]
    merged = shards[0].merge(shards[1])
    assert torch.equal(merged.n, harvested.n)
    assert merged.provenance == harvested.provenance
    for fold in (FIT_PARTS, TEST_PARTS):
        found, expected = (
            merged.scatter((SOURCE, TARGET), fold),
            harvested.scatter((SOURCE, TARGET), fold),
        )
        assert float((found.xy - expected.xy).norm() / expected.xy.norm()) < 1e-5


def test_how_rows_are_batched_does_not_matter(
    pair: ModelPair, corpus: list[str], harvested: CrossMoments
) -> None:
    few_at_once = harvest(
        pair, corpus, context_length=24, moment_dtype="float64", batch_tokens=100, **QUIET
    )
    found, expected = (
        few_at_once.scatter((SOURCE, TARGET), FIT_PARTS),
        harvested.scatter((SOURCE, TARGET), FIT_PARTS),
    )
    assert float((found.xy - expected.xy).norm() / expected.xy.norm()) < 1e-5


def test_float32_products_agree_with_float64(
    pair: ModelPair, corpus: list[str], harvested: CrossMoments
) -> None:
    found = harvest(pair, corpus, context_length=24, **QUIET)
    assert found.moment_dtype == torch.float32
    a, b = (
        found.scatter((SOURCE, TARGET), FIT_PARTS),
        harvested.scatter((SOURCE, TARGET), FIT_PARTS),
    )
    assert 0 < float((a.xy - b.xy).norm() / b.xy.norm()) < 1e-5


def test_layers_are_chosen_by_number_name_and_relative_depth(
    pair: ModelPair, corpus: list[str]
) -> None:
    def pairs(**layers: Any) -> tuple[tuple[str, str], ...]:
        return harvest(pair, corpus, context_length=24, null=False, **QUIET, **layers).pairs

    assert pairs(source_layers=-1, target_layers=[0, "blocks.2.hook_resid_mid"]) == (
        (SOURCE, "blocks.0.hook_resid_post"),
        (SOURCE, "blocks.2.hook_resid_mid"),
    )
    assert pairs(target_layers="proportional") == (
        ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"),
        (SOURCE, TARGET),
    )


def test_both_names_of_a_place_have_the_same_moments(
    pair: ModelPair, corpus: list[str], harvested: CrossMoments
) -> None:
    name = "blocks.1.hook_resid_pre"
    moments = harvest(
        pair,
        corpus,
        context_length=24,
        moment_dtype="float64",
        source_layers=[name, 0],
        target_layers=[2],
        **QUIET,
    )
    torch.testing.assert_close(
        moments.cross[name, TARGET],
        moments.cross["blocks.0.hook_resid_post", TARGET],
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize(
    ("null", "kind"),
    [(True, "full"), (False, "none"), ("sketch", "sketch"), ("full", "full"), ("none", "none")],
)
def test_shuffled_pairs_are_kept_as_asked(
    pair: ModelPair, corpus: list[str], null: Any, kind: str
) -> None:
    moments = harvest(
        pair, corpus, context_length=24, source_layers=[1], target_layers=[2], null=null, **QUIET
    )
    assert moments.null == kind
    assert set(moments.cross_null) == (set() if kind == "none" else {(SOURCE, TARGET)})


def test_large_grids_keep_a_sketch(
    pair: ModelPair, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrt_lens.moments._plan.FULL_NULL_NUMBERS", 1000)
    assert harvest(pair, corpus, context_length=24, **QUIET).null == "sketch"


def test_what_was_read_is_written_down(
    pair: ModelPair, corpus: list[str], harvested: CrossMoments
) -> None:
    provenance = harvested.provenance
    assert (provenance.source, provenance.target) == (pair.source.identity, pair.target.identity)
    assert (
        provenance.context_length,
        provenance.skip_first,
        provenance.seed,
        provenance.n_documents,
    ) == (24, 4, 0, 150)
    assert provenance.chat_template is None
    assert int(provenance.corpus, 16) == sum(exact_key(text, 0) for text in corpus) % 2**64
    assert provenance.versions["torch"] == torch.__version__


def test_windows_are_no_longer_than_both_models_can_read(
    pair: ModelPair, corpus: list[str]
) -> None:
    assert (
        harvest(
            pair,
            corpus,
            context_length=10_000,
            source_layers=[0],
            target_layers=[0],
            null=False,
            **QUIET,
        ).provenance.context_length
        == 64
    )


def test_the_harvest_ends_with_the_tokens_asked_for(pair: ModelPair, corpus: list[str]) -> None:
    moments = harvest(
        pair,
        iter(corpus),
        source_layers=[0],
        target_layers=[0],
        null=False,
        n_tokens=3000,
        progress=False,
    )
    assert 3000 <= moments.n_tokens < 3000 + 64 + 200
    assert moments.provenance.n_documents < 150


def test_whoever_asks_sees_every_block_as_it_goes_into_the_moments(
    pair: ModelPair, corpus: list[str], harvested: CrossMoments
) -> None:
    seen: dict[int, Any] = {}
    naive = CrossMoments(harvested.pairs, harvested.token_hook, torch.float64)

    def on_block(block: Any, order: Any, x: Any, y: Any) -> None:
        assert (
            sum(len(window.rows) for window in order)
            == len(x[SOURCE])
            == len(y[TARGET])
            == block.n_rows
        )
        seen[block.index] = order
        naive.add_block(block.part, x, y)

    harvest(pair, corpus, context_length=24, moment_dtype="float64", on_block=on_block, **QUIET)
    assert list(seen) == list(range(len(seen)))
    assert torch.equal(naive.cross[SOURCE, TARGET], harvested.cross[SOURCE, TARGET])


def test_joint_moments_are_those_of_all_source_layers_side_by_side(
    pair: ModelPair, corpus: list[str], harvested: CrossMoments
) -> None:
    name = "blocks.0.hook_resid_post+blocks.1.hook_resid_post"
    joint = harvest(pair, corpus, context_length=24, moment_dtype="float64", joint=True, **QUIET)
    assert joint.pairs == tuple((name, f"blocks.{layer}.hook_resid_post") for layer in range(3))
    found = joint.scatter((name, TARGET), FIT_PARTS)
    for layer, rows in ((0, slice(0, 16)), (1, slice(16, 32))):
        alone = harvested.scatter((f"blocks.{layer}.hook_resid_post", TARGET), FIT_PARTS)
        torch.testing.assert_close(found.xy[rows], alone.xy, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.xx[rows, rows], alone.xx, rtol=1e-9, atol=1e-9)


def test_fit_stitches_is_harvest_and_fit(pair: ModelPair, corpus: list[str], fitted: Any) -> None:
    grid = fit_stitches(pair, corpus, context_length=24, moment_dtype="float64", **QUIET)
    np.testing.assert_allclose(grid.scores["r2"], fitted.scores["r2"], rtol=1e-9)
    grid.best(source=1).check(pair.source, pair.target)


def test_the_models_are_left_without_hooks_and_as_they_were(
    pair: ModelPair, corpus: list[str]
) -> None:
    before = pair.source.logits("the cat")
    harvest(
        pair,
        corpus,
        context_length=24,
        source_layers=["blocks.1.hook_resid_mid"],
        target_layers=[0],
        **QUIET,
    )
    assert torch.equal(pair.source.logits("the cat"), before)
    assert not [point for point in pair.source.bridge.hook_dict.values() if point.fwd_hooks]


def test_no_model_runs_past_its_deepest_hook_point(pair: ModelPair, corpus: list[str]) -> None:
    calls: list[Any] = []
    watched = [
        pair.target.bridge.blocks[1].original_component,
        pair.target.bridge.unembed.original_component,
        pair.source.bridge.unembed.original_component,
    ]
    handles = [
        module.register_forward_pre_hook(lambda module, args: calls.append(module))
        for module in watched
    ]
    harvest(pair, corpus, context_length=24, source_layers="all", target_layers=[0], **QUIET)
    for handle in handles:
        handle.remove()
    assert calls == []


def test_chats_are_harvested_through_the_template_and_say_so(
    build_hf: Any, train_tokenizer: Any, corpus: list[str]
) -> None:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    model = HookedModel.load(build_hf("llama", layers=1), tokenizer=tokenizer)
    chats = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "good"}]
        for text in corpus
    ]
    options: dict[str, Any] = {
        "context_length": 24,
        "null": False,
        "moment_dtype": "float64",
        **QUIET,
    }
    moments = harvest(ModelPair(model, model), chats, **options)
    plain = harvest(
        ModelPair(model, model), [f"user: {text}\nassistant: good\n" for text in corpus], **options
    )
    assert moments.provenance.chat_template is not None
    assert moments.provenance.corpus == plain.provenance.corpus
    assert torch.equal(moments.n, plain.n)


# ---------------------------------------------------------------------------------------- bad input


def test_infinite_activations_name_hook_batch_and_models(
    build_hf: Any, tokenizer: Any, load: Any, corpus: list[str]
) -> None:
    broken = build_hf("llama", layers=2)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    pair = ModelPair(load("llama"), HookedModel.load(broken, tokenizer=tokenizer))
    with pytest.raises(
        NonFiniteError,
        match=r"activations at 'blocks.1.hook_resid_post' are NaN or infinite, "
        r"in the batch that starts at token .*\(source",
    ):
        harvest(pair, corpus, context_length=24, **QUIET)


def test_an_unknown_layer_is_refused_before_anything_is_read(pair: ModelPair) -> None:
    def unread() -> Any:
        raise AssertionError("read")
        yield ""

    with pytest.raises(HookPointError, match="layer 7 is not on"):
        harvest(pair, unread(), target_layers=[7], **QUIET)


def test_too_few_documents_are_refused(pair: ModelPair, corpus: list[str]) -> None:
    with pytest.raises(
        TooFewDocumentsError, match=r"fold\(s\) .* hold no document: 3 document\(s\)"
    ):
        harvest(pair, corpus[:3], **QUIET)


def test_a_context_that_holds_next_to_nothing_is_refused(
    pair: ModelPair, corpus: list[str]
) -> None:
    with pytest.raises(ValueError, match="context_length is 5; windows need at least 8 tokens"):
        harvest(pair, corpus, context_length=5, **QUIET)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "nonsense"])
def test_a_precision_that_products_cannot_have_is_refused(
    pair: ModelPair, corpus: list[str], dtype: str
) -> None:
    with pytest.raises(ValueError, match=r"float32.* or .*float64|is no floating point type"):
        harvest(pair, corpus, moment_dtype=dtype, **QUIET)
