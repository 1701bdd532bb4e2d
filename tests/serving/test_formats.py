"""Every format: what is in the file, read by something else, and what it cannot express."""

import base64
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lrt_lens import serving
from lrt_lens.adapters.vectors import SteeringVector, Strength
from lrt_lens.errors import MismatchError
from lrt_lens.serving import FORMATS, export_vectors, import_vectors
from tests.serving.vectors import make_vector

SCALE = 2.5


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a GGUF file by the reader of the package gguf."""
    reader = gguf.GGUFReader(path)
    return {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def keys_of(path: Path) -> dict[str, Any]:
    """Return the keys of a GGUF file by the reader of the package gguf."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("to", ["llama.cpp", "repeng"])
def test_control_vector(vector: SteeringVector, tmp_path: Path, to: str) -> None:
    path = vector.export(tmp_path / "mood.gguf", to, scale=SCALE)
    found = tensors_of(path)
    assert list(found) == ["direction.2"], "the output of block 2"
    np.testing.assert_array_equal(found["direction.2"], (SCALE * vector.direction).numpy())
    assert found["direction.2"].dtype == np.float32
    keys = keys_of(path)
    assert keys["general.architecture"] == "controlvector"
    assert keys["controlvector.model_hint"] == "llama"
    assert keys["controlvector.layer_count"] == 1
    for key, value in {
        "model": vector.model.name,
        "revision": vector.model.revision,
        "hook_points": vector.hook,
        "method": vector.method,
        "scale": "2.5",
    }.items():
        assert keys[f"lrt_lens.{key}"] == value
    record = json.loads(keys["lrt_lens.record"])
    assert record["strength"]["scale"] == SCALE
    assert record["vectors"][0]["hook"] == "blocks.2.hook_resid_post"
    assert record["model"]["config_hash"] == vector.model.config_hash


