"""How often intervals of SAE evaluations hold the true value, by simulation.

Documents and features are drawn anew for every sample. ``python -m
tests.adapters.saes.test_coverage`` prints the table that the documentation shows.
"""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from lrt_lens.adapters.saes import FeatureEvaluation
from lrt_lens.adapters.saes._evaluation import _paired_difference
from lrt_lens.statistics import Interval, bootstrap_ratio, prediction_interval
from lrt_lens.stitching._stitch_loss import _percent


def documents(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Return sums over the tokens of n documents of unequal length that differ in difficulty."""
    tokens = np.ceil(rng.lognormal(4, 0.7, n))
    hard = rng.normal(0, 0.3, n)

    def summed(mean: float, own: float) -> np.ndarray:
        return tokens * (mean + hard + rng.normal(0, own, n)) + np.sqrt(tokens) * rng.normal(size=n)

    losses = {"own": summed(3.0, 0.0), "mean": summed(6.0, 0.3)}
    losses |= {"ours": summed(4.0, 0.15), "other": summed(4.2, 0.15)}
    return losses | {"tokens": tokens}


def ratio(rng: np.random.Generator, n: int) -> list[tuple[str, Interval, float]]:
    """Return the intervals that evaluations of losses print, with their true values."""
    one = documents(rng, n)
    ours, other, own, mean = (one[name] for name in ("ours", "other", "own", "mean"))
    tokens = one["tokens"]
    recovered = bootstrap_ratio(mean - ours, mean - own)
    difference = _paired_difference((ours - own, tokens), (other - own, tokens), 0)
    return [
        ("cross-entropy", bootstrap_ratio(ours, tokens), 4.0),
        ("ΔCE", bootstrap_ratio(ours - own, tokens), 1.0),
        ("recovered", recovered, 2 / 3),
        ("increase in percent", _percent(bootstrap_ratio(ours, own)), 100 / 3),
        ("difference of ΔCE", difference, -0.2),
    ]


def advantage(rng: np.random.Generator, n: int) -> list[tuple[str, Interval, float]]:
    """Return the advantage of n structural features over as many semantic ones, and its truth."""
    density = np.r_[rng.lognormal(-3, 0.7, n), rng.lognormal(-3.6, 0.7, n)]
    kind = np.repeat(["structural", "semantic"], n)
    # Correlations rise with log density and by .1 for structural features.
    r = 0.9 + 0.1 * np.log(density) + 0.1 * (kind == "structural") + rng.normal(0, 0.12, 2 * n)
    table = pd.DataFrame(
        {"kind": kind, "density_source": density, "density_target": density, "attribution_r": r}
    )
    # The evaluation needs its table only.
    result: Any = object.__new__(FeatureEvaluation)
    object.__setattr__(result, "table", table)
    object.__setattr__(result, "seed", 0)
    return [("structural advantage", result.structural_advantage, 0.1)]


def new_draw(rng: np.random.Generator, n: int) -> list[tuple[str, Interval, float]]:
    """Return where a new random map falls, from n of them."""
    draws = rng.normal(5, 0.3, n + 1)
    return [("new draw of a control", prediction_interval(draws[1:]), float(draws[0]))]


CASES = {
    "10 documents": (ratio, 10),
    "30 documents": (ratio, 30),
    "100 documents": (ratio, 100),
    "40 features of each kind": (advantage, 40),
    "200 features of each kind": (advantage, 200),
    "3 draws": (new_draw, 3),
    "20 draws": (new_draw, 20),
}


def coverage_table(n: int, names: list[str]) -> pd.DataFrame:
    """Return coverage and share of flagged intervals, one row per interval and size."""
    rows = []
    for name in names:
        draw, size = CASES[name]
        rng = np.random.default_rng(0)
        rows += [
            (kind, name, not one.excludes(truth), bool(one.flag))
            for _ in range(n)
            for kind, one, truth in draw(rng, size)
        ]
    frame = pd.DataFrame(rows, columns=["interval", "size", "coverage", "flagged"])
    return frame.groupby(["interval", "size"], sort=False).mean().reset_index()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["30 documents", "40 features of each kind", "20 draws"])
def test_intervals_hold_what_they_say(name: str) -> None:
    table = coverage_table(120, [name])
    for row in table.to_dict("records"):
        # Between .93 and .97; three standard errors of the simulation are .06.
        is_held = 0.93 - 0.06 <= row["coverage"] <= 0.97 + 0.06
        assert is_held or row["flagged"] > 0.5, row


if __name__ == "__main__":
    shown = coverage_table(400, list(CASES))
    print(shown.to_string(float_format="%.3f"))  # noqa: T201
