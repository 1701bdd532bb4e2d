"""Arms of a concept-map evaluation: maps fitted on several kinds of texts, and controls.

Problem: a concept map has as many parameters as the texts have numbers, so a success can come from
the texts of the fit alone. Mechanism: maps are fitted on several kinds of texts and compared with
controls. With A and B disjoint parts of a concept's pairs, every vector is learnt from A:

| arm | texts that the map is fitted on |
| --- | --- |
| ``native`` | no map: the vector that the target learns from A itself (the paper's "Self") |
| ``own`` | A, the texts of the vector (table 1); for n ≤ d this equals ``native`` |
| ``noise_source`` | A, with random numbers instead of the source's rows; also equal for n ≤ d |
| ``own_disjoint`` | B, other texts of the same concept |
| ``other`` | the next concept in the list (table 3) |
| ``others`` | all other concepts together (only for more than two concepts) |
| ``…_ridge`` | texts of the arm of that name, centred, penalty chosen on held-out pairs |
| ``shuffled`` | ``others`` or else ``other``, with target rows assigned to other texts |
| ``mean_only`` | the mean states of these texts alone |
| ``stitch`` | tokens of ordinary text |
| ``untransformed`` | no map, if the widths are equal (table 2) |
| ``random`` | no texts: Gaussian T with entries of variance 1 (table 2 as we read it) |
| ``random_matched`` | the same, with the vector scaled to the length of ``native`` |

Tables are those of L-Cross (arXiv 2501.02009).

Arms of one vector are learnt again without each group of contrast pairs (`contrast_refits`), for
the intervals.

Limits: ``others`` and its controls need at least three concepts.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrt_lens.adapters.concepts._concept_arm import ConceptArm
from lrt_lens.adapters.concepts._concept_map import Extraction
from lrt_lens.adapters.concepts._row_maps import RowMap
from lrt_lens.adapters.concepts._rows import PairRows, cosine, mean_only
from lrt_lens.adapters.concepts._settings import ConceptTransferSettings
from lrt_lens.adapters.vectors._sources import usable_groups
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.stitching._stitch import Stitch


@dataclass(frozen=True)
class LayerRows:
    """Rows of every concept at one hook pair."""

    source_hook: str
    """Hook point of the source."""
    target_hook: str
    """Hook point of the target."""
    rows: dict[str, PairRows]
    """Rows of each concept by its name."""
    stitch: Stitch | None = None
    """Map of ordinary text for the arm ``stitch``; None leaves the arm out."""


@dataclass(frozen=True)
class _ConceptRows:
    """Rows of one hook pair, split as the arms of one concept need them."""

    learnt: PairRows
    """A, the pairs that the vector is learnt from."""
    disjoint: PairRows
    """B, the other pairs of the concept."""
    other: PairRows
    """Rows of the next concept in the list."""
    others: PairRows | None
    """Rows of all other concepts; None if there is only one other concept."""
    source_hook: str
    """Hook point of the source."""
    target_hook: str
    """Hook point of the target."""
    stitch: Stitch | None
    """Map of ordinary text; None if there is none."""
    by: Extraction
    """How vectors are learnt from pairs."""

    @property
    def vector(self) -> Tensor:
        """The source's vector, [d_source]."""
        return self.learnt.gap("source", self.by)

    @property
    def native(self) -> Tensor:
        """The target's own vector from the same pairs, [d_target]."""
        return self.learnt.gap("target", self.by)

    @property
    def foreign(self) -> PairRows:
        """Rows of all other concepts."""
        return self.other if self.others is None else self.others

    def n_groups(self, n_groups: int) -> int:
        """Return into how many groups all of these pairs can be divided (`usable_groups`)."""
        parts = (self.learnt, self.disjoint, self.other)
        return usable_groups(n_groups, min(len(part) for part in parts))

    def without(self, group: int, n_groups: int) -> "_ConceptRows":
        """Return the rows without one group of the pairs of the vector and of every map."""
        others = None if self.others is None else self.others.without(group, n_groups)
        return replace(
            self,
            learnt=self.learnt.without(group, n_groups),
            disjoint=self.disjoint.without(group, n_groups),
            other=self.other.without(group, n_groups),
            others=others,
        )


_Transfer = Callable[[_ConceptRows], tuple[Tensor, RowMap]]
"""Function from the rows of one hook pair to the target's vector and the map that transferred
it."""


