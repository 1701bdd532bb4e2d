"""A baked folder computes, without this package, what a vector's hook computes."""

import copy
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrt_lens.adapters.vectors import SteeringVector, Strength
from lrt_lens.bundled import DEMO_FOLDER, demo_contrast
from lrt_lens.errors import FileFormatError, HookPointError, MismatchError
from lrt_lens.models import HookedModel
from lrt_lens.serving import bake_vector
from tests.serving.bake.logits import (
    hooked_logits,
    largest_difference,
    plain_logits,
    rows_of,
    vector_at,
)

Load = Callable[[str], HookedModel]
POST, MID, PRE = "blocks.1.hook_resid_post", "blocks.1.hook_resid_mid", "blocks.2.hook_resid_pre"
FIRST, EMBED = "blocks.0.hook_resid_pre", "hook_embed"
RECORD = "lrt_lens_bake.json"

PLACES = [
    # a bias that is there
    ("gpt2", POST, "transformer.h.1.mlp.c_proj.bias"),
    ("gpt2", MID, "transformer.h.1.attn.c_proj.bias"),
    ("gpt_neox", POST, "gpt_neox.layers.1.mlp.dense_4h_to_h.bias"),
    ("opt", POST, "model.decoder.layers.1.fc2.bias"),
    ("opt-post_norm", POST, "model.decoder.layers.1.final_layer_norm.bias"),
    ("phi", POST, "model.layers.1.mlp.fc2.bias"),
    ("bloom", PRE, "transformer.h.1.mlp.dense_4h_to_h.bias"),
    ("llama-biased", POST, "model.layers.1.mlp.down_proj.bias"),
    ("gpt_oss", MID, "model.layers.1.self_attn.o_proj.bias"),
    # a switch of the config
    ("llama", POST, "config.mlp_bias"),
    ("llama", MID, "config.attention_bias"),
    ("qwen3", MID, "config.attention_bias"),
    ("falcon", POST, "config.bias"),
    ("granite-multipliers", POST, "config.mlp_bias"),
    # an equal Llama
    ("mistral", POST, "config.model_type"),
    ("qwen2", POST, "config.model_type"),
    # an added block
    ("mistral-window", POST, "model.layers.2"),
    ("qwen3", PRE, "model.layers.2"),
    ("gemma", POST, "model.layers.2"),
    ("gemma2", POST, "model.layers.2"),
    ("gemma3_text-window", MID, "model.layers.2"),
    ("olmo2", POST, "model.layers.2"),
    # a table
    ("gpt2", EMBED, "transformer.wpe.weight"),
    ("llama", FIRST, "model.embed_tokens.weight"),
    ("llama-tied", FIRST, "config.tie_word_embeddings"),
    ("gemma2", EMBED, "config.tie_word_embeddings"),
    ("gemma3_text-window", FIRST, "model.embed_tokens.weight"),
    ("bloom", EMBED, "transformer.word_embeddings_layernorm.bias"),
]


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RECORD).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "hook", "changed"), PLACES)
def test_baked_weights_compute_what_the_hook_computes(
    decoder: Load, tmp_path: Path, name: str, hook: str, changed: str
) -> None:
    model = decoder(name)
    vector = vector_at(model, hook)
    folder = bake_vector(vector, model, tmp_path / "baked", scale=1.5)
    rows = rows_of(model)
    plain, hooked = model.logits(rows), hooked_logits(model, [vector], rows, 1.5)
    assert largest_difference(plain_logits(folder, rows), hooked) <= 1e-4
    assert largest_difference(hooked, plain) > 0.1
    record = record_of(folder)
    assert changed in record["changes"]
    assert record["measured"]["largest_difference"] <= 1e-4


