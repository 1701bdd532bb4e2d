"""Predictions of how well an artefact serves on each hook pair, from what is known of it.

Problem: what is known differs: a survey has no fidelities, and the target may not have read the
texts. Mechanism: one rule per kind of artefact, which uses the best evidence that there is:

    vector   ρ_read · gain over token identity (mean R² over dimensions if that is unknown);
             ρ_read · effect of the target's own vector, if that was measured
    probe    Φ(ρ_read · d′/√2); the AUROC of the transferred probe if the target read the texts

Φ(d′/√2) is the AUROC of two normal distributions d′ standard deviations apart. If the read-out on
the target is that of the source with noise, correlated by ρ with it, then its classes are ρ·d′
apart, in standard deviations of the whole stream's read-out.

    fidelities = pair_fidelities(grid, pairs, source_reading, settings)

Limits: for surveyed hook pairs ρ is √R² of the map, the root mean square over all directions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from lrt_lens._progress import tqdm
from lrt_lens.adapters.layers._artefact_texts import ModelReading
from lrt_lens.adapters.layers._layer_choice import LAYER_COLUMNS
from lrt_lens.adapters.layers._reading import held_out_logits, pooled_auroc
from lrt_lens.adapters.layers._settings import LayerChoiceSettings
from lrt_lens.adapters.probes._logistic import Logistic
from lrt_lens.models._hook_points import HookPair
from lrt_lens.statistics._intervals import NOTHING, Interval, joined_flags
from lrt_lens.statistics._random_directions import random_directions
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching._crossed_fidelity import CrossedFidelity
from lrt_lens.stitching._fidelity import correlation_of
from lrt_lens.stitching._grid import StitchGrid
from lrt_lens.stitching._pair_table import knows_tokens


@dataclass(frozen=True)
class PairFidelity:
    """Cross-validated fidelities of the artefact on one hook pair."""

    read: Interval
    """ρ_read; for a probe of several classes the mean over its columns."""
    write: Interval
    """ρ_write, likewise."""
    random: float
    """Mean ρ_read of random directions, the control."""


def pair_fidelities(
    grid: StitchGrid, pairs: Sequence[HookPair], source: ModelReading, settings: LayerChoiceSettings
) -> dict[HookPair, PairFidelity]:
    """Return the fidelities of the artefact of each source hook point on its hook pairs.

    Args:
        grid: maps and exact moments.
        pairs: hook pairs of the grid.
        source: the artefacts.
        settings: number of random directions, seed, and whether a bar is shown.
    """
    crossed = CrossedFidelity(grid)
    usable = [one for one in pairs if one[0] in source.hooks]
    artefact = {hook: reading.direction for hook, reading in source.hooks.items()}
    random = {
        hook: _random(grid, next(p for p in usable if p[0] == hook), settings)
        for hook in dict.fromkeys(hook for hook, _ in usable)
    }
    reads: dict[HookPair, tuple[Interval, float]] = {}
    bar = tqdm(total=2 * len(usable), desc="fidelity", disable=not settings.progress, leave=False)
    # Maps down share decompositions by target hook point, maps up by source hook point.
    for one in sorted(usable, key=lambda pair: pair[1]):
        own = artefact[one[0]]
        sums = crossed.fold_sums(one, torch.cat([own, random[one[0]]]), "read")
        control = correlation_of(sums[:, :, len(own) :].sum(0)).mean()
        reads[one] = crossed.interval(sums[:, :, : len(own)]), float(control)
        bar.update()
    found = {}
    for one in sorted(usable, key=lambda pair: pair[0]):
        write = crossed.interval(crossed.fold_sums(one, artefact[one[0]], "write"))
        found[one] = PairFidelity(reads[one][0], write, reads[one][1])
        bar.update()
    bar.close()
    return found


def _random(grid: StitchGrid, hook_pair: HookPair, settings: LayerChoiceSettings) -> Tensor:
    """Return random directions of the source's stream, from its covariance in the fitting folds."""
    fit = grid.moments.scatter(hook_pair, grid.moments.parts.fit)
    generator = torch.Generator().manual_seed(settings.seed)
    width = len(fit.mean_x)
    noise = torch.randn(settings.n_random, width, generator=generator, dtype=torch.float64)
    return random_directions(noise, fit.xx / fit.n)


