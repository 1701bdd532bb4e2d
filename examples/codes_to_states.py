"""LRT's s2l beside its l2l: from SAE codes, or from states? Held-out R², and what features do under either map.

    python examples/codes_to_states.py --out codes-report            # bundled models and SAE

The paper (arXiv 2506.00653, §3.2 and table 2) gives final validation losses of 5.437 (from codes) and 5.935 (from states), of unstated unit and
without a baseline, and shows three steered features. Here both maps are scored on the same documents, which neither saw, and features
drawn at every frequency are steered under both, beside another feature's row and a random direction.
"""

import json
import logging
from pathlib import Path
from typing import Any

import tyro

import lrt_lens as lrt
from lrt_lens.adapters.codes.code_map import fit_code_map
from lrt_lens.adapters.sae.bundled import demo_sae
from lrt_lens.data.documents import iterate_documents
from lrt_lens.evaluation.code_map import evaluate_code_map

logger = logging.getLogger("codes_to_states")

PAPER = {"s2l_validation_loss": 5.437, "l2l_validation_loss": 5.935}
SAYS = (
    "Losses of unknown unit cannot be set beside R²: what can be compared is the order of the two maps, on this pair, at these layers and "
    "for this SAE; agreement compares effects on the next token, not what a generated text is about."
)


def main(
    sae: str | None = None, out: Path = Path("codes-report"), source: str | None = None, target: str | None = None, target_layer: int = 3,
    documents: Path | None = None, n_tokens: int = 150_000, n_features: int = 48, seed: int = 0, device: str | None = None,
    quick: bool = False,
) -> None:  # fmt: skip
    """Fit both maps, score both, steer features under both.

    Args:
        sae: SAELens folder of the source's SAE; the bundled one if not given.
        out: folder for codes_to_states.html and codes_to_states.json.
        source: source model; the bundled small one if not given.
        target: target model; the bundled large one.
        target_layer: where the maps end.
        documents: a .txt or .jsonl file; the bundled texts.
        n_tokens: tokens of either fit.
        n_features: features that are steered.
        seed: which features.
        device: where the models run.
        quick: few of everything: shows that it runs.
    """
    if quick:
        n_tokens, n_features = min(n_tokens, 15_000), 6
    pair = lrt.demo_pair(device=device) if source is None or target is None else lrt.ModelPair.load(source, target, device=device)
    texts = lrt.demo_documents() if documents is None else list(iterate_documents(documents))
    coder = demo_sae("small") if sae is None else load_sae(sae)
    hook = coder.cfg.metadata.hook_name
    stitch = lrt.fit_stitches(pair, texts, source_layers=[hook], target_layers=[target_layer], n_tokens=n_tokens, null=False).best()
    codes = fit_code_map(pair, stitch, coder, texts, n_tokens=n_tokens)
    neutral = lrt.demo_neutral()[: 4 if quick else 16]
    found = evaluate_code_map(pair, stitch, coder, codes, texts, texts=neutral, n_features=n_features, n_tokens=n_tokens, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    found.figure().write_html(out / "codes_to_states.html", include_plotlyjs=True)
    codes.save(out / "codes.safetensors")
    ours = {"map": repr(codes), "r2": found.table.to_dict("records"), "features": found.summary.to_dict("records")}
    report = {"paper": PAPER, "ours": ours, "r2_token": float(stitch.scores["r2_token"]), "says": SAYS}
    (out / "codes_to_states.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    tables = [table.round(3).to_string(index=False) for table in (found.table, found.summary)]
    logger.info("%s\n%s\n%s\npaper: %s. %s\nOpen %s", codes, *tables, PAPER, SAYS, out / "codes_to_states.html")


def load_sae(folder: str) -> Any:
    """An SAE from a SAELens folder."""
    from sae_lens import SAE

    return SAE.load_from_disk(folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
