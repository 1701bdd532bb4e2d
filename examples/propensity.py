"""LRT's table 1 and figure 5: do answers to questions about a behaviour move together under native and transferred steering?

    python examples/propensity.py --out propensity-report                  # bundled pair, its own items: under a minute
    python examples/propensity.py --source MODEL --target MODEL --source-layer 10 --target-layer 20 --tasks FOLDER --texts FILE.jsonl

Tasks are JSON Lines files in the form of the model-written evaluations (`question`, `answer_matching_behavior`,
`answer_not_matching_behavior`). A task of the paper's table is found by its file's name and the paper's numbers are printed beside ours.
The same model on both sides carries vectors between its own layers.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import tyro

import lrt_lens as lrt
from lrt_lens.data.behaviours import behaviour_items
from lrt_lens.evaluation.propensity import SCALES, PropensityEvaluation, evaluate_propensity
from lrt_lens.report.results import write_results

logger = logging.getLogger("propensity")

PAPER = {
    "corrigible-neutral-HHH": (0.807, 0.160, 0.751, 0.861, 4.22e-2, 4.24e-2),
    "self-awareness-text-model": (0.810, 0.238, 0.720, 0.881, 2.96e-2, 2.19e-2),
    "self-awareness-good-text-model": (0.833, 0.066, 0.811, 0.856, 4.87e-2, 2.58e-2),
    "self-awareness-training-web-gpt": (0.906, 0.084, 0.875, 0.933, 4.06e-2, 3.66e-2),
    "anti-LGBTQ-rights": (0.894, 0.127, 0.845, 0.930, 5.17e-3, 5.81e-3),
    "openness": (0.878, 0.081, 0.849, 0.904, 1.53e-2, 9.68e-3),
    "believes-AIs-are-not-an-existential-threat-to-humanity": (0.884, 0.076, 0.854, 0.906, 2.84e-2, 1.89e-2),
    "subscribes-to-deontology": (0.918, 0.037, 0.903, 0.928, 3.43e-2, 1.54e-2),
    "myopic-reward": (0.728, 0.344, 0.598, 0.830, 9.56e-2, 1.16e-1),
    "believes-it-is-not-being-watched-by-humans": (0.981, 0.017, 0.975, 0.987, 8.86e-3, 8.09e-3),
    "subscribes-to-average-utilitarianism": (0.924, 0.053, 0.905, 0.941, 3.19e-2, 2.28e-2),
    "narcissism": (0.968, 0.022, 0.960, 0.975, 1.25e-2, 8.15e-3),
    "willingness-to-use-physical-force-to-achieve-benevolent-goals": (0.957, 0.042, 0.942, 0.971, 1.28e-2, 1.21e-2),
}
"""LRT (arXiv 2506.00653), table 1, Gemma-2-2B → 9B: mean r, sd over scales, 95% interval, mean MSE and its sd."""
SAYS = (
    "LRT's r is between propensities; the column r_none is what no steering at all reaches against native steering, from item difficulty "
    "alone, so only what r_change adds over random directions speaks for the transfer; models, layers and scales are not the paper's: the "
    "values beside each other show the measure, not a replication of its numbers."
)


def main(
    out: Path = Path("propensity-report"), source: str | None = None, target: str | None = None, source_layer: int = 2,
    target_layer: int | None = None, tasks: Path | None = None, texts: Path | None = None, n_tokens: int = 120_000, n_items: int = 60,
    scales: Sequence[float] = SCALES, n_random: int = 4, bias: bool = False, seed: int = 0, device: str = "cpu", quick: bool = False,
) -> None:  # fmt: skip
    """Fit a stitch, carry a vector a task, compare.

    Args:
        out: folder for propensity.html, propensity.csv and propensity.json.
        source: where vectors are learnt: hub id or folder; the bundled small model by default.
        target: where they are carried to; the bundled large model by default.
        source_layer: layer of the source.
        target_layer: layer of the target; chosen by cross-validation where left out.
        tasks: folder of task files; the bundled choice items by default.
        texts: documents for the stitch (a row `text` each); the bundled ones by default.
        n_tokens: tokens of the harvest.
        n_items: items a task, half of them for the vector.
        scales: multiples of the native vector's length.
        n_random: random directions.
        bias: add the map's bias to the vector, as LRT does.
        seed: of draws, splits and bootstraps.
        device: where models run.
        quick: few of everything: shows that it runs.
    """
    if quick:
        n_tokens, n_items, scales, n_random = 20_000, 24, (-1.0, 1.0), 2
    pair = lrt.demo_pair(device=device) if source is None or target is None else lrt.ModelPair.load(source, target, device=device)
    documents = lrt.demo_documents() if texts is None else texts
    if target_layer is None:
        grid = lrt.fit_stitches(pair, documents, source_layers=[source_layer], n_tokens=n_tokens, null=False)
        layers = [grid.best().target_hook]
    else:
        layers = [target_layer]
    # Alone, so that the map of shuffled pairs comes whole.
    stitch = lrt.fit_stitches(pair, documents, source_layers=[source_layer], target_layers=layers, n_tokens=n_tokens, null="full").best()
    result = evaluate_propensity(
        pair, stitch, load_tasks(tasks, n_items, seed), scales=scales, bias="add" if bias else "none", n_random=n_random, seed=seed
    )
    table = beside_the_paper(result)
    out.mkdir(parents=True, exist_ok=True)
    result.figure().write_html(out / "propensity.html", include_plotlyjs=True)
    result.table.to_csv(out / "propensity.csv", index=False)
    arguments = {
        "source": pair.source.name, "target": pair.target.name, "stitch": repr(stitch), "scales": list(scales), "n_items": n_items,
        "n_tokens": n_tokens, "bias": "add" if bias else "none", "seed": seed,
    }  # fmt: skip
    tables = {"says": SAYS, "paper_beside_ours": table, "overall": result.overall, "summary": result.summary}
    write_results(out / "propensity.json", arguments, tables)
    logger.info(
        "%s\n%s\n\n%s\n%s\nOpen %s",
        stitch,
        *(t.round(3).to_string(index=False) for t in (table, result.overall)),
        SAYS,
        out / "propensity.html",
    )


def load_tasks(folder: Path | None, n_items: int, seed: int) -> list[lrt.ChoiceItems]:
    """The folder's tasks (the paper's alone, where it holds any of them), or the bundled items."""
    if folder is None:
        return [lrt.demo_items("sentiment"), lrt.demo_items("mood")]
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise SystemExit(f"no .jsonl file in {folder}; give a folder of task files")
    known = [file for file in files if file.stem in PAPER]
    return [behaviour_items(file, n=n_items, seed=seed) for file in known or files]


def beside_the_paper(result: PropensityEvaluation) -> pd.DataFrame:
    """A row a task: the paper's mean r ± sd and MSE, ours, and the controls."""
    rows = []
    for task, part in result.summary.groupby("task", sort=False):
        by_arm = part.set_index("arm")
        row = {"task": task}
        if task in PAPER:
            row |= dict(zip(("paper_r", "paper_sd", "paper_low", "paper_high", "paper_mse", "paper_mse_sd"), PAPER[str(task)], strict=True))
        ours = by_arm.loc["transferred"]
        row |= {name: ours[name] for name in ("r", "r_sd", "r_low", "r_high", "mse", "mse_sd", "mse_share")}
        row |= {"r_change": ours["r_change"], "r_change_low": ours["r_change_low"], "r_change_high": ours["r_change_high"]}
        row |= {f"r_{arm}": by_arm["r"].get(arm) for arm in ("none", "random", "shuffled", "untransformed") if arm in by_arm.index}
        row |= {f"r_change_{arm}": by_arm["r_change"].get(arm) for arm in ("random", "shuffled", "untransformed") if arm in by_arm.index}
        rows.append(row | {"cosine": ours["cosine"], "n_test": ours["n_test"]})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
