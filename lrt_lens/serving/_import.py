"""Import of steering vectors from the files of other programs, and of tensors alone.

Problem: a vector that somebody else learnt on the small model is worth transferring, and its file
does not say in our terms where it acts. Mechanism: the format is recognised by the content of the
file, read by the table of `lrt_lens.serving._formats`, and compared with the model. What the file
says beyond the direction is kept, so that it can be written again.

    import_vector("happy.gguf", at=12, model=pair.source)
    import_vector("direction.npy", at=12, model=pair.source)
    import_vectors("happy.gguf")                            # one vector per layer

A vector of another program steers all positions, as there: its ``skip_first`` is 0. A tensor alone
says nothing about positions, so the default of this package holds.

Limits: no code of a file is run: files of ``torch.save`` that hold more than tensors and plain
values are refused.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from lrt_lens._hub import downloaded_file, is_hub_id
from lrt_lens._stored_fields import as_damage, damage, stored_fields
from lrt_lens.adapters.vectors._served_file import ServedFile, is_archive_of_arrays, kind_of
from lrt_lens.adapters.vectors._steering_vector import VECTOR_SCHEMA, SteeringVector
from lrt_lens.adapters.vectors._strength import Strength
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.models._hook_points import (
    RESIDUAL,
    hook_name,
    place,
    residual_post,
    resolve,
    same_place,
)
from lrt_lens.models._hooked_model import HookedModel, load_model
from lrt_lens.models._loading import ModelLike
from lrt_lens.serving._formats import FORMATS
from lrt_lens.serving.formats._content import ServedVectors
from lrt_lens.serving.formats._gguf import is_glp
from lrt_lens.serving.formats._json_files import read_json_object
from lrt_lens.serving.formats._record import is_of, read_record, record_path
from lrt_lens.serving.formats._script import TENSORS_NAME
from lrt_lens.serving.formats._torch_files import below_base_model, direction_of, read_torch_file

logger = logging.getLogger(__name__)

REPOSITORY_FILE = "vector.safetensors"
"""Name of the file of a vector in a hub repository."""
_NUMBERS = ("median_norm", "weight")
"""Fields of a vector that are NaN if unknown, for which JSON has null."""


def import_vector(
    path: str | Path, *, at: int | str | None = None, model: ModelLike = None, **hub: Any
) -> SteeringVector:
    """Return one vector of a file of this or of another program, or of a hub repository.

    The arguments are those of `SteeringVector.load`.

    Raises:
        FileFormatError: the file is of no known format, damaged, or says something unknown.
        MismatchError: the file is about other hook points or another model.
        ValueError: the file has several layers, or is a tensor alone, and ``at`` is missing.
    """
    if is_hub_id(path):
        path = downloaded_file(str(path), REPOSITORY_FILE, "steering vector", **hub)
    path, hooked = Path(path), None if model is None else load_model(model)
    vectors = _vectors(path, at, hooked)
    hook = None if at is None else _hook(at, hooked)
    if hook is None and len({one.hook for one in vectors}) > 1:
        raise ValueError(
            f"{str(path)!r} has vectors at {[one.hook for one in vectors][:8]}; choose one with"
            " at=, or take all with lrt_lens.serving.import_vectors"
        )
    chosen = [one for one in vectors if hook is None or same_place(one.hook, hook)]
    if not chosen:
        raise MismatchError(
            f"{str(path)!r} has vectors at {[one.hook for one in vectors][:8]}; expected one at"
            f" {hook!r}: choose another hook point"
        )
    if len(chosen) > 1:
        raise ValueError(
            f"{str(path)!r} has a subspace of {len(chosen)} directions at {chosen[0].hook!r}; take"
            " all of them with lrt_lens.serving.import_vectors"
        )
    return chosen[0]


def import_vectors(path: str | Path, *, model: ModelLike = None) -> list[SteeringVector]:
    """Return all vectors of a file, by block; the errors are those of `import_vector`."""
    return _vectors(Path(path), None, None if model is None else load_model(model))


def format_of(path: Path) -> str:
    """Return the name of the format of a file or folder; ``"tensor"`` for a tensor alone.

    Raises:
        FileFormatError: it is none of the known formats.
    """
    if path.is_dir():
        if (path / TENSORS_NAME).is_file():
            return "transformers"
        raise _unknown(path, "a folder without directions.safetensors")
    if not path.is_file():
        raise FileFormatError(f"{str(path)!r} is no file; check the path")
    kind = kind_of(path)
    if kind == "gguf":
        return "glp" if is_glp(path) else "llama.cpp"
    if kind == "numpy":
        return "tensor"
    if kind == "safetensors":
        return "lrt_lens" if _is_ours(path) else "tensor"
    if kind == "torch":
        return _format_of_torch(path)
    if kind == "json":
        return _format_of_json(path)
    raise _unknown(path, f"a file that begins with {path.read_bytes()[:8]!r}")


def served_format(path: Path) -> str:
    """Return the name of the format of an exported file or folder.

    Raises:
        FileFormatError: it is of none that a program reads; the message says what it is.
    """
    name = format_of(path)
    if name in FORMATS:
        return name
    kind = "a vector of this package" if name == "lrt_lens" else "a tensor alone"
    at = "" if name == "lrt_lens" else ", at=…, model=…"
    raise FileFormatError(
        f"{str(path)!r} is {kind}, which no program steers with; export it first, and check what"
        f" was written: SteeringVector.load({str(path)!r}{at}).export(…)"
    )


# -------------------------------------------------------------------------------------- recognising


def _unknown(path: Path, found: str) -> FileFormatError:
    return FileFormatError(
        f"{str(path)!r} is {found}; expected a vector of {', '.join(FORMATS)}, of this package, or"
        " a tensor in .safetensors, .npy or .pt"
    )


def _is_ours(path: Path) -> bool:
    with as_damage(path), safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("schema_version") == VECTOR_SCHEMA


def _format_of_torch(path: Path) -> str:
    if is_archive_of_arrays(path):
        raise _unknown(path, "an archive of numpy arrays (.npz)")
    content = read_torch_file(path)
    if "layer_activations" in content or all(type(key) is int for key in content):
        return "steering-vectors"
    if all(isinstance(one, Mapping) and "steering_vector" in one for one in content.values()):
        return "lm-eval"
    if len(content) == 1 and isinstance(next(iter(content.values())), Tensor):
        return "tensor"
    raise _unknown(path, f"a dictionary with the keys {[str(key) for key in content][:5]}")


def _format_of_json(path: Path) -> str:
    content = read_json_object(path)
    for key, name in (
        ("activations", "vllm-lens"),
        ("directions", "aisteer360"),
        ("hookType", "neuronpedia"),
    ):
        if key in content:
            return name
    raise _unknown(path, f"JSON with the keys {list(content)[:5]}")


# ------------------------------------------------------------------------------------------ reading


def _vectors(path: Path, at: int | str | None, model: HookedModel | None) -> list[SteeringVector]:
    """Return the vectors of a file, after they were compared with the model."""
    name = format_of(path)
    if name == "lrt_lens":
        found = [SteeringVector.load(path)]
    elif name == "tensor":
        found = [_tensor_alone(path, at, model)]
    else:
        served = read_served(path, name)
        if served.is_changed:
            logger.warning(
                "%s is not the file that was exported: %s was written for another content, and is"
                " left out; the vector is taken for one of another program",
                path,
                record_path(path) if record_path(path).is_file() else "its own record",
            )
        found = _of_content(path, name, _at_block(path, served, at, model), model)
    return [_of_model(path, vector, model) for vector in found]


def _at_block(
    path: Path, served: ServedVectors, at: int | str | None, model: HookedModel | None
) -> ServedVectors:
    """Return the content at one hook point, so that what is wrong elsewhere does not count."""
    if at is None:
        return served
    match = RESIDUAL.fullmatch(place(_hook(at, model)))
    block = int(match[1]) if match is not None and match[2] == "post" else -1
    if block not in served.layers:
        raise MismatchError(
            f"{str(path)!r} has vectors behind the blocks {sorted(served.layers)[:8]}; expected one"
            f" at {_hook(at, model)!r}: choose another hook point"
        )
    return replace(served, layers={block: served.layers[block]})


def read_served(path: Path, name: str) -> ServedVectors:
    """Return the content of a file of a format, with the record that was written for it.

    A record of another content or format, in the file or beside it, is left out, and the result
    then says ``is_changed``.

    Raises:
        FileFormatError: the file is damaged or of no such format, or its record was changed.
    """
    served = FORMATS[name].read(path)
    beside = read_record(path)
    if not beside:
        return served
    written = FORMATS.get(str(beside.get("format")))
    # llama.cpp and repeng have the same files.
    is_same = written is not None and written.read is FORMATS[name].read
    if served.is_changed or not is_same or not is_of(beside, path):
        return replace(served, record={}, is_changed=True)
    # A file of another program has a record once it was checked, without vectors.
    record = beside if "vectors" in beside else {}
    return replace(served, record=served.record or record)


def _of_content(
    path: Path, name: str, served: ServedVectors, model: HookedModel | None
) -> list[SteeringVector]:
    """Return a vector for each direction of a file."""
    _refuse_other_type(path, served, model)
    recorded = _recorded(path, served)
    vectors = []
    for block, rows in sorted(served.layers.items()):
        for row in rows:
            dtype = str(row.dtype).removeprefix("torch.")
            known = _fields_of(path, recorded.get(block), row)
            if known is not None:
                fields = dict(known)
                file = None
            else:
                fields = {"hook": residual_post(block), "name": path.stem, "skip_first": 0}
                file = ServedFile(name, served.model_type, dtype, dict(served.facts))
            # Halves become float32, in which they are exact; float64 stays.
            direction = row if row.dtype == torch.float64 else row.float()
            vector = SteeringVector.of_fields(path, fields, direction)
            strength = _strength(path, vector, served)
            vectors.append(replace(vector, strength=strength, file=file))
    return vectors


def _fields_of(path: Path, known: dict[str, Any] | None, row: Tensor) -> dict[str, Any] | None:
    """Return the fields that we wrote of a vector, if they are of its width."""
    model = (known or {}).get("model") or {}
    if model.get("d_model") not in (None, len(row)):
        raise FileFormatError(
            f"{str(path)!r} has a direction of width {len(row)}, and its record says"
            f" {model['d_model']} dimensions; export again"
        )
    return known


def _recorded(path: Path, served: ServedVectors) -> dict[int, dict[str, Any]]:
    """Return the fields that we wrote of the vector behind each block."""
    found = {}
    for fields in served.record.get("vectors", ()):
        with as_damage(path):
            match = RESIDUAL.fullmatch(place(fields["hook"]))
            if match is not None:
                found[int(match[1])] = {
                    key: _with_nan(key, value)
                    for key, value in fields.items()
                    if key not in ("strength", "file")
                }
    return found


def _with_nan(key: str, value: Any) -> Any:
    """Return a stored value in which null is NaN again, where the field is a number."""
    if isinstance(value, dict):
        return {name: _with_nan(name, item) for name, item in value.items()}
    return float("nan") if value is None and key in _NUMBERS else value


def _strength(path: Path, vector: SteeringVector, served: ServedVectors) -> Strength | None:
    """Return the strength that a file says; None for a direction that is added as it is."""
    known = served.record.get("strength")
    if known is not None:
        stored = {key: value for key, value in known.items() if value is not None}
        found = Strength(**stored_fields(path, Strength, stored))
        # The damage of several vectors together is not that of one.
        if set(found.hooks or (vector.hook,)) != {one["hook"] for one in served.record["vectors"]}:
            found = found.without_damage()
        if len(served.layers) < len(served.record["vectors"]):
            found = found.without_damage()
        # A scale that is multiplied in is 1 for the direction in the file.
        return replace(found, scale=served.scale)
    if served.mode == "add" and served.scale == 1:
        return None
    return Strength(
        scale=served.scale,
        mode=served.mode,
        positions="every",
        skip_first=vector.skip_first,
        level=served.level,
    )


def _tensor_alone(path: Path, at: int | str | None, model: HookedModel | None) -> SteeringVector:
    """Return the vector of a file that holds one direction and says nothing else."""
    if at is None:
        raise FileFormatError(
            f"{str(path)!r} holds a tensor alone, which does not say where it acts; give at=, such"
            " as at=12 for the stream behind block 12, and model="
        )
    direction = _tensor(path)
    dtype = str(direction.dtype).removeprefix("torch.")
    return SteeringVector(
        direction if direction.dtype == torch.float64 else direction.float(),
        _hook(at, model),
        name=path.stem,
        file=ServedFile("tensor", dtype=dtype),
    )


def _tensor(path: Path) -> Tensor:
    """Return the only tensor of a file, [d_model]; [1, d_model] is read too."""
    kind = kind_of(path)
    if kind == "numpy":
        with as_damage(path):
            found = torch.from_numpy(np.load(path, allow_pickle=False))
        name = "the array"
    elif kind == "safetensors":
        try:
            with safe_open(path, "pt") as file:
                names = list(file.keys())
                tensors = {name: file.get_tensor(name) for name in names}
        except Exception as error:
            raise damage(path, error) from error
        if len(tensors) != 1:
            raise _unknown(path, f"a safetensors file with the tensors {names[:5]}")
        [(name, found)] = tensors.items()
    else:
        [(name, found)] = read_torch_file(path).items()
        name = name or "the tensor"
    squeezed = found[0] if found.ndim == 2 and len(found) == 1 else found
    return direction_of(path, str(name), squeezed)


def _hook(at: int | str, model: HookedModel | None) -> str:
    """Return the name of a hook point; a number is a block."""
    return hook_name(at) if model is None else resolve(at, model)


# ------------------------------------------------------------------------------------- the model


def _refuse_other_type(path: Path, served: ServedVectors, model: HookedModel | None) -> None:
    """Raise `MismatchError` if a file names another kind of model than that of the user."""
    ours = "" if model is None else model.identity.model_type
    theirs = "" if served.model_type == "unknown" else served.model_type
    if ours and theirs and ours != theirs:
        raise MismatchError(
            f"{str(path)!r} was made for a model of type {theirs!r}; {model and model.name!r} is of"
            f" type {ours!r}: give the model that it was learnt on"
        )
    blocks = "" if model is None else below_base_model(model.identity.blocks)
    named = served.facts.get("blocks")
    if blocks and named and blocks != named:
        raise MismatchError(
            f"{str(path)!r} names blocks {named!r}, and those of {model and model.name!r} are"
            f" {blocks!r}: give the model that it was learnt on"
        )


def _of_model(path: Path, vector: SteeringVector, model: HookedModel | None) -> SteeringVector:
    """Return the vector as one of ``model``, after its width, block and weights were compared."""
    if model is None:
        return vector
    match = RESIDUAL.fullmatch(place(vector.hook))
    if match is not None and int(match[1]) >= model.n_layers:
        raise MismatchError(
            f"{str(path)!r} has a vector behind block {match[1]}; {model.name!r} has"
            f" {model.n_layers} blocks: give the model that it was learnt on"
        )
    vector.refuse_other_model(model)
    return replace(vector, model=model.identity)
