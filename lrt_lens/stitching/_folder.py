"""Files: moments as one safetensors file, a stitch as a folder. Nothing is pickled; every file is
renamed into place when complete.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrt_lens.data._blocks import PART_NAMES
from lrt_lens.errors import FileFormatError
from lrt_lens.models._hooked_model import ModelIdentity
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._provenance import Provenance
from lrt_lens.moments._scatter import DenseSecondMoment, Scatter
from lrt_lens.moments._side_moments import SideMoments
from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching._stitch import Stitch, StreamStatistics

MOMENTS_SCHEMA = "lrt_lens.moments/1"
STITCH_SCHEMA = "lrt_lens.stitch/1"
CONFIG_NAME, TENSORS_NAME, HELD_OUT_NAME = (
    "stitch_config.json",
    "stitch.safetensors",
    "held_out.safetensors",
)


# ------------------------------------------------------------------------------------------ writing


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let ``write`` fill a temporary file beside ``path`` and rename it; nothing is left behind
    when it fails.
    """
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def make_folder(folder: Path) -> Path:
    """The folder, made if need be; OSError says what is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _unwritable(folder: Path, error: OSError) -> OSError:
    return OSError(
        f"cannot write to {str(folder)!r} ({error.strerror or error}); choose a folder that you may write to"
    )


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """One safetensors file, atomically."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_atomically(path, lambda temporary: save_file(ready, temporary, metadata=metadata))


