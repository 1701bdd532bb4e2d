r"""L-Cross, tables 1-3 and figures 7-12: maps fitted on concepts, and why table 1 cannot fail.

    python examples/l_cross.py                              # bundled pair, its two concepts
    python examples/l_cross.py --source MODEL --target MODEL --source-hook 10 --target-hook 20 \
        --tasks FOLDER --pairs 200 --test-items 50

Cross-model Transferability … on the Platonic Representations of Concepts (arXiv 2501.02009) fits T
by least squares on the last-token states of contrast texts and transfers steering vectors by it:
with T from the concept's own texts (table 1), a random T (table 2) and T from another concept
(table 3). All its sets have fewer texts than the models have dimensions. There, T interpolates
every text exactly, and the transferred vector equals the target's own.

The first figure shows this over n/d, next to a map whose source is random numbers. The others
compare all arms at equal damage and over β. Tasks are JSON Lines files in the format of the
model-written evaluations; the models may have different tokenizers. Figures 11 and 12 of the paper,
harmful and unfair answers judged in generated texts, are these curves for such items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

import lrt_lens as lrt
from lrt_lens.adapters.concepts import BETAS, ConceptTransfer, read_rows
from lrt_lens.reproduction import (
    Compared,
    FigureOptions,
    Reproduction,
    Verdict,
    generic_stitch,
    load_concepts,
    run,
)

PAPER = {
    "Llama2-7B-Chat": {
        "coordinate-other-ais": (30.06, 75.18, 73.11, 74.95, 79.02, 80.40, 51.78, 49.96),
        "corrigible-neutral-HHH": (63.80, 91.20, 91.36, 91.41, 73.58, 83.96, 47.23, 50.21),
        "hallucination": (81.41, 89.61, 89.75, 89.75, 89.71, 87.13, 49.88, 51.38),
        "myopic-reward": (74.64, 73.27, 73.04, 73.62, 79.56, 65.24, 51.31, 49.96),
        "survival-instinct": (33.86, 60.00, 59.95, 59.97, 61.10, 63.58, 42.50, 50.79),
        "sycophancy": (69.18, 70.08, 70.03, 70.20, 73.40, 71.36, 50.47, 54.80),
        "refusal": (74.24, 88.71, 88.57, 88.48, 81.79, 85.45, 47.54, 50.10),
    },
    "Qwen2-7B-Instruct": {
        "coordinate-other-ais": (9.44, 11.35, 11.27, 11.29, 11.97, 12.75, 48.77, 50.65),
        "corrigible-neutral-HHH": (54.31, 74.09, 75.10, 75.15, 74.20, 67.19, 48.85, 54.83),
        "hallucination": (52.11, 62.20, 62.17, 61.95, 59.77, 50.62, 49.58, 48.78),
        "myopic-reward": (49.03, 67.56, 66.58, 67.66, 60.76, 55.17, 50.75, 49.36),
        "survival-instinct": (57.84, 62.61, 62.57, 62.60, 61.12, 62.00, 45.33, 54.34),
        "sycophancy": (72.81, 73.71, 74.00, 74.16, 73.07, 73.82, 59.96, 59.28),
        "refusal": (92.18, 94.35, 94.58, 93.99, 91.65, 92.16, 46.37, 54.45),
    },
    "Llama3.1-8B-Instruct": {
        "coordinate-other-ais": (20.06, 32.36, 33.23, 31.39, 28.97, 34.34, 50.85, 50.32),
        "corrigible-neutral-HHH": (81.58, 90.05, 90.63, 90.34, 90.98, 89.23, 45.46, 50.32),
        "hallucination": (33.26, 32.83, 32.72, 32.96, 34.15, 43.56, 50.76, 48.25),
        "myopic-reward": (61.93, 90.54, 88.97, 90.11, 87.03, 87.81, 51.19, 50.82),
        "survival-instinct": (43.38, 52.33, 52.35, 52.01, 48.50, 49.67, 48.59, 35.91),
        "sycophancy": (62.72, 64.72, 64.19, 65.96, 63.70, 64.08, 54.73, 53.10),
        "refusal": (76.55, 82.51, 82.31, 82.70, 80.00, 84.91, 52.93, 49.94),
    },
}
"""Probability of the concept's choice in the paper, per target and concept (columns: `_CELLS`).

