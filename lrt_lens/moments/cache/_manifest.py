"""Contents of a cache: ``manifest.json``, with the models, the settings and the complete shards.

Problem: a process that is killed may leave a shard that is not complete. Mechanism: the manifest is
written after the shard and renamed into place; only shards that it lists are read.

A shard is one file with tokens and streams, and one more file for each later recording of other
hook points on the same tokens:

    shard-00000.safetensors      tokens, blocks, and the streams that were recorded first
    shard-00000.1.safetensors    streams of a second recording

Limits: the manifest has the sizes of the files, not their bytes; `Shard.verify` compares those.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from lrt_lens._files import write_atomically
from lrt_lens._stored_fields import json_checksum, read_json_file, stored_fields
from lrt_lens._tensor_files import damaged
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.moments._provenance import Provenance, stored_provenance

CACHE_SCHEMA = "lrt_lens.cache/1"
MANIFEST_NAME = "manifest.json"
_LONGEST_NAME = 200
"""Largest number of characters in the name of a file of a shard."""
_SAME_RUN = (
    "context_length",
    "skip_first",
    "chat_template",
    "seed",
    "source_dtype",
    "target_dtype",
    "n_tokens",
    "max_document_tokens",
    "fold_rule",
    "shard",
    "file_shares",
)
_SAME_CACHE = ("dtype", "pairs", "token_hook", "block_rows", "has_tokens")
ROLES = ("source", "target")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""Precisions of stored activations, by name."""


@dataclass(frozen=True)
class ShardFile:
    """One file of a shard."""

    name: str
    n_bytes: int
    streams: tuple[str, ...]
    """Names of its streams of activations, ``{role}/{hook}``."""


@dataclass(frozen=True)
class ShardRecord:
    """One shard: files that hold different streams of the same rows."""

    files: tuple[ShardFile, ...]
    """Files of the shard; the first one has the blocks and their tokens."""
    n_rows: int

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams in all files."""
        return tuple(stream for file in self.files for stream in file.streams)

    @property
    def stem(self) -> str:
        """Name without ending, such as ``shard-00000``."""
        return self.files[0].name.split(".")[0]


@dataclass(frozen=True)
class Manifest:
    """Models, settings, streams and complete shards of a cache."""

    provenance: Provenance
    """Models and settings; documents are counted in the shards, not here."""
    dtype: str
    """Precision of the stored activations: ``"bfloat16"``, ``"float16"`` or ``"float32"``."""
    streams: dict[str, int]
    """Width of each stream ``{role}/{hook}``, including those of an unfinished recording."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Hook pairs that were harvested; empty if each source goes with each target hook point."""
    token_hook: str | None = None
    """Source hook point that stands for token identity."""
    block_rows: int | None = None
    """Unmasked tokens per block; None for rows that were added with `ActivationCache.add`."""
    has_tokens: bool = True
    """True if tokens are stored; False for rows that were added with `ActivationCache.add`."""
    shards: tuple[ShardRecord, ...] = ()
    n_blocks: int | None = None
    """Number of blocks when all documents were recorded; None before."""

    @property
    def n_rows(self) -> int:
        """Number of rows in all shards."""
        return sum(shard.n_rows for shard in self.shards)

    @property
    def first_streams(self) -> dict[str, int]:
        """Widths of the streams that were recorded together with the tokens."""
        # The first file of each shard holds the streams of the first recording.
        if not self.shards:
            return self.streams
        return {name: self.streams[name] for name in self.shards[0].files[0].streams}

    def hooks(self, role: str) -> tuple[str, ...]:
        """Return the hook points of one role that every shard holds."""
        complete = [s for s in self.streams if all(s in shard.streams for shard in self.shards)]
        return tuple(
            name.removeprefix(f"{role}/") for name in complete if name.startswith(f"{role}/")
        )

    def refuse_other(self, other: "Manifest", folder: Path) -> None:
        """Raise `MismatchError` if ``other`` is of another run and must not write into this cache.

        The message names the first difference.
        """
        for role in ROLES:
            ours, theirs = getattr(self.provenance, role), getattr(other.provenance, role)
            refuse_other_model(ours, theirs, f"the {role} model for the cache {str(folder)!r}")
        for name, ours, theirs in (
            *((name, self.provenance, other.provenance) for name in _SAME_RUN),
            *((name, self, other) for name in _SAME_CACHE),
        ):
            before, now = getattr(ours, name), getattr(theirs, name)
            if before != now:
                raise MismatchError(
                    f"the cache {str(folder)!r} was begun with {name} {before!r}, but now it is "
                    f"{now!r}; give the same arguments, or another folder"
                )

    def with_shard(self, index: int, record: ShardRecord) -> "Manifest":
        """Return the manifest with shard ``index`` replaced, or added at the end."""
        shards = list(self.shards)
        # The slice is empty if index is the number of shards: the record is appended.
        shards[index : index + 1] = [record]
        return replace(self, shards=tuple(shards))


