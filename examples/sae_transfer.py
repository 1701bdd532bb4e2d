r"""Stitching, table 2: a transferred SAE, compared with the target's own SAE and with controls.

    python examples/sae_transfer.py                 # bundled pair and SAEs, about a minute
    # with an SAE of yours, a folder in SAELens' format
    python examples/sae_transfer.py --source EleutherAI/pythia-70m-deduped \
        --target EleutherAI/pythia-160m-deduped --sae my-sae --documents corpus.jsonl

The SAE of the source is transferred through the stitch (Transferring Features with Model Stitching,
arXiv 2506.06609) and reconstructs the activations of the target. Controls are the same SAE through
the map of shuffled pairs and through random maps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

import lrt_lens as lrt
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run

PAPER: list[dict[str, Any]] = [
    {
        "pair": "Pythia 70m → 160m",
        "l0": (16.0, 16.0),
        "fvu": (0.17, 0.52),
        "delta_ce": (0.36, 2.16),
        "dead": ("5.2%", "2.9%"),
    },
    {
        "pair": "GPT-2 small → medium",
        "l0": (32.0, 32.0),
        "fvu": (0.11, 0.39),
        "delta_ce": (0.08, 0.96),
        "dead": ("<1%", "<1%"),
    },
    {
        "pair": "Gemma-2 2B → 9B",
        "l0": (77.2, 74.7),
        "fvu": (0.21, 0.42),
        "delta_ce": (0.50, 0.85),
        "dead": ("1.5%", "3.5%"),
    },
]
"""Table 2: per pair and metric, (source's SAE on the source, transferred SAE on the target)."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """The target's SAE, and the text of the evaluation."""

    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 6_000, "loss_tokens": 800, "n_random": 2}
    target_sae: str | None = None
    """SAE of the target, a SAELens folder; by default the bundled one, for the bundled pair."""
    loss_tokens: int = 20_000
    """Number of tokens of the evaluation."""
    n_random: int = 20
    """Number of random maps."""


def reproduce(options: Options) -> Reproduction:
    """Fit the stitch, transfer the SAE, evaluate all arms."""
    pair, texts, own = options.pair(), options.texts(), options.source_sae()
    with_native = options.target_sae is not None or (options.bundled and options.sae is None)
    native = options.load_sae(options.target_sae, "--target-sae", "large") if with_native else None
    source_hook = own.cfg.metadata.hook_name
    target_hook = None if native is None else native.cfg.metadata.hook_name
    stitch = options.grid(pair, texts, source_hook, target_hook).best()
    result = lrt.evaluate_sae(
        pair,
        stitch,
        own,
        texts,
        native=native,
        n_random=options.n_random,
        n_tokens=options.loss_tokens,
        seed=options.seed,
    )
    arms = result.table.set_index("arm")
    gaps = {arm: result.difference("transferred", arm) for arm in ("shuffled", "random")}
    beats = all(gap.high < 0 for gap in gaps.values())
    verdict: Verdict = "holds with a caveat" if beats else "does not survive its null"
    best = "native" if native is not None else "source"
    return Reproduction(
        name="sae_transfer",
        title="An SAE transferred to the large model, without training",
        paper="Stitching, table 2",
        claim="A transferred SAE reconstructs the larger model's activations zero-shot: worse "
        "than on its own model, but with the same sparsity and few dead features.",
        compared=compared_rows(arms, best),
        says="This compares the loss of the transferred SAE with that of an SAE trained on the "
        "target, and of the same SAE through maps without information. The paper's models, SAEs "
        "(32k features, billions of tokens) and losses differ: the order of the arms can be "
        "compared, not the sizes.",
        verdict=verdict,
        because=f"transferred minus random maps: {gaps['random'].value:+.2f} nats "
        f"({gaps['random'].low:+.2f} to {gaps['random'].high:+.2f}), minus shuffled pairs: "
        f"{gaps['shuffled'].value:+.2f}; but it adds {arms.loc['transferred', 'delta_ce']:.2f} "
        f"nats, while the {best} SAE adds {arms.loc[best, 'delta_ce']:.2f}, and random maps alone "
        f"recover {arms.loc['random', 'ce_recovered']:.2f} of the loss.",
        figures={"Every metric per arm, with 95% intervals": result.figure()},
        tables={
            "All arms": result.table,
            "The paper's table 2 (own, transferred)": pd.DataFrame(PAPER),
        },
        details={"stitch": repr(stitch)},
    )


def compared_rows(arms: pd.DataFrame, best: str) -> list[Compared]:
    """Added loss, FVU and recovered loss of the transferred SAE, and added loss of the best SAE."""
    metrics = (
        ("loss added by the reconstruction, nats per token (paper: Pythia)", "delta_ce", 2.16),
        ("FVU", "fvu", 0.52),
        ("loss recovered, relative to mean ablation", "ce_recovered", None),
    )
    transferred = arms.loc["transferred"]
    return [
        *(
            Compared(
                quantity,
                float(transferred[name]),
                paper,
                float(transferred[f"{name}_low"]),
                float(transferred[f"{name}_high"]),
                control=float(arms.loc["random", name]),
                control_name="same SAE through random maps",
            )
            for quantity, name, paper in metrics
        ),
        Compared(
            f"loss added by the {best} SAE, nats per token",
            float(arms.loc[best, "delta_ce"]),
            0.36 if best == "source" else None,
        ),
    ]


if __name__ == "__main__":
    run(reproduce)
