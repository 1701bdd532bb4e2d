"""Control vectors in GGUF files: llama.cpp, repeng and GLP.

A file holds one tensor ``direction.N`` per block, which llama.cpp adds to the output of block N,
counted from 0, at all positions (`src/llama-adapter.cpp`; repeng's keys mean the same). Block 0
cannot be written: llama.cpp's loader refuses ``direction.0``. The scale is a factor of the numbers.
GLP adds keys to the same file: the mode, a default strength, and further directions
``direction.N.j`` of a subspace.

    write_control_vector(served, path)
    read_control_vector(path)

Our own files hold the record of the export and a checksum of all their numbers and keys. The record
of a file that was changed since is not returned.

Limits: llama.cpp reads float32 only, and so does this module.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrt_lens._stored_fields import as_damage, json_checksum, json_object
from lrt_lens._tensor_files import data_checksum
from lrt_lens.errors import FileFormatError
from lrt_lens.serving.formats._content import ServedVectors

ARCHITECTURE = "controlvector"
"""``general.architecture`` of files of control vectors."""
_OURS = "lrt_lens."
"""Start of our own keys."""
_RECORD = "lrt_lens.record"
"""Key of our own record, as JSON."""
_CHECKSUM = "lrt_lens.checksum"
"""Key of our checksum of all tensors and all other keys; earlier versions wrote none."""
_TENSOR = re.compile(r"direction\.(\d{1,9})(?:\.(\d{1,9}))?")
_MODES = {"add": "add", "ablate": "project"}
"""Modes of GLP by ours."""
_HOOK_POINT = "residual_stream_post_layer"
"""Only place in the stream of GLP that is one of our hook points."""
_ALPHA = "glp.alpha_default"
"""Key of GLP's strength."""
_VERSIONS = (1, 2)
"""Versions of GLP that are read."""
_SCALES = ("glp.dir_scales", "glp.layer_scales")
"""Keys of GLP for strengths of single directions or layers."""
_DEPENDENT = 1e-4
"""Sine of the angle to the span of the others, below which a direction is taken for dependent."""
_ORTHONORMAL = 1e-3
"""Largest deviation from orthonormal rows that GLP's readers accept."""
_OUR_KEYS = frozenset({"general.architecture", "controlvector.layer_count"})
"""Keys that are written from the content, and not from the facts of an earlier file."""


def write_control_vector(served: ServedVectors, path: Path) -> None:
    """Write a control vector for llama.cpp and repeng; the scale is multiplied in."""
    directions = {
        f"direction.{block}": served.scale * rows[0].float() for block, rows in _sorted(served)
    }
    _write(served, path, directions, {})


def write_glp(served: ServedVectors, path: Path) -> None:
    """Write a GLP file: mode, strength and subspaces beside the directions.

    A strength is multiplied into directions that are added, and never into those that are
    projected out, which have length 1 (GLP.md, "Apply parameters").
    """
    is_added = served.mode == "add"
    # An added vector of another program keeps the strength that it came with.
    keeps_alpha = not is_added or _ALPHA in served.facts
    factor = 1.0 if keeps_alpha else served.scale
    rank = max(len(rows) for rows in served.layers.values())
    directions = {
        f"direction.{block}" + (f".{j}" if j else ""): factor * row.float()
        for block, rows in _sorted(served)
        for j, row in enumerate(rows if is_added else _orthonormal(rows))
    }
    content = hashlib.sha256()
    for direction in directions.values():
        content.update(_array(direction).tobytes())
    keys: dict[str, Any] = {
        "glp.mode": _MODES[served.mode],
        "glp.spec_version": np.uint32(2 if rank > 1 else 1),
        _ALPHA: float(served.scale) if keeps_alpha else 1.0,
        "glp.rank": np.uint32(rank),
        "glp.orthonormal": not is_added,
        "glp.hook_point": _HOOK_POINT,
        "glp.layer_ids_zero_based": ",".join(str(block) for block, _ in _sorted(served)),
        "glp.content_sha256": content.hexdigest(),
    }
    vectors = served.record.get("vectors") or [{}]
    for key, name in (("glp.method", "method"), ("glp.contrast", "contrast")):
        if vectors[0].get(name):
            keys[key] = str(vectors[0][name])
    if name := (served.record.get("model") or {}).get("name"):
        keys |= {"general.base_model.count": np.uint32(1), "general.base_model.0.name": name}
        keys["general.base_model.0.version"] = str(served.record["model"]["revision"])
    _write(served, path, directions, keys)


