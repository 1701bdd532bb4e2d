"""Training from a transferred SAE and from other initialisations: tokens and FLOPs to thresholds.

    study = study_sae_initialisation(pair, stitch, sae, documents, n_tokens=100_000)
    study.summary       # per arm: tokens to 95% of scratch's final explained variance, final value
    study.thresholds    # per arm, seed and threshold: tokens, and FLOPs with the stitch's cost
    study.savings       # share of scratch's FLOPs saved, with and without the source SAE's cost

Problem: a transferred SAE is a good start, but is the start cheaper than training from scratch, and
is that due to the transfer? Mechanism: the same training runs from several initialisations.

Arms: ``scratch``; ``transferred``; ``shuffled`` (through the map of shuffled pairs); ``rotated``
(through a random semi-orthogonal matrix: the geometry of a trained SAE without information about
the target); and with ``refit=``, ``refitted``, ``shuffled_refitted`` and ``random_refitted``
(`lrt_lens.adapters.saes._refit_arms`). All arms have the same architecture, rows and order of rows.
Their learning rate is the same, or, with ``lrs=``, the one with which each arm is fastest on a
validation seed.

FLOPs are those of training steps. ``flops_with_stitch`` adds the cost of fitting the maps
(`stitch_flops`) to the arms that start from fitted maps, and that of the refit to refitted arms.
The cost of the source's SAE is in ``source_sae_flops`` of the study, if its training tokens are
known, and in no row. As in the paper, forward passes of the language models are charged to no arm.
Thresholds are measured on documents that the fit of the stitch has not read.

Source: Stitching (arXiv 2506.06609), figure 2; the arms ``shuffled`` and ``rotated`` and the costs
are ours, as is the refit.

Limits: thresholds are relative to scratch with the same number of tokens, so a longer run moves
them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from lrt_lens._repr_html import card, note, table
from lrt_lens._settings import resolve
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.saes._compatibility import (
    refuse_foreign_sae,
    refuse_other_positions,
    require_sae,
    trained_context,
)
from lrt_lens.adapters.saes._random_maps import random_rotation
from lrt_lens.adapters.saes._refit_arms import refit_arms
from lrt_lens.adapters.saes._rows import SAERows
from lrt_lens.adapters.saes._training import (
    SAETraining,
    SAETrainingSettings,
    config_like,
    tokens_to,
    train_sae,
)
from lrt_lens.adapters.saes.refit._rows import SAERefit
from lrt_lens.data._documents import Documents, DocumentSource
from lrt_lens.errors import MismatchError
from lrt_lens.figures._sae import initialisation_figure, savings_figure
from lrt_lens.figures._template import with_counts
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._stitch import Stitch

UNSTITCHED = ("scratch", "rotated", "random_refitted")
"""Arms that start without a fitted map and are charged for none."""
_CONTEXT_LENGTH = 256
"""Largest number of tokens per window of rows that are made from text."""
SHARE = 0.95
"""Threshold of the summary, as a share of scratch's final explained variance."""


