"""The search for a scale on curves whose first crossing of the budget is known.

The first crossing on a fine grid is the reference; first guesses reach from a thousandth of it to a
thousand times it.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest

from lrt_lens.adapters.vectors._scale_search import (
    MAX_EVALUATIONS,
    REACHED,
    ScaleSearch,
    search_scale,
)

BUDGET = 0.1
Curve = Callable[[float], float]
GUESSES = [10.0**exponent for exponent in np.linspace(-3, 3, 13)]
NEAR = [0.5, 0.7, 0.9, 1.0, 1.2, 1.6]


def ripple(scale: float) -> float:
    """Return a square law with 10 % of deterministic noise."""
    return 0.1 * scale**2 * (1 + 0.1 * math.sin(40 * scale))


def hump(scale: float) -> float:
    """Return a curve over the budget from 0.47 to 2.1, and again from 49 on."""
    return 0.15 * math.exp(-((math.log(scale) / 1.2) ** 2)) + 0.1 * (scale / 60) ** 2


def bend(scale: float) -> float:
    """Return a curve over the budget from 1 to 3, down to .06 at 4.1, and over it from 5 on."""
    return 0.1 + 0.013 * (scale - 1) * (scale - 3) * (scale - 5)


REACHABLE: dict[str, Curve] = {
    "square law": lambda s: 0.1 * s**2,
    "linear": lambda s: 0.1 * s,
    "square root": lambda s: 0.1 * s**0.5,
    "fourth power": lambda s: 0.1 * s**4,
    "hundredth power": lambda s: 0.1 * s**100 if s < 10 else math.inf,
    "saturating far above": lambda s: 5 * math.tanh(0.02 * s**2),
    "saturating just above": lambda s: 0.115 * (1 - math.exp(-(s**2))),
    "negative first": lambda s: s**2 - 0.3 * s,
    "hump, valley, rise": hump,
    "bend": bend,
    "NaN beyond three": lambda s: 0.1 * s**2 if s < 3 else math.nan,
    "infinite beyond three": lambda s: 0.1 * s**2 if s < 3 else math.inf,
}
UNREACHABLE: dict[str, Curve] = {
    "step": lambda s: 0.0 if s < 1 else 0.5,
    "threshold, then linear": lambda s: 0.0 if s < 1 else 0.3 * s,
    "saturating below": lambda s: 0.09 * (1 - math.exp(-(s**2))),
    "no effect": lambda s: 0.0,
    "a constant": lambda s: 1.0,
    "falls only": lambda s: -(s**2),
    "NaN before the budget": lambda s: 0.02 * s**2 if s < 1.5 else math.nan,
    "NaN everywhere": lambda s: math.nan,
    "a narrow peak below the budget": lambda s: 0.094 * math.exp(-((s - 1) ** 2)),
}


def found(curve: Curve, first_guess: float = 1.0, **options: float) -> ScaleSearch:
    """Return the search, after checks that hold for every one."""
    calls: list[float] = []

    def measure(scale: float) -> float:
        calls.append(scale)
        return curve(scale)

    search = search_scale(measure, BUDGET, first_guess=first_guess, **options)  # type: ignore[arg-type]
    assert len(calls) <= MAX_EVALUATIONS
    assert len(set(calls)) == len(calls)
    assert all(0 < scale < math.inf for scale in calls)
    assert all(math.isfinite(damage) for _, damage in search.tried)
    # No number without its measurement.
    assert not search.reached or (search.scale, search.damage) in search.tried
    return search


def first_crossing(curve: Curve) -> float:
    """Return the first scale of a fine grid at which a curve is over the budget."""
    grid = 10 ** np.linspace(-4, 3, 70_001)
    return next(float(scale) for scale in grid if not curve(float(scale)) < BUDGET)


# ------------------------------------------------------------------------------------------ reached


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("name", REACHABLE)
def test_a_curve_that_meets_the_budget_is_met_at_its_first_crossing(
    name: str, guess: float
) -> None:
    curve = REACHABLE[name]
    crossing = first_crossing(curve)
    search = found(curve, crossing * guess)
    assert search.reached
    assert abs(search.damage - BUDGET) <= REACHED * BUDGET
    # A flat curve has a wide range of scales within 5 % of the budget.
    lowest = first_crossing(lambda s: curve(s) + REACHED * BUDGET)
    assert lowest * 0.999 <= search.scale
    assert search.scale <= first_crossing(lambda s: curve(s) - REACHED * BUDGET) * 1.001


@pytest.mark.parametrize("guess", GUESSES)
def test_noise_moves_the_result_by_its_own_size_only(guess: float) -> None:
    # The damage crosses the budget five times, between .95 and 1.06.
    search = found(ripple, guess)
    assert search.reached
    assert search.scale == pytest.approx(1.0, rel=0.08)


@pytest.mark.parametrize("name", ["square law", "fourth power", "saturating far above"])
@pytest.mark.parametrize("guess", NEAR)
def test_an_ordinary_curve_takes_two_passes_and_two_checks(name: str, guess: float) -> None:
    search = found(REACHABLE[name], guess)
    assert len(search.tried) <= 5
    assert search.flag == ""


@pytest.mark.parametrize("guess", GUESSES)
def test_an_ordinary_curve_takes_few_passes_from_far_away(guess: float) -> None:
    assert len(found(REACHABLE["square law"], guess).tried) <= 9


@pytest.mark.parametrize("start", [1.0, 2.0, 4.0, 5.0, 5.5, 20.0])
def test_a_second_crossing_is_said_and_not_taken(start: float) -> None:
    search = found(bend, start)
    assert search.scale == pytest.approx(1.0, rel=0.07)
    valley = [damage for scale, damage in search.tried if 3 < scale < 5 and damage < 0.095]
    assert ("crosses the budget more than once" in search.flag) == bool(valley)


def test_the_lower_side_of_a_hump_is_taken_if_the_guess_is_on_the_far_side() -> None:
    # Over the budget between 1 and 3 only: at 3 the damage falls through the budget.
    search = found(lambda s: 0.1 + 0.05 * (s - 1) * (3 - s), 3.0)
    assert search.scale == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("ratio", [2.05, 3.0])
@pytest.mark.parametrize("depth", [1.0, 2.0, 5.0])
def test_the_resolution_is_the_one_that_the_documentation_states(
    ratio: float, depth: float
) -> None:
    """A rise over the budget that spans a factor of 2 and reaches above s/2 is not overlooked."""
    end = 1 / 1.01

    def curve(scale: float) -> float:
        return 0.2 if end / ratio < scale < end else 0.1 * scale**2

    assert found(curve, 1.0).scale != pytest.approx(1.0)

    # One that spans a factor of 4 and reaches above s/8.
    def deep(scale: float) -> float:
        return 0.2 if 0.13 * depth / (2 * ratio) < scale < 0.13 * depth else 0.1 * scale**2

    assert found(deep, 1.0).scale != pytest.approx(1.0)


# -------------------------------------------------------------------------------------- not reached


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("name", UNREACHABLE)
def test_a_curve_that_misses_the_budget_has_no_scale_and_says_why(name: str, guess: float) -> None:
    search = found(UNREACHABLE[name], guess)
    assert not search.reached
    assert math.isnan(search.scale)
    assert math.isnan(search.damage)
    assert "no scale with a damage within 5% of 0.1 was found" in search.flag


@pytest.mark.parametrize("name", ["step", "threshold, then linear", "NaN before the budget"])
def test_a_jump_is_named_with_both_ends(name: str) -> None:
    flag = found(UNREACHABLE[name], 0.6).flag
    assert "the damage jumps over it, with damage" in flag
    at = 1.5 if name.startswith("NaN") else 1.0
    low, high = (float(part.split()[0].rstrip(",")) for part in flag.split("at scale ")[1:])
    assert low <= at <= high * (1 + 1e-4)
    assert high / low < 1.0012


def test_a_damage_within_five_per_cent_counts_although_the_tolerance_is_missed() -> None:
    # It saturates 4 % below the budget, or jumps from 4 % below it to 4 % above.
    assert found(lambda s: 0.096 * (1 - math.exp(-(s**2)))).damage == pytest.approx(0.095, rel=0.02)
    search = found(lambda s: 0.1 * s**2 * (0.96 if s < 1 else 1.04), 0.5)
    assert search.damage == pytest.approx(0.096, rel=0.02)
    assert search.reached


def test_a_search_that_is_cut_short_says_what_it_did_not_check() -> None:
    search = found(REACHABLE["square law"], 0.8, max_evaluations=2)
    assert search.reached
    assert "before it had looked for an earlier crossing" in search.flag
    short = found(REACHABLE["square law"], 1e-3, max_evaluations=2)
    assert not short.reached
    assert "up to scale" in short.flag
    between = found(lambda s: 0.0 if s < 1 else 0.5, 0.3, max_evaluations=4)
    assert not between.reached
    assert "in 4 passes: they end with damage 0" in between.flag


# --------------------------------------------------------------------------------------- with limit


def test_a_limit_within_the_budget_is_the_result() -> None:
    search = found(lambda s: 0.05 * s**2, 1.0, largest=1.0)
    assert (search.scale, search.at_limit) == (1.0, True)
    assert "the largest scale, 1, stays within the budget" in search.flag
    assert max(scale for scale, _ in search.tried) == 1.0


@pytest.mark.parametrize("guess", [0.01, 0.3, 1.0, 50.0])
def test_a_limit_is_no_answer_if_the_damage_was_over_the_budget_before(guess: float) -> None:
    # Over the budget between .27 and .73, and .05 at the limit.
    search = found(lambda s: 0.05 * s + 0.6 * s * (1 - s), guess, largest=1.0)
    assert not search.at_limit
    assert search.scale == pytest.approx(0.18, rel=0.1)


def test_a_limit_within_five_per_cent_of_the_budget_is_an_ordinary_result() -> None:
    search = found(lambda s: 0.097 * s**2, 1.0, largest=1.0)
    assert (search.scale, search.at_limit, search.flag) == (1.0, False, "")


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("guess", [0.0, -1.0, math.nan, math.inf])
def test_first_guesses_that_are_no_scale_are_refused(guess: float) -> None:
    with pytest.raises(ValueError, match="expected a positive finite scale"):
        found(REACHABLE["square law"], guess)


@pytest.mark.parametrize("tolerance", [-0.01, 0.06, math.nan])
def test_a_tolerance_beyond_reached_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="does not count as reached"):
        found(REACHABLE["square law"], tolerance=tolerance)