def read_control_vector(path: Path) -> ServedVectors:
    """Return the content of a file for llama.cpp, repeng or GLP.

    Raises:
        FileFormatError: it is no control vector that llama.cpp reads, or it is of a mode or a place
            in the stream that is not known here.
    """
    keys, tensors = _read(path)
    if keys.get("general.architecture") != ARCHITECTURE and not tensors:
        raise FileFormatError(
            f"{str(path)!r} is a GGUF file of {keys.get('general.architecture')!r}; expected a"
            f" control vector ({ARCHITECTURE!r}), such as repeng and llama-cvector-generator write"
        )
    rows = _directions(path, tensors)
    mode, scale = _glp_mode(path, keys)
    _refuse_contradiction(path, keys, rows)
    if any(len(found) > 1 for found in rows.values()):
        _refuse_subspace(path, keys, rows)
    record = json_object(path, keys[_RECORD], "its record") if _RECORD in keys else {}
    arrays = {tensor.name: tensor.data for tensor in tensors}
    is_changed = _CHECKSUM in keys and keys[_CHECKSUM] != _checksum(keys, arrays)
    facts = {
        key: value
        for key, value in keys.items()
        if key not in _OUR_KEYS
        and not key.startswith(("GGUF.", _OURS))
        and isinstance(value, str | int | float | bool)
    }
    return ServedVectors(
        layers={block: torch.stack(found) for block, found in rows.items()},
        mode=mode,
        scale=scale,
        model_type=str(keys.get(f"{ARCHITECTURE}.model_hint") or ""),
        record={} if is_changed else record,
        facts=facts,
        is_changed=is_changed,
    )


def is_glp(path: Path) -> bool:
    """Return whether a GGUF file has the keys of GLP."""
    return any(key.startswith("glp.") for key in _read(path)[0])


# ------------------------------------------------------------------------------------------- GLP


def _glp_mode(path: Path, keys: dict[str, Any]) -> tuple[Any, float]:
    """Return (mode, scale) of a file; a file without keys of GLP is added as it is."""
    word = keys.get("glp.mode", "add")
    modes = {glp: ours for ours, glp in _MODES.items()}
    if word not in modes:
        raise FileFormatError(
            f"{str(path)!r} has glp.mode {word!r}; expected one of {sorted(modes)}: use the program"
            " that wrote it"
        )
    where = keys.get("glp.hook_point", _HOOK_POINT)
    if where != _HOOK_POINT:
        raise FileFormatError(
            f"{str(path)!r} acts at glp.hook_point {where!r}; expected {_HOOK_POINT!r}: a vector"
            " here is a direction of the residual stream behind a block"
        )
    version = int(keys.get("glp.spec_version", _VERSIONS[0]))
    scaled = [key for key in _SCALES if keys.get(key)]
    if version not in _VERSIONS or scaled:
        raise FileFormatError(
            f"{str(path)!r} has glp.spec_version {version} and the keys {scaled}; expected one of"
            f" the versions {list(_VERSIONS)} and one strength for all: use the program that wrote"
            " it"
        )
    return modes[word], float(keys.get(_ALPHA, 1.0))