def test_glp_ablates_a_subspace(model: Any, tmp_path: Path) -> None:
    first, second = make_vector(model, 2), make_vector(model, 2, seed=1)
    path = export_vectors([first, second], tmp_path / "v.gguf", "glp", mode="ablate", scale=0.5)
    found, keys = tensors_of(path), keys_of(path)
    basis = np.stack([found["direction.2"], found["direction.2.1"]])
    np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-6)
    # The span is that of the vectors, and the first keeps its direction.
    given = torch.stack([first.direction, second.direction]).numpy()
    np.testing.assert_allclose(given @ basis.T @ basis, given, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(basis[0], given[0] / np.linalg.norm(given[0]), atol=1e-6)
    assert keys["glp.mode"] == "project"
    assert (keys["glp.spec_version"], keys["glp.rank"], keys["glp.alpha_default"]) == (2, 2, 0.5)
    assert keys["glp.hook_point"] == "residual_stream_post_layer"
    assert keys["glp.orthonormal"] is True
    assert keys["glp.layer_ids_zero_based"] == "2"
    assert keys["general.base_model.0.name"] == model.name
    back = import_vectors(path, model=model)
    assert [one.hook for one in back] == [first.hook] * 2
    assert {one.strength.mode for one in back if one.strength} == {"ablate"}


def test_glp_adds_with_the_scale_in_the_numbers(vector: SteeringVector, tmp_path: Path) -> None:
    path = vector.export(tmp_path / "v.gguf", "glp", scale=SCALE)
    keys = keys_of(path)
    assert (keys["glp.mode"], keys["glp.alpha_default"], keys["glp.spec_version"]) == ("add", 1, 1)
    expected = (SCALE * vector.direction).numpy()
    np.testing.assert_array_equal(tensors_of(path)["direction.2"], expected)


def test_vllm_lens(vector: SteeringVector, tmp_path: Path) -> None:
    content = json.loads(vector.export(tmp_path / "v", "vllm-lens", scale=SCALE).read_text())
    stored = content["activations"]
    octets = base64.b64decode(stored["data"])
    found = np.frombuffer(octets, np.dtype(stored["dtype"])).reshape(stored["shape"])
    np.testing.assert_array_equal(found, vector.direction.numpy()[None])
    assert content["layer_indices"] == [2]
    assert (content["scale"], content["norm_match"]) == (SCALE, False)
    assert content["position_indices"] is None


@pytest.mark.parametrize(
    ("mode", "level", "expected"),
    [
        ("add", None, ("add", SCALE)),
        ("clamp", 4.0, ("clamp", 4.0)),
        ("ablate", None, ("clamp", 0.0)),
    ],
)
def test_lm_eval(
    vector: SteeringVector, tmp_path: Path, mode: Any, level: float | None, expected: tuple
) -> None:
    scale = SCALE if mode == "add" else None
    path = vector.export(tmp_path / "v.pt", "lm-eval", scale=scale, mode=mode, level=level)
    [(name, entry)] = torch.load(path, weights_only=True).items()
    assert name == "layers.2", "the name below model.base_model"
    assert (entry["action"], entry["steering_coefficient"]) == expected
    assert torch.equal(entry["steering_vector"], vector.direction)
    assert entry["bias"] is None


def test_lm_eval_names_the_blocks_of_the_architecture(load: Any, tmp_path: Path) -> None:
    for architecture, expected in (("gpt2", "h.1"), ("neox", "layers.1"), ("llama", "layers.1")):
        model = load(architecture)
        path = make_vector(model, 1).export(tmp_path / f"{architecture}.pt", "lm-eval")
        [name] = torch.load(path, weights_only=True)
        assert name == expected
        assert name in dict(model.engine.model.base_model.named_modules())


def test_steering_vectors(model: Any, tmp_path: Path) -> None:
    vectors = [make_vector(model, block) for block in (0, 3)]
    path = export_vectors(vectors, tmp_path / "v.pt", "steering-vectors", scale=SCALE)
    content = torch.load(path, weights_only=True)
    assert content["layer_type"] == "decoder_block"
    assert list(content["layer_activations"]) == [0, 3]
    assert torch.equal(content["layer_activations"][3], SCALE * vectors[1].direction)


def test_aisteer360(vector: SteeringVector, tmp_path: Path) -> None:
    content = json.loads(vector.export(tmp_path / "v", "aisteer360", scale=SCALE).read_text())
    assert content["model_type"] == "llama"
    [(block, rows)] = content["directions"].items()
    assert block == "2"
    assert torch.equal(torch.tensor(rows), (SCALE * vector.direction)[None])


def test_neuronpedia(vector: SteeringVector, tmp_path: Path) -> None:
    content = json.loads(vector.export(tmp_path / "v", "neuronpedia", scale=SCALE).read_text())
    assert (content["layerNumber"], content["hookType"]) == (3, "hook_resid_pre")
    assert torch.equal(torch.tensor(content["vector"]), vector.direction)
    assert content["vectorDefaultSteerStrength"] == SCALE
    assert (content["vectorLabel"], content["modelId"]) == ("mood", vector.model.name)


def test_transformers(vector: SteeringVector, tmp_path: Path) -> None:
    folder = vector.export(tmp_path / "steering", "transformers", scale=SCALE)
    assert torch.equal(load_file(folder / "directions.safetensors")["2"], vector.direction)
    assert json.loads((folder / "export.json").read_text())["strength"]["skip_first"] == 4


# -------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("to", FORMATS)
def test_read_back_and_written_again_it_is_the_same(
    vector: SteeringVector, model: Any, tmp_path: Path, to: str
) -> None:
    path = vector.export(tmp_path / "one", to, scale=SCALE)
    back = SteeringVector.load(path, model=model)
    scale = back.strength.scale if back.strength else 1.0
    torch.testing.assert_close(scale * back.direction, SCALE * vector.direction)
    for name in ("hook", "name", "method", "model", "skip_first", "contrast"):
        assert getattr(back, name) == getattr(vector, name), name
    again = back.export(tmp_path / "two", to)
    first, second = (FORMATS[to].read(one) for one in (path, again))
    assert torch.equal(first.layers[2], second.layers[2])
    assert (first.scale, first.mode) == (second.scale, second.mode)


@pytest.mark.parametrize("to", [name for name, row in FORMATS.items() if row.several_blocks])
def test_several_hook_points_in_one_file(model: Any, tmp_path: Path, to: str) -> None:
    vectors = [make_vector(model, block, seed=block) for block in (1, 3)]
    path = export_vectors(vectors[::-1], tmp_path / "v", to)
    back = import_vectors(path, model=model)
    assert [one.hook for one in back] == [one.hook for one in vectors]
    for one, other in zip(back, vectors, strict=True):
        assert torch.equal(one.direction, other.direction)
    with pytest.raises(ValueError, match="choose one with at="):
        SteeringVector.load(path)
    assert SteeringVector.load(path, at=3).hook == vectors[1].hook


def test_the_same_content_gives_the_same_bytes(vector: SteeringVector, tmp_path: Path) -> None:
    for to, row in FORMATS.items():
        if row.suffix:
            first, second = (vector.export(tmp_path / f"{i}-{to}{row.suffix}", to) for i in "ab")
            # Zip archives of torch hold no time either.
            assert first.read_bytes() == second.read_bytes(), to


def test_the_stream_before_a_block_is_that_behind_the_one_before(
    model: Any, vector: SteeringVector, tmp_path: Path
) -> None:
    before = replace(vector, hook="blocks.3.hook_resid_pre")
    path = before.export(tmp_path / "v.gguf", "llama.cpp")
    assert list(tensors_of(path)) == ["direction.2"]
    assert SteeringVector.load(path).hook == "blocks.3.hook_resid_pre", "our own name is kept"


@pytest.mark.parametrize(
    ("to", "block", "mode", "match"),
    [
        ("llama.cpp", 0, "add", "block 0: its files begin at block 1; export to 'vllm-lens'"),
        ("repeng", 0, "add", "block 0"),
        ("glp", 0, "ablate", "block 0"),
        (
            "llama.cpp",
            2,
            "ablate",
            "mode 'ablate' .*; export to 'glp' or 'lm-eval' or 'transformers'",
        ),
        ("vllm-lens", 2, "ablate", "mode 'ablate'"),
        ("steering-vectors", 2, "ablate", "mode 'ablate'"),
        ("aisteer360", 2, "clamp", "mode 'clamp' .*; export to 'lm-eval' or 'transformers'"),
        ("glp", 2, "clamp", "mode 'clamp'"),
        ("neuronpedia", 3, "add", "block 3, the last one"),
    ],
)
def test_what_a_format_cannot_express_is_refused(
    model: Any, tmp_path: Path, to: str, block: int, mode: Any, match: str
) -> None:
    level = 1.0 if mode == "clamp" else None
    with pytest.raises(ValueError, match=match):
        make_vector(model, block).export(tmp_path / "v", to, mode=mode, level=level)
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    "hook", ["blocks.2.hook_resid_mid", "hook_embed", "blocks.0.hook_resid_pre"]
)
def test_other_places_in_the_stream_are_refused(
    vector: SteeringVector, tmp_path: Path, to: str, hook: str
) -> None:
    with pytest.raises(ValueError, match="every program steers the stream behind a block"):
        replace(vector, hook=hook).export(tmp_path / "v", to)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments(vector: SteeringVector, load: Any, model: Any, tmp_path: Path) -> None:
    path = tmp_path / "v"
    with pytest.raises(ValueError, match=r"to is 'ollama'; expected one of \['llama.cpp', 'glp'"):
        vector.export(path, "ollama")
    with pytest.raises(ValueError, match="give one"):
        vector.export(path, "glp", scale=1.0, damage=0.1)
    with pytest.raises(ValueError, match="model or neutral is missing"):
        vector.export(path, "glp", damage=0.1)
    for wrong in (float("nan"), float("inf"), 0.0, "2", True):
        with pytest.raises(ValueError, match="expected a finite number other than 0"):
            vector.export(path, "glp", scale=wrong)
    with pytest.raises(ValueError, match="makes vector 'mood' infinite"):
        vector.export(path, "glp", scale=3e38)
    for wrong in (float("nan"), "2"):
        with pytest.raises(ValueError, match="level is .*; expected a finite number"):
            vector.export(path, "lm-eval", mode="clamp", level=wrong)
    with pytest.raises(ValueError, match="only a clamp has a level"):
        vector.export(path, "lm-eval", level=1.0)
    with pytest.raises(ValueError, match="neutral is given without damage"):
        vector.export(path, "glp", neutral=["a text"], model=model)
    unknown = replace(vector, hook="blocks.9.hook_resid_post", model=None)
    with pytest.raises(ValueError, match="behind block 9, and the model has 4 blocks"):
        unknown.export(path, "llama.cpp", model=model)
    with pytest.raises(ValueError, match="span fewer dimensions"):
        export_vectors([vector, 2.0 * vector], path, "glp", mode="ablate")
    with pytest.raises(ValueError, match="'clamp' needs level"):
        vector.export(path, "lm-eval", mode="clamp")
    with pytest.raises(ValueError, match=r"lm-evaluation-harness.* reads .pt or .pth"):
        vector.export(tmp_path / "v.safetensors", "lm-eval")
    with pytest.raises(ValueError, match="at scale 0.5: it has the full strength alone"):
        vector.export(path, "lm-eval", mode="ablate", scale=0.5)
    with pytest.raises(ValueError, match="there is no vector"):
        export_vectors([], path, "glp")
    other = make_vector(load("llama", d=16, layers=4, seed=9), 1)
    with pytest.raises(MismatchError, match="config_hash"):
        export_vectors([vector, other], path, "glp")
    with pytest.raises(MismatchError, match="config_hash"):
        other.export(path, "glp", model=model)
    with pytest.raises(ValueError, match="2 directions at one block"):
        export_vectors([vector, make_vector(model, 2, seed=1)], path, "llama.cpp")
    with pytest.raises(ValueError, match="2 blocks in one file"):
        export_vectors([vector, make_vector(model, 1)], path, "neuronpedia")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", FORMATS)
