"""SAEs as SAELens and Neuronpedia take them.

    export_sae(sae, "my-saes")
    # my-saes/blocks.3.hook_resid_post/cfg.json, sae_weights.safetensors
    SAE.load_from_disk("my-saes/blocks.3.hook_resid_post")
    # the same folder on the hub: SAE.from_pretrained("owner/name", "blocks.3.hook_resid_post")
    export_sae(sae, "my-saes", to="neuronpedia", model=pair.target, documents=documents)

Problem: SAELens reads a repository as one folder per SAE, and passes the keywords in the metadata
to the loader of the model without asking whether there are any. Neuronpedia takes SAEs from such a
repository, with an entry in SAELens' list of SAEs, and dashboards in the files of SAEDashboard.
Mechanism: weights and configuration are written by SAELens itself (training SAEs as those for
inference), and the metadata that other programs read is completed.

For Neuronpedia the folder also has ``pretrained_saes.yaml``, the entry of that list, and, if a
model and documents are given, ``dashboards/batch-*.json`` (`lrt_lens.serving._dashboards`), from
which Neuronpedia's script ``convert-saedashboard-to-neuronpedia-export.py`` makes its import files.

Limits: Neuronpedia takes new sources by agreement with its authors only; nothing is uploaded here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lrt_lens._files import write_atomically
from lrt_lens._folders import write_folder
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens.adapters.saes._compatibility import (
    model_identity_fields,
    plain_name,
    refuse_foreign_sae,
)
from lrt_lens.data._documents import Documents
from lrt_lens.errors import HookPointError
from lrt_lens.models._hook_points import RESIDUAL
from lrt_lens.models._hooked_model import HookedModel, load_model
from lrt_lens.models._loading import ModelLike
from lrt_lens.serving._dashboards import DashboardSettings, write_dashboards

CONFIG_NAME, YAML_NAME, DASHBOARDS = "cfg.json", "pretrained_saes.yaml", "dashboards"
"""Names in an exported folder."""


@dataclass(frozen=True)
class SAEExportSettings(Settings):
    """Names under which an exported SAE is found, and the text of its dashboards."""

    sae_id: str | None = None
    """Folder of the SAE, by which SAELens loads it; None takes the name of the hook point."""
    repo_id: str = "owner/name"
    """Hub repository that will hold the folder, for the entry in SAELens' list."""
    model_id: str | None = None
    """Neuronpedia's id of the model, such as ``"gemma-2-2b"``; None takes the model's name without
    its owner."""
    source_set: str = "res-lrt"
    """Neuronpedia's name of the set of SAEs; with the number of the block it is the source id,
    ``"3-res-lrt"``."""
    dashboards: DashboardSettings = DashboardSettings()
    """Amount of text, and what is shown of each feature."""


@takes(SAEExportSettings)
def export_sae(
    sae: Any,
    folder: str | Path,
    *,
    to: Literal["saelens", "neuronpedia"] = "saelens",
    model: ModelLike | None = None,
    documents: Documents | None = None,
    settings: SAEExportSettings | None = None,
    **options: Any,
) -> Path:
    """Write an SAE for other programs and return the folder that SAELens loads.

    Args:
        sae: a SAELens SAE for inference or training.
        folder: the folder of the repository; the SAE is written into a folder of it.
        to: ``"saelens"``, or ``"neuronpedia"``, which also writes the entry of SAELens' list, sets
            ``neuronpedia_id``, and writes dashboards if ``model`` and ``documents`` are given.
        model: model that the SAE reads; metadata that the SAE lacks, such as ``prepend_bos``, which
            SAELens needs to run the model, are taken from it.
        documents: text of the dashboards, in any form that `fit_stitches` takes.
        settings: all settings; see `SAEExportSettings`.
        options: fields of `SAEExportSettings` as keywords, such as ``sae_id="layer_3"``.

    Raises:
        TypeError: ``sae`` is no SAE of SAELens.
        ValueError: ``to`` is unknown, or documents are given without a model or for SAELens.
        HookPointError: Neuronpedia needs an SAE of one block, and the SAE names none.
        MismatchError: the SAE belongs to another model.
    """
    run = resolve(SAEExportSettings, settings, options)
    if not is_sae(sae):
        raise TypeError(f"a {type(sae).__name__} is no SAE of SAELens; give one of its classes")
    if to not in ("saelens", "neuronpedia"):
        raise ValueError(f"to is {to!r}; expected 'saelens' or 'neuronpedia'")
    if documents is not None and (model is None or to == "saelens"):
        raise ValueError(
            "documents are read for the dashboards of Neuronpedia only; give model= and "
            "to='neuronpedia' with them"
        )
    whole = Path(folder)
    name = run.sae_id or sae_id_of(sae)
    hooked = None if model is None else load_model(model)
    if hooked is not None:
        refuse_foreign_sae(sae, sae.cfg.metadata.hook_name, hooked.identity)
    known = _of_model(hooked)
    if to == "saelens":
        return _write_sae(sae, whole / name, known, {})
    source = _source(sae, run)
    path = _write_sae(sae, whole / name, known, {"neuronpedia_id": source.neuronpedia_id})
    entry = _entry(sae, source, name, run.repo_id).encode()
    write_atomically(whole / YAML_NAME, lambda temporary: temporary.write_bytes(entry))
    if hooked is not None and documents is not None:
        about = {"model_id": source.model_id, "layer": source.layer, "sae_set": source.source_set}
        write_dashboards(sae, hooked, documents, whole / DASHBOARDS, about, run.dashboards)
    return path


