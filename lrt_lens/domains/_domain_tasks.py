"""Probes and vectors of a domain, transferred through the maps of every domain.

    task = DomainTask(labelled=(texts, labels), contrast=contrast, items=items, neutral=neutral)

The probe is learnt on the source from half of the domain's labelled texts, recentred on them
without labels, and tested on the other half. The vector is learnt on the source from the contrast
set, and its effect on the items is measured at equal damage on the neutral texts.

Limits: a task without labelled texts has no probe, one without contrast, items and neutral texts no
vector.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lrt_lens.adapters.probes._labels import class_numbers
from lrt_lens.adapters.probes._linear_probe import LinearProbe
from lrt_lens.adapters.probes._logistic import log_probabilities
from lrt_lens.adapters.probes._relearning import relearnt_from
from lrt_lens.adapters.probes._split import Labelled, split_texts
from lrt_lens.adapters.vectors._arm_meter import ArmMeter
from lrt_lens.adapters.vectors._arms import drawn_arms
from lrt_lens.adapters.vectors._equal_damage import steering_resamples
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.adapters.vectors._vector_arm import MeasuredArm, VectorArm
from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._classification import auroc_interval
from lrt_lens.statistics._draws import prediction_interval
from lrt_lens.statistics._intervals import Interval
from lrt_lens.stitching._stitch import Stitch


@dataclass(frozen=True, kw_only=True)
class DomainTask:
    """Texts of one domain on which artefacts are learnt and tested."""

    labelled: tuple[Sequence[str], Sequence[Any]] | None = None
    """Texts and labels for a probe; None for no probe."""
    read: str | int = "mean"
    """Position that the probe reads, see `LinearProbe.fit`."""
    contrast: ContrastSet | None = None
    """Texts from which a vector is learnt; None for no vector."""
    items: ChoiceItems | None = None
    """Choice items on which its effect is measured."""
    neutral: Sequence[str] | None = None
    """Texts on which damage is measured."""

    def __post_init__(self) -> None:
        given = [part is not None for part in (self.contrast, self.items, self.neutral)]
        if any(given) and not all(given):
            raise ValueError(
                "contrast, items and neutral belong together: a vector is learnt from the contrast "
                "set, measured on the items, and costs damage on the neutral texts; give all three "
                "or none"
            )


@dataclass(frozen=True)
class TaskNumber:
    """Number of one artefact of a domain through the map of another one, or of a control."""

    measure: str
    """Name of the number, ``"auroc"`` or ``"effect"``."""
    fitted_on: str
    """Domain of the map, or the arm ``"native"``, ``"source"``, ``"shuffled"`` or ``"random"``."""
    interval: Interval
    """The number, with its 95% interval."""
    n: int
    """Number of texts or items."""


def probe_numbers(
    pair: ModelPair, stitches: Mapping[str, Stitch], own: str, task: DomainTask, seed: int
) -> Iterator[TaskNumber]:
    """Yield the AUROC of the domain's probe through every map, and of its controls."""
    if task.labelled is None:
        return
    stitch = stitches[own]
    train, test = split_texts(Labelled.of(*task.labelled, None), share=0.5, seed=seed)
    read: Any = task.read
    probe = LinearProbe.fit(
        pair.source,
        train.texts,
        train.labels,
        at=stitch.source_hook,
        read=read,
        truncation="right",
        skip_first=stitch.skip_first,
        seed=seed,
    )
    models = [pair.source, pair.target]
    train, test = (one.read_by(probe.readable(models, one.texts)) for one in (train, test))
    truth = class_numbers(test.labels, probe.classes)
    source = probe.logits(probe.rows(pair.source, train.texts)[0])

    def number(fitted_on: str, scores: Any) -> TaskNumber:
        return TaskNumber("auroc", fitted_on, auroc_interval([scores], truth), len(truth))

    def through(one: Stitch, maps: Any = None) -> Any:
        transferred = one.transfer(probe, through=maps)
        target = transferred.logits(transferred.rows(pair.target, train.texts)[0])
        set_by = transferred.matched(source, target, train.texts)
        return log_probabilities(set_by.logits(set_by.rows(pair.target, test.texts)[0]))

    yield number("source", log_probabilities(probe.logits(probe.rows(pair.source, test.texts)[0])))
    raw = stitch.transfer(probe)
    # Without the map before it, a probe of maxima reads the states themselves.
    unmapped = replace(raw, before=None)
    rows = unmapped.rows(pair.target, train.texts)[0].cpu().numpy()
    numbers = class_numbers(train.labels, probe.classes)
    native = relearnt_from(unmapped, rows, numbers, seed=seed)
    yield number(
        "native", log_probabilities(native.logits(native.rows(pair.target, test.texts)[0]))
    )
    for name, one in stitches.items():
        yield number(name, through(one))
    if stitch.null is not None:
        yield number("shuffled", through(stitch, stitch.null.down))


def vector_numbers(
    pair: ModelPair,
    stitches: Mapping[str, Stitch],
    own: str,
    task: DomainTask,
    *,
    damage: float,
    n_random: int,
    seed: int,
) -> Iterator[TaskNumber]:
    """Yield the effect of the domain's vector through every map, and of its controls."""
    if task.contrast is None or task.items is None or task.neutral is None:
        return
    stitch, n = stitches[own], len(task.items)
    vector = SteeringVector.mean_difference(
        pair.source, task.contrast, at=stitch.source_hook, skip_first=stitch.skip_first
    )
    meter = ArmMeter(pair.target, task.items, task.neutral, budget=damage, both_signs=False)
    native = meter.measure(
        VectorArm("native", vector.relearnt(pair.target, task.contrast, at=stitch.target_hook))
    )
    resamples = steering_resamples(task.items, len(native.plus.n_tokens), seed=seed)

    def interval(measured: MeasuredArm) -> Interval:
        return measured.plus.effect(damage, resamples).interval(resamples)

    yield TaskNumber("effect", "native", interval(native), n)
    for name, one in stitches.items():
        measured = meter.measure(VectorArm("transferred", one.transfer(vector)))
        yield TaskNumber("effect", name, interval(measured), n)
    draws = [
        meter.measure(arm).effect(damage)
        for arm in drawn_arms(stitch, stitch.transfer(vector), n_random, seed)
    ]
    if draws:
        yield TaskNumber("effect", "random", prediction_interval(draws), n)
