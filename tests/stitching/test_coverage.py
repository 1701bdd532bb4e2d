"""How often the 95% intervals of scores from moments hold the true value, by simulation.

Every sample has new documents from a population with known covariances: documents of unequal
length (log-normal), whose states share a topic, and whose noise is louder in some. Folds are
decided by random keys, as in a harvest. `coverage_table` and the other functions return what the
documentation shows; ``python -m tests.stitching.test_coverage`` prints it, also for documents of
the bundled corpus.

True values: of a cross-validated score, the expected score on new text of maps fitted on four of
the five folds; of a test score, the score of the fitted map on new text; of a fidelity, the
expected ρ on new text; of a similarity, its mean over samples.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import lrt_lens as lrt
from lrt_lens.adapters.saes.codes._evaluation import _table as code_map_table
from lrt_lens.adapters.saes.features._correlation import Correlations
from lrt_lens.data import part_of
from lrt_lens.data._parts import N_TEST_GROUPS
from lrt_lens.moments import FIT_PARTS, CrossMoments, Scatter, score_map
from lrt_lens.moments._scatter import DenseSecondMoment
from lrt_lens.stitching import choices, fidelities, score_intervals, similarities
from lrt_lens.stitching.solvers import Ridge
from lrt_lens.stitching.solvers._ridge import RidgeFitter
from lrt_lens.stitching.solvers._solver import PairFolds

EMBED, SOURCE = "hook_embed", "blocks.1.hook_resid_post"
D_SOURCE, D_TARGET, D_EMBED = 6, 5, 3
MEASURES = ("cka", "cka_biased", "cca", "svcca", "procrustes")
SOLVER = Ridge(alpha=1e-3)


def hook(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


@dataclass(frozen=True)
class Population:
    """Documents whose states are linear in a topic and in independent noise."""

    n_layers: int = 1
    """Target layers; all have the same relation to the source and different noise."""
    tokens: int = 40
    """Mean length of a document."""
    spread: float = 0.7
    """Standard deviation of the logarithm of the length."""
    topic: float = 0.1
    """Share of the variance that is common to a document."""
    loudness: float = 0.3
    """Standard deviation of the logarithm of the noise of a document."""
    noise: float = 1.0
    """Variance of the noise, relative to that of the prediction."""

    @cached_property
    def shapes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mixing of the source [d, d] and the true map [d, d_target]."""
        rng = np.random.default_rng(0)
        mixing = rng.normal(size=(D_SOURCE, D_SOURCE)) * np.linspace(1, 0.4, D_SOURCE)
        return mixing, rng.normal(size=(D_SOURCE, D_TARGET)) / np.sqrt(D_SOURCE)

    @cached_property
    def covariances(self) -> dict[str, np.ndarray]:
        """Return Σxx, Σxy, Σyy, and those of the embedding (Σee, Σey)."""
        mixing, weight = self.shapes
        xx = mixing.T @ mixing
        signal = weight.T @ xx @ weight
        # One variance for all dimensions, the mean variance of the prediction times `noise`.
        yy = signal + self.noise_variance * np.eye(D_TARGET)
        embed = xx[:D_EMBED, :D_EMBED] + np.eye(D_EMBED)
        return {"xx": xx, "xy": xx @ weight, "yy": yy, "ee": embed, "ey": (xx @ weight)[:D_EMBED]}

    @cached_property
    def noise_variance(self) -> float:
        mixing, weight = self.shapes
        return self.noise * float(np.diag(weight.T @ mixing.T @ mixing @ weight).mean())

    def scatter(self, side: str = "x") -> Scatter:
        """Return the scatter of the population, from the source (x) or from the embedding (e)."""
        c = {name: torch.from_numpy(1e6 * value) for name, value in self.covariances.items()}
        zeros = [torch.zeros(len(c[key]), dtype=torch.float64) for key in (side * 2, "yy")]
        second = [DenseSecondMoment(c[key]) for key in (side * 2, "yy")]
        return Scatter(1e6, *zeros, c[f"{side}y"], *second)

    def draw(self, n: int, rng: np.random.Generator) -> CrossMoments:
        """Return the moments of a sample of ``n`` documents; every fold has one."""
        keys = rng.integers(0, 2**62, n)
        parts = np.array([part_of(int(key)) for key in keys])
        if set(FIT_PARTS) - set(parts) or len(set(parts) - set(FIT_PARTS)) < 2:
            return self.draw(n, rng)
        lengths = np.exp(self.spread * rng.normal(size=n) - self.spread**2 / 2)
        lengths = np.maximum(4, np.round(self.tokens * lengths)).astype(int)
        document = np.repeat(np.arange(n), lengths)
        mixing, weight = self.shapes

        def clustered(d: int) -> np.ndarray:
            topic = rng.normal(size=(n, d))[document]
            own = rng.normal(size=(len(document), d))
            return np.sqrt(self.topic) * topic + np.sqrt(1 - self.topic) * own

        x = clustered(D_SOURCE) @ mixing
        # E loud² = 1
        loud = np.exp(self.loudness * rng.normal(size=n) - self.loudness**2)[document, None]
        sources = {SOURCE: x, EMBED: x[:, :D_EMBED] + rng.normal(size=(len(x), D_EMBED))}
        targets = {
            hook(layer): x @ weight + np.sqrt(self.noise_variance) * loud * clustered(D_TARGET)
            for layer in range(self.n_layers)
        }
        moments = CrossMoments(
            pairs=tuple((SOURCE, target) for target in targets),
            token_hook=EMBED,
            moment_dtype=torch.float64,
            null="none",
        )
        for part in np.unique(parts):
            index = np.flatnonzero(parts[document] == part)
            moments.add_block(
                int(part),
                {name: torch.from_numpy(rows[index]) for name, rows in sources.items()},
                {name: torch.from_numpy(rows[index]) for name, rows in targets.items()},
            )
        return moments


