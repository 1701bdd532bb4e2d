"""The script for plain transformers steers as our hook does, however the model is called."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from lrt_lens._tensor_files import write_tensors
from lrt_lens.adapters.vectors import Intervention, SteeringVector
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.serving import check_export, export_vectors
from lrt_lens.serving.formats._script import SCRIPT_SCHEMA, ScriptFields, read_script, script
from tests.serving.vectors import make_vector

IDS = torch.tensor([[11, 5, 9, 30, 41, 17, 8, 60, 3, 22]])


def module_of(folder: Path) -> Any:
    """Return the exported script as a module."""
    module = ModuleType("steer")
    path = folder / "steer.py"
    module.__file__ = str(path)
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


def logits(model: Any, **inputs: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs).logits


def both(
    model: Any, vectors: list[SteeringVector], folder: Path, call: Any, **options: Any
) -> tuple[Any, Any]:
    """Return what a call gives under the script and under our hooks."""
    scale = options.get("scale", 1.0)
    path = export_vectors(vectors, folder / "steering", "transformers", **options)
    handles = module_of(path).steer(model.engine.model)
    theirs = call(model.engine.model)
    for handle in handles:
        handle.remove()
    level, mode = options.get("level"), options.get("mode", "add")
    levels = () if level is None else [level] * len(vectors)
    with Intervention.of(vectors, mode=mode, levels=levels).apply(model, scale=scale):
        ours = call(model.engine.model)
    return theirs, ours


@pytest.mark.parametrize("skip_first", [0, 4])
@pytest.mark.parametrize(
    ("mode", "scale", "level"), [("add", -1.7, None), ("ablate", 0.6, None), ("clamp", 1.0, 5.0)]
)
def test_one_pass(
    model: Any, tmp_path: Path, skip_first: int, mode: Any, scale: float, level: float | None
) -> None:
    vectors = [make_vector(model, block, seed=block, skip_first=skip_first) for block in (1, 3)]

    def call(hf: Any) -> torch.Tensor:
        return logits(hf, input_ids=IDS)

    plain = call(model.engine.model)
    options = {"mode": mode, "scale": scale, "level": level}
    theirs, ours = both(model, vectors, tmp_path, call, **options)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    changed = (theirs - plain).abs().amax((0, 2)) > 1e-6
    assert int(changed.int().argmax()) == skip_first, "the first position that is steered"
    torch.testing.assert_close(call(model.engine.model), plain)


def test_rows_with_padding_on_the_left(model: Any, vector: SteeringVector, tmp_path: Path) -> None:
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), IDS[:, :7]], 1)
    mask = torch.tensor([[0] * 3 + [1] * 7, [1] * 10])
    inputs = {"input_ids": torch.cat([padded, IDS]), "attention_mask": mask}

    def call(hf: Any) -> torch.Tensor:
        return logits(hf, **inputs)[0, 3:]

    theirs, ours = both(model, [vector], tmp_path, call)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)

    def alone(hf: Any) -> torch.Tensor:
        positions = torch.arange(7)[None]
        return logits(hf, input_ids=IDS[:, :7], position_ids=positions)[0]

    without, _ = both(model, [vector], tmp_path, alone)
    torch.testing.assert_close(theirs.argmax(-1), without.argmax(-1))


def test_a_static_cache_with_padding_on_the_left(
    model: Any, vector: SteeringVector, tmp_path: Path
) -> None:
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), IDS[:, :6]], 1)
    rows = {"input_ids": torch.cat([padded, IDS]), "attention_mask": torch.ones(2, 10).long()}
    rows["attention_mask"][0, :4] = 0

    def call(hf: Any, **options: Any) -> torch.Tensor:
        found = hf.generate(
            **rows,
            max_new_tokens=5,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
        return torch.stack(found.logits)

    folder = vector.export(tmp_path / "steering", "transformers")
    handles = module_of(folder).steer(model.engine.model)
    plain, static = (
        call(model.engine.model, **options) for options in ({}, {"cache_implementation": "static"})
    )
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(static, plain, rtol=1e-4, atol=1e-4)
    with vector.apply(model):
        ours = call(model.engine.model)
    torch.testing.assert_close(plain, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False])
def test_new_text(model: Any, vector: SteeringVector, tmp_path: Path, use_cache: bool) -> None:
    # The prompt ends before the first steered position, so counting goes on behind the cache.
    strong = replace(vector, direction=4.0 * vector.direction)

    def call(hf: Any) -> list[int]:
        options = {"max_new_tokens": 12, "do_sample": False, "use_cache": use_cache}
        return hf.generate(IDS[:, :3], attention_mask=torch.ones(1, 3), **options)[0].tolist()

    plain = call(model.engine.model)
    theirs, ours = both(model, [strong], tmp_path, call)
    assert theirs == ours
    assert theirs != plain


def test_an_architecture_whose_blocks_return_tuples(load: Any, tmp_path: Path) -> None:
    for architecture in ("gpt2", "neox", "gemma", "qwen2"):
        model = load(architecture)
        vectors = [make_vector(model, 1)]
        theirs, ours = both(model, vectors, tmp_path, lambda hf: logits(hf, input_ids=IDS))
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "field", ["name", "blocks", "skip_first", "mode", "scale", "level", "quotes in blocks"]
)
def test_values_of_a_file_cannot_become_code(
    model: Any, vector: SteeringVector, tmp_path: Path, field: str
) -> None:
    """A folder of somebody else, with values that would end a line or the docstring."""
    evil = f'""";open("{tmp_path}/ran","w").close();"""'
    folder = vector.export(tmp_path / "steering", "transformers")
    served = read_script(folder)
    identity = dict(served.record["model"], name=evil)
    changed = {
        "name": {"record": dict(served.record, model=identity)},
        "blocks": {"blocks": evil},
        "skip_first": {"skip_first": f"0\nopen({str(tmp_path / 'ran')!r}, 'w')"},
        "mode": {"mode": evil},
        "scale": {"scale": evil},
        "level": {"level": evil, "mode": "clamp"},
        "quotes in blocks": {"blocks": "model'layers"},
    }[field]
    tensors = {str(block): rows[0] for block, rows in served.layers.items()}
    content = {key: getattr(served, key) for key in ScriptFields.__annotations__} | changed
    metadata = {"schema_version": SCRIPT_SCHEMA, "served": json.dumps(content)}
    write_tensors(folder / "directions.safetensors", tensors, metadata)
    forged = SimpleNamespace(**{**vars(served), **changed})
    with contextlib.suppress(Exception):
        (folder / "steer.py").write_text(script(forged))  # type: ignore[arg-type]
    with contextlib.suppress(FileFormatError, MismatchError):
        check_export(folder, model)
    assert not (tmp_path / "ran").exists()
