r"""Maps across model families without aligned tokens, compared with a map of aligned tokens.

    # bundled pair, about four minutes on two cores
    python examples/cross_family_baselines.py
    python examples/cross_family_baselines.py --source A --target B --documents texts.jsonl \
        --source-layer 3 --target-layer 3

Each method becomes a stitch, and the same vector and the same probe are transferred through each:

- relative representations with their inverse (Moschella et al., arXiv 2209.15430; 2406.15057)
- anchor projection (after Kim & Han, 2605.09875)
- zero-padded Procrustes and least squares on anchors (Maiorca et al., 2311.00664)
- maps of embeddings and of unembeddings over tokens in both vocabularies (Lee et al., 2503.21073)
- alignment without pairs (in the manner of mini-vec2vec, 2510.02348)

They are compared with ridge on all aligned tokens, ridge on the same anchors, token identity, the
shuffled null of every method, and random directions.
"""

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import pandas as pd
import torch

import lrt_lens as lrt
from lrt_lens.baselines import (
    ANCHOR_METHODS,
    Anchors,
    FamilyBaselines,
    MiniVec2Vec,
    embedding_stitch,
    evaluate_family_baselines,
    fitting_texts,
    unpaired_stitch,
)
from lrt_lens.data import iterate_documents
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run
from lrt_lens.stitching import Stitch, StitchGrid
from lrt_lens.stitching.solvers import Matrix, embedding_rows


@dataclass(frozen=True)
class Options(FigureOptions):
    """Layers, anchors and sizes of the evaluation."""

    QUICK: ClassVar = {
        "n_tokens": 8_000,
        "n_anchors": 40,
        "n_unpaired": 400,
        "n_items": 6,
        "n_neutral": 6,
        "n_texts": 40,
        "n_draws": 1,
        "n_contrast_groups": 2,
    }
    UNUSED: ClassVar = frozenset({"sae"})

    n_tokens: int = 60_000
    """Tokens of the harvest: ridge is fitted on five sixths; every method is judged on the rest."""
    source_layer: int = 2
    """Layer of the source."""
    target_layer: int = 3
    """Layer of the target."""
    n_anchors: int = 400
    """Number of anchors, texts that both models read."""
    n_unpaired: int = 3_000
    """Tokens per model, from different texts, for the alignment without pairs."""
    words: int = 40
    """Words per anchor: documents are cut after that many."""
    n_draws: int = 20
    """Number of draws of each control."""
    n_contrast_groups: int = 8
    """Groups of contrast pairs that are left out in turn, for the error that they cause."""
    concept: str = "sentiment"
    """Bundled contrast set and items, `sentiment` or `mood`."""
    n_items: int = 60
    """Number of choice items."""
    n_neutral: int = 16
    """Number of neutral texts on which damage is measured."""
    n_texts: int = 200
    """Number of texts for probes: half to learn from, half to judge on."""
    damage: float = 0.1
    """Damage at which vectors are compared, nats per token."""


def reproduce(options: Options) -> Reproduction:
    """Make all stitches and evaluate them in one table."""
    pair = options.pair()
    documents = list(islice(iterate_documents(options.texts()), 20 * options.n_anchors + 2_000))
    layers = {"source_layers": [options.source_layer], "target_layers": [options.target_layer]}
    grid = lrt.fit_stitches(
        pair,
        documents,
        n_tokens=options.n_tokens,
        null="full",
        seed=options.seed,
        progress=True,
        **layers,
    )
    evaluation = measured(pair, grid, all_stitches(pair, grid, documents, options), options)
    table = evaluation.summary.set_index("method")
    others = table.drop(index=["native", "random", "token_identity", "ridge"])
    best = _best(others, "fraction_of_native", "effect")
    beaten = table.loc["ridge", "fraction_low"] > others["fraction_of_native"].max()
    verdict: Verdict = "holds" if beaten else "holds with a caveat"
    return Reproduction(
        name="cross_family_baselines",
        title="Ways to cross model families, compared with a map of aligned tokens",
        paper="lrt_lens, baselines that cross families",
        claim="A map fitted on aligned tokens transfers vectors and probes better than baselines "
        "that know only texts, only vocabularies, or nothing at all.",
        compared=_compared(table, str(best)),
        says="One pair of models, one concept, one pair of layers, one draw of anchors. Methods "
        "see different amounts of data: `anchor_ridge` uses the data of the anchors without the "
        "method, ridge uses all tokens. Anchor methods are fitted on means over texts and judged "
        "on tokens.",
        verdict=verdict,
        because=(
            f"ridge keeps {table.loc['ridge', 'fraction_of_native']:.2f} of the native effect "
            f"({table.loc['ridge', 'fraction_low']:.2f} to "
            f"{table.loc['ridge', 'fraction_high']:.2f}), the best of the others ({best}) "
            f"{others.loc[best, 'fraction_of_native']:.2f}; the cosine on held-out tokens is "
            f"{table.loc['ridge', 'cosine']:.2f} for ridge and at most "
            f"{others['cosine'].max():.2f} for the others ({others['cosine'].idxmax()})."
        ),
        figures={
            "Prediction, steering and reading by every method (crosses: its null)": (
                evaluation.figure()
            )
        },
        tables={"All measurements": evaluation.summary},
        details={
            "source_hook": evaluation.source_hook,
            "target_hook": evaluation.target_hook,
            "budget": evaluation.budget,
        },
    )


