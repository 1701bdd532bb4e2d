"""Maps between embedding matrices: planted relations, across tokenizers too; means; refusals."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.baselines import embedding_stitch
from lrt_lens.baselines._shared_vocabulary import shared_rows
from lrt_lens.data import ContrastSet
from lrt_lens.data._token_spelling import token_strings
from lrt_lens.errors import MismatchError
from lrt_lens.models import HookedModel, ModelPair
from lrt_lens.models._reading import read_tokens
from lrt_lens.stitching.solvers import LeastSquares


@pytest.fixture(scope="module")
def planted(
    build_hf: Callable[..., Any], tokenizer: Any, train_tokenizer: Callable[..., Any]
) -> tuple[HookedModel, HookedModel, torch.Tensor]:
    """Return two models of different tokenizers, and the linear map between their unembeddings.

    The map is exact on the tokens that both tokenizers have.
    """
    other_tokenizer = train_tokenizer(vocabulary=320)
    source, target = (
        build_hf("llama", d=16, layers=2, seed=1),
        build_hf("llama", d=24, layers=2, seed=2),
    )
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    ours, theirs = token_strings(tokenizer), token_strings(other_tokenizer)
    with torch.no_grad():
        for text in set(ours) & set(theirs):
            target.lm_head.weight[theirs[text]] = source.lm_head.weight[ours[text]] @ weight
    return (
        HookedModel.load(source, tokenizer=tokenizer),
        HookedModel.load(target, tokenizer=other_tokenizer),
        weight,
    )


def test_a_planted_map_is_found_across_tokenizers(
    planted: tuple[HookedModel, HookedModel, torch.Tensor],
) -> None:
    source, target, weight = planted
    stitch = embedding_stitch((source, target), source_hook=1, target_hook=1, solver=LeastSquares())
    torch.testing.assert_close(stitch.up.weight.float(), weight, rtol=1e-3, atol=1e-3)
    assert stitch.scores["r2_embeddings"] == pytest.approx(1, abs=1e-5)
    assert stitch.scores["n_shared_tokens"] > 150
    assert stitch.null is not None
    assert float((stitch.null.up.weight - weight).norm() / weight.norm()) > 0.8
    embeddings = embedding_stitch((source, target), source_hook=1, target_hook=1, matrix="embed")
    assert embeddings.scores["r2_embeddings"] < 0.2


def test_rows_that_pair_spell_the_same(
    planted: tuple[HookedModel, HookedModel, torch.Tensor],
) -> None:
    source, target, weight = planted
    tokens, x, y = shared_rows(source, target, "unembed")
    assert len(tokens) == len(x) == len(y)
    torch.testing.assert_close(x @ weight, y)


def test_a_stitch_of_embeddings_carries_vectors(pair: ModelPair) -> None:
    stitch = embedding_stitch(pair, source_hook=1, target_hook=2)
    contrast = ContrastSet(
        ["the happy cat sang", "a happy dog ran"], ["the sad cat sang", "a sad dog ran"]
    )
    transferred = stitch.transfer(SteeringVector.mean_difference(pair.source, contrast, at=1))
    assert (transferred.hook, transferred.model) == (
        "blocks.2.hook_resid_post",
        pair.target.identity,
    )


def test_with_texts_means_go_to_means_and_sizes_are_those_of_the_streams(
    pair: ModelPair, corpus: list[str]
) -> None:
    stitch = embedding_stitch(pair, source_hook=1, target_hook=2, texts=corpus[:12])
    x, y = (
        torch.cat([rows for _, rows in read_tokens(model, corpus[:12], hook)]).double()
        for model, hook in ((pair.source, 1), (pair.target, 2))
    )
    torch.testing.assert_close(stitch.up.points(x.mean(0)), y.mean(0))
    torch.testing.assert_close(stitch.down.points(y.mean(0)), x.mean(0))
    np.testing.assert_allclose(
        stitch.target_statistics.covariance.numpy(), np.cov(y.numpy().T, bias=True), atol=1e-9
    )
    assert stitch.null is not None
    torch.testing.assert_close(stitch.null.up.points(x.mean(0)), y.mean(0))
    without = embedding_stitch(pair, source_hook=1, target_hook=2)
    torch.testing.assert_close(stitch.up.weight, without.up.weight)
    assert not torch.allclose(stitch.up.bias, without.up.bias)


def test_vocabularies_that_share_nothing_are_refused(
    build_hf: Callable[..., Any], pair: ModelPair
) -> None:
    words = {"[UNK]": 0, "[END]": 1, "кот": 2, "река": 3}
    own = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")), eos_token="[END]"
    )
    other = HookedModel.load(
        build_hf("llama", d=24, layers=2, seed=3), tokenizer=own, prepend_bos=False
    )
    with pytest.raises(
        MismatchError,
        match="share 0 spellings; a map from embeddings needs at least 64: use anchor_stitch",
    ):
        embedding_stitch((pair.source, other), source_hook=1, target_hook=1)


def test_fewer_tokens_than_dimensions_are_named(
    build_hf: Callable[..., Any], tokenizer: Any, pair: ModelPair, caplog: pytest.LogCaptureFixture
) -> None:
    wide = HookedModel.load(build_hf("llama", d=400, layers=1, seed=3), tokenizer=tokenizer)
    with caplog.at_level(logging.WARNING):
        embedding_stitch((pair.source, wide), source_hook=1, target_hook=0)
    assert (
        "for 400 dimensions: a map fitted on fewer rows than dimensions interpolates them"
        in caplog.text
    )


@pytest.mark.usefixtures("unchecked")
def test_another_matrix_is_refused(pair: ModelPair) -> None:
    with pytest.raises(ValueError, match="matrix is 'output'; expected 'embed' or 'unembed'"):
        embedding_stitch(
            pair,
            source_hook=1,
            target_hook=2,
            matrix="output",  # type: ignore[arg-type]
        )