def concept_arms(
    concept: str,
    layers: Sequence[LayerRows],
    target: ModelIdentity,
    settings: ConceptTransferSettings,
) -> list[ConceptArm]:
    """Every arm of one concept on the target, ``native`` first; see the module docstring."""
    rows = [_concept_rows(concept, layer, settings) for layer in layers]
    # All arms draw from one generator, so their order decides the numbers.
    generator = torch.Generator().manual_seed(settings.seed)
    arms = [_arm("native", concept, rows, [(layer.native, None) for layer in rows], target)]
    for name, transfer in _fitted(rows, settings, generator):
        arms += [
            _arm(name, concept, rows, transferred, target, draw)
            for draw, transferred in _transferred(name, transfer, rows, settings)
        ]
    for name, multiply in _unfitted(rows):
        arms.append(_arm(name, concept, rows, [(multiply(layer), None) for layer in rows], target))
    for draw in range(settings.n_random):
        shapes = [(len(layer.vector), len(layer.native)) for layer in rows]
        # T with entries N(0, 1)
        maps = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        raw = [layer.vector @ weight for layer, weight in zip(rows, maps, strict=True)]
        # v T / ‖v T‖ · ‖native‖
        matched = [v / v.norm() * layer.native.norm() for v, layer in zip(raw, rows, strict=True)]
        for name, vectors in (("random", raw), ("random_matched", matched)):
            arms.append(_arm(name, concept, rows, [(v, None) for v in vectors], target, draw))
    return arms


def source_arm(
    concept: str,
    layers: Sequence[LayerRows],
    source: ModelIdentity,
    settings: ConceptTransferSettings,
) -> ConceptArm:
    """The source's own vectors, learnt from the same pairs as those of all arms."""
    rows = [_concept_rows(concept, layer, settings) for layer in layers]
    return _source_arm(concept, rows, source)


def contrast_refits(
    concept: str,
    layers: Sequence[LayerRows],
    models: tuple[ModelIdentity, ModelIdentity],
    settings: ConceptTransferSettings,
    names: Collection[str],
) -> Iterator[ConceptArm]:
    """Yield the arms of these names without each group of contrast pairs, group by group.

    The k-th group of the vector's pairs is left out together with the k-th group of the pairs of
    each map. Groups of different pairs have nothing to do with each other, so the jackknife over
    them finds the variance that both cause.
    """
    rows = [_concept_rows(concept, layer, settings) for layer in layers]
    n_groups = min(layer.n_groups(settings.n_contrast_groups) for layer in rows)
    source, target = models
    for group in range(n_groups):
        rest = [layer.without(group, n_groups) for layer in rows]
        yield _source_arm(concept, rest, source)
        yield _arm("native", concept, rest, [(layer.native, None) for layer in rest], target)
        generator = torch.Generator().manual_seed(settings.seed)
        for name, transfer in _fitted(rest, settings, generator, score=False):
            if name in names:
                yield _arm(name, concept, rest, [transfer(layer) for layer in rest], target)
        for name, multiply in _unfitted(rest):
            if name in names:
                vectors = [(multiply(layer), None) for layer in rest]
                yield _arm(name, concept, rest, vectors, target)


def vector_part(rows: PairRows, n_pairs: int | None, seed: int) -> tuple[PairRows, PairRows]:
    """Return ``n_pairs`` random pairs to learn vectors from (None: one half), and the others."""
    # The seed gives the same parts for both models and for all arms.
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    cut = n_pairs or len(rows) // 2
    return rows[order[:cut]], rows[order[cut:]]


def _concept_rows(
    concept: str, layer: LayerRows, settings: ConceptTransferSettings
) -> _ConceptRows:
    names = list(layer.rows)
    foreign = [layer.rows[name] for name in names if name != concept]
    return _ConceptRows(
        *vector_part(layer.rows[concept], settings.n_pairs, settings.seed),
        # The last concept takes the first one as its other.
        layer.rows[names[(names.index(concept) + 1) % len(names)]],
        # For two concepts, all others are the one other concept.
        PairRows.joined(foreign) if len(foreign) > 1 else None,
        layer.source_hook,
        layer.target_hook,
        layer.stitch,
        settings.by,
    )


def _transferred(
    name: str, transfer: _Transfer, rows: list[_ConceptRows], settings: ConceptTransferSettings
) -> Iterator[tuple[int | None, list[tuple[Tensor, RowMap]]]]:
    """Yield each draw of an arm with its (vector, map) per hook pair; None as its only draw."""
    if name == "shuffled":
        # Each draw of a shuffle assigns the rows anew.
        for draw in range(settings.n_shuffled):
            yield draw, [transfer(layer) for layer in rows]
        return
    first = [transfer(layer) for layer in rows]
    # Maps that interpolate give the native vector, whatever the random rows are.
    if name != "noise_source" or all(row_map.interpolates for _, row_map in first):
        yield None, first
        return
    yield 0, first
    # A stream of its own, so that the draws of later arms do not depend on `n_noise`.
    again = _by_noise(torch.Generator().manual_seed(settings.seed + 1_000_003), score=True)
    for draw in range(1, settings.n_noise):
        yield draw, [again(layer) for layer in rows]


