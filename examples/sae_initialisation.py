"""Stitching, figure 2: does an SAE that begins where a transferred one is learn in fewer tokens?

python examples/sae_initialisation.py --out sae-init               # bundled pair, some minutes
"""

import json
import logging
from pathlib import Path

import tyro

import lrt_lens as lrt
from lrt_lens.adapters.sae.bundled import demo_sae
from lrt_lens.evaluation.sae_initialisation import study_sae_initialisation

logger = logging.getLogger("sae_initialisation")

PAPER = {
    "flops_saved": "30–50% fewer FLOPs (stitch included) around 90% explained variance; none or negative below that and for small widths",
    "width": "4,096 to 65,536 features, k = 64 (Pythia-70m → 160m)",
}
QUESTION = (
    "Tokens to 95% of scratch's final explained variance, transferred ÷ scratch (wanted: ≤ 0.5). The paper compares scratch and stitched alone, at widths "
    "and token counts that are thousands of times larger; the shuffled and rotated arms show how much any trained SAE's geometry explains."
)


def main(
    out: Path = Path("sae-init"), source: str | None = None, target: str | None = None, sae: Path | None = None, texts: Path | None = None,
    documents: int | None = None, n_tokens: int = 60_000, fit_tokens: int = 120_000, seeds: tuple[int, ...] = (0, 1, 2),
    batch_rows: int = 512, lr: float = 3e-3, seed: int = 0, device: str | None = None, quick: bool = False,
) -> None:  # fmt: skip
    """Train from every initialisation and compare.

    Args:
        out: folder for sae_initialisation.html and sae_initialisation.json.
        source: hub id or folder of the small model; bundled without it.
        target: the same of the large model.
        sae: SAE of the source, a folder in SAELens' format; bundled without it.
        texts: documents (.txt, .jsonl, .jsonl.gz); bundled without it.
        documents: how many of them; all without it.
        n_tokens: training tokens of each run.
        fit_tokens: tokens of the stitch.
        seeds: of the runs.
        batch_rows: rows a step.
        lr: of Adam.
        seed: of the stitch's folds.
        device: where the models run.
        quick: few tokens, one seed: shows that it runs.
    """
    if quick:
        n_tokens, fit_tokens, seeds = 4_096, 15_000, seeds[:1]
    from lrt_lens.data.documents import iterate_documents

    if (source is None) != (target is None) or (source is not None and sae is None):
        raise SystemExit("give --source, --target and --sae FOLDER together, or none of them")
    pair = lrt.demo_pair(device=device) if source is None or target is None else lrt.ModelPair.load(source, target, device=device)
    corpus = list(lrt.demo_documents() if texts is None else iterate_documents(texts))[:documents]
    if sae is None:
        own = demo_sae("small")
    else:
        from sae_lens import SAE

        own = SAE.load_from_disk(sae)
    hook = own.cfg.metadata.hook_name
    layers = ["blocks.3.hook_resid_post"] if source is None else "all"
    # The full null, not its sketch: the arm through the map of shuffled pairs needs it.
    stitch = lrt.fit_stitches(pair, corpus, source_layers=[hook], target_layers=layers, n_tokens=fit_tokens, null="full", seed=seed).best(
        source=hook
    )
    study = study_sae_initialisation(pair, stitch, own, corpus, n_tokens=n_tokens, seeds=seeds, batch_rows=batch_rows, lr=lr)
    out.mkdir(parents=True, exist_ok=True)
    study.figure().write_html(out / "sae_initialisation.html", include_plotlyjs=True)
    found = {
        "question": QUESTION, "stitch": repr(stitch), "summary": study.summary.to_dict("records"), "thresholds": study.thresholds.to_dict("records"),
        "runs": study.runs.to_dict("records"), "stitch_flops": study.stitch_flops, "n_tokens": n_tokens, "paper": PAPER,
    }  # fmt: skip
    (out / "sae_initialisation.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    logger.info("%s\n%s\nThe paper: %s\n%s", stitch, study.summary.round(4).to_string(index=False), PAPER["flops_saved"], QUESTION)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
