"""Stitching, figure 2 and table 3: does an SAE initialised by a transferred SAE need fewer FLOPs?

    python examples/sae_initialisation.py      # bundled pair and SAE, some minutes on two cores

Transferring Features with Model Stitching (arXiv 2506.06609) trains SAEs from scratch and from a
transferred SAE. It finds that the latter need 30 to 50% fewer FLOPs, including the stitch, to reach
about 90% explained variance. The training of the source's SAE is not counted. The second figure
shows both ways of counting: as in the paper, and with the source's SAE. Two more arms measure how
much of the gain comes from the geometry of any trained SAE: an SAE transferred through the map of
shuffled pairs, and one rotated at random. With a refit in closed form (ours) and its controls there
are three more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

import lrt_lens as lrt
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run

PAPER = "30–50% fewer near 90%"
BUNDLED_SAE_TOKENS = 400_000
"""Training rows of the bundled SAE of the small model."""
AT = 0.95
"""Threshold, as a fraction of the final explained variance from scratch."""
KNOWS_NOTHING = ("shuffled", "rotated")
"""Arms that do not use how the two models correspond."""
REFIT: dict[str, Any] = {"n_tokens": 10_000, "alphas": (0.1,), "n_alternations": 1}
"""Settings of the refit: few rows and one penalty, because its FLOPs are charged."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Training runs."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 6_000,
        "train_tokens": 2_048,
        "seeds": (0,),
        "lrs": (3e-3,),
    }
    target_layer: int | str | None = None
    """Layer at which SAEs are trained; by default 3 (bundled pair) or chosen by cross-validation.
    """
    train_tokens: int = 60_000
    """Training tokens per run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs."""
    batch_rows: int = 512
    """Rows per training step."""
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Learning rates of Adam; each arm takes the one with which it is fastest on another seed."""
    n_tokens: int = 30_000
    """Number of tokens of the harvest, whose FLOPs are charged."""
    source_sae_tokens: int | None = None
    """Tokens on which the source's SAE was trained, to count its FLOPs; known for the bundled SAE.
    """


def reproduce(options: Options) -> Reproduction:
    """Train SAEs from every initialisation and compare their FLOPs."""
    pair, texts, own = options.pair(), options.texts(), options.source_sae()
    target_layer = options.target_layer
    if target_layer is None and options.bundled:
        target_layer = 3  # the layer of the bundled SAE of the large model
    stitch = options.grid(pair, texts, own.cfg.metadata.hook_name, target_layer).best()
    charged = options.source_sae_tokens or (
        BUNDLED_SAE_TOKENS if options.bundled and options.sae is None else None
    )
    study = lrt.study_sae_initialisation(
        pair,
        stitch,
        own,
        texts,
        n_tokens=options.train_tokens,
        seeds=options.seeds,
        batch_rows=options.batch_rows,
        lrs=options.lrs,
        refit=lrt.SAERefit(pair, texts, lrt.RefitSettings(**REFIT)),
        source_sae_tokens=charged,
    )
    at = study.savings[np.isclose(study.savings["share_of_final"], AT)].set_index("arm")
    verdict, because = judged(study, at)
    return Reproduction(
        name="sae_initialisation",
        title="Initialisation of an SAE: from scratch, transferred, refitted, or without a map",
        paper="Stitching, figure 2 and table 3",
        claim="An SAE initialised by a transferred SAE needs 30–50% fewer FLOPs, including the "
        "stitch, to reach about 90% explained variance.",
        compared=compared_rows(study, at),
        says="Widths and token counts are thousands of times smaller than the paper's. "
        "Thresholds are fractions of the value that scratch reaches here; intervals are the "
        "range over seeds. A source SAE that exists already costs nothing; one that is trained "
        "for this purpose costs the FLOPs of the second way of counting.",
        verdict=verdict,
        because=because,
        figures={
            "Held-out explained variance over training tokens, and cosine of decoder rows to "
            "their initial values": study.figure(),
            "FLOPs saved over scratch, without and with the source's SAE": study.figure("savings"),
        },
        tables={
            "Summary": study.summary,
            "FLOPs saved": study.savings,
            "Thresholds": study.thresholds,
            "Runs": study.runs,
        },
        details={
            "stitch": repr(stitch),
            "stitch_flops": study.stitch_flops,
            "source_sae_flops": study.source_sae_flops,
            "source_sae_tokens": charged,
        },
    )


def judged(study: lrt.SAEInitialisation, at: pd.DataFrame) -> tuple[Verdict, str]:
    """The verdict and the sentence with its numbers."""
    saved, control = float(at.loc["transferred", "saved"]), control_saving(at)
    saved_charged = float(at.loc["transferred", "saved_charged"])
    verdict: Verdict = (
        "does not survive its null"
        if not saved > max(control, 0.0)
        else "holds"
        if saved >= 0.3 and saved_charged > 0
        else "holds with a caveat"
    )
    controls = f"save at best {100 * control:.0f}%" if np.isfinite(control) else "never reach it"
    cost = (
        f"{1 - saved_charged:.1f} times the FLOPs of scratch"
        if np.isfinite(saved_charged)
        else "an unknown number of FLOPs (give --source-sae-tokens)"
    )
    flops = flops_per_run(study)
    because = (
        f"to reach {AT:.0%} of the final value of scratch, the transferred initialisation "
        f"saves {100 * saved:.0f}% of the FLOPs, while shuffled or rotated ones {controls}; "
        f"including the source's SAE it costs {cost}. A run takes {flops:.1e} FLOPs, the stitch "
        f"{study.stitch_flops:.1e}. Refitted in closed form the transferred SAE saves "
        f"{100 * float(at.loc['refitted', 'saved']):.0f}% with the refit charged, a random encoder "
        f"with the same refit {100 * float(at.loc['random_refitted', 'saved']):.0f}%."
    )
    return verdict, because


def compared_rows(study: lrt.SAEInitialisation, at: pd.DataFrame) -> list[Compared]:
    """FLOPs saved, the cost of the stitch, dead features and cosines to the initial decoder."""
    control, transferred = control_saving(at), at.loc["transferred"]
    saved_charged = float(transferred["saved_charged"])
    arms = study.summary.set_index("arm")
    end_of_training = (
        ("dead features at the end, transferred", "dead_fraction", "more than scratch"),
        (
            "median cosine of decoder rows to their initial values, transferred",
            "cosine_median",
            "higher than scratch",
        ),
    )
    return [
        Compared(
            f"FLOPs saved to {AT:.0%} of the final explained variance of scratch, with the stitch",
            float(transferred["saved"]),
            PAPER,
            float(transferred["low"]),
            float(transferred["high"]),
            control=control if np.isfinite(control) else "not reached",
            control_name="shuffled or rotated",
        ),
        Compared(
            "FLOPs saved by the refitted SAE, with the stitch and the refit",
            float(at.loc["refitted", "saved"]),
            "not done",
            float(at.loc["refitted", "low"]),
            float(at.loc["refitted", "high"]),
            control=float(at.loc["random_refitted", "saved"]),
            control_name="random encoder, refitted",
        ),
        Compared(
            "FLOPs saved with the stitch and the source's SAE",
            saved_charged if np.isfinite(saved_charged) else "not known",
            "not counted",
        ),
        Compared(
            "FLOPs of the stitch ÷ FLOPs of one training run (table 3)",
            study.stitch_flops / flops_per_run(study),
            "0.012 (1.4e15 of 1.2e17)",
        ),
        *(
            Compared(
                quantity,
                float(arms.loc["transferred", column]),
                paper,
                control=float(arms.loc["scratch", column]),
                control_name="scratch",
            )
            for quantity, column, paper in end_of_training
        ),
    ]


def flops_per_run(study: lrt.SAEInitialisation) -> float:
    """FLOPs of one training run from scratch."""
    return float(study.history.loc[study.history["arm"] == "scratch", "flops"].max())


def control_saving(at: pd.DataFrame) -> float:
    """The largest saving of a control; -inf if no control reaches the threshold."""
    saved = [float(at.loc[arm, "saved"]) for arm in KNOWS_NOTHING if arm in at.index]
    return max((value for value in saved if np.isfinite(value)), default=-np.inf)


if __name__ == "__main__":
    run(reproduce)
