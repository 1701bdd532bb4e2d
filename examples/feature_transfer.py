"""Which SAE features survive a stitch? Figures 4, 5, 14 and 16 of Transferring Features with Model Stitching, on any pair of models.

    python examples/feature_transfer.py --out feature-report        # bundled pair and SAE, a few minutes on two cores
    python examples/feature_transfer.py --source gpt2 --target gpt2-medium --sae SAE_FOLDER --documents TEXTS.jsonl

For every feature of an SAE of the source and its transferred twin: the correlation over positions of what they do for the next token (activation
times logit weight), beside the same of an SAE of random directions, of the map fitted on shuffled pairs and of another feature; whether it follows the
structure of a sentence or its content (content words are exchanged instead of a language model's rewrites); what ρ_write and ρ_read foretold from the
moments; the share of its decoder row in the unembedding's null space; and for a few features what they do to attention to BOS in later heads.

Without ``--sae`` the SAE that comes with the bundled source model is taken. The stitch starts at the SAE's hook point.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

import lrt_lens as lrt
from lrt_lens.adapters.sae.bundled import demo_sae
from lrt_lens.evaluation.features.evaluate import evaluate_features
from lrt_lens.evaluation.features.result import FeatureEvaluation
from lrt_lens.report.html import Paragraph, Plot, Section, Table, render_html, write_html

logger = logging.getLogger("feature_transfer")

PAPER = [
    {
        "finding": "structural features transfer more consistently than semantic ones (figures 4b, 15; densities, no numbers printed)",
        "paper": "structural features sit at high correlations, semantic ones at both ends",
    },
    {"finding": "transferred features above a random SAE (figure 14; histograms, no numbers printed)", "paper": "histograms only"},
    {
        "finding": "decoder share in the null space of W_U, a gpt2-small feature before → after (figure 5)",
        "paper": ".27 → .77 for the attention-deactivation feature; two entropy features keep theirs",
    },
]
WHAT_IT_SHOWS = (
    "The order of kinds and baselines can be compared with the paper's; the sizes cannot, because models, SAE, text and the way of rewriting "
    "sentences differ, and dense features correlate better whatever they mean."
)


def main(
    source: str | None = None, target: str | None = None, sae: Path | None = None, documents: str | None = None, layer: int = 2,
    n_tokens: int = 150_000, n_feature_tokens: int = 40_000, n_sentences: int = 300, n_attention: int = 8, n_pages: int = 3,
    out: Path = Path("feature-report"), seed: int = 0, device: str | None = None, quick: bool = False,
) -> None:  # fmt: skip
    """Carry every feature over and compare.

    Args:
        source: small model, a hub id or folder; the bundled one without it.
        target: large model.
        sae: folder of a SAELens SAE of the source; the bundled one without it.
        documents: text file or data set; the bundled text without it.
        layer: where the SAE sits, if its own metadata do not say.
        n_tokens: tokens of the harvest that the map is fitted on.
        n_feature_tokens: positions of the test fold that features are measured at.
        n_sentences: sentences to rewrite.
        n_attention: features whose effect on attention is measured.
        n_pages: feature pages: the best kept, the middle and the least kept among the features of the larger half of densities.
        out: folder for features.html, features.csv, features.json and feature-N.html.
        seed: of folds, random SAE and bootstraps.
        device: where the models run.
        quick: few tokens: shows that it runs.
    """
    if quick:
        n_tokens, n_feature_tokens, n_sentences, n_attention = 20_000, 3_000, 30, 2
    pair = lrt.demo_pair() if source is None or target is None else lrt.ModelPair.load(source, target, device=device)
    texts: Any = lrt.demo_documents() if documents is None else documents
    dictionary = load_sae(sae)
    at = getattr(dictionary.cfg.metadata, "hook_name", None) or layer
    grid = lrt.fit_stitches(pair, texts, source_layers=[at], n_tokens=n_tokens, null="full", seed=seed)
    stitch = grid.best()
    features = evaluate_features(
        pair, stitch, dictionary, texts, n_tokens=n_feature_tokens, n_sentences=n_sentences, attention_features=n_attention, seed=seed
    )
    out.mkdir(parents=True, exist_ok=True)
    features.table.to_csv(out / "features.csv", index=False)
    compared = pd.DataFrame(beside_paper(features))
    write_html(out / "features.html", report(features, compared, repr(stitch)))
    pages = [features.page(index).save(out / f"feature-{index}.html") for index in shown_features(features, n_pages)]
    (out / "features.json").write_text(json.dumps(record(features, compared, repr(stitch)), indent=1, default=float), encoding="utf-8")
    logger.info(
        "%s\n%s\n%s\n%s\nOpen %s and %s", stitch, features.summary.round(3).to_string(index=False),
        features.predictors.round(3).to_string(index=False), compared.to_string(index=False), out / "features.html", pages,
    )  # fmt: skip


def load_sae(folder: Path | None) -> Any:
    """A SAELens SAE from its folder, or the bundled one."""
    if folder is None:
        return demo_sae("small")
    from sae_lens import SAE

    return SAE.load_from_disk(str(folder))


def beside_paper(features: FeatureEvaluation) -> list[dict[str, object]]:
    """The paper's findings with ours beside them."""
    summary = features.summary.set_index("features")
    every = summary.loc["all"]
    kinds = [kind for kind in ("structural", "semantic") if kind in summary.index]
    ours = "; ".join(
        f"{kind} {summary.loc[kind, 'attribution_r']:.2f} ({summary.loc[kind, 'low']:.2f} to {summary.loc[kind, 'high']:.2f}, "
        f"{summary.loc[kind, 'n']} features)"
        for kind in kinds
    )
    top = features.live.sort_values("entropy_share_source", ascending=False).head(5)
    shares = ", ".join(f"{a:.2f} → {b:.2f}" for a, b in zip(top["entropy_share_source"], top["entropy_share_target"], strict=True))
    fair = features.structural_advantage
    ours += f"; at equal density structural ones lead by {fair.value:.2f} ({fair.low:.2f} to {fair.high:.2f})"
    random = f"{every['attribution_r']:.2f} ({every['low']:.2f} to {every['high']:.2f}) against {every['attribution_r_random']:.2f}"
    baseline = features.entropy_share_random
    found = [f"mean attribution correlation: {ours}", random, f"{shares}; a random direction {baseline[0]:.2f} → {baseline[1]:.2f}"]
    return [row | {"ours": value} for row, value in zip(PAPER, found, strict=True)]


