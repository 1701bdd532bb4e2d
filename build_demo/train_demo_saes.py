"""The bundled SAEs: TopK, 1,024 features, one on each bundled model, and the card that measures
them.

    python build_demo/train_demo_saes.py                # trains both into lrt_lens/bundled/saes, then measures them
    python build_demo/train_demo_saes.py --card-only    # measures what is there

Rows come from the bundled documents, in several epochs (the first ``n_rows`` tokens of the folds
that fit; the test fold is held out). Weights are stored as float16, and SAELens loads them as
float32.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import tyro

import lrt_lens as lrt
from lrt_lens.adapters.saes._evaluation import SAEEvaluation, evaluate_sae
from lrt_lens.adapters.saes._rows import SAERows
from lrt_lens.adapters.saes._training import train_sae
from lrt_lens.bundled._saes import DEMO_SAES, demo_sae

logger = logging.getLogger("train_demo_saes")

HOOKS = {"small": "blocks.2.hook_resid_post", "large": "blocks.3.hook_resid_post"}
"""A middle layer of the small model, and the layer of the large one that its best stitch leads to.
"""


def main(
    out: Path = DEMO_SAES,
    members: tuple[str, ...] = ("small", "large"),
    n_tokens: int = 400_000,
    n_rows: int = 300_000,
    d_sae: int = 1024,
    k: int = 32,
    batch_rows: int = 512,
    lr: float = 3e-3,
    seed: int = 0,
    card_only: bool = False,
) -> None:
    """Train, save, measure.

    Args:
        out: folder of folders in SAELens' format.
        members: which of the bundled models.
        n_tokens: training rows of each SAE, epochs counted.
        n_rows: different rows among them.
        d_sae: features.
        k: active features a token.
        batch_rows: rows a step.
        lr: of Adam; falls to 0 over the last fifth.
        seed: of weights and order.
        card_only: measure the SAEs that are in ``out``.
    """
    pair, documents = lrt.demo_pair(), lrt.demo_documents()
    for name, model in (("small", pair.source), ("large", pair.target)):
        if card_only or name not in members:
            continue
        rows = SAERows.from_documents(model, documents, at=HOOKS[name]).in_memory(n_rows)
        trained = train_sae(
            model,
            rows,
            d_sae=d_sae,
            k=k,
            n_tokens=n_tokens,
            batch_rows=batch_rows,
            lr=lr,
            lr_decay_share=0.2,
            n_measurements=10,
            seed=seed,
        )
        save(trained.sae, out / name)
        logger.info("%s\n%s", name, trained.history.round(4).to_string(index=False))
    if all((out / name / "cfg.json").exists() for name in HOOKS):
        card(pair, documents, out)


def save(sae: Any, folder: Path) -> None:
    """SAELens' folder, weights in float16."""
    half = sae.to(torch.float16)
    half.cfg.dtype = "float16"
    half.save_model(folder)


def card(pair: lrt.ModelPair, documents: list[str], out: Path) -> None:
    """Measure both SAEs on the test fold and write card.json and README.md."""
    grid = lrt.fit_stitches(
        pair,
        documents,
        source_layers=[HOOKS["small"]],
        target_layers=[HOOKS["large"]],
        n_tokens=120_000,
        null=False,
    )
    result = evaluate_sae(
        pair,
        grid[HOOKS["small"], HOOKS["large"]],
        demo_sae("small", out),
        documents,
        native=demo_sae("large", out),
        n_tokens=20_000,
    )
    write_card(result, out)


def write_card(result: SAEEvaluation, out: Path) -> None:
    """card.json and README.md."""
    rows = pd.DataFrame(result.table[result.table["arm"].isin(["source", "native"])])
    (out / "card.json").write_text(json.dumps(rows.to_dict("records"), indent=1), encoding="utf-8")
    lines = [
        "| SAE | hook point | L0 | FVU | ΔCE (nats) | CE recovered | dead |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in zip(HOOKS, rows.to_dict("records"), strict=True):
        lines.append(
            f"| {name} | `{HOOKS[name]}` | {row['l0']:.1f} | {row['fvu']:.4f} [{row['fvu_low']:.4f}, {row['fvu_high']:.4f}] "
            f"| {row['delta_ce']:.4f} [{row['delta_ce_low']:.4f}, {row['delta_ce_high']:.4f}] | {row['ce_recovered']:.4f} | {row['dead_fraction']:.3f} |"
        )
    head = "# The bundled SAEs\n\nTopK SAEs in SAELens' format on the bundled models, made by `build_demo/train_demo_saes.py` (seed 0).\n"
    tail = "\nMeasured on documents of the test fold, which took no part in training; intervals by bootstrap over documents. CE recovered is against the mean.\n"
    (out / "README.md").write_text(head + "\n" + "\n".join(lines) + "\n" + tail, encoding="utf-8")
    logger.info("\n".join(lines))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
