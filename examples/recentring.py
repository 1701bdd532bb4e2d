"""Does the threshold of a transferred probe arrive, raw and recentred on unlabelled texts?

    python examples/recentring.py                                   # bundled pair and texts
    python examples/recentring.py --source HuggingFaceTB/SmolLM2-135M-Instruct \
        --target google/gemma-3-270m --moments moments.safetensors \
        --sentiment reviews.jsonl.gz --topic news.jsonl.gz

Probes of sentiment, mood, topic, register, truth, language, tense and classes of tokens are learnt
in each model of the pair and transferred to the other one. The scores of the transferred probe get
the mean and spread that the source's probe has on the training texts, whose labels are not read
(`recentre_probe`). The accuracy of both thresholds is compared with that at the best threshold,
which is chosen with the labels of the test texts and thus somewhat too high: a native probe, whose
threshold was learnt with labels of the target, loses something to its best threshold too. Clamp
levels of steering vectors are transferred in the same way, and compared with the level that texts
of the concept have in the target.

None of the three papers says where the threshold of a transferred probe comes from.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

import lrt_lens as lrt
from lrt_lens.bundled import CONCEPTS
from lrt_lens.figures import TEMPLATE_NAME
from lrt_lens.models import Read
from lrt_lens.reproduction import (
    Compared,
    FigureOptions,
    Reproduction,
    Task,
    Verdict,
    bundled_tasks,
    capital_statements,
    first_pairs,
    held_out,
    language_sentences,
    run,
    task_from_file,
    tense_sentences,
    token_classes,
    token_labels,
    topic_sentences,
)
from lrt_lens.statistics import best_threshold_accuracy

CLOSE = 0.02 + 1e-9
"""Difference to the accuracy at the best threshold up to which a threshold counts as arrived, with
a margin for rounding."""
N_PAIRS = 60
"""Number of contrast pairs from which a clamp level comes."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Maps, labelled texts and sizes."""

    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 6_000, "n_texts": 60, "target_layer": 3}
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 100_000
    """Tokens of the harvest."""
    source_layer: int | None = None
    """Layer of the source; by default its middle layer."""
    target_layer: int | None = None
    """Layer of the target; by default chosen by cross-validation."""
    moments: Path | None = None
    """File of moments of these models (`CrossMoments.save`), instead of a harvest."""
    sentiment: Path | None = None
    """JSON Lines with `text` and `label`, for another task of sentiment."""
    topic: Path | None = None
    """JSON Lines with `text` and `label`, for another task of topic."""
    n_texts: int = 600
    """Number of texts per task at most; half of them are tested."""
    n_words: int = 30
    """Number of words that are read of each text of a file."""


@dataclass(frozen=True)
class ProbeTask:
    """A task, how its texts are read, and which of them belong together."""

    task: Task
    read: Read = "mean"
    groups: list[int] | None = None


def reproduce(options: Options) -> Reproduction:
    """Transfer every probe both ways and compare its thresholds."""
    pair = options.pair()
    stitch = fitted(pair, options)
    rows: list[dict[str, Any]] = []
    levels: list[dict[str, Any]] = []
    for one, maps in ((pair, stitch), (pair.reversed(), stitch.reversed())):
        names = f"{one.source.name} → {one.target.name}"
        rows += [{"direction": names} | row for row in measured(one, maps, options)]
        levels += [{"direction": names} | clamp_level(one, maps, name) for name in CONCEPTS]
    table = pd.DataFrame(rows)
    gaps, raw_gaps = (
        np.array([row["best_threshold"] - row[name] for row in rows])
        for name in ("recentred", "raw")
    )
    table = pd.DataFrame(rows).assign(gap=gaps, raw_gap=raw_gaps)
    close, raw_close = (int((one <= CLOSE).sum()) for one in (gaps, raw_gaps))
    gap, raw_gap = float(gaps.mean()), float(raw_gaps.mean())
    native_gap = float(np.mean([row["native_gap"] for row in rows]))
    verdict: Verdict = "holds" if close == len(table) else "holds with a caveat"
    if gap >= raw_gap:
        verdict = "does not survive its null"
    worst = rows[int(gaps.argmax())]
    return Reproduction(
        name="recentring",
        title="The threshold of a transferred probe, set on unlabelled texts",
        paper="lrt_lens, thresholds",
        claim="Recentred on unlabelled texts, a transferred probe is within .02 of the accuracy at "
        "its best threshold.",
        compared=[
            Compared(
                "probes within .02 of the best threshold",
                float(close),
                "none",
                control=float(raw_close),
                control_name="raw threshold",
            ),
            Compared(
                "accuracy lost to the best threshold, mean over probes",
                gap,
                "none",
                control=raw_gap,
                control_name="raw threshold",
            ),
            Compared(
                "the same of native probes, whose threshold had labels of the target",
                native_gap,
                "none",
            ),
        ],
        says="This shows what the threshold costs, not how well a probe transfers: the accuracy at "
        "the best threshold is chosen on the test texts, so that it is above what a threshold "
        "without their labels can reach where classes overlap. Sentences of language, topic and "
        "tense are combinations of a few phrases.",
        verdict=verdict,
        because=f"{close} of {len(table)} transferred probes are within .02 of their best "
        f"threshold, {raw_close} with the raw one; mean gap {gap:.3f}, raw {raw_gap:.3f}, native "
        f"probes {native_gap:.3f}; the largest gap is that of {worst['task']}, "
        f"{worst['direction']}: {gaps.max():.3f} (AUROC {worst['auroc']:.3f}).",
        figures={"Accuracy of each threshold": figure(table)},
        tables={
            "Thresholds of transferred probes": table,
            "Clamp levels of transferred vectors": pd.DataFrame(levels),
        },
        details={"stitch": repr(stitch)},
    )


