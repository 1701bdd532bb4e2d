"""Folders of sparsify, written here as version 1.3.3 writes them, against its equations."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lrt_lens.adapters.saes import load_sparsify
from lrt_lens.errors import FileFormatError

D, FEATURES, K = 6, 24, 3
CONFIG = {
    "activation": "topk",
    "expansion_factor": 4,
    "normalize_decoder": True,
    "num_latents": 0,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D,
}


def write(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "encoder.weight": (FEATURES, D),
        "encoder.bias": (FEATURES,),
        "W_dec": (FEATURES, D),
        "b_dec": (D,),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(CONFIG | changes))
    return tensors


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("normalize_decoder", [False, True])
def test_computes_what_sparsify_computes(
    tmp_path: Path, normalize_decoder: bool, signed: bool
) -> None:
    p = write(tmp_path / "layers.2", normalize_decoder=normalize_decoder, signed=signed)
    sae = load_sparsify(tmp_path, hookpoint="layers.2", model_name="small")
    assert (sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name) == (
        "blocks.2.hook_resid_post",
        "small",
    )
    x = torch.randn(10, D)
    latents = (x - p["b_dec"]) @ p["encoder.weight"].T + p["encoder.bias"]
    if not signed:
        latents = latents.relu()
    indices = latents.abs().topk(K).indices
    expected = (
        torch.stack(
            [
                sum(row[i] * p["W_dec"][i] for i in chosen)
                for row, chosen in zip(latents, indices, strict=True)
            ]
        )
        + p["b_dec"]
    )
    torch.testing.assert_close(sae(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transcode": True}, "transcoder"),
        ({"skip_connection": True}, "skip connection"),
        ({"activation": "groupmax"}, "groupmax"),
    ],
)
def test_what_saelens_cannot_express_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write(tmp_path / "layers.2", **changes)
    with pytest.raises(ValueError, match=message):
        load_sparsify(tmp_path / "layers.2")


def test_truncated_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "layers.2"
    write(folder)
    weights = folder / "sae.safetensors"
    weights.write_bytes(weights.read_bytes()[:300])
    with pytest.raises(FileFormatError, match=r"is truncated or no safetensors file"):
        load_sparsify(folder)
    weights.unlink()
    with pytest.raises(FileFormatError, match="no file at"):
        load_sparsify(folder)
    save_file({"other": torch.zeros(2)}, weights)
    with pytest.raises(FileFormatError, match=r"expected \{'encoder.weight'"):
        load_sparsify(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"is not valid JSON"):
        load_sparsify(folder)
    (folder / "cfg.json").write_text("{}")
    with pytest.raises(FileFormatError, match=r"has no d_in and k"):
        load_sparsify(folder)
    with pytest.raises(FileFormatError, match=r"hookpoint=…: \['layers.2'\]"):
        load_sparsify(tmp_path)
    with pytest.raises(FileFormatError, match=r"neither a folder nor a hub"):
        load_sparsify(tmp_path / "absent")


def test_a_folder_of_another_name_needs_the_hook(tmp_path: Path) -> None:
    write(tmp_path / "mlp")
    with pytest.raises(ValueError, match=r"give hook="):
        load_sparsify(tmp_path / "mlp")
    assert load_sparsify(tmp_path / "mlp", hook="hook_embed").cfg.metadata.hook_name == "hook_embed"
