"""Rows of contrast texts in two models, from which maps are fitted and vectors are learnt.

    rows = PairRows.of(source, target, contrast, at=source_hook, to=target_hook)
    rows[:10].fit().weight       # map of L-Cross, fitted on ten pairs
    rows[10:].gap("source")      # vector learnt on the source from the other pairs
    rows[10:].gap("target")      # native vector of the same pairs

Problem: a map and a vector that come from the same texts agree by construction. Mechanism: all
pairs are read once, and any part of them can be selected, so that a map and a vector come from
different texts.

Limits: the rows of all texts are held in memory in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lrt_lens.adapters.concepts._concept_map import (
    Extraction,
    TextRead,
    contrast_sets,
    readable_pairs,
)
from lrt_lens.adapters.concepts._row_maps import Method, RowMap, fit_rows
from lrt_lens.adapters.vectors._sources import group_numbers
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.models._belonging import Ends, Origin, refuse_other_map
from lrt_lens.models._hook_points import HookPair
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._pair import ModelPair, model_sides, paired_hooks
from lrt_lens.models._reading import ShortTexts, read_activations, row_rule
from lrt_lens.models._text_codec import Truncation

ModelRole = Literal["source", "target"]
"""Name of one of the two models."""


@dataclass(frozen=True, eq=False)
class PairRows:
    """One row per text in both models; index 0 of the middle dimension is the positive text."""

    source: Float[Tensor, "pair 2 d_source"]
    """Rows of the source model."""
    target: Float[Tensor, "pair 2 d_target"]
    """Rows of the target model."""
    hooks: HookPair | None = None
    """Hook points of both models; None if they are not known."""
    models: tuple[ModelIdentity | None, ModelIdentity | None] = (None, None)
    """Source and target; None for a model that is not known."""
    read: TextRead | None = None
    """How a text becomes one row; None if it is not known."""
    contrast: str = ""
    """Hash of the contrast set; empty if it is not known, or for a part or a union of sets."""
    n_dropped: int = 0
    """Number of pairs of the set left out because the mask leaves nothing of a text."""
    n_cut: int = 0
    """Number of texts that were cut to the context of a model."""

    @classmethod
    def of(
        cls,
        source: HookedModel,
        target: HookedModel,
        contrast: ContrastSet,
        at: str,
        to: str,
        read: TextRead = "last",
        *,
        short_texts: ShortTexts = "drop",
        truncation: Truncation | None = None,
    ) -> "PairRows":
        """Rows of every pair of a contrast set, at the hook points ``at`` and ``to``.

        ``short_texts`` says what happens to pairs with a text that the mask leaves nothing of in
        one of the models, ``truncation`` which end of texts longer than a context is cut off.
        """
        rules: dict[str, Any] = {"short_texts": short_texts, "truncation": truncation}
        known, kept = readable_pairs([source, target], contrast, read, **rules)
        rules["short_texts"] = row_rule(short_texts)
        # `contrast.texts` lists all positive texts first, then all negative ones.
        # float64: a pseudo-inverse amplifies rounding. Contiguous: products of strided views round
        # differently.
        source_rows, target_rows = (
            rearrange(
                read_activations(model, known.texts, hook, read, **rules).double(),
                "(side pair) d -> pair side d",
                side=2,
            ).contiguous()
            for model, hook in ((source, at), (target, to))
        )
        models = (source.identity, target.identity)
        about = ((at, to), models, read, contrast.digest, kept.n_dropped, kept.n_cut)
        return cls(source_rows, target_rows, *about)

    @classmethod
    def joined(cls, parts: "list[PairRows]") -> "PairRows":
        """Rows of the pairs of all parts."""
        return replace(
            parts[0],
            source=torch.cat([part.source for part in parts]),
            target=torch.cat([part.target for part in parts]),
            contrast="",
            n_dropped=sum(part.n_dropped for part in parts),
            n_cut=sum(part.n_cut for part in parts),
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: slice | Tensor) -> "PairRows":
        part = (self.source[index], self.target[index])
        return replace(self, source=part[0], target=part[1], contrast="", n_dropped=0, n_cut=0)

    def without(self, group: int, n_groups: int) -> "PairRows":
        """Return the rows without one of ``n_groups`` random groups of pairs (`group_numbers`)."""
        return self[torch.from_numpy(np.flatnonzero(group_numbers(len(self), n_groups) != group))]

    @property
    def ends(self) -> Ends:
        """Hook points, models and widths of both sides."""
        hooks = self.hooks or (None, None)
        widths = (self.source.shape[2], self.target.shape[2])
        source, target = (
            Origin("these rows", *place) for place in zip(hooks, self.models, widths, strict=True)
        )
        return source, target

    @property
    def n_texts(self) -> int:
        """Number of texts, two per pair."""
        return 2 * len(self)

    def gap(self, side: ModelRole, by: Extraction = "mean_difference") -> Tensor:
        """Vector of the concept on one of the models, [d].

        It is the mean of the differences (CAA), or their first principal component with the length
        of the mean along it (RepE).
        """
        rows = self.source if side == "source" else self.target
        difference = rows[:, 0] - rows[:, 1]
        mean = difference.mean(0)
        if by == "mean_difference":
            return mean
        component = torch.linalg.svd(difference, full_matrices=False).Vh[0]
        # (m·u) u also fixes the sign, which a singular vector leaves open.
        return (mean @ component) * component

    def fit(
        self, method: Method = "least_squares", *, seed: int = 0, score: bool = False
    ) -> RowMap:
        """Map from source rows to target rows; both texts of a pair are held out together."""
        # Texts of a pair are neighbours: groups are 0, 0, 1, 1, …
        groups = torch.arange(len(self)).repeat_interleave(2).tolist()
        return fit_rows(
            _text_rows(self.source),
            _text_rows(self.target),
            groups=groups,
            method=method,
            seed=seed,
            score=score,
        )

    def shuffled(self, generator: torch.Generator) -> "PairRows":
        """Return these rows with the target rows assigned to random other texts.

        Everything that depends on the text is lost; means and spreads stay.
        """
        flat = _text_rows(self.target)
        # A random permutation may leave a few rows in place.
        order = torch.randperm(len(flat), generator=generator)
        return replace(self, target=rearrange(flat[order], "(pair side) d -> pair side d", side=2))

    def without_source(self, generator: torch.Generator) -> "PairRows":
        """Return these target rows with standard normal numbers as source rows."""
        noise = torch.randn(self.source.shape, generator=generator, dtype=torch.float64)
        return replace(self, source=noise)


def _text_rows(rows: Tensor) -> Tensor:
    return rearrange(rows, "pair side d -> (pair side) d")


def read_rows(
    models: ModelPair | tuple[ModelLike, ModelLike],
    contrasts: ContrastSet | Sequence[ContrastSet],
    *,
    source_hook: int | str,
    target_hook: int | str,
    read: TextRead = "last",
    short_texts: ShortTexts = "drop",
    truncation: Truncation | None = None,
) -> dict[str, PairRows]:
    """Rows of every contrast set, by its name.

    Reading is the slow part of `evaluate_interpolation` and `evaluate_concept_transfer`; pass the
    rows to both as ``rows=`` to read the models only once. ``short_texts`` and ``truncation`` are
    those of `ConceptMap.fit`.
    """
    rules: dict[str, Any] = {"short_texts": short_texts, "truncation": truncation}
    source, target = model_sides(models)
    [(at, to)] = paired_hooks(source, target, source_hook, target_hook)
    return {
        one.name: PairRows.of(source, target, one, at, to, read, **rules)
        for one in contrast_sets(contrasts)
    }


def known_rows(
    rows: dict[str, PairRows], contrasts: Sequence[ContrastSet], ends: Ends, read: TextRead
) -> dict[str, PairRows]:
    """Rows of these contrast sets, in their order.

    Args:
        rows: the result of `read_rows`.
        contrasts: the sets.
        ends: hook points, models and widths at which they should have been read.
        read: how texts should have been read.

    Raises:
        MismatchError: rows of a set are missing, or were read from other texts, models or hook
            points, or in another way.
    """
    available = {
        one.name: len(rows[one.name]) + rows[one.name].n_dropped if one.name in rows else 0
        for one in contrasts
    }
    expected = {one.name: len(one) for one in contrasts}
    if available != expected:
        raise MismatchError(
            f"rows hold {available} pairs, the contrast sets {expected}; read them again with "
            "read_rows"
        )
    for one in contrasts:
        own, what = rows[one.name], f"rows of {one.name!r}"
        refuse_other_map(what, own.ends, ends, verb="join", remedy="read them again with read_rows")
        if (own.read or read) != read or (own.contrast or one.digest) != one.digest:
            texts = "other texts" if own.contrast and own.contrast != one.digest else "these texts"
            raise MismatchError(
                f"{what} were read from {texts} with read={own.read!r}; expected the texts of the "
                f"set with read={read!r}: read them again with read_rows"
            )
    return {one.name: rows[one.name] for one in contrasts}


def ends_of(source: HookedModel, target: HookedModel, at: str, to: str) -> Ends:
    """Return the origins of rows, stitches and maps between two hook points of two models."""
    return (
        Origin("the source", at, source.identity, source.d_model),
        Origin("the target", to, target.identity, target.d_model),
    )


def mean_only(rows: PairRows) -> Tensor:
    """Map ``x̄ᵀȳ/‖x̄‖²`` that depends on the mean states only, [d_source, d_target].

    Without centring, the means dominate least squares.
    """
    x, y = _text_rows(rows.source).mean(0), _text_rows(rows.target).mean(0)
    # Least squares on the single row (x̄, ȳ): T = x̄ᵀȳ / ‖x̄‖²
    return torch.outer(x, y) / (x @ x)


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two vectors; NaN if one of them is zero."""
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths > 0 else float("nan")
