"""Concept maps: L-Cross's formula, interpolation, two tokenizers, files and errors."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.adapters.concepts import ConceptMap, apply_together
from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.data import ContrastSet
from lrt_lens.errors import FileFormatError, HookPointError, MismatchError, NonFiniteError
from lrt_lens.models import HookedModel, ModelPair
from lrt_lens.models._reading import read_activations

PLACES = ("house", "garden", "tree", "river", "stone", "bird", "dog", "king", "queen", "boy")


def mood(n: int, name: str = "mood") -> ContrastSet:
    """A set of n pairs of twelve-token texts whose last words, and so whose rows, all differ."""
    ends = [(PLACES[i % 10], PLACES[(i // 10 + 3 * i + 1) % 10]) for i in range(n)]
    return ContrastSet(
        [f"the happy cat sang in the {a} and it was good under the {b}" for a, b in ends],
        [f"the sad cat slept on the {a} and it was bad over the {b}" for a, b in ends],
        name=name,
    )


def colour(n: int) -> ContrastSet:
    """A set of n pairs of another concept."""
    ends = [(PLACES[i % 10], PLACES[(i // 10 + 7 * i + 2) % 10]) for i in range(n)]
    return ContrastSet(
        [f"she saw a red {a} then a {b}" for a, b in ends],
        [f"she saw a blue {a} then a {b}" for a, b in ends],
        name="colour",
    )


@pytest.fixture(scope="module")
def few(pair: ModelPair) -> ConceptMap:
    """A map of twelve texts in 16 dimensions, which interpolates."""
    return ConceptMap.fit(pair, mood(6), source_hook=1, target_hook=2)


@pytest.fixture(scope="module")
def many(pair: ModelPair) -> ConceptMap:
    """A map of forty texts in 16 dimensions, which does not interpolate."""
    return ConceptMap.fit(pair, mood(20), source_hook=1, target_hook=2)


def native(pair: ModelPair, contrast: ContrastSet) -> SteeringVector:
    return SteeringVector.mean_difference(pair.target, contrast, at=2)


# ---------------------------------------------------------------------------------- the paper's map


@pytest.mark.parametrize("read", ["last", "mean"])
def test_transfer_is_the_papers_formula(pair: ModelPair, read: Any) -> None:
    concept_map = ConceptMap.fit(pair, mood(20), source_hook=1, target_hook=2, read=read)
    x, y = (
        read_activations(model, mood(20).texts, hook, read).double().numpy()
        for model, hook in ((pair.source, 1), (pair.target, 2))
    )
    vector = SteeringVector.mean_difference(pair.source, mood(20), at=1, read=read)
    expected = 1.5 * vector.direction.double().numpy() @ (np.linalg.pinv(x) @ y)
    transferred = concept_map.transfer(vector, scale=1.5)
    np.testing.assert_allclose(transferred.direction.numpy(), expected, rtol=1e-3, atol=1e-4)
    assert (transferred.hook, transferred.model, transferred.method) == (
        "blocks.2.hook_resid_post",
        pair.target.identity,
        "mean_difference",
    )
    assert transferred.median_norm == pytest.approx(
        np.sort(np.linalg.norm(y, axis=1))[len(y) // 2 - 1], rel=1e-5
    )


def test_with_fewer_texts_than_dimensions_the_own_vector_comes_out(
    pair: ModelPair, few: ConceptMap
) -> None:
    (vector,) = few.learn(pair.source, mood(6))
    assert few.interpolates
    torch.testing.assert_close(
        few.transfer(vector).direction, native(pair, mood(6)).direction, rtol=1e-3, atol=1e-4
    )


def test_the_own_vector_comes_out_of_an_unrelated_source_too(
    load: Callable[..., Any], pair: ModelPair
) -> None:
    """The source is an unrelated random model, and the result is the target's own vector."""
    stranger = load("gpt2", d=16, layers=2, seed=99)
    concept_map = ConceptMap.fit((stranger, pair.target), mood(6), source_hook=0, target_hook=2)
    (vector,) = concept_map.learn(stranger, mood(6))
    assert concept_map.transfer(vector).cosine(native(pair, mood(6))) == pytest.approx(1, abs=1e-4)
    (foreign,) = concept_map.learn(stranger, colour(6))
    assert concept_map.transfer(foreign).cosine(native(pair, colour(6))) < 0.95


