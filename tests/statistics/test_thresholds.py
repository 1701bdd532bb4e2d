"""The best threshold, compared with a search over all of them, and when a gap is flagged."""

import itertools

import numpy as np
import pytest

from lrt_lens.statistics import Interval, best_threshold_accuracy
from lrt_lens.statistics._thresholds import threshold_flag


def _tried(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the best accuracy over every threshold between and beyond the margins."""
    margins = scores[:, 1] - scores[:, 0]
    cuts = [-np.inf, *(np.unique(margins)), np.inf]
    return max(float(((margins > cut) == truth).mean()) for cut in cuts)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_of_two_classes_is_found_among_all_of_them(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, 40)
    # Rounded scores have ties, which no threshold can separate.
    scores = np.round(generator.normal(size=(40, 2)) + 0.5 * np.eye(2)[truth], 1)
    assert best_threshold_accuracy(scores, truth) == pytest.approx(_tried(scores, truth))


def test_shifted_scores_that_separate_the_classes_have_a_perfect_threshold() -> None:
    truth = np.repeat([0, 1, 2], 10)
    scores = 3.0 * np.eye(3)[truth] + [50.0, 0.0, -50.0]
    assert (scores.argmax(1) == truth).mean() == pytest.approx(1 / 3)
    assert best_threshold_accuracy(scores, truth) == 1.0


def test_three_classes_are_nearly_as_good_as_a_grid_of_shifts() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 60)
    scores = generator.normal(size=(60, 3)) + 1.5 * np.eye(3)[truth] + [2.0, 0.0, -1.0]
    grid = np.linspace(-5, 5, 101)
    tried = max(
        float(((scores + np.array([0.0, a, b])).argmax(1) == truth).mean())
        for a, b in itertools.product(grid, grid)
    )
    assert best_threshold_accuracy(scores, truth) >= tried - 1 / 60
    assert best_threshold_accuracy(scores, truth) >= (scores.argmax(1) == truth).mean()


def test_a_large_gap_beyond_the_interval_is_flagged_with_its_remedy() -> None:
    wide, narrow = Interval(0.5, 0.2, 0.8), Interval(0.5, 0.45, 0.55)
    assert threshold_flag(narrow, 0.9, remedy="mend it").endswith(
        "0.900 at the best threshold: mend it"
    )
    # A small gap, and one that few items explain.
    assert threshold_flag(narrow, 0.54, remedy="mend it") == ""
    assert threshold_flag(wide, 0.75, remedy="mend it") == ""