@dataclass(frozen=True, repr=False)
class SAEInitialisation(ShortRepr):
    """Training runs from all initialisations."""

    history: pd.DataFrame = field(repr=False)
    """One row per arm, seed and measurement: arm, seed, tokens, flops, explained_variance, l0,
    dead_fraction.
    """
    thresholds: pd.DataFrame
    """One row per arm, seed and threshold.

    Columns: arm, seed, threshold (explained variance), share_of_final (threshold ÷ scratch's final
    value of that seed), tokens, token_share (÷ tokens of scratch of that seed), flops,
    flops_with_stitch, flops_share (÷ FLOPs of scratch). Values are NaN if the threshold was not
    reached.
    """
    runs: pd.DataFrame
    """One row per arm and seed: arm, seed, initial, final (explained variance), dead_fraction,
    cosine_median (decoder rows to their initial values), lr, start_flops (cost of the arm's
    stitch and refit).
    """
    cosines: pd.DataFrame = field(repr=False)
    """One row per arm, seed and feature: decoder_cosine."""
    stitch_flops: float
    """FLOPs of fitting the stitch, from its numbers of tokens and dimensions."""
    source_sae_flops: float
    """FLOPs of training the source's SAE; NaN if ``source_sae_tokens`` was not given."""
    n_tokens: int
    """Number of training rows of each run."""
    n_held_out: int = 0
    """Number of held-out rows on which runs are measured; 0 if unknown."""

    @property
    def summary(self) -> pd.DataFrame:
        """Means over seeds per arm, with token shares at 95% of scratch's final value.

        Columns: arm, initial, final, tokens, token_share, token_share_low and token_share_high
        (least and most over seeds), flops_share, dead_fraction, cosine_median, n_seeds. NaN if the
        run of any seed did not reach the threshold.
        """
        rows = []
        for arm, runs in self.runs.groupby("arm", sort=False):
            # Shares are floats of the caller, so equality needs a tolerance.
            of_share = np.isclose(self.thresholds["share_of_final"], SHARE)
            at = pd.DataFrame(self.thresholds[(self.thresholds["arm"] == arm) & of_share])
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
        """Share of scratch's FLOPs that each other arm saves, per threshold.

        Columns: arm, share_of_final, saved (with the stitch's cost; mean over seeds), low, high
        (least and most over seeds), saved_charged (with the source SAE's cost too). NaN if a run
        did not reach the threshold, or if the cost is not known.
        """
        is_scratch = self.thresholds["arm"] == "scratch"
        scratch = self.thresholds[is_scratch].set_index(["seed", "share_of_final"])["flops"]
        rows = []
        for arm, of_arm in self.thresholds[~is_scratch].groupby("arm", sort=False):
            for share, part in of_arm.groupby("share_of_final", sort=False):
                reference = np.array([scratch[seed, share] for seed in part["seed"]])
                flops = np.asarray(part["flops_with_stitch"], dtype=float)
                # saved = 1 − FLOPs of the arm / FLOPs of scratch, to the same explained variance
                saved = 1 - flops / reference
                charged = 1 - (flops + self.source_sae_flops) / reference
                rows.append((arm, share, saved.mean(), saved.min(), saved.max(), charged.mean()))
        columns = ["arm", "share_of_final", "saved", "low", "high", "saved_charged"]
        return pd.DataFrame(rows, columns=columns)

    def figure(self, kind: Literal["training", "savings"] = "training") -> Any:
        """Plotly figure of the training or of the savings.

        ``"training"``: held-out explained variance against tokens, and cosines of decoder rows to
        their initial values; ``"savings"``: FLOPs saved over thresholds, with and without the
        source SAE's cost.
        """
        figure = (
            initialisation_figure(self.history, self.cosines)
            if kind == "training"
            else savings_figure(self.savings)
        )
        counts = {"seeds": len(set(self.history["seed"])), "held-out tokens": self.n_held_out}
        return with_counts(figure, counts)

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
    refit: SAERefit | None = None,
    lrs: Sequence[float] | None = None,
    progress: bool = True,
    **options: Any,
) -> SAEInitialisation:
    """Training runs on the target's states from each initialisation of the module docstring.

    Args:
        pair: the models of the stitch.
        stitch: transfers the SAE; without a null the arm ``shuffled`` is left out.
        sae: a SAELens SAE of the source's hook point, whose width and architecture all arms have.
        documents: text, or `SAERows` of the stitch's target hook point.
        n_tokens: training rows of each run.
        n_rows: number of different rows, held in memory; ``n_tokens`` by default.
        seeds: seeds of weights, order of rows and rotation, but not of the transferred weights.
        shares: thresholds, as shares of scratch's final explained variance; 0.95 is always added.
        source_sae_tokens: training tokens of the source's SAE, to charge their cost.
        refit: models, documents and settings of the refitted arms; None leaves them out.
        lrs: learning rates to choose from, for each arm on a seed that is not among ``seeds``;
            None gives all arms the ``lr`` of ``options``.
        progress: show bars.
        options: fields of `SAETrainingSettings`: batch_rows, lr, lr_decay_share, ….

    Raises:
        ValueError: ``lrs`` is empty.
        MismatchError: the SAE belongs to another width, hook point, model, basis or tokenizer; the
            models are not the stitch's; rows of another hook point or model, or split by another
            seed than the stitch's.

    Source: Stitching (arXiv 2506.06609) §3.1, figure 2 and appendix D; the shuffled and rotated
    arms and the costs are ours.
    """
    refuse_other_options(options)
    stitch.check(pair.source, pair.target)
    check_source_sae(sae, pair, stitch)
    # Every run reads the same rows: the model runs over the documents once.
    rows = rows_of(documents, pair, stitch, [sae]).in_memory(n_rows or n_tokens)
    starts = _starts(stitch, sae, refit)
    scratch = _scratch_config(starts["transferred"].sae)

    def train(start: _Start, seed: int, lr: float | None) -> SAETraining:
        init = start.sae_of(seed)
        own: dict[str, Any] = {"n_tokens": n_tokens, "seed": seed, "progress": progress}
        own |= {} if lr is None else {"lr": lr}
        config = scratch if init is None else None
        return train_sae(None, rows, init=init, config=config, **(options | own))

    chosen = _learning_rates(starts, train, max(seeds) + 1, lrs)
    done = [
        (arm, seed, train(start, seed, chosen[arm]))
        for seed in seeds
        for arm, start in starts.items()
    ]
    per_token = done[-1][-1].flops_per_token
    history, runs, cosines = _tables(done, starts, chosen, options.get("lr"))
    costs = {arm: start.flops for arm, start in starts.items()}
    # FLOPs per token of an SAE are proportional to its width: the target's, scaled to the source's.
    of_source = (
        float("nan")
        if source_sae_tokens is None
        else source_sae_tokens * per_token * pair.source.d_model / pair.target.d_model
    )
    return SAEInitialisation(
        history,
        thresholds=threshold_table(history, sorted({*shares, SHARE}), costs),
        runs=runs,
        cosines=cosines,
        stitch_flops=stitch_flops(stitch),
        source_sae_flops=of_source,
        n_tokens=n_tokens,
        n_held_out=len(rows.held_out),
    )


