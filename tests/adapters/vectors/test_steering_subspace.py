"""Subspaces: learnt as scikit-learn and a naive loop do, and equal to vectors at rank one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from lrt_lens.adapters.vectors import (
    Intervention,
    SteeringSubspace,
    SteeringVector,
    ablation_hooks,
    calibrate_scale,
    evaluate_ablation,
    evaluate_steering,
    subspace_fidelity,
)
from lrt_lens.data import ChoiceItems, ContrastSet
from lrt_lens.errors import FileFormatError, MismatchError, NonFiniteError
from lrt_lens.models import HookedModel, ModelPair
from lrt_lens.serving import import_vectors
from lrt_lens.stitching import Stitch, fit_stitches

PLACES = ("house", "garden", "tree", "river", "stone", "bird", "king", "queen")
CONTRAST = ContrastSet(
    [f"the happy cat sang in the {p} and it was good" for p in PLACES],
    [f"the sad dog slept on the {p} and it was bad" for p in PLACES],
    name="mood",
)
UNPAIRED = ContrastSet(CONTRAST.positive, CONTRAST.negative[:6], name="mood")
ITEMS = ChoiceItems(
    [f"the little boy saw the {p} and he" for p in PLACES], [" sang"] * 8, [" slept"] * 8
)
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def wide(pair: ModelPair, corpus: list[str]) -> Stitch:
    """A stitch from width 16 to width 24, with its null."""
    return fit_stitches(
        pair,
        corpus,
        source_layers=[1],
        target_layers=[2],
        n_tokens=None,
        context_length=32,
        moment_dtype="float64",
        null="full",
        progress=False,
    )[1, 2]


@pytest.fixture(scope="module")
def vector(pair: ModelPair) -> SteeringVector:
    return SteeringVector.mean_difference(pair.source, CONTRAST, at=1)


@pytest.fixture(scope="module")
def span(pair: ModelPair) -> SteeringSubspace:
    return SteeringSubspace.pca(pair.source, CONTRAST, at=1, k=3)


def rotated(span: SteeringSubspace, seed: int = 0) -> SteeringSubspace:
    """Return the same span and step in other rows."""
    turn = torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0])
    rows, coefficients = turn @ span.basis.double(), turn @ span.coefficients.double()
    return SteeringSubspace(
        rows.float(), coefficients.float(), span.hook, span.model, centre=span.centre
    )


def changed(artefact: Any, states: torch.Tensor, **options: Any) -> torch.Tensor:
    [(_, hook)] = artefact.hooks(**options)
    return hook.restarted()(states)


# ---------------------------------------------------------------------------------------- learning


def test_pca_is_that_of_scikit_learn_on_the_differences_with_both_signs(
    pair: ModelPair, span: SteeringSubspace, vector: SteeringVector
) -> None:
    states = vector.states(pair.source, CONTRAST, at=1)
    difference = (states.positive - states.negative).double().numpy()
    components = PCA(3).fit(np.concatenate([difference, -difference])).components_
    np.testing.assert_allclose(np.abs((components * span.basis.numpy()).sum(1)), 1, atol=1e-5)
    # Rows point towards the positive texts, and scale 1 is the mean difference within the span.
    gap = difference.mean(0)
    np.testing.assert_allclose(
        span.coefficients, np.abs(components @ gap), rtol=1e-4, atol=1e-5 * np.linalg.norm(gap)
    )


def test_inlp_is_a_naive_loop_of_scikit_learn(pair: ModelPair, vector: SteeringVector) -> None:
    found = SteeringSubspace.inlp(pair.source, UNPAIRED, at=1, k=3)
    states = vector.states(pair.source, UNPAIRED, at=1)
    rows = torch.cat([states.positive, states.negative]).double().numpy()
    y = np.repeat([1, 0], states.sizes)
    projection = np.eye(rows.shape[1])
    for _ in range(3):
        left = rows @ projection
        scaler = StandardScaler().fit(left)
        fit: Any = LogisticRegression(C=1 / (0.1 * len(y)), max_iter=5000, tol=1e-10)
        w = fit.fit(scaler.transform(left), y).coef_[0] / scaler.scale_
        # Projection on the intersection of the nullspaces (Ravfogel et al., eq. 2)
        unit = projection @ w / np.linalg.norm(projection @ w)
        projection = projection - np.outer(unit, unit)
    ours = np.eye(rows.shape[1]) - found.basis.double().numpy().T @ found.basis.double().numpy()
    np.testing.assert_allclose(ours, projection, atol=1e-4)


def test_inlp_leaves_nothing_for_the_classifiers_that_it_removed(
    pair: ModelPair, vector: SteeringVector
) -> None:
    found = SteeringSubspace.inlp(pair.source, CONTRAST, at=1, k=2)
    states = vector.states(pair.source, CONTRAST, at=1)
    rows = torch.cat([states.positive, states.negative])[:, None]
    without = changed(found, rows, mode="ablate", positions="every")
    assert float((without[:, 0] @ found.basis.T).abs().max()) < 1e-4


def test_pca_refuses_texts_that_are_no_pairs_and_names_inlp(pair: ModelPair) -> None:
    with pytest.raises(ValueError, match=r"not pairs.*SteeringSubspace\.inlp"):
        SteeringSubspace.pca(pair.source, UNPAIRED, at=1, k=2)


@pytest.mark.parametrize("k", [0, 16])
def test_more_directions_than_the_texts_have_are_refused(pair: ModelPair, k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}"):
        SteeringSubspace.pca(pair.source, CONTRAST, at=1, k=k)


def test_the_span_of_vectors_holds_each_and_adds_their_sum(
    pair: ModelPair, vector: SteeringVector
) -> None:
    other = SteeringVector.lda(pair.source, CONTRAST, at=1)
    both = SteeringSubspace.of([vector, other])
    for one in (vector, other):
        inside = one.direction @ both.basis.T @ both.basis
        torch.testing.assert_close(inside, one.direction, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.direction, vector.direction + other.direction)
    with pytest.raises(ValueError, match=r"span 1 dimension\(s\) instead of 2"):
        SteeringSubspace.of([vector, 2.0 * vector])


@pytest.mark.usefixtures("unchecked")
def test_a_basis_that_is_not_orthonormal_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not orthonormal.*SteeringSubspace\.of"):
        SteeringSubspace(torch.ones(2, 4), torch.ones(2), HOOK)
    with pytest.raises(ValueError, match="do not fit"):
        SteeringSubspace(torch.eye(4)[:2], torch.ones(3), HOOK)
    with pytest.raises(NonFiniteError):
        SteeringSubspace(torch.eye(4)[:2], torch.tensor([1.0, float("nan")]), HOOK)


# ---------------------------------------------------------------------------------------- steering


def test_each_mode_is_its_formula(span: SteeringSubspace) -> None:
    states = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    rows, centre = span.basis, span.centre
    assert centre is not None
    inside = states @ rows.T @ rows
    levels = torch.tensor([1.0, -2.0, 0.5])
    expected = {
        "add": states + 1.5 * span.coefficients @ rows,
        "ablate": states - inside,
        "clamp": states - inside + levels @ rows,
        "project": centre + (states - centre) @ rows.T @ rows,
    }
    for mode, wanted in expected.items():
        options = {"scale": 1.5 if mode == "add" else 1.0, "level": levels}
        got = changed(span, states, mode=mode, **options)
        torch.testing.assert_close(got[:, 4:], wanted[:, 4:], atol=1e-5, rtol=1e-4)
        # The first positions are never steered.
        assert torch.equal(got[:, :4], states[:, :4])
    half = changed(span, states, mode="ablate", scale=0.5, positions="every")
    torch.testing.assert_close(half, states - 0.5 * inside)


def test_other_rows_of_one_subspace_change_nothing(span: SteeringSubspace, wide: Stitch) -> None:
    states = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(1))
    other = rotated(span)
    for mode in ("add", "ablate", "project"):
        ours, theirs = (changed(one, states, mode=mode) for one in (span, other))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    moved, turned = wide.transfer(span), wide.transfer(other)
    torch.testing.assert_close(moved.direction, turned.direction, atol=1e-5, rtol=1e-4)
    assert float(moved.principal_cosines(turned).min()) > 1 - 1e-6
    ours, theirs = (subspace_fidelity(wide, one).values("correlation") for one in (span, other))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "clamp"}, r"level=… with 3 number"),
        ({"mode": "clamp", "level": [1.0]}, r"level=… with 3 number"),
        ({"mode": "ablate", "scale": 2.0}, "from 0"),
        ({"mode": "add", "scale": float("inf")}, "finite"),
        ({"mode": "project", "centre": torch.zeros(3)}, r"centre=… \[16\]"),
        ({"mode": "removes"}, "expected add, clamp, ablate or project"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_done_is_refused(
    span: SteeringSubspace, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        span.hooks(**options)


def test_a_span_alone_adds_nothing_and_is_ablated() -> None:
    bare = SteeringSubspace(torch.eye(4)[:2], torch.zeros(2), HOOK)
    with pytest.raises(ValueError, match="adds nothing"):
        bare.hooks(mode="add")
    with pytest.raises(ValueError, match=r"centre=… \[4\]"):
        bare.hooks(mode="project")
    states = torch.ones(1, 6, 4)
    assert changed(bare, states, mode="ablate")[0, -1].tolist() == [0, 0, 1, 1]


def test_a_clamp_at_the_mean_coordinates_sets_them(
    pair: ModelPair, span: SteeringSubspace, passages: list[str]
) -> None:
    levels = span.mean_coordinates(pair.source, passages[:6])
    with span.apply(pair.source, mode="clamp", level=levels):
        got = span.mean_coordinates(pair.source, passages[6:10])
    torch.testing.assert_close(got, levels, atol=1e-4, rtol=1e-4)


def test_another_model_is_refused(pair: ModelPair, span: SteeringSubspace) -> None:
    with pytest.raises(MismatchError):
        span.apply(pair.target)


# --------------------------------------------------------------------------------- transfer, files


def test_the_transferred_span_is_the_image_of_the_span(
    span: SteeringSubspace, wide: Stitch
) -> None:
    moved = wide.transfer(span)
    images = span.basis.double() @ wide.up.weight
    angles = scipy.linalg.subspace_angles(moved.basis.double().numpy().T, images.numpy().T)
    assert np.abs(angles).max() < 1e-5
    # Each row stays as close to its image as orthonormal rows can (Procrustes).
    best = scipy.linalg.polar(images.numpy())[0]
    np.testing.assert_allclose(moved.basis, best, atol=1e-5)
    # Scale 1 adds the transferred image of what it added, and the centre is a point.
    as_vector = wide.transfer(span.vector)
    torch.testing.assert_close(moved.direction, as_vector.direction, atol=1e-5, rtol=1e-4)
    assert span.centre is not None
    torch.testing.assert_close(
        moved.centre, wide.up.points(span.centre.double()).float(), atol=1e-5, rtol=1e-5
    )


def test_a_span_that_the_map_makes_smaller_is_refused(span: SteeringSubspace, wide: Stitch) -> None:
    weight = wide.up.weight.clone()
    gone = span.basis[1].double()
    weight -= torch.outer(gone, gone @ weight)
    through = type(wide.up)(weight, wide.up.bias, wide.source_hook, wide.target_hook)
    with pytest.raises(ValueError, match="span 2 dimension"):
        wide.transfer(span, through=through)


@pytest.mark.usefixtures("unchecked")
def test_a_bias_is_refused(span: SteeringSubspace, wide: Stitch) -> None:
    with pytest.raises(ValueError, match="have no bias"):
        wide.transfer(span, bias="add")


def test_a_file_holds_all_but_the_texts(span: SteeringSubspace, tmp_path: Path) -> None:
    loaded = SteeringSubspace.load(span.save(tmp_path / "span.safetensors"))
    assert torch.equal(loaded.basis, span.basis)
    assert torch.equal(loaded.coefficients, span.coefficients)
    assert loaded.centre is not None
    assert span.centre is not None
    assert torch.equal(loaded.centre, span.centre)
    assert (loaded.hook, loaded.model, loaded.contrast) == (span.hook, span.model, span.contrast)
    assert loaded.contrast_set is None
    with pytest.raises(FileFormatError):
        SteeringVector.load(tmp_path / "span.safetensors")


def test_an_ablation_is_exported_to_the_format_that_holds_several_directions(
    span: SteeringSubspace, tmp_path: Path
) -> None:
    path = span.export(tmp_path / "mood.gguf", "glp", mode="ablate")
    again = SteeringSubspace.of(import_vectors(path))
    assert float(again.principal_cosines(span).min()) > 1 - 1e-6
    with pytest.raises(ValueError, match="export to 'glp'"):
        span.export(tmp_path / "other.gguf", "llama.cpp", mode="ablate")
    # What scale 1 adds is one vector, which every format holds.
    path = span.export(tmp_path / "added.gguf", "llama.cpp", scale=2.0)
    torch.testing.assert_close(import_vectors(path)[0].direction, 2.0 * span.direction)


@pytest.mark.usefixtures("unchecked")
def test_what_no_file_holds_is_not_exported(span: SteeringSubspace, tmp_path: Path) -> None:
    for options in ({"mode": "project"}, {"mode": "ablate", "damage": 0.1}):
        with pytest.raises(ValueError, match=r"use subspace\.apply"):
            span.export(tmp_path / "mood.gguf", "glp", **options)


def test_a_scale_is_calibrated_for_a_subspace(
    pair: ModelPair, span: SteeringSubspace, passages: list[str]
) -> None:
    ours, theirs = (
        calibrate_scale(pair.source, one, passages[:8], damage=0.02) for one in (span, span.vector)
    )
    assert ours.scale == pytest.approx(theirs.scale, rel=1e-4)
    assert ours.vector.rank == 3
    assert ours.vector.strength.scale == ours.scale


# -------------------------------------------------------------------------------------- rank one


def test_one_vector_steers_and_transfers_as_a_subspace(
    vector: SteeringVector, wide: Stitch
) -> None:
    single = SteeringSubspace.of([vector])
    moved, as_vector = wide.transfer(single), wide.transfer(vector)
    states = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(2))
    every: list[dict[str, Any]] = [
        {"mode": "add", "scale": -1.7},
        {"mode": "ablate"},
        {"mode": "clamp", "level": 3.0, "scale": 0.4},
    ]
    for options in every:
        ours, theirs = (changed(one, states, **options) for one in (moved, as_vector))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    fidelity, whole = wide.fidelity(vector.direction), subspace_fidelity(wide, single)
    assert whole.step is not None
    assert whole.step.value == pytest.approx(fidelity.value, abs=1e-6)
    assert whole.smallest == whole.largest == pytest.approx(abs(fidelity.value), abs=1e-6)
    # Calibrations and curves work on interventions, which take both.
    ours, theirs = (Intervention.of(one).hooks(2.0)[HOOK2] for one in (moved, as_vector))
    torch.testing.assert_close(ours.restarted()(states), theirs.restarted()(states))


HOOK2 = "blocks.2.hook_resid_post"


def numbers(table: Any) -> np.ndarray:
    return table.select_dtypes("number").to_numpy(dtype=float, na_value=np.nan)


def test_one_vector_is_evaluated_as_a_subspace(
    pair: ModelPair, vector: SteeringVector, wide: Stitch, passages: list[str]
) -> None:
    options: dict[str, Any] = {"neutral": passages[:6], "scales": [0.5, 2.0], "progress": False}
    few = {"n_random": 3, "n_permuted": 2, "n_shuffled": 3, "n_contrast_groups": 2}
    ours, theirs = (
        evaluate_steering(pair, wide, one, ITEMS, **options, **few)
        for one in (SteeringSubspace.of([vector]), vector)
    )
    assert ours.table["arm"].tolist() == theirs.table["arm"].tolist()
    np.testing.assert_allclose(numbers(ours.table), numbers(theirs.table), atol=1e-4, rtol=1e-3)


def test_one_vector_is_ablated_as_a_subspace(
    pair: ModelPair, vector: SteeringVector, wide: Stitch, passages: list[str]
) -> None:
    few = {"n_random": 3, "n_shuffled": 3, "n_contrast_groups": 2, "progress": False}
    ours, theirs = (
        evaluate_ablation(pair, wide, one, items=ITEMS, neutral=passages[:6], **few)
        for one in (SteeringSubspace.of([vector]), vector)
    )
    assert ours.summary["arm"].tolist() == theirs.summary["arm"].tolist()
    ours_drop, theirs_drop = (one.summary["drop"].astype(float) for one in (ours, theirs))
    np.testing.assert_allclose(ours_drop, theirs_drop, atol=1e-4)
    np.testing.assert_allclose(numbers(ours.table), numbers(theirs.table), atol=1e-4)


# -------------------------------------------------------------------------------------- evaluation


def test_arms_of_a_subspace_have_its_rank(
    pair: ModelPair, span: SteeringSubspace, wide: Stitch, passages: list[str]
) -> None:
    from lrt_lens.adapters.vectors._arms import behaviour_arms

    arms = behaviour_arms(pair, wide, span, CONTRAST, n_random=4, n_shuffled=3, seed=0, n_groups=2)
    assert {arm.name for arm in arms} >= {"native", "transferred", "shuffled", "random"}
    assert {arm.vector.rank for arm in arms} == {3}
    assert {arm.vector.hook for arm in arms} == {wide.target_hook}
    randoms = [arm.vector for arm in arms if arm.name == "random"]
    assert [one.norm for one in randoms] == pytest.approx([arms[0].vector.norm] * 4, rel=1e-4)
    result = evaluate_ablation(
        pair,
        wide,
        span,
        items=ITEMS,
        neutral=passages[:6],
        n_random=2,
        n_shuffled=2,
        n_contrast_groups=2,
        progress=False,
    )
    assert set(result.summary["arm"]) >= {"native", "transferred", "shuffled", "random"}


def test_ablating_a_span_leaves_nothing_in_it(model: HookedModel, passages: list[str]) -> None:
    rows = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    hooks = ablation_hooks(model, rows, where="hook", hook=HOOK, skip_first=0)
    with model.intervene({**hooks}):
        states = model.capture(passages[:1], [HOOK])[HOOK]
    assert float((states @ rows.T).abs().max()) < 1e-4
    with pytest.raises(ValueError, match="span 1 dimension"):
        ablation_hooks(model, rows[:1].repeat(2, 1))


def test_a_subspace_of_several_directions_is_clamped_by_itself(span: SteeringSubspace) -> None:
    with pytest.raises(ValueError, match=r"rank 3.*subspace\.apply"):
        Intervention.of(span, mode="clamp", levels=[1.0])


# ---------------------------------------------------------------------------------------- fidelity


def test_correlations_are_those_of_scikit_learn_on_rows(
    span: SteeringSubspace, pair: ModelPair, wide: Stitch
) -> None:
    result = subspace_fidelity(wide, span, native=wide.transfer(span), n_random=20)
    held_out = wide.held_out[0]
    for group in wide.held_out[1:]:
        held_out = held_out.joined(group)

    def solve(statistics: Any, rows: torch.Tensor) -> torch.Tensor:
        covariance = statistics.covariance.double()
        penalty = wide.scores["alpha"] * covariance.trace() / len(covariance)
        return rows @ torch.linalg.inv(covariance + penalty * torch.eye(len(covariance)).double())

    a = solve(wide.source_statistics, span.basis.double())
    c = solve(wide.target_statistics, span.basis.double() @ wide.up.weight)
    joint = torch.cat(
        [
            torch.cat([a @ held_out.xx @ a.T, a @ held_out.xy @ c.T], 1),
            torch.cat([c @ held_out.xy.T @ a.T, c @ held_out.yy @ c.T], 1),
        ]
    ).numpy()
    # Canonical correlations are the largest generalised eigenvalues minus 1.
    blocks = scipy.linalg.block_diag(joint[:3, :3], joint[3:, 3:])
    expected = scipy.linalg.eigh(joint, blocks, eigvals_only=True)[::-1][:3] - 1
    np.testing.assert_allclose(result.values("correlation"), expected, atol=1e-6)
    np.testing.assert_allclose(result.values("angle"), 1, atol=1e-6)
    assert result.largest >= result.smallest
    assert set(result.figure().data[0].x) == {1, 2, 3}


def test_angles_are_those_of_scipy(span: SteeringSubspace, pair: ModelPair) -> None:
    other = SteeringSubspace.inlp(pair.source, CONTRAST, at=1, k=2)
    expected = np.cos(
        scipy.linalg.subspace_angles(span.basis.double().numpy().T, other.basis.double().numpy().T)
    )
    np.testing.assert_allclose(span.principal_cosines(other), np.sort(expected)[::-1], atol=1e-6)
