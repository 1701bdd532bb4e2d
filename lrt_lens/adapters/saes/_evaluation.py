"""Evaluation of a transferred SAE: reconstruction, sparsity and the loss of the spliced model.

    result = evaluate_sae(pair, stitch, sae, documents, native=target_sae)
    result.summary        # l0, fvu, delta_ce, ce_recovered, dead_fraction per arm
    result.table          # the same metrics with intervals
    result.difference("transferred", "native", "delta_ce")

| arm | SAE | model |
| --- | --- | --- |
| source | ``sae`` | source |
| transferred | ``stitch.transfer(sae)`` | target |
| refitted | the transferred SAE, refitted (with ``refit=``) | target |
| native | ``native``, trained on the target; left out if None | target |
| shuffled | ``sae`` through the map of shuffled pairs | target |
| shuffled_refitted | the same with the refit on shuffled rows (with ``refit=``) | target |
| random | ``sae`` through random (semi-)orthogonal maps of the right mean and size | target |
| random_refitted | a random encoder with refitted rates and decoder (with ``refit=``) | target |

Both models run once per batch up to their hook point; each arm resumes from there with the
reconstruction in place of the states. All arms read the same documents, those of the stitch's test
fold by default.

Source: Stitching (arXiv 2506.06609), table 2; controls, dead features and intervals are ours.

Intervals are over documents, studentised (`lrt_lens.statistics._bootstrap`); that of
``dead_fraction`` (Clopper–Pearson) is over features. For ``random`` they are the intervals that a
new random map falls into, and ``transferred_p`` is the share of random maps whose ΔCE is as small
as that of the transferred SAE, at least ``p_floor``: 3 maps give no p below .25, 20 give .048.

Limits: ``fvu`` refers to the mean of the tokens of the stitch's fit. ``dead_fraction`` counts
features that are silent on these tokens, so it falls with the number of tokens. ``shuffled`` is one
derangement of the pairs: its interval holds for other documents, not for another derangement.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from lrt_lens._progress import tqdm
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens.adapters.saes._compatibility import (
    refuse_foreign_sae,
    refuse_joined_hook_points,
    require_sae,
)
from lrt_lens.adapters.saes._evaluation_result import (
    SAEEvaluation,
    documents_of,
    draws_of,
    evaluation_table,
    frames_of,
)
from lrt_lens.adapters.saes._random_maps import random_rotation
from lrt_lens.adapters.saes._refit_arms import refit_arms
from lrt_lens.adapters.saes._sae_pass import CodeTally, Reconstruction
from lrt_lens.adapters.saes.refit._rows import SAERefit
from lrt_lens.adapters.saes.refit._settings import RefitSettings
from lrt_lens.data._documents import Documents
from lrt_lens.data._windows import Window
from lrt_lens.errors import NonFiniteError
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._text_reader import special_tokens, unmasked
from lrt_lens.stitching._held_out import read_windows
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.stitching._stitched_pass import Arm, Batch, End, Tally, batches, run_batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SAEEvaluationSettings(Settings):
    """Settings of `evaluate_sae`, which also takes each of them as a keyword."""

    n_random: int = 20
    """Number of random maps; the arm ``random`` is the mean over them, and its interval shows where
    a new one falls. 3 take half of the time of 20, and give no p-value below .25 instead of
    .048."""
    refit: bool | RefitSettings = False
    """True, or settings of the refit, adds the refitted SAE and its controls; they are fitted to
    the documents of the fitting folds."""
    n_tokens: int = 20_000
    """Counted positions after which no further document is read."""
    context_length: int = 256
    """Tokens per window, BOS included."""
    keep: Literal["masked", "bos"] = "masked"
    """Positions that keep the model's own states: all ``"masked"`` ones (BOS, the first positions
    and special tokens, on which SAEs are not trained), or ``"bos"`` alone."""
    folds: Literal["test", "all"] = "test"
    """``"test"`` reads only documents of the harvest's test fold, ``"all"`` every document."""
    seed: int = 0
    """Seed of the bootstraps, the random maps and the controls of the refit."""


