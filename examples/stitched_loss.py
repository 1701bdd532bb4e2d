r"""Stitching, table 1: next-token loss when one model begins and the other finishes.

    python examples/stitched_loss.py --out stitched-loss-report        # bundled pair, about a minute on two cores
    python examples/stitched_loss.py --source EleutherAI/pythia-70m-deduped --target EleutherAI/pythia-160m-deduped \
        --source-layer blocks.3.hook_resid_pre --target-layer blocks.4.hook_resid_pre --documents corpus.jsonl.gz

Four routes (A is the source, B the target): A→B, B→A and both round trips, each beside the finishing model with its own state, with its mean and with
zeros, the map of shuffled pairs, and the map from token identity alone. Transferring Features with Model Stitching (arXiv 2506.06609) reports the
untouched losses and the four routes; the controls, recovered shares and intervals are ours.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

import lrt_lens as lrt

logger = logging.getLogger("stitched_loss")

PAPER = {
    "pythia-70m.3 / pythia-160m.4": {"A": 3.60, "B": 3.14, "A→B": 3.99, "B→A": 4.21, "A→B→A": 3.62, "B→A→B": 3.29},
    "gpt2-small.6 / gpt2-medium.10": {"A": 3.07, "B": 2.77, "A→B": 3.08, "B→A": 3.35, "A→B→A": 3.07, "B→A→B": 2.81},
    "gemma-2-2b.20 / gemma-2-9b.33": {"A": 2.52, "B": 2.36, "A→B": 3.28, "B→A": 2.73, "A→B→A": 2.53, "B→A→B": 2.66},
}
"""Table 1, nats per token on OpenWebText; maps by Adam on eq. 3."""
SAYS = (
    "The paper's models, text and losses are others. Comparable is how far each route is from the model that finishes it, and that only between pairs "
    "of like distance: on small models of stories and reviews a stitch loses more than between GPT-2s."
)


def main(
    source: str | None = None, target: str | None = None, documents: str | None = None, out: Path = Path("stitched-loss-report"),
    source_layer: int | str = 2, target_layer: int | str | None = None, n_tokens: int = 120_000, loss_tokens: int = 20_000, seed: int = 0,
    device: str | None = None, quick: bool = False,
) -> None:  # fmt: skip
    """Fit eq. 3 and ridge, and finish what the other model began.

    Args:
        source: small model, a hub id or folder; the bundled one without it.
        target: large model.
        documents: text file or data set; the bundled text without it.
        out: folder for stitched_loss.html and stitched_loss.json.
        source_layer: layer or hook point of the small model.
        target_layer: the same of the large one; chosen by cross-validation without it.
        n_tokens: tokens of the harvest.
        loss_tokens: tokens that are predicted, of documents that no map was fitted on.
        seed: of folds and bootstraps.
        device: where the models run.
        quick: few tokens: shows that it runs.
    """
    if quick:
        n_tokens, loss_tokens = 15_000, 1_500
    pair = lrt.demo_pair() if source is None or target is None else lrt.ModelPair.load(source, target, device=device)
    texts: Any = lrt.demo_documents() if documents is None else documents
    layers: Any = "all" if target_layer is None else [target_layer]
    grid = lrt.fit_stitches(pair, texts, source_layers=[source_layer], target_layers=layers, n_tokens=n_tokens, null="full", seed=seed)
    ridge = grid.best()
    where = (ridge.source_hook, ridge.target_hook)
    stitch = grid.moments.fit(lrt.TwoWay(), pairs=[where])[where]
    loss = lrt.evaluate_stitch_loss(
        pair, stitch, texts, n_tokens=loss_tokens, others={"ridge": ridge.maps}, token_maps=lrt.token_identity_map(grid.moments, where[1]), seed=seed
    )  # fmt: skip
    table = beside_the_paper(loss)
    out.mkdir(parents=True, exist_ok=True)
    loss.figure().write_html(out / "stitched_loss.html", include_plotlyjs=True)
    results = {
        "stitch": repr(stitch),
        "table_1": table.to_dict("records"),
        "arms": loss.table.to_dict("records"),
        "paper": PAPER,
        "says": SAYS,
    }
    (out / "stitched_loss.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    logger.info("%s\n%s\n%s\nOpen %s", stitch, table.round(3).to_string(index=False), SAYS, out / "stitched_loss.html")


def beside_the_paper(loss: lrt.StitchLoss) -> pd.DataFrame:
    """A row per untouched model and route: ours with interval, rise over the finishing model, and the paper's rise for each of its pairs."""
    rows = []
    for row in loss.summary.to_dict("records"):
        route = str(row["route"])
        shown = {"route": route, "ce": row["ce"], "low": row["ce_low"], "high": row["ce_high"], "rise_percent": row["increase_percent"]}
        shown |= {"recovered": row["recovered"], "ce_ridge": row["ce_ridge"]}
        finishes = route[-1]
        rows.append(shown | {f"{name}, rise": 100 * (values[route] / values[finishes] - 1) for name, values in PAPER.items()})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
