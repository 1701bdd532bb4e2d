"""Headers of safetensors files, read without their other bytes, against safetensors itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lrt_lens.moments.states._safetensors_header import read_header

TENSORS = {
    "token_ids": torch.arange(5),
    "small": torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8),
    "half": torch.linspace(-1, 1, 6).half().reshape(2, 3),
    "hidden_states": torch.randn(5, 2, 4).bfloat16(),
    "empty": torch.zeros(0, 3),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"document": "7"})
    return tmp_path / "a.safetensors"


def test_a_header_is_that_of_safetensors(path: Path) -> None:
    header = read_header(path)
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        assert header.shapes == {name: file.get_slice(name).get_shape() for name in names}
        assert header.metadata == file.metadata()
    for name in set(TENSORS) - {"hidden_states"}:
        np.testing.assert_array_equal(header.array(name), TENSORS[name].numpy())
    with open(path, "rb") as file:
        for name, tensor in TENSORS.items():
            read = header.tensor(name, file)
            assert read.dtype == tensor.dtype
            assert torch.equal(read, tensor)


def test_a_type_that_numpy_does_not_know_is_refused(path: Path) -> None:
    with pytest.raises(SafetensorError, match="hidden_states"):
        read_header(path).array("hidden_states")


@pytest.mark.parametrize("n_bytes", [0, 4, 8, 40, -1])
def test_a_file_that_was_cut_is_refused_as_by_safetensors(path: Path, n_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(SafetensorError), safe_open(path, framework="pt"):
        pass
    with pytest.raises(SafetensorError):
        read_header(path)


def test_bytes_behind_the_data_are_refused_as_by_safetensors(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(SafetensorError), safe_open(path, framework="pt"):
        pass
    with pytest.raises(SafetensorError, match="expected"):
        read_header(path)


def test_a_damaged_header_is_refused(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"data_offsets"', b'"data_offsetz"'))
    with pytest.raises(SafetensorError, match="damaged"):
        read_header(path)
    path.write_bytes(content[:8] + b"[" + content[9:])
    with pytest.raises(SafetensorError, match="damaged"):
        read_header(path)


def test_a_missing_file_is_no_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "none.safetensors")