def _fitted(
    rows: list[_ConceptRows],
    settings: ConceptTransferSettings,
    generator: torch.Generator,
    score: bool = True,
) -> Iterator[tuple[str, _Transfer]]:
    """Return each arm with the function that fits a map and transfers a vector by it."""

    def by(fit: Callable[[_ConceptRows], RowMap]) -> _Transfer:
        def transfer(layer: _ConceptRows) -> tuple[Tensor, RowMap]:
            row_map = fit(layer)
            # v T, without a bias: a vector is a difference of rows.
            return layer.vector @ row_map.weight, row_map

        return transfer

    def by_ridge(texts: Callable[[_ConceptRows], PairRows]) -> _Transfer:
        return by(lambda layer: texts(layer).fit("ridge", score=score, seed=settings.seed))

    several = rows[0].others is not None
    yield "own", by(lambda layer: layer.learnt.fit(score=score))
    yield "noise_source", _by_noise(generator, score)
    yield "own_disjoint", by(lambda layer: layer.disjoint.fit(score=score))
    yield "other", by(lambda layer: layer.other.fit(score=score))
    if several:
        yield "others", by(lambda layer: layer.foreign.fit(score=score))
    yield "shuffled", by(lambda layer: layer.foreign.shuffled(generator).fit(score=score))
    if settings.ridge:
        yield "own_disjoint_ridge", by_ridge(lambda layer: layer.disjoint)
        yield "other_ridge", by_ridge(lambda layer: layer.other)
        if several:
            yield "others_ridge", by_ridge(lambda layer: layer.foreign)


def _by_noise(generator: torch.Generator, score: bool) -> _Transfer:
    """Transfer of a vector of random rows, by a map fitted on the same random rows."""

    def transfer(layer: _ConceptRows) -> tuple[Tensor, RowMap]:
        # Vector and map use the same random rows, as in the arm `own`.
        noise = layer.learnt.without_source(generator)
        row_map = noise.fit(score=score)
        return noise.gap("source", layer.by) @ row_map.weight, row_map

    return transfer


def _unfitted(rows: list[_ConceptRows]) -> Iterator[tuple[str, Callable[[_ConceptRows], Tensor]]]:
    """Return each arm with the function that transfers a vector without fitting a map."""
    yield "mean_only", lambda layer: layer.vector @ mean_only(layer.foreign)
    if all(layer.stitch is not None for layer in rows):
        yield "stitch", _by_stitch
    if all(len(layer.vector) == len(layer.native) for layer in rows):
        yield "untransformed", lambda layer: layer.vector


def _by_stitch(layer: _ConceptRows) -> Tensor:
    if layer.stitch is None:
        raise ValueError(
            f"no stitch ends at {layer.target_hook!r}; give one for every pair of hook points"
        )
    # Stitches are float32 on any device; concept rows are float64 on the CPU.
    return layer.vector @ layer.stitch.up.weight.double().cpu()


def _source_arm(concept: str, rows: list[_ConceptRows], source: ModelIdentity) -> ConceptArm:
    vectors = tuple(
        SteeringVector(layer.vector.float(), layer.source_hook, source, name=concept)
        for layer in rows
    )
    return ConceptArm("source", vectors, {})


def _arm(
    name: str,
    concept: str,
    rows: list[_ConceptRows],
    transferred: Sequence[tuple[Tensor, RowMap | None]],
    target: ModelIdentity,
    draw: int | None = None,
) -> ConceptArm:
    """Arm of the transferred vectors, one (vector, map) per hook pair."""
    pairs = [(vector, layer.native) for (vector, _), layer in zip(transferred, rows, strict=True)]
    ratios = [float(vector.norm() / native.norm()) for vector, native in pairs]
    facts: dict[str, Any] = {
        "cosine": sum(cosine(*pair) for pair in pairs) / len(pairs),
        "norm_ratio": sum(ratios) / len(pairs),
    }
    maps = [row_map for _, row_map in transferred if row_map is not None]
    # The mean of booleans is the share of hook pairs whose map interpolates.
    for key in ("n", "interpolates", "r2", "r2_uniform"):
        facts[key] = sum(getattr(one, key) for one in maps) / len(maps) if maps else math.nan
    facts["d"] = sum(len(layer.vector) for layer in rows) / len(rows)
    vectors = tuple(
        SteeringVector(
            vector.float(),
            layer.target_hook,
            target,
            name=concept,
            method=name,
            transferred_by="concept map",
        )
        for (vector, _), layer in zip(transferred, rows, strict=True)
    )
    return ConceptArm(name, vectors, facts, draw)