def is_sae(artefact: Any) -> bool:
    """Return whether an object is of a class that SAELens defines."""
    return any(kind.__module__.partition(".")[0] == "sae_lens" for kind in type(artefact).__mro__)


def sae_id_of(sae: Any) -> str:
    """Return the name of an SAE's folder: its hook point, or ``"sae"`` if it names none."""
    return str(sae.cfg.metadata.hook_name or "sae")


def _of_model(model: HookedModel | None) -> dict[str, Any]:
    """Return the metadata of an SAE that its model decides."""
    name = {} if model is None else {"model_name": model.name}
    return name | model_identity_fields(None if model is None else model.identity)


def _write_sae(sae: Any, path: Path, known: dict[str, Any], added: dict[str, Any]) -> Path:
    """Write the folder that SAELens loads as a whole.

    ``known`` fills metadata that the SAE lacks; ``added`` replaces what it has.
    """

    def write(staging: Path) -> None:
        # A training SAE has its own folder format; others load the one for inference.
        save = getattr(sae, "save_inference_model", sae.save_model)
        save(str(staging))
        config = json.loads((staging / CONFIG_NAME).read_text(encoding="utf-8"))
        metadata = config.setdefault("metadata", {})
        # SAELens does `**metadata.model_from_pretrained_kwargs`, which None would break.
        metadata |= {key: value for key, value in known.items() if metadata.get(key) is None}
        metadata |= added
        text = json.dumps(config, indent=1)
        (staging / CONFIG_NAME).write_text(text, encoding="utf-8")

    return write_folder(path, write, last=CONFIG_NAME)


# ------------------------------------------------------------------------------------- neuronpedia


@dataclass(frozen=True)
class _Source:
    """Names of an SAE on Neuronpedia."""

    model_id: str
    layer: int
    source_set: str

    @property
    def neuronpedia_id(self) -> str:
        """Address of the source, ``model/layer-set``."""
        return f"{self.model_id}/{self.layer}-{self.source_set}"


def _source(sae: Any, run: SAEExportSettings) -> _Source:
    metadata = sae.cfg.metadata
    match = RESIDUAL.fullmatch(str(metadata.hook_name))
    if match is None:
        raise HookPointError(
            f"this SAE reads {metadata.hook_name!r}, and Neuronpedia files sources under the "
            "number of a block; expected one such as 'blocks.3.hook_resid_post'"
        )
    model_id = run.model_id or (plain_name(metadata.model_name) if metadata.model_name else None)
    if not model_id:
        raise ValueError(
            "this SAE does not name its model; give Neuronpedia's id of it, model_id='gemma-2-2b'"
        )
    return _Source(model_id, int(match[1]), run.source_set)


def _entry(sae: Any, source: _Source, name: str, repo_id: str) -> str:
    """Return the entry of SAELens' ``pretrained_saes.yaml``, which its loaders read."""
    # A JSON text is a YAML text too, and quotes every name.
    quoted = json.dumps
    release = f"{source.model_id}-{source.source_set}"
    return (
        f"{quoted(release)}:\n"
        f"  conversion_func: null\n"
        f"  model: {quoted(str(sae.cfg.metadata.model_name))}\n"
        f"  repo_id: {quoted(repo_id)}\n"
        f"  saes:\n"
        f"  - id: {quoted(name)}\n"
        f"    path: {quoted(name)}\n"
        f"    neuronpedia: {quoted(source.neuronpedia_id)}\n"
    )
