"""Weak to strong: a concept learnt in the small model, at work in the large one (L-Cross, figures
4-6), by maps that never saw it.

    python examples/weak_to_strong.py                                  # bundled pair, its two concepts
    python examples/weak_to_strong.py --source SMALL --target LARGE --tasks FOLDER

The paper (arXiv 2501.02009, §4) carries a harmfulness vector of Qwen2-0.5B-Instruct to
Qwen2-7B-Instruct: steered by its own vector the small model reaches at most 54% harmful answers
over β, the large one under the carried vector 88.0% at β = 1 (figure 4). Figure 5 has the same
curves for seven A/B concepts, figure 6 for harmfulness in three large models; both are plots
without numbers. The first figure here is figure 5's kind, a panel a concept; other large models are
other runs.

The paper's map is fitted on the concept's own 128 pairs, at most 256 texts for 896 dimensions, so
what is carried is the large model's own vector (see l_cross.py). Here the maps of the middle three
arms are fitted on other texts than those of the vector: other pairs of the concept, another
concept, ordinary text. Items share no text with any of them. The claim is that the large model gets
further than the small one: where it does not, the claim does not hold, however far the carried
vector exceeds its nulls.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

import lrt_lens as lrt
from lrt_lens.adapters.concepts._evaluation import ConceptTransfer
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run
from lrt_lens.reproduction._concepts import generic_stitch, load_concepts

SMALL_BEST, LARGE_AT_1 = 54.0, 88.0
"""Share of answers to 50 AdvBench questions judged harmful, per cent: small model over β, large
model at β = 1 (86.0 in the paper's text).
"""
NULLS = ("random", "random_matched", "shuffled", "mean_only")
"""Arms whose maps know of no text what it means; the best of them counts."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Concepts and strengths."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 5_000,
        "pairs": 30,
        "test_items": 6,
        "n_random": 1,
        "betas": (1.0, 2.0),
        "damage": 0.0,
    }
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 150_000
    """Tokens of the map of ordinary text; 0 leaves it out."""
    source_hook: int = 2
    """Layer of the small model."""
    target_hook: int = 3
    """Layer of the large model."""
    tasks: Path | None = None
    """Folder of task files; the bundled concepts without it."""
    pairs: int = 252
    """Pairs a task that maps and vectors are learnt from."""
    test_items: int = 60
    """Items a task that are measured."""
    n_random: int = 4
    """Random maps."""
    betas: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    """Multiples of the vectors as mapped, 1 among them."""
    neutral: int = 24
    """Neutral texts."""
    damage: float = 0.1
    """Nats per token at which arms are compared; 0 leaves that out."""


def reproduce(options: Options) -> Reproduction:
    """Steer both models over β."""
    models, concepts = (
        options.models(),
        load_concepts(options.tasks, options.pairs, options.test_items, options.seed),
    )
    at = {"source_hook": options.source_hook, "target_hook": options.target_hook}
    stitch = generic_stitch(
        models, options.texts(), **at, n_tokens=options.n_tokens, seed=options.seed
    )
    result = lrt.evaluate_concept_transfer(
        models,
        concepts,
        **at,
        betas=options.betas,
        damage=options.damage or None,
        n_random=options.n_random,
        seed=options.seed,
        neutral=lrt.demo_neutral()[: options.neutral] if options.damage else None,
        stitch=stitch,
    )
    table = best_over_beta(result)
    means = table.groupby("arm", sort=False)[["at_0", "at_1", "best"]].mean()
    carried = "other_ridge"  # fixed beforehand: the map that saw the other concept alone
    best = {str(name): float(value) for name, value in means["best"].items()}
    null = max(best[name] for name in NULLS if name in best)
    rises = {name: best[name] - float(means.loc[name, "at_0"]) for name in (carried, "source")}
    verdict, because = judged(best, null, rises, carried)
    return Reproduction(
        name="weak_to_strong",
        title="Weak to strong: the small model's concept in the large one",
        paper="L-Cross, figures 4-6",
        claim="A vector of the small model, carried, brings the large model further (88%) than it brings the small model itself (54% at its best β).",
        compared=[
            Compared(
                f"concept's choice, %, large model, map without the concept ({carried}), best β",
                best[carried],
                LARGE_AT_1,
                control=null,
                control_name="random, shuffled or mean-only map",
            ),
            Compared(
                "concept's choice, %, small model under its own vector, best β",
                best["source"],
                SMALL_BEST,
            ),
            Compared(
                "concept's choice, %, large model under its own vector, best β",
                best["native"],
                None,
                control=float(means.loc["native", "at_0"]),
                control_name="no steering",
            ),
        ],
        says="That the large model exceeds the small one is expected of its own vector too, so only arms whose map was fitted without the "
        "concept, against native and "
        "random, say that the small model's concept was carried. The share of the concept's choice among two continuations is no rate "
        "of harmful answers: order only.",
        verdict=verdict,
        because=because,
        figures={
            "Probability of the concept's choice over β": result.figure("weak_to_strong"),
            "All arms": result.figure("summary"),
        },
        tables={"Best over β": table, "Arms": result.summary},
        details={"stitch": repr(stitch)},
    )


def judged(
    best: Mapping[str, float], null: float, rises: Mapping[str, float], carried: str
) -> tuple[Verdict, str]:
    """(verdict, its reason): the large model has to exceed the small one, and the nulls; a caveat
    where only its head start exceeds.
    """
    reached = (
        f"with the map that never saw the concept the large model reaches {best[carried]:.1f}%, the small one itself {best['source']:.1f}%, random, "
        f"shuffled or mean-only maps {null:.1f}%, the large model's own vector {best['native']:.1f}%"
    )
    rose = f"the large model rises by {rises[carried]:.1f} points, the small one by {rises['source']:.1f}"
    beats_null, exceeds = best[carried] > null, best[carried] > best["source"]
    if not beats_null:
        return "does not survive its null", f"{reached}: a map that knows nothing does as well."
    if not exceeds:
        return (
            "does not survive its null",
            f"{reached}: the vector is carried, for it beats the nulls, but the large model does not exceed the small one.",
        )
    if not rises[carried] > rises["source"]:
        return (
            "holds with a caveat",
            f"{reached}; but {rose}: the rest is where the large model stands without steering.",
        )
    return "holds", f"{reached}; {rose}."


def best_over_beta(result: ConceptTransfer) -> pd.DataFrame:
    """A row per concept and arm: probability of the concept's choice at β = 0, at 1 and at the
    grid's best, with the damage that the best one does.
    """
    curves: dict[tuple[str, str], dict[float, list[tuple[float, float]]]] = {}
    for row in result.table.to_dict("records"):
        points = curves.setdefault((str(row["concept"]), str(row["arm"])), {})
        points.setdefault(float(row["beta"]), []).append((row["probability"], row["damage"]))
    rows = []
    for (concept, arm), points in curves.items():
        if arm == "none":
            continue
        means = {beta: np.mean(draws, axis=0) for beta, draws in points.items() if beta > 0}
        best = max(means, key=lambda beta: means[beta][0])
        start = points[0.0] if arm == "source" else curves[concept, "none"][0.0]
        rows.append(
            {
                "concept": concept,
                "arm": arm,
                "at_0": start[0][0],
                "at_1": means[1.0][0],
                "best": means[best][0],
                "best_beta": best,
                "damage_at_best": means[best][1],
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run(reproduce)
