"""L-Cross, figures 4-6: does a concept of the small model steer the large model further?

    python examples/weak_to_strong.py                      # bundled pair, its two concepts
    python examples/weak_to_strong.py --source SMALL --target LARGE --tasks FOLDER

The paper (arXiv 2501.02009, §4) transfers a harmfulness vector of Qwen2-0.5B-Instruct to
Qwen2-7B-Instruct. Steered by its own vector the small model gives at most 54% harmful answers over
β; with the transferred vector the large model gives 88.0% at β = 1 (figure 4). Figure 5 has the
same curves for seven A/B concepts, and figure 6 for harmfulness in three large models; both are
plots without numbers. The first figure here corresponds to figure 5, with one panel per concept.
Other large models need runs of their own.

The paper's map is fitted on the concept's own 128 pairs, at most 256 texts for 896 dimensions, so
the transferred vector is the large model's own vector (see l_cross.py). Here three arms have maps
fitted on other texts than those of the vector: other pairs of the concept, another concept, and
ordinary text. The items share no text with any of them. The claim is that the large model gets
further than the small one. If it does not, the claim does not hold, however far the transferred
vector exceeds its controls.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

import lrt_lens as lrt
from lrt_lens.adapters.concepts import ConceptTransfer
from lrt_lens.reproduction import (
    Compared,
    FigureOptions,
    Reproduction,
    Verdict,
    generic_stitch,
    load_concepts,
    run,
)

SMALL_BEST, LARGE_AT_1 = 54.0, 88.0
"""Answers to 50 AdvBench questions judged harmful, per cent.

The best value of the small model over β, and the large model at β = 1 (86.0 in the paper's text).
"""
CONTROLS = ("random", "random_matched", "shuffled", "mean_only")
"""Arms whose maps do not use what a text means; the verdict uses the best of them."""
TRANSFERRED = "other_ridge"
"""The arm of the claim, fixed in advance: its map is fitted on the other concept alone."""


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
    """Tokens for the map of ordinary text; 0 omits this arm."""
    source_hook: int = 2
    """Layer of the small model."""
    target_hook: int = 3
    """Layer of the large model."""
    tasks: Path | None = None
    """Folder of task files; by default the bundled concepts."""
    pairs: int = 252
    """Number of contrast pairs per task from which maps and vectors are learnt."""
    test_items: int = 60
    """Number of items per task that are measured."""
    n_random: int = 20
    """Number of draws of each control: random directions or maps, and shuffled maps."""
    betas: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    """Multiples β of the mapped vectors; 1 has to be included."""
    neutral: int = 24
    """Number of neutral texts."""
    damage: float = 0.1
    """Damage at which arms are compared, nats per token; 0 omits this comparison."""


def reproduce(options: Options) -> Reproduction:
    """Steer both models over β, and compare the best probabilities of the concept's choice."""
    models = options.models()
    concepts = load_concepts(options.tasks, options.pairs, options.test_items, options.seed)
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
        n_shuffled=options.n_random,
        seed=options.seed,
        neutral=lrt.demo_neutral()[: options.neutral] if options.damage else None,
        stitch=stitch,
    )
    table = best_over_beta(result)
    means = table.groupby("arm", sort=False)[["at_0", "at_1", "best"]].mean()
    best = {str(name): float(value) for name, value in means["best"].items()}
    control = max(best[name] for name in CONTROLS if name in best)
    rises = {name: best[name] - float(means.loc[name, "at_0"]) for name in (TRANSFERRED, "source")}
    verdict, because = judged(best, control, rises)
    return Reproduction(
        name="weak_to_strong",
        title="Weak to strong: the small model's concept in the large model",
        paper="L-Cross, figures 4-6",
        claim="A vector of the small model, transferred, brings the large model further (88%) than "
        "the small model itself (54% at its best β).",
        compared=compared_rows(best, control, float(means.loc["native", "at_0"])),
        says="The large model is expected to exceed the small one with its own vector too. So only "
        "arms whose map was fitted without the concept, compared with native and random, show that "
        "the small model's concept was transferred. The probability of the concept's choice among "
        "two continuations is not a rate of harmful answers: only the order can be compared.",
        verdict=verdict,
        because=because,
        figures={
            "Probability of the concept's choice over β": result.figure("weak_to_strong"),
            "All arms": result.figure("summary"),
        },
        tables={"Best over β": table, "Arms": result.summary},
        details={"stitch": repr(stitch)},
    )


def compared_rows(best: Mapping[str, float], control: float, unsteered: float) -> list[Compared]:
    """The best probabilities of the concept's choice over β, per cent."""
    return [
        Compared(
            f"concept's choice, %, large model, map without the concept ({TRANSFERRED}), best β",
            best[TRANSFERRED],
            LARGE_AT_1,
            control=control,
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
            control=unsteered,
            control_name="no steering",
        ),
    ]


def judged(
    best: Mapping[str, float], control: float, rises: Mapping[str, float]
) -> tuple[Verdict, str]:
    """The verdict and its reason: the large model has to exceed the controls and the small one.

    There is a caveat if its rise over no steering is not larger than that of the small model.
    """
    reached = (
        "with the map fitted without the concept the large model reaches "
        f"{best[TRANSFERRED]:.1f}%, the small model itself {best['source']:.1f}%, the best of "
        f"random, shuffled and mean-only maps {control:.1f}%, the large model's own vector "
        f"{best['native']:.1f}%"
    )
    rose = (
        f"the large model rises by {rises[TRANSFERRED]:.1f} points, the small model by "
        f"{rises['source']:.1f}"
    )
    if not best[TRANSFERRED] > control:
        return "does not survive its null", f"{reached}: a map without information does as well."
    if not best[TRANSFERRED] > best["source"]:
        return (
            "does not survive its null",
            f"{reached}: the vector transfers, because it beats the controls, but the large model "
            "does not exceed the small one.",
        )
    if not rises[TRANSFERRED] > rises["source"]:
        return (
            "holds with a caveat",
            f"{reached}; but {rose}: the difference exists without steering too.",
        )
    return "holds", f"{reached}; {rose}."


def best_over_beta(result: ConceptTransfer) -> pd.DataFrame:
    """Probability of the concept's choice at β = 0, at 1 and at the best β, per concept and arm.

    The damage is that of the best β.
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
