"""How many labels of the target a transferred vector or probe saves: the curve over k labels.

    python examples/label_savings.py                    # bundled pair, minutes on one core
    python examples/label_savings.py --source HuggingFaceTB/SmolLM2-135M-Instruct \
        --target google/gemma-3-270m --moments moments.safetensors \
        --sentiment reviews.jsonl.gz --topic news.jsonl.gz

Transferred artefacts need no label of the target, but they are rarely as good as native ones. With
k labelled pairs (vectors) or texts (probes) of the target, this script compares the combination of
both, in closed form or with a normal prior, with the labels alone. All vectors of bundled contrast
sets and all bundled tasks are measured, or the labelled texts that are given. ``--moments`` takes
saved moments of one hook pair instead of a harvest.

The question is our own; none of the papers combines a transfer with labels of the target.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go

import lrt_lens as lrt
from lrt_lens.bundled import CONCEPTS
from lrt_lens.reproduction import (
    Compared,
    FigureOptions,
    Reproduction,
    Task,
    Verdict,
    bundled_tasks,
    first_pairs,
    held_out,
    run,
    task_from_file,
)

MEASURES = {"pairs": "cosine", "texts": "auroc"}
"""Measure by which a vector (of pairs) and a probe (of texts) is judged."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Layers, labelled texts, numbers of labels and draws."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 6_000,
        "target_layer": 3,
        "n_texts": 60,
        "n_pairs": 24,
        "ks": (4, 8),
        "n_draws": 2,
        "n_probe_draws": 2,
    }
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 100_000
    """Tokens of the harvest."""
    source_layer: int | str = 2
    """Layer of the source at which vectors and probes are learnt."""
    target_layer: int | str | None = None
    """Layer of the target; by default chosen by cross-validation."""
    moments: Path | None = None
    """Saved moments of these models to fit the map from, instead of a harvest."""
    sentiment: Path | None = None
    """JSON Lines with `text` and `label`; by default the bundled contrast set."""
    topic: Path | None = None
    """JSON Lines with `text` and `label`; by default the bundled stories and reviews."""
    n_texts: int = 600
    """Number of labelled texts per task at most."""
    n_words: int = 60
    """Number of words that are read of each text of a file."""
    n_pairs: int = 400
    """Number of contrast pairs at most."""
    ks: tuple[int, ...] = (4, 16, 64)
    """Numbers of labels of the target, besides 0."""
    n_draws: int = 100
    """Number of draws of labelled pairs."""
    n_probe_draws: int = 20
    """Number of draws of labelled texts, which take longer."""


def reproduce(options: Options) -> Reproduction:
    """Measure vectors and probes over the number of labels, and count the labels saved."""
    pair = options.pair()
    stitch = fitted(pair, options)
    results = measured(pair, stitch, options)
    summary = pd.concat([one.summary for one in results.values()], ignore_index=True)
    judged = pd.DataFrame(summary[summary["measure"] == summary["unit"].replace(MEASURES)])
    rows = compared_rows(judged)
    better, beyond_null, n = better_than_native(judged)
    verdict: Verdict = (
        "does not survive its null"
        if not beyond_null
        else "holds"
        if better == beyond_null == n
        else "holds with a caveat"
    )
    smallest = min(options.ks)
    return Reproduction(
        name="label_savings",
        title="How many labels of the target a transfer saves",
        paper="lrt_lens, labels saved",
        claim="A transferred vector or probe combined with a few labels of the target is better "
        "than the same labels alone.",
        compared=rows,
        says="This counts labels on these texts, with this map; labels of the source count as "
        "free. Intervals are over draws of the labelled texts, not over other texts.",
        verdict=verdict,
        because=f"with {smallest} labels the combination is better than the labels alone, beyond "
        f"its interval, for {better} of {n} vectors and probes, and saves more labels than a "
        f"shuffled map does for {beyond_null} of {n}.",
        figures={f"{name}: held-out quality over k": one for name, one in figures(results).items()},
        tables={"Means over draws": summary},
        details={"stitch": repr(stitch)},
    )


