"""Directional ablation: how much of a behaviour is lost without a direction, at which damage?

    result = evaluate_ablation(pair, stitch, vector, items=items, neutral=texts)
    result.summary    # drop of the behaviour and damage, per arm, at one hook point and at all

Problem: adding a vector shows that a direction can cause a behaviour, not that the model needs it.
Mechanism: Arditi et al. (arXiv 2406.11717, eq. 4), ``h' = h − ⟨h, v̂⟩ v̂`` with the unit vector v̂,
at the input and after the attention and the MLP of every block (``"everywhere"``: no component can
write along v̂ any more, which equals projecting v̂ out of every matrix that writes to the stream),
or at the stitch's target hook point alone (``"hook"``: later blocks may write along v̂ again). The
paper learns v in the model itself; here it is transferred from a smaller one and compared with the
native vector, random directions and the map of shuffled pairs.

Outcomes: propensity for the behaviour (``items``), share of continuations that a classifier calls
the behaviour (``prompts`` and ``classifier``), or both. Damage is the rise of the loss on neutral
text, in nats per token.

Limits: the first positions of a text, which the map never saw, are not ablated unless
``skip_first=0`` (the paper ablates all positions).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens.adapters.vectors._arms import behaviour_arms, known_contrast_of
from lrt_lens.adapters.vectors._continuations import Classifier, Continuations
from lrt_lens.adapters.vectors._preferences import PreferenceText
from lrt_lens.adapters.vectors._steering_hook import SteeringHook, setting
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.figures._behaviour import ablation_figure
from lrt_lens.models._hook_points import EMBED
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.statistics._bootstrap import bootstrap_mean, bootstrap_ratio
from lrt_lens.statistics._draws import prediction_interval
from lrt_lens.statistics._intervals import Interval, clopper_pearson
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.typing import Direction

Where = Literal["hook", "everywhere"]
"""Hook points that are ablated: the stitch's target hook point (``"hook"``), or every hook point of
the model (``"everywhere"``)."""
_BATCH = 32
"""Number of neutral texts per forward pass."""


@dataclass(frozen=True)
class AblationSettings(Settings):
    """Settings of `evaluate_ablation`: hook points, sampling of continuations, and controls."""

    places: Sequence[Where] = ("hook", "everywhere")
    """Hook points at which directions are ablated; each gives its own rows of the tables."""
    skip_first: int = SKIP_FIRST
    """Number of first positions of a text that are not changed; 0 ablates all positions."""
    n_samples: int = 4
    """Number of continuations per prompt."""
    max_new_tokens: int = 40
    """Number of tokens per continuation."""
    n_random: int = 4
    """Number of random directions: half isotropic, half with the covariance of the target's
    stream."""
    n_shuffled: int = 4
    """Number of maps of shuffled pairs: that of the stitch, and draws of such maps."""
    seed: int = 0
    """Seed of directions, samples and bootstraps."""
    progress: bool = True
    """Show a progress bar."""


def ablation_hooks(
    model: HookedModel,
    direction: Direction,
    *,
    where: Where = "everywhere",
    hook: str | None = None,
    skip_first: int = SKIP_FIRST,
) -> dict[int | str, SteeringHook]:
    """Return hooks for `HookedModel.intervene` that project a direction out of the stream.

    Arditi et al. (arXiv 2406.11717, eq. 4).

    Args:
        model: the model whose residual stream is changed.
        direction: [d_model], of any length but 0.
        where: ``"everywhere"``: the input of every block, its stream after the attention if it has
            a hook point there, and its output; ``"hook"``: one hook point.
        hook: the hook point for ``"hook"``.
        skip_first: first positions of a text that are not changed.

    Raises:
        ValueError: a direction of another width or of length 0, an unknown ``where``, or
            ``"hook"`` without a hook point.
    """
    if direction.shape != (model.d_model,) or not float(direction.norm()) > 0:
        raise ValueError(
            f"direction has shape {tuple(direction.shape)} and norm {float(direction.norm()):.3g}; "
            f"expected [{model.d_model}] and a norm above 0"
        )
    if where not in ("hook", "everywhere") or (where == "hook" and hook is None):
        raise ValueError(
            f"where is {where!r} with hook {hook!r}; "
            "expected 'everywhere', or 'hook' and the name of one"
        )
    if where == "hook" and hook is not None:
        names = [hook]
    else:
        # The embedding is the input of the first block, which has its own hook point.
        names = [name for name in model.hook_points if name != EMBED]
    # Setting the component along v̂ to 0 is h − ⟨h, v̂⟩ v̂.
    return {name: SteeringHook(setting(direction, 0.0), "all", skip_first) for name in names}


@dataclass(frozen=True)
class AblationEvaluation:
    """Drop of a behaviour, and damage, under directional ablation, per arm."""

    table: pd.DataFrame
    """One row per arm, draw, where (``hook`` or ``everywhere``), outcome and unit: value, n_tokens.

    The outcome is the propensity of an item in nats (``propensity``), the share of a prompt's
    continuations that show the behaviour (``share``), or the loss of a neutral text (``loss``).
    """
    summary: pd.DataFrame
    """One row per ``where`` and arm.

    Columns: behaviour, n_draws; with items: propensity, drop with drop_low and drop_high,
    drop_share (drop as a share of the native drop); with a classifier: share with share_low and
    share_high (Clopper–Pearson), share_drop; damage with damage_low and damage_high; cosine (to the
    native vector).
    """

    def figure(self) -> Any:
        """Return a plotly figure of drop and damage by arm and hook points."""
        return ablation_figure(self.summary)

    def _repr_html_(self) -> str:
        return card("AblationEvaluation", table(self.summary))


@takes(AblationSettings)
def evaluate_ablation(
    pair: ModelPair,
    stitch: Stitch,
    vector: SteeringVector,
    *,
    neutral: Sequence[str],
    items: ChoiceItems | None = None,
    prompts: Sequence[str] | None = None,
    classifier: Classifier | None = None,
    contrast: ContrastSet | None = None,
    settings: AblationSettings | None = None,
    **options: Any,
) -> AblationEvaluation:
    """Return the drop of a behaviour and the damage under ablation of a vector and its controls.

    Args:
        pair: both models.
        stitch: a stitch from the vector's hook point to a hook point of the target.
        vector: learnt on the source.
        neutral: texts without the behaviour, on which damage is measured.
        items: choice items whose positive continuation is the behaviour.
        prompts: texts to continue; needs ``classifier``.
        classifier: function of a continuation that returns True if it shows the behaviour.
        contrast: texts from which the native vector is learnt; by default those of the vector, if
            it still holds them.
        settings: all settings; see `AblationSettings`.
        options: fields of `AblationSettings` as keywords.

    Raises:
        ValueError: neither items nor prompts with a classifier, no neutral text that is long
            enough, or the contrast texts are unknown.
        MismatchError: a stitch of other models, a vector of another model or hook point, or
            contrast texts that the vector was not learnt from.
    """
    settings = resolve(AblationSettings, settings, options)
    stitch.check(pair.source, pair.target)
    stitch.refuse_foreign(vector.origin)
    contrast = known_contrast_of(vector, contrast)
    if (prompts is None) != (classifier is None) or (items is None and prompts is None):
        raise ValueError(
            "no behaviour to measure; give items=ChoiceItems(...), "
            "or prompts=[...] together with classifier=..., or both"
        )
    continuations = (
        None
        if prompts is None or classifier is None
        else Continuations(
            prompts, classifier, settings.n_samples, settings.max_new_tokens, seed=settings.seed
        )
    )
    outcomes = _AblationOutcomes(pair.target, neutral, items, continuations, settings.skip_first)
    # Without hooks all values of `where` give the same result: measured once, listed for each.
    unablated = outcomes.measure({}).assign(arm="none", draw=None)
    parts = [unablated.assign(where=where) for where in settings.places]
    arms = behaviour_arms(
        pair,
        stitch,
        vector,
        contrast,
        n_random=settings.n_random,
        n_shuffled=settings.n_shuffled,
        seed=settings.seed,
    )
    bar = tqdm(arms, desc=f"ablate {vector.name}", disable=not settings.progress, leave=False)
    for arm in bar:
        for where in settings.places:
            hooks = ablation_hooks(
                pair.target,
                arm.vector.direction,
                where=where,
                hook=arm.vector.hook,
                skip_first=settings.skip_first,
            )
            parts.append(outcomes.measure(hooks).assign(arm=arm.name, draw=arm.draw, where=where))
    table = pd.concat([part.astype({"draw": "Int64"}) for part in parts], ignore_index=True)
    # behaviour_arms returns the native arm first.
    cosines = {arm.name: arms[0].vector.cosine(arm.vector) for arm in arms if arm.draw is None}
    summary = _summary(table, vector.name, cosines, settings.seed)
    return AblationEvaluation(table=table, summary=summary)


class _AblationOutcomes:
    """Loss, propensities and shares of continuations of one model under any hooks."""

    def __init__(
        self,
        model: HookedModel,
        neutral: Sequence[str],
        items: ChoiceItems | None,
        continuations: Continuations | None,
        skip_first: int,
    ) -> None:
        self.model, self.continuations = model, continuations
        # The first token of a text is not predicted, so even skip_first=0 counts from the second.
        self.skip_first = max(skip_first, 1)
        # Texts longer than the context are read in windows: (number of the text, ids).
        windows = model.codec.windows(neutral)
        self.rows = [(text, row) for text, parts in enumerate(windows) for row in parts]
        self.rows.sort(key=lambda numbered: len(numbered[1]))
        if len(self.rows[-1][1]) <= self.skip_first + 1:
            raise ValueError(
                f"no neutral text is longer than {self.skip_first + 1} tokens; "
                "give texts of a few sentences"
            )
        # The embedding is not ablated, so passes may resume there while all later hook points have
        # hooks.
        self.items = None if items is None else PreferenceText(model, items, EMBED)

    def measure(self, hooks: dict[int | str, SteeringHook]) -> pd.DataFrame:
        """Return one row per outcome and unit: outcome, unit, value, n_tokens."""
        # One registration of the hooks serves all outcomes.
        with self.model.intervene({**hooks}):
            losses, n_tokens = self._losses()
            columns: list[tuple[str, np.ndarray, np.ndarray | int]] = [("loss", losses, n_tokens)]
            if self.items is not None:
                columns.append(("propensity", self.items.propensity(), 1))
            if self.continuations is not None:
                texts = self.continuations.generate(self.model)
                shares = self.continuations.by_prompt(self.continuations.judge(texts))
                columns.append(("share", shares, self.continuations.n_samples))
        parts = [
            pd.DataFrame(
                {"outcome": name, "unit": range(len(values)), "value": values, "n_tokens": n}
            )
            for name, values, n in columns
        ]
        return pd.concat(parts, ignore_index=True)

    def _losses(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean loss and number of tokens, each [text], after the positions to skip."""
        sums = np.zeros(1 + max(text for text, _ in self.rows))
        counts = np.zeros(len(sums), dtype=int)
        for start in range(0, len(self.rows), _BATCH):
            batch = self.rows[start : start + _BATCH]
            losses = self.model.token_losses([row for _, row in batch])[:, self.skip_first :]
            for (text, _), row in zip(batch, losses, strict=True):
                # Padding has NaN as its loss.
                counted = row[~row.isnan()].double()
                sums[text] += float(counted.sum())
                counts[text] += len(counted)
        # A text without a counted token has weight 0; a mean of 0 avoids 0 · NaN = NaN.
        return sums / np.maximum(counts, 1), counts


