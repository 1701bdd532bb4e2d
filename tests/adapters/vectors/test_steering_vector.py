"""Steering vectors: learning, arithmetic, transfer, files, and their effect on a running model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from lrt_lens._tensor_files import read_tensor_file, write_tensors
from lrt_lens.adapters._earlier_files import split_method
from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.adapters.vectors._steering_vector import VECTOR_SCHEMA
from lrt_lens.data import ContrastSet
from lrt_lens.errors import FileFormatError, MismatchError, NonFiniteError
from lrt_lens.models import ModelPair
from lrt_lens.models._hook_points import joint_name
from lrt_lens.models._reading import read_activations
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.moments import harvest
from lrt_lens.stitching import Stitch, fit_stitches
from lrt_lens.stitching.solvers import ManyToOne

HOOK = "blocks.1.hook_resid_post"
POSITIVE = [
    f"the happy little cat sang in the {place} and it was good"
    for place in ("house", "garden", "tree", "river", "stone")
]
NEGATIVE = [
    f"the sad little cat slept on the {place} and it was bad"
    for place in ("house", "garden", "tree", "river", "stone")
]


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(POSITIVE, NEGATIVE, name="mood")


@pytest.fixture(scope="module")
def stitch(pair: ModelPair, corpus: list[str]) -> Stitch:
    return fit_stitches(
        pair, corpus, n_tokens=None, context_length=32, moment_dtype="float64", progress=False
    )[1, 2]


@pytest.fixture
def vector(pair: ModelPair, contrast: ContrastSet) -> SteeringVector:
    return SteeringVector.mean_difference(pair.source, contrast, at=1)


# ----------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("read", ["last", "mean", -2, 5])
def test_mean_difference_is_the_naive_formula(
    pair: ModelPair, contrast: ContrastSet, read: Any
) -> None:
    def one(text: str) -> torch.Tensor:
        rows = pair.source.capture(text, HOOK)[0]
        return rows[SKIP_FIRST:].mean(0) if read == "mean" else rows[-1 if read == "last" else read]

    expected = torch.stack([one(p) - one(n) for p, n in zip(POSITIVE, NEGATIVE, strict=True)]).mean(
        0
    )
    vector = SteeringVector.mean_difference(pair.source, contrast, at=HOOK, read=read)
    torch.testing.assert_close(vector.direction, expected, atol=1e-5, rtol=1e-5)
    assert (vector.hook, vector.method, vector.read, vector.contrast) == (
        HOOK,
        "mean_difference",
        read,
        contrast.digest,
    )


def test_principal_component_is_the_leading_eigenvector_of_the_differences(
    pair: ModelPair, contrast: ContrastSet
) -> None:
    difference = (
        read_activations(pair.source, POSITIVE, HOOK).double()
        - read_activations(pair.source, NEGATIVE, HOOK).double()
    )
    leading = torch.linalg.eigh(difference.T @ difference).eigenvectors[:, -1]
    vector = SteeringVector.principal_component(pair.source, contrast, at=HOOK)
    assert abs(float(leading @ vector.direction.double()) / vector.norm) == pytest.approx(
        1, abs=1e-6
    )
    assert float(vector.direction.double() @ difference.mean(0)) > 0
    assert vector.norm == pytest.approx(abs(float(difference.mean(0) @ leading)), rel=1e-5)


def test_relearning_follows_the_recipe(pair: ModelPair, contrast: ContrastSet) -> None:
    first = SteeringVector.principal_component(pair.source, contrast, at=1, read="mean")
    again = first.relearnt(pair.source, contrast, at=1)
    assert again.method == "principal_component"
    torch.testing.assert_close(again.direction, first.direction)
    with pytest.raises(ValueError, match="was made by 'given'"):
        SteeringVector(torch.ones(16), HOOK).relearnt(pair.source, contrast, at=1)


def test_vectors_at_several_hook_points_are_learnt_from_one_reading(
    pair: ModelPair, contrast: ContrastSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = SteeringVector.mean_difference(pair.source, contrast, at=1, read="mean")
    hooks = ["hook_embed", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    expected = [vector.relearnt(pair.target, contrast, at=hook) for hook in hooks]
    n_passes, capture = [], pair.target.engine.capture
    monkeypatch.setattr(
        pair.target.engine, "capture", lambda *args: (n_passes.append(1), capture(*args))[1]
    )
    found = vector.relearnt_at(pair.target, contrast, hooks)
    assert len(n_passes) == -(-2 * len(contrast) // 32)
    assert [one.hook for one in found] == hooks
    for ours, alone in zip(found, expected, strict=True):
        assert torch.equal(ours.direction, alone.direction)
        assert ours.median_norm == alone.median_norm


def test_a_discriminant_is_the_naive_formula_with_the_shrinkage_of_ledoit_and_wolf(
    pair: ModelPair, contrast: ContrastSet
) -> None:
    positive, negative = (
        read_activations(pair.source, texts, HOOK).double().numpy()
        for texts in (POSITIVE, NEGATIVE)
    )

    def shrunk(states: np.ndarray) -> np.ndarray:
        # scikit-learn shrinks the covariance of standardised dimensions of each side.
        unit = states.std(0)
        return np.outer(unit, unit) * ledoit_wolf((states - states.mean(0)) / unit)[0]

    gap = positive.mean(0) - negative.mean(0)
    pooled = (shrunk(positive) + shrunk(negative)) / 2
    expected = np.linalg.solve(pooled, gap)
    unit = expected / np.linalg.norm(expected)
    vector = SteeringVector.lda(pair.source, contrast, at=1)
    np.testing.assert_allclose(vector.direction.numpy(), (gap @ unit) * unit, rtol=1e-3, atol=1e-5)
    assert vector.method == "lda"
    # The mean difference along the vector is the vector itself.
    mean = SteeringVector.mean_difference(pair.source, contrast, at=1)
    assert float(mean.direction @ vector.direction) == pytest.approx(vector.norm**2, rel=1e-4)
    again = vector.relearnt(pair.source, contrast, at=1)
    assert torch.equal(again.direction, vector.direction)


def test_a_vector_at_a_joint_hook_point_is_that_of_each_layer_side_by_side(
    pair: ModelPair, contrast: ContrastSet, corpus: list[str]
) -> None:
    layers = ["blocks.0.hook_resid_post", HOOK]
    joint = SteeringVector.mean_difference(pair.source, contrast, at=joint_name(layers))
    alone = [SteeringVector.mean_difference(pair.source, contrast, at=hook) for hook in layers]
    torch.testing.assert_close(joint.direction, torch.cat([one.direction for one in alone]))
    moments = harvest(
        pair,
        corpus,
        source_layers=layers,
        target_layers=[2],
        joint=True,
        n_tokens=None,
        context_length=32,
        progress=False,
    )
    stitch = moments.fit(ManyToOne()).best()
    mapped = stitch.transfer(joint, norm="mapped").direction
    expected = stitch.up.directions(joint.direction.double()).float()
    torch.testing.assert_close(mapped, expected)


def test_a_vector_without_some_directions_is_orthogonal_to_them(
    pair: ModelPair, contrast: ContrastSet, vector: SteeringVector, stitch: Stitch
) -> None:
    directions = 5 * stitch.source_statistics.principal_directions(2)
    rest = vector.without(directions)
    units = directions.double() / 5
    expected = vector.direction.double()
    for unit in units:
        expected = expected - (expected @ unit) * unit
    torch.testing.assert_close(rest.direction, expected.float(), rtol=1e-4, atol=1e-6)
    assert (rest.method, rest.contrast) == (
        "mean_difference without 2 direction(s)",
        vector.contrast,
    )
    assert torch.allclose(rest.without(directions).direction, rest.direction, atol=1e-6)
    with pytest.raises(ValueError, match="in the span of the 1 directions"):
        vector.without(vector.direction[None])
    with pytest.raises(ValueError, match=r"shape \(2, \d+\); expected independent rows"):
        vector.without(torch.ones(2, len(vector.direction)))
    with pytest.raises(ValueError, match="only .*lda.* can be learnt again"):
        rest.relearnt(pair.source, contrast, at=1)


@pytest.mark.usefixtures("unchecked")
def test_unreadable_positions_name_the_position_and_the_length(pair: ModelPair) -> None:
    with pytest.raises(ValueError, match=r"position 40 is outside 5 of 5 text\(s\), such as"):
        read_activations(pair.source, POSITIVE, HOOK, 40)
    with pytest.raises(
        ValueError, match="read is 'first'; expected 'last', 'mean', 'max' or a position"
    ):
        read_activations(pair.source, POSITIVE, HOOK, "first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"1 of 1 text\(s\) have no unmasked token.*0 \(\'a\'\)"):
        read_activations(pair.source, ["a"], HOOK, "mean")


# --------------------------------------------------------------------------------------- arithmetic


def test_vectors_add_and_scale(vector: SteeringVector) -> None:
    torch.testing.assert_close((2.0 * vector - vector).direction, vector.direction)
    assert vector.cosine(-vector) == pytest.approx(-1)
    with pytest.raises(MismatchError, match="do not add"):
        vector + replace(vector, hook="blocks.0.hook_resid_post")


def test_a_vector_of_nan_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="holds NaN or infinity"):
        SteeringVector(torch.tensor([1.0, float("nan")]), HOOK)


# ----------------------------------------------------------------------------------------- transfer


def test_a_direction_is_transferred_without_the_bias_and_with_it_on_request(
    stitch: Stitch, vector: SteeringVector
) -> None:
    weight, bias = stitch.up.weight, stitch.up.bias
    plain = stitch.transfer(vector, norm="mapped")
    torch.testing.assert_close(
        plain.direction.double(), vector.direction.double() @ weight, atol=1e-6, rtol=1e-5
    )
    added = stitch.transfer(vector, norm="mapped", bias="add")
    torch.testing.assert_close(
        added.direction.double(), vector.direction.double() @ weight + bias, atol=1e-6, rtol=1e-5
    )
    assert stitch.transfer(vector, norm="unit").norm == pytest.approx(1, abs=1e-6)
    assert (plain.hook, plain.model) == (stitch.target_hook, stitch.target)


def test_matched_vectors_keep_their_number_of_standard_deviations(
    stitch: Stitch, vector: SteeringVector
) -> None:
    transferred = stitch.transfer(vector)
    in_source = vector.norm / stitch.source_statistics.deviation(vector.direction)
    in_target = transferred.norm / stitch.target_statistics.deviation(transferred.direction)
    assert in_target == pytest.approx(in_source, rel=1e-5)


def test_a_vector_of_another_hook_point_or_model_is_refused(
    stitch: Stitch, vector: SteeringVector, pair: ModelPair, contrast: ContrastSet
) -> None:
    with pytest.raises(
        MismatchError,
        match=r"vector '.*' was learnt at 'blocks.0.hook_resid_post' on '.*'; "
        r"this stitch starts at 'blocks.1.hook_resid_post' of",
    ):
        stitch.transfer(replace(vector, hook="blocks.0.hook_resid_post"))
    with pytest.raises(MismatchError, match=r"config_hash|d_model"):
        stitch.transfer(SteeringVector.mean_difference(pair.target, contrast, at=1))
    with pytest.raises(TypeError, match="cannot transfer a str"):
        stitch.transfer("a vector")


def test_resid_pre_of_the_next_block_is_the_same_place(
    stitch: Stitch, pair: ModelPair, contrast: ContrastSet, vector: SteeringVector
) -> None:
    shifted = replace(vector, hook="blocks.2.hook_resid_pre")
    assert stitch.transfer(shifted).cosine(stitch.transfer(vector)) == pytest.approx(1)


# -------------------------------------------------------------------------------------------- files


def test_a_saved_vector_comes_back(tmp_path: Path, vector: SteeringVector) -> None:
    loaded = SteeringVector.load(vector.save(tmp_path / "vector.safetensors"))
    torch.testing.assert_close(loaded.direction, vector.direction)
    assert (
        replace(loaded, direction=vector.direction, contrast_set=None).__dict__
        == replace(vector, contrast_set=None).__dict__
    )


def test_a_truncated_or_foreign_vector_file_is_refused(
    tmp_path: Path, vector: SteeringVector, stitch: Stitch
) -> None:
    path = vector.save(tmp_path / "vector.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileFormatError, match="truncated or no safetensors file"):
        SteeringVector.load(path)
    stitch.save_pretrained(tmp_path / "stitch")
    with pytest.raises(
        FileFormatError, match=r"has schema 'lrt_lens.stitch/1'; expected 'lrt_lens.vector/1'"
    ):
        SteeringVector.load(tmp_path / "stitch" / "stitch.safetensors")


# ----------------------------------------------------------------------------------------- steering


def test_adding_changes_every_position_but_the_first(
    pair: ModelPair, vector: SteeringVector
) -> None:
    before = pair.source.capture(POSITIVE[0], HOOK)
    with vector.apply(pair.source, scale=3.0), torch.inference_mode():
        seen: list[torch.Tensor] = []
        with pair.source.intervene({HOOK: lambda x, hook: seen.append(x.clone())}):
            pair.source.logits(POSITIVE[0])
    change = seen[0] - before
    assert change[:, :SKIP_FIRST].abs().max() < 1e-5
    torch.testing.assert_close(
        change[0, SKIP_FIRST:],
        (3 * vector.direction).expand_as(change[0, SKIP_FIRST:]),
        atol=1e-4,
        rtol=1e-4,
    )


def test_clamping_sets_the_component_and_ablating_removes_it(vector: SteeringVector) -> None:
    stream = torch.randn(2, 9, 16)
    unit = vector.direction / vector.norm
    for mode, level in (("clamp", 2.5), ("ablate", 0.0)):
        changed = vector.hooks(mode=mode, level=2.5 if mode == "clamp" else None)[0][1](stream)  # type: ignore[arg-type]
        torch.testing.assert_close(
            changed[:, SKIP_FIRST:] @ unit,
            torch.full((2, 9 - SKIP_FIRST), level),
            atol=1e-5,
            rtol=1e-5,
        )
        across = torch.eye(16) - torch.outer(unit, unit)
        torch.testing.assert_close(changed @ across, stream @ across, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="needs level="):
        vector.hooks(mode="clamp")


def test_the_level_to_clamp_to_is_the_mean_component_on_texts(
    pair: ModelPair, vector: SteeringVector
) -> None:
    rows = torch.stack(
        [pair.source.capture(text, HOOK)[0, SKIP_FIRST:].mean(0) for text in POSITIVE]
    )
    assert vector.mean_component(pair.source, POSITIVE) == pytest.approx(
        float((rows @ vector.direction / vector.norm).mean()), abs=1e-4
    )


@pytest.mark.parametrize("positions", ["all", "last", "generated"])
def test_with_a_kv_cache_the_same_tokens_are_steered_as_without(
    pair: ModelPair, vector: SteeringVector, positions: Any
) -> None:
    """Compare a whole text of known prompt length with its prompt followed by single tokens."""
    stream = torch.randn(1, 12, 16)
    whole = vector.hooks(positions=positions)[0][1]
    whole.prompt_lengths = torch.tensor([7])
    expected = whole(stream)
    cached = vector.hooks(positions=positions)[0][1]
    pieces = [cached(stream[:, :7]), *(cached(stream[:, i : i + 1]) for i in range(7, 12))]
    torch.testing.assert_close(torch.cat(pieces, 1), expected)
    assert not torch.equal(expected, stream)


def test_steered_generation_differs_and_leaves_no_hook(
    pair: ModelPair, vector: SteeringVector
) -> None:
    plain = pair.source.generate("the little cat", max_new_tokens=8, do_sample=False)
    with vector.apply(pair.source, scale=50.0):
        steered = pair.source.generate("the little cat", max_new_tokens=8, do_sample=False)
    assert steered != plain
    assert pair.source.generate("the little cat", max_new_tokens=8, do_sample=False) == plain
    assert not pair.source.bridge.hook_dict[HOOK].fwd_hooks


def test_plain_transformer_lens_hooks_do_the_same(pair: ModelPair, vector: SteeringVector) -> None:
    with vector.apply(pair.source, scale=5.0):
        ours = pair.source.logits(POSITIVE[0])
    with pair.source.bridge.hooks(fwd_hooks=vector.hooks(scale=5.0)):
        theirs = pair.source.logits(POSITIVE[0])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("unchecked")
def test_bad_scales_modes_and_models_are_refused(pair: ModelPair, vector: SteeringVector) -> None:
    with pytest.raises(ValueError, match="scale is nan; expected a finite number"):
        vector.hooks(scale=float("nan"))
    with pytest.raises(ValueError, match="mode 'push'"):
        vector.hooks(mode="push")  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match="the model to steer"):
        vector.apply(pair.target)


def test_origin_is_stored_in_fields_and_files_of_the_earlier_form_load(
    pair: ModelPair, tmp_path: Path
) -> None:
    vector = SteeringVector(torch.ones(16), HOOK, None, method="mean_difference", read=-2)
    path = replace(vector, transferred_by="stitch").save(tmp_path / "vector.safetensors")
    loaded = SteeringVector.load(path)
    assert (loaded.method, loaded.read, loaded.transferred) == ("mean_difference", -2, True)
    file = read_tensor_file(path, VECTOR_SCHEMA)
    tensors, metadata = file.tensors, file.metadata
    fields = json.loads(metadata["vector"])
    del fields["transferred_by"]
    fields |= {"method": "mean_difference, transferred", "read": "-2"}
    write_tensors(path, tensors, metadata | {"vector": json.dumps(fields)})
    assert repr(SteeringVector.load(path)) == repr(loaded)
    assert "mean_difference, read -2, transferred" in repr(loaded)


def test_a_sum_is_transferred_if_either_part_is() -> None:
    learnt = SteeringVector(torch.ones(16), HOOK)
    arrived = replace(learnt, transferred_by="stitch")
    assert (learnt + arrived).transferred
    assert (arrived + learnt).transferred
    assert not (learnt + learnt).transferred


@pytest.mark.parametrize(
    ("earlier", "method", "transferred_by"),
    [
        ("mean_difference", "mean_difference", None),
        ("mean_difference, transferred", "mean_difference", "stitch"),
        ("mean_difference, concept map", "mean_difference", "concept map"),
        ("mean_difference, transferred, transferred", "mean_difference", "stitch"),
        ("mean_difference, transferred, concept map", "mean_difference", "concept map"),
        ("concept map, own", "own", "concept map"),
        ("concept map, own, transferred", "own", "stitch"),
        ("principal_component, refit", "principal_component", None),
    ],
)
def test_every_method_of_the_earlier_form_names_its_last_transfer(
    earlier: str, method: str, transferred_by: str | None
) -> None:
    assert split_method(earlier) == (method, transferred_by)


def test_files_with_unknown_or_missing_fields_are_refused(tmp_path: Path) -> None:
    path = SteeringVector(torch.ones(16), HOOK).save(tmp_path / "vector.safetensors")
    file = read_tensor_file(path, VECTOR_SCHEMA)
    tensors, metadata = file.tensors, file.metadata
    fields = json.loads(metadata["vector"])
    without = {key: value for key, value in fields.items() if key != "hook"}
    for changed, message in (
        (json.dumps(fields | {"colour": 1}), r"fields of a SteeringVector: .*unknown \['colour'\]"),
        (json.dumps(without), r"missing \['hook'\]"),
        (json.dumps(fields | {"model": {"name": "x"}}), r"missing \['model.revision'"),
        ("[]", "expected fields by name"),
        ("{", "'vector' is not valid JSON"),
    ):
        write_tensors(path, tensors, metadata | {"vector": changed})
        with pytest.raises(FileFormatError, match=message):
            SteeringVector.load(path)
    # A field that has a default may be missing: earlier versions did not have it.
    del fields["skip_first"]
    write_tensors(path, tensors, metadata | {"vector": json.dumps(fields)})
    assert SteeringVector.load(path).skip_first == SteeringVector(torch.ones(1), HOOK).skip_first


@pytest.mark.usefixtures("unchecked")
def test_texts_that_are_no_contrast_set_are_refused(pair: ModelPair) -> None:
    with pytest.raises(TypeError, match=r"contrast is a list; expected a ContrastSet"):
        SteeringVector.mean_difference(pair.source, ["good", "bad"], at=1)  # type: ignore[arg-type]
