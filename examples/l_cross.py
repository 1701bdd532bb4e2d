"""L-Cross Modulation, tables 1-3, and why table 1 cannot fail: maps fitted on a concept's own texts, on another's, on random numbers.

    python examples/l_cross.py --out l-cross-report                                  # bundled pair, its two concepts: about three minutes
    python examples/l_cross.py --source MODEL --target MODEL --source-hook 10 --target-hook 20 --tasks FOLDER --pairs 200 --test-items 50

Cross-model Transferability … on the Platonic Representations of Concepts (arXiv 2501.02009) fits T by least squares on the last-token states of contrast texts
and carries steering vectors by it: with T from the concept's own texts (table 1), a random T (table 2) and T from another concept (table 3). All its sets
have fewer texts than the models have dimensions, where T runs through every text and the vector carried is the target's own. The first figure shows that over
n/d, with a map whose source is random numbers beside it; the second measures all arms at the same β and at equal damage. Tasks are JSON Lines files in the
form of the model-written evaluations; models may have different tokenizers.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

import lrt_lens as lrt
from lrt_lens.data.behaviours import behaviour_items
from lrt_lens.evaluation.concept_interpolation import evaluate_interpolation
from lrt_lens.evaluation.concept_rows import read_rows
from lrt_lens.evaluation.concept_transfer import BETAS, Concept, ConceptTransfer, evaluate_concept_transfer
from lrt_lens.models.pair import ModelPair
from lrt_lens.report.results import write_results

logger = logging.getLogger("l_cross")

PAPER_DISTANCE = {"own": (0.39, 2.07), "other": (3.78, 17.6)}
"""Mean and largest |carried − Self| in points over the 42 cells of the seven A/B concepts: from tables 1 and 3 of the paper."""
PAPER = {
    "coordinate-other-ais": (30.06, 75.18, 73.11, 74.95, 79.02, 80.40, 51.78, 49.96),
    "corrigible-neutral-HHH": (63.80, 91.20, 91.36, 91.41, 73.58, 83.96, 47.23, 50.21),
    "myopic-reward": (74.64, 73.27, 73.04, 73.62, 79.56, 65.24, 51.31, 49.96),
    "survival-instinct": (33.86, 60.00, 59.95, 59.97, 61.10, 63.58, 42.50, 50.79),
}
"""Probability of the concept's choice, Llama2-7B-Chat: No, Self, then ←Qwen2, ←Llama3.1 for own T (table 1), other T (table 3), random T (table 2)."""
SAYS = (
    "The paper's own-concept cells lie .39 points from Self on average because n < d makes the map return Self; the arm whose source is random numbers does the "
    "same, so table 1 is no evidence that two models share a concept. What can be evidence is the distance of the other-concept and generic-text arms from no "
    "steering and from the random, shuffled and mean-only maps. Models, items, layers and β differ from the paper's (7-8B chat models), so numbers side by side "
    "compare the pattern of arms, not their size."
)


