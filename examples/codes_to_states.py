"""LRT's s2l beside its l2l (figure 3): from SAE codes, or from states? Held-out R², and what
features do under either map.

    python examples/codes_to_states.py            # bundled models and SAE, about a minute on two cores

The paper (arXiv 2506.00653, §3.2 and table 2) gives final validation losses of 5.437 (from codes)
and 5.935 (from states), of unstated unit and without a baseline, and shows three steered features.
Here both maps are scored on the same documents, which neither saw, and features drawn at every
frequency are steered under both, beside another feature's row and a random direction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import lrt_lens as lrt
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run


@dataclass(frozen=True)
class Options(FigureOptions):
    """Maps from codes and from states."""

    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 8_000, "n_features": 4, "n_texts": 2}
    n_tokens: int = 150_000
    """Tokens of either fit."""
    target_layer: int = 3
    """Where the maps end."""
    n_features: int = 48
    """Features that are steered."""
    n_texts: int = 16
    """Neutral texts that they are steered on."""


def reproduce(options: Options) -> Reproduction:
    """Fit both maps, score both, steer features under both."""
    pair, texts, coder = options.pair(), options.texts(), options.source_sae()
    stitch = options.grid(
        pair, texts, coder.cfg.metadata.hook_name, options.target_layer, null="none"
    ).best()
    codes = lrt.fit_code_map(pair, stitch, coder, texts, n_tokens=options.n_tokens)
    found = lrt.evaluate_code_map(
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
    r2, effects = found.table.set_index("arm"), found.summary.set_index("measure")
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
    values = {name: float(r2.loc[name, "r2"]) for name in ("s2l", "l2l", "reconstruction")}
    return Reproduction(
        name="codes_to_states",
        title="From SAE codes or from states: LRT's s2l beside its l2l",
        paper="LRT, figure 3",
        claim="Maps from SAE codes (s2l) fit better than maps from states (l2l), with losses of 5.437 against 5.935, and steer better.",
        compared=[
            Compared(
                "R² on documents that neither saw, from codes (paper: validation loss)",
                values["s2l"],
                5.437,
                *_ends(r2.loc["s2l"], "r2"),
                control=values["reconstruction"],
                control_name="from the SAE's reconstruction",
            ),
            Compared(
                "the same from states",
                values["l2l"],
                5.935,
                *_ends(r2.loc["l2l"], "r2"),
                control=float(stitch.scores["r2_token"]),
                control_name="token identity",
            ),
            Compared(
                "agreement of steered features' effects, s2l minus l2l",
                float(difference["mean"]),
                "three features, in pictures",
                float(difference["low"]),
                float(difference["high"]),
            ),
        ],
        says="Losses of unknown unit cannot be set beside R²: what can be compared is the order of the two maps, on this pair, at these "
        "layers and for this SAE; "
        "agreement compares effects on the next token, not what a generated text is about.",
        verdict=verdict,
        because=f"codes explain {values['s2l']:.2f} of the target's variance, states {values['l2l']:.2f}; effects of features agree by "
        f"{difference['mean']:+.3f} "
        f"({difference['low']:+.3f} to {difference['high']:+.3f}) more under s2l.",
        figures={"R² of the maps, and agreement of what features do": found.figure()},
        tables={
            "Maps on the test fold": found.table,
            "Features": found.summary,
            "Feature by feature": found.features,
        },
        details={"map": repr(codes), "stitch": repr(stitch)},
    )


def _ends(row: Any, name: str) -> tuple[float, float]:
    return float(row[f"{name}_low"]), float(row[f"{name}_high"])


if __name__ == "__main__":
    run(reproduce)
