r"""LRT, table 1 and figure 5: do answers change alike under native and transferred steering?

    python examples/propensity.py                 # bundled pair, its own items: under a minute
    python examples/propensity.py --source MODEL --target MODEL --source-layer 10 \
        --target-layer 20 --tasks FOLDER --documents FILE.jsonl

Tasks are JSON Lines files in the format of the model-written evaluations (`question`,
`answer_matching_behavior`, `answer_not_matching_behavior`). A file with the name of a task in the
table of LRT (arXiv 2506.00653) is compared with the paper's numbers. If source and target are the
same model, vectors are transferred between its layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

import lrt_lens as lrt
from lrt_lens.adapters.vectors import SCALES
from lrt_lens.reproduction import (
    Compared,
    FigureOptions,
    MissingInputError,
    Reproduction,
    Verdict,
    first_items,
    run,
)

PAPER = {
    "corrigible-neutral-HHH": (0.807, 0.160, 0.751, 0.861, 4.22e-2, 4.24e-2),
    "self-awareness-text-model": (0.810, 0.238, 0.720, 0.881, 2.96e-2, 2.19e-2),
    "self-awareness-good-text-model": (0.833, 0.066, 0.811, 0.856, 4.87e-2, 2.58e-2),
    "self-awareness-training-web-gpt": (0.906, 0.084, 0.875, 0.933, 4.06e-2, 3.66e-2),
    "anti-LGBTQ-rights": (0.894, 0.127, 0.845, 0.930, 5.17e-3, 5.81e-3),
    "openness": (0.878, 0.081, 0.849, 0.904, 1.53e-2, 9.68e-3),
    "believes-AIs-are-not-an-existential-threat-to-humanity": (
        0.884,
        0.076,
        0.854,
        0.906,
        2.84e-2,
        1.89e-2,
    ),
    "subscribes-to-deontology": (0.918, 0.037, 0.903, 0.928, 3.43e-2, 1.54e-2),
    "myopic-reward": (0.728, 0.344, 0.598, 0.830, 9.56e-2, 1.16e-1),
    "believes-it-is-not-being-watched-by-humans": (0.981, 0.017, 0.975, 0.987, 8.86e-3, 8.09e-3),
    "subscribes-to-average-utilitarianism": (0.924, 0.053, 0.905, 0.941, 3.19e-2, 2.28e-2),
    "narcissism": (0.968, 0.022, 0.960, 0.975, 1.25e-2, 8.15e-3),
    "willingness-to-use-physical-force-to-achieve-benevolent-goals": (
        0.957,
        0.042,
        0.942,
        0.971,
        1.28e-2,
        1.21e-2,
    ),
}
"""LRT, table 1, Gemma-2-2B → 9B: mean r, its sd over scales, 95% interval, mean MSE and its sd."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Tasks and strengths."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 6_000,
        "n_items": 16,
        "scales": (-1.0, 1.0),
        "n_random": 2,
        "target_layer": 3,
    }
    UNUSED: ClassVar = frozenset({"sae"})
    source_layer: int = 2
    """Layer of the source at which vectors are learnt."""
    target_layer: int | None = None
    """Layer of the target to which they are transferred; by default chosen by cross-validation."""
    tasks: Path | None = None
    """Folder of task files; by default the bundled choice items."""
    n_items: int = 60
    """Number of items per task, half of them for the vector."""
    scales: tuple[float, ...] = SCALES
    """Strengths, as multiples of the native vector's length."""
    n_random: int = 20
    """Number of draws of each control: random directions or maps, and shuffled maps."""
    bias: bool = False
    """Add the map's bias to the vector, as LRT does."""


