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

Intervals hold for other items (those that share a prompt or a continuation are one cluster), other
prompts and other neutral texts; those of native and transferred arms also for other contrast pairs
and another map, which are left out in groups. The column ``contains`` says which.

Outcomes: propensity for the behaviour (``items``), share of continuations that a classifier calls
the behaviour (``prompts`` and ``classifier``), or both. Damage is the rise of the loss on neutral
text, in nats per token.

Limits: the first positions of a text, which the map never saw, are not ablated unless
``skip_first=0`` (the paper ablates all positions).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.vectors._ablation_summary import ablation_summary
from lrt_lens.adapters.vectors._arms import behaviour_arms, known_contrast_of
from lrt_lens.adapters.vectors._continuations import Classifier, Continuations
from lrt_lens.adapters.vectors._equal_damage import item_clusters
from lrt_lens.adapters.vectors._orthonormal import orthonormal_rows
from lrt_lens.adapters.vectors._preferences import PreferenceText
from lrt_lens.adapters.vectors._span_change import setting_span
from lrt_lens.adapters.vectors._steering_hook import SteeringHook
from lrt_lens.adapters.vectors._steers import Steers
from lrt_lens.adapters.vectors._vector_arm import REFITS, VectorArm
from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.figures._behaviour import ablation_figure
from lrt_lens.figures._template import count_range, with_counts
from lrt_lens.models._hook_points import EMBED
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._ownership import entering
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._text_reader import SKIP_FIRST
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
    n_random: int = 20
    """Number of random directions: half isotropic, half with the covariance of the target's
    stream."""
    n_shuffled: int = 20
    """Number of maps of shuffled pairs: that of the stitch, and draws of such maps."""
    draw_samples: int = 1
    """Number of continuations per prompt for each draw of a control, at most ``n_samples``."""
    n_contrast_groups: int = 8
    """Number of groups of contrast pairs that are left out one at a time, for the share of an
    interval that the contrast texts and the map cause (not of shares of continuations); 0 leaves
    that share out."""
    seed: int = 0
    """Seed of directions, samples and bootstraps."""
    progress: bool = True
    """Show a progress bar."""


def ablation_hooks(
    model: HookedModel,
    direction: Direction | Float[Tensor, "direction d_model"],
    *,
    where: Where = "everywhere",
    hook: str | None = None,
    skip_first: int = SKIP_FIRST,
) -> dict[int | str, SteeringHook]:
    """Return hooks for `HookedModel.intervene` that project directions out of the stream.

    Arditi et al. (arXiv 2406.11717, eq. 4).

    Args:
        model: the model whose residual stream is changed.
        direction: [d_model], of any length but 0; or several as independent rows [direction,
            d_model], whose span is projected out.
        where: ``"everywhere"``: the input of every block, its stream after the attention if it has
            a hook point there, and its output; ``"hook"``: one hook point.
        hook: the hook point for ``"hook"``.
        skip_first: first positions of a text that are not changed.

    Raises:
        ValueError: a direction of another width or of length 0, directions that depend on each
            other, an unknown ``where``, or ``"hook"`` without a hook point.
    """
    if direction.shape[-1:] != (model.d_model,) or not float(direction.norm()) > 0:
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
    basis = orthonormal_rows(direction if direction.ndim == 2 else direction[None])
    # Setting all coordinates in the span to 0 is h − h Bᵀ B, and h − ⟨h, v̂⟩ v̂ for one direction.
    ablating = setting_span(basis, torch.zeros(len(basis)))
    return {name: SteeringHook(ablating, "all", skip_first) for name in names}