After No and Self come two sources with the concept's own T (table 1), another concept's T (table 3)
and a random T (table 2). The sources per target, in the paper's order, are Qwen2 and Llama3.1;
Llama2 and Llama3.1; Llama2 and Qwen2.
"""
_CELLS = ("No", "Self", "own_1", "own_2", "other_1", "other_2", "random_1", "random_2")


@dataclass(frozen=True)
class Options(FigureOptions):
    """Concepts, maps and strengths."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 5_000,
        "pairs": 40,
        "test_items": 6,
        "draws": 1,
        "n_random": 1,
        "damage": 0.0,
        "betas": (1.0,),
    }
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 150_000
    """Tokens for the map of generic text; 0 omits this arm."""
    source_hook: int = 2
    """Layer of the source."""
    target_hook: int = 3
    """Layer of the target."""
    tasks: Path | None = None
    """Folder of task files; by default the bundled concepts."""
    pairs: int = 252
    """Number of contrast pairs per task from which maps and vectors are learnt."""
    test_items: int = 50
    """Number of items per task that are measured."""
    n_pairs: int | None = None
    """Pairs per vector; by default texts for 3/4 of the source's dimensions, at most half of all.
    """
    draws: int = 20
    """Draws of texts per point of the curve."""
    n_random: int = 20
    """Number of draws of each control: random directions or maps, and shuffled maps."""
    neutral: int = 24
    """Number of neutral texts."""
    damage: float = 0.1
    """Damage at which arms are compared, nats per token; 0 omits this comparison."""
    betas: tuple[float, ...] = BETAS
    """Multiples β of the mapped vectors; 1 has to be included."""


def reproduce(options: Options) -> Reproduction:
    """Compute the curve over n/d and the effects of the arms, and compare with the paper."""
    curves, result, details = measured(options)
    gaps = distances(result)
    below = curves.summary[curves.summary["n_over_d"] <= 1].groupby("arm")["cosine"].mean()
    other, shuffled = fractions_of_native(result)
    # A source of random numbers gives the same vector, so the agreement says nothing about models.
    is_empty = float(below["noise_source"]) > 0.99
    verdict: Verdict = "does not survive its null" if is_empty else "holds with a caveat"
    outcome = "effects at equal damage were not measured"
    if options.damage:
        outcome = (
            f"a map fitted on the other concept reaches {other:.2f} of the native effect at equal "
            f"damage, the map of shuffled pairs {shuffled:.2f}"
        )
    return Reproduction(
        name="l_cross",
        title="Maps of concepts, and why the concept's own map cannot fail",
        paper="L-Cross, tables 1-3 and figures 7-12",
        claim="A vector transferred by T, fitted on the concept's own texts, steers as well as the "
        "target's own vector: its effect is within points of Self.",
        compared=compared_rows(gaps.set_index("arm")["mean"], below, other, shuffled),
        says="With n < d the map returns Self for any source, so table 1 is no evidence that two "
        "models share a concept. Evidence can come from the distance of the other-concept and "
        "generic-text arms from the random, shuffled and mean-only maps. The paper's models are "
        "7-8B chat models with their own β.",
        verdict=verdict,
        because="up to n = d the vector through the concept's own map has cosine "
        f"{below['own']:.3f} to the target's own vector, and {below['noise_source']:.3f} with "
        f"random numbers as the source; {outcome}.",
        figures={
            "Cosine of the transferred vector to the target's own, over n/d": curves.figure(),
            "Effects of all arms": result.figure("summary"),
            "Probability of the concept's choice over β": result.figure("beta"),
        },
        tables={
            "Compared with the paper (tables 1 to 3), one row per concept and target": (
                compared_with_the_paper(result)
            ),
            "Distance to Self": gaps,
            "Arms": result.summary,
            "Over n/d": curves.summary,
        },
        details=details,
    )


