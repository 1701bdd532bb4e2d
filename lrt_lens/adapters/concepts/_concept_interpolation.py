"""How much of a concept map's vector is the target's own, by the number of texts that fitted it?

    curve = evaluate_interpolation(pair, [contrast, other_concept], source_hook=2, target_hook=3)
    curve.summary          # cosine to the native vector, by arm and n/d
    curve.figure()

Nothing is steered: activations are read once and maps are fitted on parts of them. With n texts at
d source dimensions and a vector learnt from contrast texts,

| arm | the map is fitted on | the vector is learnt from |
| --- | --- | --- |
| ``own`` | n texts of the concept (L-Cross's table 1) | the same texts |
| ``noise_source`` | the same, but the source's rows are random numbers: there is no source model | the same |
| ``own_disjoint`` | n texts of the concept | other pairs, held out |
| ``other`` | n texts of other concepts (L-Cross's table 3) | held-out pairs |
| ``own_disjoint_ridge``, ``other_ridge`` | as above, ridge | held-out pairs |
| ``native_other_texts`` | no map: the target's own vector from the n texts | the n texts |
| ``shuffled`` | as ``other``, target rows dealt out to other texts | held-out pairs |
| ``random`` | a Gaussian T: its scale changes the norm ratio, never the cosine | held-out pairs |
| ``stitch`` | tokens of ordinary text (`lrt_lens.fit_stitches`) | held-out pairs |

and its cosine is taken to the vector that the target learns from the same texts as the source.
``noise_source`` is the point: while n ≤ d it is 1, as ``own`` is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, note, table
from lrt_lens.adapters.concepts._concept_map import (
    TextRead,
    contrast_sets,
    model_sides,
    paired_hooks,
)
from lrt_lens.adapters.concepts._row_maps import RowMap
from lrt_lens.adapters.concepts._rows import PairRows, cosine, known_rows, read_rows
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._intervals import spread
from lrt_lens.stitching._stitch import Stitch

HELD_OUT_SHARE = 0.25


@dataclass(frozen=True)
class ConceptInterpolation:
    """Cosine to the native vector against the number of texts."""

    table: pd.DataFrame
    """A row per concept, arm, n and draw: d, n_over_d, cosine, norm_ratio (length over the native
    vector's), interpolates.
    """
    n_held_out: dict[str, int]
    """By concept: held-out pairs that vectors of the other arms are learnt from."""

    @property
    def summary(self) -> pd.DataFrame:
        """A row per concept, arm and n: mean over draws of the cosine with the range of 95% of
        them, and of the norm ratio.
        """
        rows = []
        for key, part in self.table.groupby(["concept", "arm", "n"], sort=False):
            concept, arm, n = list(key) if isinstance(key, tuple) else [key] * 3
            found = spread(part["cosine"].tolist())
            rows.append(
                {
                    "concept": concept,
                    "arm": arm,
                    "n": n,
                    "n_over_d": part["n_over_d"].iloc[0],
                    "cosine": found.value,
                    "low": found.low,
                    "high": found.high,
                    "norm_ratio": part["norm_ratio"].mean(),
                    "n_draws": len(part),
                    "interpolates": bool(part["interpolates"].all()),
                }
            )
        return pd.DataFrame(rows)

    def figure(self) -> Any:
        """Cosine against n/d, a line an arm (plotly)."""
        from lrt_lens.figures._concept_map import interpolation_figure

        return interpolation_figure(self.summary)

    def _repr_html_(self) -> str:
        return card(
            "ConceptInterpolation",
            note("Cosine to the native vector; intervals are 95% of the draws."),
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
    n_draws: int = 5,
    seed: int = 0,
    progress: bool = True,
) -> ConceptInterpolation:
    """Cosines of carried to native vectors over numbers of texts; see the module docstring.

    Args: models: a `ModelPair`, or (source, target) with any tokenizers. contrasts: a set for each
        concept, two or more. A quarter of a concept's pairs is held out; all others are pooled as
        its other concepts. source_hook: where vectors are learnt. target_hook: where they are
        carried to. counts: numbers of texts (even); about a dozen around d where None. read:
        ``"last"`` token or ``"mean"``. stitch: a map of generic text between these hook points, for
        comparison. ridge: also fit ridge maps (the slow part). rows: what `read_rows` has read from
        these models, sets and hook points. n_draws: which texts, for every number. seed: of draws
        and folds. progress: show a bar.

    Raises: ValueError: a count that is odd, below 4 or above the texts there are; too few pairs; a
        set of one class. HookPointError, NonFiniteError: as `ConceptMap.fit`. MismatchError: the
        stitch belongs elsewhere.
    """
    source, target = model_sides(models)
    [(at, to)] = paired_hooks(source, target, source_hook, target_hook)
    sets = contrast_sets(contrasts)
    if len(sets) < 2:
        raise ValueError(
            f"{len(sets)} contrast set(s) given; a map fitted on another concept needs at least two"
        )
    if stitch is not None:
        stitch.refuse_foreign(at, source.identity)
        stitch.reversed().refuse_foreign(to, target.identity)
    found = (
        read_rows((source, target), sets, source_hook=at, target_hook=to, read=read)
        if rows is None
        else known_rows(rows, sets)
    )
    n_held_out = {name: max(1, round(HELD_OUT_SHARE * len(own))) for name, own in found.items()}
    table = []
    for name, own in found.items():
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(own), generator=generator)
        cut = n_held_out[name]
        others = PairRows.joined([one for other, one in found.items() if other != name])
        bench = _Bench(own[order[cut:]], own[order[:cut]], others, ridge, stitch)
        bar = tqdm(bench.counts(counts), desc=f"maps of {name}", disable=not progress, leave=False)
        table += [
            {"concept": name} | row
            for n in bar
            for draw in range(n_draws)
            for row in bench.draw(n, draw, generator)
        ]
    return ConceptInterpolation(pd.DataFrame(table), n_held_out)


@dataclass(frozen=True)
class _Bench:
    """Rows to draw texts from, and vectors to carry."""

    own: PairRows
    held_out: PairRows
    other: PairRows
    ridge: bool
    stitch: Stitch | None

    @property
    def d(self) -> int:
        return self.own.source.shape[2]

    def counts(self, wanted: Sequence[int] | None) -> list[int]:
        """Numbers of texts; where none are given, shares of d as far as the texts go."""
        if wanted is None:
            shares = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95, 1.05, 1.2, 1.5, 2, 3, 5)
            chosen = {
                min(2 * max(2, round(share * self.d / 2)), self.own.n_texts) for share in shares
            }
            return sorted(chosen)
        if not len(wanted) or any(n % 2 or not 4 <= n <= self.own.n_texts for n in wanted):
            raise ValueError(
                f"counts is {list(wanted)}; expected even numbers from 4 to {self.own.n_texts} (texts of the pairs that are not held out)"
            )
        return sorted(wanted)

    def draw(self, n: int, draw: int, generator: torch.Generator) -> Iterator[dict[str, Any]]:
        """A row an arm, for one choice of n texts."""
        own = self.own[torch.randperm(len(self.own), generator=generator)[: n // 2]]
        there = {"own": own, "noise_source": own.without_source(generator)}
        here = {"own_disjoint": own}
        if n <= self.other.n_texts:
            other = self.other[torch.randperm(len(self.other), generator=generator)[: n // 2]]
            here |= {"other": other, "shuffled": other.shuffled(generator)}
        for arm, rows in there.items():
            yield self._row(arm, n, draw, rows.fit(), rows)
        for arm, rows in here.items():
            yield self._row(arm, n, draw, rows.fit(), self.held_out)
            if self.ridge and arm != "shuffled":
                yield self._row(
                    f"{arm}_ridge", n, draw, rows.fit("ridge", seed=draw), self.held_out
                )
        weight = torch.randn(
            self.d, self.own.target.shape[2], generator=generator, dtype=torch.float64
        )
        yield self._row("random", n, draw, weight, self.held_out)
        yield self._compared("native_other_texts", n, draw, own.gap("target"), self.held_out)
        if self.stitch is not None:
            yield self._row("stitch", n, draw, self.stitch.up.weight.double().cpu(), self.held_out)

    def _row(
        self, arm: str, n: int, draw: int, through: RowMap | Tensor, learnt_from: PairRows
    ) -> dict[str, Any]:
        weight = through if isinstance(through, Tensor) else through.weight
        row = self._compared(arm, n, draw, learnt_from.gap("source") @ weight, learnt_from)
        return row | {"interpolates": isinstance(through, RowMap) and through.interpolates}

    def _compared(
        self, arm: str, n: int, draw: int, vector: Tensor, learnt_from: PairRows
    ) -> dict[str, Any]:
        native = learnt_from.gap("target")
        return {
            "arm": arm,
            "n": n,
            "d": self.d,
            "n_over_d": n / self.d,
            "draw": draw,
            "cosine": cosine(vector, native),
            "norm_ratio": float(vector.norm() / native.norm()),
            "interpolates": False,
        }
