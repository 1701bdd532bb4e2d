"""States of the texts of a contrast set, from which vectors and their controls are learnt.

Problem: an evaluation learns dozens of vectors from one contrast set: the vector itself, those of
permuted labels, and those without a group of pairs. Mechanism: the texts are read once, and every
one of these vectors is computed from the stored states.

    states = vector.states(pair.source, contrast, at=3)
    states.direction("mean_difference")                    # [d_model]
    states.permuted(0).direction("mean_difference")        # a control without the concept
    [part.direction("mean_difference") for part in states.leaving_out(8)]    # for the jackknife

Texts that are not paired have a mean difference, an LDA, permuted labels and groups too.

Limits: the states of all texts are in memory, texts · d_model numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lrt_lens.adapters.vectors._sources import group_numbers, usable_groups
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.models._hook_points import joint_name, resolved_parts
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._reading import ReadingRules, read_at_hooks, readable, row_rule

Method = Literal["mean_difference", "principal_component", "lda"]
"""Rule by which a direction is learnt from pairs of states."""
METHODS: tuple[Method, ...] = ("mean_difference", "principal_component", "lda")
"""Rules by which a direction can be learnt again from texts."""
_ZERO = 1e-6
"""Norm of a difference of states, relative to the states, that rounding to float32 explains."""


@dataclass(frozen=True, eq=False)
class ContrastStates:
    """States of the texts of a contrast set in one model at one hook point."""

    positive: Tensor
    """States of the positive texts, [text, d_model]."""
    negative: Tensor
    """States of the negative texts, [text, d_model]; row i belongs to row i of ``positive`` if the
    texts are paired."""
    fields: dict[str, Any] = field(repr=False)
    """Fields of a `SteeringVector` that every method of learning fills in the same way."""
    paired: bool = True
    """True if the texts are pairs; both sides then have equally many."""

    def __len__(self) -> int:
        """Return the number of pairs; of texts that are not paired, that of the smaller side."""
        return min(self.sizes)

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of positive and of negative texts."""
        return len(self.positive), len(self.negative)

    def direction(self, method: str) -> Tensor:
        """Return the direction [d_model] that a method learns from the pairs.

        Raises:
            ValueError: the method is unknown, or the direction is zero up to the rounding of
                float32.
        """
        if method not in METHODS:
            raise ValueError(
                f"the method is {method!r}; only {sorted(METHODS)} can be learnt from texts"
            )
        learn = {
            "mean_difference": self._mean_difference,
            "principal_component": self._principal_component,
            "lda": self._discriminant,
        }[method]
        direction = learn()
        length, size = float(direction.norm()), self.fields["median_norm"]
        if length <= _ZERO * size:
            raise ValueError(
                f"the positive and the negative texts of {self.fields['name']!r} have the same"
                f" states at {self.fields['hook']!r}: their difference has the norm {length:.2g}"
                f" beside {size:.4g} of a state; give texts that differ in the tokens that are"
                " read, and that are not cut where they differ"
            )
        return direction

    def _mean_difference(self) -> Tensor:
        if not self.paired:
            # μ₊ − μ₋, of which the mean of the differences within pairs is a special case.
            return self.positive.mean(0) - self.negative.mean(0)
        return (self.positive - self.negative).mean(0)

    def _discriminant(self) -> Tensor:
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        states = torch.cat([self.positive, self.negative]).double().cpu().numpy()
        is_positive = np.repeat([1, 0], self.sizes)
        # w = Σ⁻¹(μ₊ − μ₋), with Σ the pooled covariance of both sides, shrunk by the rule of
        # Ledoit and Wolf: there are fewer texts than dimensions.
        fit = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(states, is_positive)
        direction = torch.from_numpy(fit.coef_[0]).to(self.positive.device)
        length = direction.norm()
        # Without a difference of the means there is no direction; `direction` refuses zero.
        unit = direction / length if length > 0 else direction
        # Scale 1 is the mean gap along the unit vector, ⟨μ₊ − μ₋, ŵ⟩, as for other methods.
        return (float(self._mean_difference().double() @ unit) * unit).float()

    def _principal_component(self) -> Tensor:
        if not self.paired:
            self.fields["contrast_set"].refuse_unpaired(
                "the first principal component is that of the differences within pairs; "
                "mean_difference and lda need no pairs"
            )
        difference = (self.positive - self.negative).double()
        # D = U Σ Vᵀ, first row of Vᵀ. D is not centred: its mean is the shared part of the
        # differences, which is the concept.
        component = torch.linalg.svd(difference, full_matrices=False).Vh[0]
        # The sign of a singular vector is arbitrary; the signed gap along it fixes it.
        gap = float(difference.mean(0) @ component)
        return (gap * component).float()

    def permuted(self, seed: int) -> "ContrastStates":
        """Return the states with both texts exchanged in a random half of the pairs, as a control.

        Of texts that are not paired, as many of each side change sides. The texts are those of
        `ContrastSet.permuted`, if none was left out.
        """
        contrast: Any = self.fields["contrast_set"]
        if self.paired:
            swaps = (contrast.exchanged_pairs(len(self), seed),) * 2
        else:
            swaps = contrast.exchanged_texts(*self.sizes, seed)
        ours, theirs = (torch.from_numpy(np.flatnonzero(swap)) for swap in swaps)
        positive, negative = self.positive.clone(), self.negative.clone()
        positive[ours], negative[theirs] = self.negative[theirs], self.positive[ours]
        contrast = contrast.permuted(seed)
        named = {"name": contrast.name, "contrast": contrast.digest, "contrast_set": contrast}
        return replace(self, positive=positive, negative=negative, fields=self.fields | named)

    def leaving_out(self, n_groups: int, seed: int = 0) -> Iterator["ContrastStates"]:
        """Yield the states without each of ``n_groups`` random groups of pairs, of equal size ± 1.

        Of texts that are not paired, each group has positive and negative texts, both in equal
        shares. Two models with the same texts leave out the same texts.
        """
        sides = (self.positive, self.negative)
        groups = [group_numbers(len(side), n_groups, seed) for side in sides]
        for left_out in range(n_groups):
            positive, negative = (
                side[torch.from_numpy(np.flatnonzero(group != left_out)).to(side.device)]
                for side, group in zip(sides, groups, strict=True)
            )
            yield replace(self, positive=positive, negative=negative)