def _refuse_contradiction(path: Path, keys: dict[str, Any], rows: dict[int, list[Tensor]]) -> None:
    """Raise `FileFormatError` if keys of GLP say something else than the tensors."""
    content = hashlib.sha256()
    for row in (row for block in sorted(rows) for row in rows[block]):
        content.update(_array(row).tobytes())
    rank = max(len(found) for found in rows.values())
    found = {
        "glp.layer_ids_zero_based": ",".join(str(block) for block in sorted(rows)),
        "glp.rank": rank,
        "glp.content_sha256": content.hexdigest(),
    }
    for key, value in found.items():
        said = keys.get(key)
        if said not in (None, "") and str(said).replace(" ", "") != str(value):
            raise FileFormatError(
                f"{str(path)!r} has {key} {str(said)[:80]!r}, and its tensors say"
                f" {str(value)[:80]!r}: it was changed, or written wrongly; take the original"
            )


def _refuse_subspace(path: Path, keys: dict[str, Any], rows: dict[int, list[Tensor]]) -> None:
    """Raise `FileFormatError` unless several directions of a block are an orthonormal basis."""
    for block, found in rows.items():
        basis = torch.stack(found).double()
        error = float((basis @ basis.T - torch.eye(len(basis), dtype=basis.dtype)).abs().max())
        if not keys.get("glp.orthonormal") or error > _ORTHONORMAL:
            raise FileFormatError(
                f"{str(path)!r} has {len(found)} directions at block {block}, with"
                f" glp.orthonormal {keys.get('glp.orthonormal')!r} and an error of {error:.2g};"
                " expected an orthonormal basis, without which the order of projections counts"
            )


def _orthonormal(rows: Tensor) -> Tensor:
    """Return orthonormal rows of the same span; the first keeps its direction."""
    given = rows.double()
    unit = torch.eye(len(given), dtype=given.dtype, device=given.device)
    # Rows that are orthonormal already keep every bit.
    if float((given @ given.T - unit).abs().max()) < _ORTHONORMAL:
        return rows
    # Qᵀ of the QR decomposition of Rᵀ, with signs so that each row points as the given one.
    q, r = torch.linalg.qr(given.T)
    # |r_jj| / ‖row j‖ is the sine of the angle between a row and the span of those before it.
    sines = torch.diagonal(r).abs() / given.norm(dim=1)
    if float(sines.min()) < _DEPENDENT:
        raise ValueError(
            f"{len(rows)} directions at one block span fewer dimensions (the smallest sine is"
            f" {float(sines.min()):.2g}); expected linearly independent ones: leave one out"
        )
    return (q * torch.sign(torch.diagonal(r))).T.float()


# ----------------------------------------------------------------------------------------- the file


def _sorted(served: ServedVectors) -> list[tuple[int, Tensor]]:
    return sorted(served.layers.items())


def _array(direction: Tensor) -> np.ndarray:
    return np.ascontiguousarray(direction.detach().cpu().float().numpy())


