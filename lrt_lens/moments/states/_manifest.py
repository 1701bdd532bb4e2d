"""The small file that says what the hidden states in a folder are: ``states.json``.

Problem: files of hidden states hold numbers and token ids, and neither the model nor the places of
the columns. Mechanism: a JSON file beside them, which `request_states` writes and which is a few
lines to write by hand.

    {"schema_version": "lrt_lens.states/1", "layer_ids": [0, 3, 6], "n_layers": 12,
     "model": "HuggingFaceTB/SmolLM2-135M"}

Fields that are left out are not known. `StateManifest` describes them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lrt_lens._files import write_atomically
from lrt_lens._stored_fields import read_json_file, stored_fields, stored_text
from lrt_lens.errors import HookPointError
from lrt_lens.models._hook_points import EMBED, RESIDUAL, residual_post
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.moments.states._layer_ids import hooks_of_layer_ids

STATES_SCHEMA = "lrt_lens.states/1"
MANIFEST_NAME = "states.json"


@dataclass(frozen=True)
class ArrayFiles:
    """Names of ``.npy`` files with one entry per token, in the folder of the manifest."""

    token_ids: str
    """Token ids [token]."""
    states: dict[str, str]
    """States [token, d] by hook point or layer; or ``"hidden_states"`` for one file [token, layer,
    d] with the columns of the manifest.
    """
    sequences: str
    """Number of the sequence of each token [token]; the tokens of one follow one another."""
    documents: str | None = None
    """Id of the document of each token [token]; None if they are not known."""


@dataclass(frozen=True)
class StateManifest:
    """Description of the hidden states in a folder."""

    layer_ids: Sequence[int] | None = None
    """Numbers of the columns of ``hidden_states`` as transformers and vLLM count. 0 is the
    embedding, k + 1 the output of block k. Columns are in ascending order, as vLLM writes them
    whatever was asked.
    """
    hooks: Sequence[int | str] | None = None
    """Hook points of the columns, in the order of the columns, instead of ``layer_ids``. A number
    ``l`` is ``blocks.l.hook_resid_post``.
    """
    n_layers: int | None = None
    """Number of blocks of the model."""
    model: str = ""
    """Hub id or folder of the model; its name in tables."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer. Without it that of ``model`` is taken."""
    prepend_bos: bool | None = None
    """BOS policy of the sequences, as in `HookedModel.load`."""
    context_length: int | None = None
    """Largest number of tokens per sequence."""
    n_sequences: int | None = None
    """Number of sequences that there will be; None if it is not known."""
    has_documents: bool = False
    """True if the sequences name their documents."""
    arrays: ArrayFiles | None = None
    """Files of arrays; None if each sequence is a file, or a row of a table."""
    identity: ModelIdentity | None = None
    """Identity of the model, which lets maps transfer what was learnt on it; None if unknown."""
    schema_version: str = field(default=STATES_SCHEMA, repr=False)

    def __post_init__(self) -> None:
        if self.layer_ids is not None and self.hooks is not None:
            raise HookPointError(
                f"layer_ids {list(self.layer_ids)} and hooks {list(self.hooks)} both name the"
                " columns; give one of the two"
            )
        if self.columns and len(set(self.columns)) < len(self.columns):
            raise HookPointError(f"hooks {list(self.columns)} name a column twice; give each once")
        known = self.layers_of(self.columns or ())
        if self.n_layers is not None and known and max(known) >= self.n_layers:
            raise HookPointError(
                f"a column is the output of block {max(known)}, but n_layers is {self.n_layers},"
                f" whose last block is {self.n_layers - 1}; mend layer_ids (k + 1 for the output of"
                " block k) or n_layers"
            )

    @staticmethod
    def layers_of(hooks: Sequence[str]) -> list[int]:
        """Return the numbers of the blocks that hook points name."""
        return [int(match[1]) for match in map(RESIDUAL.fullmatch, hooks) if match]

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Hook points of the columns of ``hidden_states``; None if they are not known."""
        if self.layer_ids is not None:
            return hooks_of_layer_ids(sorted(self.layer_ids))
        return None if self.hooks is None else tuple(map(hook_name, self.hooks))


def hook_name(hook: int | str) -> str:
    """Return the name of a hook point of a model whose number of blocks is not known.

    Raises:
        HookPointError: it is no name of a hook point, or a negative number.
    """
    if isinstance(hook, int) or hook.isdecimal():
        if int(hook) < 0:
            raise HookPointError(
                f"layer {hook} counts from the end, and the number of blocks is not known here;"
                " give the number from 0 on"
            )
        return residual_post(int(hook))
    if hook != EMBED and not RESIDUAL.fullmatch(hook):
        raise HookPointError(
            f"{hook!r} is no name of a hook point; expected a layer such as 3,"
            f" 'blocks.3.hook_resid_post' (or pre, mid), or '{EMBED}'"
        )
    return hook


def read_manifest(folder: Path) -> StateManifest:
    """Return the manifest in a folder; an empty one if there is none.

    Raises:
        FileFormatError: it is damaged, or of another schema.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        return StateManifest()
    content = read_json_file(path, STATES_SCHEMA)
    return StateManifest(**stored_fields(path, StateManifest, content))


def write_manifest(folder: Path, manifest: StateManifest) -> Path:
    """Write the manifest of a folder atomically and return its path."""
    text = stored_text(StateManifest, asdict(manifest))
    path = folder / MANIFEST_NAME
    return write_atomically(path, lambda temporary: temporary.write_text(text + "\n"))
