"""Cosine between a concept map's vector and the native one, over the number of texts of the fit.

    curve = evaluate_interpolation(pair, [contrast, other], source_hook=2, target_hook=3)
    curve.summary          # cosine to the native vector, by arm and n/d
    curve.figure()

Problem: with few texts a concept map reproduces its target rows whatever the source is, and a
cosine of 1 then proves nothing. Mechanism: the cosine is measured over the number of texts. No
model is steered: activations are read once, and maps are fitted on parts of them. With n texts, d
source dimensions and a vector learnt from contrast texts, the arms are:

| arm | the map is fitted on | the vector is learnt from |
| --- | --- | --- |
| ``own`` | n texts of the concept (L-Cross's table 1) | the same texts |
| ``noise_source`` | n texts, with random numbers instead of the source's rows | the same texts |
| ``own_disjoint`` | n texts of the concept | held-out pairs |
| ``other`` | n texts of other concepts (L-Cross's table 3) | held-out pairs |
| ``…_ridge`` | the texts of the arm of that name, by ridge | held-out pairs |
| ``native_other_texts`` | no map: the target's own vector | n texts, on the target |
| ``shuffled`` | ``other``, target rows assigned to other texts | held-out pairs |
| ``random`` | no texts: Gaussian T, whose scale changes the norm ratio only | held-out pairs |
| ``stitch`` | tokens of ordinary text (`lrt_lens.fit_stitches`) | held-out pairs |

The cosine is taken to the vector that the target learns from the same texts as the source.

Limits: a high cosine of ``own`` must be compared with ``noise_source``, which uses no source model:
for n ≤ d both are 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, note, table
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.concepts._concept_map import TextRead, contrast_sets
from lrt_lens.adapters.concepts._row_maps import RowMap
from lrt_lens.adapters.concepts._rows import PairRows, cosine, ends_of, known_rows, read_rows
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.figures._concept_map import interpolation_figure
from lrt_lens.figures._template import count_range, with_counts
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._pair import ModelPair, model_sides, paired_hooks
from lrt_lens.statistics._draws import prediction_interval
from lrt_lens.stitching._stitch import Stitch

HELD_OUT_SHARE = 0.25
"""Share of a concept's pairs that no map is fitted on."""
_COUNT_SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95, 1.05, 1.2, 1.5, 2, 3, 5)
"""Default numbers of texts as shares of d, dense around d."""


@dataclass(frozen=True, repr=False)
class ConceptInterpolation(ShortRepr):
    """Cosines to the native vector over the number of texts."""

    table: pd.DataFrame
    """One row per concept, arm, n and draw.

    Columns: concept, arm, n, d, n_over_d, draw, cosine, norm_ratio (length over the native
    vector's), interpolates.
    """
    n_held_out: dict[str, int]
    """Number of held-out pairs of each concept, by its name."""

    @property
    def summary(self) -> pd.DataFrame:
        """Means over draws, one row per concept, arm and n.

        Columns: concept, arm, n, n_over_d, cosine with low and high (where the cosine of another
        selection of as many of these texts falls), norm_ratio, n_draws, interpolates, interval_flag
        (fewer than 20 draws).
        """
        rows = []
        for key, part in self.table.groupby(["concept", "arm", "n"], sort=False):
            # Grouping by several columns gives tuples; the type stubs allow scalars too.
            concept, arm, n = list(key) if isinstance(key, tuple) else [key] * 3
            cosines = prediction_interval(part["cosine"].tolist()).within(-1.0)
            rows.append(
                {
                    "concept": concept,
                    "arm": arm,
                    "n": n,
                    "n_over_d": part["n_over_d"].iloc[0],
                    "cosine": cosines.value,
                    "low": cosines.low,
                    "high": cosines.high,
                    "norm_ratio": part["norm_ratio"].mean(),
                    "n_draws": len(part),
                    "interpolates": bool(part["interpolates"].all()),
                    "interval_flag": cosines.flag,
                }
            )
        return pd.DataFrame(rows)

    def figure(self) -> Any:
        """Return a plotly figure of the cosine against n/d, one line per arm."""
        summary = self.summary
        held_out = self.n_held_out.values()
        counts = {
            "draws per point": count_range(summary, "n_draws"),
            "held-out pairs": (min(held_out), max(held_out)) if held_out else None,
        }
        return with_counts(interpolation_figure(summary), counts)

    def _repr_html_(self) -> str:
        return card(
            "ConceptInterpolation",
            note("Cosine to the native vector; intervals are where a new draw falls."),
            table(self.summary),
        )


