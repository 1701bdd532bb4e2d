"""Directional ablation: take one direction out of the target's stream. Does a behaviour go, and
what else goes with it?

    result = evaluate_ablation(pair, stitch, vector, items=items, neutral=texts)                 # or prompts=..., classifier=...
    result.summary          # drop of the behaviour and damage on neutral text, per arm, at one hook point and at all

Arditi et al. (arXiv 2406.11717, eq. 4): ``h' = h − ⟨h, v⟩ v`` with the unit vector v, at the input
and after the attention and the MLP of every block (``"everywhere"``: no component can write along v
any more, which is the same as projecting v out of every matrix that writes to the stream), or at
the stitch's hook point alone (``"hook"``, from where later blocks may write it again). They learn v
in the model itself; here it comes from a smaller one, beside the native one, random directions and
the map of shuffled pairs.

Outcomes: propensity for the behaviour (``items``), share of continuations that a classifier calls
the behaviour (``prompts``, ``classifier``), or both; damage is the rise of the loss on neutral
text, in nats per token. The first positions, which the map never saw, are left alone unless
``skip_first=0`` (the paper's way).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, table
from lrt_lens.adapters.vectors._clamping import behaviour_arms
from lrt_lens.adapters.vectors._continuations import Classifier, Continuations
from lrt_lens.adapters.vectors._preferences import PreferenceText
from lrt_lens.adapters.vectors._steering_hook import SteeringHook, setting
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.models._hook_points import EMBED
from lrt_lens.models._hooked_model import SKIP_FIRST, HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._intervals import (
    Interval,
    bootstrap_mean,
    bootstrap_ratio,
    clopper_pearson,
    spread,
)
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.typing import Direction

Where = Literal["hook", "everywhere"]
_BATCH = 32


def ablation_hooks(
    model: HookedModel,
    direction: Direction,
    *,
    where: Where = "everywhere",
    hook: str | None = None,
    skip_first: int = SKIP_FIRST,
) -> dict[int | str, SteeringHook]:
    """Hooks for `HookedModel.intervene` that project a direction out of the residual stream.

    Args:
        model: whose stream.
        direction: [d_model], of any length but 0.
        where: ``"everywhere"``: the input of every block, its stream after attention where it has
            one, and its output; ``"hook"``: one place.
        hook: the place for ``"hook"``.
        skip_first: first positions that stay as they are.
    """
    if direction.shape != (model.d_model,) or not float(direction.norm()) > 0:
        raise ValueError(
            f"direction has shape {tuple(direction.shape)} and norm {float(direction.norm()):.3g}; "
            f"expected [{model.d_model}] and a norm above 0"
        )
    if where not in ("hook", "everywhere") or (where == "hook" and hook is None):
        raise ValueError(
            f"where is {where!r} with hook {hook!r}; expected 'everywhere', or 'hook' and the name of one"
        )
    names = (
        [hook]
        if where == "hook" and hook is not None
        else [name for name in model.hook_points if name != EMBED]
    )
    return {name: SteeringHook(setting(direction, 0.0), "all", skip_first) for name in names}


@dataclass(frozen=True)
class AblationEvaluation:
    """What goes when a direction goes."""

    table: pd.DataFrame
    """A row per arm, draw, place (where) and unit (outcome: propensity of an item in nats, share of
    a prompt's continuations, loss of a neutral text): unit, value, n_tokens."""
    summary: pd.DataFrame
    """A row per place and arm: behaviour, n_draws; with items: propensity, drop with drop_low and
    drop_high, drop_share (of native); with a classifier: share with share_low and share_high
    (Clopper–Pearson), share_drop; damage with damage_low and damage_high; cosine (to the native
    vector)."""

    def figure(self) -> Any:
        """Drop of the behaviour and damage, by arm and place (plotly)."""
        from lrt_lens.figures._behaviour import ablation_figure

        return ablation_figure(self.summary)

    def _repr_html_(self) -> str:
        return card("AblationEvaluation", table(self.summary))


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
    places: Sequence[Where] = ("hook", "everywhere"),
    skip_first: int = SKIP_FIRST,
    n_samples: int = 4,
    max_new_tokens: int = 40,
    n_random: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> AblationEvaluation:
    """Drop of a behaviour and damage under ablation of the transferred direction and its controls; see
    the module docstring.

    Args:
        pair: both models.
        stitch: between the vector's hook point and one of the target.
        vector: learnt on the source.
        neutral: texts without the behaviour, on which damage is measured.
        items: the positive continuation is the behaviour.
        prompts, classifier: texts to continue, and text → bool.
        contrast: what the native vector is learnt from; the vector's own where it still holds it.
        places: at the stitch's target hook, everywhere, or both.
        skip_first: first positions of a text that stay as they are; 0 ablates all.
        n_samples, max_new_tokens: continuations of each prompt.
        n_random: random directions.
        seed: of draws, samples and bootstraps.
        progress: show a bar.

    Raises:
        ValueError: neither items nor prompts with a classifier, no neutral text, or no contrast
            texts are known.
    """
    stitch.check(pair.source, pair.target)
    contrast = contrast or vector.contrast_set
    if contrast is None:
        raise ValueError(
            f"vector {vector.name!r} does not hold the texts it was learnt from; give contrast=..., the native vector is learnt from it"
        )
    if (prompts is None) != (classifier is None) or (items is None and prompts is None):
        raise ValueError(
            "no behaviour to measure; give items=ChoiceItems(...), or prompts=[...] together with classifier=..., or both"
        )
    judged = (
        None
        if prompts is None or classifier is None
        else Continuations(prompts, classifier, n_samples, max_new_tokens, seed=seed)
    )
    bench = _Bench(pair.target, neutral, items, judged, skip_first)
    parts = [bench.measure({}).assign(arm="none", draw=None, where=place) for place in places[:1]]
    parts += [parts[0].assign(where=place) for place in places[1:]]
    arms = behaviour_arms(pair, stitch, vector, contrast, n_random, seed)
    for arm in tqdm(arms, desc=f"ablate {vector.name}", disable=not progress, leave=False):
        for place in places:
            hooks = ablation_hooks(
                pair.target,
                arm.vector.direction,
                where=place,
                hook=arm.vector.hook,
                skip_first=skip_first,
            )
            parts.append(bench.measure(hooks).assign(arm=arm.name, draw=arm.draw, where=place))
    table = pd.concat([part.astype({"draw": "Int64"}) for part in parts], ignore_index=True)
    cosines = {arm.name: arms[0].vector.cosine(arm.vector) for arm in arms if arm.draw is None}
    return AblationEvaluation(table=table, summary=_summary(table, vector.name, cosines, seed))


class _Bench:
    """Everything that is measured under one set of hooks."""

    def __init__(
        self,
        model: HookedModel,
        neutral: Sequence[str],
        items: ChoiceItems | None,
        judged: Continuations | None,
        skip_first: int,
    ) -> None:
        self.model, self.judged, self.skip_first = model, judged, max(skip_first, 1)
        self.rows = sorted(model.encode(neutral), key=len)
        if len(self.rows[-1]) <= self.skip_first + 1:
            raise ValueError(
                f"no neutral text is longer than {self.skip_first + 1} tokens; give texts of a few sentences"
            )
        # At the embedding nothing is ablated, so passes may start there while hooks are on
        # everywhere behind it.
        self.items = None if items is None else PreferenceText(model, items, EMBED)

    def measure(self, hooks: dict[int | str, SteeringHook]) -> pd.DataFrame:
        """outcome, unit, value, n_tokens."""
        with self.model.intervene({**hooks}):
            losses, counts = self._losses()
            found = {"loss": losses}
            if self.items is not None:
                found["propensity"] = self.items.propensity()
            if self.judged is not None:
                found["share"] = self.judged.by_prompt(
                    self.judged.judge(self.judged.generate(self.model))
                )
        parts = [
            pd.DataFrame(
                {
                    "outcome": name,
                    "unit": range(len(values)),
                    "value": values,
                    "n_tokens": counts if name == "loss" else 1,
                }
            )
            for name, values in found.items()
        ]
        if self.judged is not None:
            parts[-1]["n_tokens"] = self.judged.n_samples
        return pd.concat(parts, ignore_index=True)

    def _losses(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean loss, number) of every neutral text's tokens behind the first steered position."""
        losses = []
        for start in range(0, len(self.rows), _BATCH):
            block = self.model.token_losses(self.rows[start : start + _BATCH])[:, self.skip_first :]
            losses += [row[~row.isnan()].double().cpu().numpy() for row in block]
        return np.array([row.mean() if len(row) else 0.0 for row in losses]), np.array(
            [len(row) for row in losses]
        )


def _summary(
    table: pd.DataFrame, behaviour: str, cosines: dict[str, float], seed: int
) -> pd.DataFrame:
    rows, arms = [], cast(Any, table.groupby(["where", "arm"], sort=False))
    for (where, name), part in arms:
        base = {
            str(k): v
            for k, v in table[(table["where"] == where) & (table["arm"] == "none")].groupby(
                "outcome"
            )
        }
        native = {
            str(k): v
            for k, v in table[(table["where"] == where) & (table["arm"] == "native")].groupby(
                "outcome"
            )
        }
        row: dict[str, Any] = {
            "where": where,
            "arm": name,
            "behaviour": behaviour,
            "n_draws": max(1, part["draw"].nunique()),
        }
        for outcome, values in part.groupby("outcome", sort=False):
            row |= _COLUMNS[str(outcome)](values, base[str(outcome)], native[str(outcome)], seed)
        rows.append(row | {"cosine": cosines.get(str(name), math.nan)})
    return pd.DataFrame(rows)


def _draws(values: pd.DataFrame) -> list[np.ndarray]:
    """[unit] for every draw."""
    return [part["value"].to_numpy() for _, part in values.groupby("draw", dropna=False, sort=True)]


def _over(draws: list[np.ndarray], seed: int) -> Interval:
    """Bootstrap over units of a single vector, range over those of many."""
    return (
        bootstrap_mean(draws[0], seed=seed)
        if len(draws) == 1
        else spread([float(draw.mean()) for draw in draws])
    )


def _propensity_columns(
    values: pd.DataFrame, base: pd.DataFrame, native: pd.DataFrame, seed: int
) -> dict[str, float]:
    before, own = base["value"].to_numpy(), native["value"].to_numpy()
    drops = [before - draw for draw in _draws(values)]
    drop, share = (
        _over(drops, seed),
        bootstrap_ratio(np.mean(drops, axis=0), before - own, seed=seed),
    )
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
    draws, samples = _draws(values), int(values["n_tokens"].iloc[0])
    count, n = round(float(draws[0].sum() * samples)), len(draws[0]) * samples
    share = (
        clopper_pearson(count, n)
        if len(draws) == 1
        else spread([float(draw.mean()) for draw in draws])
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
    before, tokens = base["value"].to_numpy(), base["n_tokens"].to_numpy(dtype=float)
    rises = [(draw - before) * tokens for draw in _draws(values)]
    single = len(rises) == 1
    damage = (
        bootstrap_ratio(rises[0], tokens, seed=seed)
        if single
        else spread([float(rise.sum() / tokens.sum()) for rise in rises])
    )
    return {"damage": damage.value, "damage_low": damage.low, "damage_high": damage.high}


_COLUMNS = {"loss": _damage_columns, "propensity": _propensity_columns, "share": _share_columns}