def test_with_more_texts_than_dimensions_the_own_vector_does_not_come_out(
    pair: ModelPair, many: ConceptMap
) -> None:
    (vector,) = many.learn(pair.source, mood(20))
    assert not many.interpolates
    assert many.transfer(vector).cosine(native(pair, mood(20))) < 1 - 1e-4


def test_a_model_and_itself_are_joined_by_the_identity(pair: ModelPair) -> None:
    concept_map = ConceptMap.fit(
        (pair.source, pair.source), [mood(20), colour(20)], source_hook=1, target_hook=1
    )
    torch.testing.assert_close(concept_map.layers[0].map.weight, torch.eye(16), atol=1e-3, rtol=0)
    assert concept_map.layers[0].r2 == pytest.approx(1, abs=1e-5)
    assert concept_map.layers[0].cosines == {
        "mood": pytest.approx(1, abs=1e-5),
        "colour": pytest.approx(1, abs=1e-5),
    }


def test_held_out_cosines_transfer_each_pair_by_a_map_fitted_without_it(pair: ModelPair) -> None:
    contrast = mood(4)
    concept_map = ConceptMap.fit(pair, contrast, source_hook=1, target_hook=2, n_folds=4).layers[0]
    x, y = (
        read_activations(model, contrast.texts, hook).double().numpy()
        for model, hook in ((pair.source, 1), (pair.target, 2))
    )
    gaps = []
    for i in range(4):
        train = [j for j in range(8) if j % 4 != i]
        gaps.append((x[i] - x[i + 4]) @ (np.linalg.pinv(x[train], rcond=1e-6) @ y[train]))
    gap, own = np.mean(gaps, axis=0), (y[:4] - y[4:]).mean(0)
    assert concept_map.cosines["mood"] == pytest.approx(
        gap @ own / np.linalg.norm(gap) / np.linalg.norm(own), abs=1e-6
    )


# ---------------------------------------------------------------------- tokenizers, layers, recipes


def test_models_of_different_tokenizers_are_joined(
    build_hf: Callable[..., Any], train_tokenizer: Callable[..., Any], pair: ModelPair
) -> None:
    other = HookedModel.load(
        build_hf("llama", d=24, layers=2, seed=4),
        tokenizer=train_tokenizer(bos=False, vocabulary=300),
    )
    assert ModelPair(pair.source, other).aligned
    concept_map = ConceptMap.fit(
        (pair.source, other), [mood(12), colour(12)], source_hook=1, target_hook=1, method="ridge"
    )
    (vector,) = concept_map.learn(pair.source, mood(12))
    transferred = concept_map.transfer(vector)
    assert transferred.model == other.identity
    with transferred.apply(other, scale=2.0):
        other.logits("the cat")
    assert concept_map.layers[0].alpha > 0


def test_several_layers_get_a_map_each_and_steer_together(pair: ModelPair) -> None:
    concept_map = ConceptMap.fit(pair, mood(10), source_hook=[0, 1], target_hook=[1, 2])
    vectors = concept_map.learn(pair.source, mood(10), by="principal_component")
    transferred = [concept_map.transfer(vector) for vector in vectors]
    assert [vector.hook for vector in transferred] == [
        "blocks.1.hook_resid_post",
        "blocks.2.hook_resid_post",
    ]
    for at, to, vector in ((0, 1, transferred[0]), (1, 2, transferred[1])):
        alone = ConceptMap.fit(pair, mood(10), source_hook=at, target_hook=to)
        torch.testing.assert_close(alone.transfer(vectors[at]).direction, vector.direction)
    text = "the little cat sang in the garden"
    before = pair.target.logits(text)
    with apply_together(pair.target, transferred, scale=2.0):
        both = pair.target.logits(text)
    with transferred[0].apply(pair.target, scale=2.0), transferred[1].apply(pair.target, scale=2.0):
        torch.testing.assert_close(pair.target.logits(text), both)
    assert not torch.equal(both, before)
    torch.testing.assert_close(pair.target.logits(text), before)


