"""What the ways to cross model families are worth: anchors, shared vocabularies and no pairs at
all, beside a map fitted on aligned tokens.

    python examples/cross_family_baselines.py                                    # bundled pair, about four minutes on two cores
    python examples/cross_family_baselines.py --source A --target B --documents texts.jsonl
    --source-layer 3 --target-layer 3

Relative representations with their inverse (Moschella et al., arXiv 2209.15430; 2406.15057), anchor
projection (after Kim & Han, 2605.09875), zero-padded Procrustes and least squares on anchors
(Maiorca et al., 2311.00664), maps of embeddings and of unembeddings over the tokens that both
vocabularies spell (Lee et al., 2503.21073) and alignment without pairs (in the manner of
mini-vec2vec, 2510.02348) each become a stitch; the same vector and the same probe go through all of
them. Beside them: ridge on all aligned tokens, ridge on the same anchors, token identity, every
method's own shuffled null, random directions.
"""

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import pandas as pd
import torch

import lrt_lens as lrt
from lrt_lens.baselines._anchor_methods import ANCHOR_METHODS
from lrt_lens.baselines._anchors import Anchors
from lrt_lens.baselines._evaluation import FamilyBaselines, evaluate_family_baselines, fitting_texts
from lrt_lens.baselines._shared_vocabulary import embedding_stitch
from lrt_lens.baselines._unpaired import MiniVec2Vec, unpaired_stitch
from lrt_lens.data._documents import iterate_documents
from lrt_lens.errors import MismatchError
from lrt_lens.models._pair import ModelPair
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run
from lrt_lens.stitching._grid import StitchGrid
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.stitching.solvers._shared_embeddings import Matrix, embedding_rows


@dataclass(frozen=True)
class Options(FigureOptions):
    """Which layers, how many anchors."""

    QUICK: ClassVar = {
        "n_tokens": 8_000,
        "n_anchors": 40,
        "n_unpaired": 400,
        "n_items": 6,
        "n_neutral": 6,
        "n_texts": 40,
    }
    UNUSED: ClassVar = frozenset({"sae"})

    n_tokens: int = 60_000
    """Tokens of the harvest: the ridge map is fitted on five sixths of them, all are judged on the
    rest.
    """
    source_layer: int = 2
    """Layer of the source."""
    target_layer: int = 3
    """Layer of the target."""
    n_anchors: int = 400
    """Texts that both models read."""
    n_unpaired: int = 3_000
    """Tokens of each model, from different texts, for the alignment without pairs."""
    words: int = 40
    """Words of an anchor: documents are cut there."""
    concept: str = "sentiment"
    """Bundled contrast set and items, `sentiment` or `mood`."""
    n_items: int = 60
    """Choice items."""
    n_neutral: int = 16
    """Texts on which damage is measured."""
    n_texts: int = 200
    """Texts that probes are learnt from and judged on, half each."""
    damage: float = 0.1
    """Nats per token at which vectors are compared."""


def reproduce(options: Options) -> Reproduction:
    """All stitches, then one table."""
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
    found = measured(pair, grid, all_stitches(pair, grid, documents, options), options)
    table = found.summary.set_index("method")
    others = table.drop(index=["native", "random", "token_identity", "ridge"])
    best = others["fraction_of_native"].idxmax()
    beaten = table.loc["ridge", "fraction_low"] > others["fraction_of_native"].max()
    verdict: Verdict = "holds" if beaten else "holds with a caveat"
    return Reproduction(
        name="cross_family_baselines",
        title="Ways to cross model families, beside a map of aligned tokens",
        paper="lrt_lens, baselines that cross families",
        claim="A map fitted on aligned tokens carries vectors and probes better than baselines that know texts, vocabularies or nothing at all.",
        compared=_compared(table, str(best)),
        says=(
            "One pair of models, one concept, one pair of layers, one draw of anchors. Methods see different amounts of data: "
            "`anchor_ridge` has the anchors' data "
            "without the method, ridge has all tokens. Anchor methods are fitted on means over texts and judged on tokens."
        ),
        verdict=verdict,
        because=(
            f"ridge keeps {table.loc['ridge', 'fraction_of_native']:.2f} of the native effect ({table.loc['ridge', 'fraction_low']:.2f} to "
            f"{table.loc['ridge', 'fraction_high']:.2f}), the best of the others, {best}, {others.loc[best, 'fraction_of_native']:.2f}; "
            "cosines on held-out tokens "
            f"{table.loc['ridge', 'cosine']:.2f} against at most {others['cosine'].max():.2f} ({others['cosine'].idxmax()})."
        ),
        figures={
            "Every method: prediction, steering, reading (crosses: its own null)": found.figure()
        },
        tables={"All that was measured": found.summary},
        details={
            "source_hook": found.source_hook,
            "target_hook": found.target_hook,
            "budget": found.budget,
        },
    )