def test_a_bake_of_a_strength_for_every_position_differs_from_the_hook_nowhere(
    decoder: Load, tmp_path: Path
) -> None:
    model = decoder("gpt2")
    strength = Strength(1.5, positions="every")
    vector = replace(vector_at(model, POST), strength=strength, skip_first=4)
    folder = bake_vector(vector, model, tmp_path / "baked")
    assert record_of(folder)["positions"]["differ"] == []
    rows = rows_of(model)
    with vector.apply(model):
        hooked = model.logits(rows)
    assert largest_difference(plain_logits(folder, rows), hooked) <= 1e-4
    other = bake_vector(vector, model, tmp_path / "other", scale=2.0)
    assert record_of(other)["positions"]["differ"] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["mixtral", "mpt", "deepseek_v3", "apertus"])
def test_architectures_without_a_place_are_refused_by_name(
    decoder: Load, tmp_path: Path, name: str
) -> None:
    model = decoder(name)
    with pytest.raises(HookPointError, match=f"{name}.*no block can be added because.*export"):
        bake_vector(vector_at(model, POST), model, tmp_path / "baked")
    assert list(tmp_path.glob("*/*")) == []


def test_an_architecture_that_reads_the_number_of_a_block_is_refused(
    decoder: Load, tmp_path: Path
) -> None:
    # DiffLlama's attention depends on the number of its block, which an added block changes.
    model = decoder("diffllama")
    with pytest.raises(MismatchError, match="by other amounts than as a hook"):
        bake_vector(vector_at(model, POST), model, tmp_path / "baked")
    assert list(tmp_path.glob("*/*")) == []