def fitted(pair: lrt.ModelPair, options: Options) -> lrt.Stitch:
    """The stitch with its map of shuffled pairs, from saved moments or a harvest."""
    if options.moments is not None:
        return lrt.CrossMoments.load(options.moments).fit().best()
    return options.grid(pair, options.texts(), options.source_layer, options.target_layer).best()


def measured(
    pair: lrt.ModelPair, stitch: lrt.Stitch, options: Options
) -> dict[str, lrt.LabelSavings]:
    """The result of each vector and probe, by name."""
    results = {}
    shared: dict[str, Any] = {"ks": (0, *options.ks), "seed": options.seed}
    for name in CONCEPTS:
        contrast = first_pairs(lrt.demo_contrast(name), options.n_pairs)
        results[f"vector of {name}"] = lrt.evaluate_vector_labels(
            pair, stitch, contrast, task=f"vector of {name}", n_draws=options.n_draws, **shared
        )
    for task in tasks(options):
        results[f"probe of {task.name}"] = lrt.evaluate_probe_labels(
            pair,
            stitch,
            task.texts,
            task.labels,
            task=f"probe of {task.name}",
            n_draws=options.n_probe_draws,
            **shared,
        )
    return results


def tasks(options: Options) -> list[Task]:
    """Labelled texts: those of files, held out of the map's fit, or all bundled ones."""
    files = {"sentiment": options.sentiment, "topic": options.topic}
    given = [
        held_out(task_from_file(path), options.seed, n_words=options.n_words)
        for path in files.values()
        if path is not None
    ]
    mood = Task("mood", *lrt.demo_texts("mood", n=10**6))
    requested = given or [*bundled_tasks(options.seed), mood]
    return [task.sample(options.n_texts, options.seed) for task in requested]


def compared_rows(judged: pd.DataFrame) -> list[Compared]:
    """Labels saved by the combination with the smallest k, and by the transfer alone."""
    tasks_of = {str(task): part for task, part in judged.groupby("task", sort=False)}
    k = smallest_k(judged)
    rows = []
    for arm, control, count in (
        ("combined", "combined_shuffled", k),
        ("transferred", "shuffled", 0),
    ):
        how = f"combined with {k}" if count else "transferred alone"
        for task, part in tasks_of.items():
            own, null = row_of(part, arm, count), row_of(part, control, count)
            assert own is not None, "every task has both arms"
            least = " (at least)" if own["at_least"] else ""
            rows.append(
                Compared(
                    f"{own['unit']} saved, {task}, {how}{least}",
                    float(own["labels_saved"]),
                    low=float(own["saved_low"]),
                    high=float(own["saved_high"]),
                    control=None if null is None else float(null["labels_saved"]),
                    control_name="shuffled map",
                )
            )
    return rows


def smallest_k(part: pd.DataFrame) -> int:
    """The smallest number of labels that a transfer was combined with."""
    return min(int(row["k"]) for row in part.to_dict("records") if row["arm"] == "combined")


def row_of(part: pd.DataFrame, arm: str, k: int) -> dict[Any, Any] | None:
    """The row of an arm with k labels; None if it was not measured."""
    rows = part.to_dict("records")
    return next((row for row in rows if row["arm"] == arm and row["k"] == k), None)


def better_than_native(judged: pd.DataFrame) -> tuple[int, int, int]:
    """Numbers of tasks: combination better than native, better than the shuffled map, and all.

    Each is at the smallest number of labels.
    """
    better, beyond_null, names = 0, 0, list(judged["task"].unique())
    for name in names:
        part = pd.DataFrame(judged[judged["task"] == name])
        k = smallest_k(part)
        own, null = row_of(part, "combined", k), row_of(part, "combined_shuffled", k)
        assert own is not None
        better += bool(own["above_low"] > 0)
        beyond_null += null is not None and bool(own["saved_low"] > null["labels_saved"])
    return better, beyond_null, len(names)


def figures(results: Mapping[str, lrt.LabelSavings]) -> dict[str, go.Figure]:
    """One figure per vector and probe."""
    return {name: one.figure() for name, one in results.items()}


if __name__ == "__main__":
    run(reproduce)
