"""Does a transferred SAE save training? Four initialisations, the same rows, the tokens and FLOPs
to each threshold (Stitching, figure 2).

    study = study_sae_initialisation(pair, stitch, sae, documents, n_tokens=100_000, seeds=(0, 1,
    2))
    study.summary       # arm, tokens to 95% of scratch's final explained variance, share of scratch's, final value, dead features
    study.thresholds    # the same for every threshold, seed by seed, in tokens and in FLOPs with the stitch's cost
    study.savings       # share of scratch's FLOPs saved, with and without the source's SAE on the bill

Arms: ``scratch``; ``transferred``; ``shuffled`` (through the map of shuffled pairs); ``rotated``
(through a random semi-orthogonal matrix: the geometry of a trained SAE that knows nothing of the
target). All have the same architecture, rows, order of rows and learning rate.

FLOPs are those of training steps. ``flops_with_stitch`` adds what fitting the maps took
(`stitch_flops`) to the two arms that begin with fitted maps; the source's SAE is charged in
``source_sae_flops`` of the study, where its training tokens are known, and in no row. As in the
paper, forward passes of the language models are charged to no arm. Thresholds are measured on
documents that the stitch was not fitted on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from lrt_lens._repr_html import card, note, table
from lrt_lens.adapters.saes._evaluation import refuse_foreign_sae
from lrt_lens.adapters.saes._random_maps import random_rotation
from lrt_lens.adapters.saes._rows import SAERows
from lrt_lens.adapters.saes._training import config_like, tokens_to, train_sae
from lrt_lens.data._documents import Documents
from lrt_lens.errors import MismatchError
from lrt_lens.figures._sae import initialisation_figure, savings_figure
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._stitch import Stitch

STUDY_ARMS = ("scratch", "transferred", "shuffled", "rotated")
UNSTITCHED = ("scratch", "rotated")
"""Arms that begin without a fitted map, and pay for none."""
SHARE = 0.95
"""Of scratch's final explained variance: the threshold that the summary is about."""


@dataclass(frozen=True)
class SAEInitialisation:
    """Training runs from every initialisation."""

    history: pd.DataFrame = field(repr=False)
    """A row per arm, seed and measurement: arm, seed, tokens, flops, explained_variance, l0,
    dead_fraction.
    """
    thresholds: pd.DataFrame
    """A row per arm, seed and threshold: arm, seed, threshold (explained variance), share_of_final
    (of scratch's final one of that seed), tokens, token_share (of scratch's of that seed), flops,
    flops_with_stitch, flops_share (of scratch's); NaN where it was not reached."""
    runs: pd.DataFrame
    """A row per arm and seed: arm, seed, initial, final (explained variance), dead_fraction,
    cosine_median (decoder rows to where they began).
    """
    cosines: pd.DataFrame = field(repr=False)
    """A row per arm, seed and feature: decoder_cosine."""
    stitch_flops: float
    source_sae_flops: float
    """NaN where ``source_sae_tokens`` was not given."""
    n_tokens: int

    @property
    def summary(self) -> pd.DataFrame:
        """A row per arm at 95% of scratch's final explained variance: mean, least and most over
        seeds of the token share; final values.
        """
        rows = []
        for arm, runs in self.runs.groupby("arm", sort=False):
            at = pd.DataFrame(
                self.thresholds[
                    (self.thresholds["arm"] == arm)
                    & np.isclose(self.thresholds["share_of_final"], SHARE)
                ]
            )
            rows.append(
                {
                    "arm": arm,
                    "initial": runs["initial"].mean(),
                    "final": runs["final"].mean(),
                    "tokens": _over_seeds(at, "tokens", np.mean),
                    "token_share": _over_seeds(at, "token_share", np.mean),
                    "token_share_low": _over_seeds(at, "token_share", np.min),
                    "token_share_high": _over_seeds(at, "token_share", np.max),
                    "flops_share": _over_seeds(at, "flops_share", np.mean),
                    "dead_fraction": runs["dead_fraction"].mean(),
                    "cosine_median": runs["cosine_median"].mean(),
                    "n_seeds": len(runs),
                }
            )
        return pd.DataFrame(rows)

    @property
    def savings(self) -> pd.DataFrame:
        """Share of scratch's FLOPs that every other arm saves, by threshold.

        Columns: arm, share_of_final, saved (the stitch charged; mean over seeds), low, high (least
        and most), saved_charged (the source's SAE charged too). NaN where a run did not get there,
        or the price is not known.
        """
        scratch = self.thresholds[self.thresholds["arm"] == "scratch"].set_index(
            ["seed", "share_of_final"]
        )["flops"]
        rows = []
        for arm, of_arm in self.thresholds[self.thresholds["arm"] != "scratch"].groupby(
            "arm", sort=False
        ):
            for share, part in of_arm.groupby("share_of_final", sort=False):
                reference = np.array([scratch[seed, share] for seed in part["seed"]])
                flops = part["flops_with_stitch"].to_numpy()
                saved, charged = (
                    1 - flops / reference,
                    1 - (flops + self.source_sae_flops) / reference,
                )
                rows.append(
                    {
                        "arm": arm,
                        "share_of_final": share,
                        "saved": saved.mean(),
                        "low": saved.min(),
                        "high": saved.max(),
                        "saved_charged": charged.mean(),
                    }
                )
        return pd.DataFrame(rows)

    def figure(self, kind: Literal["training", "savings"] = "training") -> Any:
        """Held-out explained variance against tokens with decoder cosines to the beginning, or
        FLOPs saved over thresholds under both bills (plotly).
        """
        return (
            initialisation_figure(self.history, self.cosines)
            if kind == "training"
            else savings_figure(self.savings)
        )

    def _repr_html_(self) -> str:
        return card(
            "SAEInitialisation", note("Intervals are the range over seeds."), table(self.summary)
        )


