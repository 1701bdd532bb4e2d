"""Sources of variation that an interval contains, and the total over all of them.

Problem: items and texts can be resampled, but contrast pairs and the documents of the map cannot:
vector and map are learnt from them. Mechanism: these are left out in groups, the delete-a-group
jackknife gives their standard errors, and the distances of both ends from the value add as squares:

    low = E − √((E − E_low)² + (t₇ · SE_contrast)² + (t₄ · SE_map)²),      high likewise

    total(over_items, {CONTRAST: 0.05, MAP: 0.02}, {CONTRAST: 8, MAP: 5})

Pairs are left out in random groups of equal size, ± 1:

    for k in range(n := usable_groups(8, len(pairs))):
        rest = pairs[group_numbers(len(pairs), n) != k]

Limits: the sources are taken as independent of each other.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from lrt_lens.statistics._intervals import Interval, t_quantile
from lrt_lens.statistics._jackknife import jackknife_error

CONTRAST = "contrast pairs"
"""Name of the contrast pairs as a source of variation."""
MAP = "map"
"""Name of the map as a source of variation."""
FEWEST_GROUPS = 4
"""Smallest number of groups of contrast pairs for a standard error."""


def usable_groups(n_groups: int, n_pairs: int) -> int:
    """Return the number of groups into which pairs are divided, at most ``n_groups``.

    A group has at least two pairs. It is 0 if that leaves fewer than ``FEWEST_GROUPS``.
    """
    usable = min(n_groups, n_pairs // 2)
    return usable if usable >= FEWEST_GROUPS else 0


def group_numbers(n_pairs: int, n_groups: int, seed: int = 0) -> np.ndarray:
    """Return the number of the group of each pair, [pair]; the groups are of equal size ± 1."""
    return np.random.default_rng(seed).permutation(n_pairs) % n_groups


def ratio_error(values: Sequence[float], references: Sequence[float]) -> float:
    """Return the standard error of a ratio whose both parts were refitted without each group."""
    return jackknife_error((np.array(values) / np.array(references)).tolist())


def total(sampled: Interval, errors: Mapping[str, float], groups: Mapping[str, int]) -> Interval:
    """Return an interval over items and texts, widened by what jackknives found."""
    return sampled.widened(
        *(
            t_quantile(groups[source] - 1) * error
            for source, error in errors.items()
            if not math.isnan(error)
        )
    )


def refits_of(name: str, measured: Collection[str]) -> dict[str, str]:
    """Return the measured arm of refits by source of variation, for one arm."""
    refits = {
        "transferred": {CONTRAST: "contrast_refit", MAP: "map_refit"},
        "native": {CONTRAST: "native_refit"},
    }.get(name, {})
    return {source: arm for source, arm in refits.items() if arm in measured}
