"""What a cache says of itself: ``manifest.json``, written last and renamed into place, so that a
shard counts once it is listed there.

A shard is one file of tokens and streams, and one more for every later recording of other hook
points on the same tokens:

    shard-00000.safetensors      tokens, blocks, streams recorded first
    shard-00000.1.safetensors    streams of a second pass
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lrt_lens._files import write_atomically
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.moments._provenance import Provenance

CACHE_SCHEMA = "lrt_lens.cache/1"
MANIFEST_NAME = "manifest.json"
_SAME_RUN = (
    "context_length",
    "skip_first",
    "chat_template",
    "seed",
    "source_dtype",
    "target_dtype",
    "n_tokens",
    "shard",
)
ROLES = ("source", "target")


@dataclass(frozen=True)
class ShardFile:
    """One file of a shard."""

    name: str
    n_bytes: int
    streams: tuple[str, ...]
    """Names of its activations, ``{role}/{hook}``."""


@dataclass(frozen=True)
class ShardRecord:
    """One shard: the same rows in all its files."""

    files: tuple[ShardFile, ...]
    """The first holds the blocks and their tokens."""
    n_rows: int

    @property
    def streams(self) -> tuple[str, ...]:
        """Of all files."""
        return tuple(stream for file in self.files for stream in file.streams)

    @property
    def stem(self) -> str:
        """``shard-00000``."""
        return self.files[0].name.split(".")[0]


@dataclass(frozen=True)
class Manifest:
    """Which models, tokens and rules, and which shards are whole."""

    provenance: Provenance
    """Documents are counted in the shards, not here."""
    dtype: str
    """Of the stored activations: ``"bfloat16"``, ``"float16"`` or ``"float32"``."""
    streams: dict[str, int]
    """Width of every stream, ``{role}/{hook}``: those of a recording that has not ended, too."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of hook points that were harvested; empty means all."""
    token_hook: str | None = None
    """Source hook point that stands for token identity."""
    block_rows: int | None = None
    """Unmasked tokens a block; None for rows of one's own."""
    has_tokens: bool = True
    """Whether windows are there; rows of one's own have none."""
    shards: tuple[ShardRecord, ...] = ()
    n_blocks: int | None = None
    """Blocks in all, once everything was written; None before."""

    @property
    def n_rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.n_rows for shard in self.shards)

    @property
    def first_streams(self) -> dict[str, int]:
        """Widths of the streams that were recorded with the tokens; later recordings are not among
        them.
        """
        if not self.shards:
            return self.streams
        return {name: self.streams[name] for name in self.shards[0].files[0].streams}

    def hooks(self, role: str) -> tuple[str, ...]:
        """Hook points of one side that every shard holds."""
        whole = [s for s in self.streams if all(s in shard.streams for shard in self.shards)]
        return tuple(name.removeprefix(f"{role}/") for name in whole if name.startswith(f"{role}/"))

    def refuse_other(self, other: "Manifest", folder: Path) -> None:
        """Raise `MismatchError` naming the first thing in which ``other``, which wants to go on
        writing here, is another run.
        """
        for role in ROLES:
            ours, theirs = getattr(self.provenance, role), getattr(other.provenance, role)
            refuse_other_model(ours, theirs, f"the {role} model for the cache {str(folder)!r}")
        compared: list[tuple[str, Any, Any]] = [
            *(
                (name, getattr(self.provenance, name), getattr(other.provenance, name))
                for name in _SAME_RUN
            ),
            *(
                (name, getattr(self, name), getattr(other, name))
                for name in ("dtype", "pairs", "token_hook", "block_rows", "has_tokens")
            ),
        ]
        for name, ours, theirs in compared:
            if ours != theirs:
                raise MismatchError(
                    f"the cache {str(folder)!r} was begun with {name} {ours!r}, now it is {theirs!r}; give the same arguments, or another folder"
                )

    def with_shard(self, index: int, record: ShardRecord) -> "Manifest":
        """With one shard replaced, or added at the end."""
        shards = list(self.shards)
        shards[index : index + 1] = [record]
        return replace(self, shards=tuple(shards))


def refuse_other_model(ours: ModelIdentity | None, theirs: ModelIdentity | None, role: str) -> None:
    """Raise `MismatchError` where both are known and differ, or only one is known."""
    if ours is not None and theirs is not None:
        ours.refuse_other(theirs, role)
    elif ours != theirs:
        name = lambda model: "no model" if model is None else repr(model.name)  # noqa: E731
        raise MismatchError(
            f"{role} is {name(theirs)}; expected {name(ours)}: give the models that the cache was recorded from"
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put it in place; on disk when this returns."""
    content = asdict(manifest) | {"schema_version": CACHE_SCHEMA}

    def save(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())

    write_atomically(folder / MANIFEST_NAME, save)


def read_manifest(folder: Path) -> Manifest:
    """What a folder says; FileFormatError where it is no cache of this version."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise FileFormatError(
            f"no activation cache at {str(folder)!r}: it holds no {MANIFEST_NAME}; give the folder that was written to"
        )
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        schema = content.pop("schema_version", None)
        if schema != CACHE_SCHEMA:
            raise FileFormatError(
                f"{str(path)!r} has schema {schema!r}; expected {CACHE_SCHEMA!r}: another program or version wrote it"
            )
        content["provenance"] = Provenance.from_json(json.dumps(content["provenance"]))
        content["pairs"] = tuple((source, target) for source, target in content["pairs"])
        content["shards"] = tuple(_shard_record(shard) for shard in content["shards"])
        return Manifest(**content)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(
            f"{str(path)!r} is damaged ({error}); copy the cache again, or record it anew"
        ) from error


def _shard_record(content: dict[str, Any]) -> ShardRecord:
    files = tuple(
        ShardFile(file["name"], file["n_bytes"], tuple(file["streams"]))
        for file in content["files"]
    )
    return ShardRecord(files, content["n_rows"])


def broken_file(folder: Path, manifest: Manifest) -> str | None:
    """What is wrong with the first file that is missing or of another size; None where all are
    there.
    """
    for shard in manifest.shards:
        for file in shard.files:
            if problem := file_problem(folder, file):
                return problem
    return None


def file_problem(folder: Path, file: ShardFile) -> str | None:
    """Whether a file is missing or of another size, in words."""
    path = folder / file.name
    size = path.stat().st_size if path.is_file() else None
    if size == file.n_bytes:
        return None
    return (
        f"{str(path)!r} is missing"
        if size is None
        else f"{str(path)!r} has {size:,} of {file.n_bytes:,} bytes"
    )
