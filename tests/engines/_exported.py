"""Writes a steering vector in the file layout of an engine.

Problem: `make engines-check` needs one file per engine. Mechanism: `exported` is the only place
that knows the layouts; block k in a file is always the output of block k, counted from 0.

Limits: one vector at ``blocks.k.hook_resid_post``; it is added, except in ``lm-eval``.
"""

import base64
import json
from functools import partial
from pathlib import Path

import gguf
import torch
from safetensors.torch import save_file

import lrt_lens as lrt

_SCRIPT = '''
from pathlib import Path

from safetensors.torch import load_file

SCALE = {scale!r}


def steer(model, scale=SCALE):
    """Register the hooks and return their handles."""
    directions = load_file(Path(__file__).with_name("directions.safetensors"))

    def hook_of(direction):
        def hook(module, args, hidden):
            # Only a call with several positions holds the first ones of a text.
            first = {skip_first} if hidden.shape[1] > 1 else 0
            steered = hidden.clone()
            steered[:, first:] += scale * direction
            return steered

        return hook

    blocks = model.model.layers
    return [blocks[int(k)].register_forward_hook(hook_of(v)) for k, v in directions.items()]
'''


def exported(
    vector: lrt.SteeringVector,
    folder: Path,
    to: str,
    scale: float,
    *,
    mode: str = "add",
    level: float = 0.0,
) -> Path:
    """Return the path of the file, or of the folder, that engine ``to`` loads.

    Args:
        vector: vector at the output of a block.
        folder: existing folder, into which it is written.
        to: ``"repeng"``, ``"vllm-lens"``, ``"lm-eval"``, ``"steering-vectors"`` or
            ``"transformers"``.
        scale: multiple of the vector that is added.
        mode: ``"add"``; ``"clamp"`` and ``"ablate"`` are written for ``"lm-eval"`` only.
        level: component along the unit vector that a clamp sets.

    Raises:
        ValueError: an unknown format, or one that cannot express the mode.
    """
    direction = vector.direction.float().contiguous()
    block = int(vector.hook.split(".")[1])
    if to == "lm-eval":
        return _lm_eval(direction, block, folder, scale, mode, level)
    layouts = {
        "repeng": _gguf,
        "vllm-lens": _vllm_lens,
        "steering-vectors": _steering_vectors,
        "transformers": partial(_script, skip_first=vector.skip_first),
    }
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
    content = {
        "activations": activations,
        "layer_indices": [block],
        "scale": scale,
        "norm_match": False,
        "position_indices": None,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _steering_vectors(direction: torch.Tensor, block: int, folder: Path, scale: float) -> Path:
    path = folder / "vector.pt"
    content = {"layer_activations": {block: scale * direction}, "layer_type": "decoder_block"}
    torch.save(content, path)
    return path


def _script(
    direction: torch.Tensor, block: int, folder: Path, scale: float, skip_first: int
) -> Path:
    save_file({str(block): direction}, folder / "directions.safetensors")
    (folder / "steer.py").write_text(
        _SCRIPT.format(scale=scale, skip_first=skip_first), encoding="utf-8"
    )
    return folder


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
