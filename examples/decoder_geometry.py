"""LRT's figure 2 with fair nulls: are the decoders of two SAEs linearly related?

    python examples/decoder_geometry.py --out geometry-report                     # bundled models and SAEs
    python examples/decoder_geometry.py --source A --target B --sae SAE_A SAE_B   # SAELens folders

The paper (arXiv 2506.00653) leaves ‖E‖ ≈ 114 when it regresses 16,384 unit rows of one Gemma Scope decoder on another's 3584 columns, and reads that as
a relation, because N(0, 1) rows leave more. Random rows *of unit norm* leave 113.1. Here both SAEs' features are matched by activation
first, rows are permuted for the null, and R² is on features that did not fit.
"""

import json
import logging
from pathlib import Path
from typing import Any

import tyro

import lrt_lens as lrt
from lrt_lens.adapters.sae.bundled import demo_sae
from lrt_lens.data.documents import iterate_documents
from lrt_lens.evaluation.decoder_geometry import chance_residual, decoder_geometry
from lrt_lens.evaluation.feature_matching import match_features

logger = logging.getLogger("decoder_geometry")

PAPER = {"residual": 114.0, "n_features": 16384, "d_predictor": 3584, "d_predicted": 2304}
SAYS = (
    "The paper's residual is what unit rows leave by chance; the bundled pair says whether matched features of two small SAEs are linearly "
    "related, not whether those of Gemma's are."
)


def main(
    sae: tuple[str, str] | None = None, out: Path = Path("geometry-report"), source: str | None = None, target: str | None = None,
    documents: Path | None = None, n_tokens: int = 150_000, min_correlation: float = 0.3, seed: int = 0, device: str | None = None,
    quick: bool = False,
) -> None:  # fmt: skip
    """Match features, regress decoders, both ways.

    Args:
        sae: SAELens folders of the source's and the target's SAE; the bundled ones if not given.
        out: folder for decoder_geometry.html and decoder_geometry.json.
        source: source model; the bundled small one if not given.
        target: target model; the bundled large one.
        documents: a .txt or .jsonl file; the bundled texts.
        n_tokens: tokens of the harvest and of the matching.
        min_correlation: matched pairs below it on the fitting folds are left out.
        seed: of draws and folds.
        device: where the models run.
        quick: few tokens: shows that it runs.
    """
    n_tokens = min(n_tokens, 20_000) if quick else n_tokens
    pair = lrt.demo_pair(device=device) if source is None or target is None else lrt.ModelPair.load(source, target, device=device)
    texts = lrt.demo_documents() if documents is None else list(iterate_documents(documents))
    saes = [demo_sae("small"), demo_sae("large")] if sae is None else [load_sae(folder) for folder in sae]
    hooks = [one.cfg.metadata.hook_name for one in saes]
    stitch = lrt.fit_stitches(pair, texts, source_layers=[hooks[0]], target_layers=[hooks[1]], n_tokens=n_tokens, null=False).best()
    matches = match_features(pair, stitch, saes[0], saes[1], texts, n_tokens=n_tokens, min_correlation=min_correlation)
    up = decoder_geometry(saes[0].W_dec, saes[1].W_dec, matches=matches, affine=stitch.up, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    up.figure().write_html(out / "decoder_geometry.html", include_plotlyjs=True)
    by_chance = chance_residual(PAPER["n_features"] ** 0.5, int(PAPER["n_features"]), int(PAPER["d_predictor"]))
    found = {
        "paper": PAPER | {"chance_for_unit_rows": by_chance},
        "ours": {"matches": repr(matches), "summary": up.summary.to_dict("records")},
        "says": SAYS,
    }
    (out / "decoder_geometry.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    logger.info("%s\n%s", matches, up.summary.round(3).to_string(index=False))
    logger.info("paper: 114 left; chance for unit rows of its shape: %.1f. %s\nOpen %s", by_chance, SAYS, out / "decoder_geometry.html")


def load_sae(folder: str) -> Any:
    """An SAE from a SAELens folder."""
    from sae_lens import SAE

    return SAE.load_from_disk(folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
