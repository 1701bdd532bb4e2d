"""A folder of hidden states that an engine or a program of one's own has written.

    StateFolder("states")                                    # described by its states.json
    StateFolder("states", layer_ids=[0, 3, 6], n_layers=12)  # files of vLLM without one

`lrt_lens.moments.states` describes the layouts.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrt_lens.errors import FileFormatError
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.moments.states._array_store import ArrayStore
from lrt_lens.moments.states._manifest import MANIFEST_NAME, StateManifest, read_manifest
from lrt_lens.moments.states._parquet_store import ParquetStore
from lrt_lens.moments.states._safetensors_store import SafetensorsStore
from lrt_lens.moments.states._sequence import StateStore, shown

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StateFolder:
    """Hidden states of one model in a folder; arguments replace what its ``states.json`` says.

    Raises:
        FileFormatError: there is no such folder, or its ``states.json`` is damaged.
        HookPointError: ``layer_ids`` or ``hooks`` name no states, or one twice.
    """

    path: str | Path
    layer_ids: Sequence[int] | None = None
    """Numbers of the columns as transformers and vLLM count, see `StateManifest`."""
    hooks: Sequence[int | str] | None = None
    """Hook points of the columns, in their order; instead of ``layer_ids``."""
    n_layers: int | None = None
    """Number of blocks of the model."""
    name: str | None = None
    """Name of the model in tables."""
    tokenizer: Any = None
    """Tokenizer of the model, or its name; see `harvest_states`."""
    prepend_bos: bool | None = None
    """BOS policy of the sequences, as in `HookedModel.load`."""
    context_length: int | None = None
    """Largest number of tokens per sequence."""
    n_sequences: int | None = None
    """Number of sequences that there will be."""
    identity: ModelIdentity | None = None
    """Identity of the model; None if unknown."""

    def __post_init__(self) -> None:
        if not Path(self.path).is_dir():
            raise FileFormatError(
                f"{shown(Path(self.path))} is no folder; expected one with hidden states"
            )
        self.manifest  # noqa: B018 (a damaged manifest is refused here)

    @property
    def manifest(self) -> StateManifest:
        """Manifest of the folder, with what the arguments say."""
        found = read_manifest(Path(self.path))
        given: dict[str, Any] = {
            "n_layers": self.n_layers,
            "model": self.name,
            "prepend_bos": self.prepend_bos,
            "context_length": self.context_length,
            "n_sequences": self.n_sequences,
            "identity": self.identity,
        }
        if isinstance(self.tokenizer, str | Path):
            given["tokenizer"] = str(self.tokenizer)
        changes = {key: value for key, value in given.items() if value is not None}
        if self.layer_ids is not None or self.hooks is not None:
            changes |= {"layer_ids": self.layer_ids, "hooks": self.hooks}
        return replace(found, **changes)

    def open(self, kind: str | None = None) -> StateStore:
        """Return the store of the sequences, by the kind of the files.

        ``kind`` is that of the files that will come to a folder that has none.

        Raises:
            FileFormatError: the folder holds files of no known kind, or of two.
        """
        folder, manifest = Path(self.path), self.manifest
        ids = manifest.layer_ids
        if ids is not None and list(ids) != sorted(ids):
            logger.warning(
                "layer_ids %s of %r are read in ascending order, %s, because vLLM writes columns so"
                " whatever was asked; name columns in another order as hooks=",
                list(ids),
                str(folder),
                sorted(ids),
            )
        if manifest.arrays is not None:
            return ArrayStore(folder, manifest)
        has = {kind: any(folder.glob(f"*.{kind}")) for kind in ("safetensors", "parquet", "npy")}
        if has["safetensors"] and has["parquet"]:
            raise FileFormatError(
                f"{shown(folder)} has .safetensors and .parquet files; expected one kind"
            )
        if has["parquet"] or (kind == "parquet" and not any(has.values())):
            return ParquetStore(folder, manifest)
        if has["npy"] and not has["safetensors"]:
            raise FileFormatError(
                f"{shown(folder)} has .npy files, and nothing says which holds what; write"
                f" {MANIFEST_NAME} with 'arrays': token_ids, sequences and states by hook point"
            )
        # An engine may not have written its first file yet.
        return SafetensorsStore(folder, manifest)


def is_state_folder(path: Path) -> bool:
    """Return whether a folder holds hidden states, and no model."""
    if not path.is_dir() or (path / "config.json").exists():
        return False
    return (path / MANIFEST_NAME).exists() or any(
        any(path.glob(f"*.{kind}")) for kind in ("safetensors", "parquet", "npy")
    )