@takes(SAEEvaluationSettings)
def evaluate_sae(
    pair: ModelPair,
    stitch: Stitch,
    sae: Any,
    documents: Documents,
    *,
    native: Any = None,
    settings: SAEEvaluationSettings | None = None,
    progress: bool = True,
    **options: Any,
) -> SAEEvaluation:
    """L0, FVU, ΔCE, recovered loss and dead features of an SAE before and after transfer.

    The arms are listed in the module docstring.

    Args:
        pair: the models of the stitch.
        stitch: transfers the SAE; its null is the arm ``shuffled``, and its means are those of the
            mean ablation and of FVU.
        sae: a SAELens SAE of the source's hook point.
        documents: text, in any form that `fit_stitches` accepts.
        native: a SAELens SAE of the target's hook point.
        settings: all settings, see `SAEEvaluationSettings`.
        progress: show a bar.
        options: single fields of the settings, such as ``refit=True``.

    Raises:
        ValueError: a refit together with ``folds="all"``; or the refit is refused, see `refit_sae`.
        MismatchError: an SAE belongs to another width, hook point, model, basis or tokenizer; the
            models are not the stitch's.
        HookPointError: the stitch joins several hook points.
        NonFiniteError: an SAE or the states hold NaN or infinity.
        TooFewDocumentsError: fewer than two documents.

    Source: Stitching (arXiv 2506.06609), table 2; controls, dead features and intervals are ours.
    """
    run = resolve(SAEEvaluationSettings, settings, options)
    run = replace(run, context_length=min(run.context_length, pair.context_length))
    _check(pair, stitch, (sae, native), run)
    saes = _saes(stitch, sae, native, run) | _refitted(pair, stitch, sae, documents, run, progress)
    ends = {"A": End(pair.source, stitch.source_hook), "B": End(pair.target, stitch.target_hook)}
    windows = read_windows(
        pair,
        stitch.provenance,
        stitch.skip_first,
        documents,
        run.n_tokens,
        run.context_length,
        run.folds,
    )
    if pair.aligned:
        # Each arm runs on one model, so all its unmasked tokens count, aligned or not.
        special = (special_tokens(pair.source), special_tokens(pair.target))
        windows = [_with_all_rows(window, special, stitch.skip_first) for window in windows]
    # Documents are numbered from 0, so the largest number gives their number.
    tally = Tally(1 + max(window.document for window in windows))
    codes = {name: CodeTally(tally.n_documents, arm.cfg.d_sae) for name, arm in saes.items()}
    grouped = list(batches(windows, pair.source, pair.target))
    for group in tqdm(grouped, desc="SAE evaluation", disable=not progress, leave=False):
        batch = Batch(group, ends, run.keep, paired=False)
        run_batch(ends, _arms(stitch, saes, batch, codes), batch, tally)
    frames = frames_of(tally, codes)
    by_document = documents_of(frames)
    draws = draws_of(frames["random"], codes) if "random" in frames else pd.DataFrame()
    table = evaluation_table(by_document, codes, pair, draws, run.seed)
    return SAEEvaluation(
        table, by_document, stitch.source_hook, stitch.target_hook, run.seed, draws
    )


def _with_all_rows(
    window: Window, special: tuple[np.ndarray, np.ndarray], skip_first: int
) -> Window:
    """The window with every unmasked token of both models as a row, not only the aligned ones."""
    target = window.read_by("target")
    counterpart = replace(target, rows=unmasked(target.ids, special[1], skip_first))
    return replace(
        window, rows=unmasked(window.ids, special[0], skip_first), counterpart=counterpart
    )


# ---------------------------------------------------------------------------------------- arguments


