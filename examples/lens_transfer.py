r"""Does a lens of the small model, transferred, read what the large model will say?

    python examples/lens_transfer.py                                   # bundled pair
    python examples/lens_transfer.py --source EleutherAI/pythia-70m-deduped \
        --target EleutherAI/pythia-160m-deduped --documents corpus.jsonl.gz

A logit lens and a Jacobian lens (fitted here on a few texts) of the small model read states of the
large one: down the stitch, then the small model's lens and head. They are compared with the large
model's final prediction, beside its own lens, the small model's lens on its own states, the map of
shuffled pairs, and the states that the current token alone predicts. The models must read the same
tokens.

None of the three papers transfers a lens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from transformer_lens.tools.analysis import JacobianLens

import lrt_lens as lrt
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run

CONTROLS = ("shuffled", "token identity")
NEAR = 0.9
"""Share of the agreement of the small model's lens on its own states that counts as near it."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """The two hook points, and the sizes."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 6_000,
        "read_tokens": 800,
        "n_prompts": 1,
        "target_layer": 3,
    }
    UNUSED: ClassVar = frozenset({"sae"})
    source_layer: int = 2
    """Layer of the small model."""
    target_layer: int | None = None
    """Layer of the large model; by default chosen by cross-validation."""
    read_tokens: int = 10_000
    """Number of read positions, from documents on which no map was fitted."""
    n_prompts: int = 12
    """Number of texts on which a Jacobian lens is fitted."""


def reproduce(options: Options) -> Reproduction:
    """Transfer both lenses and compare what they read."""
    pair, texts = options.pair(), options.texts()
    grid = options.grid(pair, texts, options.source_layer, options.target_layer)
    stitch = grid.best()
    token = lrt.token_identity_map(grid.moments, stitch.target_hook)
    results = {
        kind: lrt.evaluate_lens(
            pair,
            stitch,
            source,
            texts,
            target_lens=target,
            token_map=token,
            n_tokens=options.read_tokens,
            seed=options.seed,
        )
        for kind, (source, target) in lenses(pair, stitch, texts, options).items()
    }
    tops = {kind: final_top5(result) for kind, result in results.items()}
    gaps = {
        kind: [result.difference("transferred", control) for control in CONTROLS]
        for kind, result in results.items()
    }
    beaten = all(gap.low > 0 for both in gaps.values() for gap in both)
    near = all(top["transferred"] >= NEAR * top["source lens"] for top in tops.values())
    verdict: Verdict = (
        "does not survive its null" if not beaten else "holds" if near else "holds with a caveat"
    )
    numbers = "; ".join(
        f"{kind} lens: transferred {top['transferred']:.3f}, small model's own states "
        f"{top['source lens']:.3f}, token identity {top['token identity']:.3f}, shuffled "
        f"{top['shuffled']:.3f}, large model's own lens {top['target lens']:.3f}"
        for kind, top in tops.items()
    )
    return Reproduction(
        name="lens_transfer",
        title="What a transferred lens reads",
        paper="lrt_lens, lenses",
        claim="A lens of the small model, read through a stitch, names more of the large model's "
        "five likeliest next tokens than the current token tells, and nearly as many as the lens "
        "does on the small model's own states.",
        compared=[
            Compared(
                f"{kind} lens, share of the five likeliest tokens",
                top["transferred"],
                "none",
                control=top["token identity"],
                control_name="token identity",
            )
            for kind, top in tops.items()
        ],
        says="This shows agreement with a prediction, not that the large model computes with what "
        "the lens reads. The large model's own lens, which needs no stitch, is the better one "
        "where it exists. The Jacobian lenses are fitted on few texts.",
        verdict=verdict,
        because=f"shares of the five likeliest tokens: {numbers}.",
        figures={
            f"Agreement of the {kind} lens, with 95% intervals over documents": result.figure()
            for kind, result in results.items()
        },
        tables={f"{kind} lens": result.table for kind, result in results.items()},
        details={"stitch": repr(stitch)},
    )


def lenses(
    pair: lrt.ModelPair, stitch: lrt.Stitch, texts: Any, options: Options
) -> dict[str, tuple[lrt.Lens, lrt.Lens]]:
    """Return the lenses (source, target) by kind."""
    logit = (lrt.Lens.logit(pair.source.identity), lrt.Lens.logit(pair.target.identity))
    prompts = [str(text) for text in list(texts)[: options.n_prompts]]
    fitted = []
    for model, hook in ((pair.source, stitch.source_hook), (pair.target, stitch.target_hook)):
        layer = int(hook.split(".")[1])
        # The layer after the last block needs no map, and a Jacobian lens has none there.
        wanted = min(layer, model.n_layers - 2)
        lens = JacobianLens.fit(
            model.bridge,
            prompts,
            corpus="documents of the harvest",
            source_layers=[wanted],
            max_seq_len=96,
            show_progress=False,
        )
        fitted.append(lrt.Lens.jacobian(lens, model.identity))
    return {"logit": logit, "Jacobian": (fitted[0], fitted[1])}


def final_top5(result: lrt.LensEvaluation) -> dict[str, float]:
    """Return the agreement of each arm with the large model's final prediction."""
    rows = pd.DataFrame(result.table[result.table["reference"] == "final prediction"])
    return dict(zip(rows["arm"].tolist(), rows["top5"].tolist(), strict=True))


if __name__ == "__main__":
    run(reproduce)
