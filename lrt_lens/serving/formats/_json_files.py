"""Vectors in JSON files: vllm-lens, AISteer360 and Neuronpedia.

    vllm-lens: {"activations": {"data": base64, "dtype", "shape", …}, "layer_indices": [3],
        "scale": 2.3, "norm_match": false, "position_indices": null}; the fields of
        ``vllm_lens.SteeringVector``; added to the output of block 3 at all positions
    AISteer360 (.svec): {"model_type": "llama", "directions": {"3": [[d_model]]}}; the output of
        block 3; the control that loads it (CAA) has the strength and the positions
    Neuronpedia: {"modelId", "layerNumber": 4, "hookType": "hook_resid_pre", "vector": [d_model],
        "vectorDefaultSteerStrength", "vectorLabel"}; the body of a request to ``api/vector/new``;
        the stream before block 4, which is that behind block 3

Limits: vectors of single positions (three axes in vllm-lens, several rows in AISteer360) and
vectors that are resized by the norm of the stream (``norm_match``) have no place here.
"""

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrt_lens._stored_fields import as_damage
from lrt_lens.errors import FileFormatError
from lrt_lens.serving.formats._content import ServedVectors

_DTYPES = {"float32": np.float32, "float16": np.float16, "float64": np.float64, "int16": np.int16}
"""Types in which vllm-lens stores numbers; bfloat16 as int16."""
_DEFAULT_STRENGTH = 10.0
"""Strength of a vector of Neuronpedia that names none."""
_HOOK_TYPES = ("hook_resid_pre", "hook_resid_post")
"""Hook types of Neuronpedia; files are written with the first, which every version reads."""


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; a list of one object, as vllm-lens takes it, is read too.

    Raises:
        FileFormatError: the file holds something else.
    """
    with as_damage(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, list) and len(content) == 1:
        [content] = content
    if not isinstance(content, dict):
        raise FileFormatError(
            f"{str(path)!r} holds JSON with a {type(content).__name__}; expected one vector with"
            " fields by name: write one file for each vector"
        )
    return content


# ---------------------------------------------------------------------------------------- vllm-lens


def write_vllm_lens(served: ServedVectors, path: Path) -> None:
    """Write the fields of ``vllm_lens.SteeringVector``; the scale is one of them."""
    blocks = sorted(served.layers)
    rows = torch.stack([served.layers[block][0] for block in blocks]).detach().cpu().contiguous()
    is_bfloat16 = rows.dtype == torch.bfloat16
    numbers = rows.view(torch.int16).numpy() if is_bfloat16 else rows.numpy()
    content = {
        "activations": {
            "data": base64.b64encode(numbers.tobytes()).decode("ascii"),
            "dtype": str(numbers.dtype),
            "original_dtype": str(rows.dtype),
            "shape": list(numbers.shape),
        },
        "layer_indices": blocks,
        "scale": served.scale,
        "norm_match": False,
        "position_indices": None,
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def read_vllm_lens(path: Path) -> ServedVectors:
    """Return the content of a file with the fields of ``vllm_lens.SteeringVector``.

    Raises:
        FileFormatError: another layout, ``norm_match``, or activations of single positions.
    """
    content = read_json_object(path)
    if content.get("norm_match") or content.get("position_indices") is not None:
        raise FileFormatError(
            f"{str(path)!r} has norm_match {content.get('norm_match')!r} and position_indices"
            f" {content.get('position_indices')!r}; expected a direction that is added as it is at"
            " all positions"
        )
    with as_damage(path):
        rows = _tensor(path, content["activations"])
        blocks = [int(block) for block in content["layer_indices"]]
        is_once = len(set(blocks)) == len(blocks) > 0
        if rows.ndim != 2 or len(rows) != len(blocks) or not is_once or min(blocks) < 0:
            raise FileFormatError(
                f"{str(path)!r} has activations {list(rows.shape)} for the layers {blocks[:5]};"
                " expected [layer, d_model], and layers from 0 on, each once"
            )
        return ServedVectors(
            {block: row[None] for block, row in zip(blocks, rows, strict=True)},
            scale=float(content.get("scale", 1.0)),
        )


def _tensor(path: Path, stored: dict[str, Any]) -> Tensor:
    """Return the tensor of a dictionary as vllm-lens writes it, compressed or not."""
    octets = base64.b64decode(stored["data"], validate=True)
    shape, name = [int(n) for n in stored["shape"]], stored["dtype"]
    if name not in _DTYPES:
        raise FileFormatError(
            f"{str(path)!r} stores numbers as {name!r}; expected one of {sorted(_DTYPES)}"
        )
    dtype = np.dtype(_DTYPES[name])
    if stored.get("compression") == "zstd":
        import pyarrow

        size = math.prod(shape) * dtype.itemsize
        octets = pyarrow.decompress(octets, size, codec="zstd", asbytes=True)
    numbers = torch.from_numpy(np.frombuffer(octets, dtype=dtype).reshape(shape).copy())
    return numbers.view(torch.bfloat16) if name == "int16" else numbers


# --------------------------------------------------------------------------------------- AISteer360


def write_aisteer360(served: ServedVectors, path: Path) -> None:
    """Write an ``.svec`` file; the scale is multiplied in."""
    content = dict(served.facts) | {
        "model_type": served.model_type or "unknown",
        "directions": {
            str(block): (served.scale * rows.double()).float().tolist()
            for block, rows in sorted(served.layers.items())
        },
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def read_aisteer360(path: Path) -> ServedVectors:
    """Return the content of an ``.svec`` file.

    Raises:
        FileFormatError: another layout, or several rows at a layer, which are positions, heads or
            a plane, as the control says that wrote them.
    """
    content = read_json_object(path)
    layers = {}
    with as_damage(path):
        for key, value in content["directions"].items():
            rows = torch.tensor(value, dtype=torch.float32)
            rows = rows[None] if rows.ndim == 1 else rows
            if rows.ndim != 2 or len(rows) != 1 or content.get("num_heads"):
                raise FileFormatError(
                    f"{str(path)!r} has rows {list(rows.shape)} at layer {key}; expected one"
                    " direction [1, d_model]: positions, heads and planes are no steering vector"
                )
            if not key.isdecimal():
                raise FileFormatError(
                    f"{str(path)!r} has the layer {key[:20]!r}; expected the number of a block"
                )
            layers[int(key)] = rows
    own = ("model_type", "directions")
    return ServedVectors(
        layers,
        model_type=str(content.get("model_type") or ""),
        facts={key: value for key, value in content.items() if key not in own},
    )


# -------------------------------------------------------------------------------------- Neuronpedia


def write_neuronpedia(served: ServedVectors, path: Path) -> None:
    """Write the body of a request to ``api/vector/new``; the scale is the default strength."""
    [(block, rows)] = served.layers.items()
    kind = served.facts.get("hookType") or _HOOK_TYPES[0]
    vectors = served.record.get("vectors") or [{}]
    content = {
        "modelId": served.facts.get("modelId")
        or (served.record.get("model") or {}).get("name", ""),
        # The stream behind block L is the stream before block L + 1.
        "layerNumber": block + (kind == _HOOK_TYPES[0]),
        "hookType": kind,
        "vector": rows[0].tolist(),
        "vectorDefaultSteerStrength": served.scale,
        "vectorLabel": served.facts.get("vectorLabel") or vectors[0].get("name", "vector"),
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def read_neuronpedia(path: Path) -> ServedVectors:
    """Return the content of the body of a request to ``api/vector/new``.

    Raises:
        FileFormatError: another layout, another hook type, or the stream before block 0.
    """
    content = read_json_object(path)
    with as_damage(path):
        kind, number = content["hookType"], int(content["layerNumber"])
        if kind not in _HOOK_TYPES:
            raise FileFormatError(
                f"{str(path)!r} has the hookType {kind!r}; expected one of {list(_HOOK_TYPES)}"
            )
        block = number - (kind == _HOOK_TYPES[0])
        strength = content.get("vectorDefaultSteerStrength")
        if block < 0:
            raise FileFormatError(
                f"{str(path)!r} steers the stream before block 0; expected that behind a block"
            )
        return ServedVectors(
            {block: torch.tensor(content["vector"], dtype=torch.float32)[None]},
            scale=_DEFAULT_STRENGTH if strength is None else float(strength),
            facts={key: str(content.get(key) or "") for key in ("modelId", "vectorLabel")}
            | {"hookType": kind},
        )
