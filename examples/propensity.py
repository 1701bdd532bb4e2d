"""LRT's table 1 and figure 5: do answers to questions about a behaviour move together under native
and transferred steering?

    python examples/propensity.py                                          # bundled pair, its own items: under a minute
    python examples/propensity.py --source MODEL --target MODEL --source-layer 10 --target-layer 20
    --tasks FOLDER --documents FILE.jsonl

Tasks are JSON Lines files in the form of the model-written evaluations (`question`,
`answer_matching_behavior`, `answer_not_matching_behavior`). A task of the paper's table is found by
its file's name and the paper's numbers are printed beside ours. The same model on both sides
carries vectors between its own layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

import lrt_lens as lrt
from lrt_lens.adapters.vectors._propensity import SCALES
from lrt_lens.reproduction import (
    Compared,
    FigureOptions,
    MissingInputError,
    Reproduction,
    Verdict,
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
"""LRT (arXiv 2506.00653), table 1, Gemma-2-2B → 9B: mean r, sd over scales, 95% interval, mean MSE
and its sd.
"""


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
    """Where vectors are learnt."""
    target_layer: int | None = None
    """Where they are carried to; chosen by cross-validation without it."""
    tasks: Path | None = None
    """Folder of task files; the bundled choice items without it."""
    n_items: int = 60
    """Items a task, half of them for the vector."""
    scales: tuple[float, ...] = SCALES
    """Multiples of the native vector's length."""
    n_random: int = 4
    """Random directions."""
    bias: bool = False
    """Add the map's bias to the vector, as LRT does."""


def reproduce(options: Options) -> Reproduction:
    """Fit a stitch, carry a vector a task, compare."""
    pair, texts = options.pair(), options.texts()
    stitch = options.grid(pair, texts, options.source_layer, options.target_layer).best()
    result = lrt.evaluate_propensity(
        pair,
        stitch,
        load_tasks(options),
        scales=options.scales,
        bias="add" if options.bias else "none",
        n_random=options.n_random,
        seed=options.seed,
    )
    table = beside_the_paper(result)
    overall = result.overall.set_index("arm")
    at = lambda arm, name: float(overall.loc[arm, name])  # noqa: E731
    changes = at("transferred", "r_change"), at("random", "r_change"), at("shuffled", "r_change")
    paper_r = sum(row[0] for row in PAPER.values()) / len(PAPER)
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
        title="Do answers move together under native and transferred steering?",
        paper="LRT, table 1 and figure 5",
        claim="Propensities of items under the transferred vector correlate with those under the target's own: r from .73 to .98 over 13 tasks.",
        compared=[
            Compared(
                "r of propensities, mean over tasks (paper: mean of its 13)",
                at("transferred", "r"),
                round(paper_r, 3),
                control=at("none", "r"),
                control_name="no steering at all",
            ),
            Compared(
                "r of the changes that steering makes",
                changes[0],
                None,
                control=changes[1],
                control_name="random directions",
            ),
            Compared(
                "squared error as a share of predicting no change",
                at("transferred", "mse_share"),
                None,
                control=at("random", "mse_share"),
                control_name="random directions",
            ),
        ],
        says="LRT's r is between propensities; what no steering at all reaches against native steering comes from item difficulty alone, "
        "so only what the r of "
        "changes adds over random directions speaks for the transfer. Models, layers and scales are not the paper's.",
        verdict=verdict,
        because=f"r is {at('transferred', 'r'):.3f}, but {at('none', 'r'):.3f} without any steering (mean over {len(table)} tasks); changes "
        f"correlate by {changes[0]:.2f}, those of "
        f"random directions by {changes[1]:.2f}, of the map of shuffled pairs by {changes[2]:.2f}.",
        figures={
            "A box over scales for every task and arm; right: correlation of changes": result.figure()
        },
        tables={
            "Beside the paper": table,
            "Means over tasks": result.overall,
            "All arms": result.summary,
        },
        details={"stitch": repr(stitch)},
    )


def load_tasks(options: Options) -> list[lrt.ChoiceItems]:
    """The folder's tasks (the paper's alone, where it holds any of them), or the bundled items."""
    if options.tasks is None:
        found = [lrt.demo_items("sentiment"), lrt.demo_items("mood")]
        return [
            lrt.ChoiceItems(
                t.prompts[: options.n_items],
                t.positive[: options.n_items],
                t.negative[: options.n_items],
                name=t.name,
            )
            for t in found
        ]
    files = sorted(options.tasks.glob("*.jsonl"))
    if not files:
        raise MissingInputError(
            f"--tasks: no .jsonl file in {str(options.tasks.absolute())!r}; give a folder of task files"
        )
    known = [file for file in files if file.stem in PAPER]
    return [
        lrt.behaviour_items(file, n=options.n_items, seed=options.seed) for file in known or files
    ]


def beside_the_paper(result: lrt.PropensityEvaluation) -> pd.DataFrame:
    """A row a task: the paper's mean r ± sd and MSE, ours, and the controls."""
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
        row |= {
            name: ours[name]
            for name in ("r", "r_sd", "r_low", "r_high", "mse", "mse_sd", "mse_share")
        }
        row |= {
            "r_change": ours["r_change"],
            "r_change_low": ours["r_change_low"],
            "r_change_high": ours["r_change_high"],
        }
        row |= {
            f"r_{arm}": by_arm["r"].get(arm)
            for arm in ("none", "random", "shuffled", "untransformed")
            if arm in by_arm.index
        }
        row |= {
            f"r_change_{arm}": by_arm["r_change"].get(arm)
            for arm in ("random", "shuffled", "untransformed")
            if arm in by_arm.index
        }
        rows.append(row | {"cosine": ours["cosine"], "n_test": ours["n_test"]})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run(reproduce)
