"""How often intervals of SAE evaluations hold the true value, by simulation.

Documents and features are drawn anew for every sample. ``python -m
tests.adapters.saes.test_coverage 400`` prints the table that the documentation shows.
"""

import math
import sys
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lrt_lens.adapters.saes import CodeMapEvaluation, FeatureEvaluation, decoder_geometry
from lrt_lens.adapters.saes._decoder_geometry import _Fold, _gather, _scaled_scores
from lrt_lens.adapters.saes._evaluation_result import _paired_difference
from lrt_lens.adapters.saes.features._attention import Example, Halves, _head_row
from lrt_lens.adapters.saes.features._result import _AVERAGED
from lrt_lens.statistics import Interval, bootstrap_ratio, prediction_interval
from lrt_lens.stitching import AffineMap
from lrt_lens.stitching._stitch_loss import _percent
from tests.fewer_resamples import fewer_resamples

D_ROWS = 8
"""Width of simulated decoder rows."""


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


def decoder_rows(rng: np.random.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Return rows of two decoders of n features, and the true weight between them."""
    weight = np.random.default_rng(4).normal(size=(D_ROWS, D_ROWS)) / math.sqrt(D_ROWS)
    x = rng.normal(size=(n, D_ROWS)) * rng.lognormal(0, 0.3, (n, 1))
    # Features differ in how far they are from a linear relation.
    y = x @ weight + rng.lognormal(0, 0.4, (n, 1)) * rng.normal(size=(n, D_ROWS))
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(weight)


def geometry(rng: np.random.Generator, n: int) -> list[tuple[str, Interval, float]]:
    """Return held-out R² of decoders of n features, by `decoder_geometry`, and its truth."""
    x, y, weight = decoder_rows(rng, n)
    stitch = AffineMap(weight, torch.zeros(D_ROWS, dtype=torch.float64))
    table = decoder_geometry(x, y, affine=stitch, n_draws=1).summary.set_index("arm")
    truths = geometry_truths(n)
    return [(f"R², {arm}", read(table.loc[arm], "r2"), truths[arm]) for arm in ("index", "stitch")]


@lru_cache
def geometry_truths(n: int) -> dict[str, float]:
    """Return the expected R² on new features of maps that were fitted on four fifths of n."""
    rng, n_fit, n_new, sums = np.random.default_rng(1), n - n // 5, 1000, np.zeros((2, 2))
    for _ in range(100):
        x, y, weight = decoder_rows(rng, n_fit + n_new)
        fold = _Fold(x, torch.arange(n_fit), torch.arange(n_fit, n_fit + n_new))
        by_fit = _gather(y, iter([(fold, *fold.predict(y))]))
        for i, scored in enumerate((by_fit, _scaled_scores(x @ weight, y, [fold]))):
            sums[i] += [float(scored.error.sum()), float(scored.variance.sum())]
    shares = 1 - sums[:, 0] / sums[:, 1]
    return {"index": float(shares[0]), "stitch": float(shares[1])}


def read(row: Any, column: str, flag: str = "interval_flag") -> Interval:
    """Return the interval of a column of a table."""
    return Interval(row[column], row[f"{column}_low"], row[f"{column}_high"], row[flag])


def code_features(rng: np.random.Generator, n: int) -> list[tuple[str, Interval, float]]:
    """Return the means over n features of `evaluate_code_map`, and their truths."""
    z = rng.normal(1.2, 0.6, n)
    ours, theirs = np.tanh(z + rng.normal(0, 0.3, n)), np.tanh(z - 0.3 + rng.normal(0, 0.3, n))
    columns = {"cosine": np.tanh(z), "agreement_s2l": ours, "agreement_l2l": theirs}
    columns |= {f"agreement_{arm}": rng.normal(0, 0.3, n) for arm in ("other", "random")}
    result = CodeMapEvaluation(pd.DataFrame(), pd.DataFrame(columns))
    table = result.summary.set_index("measure")
    wide, narrow = math.hypot(0.6, 0.3), 0.6
    means = {
        "agreement, s2l": mean_tanh(1.2, wide),
        "cosine s2l to l2l": mean_tanh(1.2, narrow),
        "agreement, s2l − l2l": mean_tanh(1.2, wide) - mean_tanh(0.9, wide),
        "agreement, random": 0.0,
    }
    return [
        (name, Interval(row["mean"], row["low"], row["high"], row["interval_flag"]), means[name])
        for name, row in ((name, table.loc[name]) for name in means)
    ]


@lru_cache
def mean_tanh(mean: float, spread: float) -> float:
    """Return E tanh z for a normal z."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return float(weights @ np.tanh(mean + spread * nodes) / weights.sum())


def features(rng: np.random.Generator, n: int) -> list[tuple[str, Interval, float]]:
    """Return the mean attribution correlation of n features, from a sharp and a flat population."""
    kinds = {"sharp": rng.normal(1.5, 0.8, n), "flat": rng.normal(0.3, 0.4, n)}
    truths = {"sharp": mean_tanh(1.5, 0.8), "flat": mean_tanh(0.3, 0.4)}
    rows = []
    for kind, z in kinds.items():
        frame = pd.DataFrame({"attribution_r": np.tanh(z)})
        table = frame.assign(**dict.fromkeys(_AVERAGED, 0.1), kind="")
        # The evaluation needs its table only.
        result: Any = object.__new__(FeatureEvaluation)
        object.__setattr__(result, "table", table)
        object.__setattr__(result, "seed", 0)
        row = result.summary.iloc[0]
        found = Interval(row["attribution_r"], row["low"], row["high"], row["interval_flag"])
        rows.append((f"mean attribution_r, {kind}", found, truths[kind]))
    return rows


def head(rng: np.random.Generator, n: int) -> list[tuple[str, Interval, float]]:
    """Return the effect on one head of 32 examples from n documents, and its truth."""
    documents = np.r_[np.arange(n), rng.integers(0, n, 32 - n)] if n < 32 else np.arange(32)
    examples = [Example([0], int(one)) for one in documents]
    # Effects are skewed, and those of one document alike.
    own = rng.gamma(2.0, 0.05, n)[documents % n] + rng.normal(0, 0.05, 32)
    effects = np.concatenate([own[None], rng.normal(0, 0.02, (20, 32))])
    row = _head_row(effects, 0, Halves.of(examples))
    return [("effect on a head", Interval(0.0, row["low"], row["high"], row["interval_flag"]), 0.1)]


CASES = {
    "10 documents": (ratio, 10),
    "30 documents": (ratio, 30),
    "100 documents": (ratio, 100),
    "40 features of each kind": (advantage, 40),
    "200 features of each kind": (advantage, 200),
    "3 draws": (new_draw, 3),
    "20 draws": (new_draw, 20),
    "decoders of 30 features": (geometry, 30),
    "decoders of 100 features": (geometry, 100),
    "decoders of 500 features": (geometry, 500),
    "code maps of 12 features": (code_features, 12),
    "code maps of 32 features": (code_features, 32),
    "8 live features": (features, 8),
    "30 live features": (features, 30),
    "300 live features": (features, 300),
    "examples of 8 documents": (head, 8),
    "examples of 20 documents": (head, 20),
    "examples of 32 documents": (head, 32),
}


def coverage_table(n: int, names: list[str]) -> pd.DataFrame:
    """Return coverage and share of flagged intervals, one row per interval and size."""
    rows = []
    for name in names:
        draw, size = CASES[name]
        rng = np.random.default_rng(0)
        with fewer_resamples():
            rows += [
                (kind, name, not one.excludes(truth), bool(one.flag))
                for _ in range(n)
                for kind, one, truth in draw(rng, size)
            ]
    frame = pd.DataFrame(rows, columns=["interval", "size", "coverage", "flagged"])
    return frame.groupby(["interval", "size"], sort=False).mean().reset_index()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "30 documents",
        "40 features of each kind",
        "20 draws",
        "decoders of 100 features",
        "code maps of 32 features",
        "30 live features",
        "examples of 32 documents",
    ],
)
def test_intervals_hold_what_they_say(name: str) -> None:
    table = coverage_table(120, [name])
    for row in table.to_dict("records"):
        # Between .93 and .97; three standard errors of the simulation are .06.
        is_held = 0.93 - 0.06 <= row["coverage"] <= 0.97 + 0.06
        assert is_held or row["flagged"] > 0.5, row


if __name__ == "__main__":
    for case in sys.argv[2:] or list(CASES):
        shown = coverage_table(int([*sys.argv, 400][1]), [case])
        print(shown.to_string(float_format="%.3f"), flush=True)  # noqa: T201
