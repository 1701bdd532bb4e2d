"""Facts about files and folders: what they are, where they belong, and which command is next.

    about = facts_of(Path("learnt/vector.safetensors"))
    about.rows          # {"kind": "steering vector", "hook point": "blocks.2.hook_resid_post", …}
    about.next          # "lrt-lens transfer STITCH learnt/vector.safetensors"

Problem: months later nobody knows what a file is for. Mechanism: every kind of file has a function
that reads its header, or the file if it is small.

Limits: weights of models and sums of moments are not read.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from lrt_lens.cli._kinds import ARTEFACTS, kind_at, words_of_options


@dataclass(frozen=True)
class PathFacts:
    """Facts about a path."""

    rows: dict[str, Any]
    """Values by their names; None if unknown."""
    next: str = ""
    """Command that uses it next; empty if there is none."""
    inner: tuple[Path, ...] = field(default=())
    """Files and folders in it that have facts of their own."""

    @property
    def known(self) -> dict[str, str]:
        """Values that are known, as text."""
        return {name: str(value) for name, value in self.rows.items() if value not in (None, "")}


def facts_of(path: Path) -> PathFacts:
    """Return the facts about a file or folder.

    Raises:
        ValueError: there is nothing, or nothing known.
        FileFormatError: it is damaged.
    """
    kind = kind_at(path)
    return _FACTS.get(kind, _only_kind)(path)


def _only_kind(path: Path) -> PathFacts:
    return PathFacts({"kind": kind_at(path)})


# ---------------------------------------------------------------------------------------- artefacts


def vector_facts(vector: Any, path: Path) -> PathFacts:
    """Return the facts about a steering vector that is at a path."""
    strength, route = vector.strength, vector.route
    rows = {
        "kind": "steering vector",
        "name": vector.name,
        "hook point": vector.hook,
        "model": vector.model and vector.model.name,
        "shape": list(vector.direction.shape),
        "method": vector.method,
        "read": vector.read,
        "norm": f"{vector.norm:.4g}",
        "transferred": _route(route) or vector.transferred_by or "no",
        "strength": strength and _strength(strength),
        "format": vector.file and vector.file.format,
    }
    shown, model = quote(str(path)), _model_word(vector.model)
    if not vector.transferred:
        following = f"lrt-lens transfer STITCH {shown}"
    elif strength is None:
        following = f"lrt-lens calibrate {shown} --model {model} --neutral TEXTS --damage 0.1"
    else:
        following = f"lrt-lens export {shown} OUT.gguf --to llama.cpp"
    return PathFacts(rows, following)


def _strength(strength: Any) -> str:
    words = f"scale {strength.scale:.4g}, {strength.mode}, {strength.where}"
    # NaN is unequal to itself.
    measured = strength.damage == strength.damage
    return f"{words}; {strength.damage:.3g} nats per token" if measured else words


def _route(route: Any) -> str:
    if route is None:
        return ""
    tokens = "" if route.n_tokens is None else f", fitted on {route.n_tokens:,} tokens"
    return f"from {route.source or 'unknown'}, {route.source_hook}{tokens}"


def _model_word(model: Any) -> str:
    return quote(model.name) if model is not None else "MODEL"


def _vector(path: Path) -> PathFacts:
    from lrt_lens.adapters.vectors import SteeringVector

    return vector_facts(SteeringVector.load(path), path)


def _foreign(path: Path) -> PathFacts:
    from lrt_lens.serving import format_of, import_vectors

    name = format_of(path)
    rows: dict[str, Any] = {"kind": "file of vectors of another program", "format": name}
    if name == "tensor":
        rows |= {"kind": "tensor alone, which does not say where it acts"}
        return PathFacts(rows, f"lrt-lens import {quote(str(path))} --at BLOCK --model MODEL")
    vectors = import_vectors(path)
    hooks = [one.hook for one in vectors]
    rows |= {
        "hook points": ", ".join(hooks[:6]) + (" …" if len(hooks) > 6 else ""),
        "vectors": len(vectors),
        "shape": list(vectors[0].direction.shape),
        "model": vectors[0].model and vectors[0].model.name,
        "strength": vectors[0].strength and _strength(vectors[0].strength),
    }
    return PathFacts(rows, f"lrt-lens import {quote(str(path))} --out imported")


def probe_facts(probe: Any, path: Path) -> PathFacts:
    """Return the facts about a linear probe that is at a path."""
    rows = {
        "kind": "linear probe",
        "name": probe.name,
        "hook point": probe.hook,
        "model": probe.model and probe.model.name,
        "shape": list(probe.weight.shape),
        "classes": ", ".join(map(str, probe.classes)),
        "method": probe.method,
        "read": probe.read,
        "transferred": probe.transferred_by or "no",
        "threshold": f"set on {probe.n_recentred} unlabelled texts" if probe.n_recentred else None,
    }
    following = f"lrt-lens transfer STITCH {quote(str(path))} --recentre TEXTS"
    following += " --source SMALL --target LARGE"
    return PathFacts(rows, "" if probe.transferred else following)


def _probe(path: Path) -> PathFacts:
    from lrt_lens.serving import load_probe

    return probe_facts(load_probe(path.parent if path.name == "probe.json" else path), path)


def _sae(path: Path) -> PathFacts:
    from lrt_lens._stored_fields import read_json_file

    config = read_json_file(path / "cfg.json")
    about = config.get("metadata") or {}
    transferred, refit = about.get("transferred") or {}, about.get("refit")
    rows = {
        "kind": "SAE of SAELens",
        "hook point": about.get("hook_name") or config.get("hook_name"),
        "model": about.get("model_name") or config.get("model_name"),
        "shape": [config.get("d_in"), config.get("d_sae")],
        "architecture": config.get("architecture"),
        "transferred": f"from {transferred.get('source_model')}, {transferred.get('source_hook')}"
        if transferred
        else "no",
        "refitted": refit and f"on {refit.get('n_rows', 0):,} states of the target",
    }
    shown = quote(str(path))
    if transferred:
        return PathFacts(rows)
    both = "--source SMALL --target LARGE"
    return PathFacts(rows, f"lrt-lens transfer STITCH {shown} --refit DOCUMENTS {both}")


# ----------------------------------------------------------------------------- stitches and moments


def _stitch(path: Path) -> PathFacts:
    from lrt_lens.stitching import Stitch

    stitch = Stitch.from_pretrained(path)
    scores = stitch.scores
    rows = {
        "kind": "stitch",
        **_models(stitch.provenance),
        "hook points": f"{stitch.source_hook} → {stitch.target_hook}",
        "shape": list(stitch.up.weight.shape),
        "solver": scores.get("solver"),
        "n tokens": scores.get("n_tokens") and f"{int(scores['n_tokens']):,} of the fit",
        "R² on the test fold": _score(scores, "r2"),
        "R² of shuffled pairs": _score(scores, "r2_null"),
        "R² of token identity": _score(scores, "r2_token"),
    }
    return PathFacts(rows, next_of_stitch(stitch))


def next_of_stitch(stitch: Any) -> str:
    """Return the command that learns what a stitch can transfer."""
    model, at = _model_word(stitch.source), stitch.source_hook
    return f"lrt-lens learn vector CONTRAST --model {model} --at {at}"


def _score(scores: dict[str, Any], name: str) -> str | None:
    value = scores.get(name)
    return None if value is None or value != value else f"{value:.3f}"


def _models(provenance: Any) -> dict[str, Any]:
    return {
        name: model and f"{model.name} ({model.n_layers} blocks, {model.d_model} dimensions)"
        for name, model in (("source", provenance.source), ("target", provenance.target))
    }


def _moments(path: Path) -> PathFacts:
    from lrt_lens._tensor_files import mapped_tensors
    from lrt_lens.moments._layout import read_provenance

    opened = mapped_tensors(path, None)
    pairs = json.loads(opened.metadata.get("pairs", "[]"))
    provenance = read_provenance(path, opened.metadata)
    # Moments have one number of tokens per part, a survey has all of them in one tensor.
    counts = [name for name in opened.names if name == "n" or name.endswith("/n")]
    n = sum(float(opened.tensor(name).sum()) for name in counts)
    rows = {
        "kind": kind_at(path),
        **_models(provenance),
        "hook pairs": len(pairs),
        "hook points": _pairs(pairs),
        "n tokens": f"{n:,.0f}" if n else provenance.n_tokens,
        "n documents": f"{provenance.n_documents:,}",
        "shard": provenance.shard and f"{provenance.shard[0]} of {provenance.shard[1]}",
        "null": opened.metadata.get("null"),
    }
    if provenance.shard:
        shards = path.parent / "moments-*.safetensors"
        return PathFacts(rows, f"lrt-lens merge OUT {shards}")
    if kind_at(path) == "survey":
        return PathFacts(rows, "lrt-lens fit … --pairs SOURCE:TARGET")
    return PathFacts(rows, f"in Python: lrt.CrossMoments.load({str(path)!r}).fit()")


def _pairs(pairs: list[Any]) -> str:
    from lrt_lens.models import short_hook

    shown = [f"{short_hook(source)} → {short_hook(target)}" for source, target in pairs[:6]]
    return ", ".join(shown) + (" …" if len(pairs) > 6 else "")


def _checkpoint(path: Path) -> PathFacts:
    folder = path if path.is_dir() else path.parent
    rows = {
        "kind": "checkpoint of a harvest that is not complete",
        "files": len(list(folder.glob("*"))),
    }
    return PathFacts(rows, "the command that wrote it; it resumes")


def _cache(path: Path) -> PathFacts:
    from lrt_lens.moments.cache._manifest import read_manifest

    manifest = read_manifest(path)
    rows = {
        "kind": "activation cache",
        **_models(manifest.provenance),
        "hook points": ", ".join(manifest.streams),
        "n tokens": f"{manifest.n_rows:,}",
        "precision": manifest.dtype,
    }
    return PathFacts(rows, "in Python: lrt.moments.ActivationCache.open(…)")


def _states(path: Path) -> PathFacts:
    from lrt_lens.moments.states import StateFolder

    about = StateFolder(path).manifest
    n_files = len(list(path.glob("*.safetensors"))) + len(list(path.glob("*.parquet")))
    rows = {
        "kind": "hidden states",
        "model": about.model,
        "hook points": ", ".join(about.columns or ()),
        "n layers": about.n_layers,
        "sequences": about.n_sequences,
        "files": n_files,
        "identity": "known" if about.identity else "unknown",
    }
    return PathFacts(
        rows,
        f"lrt-lens fit-states --source MODEL --target {quote(str(path))} --documents DOCUMENTS",
    )


# -------------------------------------------------------------------------------- results and texts


def _run(path: Path) -> PathFacts:
    results = path / "results.json"
    rows: dict[str, Any] = {"kind": "folder of a run"}
    if results.is_file():
        rows |= {k: v for k, v in _results(results).rows.items() if k != "kind"}
    held = [path / name for name in ("stitch", "moments.safetensors", *ARTEFACTS)]
    inner = tuple(one for one in held if one.exists())
    # A page of several runs is the last step.
    is_page = rows.get("command") == "lrt-lens report"
    return PathFacts(rows, "" if is_page else f"lrt-lens report {quote(str(path))}", inner)


def _results(path: Path) -> PathFacts:
    from lrt_lens._stored_fields import read_json_file

    content = read_json_file(path)
    pair = content.get("pair") or {}
    apart = ("schema_version", "versions", "arguments", "command", "pair")
    tables = [name for name in content if name not in apart]
    rows = {
        "kind": "results of a run",
        "command": f"lrt-lens {content['command']}" if "command" in content else None,
        "source": pair.get("source"),
        "target": pair.get("target"),
        "tables": ", ".join(
            f"{name} ({len(content[name])} rows)" if isinstance(content[name], list) else name
            for name in tables
        ),
        "version": (content.get("versions") or {}).get("lrt-lens"),
    }
    return PathFacts(rows, f"lrt-lens report {quote(str(path))}")


def _record(path: Path) -> PathFacts:
    from lrt_lens._stored_fields import read_json_file

    content = read_json_file(path)
    vectors = content.get("vectors") or [{}]
    strength = content.get("strength") or {}
    rows = {
        "kind": "record of an exported file",
        "format": content.get("format"),
        "hook points": ", ".join(str(one.get("hook")) for one in vectors),
        "model": (vectors[0].get("model") or {}).get("name"),
        "scale": strength.get("scale"),
        "damage": strength.get("damage"),
        "checks": len(content.get("checks") or []),
    }
    return PathFacts(rows)


def _options(path: Path) -> PathFacts:
    words = words_of_options(path)
    following = f"lrt-lens {words} --config {quote(str(path))}"
    return PathFacts({"kind": "options of a run", "command": f"lrt-lens {words}"}, following)


def _model(path: Path) -> PathFacts:
    from lrt_lens._stored_fields import read_json_file

    config = read_json_file(path / "config.json")
    text = config.get("text_config") or config
    width = text.get("hidden_size") or text.get("n_embd")
    rows = {
        "kind": "Hugging Face model",
        "architecture": ", ".join(config.get("architectures") or []) or config.get("model_type"),
        "blocks": text.get("num_hidden_layers") or text.get("n_layer"),
        "dimensions": width,
        "precision": config.get("dtype") or config.get("torch_dtype"),
    }
    shown = quote(str(path))
    return PathFacts(rows, f"lrt-lens fit --source {shown} --target LARGER --documents TEXTS")


def _gguf(path: Path) -> PathFacts:
    from lrt_lens.errors import FileFormatError

    with path.open("rb") as file:
        start = file.read(24)  # b"GGUF", version, number of tensors, number of keys
    if len(start) < 24:
        raise FileFormatError(f"{str(path)!r} is a truncated GGUF file; copy it again")
    version, n_tensors, _ = struct.unpack("<IQQ", start[4:])
    rows = {
        "kind": "GGUF model of llama.cpp",
        "GGUF version": version,
        "tensors": n_tensors,
        "bytes": f"{path.stat().st_size:,}",
    }
    return PathFacts(rows)


def _shards(path: Path) -> PathFacts:
    files = sorted(path.glob("moments-*-of-*.safetensors"))
    first = _moments(files[0])
    rows = first.rows | {"kind": "shards of a fit", "files": len(files)}
    # These are of one shard.
    rows = {name: value for name, value in rows.items() if name not in _OF_ONE_SHARD}
    return PathFacts(rows, first.next)


_OF_ONE_SHARD = ("shard", "n tokens", "n documents")


def _interrupted(path: Path) -> PathFacts:
    inner = tuple(sorted(path.glob("checkpoint*/run.safetensors")))
    rows = {"kind": "folder of a run that is not complete", "checkpoints": len(inner)}
    return PathFacts(rows, "the command that wrote it; it resumes")


def _documents(path: Path) -> PathFacts:
    columns = _columns(path) if path.is_file() else []
    about = {"kind": "documents", "columns": ", ".join(columns)}
    shown = quote(str(path))
    if {"prompt", "positive", "negative"} <= set(columns):
        return PathFacts(
            about | {"kind": "choice items"},
            f"lrt-lens evaluate vector STITCH VECTOR --items {shown} --neutral TEXTS",
        )
    if {"positive", "negative"} <= set(columns):
        kind = {"kind": "contrast set"}
        return PathFacts(about | kind, f"lrt-lens learn vector {shown} --model MODEL --at BLOCK")
    if "label" in columns:
        kind = {"kind": "labelled texts"}
        return PathFacts(about | kind, f"lrt-lens learn probe {shown} --model MODEL --at BLOCK")
    return PathFacts(about, f"lrt-lens fit --source SMALL --target LARGE --documents {shown}")


def _columns(path: Path) -> list[str]:
    """Return the columns of the first row of a file; paragraphs have none."""
    from lrt_lens.data._document_files import file_rows
    from lrt_lens.data._document_rows import Wanted

    rows = file_rows(path, Wanted(lambda _, columns: list(columns)))
    _, first = next(iter(rows), (0, None))
    return list(first) if isinstance(first, dict) else []


_FACTS: dict[str, Callable[[Path], PathFacts]] = {
    "vector": _vector,
    "foreign vector": _foreign,
    "probe": _probe,
    "exported probe": _probe,
    "SAE": _sae,
    "stitch": _stitch,
    "moments": _moments,
    "survey": _moments,
    "checkpoint": _checkpoint,
    "activation cache": _cache,
    "hidden states": _states,
    "run": _run,
    "results": _results,
    "export record": _record,
    "options of a run": _options,
    "model": _model,
    "baked model": _model,
    "GGUF model": _gguf,
    "shards": _shards,
    "interrupted run": _interrupted,
    "documents": _documents,
}
"""Functions that describe a path, by its kind."""
