r"""Stitching, table 2: an SAE carried over, beside the one the target would have learnt and its
controls.

python examples/sae_transfer.py                                # bundled pair and SAEs, about a minute
python examples/sae_transfer.py --source EleutherAI/pythia-70m-deduped --target
EleutherAI/pythia-160m-deduped \
        --sae my-sae --documents corpus.jsonl                     # a folder in SAELens' format
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
"""Table 2: (source's SAE on the source, transferred on the target)."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Which SAE goes where, and how much text it is judged on."""

    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 6_000, "loss_tokens": 800}
    target_sae: str | None = None
    """SAE of the target to compare with, a folder in SAELens' format; the bundled one beside the
    bundled pair.
    """
    loss_tokens: int = 20_000
    """Counted tokens of the evaluation."""


def reproduce(options: Options) -> Reproduction:
    """Fit, transfer, evaluate."""
    pair, texts, own = options.pair(), options.texts(), options.source_sae()
    with_native = options.target_sae is not None or (options.bundled and options.sae is None)
    native = options.load_sae(options.target_sae, "--target-sae", "large") if with_native else None
    hook = own.cfg.metadata.hook_name
    stitch = options.grid(
        pair, texts, hook, None if native is None else native.cfg.metadata.hook_name
    ).best()
    result = lrt.evaluate_sae(
        pair, stitch, own, texts, native=native, n_tokens=options.loss_tokens, seed=options.seed
    )
    arms = result.table.set_index("arm")
    gaps = {arm: result.difference("transferred", arm) for arm in ("shuffled", "random")}
    beats = all(gap.high < 0 for gap in gaps.values())
    verdict: Verdict = "holds with a caveat" if beats else "does not survive its null"
    at = lambda arm, name: float(arms.loc[arm, name])  # noqa: E731
    best = "native" if native is not None else "source"
    return Reproduction(
        name="sae_transfer",
        title="An SAE carried to the large model, without training",
        paper="Stitching, table 2",
        claim="A transferred SAE reconstructs the larger model zero-shot: worse than on its own model, with the same sparsity and few dead features.",
        compared=[
            Compared(
                "loss added by the reconstruction, nats a token (paper: Pythia)",
                at("transferred", "delta_ce"),
                2.16,
                at("transferred", "delta_ce_low"),
                at("transferred", "delta_ce_high"),
                control=at("random", "delta_ce"),
                control_name="same SAE through random maps",
            ),
            Compared(
                "FVU",
                at("transferred", "fvu"),
                0.52,
                at("transferred", "fvu_low"),
                at("transferred", "fvu_high"),
                control=at("random", "fvu"),
                control_name="random maps",
            ),
            Compared(
                "loss recovered, share of mean ablation",
                at("transferred", "ce_recovered"),
                None,
                at("transferred", "ce_recovered_low"),
                at("transferred", "ce_recovered_high"),
                control=at("random", "ce_recovered"),
                control_name="random maps",
            ),
            Compared(
                f"loss added by the {best} SAE, nats a token",
                at(best, "delta_ce"),
                0.36 if best == "source" else None,
            ),
        ],
        says="Does the transferred SAE lose little more than one trained on the target, and far less than the same SAE through a map that "
        "knows nothing? The paper's "
        "models, SAEs (32k features, billions of tokens) and losses are others: the comparison shows the order of the arms, not the size.",
        verdict=verdict,
        because=f"transferred minus random maps: {gaps['random'].value:+.2f} nats ({gaps['random'].low:+.2f} to {gaps['random'].high:+.2f}), "
        f"minus shuffled {gaps['shuffled'].value:+.2f}; "
        f"but it adds {at('transferred', 'delta_ce'):.2f} nats where the {best} SAE adds {at(best, 'delta_ce'):.2f}, and random maps "
        f"alone recover {at('random', 'ce_recovered'):.2f} of the loss.",
        figures={"Every metric by arm, with 95% intervals": result.figure()},
        tables={
            "All arms": result.table,
            "The paper's table 2 (own, transferred)": pd.DataFrame(PAPER),
        },
        details={"stitch": repr(stitch)},
    )


if __name__ == "__main__":
    run(reproduce)
