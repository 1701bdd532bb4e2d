"""Model cards of all kinds of artefacts, and what their repositories on the hub hold.

    print(model_card(vector, license="apache-2.0", evaluation=result))

Problem: an artefact that is found on a hub must say where it belongs, what was measured, against
which controls, and how it is loaded. Mechanism: each kind of artefact has one function that returns
its `Sharing`: the files of its repository and the sections of its card, from what the artefact
itself records. Measured effects are not part of an artefact; ``evaluation=`` adds their tables.

Limits: nothing is measured here. A base model is named in the front matter if its name has the form
of a hub id, ``owner/name``; for a model that was loaded from a folder give ``base_model=``.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from pathlib import Path
from typing import Any

import pandas as pd

from lrt_lens._model_card import (
    CardHead,
    card_text,
    code,
    hub_ids,
    markdown_rows,
    markdown_table,
    shown,
)
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens.adapters.concepts._concept_map import ConceptMap
from lrt_lens.adapters.probes._linear_probe import LinearProbe
from lrt_lens.adapters.vectors._label_share import LabelShare
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.adapters.vectors._strength import Strength
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.serving._probe_files import PROBE_FILE, reading_rule
from lrt_lens.serving._reading_rule import stream_rule
from lrt_lens.serving._sae_folder import export_sae, is_sae, sae_id_of
from lrt_lens.stitching._card import card_head as stitch_head
from lrt_lens.stitching._card import card_sections, card_title, model_table, stitch_card
from lrt_lens.stitching._folder import save_stitch
from lrt_lens.stitching._stitch_data import StitchData

VECTOR_FILE, CONCEPT_MAP_FILE = "vector.safetensors", "concept_map.safetensors"
"""Names of the files in a repository."""
_MODEL_ID, _LICENCE = re.compile(r"[\w.-]+(/[\w.-]+)?"), re.compile(r"[A-Za-z0-9][\w.+-]*")
"""Forms of names in the front matter; the hub refuses others."""
_NOT_EVALUATED = (
    "No evaluation was given with this upload. An exact transfer does not say that the {what} "
    "works: measure it with `lrt_lens.{function}`, which has its controls (random "
    "directions, maps of shuffled pairs, the target's own)."
)


@dataclass(frozen=True)
class CardSettings(Settings):
    """Additions of a repository's author to the card of an artefact."""

    license: str | None = None
    """Licence as the hub lists them, such as ``"apache-2.0"``; None says that none is stated and
    that the base models' licences apply."""
    base_model: str | tuple[str, ...] | list[str] | None = None
    """Hub ids of the models that it belongs to; None takes recorded names of the form
    ``owner/name``."""
    evaluation: Any = None
    """Measurements: a result with a ``summary`` (of `evaluate_steering`, `evaluate_probe`,
    `evaluate_sae`, …), a table, or several by their headings."""
    notes: str = ""
    """Paragraphs in Markdown that stand above the limits."""


@dataclass(frozen=True)
class Sharing:
    """Content of the repository of one artefact, and of its card."""

    what: str
    """Kind of artefact, as in ``"steering vector"``."""
    write: Callable[[Path], Any]
    """Function that writes the files into a folder."""
    title: str
    """Title of the card, in Markdown."""
    sections: Callable[[str], dict[str, str]]
    """Sections of the card, for the id of its repository (empty: not known)."""
    head: CardHead = field(default_factory=CardHead)
    """Front matter."""


@takes(CardSettings)
def model_card(
    artefact: Any, repo_id: str = "", *, settings: CardSettings | None = None, **options: Any
) -> str:
    """Return the model card of an artefact, as `push_to_hub` uploads it.

    Args:
        artefact: a stitch, steering vector, linear probe, concept map, or SAE of SAELens.
        repo_id: id of the repository that the card's code loads.
        settings: all settings; see `CardSettings`.
        options: fields of `CardSettings` as keywords, such as ``license="mit"``.

    Raises:
        TypeError: the artefact is of another class, or the evaluation has no table.
    """
    sharing = sharing_of(artefact)
    return card_of(sharing, repo_id, resolve(CardSettings, settings, options))


