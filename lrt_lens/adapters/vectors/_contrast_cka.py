"""CKA of contrast differences beside CKA of states, for every two hook points of a pair.

    table = contrast_cka(pair, contrast)
    table.sort_values("value", ascending=False).head()
    lrt.figures.similarity_figure(table)            # heat maps of both measures

Problem: two models have similar states because they read the same words, whatever they hold of a
concept. Mechanism: the difference of the states of a text pair holds what the concept changes and
little of the words that both texts share. CKA of these differences says whether pairs that differ
alike in one model differ alike in the other (contrastive-difference CKA, arXiv 2606.16897). With K
and L the Gram matrices of source and target, whose rows are centred within G groups of pairs:

    CKA = S(K, L) / √(S(K, K) · S(L, L)),     S(K, L) = Σ_{g≠h} Σ_{i∈g, j∈h} K_ij L_ij / (n_g n_h)

Products of different groups have no bias that grows with width over pairs
(`lrt_lens.stitching._measures`). A pair is in one group with both of its texts, so that CKA of
states, over all texts, does not compare a text with its own partner. Each value has a 95% interval
by leaving out one group of pairs at a time, and a null: the target's pairs in another order.

Limits: rows are centred, so that the mean difference itself, which is the steering vector, plays no
part. An interval from ten groups holds for other pairs of the same kind, not for other text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens._progress import tqdm
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens.adapters.vectors._sources import group_numbers
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.models._hook_points import residual_post
from lrt_lens.models._hook_points import resolve as resolve_hook
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._reading import Read, ShortTexts, read_at_hooks, readable, row_rule
from lrt_lens.models._text_codec import Truncation
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.statistics._jackknife import jackknife

CONTRAST_CKA_COLUMNS = (
    "source_hook",
    "target_hook",
    "measure",
    "value",
    "low",
    "high",
    "null",
    "null_high",
    "p",
    "effect",
    "effect_low",
    "effect_high",
    "n",
    "d_source",
    "d_target",
    "note",
)
"""Columns of `contrast_cka`; ``note`` says why a number is NaN."""
_FEWEST_GROUPS = 3
"""Fewest groups of pairs: without one of them, two are left to be multiplied."""
_LIKE_NOTHING = "no value: a side does not vary between pairs more than its noise"
"""Note of a measure whose denominator is not positive."""


@dataclass(frozen=True)
class ContrastCkaSettings(Settings):
    """Settings of `contrast_cka`: reading of the texts, groups and shuffles."""

    read: Read = "last"
    """Token of a text that is read, or how its tokens are pooled."""
    n_groups: int = 10
    """Number of groups of pairs, of at least two pairs each."""
    n_shuffled: int = 100
    """Number of orders of the target's pairs that give the null."""
    short_texts: ShortTexts = "drop"
    """Rule for texts that the mask leaves nothing of, see `SteeringVector.mean_difference`."""
    truncation: Truncation | None = None
    """End that is cut off texts longer than the context."""
    skip_first: int = SKIP_FIRST
    """First positions of a text that are not read."""
    seed: int = 0
    """Seed of groups and shuffles."""
    progress: bool = True
    """Show a progress bar."""