def study_sae_initialisation(
    pair: ModelPair,
    stitch: Stitch,
    sae: Any,
    documents: Documents | SAERows,
    *,
    n_tokens: int = 100_000,
    n_rows: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    shares: Sequence[float] = (0.8, 0.9, 0.95, 0.98),
    source_sae_tokens: int | None = None,
    progress: bool = True,
    **options: Any,
) -> SAEInitialisation:
    """Training on the target's stream from every initialisation; see the module docstring.

    Args:
        pair: the models of the stitch.
        stitch: carries the SAE; without a null the arm ``shuffled`` is left out.
        sae: a SAELens SAE of the source's hook point; scratch takes its width and architecture.
        documents: text, or `SAERows` at the stitch's target hook point.
        n_tokens: training rows of each run.
        n_rows: different rows among them, held in memory; as many as ``n_tokens`` by default.
        seeds: of weights, order of rows and rotation; the transferred weights are the same for all.
        shares: of scratch's final explained variance, as thresholds; 0.95 is always among them.
        source_sae_tokens: what the source's SAE was trained on, to charge it.
        progress: show bars.
        options: of `train_sae`: batch_rows, lr, lr_decay_share, ….

    Source: Stitching (arXiv 2506.06609) §3.1, figure 2 and appendix D; the shuffled and rotated
    arms and the costs are ours.
    """
    stitch.check(pair.source, pair.target)
    refuse_foreign_sae(sae, pair.source, stitch.source_hook, "sae")
    rows = rows_of(documents, pair, stitch).in_memory(n_rows or n_tokens)
    plain = _scratch_config(stitch.transfer(sae))
    histories, runs, cosines = [], [], []
    per_token = float("nan")
    for seed in seeds:
        for arm, init in _inits(stitch, sae, seed).items():
            run = train_sae(
                None,
                rows,
                init=init,
                config=plain if init is None else None,
                n_tokens=n_tokens,
                seed=seed,
                progress=progress,
                **options,
            )
            per_token = run.flops_per_token
            histories.append(run.history.assign(arm=arm, seed=seed))
            values = run.history["explained_variance"].to_numpy(dtype=float)
            dead = float(run.history["dead_fraction"].iloc[-1])
            runs.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "initial": values[0],
                    "final": values[-1],
                    "dead_fraction": dead,
                    "cosine_median": float(run.decoder_cosine.median()),
                }
            )
            cosines.append(
                pd.DataFrame(
                    {"arm": arm, "seed": seed, "decoder_cosine": run.decoder_cosine.numpy()}
                )
            )
    history = pd.concat(histories, ignore_index=True)
    cost = stitch_flops(stitch)
    of_source = (
        float("nan")
        if source_sae_tokens is None
        else source_sae_tokens * per_token * pair.source.d_model / pair.target.d_model
    )
    thresholds = threshold_table(history, sorted({*shares, SHARE}), cost)
    return SAEInitialisation(
        history,
        thresholds,
        pd.DataFrame(runs),
        pd.concat(cosines, ignore_index=True),
        cost,
        of_source,
        n_tokens,
    )