def _tables(
    done: Sequence[tuple[str, int, SAETraining]],
    starts: Mapping[str, "_Start"],
    chosen: Mapping[str, float | None],
    lr: float | None,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """History, runs and cosines of all runs (arm, seed, run), as in `SAEInitialisation`.

    ``lr`` is the learning rate of the arms for which none was chosen; None for the default.
    """
    default = SAETrainingSettings().lr if lr is None else lr
    histories, runs, cosines = [], [], []
    for arm, seed, run in done:
        name = {"arm": arm, "seed": seed}
        histories.append(run.history.assign(**name))
        rate = default if chosen[arm] is None else chosen[arm]
        runs.append(name | _ends(run) | {"lr": rate, "start_flops": starts[arm].flops})
        cosines.append(pd.DataFrame(name | {"decoder_cosine": run.decoder_cosine.numpy()}))
    joined = (pd.concat(frames, ignore_index=True) for frames in (histories, cosines))
    history, cosine = joined
    return history, pd.DataFrame(runs), cosine


def check_source_sae(sae: Any, pair: ModelPair, stitch: Stitch) -> None:
    """Raise unless a SAELens SAE belongs to the source hook point of a stitch."""
    require_sae(sae, "cfg", "W_dec")
    refuse_foreign_sae(sae, stitch.source_hook, pair.source.identity)


def _ends(run: SAETraining) -> dict[str, float]:
    """First and last values of a training run, as in `SAEInitialisation.runs`."""
    values = run.history["explained_variance"].to_numpy(dtype=float)
    return {
        "initial": values[0],
        "final": values[-1],
        "dead_fraction": float(run.history["dead_fraction"].iloc[-1]),
        "cosine_median": float(run.decoder_cosine.median()),
    }


def rows_of(
    documents: Documents | SAERows, pair: ModelPair, stitch: Stitch, saes: Sequence[Any]
) -> SAERows:
    """Rows of the target's states whose held-out documents are the stitch's test documents.

    Text is cut into windows as long as those on which all of ``saes`` were trained, at most 256.

    Raises:
        MismatchError: `SAERows` of another hook point, model or width, or that were split by
            another seed: some of their held-out documents were in the fit of the maps; or of longer
            windows than those on which one of ``saes`` was trained.
    """
    # The seed decides which documents are held out (`lrt_lens.data._blocks`).
    seed = stitch.provenance.seed
    if isinstance(documents, SAERows):
        rows = documents
        if rows.seed is not None and rows.seed != seed:
            raise MismatchError(
                f"the rows were split by seed {rows.seed}, the stitch by {seed}: documents held "
                f"out of training were in its fit; make the rows with seed={seed}"
            )
        rows.refuse_foreign(stitch.ends_in(pair.source.identity, pair.target.identity)[1])
    else:
        stitch.provenance.refuse_other_folds(DocumentSource.of(documents).group)
        trained = [length for length in map(trained_context, saes) if length is not None]
        rows = SAERows.from_documents(
            pair.target,
            documents,
            at=stitch.target_hook,
            context_length=min([_CONTEXT_LENGTH, *trained]),
            seed=seed,
        )
    for sae in saes:
        refuse_other_positions(sae, rows.context_length)
    return rows


def refuse_other_options(options: Mapping[str, Any]) -> None:
    """Raise a TypeError for options that `train_sae` does not take, before any text is read."""
    known = {name: value for name, value in options.items() if name not in ("settings", "at")}
    resolve(SAETrainingSettings, options.get("settings"), known)


def stitch_flops(stitch: Stitch) -> float:
    """FLOPs of fitting a stitch in closed form: its moments and two eigendecompositions."""
    d_source, d_target = stitch.up.weight.shape
    n = float(stitch.scores.get("n_tokens", 0))
    # 2n (d_s² + d_t² + d_s d_t) for Σxxᵀ, Σyyᵀ and Σxyᵀ; about 9d³ per eigendecomposition.
    return 2 * n * (d_source**2 + d_target**2 + d_source * d_target) + 9.0 * (
        d_source**3 + d_target**3
    )


def threshold_table(
    history: pd.DataFrame, shares: Sequence[float], costs: Mapping[str, float]
) -> pd.DataFrame:
    """Tokens and FLOPs to each share of scratch's final explained variance.

    ``costs`` has the FLOPs of the start of each arm, of its stitch and its refit. The columns are
    those of `SAEInitialisation.thresholds`.
    """
    # Shares refer to scratch of the same seed, which has read the rows in the same order.
    table = []
    for seed, of_seed in history.groupby("seed", sort=False):
        runs = {
            str(arm): run.sort_values("tokens") for arm, run in of_seed.groupby("arm", sort=False)
        }
        final = float(runs["scratch"]["explained_variance"].iloc[-1])
        for share in shares:
            scratch = tokens_to(runs["scratch"], share * final)
            for arm, run in runs.items():
                # FLOPs grow linearly with tokens, so the last measurement gives the cost per token.
                per_token = float(run["flops"].iloc[-1] / run["tokens"].iloc[-1])
                tokens = tokens_to(run, share * final)
                with_stitch = tokens * per_token + costs[arm]
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
    """Summary of a column over seeds; NaN if any seed is NaN."""
    return float(summarise(rows[column].to_numpy(dtype=float)))


@dataclass(frozen=True)
class _Start:
    """Start of an arm's training runs."""

    sae: Any
    """SAE from which every run starts; None for ``scratch`` and ``rotated``."""
    flops: float
    """FLOPs of the stitch and of the refit."""
    rotated: Callable[[int], Any] | None = None
    """Function from a seed to the SAE of that seed's runs, for ``rotated``."""

    def sae_of(self, seed: int) -> Any:
        """SAE from which the run of a seed starts; None for ``scratch``."""
        return self.sae if self.rotated is None else self.rotated(seed)


def _starts(stitch: Stitch, sae: Any, refit: SAERefit | None) -> dict[str, _Start]:
    """Start of each arm, in the order of tables and figures."""
    fitted = stitch_flops(stitch)

    def rotated(seed: int) -> Any:
        rotation = random_rotation(stitch, torch.Generator().manual_seed(seed))
        return stitch.transfer(sae, through=rotation)

    starts = {"scratch": _Start(None, 0.0), "transferred": _Start(stitch.transfer(sae), fitted)}
    if stitch.null is not None:
        starts["shuffled"] = _Start(stitch.transfer(sae, through=stitch.null), fitted)
    starts["rotated"] = _Start(None, 0.0, rotated)
    for arm, fit in ({} if refit is None else refit_arms(stitch, sae, refit)).items():
        stitched = 0.0 if arm in UNSTITCHED else fitted
        starts[arm] = _Start(fit.sae, stitched + fit.record.flops)
    return starts


def _learning_rates(
    starts: Mapping[str, _Start],
    train: Callable[[_Start, int, float | None], SAETraining],
    seed: int,
    lrs: Sequence[float] | None,
) -> dict[str, float | None]:
    """Learning rate with which each arm is fastest on a seed; None for the default.

    An arm is fastest that first reaches `SHARE` of the best final explained variance of ``scratch``
    on that seed; among those that do not reach it, the best final value wins.
    """
    if lrs is None:
        return dict.fromkeys(starts)
    if not lrs:
        raise ValueError("lrs is empty; expected learning rates, such as [3e-4, 1e-3, 3e-3]")
    runs = {arm: {lr: train(start, seed, lr) for lr in lrs} for arm, start in starts.items()}
    finals = [float(run.history["explained_variance"].iloc[-1]) for run in runs["scratch"].values()]

    def rank(run: SAETraining) -> tuple[float, float]:
        tokens = run.tokens_to(SHARE * max(finals))
        last = float(run.history["explained_variance"].iloc[-1])
        return (np.inf if np.isnan(tokens) else tokens, -last)

    return {arm: min(lrs, key=lambda lr, of=of: rank(of[lr])) for arm, of in runs.items()}


def _scratch_config(transferred: Any) -> Any:
    """Training configuration of the arm ``scratch``: that of a transferred SAE."""
    # SAELens' own initialisation assumes that the encoder subtracts b_dec.
    return replace(config_like(transferred), apply_b_dec_to_input=True)