def states_without_groups(
    own: ContrastStates, native: ContrastStates, n_groups: int
) -> Iterator[tuple[ContrastStates, ContrastStates]]:
    """Yield the states of two models without each group of the same texts, for the jackknife.

    There are at most ``n_groups`` groups, see `usable_groups`. Nothing is yielded if the models
    left out different numbers of texts as too short, because the groups would not agree.
    """
    usable = usable_groups(n_groups, len(own))
    if usable and own.sizes == native.sizes:
        yield from zip(own.leaving_out(usable), native.leaving_out(usable), strict=True)


def states_at_hooks(
    hooks: Sequence[Sequence[str]],
    rows: Mapping[str, Tensor],
    fields: dict[str, Any],
    n_positive: int,
) -> list[ContrastStates]:
    """Return the states at each hook point, from rows that list all positive texts first.

    Args:
        hooks: parts of each hook point; those of a joint one are put side by side.
        rows: states of the texts of a contrast set by part, [text, d_model].
        fields: fields of the vectors that do not depend on the hook point.
        n_positive: number of positive texts.

    Raises:
        ValueError: there is no text of a side.
    """
    n_texts = len(next(iter(rows.values())))
    if not 0 < n_positive < n_texts:
        raise ValueError(
            f"{n_positive} positive and {n_texts - n_positive} negative texts of"
            f" {fields['name']!r} can be read; expected some of both: give longer texts, or read"
            " them with short_texts='unmasked'"
        )
    found, paired = [], bool(fields["contrast_set"].paired)
    for parts in hooks:
        states = torch.cat([rows[name] for name in parts], dim=1)
        positive, negative = states[:n_positive], states[n_positive:]
        here = {"hook": joint_name(parts), "median_norm": float(states.norm(dim=1).median())}
        found.append(ContrastStates(positive, negative, fields | here, paired=paired))
    return found


def read_contrast_states(
    model: HookedModel, contrast: ContrastSet, hooks: Sequence[int | str], rules: ReadingRules
) -> list[ContrastStates]:
    """Return the states of the texts that can be read at each hook point, from one reading."""
    if not isinstance(contrast, ContrastSet):
        raise TypeError(
            f"contrast is a {type(contrast).__name__}; expected a ContrastSet, such as"
            " ContrastSet(positive=[...], negative=[...])"
        )
    parts = [resolved_parts(hook, model) for hook in hooks]
    names = list(dict.fromkeys(name for one in parts for name in one))
    read, pairs = rules.read, bool(contrast.paired)
    options: dict[str, Any] = {"truncation": rules.truncation, "skip_first": rules.skip_first}
    options["short_texts"] = rules.short_texts
    kept = readable([model], contrast.texts, read, pairs=pairs, **options)
    options["short_texts"] = row_rule(rules.short_texts)
    # `contrast.texts` lists all positive texts first, then all negative ones.
    n_positive = int((kept.index < len(contrast.positive)).sum())
    rows = read_at_hooks(model, kept.of(contrast.texts), names, read, **options)
    fields: dict[str, Any] = {"model": model.identity, "name": contrast.name}
    fields |= {"contrast": contrast.digest, "contrast_set": contrast} | vars(rules)
    fields |= {"n_dropped": kept.n_dropped, "n_cut": kept.n_cut}
    return states_at_hooks(parts, rows, fields, n_positive)
