"""Ablation baked into weights: nothing writes along the vector any more."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrt_lens.adapters.vectors import ablation_hooks
from lrt_lens.errors import MismatchError
from lrt_lens.models import HookedModel
from lrt_lens.serving import bake_vector
from tests.serving.bake.logits import largest_difference, plain_logits, rows_of, vector_at

Load = Callable[[str], HookedModel]
POST = "blocks.1.hook_resid_post"
NAMES = ["llama", "llama-tied", "gpt2", "gpt_neox", "gemma"]


@pytest.mark.parametrize("name", NAMES)
def test_projected_weights_are_the_ablation_at_every_hook_point(
    decoder: Load, tmp_path: Path, name: str
) -> None:
    model = decoder(name)
    vector = vector_at(model, POST)
    folder = bake_vector(vector, model, tmp_path / "baked", mode="ablate")
    rows = rows_of(model)
    with model.intervene({**ablation_hooks(model, vector.direction, skip_first=0)}):
        ablated = model.logits(rows)
    assert largest_difference(plain_logits(folder, rows), ablated) <= 1e-4
    # It is another intervention than the hook at one hook point.
    with vector.apply(model, mode="ablate"):
        assert largest_difference(ablated, model.logits(rows)) > 1e-2
    baked = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = baked(rows, output_hidden_states=True).hidden_states
    unit = vector.direction / vector.norm
    # The last of them is behind the final norm.
    for state in states[:-1]:
        assert float(((state @ unit).abs() / state.norm(dim=-1)).max()) <= 1e-5


def test_what_ablation_by_weights_is_stands_in_card_and_log(
    decoder: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = decoder("llama")
    with caplog.at_level(logging.WARNING, "lrt_lens.serving"):
        folder = bake_vector(vector_at(model, POST), model, tmp_path / "baked", mode="ablate")
    for text in (caplog.text, (folder / "README.md").read_text(encoding="utf-8")):
        assert "ablation at every hook point" in text
    record = json.loads((folder / "lrt_lens_bake.json").read_text(encoding="utf-8"))
    assert record["measured"]["largest_component"] <= 1e-5
    # attention and MLP of three blocks, and the embedding
    assert len([name for name in record["changes"] if name.endswith("weight")]) == 7


@pytest.mark.parametrize("name", ["gemma2", "bloom", "mixtral"])
def test_what_projected_weights_do_not_reach_is_refused(
    decoder: Load, tmp_path: Path, name: str
) -> None:
    model = decoder(name)
    with pytest.raises(MismatchError, match="keeps a component of .*norm or experts"):
        bake_vector(vector_at(model, POST), model, tmp_path / "baked", mode="ablate")
    assert list(tmp_path.glob("*/*")) == []


def test_a_share_of_an_ablation_and_two_vectors_are_refused(decoder: Load, tmp_path: Path) -> None:
    model = decoder("llama")
    vectors = [vector_at(model, POST), vector_at(model, "blocks.0.hook_resid_post")]
    with pytest.raises(ValueError, match=r"scale 0\.5; expected 1"):
        bake_vector(vectors[0], model, tmp_path / "baked", mode="ablate", scale=0.5)
    with pytest.raises(ValueError, match="2 vectors; expected one"):
        bake_vector(vectors, model, tmp_path / "baked", mode="ablate")
