"""Sources of variation that an interval contains, and the total over all of them.

Problem: items and texts can be resampled, but contrast pairs and the documents of the map cannot:
vector and map are learnt from them. Mechanism: these are left out in groups, the delete-a-group
jackknife gives their standard errors, and the distances of both ends from the value add as squares:

    low = E − √((E − E_low)² + (t₇ · SE_contrast)² + (t₄ · SE_map)²),      high likewise

    total(over_items, {CONTRAST: 0.05, MAP: 0.02}, {CONTRAST: 8, MAP: 5})

Limits: the sources are taken as independent of each other.
"""

import math
from collections.abc import Collection, Mapping

from lrt_lens.statistics._intervals import Interval, t_quantile

CONTRAST = "contrast pairs"
"""Name of the contrast pairs as a source of variation."""
MAP = "map"
"""Name of the map as a source of variation."""


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