def _summary(
    table: pd.DataFrame, behaviour: str, cosines: dict[str, float], seed: int
) -> pd.DataFrame:
    rows, arms = [], cast(Any, table.groupby(["where", "arm"], sort=False))
    for (where, name), part in arms:
        base, native = _by_outcome(table, where, "none"), _by_outcome(table, where, "native")
        row: dict[str, Any] = {
            "where": where,
            "arm": name,
            "behaviour": behaviour,
            # nunique leaves out missing draws, so an arm of one vector would count 0.
            "n_draws": max(1, part["draw"].nunique()),
        }
        for outcome, values in part.groupby("outcome", sort=False):
            row |= _COLUMNS[str(outcome)](values, base[str(outcome)], native[str(outcome)], seed)
        rows.append(row | {"cosine": cosines.get(str(name), math.nan)})
    return pd.DataFrame(rows)


def _by_outcome(table: pd.DataFrame, where: str, arm: str) -> dict[str, pd.DataFrame]:
    rows: pd.DataFrame = table.loc[(table["where"] == where) & (table["arm"] == arm)]
    return {str(outcome): part for outcome, part in rows.groupby("outcome")}


def _draws(values: pd.DataFrame) -> list[np.ndarray]:
    """Return the values [unit] of each draw."""
    # dropna=False keeps an arm of one vector, whose draw is missing.
    return [part["value"].to_numpy() for _, part in values.groupby("draw", dropna=False, sort=True)]