def _check(
    pair: ModelPair, stitch: Stitch, saes: tuple[Any, Any], run: SAEEvaluationSettings
) -> None:
    """Raise for arguments of `evaluate_sae` that do not fit together.

    ``saes`` are that of the source and the native one or None.
    """
    if run.n_tokens < 1:
        raise ValueError(
            f"n_tokens is {run.n_tokens}; expected a positive number of tokens, such as 20_000"
        )
    if not isinstance(run.refit, bool | RefitSettings):
        raise TypeError(
            f"refit is a {type(run.refit).__name__}; expected True or lrt.RefitSettings(…): the "
            "models and the documents are those of the evaluation"
        )
    if run.refit and run.folds == "all":
        raise ValueError(
            "folds is 'all' and refit is given: the evaluation would read the documents to which "
            "the SAE was refitted; expected folds='test': leave folds out"
        )
    stitch.check(pair.source, pair.target)
    refuse_joined_hook_points(stitch)
    sae, native = saes
    _check_sae(sae, pair.source, stitch.source_hook, run.context_length)
    if native is not None:
        _check_sae(native, pair.target, stitch.target_hook, run.context_length)
    if stitch.null is None:
        logger.warning(
            "this stitch holds no map of shuffled pairs, so the arm 'shuffled' is left out; "
            "harvest with null='full'"
        )


def _check_sae(sae: Any, model: HookedModel, hook: str, context_length: int) -> None:
    """Raise unless a SAELens SAE of finite weights belongs to ``hook`` of ``model``."""
    require_sae(sae, "cfg", "W_dec")
    refuse_foreign_sae(sae, hook, model.identity, context_length=context_length)
    for name, weights in sae.state_dict().items():
        if not bool(torch.isfinite(weights).all()):
            raise NonFiniteError(
                f"this SAE of {hook!r} holds NaN or infinity in {name}; load the weights again, or "
                "train the SAE with a smaller lr"
            )


# --------------------------------------------------------------------------------------------- arms


def _saes(stitch: Stitch, sae: Any, native: Any, run: SAEEvaluationSettings) -> dict[str, Any]:
    """SAEs by arm; those of the random maps are named ``random 0``, ``random 1`` and so on."""
    saes = {"source": sae, "transferred": stitch.transfer(sae)}
    if native is not None:
        saes["native"] = native
    if stitch.null is not None:
        saes["shuffled"] = stitch.transfer(sae, through=stitch.null)
    generator = torch.Generator().manual_seed(run.seed)
    return saes | {
        f"random {draw}": stitch.transfer(sae, through=random_rotation(stitch, generator))
        for draw in range(run.n_random)
    }


def _refitted(
    pair: ModelPair,
    stitch: Stitch,
    sae: Any,
    documents: Documents,
    run: SAEEvaluationSettings,
    progress: bool,
) -> dict[str, Any]:
    """Refitted SAE and its controls by arm; empty without a refit."""
    if not run.refit:
        return {}
    settings = RefitSettings() if run.refit is True else run.refit
    settings = replace(
        settings,
        context_length=min(settings.context_length, run.context_length),
        progress=progress and settings.progress,
    )
    fits = refit_arms(stitch, sae, SAERefit(pair, documents, settings), seed=run.seed)
    return {name: fit.sae for name, fit in fits.items()}


def _arms(
    stitch: Stitch, saes: dict[str, Any], batch: Batch, codes: dict[str, CodeTally]
) -> list[Arm]:
    """Passes of both models: their ablations, the unchanged model, and their SAEs."""
    arms: list[Arm] = []
    for end, statistics in (("A", stitch.source_statistics), ("B", stitch.target_statistics)):
        mean = statistics.mean.float()
        states = {
            "mean": mean,
            "zero": torch.zeros_like(mean),
            # `end=end` binds the value of this iteration; a bare `end` would be read after the
            # loop.
            "own": lambda streams, end=end: streams[end],
        }
        # End A is the source model, which only the arm "source" reads.
        states |= {
            name: Reconstruction(sae, end, mean, batch.by_model[end], codes[name])
            for name, sae in saes.items()
            if (name == "source") == (end == "A")
        }
        arms += [Arm(name, end, (end,), state) for name, state in states.items()]
    return arms
