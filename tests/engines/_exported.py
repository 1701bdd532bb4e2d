"""Writes a steering vector in the file layout of an engine.

Problem: `make engines-check` needs one file per engine. Mechanism: `exported` is the only place
that knows the layouts; block k in a file is always the output of block k, counted from 0.

Limits: one vector at ``blocks.k.hook_resid_post``; it is added, except in ``lm-eval``.
"""

import base64
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

import lrt_lens as lrt


def exported(
    vector: lrt.SteeringVector,
    folder: Path,
    to: str,
    scale: float,
    *,
    mode: str = "add",
    level: float = 0.0,
) -> Path:
    """Return the path of the file that engine ``to`` loads; it is written into ``folder``.

    Args:
        vector: vector at the output of a block.
        folder: existing folder.
        to: ``"repeng"``, ``"vllm-lens"``, ``"lm-eval"``, ``"steering-vectors"`` or
            ``"transformers"``.
        scale: multiple of the vector that is added.
        mode: ``"add"``; ``"clamp"`` and ``"ablate"`` are written for ``"lm-eval"`` only.
        level: component along the unit vector that a clamp sets.

    Raises:
        ValueError: an unknown format, or one that cannot express the mode.
    """
    layouts = {
        "repeng": _gguf,
        "vllm-lens": _vllm_lens,
        "steering-vectors": _safetensors,
        "transformers": _safetensors,
    }
    direction = vector.direction.float().contiguous()
    block = int(vector.hook.split(".")[1])
    if to == "lm-eval":
        return _lm_eval(direction, block, folder, scale, mode, level)
    if to not in layouts or mode != "add":
        raise ValueError(
            f"format {to!r} with mode {mode!r}; expected lm-eval, or mode 'add' and one of"
            f" {sorted(layouts)}"
        )
    return layouts[to](direction, block, folder, scale)


def _gguf(direction: torch.Tensor, block: int, folder: Path, scale: float) -> Path:
    path = folder / "vector.gguf"
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", 1)
    writer.add_tensor(f"direction.{block}", (direction * scale).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _vllm_lens(direction: torch.Tensor, block: int, folder: Path, scale: float) -> Path:
    path = folder / "vector.json"
    data = direction.numpy().astype("<f4").tobytes()
    # Without "compression" the bytes are read as they are, so that zstandard is not needed.
    activations = {
        "data": base64.b64encode(data).decode("ascii"),
        "dtype": "float32",
        "original_dtype": "torch.float32",
        "shape": [1, len(direction)],
    }
    vectors = [
        {
            "activations": activations,
            "layer_indices": [block],
            "scale": scale,
            "norm_match": False,
            "position_indices": None,
        }
    ]
    path.write_text(json.dumps(vectors), encoding="utf-8")
    return path


def _safetensors(direction: torch.Tensor, block: int, folder: Path, scale: float) -> Path:
    path = folder / "vector.safetensors"
    save_file({str(block): direction}, path, metadata={"scale": repr(float(np.float64(scale)))})
    return path


def _lm_eval(
    direction: torch.Tensor, block: int, folder: Path, scale: float, mode: str, level: float
) -> Path:
    # A clamp to 0 removes the component, which is an ablation.
    action, coefficient = {
        "add": ("add", scale),
        "clamp": ("clamp", level),
        "ablate": ("clamp", 0.0),
    }[mode]
    path = folder / "vector.pt"
    content = {
        "steering_vector": direction,
        "steering_coefficient": float(coefficient),
        "action": action,
        "bias": None,
        "head_index": None,
    }
    torch.save({f"layers.{block}": content}, path)
    return path