def test_a_vector_of_an_unknown_model(vector: SteeringVector, tmp_path: Path, to: str) -> None:
    path = replace(vector, model=None).export(tmp_path / "v", to)
    back = SteeringVector.load(path)
    assert back.model is None
    assert torch.equal(back.direction, vector.direction)


@pytest.mark.parametrize("to", FORMATS)
def test_nothing_that_is_no_export_is_replaced(
    vector: SteeringVector, tmp_path: Path, to: str
) -> None:
    row = FORMATS[to]
    mine = tmp_path / f"mine{row.suffix}"
    if row.suffix:
        mine.write_bytes(b"a file of the user")
    else:
        mine.mkdir()
        (mine / "steer.py").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is no earlier export"):
        vector.export(mine, to)
    assert mine.is_dir() or mine.read_bytes() == b"a file of the user"
    own = vector.save(tmp_path / "own.safetensors")
    if to not in ("lm-eval", "aisteer360"):
        with pytest.raises(FileExistsError):
            vector.export(own, to)
        assert torch.equal(SteeringVector.load(own).direction, vector.direction)
    first = vector.export(tmp_path / "export", to)
    again = vector.export(first, to, scale=2.0)
    assert again == first


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_are_written_as_numbers(vector: SteeringVector, tmp_path: Path) -> None:
    options: dict[str, Any] = {"mode": "clamp", "level": np.float32(2.5), "scale": np.float64(1.0)}
    folder = vector.export(tmp_path / "steering", "transformers", **options)
    assert "LEVEL = 2.5\n" in (folder / "steer.py").read_text()
    path = vector.export(tmp_path / "v.pt", "lm-eval", **options)
    json.loads(Path(f"{path}.export.json").read_text(), parse_constant=pytest.fail)