def main(
    out: Path = Path("l-cross-report"), source: str | None = None, target: str | None = None, source_hook: int = 2, target_hook: int = 3,
    tasks: Path | None = None, texts: Path | None = None, n_tokens: int = 150_000, pairs: int = 252, test_items: int = 50, n_pairs: int | None = None,
    draws: int = 5, n_random: int = 6, neutral: int = 24, damage: float = 0.1, betas: Sequence[float] = BETAS, seed: int = 0, device: str = "cpu",
    curves_only: bool = False, quick: bool = False,
) -> None:  # fmt: skip
    """Fit maps, draw the curve over n/d, measure the arms.

    Args:
        out: folder for l_cross.html, l_cross.csv and l_cross.json.
        source: where vectors are learnt: hub id or folder; the bundled small model by default.
        target: where they are carried to; the bundled large model by default.
        source_hook: layer of the source.
        target_hook: layer of the target.
        tasks: folder of task files; the bundled concepts by default.
        texts: documents for the map of generic text (a row `text` each), which needs a shared tokenizer; the bundled ones by default.
        n_tokens: tokens of that map; 0 leaves it out.
        pairs: pairs a task that maps and vectors are learnt from.
        test_items: items a task that are measured.
        n_pairs: pairs that a vector is learnt from; by default as many as give 3/4 as many texts as the source has dimensions, or half of all.
        draws: choices of texts for each point of the curve.
        n_random: random maps.
        neutral: neutral texts.
        damage: nats per token at which arms are compared; 0 leaves that out.
        betas: multiples of the vectors as mapped, 1 among them.
        seed: of splits, draws and bootstraps.
        device: where models run.
        curves_only: leave the steering out.
        quick: few of everything: shows that it runs.
    """
    if quick:
        n_tokens, pairs, test_items, draws, n_random, neutral = 15_000, 90, 8, 1, 2, 4
    models = load_models(source, target, device)
    concepts = load_concepts(tasks, pairs, test_items, seed)
    stitch = generic(models, texts, n_tokens, source_hook, target_hook, seed)
    hooks: dict[str, Any] = {"source_hook": source_hook, "target_hook": target_hook, "stitch": stitch, "seed": seed}
    sets = [concept.contrast for concept in concepts]
    rows = read_rows(models, sets, source_hook=source_hook, target_hook=target_hook)
    curves = evaluate_interpolation(models, sets, rows=rows, n_draws=draws, **hooks)
    shape = curves.summary.pivot_table(index=["concept", "arm"], columns="n_over_d", values="cosine", sort=False)
    logger.info("cosine to the native vector over n/d\n%s", shape.round(3).to_string())
    out.mkdir(parents=True, exist_ok=True)
    figures, tables = [curves.figure()], {"says": SAYS, "interpolation": curves.summary}
    if not curves_only:
        if n_pairs is None:
            n_pairs = min(models[0].d_model * 3 // 8, min(map(len, sets)) // 2)
        result = evaluate_concept_transfer(
            models, concepts, neutral=lrt.demo_neutral()[:neutral] if damage else None, damage=damage or None, betas=betas, n_random=n_random,
            n_pairs=n_pairs, rows=[rows], **hooks,
        )  # fmt: skip
        figures += [result.figure("summary"), result.figure("beta")]
        tables |= {"summary": result.summary, "beside_the_paper": beside_the_paper(result), "distance_to_self": distances(result)}
        result.table.to_csv(out / "l_cross.csv", index=False)
        logger.info(
            "%s",
            "\n\n".join(
                t.round(3).to_string(index=False) for t in (result.summary, tables["beside_the_paper"], tables["distance_to_self"])
            ),
        )
    write_figures(figures, out / "l_cross.html")
    arguments = {
        "source": models[0].name, "target": models[1].name, "source_hook": source_hook, "target_hook": target_hook, "pairs": pairs, "n_pairs": n_pairs,
        "test_items": test_items, "n_tokens": n_tokens, "draws": draws, "damage": damage, "seed": seed, "n_held_out": curves.n_held_out,
    }  # fmt: skip
    write_results(out / "l_cross.json", arguments, tables)
    logger.info("%s\nOpen %s", SAYS, out / "l_cross.html")


def load_models(source: str | None, target: str | None, device: str) -> tuple[lrt.HookedModel, lrt.HookedModel]:
    """Source and target; tokenizers may differ."""
    if source is None or target is None:
        pair = lrt.demo_pair(device=device)
        return pair.source, pair.target
    first = lrt.HookedModel.load(source, device=device)
    return first, first if source == target else lrt.HookedModel.load(target, device=device)


def load_concepts(folder: Path | None, pairs: int, test_items: int, seed: int) -> list[Concept]:
    """A concept a task file, or the two bundled ones."""
    if folder is None:
        return [
            Concept(shortened(lrt.demo_contrast(name), pairs), shortened_items(lrt.demo_items(name), test_items))
            for name in ("sentiment", "mood")
        ]
    files = sorted(folder.glob("*.jsonl"))
    if len(files) < 2:
        raise SystemExit(f"{len(files)} .jsonl file(s) in {folder}; give a folder of at least two task files")
    return [Concept.from_items(behaviour_items(file, n=pairs + test_items, seed=seed), n_test=test_items, seed=seed) for file in files]


def shortened(contrast: lrt.ContrastSet, n: int) -> lrt.ContrastSet:
    """The first n pairs."""
    return lrt.ContrastSet(contrast.positive[:n], contrast.negative[:n], name=contrast.name)


def shortened_items(items: lrt.ChoiceItems, n: int) -> lrt.ChoiceItems:
    """The first n items."""
    return lrt.ChoiceItems(items.prompts[:n], items.positive[:n], items.negative[:n], name=items.name)


def generic(
    models: tuple[lrt.HookedModel, lrt.HookedModel], texts: Path | None, n_tokens: int, source_hook: int, target_hook: int, seed: int
) -> lrt.Stitch | None:
    """A map of ordinary text; none where no tokens are wanted or the tokenizers differ."""
    if not n_tokens:
        return None
    try:
        pair = ModelPair(*models)
    except lrt.MismatchError as error:
        logger.warning("no map of generic text: %s", error)
        return None
    documents = lrt.demo_documents() if texts is None else texts
    return lrt.fit_stitches(
        pair, documents, source_layers=[source_hook], target_layers=[target_hook], n_tokens=n_tokens, null=False, seed=seed
    ).best()  # fmt: skip


def beside_the_paper(result: ConceptTransfer) -> pd.DataFrame:
    """Our table at β = 1, the paper's numbers for the tasks that it has."""
    ours, rows = result.paper_table(), []
    names = ("No", "Self", "own_1", "own_2", "other_1", "other_2", "random_1", "random_2")
    for row in ours.to_dict("records"):
        paper = PAPER.get(str(row["concept"]))
        rows.append(row | ({f"paper_{name}": value for name, value in zip(names, paper, strict=True)} if paper else {}))
    return pd.DataFrame(rows)


def distances(result: ConceptTransfer) -> pd.DataFrame:
    """How far each arm's probability is from the native vector's, beside the paper's two numbers."""
    rows = []
    for row in result.distance_to_self().to_dict("records"):
        mean, largest = PAPER_DISTANCE.get(str(row["arm"]), (float("nan"), float("nan")))
        rows.append(row | {"paper_mean": mean, "paper_largest": largest})
    return pd.DataFrame(rows)


def write_figures(figures: list[Any], path: Path) -> None:
    """All figures on one page; plotly itself stands in it once."""
    pieces = [figure.to_html(full_html=False, include_plotlyjs=not number) for number, figure in enumerate(figures)]
    path.write_text(f"<!doctype html><meta charset='utf-8'><title>{path.stem}</title>{''.join(pieces)}", encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
