"""Strength that a vector remembers, and steering from the first token on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.adapters.vectors import (
    Intervention,
    NeutralText,
    SteeringVector,
    Strength,
    calibrate_scale,
)
from lrt_lens.data import ContrastSet
from lrt_lens.stitching import AffineMap

TEXTS = ["The quick brown fox jumps over the lazy dog and runs away.", "A cat sat on the mat."]
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model(load: Any) -> Any:
    return load("llama", d=16, layers=3, seed=2)


@pytest.fixture(scope="module")
def vector(model: Any) -> SteeringVector:
    direction = torch.randn(16, generator=torch.Generator().manual_seed(1))
    return SteeringVector(direction, HOOK, model.identity, name="mood")


def test_a_calibrated_vector_remembers_its_strength(
    model: Any, vector: SteeringVector, tmp_path: Path
) -> None:
    found = calibrate_scale(model, vector, TEXTS, damage=0.2)
    strength = found.vector.strength
    assert strength == Strength(
        scale=found.scale,
        damage=found.damage,
        budget=0.2,
        skip_first=4,
        n_texts=2,
        texts=NeutralText(model, TEXTS, HOOK).digest,
    )
    assert strength.where == "all positions, without the first 4"
    path = found.vector.save(tmp_path / "v.safetensors")
    assert SteeringVector.load(path).strength == strength
    # Other texts have another hash, and the same ones the same.
    assert NeutralText(model, TEXTS[:1], HOOK).digest != strength.texts


def test_what_changes_the_vector_forgets_the_strength(model: Any, vector: SteeringVector) -> None:
    calibrated = calibrate_scale(model, vector, TEXTS, damage=0.2).vector
    for changed in (2.0 * calibrated, -calibrated, calibrated + vector):
        assert changed.strength is None


def test_clamp_and_ablation(model: Any, vector: SteeringVector) -> None:
    clamped = calibrate_scale(model, vector, TEXTS, damage=0.05, mode="clamp", level=3.0)
    assert clamped.vector.strength.mode == "clamp"
    assert clamped.vector.strength.level == 3.0
    ablated = calibrate_scale(model, vector, TEXTS, damage=100.0, mode="ablate")
    assert ablated.at_limit
    assert ablated.vector.strength.scale == 1.0


def test_several_vectors_and_no_scale(model: Any, vector: SteeringVector) -> None:
    other = replace(vector, hook="blocks.2.hook_resid_post")
    both = calibrate_scale(model, [vector, other], TEXTS, damage=0.2)
    assert [one.strength.scale for one in both.vectors] == [both.scale] * 2
    with pytest.raises(ValueError, match="2 vectors were calibrated together; expected one"):
        _ = both.vector
    none = replace(both, scale=float("nan"))
    with pytest.raises(ValueError, match="was not reached"):
        _ = none.vectors


# ------------------------------------------------------------------------------ the first positions


def changed_positions(model: Any, hooks: dict[str, Any]) -> list[int]:
    tokens = torch.tensor([[7, 5, 9, 30, 41, 17, 8, 60]])
    plain = model.logits(tokens)
    with model.intervene({**hooks}):
        steered = model.logits(tokens)
    changed = (steered - plain).abs().amax((0, 2)) > 1e-6
    return torch.nonzero(changed)[:, 0].tolist()


def test_every_position_is_steered(model: Any, vector: SteeringVector) -> None:
    assert changed_positions(model, dict(vector.hooks(positions="every"))) == list(range(8))
    assert changed_positions(model, dict(vector.hooks())) == list(range(4, 8))
    from_start = replace(vector, skip_first=0)
    assert changed_positions(model, dict(from_start.hooks())) == list(range(8))


def test_a_scale_is_applied_at_the_positions_for_which_it_was_calibrated(
    model: Any, vector: SteeringVector
) -> None:
    every = calibrate_scale(model, vector, TEXTS, damage=0.05, positions="every").vector
    first, all_of_them = list(range(4, 8)), list(range(8))
    assert changed_positions(model, dict(every.hooks())) == all_of_them
    tokens = torch.tensor([[7, 5, 9, 30, 41, 17, 8, 60]])
    with every.apply(model):
        ours = model.logits(tokens)
    with vector.apply(model, scale=every.strength.scale, positions="every"):
        torch.testing.assert_close(model.logits(tokens), ours, rtol=0, atol=0)
    # Another scale or mode was not calibrated there, and positions that are given hold.
    assert changed_positions(model, dict(every.hooks(scale=1.0))) == first
    assert changed_positions(model, dict(every.hooks(mode="ablate"))) == first
    assert changed_positions(model, dict(every.hooks(positions="all"))) == first
    assert changed_positions(model, dict(every.hooks(positions="last"))) == [7]
    ordinary = calibrate_scale(model, vector, TEXTS, damage=0.2).vector
    assert changed_positions(model, dict(ordinary.hooks())) == first
    assert changed_positions(model, dict(ordinary.hooks(positions="every"))) == all_of_them
    last = replace(vector, strength=Strength(1.0, positions="last", skip_first=4))
    assert changed_positions(model, dict(last.hooks())) == [7]


def test_damage_counts_the_predictions_of_steered_positions(
    model: Any, vector: SteeringVector
) -> None:
    """Compared with a naive computation: a forward hook, and a loss from token 1 on."""

    def losses(row: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits = model.engine.model(torch.tensor([row])).logits[0, :-1].double()
        return torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="none")

    rows = model.encode(TEXTS)
    plain = torch.cat([losses(row) for row in rows])

    def naive(scale: float) -> float:
        block = model.engine.model.model.layers[1]
        step = scale * vector.direction
        handle = block.register_forward_hook(lambda module, inputs, output: output + step)
        steered = torch.cat([losses(row) for row in rows])
        handle.remove()
        return float((steered - plain).mean())

    texts = NeutralText(model, TEXTS, HOOK, skip_first=0)
    found = texts.damage(vector.hook_at(0.7, positions="every"))
    assert found == pytest.approx(naive(0.7), rel=1e-5)
    assert int(texts.n_tokens.sum()) == len(plain), "every prediction counts"
    calibrated = calibrate_scale(model, vector, TEXTS, damage=0.1, positions="every")
    assert naive(calibrated.scale) == pytest.approx(calibrated.damage, rel=1e-4)
    assert calibrated.damage == pytest.approx(0.1, rel=0.03)
    assert calibrated.vector.strength.skip_first == 0
    assert calibrated.vector.strength.where == "all positions"
    same = calibrate_scale(model, replace(vector, skip_first=0), TEXTS, damage=0.1)
    assert same.scale == pytest.approx(calibrated.scale, rel=1e-9)


def test_learning_without_a_mask_of_first_positions(model: Any) -> None:
    contrast = ContrastSet(["cat", "a dog"], ["dog", "a cat"], name="short")
    vector = SteeringVector.mean_difference(model, contrast, at=1, skip_first=0)
    assert (vector.skip_first, vector.n_dropped) == (0, 0)
    rows = [model.encode([text])[0] for text in (*contrast.positive, *contrast.negative)]
    states = [model.engine.capture(torch.tensor([row]), [HOOK])[HOOK][0, -1] for row in rows]
    expected = torch.stack(states[:2]).mean(0) - torch.stack(states[2:]).mean(0)
    torch.testing.assert_close(vector.direction, expected)
    again = vector.relearnt(model, contrast, at=1)
    assert again.skip_first == 0
    torch.testing.assert_close(again.direction, expected)
    with pytest.raises(ValueError, match="first 4"):
        SteeringVector.mean_difference(model, contrast, at=1)


def test_an_intervention_knows_the_positions_that_no_vector_changes(vector: SteeringVector) -> None:
    other = replace(vector, hook="blocks.2.hook_resid_post", skip_first=2)
    assert Intervention.of([vector, other]).skip_first == 2
    assert Intervention.of(vector, positions="every").skip_first == 0


def test_the_digest_of_a_map_is_that_of_its_file_precision() -> None:
    generator = np.random.default_rng(0)
    weight = torch.from_numpy(generator.normal(size=(3, 4)))
    bias = torch.from_numpy(generator.normal(size=4))
    one = AffineMap(weight, bias)
    assert one.digest == AffineMap(weight.float(), bias.float()).digest
    assert one.digest != AffineMap(weight, bias + 1).digest


def test_a_transferred_vector_names_its_stitch(pair: Any, corpus: list[str]) -> None:
    from lrt_lens.stitching import fit_stitches

    grid = fit_stitches(
        pair, corpus, n_tokens=3000, source_layers=[1], target_layers=[2], progress=False
    )
    stitch = grid.best()
    direction = torch.ones(pair.source.d_model)
    vector = SteeringVector(direction, stitch.source_hook, pair.source.identity)
    moved = stitch.transfer(replace(vector, strength=Strength(2.0)))
    assert moved.route.source == pair.source.name
    assert (moved.route.source_hook, moved.route.target_hook) == (
        stitch.source_hook,
        stitch.target_hook,
    )
    assert moved.route.map_hash == stitch.up.digest
    assert moved.strength is None, "a scale was calibrated on the source"
    control = stitch.transfer(vector, through=stitch.null.up)
    assert control.route.map_hash != moved.route.map_hash
    both_ways = stitch.transfer(vector, through=stitch.null)
    assert torch.equal(both_ways.direction, control.direction)
