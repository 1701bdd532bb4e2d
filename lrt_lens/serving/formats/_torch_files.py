"""Vectors in files of ``torch.save``: lm-evaluation-harness and steering-vectors.

    lm-eval (``--model steered``): {"layers.3": {"steering_vector": [d_model],
        "steering_coefficient": 2.3, "action": "add" | "clamp", "bias": None}}, by the name of the
        module under ``model.base_model``; the output of that block is changed at all positions
    steering-vectors: {"layer_activations": {3: [d_model]}, "layer_type": "decoder_block"}, the
        arguments of ``steering_vectors.SteeringVector``; added to the output of block 3

Files are read with ``weights_only=True``, which runs no code of theirs.

Limits: attention heads (``head_index``) and other layer types have no place here.
"""

import pickle  # noqa: TID251 (the class of an error)
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrt_lens._stored_fields import damage
from lrt_lens.errors import FileFormatError
from lrt_lens.serving.formats._content import ServedVectors

_BLOCK = re.compile(r"(?:(?P<list>.+)\.)?(?P<block>\d{1,9})")
_BLOCK_LAYER = "decoder_block"
"""Layer type of steering-vectors whose output is that of a block."""


def write_lm_eval(served: ServedVectors, path: Path) -> None:
    """Write a file for ``lm_eval --model steered``; the scale is the coefficient."""
    blocks = below_base_model(served.blocks) or served.facts.get("blocks") or "layers"
    # Clamped to 0 is ablated.
    values = {"add": served.scale, "clamp": served.level, "ablate": 0.0}
    _save(
        {
            f"{blocks}.{block}": {
                "steering_vector": _plain(rows[0]),
                "steering_coefficient": float(values[served.mode] or 0.0),
                "action": "add" if served.mode == "add" else "clamp",
                "bias": None,
            }
            for block, rows in sorted(served.layers.items())
        },
        path,
    )


def below_base_model(blocks: str) -> str:
    """Return the name of the list of blocks below ``model.base_model``, as lm-eval names it."""
    # The base model is the first part of the name: ``model`` in ``model.layers``.
    return blocks.partition(".")[2] or blocks


def read_lm_eval(path: Path) -> ServedVectors:
    """Return the content of a file for ``lm_eval --model steered``.

    Raises:
        FileFormatError: another layout, an unknown action, or a bias or a head index.
    """
    content = read_torch_file(path)
    layers: dict[int, Tensor] = {}
    seen: set[tuple[str, float, str]] = set()
    for name, entry in content.items():
        where = _BLOCK.fullmatch(str(name))
        if where is None or not isinstance(entry, Mapping):
            raise FileFormatError(
                f"{str(path)!r} steers {name!r}; expected a block, such as 'layers.3': attention"
                " and MLP alone are no places of the residual stream"
            )
        if entry.get("bias") is not None or entry.get("head_index") is not None:
            raise FileFormatError(
                f"{str(path)!r} has a bias or a head_index at {name!r}; expected neither: they"
                " belong to features of an SAE and to attention heads"
            )
        coefficient = float(entry.get("steering_coefficient", 1.0))
        seen.add((str(entry.get("action")), coefficient, where["list"] or ""))
        layers[int(where["block"])] = direction_of(path, str(name), entry.get("steering_vector"))
    if len(seen) != 1:
        raise FileFormatError(
            f"{str(path)!r} has {len(seen)} different actions, coefficients or lists of blocks;"
            " expected one for all: write one file for each"
        )
    [(action, coefficient, blocks)] = seen
    if action not in ("add", "clamp"):
        raise FileFormatError(
            f"{str(path)!r} has the action {action!r}; expected 'add' or 'clamp', as lm-eval does"
        )
    is_added = action == "add"
    return ServedVectors(
        layers={block: row[None] for block, row in layers.items()},
        mode="add" if is_added else "clamp" if coefficient else "ablate",
        scale=coefficient if is_added else 1.0,
        level=None if is_added or not coefficient else coefficient,
        facts={"blocks": blocks},
    )