class BundledText:
    """Documents of the bundled corpus: all of them are the population, samples are drawn from it.

    States are the 16 leading principal components of the small model's layer 2 and embedding, and
    of the large model's layer 3, at 96 tokens per document at most.
    """

    def __init__(self, n_documents: int = 1500, n_components: int = 16) -> None:
        pair = lrt.demo_pair()
        bodies = pair.source.encode_bodies(list(lrt.demo_documents())[:n_documents])
        rows: dict[str, list[Tensor]] = defaultdict(list)
        for start in range(0, len(bodies), 50):
            windows = [[*pair.source.prefix, *body[:96]] for body in bodies[start : start + 50]]
            tokens = pair.source.pad(windows)
            states = {
                SOURCE: pair.source.capture(tokens, hook(2)),
                EMBED: pair.source.capture(tokens, EMBED),
                hook(0): pair.target.capture(tokens, hook(3)),
            }
            for name, values in states.items():
                rows[name] += [
                    one[4 : len(window)].double()
                    for one, window in zip(values, windows, strict=True)
                ]
        self.rows = {}
        for name, documents in rows.items():
            whole = torch.cat(documents)
            _, axes = torch.linalg.eigh((whole - whole.mean(0)).T @ (whole - whole.mean(0)))
            self.rows[name] = [one @ axes[:, -n_components:] for one in documents]

    def scatter(self, side: str = "x") -> Scatter:
        """Return the scatter of all documents, from the source (x) or from the embedding (e)."""
        moments = self._moments(np.zeros(len(self.rows[EMBED]), dtype=int), np.arange(10**6))
        return moments.scatter((SOURCE if side == "x" else EMBED, hook(0)), (0,))

    def draw(self, n: int, rng: np.random.Generator) -> CrossMoments:
        """Return the moments of a sample of ``n`` documents; every fold has one."""
        chosen = rng.choice(len(self.rows[EMBED]), n, replace=False)
        parts = np.array([part_of(int(key)) for key in rng.integers(0, 2**62, n)])
        if set(FIT_PARTS) - set(parts) or len(set(parts) - set(FIT_PARTS)) < 2:
            return self.draw(n, rng)
        return self._moments(parts, chosen)

    def _moments(self, parts: np.ndarray, chosen: np.ndarray) -> CrossMoments:
        moments = CrossMoments(
            pairs=((SOURCE, hook(0)),), token_hook=EMBED, moment_dtype=torch.float64, null="none"
        )
        for part in np.unique(parts):
            of_part = chosen[: len(parts)][parts == part]
            taken = {
                name: torch.cat([documents[i] for i in of_part])
                for name, documents in self.rows.items()
            }
            target = {hook(0): taken.pop(hook(0))}
            moments.add_block(int(part), taken, target)
        return moments


class Hits:
    """Counts of intervals that hold the true value, by name."""

    def __init__(self) -> None:
        self.intervals: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.truths: dict[str, list[float]] = defaultdict(list)

    def add(self, name: str, interval: Any, truth: float) -> None:
        self.intervals[name].append((float(interval["low"]), float(interval["high"])))
        self.truths[name].append(truth)

    def rows(self, *, own_truth: tuple[str, ...] = ()) -> dict[str, float]:
        """Return the coverage by name; the truth is the mean over samples, or each sample's own."""
        shares = {}
        for name, intervals in self.intervals.items():
            ends = np.array(intervals)
            truth = np.array(self.truths[name])
            truth = truth if name.startswith(own_truth or "\0") else truth.mean()
            shares[name] = float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean())
        return shares