def shown_features(features: FeatureEvaluation, n: int) -> list[int]:
    """Features from the best kept to the least kept, among those of the larger half of densities."""
    live = features.live.dropna(subset=["attribution_r"])
    dense = live.loc[live["density_source"] >= live["density_source"].median()].sort_values("attribution_r", ascending=False)
    places = [round(place * (len(dense) - 1) / max(1, n - 1)) for place in range(min(n, len(dense)))]
    return [int(dense["feature"].iloc[place]) for place in places]


def report(features: FeatureEvaluation, compared: pd.DataFrame, stitch: str) -> str:
    """One page with all figures."""
    body = [
        Section(
            "Do features do the same?", [Plot(features.figure(), "Each line: a density over features."), Table(features.summary.round(3))]
        ),
        Section("Beside the paper", [Table(compared), Paragraph(WHAT_IT_SHOWS)]),
        Section(
            "Foretold from moments",
            [Plot(features.fidelity_figure()), Table(features.predictors.round(3), "Rank correlation over features")],
        ),
        Section("Entropy features", [Plot(features.entropy_figure())]),
    ]
    if len(features.attention):
        body.append(Section("Attention", [Plot(features.attention_figure()), Table(features.heads.round(4))]))
    return render_html("SAE features carried over", body, subtitle=stitch)


def record(features: FeatureEvaluation, compared: pd.DataFrame, stitch: str) -> dict[str, object]:
    """What features.json holds."""
    return {
        "stitch": stitch, "n_positions": features.n_tokens, "summary": features.summary.to_dict("records"),
        "predictors": features.predictors.to_dict("records"), "heads": features.heads.to_dict("records"),
        "entropy_share_random": features.entropy_share_random, "beside_paper": compared.to_dict("records"), "what_it_shows": WHAT_IT_SHOWS,
    }  # fmt: skip


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