def rows_of(documents: Documents | SAERows, pair: ModelPair, stitch: Stitch) -> SAERows:
    """Rows of the target's stream whose held-out documents are those that the stitch was tested on,
    not fitted.

    MismatchError for `SAERows` that were split by another seed: what they hold out the maps have
    seen.
    """
    seed = stitch.provenance.seed
    if not isinstance(documents, SAERows):
        return SAERows.from_documents(pair.target, documents, at=stitch.target_hook, seed=seed)
    if documents.seed is not None and documents.seed != seed:
        raise MismatchError(
            f"the rows were split by seed {documents.seed}, the stitch by {seed}: documents held out of training were in its fit; make them with seed={seed}"
        )
    return documents


def stitch_flops(stitch: Stitch) -> float:
    """FLOPs of fitting a stitch in closed form: products of the moments (xx, yy, xy) over its
    tokens, and two eigendecompositions (≈ 9d³).
    """
    d_source, d_target = stitch.up.weight.shape
    n = float(stitch.scores.get("n_tokens", 0))
    return 2 * n * (d_source**2 + d_target**2 + d_source * d_target) + 9.0 * (
        d_source**3 + d_target**3
    )


def threshold_table(
    history: pd.DataFrame, shares: Sequence[float], stitch_cost: float
) -> pd.DataFrame:
    """Tokens and FLOPs to each share of scratch's final explained variance; see
    `SAEInitialisation.thresholds`.
    """
    table = []
    for seed, of_seed in history.groupby("seed", sort=False):
        runs = {
            str(arm): run.sort_values("tokens") for arm, run in of_seed.groupby("arm", sort=False)
        }
        final = float(runs["scratch"]["explained_variance"].iloc[-1])
        for share in shares:
            scratch = tokens_to(runs["scratch"], share * final)
            for arm, run in runs.items():
                per_token = float(run["flops"].iloc[-1] / run["tokens"].iloc[-1])
                tokens = tokens_to(run, share * final)
                with_stitch = tokens * per_token + (0.0 if arm in UNSTITCHED else stitch_cost)
                table.append(
                    {
                        "arm": arm,
                        "seed": seed,
                        "threshold": share * final,
                        "share_of_final": share,
                        "tokens": tokens,
                        "token_share": tokens / scratch,
                        "flops": tokens * per_token,
                        "flops_with_stitch": with_stitch,
                        "flops_share": with_stitch / (scratch * per_token),
                    }
                )
    return pd.DataFrame(table)


def _over_seeds(rows: pd.DataFrame, column: str, summarise: Callable[[np.ndarray], Any]) -> float:
    """NaN where one seed is."""
    return float(summarise(rows[column].to_numpy(dtype=float)))


def _inits(stitch: Stitch, sae: Any, seed: int) -> dict[str, Any]:
    inits = {"scratch": None, "transferred": stitch.transfer(sae)}
    if stitch.null is not None:
        inits["shuffled"] = stitch.transfer(sae, through=stitch.null)
    return inits | {
        "rotated": stitch.transfer(
            sae, through=random_rotation(stitch, torch.Generator().manual_seed(seed))
        )
    }


def _scratch_config(moved: Any) -> Any:
    """The training configuration of a transferred SAE, to start from scratch with; SAELens' own
    initialisation subtracts b_dec.
    """
    return replace(config_like(moved), apply_b_dec_to_input=True)
