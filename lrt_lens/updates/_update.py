"""Test and repair the artefacts of an old revision of a model in a new one.

    report = lrt.update(old, new, [probe, vector, sae], documents, labelled=(texts, labels),
                        items=items, neutral=neutral)
    report.summary                    # verdict of each artefact: keep, repair or relearn
    report.repaired["sentiment"]      # the repaired artefact
    report.save("update.html")

Problem: a model was fine-tuned, merged, quantised or turned into a chat model; its probes, vectors
and SAEs cannot be checked by eye, and labels are dear. Mechanism: both revisions read the same
text, so that maps between their streams need no labels (`lrt_lens.updates._revisions`); every
artefact is measured as it is, repaired in three ways, learnt again, and through a map of shuffled
pairs, and one rule gives the verdict (`lrt_lens.updates._verdicts`). Without labelled texts, items
or documents of an artefact's kind, the verdict is predicted from moments.

Source: *Do Activation Monitors Survive Model Updates?* (arXiv 2606.15980) asks the question and
repairs monitors without labels; maps, controls and intervals are those of this library.

Limits: artefacts of one hook point each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lrt_lens._progress import tqdm
from lrt_lens._settings import resolve, takes
from lrt_lens.adapters.probes._linear_probe import LinearProbe
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._contrast import ChoiceItems
from lrt_lens.data._documents import Documents
from lrt_lens.models._hooked_model import load_model
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.updates._probe_update import update_probe
from lrt_lens.updates._revisions import Revisions, refuse_other_architecture
from lrt_lens.updates._sae_update import sae_hook, update_sae
from lrt_lens.updates._shared_rows import SharedRows
from lrt_lens.updates._update_report import UpdateReport
from lrt_lens.updates._update_settings import UpdateSettings
from lrt_lens.updates._vector_update import update_vector
from lrt_lens.updates._verdicts import ArtefactUpdate

Labelled = tuple[Sequence[str], Sequence[Any]]
"""Texts and one label per text."""


@takes(UpdateSettings)
def update(
    old: ModelLike,
    new: ModelLike,
    artefacts: Sequence[Any] | Any,
    documents: Documents | CrossMoments,
    *,
    labelled: Labelled | Mapping[str, Labelled] | None = None,
    unlabelled: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    items: ChoiceItems | Mapping[str, ChoiceItems] | None = None,
    neutral: Sequence[str] | None = None,
    sae_documents: Documents | None = None,
    settings: UpdateSettings | None = None,
    **options: Any,
) -> UpdateReport:
    """Return what became of probes, vectors and SAEs of a model after its update.

    Args:
        old: the revision on which the artefacts were learnt.
        new: the other revision: one width, one number of blocks, one tokenizer.
        artefacts: probes, steering vectors and SAEs of SAELens, or a single one.
        documents: text on which maps between the revisions are fitted; or moments of both, from
            `harvest` of the pair (old, new) at the hook points of the artefacts.
        labelled: texts and labels for probes, or one such pair by name of the probe; None: probes
            are predicted only.
        unlabelled: texts of the probes' kind without labels, or such texts by name of the probe;
            they set thresholds and correct the repair, beside the training half of ``labelled``.
        items: choice items for vectors, or such items by name; None: vectors are predicted only.
        neutral: texts on which damage is measured, for vectors.
        sae_documents: text on which SAEs are measured, of which the test fold is read; None: SAEs
            are predicted only.
        settings: an `UpdateSettings`, whose fields may also be keywords.

    Raises:
        MismatchError: the models are not two revisions of one, or an artefact is of another model.
        TypeError: an artefact is neither a probe, a vector nor an SAE.
        ValueError: there is no artefact, two have one name, texts or items are given for a name
            that no artefact has, or vectors have items but no neutral texts.
    """
    chosen = resolve(UpdateSettings, settings, options)
    pair = ModelPair(load_model(old), load_model(new))
    refuse_other_architecture(pair)
    listed = list(artefacts) if isinstance(artefacts, list | tuple) else [artefacts]
    named = _named(listed)
    for given in (labelled, unlabelled, items):
        _refuse_unknown_names(given, named)
    if items is not None and neutral is None:
        raise ValueError(
            "items are given and neutral is None: damage needs neutral texts, give both"
        )
    if isinstance(unlabelled, str):
        unlabelled = [unlabelled]
    revisions = Revisions(pair, [_hook(one) for one in listed], documents, chosen)
    shared = SharedRows([one for one in listed if isinstance(one, LinearProbe)])
    found: list[ArtefactUpdate] = []
    bar = tqdm(named.items(), desc="update", disable=not chosen.progress, leave=False)
    for name, artefact in bar:
        if isinstance(artefact, LinearProbe):
            texts = _of(labelled, name, artefact), _of(unlabelled, name, artefact)
            found.append(update_probe(revisions, artefact, *texts, chosen, shared))
        elif isinstance(artefact, SteeringVector):
            found.append(
                update_vector(revisions, artefact, _of(items, name, artefact), neutral, chosen)
            )
        else:
            found.append(update_sae(revisions, artefact, name, sae_documents, chosen))
    return UpdateReport.of(dict(zip(named, found, strict=True)), pair, revisions, chosen)


def _hook(artefact: Any) -> str:
    if isinstance(artefact, LinearProbe | SteeringVector):
        return artefact.hook
    return sae_hook(artefact)


def _named(artefacts: list[Any]) -> dict[str, Any]:
    """Return the artefacts by name; if names repeat, with the hook point behind them."""
    if not artefacts:
        raise ValueError("no artefact is given; give probes, vectors or SAEs of the old model")
    names = [_name(one) for one in artefacts]
    full = [
        name if names.count(name) == 1 else f"{name} at {_hook(one)}"
        for name, one in zip(names, artefacts, strict=True)
    ]
    if twice := sorted({name for name in full if full.count(name) > 1}):
        raise ValueError(
            f"several artefacts are called {twice}; give them other names, such as "
            "dataclasses.replace(probe, name='…')"
        )
    return dict(zip(full, artefacts, strict=True))


def _name(artefact: Any) -> str:
    if isinstance(artefact, LinearProbe | SteeringVector):
        return artefact.name
    return "sae"


def _of(given: Any, name: str, artefact: Any) -> Any:
    """Return what belongs to an artefact: one value for all, or that of one of its names."""
    if not isinstance(given, Mapping):
        return given
    # An artefact of several hook points may be named without the hook point.
    return given.get(name, given.get(_name(artefact)))


def _refuse_unknown_names(given: Any, named: Mapping[str, Any]) -> None:
    """Raise ValueError if texts or items are given for a name that no artefact has."""
    known = {*named, *map(_name, named.values())}
    if isinstance(given, Mapping) and (unknown := sorted(set(given) - known)):
        raise ValueError(
            f"texts or items are given for {unknown}, and no artefact has such a name; "
            f"the artefacts are {list(named)}"
        )
