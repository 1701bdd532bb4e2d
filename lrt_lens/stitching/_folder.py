"""Files of a stitch: a folder with tensors, a configuration and a model card.

Problem: a reader beside a writer must not get the hook points of one stitch and the weights of
another, and a full disk must not destroy the stitch that is replaced. Mechanism: the whole folder
is written beside the old one and exchanged with it; the configuration has the checksums of the
tensors' files, and these have the hash of the configuration. Nothing is pickled.

    save_stitch(stitch, Path("my-stitch"), stitch_card(stitch))
    load_stitch("my-stitch")                      # or the id of a hub repository

Limits: maps, statistics and held-out sums are stored in float32. The model card is not checked.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NotRequired

import torch
from torch import Tensor
from typing_extensions import TypedDict

from lrt_lens._files import foreign_file, write_atomically
from lrt_lens._folders import write_folder
from lrt_lens._hub import downloaded
from lrt_lens._model_card import is_our_card
from lrt_lens._stored_fields import (
    as_damage,
    json_checksum,
    read_json_file,
    stored_fields,
    stored_text,
)
from lrt_lens._tensor_files import (
    damaged,
    file_state,
    mapped_tensors,
    read_tensor_file,
    write_tensors,
)
from lrt_lens.errors import FileFormatError
from lrt_lens.models._belonging import refuse_impossible_hook
from lrt_lens.moments._provenance import stored_provenance
from lrt_lens.moments._scatter import DenseSecondMoment, Scatter
from lrt_lens.stitching._affine import AffineMap, MapPair, StreamStatistics
from lrt_lens.stitching._stitch_data import StitchData

STITCH_SCHEMA = "lrt_lens.stitch/1"
CONFIG_NAME, TENSORS_NAME, HELD_OUT_NAME = (
    "stitch_config.json",
    "stitch.safetensors",
    "held_out.safetensors",
)
CARD_NAME = "README.md"
_MAP_SHAPES = {
    "up.weight": "source target",
    "up.bias": "target",
    "down.weight": "target source",
    "down.bias": "source",
}
_SCATTER_SHAPES = {
    "n": "",
    "mean_x": "source",
    "mean_y": "target",
    "xx": "source source",
    "yy": "target target",
    "xy": "source target",
}
_ATTEMPTS, _PAUSE = 50, 0.02
"""Number of times that a folder is read while it changes, and seconds between two of them."""


class StitchConfig(TypedDict):
    """Content of ``stitch_config.json``."""

    schema_version: str
    source_hook: str
    target_hook: str
    scores: dict[str, float | int | str | bool | None]
    median_norm: dict[str, float]
    n_refits: int
    n_held_out: NotRequired[int]
    """Number of groups of held-out documents; earlier stitches have none."""
    has_null: bool
    provenance: dict[str, Any]
    files: NotRequired[dict[str, str]]
    """Header checksum of each file of tensors; earlier stitches have none."""


def save_stitch(stitch: StitchData, folder: Path, card: str) -> None:
    """Write a stitch folder as a whole, with its model card; see `lrt_lens._folders.write_folder`.

    Raises:
        FileExistsError: the folder has a README.md that is no model card of this package.
        OSError: the disk is full, or the folder cannot be written to; an earlier stitch is still
            there.
    """
    readme = folder / CARD_NAME
    if readme.exists() and not is_our_card(readme):
        raise foreign_file(readme, "model card")
    config = _config(stitch)
    metadata = {"schema_version": STITCH_SCHEMA, "config": _config_hash(config)}
    tensors = _map_tensors("maps", stitch.maps)
    if stitch.null is not None:
        tensors |= _map_tensors("null", stitch.null)
    for k, maps in enumerate(stitch.refits):
        tensors |= _map_tensors(f"refit{k}", maps)
    for role, statistics in (
        ("source", stitch.source_statistics),
        ("target", stitch.target_statistics),
    ):
        tensors |= {f"{role}.mean": statistics.mean, f"{role}.covariance": statistics.covariance}
    held_out = {
        f"group{g}.{name}": value
        for g, group in enumerate(stitch.held_out)
        for name, value in _scatter_tensors(group).items()
    }

    def write(staging: Path) -> None:
        in_float32 = {name: tensor.float() for name, tensor in tensors.items()}
        files = {TENSORS_NAME: in_float32, HELD_OUT_NAME: held_out}
        checksums = {}
        for name, content in files.items():
            write_tensors(staging / name, content, metadata)
            written = mapped_tensors(staging / name, STITCH_SCHEMA)
            checksums[name] = written.metadata["header_checksum"]
        texts = {CARD_NAME: card, CONFIG_NAME: json.dumps(config | {"files": checksums}, indent=1)}
        for name, text in texts.items():
            octets = text.encode("utf-8", errors="replace")
            write_atomically(staging / name, lambda path, octets=octets: path.write_bytes(octets))

    write_folder(folder, write, last=CONFIG_NAME)


def _config(stitch: StitchData) -> dict[str, Any]:
    fields = {
        "schema_version": STITCH_SCHEMA,
        "source_hook": stitch.source_hook,
        "target_hook": stitch.target_hook,
        "scores": {
            # JSON has no NaN, which is the only value that is not equal to itself.
            key: (None if value != value else value)
            for key, value in stitch.scores.items()
        },
        "median_norm": {
            "source": stitch.source_statistics.median_norm,
            "target": stitch.target_statistics.median_norm,
        },
        "n_refits": len(stitch.refits),
        "n_held_out": len(stitch.held_out),
        "has_null": stitch.null is not None,
        "provenance": json.loads(stitch.provenance.to_json()),
    }
    # Numbers of numpy become numbers of JSON.
    return json.loads(stored_text(StitchConfig, fields))


def _config_hash(config: Mapping[str, Any]) -> str:
    """Return the hash of a configuration without the checksums of the other files."""
    return json_checksum({key: value for key, value in config.items() if key != "files"})


def load_stitch(folder_or_repository: str, **hub: Any) -> StitchData:
    """Return the content of a stitch in a folder or a hub repository.

    A folder that is replaced meanwhile is read again.

    Args:
        folder_or_repository: a folder if it exists, otherwise a hub id.
        **hub: arguments of `huggingface_hub.snapshot_download`; None is left out.

    Raises:
        FileFormatError: there is no stitch, or it is incomplete, damaged or of another version.
    """
    # A local folder takes precedence over a hub repository of the same name.
    folder = Path(folder_or_repository)
    if not folder.is_dir():
        # Only the files of a stitch, not what else the repository may hold.
        names = [CONFIG_NAME, TENSORS_NAME, HELD_OUT_NAME, CARD_NAME]
        folder = downloaded(folder_or_repository, "stitch", names, **hub)
    for _ in range(_ATTEMPTS):
        before = file_state(folder / CONFIG_NAME)
        try:
            return _load(folder)
        except FileFormatError:
            time.sleep(_PAUSE)
            # Another stitch was put there while this one was read.
            if before is None or file_state(folder / CONFIG_NAME) == before:
                raise
    return _load(folder)


def _load(folder: Path) -> StitchData:
    path = folder / CONFIG_NAME
    content = _read_config(path)
    config = stored_fields(path, StitchConfig, content)
    provenance = stored_provenance(path, config["provenance"])
    # Stitches without held-out groups have no such number, and may have no such file.
    n_refits, n_held_out = config["n_refits"], config.get("n_held_out", 0)
    norms = config["median_norm"]
    # NaN stands for an unknown norm.
    if norms.keys() != {"source", "target"} or any(n <= 0 or n == math.inf for n in norms.values()):
        raise damaged(path, f"median_norm is {norms}")
    if min(n_refits, n_held_out) < 0:
        raise damaged(path, f"it has {n_refits} refits and {n_held_out} held-out groups")
    hooks = (config["source_hook"], config["target_hook"])
    models = (provenance.source, provenance.target)
    for hook, model in zip(hooks, models, strict=True):
        refuse_impossible_hook(path, hook, model)
    tensors = _read(folder, TENSORS_NAME, content, partial(_tensor_shapes, config), 4 * n_refits)
    widths = {role: len(tensors[f"{role}.mean"]) for role in ("source", "target")}
    held_out: dict[str, Tensor] = {}
    if n_held_out:
        n_tensors = len(_SCATTER_SHAPES) * n_held_out
        shapes = partial(_group_shapes, n_held_out)
        held_out = _read(folder, HELD_OUT_NAME, content, shapes, n_tensors, widths)
    with as_damage(path):
        return StitchData(
            maps=_map_pair("maps", tensors, *hooks),
            source_statistics=_statistics("source", tensors, config),
            target_statistics=_statistics("target", tensors, config),
            scores={
                key: (float("nan") if value is None else value)
                for key, value in config["scores"].items()
            },
            provenance=provenance,
            null=_map_pair("null", tensors, *hooks) if config["has_null"] else None,
            refits=tuple(
                _map_pair(f"refit{k}", tensors, *hooks) for k in range(config["n_refits"])
            ),
            held_out=tuple(_scatter(f"group{g}", held_out) for g in range(n_held_out)),
        )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileFormatError(
            f"{str(path.parent)!r} holds no {CONFIG_NAME}; it is no stitch folder, or its writing "
            "was interrupted: save the stitch again"
        )
    return read_json_file(path, STITCH_SCHEMA)


def _group_shapes(n_groups: int) -> dict[str, str]:
    groups = range(n_groups)
    return {f"group{g}.{name}": axes for g in groups for name, axes in _SCATTER_SHAPES.items()}


def _tensor_shapes(config: Mapping[str, Any]) -> dict[str, str]:
    refits = [f"refit{k}" for k in range(config["n_refits"])]
    names = ["maps", *(["null"] if config["has_null"] else []), *refits]
    shapes = {f"{name}.{key}": axes for name in names for key, axes in _MAP_SHAPES.items()}
    for role in ("source", "target"):
        shapes |= {f"{role}.mean": role, f"{role}.covariance": f"{role} {role}"}
    return shapes


def _read(
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    shapes: Callable[[], Mapping[str, str]],
    n_tensors: int,
    widths: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Return the tensors of a file, after a check that it belongs to the configuration.

    ``n_tensors`` that the configuration declares are compared with the file before their names are
    listed.
    """
    file = read_tensor_file(folder / name, STITCH_SCHEMA)
    if n_tensors > len(file.tensors):
        raise damaged(folder / CONFIG_NAME, f"it declares more tensors than {name} has")
    tensors = file.checked(shapes(), widths)
    if "files" in config:
        belongs = config["files"].get(name) == file.metadata.get(
            "header_checksum"
        ) and file.metadata.get("config") == _config_hash(config)
        if not belongs:
            raise FileFormatError(
                f"{str(folder / name)!r} and {CONFIG_NAME} are not of the same stitch, or one of "
                "them was changed: copy the whole folder, or save the stitch again"
            )
    elif "config" in file.metadata:
        raise damaged(folder / CONFIG_NAME, "it lacks the checksums of the other files")
    return tensors