def fitted(pair: lrt.ModelPair, options: Options) -> lrt.Stitch:
    """The stitch of a file of moments, or of a harvest."""
    if options.moments is not None:
        stitch = lrt.CrossMoments.load(options.moments).fit().best()
    else:
        layer = options.source_layer
        source = pair.source.n_layers // 2 if layer is None else layer
        grid = options.grid(pair, options.texts(), source, options.target_layer, null="none")
        stitch = grid.best()
    stitch.check(pair.source, pair.target)
    return stitch


def tasks(options: Options) -> Iterator[ProbeTask]:
    """Every task whose texts have one label each."""
    n_per_class = options.n_texts // 2
    truth, countries = capital_statements(options.seed)
    yield ProbeTask(truth, "last", countries)
    yield ProbeTask(language_sentences(("french", "spanish"), n_per_class), "last")
    four = ("english", "french", "german", "spanish")
    yield ProbeTask(language_sentences(four, options.n_texts // 4), "last")
    yield ProbeTask(topic_sentences(options.n_texts // 3))
    yield ProbeTask(tense_sentences(n_per_class))
    for name in CONCEPTS:
        contrast = lrt.demo_contrast(name)
        n = min(len(contrast), n_per_class)
        texts = [*contrast.positive[:n], *contrast.negative[:n]]
        labels = ["positive"] * n + ["negative"] * n
        yield ProbeTask(Task(f"{name}, short texts", texts, labels), groups=[*range(n), *range(n)])
    yield ProbeTask(bundled_tasks(options.seed)[1].sample(options.n_texts, options.seed))
    for name, path in (("sentiment", options.sentiment), ("topic", options.topic)):
        if path is not None:
            task = held_out(task_from_file(path), options.seed, n_words=options.n_words)
            task = Task(f"{name}, {path.name.split('.')[0]}", task.texts, task.labels)
            yield ProbeTask(task.sample(options.n_texts, options.seed))


def measured(pair: lrt.ModelPair, stitch: lrt.Stitch, options: Options) -> Iterator[dict[str, Any]]:
    """One row per task: accuracy at each threshold, with the AUROC."""
    for task in tasks(options):
        yield of_texts(pair, stitch, task, options)
    # Few texts have many tokens.
    texts = bundled_tasks(options.seed)[1].sample(max(options.n_texts // 10, 16), options.seed)
    for name, kind in token_classes().items():
        yield of_tokens(pair, stitch, texts.texts, name, kind)


def of_texts(
    pair: lrt.ModelPair, stitch: lrt.Stitch, task: ProbeTask, options: Options
) -> dict[str, Any]:
    """Row of a probe that is read once per text."""
    result = lrt.evaluate_probe(
        pair,
        stitch,
        task.task.texts,
        task.task.labels,
        read=task.read,
        groups=task.groups,
        task=task.task.name,
        test_share=0.5,
        ks=(),
        n_random=0,
        n_permuted=0,
        n_shuffled=0,
        seed=options.seed,
        progress=False,
    )
    by_arm = {row["arm"]: row for row in result.table.to_dict("records")}
    ours, raw = by_arm["transferred"], by_arm["transferred_raw"]
    return {
        "task": result.task,
        "read": task.read,
        "n_test": result.n_test,
        "chance": result.chance,
        "source": by_arm["source"]["accuracy"],
        "source_auroc": by_arm["source"]["auroc"],
        "raw": raw["accuracy"],
        "recentred": ours["accuracy"],
        "best_threshold": ours["accuracy_best_threshold"],
        "auroc": ours["auroc"],
        "raw_flag": raw["threshold_flag"],
        "native": by_arm["native"]["accuracy"],
        "native_gap": by_arm["native"]["accuracy_best_threshold"] - by_arm["native"]["accuracy"],
    }


def of_tokens(
    pair: lrt.ModelPair, stitch: lrt.Stitch, texts: list[str], name: str, kind: Callable[[str], str]
) -> dict[str, Any]:
    """Row of a probe that is read at every token; each model has its own tokens."""
    train, test = texts[::2], texts[1::2]
    source, target = pair.source, pair.target
    probe = lrt.LinearProbe.fit(
        source, train, token_labels(source, train, kind), at=stitch.source_hook, read="every"
    )
    native = lrt.LinearProbe.fit(
        target, train, token_labels(target, train, kind), at=stitch.target_hook, read="every"
    )
    raw = stitch.transfer(probe)
    recentred = lrt.recentre_probe(probe, raw, pair, train)
    labels = token_labels(target, test, kind)
    truth = np.array([probe.classes.index(one) for row in labels for one in row])
    states = raw.rows(target, test)[0]
    by_probe = {"raw": raw, "recentred": recentred, "native": native}
    # One logit, that of the second class, so the first one has its negative.
    scores = {key: one.logits(states) * [-1.0, 1.0] for key, one in by_probe.items()}
    accuracy = {key: float((one.argmax(1) == truth).mean()) for key, one in scores.items()}
    best = {key: best_threshold_accuracy(one, truth) for key, one in scores.items()}
    own = token_labels(source, test, kind)
    return {
        "task": f"token: {name}",
        "read": "every",
        "n_test": len(truth),
        "chance": float(np.bincount(truth).max() / len(truth)),
        "source": probe.accuracy(source, test, own),
        "source_auroc": probe.auroc(source, test, own),
        "raw": accuracy["raw"],
        "recentred": accuracy["recentred"],
        "best_threshold": best["recentred"],
        "auroc": recentred.auroc(target, test, labels),
        "raw_flag": "",
        "native": accuracy["native"],
        "native_gap": best["native"] - accuracy["native"],
    }


def clamp_level(pair: lrt.ModelPair, stitch: lrt.Stitch, concept: Any) -> dict[str, Any]:
    """Row of a clamp level: of the source, recentred, and of the concept's texts in the target."""
    contrast = first_pairs(lrt.demo_contrast(concept), N_PAIRS)
    vector = lrt.SteeringVector.mean_difference(pair.source, contrast, at=stitch.source_hook)
    transferred = stitch.transfer(vector)
    level = vector.mean_component(pair.source, contrast.positive)
    components = transferred.components(pair.target, contrast.texts)
    recentred = lrt.recentre_level(vector, transferred, level, pair, contrast.texts)
    own = transferred.mean_component(pair.target, contrast.positive)
    return {
        "concept": concept,
        "level_raw": level,
        "level_recentred": recentred,
        "level_of_concept_texts": own,
        "mean": float(components.mean()),
        "deviation": float(components.std()),
        "error_raw": (level - own) / float(components.std()),
        "error_recentred": (recentred - own) / float(components.std()),
    }


def figure(table: pd.DataFrame) -> go.Figure:
    """Accuracy of each threshold, one row per task and direction."""
    names = [f"{row['task']} ({row['direction']})" for row in table.to_dict("records")]
    styles = {
        "raw": ("threshold of the map", "circle-open", "#D55E00"),
        "recentred": ("recentred", "circle", "#D55E00"),
        "best_threshold": ("best threshold", "line-ns-open", "#0072B2"),
        "auroc": ("AUROC", "diamond-open", "#5E5E5E"),
    }
    drawn = go.Figure()
    for column, (label, symbol, colour) in styles.items():
        drawn.add_trace(
            go.Scatter(
                x=table[column],
                y=names,
                mode="markers",
                name=label,
                marker={"symbol": symbol, "color": colour, "size": 10},
            )
        )
    drawn.update_xaxes(title_text="accuracy on the target, and AUROC")
    drawn.update_yaxes(autorange="reversed")
    title = "Thresholds of transferred probes"
    return drawn.update_layout(template=TEMPLATE_NAME, title=title, height=140 + 34 * len(table))


if __name__ == "__main__":
    run(reproduce)