def population_score(affine: Any, scatter: Scatter) -> Any:
    return score_map(affine.weight, affine.bias, scatter)


def gain_of(r2: float, token: float) -> float:
    return (r2 - token) / (1 - token)


def measure(population: Population | BundledText, moments: CrossMoments, hits: Hits) -> None:
    """Add the intervals of one sample to ``hits``."""
    pair = moments.pairs[0]
    grid = moments.fit(SOLVER)
    stitch, new_text = grid[pair], population.scatter()
    # Cross-validated scores: maps that were fitted without one fold, on new text.
    token = RidgeFitter(moments, SOLVER, down=False)
    setting = grid.folds[pair].up.setting
    r2 = np.mean([population_score(one.up, new_text).r2_uniform for one in stitch.refits])
    embeds = [token.refit_without((EMBED, pair[1]), k, setting) for k in FIT_PARTS]
    from_embed = population.scatter("e")
    token_r2 = np.mean([population_score(one, from_embed).r2_uniform for one in embeds])
    for column, truth in (("r2_uniform_cv", r2), ("gain_cv", gain_of(r2, token_r2))):
        row = grid.choices(by=column).iloc[0]
        hits.add(column, row, float(truth))
    # Test scores of the fitted map.
    scores = population_score(stitch.up, new_text)
    for _, row in score_intervals(stitch.up, moments, pair).iterrows():
        hits.add(f"test {row['score']}", row, getattr(scores, row["score"]))
    # Fidelity of one fixed direction.
    direction = torch.linspace(1, -1, len(stitch.up.weight), dtype=torch.float64)
    endless = replace(stitch, held_out=(new_text,))
    for kind in ("write", "read"):
        fidelity = stitch.fidelity(direction, kind=kind, n_random=2)
        truth = float(fidelities(endless, direction[None], kind)[0])
        hits.add(f"fidelity, {kind}", vars(fidelity), truth)
    for _, row in similarities(moments, [pair], measures=MEASURES, svcca_variance=0.9).iterrows():
        hits.add(f"similarity, {row['measure']}", row, row["value"])


def coverage_table(
    n_documents: int, n_samples: int, population: Population | BundledText
) -> pd.Series:
    """Return the share of samples whose interval holds the true value, by kind of interval."""
    rng, hits = np.random.default_rng(n_documents), Hits()
    for _ in range(n_samples):
        measure(population, population.draw(n_documents, rng), hits)
    return pd.Series(hits.rows(own_truth=("test",)), name=n_documents)


def share_with_a_worse_candidate(n_layers: int, n_documents: int, n_samples: int) -> float:
    """Return the share of choices among equally good layers that call one really worse."""
    rng, population = np.random.default_rng(n_layers), Population(n_layers=n_layers)
    calls = []
    for _ in range(n_samples):
        moments = population.draw(n_documents, rng)
        fitter, rows, folds = RidgeFitter(moments, SOLVER, down=False), [], {}
        # What `fit_grid` does for `gain_cv`, without other columns, which take most of its time.
        for pair in moments.pairs:
            up, token = fitter.cross_validate(pair), fitter.cross_validate((EMBED, pair[1]))
            folds[pair] = PairFolds(up, up, token)
            gain = gain_of(up.r2_uniform, token.r2_uniform)
            rows.append((*pair, gain, np.nan, np.nan))
        columns = ["source_hook", "target_hook", "gain_cv", "r2_null", "r2_token"]
        table = choices(folds, pd.DataFrame(rows, columns=columns), "gain_cv")
        calls.append(table["really_worse"].any())
    return float(np.mean(calls))


def code_map_coverage(n_documents: int, n_samples: int, population: Population) -> float:
    """Return the coverage of R² in `evaluate_code_map`, for a predictor of known R²."""
    rng, held = np.random.default_rng(1), []
    truth = 1 / (1 + population.noise)
    for _ in range(n_samples):
        group = rng.integers(0, N_TEST_GROUPS, n_documents)
        if len(set(group)) < 2:
            continue
        lengths = np.maximum(4, np.round(40 * np.exp(0.7 * rng.normal(size=n_documents)))).astype(
            int
        )
        loud = np.exp(population.loudness * rng.normal(size=n_documents) - population.loudness**2)
        errors, total, square = (
            torch.zeros(N_TEST_GROUPS, 3, dtype=torch.float64) for _ in range(3)
        )
        counts, documents = np.zeros(N_TEST_GROUPS), [0] * N_TEST_GROUPS
        for g, length, scale in zip(group, lengths, loud, strict=True):
            signal = np.sqrt(0.1) * rng.normal(size=3) + np.sqrt(0.9) * rng.normal(size=(length, 3))
            noise = scale * np.sqrt(population.noise) * rng.normal(size=(length, 3))
            errors[g] += torch.from_numpy((noise**2).sum(0))
            total[g] += torch.from_numpy((signal + noise).sum(0))
            square[g] += torch.from_numpy(((signal + noise) ** 2).sum(0))
            counts[g] += length
            documents[g] += 1
        arms = dict.fromkeys(("s2l", "l2l", "reconstruction"), errors)
        row = code_map_table(arms, counts, documents, total, square).iloc[0]
        held.append(row["r2_uniform_low"] <= truth <= row["r2_uniform_high"])
    return float(np.mean(held))


