"""Contrast pairs in the intervals of concept transfer: naive refits, and fresh sets."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import lrt_lens as lrt
from lrt_lens.adapters.concepts import Concept, evaluate_concept_transfer, read_rows
from lrt_lens.adapters.vectors import SteeringVector, calibrate_scale
from lrt_lens.data import ContrastSet
from lrt_lens.models import ModelPair
from tests.adapters.concepts.small_concepts import small_concepts
from tests.adapters.vectors.reference import OneRowPerContinuation

MOOD, COLOUR = small_concepts(16)
DAMAGE = 0.01
CHEAP: dict[str, Any] = {
    "betas": (1.0,),
    "ridge": False,
    "n_random": 0,
    "n_shuffled": 0,
    "progress": False,
}


@pytest.fixture(scope="module")
def pair(load: Any) -> ModelPair:
    """A target whose loss on random words rises under steering; some random models differ."""
    return ModelPair(load("llama", d=16, layers=2, seed=1), load("llama", d=16, layers=3, seed=7))


@pytest.fixture(scope="module")
def evaluate(pair: ModelPair, corpus: list[str]) -> Callable[..., pd.DataFrame]:
    def run(**options: Any) -> pd.DataFrame:
        hooks: dict[str, Any] = {"source_hook": 1, "target_hook": 2}
        known = {"neutral": corpus[:8], "damage": DAMAGE} | CHEAP | hooks | options
        result = evaluate_concept_transfer(pair, [MOOD, COLOUR], **known)
        return result.summary.set_index(["concept", "arm"])

    return run


@pytest.fixture(scope="module")
def summary(evaluate: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    return evaluate()


def naive_refits(pair: ModelPair, neutral: list[str]) -> dict[str, np.ndarray]:
    """Effects at β = 1 and at equal damage of each arm without each group, [group, 2].

    Maps are numpy's minimum-norm least squares of the pairs that remain.
    """
    rows = {
        name: (one.source.numpy(), one.target.numpy())
        for name, one in read_rows(
            pair, [MOOD.contrast, COLOUR.contrast], source_hook=1, target_hook=2
        ).items()
    }

    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).numpy()
    items = OneRowPerContinuation(pair.target, MOOD.items, 2)
    before = items.propensity()
    effects: dict[str, list[list[float]]] = {}
    for k in range(4):
        half, whole = (
            np.flatnonzero(np.random.default_rng(0).permutation(n) % 4 != k) for n in (8, 16)
        )
        a, b = order[:8][half], order[8:][half]

        def fit(name: str, pairs: np.ndarray) -> np.ndarray:
            x, y = (side[pairs].reshape(-1, 16) for side in rows[name])
            return np.linalg.lstsq(x, y, rcond=1e-6)[0]

        source, native = (np.diff(side[a][:, ::-1], axis=1).mean((0, 1)) for side in rows["mood"])
        vectors = {
            "native": native,
            "own_disjoint": source @ fit("mood", b),
            "other": source @ fit("colour", whole),
            "untransformed": source,
        }
        for name, direction in vectors.items():
            hook = "blocks.2.hook_resid_post"
            vector = SteeringVector(torch.tensor(direction).float(), hook, pair.target.identity)
            scale = calibrate_scale(pair.target, vector, neutral, damage=DAMAGE).scale
            changes = [
                float((items.propensity(vector.hook_at(beta)) - before).mean())
                if math.isfinite(beta)
                else math.nan
                for beta in (1.0, scale)
            ]
            effects.setdefault(name, []).append(changes)
    return {name: np.array(values) for name, values in effects.items()}


def test_errors_of_contrast_pairs_are_those_of_naive_refits(
    pair: ModelPair, corpus: list[str], summary: pd.DataFrame
) -> None:
    refits = naive_refits(pair, corpus[:8])

    def error(values: np.ndarray) -> float:
        # √((K − 1)/K · Σ(θ_k − θ̄)²) with K = 4
        return math.sqrt(3 / 4 * ((values - values.mean()) ** 2).sum())

    # A random model may never lose as much; then the error is unknown on both sides.
    known = {name for name, effects in refits.items() if not np.isnan(effects).any()}
    assert {"native", "other", "untransformed"} <= known
    for name, effects in refits.items():
        row = summary.loc[("mood", name)]
        assert row["effect_contrast_error"] == pytest.approx(error(effects[:, 0]), rel=1e-2)
        # The evaluation interpolates between strengths, the naive refit searches the damage.
        assert row["contrast_error"] == pytest.approx(
            error(effects[:, 1]), rel=0.2, abs=2e-3, nan_ok=True
        )
        fraction = error(effects[:, 1] / refits["native"][:, 1])
        assert row["fraction_contrast_error"] == pytest.approx(
            fraction, rel=0.2, abs=0.01, nan_ok=True
        )


def test_intervals_are_widened_by_the_contrast_pairs_and_say_so(
    evaluate: Callable[..., pd.DataFrame], summary: pd.DataFrame
) -> None:
    without = evaluate(n_contrast_groups=0)
    assert set(without["contains"]) == {"items, neutral texts"}
    assert without["contrast_error"].isna().all()
    is_missing = summary["contrast_error"].isna() & summary["effect_at_equal_damage"].notna()
    contains = np.where(is_missing, "items, neutral texts", "items, neutral texts, contrast pairs")
    assert summary["contains"].tolist() == contains.tolist()
    assert (~is_missing).sum() > 8
    columns = (
        ("effect", "effect_low", "effect_high", "effect_contrast_error"),
        ("effect_at_equal_damage", "low", "high", "contrast_error"),
        ("fraction_of_native", "fraction_low", "fraction_high", "fraction_contrast_error"),
    )
    for value, low, high, error in columns:
        assert np.allclose(summary[value], without[value], equal_nan=True)
        # t(.975, 3) = 3.1824: four groups of pairs.
        reach = 3.1824 * summary[error]
        for end in (low, high):
            expected = np.hypot(without[end] - without[value], reach)
            known = summary[error].notna()
            assert known.any()
            total = (summary[end] - summary[value]).abs()
            assert np.allclose(total[known], expected[known], rtol=1e-4, equal_nan=True)
    # Native has all of its own effect, whatever the pairs are.
    assert summary.loc[("mood", "native"), "fraction_contrast_error"] == pytest.approx(0, abs=1e-9)


def test_vectors_of_few_pairs_have_no_share_of_the_contrast_texts(
    evaluate: Callable[..., pd.DataFrame],
) -> None:
    few = evaluate(n_pairs=7, damage=None)
    assert set(few["contains"]) == {"items, neutral texts"}
    assert few["effect_contrast_error"].isna().all()


def test_random_source_rows_are_drawn_again_unless_their_map_interpolates(
    evaluate: Callable[..., pd.DataFrame],
) -> None:
    options: dict[str, Any] = {"damage": None, "n_contrast_groups": 0, "n_noise": 3}
    # Vectors of 10 pairs are 20 texts in 16 dimensions, those of 8 pairs are 16 texts.
    drawn, single = (evaluate(n_pairs=n, **options).loc[("mood", "noise_source")] for n in (10, 8))
    assert (drawn["n_draws"], drawn["contains"], drawn["interpolates"]) == (3, "draws", 0)
    assert float(drawn["typical_size"]) > 0
    assert (single["n_draws"], single["interpolates"]) == (1, 1)


@pytest.mark.slow
@pytest.mark.xdist_group("steering coverage")
def test_errors_are_the_spread_over_fresh_contrast_sets() -> None:
    """Sets of 32 pairs of the bundled concepts; the page has the longer run, at equal damage."""
    pair = lrt.demo_pair()
    sets = [lrt.demo_contrast(name) for name in ("sentiment", "mood")]
    items = [lrt.demo_items(name).split(0.3, seed=0)[0] for name in ("sentiment", "mood")]
    rows = read_rows(pair, sets, source_hook=2, target_hook=3)
    arms = ["native", "own_disjoint", "other"]
    rng = np.random.default_rng(0)

    def measured(column: str, n_groups: int) -> np.ndarray:
        """Return one column of the arms, for a fresh set of pairs of each concept."""
        concepts, part = [], {}
        for contrast, choices in zip(sets, items, strict=True):
            index = rng.permutation(len(contrast))[:32].tolist()
            positive, negative = (
                [str(texts[i]) for i in index] for texts in (contrast.positive, contrast.negative)
            )
            concepts.append(Concept(ContrastSet(positive, negative, name=contrast.name), choices))
            part[contrast.name] = rows[contrast.name][torch.tensor(index)]
        result = evaluate_concept_transfer(
            pair,
            concepts,
            source_hook=2,
            target_hook=3,
            rows=[part],
            damage=None,
            n_contrast_groups=n_groups,
            **CHEAP,
        )
        return result.summary.set_index(["arm", "concept"])[column].loc[arms].to_numpy()

    spread = np.std([measured("effect", 0) for _ in range(14)], axis=0, ddof=1)
    errors = np.array([measured("effect_contrast_error", 8) for _ in range(2)])
    ratio = np.sqrt((errors**2).mean(0)) / spread
    # A ratio of 14 sets and 2 errors of 7 degrees of freedom has a relative standard error of .27.
    assert (abs(np.log(ratio)) < 3 * 0.27).all(), ratio