def _over(draws: list[np.ndarray], seed: int) -> Interval:
    """Return a bootstrap over units for an arm of one vector, the range over draws for others."""
    return (
        bootstrap_mean(draws[0], seed=seed)
        if len(draws) == 1
        else prediction_interval([float(draw.mean()) for draw in draws])
    )


def _propensity_columns(
    values: pd.DataFrame, base: pd.DataFrame, native: pd.DataFrame, seed: int
) -> dict[str, float]:
    # drop = propensity without ablation − propensity under ablation, item by item
    before, own = base["value"].to_numpy(), native["value"].to_numpy()
    drops = [before - draw for draw in _draws(values)]
    drop = _over(drops, seed)
    share = bootstrap_ratio(np.mean(drops, axis=0), before - own, seed=seed)
    return {
        "propensity": float(np.mean(_draws(values))),
        "drop": drop.value,
        "drop_low": drop.low,
        "drop_high": drop.high,
        "drop_share": share.value,
        "drop_share_low": share.low,
        "drop_share_high": share.high,
    }


def _share_columns(
    values: pd.DataFrame, base: pd.DataFrame, _native: pd.DataFrame, _seed: int
) -> dict[str, float]:
    draws, n_samples = _draws(values), int(values["n_tokens"].iloc[0])
    # The share of a prompt is a count divided by n_samples, so the product is a whole number up to
    # rounding.
    count, n = round(float(draws[0].sum() * n_samples)), len(draws[0]) * n_samples
    share = (
        clopper_pearson(count, n)
        if len(draws) == 1
        else prediction_interval([float(draw.mean()) for draw in draws])
    )
    drop = float(np.mean(_draws(base)) - np.mean(draws))
    return {
        "share": share.value,
        "share_low": share.low,
        "share_high": share.high,
        "share_drop": drop,
        "n": n,
    }


def _damage_columns(
    values: pd.DataFrame, base: pd.DataFrame, _native: pd.DataFrame, seed: int
) -> dict[str, float]:
    # damage = Σ n_tokens (loss under ablation − loss) / Σ n_tokens over texts, so that every token
    # counts the same.
    before, tokens = base["value"].to_numpy(), base["n_tokens"].to_numpy(dtype=float)
    rises = [(draw - before) * tokens for draw in _draws(values)]
    damage = (
        bootstrap_ratio(rises[0], tokens, seed=seed)
        if len(rises) == 1
        else prediction_interval([float(rise.sum() / tokens.sum()) for rise in rises])
    )
    return {"damage": damage.value, "damage_low": damage.low, "damage_high": damage.high}


_COLUMNS = {"loss": _damage_columns, "propensity": _propensity_columns, "share": _share_columns}
"""Function from the rows of each outcome to its columns of the summary."""
