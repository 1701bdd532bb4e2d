"""The texts that an artefact is learnt from, and their reading by one model at many hook points.

Problem: a steering vector is learnt from pairs of texts and a probe from labelled ones, and both
are read in the same pass. Mechanism: `ArtefactTexts` holds either, and reads them once:

    texts = ArtefactTexts.of(contrast, None, settings)
    reading = texts.read(pair.source, hooks)
    reading.hooks["blocks.3.hook_resid_post"].auroc

Hook points at which both classes have the same states (such as the embedding, if all texts end in
the same token) have no artefact and a sentence in ``flags``.

Limits: the states of all texts at all hook points are in memory.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lrt_lens.adapters.layers._reading import (
    ArtefactLearner,
    HookReading,
    contrast_learner,
    label_learner,
    labelled_texts,
    read_hook,
)
from lrt_lens.adapters.layers._settings import LayerChoiceSettings
from lrt_lens.adapters.vectors._contrast_states import ContrastStates, read_contrast_states
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.models._hook_points import depth, resolve
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._reading import ReadingRules, read_at_hooks, readable, row_rule


@dataclass(frozen=True)
class ModelReading:
    """Readings of an artefact in one model, one per hook point."""

    learner: ArtefactLearner
    """Rule of learning and folds."""
    hooks: dict[str, HookReading]
    """Reading by the name that the grid has for a hook point; without those in ``flags``."""
    rows: dict[str, np.ndarray] = field(repr=False)
    """States of the texts by hook point, [text, d], float64."""
    flags: dict[str, str] = field(default_factory=dict)
    """Reason why a hook point has no artefact."""
    vectors: dict[str, SteeringVector] = field(default_factory=dict, repr=False)
    """Steering vector by hook point; empty for a probe."""


@dataclass(frozen=True)
class ArtefactTexts:
    """Texts of a steering vector, or of a probe."""

    role: Literal["vector", "probe"]
    """Kind of artefact."""
    contrast: ContrastSet | None
    """Texts of a vector; None for a probe."""
    texts: Sequence[str]
    """Labelled texts of a probe."""
    labels: Sequence[Any]
    """One label per text."""
    groups: Sequence[Hashable] | None
    """One group per text, or None."""
    settings: LayerChoiceSettings
    """How texts are read, and folds."""

    @classmethod
    def of(
        cls, texts: Any, groups: Sequence[Hashable] | None, settings: LayerChoiceSettings
    ) -> "ArtefactTexts":
        """Return the texts of a contrast set, or of a pair ``(texts, labels)``.

        Raises:
            TypeError: neither of both.
            ValueError: labels of one class, not one label or group per text, or groups of a
                contrast set.
        """
        if isinstance(texts, ContrastSet):
            if groups is not None:
                raise ValueError(
                    "groups are for labelled texts; both texts of a contrast pair are in one fold "
                    "already"
                )
            return cls("vector", texts, [], [], None, settings)
        listed, labels = labelled_texts(texts)
        if groups is not None and len(groups) != len(listed):
            raise ValueError(
                f"{len(groups)} group(s) and {len(listed)} text(s); give one group per text"
            )
        return cls("probe", None, listed, labels, groups, settings)

    def read(
        self, model: HookedModel, hooks: Sequence[str], readers: Sequence[HookedModel]
    ) -> ModelReading:
        """Return the readings of one model at some hook points, from one pass over the texts.

        Args:
            model: the model that reads.
            hooks: its hook points, by the names of a grid.
            readers: all models that read a probe's texts; those that one cannot read are left out.

        Raises:
            ValueError: too few texts can be read, or the classes have the same states everywhere.
        """
        names = sorted(dict.fromkeys(hooks), key=depth)
        if self.contrast is None:
            return _readings(self._labelled(model, names, readers), {})
        run = self.settings
        rules = ReadingRules(run.read, run.short_texts, run.truncation)
        states = read_contrast_states(model, self.contrast, names, rules)
        learner = contrast_learner(states[0], run.method, run.n_folds, run.seed)
        rows = {
            name: np.concatenate([one.positive.double().numpy(), one.negative.double().numpy()])
            for name, one in zip(names, states, strict=True)
        }
        by_name = dict(zip(names, states, strict=True))
        return _readings((learner, rows), by_name, run.method)

    def _labelled(
        self, model: HookedModel, names: Sequence[str], readers: Sequence[HookedModel]
    ) -> tuple[ArtefactLearner, dict[str, np.ndarray]]:
        """Return the learner of a probe, and the states of its texts by hook point."""
        run = self.settings
        rules: dict[str, Any] = {"truncation": run.truncation}
        short = run.short_texts
        kept = readable(readers, self.texts, run.read, short_texts=short, **rules)
        groups = None if self.groups is None else kept.of(list(self.groups))
        options = {"penalty": run.penalty, "n_folds": run.n_folds, "seed": run.seed}
        learner = label_learner(kept.of(self.labels), groups, **options)
        inside = {name: resolve(name, model) for name in names}
        rules["short_texts"] = row_rule(short)
        states = read_at_hooks(
            model, kept.of(self.texts), list(dict.fromkeys(inside.values())), run.read, **rules
        )
        return learner, {name: states[inside[name]].double().numpy() for name in names}


def _readings(
    read: tuple[ArtefactLearner, dict[str, np.ndarray]],
    states: dict[str, ContrastStates],
    method: str = "",
) -> ModelReading:
    """Return the reading at each hook point, and vectors if there are states of pairs."""
    learner, rows = read
    found = ModelReading(learner, {}, rows)
    errors: list[ValueError] = []
    for name, own in rows.items():
        try:
            found.hooks[name] = read_hook(own, learner)
            if name in states:
                found.vectors[name] = SteeringVector.learnt_from(states[name], method)
        except ValueError as error:
            found.flags[name] = f"no artefact at {name}: the classes have the same states"
            errors.append(error)
    if not found.hooks:
        raise errors[0]
    return found