def test_biases_are_added_to_and_nothing_else_changes(decoder: Load, tmp_path: Path) -> None:
    model = decoder("gpt2")
    before = {name: value.clone() for name, value in model.engine.model.state_dict().items()}
    settings = model.engine.model.config.to_dict()
    vector = vector_at(model, POST)
    folder = bake_vector(vector, model, tmp_path / "baked", scale=-2.0)
    baked = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    name = "transformer.h.1.mlp.c_proj.bias"
    assert before[name].any()
    torch.testing.assert_close(baked[name], before[name] - 2.0 * vector.direction)
    for other in before.keys() - {name}:
        assert torch.equal(baked[other], before[other]), other
    # The model in memory stays as it was.
    assert model.engine.model.config.to_dict() == settings
    assert all(torch.equal(model.engine.model.state_dict()[n], v) for n, v in before.items())


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_several_hook_points_are_baked_together(decoder: Load, tmp_path: Path, name: str) -> None:
    model = decoder(name)
    hooks = [POST, FIRST, "blocks.0.hook_resid_mid", "blocks.0.hook_resid_post"]
    vectors = [vector_at(model, hook, seed=seed) for seed, hook in enumerate(hooks)]
    folder = bake_vector(vectors, model, tmp_path / "baked", scale=-0.7)
    rows = rows_of(model)
    hooked = hooked_logits(model, vectors, rows, -0.7)
    assert largest_difference(plain_logits(folder, rows), hooked) <= 1e-4


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text-window"])
def test_generation_with_a_cache_and_left_padding_is_that_of_the_hook(
    decoder: Load, tmp_path: Path, name: str
) -> None:
    model = decoder(name)
    vector = vector_at(model, POST)
    folder = bake_vector(vector, model, tmp_path / "baked", scale=1.5)
    baked: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = rows_of(model, 2, 8) % (model.d_vocab - 1) + 1  # none of them is padding
    mask = torch.ones_like(rows)
    mask[0, :3], rows[0, :3] = 0, 0
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 6, "min_new_tokens": 6}
    options |= {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    written = baked.generate(rows, **options)
    with vector.apply(model, scale=1.5):
        hooked = model.engine.model.generate(rows, **options)
    assert torch.equal(written.sequences, hooked.sequences)
    for one, other in zip(written.logits, hooked.logits, strict=True):
        assert largest_difference(one, other) <= 1e-4


def test_a_fresh_process_of_plain_transformers_computes_it(
    model_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    model = HookedModel.load(model_folder, tokenizer=tokenizer)
    vector = vector_at(model, POST)
    folder = bake_vector(vector, model_folder, tmp_path / "baked", scale=1.5)
    rows = rows_of(model)
    code = (
        "import sys, torch, transformers\n"
        "folder, out = sys.argv[1:]\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()\n"
        f"logits = model(torch.tensor({rows.tolist()})).logits\n"
        "assert 'lrt_lens' not in sys.modules\n"
        "torch.save(logits.detach(), out)\n"
    )
    out = tmp_path / "logits.pt"
    subprocess.run([sys.executable, "-c", code, folder, out], check=True, cwd=tmp_path)
    got = torch.load(out, weights_only=True)
    assert largest_difference(got, hooked_logits(model, [vector], rows, 1.5)) <= 1e-4
    # The folder is whole: the tokenizer and the settings of generation are there.
    ids = AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"]
    assert ids == tokenizer("the cat")["input_ids"]
    assert (folder / "generation_config.json").is_file()


def test_positions_that_only_the_bake_steers_are_named(
    decoder: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = decoder("llama")
    fields: dict[str, Any] = {"skip_first": 4, "name": "mood", "transferred_by": "stitch"}
    vector = replace(vector_at(model, POST), **fields)
    with caplog.at_level(logging.WARNING, "lrt_lens.serving"):
        folder = bake_vector(vector, model, tmp_path / "baked", scale=1.5)
    assert "leaves out positions 0 to 3" in caplog.text
    record, card = record_of(folder), (folder / "README.md").read_text(encoding="utf-8")
    assert record["positions"]["differ"] == [0, 1, 2, 3]
    assert record["vectors"][0]["transferred_by"] == "stitch"
    assert record["model"]["config_hash"] == model.identity.config_hash
    assert "Positions 0 to 3 are steered here" in card
    assert "transferred from another model by a stitch" in card
    # The hook of this vector does something else there, and only there.
    rows = rows_of(model)
    streams = [vector.hook_at(1.5), replace(vector, skip_first=0).hook_at(1.5)]
    with model.intervene({POST: streams[0]}):
        hooked = model.capture(rows, POST)
    with model.intervene({POST: streams[1]}):
        everywhere = model.capture(rows, POST)
    differs = (hooked != everywhere).any(-1).any(0)  # type: ignore[union-attr]
    assert differs.nonzero().flatten().tolist() == record["positions"]["differ"]


def test_bfloat16_stays_bfloat16(decoder: Load, tokenizer: Any, tmp_path: Path) -> None:
    for name in ("llama", "gemma3_text-window"):
        hf = AutoModelForCausalLM.from_pretrained(
            _saved(decoder(name), tokenizer, tmp_path / name), dtype=torch.bfloat16
        )
        folder = bake_vector(
            _of_any_model(vector_at(decoder(name), POST)),
            HookedModel.load(hf, tokenizer=tokenizer),
            tmp_path / f"{name}-baked",
        )
        baked = AutoModelForCausalLM.from_pretrained(folder)
        assert baked.dtype == torch.bfloat16
        assert record_of(folder)["dtype"] == "bfloat16"
        rows = rows_of(decoder(name))
        wanted = hooked_logits(decoder(name), [vector_at(decoder(name), POST)], rows, 1.0)
        effect = largest_difference(wanted, decoder(name).logits(rows))
        # float32 arithmetic with weights of bfloat16, of which the vector's are a few
        got = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(rows).logits
        assert largest_difference(got, wanted) < 0.1 * effect


def test_a_vector_of_the_bundled_model_in_bfloat16(tmp_path: Path) -> None:
    model = HookedModel.load(DEMO_FOLDER / "large", dtype="bfloat16")
    vector = SteeringVector.mean_difference(model, demo_contrast("sentiment"), at=3)
    for scale in (1.0, 2.5):
        measured = record_of(bake_vector(vector, model, tmp_path / f"{scale}", scale=scale))
        assert measured["measured"]["largest_difference"] < 0.3
        assert measured["dtype"] == "bfloat16"


def test_a_checkpoint_in_bfloat16_that_runs_in_float32_is_written_in_bfloat16(
    decoder: Load, tokenizer: Any, tmp_path: Path
) -> None:
    saved = _saved(decoder("llama"), tokenizer, tmp_path / "model", torch.bfloat16)
    folder = bake_vector(
        _of_any_model(vector_at(decoder("llama"), POST)), saved, tmp_path / "baked"
    )
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def _of_any_model(vector: SteeringVector) -> SteeringVector:
    return replace(vector, model=None)


def _saved(
    model: HookedModel, tokenizer: Any, folder: Path, dtype: torch.dtype = torch.float32
) -> Path:
    copy.deepcopy(model.engine.model).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_that_holds_something_else_is_refused(decoder: Load, tmp_path: Path) -> None:
    model = decoder("llama")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileFormatError, match=r"notes\.txt.*no bake has written"):
        bake_vector(vector_at(model, POST), model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_earlier_bake_is_replaced_as_a_whole(decoder: Load, tmp_path: Path) -> None:
    folder, model = tmp_path / "baked", decoder("gpt2")
    bake_vector(vector_at(model, POST), model, folder)
    # As if it had been larger.
    own = tmp_path / "mine.txt"
    own.write_text("mine")
    more = ["old.safetensors", "../mine.txt", str(own)]
    record = record_of(folder) | {"files": [*record_of(folder)["files"], *more]}
    (folder / RECORD).write_text(json.dumps(record))
    (folder / "old.safetensors").write_text("")
    bake_vector(vector_at(decoder("llama"), POST), decoder("llama"), folder)
    assert not (folder / "old.safetensors").exists()
    assert own.read_text() == "mine", "a record of somebody else names it"
    assert record_of(folder)["architecture"]["to"] == "LlamaForCausalLM"


def test_what_would_be_silently_wrong_is_refused(
    decoder: Load, tokenizer: Any, tmp_path: Path
) -> None:
    model, out = decoder("llama"), tmp_path / "baked"
    vector = vector_at(model, POST)
    with pytest.raises(MismatchError, match="config_hash"):
        bake_vector(vector, decoder("llama-tied"), out)
    with pytest.raises(ValueError, match="scale is 0"):
        bake_vector(vector, model, out, scale=0.0)
    with pytest.raises(ValueError, match="two|one for each hook point"):
        bake_vector([vector, vector_at(model, PRE)], model, out)
    lens = HookedModel.load(decoder("gpt2").bridge, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="runs in TransformerLens.*hub id"):
        bake_vector(_of_any_model(vector_at(lens, POST)), lens, out)
    assert not out.exists()


@pytest.mark.usefixtures("unchecked")
def test_a_clamp_is_refused(decoder: Load, tmp_path: Path) -> None:
    vector, mode = vector_at(decoder("llama"), POST), "clamp"
    with pytest.raises(ValueError, match="expected add or ablate.*clamp depends on the stream"):
        bake_vector(vector, decoder("llama"), tmp_path / "baked", mode=mode)  # type: ignore[arg-type]


def test_a_quantised_model_is_refused(decoder: Load, tokenizer: Any, tmp_path: Path) -> None:
    hf = copy.deepcopy(decoder("llama").engine.model)
    hf.model.layers[1].mlp.register_buffer("packed", torch.ones(2, 2, dtype=torch.int8))
    model = HookedModel.load(hf, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"quantised.*packed.*without quantisation"):
        bake_vector(vector_at(model, POST), model, tmp_path / "baked")


def test_interventions_of_the_caller_do_not_act_on_a_bake(decoder: Load, tmp_path: Path) -> None:
    model = decoder("gpt2")
    vector = vector_at(model, POST)
    with vector.apply(model, scale=3.0):
        folder = bake_vector(vector, model, tmp_path / "baked", scale=1.5)
    rows = rows_of(model)
    hooked = hooked_logits(model, [vector], rows, 1.5)
    assert largest_difference(plain_logits(folder, rows), hooked) <= 1e-4
