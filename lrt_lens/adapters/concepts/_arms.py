"""The arms of a concept-map evaluation: L-Cross's own, other and random maps, and the controls that
tell what each is worth.

With A and B disjoint parts of a concept's pairs, every vector is learnt from A:

| arm | the map is fitted on |
| --- | --- |
| ``native`` | no map: what the target learns from A itself (the paper's "Self") |
| ``own`` | A, the texts of the vector (table 1): with n ≤ d this is ``native`` again |
| ``noise_source`` | A, random numbers in place of the source's rows: with n ≤ d the same again, without any source model |
| ``own_disjoint`` | B, the same concept on other texts |
| ``other`` | the next concept in the list (table 3) |
| ``others`` | all other concepts together (only where there are more than two concepts) |
| ``…_ridge`` | as its namesake, centred and with a penalty chosen on held-out pairs |
| ``shuffled`` | as the widest of ``others`` and ``other``, target rows dealt out to other texts |
| ``mean_only`` | the mean states of the same texts alone |
| ``stitch`` | tokens of ordinary text |
| ``untransformed`` | no map, where widths agree (table 2) |
| ``random`` | Gaussian T with entries of variance 1 (table 2 as we read it) |
| ``random_matched`` | the same, brought to the length of ``native`` |
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrt_lens.adapters.concepts._concept_map import Extraction
from lrt_lens.adapters.concepts._row_maps import RowMap
from lrt_lens.adapters.concepts._rows import PairRows, cosine, mean_only
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.stitching._stitch import Stitch

DRAWN = ("random", "random_matched")


@dataclass(frozen=True)
class ConceptArm:
    """Vectors on one model, one for each hook point, and the map that they came through."""

    name: str
    vectors: tuple[SteeringVector, ...]
    facts: dict[str, Any]
    """cosine and norm_ratio to the native vectors, and of the map n, d, interpolates, r2,
    r2_uniform: means over hook points.
    """
    draw: int | None = None


@dataclass(frozen=True)
class LayerRows:
    """Rows of every concept at one pair of hook points."""

    source_hook: str
    target_hook: str
    rows: dict[str, PairRows]
    stitch: Stitch | None = None


@dataclass(frozen=True)
class _Layer:
    """One hook point's rows as the arms of one concept need them."""

    learnt: PairRows
    """A."""
    rest: PairRows
    """B."""
    other: PairRows
    others: PairRows | None
    target_hook: str
    stitch: Stitch | None
    by: Extraction

    @property
    def vector(self) -> Tensor:
        return self.learnt.gap("source", self.by)

    @property
    def native(self) -> Tensor:
        return self.learnt.gap("target", self.by)

    @property
    def foreign(self) -> PairRows:
        """The widest texts without the concept."""
        return self.other if self.others is None else self.others


def concept_arms(
    concept: str,
    layers: Sequence[LayerRows],
    target: ModelIdentity,
    *,
    by: Extraction,
    ridge: bool,
    n_pairs: int | None,
    n_random: int,
    seed: int,
) -> list[ConceptArm]:
    """Every arm of one concept on the target, ``native`` first; see the module docstring."""
    ready = [_layer(concept, layer, by, n_pairs, seed) for layer in layers]
    generator = torch.Generator().manual_seed(seed)
    arms = [_arm("native", concept, ready, [(layer.native, None) for layer in ready], target)]
    for name, carry in _fitted(ready, ridge, generator, seed):
        arms.append(_arm(name, concept, ready, [carry(layer) for layer in ready], target))
    for name, carry in _unfitted(ready):
        arms.append(_arm(name, concept, ready, [(carry(layer), None) for layer in ready], target))
    for draw in range(n_random):
        shapes = [(len(layer.vector), len(layer.native)) for layer in ready]
        maps = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        raw = [layer.vector @ weight for layer, weight in zip(ready, maps, strict=True)]
        matched = [v / v.norm() * layer.native.norm() for v, layer in zip(raw, ready, strict=True)]
        for name, vectors in (("random", raw), ("random_matched", matched)):
            arms.append(_arm(name, concept, ready, [(v, None) for v in vectors], target, draw))
    return arms


