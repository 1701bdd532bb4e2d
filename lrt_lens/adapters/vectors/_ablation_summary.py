"""Summary of directional ablation: drops, shares and damage per arm, with what intervals contain.

Problem: drop and damage at a fixed strength vary with the items or texts, with the contrast pairs
and with the map; draws of a control vary with their direction. Mechanism: items (in clusters) and
neutral texts are resampled, groups of contrast pairs and folds of the map are left out for a
jackknife, and both add up (`lrt_lens.adapters.vectors._sources`). Controls have the interval that a
new draw falls into, and the rank of the transferred drop among the sizes of the draws.

    ablation_summary(table, "mood", cosines, clusters, seed=0)

Limits: the share of continuations contains prompts only, because refits do not generate.
"""

import math
from typing import Any, cast

import numpy as np
import pandas as pd

from lrt_lens.adapters.vectors._sources import CONTRAST, MAP, refits_of, total
from lrt_lens.adapters.vectors._vector_arm import REFITS
from lrt_lens.statistics._bootstrap import Clusters, bootstrap_mean, bootstrap_ratio
from lrt_lens.statistics._draws import prediction_interval, rank_test, typical_size
from lrt_lens.statistics._intervals import NOTHING, Interval, joined_flags
from lrt_lens.statistics._jackknife import jackknife_error
from lrt_lens.statistics._shares import clustered_share

_ERRORS = {CONTRAST: "contrast_error", MAP: "map_error"}
"""End of the column of the standard error of each source."""


def ablation_summary(
    table: pd.DataFrame,
    behaviour: str,
    cosines: dict[str, float],
    clusters: Clusters | None,
    seed: int,
) -> pd.DataFrame:
    """Return one row per ``where`` and arm.

    Args:
        table: values of all units under all arms, refits among them.
        behaviour: name of the behaviour.
        cosines: cosine to the native vector by arm.
        clusters: which items are independent; None without items.
        seed: seed of the resamples.
    """
    rows = []
    for where in dict.fromkeys(table["where"]):
        place = _Place(table.loc[table["where"] == where], clusters, seed)
        for name in place.arms:
            if name not in REFITS:
                row = {"where": where, "arm": name, "behaviour": behaviour}
                rows.append(row | place.row(name) | {"cosine": cosines.get(name, math.nan)})
    return pd.DataFrame(rows)


