"""Exported vectors in the real llama.cpp, with the bundled model and with bad files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lrt_lens as lrt
from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.serving import LlamaCpp, check_export, export_vectors
from tests.serving.gguf_model import write_gguf
from tests.serving.vectors import make_vector

pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")


@pytest.fixture(scope="module")
def bundled() -> Any:
    return lrt.demo_pair().target


@pytest.fixture(scope="module")
def engine(bundled: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("gguf") / "large.gguf"
    return LlamaCpp(write_gguf(bundled.engine.model, path))


@pytest.mark.parametrize("to", ["llama.cpp", "repeng", "glp"])
@pytest.mark.parametrize("block", [1, 3, 4])
def test_it_steers_as_our_hook(
    bundled: Any, engine: Any, tmp_path: Path, to: str, block: int
) -> None:
    vector = make_vector(bundled, block)
    long = replace(vector, direction=vector.direction * 8)
    check = check_export(long.export(tmp_path / "v.gguf", to, scale=1.5), bundled, engine=engine)
    assert check.passed, check.problems
    assert check.difference < 1e-4
    assert min(one for one in (check.difference_before, check.difference_after) if one == one) > 0.1
    assert (check.first_position, check.engine) == (0, "llama.cpp")


def test_what_is_no_model_is_refused_by_what_it_is(bundled: Any, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="does not exist; .* convert_hf_to_gguf.py"):
        LlamaCpp(tmp_path / "large.gguf")
    with pytest.raises(FileFormatError, match="is a folder; expected a model in a GGUF file"):
        LlamaCpp(tmp_path)
    notes = tmp_path / "notes.txt"
    notes.write_text("not a model")
    with pytest.raises(FileFormatError, match="is a file of an unknown kind"):
        LlamaCpp(notes)
    with pytest.raises(FileFormatError, match="is a file of json"):
        LlamaCpp(make_vector(bundled, 3).export(tmp_path / "v.json", "vllm-lens"))
    path = make_vector(bundled, 3).export(tmp_path / "v.gguf", "llama.cpp")
    with pytest.raises(FileFormatError, match="is a control vector; expected the model"):
        LlamaCpp(path)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        FileFormatError, match="cannot load the model: .* is damaged or was changed"
    ):
        LlamaCpp(cut)


def test_damage_in_the_engine(bundled: Any, engine: Any, tmp_path: Path) -> None:
    vector = SteeringVector.mean_difference(bundled, lrt.demo_contrast("mood"), at=3)
    neutral = lrt.demo_neutral()[:6]
    path = vector.export(
        tmp_path / "mood.gguf", "llama.cpp", damage=0.1, model=bundled, neutral=neutral
    )
    check = check_export(path, bundled, engine=engine, neutral=neutral)
    assert check.passed, check.problems
    assert check.damage == pytest.approx(check.damage_of_hook, rel=1e-3)
    assert check.damage == pytest.approx(0.1, rel=0.1)


def test_several_layers(bundled: Any, engine: Any, tmp_path: Path) -> None:
    vectors = [make_vector(bundled, block, seed=block) for block in (1, 3)]
    check = check_export(
        export_vectors(vectors, tmp_path / "v.gguf", "llama.cpp"), bundled, engine=engine
    )
    assert check.passed, check.problems


def test_files_that_llama_cpp_refuses(
    bundled: Any, engine: Any, model: Any, tmp_path: Path
) -> None:
    rows = [[0, 5, 9, 30]]
    plain = engine.logits(rows, None)[0]
    (tmp_path / "bad.gguf").write_bytes(b"GGUF no vector")
    with pytest.raises(FileFormatError, match="llama.cpp refuses the control vector"):
        engine.logits(rows, tmp_path / "bad.gguf")
    narrow = make_vector(model, 1).export(tmp_path / "narrow.gguf", "llama.cpp")
    with pytest.raises(FileFormatError, match="width 16; the model of llama.cpp has 256"):
        engine.logits(rows, narrow)
    # Behind a refused file the engine is as it was.
    np.testing.assert_array_equal(engine.logits(rows, None)[0], plain)


def test_a_projection_is_added_by_llama_cpp_which_the_check_finds(
    bundled: Any, engine: Any, tmp_path: Path
) -> None:
    vector = make_vector(bundled, 3)
    path = vector.export(tmp_path / "v.gguf", "glp", mode="ablate")
    check = check_export(path, bundled, engine=engine)
    assert not check.passed, "llama.cpp does not read glp.mode"
    assert check_export(path, bundled).passed


def test_another_model(engine: Any, model: Any, tmp_path: Path) -> None:
    path = make_vector(model, 1).export(tmp_path / "v.gguf", "llama.cpp")
    with pytest.raises((MismatchError, FileFormatError)):
        check_export(path, model, engine=engine)


def test_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(FileFormatError, match="cannot load the model"):
        LlamaCpp(tmp_path / "model.gguf")