def _write(
    served: ServedVectors, path: Path, directions: dict[str, Tensor], keys: dict[str, Any]
) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    known: dict[str, Any] = {
        f"{ARCHITECTURE}.model_hint": served.model_type or "unknown",
        f"{ARCHITECTURE}.layer_count": np.uint32(len(served.layers)),
    }
    # What an earlier file said stays, unless it is written anew.
    is_glp_file = "glp.mode" in keys
    stored = {
        key: value
        for key, value in served.facts.items()
        if is_glp_file or not key.startswith("glp.")
    }
    written = stored | known | keys
    arrays = {name: _array(direction) for name, direction in directions.items()}
    if served.record:
        facts = {f"{_OURS}{key}": value for key, value in _facts(served.record).items()}
        written |= {_RECORD: json.dumps(served.record)} | facts
        whole = {"general.architecture": ARCHITECTURE} | written
        written[_CHECKSUM] = _checksum(whole, arrays)
    for key, value in written.items():
        _put(writer, key, value)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _checksum(keys: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """Return a hash of all tensors and keys of a file, in hexadecimal.

    Keys are taken as they are read: numbers in the precision of the file, without those that the
    reader adds.
    """
    read = {
        # GGUF holds numbers with a fraction in float32.
        key: float(np.float32(value)) if isinstance(value, float) else value
        for key, value in keys.items()
        if key != _CHECKSUM and not key.startswith("GGUF.")
    }
    plain = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in read.items()
        if isinstance(value, str | int | float | bool | np.generic)
    }
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return json_checksum([plain, data_checksum(tensors)])


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts of a record that ``gguf-dump`` shows in one line each."""
    model, strength = record.get("model") or {}, record.get("strength") or {}
    first = (record.get("vectors") or [{}])[0]
    route = first.get("route") or {}
    hooks = [vector.get("hook", "") for vector in record.get("vectors", ())]
    found = {
        "model": model.get("name"),
        "revision": model.get("revision"),
        "hook_points": ", ".join(hooks),
        "method": first.get("method"),
        "stitch": route.get("map_hash"),
        "contrast": first.get("contrast"),
        "scale": strength.get("scale"),
        "damage": strength.get("damage"),
        "positions": record.get("positions"),
    }
    return {key: str(value) for key, value in found.items() if value not in (None, "")}


def _put(writer: Any, key: str, value: Any) -> None:
    """Add a key of the type of its value; others than text, numbers and truth are left out."""
    kinds: list[tuple[type | tuple[type, ...], Callable[[str, Any], None]]] = [
        ((bool, np.bool_), lambda k, v: writer.add_bool(k, bool(v))),
        (np.integer, lambda k, v: writer.add_uint32(k, int(v))),
        (int, lambda k, v: (writer.add_int32 if v < 0 else writer.add_uint32)(k, v)),
        (float, writer.add_float32),
        (str, writer.add_string),
    ]
    for kind, add in kinds:
        if isinstance(value, kind):
            add(key, value)
            return


def _read(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """Return keys and tensors of a GGUF file."""
    import gguf

    if not path.is_file():
        raise FileFormatError(f"{str(path)!r} is no file; give the path of a GGUF file")
    # The reader raises errors of many kinds for files that are cut or changed.
    with as_damage(path):
        reader: Any = gguf.GGUFReader(path)
        keys = {name: field.contents() for name, field in reader.fields.items()}
        return keys, list(reader.tensors)


def _directions(path: Path, tensors: list[Any]) -> dict[int, list[Tensor]]:
    """Return the directions of each block in their order."""
    import gguf

    found: dict[int, dict[int, Tensor]] = defaultdict(dict)
    for tensor in tensors:
        name = _TENSOR.fullmatch(tensor.name)
        if name is None:
            raise FileFormatError(
                f"{str(path)!r} has a tensor {tensor.name!r}; expected 'direction.N' alone, with N"
                " the number of a block: llama.cpp refuses such a file too"
            )
        block, j = int(name[1]), int(name[2] or 0)
        if block == 0:
            raise FileFormatError(
                f"{str(path)!r} has 'direction.0', which llama.cpp refuses; expected blocks from 1"
                " on: name the block whose output the direction is added to"
            )
        if tensor.tensor_type != gguf.GGMLQuantizationType.F32 or len(tensor.shape) != 1:
            raise FileFormatError(
                f"{str(path)!r} holds {tensor.name!r} as {tensor.tensor_type.name} of shape"
                f" {[int(n) for n in tensor.shape]}; expected F32 [d_model], because llama.cpp"
                " reads nothing else: write it again in float32"
            )
        if j in found[block]:
            raise FileFormatError(f"{str(path)!r} holds {tensor.name!r} twice; write it again")
        found[block][j] = torch.from_numpy(np.array(tensor.data, dtype=np.float32))
    if not found:
        raise FileFormatError(
            f"{str(path)!r} holds no tensor 'direction.N'; expected at least one: write it again"
        )
    for block, rows in found.items():
        if sorted(rows) != list(range(len(rows))):
            raise FileFormatError(
                f"{str(path)!r} has directions {sorted(rows)} at block {block}; expected"
                f" 0 to {len(rows) - 1}: write it again"
            )
    widths = {len(row) for rows in found.values() for row in rows.values()}
    if len(widths) > 1:
        raise FileFormatError(
            f"{str(path)!r} holds directions of the widths {sorted(widths)}; expected one width:"
            " they are of different models"
        )
    return {block: [rows[j] for j in sorted(rows)] for block, rows in sorted(found.items())}