def read_tensors(path: Path, schema: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a file of ours; FileFormatError says what is wrong with any other."""
    with _opened(path, schema) as (opened, metadata):
        return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118 (no iterator on a safetensors file)


def read_moment_metadata(path: Path) -> dict[str, str]:
    """What a file of moments says beside its tensors, which are not read; see `moment_metadata`."""
    with _opened(path, MOMENTS_SCHEMA) as (_, metadata):
        return metadata


@contextmanager
def _opened(path: Path, schema: str) -> Iterator[tuple[Any, dict[str, str]]]:
    if not path.is_file():
        raise FileFormatError(f"no file at {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("schema_version") != schema:
                raise FileFormatError(
                    f"{str(path)!r} has schema {metadata.get('schema_version')!r}; expected {schema!r}: it was written by another program or version"
                )
            yield opened, metadata
    except (SafetensorError, OSError) as error:
        raise FileFormatError(
            f"{str(path)!r} is truncated or no safetensors file ({error}); copy or fit it again"
        ) from error


# ------------------------------------------------------------------------------------------ moments


def save_moments(moments: CrossMoments, path: Path) -> Path:
    """See `CrossMoments.save`."""
    return write_tensors(
        path,
        moment_tensors(moments),
        {"schema_version": MOMENTS_SCHEMA, **moment_metadata(moments)},
    )


def moment_tensors(moments: CrossMoments) -> dict[str, Tensor]:
    """The moments' own storage by its names in files: what is written into these tensors is written
    into the moments.
    """
    tensors: dict[str, Tensor] = {}
    for k, part in enumerate(PART_NAMES):
        tensors[f"{part}/n"] = moments.n[k]
        for role, side in (("source", moments.source), ("target", moments.target)):
            for hook, stream in side.items():
                tensors[f"{part}/sum/{role}/{hook}"] = stream.total[k]
                tensors[f"{part}/second/{role}/{hook}"] = stream.second[k]
        for (s, t), cross in moments.cross.items():
            tensors[f"{part}/cross/{s}/{t}"] = cross[k]
    for role, side in (("source", moments.source), ("target", moments.target)):
        for hook, stream in side.items():
            tensors |= {f"shift/{role}/{hook}": stream.shift, f"norms/{role}/{hook}": stream.norms}
    return tensors | {f"null/{s}/{t}": cross for (s, t), cross in moments.cross_null.items()}


def moment_metadata(moments: CrossMoments) -> dict[str, str]:
    """What a file says of moments beside their tensors."""
    return {
        "pairs": json.dumps(moments.pairs),
        "token_hook": json.dumps(moments.token_hook),
        "moment_dtype": str(moments.moment_dtype).removeprefix("torch."),
        "null": moments.null,
        "provenance": moments.provenance.to_json(),
    }


def load_moments(path: Path) -> CrossMoments:
    """See `CrossMoments.load`."""
    tensors, metadata = read_tensors(path, MOMENTS_SCHEMA)

    def parts(name: str) -> Tensor:
        return torch.stack([tensors[f"{part}/{name}"] for part in PART_NAMES])

    def side(role: str, hooks: dict[str, None]) -> dict[str, SideMoments]:
        return {
            hook: SideMoments(
                tensors[f"shift/{role}/{hook}"],
                parts(f"sum/{role}/{hook}"),
                parts(f"second/{role}/{hook}"),
                tensors[f"norms/{role}/{hook}"],
            )
            for hook in hooks
        }

    try:
        moments = CrossMoments(
            pairs=tuple((s, t) for s, t in json.loads(metadata["pairs"])),
            token_hook=json.loads(metadata["token_hook"]),
            moment_dtype=getattr(torch, metadata["moment_dtype"]),
            null=metadata["null"],
            provenance=Provenance.from_json(metadata["provenance"]),
        )
        moments.n = parts("n")
        if not moments.n.any() and not any(name.startswith("shift/") for name in tensors):
            return moments  # begun and never given a row
        moments.source = side("source", dict.fromkeys(s for s, _ in moments.kept_pairs))
        moments.target = side("target", dict.fromkeys(t for _, t in moments.kept_pairs))
        moments.cross = {(s, t): parts(f"cross/{s}/{t}") for s, t in moments.kept_pairs}
        moments.cross_null = {
            (s, t): tensors[f"null/{s}/{t}"] for s, t in moments.pairs if f"null/{s}/{t}" in tensors
        }
    except KeyError as error:
        raise FileFormatError(
            f"{str(path)!r} lacks {error}; it was cut short or changed: harvest again"
        ) from error
    return moments


# ------------------------------------------------------------------------------------------- stitch


def save_stitch(stitch: Stitch, folder: Path) -> None:
    """Write a stitch folder: tensors first, then the card, the config last, so that a folder with a
    config is whole.
    """
    # An older stitch here stops being one before its first file is replaced.
    (folder / CONFIG_NAME).unlink(missing_ok=True)
    tensors = _map_tensors("maps", stitch.maps)
    if stitch.null is not None:
        tensors |= _map_tensors("null", stitch.null)
    for k, pair in enumerate(stitch.refits):
        tensors |= _map_tensors(f"refit{k}", pair)
    for role, statistics in (
        ("source", stitch.source_statistics),
        ("target", stitch.target_statistics),
    ):
        tensors |= {f"{role}.mean": statistics.mean, f"{role}.covariance": statistics.covariance}
    config = {
        "schema_version": STITCH_SCHEMA,
        "source_hook": stitch.source_hook,
        "target_hook": stitch.target_hook,
        "scores": {
            key: (None if value != value else value) for key, value in stitch.scores.items()
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
    write_tensors(
        folder / TENSORS_NAME,
        {name: t.float() for name, t in tensors.items()},
        {"schema_version": STITCH_SCHEMA},
    )
    held_out = {
        f"group{g}.{name}": value
        for g, group in enumerate(stitch.held_out)
        for name, value in _scatter_tensors(group).items()
    }
    write_tensors(folder / HELD_OUT_NAME, held_out, {"schema_version": STITCH_SCHEMA})
    write_atomically(
        folder / "README.md",
        lambda temporary: temporary.write_text(stitch_card(stitch), encoding="utf-8"),
    )
    write_atomically(
        folder / CONFIG_NAME,
        lambda temporary: temporary.write_text(json.dumps(config, indent=1), encoding="utf-8"),
    )


def load_stitch(folder_or_repository: str, **hub: Any) -> Stitch:
    """A stitch from a folder, or from a hub repository."""
    folder = Path(folder_or_repository)
    if not folder.is_dir():
        folder = Path(_download(folder_or_repository, **hub))
    if not (folder / CONFIG_NAME).is_file():
        raise FileFormatError(
            f"{str(folder)!r} holds no {CONFIG_NAME}; it is no stitch folder, or its writing was interrupted"
        )
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise FileFormatError(
            f"{str(folder / CONFIG_NAME)!r} is no JSON ({error}); copy the stitch again"
        ) from error
    schema = config.get("schema_version") if isinstance(config, dict) else None
    if schema != STITCH_SCHEMA:
        raise FileFormatError(
            f"{str(folder)!r} has schema {schema!r}; expected {STITCH_SCHEMA!r}: it was written by another program or version"
        )
    tensors, _ = read_tensors(folder / TENSORS_NAME, STITCH_SCHEMA)
    n_held_out = config.get("n_held_out", 0)
    held_out = read_tensors(folder / HELD_OUT_NAME, STITCH_SCHEMA)[0] if n_held_out else {}
    try:
        hooks = (config["source_hook"], config["target_hook"])
        return Stitch(
            maps=_map_pair("maps", tensors, *hooks),
            source_statistics=_statistics("source", tensors, config),
            target_statistics=_statistics("target", tensors, config),
            scores={
                key: (float("nan") if value is None else value)
                for key, value in config["scores"].items()
            },
            provenance=Provenance.from_json(json.dumps(config["provenance"])),
            null=_map_pair("null", tensors, *hooks) if config["has_null"] else None,
            refits=tuple(
                _map_pair(f"refit{k}", tensors, *hooks) for k in range(config["n_refits"])
            ),
            held_out=tuple(_scatter(f"group{g}", held_out) for g in range(n_held_out)),
        )
    except KeyError as error:
        raise FileFormatError(
            f"{str(folder)!r} lacks {error}; the folder is incomplete: copy the stitch again"
        ) from error


def _download(repository: str, **hub: Any) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        options = {key: value for key, value in hub.items() if value is not None}
        return snapshot_download(
            repository,
            allow_patterns=[CONFIG_NAME, TENSORS_NAME, HELD_OUT_NAME, "README.md"],
            **options,
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileFormatError(
            f"no stitch at {repository!r}: it is neither a folder here nor a hub repository that can be reached ({error})"
        ) from error


def _map_tensors(prefix: str, pair: MapPair) -> dict[str, Tensor]:
    return {
        f"{prefix}.{way}.{name}": getattr(affine, name)
        for way, affine in (("up", pair.up), ("down", pair.down))
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
    """Sums in float32: their own rounding is below that of float32 products; the count stays exact."""
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
    return Scatter(
        float(of("n")),
        of("mean_x"),
        of("mean_y"),
        of("xy"),
        DenseSecondMoment(of("xx")),
        DenseSecondMoment(of("yy")),
    )


def stitch_card(stitch: Stitch) -> str:
    """The model card: what it maps, how well, how to load it."""

    def about(model: ModelIdentity | None) -> str:
        return (
            "unknown"
            if model is None
            else f"`{model.name}` (revision {model.revision}, d_model {model.d_model}, {model.basis} basis)"
        )

    scores = "\n".join(
        f"| {key} | {value if isinstance(value, str) else f'{value:.4g}'} |"
        for key, value in stitch.scores.items()
    )
    versions = ", ".join(
        f"{name} {number}" for name, number in asdict(stitch.provenance)["versions"].items()
    )
    return f"""---
library_name: lrt-lens
tags: [model-stitching, interpretability, steering]
---
# Stitch {stitch.source_hook} → {stitch.target_hook}

Affine maps between the residual streams of two language models, fitted with lrt-lens.

- source: {about(stitch.source)} at `{stitch.source_hook}`
- target: {about(stitch.target)} at `{stitch.target_hook}`
- text: {stitch.provenance.n_documents} documents, corpus {stitch.provenance.corpus or "unknown"}, windows of {stitch.provenance.context_length} tokens
- paired: {stitch.provenance.alignment}
- made with: {versions or "unknown"}

| score | value |
| --- | --- |
{scores}

```python
import lrt_lens as lrt

stitch = lrt.Stitch.from_pretrained("this-folder-or-repository")
moved = stitch.transfer(steering_vector)
```
"""