def test_the_representation_and_the_log_say_n_d_rank_and_r2(
    pair: ModelPair, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        few = ConceptMap.fit(pair, mood(6), source_hook=1, target_hook=2)
    layer = few.layers[0]
    assert repr(few) in caplog.text
    for piece in (
        "n 12, d 16",
        f"effective rank {layer.effective_rank:.1f}",
        f"r2 {layer.r2:.2f}",
        f"r2_uniform {layer.r2_uniform:.2f}",
        "interpolates",
    ):
        assert piece in repr(few)
    assert "12 texts for 16 dimensions: the map interpolates them" in caplog.text
    caplog.clear()
    few.transfer(few.learn(pair.source, mood(6))[0])
    assert "what comes out is the target's own vector, not evidence of transfer" in caplog.text
    caplog.clear()
    few.transfer(few.learn(pair.source, colour(6))[0])
    assert "target's own" not in caplog.text
    ridge = ConceptMap.fit(pair, mood(6), source_hook=1, target_hook=2, method="ridge")
    assert not ridge.interpolates
    assert "interpolates" not in caplog.text
    assert "returns the target's own vector" in few._repr_html_()


def test_overlap_counts_the_texts_of_the_vector(
    pair: ModelPair, few: ConceptMap, tmp_path: Path
) -> None:
    half = ContrastSet(
        [*mood(6).positive[:2], *colour(2).positive], [*mood(6).negative[:2], *colour(2).negative]
    )
    assert few.overlap(SteeringVector.mean_difference(pair.source, half, at=1)) == 0.5
    own = few.learn(pair.source, mood(6))[0]
    assert few.overlap(own) == 1
    assert few.overlap(SteeringVector.load(own.save(tmp_path / "own.safetensors"))) == 1
    assert np.isnan(
        few.overlap(
            SteeringVector.load(
                few.learn(pair.source, colour(6))[0].save(tmp_path / "other.safetensors")
            )
        )
    )


# -------------------------------------------------------------------------------------------- files


def test_a_saved_map_comes_back(tmp_path: Path, pair: ModelPair) -> None:
    concept_map = ConceptMap.fit(
        pair, [mood(6), colour(5)], source_hook=[0, 1], target_hook=[1, 2], method="ridge"
    )
    loaded = ConceptMap.load(concept_map.save(tmp_path / "map.safetensors"))
    assert repr(loaded) == repr(concept_map)
    assert (loaded.text_keys, loaded.digests, loaded.source, loaded.target) == (
        concept_map.text_keys,
        concept_map.digests,
        concept_map.source,
        concept_map.target,
    )
    for vector in concept_map.learn(pair.source, mood(6)):
        torch.testing.assert_close(
            loaded.transfer(vector).direction, concept_map.transfer(vector).direction
        )
    assert loaded.summary.equals(concept_map.summary)


def test_a_truncated_or_foreign_file_is_refused(
    tmp_path: Path, few: ConceptMap, pair: ModelPair
) -> None:
    path = few.save(tmp_path / "map.safetensors")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(FileFormatError, match="truncated or no safetensors file"):
        ConceptMap.load(path)
    with pytest.raises(
        FileFormatError, match=r"has schema 'lrt_lens.vector/1'; expected 'lrt_lens.concept_map/1'"
    ):
        ConceptMap.load(few.learn(pair.source, mood(6))[0].save(tmp_path / "vector.safetensors"))


# ----------------------------------------------------------------------------------------- refusals


def test_vectors_of_another_model_or_hook_point_are_refused(
    pair: ModelPair, few: ConceptMap
) -> None:
    (vector,) = few.learn(pair.source, mood(6))
    with pytest.raises(
        MismatchError,
        match=r"learnt at 'blocks.0.hook_resid_post' on '.*'; this map starts at "
        r"'blocks.1.hook_resid_post' of",
    ):
        few.transfer(replace(vector, hook="blocks.0.hook_resid_post"))
    with pytest.raises(MismatchError, match="vector 'mood' was learnt on a model that"):
        few.transfer(SteeringVector.mean_difference(pair.target, mood(6), at=1))
    with pytest.raises(ValueError, match="scale is nan"):
        few.transfer(vector, scale=float("nan"))
    with pytest.raises(ValueError, match="scale is 0"):
        few.transfer(vector, scale=0.0)


def test_hook_points_that_are_not_there_are_refused(pair: ModelPair) -> None:
    with pytest.raises(HookPointError, match="layer 2 is not on"):
        ConceptMap.fit(pair, mood(4), source_hook=2, target_hook=2)
    with pytest.raises(HookPointError, match="hook point 'blocks.9.hook_resid_post' is not on"):
        ConceptMap.fit(pair, mood(4), source_hook=1, target_hook="blocks.9.hook_resid_post")
    with pytest.raises(HookPointError, match=r"2 source hook\(s\) and 1 target hook\(s\)"):
        ConceptMap.fit(pair, mood(4), source_hook=[0, 1], target_hook=2)
    with pytest.raises(HookPointError, match="hook points are given twice"):
        ConceptMap.fit(pair, mood(4), source_hook=[1, 1], target_hook=[1, 2])


@pytest.mark.usefixtures("unchecked")
def test_contrasts_without_contrast_and_too_few_texts_are_refused(pair: ModelPair) -> None:
    options: dict[str, Any] = {"source_hook": 1, "target_hook": 2}
    texts = list(mood(4).positive)
    with pytest.raises(
        ValueError, match="contrast set 'one' has the same texts on both sides: one class"
    ):
        ConceptMap.fit(pair, ContrastSet(texts, texts[::-1], name="one"), **options)
    with pytest.raises(ValueError, match=r"holds 1 row\(s\); give at least 2"):
        ConceptMap.fit(pair, ContrastSet(texts[:1], texts[1:2]), **options)
    with pytest.raises(ValueError, match="expected a ContrastSet, or a list of them"):
        ConceptMap.fit(pair, texts, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a ContrastSet, or a list of them"):
        ConceptMap.fit(pair, [], **options)
    with pytest.raises(ValueError, match="share a name"):
        ConceptMap.fit(pair, [mood(4), mood(5)], **options)
    with pytest.raises(ValueError, match=r"read is -2; expected 'last' or 'mean'"):
        ConceptMap.fit(pair, mood(4), read=-2, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected a ModelPair, or a tuple \(source, target\)"):
        ConceptMap.fit(pair.source, mood(4), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="method is 'adam'"):
        ConceptMap.fit(pair, mood(4), method="adam", **options)  # type: ignore[arg-type]
    concept_map = ConceptMap.fit(pair, mood(4), **options)
    with pytest.raises(ValueError, match="by is 'probe'; expected one of"):
        concept_map.learn(pair.source, mood(4), by="probe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give at least one, and one for each hook point"):
        apply_together(pair.target, [])


def test_activations_that_are_nan_are_refused(
    build_hf: Callable[..., Any], tokenizer: Any, pair: ModelPair
) -> None:
    broken = build_hf("llama", d=16, layers=2, seed=1)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="NaN or infinite on these texts"):
        ConceptMap.fit(
            (HookedModel.load(broken, tokenizer=tokenizer), pair.target),
            mood(4),
            source_hook=1,
            target_hook=2,
        )
