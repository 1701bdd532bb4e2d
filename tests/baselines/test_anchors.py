"""Stitches from anchors: known answers, two tokenizers, every artefact, controls, refusals."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.adapters.probes import LinearProbe
from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.baselines import (
    ANCHOR_METHODS,
    AnchorLinear,
    AnchorProcrustes,
    Anchors,
    anchor_stitch,
)
from lrt_lens.baselines._anchor_methods import AnchorMethod
from lrt_lens.baselines._text_rows import TextRows, read_text_rows
from lrt_lens.data import ContrastSet
from lrt_lens.errors import HookPointError, NonFiniteError
from lrt_lens.models import HookedModel, ModelPair
from lrt_lens.models._reading import read_activations
from lrt_lens.moments import Provenance
from lrt_lens.stitching import Stitch, StreamStatistics

MOOD = ContrastSet(
    [f"the happy cat sang in the {place}" for place in ("house", "garden", "tree", "river")],
    [f"the sad cat slept on the {place}" for place in ("house", "garden", "tree", "river")],
    name="mood",
)


@pytest.fixture(scope="module")
def anchors(pair: ModelPair, passages: list[str]) -> Anchors:
    return Anchors.read(pair, passages[:80], source_hook=1, target_hook=2)


def linear_anchors(
    n: int = 40, d_source: int = 5, d_target: int = 7
) -> tuple[Anchors, torch.Tensor, torch.Tensor]:
    """Rows without a model: the target is exactly x A + b."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((n, d_source), (d_source, d_target), (d_target,))
    )
    sides = [
        TextRows(rows, StreamStatistics(rows.mean(0), torch.cov(rows.T), 1.0))
        for rows in (x, x @ weight + bias)
    ]
    return (
        Anchors(
            sides[0], sides[1], "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", Provenance()
        ),
        weight,
        bias,
    )


# --------------------------------------------------------------------------------------------- rows


def test_rows_and_statistics_are_those_of_the_activations(
    pair: ModelPair, passages: list[str]
) -> None:
    texts = passages[:6]
    for read in ("mean", "last"):
        found = read_text_rows(pair.source, texts, "blocks.1.hook_resid_post", read)
        torch.testing.assert_close(
            found.rows, read_activations(pair.source, texts, 1, read).double()
        )
    every = read_text_rows(pair.source, texts, "blocks.1.hook_resid_post", "every")
    lengths = [len(ids) - 4 for ids in pair.source.encode(texts)]
    assert len(every) == sum(lengths)
    tokens = every.rows.numpy()
    np.testing.assert_allclose(
        tokens[: lengths[0]].mean(0),
        read_activations(pair.source, texts[:1], 1, "mean")[0].numpy(),
        atol=1e-5,
    )
    np.testing.assert_allclose(
        found.statistics.covariance.numpy(), np.cov(tokens.T, bias=True), atol=1e-9
    )
    np.testing.assert_allclose(found.statistics.mean.numpy(), tokens.mean(0), atol=1e-12)


# --------------------------------------------------------------------------------------------- maps


def test_an_affine_relation_is_found_and_scored_as_one() -> None:
    rows, weight, bias = linear_anchors()
    stitch = rows.stitch(AnchorLinear())
    torch.testing.assert_close(stitch.up.weight, weight)
    torch.testing.assert_close(stitch.up.bias, bias)
    torch.testing.assert_close(
        stitch.down.points(stitch.up.points(rows.source.rows)), rows.source.rows
    )
    assert stitch.scores["r2"] == pytest.approx(1)
    assert stitch.scores["r2_uniform_down"] == pytest.approx(1)
    assert len(stitch.refits) == 5
    torch.testing.assert_close(stitch.refits[3].up.weight, weight)


def test_scores_are_those_of_anchors_left_out() -> None:
    """On noise, fits have a high score on their own anchors and none on held-out anchors."""
    rows, _, _ = linear_anchors(n=30, d_source=12)
    generator = torch.Generator().manual_seed(9)
    noise = TextRows(
        torch.randn(30, 12, generator=generator, dtype=torch.float64), rows.source.statistics
    )
    fitted = Anchors(noise, rows.target, rows.source_hook, rows.target_hook, Provenance())
    stitch = fitted.stitch(AnchorLinear())
    y, predicted = rows.target.rows, stitch.up.points(noise.rows)
    assert 1 - float((y - predicted).square().sum() / (y - y.mean(0)).square().sum()) > 0.2
    assert stitch.scores["r2"] < 0
    assert stitch.scores["r2"] == stitch.scores["r2_cv"]


def test_the_null_pairs_no_anchor_with_itself() -> None:
    rows, _, _ = linear_anchors(n=5, d_source=8)
    stitch = rows.stitch(AnchorLinear())
    assert stitch.null is not None
    images = stitch.null.up.points(rows.source.rows)
    partner = torch.cdist(images, rows.target.rows).argmin(1)
    torch.testing.assert_close(images, rows.target.rows[partner])
    assert sorted(partner.tolist()) == list(range(5))
    assert not any(i == j for i, j in enumerate(partner.tolist()))


