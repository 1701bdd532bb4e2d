r"""Stitching, table 2: an SAE carried over, beside the one the target would have learnt and its controls.

python examples/sae_transfer.py --out sae-report               # bundled pair and SAEs, about a minute
python examples/sae_transfer.py --source EleutherAI/pythia-70m-deduped --target EleutherAI/pythia-160m-deduped \
        --sae my-sae --texts corpus.jsonl                          # a folder in SAELens' format
"""

import json
import logging
from pathlib import Path
from typing import Any

import tyro

import lrt_lens as lrt
from lrt_lens.adapters.sae.bundled import demo_sae
from lrt_lens.evaluation.sae import evaluate_sae

logger = logging.getLogger("sae_transfer")

QUESTION = (
    "Does the transferred SAE lose little more than one trained on the target, and far less than the same SAE through a map that knows nothing? "
    "The paper's models, SAEs (32k features, billions of tokens) and losses are others: the comparison shows the order of the arms, not the size."
)


def main(
    out: Path = Path("sae-report"), source: str | None = None, target: str | None = None, sae: Path | None = None, native: Path | None = None,
    texts: Path | None = None, documents: int | None = None, n_tokens: int = 20_000, fit_tokens: int = 120_000, seed: int = 0,
    device: str | None = None, quick: bool = False,
) -> None:  # fmt: skip
    """Fit, transfer, evaluate.

    Args:
        out: folder for sae_transfer.html and sae_transfer.json.
        source: hub id or folder of the small model; bundled without it.
        target: the same of the large model.
        sae: SAE of the source, a folder in SAELens' format; bundled without it.
        native: SAE of the target; bundled without it where the models are bundled.
        texts: documents (.txt, .jsonl, .jsonl.gz); bundled without it.
        documents: how many of them; all without it.
        n_tokens: counted tokens of the evaluation.
        fit_tokens: tokens of the stitch.
        seed: of bootstraps and random maps.
        device: where the models run.
        quick: few tokens: shows that it runs.
    """
    if quick:
        n_tokens, fit_tokens = 1_500, 15_000
    bundled = source is None or target is None
    if not bundled and sae is None:
        raise SystemExit("give --sae FOLDER, a SAELens SAE of the source")
    pair = lrt.demo_pair(device=device) if source is None or target is None else lrt.ModelPair.load(source, target, device=device)
    corpus: Any = list(lrt.demo_documents() if texts is None else _texts(texts))[:documents]
    own = demo_sae("small") if sae is None else _load(sae)
    theirs = _load(native) if native else demo_sae("large") if bundled and sae is None else None
    hook = own.cfg.metadata.hook_name
    layers: Any = [theirs.cfg.metadata.hook_name] if theirs is not None else "all"
    # The full null, not its sketch: the arm through the map of shuffled pairs needs it.
    grid = lrt.fit_stitches(pair, corpus, source_layers=[hook], target_layers=layers, n_tokens=fit_tokens, null="full", seed=seed)
    stitch = grid.best(source=hook)
    result = evaluate_sae(pair, stitch, own, corpus, native=theirs, n_tokens=n_tokens, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    result.figure().write_html(out / "sae_transfer.html", include_plotlyjs=True)
    found = {"question": QUESTION, "stitch": repr(stitch), "sae": result.table.to_dict("records"), "paper_table_2": PAPER}
    (out / "sae_transfer.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    logger.info(
        "%s\n%s\nThe paper: %s\n%s\nOpen %s",
        stitch,
        result.summary.round(4).to_string(index=False),
        PAPER,
        QUESTION,
        out / "sae_transfer.html",
    )


def _texts(path: Path) -> list[str]:
    from lrt_lens.data.documents import iterate_documents

    return list(iterate_documents(path))


def _load(folder: Path) -> Any:
    from sae_lens import SAE

    return SAE.load_from_disk(folder)


PAPER: list[dict[str, Any]] = [
    {"pair": "Pythia 70m → 160m", "l0": (16.0, 16.0), "fvu": (0.17, 0.52), "delta_ce": (0.36, 2.16), "dead": ("5.2%", "2.9%")},
    {"pair": "GPT-2 small → medium", "l0": (32.0, 32.0), "fvu": (0.11, 0.39), "delta_ce": (0.08, 0.96), "dead": ("<1%", "<1%")},
    {"pair": "Gemma-2 2B → 9B", "l0": (77.2, 74.7), "fvu": (0.21, 0.42), "delta_ce": (0.50, 0.85), "dead": ("1.5%", "3.5%")},
]
"""Table 2: (source's SAE on the source, transferred on the target)."""


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