def _map_tensors(prefix: str, maps: MapPair) -> dict[str, Tensor]:
    return {
        f"{prefix}.{way}.{name}": getattr(affine, name)
        for way, affine in (("up", maps.up), ("down", maps.down))
        for name in ("weight", "bias")
    }


def _map_pair(
    prefix: str, tensors: dict[str, Tensor], source_hook: str, target_hook: str
) -> MapPair:
    up = AffineMap(
        tensors[f"{prefix}.up.weight"], tensors[f"{prefix}.up.bias"], source_hook, target_hook
    )
    return MapPair(
        up,
        AffineMap(
            tensors[f"{prefix}.down.weight"],
            tensors[f"{prefix}.down.bias"],
            target_hook,
            source_hook,
        ),
    )


def _statistics(role: str, tensors: dict[str, Tensor], config: dict[str, Any]) -> StreamStatistics:
    return StreamStatistics(
        tensors[f"{role}.mean"], tensors[f"{role}.covariance"], config["median_norm"][role]
    )


def _scatter_tensors(scatter: Scatter) -> dict[str, Tensor]:
    """Return the sums in float32 and the count in float64, which is exact."""
    # Centred sums in float32 are as precise as the float32 products from which they were added.
    sums = {
        "mean_x": scatter.mean_x,
        "mean_y": scatter.mean_y,
        "xx": scatter.xx,
        "yy": scatter.yy,
        "xy": scatter.xy,
    }
    return {name: value.float() for name, value in sums.items()} | {
        "n": torch.tensor(scatter.n, dtype=torch.float64)
    }


def _scatter(prefix: str, tensors: dict[str, Tensor]) -> Scatter:
    of = lambda name: tensors[f"{prefix}.{name}"].double()  # noqa: E731
    if float(of("n")) < 0:
        raise ValueError(f"{prefix} has {float(of('n'))} rows")
    return Scatter(
        float(of("n")),
        of("mean_x"),
        of("mean_y"),
        of("xy"),
        DenseSecondMoment(of("xx")),
        DenseSecondMoment(of("yy")),
    )