def refuse_other_model(ours: ModelIdentity | None, theirs: ModelIdentity | None, role: str) -> None:
    """Raise `MismatchError` if two recorded models differ, or if only one of them is known."""
    if ours is not None and theirs is not None:
        ours.refuse_other(theirs, role)
    elif ours != theirs:
        name = lambda model: "no model" if model is None else repr(model.name)  # noqa: E731
        raise MismatchError(
            f"{role} is {name(theirs)}; expected {name(ours)}: "
            "give the models that the cache was recorded from"
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest atomically; it is on disk when this returns."""
    fields = asdict(manifest) | {
        "provenance": manifest.provenance.stored,
        "schema_version": CACHE_SCHEMA,
    }
    content = json.dumps(fields | {"checksum": json_checksum(fields)})
    write_atomically(
        folder / MANIFEST_NAME, lambda temporary: temporary.write_text(content, encoding="utf-8")
    )


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest in a folder.

    Raises:
        FileFormatError: there is none, it is damaged, it is of another version, or it names files
            outside of the folder.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise FileFormatError(
            f"no activation cache at {str(folder)!r}: it holds no {MANIFEST_NAME}; "
            "give the folder that was written to"
        )
    content = read_json_file(path, CACHE_SCHEMA)
    checksum, expected = content.pop("checksum", None), json_checksum(content)
    provenance = content.pop("provenance", None)
    if not isinstance(provenance, dict):
        raise damaged(path, "it lacks its provenance")
    del content["schema_version"]
    fields = stored_fields(path, Manifest, content, others=("provenance",))
    manifest = Manifest(stored_provenance(path, provenance), **fields)
    for problem in _problems(manifest):
        raise damaged(path, problem)
    # Caches of earlier versions have no checksum of the manifest.
    if checksum not in (None, expected):
        raise damaged(path, "it does not add up to its checksum")
    return manifest


def _problems(manifest: Manifest) -> Iterator[str]:
    """Yield what cannot be true of a cache that this package wrote."""
    if manifest.dtype not in DTYPES:
        yield f"its dtype is {manifest.dtype!r}, which is none of {list(DTYPES)}"
    for stream, width in manifest.streams.items():
        if stream.partition("/")[0] not in ROLES or width < 1:
            yield f"its stream {stream!r} has the width {width}"
    names = [file.name for shard in manifest.shards for file in shard.files]
    for name in names:
        # A plain name is a file of this folder; a path would lead out of it.
        is_plain = name not in ("", ".", "..") and not set(name) & set("/\\\0:")
        if not is_plain or not name.endswith(".safetensors") or len(name) > _LONGEST_NAME:
            shown = repr(name[:80])
            yield f"it names the file {shown}; expected a plain name in the folder of the cache"
    if len(set(names)) < len(names):
        yield "it names a file twice"
    for shard in manifest.shards:
        unknown = set(shard.streams) - manifest.streams.keys()
        if not shard.files or shard.n_rows < 0 or unknown:
            yield (
                f"a shard has {len(shard.files)} files, {shard.n_rows} rows and the unknown "
                f"streams {sorted(unknown)}"
            )


def broken_file(folder: Path, manifest: Manifest) -> str | None:
    """Return a description of the first missing or truncated file; None if there is none."""
    for shard in manifest.shards:
        for file in shard.files:
            if problem := file_problem(folder, file):
                return problem
    return None


def file_problem(folder: Path, file: ShardFile) -> str | None:
    """Return what is wrong with a file, missing or of another size; None if nothing is."""
    path = folder / file.name
    # A link could lead out of the folder.
    if path.is_symlink():
        return f"{str(path)!r} is a symbolic link, which is not followed"
    size = path.stat().st_size if path.is_file() else None
    # Damage that leaves the size as it is is detected by the sums of bytes; see `Shard`.
    if size == file.n_bytes:
        return None
    return (
        f"{str(path)!r} is missing"
        if size is None
        else f"{str(path)!r} has {size:,} of {file.n_bytes:,} bytes"
    )
