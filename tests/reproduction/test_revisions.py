"""Fine-tunes and changed weights: what the copy has, and that the model stays as it is."""

from typing import Any

import pytest
import torch

from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models import HookedModel
from lrt_lens.reproduction import changed_weights, fine_tune, rounded_to_int8


def loss(model: Any, texts: list[str]) -> float:
    rows = model.encode(texts)
    losses = []
    for row in rows:
        log_probabilities = model.logits(torch.tensor([row]))[0, :-1].log_softmax(-1)
        losses.append(-log_probabilities[range(len(row) - 1), row[1:]].mean())
    return float(torch.stack(losses).mean())


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.engine.model.parameters()])


def test_a_fine_tune_predicts_its_documents_better(model: Any, passages: list[str]) -> None:
    before, old_hash = loss(model, passages[:20]), model.identity.config_hash
    options: dict[str, Any] = {"n_steps": 60, "learning_rate": 1e-2, "row_tokens": 16}
    tuned = fine_tune(model, passages, **options)
    assert loss(tuned, passages[:20]) < before - 0.5
    assert loss(model, passages[:20]) == before
    assert model.engine.weights_hash() == old_hash
    assert tuned.name == f"{model.name}, tuned"
    assert tuned.identity.config_hash != old_hash
    assert tuned.identity.tokenizer_hash == model.identity.tokenizer_hash
    assert tuned.prefix == model.prefix
    assert not any(p.requires_grad for p in tuned.engine.model.parameters())
    # Draws have a generator of their own, so that the weights are those of the arguments alone.
    torch.randn(3)
    torch.testing.assert_close(
        weights(fine_tune(model, passages, **options)), weights(tuned), rtol=0, atol=0
    )
    other = fine_tune(model, passages, seed=1, **options)
    assert not torch.equal(weights(other), weights(tuned))


def test_a_merged_adapter_changes_few_directions(model: Any, passages: list[str]) -> None:
    options: dict[str, Any] = {"n_steps": 60, "learning_rate": 1e-2, "row_tokens": 16}
    merged = fine_tune(model, passages, lora_rank=2, **options)
    assert loss(merged, passages[:20]) < loss(model, passages[:20]) - 0.1
    before, after = (dict(one.engine.model.named_parameters()) for one in (model, merged))
    assert list(after) == list(before)
    changes = {name: after[name] - before[name] for name in before}
    changed = {name for name, change in changes.items() if change.abs().max() > 0}
    assert changed
    assert all(torch.linalg.matrix_rank(changes[name], tol=1e-5) <= 2 for name in changed)
    assert not any("embed" in name or "norm" in name for name in changed)
    again = fine_tune(model, passages, lora_rank=2, **options)
    torch.testing.assert_close(weights(again), weights(merged), rtol=0, atol=0)


def test_changed_weights_are_those_of_the_copy_alone(model: Any) -> None:
    before = weights(model)
    cast = changed_weights(model, lambda weight: weight.bfloat16().float(), name="cast")
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0)
    assert (cast.name, cast.prefix) == ("cast", model.prefix)
    for old, new in zip(*(one.engine.model.parameters() for one in (model, cast)), strict=True):
        expected = old.bfloat16().float() if old.ndim == 2 else old
        torch.testing.assert_close(new, expected, rtol=0, atol=0)


def test_8_bits_have_255_steps_per_row() -> None:
    weight = torch.randn(5, 4000, generator=torch.Generator().manual_seed(0))
    rounded = rounded_to_int8(weight)
    assert all(len(row.unique()) <= 255 for row in rounded)
    half = weight.abs().amax(1, keepdim=True) / 254
    assert ((rounded - weight).abs() <= half * (1 + 1e-5)).all()


def test_an_intervention_is_no_part_of_the_training(model: Any, passages: list[str]) -> None:
    options: dict[str, Any] = {"n_steps": 2, "row_tokens": 16}
    expected = weights(fine_tune(model, passages, **options))
    with model.intervene({1: lambda x, hook: x * 0}):
        found = weights(fine_tune(model, passages, **options))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_what_cannot_be_trained_is_refused(model: Any, passages: list[str]) -> None:
    with pytest.raises(TooFewDocumentsError, match="fewer than one row"):
        fine_tune(model, ["the cat"], row_tokens=20)
    with pytest.raises(ValueError, match="row_tokens is 100000"):
        fine_tune(model, passages, row_tokens=100_000)
    with pytest.raises(ValueError, match="n_steps is 0"):
        fine_tune(model, passages, n_steps=0)
    with pytest.raises(TypeError, match="give HookedModel"):
        fine_tune(HookedModel.load(model.bridge), passages)