def write_steering_vectors(served: ServedVectors, path: Path) -> None:
    """Write the arguments of ``steering_vectors.SteeringVector``; the scale is multiplied in."""
    _save(
        {
            "layer_activations": {
                block: _scaled(rows[0], served.scale)
                for block, rows in sorted(served.layers.items())
            },
            "layer_type": _BLOCK_LAYER,
        },
        path,
    )


def read_steering_vectors(path: Path) -> ServedVectors:
    """Return the content of a file with the arguments of ``steering_vectors.SteeringVector``.

    Raises:
        FileFormatError: another layout, or a layer type that is no block.
    """
    content = read_torch_file(path)
    if content and all(type(key) is int for key in content):
        # The activations were saved alone.
        content = {"layer_activations": content, "layer_type": _BLOCK_LAYER}
    if content.get("layer_type") != _BLOCK_LAYER:
        raise FileFormatError(
            f"{str(path)!r} has the layer_type {content.get('layer_type')!r}; expected"
            f" {_BLOCK_LAYER!r}: a vector here is a direction of the residual stream"
        )
    found = content.get("layer_activations")
    if not isinstance(found, Mapping) or not found:
        raise FileFormatError(
            f"{str(path)!r} holds no layer_activations by the number of a block; write it again"
        )
    if any(type(block) is not int or block < 0 for block in found):
        raise FileFormatError(
            f"{str(path)!r} has the layers {list(found)[:5]}; expected numbers of blocks from 0 on"
        )
    return ServedVectors(
        {block: direction_of(path, f"layer {block}", row)[None] for block, row in found.items()}
    )


def _save(content: Any, path: Path) -> None:
    # Through an open file, because torch refuses names that begin with a dot.
    with open(path, "wb") as file:
        torch.save(content, file)  # noqa: TID251 (the format of other programs)


def read_torch_file(path: Path) -> dict[Any, Any]:
    """Return the dictionary in a file of ``torch.save``, read without running code of the file.

    Raises:
        FileFormatError: the file is damaged, holds other objects than tensors and plain values, or
            is no dictionary.
    """
    if _is_npz(path):
        raise FileFormatError(
            f"{str(path)!r} is an archive of arrays of numpy (.npz), which is not read; save the"
            " direction alone, numpy.save('direction.npy', array)"
        )
    try:
        # With weights_only=True, no code of the file runs.
        content = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except pickle.UnpicklingError as error:
        raise FileFormatError(
            f"{str(path)!r} holds more than tensors and plain values, and reading it could run"
            " code; save a tensor, or a dictionary of tensors, numbers and texts instead, and an"
            " array of numpy with np.save"
        ) from error
    except (OSError, ValueError, RuntimeError, EOFError, KeyError) as error:
        raise damage(path, error) from error
    if isinstance(content, Tensor):
        return {"": content}
    if not isinstance(content, dict):
        raise FileFormatError(
            f"{str(path)!r} holds a {type(content).__name__}; expected a tensor, or a dictionary of"
            " vectors by layer"
        )
    return content


def _is_npz(path: Path) -> bool:
    """Return whether a file is an archive as ``numpy.savez`` writes it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):  # older files of torch, and damaged ones
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def direction_of(path: Path, name: str, value: Any) -> Tensor:
    """Return a direction [d_model] of a file, in its own precision.

    Raises:
        FileFormatError: it is no tensor of one dimension of floating point.
    """
    if isinstance(value, Tensor) and value.ndim == 2 and len(value) == 1:
        value = value[0]
    if not isinstance(value, Tensor) or value.ndim != 1 or not value.is_floating_point():
        found = (
            f"{value.dtype} {list(value.shape)}"
            if isinstance(value, Tensor)
            else type(value).__name__
        )
        raise FileFormatError(
            f"{str(path)!r} holds {found} at {name!r}; expected one direction [d_model] of floating"
            " point: write it alone, as float32"
        )
    return value.detach().clone()


def _scaled(direction: Tensor, scale: float) -> Tensor:
    """Return a multiple, computed in float32 unless it is the direction itself."""
    return _plain(direction if scale == 1 else scale * direction.float())


def _plain(direction: Tensor) -> Tensor:
    """Return a copy in main memory that shares no storage, so that only its numbers are saved."""
    return direction.detach().cpu().clone()