def test_a_calibrated_scale_is_written_for_the_positions_that_it_holds_for(
    vector: SteeringVector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def strength(**fields: Any) -> Strength:
        return Strength(scale=1.5, damage=0.1, budget=0.1, n_texts=2, texts="00", **fields)

    def record(path: Path) -> dict[str, Any]:
        beside = path / "export.json" if path.is_dir() else Path(f"{path}.export.json")
        return json.loads(beside.read_text())

    every = replace(vector, strength=strength(positions="every"))
    for to in ("llama.cpp", "transformers"):
        written = record(every.export(tmp_path / f"every-{to[:5]}", to))
        assert written["strength"]["damage"] == 0.1
        assert written["strength"]["skip_first"] == 0
    assert "SKIP_FIRST" not in (tmp_path / "every-trans" / "steer.py").read_text()
    skipping = replace(vector, strength=strength(skip_first=4))
    written = record(skipping.export(tmp_path / "skip-t", "transformers"))
    assert (written["strength"]["damage"], written["strength"]["skip_first"]) == (0.1, 4)
    caplog.clear()
    written = record(skipping.export(tmp_path / "skip-l", "llama.cpp"))
    assert written["strength"]["damage"] is None, "it was measured at other positions"
    assert written["strength_of_apply"]["damage"] == 0.1
    assert "the damage is another one" in caplog.text
    last = replace(vector, strength=strength(positions="last"))
    with pytest.raises(ValueError, match="positions='last', which no program has alone"):
        last.export(tmp_path / "last", "llama.cpp")
    joint = replace(vector, strength=strength(positions="every", hooks=(vector.hook, "other")))
    written = record(joint.export(tmp_path / "joint", "llama.cpp"))
    assert written["strength"]["damage"] is None, "that of several vectors together"


def test_vectors_that_leave_out_other_positions_need_two_scripts(
    model: Any, tmp_path: Path
) -> None:
    vectors = [make_vector(model, 1), make_vector(model, 2, skip_first=0)]
    with pytest.raises(ValueError, match=r"leave out the first \[0, 4\] positions"):
        export_vectors(vectors, tmp_path / "v", "transformers")
    export_vectors(vectors, tmp_path / "v", "llama.cpp")


@pytest.mark.parametrize(
    ("method", "function"), [("export", "export_vectors"), ("bake", "bake_vector")]
)
def test_help_of_a_method_lists_the_options_of_its_function(
    vector: SteeringVector, method: str, function: str
) -> None:
    own, below = (
        {
            name: (one.kind, one.default)
            for name, one in inspect.signature(call).parameters.items()
            if one.kind is inspect.Parameter.KEYWORD_ONLY
        }
        for call in (getattr(vector, method), getattr(serving, function))
    )
    assert own == below
    with pytest.raises(TypeError, match="unexpected keyword argument 'foo'"):
        getattr(vector, method)("a", "b", foo=1)