def measured(options: Options) -> tuple[lrt.ConceptInterpolation, ConceptTransfer, dict[str, Any]]:
    """The curve over n/d, the evaluation of the arms, and further values for the JSON."""
    models = options.models()
    concepts = load_concepts(options.tasks, options.pairs, options.test_items, options.seed)
    at = {"source_hook": options.source_hook, "target_hook": options.target_hook}
    stitch = generic_stitch(
        models, options.texts(), **at, n_tokens=options.n_tokens, seed=options.seed
    )
    sets = [concept.contrast for concept in concepts]
    rows = read_rows(models, sets, **at)
    curves = lrt.evaluate_interpolation(
        models, sets, **at, rows=rows, n_draws=options.draws, stitch=stitch, seed=options.seed
    )
    n_pairs = options.n_pairs or min(models[0].d_model * 3 // 8, min(map(len, sets)) // 2)
    result = lrt.evaluate_concept_transfer(
        models,
        concepts,
        **at,
        neutral=lrt.demo_neutral()[: options.neutral] if options.damage else None,
        damage=options.damage or None,
        betas=options.betas,
        n_random=options.n_random,
        n_shuffled=options.n_random,
        n_pairs=n_pairs,
        rows=[rows],
        stitch=stitch,
        seed=options.seed,
    )
    details = {"n_pairs": n_pairs, "n_held_out": curves.n_held_out, "stitch": repr(stitch)}
    return curves, result, details


def compared_rows(
    distance: pd.Series, cosine: pd.Series, other: float, shuffled: float
) -> list[Compared]:
    """Distances to Self, cosines below n = d, and the effect with another concept's map."""
    return [
        Compared(
            "|transferred − Self| in points, own T (paper: mean of its cells)",
            float(distance["own"]),
            paper_distance("own")[0],
            control=float(distance["noise_source"]),
            control_name="source replaced by random numbers",
        ),
        Compared(
            "|transferred − Self| in points, T of another concept (paper: mean of its cells)",
            float(distance["other"]),
            paper_distance("other")[0],
        ),
        Compared(
            "cosine to the target's own vector, own T, n ≤ d",
            float(cosine["own"]),
            None,
            control=float(cosine["noise_source"]),
            control_name="source replaced by random numbers",
        ),
        Compared(
            "effect at equal damage, fraction of native, T of another concept (ridge)",
            other,
            None,
            control=shuffled,
            control_name="shuffled pairs",
        ),
    ]


def fractions_of_native(result: ConceptTransfer) -> tuple[float, float]:
    """Fractions of the native effect with another concept's map and with shuffled pairs, or NaN."""
    if "fraction_of_native" not in result.summary:
        return float("nan"), float("nan")
    fraction = result.summary.groupby("arm")["fraction_of_native"].mean()
    other, shuffled = (fraction.get(arm, float("nan")) for arm in ("other_ridge", "shuffled"))
    return float(other), float(shuffled)


def compared_with_the_paper(result: ConceptTransfer) -> pd.DataFrame:
    """Our table at β = 1 with the paper's numbers, one row per concept and target of the paper."""
    rows = []
    for row in result.paper_table().to_dict("records"):
        cells = {
            target: concepts[str(row["concept"])]
            for target, concepts in PAPER.items()
            if str(row["concept"]) in concepts
        }
        for target, paper in cells.items():
            rows.append(
                row
                | {"paper_target": target}
                | {f"paper_{name}": value for name, value in zip(_CELLS, paper, strict=True)}
            )
        if not cells:
            rows.append(row)
    return pd.DataFrame(rows)


def paper_distance(arm: str) -> tuple[float, float]:
    """Mean and largest |transferred − Self| in points over the paper's 42 cells of an arm.

    NaN for an arm that is not in the paper.
    """
    columns = [column for column, name in enumerate(_CELLS) if name.rsplit("_", 1)[0] == arm]
    gaps = [
        abs(row[column] - row[1])
        for concepts in PAPER.values()
        for row in concepts.values()
        for column in columns
    ]
    return (sum(gaps) / len(gaps), max(gaps)) if gaps else (float("nan"), float("nan"))


def distances(result: ConceptTransfer) -> pd.DataFrame:
    """Distance of each arm's probability to that of the native vector, with the paper's numbers."""
    rows = []
    for row in result.distance_to_self().to_dict("records"):
        mean, largest = paper_distance(str(row["arm"]))
        rows.append(row | {"paper_mean": mean, "paper_largest": largest})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run(reproduce)