def all_stitches(
    pair: ModelPair, grid: StitchGrid, documents: list[str], options: Options
) -> dict[str, Stitch]:
    """One stitch per method, all between the same hook points, none fitted on the test fold."""
    hooks = {"source_hook": options.source_layer, "target_hook": options.target_layer}
    texts = list(
        dict.fromkeys(
            " ".join(text.split()[: options.words])
            for text in fitting_texts(documents, grid.moments)
        )
    )
    texts = [text for text in texts if len(text.split()) >= min(10, options.words)]
    n = options.n_anchors
    first, second, third = texts[:n], texts[n : 2 * n], texts[2 * n :]
    stitches = {"ridge": grid[options.source_layer, options.target_layer]}
    anchors = Anchors.read(pair, first, **hooks, seed=options.seed)
    stitches |= {method.name: anchors.stitch(method) for method in ANCHOR_METHODS}
    for matrix in matrices(pair):
        try:
            stitches[f"shared_{matrix}dings"] = embedding_stitch(
                pair, **hooks, matrix=matrix, texts=first, seed=options.seed
            )
        except MismatchError as error:
            print(f"Omitted shared_{matrix}dings: {error}")
    method = MiniVec2Vec(n_clusters=8, n_rounds=3, n_matching=5) if options.quick else MiniVec2Vec()
    third = third[:n] or first
    stitches["unpaired"] = unpaired_stitch(
        pair, second, third, **hooks, method=method, max_rows=options.n_unpaired, seed=options.seed
    )
    return stitches


def matrices(pair: ModelPair) -> list[Matrix]:
    """Both matrices, or only the unembedding if both models tie the two."""
    tied = all(
        torch.equal(embedding_rows(model, "embed"), embedding_rows(model, "unembed"))
        for model in (pair.source, pair.target)
    )
    return ["unembed"] if tied else ["unembed", "embed"]


def measured(
    pair: ModelPair, grid: StitchGrid, stitches: dict[str, Stitch], options: Options
) -> FamilyBaselines:
    """Prediction, steering and reading by every stitch, on the bundled concept.

    Vector and probe are learnt from one half of the contrast set and judged on the other.
    """
    contrast, items = lrt.demo_contrast(options.concept), lrt.demo_items(options.concept)
    learn, judge = contrast.split(0.5, seed=options.seed)
    share = min(0.999, options.n_items / len(items))
    some = items.split(share, seed=options.seed)[0] if options.n_items < len(items) else items
    half = options.n_texts // 4
    labelled = [
        (
            [*part.positive[:half], *part.negative[:half]],
            ["positive"] * len(part.positive[:half]) + ["negative"] * len(part.negative[:half]),
        )
        for part in (learn, judge)
    ]
    return evaluate_family_baselines(
        pair,
        stitches,
        moments=grid.moments,
        contrast=learn,
        items=some,
        neutral=lrt.demo_neutral()[: options.n_neutral],
        texts=labelled[0][0],
        labels=labelled[0][1],
        test_texts=labelled[1][0],
        test_labels=labelled[1][1],
        damage=options.damage,
        n_random=options.n_draws,
        n_shuffled=options.n_draws,
        n_contrast_groups=options.n_contrast_groups,
        seed=options.seed,
    )


def _best(table: pd.DataFrame, column: str, fallback: str) -> str:
    """Return the method with the largest number; by another column if that has none."""
    return str(table[column if table[column].notna().any() else fallback].idxmax())


def _compared(table: pd.DataFrame, best: str) -> list[Compared]:
    """Ridge and the best of the other methods, for prediction, steering and reading."""
    others = table.drop(index=["native", "random", "token_identity", "ridge"])
    rows = []
    for quantity, column, stem in (
        ("steering at equal damage, fraction of native", "fraction_of_native", "fraction"),
        ("AUROC above ½, fraction of native", "share_of_native", "share"),
        ("cosine of predicted and true states, held-out tokens", "cosine", "cosine"),
    ):
        # A native probe that may be at chance has no share; AUROCs rank the methods as well.
        other = best if column == "fraction_of_native" else _best(others, column, "auroc")
        row = table.loc["ridge"]
        rows.append(
            Compared(
                f"{quantity} (ridge)",
                float(row[column]),
                low=float(row[f"{stem}_low"]),
                high=float(row[f"{stem}_high"]),
                control=float(others.loc[other, column]),
                control_name=f"best of the others, {other}",
            )
        )
    return rows


if __name__ == "__main__":
    run(reproduce)
