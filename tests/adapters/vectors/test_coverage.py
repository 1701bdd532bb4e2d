"""Coverage of the intervals of steering on the bundled pair.

All items and neutral texts are measured once at several scales of the transferred and of the native
vector. They are the population: samples are drawn from it with replacement, and an interval is
right if it contains the population's value. `docs/results/intervals.md` has the table.
"""

import math
from typing import Any

import numpy as np
import pytest

import lrt_lens as lrt
from lrt_lens.adapters.vectors import NeutralText, PreferenceText, calibrate_on
from lrt_lens.adapters.vectors._arm_meter import ArmMeter
from lrt_lens.adapters.vectors._arms import drawn_arms
from lrt_lens.adapters.vectors._equal_damage import ITEMS, TEXTS, Curve
from lrt_lens.statistics import Clusters, prediction_interval
from lrt_lens.statistics._bootstrap import Resamples

BUDGET = 0.1
MULTIPLES = (0.25, 0.5, 0.75, 0.9, 1.1, 1.4)
SIZES = ((45, 8), (57, 20))
"""Numbers of items and of neutral texts: 57 and 20 are those of the demo.

The page has more sizes, of 250 samples each."""
N_TIMES = 150

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("steering coverage")]


class Population:
    """Curves of the transferred and of the native vector on all bundled items and texts."""

    def __init__(self, concept: Any) -> None:
        pair = self.pair = lrt.demo_pair()
        self.stitch = lrt.fit_stitches(
            pair,
            lrt.demo_documents(),
            source_layers=[2],
            target_layers=[3],
            n_tokens=20_000,
            progress=False,
        ).best(source=2)
        contrast = lrt.demo_contrast(concept)
        vector = lrt.SteeringVector.mean_difference(pair.source, contrast, at=2)
        hook = self.stitch.target_hook
        self.neutral = NeutralText(pair.target, lrt.demo_neutral(), hook)
        self.choices = lrt.demo_items(concept)
        self.items = PreferenceText(pair.target, self.choices, hook)
        self.unsteered = self.items.propensity()
        self.transferred = self.stitch.transfer(vector)
        self.native = vector.relearnt(pair.target, contrast, at=hook)
        self.curves = [self.curve(self.transferred), self.curve(self.native)]
        pooled = lrt.SteeringVector.mean_difference(pair.source, contrast, at=2, read="mean")
        self.other = self.curve(self.stitch.transfer(pooled))

    def curve(self, vector: Any, multiples: tuple[float, ...] = MULTIPLES) -> Curve:
        scale = calibrate_on(self.neutral, vector, BUDGET).scale
        hooks = [vector.hook_at(scale * multiple) for multiple in multiples]
        rises = [0 * self.neutral.unsteered]
        rises += [self.neutral.losses(hook) - self.neutral.unsteered for hook in hooks]
        propensity = [self.unsteered, *(self.items.propensity(hook) for hook in hooks)]
        scales = np.array([0.0, *(scale * multiple for multiple in multiples)])
        return Curve(scales, np.array(rises), self.neutral.n_tokens, np.array(propensity))

    def sample(self, rng: np.random.Generator, n_items: int, n_texts: int) -> list[Curve]:
        one = self.curves[0]
        items = rng.integers(0, one.propensity.shape[1], n_items)
        texts = rng.integers(0, len(one.n_tokens), n_texts)
        return [
            Curve(c.scales, c.rises[:, texts], c.n_tokens[texts], c.propensity[:, items])
            for c in (*self.curves, self.other)
        ]


@pytest.fixture(scope="module", params=["sentiment"])
def population(request: pytest.FixtureRequest) -> Population:
    return Population(request.param)


def coverage(population: Population, n_items: int, n_texts: int) -> dict[str, float]:
    """Return the share of samples whose intervals hold the population's effect and fraction."""
    ours, native = (float(one.effect_at(BUDGET).mean()) for one in population.curves)
    rng, hits, flagged, n = np.random.default_rng(0), np.zeros(2), 0, 0
    for i in range(N_TIMES):
        a, b, _ = population.sample(rng, n_items, n_texts)
        # Few texts may not reach the budget at these scales; an evaluation searches others.
        if any(math.isnan(one.scale_at(BUDGET)) for one in (a, b)):
            continue
        sources = {ITEMS: Clusters.single(n_items), TEXTS: Clusters.single(n_texts)}
        resamples = Resamples(sources, seed=i, n_draws=500)
        effect, reference = (one.effect(BUDGET, resamples) for one in (a, b))
        ratio = effect.ratio(reference, resamples)
        hits += [not effect.interval(resamples).excludes(ours), not ratio.excludes(ours / native)]
        flagged += bool(ratio.flag)
        n += 1
    return {"effect": hits[0] / n, "fraction": hits[1] / n, "flagged": flagged / n}


@pytest.mark.parametrize(("n_items", "n_texts"), SIZES)
def test_effects_and_fractions_at_equal_damage_are_held(
    population: Population, n_items: int, n_texts: int
) -> None:
    found = coverage(population, n_items, n_texts)
    # Three standard errors of a simulation of 150 samples are .053.
    assert abs(found["effect"] - 0.95) <= 0.053, found
    assert abs(found["fraction"] - 0.95) <= 0.053, found


def test_differences_between_two_rules_are_held(population: Population) -> None:
    """The paired difference of `compare_transfers`, over items and neutral texts."""
    curves = (*population.curves, population.other)
    plain, native, other = (float(one.effect_at(BUDGET).mean()) for one in curves)
    rng, hits, n = np.random.default_rng(0), 0, 0
    for i in range(N_TIMES):
        sample = population.sample(rng, 57, 20)
        if any(math.isnan(one.scale_at(BUDGET)) for one in sample):
            continue
        sources = {ITEMS: Clusters.single(57), TEXTS: Clusters.single(20)}
        resamples = Resamples(sources, seed=i, n_draws=500)
        a, b, c = (one.effect(BUDGET, resamples) for one in sample)
        interval = ((c - a) / b).interval(resamples)
        hits += not interval.excludes((other - plain) / native)
        n += 1
    # Three standard errors of a simulation of 150 samples are .053.
    assert n > N_TIMES / 2
    assert abs(hits / n - 0.95) <= 0.053, hits / n


def test_a_new_random_direction_falls_into_the_prediction_interval(population: Population) -> None:
    meter = ArmMeter(
        population.pair.target,
        population.choices,
        lrt.demo_neutral()[:20],
        budget=BUDGET,
        both_signs=False,
    )
    arms = drawn_arms(population.stitch, population.transferred, 32, seed=1)
    effects = np.array([meter.measure(arm).effect(BUDGET) for arm in arms])
    rng, hits, in_range = np.random.default_rng(0), 0, 0
    for _ in range(2000):
        order = rng.permutation(len(effects))
        drawn, new = effects[order[:20]], effects[order[20]]
        hits += not prediction_interval(drawn).excludes(new)
        low, high = np.percentile(drawn, [2.5, 97.5])
        in_range += low <= new <= high
    assert abs(hits / 2000 - 0.95) <= 0.05
    assert in_range < hits
