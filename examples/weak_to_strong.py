"""Weak to strong: a concept learnt in the small model, at work in the large one (L-Cross, figure 4), by maps that never saw it.

    python examples/weak_to_strong.py --out weak-to-strong-report            # bundled pair, its two concepts: about two minutes
    python examples/weak_to_strong.py --source SMALL --target LARGE --tasks FOLDER

The paper (arXiv 2501.02009, §4) carries a harmfulness vector of Qwen2-0.5B-Instruct to Qwen2-7B-Instruct: steered by its own vector the small model reaches at most 54%
harmful answers over β, the large one under the carried vector 88.0% at β = 1. Its map is fitted on the concept's own 128 pairs, at most 256 texts for
896 dimensions, so what is carried is the large model's own vector (see l_cross.py). Here the maps of the middle three arms are fitted on other texts than
those of the vector: other pairs of the concept, another concept, ordinary text. Items share no text with any of them.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from l_cross import generic, load_concepts, load_models, write_figures

import lrt_lens as lrt
from lrt_lens.evaluation.concept_transfer import ConceptTransfer, evaluate_concept_transfer
from lrt_lens.report.results import write_results

logger = logging.getLogger("weak_to_strong")

GRID = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
PAPER = {"small model, its own vector, best β (%)": 54.0, "large model, carried, β = 1 (%)": 88.0}
"""Share of answers to 50 AdvBench questions judged harmful; the text of the paper says 86.0 for the second."""
SAYS = (
    "That the large model exceeds the small one is expected of its own vector too (arm native), so only arms whose map was fitted without the concept (other_ridge, "
    "stitch), against native and random, say that the small model's concept was carried. The share of the concept's choice among two continuations is not a rate of "
    "harmful answers, so the paper's numbers stand beside ours for their order only."
)


def main(
    out: Path = Path("weak-to-strong-report"), source: str | None = None, target: str | None = None, source_hook: int = 2, target_hook: int = 3,
    tasks: Path | None = None, texts: Path | None = None, n_tokens: int = 150_000, pairs: int = 252, test_items: int = 60, n_random: int = 4,
    betas: Sequence[float] = GRID, neutral: int = 24, damage: float = 0.1, seed: int = 0, device: str = "cpu", quick: bool = False,
) -> None:  # fmt: skip
    """Steer both models over β.

    Args:
        out: folder for weak_to_strong.html, weak_to_strong.csv and weak_to_strong.json.
        source: the small model, hub id or folder; the bundled one by default.
        target: the large model; tokenizers may differ.
        source_hook: layer of the small model.
        target_hook: layer of the large model.
        tasks: folder of task files; the bundled concepts by default.
        texts: documents for the map of ordinary text (a row `text` each), where the tokenizer is shared; the bundled ones by default.
        n_tokens: tokens of that map; 0 leaves it out.
        pairs: pairs a task that maps and vectors are learnt from.
        test_items: items a task that are measured.
        n_random: random maps.
        betas: multiples of the vectors as mapped, 1 among them.
        neutral: neutral texts.
        damage: nats per token at which arms are compared; 0 leaves that out.
        seed: of splits, draws and bootstraps.
        device: where models run.
        quick: few of everything: shows that it runs.
    """
    if quick:
        n_tokens, pairs, test_items, n_random, betas, neutral = 15_000, 60, 8, 1, (1.0, 2.0), 4
    models = load_models(source, target, device)
    concepts = load_concepts(tasks, pairs, test_items, seed)
    result = evaluate_concept_transfer(
        models, concepts, source_hook=source_hook, target_hook=target_hook, betas=betas, damage=damage or None, n_random=n_random, seed=seed,
        neutral=lrt.demo_neutral()[:neutral] if damage else None, stitch=generic(models, texts, n_tokens, source_hook, target_hook, seed),
    )  # fmt: skip
    table = best_over_beta(result)
    out.mkdir(parents=True, exist_ok=True)
    write_figures([result.figure("weak_to_strong"), result.figure("summary")], out / "weak_to_strong.html")
    result.table.to_csv(out / "weak_to_strong.csv", index=False)
    arguments = {
        "source": models[0].name, "target": models[1].name, "source_hook": source_hook, "target_hook": target_hook, "pairs": pairs, "test_items": test_items,
        "n_tokens": n_tokens, "betas": list(betas), "damage": damage, "seed": seed,
    }  # fmt: skip
    write_results(out / "weak_to_strong.json", arguments, {"says": SAYS, "paper": PAPER, "over_beta": table, "summary": result.summary})
    text = "\n\n".join(found.round(3).to_string(index=False) for found in (table, result.summary))
    logger.info("%s\n%s\nOpen %s", text, SAYS, out / "weak_to_strong.html")


def best_over_beta(result: ConceptTransfer) -> pd.DataFrame:
    """A row per concept and arm: probability of the concept's choice at β = 0, at 1 and at the grid's best, with the damage that the best one does."""
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
                "concept": concept, "arm": arm, "at_0": start[0][0], "at_1": means[1.0][0], "best": means[best][0], "best_beta": best,
                "damage_at_best": means[best][1],
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