def feature_coverage(n_documents: int, n_samples: int, share: float) -> tuple[float, float]:
    """Return the coverage of a feature's correlation, of all samples and of those not flagged.

    The feature is active in ``share`` of the documents, on a twentieth of their tokens.
    """
    rng = np.random.default_rng(2)

    def rows(n: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
        out = []
        for group in rng.integers(0, N_TEST_GROUPS, n):
            length = max(8, round(100 * float(np.exp(0.7 * rng.normal() - 0.245))))
            a = np.zeros(length)
            if rng.random() < share:
                on = rng.random(length) < 0.05
                a[on] = np.exp(0.5 * rng.normal() + 0.5 * rng.normal(size=on.sum()))
            b = np.exp(0.3 * rng.normal()) * a * (1 + 0.5 * rng.normal(size=length))
            out.append((int(group), a, b + 0.02 * rng.normal(size=length)))
        return out

    def correlated(documents: list[tuple[int, np.ndarray, np.ndarray]]) -> Correlations:
        sums = Correlations(1, N_TEST_GROUPS)
        for group, a, b in documents:
            sums.add(group, torch.from_numpy(a)[:, None], torch.from_numpy(b)[:, None])
        return sums

    truth = correlated(rows(60_000)).values()[0]
    held, kept = [], []
    for _ in range(n_samples):
        sums = correlated(rows(n_documents))
        interval = sums.interval()
        if np.isfinite(interval.low[0]):
            held.append(interval.low[0] <= truth <= interval.high[0])
            kept.append(sums.effective_groups()[0] >= 3)
    return float(np.mean(held)), float(np.mean(np.array(held)[kept]))


@pytest.mark.slow
def test_intervals_of_scores_hold_the_true_value() -> None:
    table = coverage_table(60, 120, Population())
    # .95 with three standard errors of 120 samples; scores of one population, with one seed.
    assert table.between(0.89, 1).all(), table.to_string()
    assert 0.92 <= table.mean() <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize(("n_layers", "n_samples"), [(2, 100), (12, 25)])
def test_equally_good_layers_are_called_worse_in_five_percent_of_choices(
    n_layers: int, n_samples: int
) -> None:
    # Measured: .065 with 60 documents, .05 with 240. For 30 candidates:
    # `tests/statistics/test_best_of_several.py`.
    share = share_with_a_worse_candidate(n_layers, 60, n_samples)
    assert share <= 0.065 + 2.5 * np.sqrt(0.065 * 0.935 / n_samples)


@pytest.mark.slow
def test_the_interval_of_a_code_map_holds_its_r2() -> None:
    assert 0.905 <= code_map_coverage(10, 200, Population()) <= 0.995


@pytest.mark.slow
def test_the_interval_of_a_features_correlation_holds_it_or_is_flagged() -> None:
    everywhere, unflagged = feature_coverage(60, 80, 0.2)
    assert unflagged >= 0.86
    assert unflagged >= everywhere


def report() -> Iterator[str]:
    """Yield the tables of the documentation; about a quarter of an hour on one core."""
    usual, harsh = Population(), Population(loudness=0.6, spread=1.0, topic=0.3)
    for n_layers in (2, 5, 12, 30):
        n_samples = 4000 // (n_layers + 8)
        shares = [share_with_a_worse_candidate(n_layers, n, n_samples) for n in (60, 240)]
        yield f"{n_layers} equally good layers, {n_samples} choices, 60, 240 documents: {shares}"
    for name, population in (("usual", usual), ("bundled", BundledText()), ("harsh", harsh)):
        tables = [coverage_table(n, 400, population) for n in (30, 60, 240)]
        yield f"{name}\n{pd.concat(tables, axis=1).round(3).to_string()}"
    shares = [code_map_coverage(n, 1000, usual) for n in (10, 40)]
    yield f"code map, 10 and 40 test documents: {shares}"
    for n in (60, 240):
        by_share = {share: feature_coverage(n, 300, share) for share in (1.0, 0.2)}
        yield f"feature, {n} test documents (all, not flagged): {by_share}"


if __name__ == "__main__":
    for text in report():
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