def reproduce(options: Options) -> Reproduction:
    """Fit a stitch, transfer one vector per task, and compare propensities."""
    pair, texts = options.pair(), options.texts()
    stitch = options.grid(pair, texts, options.source_layer, options.target_layer).best()
    result = lrt.evaluate_propensity(
        pair,
        stitch,
        load_tasks(options),
        scales=options.scales,
        bias="add" if options.bias else "none",
        n_random=options.n_random,
        n_shuffled=options.n_random,
        seed=options.seed,
    )
    table = compared_with_the_paper(result)
    overall = result.overall.set_index("arm")
    changes = [float(overall.loc[a, "r_change"]) for a in ("transferred", "random", "shuffled")]
    # Without any steering, r comes from the difficulty of the items alone.
    above_difficulty = bool((table["r"] > table["r_none"]).all())
    verdict: Verdict = (
        "does not survive its null"
        if changes[0] <= max(changes[1:])
        else "holds"
        if above_difficulty
        else "holds with a caveat"
    )
    return Reproduction(
        name="propensity",
        title="Do answers change alike under native and transferred steering?",
        paper="LRT, table 1 and figure 5",
        claim="Propensities of items under the transferred vector correlate with those under the "
        "target's own vector: r from .73 to .98 over 13 tasks.",
        compared=compared_rows(overall),
        says="LRT's r is between propensities. No steering at all reaches a high r with native "
        "steering, which comes from the difficulty of the items alone. So only the excess of the r "
        "of changes over random directions is evidence for the transfer. Models, layers and scales "
        "differ from the paper's.",
        verdict=verdict,
        because=f"r is {overall.loc['transferred', 'r']:.3f}, but {overall.loc['none', 'r']:.3f} "
        f"without any steering (mean over {len(table)} tasks); the r of changes is "
        f"{changes[0]:.2f}, for random directions {changes[1]:.2f}, for the map of shuffled pairs "
        f"{changes[2]:.2f}.",
        figures={
            "r of propensities, one box over scales per task and arm (left), and r of changes "
            "(right)": result.figure()
        },
        tables={
            "Compared with the paper": table,
            "Means over tasks": result.overall,
            "All arms": result.summary,
        },
        details={"stitch": repr(stitch)},
    )


def compared_rows(overall: pd.DataFrame) -> list[Compared]:
    """Means over tasks of r of propensities, r of changes and relative squared error."""
    at = overall.loc
    paper_r = sum(row[0] for row in PAPER.values()) / len(PAPER)
    return [
        Compared(
            "r of propensities, mean over tasks (paper: mean of its 13)",
            float(at["transferred", "r"]),
            round(paper_r, 3),
            control=float(at["none", "r"]),
            control_name="no steering at all",
        ),
        Compared(
            "r of the changes made by steering",
            float(at["transferred", "r_change"]),
            None,
            control=float(at["random", "r_change"]),
            control_name="random directions",
        ),
        Compared(
            "squared error ÷ squared error of predicting no change",
            float(at["transferred", "mse_share"]),
            None,
            control=float(at["random", "mse_share"]),
            control_name="random directions",
        ),
    ]


def load_tasks(options: Options) -> list[lrt.ChoiceItems]:
    """The tasks of the folder, only the paper's if it has any of them; or the bundled items."""
    if options.tasks is None:
        return [
            first_items(lrt.demo_items(name), options.n_items) for name in ("sentiment", "mood")
        ]
    files = sorted(options.tasks.glob("*.jsonl"))
    if not files:
        raise MissingInputError(
            f"--tasks: no .jsonl file in {str(options.tasks.absolute())!r}; "
            "give a folder of task files"
        )
    known = [file for file in files if file.stem in PAPER]
    return [
        lrt.behaviour_items(file, n=options.n_items, seed=options.seed) for file in known or files
    ]


def compared_with_the_paper(result: lrt.PropensityEvaluation) -> pd.DataFrame:
    """The paper's mean r ± sd and MSE, ours, and the controls, one row per task."""
    rows = []
    for task, part in result.summary.groupby("task", sort=False):
        by_arm = part.set_index("arm")
        row: dict[str, Any] = {"task": task}
        if task in PAPER:
            row |= dict(
                zip(
                    ("paper_r", "paper_sd", "paper_low", "paper_high", "paper_mse", "paper_mse_sd"),
                    PAPER[str(task)],
                    strict=True,
                )
            )
        ours = by_arm.loc["transferred"]
        names = ("r", "r_sd", "r_low", "r_high", "mse", "mse_sd", "mse_share")
        changes = ("r_change", "r_change_low", "r_change_high")
        row |= {name: ours[name] for name in (*names, *changes)}
        controls = ("none", "random", "shuffled", "untransformed")
        for measure, arms in (("r", controls), ("r_change", controls[1:])):
            present = [arm for arm in arms if arm in by_arm.index]
            row |= {f"{measure}_{arm}": by_arm.loc[arm, measure] for arm in present}
        rows.append(row | {"cosine": ours["cosine"], "n_test": ours["n_test"]})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run(reproduce)
