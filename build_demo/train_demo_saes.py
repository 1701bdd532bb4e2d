"""Train and measure the bundled SAEs: TopK, 1,024 features, one for each bundled model.

    # trains both into lrt_lens/bundled/saes, then measures them
    python build_demo/train_demo_saes.py
    # measures the existing ones
    python build_demo/train_demo_saes.py --card-only

Rows come from the bundled documents, in several epochs (the first ``n_rows`` tokens of the fitting
folds; the test fold is held out). Weights are stored as float16; SAELens loads them as float32.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import tyro

import lrt_lens as lrt
from lrt_lens.adapters.saes import SAEEvaluation, SAERows, evaluate_sae, train_sae
from lrt_lens.bundled import DEMO_SAES, demo_sae

logger = logging.getLogger("train_demo_saes")

HOOKS = {"small": "blocks.2.hook_resid_post", "large": "blocks.3.hook_resid_post"}
"""A middle layer of the small model, and the layer of the large model with the best stitch."""
CARD = """\
# The bundled SAEs

TopK SAEs in SAELens' format on the bundled models, made by `build_demo/train_demo_saes.py` \
(seed 0).

{table}

Measured on documents of the test fold, which took no part in training; intervals by bootstrap \
over documents. CE recovered is against the mean.
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
    """Train the SAEs, save them, and measure them.

    Args:
        out: folder with one folder in SAELens' format per SAE.
        members: bundled models whose SAEs are trained.
        n_tokens: training rows per SAE, over all epochs.
        n_rows: number of distinct rows.
        d_sae: number of features.
        k: number of active features per token.
        batch_rows: rows per training step.
        lr: learning rate of Adam, linear to 0 over the last fifth.
        seed: seed of weights and order.
        card_only: only measure the SAEs in ``out``.
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
    """Write an SAE as a SAELens folder with float16 weights."""
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
    """Write card.json and README.md from the measurements."""
    rows = pd.DataFrame(result.table[result.table["arm"].isin(["source", "native"])])
    (out / "card.json").write_text(json.dumps(rows.to_dict("records"), indent=1), encoding="utf-8")
    lines = [
        "| SAE | hook point | L0 | FVU | ΔCE (nats) | CE recovered | dead |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in zip(HOOKS, rows.to_dict("records"), strict=True):
        lines.append(
            f"| {name} | `{HOOKS[name]}` | {row['l0']:.1f} "
            f"| {row['fvu']:.4f} [{row['fvu_low']:.4f}, {row['fvu_high']:.4f}] "
            f"| {row['delta_ce']:.4f} [{row['delta_ce_low']:.4f}, {row['delta_ce_high']:.4f}] "
            f"| {row['ce_recovered']:.4f} | {row['dead_fraction']:.3f} |"
        )
    (out / "README.md").write_text(CARD.format(table="\n".join(lines)), encoding="utf-8")
    logger.info("\n".join(lines))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
