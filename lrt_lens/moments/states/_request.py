"""Windows of a harvest for an engine, with a program that lets it compute their hidden states.

Problem: the windows of a harvest are cut by its own rules, and the engine lives in another
environment, often on another machine. Mechanism: `request_states` cuts the windows with the
tokenizers alone and writes them with a program for the engine, which needs neither this package nor
the documents, and goes on where it was stopped.

    request_states("states", "meta-llama/Llama-3.1-70B", documents, other=small, layers=[20, 40])
    # python states/run_vllm.py        in the environment of vLLM
    harvest_states(small, "states", documents, consume=True, wait=600, checkpoint="run")

Limits: decoders that vLLM runs; the settings of both calls must be the same.
"""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lrt_lens._files import make_folder, refuse_unwritable, write_atomically
from lrt_lens._settings import resolve, takes
from lrt_lens.data._blocks import Corpus, iterate_blocks
from lrt_lens.data._documents import Documents, DocumentSource
from lrt_lens.data._windows import BlockPlan, Window
from lrt_lens.errors import FileFormatError
from lrt_lens.models._hook_points import EMBED, Layers, residual_names, resolve_layers
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._identity import model_name
from lrt_lens.models._loading import load_tokenizer
from lrt_lens.models._text_codec import TextCodec
from lrt_lens.moments._block_rows import Role, window_length
from lrt_lens.moments._harvest_settings import HarvestSettings
from lrt_lens.moments._plan import ModelShape
from lrt_lens.moments.states._layer_ids import layer_ids_of_hooks
from lrt_lens.moments.states._manifest import MANIFEST_NAME, StateManifest, write_manifest

logger = logging.getLogger(__name__)

WINDOWS_NAME = "windows.jsonl"
PROGRAMS = {"vllm": ("run_vllm.py", "cpu_connector.py")}
"""Files of the program of each engine; ``_NAME`` in this folder is copied to ``NAME``."""


@dataclass(frozen=True)
class StateRequest:
    """Files that `request_states` wrote, in numbers."""

    folder: Path
    engine: str
    layer_ids: tuple[int, ...]
    """Numbers of the hidden states, 0 for the embedding and k + 1 for the output of block k."""
    n_sequences: int
    n_tokens: int
    """Number of tokens that the engine reads, special tokens included."""

    @property
    def command(self) -> str:
        """Command that runs the engine; it goes on where it was stopped."""
        return f"python {self.folder / PROGRAMS[self.engine][0]}"

    def __repr__(self) -> str:
        return (
            f"StateRequest({self.n_sequences:,} sequences of {self.n_tokens:,} tokens, layer ids"
            f" {list(self.layer_ids)}; in the environment of {self.engine}: {self.command})"
        )


@dataclass
class _Described:
    """Model of which only config and tokenizer are read."""

    name: str
    n_layers: int
    codec: Any
    """`TextCodec` of its tokenizer."""
    context_length: int
    where: str
    """Hub id or folder."""
    identity: Any = None

    def __post_init__(self) -> None:
        names = residual_names(self.n_layers)
        self.hook_points = tuple(name for name in names if "resid_mid" not in name)


@takes(HarvestSettings)
def request_states(
    folder: str | Path,
    model: str | Path | HookedModel,
    documents: Documents,
    *,
    other: str | Path | HookedModel | None = None,
    role: Role = "target",
    layers: Layers = "all",
    engine: Literal["vllm"] = "vllm",
    prepend_bos: bool | None = None,
    settings: HarvestSettings | None = None,
    **options: Any,
) -> StateRequest:
    """Write the windows of a harvest and a program that lets an engine run them.

    Args:
        folder: new folder, in which the engine puts its files.
        model: hub id or folder of the model that the engine runs; only its config and tokenizer
            are read. A `HookedModel` is taken too, and its identity is then recorded.
        documents: what the windows are cut from, as for `harvest_states`.
        other: the other model of the pair, likewise; None if it has the same tokenizer and reads
            texts as long.
        role: the role of ``model`` in the pair.
        layers: hook points that are kept. The embedding is kept too for a source, so that token
            identity can be predicted from.
        engine: ``"vllm"``, of version 0.18 or later.
        prepend_bos: BOS policy, as in `HookedModel.load`.
        settings: settings of the harvest, the same as for `harvest_states`.
        **options: fields of `HarvestSettings` as keywords; they replace those of ``settings``.

    Raises:
        FileFormatError: the folder holds something else.
        HookPointError: the model does not have a layer.
        MismatchError: the tokenizers differ and nothing aligns.
        TooFewDocumentsError: a fold has no document.
        ValueError: a setting is out of range.
    """
    settings = resolve(HarvestSettings, settings, options)
    folder = Path(folder)
    described = _described(model, prepend_bos)
    pair = (described, described if other is None else _described(other, prepend_bos))
    source, target = pair if role == "source" else pair[::-1]
    hooks = resolve_layers(layers, described)
    if role == "source" and EMBED not in hooks:
        hooks = [EMBED, *hooks]
    layer_ids = tuple(sorted(layer_ids_of_hooks(hooks)))
    _refuse_used(folder)
    plan, windows = _windows(documents, settings, source, target)
    make_folder(folder)
    rows = [window.read_by(role).ids for window in windows]
    write_atomically(
        folder / WINDOWS_NAME,
        lambda path: path.write_text("".join(json.dumps(ids) + "\n" for ids in rows)),
    )
    for name in PROGRAMS[engine]:
        shutil.copyfile(Path(__file__).with_name(f"_{name}"), folder / name)
    manifest = StateManifest(
        layer_ids=layer_ids,
        n_layers=described.n_layers,
        model=described.where,
        prepend_bos=prepend_bos,
        context_length=plan.context_length,
        n_sequences=len(rows),
        identity=described.identity,
    )
    # Last, because a folder with a manifest is complete.
    write_manifest(folder, manifest)
    return StateRequest(folder, engine, layer_ids, len(rows), sum(map(len, rows)))


def _windows(
    documents: Documents, settings: HarvestSettings, source: _Described, target: _Described
) -> tuple[BlockPlan, list[Window]]:
    """Return the plan of a harvest and its windows, in the order in which it needs them."""
    plan = BlockPlan(
        context_length=window_length(
            settings.context_length, source, target, skip_first=settings.skip_first
        ),
        skip_first=settings.skip_first,
        n_tokens=settings.n_tokens,
        max_document_tokens=settings.max_document_tokens,
        seed=settings.seed,
        lag=settings.lag,
        parts=settings.parts,
    )
    texts = DocumentSource.of(documents, settings.text_field, settings.group)
    blocks = iterate_blocks(texts, source.codec, plan, Corpus(), target=target.codec)
    return plan, [window for block in blocks for window in block.windows]


def _described(model: str | Path | HookedModel, prepend_bos: bool | None) -> _Described:
    if isinstance(model, HookedModel):
        return _Described(
            model.name,
            model.n_layers,
            model.codec,
            model.context_length,
            str(getattr(model.engine.model, "name_or_path", "") or model.name),
            model.identity,
        )
    where = str(model)
    shape = ModelShape.of_pretrained(where)
    codec = TextCodec(load_tokenizer(where), prepend_bos, model_name(where), shape.context_length)
    return _Described(codec.name, shape.n_layers, codec, shape.context_length, where)


def _refuse_used(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        what = f"a request ({MANIFEST_NAME})" if (folder / MANIFEST_NAME).exists() else "files"
        raise FileFormatError(
            f"{str(folder)!r} holds {what} already; give a new folder (the program of a request"
            " goes on where it was stopped, and needs no second request)"
        )
    refuse_unwritable(folder)