def vector_part(rows: PairRows, n_pairs: int | None, seed: int) -> tuple[PairRows, PairRows]:
    """(A, B): the pairs that vectors are learnt from (half of them where no number is given), and
    the others.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    cut = n_pairs or len(rows) // 2
    return rows[order[:cut]], rows[order[cut:]]


def _layer(
    concept: str, layer: LayerRows, by: Extraction, n_pairs: int | None, seed: int
) -> _Layer:
    names = list(layer.rows)
    foreign = [layer.rows[name] for name in names if name != concept]
    return _Layer(
        *vector_part(layer.rows[concept], n_pairs, seed),
        layer.rows[names[(names.index(concept) + 1) % len(names)]],
        PairRows.joined(foreign) if len(foreign) > 1 else None,
        layer.target_hook,
        layer.stitch,
        by,
    )


def _fitted(
    ready: list[_Layer], ridge: bool, generator: torch.Generator, seed: int
) -> Iterator[tuple[str, Callable[[_Layer], tuple[Tensor, RowMap]]]]:
    """(arm, function that carries the vector of a layer and returns the map too)."""

    def through(fit: Callable[[_Layer], RowMap]) -> Callable[[_Layer], tuple[Tensor, RowMap]]:
        def carry(layer: _Layer) -> tuple[Tensor, RowMap]:
            found = fit(layer)
            return layer.vector @ found.weight, found

        return carry

    yield "own", through(lambda layer: layer.learnt.fit(score=True))
    yield "noise_source", _through_noise(generator)
    yield "own_disjoint", through(lambda layer: layer.rest.fit(score=True))
    yield "other", through(lambda layer: layer.other.fit(score=True))
    if ready[0].others is not None:
        yield "others", through(lambda layer: layer.foreign.fit(score=True))
    yield "shuffled", through(lambda layer: layer.foreign.shuffled(generator).fit(score=True))
    if ridge:
        yield (
            "own_disjoint_ridge",
            through(lambda layer: layer.rest.fit("ridge", score=True, seed=seed)),
        )
        yield "other_ridge", through(lambda layer: layer.other.fit("ridge", score=True, seed=seed))
        if ready[0].others is not None:
            yield (
                "others_ridge",
                through(lambda layer: layer.foreign.fit("ridge", score=True, seed=seed)),
            )


def _through_noise(generator: torch.Generator) -> Callable[[_Layer], tuple[Tensor, RowMap]]:
    def carry(layer: _Layer) -> tuple[Tensor, RowMap]:
        noise = layer.learnt.without_source(generator)
        found = noise.fit(score=True)
        return noise.gap("source", layer.by) @ found.weight, found

    return carry


def _unfitted(ready: list[_Layer]) -> Iterator[tuple[str, Callable[[_Layer], Tensor]]]:
    yield "mean_only", lambda layer: layer.vector @ mean_only(layer.foreign)
    if all(layer.stitch is not None for layer in ready):
        yield "stitch", _through_stitch
    if all(len(layer.vector) == len(layer.native) for layer in ready):
        yield "untransformed", lambda layer: layer.vector


def _through_stitch(layer: _Layer) -> Tensor:
    if layer.stitch is None:
        raise ValueError(
            f"no stitch ends at {layer.target_hook!r}; give one for every pair of hook points"
        )
    return layer.vector @ layer.stitch.up.weight.double().cpu()


def _arm(
    name: str,
    concept: str,
    ready: list[_Layer],
    carried: list[tuple[Tensor, RowMap | None]],
    target: ModelIdentity,
    draw: int | None = None,
) -> ConceptArm:
    pairs = [(vector, layer.native) for (vector, _), layer in zip(carried, ready, strict=True)]
    facts: dict[str, Any] = {
        "cosine": sum(cosine(*pair) for pair in pairs) / len(pairs),
        "norm_ratio": sum(float(vector.norm() / native.norm()) for vector, native in pairs)
        / len(pairs),
    }
    maps = [found for _, found in carried if found is not None]
    for key in ("n", "interpolates", "r2", "r2_uniform"):
        facts[key] = sum(getattr(one, key) for one in maps) / len(maps) if maps else math.nan
    facts["d"] = sum(len(layer.vector) for layer in ready) / len(ready)
    vectors = tuple(
        SteeringVector(
            vector.float(),
            layer.target_hook,
            target,
            name=concept,
            method=name,
            transferred_by="concept map",
        )
        for (vector, _), layer in zip(carried, ready, strict=True)
    )
    return ConceptArm(name, vectors, facts, draw)
