"""Names of the tensors and metadata in a file of cross-moments.

A file holds, for each part of the documents (by default ``fold0`` … ``fold4``, ``test0`` …
``test7``):

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

from lrt_lens._stored_fields import json_object, stored_value
from lrt_lens._tensor_files import TensorFile, mapped_tensors, read_tensor_file
from lrt_lens.data._parts import Parts
from lrt_lens.errors import FileFormatError
from lrt_lens.models._belonging import refuse_impossible_hook
from lrt_lens.models._hook_points import SOURCE, TARGET, HookPair, hooks_of
from lrt_lens.moments._provenance import Provenance, stored_provenance
from lrt_lens.moments._scatter import NORM_BINS, SideMoments

MOMENTS_SCHEMA = "lrt_lens.moments/1"


@dataclass
class Sums:
    """The sums of one harvest; see `lrt_lens.moments.CrossMoments` for the shape of each."""

    n: Tensor
    """Number of rows [part]."""
    source: dict[str, SideMoments] = field(default_factory=dict)
    target: dict[str, SideMoments] = field(default_factory=dict)
    cross: dict[HookPair, Tensor] = field(default_factory=dict)
    cross_null: dict[HookPair, Tensor] = field(default_factory=dict)


def to_tensors(sums: Sums, parts: Parts) -> dict[str, Tensor]:
    """Return the sums by their names in a file, which name the ``parts``.

    The tensors are views: writing into them changes the sums.
    """
    tensors: dict[str, Tensor] = {}
    sides = (("source", sums.source), ("target", sums.target))
    for k, part in enumerate(parts.names):
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
    return mapped_tensors(path, MOMENTS_SCHEMA).metadata


def read_provenance(path: Path, metadata: Mapping[str, str]) -> Provenance:
    """Return the provenance in the metadata of a file of moments.

    Raises:
        FileFormatError: there is none, or it is damaged or of a newer version.
    """
    content = json_object(path, metadata.get("provenance"), "'provenance'")
    return stored_provenance(path, content)


def stored_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of `CrossMoments` in the metadata of a file.

    Raises:
        FileFormatError: one is missing or damaged.
    """
    value = lambda kind, name: stored_value(  # noqa: E731
        path, kind, metadata.get(name), repr(name)
    )
    dtype, null = (metadata.get(name) for name in ("moment_dtype", "null"))
    if dtype not in ("float32", "float64") or null not in ("none", "sketch", "full"):
        raise FileFormatError(
            f"{str(path)!r} has moment_dtype {dtype!r} and null {null!r}; expected 'float32' "
            "or 'float64', and 'none', 'sketch' or 'full': copy the file, or harvest again"
        )
    return {
        "pairs": value(tuple[tuple[str, str], ...], "pairs"),
        "token_hook": value(str | None, "token_hook"),
        "moment_dtype": getattr(torch, dtype),  # "float32" → torch.float32
        "null": null,
        "provenance": read_provenance(path, metadata),
    }


@dataclass(frozen=True)
class MomentFile:
    """The content of a file of moments: its settings, and the tensors from which sums are made."""

    file: TensorFile
    settings: dict[str, Any]
    """``pairs``, ``token_hook``, ``moment_dtype``, ``null`` and ``provenance``."""

    @classmethod
    def read(cls, path: Path) -> "MomentFile":
        """Read a file of moments; `sums` checks its tensors.

        Raises:
            FileFormatError: the file is truncated, of another kind or of another schema.
        """
        file = read_tensor_file(path, MOMENTS_SCHEMA)
        return cls(file, stored_settings(path, file.metadata))

    def sums(self, kept_pairs: Sequence[HookPair]) -> Sums:
        """Return the sums of these hook pairs, from the tensors of all parts.

        Raises:
            FileFormatError: a tensor is missing, unknown, of another shape or precision, or not
                finite, or the file is not what was written.
        """
        kept_pairs = list(dict.fromkeys(kept_pairs))
        tensors = self._checked(kept_pairs)
        is_begun, null_pairs = self._is_begun, self._null_pairs
        # Each part is let go of when it is stacked, so that nothing is in memory twice.
        self.file.tensors.clear()

        names = self.settings["provenance"].parts.names

        def parts(name: str) -> Tensor:
            return torch.stack([tensors.pop(f"{part}/{name}") for part in names])

        n = parts("n")
        if not is_begun:
            return Sums(n)
        side = lambda role, axis: {  # noqa: E731
            hook: SideMoments(
                tensors[f"shift/{role}/{hook}"],
                parts(f"sum/{role}/{hook}"),
                parts(f"second/{role}/{hook}"),
                tensors[f"norms/{role}/{hook}"],
            )
            for hook in hooks_of(kept_pairs, axis)
        }
        return Sums(
            n,
            side("source", SOURCE),
            side("target", TARGET),
            {(s, t): parts(f"cross/{s}/{t}") for s, t in kept_pairs},
            {(s, t): tensors[f"null/{s}/{t}"] for s, t in null_pairs},
        )

    @property
    def _is_begun(self) -> bool:
        """Return whether rows were added. Before the first one there are no shifts and no sums."""
        return any(name.startswith("shift/") for name in self.file.tensors)

    @property
    def _null_pairs(self) -> list[HookPair]:
        # Moments of joint hook points have no null, whatever the harvest had.
        tensors = self.file.tensors
        return [(s, t) for s, t in self.settings["pairs"] if f"null/{s}/{t}" in tensors]

    def _checked(self, kept_pairs: Sequence[HookPair]) -> dict[str, Tensor]:
        """Return all tensors of the file, after a check that they are those of these hook pairs."""
        names = self.settings["provenance"].parts.names
        shapes = {f"{part}/n": "" for part in names}
        if self._is_begun:
            # Names of axes by number, because those of hook points may hold blanks.
            axes: dict[tuple[str, str], str] = {}
            for role, axis in (("source", SOURCE), ("target", TARGET)):
                model = getattr(self.settings["provenance"], role)
                for i, hook in enumerate(hooks_of(kept_pairs, axis)):
                    refuse_impossible_hook(self.file.path, hook, model)
                    d = axes[role, hook] = f"{role}{i}"
                    shapes |= {f"shift/{role}/{hook}": d, f"norms/{role}/{hook}": "bins"}
                    for part in names:
                        shapes[f"{part}/sum/{role}/{hook}"] = d
                        shapes[f"{part}/second/{role}/{hook}"] = f"{d} {d}"
            for s, t in kept_pairs:
                ends = f"{axes['source', s]} {axes['target', t]}"
                shapes |= {f"{part}/cross/{s}/{t}": ends for part in names}
            for s, t in self._null_pairs:
                of_target = axes["target", t]
                columns = f"sketch_{of_target}" if self.settings["null"] == "sketch" else of_target
                shapes[f"null/{s}/{t}"] = f"halves {axes['source', s]} {columns}"
        return self.file.checked(shapes, {"bins": NORM_BINS, "halves": 2})
