"""LRT, figure 3: maps from SAE codes (s2l) compared with maps from states (l2l).

    python examples/codes_to_states.py     # bundled models and SAE, about a minute on two cores

The paper (arXiv 2506.00653, §3.2 and table 2) gives final validation losses of 5.437 (from codes)
and 5.935 (from states), without a unit and without a baseline, and shows three steered features.
Here both maps are scored on the same held-out documents. Features of every frequency are steered
through both maps, and compared with the row of another feature and with a random direction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

import lrt_lens as lrt
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run


@dataclass(frozen=True)
class Options(FigureOptions):
    """Maps from codes and from states."""

    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 8_000, "n_features": 4, "n_texts": 2}
    n_tokens: int = 150_000
    """Tokens of each fit."""
    target_layer: int = 3
    """Layer of the target that both maps predict."""
    n_features: int = 48
    """Number of features that are steered."""
    n_texts: int = 16
    """Number of neutral texts on which they are steered."""


def reproduce(options: Options) -> Reproduction:
    """Fit both maps, score both, steer features through both."""
    pair, texts, coder = options.pair(), options.texts(), options.source_sae()
    stitch = options.grid(
        pair, texts, coder.cfg.metadata.hook_name, options.target_layer, null="none"
    ).best()
    codes = lrt.fit_code_map(pair, stitch, coder, texts, n_tokens=options.n_tokens)
    evaluation = lrt.evaluate_code_map(
        pair,
        stitch,
        coder,
        codes,
        texts,
        texts=lrt.demo_neutral()[: options.n_texts],
        n_features=options.n_features,
        n_tokens=options.n_tokens,
        seed=options.seed,
    )
    r2, effects = evaluation.table.set_index("arm"), evaluation.summary.set_index("measure")
    difference = effects.loc["agreement, s2l − l2l"]
    better_fit = bool(r2.loc["s2l", "r2"] > r2.loc["l2l", "r2"])
    steers_better = bool(difference["low"] > 0)
    verdict: Verdict = (
        "holds"
        if better_fit and steers_better
        else "holds with a caveat"
        if steers_better
        else "does not survive its null"
    )
    return Reproduction(
        name="codes_to_states",
        title="From SAE codes or from states: LRT's s2l beside its l2l",
        paper="LRT, figure 3",
        claim="Maps from SAE codes (s2l) fit better than maps from states (l2l), with losses of "
        "5.437 against 5.935, and steer better.",
        compared=compared_rows(r2, float(stitch.scores["r2_token"]), difference),
        says="Losses without a unit cannot be compared with R². Comparable is the order of the two "
        "maps, for this pair, these layers and this SAE. Agreement compares effects on the next "
        "token, not the topic of a generated text.",
        verdict=verdict,
        because=f"codes explain {r2.loc['s2l', 'r2']:.2f} of the target's variance, states "
        f"{r2.loc['l2l', 'r2']:.2f}; the agreement of feature effects under s2l minus that under "
        f"l2l is {difference['mean']:+.3f} "
        f"({difference['low']:+.3f} to {difference['high']:+.3f}).",
        figures={"R² of the maps, and agreement of the effects of features": evaluation.figure()},
        tables={
            "Maps on the test fold": evaluation.table,
            "Agreement of effects, mean over features": evaluation.summary,
            "Agreement of effects per feature": evaluation.features,
        },
        details={"map": repr(codes), "stitch": repr(stitch)},
    )


def compared_rows(r2: pd.DataFrame, token_r2: float, difference: pd.Series) -> list[Compared]:
    """R² of both maps with the paper's losses, and the difference of the feature effects."""
    return [
        Compared(
            "R² on held-out documents, from codes (paper: validation loss)",
            float(r2.loc["s2l", "r2"]),
            5.437,
            *_ends(r2.loc["s2l"], "r2"),
            control=float(r2.loc["reconstruction", "r2"]),
            control_name="from the SAE's reconstruction",
        ),
        Compared(
            "R² on held-out documents, from states (paper: validation loss)",
            float(r2.loc["l2l", "r2"]),
            5.935,
            *_ends(r2.loc["l2l"], "r2"),
            control=token_r2,
            control_name="token identity",
        ),
        Compared(
            "agreement of the effects of steered features, s2l minus l2l",
            float(difference["mean"]),
            "three features, in pictures",
            float(difference["low"]),
            float(difference["high"]),
        ),
    ]


def _ends(row: Any, name: str) -> tuple[float, float]:
    """The two ends of the 95% interval of a column."""
    return float(row[f"{name}_low"]), float(row[f"{name}_high"])


if __name__ == "__main__":
    run(reproduce)