def card_of(sharing: Sharing, repo_id: str, settings: CardSettings) -> str:
    """Return the card of a repository with what its author adds."""
    sections = dict(sharing.sections(repo_id))
    if settings.evaluation is not None:
        sections["Evaluation"] = _evaluation(settings.evaluation)
    if settings.notes:
        sections["Notes"] = settings.notes
    # Limits and code stand last, whatever was added.
    for heading in ("Limits", "Load it"):
        sections[heading] = sections.pop(heading)
    base_models = _checked_models(settings.base_model)
    if settings.license is not None and not _LICENCE.fullmatch(settings.license):
        raise ValueError(
            f"license is {settings.license!r}; give an identifier of the hub's list, such as "
            "'apache-2.0', or 'other'"
        )
    head = sharing.head
    models = head.base_models if base_models is None else base_models
    return card_text(sharing.title, sections, CardHead(models, head.tags, settings.license))


def _checked_models(base_model: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return base models as the front matter lists them; None takes those of the artefact."""
    if base_model is None:
        return None
    names = (base_model,) if isinstance(base_model, str) else tuple(base_model)
    for name in names:
        if not _MODEL_ID.fullmatch(name):
            raise ValueError(
                f"base_model is {name!r}; give the model's id on the hub, 'owner/name'"
            )
    return names


def _evaluation(evaluation: Any) -> str:
    """Return the tables of an evaluation, in Markdown."""
    if isinstance(evaluation, Mapping):
        return "\n\n".join(f"### {name}\n\n{_evaluation(one)}" for name, one in evaluation.items())
    table = evaluation if isinstance(evaluation, pd.DataFrame) else None
    if table is None:
        table = getattr(evaluation, "summary", None)
    if not isinstance(table, pd.DataFrame):
        raise TypeError(
            f"evaluation is a {type(evaluation).__name__}, which has no table; give a result with "
            "a summary, such as that of evaluate_steering, or a pandas DataFrame"
        )
    about = "" if isinstance(evaluation, pd.DataFrame) else f" of `{type(evaluation).__name__}`"
    named = table.index.name is not None or not isinstance(table.index, pd.RangeIndex)
    rows = markdown_table(table.reset_index() if named else table)
    return f"{rows}\n\nColumns{about} are explained in the reference of lrt_lens."


# ------------------------------------------------------------------------------------------- kinds


@singledispatch
def sharing_of(artefact: Any) -> Sharing:
    """Return what the repository of an artefact holds.

    Raises:
        TypeError: nothing is known about artefacts of this class.
    """
    if is_sae(artefact):
        return _sae(artefact)
    raise TypeError(
        f"a {type(artefact).__name__} cannot be shared; expected a Stitch, SteeringVector, "
        "LinearProbe, ConceptMap, or an SAE of SAELens"
    )


@sharing_of.register
def _stitch(stitch: StitchData) -> Sharing:
    return Sharing(
        "stitch",
        lambda folder: save_stitch(stitch, folder, stitch_card(stitch)),
        card_title(stitch),
        lambda repository: card_sections(stitch, repository),
        stitch_head(stitch),
    )


@sharing_of.register
def _vector(vector: SteeringVector) -> Sharing:
    def sections(repository: str) -> dict[str, str]:
        state = stream_rule(vector.hook, vector.model)
        share = vector.norm / vector.median_norm
        facts = {
            "how it was made": f"{code(vector.method)}, read position {code(vector.read)}",
            "transferred": _transferred(vector.transferred_by),
            "length ‖v‖": shown(vector.norm)
            + ("" if math.isnan(share) else f", {shown(share)} of the median ‖x‖ of the stream"),
            "contrast set": f"hash {code(vector.contrast)}, {vector.n_dropped:,} pairs left out, "
            f"{vector.n_cut:,} texts cut"
            if vector.contrast
            else "none",
            "labels of this model": _labels(vector.labels),
            "state": f"{state.words}{f' ({state.note})' if state.note else ''}",
            "hidden_states index": shown(state.hidden_state),
            "calibrated strength": _strength(vector.strength),
        }
        return {
            "": f"A steering vector for the residual stream of {_of(vector.model)}.",
            "Where it belongs": model_table({"model": (vector.model, vector.hook)}),
            "What it is": _list(facts),
            "How it is added": "`x ← x + scale · direction` at every token, except the first "
            f"{vector.skip_first} positions of a text. Scale 1 adds the "
            "direction as it is stored. An engine that adds it from position 0 needs another scale "
            "for the same damage. The calibrated strength names its own positions.",
            "Evaluation": _NOT_EVALUATED.format(what="vector", function="evaluate_steering"),
            "Limits": _limits("vector"),
            "Load it": _loading("SteeringVector", repository),
        }

    return Sharing(
        "steering vector",
        lambda folder: vector.save(folder / VECTOR_FILE),
        f"Steering vector {code(vector.name)} at {code(vector.hook)}",
        sections,
        _head(("steering-vector", "activation-steering", "interpretability"), vector.model),
    )


def _strength(strength: Strength | None) -> str:
    """Return the calibrated scale with its damage and positions, in words."""
    if strength is None:
        return "none: the scale was not calibrated"
    measure = "rise of the loss" if strength.unit == "loss" else "KL from the unsteered model"
    damage = (
        ""
        if math.isnan(strength.damage)
        else f", which costs {strength.damage:.3g} nats per token ({measure}) on"
        f" {strength.n_texts} neutral texts"
    )
    return f"{code(strength.mode)} at scale {strength.scale:.4g}{damage}; steered: {strength.where}"


@sharing_of.register
def _probe(probe: LinearProbe) -> Sharing:
    def sections(repository: str) -> dict[str, str]:
        names = ", ".join(code(name) for name in probe.classes)
        facts = {
            "classes": names,
            "how it was fitted": f"{code(probe.method)}, penalty {shown(probe.penalty)}",
            "transferred": _transferred(probe.transferred_by),
            "labelled texts of the fit": f"hash {code(probe.corpus or 'unknown')}, "
            f"{probe.n_dropped:,} left out, {probe.n_cut:,} cut",
            "labels of this model": _labels(probe.labels),
            "threshold": f"set on {probe.n_recentred:,} unlabelled texts (hash "
            f"{code(probe.recentring_corpus)})"
            if probe.n_recentred
            else "as fitted or mapped",
        }
        rule = [[code(key), _cell(value)] for key, value in reading_rule(probe).items()]
        return {
            "": f"A linear probe on the residual stream of {_of(probe.model)}.",
            "Where it belongs": model_table({"model": (probe.model, probe.hook)}),
            "What it is": _list(facts),
            "What it reads": markdown_rows(["rule", "value"], rule),
            "Evaluation": _NOT_EVALUATED.format(what="probe", function="evaluate_probe"),
            "Limits": _limits("probe"),
            "Load it": _loading("LinearProbe", repository),
        }

    return Sharing(
        "probe",
        lambda folder: probe.save(folder / PROBE_FILE),
        f"Linear probe {code(probe.name)} at {code(probe.hook)}",
        sections,
        _head(("linear-probe", "interpretability"), probe.model),
    )


@sharing_of.register
def _concept_map(concepts: ConceptMap) -> Sharing:
    def sections(repository: str) -> dict[str, str]:
        rows = [
            [
                code(layer.map.source_hook),
                code(layer.map.target_hook),
                shown(layer.n),
                shown(layer.rank),
                shown(layer.r2),
                shown(layer.r2_uniform),
                "yes" if layer.interpolates else "no",
            ]
            for layer in concepts.layers
        ]
        header = [
            "source",
            "target",
            "texts",
            "rank",
            "R²",
            "mean R² over dimensions",
            "interpolates",
        ]
        first = concepts.layers[0].map
        ends = {
            "source": (concepts.source, first.source_hook),
            "target": (concepts.target, first.target_hook),
        }
        names = ", ".join(code(name) for name in concepts.concepts) or "unknown"
        return {
            "": "Linear maps of concept representations between two language models, fitted on "
            "contrast texts (L-Cross, arXiv 2501.02009).",
            "Models": model_table(ends),
            "How it was fitted": f"{code(concepts.method)} on the concepts {names}, read position "
            f"{code(concepts.read)}.",
            "Measured on held-out pairs": f"{markdown_rows(header, rows)}\n\nR² is about the "
            "texts' own mean. A map that interpolates predicts its own texts exactly, whatever "
            "they are, so that only vectors of other concepts test it.",
            "Limits": _limits("map"),
            "Load it": _loading_file("ConceptMap", CONCEPT_MAP_FILE, repository),
        }

    return Sharing(
        "concept map",
        lambda folder: concepts.save(folder / CONCEPT_MAP_FILE),
        "Concept map",
        sections,
        _head(("concept-map", "interpretability"), concepts.source, concepts.target),
    )


def _sae(sae: Any) -> Sharing:
    name, metadata = sae_id_of(sae), sae.cfg.metadata

    def sections(repository: str) -> dict[str, str]:
        facts = {
            "architecture": code(sae.cfg.architecture()),
            "features": shown(sae.cfg.d_sae),
            "width of the stream": shown(sae.cfg.d_in),
            "model": code(metadata.model_name or "unknown"),
            "hook point": code(metadata.hook_name or "unknown"),
            "keywords that load the model": code(metadata.model_from_pretrained_kwargs or {}),
            "context": shown(metadata.context_size),
            "texts begin with BOS": shown(metadata.prepend_bos),
        }
        found = {
            "": f"A sparse autoencoder for the residual stream of {code(metadata.model_name)}, in "
            "the format of SAELens.",
            "What it is": _list(facts),
        }
        origin = metadata.transferred
        if origin:
            found["Where it comes from"] = _sae_origin(origin, metadata.refit)
        found["Evaluation"] = _NOT_EVALUATED.format(what="SAE", function="evaluate_sae")
        found["Limits"] = _limits("SAE")
        place = repository or "folder-or-repository"
        load = f'SAE.from_pretrained("{place}", "{name}")'
        found["Load it"] = f"```python\nfrom sae_lens import SAE\n\nsae = {load}\n```"
        return found

    owner = metadata.model_name
    return Sharing(
        "SAE",
        lambda folder: export_sae(sae, folder),
        f"Sparse autoencoder at {code(metadata.hook_name)}",
        sections,
        CardHead(hub_ids([owner]), ("saelens", "sparse-autoencoder", "interpretability")),
    )


def _sae_origin(origin: Mapping[str, Any], refit: Any) -> str:
    """Return from which model an SAE was transferred, how well its map predicts, and the refit."""
    scores = dict(origin.get("scores") or {})
    names = {
        "r2": "R² of the map up, held out",
        "r2_uniform": "mean R² over dimensions of the map up, held out",
        "r2_down": "R² of the map down, held out",
        "r2_null": "R² of shuffled pairs (null)",
        "r2_token": "R² of token identity",
    }
    facts = {
        "source model": f"{code(origin.get('source_model'))} (revision "
        f"{code(origin.get('source_revision'))}) at {code(origin.get('source_hook'))}",
        "method": code(origin.get("method", "unknown")),
        "refitted to this model": "yes: " + ", ".join(f"{k} {code(v)}" for k, v in refit.items())
        if isinstance(refit, Mapping)
        else "no",
    } | {label: shown(scores[name]) for name, label in names.items() if name in scores}
    return _list(facts)


# -------------------------------------------------------------------------------------------- text


def _head(tags: tuple[str, ...], *models: ModelIdentity | None) -> CardHead:
    return CardHead(hub_ids(model and model.name for model in models), tags)


def _of(model: ModelIdentity | None) -> str:
    return "an unknown model" if model is None else code(model.name)


def _list(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _cell(value: Any) -> str:
    """Return a value of a rule as a cell: sentences as text, names and lists as code."""
    is_sentence = isinstance(value, str) and " " in value and "·" not in value
    if value is None or isinstance(value, bool | int | float):
        return shown(value)
    return value.replace("|", "/") if is_sentence else code(value) if value else "–"


def _labels(labels: LabelShare | None) -> str:
    return "none" if labels is None else code(labels)


def _transferred(by: str | None) -> str:
    return "no, it was made on this model" if by is None else f"yes, by a {by} from another model"


def _limits(what: str) -> str:
    return (
        f"- The {what} belongs to this model, in these weights, and to this hook point; lrt_lens "
        "refuses others by the hash of the weights.\n"
        "- Effects hold for text like that of the evaluation; on other text they can be far "
        "smaller, or harmful."
    )


def _loading(kind: str, repository: str) -> str:
    return f"""```python
import lrt_lens as lrt

artefact = lrt.{kind}.load("{repository or "owner/name"}")
print(artefact)
```"""


def _loading_file(kind: str, file: str, repository: str) -> str:
    name = repository or "owner/name"
    return f"""```python
import lrt_lens as lrt
from huggingface_hub import hf_hub_download

artefact = lrt.{kind}.load(hf_hub_download("{name}", "{file}"))
print(artefact)
```"""