def evaluate_interpolation(
    models: ModelPair | tuple[ModelLike, ModelLike],
    contrasts: Sequence[ContrastSet],
    *,
    source_hook: int | str,
    target_hook: int | str,
    counts: Sequence[int] | None = None,
    read: TextRead = "last",
    stitch: Stitch | None = None,
    ridge: bool = True,
    rows: dict[str, PairRows] | None = None,
    n_draws: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> ConceptInterpolation:
    """Cosines of transferred to native vectors over numbers of texts; the module lists the arms.

    Args:
        models: a `ModelPair`, or (source, target) with any tokenizers.
        contrasts: one set per concept, two or more. A quarter of a concept's pairs is held out; the
            pairs of all other concepts are pooled as its other concepts.
        source_hook: hook point at which vectors are learnt.
        target_hook: hook point to which they are transferred.
        counts: even numbers of texts; None takes about a dozen around d.
        read: ``"last"`` token, or the ``"mean"`` over a text's unmasked tokens.
        stitch: a map of ordinary text between these hook points, for comparison.
        ridge: True fits ridge maps too, which is the slow part.
        rows: the result of `read_rows` for these models, sets and hook points.
        n_draws: random selections of texts for each number; fewer than 20 are flagged.
        seed: seed of draws and folds.
        progress: show a progress bar.

    Raises:
        ValueError: a count is odd, below 4 or above the number of texts; there are fewer than two
            sets or too few pairs; a set shows one class only.
        HookPointError: a model has no such hook point.
        NonFiniteError: activations are NaN or infinite.
        MismatchError: the stitch or the rows belong to other hook points or models, or the rows to
            other texts or another ``read``.

    Source: L-Cross (arXiv 2501.02009), tables 1 and 3; the other arms are additions.
    """
    source, target = model_sides(models)
    [(at, to)] = paired_hooks(source, target, source_hook, target_hook)
    sets = contrast_sets(contrasts)
    if len(sets) < 2:
        raise ValueError(
            f"{len(sets)} contrast set(s) given; a map fitted on another concept needs at least two"
        )
    ends = ends_of(source, target, at, to)
    if stitch is not None:
        stitch.refuse_other_ends(*ends)
    by_concept = (
        read_rows((source, target), sets, source_hook=at, target_hook=to, read=read)
        if rows is None
        else known_rows(rows, sets, ends, read)
    )
    n_held_out = {
        name: max(1, round(HELD_OUT_SHARE * len(own))) for name, own in by_concept.items()
    }
    records = []
    for name, own in by_concept.items():
        # Every concept starts from the same seed, so its draws do not depend on the others.
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(own), generator=generator)
        cut = n_held_out[name]
        others = PairRows.joined([one for other, one in by_concept.items() if other != name])
        arms = _InterpolationArms(own[order[cut:]], own[order[:cut]], others, ridge, stitch)
        bar = tqdm(arms.counts(counts), desc=f"maps of {name}", disable=not progress, leave=False)
        records += [
            {"concept": name} | record
            for n in bar
            for draw in range(n_draws)
            for record in arms.draw(n, draw, generator)
        ]
    return ConceptInterpolation(pd.DataFrame(records), n_held_out)


@dataclass(frozen=True)
class _InterpolationArms:
    """The arms of one concept, measured on random selections of texts."""

    own: PairRows
    """Pairs of the concept from which texts are drawn."""
    held_out: PairRows
    """Pairs of the concept that no map is fitted on."""
    other: PairRows
    """Pairs of all other concepts."""
    ridge: bool
    """True if ridge maps are fitted too."""
    stitch: Stitch | None
    """Map of ordinary text for the arm ``stitch``; None leaves the arm out."""

    @property
    def d(self) -> int:
        """Number of dimensions of the source's stream."""
        return self.own.source.shape[2]

    def counts(self, requested: Sequence[int] | None) -> list[int]:
        """Numbers of texts, ascending; None takes shares of d up to the number of texts."""
        n_texts = self.own.n_texts
        if requested is None:
            # Even numbers of at least 4, because pairs are drawn.
            even = (2 * max(2, round(share * self.d / 2)) for share in _COUNT_SHARES)
            return sorted({min(n, n_texts) for n in even})
        if not len(requested) or any(n % 2 or not 4 <= n <= n_texts for n in requested):
            raise ValueError(
                f"counts is {list(requested)}; expected even numbers from 4 to {n_texts} (texts of "
                "the pairs that are not held out)"
            )
        return sorted(requested)

    def draw(self, n: int, draw: int, generator: torch.Generator) -> Iterator[dict[str, Any]]:
        """Rows of the table for one selection of n texts, one per arm."""
        # n texts are n/2 pairs.
        own = self.own[torch.randperm(len(self.own), generator=generator)[: n // 2]]
        key = {"n": n, "draw": draw}
        same_texts = {"own": own, "noise_source": own.without_source(generator)}
        held_out = {"own_disjoint": own}
        # Maps of other concepts exist only up to the number of their texts.
        if n <= self.other.n_texts:
            other = self.other[torch.randperm(len(self.other), generator=generator)[: n // 2]]
            held_out |= {"other": other, "shuffled": other.shuffled(generator)}
        for arm, rows in same_texts.items():
            yield self._row(arm, key, rows.fit(), rows)
        for arm, rows in held_out.items():
            yield self._row(arm, key, rows.fit(), self.held_out)
            if self.ridge and arm != "shuffled":
                yield self._row(f"{arm}_ridge", key, rows.fit("ridge", seed=draw), self.held_out)
        shape = (self.d, self.own.target.shape[2])
        weight = torch.randn(shape, generator=generator, dtype=torch.float64)
        # The scale of T cancels in the cosine.
        yield self._row("random", key, weight, self.held_out)
        yield self._compare("native_other_texts", key, own.gap("target"), self.held_out)
        if self.stitch is not None:
            yield self._row("stitch", key, self.stitch.up.weight.double().cpu(), self.held_out)

    def _row(
        self, arm: str, key: dict[str, int], through: RowMap | Tensor, learnt_from: PairRows
    ) -> dict[str, Any]:
        """Row of a vector that is learnt on the source and transferred ``through`` a map."""
        weight = through if isinstance(through, Tensor) else through.weight
        row = self._compare(arm, key, learnt_from.gap("source") @ weight, learnt_from)
        return row | {"interpolates": isinstance(through, RowMap) and through.interpolates}

    def _compare(
        self, arm: str, key: dict[str, int], vector: Tensor, learnt_from: PairRows
    ) -> dict[str, Any]:
        """Row that compares a vector with the target's own from the same pairs."""
        # The target's vector from the same pairs as the transferred one.
        native = learnt_from.gap("target")
        return {
            "arm": arm,
            "n": key["n"],
            "d": self.d,
            "n_over_d": key["n"] / self.d,
            "draw": key["draw"],
            "cosine": cosine(vector, native),
            "norm_ratio": float(vector.norm() / native.norm()),
            "interpolates": False,
        }