def test_between_a_model_and_itself_a_vector_stays_what_it_is(
    pair: ModelPair, passages: list[str]
) -> None:
    same = ModelPair(pair.source, pair.source)
    stitch = anchor_stitch(same, passages[:80], source_hook=1, target_hook=1)
    vector = SteeringVector.mean_difference(pair.source, MOOD, at=1)
    torch.testing.assert_close(
        stitch.transfer(vector).direction, vector.direction, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("method", ANCHOR_METHODS, ids=lambda method: method.name)
def test_vectors_and_probes_go_through_every_method(
    pair: ModelPair, anchors: Anchors, method: AnchorMethod
) -> None:
    stitch = anchors.stitch(method)
    assert (stitch.source_hook, stitch.target_hook, stitch.scores["n_anchors"]) == (
        "blocks.1.hook_resid_post",
        "blocks.2.hook_resid_post",
        80,
    )
    transferred = stitch.transfer(SteeringVector.mean_difference(pair.source, MOOD, at=1))
    assert transferred.model == pair.target.identity
    assert 0 < transferred.norm < 1e3
    texts, labels = MOOD.texts, ["happy"] * 4 + ["sad"] * 4
    probe = LinearProbe.fit(pair.source, texts, labels, at=1, read="mean")
    carried = stitch.transfer(probe)
    rows = read_activations(pair.target, texts, 2, "mean").double()
    np.testing.assert_allclose(
        carried.logits(rows), probe.logits(stitch.down.points(rows)), atol=1e-6
    )
    torch.testing.assert_close(stitch.reversed().up.weight, stitch.down.weight)


@pytest.mark.skipif(
    int(version("transformer-lens").split(".")[0]) >= 4,
    reason="sae-lens does not import beside TransformerLens 4",
)
def test_an_sae_goes_through_too(anchors: Anchors) -> None:
    from sae_lens import StandardSAE, StandardSAEConfig

    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=8, apply_b_dec_to_input=False))
    stitch = anchors.stitch(AnchorProcrustes())
    rows = anchors.target.rows.float()
    torch.testing.assert_close(
        stitch.transfer(sae).encode(rows),
        sae.encode(stitch.down.points(anchors.target.rows).float()),
        atol=1e-4,
        rtol=1e-3,
    )


def test_two_tokenizers_need_texts_only(
    build_hf: Callable[..., Any],
    train_tokenizer: Callable[..., Any],
    pair: ModelPair,
    passages: list[str],
) -> None:
    other = HookedModel.load(
        build_hf("gpt2", d=24, layers=2, seed=8),
        tokenizer=train_tokenizer(bos=False, vocabulary=300),
    )
    stitch = anchor_stitch(
        (pair.source, other), passages[:60], source_hook=1, target_hook=1, read="last"
    )
    stitch.check(pair.source, other)
    x, y = (
        read_activations(pair.source, passages[:60], 1).double(),
        read_activations(other, passages[:60], 1).double(),
    )
    torch.testing.assert_close(stitch.up.points(x.mean(0)), y.mean(0), rtol=1e-4, atol=1e-4)


def test_a_saved_stitch_comes_back(anchors: Anchors, tmp_path: Path) -> None:
    stitch = anchors.stitch()
    stitch.save_pretrained(tmp_path / "stitch")
    loaded = Stitch.from_pretrained(tmp_path / "stitch")
    torch.testing.assert_close(loaded.up.weight, stitch.up.weight.float())
    assert loaded.scores == pytest.approx(stitch.scores)
    assert loaded.source == anchors.provenance.source


# ----------------------------------------------------------------------------------------- refusals


def test_fewer_than_two_or_equal_anchors_are_refused(
    pair: ModelPair, passages: list[str], anchors: Anchors
) -> None:
    options: dict[str, Any] = {"source_hook": 1, "target_hook": 2}
    with pytest.raises(ValueError, match=r"1 text\(s\) given; anchors need a list of at least two"):
        anchor_stitch(pair, passages[:1], **options)
    with pytest.raises(ValueError, match="2 of 5 anchors repeat another"):
        anchor_stitch(pair, [*passages[:3], *passages[:2]], **options)
    with pytest.raises(ValueError, match=r"1 anchor\(s\) whose rows do not differ"):
        anchors[:1].stitch()
    with pytest.raises(ValueError, match="read is 'every'; expected 'mean' or 'last'"):
        Anchors.read(pair, passages[:4], read="every", **options)
    with pytest.raises(HookPointError, match="is not on"):
        anchor_stitch(pair, passages[:4], source_hook=1, target_hook="blocks.9.hook_resid_post")
    assert Anchors.read(pair, ["cat", *passages[:4]], **options).n_dropped == 1
    with pytest.raises(ValueError, match=r"1 of 5 text\(s\) have no unmasked token to read"):
        anchor_stitch(pair, ["cat", *passages[:4]], short_texts="refuse", **options)


def test_a_text_is_no_list_of_texts(pair: ModelPair) -> None:
    with pytest.raises(ValueError, match="anchors need a list of at least two"):
        anchor_stitch(pair, "the happy cat sang", source_hook=1, target_hook=2)


def test_few_anchors_are_named_with_the_dimensions(
    pair: ModelPair, passages: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    two = anchor_stitch(pair, passages[:2], source_hook=1, target_hook=2)
    assert "2 anchors for 24 dimensions: a linear map interpolates them" in caplog.text
    assert two.refits == ()
    assert "r2" not in two.scores
    caplog.clear()
    Anchors.read(pair, passages[:25], source_hook=1, target_hook=2)
    assert "anchors" not in caplog.text


def test_activations_that_are_nan_are_refused(
    build_hf: Callable[..., Any], tokenizer: Any, pair: ModelPair, passages: list[str]
) -> None:
    broken = build_hf("llama", d=16, layers=2, seed=1)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="NaN or infinite on these texts"):
        anchor_stitch(
            (HookedModel.load(broken, tokenizer=tokenizer), pair.target),
            passages[:4],
            source_hook=1,
            target_hook=2,
        )
