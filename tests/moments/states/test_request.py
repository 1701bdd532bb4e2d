"""Requests hold the windows of a harvest, and the program of the engine runs each of them once."""

import json
import runpy
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

import lrt_lens as lrt
from lrt_lens.moments import harvest
from lrt_lens.moments.states import harvest_states, request_states
from tests.moments.states.layouts import hidden_states, largest_difference, write_sequence

SETTINGS: dict[str, Any] = {"n_tokens": 3_000, "context_length": 24}


def windows(folder: Path) -> list[list[int]]:
    return [json.loads(line) for line in (folder / "windows.jsonl").read_text().splitlines()]


def run_engine(folder: Path, model: Any) -> None:
    """Do what the program does, with plain transformers."""
    layer_ids = json.loads((folder / "states.json").read_text())["layer_ids"]
    for number, ids in enumerate(windows(folder)):
        write_sequence(folder / f"{number}.safetensors", model, ids, layer_ids)


@pytest.mark.parametrize("tokenizers", [1, 2])
def test_requested_states_give_the_moments_of_the_models(
    pair: Any, load: Any, train_tokenizer: Any, corpus: list[str], tmp_path: Path, tokenizers: int
) -> None:
    if tokenizers == 2:
        other = load("llama", d=24, layers=3, seed=1, tokenizer=train_tokenizer(vocabulary=300))
        pair = lrt.ModelPair(pair.source, other)
    layers: dict[str, Any] = {"source": [0, 1], "target": "all"}
    for role, other in (("source", pair.target), ("target", pair.source)):
        made = request_states(
            tmp_path / role,
            getattr(pair, role),
            corpus,
            other=other,
            role=role,
            layers=layers[role],
            **SETTINGS,
        )
        assert made.n_sequences == len(windows(tmp_path / role))
        assert made.layer_ids == ((0, 1, 2) if role == "source" else (1, 2, 3))
        run_engine(tmp_path / role, getattr(pair, role))
    truth = harvest(pair, corpus, progress=False, **SETTINGS)
    found = harvest_states(
        tmp_path / "source",
        tmp_path / "target",
        corpus,
        tokenizers=(pair.source.tokenizer, pair.target.tokenizer),
        progress=False,
        **SETTINGS,
    )
    # Float32, and other batches than those of the models.
    assert largest_difference(truth, found) < 1e-4
    assert found.n_tokens == truth.n_tokens
    assert found.token_hook == "hook_embed"
    assert found.provenance.source == pair.source.identity
    assert found.provenance.target == pair.target.identity


def test_config_and_tokenizer_of_a_folder_are_enough(
    model_folder: Path, corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    made = request_states(tmp_path / "r", model_folder, corpus, **SETTINGS)
    manifest = json.loads((tmp_path / "r" / "states.json").read_text())
    assert manifest["model"] == str(model_folder)
    assert manifest["identity"] is None
    assert manifest["n_sequences"] == made.n_sequences
    assert "run_vllm.py" in made.command


def test_nothing_is_overwritten(pair: Any, corpus: list[str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(lrt.errors.FileFormatError, match="holds files already"):
        request_states(tmp_path, pair.target, corpus, **SETTINGS)
    request_states(tmp_path / "r", pair.target, corpus, **SETTINGS)
    with pytest.raises(lrt.errors.FileFormatError, match="holds a request"):
        request_states(tmp_path / "r", pair.target, corpus, **SETTINGS)
    with pytest.raises(lrt.errors.HookPointError, match="has 3 blocks"):
        request_states(tmp_path / "s", pair.target, corpus, layers=[3], **SETTINGS)
    with pytest.raises(lrt.errors.HookPointError, match="hook_resid_mid"):
        request_states(
            tmp_path / "s", pair.target, corpus, layers="blocks.1.hook_resid_mid", **SETTINGS
        )
    assert not (tmp_path / "s").exists()


class FakeLLM:
    """Stands for vLLM: files with a lock that is left behind, named by the engine."""

    made: ClassVar[list[dict[str, Any]]] = []
    model: ClassVar[Any] = None
    fails_at: ClassVar[int | None] = None

    def __init__(self, **options: Any) -> None:
        FakeLLM.made.append(options)
        self.folder = Path(
            options["kv_transfer_config"]["kv_connector_extra_config"]["shared_storage_path"]
        )
        hf_config = options["speculative_config"]["draft_model_config"]["hf_config"]
        self.layer_ids = sorted(hf_config["eagle_aux_hidden_state_layer_ids"])
        self.n_requests = 0

    def generate(self, prompts: list[dict[str, list[int]]], settings: Any, **_: Any) -> list[Any]:
        outputs = []
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            if self.n_requests == self.fails_at:
                raise KeyboardInterrupt
            path = self.folder / f"{self.n_requests}-ab12.safetensors"
            self.n_requests += 1
            Path(f"{path}.lock").touch()
            states = hidden_states(FakeLLM.model, ids, self.layer_ids).contiguous()
            save_file({"hidden_states": states, "token_ids": torch.tensor(ids)}, path)
            outputs.append(
                types.SimpleNamespace(
                    prompt_token_ids=ids, kv_transfer_params={"hidden_states_path": str(path)}
                )
            )
        return outputs


def test_the_program_of_vllm_goes_on_where_it_was_stopped(
    pair: Any, corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r"
    made = request_states(folder, pair.target, corpus, layers=[1, 2], **SETTINGS)
    vllm: Any = types.ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = FakeLLM, lambda **_: None
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(sys, "argv", ["run_vllm.py", "--batch", "8", "--options", '{"seed": 3}'])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(FakeLLM, "model", pair.target)
    monkeypatch.setattr(FakeLLM, "made", [])
    monkeypatch.setattr(FakeLLM, "fails_at", 20)
    with pytest.raises(KeyboardInterrupt):
        runpy.run_path(str(folder / "run_vllm.py"), run_name="__main__")
    done = (folder / "numbers.txt").read_text().split()
    assert done == [str(number) for number in range(16)]
    monkeypatch.setattr(FakeLLM, "fails_at", None)
    # The harvest may have deleted what it has used.
    kept = (folder / "0.safetensors").read_bytes()
    (folder / "0.safetensors").unlink()
    runpy.run_path(str(folder / "run_vllm.py"), run_name="__main__")
    assert len((folder / "numbers.txt").read_text().split()) == made.n_sequences
    assert not (folder / "0.safetensors").exists()
    (folder / "0.safetensors").write_bytes(kept)
    assert not list((folder / ".vllm").glob("*.lock"))
    options = FakeLLM.made[-1]
    assert options["seed"] == 3
    assert options["max_model_len"] == 25
    found = harvest_states(pair.source, folder, corpus, progress=False, **SETTINGS)
    truth = harvest(pair, corpus, target_layers=[1, 2], progress=False, **SETTINGS)
    assert largest_difference(truth, found) < 1e-4
    runpy.run_path(str(folder / "run_vllm.py"), run_name="__main__")
    assert len(FakeLLM.made) == 2  # nothing is left to do


def test_the_program_explains_itself_without_vllm(
    pair: Any, corpus: list[str], tmp_path: Path
) -> None:
    request_states(tmp_path / "r", pair.target, corpus, **SETTINGS)
    command = [sys.executable, "-S", str(tmp_path / "r" / "run_vllm.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--tensor-parallel-size" in shown
