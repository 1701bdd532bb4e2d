"""Files of a stitch: a folder with tensors, a configuration and a model card.

Nothing is pickled. Every file is written under a temporary name and renamed.

    save_stitch(stitch, Path("my-stitch"))
    load_stitch("my-stitch")                      # or the id of a hub repository

Limits: maps, statistics and held-out sums are stored in float32.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrt_lens._files import read_tensors, write_atomically, write_tensors
from lrt_lens.errors import FileFormatError
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.moments._provenance import Provenance
from lrt_lens.moments._scatter import DenseSecondMoment, Scatter
from lrt_lens.stitching._affine import AffineMap, MapPair, StreamStatistics
from lrt_lens.stitching._stitch_data import StitchData

STITCH_SCHEMA = "lrt_lens.stitch/1"
CONFIG_NAME, TENSORS_NAME, HELD_OUT_NAME = (
    "stitch_config.json",
    "stitch.safetensors",
    "held_out.safetensors",
)


def save_stitch(stitch: StitchData, folder: Path) -> None:
    """Write a stitch folder."""
    # The configuration is removed first and written last, so that a folder with one is complete,
    # also if the program stops while it replaces an older stitch.
    (folder / CONFIG_NAME).unlink(missing_ok=True)
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
    config = {
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


def load_stitch(folder_or_repository: str, **hub: Any) -> StitchData:
    """Return the content of a stitch in a folder or a hub repository.

    Args:
        folder_or_repository: a folder if it exists, otherwise a hub id.
        **hub: arguments of `huggingface_hub.snapshot_download`; None is left out.

    Raises:
        FileFormatError: there is no stitch, or it is incomplete or of another version.
    """
    # A local folder takes precedence over a hub repository of the same name.
    folder = Path(folder_or_repository)
    if not folder.is_dir():
        folder = Path(_download(folder_or_repository, **hub))
    if not (folder / CONFIG_NAME).is_file():
        raise FileFormatError(
            f"{str(folder)!r} holds no {CONFIG_NAME}; it is no stitch folder, or its writing was "
            "interrupted: save the stitch again"
        )
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise FileFormatError(
            f"{str(folder / CONFIG_NAME)!r} is not valid JSON ({error}); copy the stitch again"
        ) from error
    schema = config.get("schema_version") if isinstance(config, dict) else None
    if schema != STITCH_SCHEMA:
        raise FileFormatError(
            f"{str(folder)!r} has schema {schema!r}; expected {STITCH_SCHEMA!r}: another program "
            "or version wrote it"
        )
    tensors, _ = read_tensors(folder / TENSORS_NAME, STITCH_SCHEMA)
    # Stitches without held-out groups have no such number.
    n_held_out = config.get("n_held_out", 0)
    held_out = read_tensors(folder / HELD_OUT_NAME, STITCH_SCHEMA)[0] if n_held_out else {}
    try:
        hooks = (config["source_hook"], config["target_hook"])
        return StitchData(
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

    # Only the files of a stitch, not what else the repository may hold.
    try:
        options = {key: value for key, value in hub.items() if value is not None}
        return snapshot_download(
            repository,
            allow_patterns=[CONFIG_NAME, TENSORS_NAME, HELD_OUT_NAME, "README.md"],
            **options,
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileFormatError(
            f"no stitch at {repository!r}: it is neither a local folder nor a hub repository that "
            f"can be reached ({error}); check the path or the hub id"
        ) from error


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
    return Scatter(
        float(of("n")),
        of("mean_x"),
        of("mean_y"),
        of("xy"),
        DenseSecondMoment(of("xx")),
        DenseSecondMoment(of("yy")),
    )


def stitch_card(stitch: StitchData) -> str:
    """Return the model card: models and hook points, scores, and how to load the stitch."""

    def about(model: ModelIdentity | None) -> str:
        return (
            "unknown"
            if model is None
            else f"`{model.name}` (revision {model.revision}, d_model {model.d_model}, "
            f"{model.basis} basis)"
        )

    scores = "\n".join(
        f"| {key} | {value if isinstance(value, str) else f'{value:.4g}'} |"
        for key, value in stitch.scores.items()
    )
    versions = ", ".join(
        f"{name} {number}" for name, number in asdict(stitch.provenance)["versions"].items()
    )
    provenance = stitch.provenance
    text = (
        f"{provenance.n_documents} documents, corpus {provenance.corpus or 'unknown'}, "
        f"windows of {provenance.context_length} tokens"
    )
    return f"""---
library_name: lrt-lens
tags: [model-stitching, interpretability, steering]
---
# Stitch {stitch.source_hook} → {stitch.target_hook}

Affine maps between the residual streams of two language models, fitted with lrt-lens.

- source: {about(stitch.source)} at `{stitch.source_hook}`
- target: {about(stitch.target)} at `{stitch.target_hook}`
- text: {text}
- paired: {stitch.provenance.alignment}
- made with: {versions or "unknown"}

| score | value |
| --- | --- |
{scores}

```python
import lrt_lens as lrt

stitch = lrt.Stitch.from_pretrained("this-folder-or-repository")
transferred = stitch.transfer(steering_vector)
```
"""
