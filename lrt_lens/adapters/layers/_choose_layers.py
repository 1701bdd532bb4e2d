"""Choice of the hook pair at which an artefact should be learnt and transferred.

Problem: `grid.best` chooses the hook pair at which the map predicts most of the stream, whatever is
to be transferred; on real pairs that is the deepest one. Mechanism: the texts that the artefact is
learnt from are read once at all source hook points. There the artefact is learnt and
cross-validated, and its fidelity on each hook pair is computed from the moments of the fitting
folds (`lrt_lens.stitching._crossed_fidelity`). The prediction is

    vector   ρ_read · gain over token identity
    probe    Φ(ρ_read · d′/√2): the AUROC on the target, if the read-out there correlates by ρ_read
             with that of the source, whose classes are d′ standard deviations apart

    choice = lrt.choose_layers(pair, grid, lrt.demo_contrast("sentiment"))     # a steering vector
    choice = lrt.choose_layers(pair, grid, lrt.demo_texts("sentiment"))        # a probe
    choice.table.head()
    stitch = choice.stitch

With ``target=True`` the target reads the texts too: for probes the transferred probe is then scored
on held-out texts, which replaces the prediction. With ``items`` and ``neutral`` the target's own
vector is steered with, once per target hook point, and ρ_read times its effect at equal damage is
the prediction for vectors. `LayerChoice.rule` says which of these it is.

How well a vector reads on the source is in the table and not in its prediction: over hook pairs it
is a poor guide to the effect (`docs/results/choosing.md`).

Limits: a prediction is no measurement. Without items, the choice for vectors was that of
`grid.best` on both pairs of models measured; `docs/results/choosing.md` has the regret of each rule
against the best pair in hindsight. All quantities are cross-validated over the fitting folds and
over the texts, so the test fold stays untouched by the choice.
"""

from collections.abc import Hashable, Sequence
from typing import Any

from lrt_lens._settings import resolve, takes
from lrt_lens.adapters.layers._artefact_texts import ArtefactTexts
from lrt_lens.adapters.layers._layer_choice import LayerChoice
from lrt_lens.adapters.layers._native_effects import native_effects
from lrt_lens.adapters.layers._predictions import PairFidelity, Predictions, pair_fidelities
from lrt_lens.adapters.layers._settings import LayerChoiceSettings
from lrt_lens.adapters.vectors._contrast_states import METHODS
from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.errors import HookPointError
from lrt_lens.models._belonging import refuse_other_models
from lrt_lens.models._hook_points import HookPair, joint_parts
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching._grid import StitchGrid
from lrt_lens.stitching._survey import Survey


@takes(LayerChoiceSettings)
def choose_layers(
    pair: ModelPair,
    scored: StitchGrid | Survey,
    texts: ContrastSet | tuple[Sequence[str], Sequence[Any]],
    *,
    groups: Sequence[Hashable] | None = None,
    items: ChoiceItems | None = None,
    neutral: Sequence[str] | None = None,
    settings: LayerChoiceSettings | None = None,
    **options: Any,
) -> LayerChoice:
    """Return all hook pairs, ordered by how well an artefact learnt from ``texts`` should serve.

    For probes its mean regret against the best pair in hindsight was a quarter of that of
    `grid.best` (three tasks). For vectors without ``items`` the choice was that of `grid.best` on
    both pairs of models measured, and no better than a random pair on one of two concepts; with
    ``items`` its regret there fell to a quarter (`docs/results/choosing.md`).

    Args:
        pair: the models of the grid or survey.
        scored: hook pairs to choose among. A grid gives the fidelity of this artefact; a survey has
            none, and √R² of the map stands for it.
        texts: a contrast set for a steering vector, or ``(texts, labels)`` for a probe.
        groups: one per labelled text, such as the story that it belongs to; texts of one group stay
            in one fold.
        items: choice items, with which the target's own vector is measured at each target hook
            point. They choose, so evaluate on others (`ChoiceItems.split`).
        neutral: texts on which the damage of these vectors is measured.
        settings: all settings; see `LayerChoiceSettings`.
        options: fields of `LayerChoiceSettings` as keywords.

    Raises:
        MismatchError: the grid or survey is of other models.
        HookPointError: it has no hook pairs, or joint hook points.
        TypeError: ``texts`` is neither a contrast set nor texts with labels.
        ValueError: labels of one class, too few texts, the same states for both classes at every
            hook point, or items without neutral texts.
    """
    run = resolve(LayerChoiceSettings, settings, options)
    learnt = ArtefactTexts.of(texts, groups, run)
    _refuse_arguments(run, learnt, items, neutral)
    pairs = _pairs_of(scored)
    provenance = scored.moments.provenance
    models = (pair.source.identity, pair.target.identity)
    refuse_other_models("", models, (provenance.source, provenance.target))
    reads_target = run.target or items is not None
    readers = [pair.source, pair.target] if reads_target else [pair.source]
    source = learnt.read(pair.source, [hook for hook, _ in pairs], readers)
    target = None
    if reads_target:
        target = learnt.read(pair.target, [hook for _, hook in pairs], readers)
    effects: dict[str, float] = {}
    if target is not None and items is not None and neutral is not None:
        effects = native_effects(pair.target, target.vectors, items, neutral, run)
    grid = scored if isinstance(scored, StitchGrid) else None
    fidelities: dict[HookPair, PairFidelity] = {}
    maps: dict[HookPair, tuple[AffineMap, AffineMap]] = {}
    if grid is not None:
        exact = [one for one in pairs if one in grid.folds]
        fidelities = pair_fidelities(grid, exact, source, run)
        maps = {one: grid.maps(one) for one in exact} if reads_target else {}
    predictions = Predictions(learnt.role, scored.scores, source, target, effects, fidelities, maps)
    return LayerChoice(predictions.table(pairs), learnt.role, predictions.rule, grid)


def _refuse_arguments(
    run: LayerChoiceSettings,
    learnt: ArtefactTexts,
    items: ChoiceItems | None,
    neutral: Sequence[str] | None,
) -> None:
    if run.method not in METHODS:
        raise ValueError(f"method is {run.method!r}; expected one of {list(METHODS)}")
    if run.n_folds < 2 or run.n_random < 2:
        raise ValueError(
            f"n_folds is {run.n_folds} and n_random {run.n_random}; expected at least 2 of each"
        )
    if learnt.role == "probe" and (items is not None or run.read == "max"):
        raise ValueError(
            "a probe is chosen for by its labelled texts, read at one token or as a mean: items "
            "and read='max' are for contrast sets"
        )
    if (items is None) != (neutral is None):
        missing = "neutral" if neutral is None else "items"
        raise ValueError(
            f"{missing} is missing: effects at equal damage need items and neutral texts; give "
            "both or neither"
        )


def _pairs_of(scored: StitchGrid | Survey) -> list[HookPair]:
    """Return the hook pairs of a grid or survey.

    Raises:
        HookPointError: there are none, or some are joint.
    """
    scores = scored.scores
    pairs = list(
        zip(scores["source_hook"].astype(str), scores["target_hook"].astype(str), strict=True)
    )
    if not pairs:
        raise HookPointError(
            f"this {type(scored).__name__} has no hook pairs, so there is nothing to choose from; "
            "harvest at least one pair of layers"
        )
    joint = [one for one in pairs if len(joint_parts(one[0])) > 1]
    if joint:
        raise HookPointError(
            f"{joint[0][0]!r} joins several layers, at which no single vector or probe is learnt;"
            " give a grid of single layers"
        )
    return pairs
