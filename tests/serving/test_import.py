"""Vectors of other programs: their files as those programs write them, and files that are wrong."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pyarrow
import pytest
import torch
from safetensors.torch import save_file

from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.serving import FORMATS, export_vectors, import_vectors
from tests.serving.vectors import make_vector

ROWS = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
Make = Callable[[Path], Path]


def gguf_file(
    tensors: dict[str, np.ndarray], keys: dict[str, Any] | None = None, hint: str = "llama"
) -> Make:
    """Return a function that writes a file as repeng does (its `export_gguf`)."""

    def make(folder: Path) -> Path:
        path = folder / "foreign.gguf"
        writer = gguf.GGUFWriter(path, "controlvector")
        writer.add_string("controlvector.model_hint", hint)
        writer.add_uint32("controlvector.layer_count", len(tensors))
        for key, value in (keys or {}).items():
            add = {str: writer.add_string, int: writer.add_uint32, bool: writer.add_bool}
            (add.get(type(value)) or writer.add_float32)(key, value)
        for name, value in tensors.items():
            writer.add_tensor(name, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


def torch_file(content: Any) -> Make:
    """Return a function that writes a file of torch.save."""

    def make(folder: Path) -> Path:
        torch.save(content, folder / "foreign.pt")
        return folder / "foreign.pt"

    return make


def json_file(content: Any, name: str = "foreign.json") -> Make:
    """Return a function that writes JSON."""

    def make(folder: Path) -> Path:
        (folder / name).write_text(json.dumps(content))
        return folder / name

    return make


def vllm_lens(rows: torch.Tensor, layers: list[int], **fields: Any) -> Make:
    """Return a function that writes a vector as ``vllm_lens.SteeringVector.model_dump`` does."""
    is_bfloat16 = rows.dtype == torch.bfloat16
    numbers = rows.view(torch.int16).numpy() if is_bfloat16 else rows.numpy()
    octets = pyarrow.compress(numbers.tobytes(), codec="zstd", asbytes=True)
    activations = {
        "data": base64.b64encode(octets).decode(),
        "dtype": str(numbers.dtype),
        "original_dtype": str(rows.dtype),
        "shape": list(numbers.shape),
        "compression": "zstd",
    }
    content = {
        "activations": activations,
        "layer_indices": layers,
        "scale": 1.5,
        "norm_match": False,
        "position_indices": None,
    }
    return json_file(content | fields)


def steer_entry(**changed: Any) -> dict[str, Any]:
    """Return the entry of a hook point in a file of lm-eval."""
    return {
        "steering_vector": torch.from_numpy(ROWS[0]),
        "steering_coefficient": 1.5,
        "action": "add",
        "bias": None,
    } | changed


DIRECTIONS = {f"direction.{i + 1}": row for i, row in enumerate(ROWS)}
FOREIGN: dict[str, tuple[str, Make, int, float]] = {
    "repeng": ("llama.cpp", gguf_file(DIRECTIONS), 3, 1.0),
    "glp project": (
        "glp",
        gguf_file(
            {"direction.2": ROWS[0] / np.linalg.norm(ROWS[0])},
            {"glp.mode": "project", "glp.spec_version": 1, "glp.alpha_default": 0.5},
        ),
        1,
        0.5,
    ),
    "glp add with a strength": (
        "glp",
        gguf_file({"direction.2": ROWS[0]}, {"glp.mode": "add", "glp.alpha_default": 4.0}),
        1,
        4.0,
    ),
    "vllm-lens": ("vllm-lens", vllm_lens(torch.from_numpy(ROWS), [0, 2, 3]), 3, 1.5),
    "vllm-lens bf16": ("vllm-lens", vllm_lens(torch.from_numpy(ROWS[:1]).bfloat16(), [2]), 1, 1.5),
    "lm-eval": ("lm-eval", torch_file({"layers.2": steer_entry()}), 1, 1.5),
    "lm-eval of GPT-2": (
        "lm-eval",
        torch_file({"h.1": steer_entry(), "h.3": steer_entry()}),
        2,
        1.5,
    ),
    "lm-eval ablation": (
        "lm-eval",
        torch_file({"layers.2": steer_entry(action="clamp", steering_coefficient=0.0)}),
        1,
        1.0,
    ),
    "lm-eval bf16": (
        "lm-eval",
        torch_file({"layers.2": steer_entry(steering_vector=torch.from_numpy(ROWS[0]).bfloat16())}),
        1,
        1.5,
    ),
    "steering-vectors": (
        "steering-vectors",
        torch_file(
            {
                "layer_activations": {i: torch.from_numpy(row) for i, row in enumerate(ROWS)},
                "layer_type": "decoder_block",
            }
        ),
        3,
        1.0,
    ),
    "aisteer360": (
        "aisteer360",
        json_file(
            {
                "model_type": "llama",
                "directions": {"1": ROWS[:1].tolist(), "3": ROWS[1:2].tolist()},
                "explained_variances": {"1": 0.25, "3": 0.5},
            },
            "foreign.svec",
        ),
        2,
        1.0,
    ),
    "neuronpedia": (
        "neuronpedia",
        json_file(
            {
                "modelId": "gemma-2-2b",
                "layerNumber": 3,
                "hookType": "hook_resid_pre",
                "vector": ROWS[0].tolist(),
                "vectorDefaultSteerStrength": 10,
                "vectorLabel": "happy",
            }
        ),
        1,
        10.0,
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_to_ours_to_foreign(name: str, model: Any, tmp_path: Path) -> None:
    to, make, n_vectors, scale = FOREIGN[name]
    path = make(tmp_path)
    is_other = name == "lm-eval of GPT-2"
    if is_other:
        with pytest.raises(MismatchError, match="names blocks 'h', and those of .* are 'layers'"):
            import_vectors(path, model=model)
    vectors = import_vectors(path, model=None if is_other else model)
    assert len(vectors) == n_vectors
    for vector in vectors:
        assert (vector.strength.scale if vector.strength else 1.0) == scale
        assert vector.skip_first == 0, "it steers the positions that the program steers"
        assert vector.model == (None if is_other else model.identity)
        assert vector.direction.dtype == torch.float32
        # Through a file of ours in between.
        vector.save(tmp_path / "ours.safetensors")
        assert SteeringVector.load(tmp_path / "ours.safetensors").file == vector.file
    again = export_vectors(vectors, tmp_path / f"again{path.suffix}", to)
    first, second = (FORMATS[to].read(one) for one in (path, again))
    assert first.layers.keys() == second.layers.keys()
    for block, rows in first.layers.items():
        assert rows.dtype == second.layers[block].dtype
        assert torch.equal(rows, second.layers[block])
    for field in ("mode", "scale", "level"):
        assert getattr(first, field) == getattr(second, field), field
    kept = {key: value for key, value in first.facts.items() if not key.startswith("glp.")}
    assert {key: second.facts.get(key) for key in kept} == kept


def test_the_layer_is_the_block_whose_output_is_steered(model: Any, tmp_path: Path) -> None:
    hooks = {
        name: [one.hook for one in import_vectors(make(tmp_path))]
        for name, (_, make, _, _) in FOREIGN.items()
    }
    post = "blocks.{}.hook_resid_post"
    assert hooks["repeng"] == [post.format(i) for i in (1, 2, 3)]
    assert hooks["vllm-lens"] == [post.format(i) for i in (0, 2, 3)]
    assert hooks["steering-vectors"] == [post.format(i) for i in (0, 1, 2)]
    assert hooks["neuronpedia"] == [post.format(2)], "the stream before block 3"
    assert hooks["lm-eval of GPT-2"] == [post.format(i) for i in (1, 3)]


def test_choosing_a_layer(model: Any, tmp_path: Path) -> None:
    path = gguf_file(DIRECTIONS)(tmp_path)
    vector = SteeringVector.load(path, at=2, model=model)
    assert (vector.hook, vector.name) == ("blocks.2.hook_resid_post", "foreign")
    np.testing.assert_array_equal(vector.direction.numpy(), ROWS[1])
    assert SteeringVector.load(path, at=-1, model=model).hook == "blocks.3.hook_resid_post"
    assert SteeringVector.load(path, at="blocks.2.hook_resid_pre").hook.startswith("blocks.1.")
    with pytest.raises(MismatchError, match=r"expected one at 'blocks.0.hook_resid_post'"):
        SteeringVector.load(path, at=0)
    with pytest.raises(ValueError, match="counts from the last block; give model="):
        SteeringVector.load(path, at=-1)


def test_an_imported_vector_is_transferred_without_its_file(model: Any, tmp_path: Path) -> None:
    vector = SteeringVector.load(FOREIGN["lm-eval"][1](tmp_path), model=model)
    assert vector.file is not None
    assert vector.file.format == "lm-eval"
    for changed in (2.0 * vector, -vector, vector + vector):
        assert changed.file is None
        assert changed.strength is None


def test_a_file_says_what_is_done_with_its_vector(model: Any, pair: Any, tmp_path: Path) -> None:
    for name, mode, scale in (("lm-eval ablation", "ablate", 1.0), ("lm-eval", "add", 1.5)):
        vector = SteeringVector.load(FOREIGN[name][1](tmp_path), model=model)
        tokens = torch.tensor([[7, 5, 9, 30, 41]])
        with vector.apply(model):
            found = model.logits(tokens)
        with vector.apply(model, scale=scale, mode=mode):
            expected = model.logits(tokens)
        assert torch.equal(found, expected)
        with vector.apply(model, mode="add", scale=1.0):
            assert not torch.equal(model.logits(tokens), found)


def test_our_own_files_are_told_from_others_whatever_their_length(
    vector: SteeringVector, tmp_path: Path
) -> None:
    # The first two bytes of a safetensors file are the length of its header, which may be those
    # of a pickle or a brace.
    lengths = set()
    for n in range(0, 300, 8):
        path = replace(vector, name="x" * n).save(tmp_path / "v.safetensors")
        lengths.add(int.from_bytes(path.read_bytes()[:8], "little"))
        assert SteeringVector.load(path).name == "x" * n
    assert len(lengths) > 30
    for length in (0x0280, 0x7B, 0x5B, 0x027B):
        header = path.read_bytes()
        (tmp_path / "w").write_bytes(length.to_bytes(8, "little") + header[8:])
        with pytest.raises(FileFormatError):
            SteeringVector.load(tmp_path / "w")


def test_a_file_of_any_number_of_layers_is_one_of_gguf(tmp_path: Path) -> None:
    # The number of tensors is the ninth byte: 123 is a brace, as in a safetensors file.
    rows = {f"direction.{i}": ROWS[0] for i in range(1, 124)}
    path = gguf_file(rows)(tmp_path)
    assert path.read_bytes()[8:9] == b"{"
    with pytest.raises(ValueError, match="choose one with at="):
        SteeringVector.load(path)


def test_float64_keeps_every_bit(model: Any, tmp_path: Path) -> None:
    row = torch.from_numpy(ROWS[0].astype(np.float64) / 3.0)
    path = torch_file({"layers.2": steer_entry(steering_vector=row)})(tmp_path)
    vector = SteeringVector.load(path, model=model)
    assert torch.equal(vector.direction, row)
    again = vector.export(tmp_path / "again.pt", "lm-eval")
    [entry] = torch.load(again, weights_only=True).values()
    assert torch.equal(entry["steering_vector"], row)


def test_lists_and_rows_as_their_programs_take_them(model: Any, tmp_path: Path) -> None:
    path = vllm_lens(torch.from_numpy(ROWS[:1]), [2])(tmp_path)
    one = json.loads(path.read_text())
    path.write_text(json.dumps([one]))
    assert SteeringVector.load(path).hook == "blocks.2.hook_resid_post"
    path.write_text(json.dumps([one, one]))
    with pytest.raises(FileFormatError, match="expected one vector"):
        SteeringVector.load(path)
    row = torch_file({"layers.2": steer_entry(steering_vector=torch.from_numpy(ROWS[:1]))})
    np.testing.assert_array_equal(SteeringVector.load(row(tmp_path)).direction.numpy(), ROWS[0])
    alone = torch_file({1: torch.from_numpy(ROWS[0]), 2: torch.from_numpy(ROWS[1])})
    assert [one.hook[:8] for one in import_vectors(alone(tmp_path))] == ["blocks.1", "blocks.2"]


@pytest.mark.usefixtures("unchecked")
def test_one_zero_direction_does_not_hide_the_others(tmp_path: Path) -> None:
    path = gguf_file({"direction.1": np.zeros(16, np.float32), "direction.2": ROWS[0]})(tmp_path)
    assert SteeringVector.load(path, at=np.int64(2)).hook == "blocks.2.hook_resid_post"
    with pytest.raises(FileFormatError, match="is zero"):
        import_vectors(path)


def test_a_subspace_is_not_cut_to_its_first_direction(model: Any, tmp_path: Path) -> None:
    vectors = [make_vector(model, 2), make_vector(model, 2, seed=1)]
    path = export_vectors(vectors, tmp_path / "v.gguf", "glp", mode="ablate")
    with pytest.raises(ValueError, match="a subspace of 2 directions"):
        SteeringVector.load(path, at=2)


# ------------------------------------------------------------------------------------ tensors alone


def bare(folder: Path) -> dict[str, Path]:
    """Return a tensor alone in each kind of file."""
    row = torch.from_numpy(ROWS[0])
    torch.save(row, folder / "tensor.pt")
    torch.save({"refusal": row[None]}, folder / "named.pt")
    np.save(folder / "array.npy", ROWS[0])
    save_file({"direction": row}, folder / "one.safetensors")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["tensor.pt", "named.pt", "array.npy", "one.safetensors"])
def test_a_tensor_alone(name: str, model: Any, tmp_path: Path) -> None:
    path = bare(tmp_path)[name]
    vector = SteeringVector.load(path, at=2, model=model)
    assert (vector.hook, vector.model) == ("blocks.2.hook_resid_post", model.identity)
    np.testing.assert_array_equal(vector.direction.numpy(), ROWS[0])
    assert vector.skip_first == 4, "the default of this package: the file says nothing"
    assert SteeringVector.load(path, at="blocks.1.hook_resid_mid").model is None
    with pytest.raises((ValueError, FileFormatError), match=r"give at=|schema"):
        SteeringVector.load(path)


# -------------------------------------------------------------------------------------- wrong files


def npz_file(folder: Path) -> Path:
    """Write an archive of arrays."""
    np.savez(folder / "foreign.npz", direction=ROWS[0])
    return folder / "foreign.npz"


def changed_model(**fields: Any) -> dict[str, Any]:
    return {"model_type": "llama", "directions": {"1": ROWS[:1].tolist()}} | fields


WRONG: dict[str, tuple[Make, str]] = {
    "direction.0": (gguf_file({"direction.0": ROWS[0]}), "'direction.0', which llama.cpp refuses"),
    "an archive of arrays": (npz_file, r"an archive of numpy arrays \(.npz\)"),
    "another tensor": (
        gguf_file({"direction.1": ROWS[0], "mean.1": ROWS[1]}),
        "a tensor 'mean.1'; expected 'direction.N'",
    ),
    "no tensor": (gguf_file({}), "holds no tensor 'direction.N'"),
    "half precision": (
        gguf_file({"direction.1": ROWS[0].astype(np.float16)}),
        r"as F16 of shape \[16\]; expected F32",
    ),
    "two axes": (gguf_file({"direction.1": ROWS}), "expected F32"),
    "two widths": (
        gguf_file({"direction.1": ROWS[0], "direction.2": ROWS[1][:8]}),
        r"widths \[8, 16\]; expected one width",
    ),
    "unknown mode": (
        gguf_file({"direction.1": ROWS[0]}, {"glp.mode": "rotate"}),
        r"glp.mode 'rotate'; expected one of \['add', 'project'\]",
    ),
    "another place": (
        gguf_file({"direction.1": ROWS[0]}, {"glp.hook_point": "ffn_out_pre_residual"}),
        "acts at glp.hook_point 'ffn_out_pre_residual'",
    ),
    "a later version": (
        gguf_file({"direction.1": ROWS[0]}, {"glp.mode": "add", "glp.spec_version": 3}),
        "glp.spec_version 3",
    ),
    "strengths by layer": (
        gguf_file({"direction.1": ROWS[0]}, {"glp.mode": "project", "glp.layer_scales": "1:2.0"}),
        r"keys \['glp.layer_scales'\]",
    ),
    "other layers than it says": (
        gguf_file({"direction.2": ROWS[0]}, {"glp.mode": "add", "glp.layer_ids_zero_based": "1"}),
        "glp.layer_ids_zero_based '1', and its tensors say '2'",
    ),
    "other numbers than it says": (
        gguf_file({"direction.2": ROWS[0]}, {"glp.mode": "add", "glp.content_sha256": "00ff"}),
        "glp.content_sha256 '00ff'",
    ),
    "a layer twice": (vllm_lens(torch.from_numpy(ROWS[:2]), [2, 2]), "layers from 0 on, each once"),
    "negative layer of a .svec": (
        json_file(changed_model(directions={"-1": ROWS[:1].tolist()})),
        "the layer '-1'; expected the number of a block",
    ),
    "no orthonormal basis": (
        gguf_file(
            {"direction.1": ROWS[0], "direction.1.1": ROWS[1]},
            {"glp.mode": "project", "glp.spec_version": 2, "glp.orthonormal": True},
        ),
        "expected an orthonormal basis",
    ),
    "a gap in the basis": (
        gguf_file({"direction.1": ROWS[0], "direction.1.2": ROWS[1]}),
        r"directions \[0, 2\] at block 1",
    ),
    "a model": (
        lambda folder: gguf_of_model(folder),
        "is a GGUF file of 'llama'; expected a control vector",
    ),
    "norm_match": (vllm_lens(torch.from_numpy(ROWS[:1]), [1], norm_match=True), "norm_match True"),
    "single positions": (
        vllm_lens(torch.from_numpy(ROWS[None]), [1]),
        r"activations \[1, 3, 16\] for the layers \[1\]",
    ),
    "negative layer": (vllm_lens(torch.from_numpy(ROWS[:1]), [-1]), "layers from 0 on"),
    "unknown action": (torch_file({"layers.1": steer_entry(action="mul")}), "the action 'mul'"),
    "a bias": (
        torch_file({"layers.1": steer_entry(bias=torch.zeros(16))}),
        "a bias or a head_index",
    ),
    "an attention": (torch_file({"layers.1.self_attn": steer_entry()}), "expected a block"),
    "two coefficients": (
        torch_file({"layers.1": steer_entry(), "layers.2": steer_entry(steering_coefficient=2.0)}),
        "2 different actions, coefficients",
    ),
    "whole numbers": (
        torch_file({"layers.1": steer_entry(steering_vector=torch.ones(16, dtype=torch.int64))}),
        r"torch.int64 \[16\] at 'layers.1'",
    ),
    "layer type": (
        torch_file({"layer_activations": {1: torch.ones(16)}, "layer_type": "mlp"}),
        "the layer_type 'mlp'",
    ),
    "negative key": (
        torch_file({"layer_activations": {-1: torch.ones(16)}, "layer_type": "decoder_block"}),
        "numbers of blocks from 0 on",
    ),
    "code in a pickle": (torch_file({"layers.1": Path("x")}), "reading it could run code"),
    "heads": (json_file(changed_model(num_heads=4)), r"expected one direction \[1, d_model\]"),
    "several rows": (
        json_file(changed_model(directions={"1": ROWS.tolist()})),
        r"rows \[3, 16\] at layer 1",
    ),
    "no hook type": (
        json_file({"hookType": "hook_mlp_out", "layerNumber": 1, "vector": [1.0]}),
        "the hookType 'hook_mlp_out'",
    ),
    "before block 0": (
        json_file({"hookType": "hook_resid_pre", "layerNumber": 0, "vector": [1.0]}),
        "before block 0",
    ),
    "another JSON": (json_file({"weights": [1.0]}), r"JSON with the keys \['weights'\]"),
    "a list": (json_file([1, 2]), "JSON with a list"),
    "a text": (lambda folder: text_file(folder), "a file that begins with b'hello"),
}


def gguf_of_model(folder: Path) -> Path:
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text_file(folder: Path) -> Path:
    (folder / "text").write_text("hello")
    return folder / "text"


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    make, match = WRONG[name]
    with pytest.raises(FileFormatError, match=match):
        import_vectors(make(tmp_path))


def test_cut_files_are_refused(vector: SteeringVector, tmp_path: Path) -> None:
    for to, row in FORMATS.items():
        if not row.suffix:
            continue
        path = vector.export(tmp_path / f"{to}{row.suffix}", to)
        octets = path.read_bytes()
        for share in (0.02, 0.3, 0.7, 0.98):
            path.write_bytes(octets[: int(share * len(octets))])
            with pytest.raises(FileFormatError):
                import_vectors(path)


def test_a_file_of_another_model_is_refused(
    model: Any, load: Any, vector: SteeringVector, tmp_path: Path
) -> None:
    path = gguf_file(DIRECTIONS, hint="qwen2")(tmp_path)
    with pytest.raises(MismatchError, match="of type 'qwen2'; .* is of type 'llama'"):
        import_vectors(path, model=model)
    wide = gguf_file({"direction.1": np.ones(24, np.float32)})(tmp_path)
    with pytest.raises(MismatchError, match="width 24; expected 16"):
        import_vectors(wide, model=model)
    deep = gguf_file({"direction.4": ROWS[0]})(tmp_path)
    with pytest.raises(MismatchError, match="behind block 4; .* has 4 blocks"):
        import_vectors(deep, model=model)
    # Ours says which weights it belongs to.
    ours = vector.export(tmp_path / "ours.gguf", "llama.cpp")
    with pytest.raises(MismatchError, match="config_hash"):
        SteeringVector.load(ours, model=load("llama", d=16, layers=4, seed=8))


def test_files_and_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="is no file"):
        import_vectors(tmp_path / "nothing.gguf")
    with pytest.raises(FileFormatError, match="a folder without directions.safetensors"):
        SteeringVector.load(tmp_path)


def test_our_own_file_is_compared_too(model: Any, vector: SteeringVector, tmp_path: Path) -> None:
    path = vector.save(tmp_path / "v.safetensors")
    assert SteeringVector.load(path, at=2, model=model).hook == vector.hook
    with pytest.raises(MismatchError, match="expected one at 'blocks.1.hook_resid_post'"):
        SteeringVector.load(path, at=1)


def test_nan_in_the_record_comes_back(model: Any, tmp_path: Path) -> None:
    vector = make_vector(model, 1)
    assert np.isnan(vector.median_norm)
    path = vector.export(tmp_path / "v.json", "vllm-lens")
    # The record is JSON that every reader reads.
    json.loads((tmp_path / "v.json.export.json").read_text(), parse_constant=pytest.fail)
    assert np.isnan(SteeringVector.load(path).median_norm)
    known = replace(vector, median_norm=2.5).export(tmp_path / "w.json", "vllm-lens")
    assert SteeringVector.load(known).median_norm == 2.5


def test_files_that_are_no_vector_are_refused_for_what_they_are(tmp_path: Path) -> None:
    row = np.ones(8, "float32")
    np.savez(tmp_path / "several.npz", row=row)
    np.save(tmp_path / "rows.npy", np.ones((3, 8), "float32"))
    torch.save(torch.ones(3, 8), tmp_path / "rows.pt")
    torch.save(row, tmp_path / "array.pt")
    reasons = {
        "several.npz": "an archive of numpy arrays",
        "rows.npy": r"float32 \[3, 8\] at 'the array'; expected one direction",
        "rows.pt": r"float32 \[3, 8\] at 'the tensor'; expected one direction",
        "array.pt": "more than tensors and plain values.* an array of numpy with np.save",
    }
    for name, reason in reasons.items():
        with pytest.raises(FileFormatError, match=reason):
            SteeringVector.load(tmp_path / name, at=2)


def test_a_tensor_in_safetensors_asks_for_its_hook_point_as_other_tensors_do(
    tmp_path: Path,
) -> None:
    save_file({"direction": torch.ones(8)}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="holds a tensor alone, .* give at="):
        SteeringVector.load(tmp_path / "bare.safetensors")
    assert SteeringVector.load(tmp_path / "bare.safetensors", at=2).direction.sum() == 8
