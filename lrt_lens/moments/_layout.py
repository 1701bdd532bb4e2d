"""Names of the tensors and metadata in a file of cross-moments.

A file holds, for each part of the documents (``fold0`` … ``fold4``, ``test0`` … ``test7``):

    PART/n    PART/sum/ROLE/HOOK    PART/second/ROLE/HOOK    PART/cross/SOURCE/TARGET

and once for all parts:

    shift/ROLE/HOOK    norms/ROLE/HOOK    null/SOURCE/TARGET

The metadata hold the hook pairs, the precision and the provenance: models, texts and settings.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrt_lens._files import opened_tensors, read_tensors
from lrt_lens.data._parts import N_PARTS, PART_NAMES
from lrt_lens.errors import FileFormatError
from lrt_lens.models._hook_points import SOURCE, TARGET, HookPair, hooks_of
from lrt_lens.moments._provenance import Provenance
from lrt_lens.moments._scatter import SideMoments

MOMENTS_SCHEMA = "lrt_lens.moments/1"


@dataclass
class Sums:
    """The sums of one harvest; see `lrt_lens.moments.CrossMoments` for the shape of each."""

    n: Tensor = field(default_factory=lambda: torch.zeros(N_PARTS, dtype=torch.float64))
    """Number of rows [part]."""
    source: dict[str, SideMoments] = field(default_factory=dict)
    target: dict[str, SideMoments] = field(default_factory=dict)
    cross: dict[HookPair, Tensor] = field(default_factory=dict)
    cross_null: dict[HookPair, Tensor] = field(default_factory=dict)


def to_tensors(sums: Sums) -> dict[str, Tensor]:
    """Return the sums by their names in a file.

    The tensors are views: writing into them changes the sums.
    """
    tensors: dict[str, Tensor] = {}
    sides = (("source", sums.source), ("target", sums.target))
    for k, part in enumerate(PART_NAMES):
        # Indexing the first axis gives views, so nothing is copied.
        tensors[f"{part}/n"] = sums.n[k]
        for role, side in sides:
            for hook, stream in side.items():
                tensors[f"{part}/sum/{role}/{hook}"] = stream.total[k]
                tensors[f"{part}/second/{role}/{hook}"] = stream.second[k]
        for (s, t), cross in sums.cross.items():
            tensors[f"{part}/cross/{s}/{t}"] = cross[k]
    for role, side in sides:
        for hook, stream in side.items():
            tensors |= {f"shift/{role}/{hook}": stream.shift, f"norms/{role}/{hook}": stream.norms}
    return tensors | {f"null/{s}/{t}": cross for (s, t), cross in sums.cross_null.items()}


def to_metadata(
    pairs: Sequence[HookPair],
    token_hook: str | None,
    moment_dtype: torch.dtype,
    null: str,
    provenance: Provenance,
) -> dict[str, str]:
    """Return the metadata of a file of moments, without the schema."""
    return {
        "pairs": json.dumps(pairs),
        "token_hook": json.dumps(token_hook),
        "moment_dtype": str(moment_dtype).removeprefix("torch."),
        "null": null,
        "provenance": provenance.to_json(),
    }


def read_moment_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a file of moments; its tensors are not read."""
    with opened_tensors(path, MOMENTS_SCHEMA) as (_, metadata):
        return metadata


@dataclass(frozen=True)
class MomentFile:
    """The content of a file of moments: its settings, and the tensors from which sums are made."""

    path: Path
    settings: dict[str, Any]
    """``pairs``, ``token_hook``, ``moment_dtype``, ``null`` and ``provenance``."""
    tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> "MomentFile":
        """Read a file of moments.

        Raises:
            FileFormatError: the file is truncated, of another kind or of another schema.
        """
        tensors, metadata = read_tensors(path, MOMENTS_SCHEMA)
        # JSON has lists only; hook pairs are tuples, because they are keys of dictionaries.
        try:
            settings = {
                "pairs": tuple((s, t) for s, t in json.loads(metadata["pairs"])),
                "token_hook": json.loads(metadata["token_hook"]),
                # "float32" → torch.float32
                "moment_dtype": getattr(torch, metadata["moment_dtype"]),
                "null": metadata["null"],
                "provenance": Provenance.from_json(metadata["provenance"]),
            }
        except KeyError as error:
            raise _incomplete(path, error) from error
        return cls(path, settings, tensors)

    def sums(self, kept_pairs: Sequence[HookPair]) -> Sums:
        """Return the sums of these hook pairs, from the tensors of all parts.

        Raises:
            FileFormatError: a tensor is missing.
        """
        try:
            n = self._parts("n")
            # Moments that were saved before their first row have no shift and no sums.
            if not n.any() and not any(name.startswith("shift/") for name in self.tensors):
                return Sums(n)
            # Token identity (in `kept_pairs`) has no null, and a harvest with null="none" has none
            # of any hook pair.
            return Sums(
                n,
                self._side("source", hooks_of(kept_pairs, SOURCE)),
                self._side("target", hooks_of(kept_pairs, TARGET)),
                {(s, t): self._parts(f"cross/{s}/{t}") for s, t in kept_pairs},
                {
                    (s, t): self.tensors[f"null/{s}/{t}"]
                    for s, t in self.settings["pairs"]
                    if f"null/{s}/{t}" in self.tensors
                },
            )
        except KeyError as error:
            raise _incomplete(self.path, error) from error

    def _parts(self, name: str) -> Tensor:
        # One tensor per part in the file, one tensor with a part axis in memory.
        return torch.stack([self.tensors[f"{part}/{name}"] for part in PART_NAMES])

    def _side(self, role: str, hooks: Sequence[str]) -> dict[str, SideMoments]:
        return {
            hook: SideMoments(
                self.tensors[f"shift/{role}/{hook}"],
                self._parts(f"sum/{role}/{hook}"),
                self._parts(f"second/{role}/{hook}"),
                self.tensors[f"norms/{role}/{hook}"],
            )
            for hook in hooks
        }


def _incomplete(path: Path, error: KeyError) -> FileFormatError:
    return FileFormatError(
        f"{str(path)!r} lacks {error}; the file was truncated or changed: harvest again"
    )
