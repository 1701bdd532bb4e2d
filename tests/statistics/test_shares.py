"""Tests of shares of trials in clusters, against the exact interval and by simulation."""

import numpy as np
import pytest

from lrt_lens.statistics._intervals import clopper_pearson
from lrt_lens.statistics._shares import clustered_share


def test_one_trial_per_cluster_is_the_exact_interval() -> None:
    found, exact = clustered_share([1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0], 1), clopper_pearson(3, 12)
    assert (found.value, found.low, found.high) == (exact.value, exact.low, exact.high)


def test_clusters_that_agree_within_count_once() -> None:
    counts = [4, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0]
    found, exact = clustered_share(counts, 4), clopper_pearson(3, 12)
    assert found.value == exact.value
    # The variance between 12 clusters has 11 degrees of freedom, so it is slightly wider.
    assert 0 < found.low < exact.low
    assert exact.high < found.high < exact.high + 0.1


@pytest.mark.parametrize("count", [0, 4])
def test_without_any_variation_each_cluster_counts_as_one_trial(count: int) -> None:
    found, exact = clustered_share([count] * 12, 4), clopper_pearson(3 * count, 12)
    assert (found.value, found.low, found.high) == (exact.value, exact.low, exact.high)


def test_few_clusters_are_flagged_and_no_cluster_is_refused() -> None:
    assert clustered_share([1, 2, 0], 4).flag == "3 independent prompts"
    with pytest.raises(ValueError, match="0 clusters of 4 trials"):
        clustered_share([], 4)
    with pytest.raises(ValueError, match="counts between 0"):
        clustered_share([5], 4)


@pytest.mark.slow
@pytest.mark.parametrize("n_clusters", [10, 50])
@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.parametrize("correlation", [0.2, 0.6])
def test_the_share_of_new_clusters_is_held(
    n_clusters: int, share: float, correlation: float
) -> None:
    """Simulate beta-binomial prompts of four continuations; the exact interval holds .76 to .94."""
    rng, hits, alone, reps = np.random.default_rng(0), 0, 0, 400
    spread = (1 - correlation) / correlation
    for _ in range(reps):
        counts = rng.binomial(4, rng.beta(share * spread, (1 - share) * spread, n_clusters))
        hits += not clustered_share(counts, 4).excludes(share)
        alone += not clopper_pearson(int(counts.sum()), 4 * n_clusters).excludes(share)
    # Three standard errors of the simulation are .033. Discrete counts are held more than .95.
    assert hits / reps >= 0.917
    assert alone < hits
