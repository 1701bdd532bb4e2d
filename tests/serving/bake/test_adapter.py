"""Vectors as LoRA of rank 1, which PEFT loads."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_lens.adapters.vectors import ablation_hooks
from lrt_lens.errors import HookPointError
from lrt_lens.models import HookedModel
from lrt_lens.serving import bake_vector
from tests.models.decoders import DECODERS, build_decoder
from tests.serving.bake.logits import hooked_logits, largest_difference, rows_of, vector_at

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'lrt-lens[peft]'")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Load = Callable[[str], HookedModel]
POST, FIRST, EMBED = "blocks.1.hook_resid_post", "blocks.0.hook_resid_pre", "hook_embed"


def adapted_logits(name: str, folder: Path, rows: Tensor, vocabulary: int) -> Tensor:
    """Return the logits of a new model of a recipe with the adapter in a folder."""
    base = build_decoder(next(one for one in DECODERS if one.name == name), vocabulary)
    adapted: Any = peft.PeftModel.from_pretrained(base, folder).eval()
    with torch.inference_mode():
        return adapted(input_ids=rows).logits


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("llama", POST),
        ("llama", "blocks.1.hook_resid_mid"),
        ("gpt2", POST),
        ("mistral-window", POST),
        ("llama-tied", FIRST),
        ("gpt2", EMBED),
        ("gemma3_text-window", FIRST),
    ],
)
def test_an_adapter_adds_what_the_hook_adds(
    decoder: Load, tmp_path: Path, name: str, hook: str
) -> None:
    model = decoder(name)
    vector = vector_at(model, hook)
    folder = bake_vector(vector, model, tmp_path / "adapter", scale=-1.5, form="lora")
    rows = rows_of(model)
    hooked = hooked_logits(model, [vector], rows, -1.5)
    got = adapted_logits(name, folder, rows, model.d_vocab)
    assert largest_difference(got, hooked) <= 1e-4
    assert (folder / "adapter_model.safetensors").stat().st_size < 100_000
    assert not hasattr(model.engine.model, "peft_config")


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_an_adapter_ablates_at_every_hook_point(decoder: Load, tmp_path: Path, name: str) -> None:
    model = decoder(name)
    vector = vector_at(model, POST)
    folder = bake_vector(vector, model, tmp_path / "adapter", mode="ablate", form="lora")
    rows = rows_of(model)
    with model.intervene({**ablation_hooks(model, vector.direction, skip_first=0)}):
        ablated = model.logits(rows)
    assert largest_difference(adapted_logits(name, folder, rows, model.d_vocab), ablated) <= 1e-4


def test_what_no_adapter_can_do_is_refused(decoder: Load, tmp_path: Path) -> None:
    gemma, gpt2, out = decoder("gemma2"), decoder("gpt2"), tmp_path / "adapter"
    with pytest.raises(HookPointError, match="no matrix but a norm"):
        bake_vector(vector_at(gemma, POST), gemma, out, form="lora")
    with pytest.raises(ValueError, match="has a bias, which a LoRA does not project"):
        bake_vector(vector_at(gpt2, POST), gpt2, out, mode="ablate", form="lora")
    both = [vector_at(gpt2, POST), vector_at(gpt2, FIRST)]
    with pytest.raises(ValueError, match="Bake two adapters"):
        bake_vector(both, gpt2, out, form="lora")
    assert list(tmp_path.glob("*/*")) == []


def test_a_missing_peft_is_named(
    decoder: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    model = decoder("llama")
    with pytest.raises(ImportError, match=r"pip install 'lrt-lens\[peft\]'"):
        bake_vector(vector_at(model, POST), model, tmp_path / "adapter", form="lora")
    assert not (tmp_path / "adapter").exists()
