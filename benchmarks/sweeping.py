"""Many maps and penalties from ready moments, compared with Adam and with eigendecompositions."""

import statistics

import torch
from torch import Tensor

from benchmarks.adam import BATCH, AdamMap
from benchmarks.fitting import run_duel
from benchmarks.measuring import Measurement, Settings, alternate
from benchmarks.models import Shape
from benchmarks.synthetic import grid_shape, synthetic_moments
from lrt_lens.models._hook_points import HookPair
from lrt_lens.moments import FIT_PARTS, TEST_PARTS, CrossMoments, score_map
from lrt_lens.stitching.solvers import Ridge
from lrt_lens.stitching.solvers._ridge import RidgeFitter

_STEPS = 40
"""Number of Adam's steps that are timed per repetition."""


def sweep_speedup_over_adam(settings: Settings) -> Measurement:
    """Extrapolated seconds of Adam ÷ seconds of the same maps from ready moments.

    A: 72 × 20 fits by Adam, one per map up and penalty. The seconds are extrapolated: the steps of
    one fit (measured on the real pair by `run_duel`) × the seconds per step (measured here, at the
    shape of these maps) × 1,440. This is the cost of a single held-out split; neither scoring nor
    the search for a learning rate is included.

    B: the maps up from ready moments, timed in full: 20 penalties on five held-out folds, the
    selected map, its test score.
    """
    duel, moments, shape = run_duel(settings), synthetic_moments(settings), grid_shape(settings)
    adam = AdamMap(
        *_random_rows(shape.source, shape.target, settings), duel.adam.learning_rate, settings.seed
    )
    # Warm-up of both sides
    adam.step(2)
    _sweep_up(moments, moments.pairs[:2])
    timings = alternate(lambda: adam.step(_STEPS), lambda: _sweep_up(moments, moments.pairs), 2)
    n_fits = len(moments.pairs) * len(Ridge().candidates)
    # seconds of Adam = steps per fit × seconds per step × fits
    scale = duel.adam.steps / _STEPS * n_fits
    step_seconds = statistics.median(timings.a) / _STEPS
    return Measurement(
        name="sweep_speedup_over_adam",
        value=timings.ratio * scale,
        target=1_000.0,
        at_most=False,
        what=f"{len(moments.pairs)} up maps × {len(Ridge().candidates)} penalties with held-out "
        "scores by Adam (extrapolated from measured steps) ÷ the same from ready moments, with "
        "five-fold cross-validation.",
        raw=timings.raw("adam_steps", "moments")
        | {
            "adam_steps_timed": _STEPS,
            "adam_step_seconds": step_seconds,
            "adam_steps_a_fit": duel.adam.steps,
            "adam_fits": n_fits,
            "adam_seconds_extrapolated": step_seconds * duel.adam.steps * n_fits,
            "extrapolation": f"{duel.adam.steps} steps per fit ({duel.recording.origin}) × "
            f"{step_seconds:.3g} s per step of {BATCH} rows ({shape.source.d_model} → "
            f"{shape.target.d_model}) × {n_fits} fits; five folds would be five times as many",
            "adam_reached": duel.adam.reached,
        },
        notes=duel.notes,
    )


def seconds_per_map(settings: Settings) -> Measurement:
    """Seconds of ``moments.fit()`` ÷ seconds of its eigendecompositions.

    A: fits of all pairs from ready moments: up and down, 20 penalties on five folds, test scores,
    CKA. B: the eigendecompositions of the same fits alone: for every hook point, with all fitting
    folds and with each fold left out.
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
        what=f"{n_maps} maps (each up and down) × {n_alphas} penalties with cross-validated and "
        "test scores, from ready moments ÷ the eigendecompositions alone; seconds per map and "
        "penalty are in the raw measurements.",
        raw=raw
        | {
            "maps": n_maps,
            "penalties": n_alphas,
            "seconds_per_map_and_penalty": raw["fit_seconds_median"] / (n_maps * n_alphas),
            "eigendecompositions": len(matrices),
        },
    )


def _sweep_up(moments: CrossMoments, pairs: tuple[HookPair, ...]) -> list[float]:
    """Test R² of the map up of every pair, with a cross-validated penalty.

    This is the half of ``moments.fit`` that fits maps up.
    """
    fitter, scores = RidgeFitter(moments, Ridge(), down=False), []
    for hook_pair in pairs:
        fitted = fitter.fit(hook_pair, fitter.cross_validate(hook_pair).setting)
        scores.append(
            score_map(fitted.weight, fitted.bias, fitter.scatter(hook_pair, TEST_PARTS)).r2
        )
    return scores


def _decomposed(moments: CrossMoments) -> list[Tensor]:
    """All matrices that ``moments.fit`` decomposes."""
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
    """Rows of standard normal numbers for both models."""
    generator = torch.Generator().manual_seed(settings.seed)
    rows = 2 * BATCH if settings.quick else settings.n_tokens
    return torch.randn(rows, source.d_model, generator=generator), torch.randn(
        rows, target.d_model, generator=generator
    )