class _Place:
    """Values under all arms, with the ablation at the same hook points."""

    def __init__(self, table: pd.DataFrame, clusters: Clusters | None, seed: int) -> None:
        self.clusters, self.seed = clusters, seed
        self.arms = [str(name) for name in dict.fromkeys(table["arm"])]
        self.values: dict[tuple[str, str], list[np.ndarray]] = {}
        """Values [unit] of each draw, by arm and outcome."""
        self.sizes: dict[tuple[str, str], np.ndarray] = {}
        """Number of tokens or samples [unit], by arm and outcome."""
        self.drawn: set[str] = set()
        """Arms of several draws."""
        # pandas' stubs take a group's key for a scalar, and its column for a number.
        for (name, outcome), part in cast(Any, table.groupby(["arm", "outcome"], sort=False)):
            # dropna=False keeps an arm of one vector, whose draw is missing.
            draws = [one for _, one in part.groupby("draw", dropna=False, sort=True)]
            key = (str(name), str(outcome))
            self.values[key] = [one["value"].to_numpy(dtype=float) for one in draws]
            self.sizes[key] = draws[0]["n_tokens"].to_numpy(dtype=float)
            if part["draw"].notna().any():
                self.drawn.add(str(name))

    def row(self, name: str) -> dict[str, Any]:
        """Return the columns of one arm."""
        row: dict[str, Any] = {"n_draws": len(self.values[name, "loss"])}
        flags: list[str] = []
        for outcome, columns in (
            ("loss", self._damage_columns),
            ("propensity", self._propensity_columns),
            ("share", self._share_columns),
        ):
            if (name, outcome) in self.values:
                more, some = columns(name)
                row |= more
                flags += some
        if name in self.drawn:
            test = rank_test(self._effects("transferred")[0], self._effects(name))
            row |= {"typical_size": typical_size(self._effects(name))}
            row |= {"transferred_p": test.p, "p_floor": test.floor}
        return row | {"contains": self._contains(name), "interval_flag": joined_flags(flags)}

    def _effects(self, name: str) -> list[float]:
        """Return the drop of each draw; that of the share of continuations without items."""
        if (name, "propensity") in self.values:
            return self._drops(name)
        [base] = self.values["none", "share"]
        return [float(base.mean() - one.mean()) for one in self.values[name, "share"]]

    def _contains(self, name: str) -> str:
        if name in self.drawn:
            return "draws"
        sampled = [
            source
            for outcome, source in (
                ("propensity", "items"),
                ("share", "prompts"),
                ("loss", "neutral texts"),
            )
            if (name, outcome) in self.values
        ]
        return ", ".join([*sampled, *refits_of(name, self.arms)])

    # -------------------------------------------------------------------------------- with sources

    def _widened(self, name: str, sampled: Interval, values: Any) -> tuple[Interval, dict]:
        """Return an interval with the variation by contrast pairs and map, and their errors.

        ``values`` is a function of (arm of refits, source) that returns one value per refit.
        """
        refits = refits_of(name, self.arms)
        by_refit = {source: values(arm, source) for source, arm in refits.items()}
        errors = {source: jackknife_error(one) for source, one in by_refit.items()}
        groups = {source: len(one) for source, one in by_refit.items()}
        return total(sampled, errors, groups), errors

    def _drops(self, name: str) -> list[float]:
        """Return the mean drop of each draw."""
        [before] = self.values["none", "propensity"]
        return [float((before - one).mean()) for one in self.values[name, "propensity"]]

    def _propensity_columns(self, name: str) -> tuple[dict[str, float], list[str]]:
        # drop = propensity without ablation − propensity under ablation, item by item
        [before], [own] = self.values["none", "propensity"], self.values["native", "propensity"]
        drops, native = self._drops(name), float((before - own).mean())
        errors: dict[str, float] = {}
        if name in self.drawn:
            drop = prediction_interval(drops)
            share = prediction_interval(np.array(drops) / native) if native else NOTHING
        else:
            [values] = self.values[name, "propensity"]
            options: dict[str, Any] = {"clusters": self.clusters, "seed": self.seed}
            drop = bootstrap_mean(before - values, **options)
            drop, errors = self._widened(name, drop, lambda arm, _: self._drops(arm))
            share = bootstrap_ratio(before - values, before - own, **options)
            if name == "native" and not math.isnan(share.value):
                # By definition.
                share = Interval(1.0, 1.0, 1.0)
            elif not math.isnan(share.value):
                share, _ = self._widened(name, share, self._shares_of_native)
        columns = {
            "propensity": float(np.mean(self.values[name, "propensity"])),
            "drop": drop.value,
            "drop_low": drop.low,
            "drop_high": drop.high,
            "drop_share": share.value,
            "drop_share_low": share.low,
            "drop_share_high": share.high,
        }
        columns |= {f"drop_{_ERRORS[source]}": error for source, error in errors.items()}
        return columns, [drop.flag, share.flag]

    def _shares_of_native(self, arm: str, source: str) -> list[float]:
        """Return the drop of each refit as a share of the native one."""
        # The pairs that the transferred vector lacks are missing from the native one too.
        below = self._drops("native_refit" if source == CONTRAST else "native")
        return (np.array(self._drops(arm)) / np.array(below)).tolist()

    def _damage_columns(self, name: str) -> tuple[dict[str, float], list[str]]:
        # damage = Σ n_tokens (loss under ablation − loss) / Σ n_tokens over texts, so that every
        # token counts the same.
        tokens, [before] = self.sizes["none", "loss"], self.values["none", "loss"]

        def damages(arm: str, _: str = "") -> list[float]:
            draws = self.values[arm, "loss"]
            return [float(((one - before) * tokens).sum() / tokens.sum()) for one in draws]

        errors: dict[str, float] = {}
        if name in self.drawn:
            damage = prediction_interval(damages(name))
        else:
            # A text without a token that counts says nothing.
            counts = tokens > 0
            rises = ((self.values[name, "loss"][0] - before) * tokens)[counts]
            damage = bootstrap_ratio(rises, tokens[counts], positive=True, seed=self.seed)
            damage, errors = self._widened(name, damage, damages)
        columns = {"damage": damage.value, "damage_low": damage.low, "damage_high": damage.high}
        columns |= {f"damage_{_ERRORS[source]}": error for source, error in errors.items()}
        return columns, [damage.flag.replace("items", "neutral texts")]

    def _share_columns(self, name: str) -> tuple[dict[str, float], list[str]]:
        draws, n_samples = self.values[name, "share"], int(self.sizes[name, "share"][0])
        if name in self.drawn:
            share = prediction_interval([float(draw.mean()) for draw in draws])
        else:
            # The share of a prompt is a count divided by n_samples.
            share = clustered_share(np.round(draws[0] * n_samples), n_samples)
        share = share.within()
        columns = {
            "share": share.value,
            "share_low": share.low,
            "share_high": share.high,
            "share_drop": float(np.mean(self.values["none", "share"]) - np.mean(draws)),
            "n": len(draws[0]) * n_samples,
        }
        return columns, [share.flag]
