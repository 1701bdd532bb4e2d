"""Many maps and penalties from ready moments: against Adam, and against the eigendecompositions
that no fit can do without.
"""

import statistics

import torch
from torch import Tensor

from benchmarks.adam import BATCH, AdamMap
from benchmarks.fitting import run_duel
from benchmarks.measuring import Measurement, Settings, alternate
from benchmarks.models import Shape
from benchmarks.synthetic import grid_shape, synthetic_moments
from lrt_lens.moments._cross_moments import FIT_PARTS, TEST_PARTS, CrossMoments
from lrt_lens.moments._hook_pairs import HookPair as Pair
from lrt_lens.moments._scatter import score_map
from lrt_lens.stitching.solvers._ridge import Ridge, RidgeSide

_STEPS = 40
"""Adam's steps that are timed, a repetition."""


def sweep_speedup_over_adam(settings: Settings) -> Measurement:
    """A: an Adam fit per up map and penalty, 72 × 20 of them, extrapolated.

    The steps that one fit needs (measured on the real pair by `run_duel`) × the seconds of a step
    (measured here, at the shape of these maps) × 1,440: as with a single held-out split; neither
    scoring nor the search for a learning rate is charged.

    B: the up maps from ready moments, measured whole: 20 penalties on five held-out folds, the
    chosen map, its test score.
    """
    duel, moments, shape = run_duel(settings), synthetic_moments(settings), grid_shape(settings)
    adam = AdamMap(
        *_random_rows(shape.source, shape.target, settings), duel.adam.learning_rate, settings.seed
    )
    adam.step(2)
    _sweep_up(moments, moments.pairs[:2])
    timings = alternate(lambda: adam.step(_STEPS), lambda: _sweep_up(moments, moments.pairs), 2)
    n_fits = len(moments.pairs) * len(Ridge().candidates)
    # Adam's time ÷ ours, from the time of a few steps.
    scale = duel.adam.steps / _STEPS * n_fits
    step_seconds = statistics.median(timings.a) / _STEPS
    return Measurement(
        name="sweep_speedup_over_adam",
        value=timings.ratio * scale,
        target=1_000.0,
        at_most=False,
        what=f"{len(moments.pairs)} up maps × {len(Ridge().candidates)} penalties with held-out scores by Adam (extrapolated from measured steps) "
        "÷ the same from ready moments, with five-fold cross-validation.",
        raw=timings.raw("adam_steps", "moments")
        | {
            "adam_steps_timed": _STEPS,
            "adam_step_seconds": step_seconds,
            "adam_steps_a_fit": duel.adam.steps,
            "adam_fits": n_fits,
            "adam_seconds_extrapolated": step_seconds * duel.adam.steps * n_fits,
            "extrapolation": f"{duel.adam.steps} steps a fit ({duel.recording.origin}) × {step_seconds:.3g} s a step of {BATCH} rows "
            f"({shape.source.d_model} → {shape.target.d_model}) × {n_fits} fits; five folds would make it five times as many",
            "adam_reached": duel.adam.reached,
        },
        notes=duel.notes,
    )


def seconds_per_map(settings: Settings) -> Measurement:
    """A: ``moments.fit()`` of every pair from ready moments: up and down, 20 penalties on five
    folds, test scores, CKA.

    B: the eigendecompositions of the same fit alone: of every hook point, for all fitting folds
    together and for each left out.
    """
    moments = synthetic_moments(settings)
    matrices = _decomposed(moments)
    moments.fit(pairs=moments.pairs[:1])
    timings = alternate(moments.fit, lambda: [torch.linalg.eigh(matrix) for matrix in matrices], 2)
    n_maps, n_alphas = len(moments.pairs), len(Ridge().candidates)
    raw = timings.raw("fit", "spectra")
    return Measurement(
        name="seconds_per_map",
        value=timings.ratio,
        target=3.0,
        at_most=True,
        what=f"{n_maps} maps (each up and down) × {n_alphas} penalties with cross-validated and test scores, from ready moments "
        "÷ the eigendecompositions alone; seconds per map and penalty are in the raw measurements.",
        raw=raw
        | {
            "maps": n_maps,
            "penalties": n_alphas,
            "seconds_per_map_and_penalty": raw["fit_seconds_median"] / (n_maps * n_alphas),
            "eigendecompositions": len(matrices),
        },
    )


def _sweep_up(moments: CrossMoments, pairs: tuple[Pair, ...]) -> list[float]:
    """Test R² of the up map of every pair, its penalty chosen by cross-validation: the up half of
    ``moments.fit``.
    """
    side, scores = RidgeSide(moments, Ridge(), down=False), []
    for pair in pairs:
        fitted = side.fit(pair, side.cross_validate(pair).setting)
        scores.append(score_map(fitted.weight, fitted.bias, side.scatter(pair, TEST_PARTS)).r2)
    return scores


def _decomposed(moments: CrossMoments) -> list[Tensor]:
    """Every matrix that ``moments.fit`` decomposes."""
    fits = [FIT_PARTS, *(tuple(p for p in FIT_PARTS if p != k) for k in FIT_PARTS)]
    up = [
        moments.scatter((s, moments.target_hooks[0]), parts).xx
        for s in moments.source_hooks
        for parts in fits
    ]
    down = [
        moments.scatter((moments.source_hooks[0], t), parts).yy
        for t in moments.target_hooks
        for parts in fits
    ]
    return up + down


def _random_rows(source: Shape, target: Shape, settings: Settings) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(settings.seed)
    rows = 2 * BATCH if settings.quick else settings.n_tokens
    return torch.randn(rows, source.d_model, generator=generator), torch.randn(
        rows, target.d_model, generator=generator
    )