@dataclass(frozen=True, repr=False)
class AblationEvaluation(ShortRepr):
    """Drop of a behaviour, and damage, under directional ablation, per arm."""

    table: pd.DataFrame
    """One row per arm, draw, where (``hook`` or ``everywhere``), outcome and unit: value, n_tokens.

    Refits, which give standard errors and no rows of the summary, are left out.

    The outcome is the propensity of an item in nats (``propensity``), the share of a prompt's
    continuations that show the behaviour (``share``), or the loss of a neutral text (``loss``).
    """
    summary: pd.DataFrame
    """One row per ``where`` and arm.

    Columns: behaviour, n_draws; with items: propensity, drop with drop_low and drop_high,
    drop_share (drop as a share of the native drop) with low and high; with a classifier: share with
    share_low and share_high, share_drop; damage with damage_low and damage_high; cosine (to the
    native vector; of a subspace, between what both add); contains (what the intervals hold for) and
    interval_flag (what is doubtful about them); drop_contrast_error, drop_map_error,
    damage_contrast_error and damage_map_error (standard errors of these sources).

    For ``random`` and ``shuffled`` the ends are where a new draw falls, and there are typical_size
    (root mean square of the drops), transferred_p (two-sided p-value of the transferred drop among
    those of the draws, or of the change of the share without items) and p_floor (the smallest one
    that so many draws can give).
    """

    def figure(self) -> Any:
        """Return a plotly figure of drop and damage by arm and hook points."""
        counts = {"continuations": count_range(self.summary, "n")}
        return with_counts(ablation_figure(self.summary), counts)

    def _repr_html_(self) -> str:
        return card("AblationEvaluation", table(self.summary))


@takes(AblationSettings)
def evaluate_ablation(
    pair: ModelPair,
    stitch: Stitch,
    vector: Steers,
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
        vector: a vector or a subspace learnt on the source; of a subspace the whole span is
            ablated.
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
    continuations = None
    if prompts is not None and classifier is not None:
        counts = (settings.n_samples, settings.max_new_tokens)
        continuations = Continuations(prompts, classifier, *counts, seed=settings.seed)
    outcomes = _AblationOutcomes(pair.target, neutral, items, continuations, settings)
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
        n_groups=settings.n_contrast_groups,
    )
    bar = tqdm(arms, desc=f"ablate {vector.name}", disable=not settings.progress, leave=False)
    for arm in bar:
        for where in settings.places:
            hooks = ablation_hooks(
                pair.target,
                arm.vector.basis,
                where=where,
                hook=arm.vector.hook,
                skip_first=settings.skip_first,
            )
            measured = outcomes.measure(hooks, arm)
            parts.append(measured.assign(arm=arm.name, draw=arm.draw, where=where))
    table = pd.concat([part.astype({"draw": "Int64"}) for part in parts], ignore_index=True)
    # behaviour_arms returns the native arm first.
    cosines = {arm.name: arms[0].vector.cosine(arm.vector) for arm in arms if arm.draw is None}
    clusters = None if items is None else item_clusters(items)
    summary = ablation_summary(table, vector.name, cosines, clusters, settings.seed)
    shown: pd.DataFrame = table.loc[~table["arm"].isin(REFITS)]
    return AblationEvaluation(table=shown.reset_index(drop=True), summary=summary)


class _AblationOutcomes:
    """Loss, propensities and shares of continuations of one model under any hooks."""

    def __init__(
        self,
        model: HookedModel,
        neutral: Sequence[str],
        items: ChoiceItems | None,
        continuations: Continuations | None,
        settings: AblationSettings,
    ) -> None:
        self.model, self.continuations = model, continuations
        self.draw_samples = settings.draw_samples
        # The first token of a text is not predicted, so even skip_first=0 counts from the second.
        self.skip_first = max(settings.skip_first, 1)
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

    def measure(
        self, hooks: dict[int | str, SteeringHook], arm: VectorArm | None = None
    ) -> pd.DataFrame:
        """Return one row per outcome and unit: outcome, unit, value, n_tokens.

        A draw of a control has fewer continuations, and a refit none.
        """
        # One registration of the hooks serves all outcomes.
        with entering(), self.model.intervene({**hooks}):
            losses, n_tokens = self._losses()
            columns: list[tuple[str, np.ndarray, np.ndarray | int]] = [("loss", losses, n_tokens)]
            if self.items is not None:
                columns.append(("propensity", self.items.propensity(), 1))
            if (of := self._continuations_of(arm)) is not None:
                shares = of.by_prompt(of.judge(of.generate(self.model)))
                columns.append(("share", shares, of.n_samples))
        parts = [
            pd.DataFrame(
                {"outcome": name, "unit": range(len(values)), "value": values, "n_tokens": n}
            )
            for name, values, n in columns
        ]
        return pd.concat(parts, ignore_index=True)

    def _continuations_of(self, arm: VectorArm | None) -> Continuations | None:
        """Return what an arm generates; all samples for an arm of one vector."""
        if self.continuations is None or arm is None or arm.draw is None:
            return self.continuations
        if arm.name in REFITS:
            return None
        n_samples = min(self.draw_samples, self.continuations.n_samples)
        return replace(self.continuations, n_samples=n_samples)

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