def all_stitches(
    pair: ModelPair, grid: StitchGrid, documents: list[str], options: Options
) -> dict[str, Stitch]:
    """A stitch a method, all between the same two hook points, none from the test fold."""
    hooks = {"source_hook": options.source_layer, "target_hook": options.target_layer}
    texts = list(
        dict.fromkeys(
            " ".join(text.split()[: options.words])
            for text in fitting_texts(documents, grid.moments)
        )
    )
    texts = [text for text in texts if len(text.split()) >= min(10, options.words)]
    first, second, third = (
        texts[: options.n_anchors],
        texts[options.n_anchors : 2 * options.n_anchors],
        texts[2 * options.n_anchors :],
    )
    stitches = {"ridge": grid[options.source_layer, options.target_layer]}
    anchors = Anchors.read(pair, first, **hooks, seed=options.seed)
    stitches |= {method.name: anchors.stitch(method) for method in ANCHOR_METHODS}
    for matrix in matrices(pair):
        try:
            stitches[f"shared_{matrix}dings"] = embedding_stitch(
                pair, **hooks, matrix=matrix, texts=first, seed=options.seed
            )
        except MismatchError as error:
            print(f"left out: {error}")
    method = MiniVec2Vec(n_clusters=8, n_rounds=3, n_matching=5) if options.quick else MiniVec2Vec()
    third = third[: options.n_anchors] or first
    stitches["unpaired"] = unpaired_stitch(
        pair, second, third, **hooks, method=method, max_rows=options.n_unpaired, seed=options.seed
    )
    return stitches


def matrices(pair: ModelPair) -> list[Matrix]:
    """Both matrices, or one where both models tie them."""
    tied = all(
        torch.equal(embedding_rows(model, "embed"), embedding_rows(model, "unembed"))
        for model in (pair.source, pair.target)
    )
    return ["unembed"] if tied else ["unembed", "embed"]


def measured(
    pair: ModelPair, grid: StitchGrid, stitches: dict[str, Stitch], options: Options
) -> FamilyBaselines:
    """The three questions on the bundled concept; vector and probe are learnt from other texts than
    they are judged on.
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
        seed=options.seed,
    )


def _compared(table: pd.DataFrame, best: str) -> list[Compared]:
    """Ridge beside the best of the others, by each question."""
    others = table.drop(index=["native", "random", "token_identity", "ridge"])
    rows = []
    for quantity, column, stem in (
        ("steering at equal damage, share of native", "fraction_of_native", "fraction"),
        ("AUROC above ½, share of native", "share_of_native", "share"),
        ("cosine of predicted and true states, held-out tokens", "cosine", "cosine"),
    ):
        rival = best if column == "fraction_of_native" else str(others[column].idxmax())
        row = table.loc["ridge"]
        rows.append(
            Compared(
                f"{quantity} (ridge)",
                float(row[column]),
                low=float(row[f"{stem}_low"]),
                high=float(row[f"{stem}_high"]),
                control=float(others.loc[rival, column]),
                control_name=f"best of the others, {rival}",
            )
        )
    return rows


if __name__ == "__main__":
    run(reproduce)
