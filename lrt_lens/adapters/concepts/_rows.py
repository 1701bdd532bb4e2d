"""Rows of contrast texts in two models at once: what concept maps are fitted on and vectors learnt
from, in any part of the pairs.

rows = PairRows.of(source, target, contrast, "blocks.2.hook_resid_post", "blocks.3.hook_resid_post")
rows[:10].fit().weight                # L-Cross's map on ten pairs
rows[10:].gap("source")               # the vector of the others, in the source; gap("target") is the native one
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens.adapters.concepts._concept_map import (
    Extraction,
    TextRead,
    contrast_sets,
    model_sides,
    paired_hooks,
)
from lrt_lens.adapters.concepts._row_maps import Method, RowMap, fit_rows
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._reading import read_activations

Side = Literal["source", "target"]


@dataclass(frozen=True, eq=False)
class PairRows:
    """One row a text; positive texts stand at 0 of the middle dimension, negative ones at 1."""

    source: Float[Tensor, "pair 2 d_source"]
    target: Float[Tensor, "pair 2 d_target"]

    @classmethod
    def of(
        cls,
        source: HookedModel,
        target: HookedModel,
        contrast: ContrastSet,
        at: str,
        to: str,
        read: TextRead = "last",
    ) -> "PairRows":
        """Of every pair of a contrast set."""
        sides = (
            read_activations(model, contrast.texts, hook, read).double()
            for model, hook in ((source, at), (target, to))
        )
        return cls(*(torch.stack(rows.chunk(2), dim=1) for rows in sides))

    @classmethod
    def joined(cls, parts: "list[PairRows]") -> "PairRows":
        """The pairs of all parts."""
        return cls(
            torch.cat([part.source for part in parts]), torch.cat([part.target for part in parts])
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: slice | Tensor) -> "PairRows":
        return PairRows(self.source[index], self.target[index])

    @property
    def n_texts(self) -> int:
        """Two a pair."""
        return 2 * len(self)

    def gap(self, side: Side, by: Extraction = "mean_difference") -> Tensor:
        """The concept's vector, [d]: mean of the differences (CAA), or their first principal
        component as long as the mean is along it (RepE).
        """
        rows = self.source if side == "source" else self.target
        difference = rows[:, 0] - rows[:, 1]
        mean = difference.mean(0)
        if by == "mean_difference":
            return mean
        component = torch.linalg.svd(difference, full_matrices=False).Vh[0]
        return (mean @ component) * component

    def fit(
        self, method: Method = "least_squares", *, seed: int = 0, score: bool = False
    ) -> RowMap:
        """The map from source rows to target rows; pairs are held out whole."""
        groups = torch.arange(len(self)).repeat_interleave(2).tolist()
        return fit_rows(
            self.source.flatten(0, 1),
            self.target.flatten(0, 1),
            groups=groups,
            method=method,
            seed=seed,
            score=score,
        )

    def shuffled(self, generator: torch.Generator) -> "PairRows":
        """Target rows dealt out to other texts: everything that a text decides is gone, means and
        spreads stay.
        """
        flat = self.target.flatten(0, 1)
        return replace(
            self,
            target=flat[torch.randperm(len(flat), generator=generator)].reshape(self.target.shape),
        )

    def without_source(self, generator: torch.Generator) -> "PairRows":
        """Standard normal numbers in place of the source's rows: no source model at all."""
        return replace(
            self, source=torch.randn(self.source.shape, generator=generator, dtype=torch.float64)
        )


def read_rows(
    models: ModelPair | tuple[ModelLike, ModelLike],
    contrasts: ContrastSet | Sequence[ContrastSet],
    *,
    source_hook: int | str,
    target_hook: int | str,
    read: TextRead = "last",
) -> dict[str, PairRows]:
    """Rows of every set by name: the slow part of both evaluations, to be handed to them as
    ``rows=`` where several follow each other.
    """
    source, target = model_sides(models)
    [(at, to)] = paired_hooks(source, target, source_hook, target_hook)
    return {
        one.name: PairRows.of(source, target, one, at, to, read) for one in contrast_sets(contrasts)
    }


def known_rows(rows: dict[str, PairRows], contrasts: Sequence[ContrastSet]) -> dict[str, PairRows]:
    """The rows of these sets, in their order; MismatchError where some are missing or of another
    number of pairs.
    """
    found = {one.name: len(rows[one.name]) if one.name in rows else 0 for one in contrasts}
    if any(found[one.name] != len(one) for one in contrasts):
        raise MismatchError(
            f"rows hold {found} pairs, the contrast sets { ({c.name: len(c) for c in contrasts}) }; read them again with read_rows"
        )
    return {one.name: rows[one.name] for one in contrasts}


def mean_only(rows: PairRows) -> Tensor:
    """The map that knows the mean states alone, ``x̄ᵀȳ/‖x̄‖²``, [d_source, d_target]: without
    centring they dominate least squares.
    """
    x, y = rows.source.flatten(0, 1).mean(0), rows.target.flatten(0, 1).mean(0)
    return torch.outer(x, y) / (x @ x)


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two vectors, NaN where one is zero."""
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths > 0 else float("nan")