@dataclass(frozen=True)
class Predictions:
    """Everything known of the hook pairs, as rows of a table."""

    role: Literal["vector", "probe"]
    """Kind of artefact."""
    scores: pd.DataFrame
    """Scores of the grid or survey."""
    source: ModelReading
    """Readings of the source."""
    target: ModelReading | None
    """Readings of the target; None if it did not read the texts."""
    effects: Mapping[str, float]
    """Effect of the target's own vector by hook point; empty if it was not measured."""
    fidelities: Mapping[HookPair, PairFidelity]
    """Fidelities of the hook pairs with exact moments."""
    maps: Mapping[HookPair, tuple[AffineMap, AffineMap]]
    """Maps up and down of these hook pairs, if the target read the texts."""

    @property
    def rule(self) -> str:
        """Meaning of ``predicted``, in words."""
        if self.role == "probe":
            if self.maps:
                return "AUROC of the transferred probe on held-out texts"
            return "AUROC on the target, Φ(fidelity · d′/√2)"
        if self.effects:
            return "fidelity × effect of the target's own vector at equal damage (nats)"
        known = "gain over token identity" if self.knows_tokens else "mean R² over dimensions"
        return f"fidelity × {known}"

    @property
    def knows_tokens(self) -> bool:
        """True if the scores say what token identity explains, so that there is a gain over it."""
        return knows_tokens(self.scores)

    def table(self, pairs: Sequence[HookPair]) -> pd.DataFrame:
        """Return one row per hook pair, those of the artefact's own fidelity first, then by rank.

        Raises:
            ValueError: no hook pair has a prediction.
        """
        table = pd.DataFrame([self._row(one) for one in pairs], columns=list(LAYER_COLUMNS))
        if not table["predicted"].notna().to_numpy().any():
            raise ValueError(
                f"no hook pair has a prediction ({table['flag'].iloc[0]}); give other texts"
            )
        # √R² of a map is no fidelity of a direction, so such rows come behind those with one.
        exact = table["fidelity_of"] == "direction"
        known = table["predicted"].notna()
        order = table.assign(known=known, exact=exact).sort_values(
            ["known", "exact", "predicted"], ascending=False, kind="stable", ignore_index=True
        )
        return order.drop(columns=["known", "exact"])

    def _row(self, one: HookPair) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(LAYER_COLUMNS, math.nan)
        row |= {"source_hook": one[0], "target_hook": one[1], "flag": "", "fidelity_of": ""}
        row["gain_cv"] = float(self._scores.loc[one, "gain_cv"])
        missing = [self.source.flags.get(one[0], "")]
        missing += [self.target.flags.get(one[1], "")] if self.target else []
        fidelity, row["fidelity_of"] = self._fidelity(one)
        row |= {
            "fidelity": fidelity.value,
            "fidelity_low": fidelity.low,
            "fidelity_high": fidelity.high,
        }
        flags = [*missing, fidelity.flag]
        if one[0] in self.source.hooks:
            reading = self.source.hooks[one[0]]
            auroc = reading.auroc
            row |= {
                "auroc": auroc.value,
                "auroc_low": auroc.low,
                "auroc_high": auroc.high,
                "n_texts": len(self.source.rows[one[0]]),
                "d_prime": reading.d_prime,
                "split_half": reading.split_half,
                "norm_share": reading.norm_share,
            }
            flags.append(auroc.flag)
        if one in self.fidelities:
            known = self.fidelities[one]
            row |= {
                "rho_read": known.read.value,
                "rho_write": known.write.value,
                "rho_random": known.random,
            }
        row |= self._of_target(one)
        row["predicted"] = self._predicted(row)
        row["flag"] = joined_flags(flags)
        return row

    @cached_property
    def _scores(self) -> pd.DataFrame:
        return self.scores.set_index(["source_hook", "target_hook"])

    def _fidelity(self, one: HookPair) -> tuple[Interval, str]:
        """Return the fidelity that the prediction uses, and what it is the fidelity of."""
        if one[0] not in self.source.hooks:
            return NOTHING, ""
        if one in self.fidelities:
            return self.fidelities[one].read, "direction"
        scores = self._scores.loc[one]
        # A survey of both directions knows the map down, which reads.
        column = (
            "r2_uniform_down_cv"
            if scores.get("r2_uniform_down_cv", math.nan) > 0
            else "r2_uniform_cv"
        )
        # R² of the best linear read-out of a unit-variance direction is its squared correlation.
        value = math.sqrt(max(float(scores[column]), 0.0))
        return Interval(value, math.nan, math.nan), "mean direction"

    def _of_target(self, one: HookPair) -> dict[str, float]:
        """Return the columns of a hook pair that need the target's reading of the texts."""
        target, source = self.target, self.source
        if target is None or one[0] not in source.hooks or one[1] not in target.hooks:
            return {}
        native = target.hooks[one[1]]
        columns = {"native_auroc": native.auroc.value}
        if self.effects:
            columns["native_effect"] = self.effects.get(one[1], math.nan)
        if one not in self.maps:
            return columns
        up, down = self.maps[one]
        own = source.hooks[one[0]]
        if self.role == "vector":
            columns["agreement"] = _cosine(
                own.direction @ up.weight.double().cpu(), native.direction
            )
            return columns
        columns["agreement"] = _cosine(
            own.direction @ down.weight.double().cpu().T, native.direction
        )
        moved = [_through(down, classifier) for classifier in own.of_folds]
        logits = held_out_logits(target.rows[one[1]], source.learner, moved)
        columns["transferred_auroc"] = pooled_auroc(logits, source.learner).value
        return columns

    def _predicted(self, row: dict[str, Any]) -> float:
        if self.role == "vector":
            # In early layers both streams encode the current token, and every direction has a high
            # fidelity there: the gain is what the map knows beyond the token.
            return row["fidelity"] * self._known(row)
        if not math.isnan(row["transferred_auroc"]):
            return row["transferred_auroc"]
        return auroc_of(row["fidelity"] * row["d_prime"])

    def _known(self, row: dict[str, Any]) -> float:
        """Return what the fidelity of a vector is multiplied by: what the map knows, or effects."""
        if self.effects:
            return row["native_effect"]
        if self.knows_tokens:
            return row["gain_cv"]
        return float(self._scores.loc[row["source_hook"], row["target_hook"]]["r2_uniform_cv"])


def auroc_of(d_prime: float) -> float:
    """Return the AUROC of two normal distributions ``d_prime`` standard deviations apart."""
    from scipy.stats import norm

    # AUROC = Φ(d′/√2)
    return float(norm.cdf(d_prime / math.sqrt(2)))


def _through(down: AffineMap, classifier: Logistic) -> Logistic:
    """Return a classifier of the source as one of the target's states, mapped down."""
    weight, bias = down.weight.double().cpu().numpy(), down.bias.double().cpu().numpy()
    # (y W + b) w + c = y (W w) + (b·w + c)
    return Logistic(weight @ classifier.weight, bias @ classifier.weight + classifier.bias)


def _cosine(first: Tensor, second: Tensor) -> float:
    """Return the mean cosine of matching rows [column, d]."""
    return float(torch.nn.functional.cosine_similarity(first, second, dim=1).mean())
