"""A harvest whose hidden states were computed elsewhere: by an engine, in files, or in a loop.

Problem: models of 7B and more run in engines on other machines, which leave hidden states in files.
Mechanism: each side is a model that runs here, a folder of states, or an iterator, and everything
else is a harvest: the same documents, windows, folds, shuffled pairs and checkpoints. States are
found by their token ids. Without documents each sequence is one window.

    moments = harvest_states(small, "states-of-large", documents, n_tokens=1_000_000)
    moments = harvest_states("states-of-small", "states-of-large", tokenizers=tokenizer)
    moments = harvest_states(small, "states", documents, consume=True, wait=600, checkpoint="run")

Limits: one process; where neither side runs here, token identity is predicted only if the states of
the source at the embedding are kept.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from lrt_lens._settings import resolve, takes
from lrt_lens.data._blocks import WindowCutter
from lrt_lens.data._documents import Documents, DocumentSource
from lrt_lens.data._windows import BlockPlan
from lrt_lens.models._hooked_model import HookedModel, load_model
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._checkpoint_files import LEDGER_NAME
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._feeding import Sides
from lrt_lens.moments._harvest_settings import HarvestSettings
from lrt_lens.moments._harvesting import HarvestRun, harvest, settle, with_fields_of
from lrt_lens.moments.states._cutting import SequenceCutter
from lrt_lens.moments.states._folder import StateFolder, is_state_folder
from lrt_lens.moments.states._ledger import Ledger
from lrt_lens.moments.states._side import StoredSide
from lrt_lens.moments.states._stream import StateStream

logger = logging.getLogger(__name__)

StatesLike = Any
"""A model, or hidden states: a `StateFolder`, the path of one, a `StateStream` or an iterator."""


@takes(HarvestSettings)
def harvest_states(
    source: StatesLike,
    target: StatesLike,
    documents: Documents | None = None,
    *,
    tokenizers: Any = None,
    verify: Any = None,
    consume: bool = False,
    wait: float = 0.0,
    settings: HarvestSettings | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 120.0,
    progress: bool = True,
    **options: Any,
) -> CrossMoments:
    """Return the moments of two models of which one or both were run elsewhere.

    The numbers are those of `harvest` of the same states.

    Args:
        source: model or hidden states; see `StatesLike`. A folder is described by its
            ``states.json``, or as a `StateFolder`; items of an iterator are
            ``(token_ids, {hook or layer: states [token, d]})``.
        target: likewise.
        documents: what the windows are cut from, as for `harvest`; the states must be those of
            these windows (`request_states` gives them to an engine). None: each sequence is one
            window, and its text or the id of its document decides the fold.
        tokenizers: tokenizer of the sides whose states are kept, or its hub id or folder; for two
            tokenizers a dictionary or a pair (source, target). None: that of the model which
            ``states.json`` names, else that of the other side; token ids are compared in any case.
        verify: the model that computed the states, to compare the first sequences with; for two
            sides a dictionary or a pair (source, target). It also gives the moments the identity of
            the model, without which vectors, probes and SAEs cannot be transferred.
        consume: delete sequences that are in the moments: after each checkpoint, or at the end if
            there is none.
        wait: seconds without a new sequence after which a missing one is an error, for an engine
            that is still running.
        settings: a `HarvestSettings`, whose fields are described there. ``"all"`` layers are those
            that are kept.
        checkpoint: folder for checkpoints; the harvest resumes as in `harvest`.
        checkpoint_every: seconds between two checkpoints.
        progress: show a progress bar.
        **options: fields of `HarvestSettings` as keywords; they replace those of ``settings``.

    Raises:
        FileFormatError: a folder has no states, or files that are damaged or not complete.
        HookPointError: nobody says what the columns of states are, or a layer is not kept.
        MismatchError: token ids differ, or states are those of another hook point or position.
        NonFiniteError: a state is NaN or infinite.
        TooFewDocumentsError: a fold has no document.
        ValueError: a setting is out of range, or a tokenizer is needed and not known.
    """
    settings = resolve(HarvestSettings, settings, options)
    ledger = None
    if checkpoint is not None:
        ledger = Ledger(Path(checkpoint) / LEDGER_NAME)
    before = ledger.sides() if ledger is not None else {}
    sides = _sides((source, target), tokenizers, verify, before, wait=wait, consume=consume)
    if all(isinstance(side, HookedModel) for side in sides):
        if documents is None:
            raise ValueError(
                "documents is None and both sides are models that run here; give documents"
            )
        return harvest(
            ModelPair(*sides),
            documents,
            settings=settings,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            progress=progress,
        )
    _refuse_relative_layers(settings, sides)
    if documents is not None:
        settings = with_fields_of(documents, settings)
    run = settle(Sides(*sides), settings=settings)
    with _Sequences(sides, ledger, is_changing=consume or wait > 0) as sequences:
        if consume and ledger is not None:
            for role, side in zip(("source", "target"), sides, strict=True):
                if isinstance(side, StoredSide) and side.keeps_files:
                    side.ledger = ledger
                    if role not in before:
                        ledger.add_side(role, side.description)
        if documents is None:
            run = replace(run, cutter=sequences.cutter)
            documents = DocumentSource([], group="document" if sequences.has_documents else None)
            followers = sequences.followers
        else:
            _refuse_unknown_tokenizers(sides)
            followers = [side for side in sides if isinstance(side, StoredSide)]
        for side in followers:
            side.arrivals.stop_listing()
        moments = _harvested(run, documents, sides, checkpoint, checkpoint_every, progress=progress)
        # Of n_tokens the rest is left out on purpose.
        if run.plan.n_tokens is None or moments.n_tokens < run.plan.n_tokens:
            _warn_of_unused(followers)
        return moments


def _harvested(
    run: HarvestRun,
    documents: Documents,
    sides: tuple[Any, Any],
    checkpoint: str | Path | None,
    checkpoint_every: float,
    *,
    progress: bool,
) -> CrossMoments:
    moments: CrossMoments = run.harvest_share(
        documents, checkpoint=checkpoint, checkpoint_every=checkpoint_every, progress=progress
    )
    for side in sides:
        if isinstance(side, StoredSide):
            side.close()
        if isinstance(side, StoredSide) and side.model is None:
            logger.info(
                "the states in %r were not compared with their model; verify=model does", side.name
            )
    return moments


class _Sequences:
    """Sequences of the side that leads where no documents are given: the first that is kept."""

    def __init__(self, sides: tuple[Any, Any], ledger: Ledger | None, *, is_changing: bool) -> None:
        self._sides, self._opened = sides, ledger
        self._role: Literal["source", "target"] = (
            "source" if isinstance(sides[0], StoredSide) else "target"
        )
        self._lead: StoredSide = sides[self._role == "target"]
        self._ledger = None
        # Folders that nobody changes have the same sequences when a run resumes.
        if ledger is not None and self._lead.keeps_files and (is_changing or ledger.path.exists()):
            self._ledger = ledger

    def __enter__(self) -> "_Sequences":
        return self

    def __exit__(self, *error: object) -> None:
        if self._opened is not None:
            self._opened.close()

    @property
    def has_documents(self) -> bool:
        """True if the sequences name their documents."""
        return self._lead.arrivals.store.has_documents

    @property
    def followers(self) -> list[StoredSide]:
        """Sides whose sequences are looked up, by the tokens of the side that leads."""
        sides = [side for side in self._sides if isinstance(side, StoredSide)]
        return [side for side in sides if side is not self._lead]

    def cutter(self, plan: BlockPlan) -> WindowCutter:
        """Return what cuts the sequences into windows."""
        sequences = self._lead.arrivals.in_order(self._ledger)
        return SequenceCutter(plan, *self._sides, self._role, sequences, self._lead.name)


def _sides(
    given: tuple[StatesLike, StatesLike],
    tokenizers: Any,
    verify: Any,
    before: Mapping[str, Mapping[str, Any]],
    **options: Any,
) -> tuple[Any, Any]:
    """Return both sides: models that run here, or kept states; ``before`` is of earlier runs."""
    tokenizer_of, model_of = (_by_role("tokenizers", tokenizers), _by_role("verify", verify))
    sides: list[Any] = []
    for role, one in zip(("source", "target"), given, strict=True):
        states = _states(one)
        if states is None:
            sides.append(load_model(one))
            continue
        model = model_of[role]
        sides.append(
            StoredSide.of(
                states,
                tokenizer=tokenizer_of[role],
                model=None if model is None else load_model(model),
                before=before.get(role),
                **options,
            )
        )
    for side, other in zip(sides, reversed(sides), strict=True):
        if isinstance(side, StoredSide):
            if isinstance(other, HookedModel) or other.codec is not None:
                side.borrow_tokenizer(other)
            if isinstance(other, HookedModel):
                side.device = other.device
    _warn_of_unknown_tokenizers(sides)
    return sides[0], sides[1]


def _states(one: StatesLike) -> StateFolder | StateStream | None:
    """Return kept states, whatever they were given as; None for a model."""
    if isinstance(one, StateFolder | StateStream):
        return one
    if isinstance(one, str | Path):
        return StateFolder(one) if is_state_folder(Path(one)) else None
    is_model = isinstance(one, HookedModel | torch.nn.Module)
    if not is_model and isinstance(one, Iterable):
        return StateStream(one)
    return None


def _by_role(name: str, given: Any) -> dict[str, Any]:
    """Return one entry per side of an argument: a dictionary, a pair, or one for both."""
    if isinstance(given, Mapping):
        unknown = set(given) - {"source", "target"}
        if unknown:
            raise ValueError(
                f"{name} has the keys {sorted(map(str, unknown))}; expected 'source' and 'target'"
            )
        return {"source": given.get("source"), "target": given.get("target")}
    if isinstance(given, tuple | list):
        if len(given) != 2:
            raise ValueError(
                f"{name} has {len(given)} entries; expected one for the source and one for the"
                " target"
            )
        return dict(zip(("source", "target"), given, strict=True))
    return {"source": given, "target": given}


def _warn_of_unknown_tokenizers(sides: list[Any]) -> None:
    if not any(isinstance(side, HookedModel) or side.reader is not None for side in sides):
        logger.warning(
            "the tokenizer of the kept states is not known: special tokens are not left out, and"
            " the folds are decided by token ids; give tokenizers="
        )


def _warn_of_unused(sides: Iterable[StoredSide]) -> None:
    """Warn of sequences that were looked up by their tokens and are of no window."""
    for side in sides:
        if n_unused := side.arrivals.n_unused:
            logger.warning(
                "%d of %d sequences in %r were not used, because their tokens are those of no"
                " window of this harvest: it has other texts, or fewer, than the engine has read",
                n_unused,
                side.arrivals.n_arrived,
                side.name,
            )


def _refuse_unknown_tokenizers(sides: tuple[Any, Any]) -> None:
    for side in sides:
        if isinstance(side, StoredSide) and side.reader is None:
            raise ValueError(
                f"documents are given, and the tokenizer of {side.name!r} is not known; give"
                " tokenizers=, or 'model' or 'tokenizer' in states.json"
            )


def _refuse_relative_layers(settings: HarvestSettings, sides: tuple[Any, Any]) -> None:
    """Refuse layers that need the number of blocks where it is not known."""
    chosen: dict[str, list[Any]] = {"source": [], "target": []}
    for role, layers in (("source", settings.source_layers), ("target", settings.target_layers)):
        chosen[role] = list(layers) if isinstance(layers, list | tuple) else [layers]
    for one, other in settings.pairs or ():
        chosen["source"].append(one)
        chosen["target"].append(other)
    is_proportional = any("proportional" in layers for layers in chosen.values())
    for role, side in zip(("source", "target"), sides, strict=True):
        if isinstance(side, HookedModel) or side.knows_n_layers:
            continue
        negative = [layer for layer in chosen[role] if isinstance(layer, int) and layer < 0]
        if negative or is_proportional:
            what = f"layer {negative[0]}" if negative else "'proportional' layers"
            raise ValueError(
                f"{what}: the number of blocks of {side.name!r} is not known; give n_layers in"
                " states.json or StateFolder(…, n_layers=…)"
            )