@takes(ContrastCkaSettings)
def contrast_cka(
    pair: ModelPair,
    contrast: ContrastSet,
    *,
    source_hooks: Sequence[int | str] | None = None,
    target_hooks: Sequence[int | str] | None = None,
    settings: ContrastCkaSettings | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Return the CKA of contrast differences and of states, two rows per hook pair.

    Args:
        pair: both models.
        contrast: pairs of positive and negative texts.
        source_hooks: hook points of the source; None takes the stream after every block.
        target_hooks: hook points of the target, likewise.
        settings: all settings; see `ContrastCkaSettings`.
        options: fields of `ContrastCkaSettings` as keywords.

    Returns:
        Columns ``source_hook``, ``target_hook``, ``measure`` (``"cka_differences"`` or
        ``"cka_states"``), ``value`` with ``low`` and ``high`` (delete-a-group jackknife over pairs,
        not clipped to [0, 1]), ``null`` (mean over shuffles), ``null_high`` (their 95% quantile),
        ``p`` (one-sided, (1 + number of shuffles of at least the value) / (1 + number of
        shuffles)), ``effect`` = (value − null) / (1 − null) with ``effect_low`` and
        ``effect_high``, ``n`` pairs, ``d_source``, ``d_target``, ``note``.

    Raises:
        ValueError: the texts are not pairs, or there are fewer than 6 that both models can read.
        HookPointError: a model has no such hook point.
    """
    settings = resolve(ContrastCkaSettings, settings, options)
    contrast.refuse_unpaired("differences are those within pairs")
    hooks = [
        _hooks(model, named)
        for model, named in ((pair.source, source_hooks), (pair.target, target_hooks))
    ]
    states = _read_states(pair, contrast, hooks, settings)
    n_pairs = len(next(iter(states[0].values()))) // 2
    groups = _groups(n_pairs, settings)
    sides = [
        {name: _ContrastRows.of(rows, groups) for name, rows in side.items()} for side in states
    ]
    generator = np.random.default_rng(settings.seed)
    orders = [generator.permutation(n_pairs) for _ in range(settings.n_shuffled)]
    found = []
    bar = tqdm(hooks[0], desc="contrast CKA", disable=not settings.progress, leave=False)
    for source in bar:
        for target in hooks[1]:
            x, y = sides[0][source], sides[1][target]
            for measure in ("cka_differences", "cka_states"):
                found.append(
                    {"source_hook": source, "target_hook": target, "measure": measure}
                    | _row(x.of_measure(measure), y.of_measure(measure), orders)
                    | {"n": n_pairs, "d_source": x.width, "d_target": y.width}
                )
    return pd.DataFrame(found, columns=list(CONTRAST_CKA_COLUMNS))


def _hooks(model: HookedModel, named: Sequence[int | str] | None) -> list[str]:
    if named is None:
        return [residual_post(layer) for layer in range(model.n_layers)]
    return list(dict.fromkeys(resolve_hook(hook, model) for hook in named))


def _read_states(
    pair: ModelPair, contrast: ContrastSet, hooks: list[list[str]], settings: ContrastCkaSettings
) -> list[dict[str, Tensor]]:
    """Return the states [text, d] of both models by hook point, the positive texts first."""
    read: Any = settings.read
    options: dict[str, Any] = {"truncation": settings.truncation, "skip_first": settings.skip_first}
    kept = readable(
        [pair.source, pair.target],
        contrast.texts,
        read,
        pairs=True,
        short_texts=settings.short_texts,
        **options,
    )
    texts = kept.of(contrast.texts)
    options["short_texts"] = row_rule(settings.short_texts)
    models = (pair.source, pair.target)
    return [
        read_at_hooks(model, texts, names, read, **options)
        for model, names in zip(models, hooks, strict=True)
    ]


def _groups(n_pairs: int, settings: ContrastCkaSettings) -> np.ndarray:
    """Return the number of the group of each pair."""
    # A group of one pair is its own mean, and nothing is left of it.
    usable = min(settings.n_groups, n_pairs // 2)
    if usable < _FEWEST_GROUPS or settings.n_shuffled < 1:
        raise ValueError(
            f"{n_pairs} pairs in {settings.n_groups} groups with n_shuffled={settings.n_shuffled};"
            f" expected at least {2 * _FEWEST_GROUPS} pairs, {_FEWEST_GROUPS} groups and 1 shuffle"
        )
    return group_numbers(n_pairs, usable, settings.seed)


@dataclass(frozen=True)
class _GroupedRows:
    """Gram matrix of rows that belong to pairs, and the group of each pair."""

    gram: Float[Tensor, "row row"]
    """Inner products of the rows."""
    groups: np.ndarray
    """Number of the group of each pair, [pair]."""
    per_pair: int
    """Number of rows of a pair; rows i, i + n, … belong to pair i of n."""

    def centred(self, order: np.ndarray | None = None) -> Tensor:
        """Return the Gram matrix in another order of pairs, centred within groups."""
        gram = self.gram
        if order is not None:
            rows = np.concatenate([order + i * len(order) for i in range(self.per_pair)])
            index = torch.from_numpy(rows)
            gram = gram[index][:, index]
        means = self.indicator / self.indicator.sum(0)
        # (I − P) K (I − P), P the projection on the means of groups
        left = gram - self.indicator @ (means.T @ gram)
        return left - (left @ means) @ self.indicator.T

    @property
    def indicator(self) -> Tensor:
        """Matrix [row, group] of which rows are in which group."""
        groups = torch.from_numpy(np.tile(self.groups, self.per_pair))
        return torch.nn.functional.one_hot(groups, int(self.groups.max()) + 1).double()

    def products(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return Σ_{i∈g, j∈h} K_ij L_ij / (n_g n_h) for all groups, [group, group]."""
        means = self.indicator / self.indicator.sum(0)
        return means.T @ (ours * theirs) @ means


@dataclass(frozen=True)
class _ContrastRows:
    """Differences and states of one hook point, as Gram matrices."""

    differences: _GroupedRows
    states: _GroupedRows
    width: int

    @classmethod
    def of(cls, rows: Tensor, groups: np.ndarray) -> "_ContrastRows":
        """Return both Gram matrices of states [text, d] that list all positive texts first."""
        rows = rows.double().cpu()
        positive, negative = rows.chunk(2)
        difference = positive - negative
        # The origin cancels in centred rows; the mean state would cost precision.
        rows = rows - rows.mean(0)
        return cls(
            _GroupedRows(difference @ difference.T, groups, 1),
            _GroupedRows(rows @ rows.T, groups, 2),
            rows.shape[1],
        )

    def of_measure(self, measure: str) -> _GroupedRows:
        """Return the rows that a measure compares."""
        return self.differences if measure == "cka_differences" else self.states


def _row(x: _GroupedRows, y: _GroupedRows, orders: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return value, interval and null of the CKA of two sides."""
    ours, theirs = x.centred(), y.centred()
    sums = torch.stack(
        [x.products(a, b) for a, b in ((ours, theirs), (ours, ours), (theirs, theirs))]
    )
    value = _cka(sums)
    n_groups = sums.shape[1]
    kept = [[g for g in range(n_groups) if g != out] for out in range(n_groups)]
    left_out = [_cka(sums[:, rows][:, :, rows]) for rows in kept]
    interval = jackknife(value, left_out)
    null = np.array([_shuffled(x, ours, y, order) for order in orders])
    mean = float(null.mean())
    # (value − null) / (1 − null), as for the similarities of moments
    effects = [
        (number - mean) / (1 - mean) if mean < 1 else math.nan
        for number in (value, interval.low, interval.high)
    ]
    return {
        "value": value,
        "low": interval.low,
        "high": interval.high,
        "null": mean,
        "null_high": float(np.quantile(null, 0.95)),
        "p": float((1 + (null >= value).sum()) / (1 + len(null))) if value == value else math.nan,
        "effect": effects[0],
        "effect_low": effects[1],
        "effect_high": effects[2],
        "note": "" if value == value else _LIKE_NOTHING,
    }


def _shuffled(x: _GroupedRows, ours: Tensor, y: _GroupedRows, order: np.ndarray) -> float:
    """Return the CKA with the target's pairs in another order."""
    theirs = y.centred(order)
    products = [x.products(a, b) for a, b in ((ours, theirs), (ours, ours), (theirs, theirs))]
    return _cka(torch.stack(products))


def _cka(sums: Float[Tensor, "3 group group"]) -> float:
    """Return CKA from the products of xy, xx and yy; NaN if a side does not vary."""
    # Σ_{g≠h}: all products without those within a group
    xy, xx, yy = (float(one.sum() - one.diagonal().sum()) for one in sums)
    return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else math.nan
