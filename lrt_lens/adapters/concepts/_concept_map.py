"""L-Cross's map: fitted on one vector a text, so that it crosses tokenizers; and what that is
worth.

    concept_map = ConceptMap.fit(pair, other_concepts, source_hook=2, target_hook=3)     # or (source_model, target_model)
    vector = SteeringVector.mean_difference(pair.source, contrast, at=2)
    moved = concept_map.transfer(vector, scale=1.5)                                      # β·λT, no bias, the mapped length
    with moved.apply(pair.target): ...

Problem: two models with different tokenizers share no tokens, but they share texts. Mechanism
(Huang et al., arXiv 2501.02009, §2-3): the row of a text is its last token's activation (or the
mean over its tokens) at a layer; T minimises ‖Λ_t − Λ_s T‖ over the rows of contrast texts, with
minimum norm, without intercept, centring or penalty; a vector λ goes over as β·λT.
``method="ridge"`` centres and chooses a penalty on held-out pairs instead. Several layers: one map
for each pair of hook points.

Limits. A contrast set has hundreds of texts, a stream thousands of dimensions. With no more texts n
than dimensions d the map *interpolates*: Λ_s T = Λ_t exactly, whatever the source's rows are, even
random numbers. A mean-difference vector is a linear combination of the rows it is learnt from, so
carried by a map fitted on those same texts it **is** the target's own vector and shows nothing
about transfer (`ConceptMap.interpolates`, `ConceptMap.overlap`; a warning says so). What tests
transfer are maps fitted on other texts, best of other concepts; that is why `fit` takes several
sets, and why n, d, the effective rank and scores on held-out pairs are always shown.
"""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from lrt_lens._files import read_tensors, write_tensors
from lrt_lens._repr_html import card, note, table
from lrt_lens.adapters.concepts._row_maps import N_FOLDS, Method, RowMap, fit_rows
from lrt_lens.adapters.vectors._steering_hook import Positions
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.errors import FileFormatError, HookPointError, MismatchError
from lrt_lens.models._hook_points import resolve, same_place
from lrt_lens.models._hooked_model import Handle, HookedModel, load_model
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._reading import read_activations
from lrt_lens.stitching._affine import AffineMap

logger = logging.getLogger(__name__)

CONCEPT_MAP_SCHEMA = "lrt_lens.concept_map/1"

Hooks = int | str | Sequence[int | str]
"""One hook point, or several of which each gets its own map."""
TextRead = Literal["last", "mean"]
"""Where a text becomes one row; positions are not offered, because tokenizers count them
differently.
"""
Extraction = Literal["mean_difference", "principal_component"]
"""How a vector is learnt: CAA, or RepE's first principal component."""


@dataclass(frozen=True, eq=False)
class ConceptLayer:
    """The map between one hook point of the source and one of the target."""

    map: AffineMap
    n: int
    """Texts that fitted."""
    rank: int
    """Of the source's rows."""
    effective_rank: float
    """exp(entropy) of the centred source rows' singular values."""
    alpha: float
    """Ridge's penalty; 0 for least squares."""
    r2: float
    """On held-out pairs, by variance; about the texts' own mean."""
    r2_uniform: float
    """On held-out pairs, mean over dimensions."""
    interpolates: bool
    """The map runs through all its texts, whatever they are."""
    cosines: dict[str, float] = field(default_factory=dict)
    """For each concept: cosine of its mean difference, every pair carried by a map that never saw
    it, to the target's own.
    """
    median_norm: float = math.nan
    """Median ‖row‖ in the target."""

    @property
    def d(self) -> int:
        """Dimensions of the source's stream."""
        return self.map.weight.shape[0]


@dataclass(frozen=True, eq=False)
class ConceptMap:
    """Maps fitted on contrast texts, one for each pair of hook points."""

    layers: tuple[ConceptLayer, ...]
    source: ModelIdentity | None = None
    target: ModelIdentity | None = None
    concepts: tuple[str, ...] = ()
    """Names of the contrast sets."""
    digests: tuple[str, ...] = ()
    """Their hashes."""
    text_keys: frozenset[str] = frozenset()
    """A hash of every text that fitted."""
    read: str = "last"
    method: str = "least_squares"

    # -------------------------------------------------------------------------------------- fitting

    @classmethod
    def fit(
        cls,
        models: ModelPair | tuple[ModelLike, ModelLike],
        contrast: ContrastSet | Sequence[ContrastSet],
        *,
        source_hook: Hooks,
        target_hook: Hooks,
        read: TextRead = "last",
        method: Method = "least_squares",
        intercept: bool | None = None,
        n_folds: int = N_FOLDS,
        seed: int = 0,
    ) -> "ConceptMap":
        """A map for every pair of hook points, in the order given.

        Args: models: a `ModelPair`, or (source, target) of any two tokenizers. contrast: one
            concept's pairs, or those of several; each text is one row in both models. source_hook:
            one hook point, or a list. target_hook: as many. read: ``"last"`` token (the paper), or
            the ``"mean"`` over a text's unmasked tokens. method: ``"least_squares"`` (the paper),
            or ``"ridge"`` with its penalty chosen on held-out pairs. intercept: see
            `lrt_lens.adapters.concepts._row_maps.fit_rows`. n_folds: folds of pairs for the
            held-out scores. seed: of the folds.

        Raises:
            HookPointError: a hook point that the model does not have, or lists of different length.
            ValueError: a set of one class, or too few texts.
            NonFiniteError: activations are NaN or infinite.
        """
        source, target = model_sides(models)
        sets = contrast_sets(contrast)
        pairs = paired_hooks(source, target, source_hook, target_hook)
        if read not in ("last", "mean"):
            raise ValueError(
                f"read is {read!r}; expected 'last' or 'mean' (tokenizers count positions differently)"
            )
        texts, groups = [text for one in sets for text in one.texts], pair_groups(sets)
        layers = []
        for at, to in pairs:
            x, y = (
                read_activations(source, texts, at, read),
                read_activations(target, texts, to, read),
            )
            fitted = fit_rows(
                x, y, groups=groups, method=method, intercept=intercept, n_folds=n_folds, seed=seed
            )
            layers.append(_layer(fitted, y, sets, at, to))
        found = cls(
            tuple(layers),
            source.identity,
            target.identity,
            tuple(one.name for one in sets),
            tuple(one.digest for one in sets),
            frozenset(map(_key, texts)),
            read,
            method,
        )
        logger.info("%s", found)
        found._warn_if_interpolating()
        return found

    def learn(
        self, model: ModelLike, contrast: ContrastSet, *, by: Extraction = "mean_difference"
    ) -> list[SteeringVector]:
        """A vector of the concept at every hook point where this map starts, read as the map's
        texts were.
        """
        recipes = {
            "mean_difference": SteeringVector.mean_difference,
            "principal_component": SteeringVector.principal_component,
        }
        if by not in recipes:
            raise ValueError(f"by is {by!r}; expected one of {sorted(recipes)}")
        read: Any = self.read
        return [
            recipes[by](model, contrast, at=layer.map.source_hook, read=read)
            for layer in self.layers
        ]

    # ------------------------------------------------------------------------------------- transfer

    def transfer(self, vector: SteeringVector, *, scale: float = 1.0) -> SteeringVector:
        """The vector on the target, ``scale·(v W)``: no bias, its length as the map makes it (the
        paper's β is ``scale``).

        Refuses a vector of another model, of a hook point where no map starts, or one that the map
        sends to zero.
        """
        if not math.isfinite(scale):
            raise ValueError(f"scale is {scale}; expected a finite number such as 1.0")
        layer = self._starting_at(vector.hook)
        if vector.model is not None and self.source is not None:
            self.source.refuse_other(
                vector.model, "what is to be transferred was learnt on a model that"
            )
        if layer.interpolates and self.overlap(vector) == 1:
            logger.warning(
                "the map interpolates the %d texts that vector %r was learnt from (%d dimensions): what comes out is the target's own vector, "
                "not evidence of transfer; fit the map on other concepts",
                layer.n,
                vector.name,
                layer.d,
            )
        mapped = layer.map.directions(vector.direction.double()) * scale
        if scale and not mapped.norm() > 0:
            raise ValueError(
                f"the map sends vector {vector.name!r} to zero; its direction lies outside the span of the {layer.n} texts that fitted"
            )
        return replace(
            vector,
            direction=mapped.float(),
            hook=layer.map.target_hook,
            model=self.target,
            median_norm=layer.median_norm,
            transferred_by="concept map",
        )

    def overlap(self, vector: SteeringVector) -> float:
        """Share of the vector's texts that the map was fitted on; NaN where they are unknown (a
        file keeps only their common hash).
        """
        if vector.contrast_set is not None:
            texts = vector.contrast_set.texts
            return sum(_key(text) in self.text_keys for text in texts) / len(texts)
        return 1.0 if vector.contrast and vector.contrast in self.digests else math.nan

    @property
    def interpolates(self) -> bool:
        """Whether any of the maps runs through all its texts."""
        return any(layer.interpolates for layer in self.layers)

    def _starting_at(self, hook: str) -> ConceptLayer:
        found = [layer for layer in self.layers if same_place(layer.map.source_hook, hook)]
        if not found:
            raise MismatchError(
                f"learnt at {hook!r}, but this map starts at {[layer.map.source_hook for layer in self.layers]}; "
                "learn it there, or fit a map that starts where it was learnt"
            )
        return found[0]

    # ---------------------------------------------------------------------------------------- views

    @property
    def summary(self) -> pd.DataFrame:
        """A row a map: hook points, n, d, rank, effective_rank, alpha, held-out r2 and r2_uniform,
        interpolates, and a cosine a concept.
        """
        rows = []
        for layer in self.layers:
            row = {
                "source_hook": layer.map.source_hook,
                "target_hook": layer.map.target_hook,
                "n": layer.n,
                "d": layer.d,
            }
            row |= {
                key: getattr(layer, key)
                for key in ("rank", "effective_rank", "alpha", "r2", "r2_uniform", "interpolates")
            }
            rows.append(row | {f"cosine_{name}": value for name, value in layer.cosines.items()})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        names = [model.name if model else "?" for model in (self.source, self.target)]
        lines = [
            f"ConceptMap({names[0]} → {names[1]}, {self.method} on {', '.join(self.concepts) or 'rows'}, read {self.read}"
        ]
        for layer in self.layers:
            cosines = ", ".join(f"{name} {value:.2f}" for name, value in layer.cosines.items())
            lines.append(
                f"  {layer.map.source_hook} → {layer.map.target_hook}: n {layer.n}, d {layer.d}, effective rank {layer.effective_rank:.1f}, held-out "
                f"r2 {layer.r2:.2f}, r2_uniform {layer.r2_uniform:.2f}, cosine {cosines}{', interpolates' if layer.interpolates else ''}"
            )
        return "\n".join(lines) + ")"

    def _repr_html_(self) -> str:
        warning = (
            "A map that interpolates returns the target's own vector for the texts it was fitted on."
            if self.interpolates
            else ""
        )
        return card("ConceptMap", table(self.summary), note(warning))

    def _warn_if_interpolating(self) -> None:
        for layer in self.layers:
            if layer.interpolates:
                logger.warning(
                    "%s → %s: %d texts for %d dimensions: the map interpolates them (it would on any other rows too), and a vector learnt from these "
                    "texts comes out as the target's own; judge it by held-out scores and by vectors of other concepts",
                    layer.map.source_hook,
                    layer.map.target_hook,
                    layer.n,
                    layer.d,
                )

    # ---------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file."""
        tensors = {
            f"{kind}.{i}": getattr(layer.map, kind)
            for i, layer in enumerate(self.layers)
            for kind in ("weight", "bias")
        }
        described = []
        for layer in self.layers:
            numbers = {key: getattr(layer, key) for key in _NUMBERS}
            described.append(
                numbers
                | {"source_hook": layer.map.source_hook, "target_hook": layer.map.target_hook}
            )
        content = {
            "layers": described,
            "source": self.source and asdict(self.source),
            "target": self.target and asdict(self.target),
            "concepts": self.concepts,
            "digests": self.digests,
            "text_keys": sorted(self.text_keys),
            "read": self.read,
            "method": self.method,
        }
        return write_tensors(
            Path(path),
            tensors,
            {"schema_version": CONCEPT_MAP_SCHEMA, "concept_map": json.dumps(content)},
        )

    @classmethod
    def load(cls, path: str | Path) -> "ConceptMap":
        """Read what `save` wrote; FileFormatError for anything else."""
        tensors, metadata = read_tensors(Path(path), CONCEPT_MAP_SCHEMA)
        content: dict[str, Any] = json.loads(metadata["concept_map"])
        layers = []
        for i, described in enumerate(content["layers"]):
            if f"weight.{i}" not in tensors or f"bias.{i}" not in tensors:
                raise FileFormatError(
                    f"{str(path)!r} lacks the map of layer {i}; fit the concept map again"
                )
            hooks = described.pop("source_hook"), described.pop("target_hook")
            layers.append(
                ConceptLayer(
                    AffineMap(tensors[f"weight.{i}"], tensors[f"bias.{i}"], *hooks), **described
                )
            )
        source, target = (
            ModelIdentity(**content[role]) if content[role] else None
            for role in ("source", "target")
        )
        names, digests, keys = (
            tuple(content["concepts"]),
            tuple(content["digests"]),
            frozenset(content["text_keys"]),
        )
        return cls(
            tuple(layers), source, target, names, digests, keys, content["read"], content["method"]
        )


_NUMBERS = (
    "n",
    "rank",
    "effective_rank",
    "alpha",
    "r2",
    "r2_uniform",
    "interpolates",
    "cosines",
    "median_norm",
)


def apply_together(
    model: ModelLike,
    vectors: Sequence[SteeringVector],
    *,
    scale: float = 1.0,
    positions: Positions = "all",
) -> Handle:
    """Put vectors at several hook points on a model at one strength: L-Cross's concepts of many
    layers.

    Use as a context manager, or call ``remove()``. MismatchError where a vector is another model's;
    ValueError where two share a hook point.
    """
    hooked = load_model(model)
    hooks = [vector.hook for vector in vectors]
    if not hooks or any(same_place(a, b) for i, a in enumerate(hooks) for b in hooks[:i]):
        raise ValueError(
            f"the vectors are at {hooks}; give at least one, and one for each hook point (add those that share one)"
        )
    for vector in vectors:
        vector.refuse_other_model(hooked)
    return hooked.intervene(
        {vector.hook: vector.hook_at(scale, positions=positions) for vector in vectors}
    )


def model_sides(models: ModelPair | tuple[ModelLike, ModelLike]) -> tuple[HookedModel, HookedModel]:
    """(source, target) of a pair, or of two models whose tokenizers may differ."""
    if isinstance(models, ModelPair):
        return models.source, models.target
    if not isinstance(models, tuple) or len(models) != 2:
        raise ValueError(f"models is {models!r}; expected a ModelPair, or a tuple (source, target)")
    return load_model(models[0]), load_model(models[1])


def contrast_sets(contrast: ContrastSet | Sequence[ContrastSet]) -> list[ContrastSet]:
    """The sets as a list; ValueError where there is none, where two share a name, or where one
    shows a single class.
    """
    sets = [contrast] if isinstance(contrast, ContrastSet) else list(contrast)
    if not sets or not all(isinstance(one, ContrastSet) for one in sets):
        raise ValueError(
            f"contrast holds {[type(one).__name__ for one in sets]}; expected a ContrastSet, or a list of them"
        )
    names = [one.name for one in sets]
    if len(set(names)) < len(names):
        raise ValueError(f"contrast sets share a name: {names}; give each its own")
    for one in sets:
        if set(one.positive) == set(one.negative):
            raise ValueError(
                f"contrast set {one.name!r} has the same texts on both sides: one class; give positive texts that show the concept and negative ones that do not"
            )
    return sets


def paired_hooks(
    source: HookedModel, target: HookedModel, source_hook: Hooks, target_hook: Hooks
) -> list[tuple[str, str]]:
    """Hook points of both models, resolved and paired in order; HookPointError where one does not
    exist or the numbers differ.
    """
    sides = [
        [hooks] if isinstance(hooks, int | str) else list(hooks)
        for hooks in (source_hook, target_hook)
    ]
    if len(sides[0]) != len(sides[1]) or not sides[0]:
        raise HookPointError(
            f"{len(sides[0])} source hook(s) and {len(sides[1])} target hook(s); maps go from one to one: give as many of both, at least one"
        )
    names = [
        [resolve(hook, model) for hook in hooks]
        for hooks, model in zip(sides, (source, target), strict=True)
    ]
    if any(len(set(side)) < len(side) for side in names):
        raise HookPointError(
            f"hook points are given twice: {names[0]} → {names[1]}; give each once"
        )
    return list(zip(*names, strict=True))


def pair_groups(sets: Sequence[ContrastSet]) -> list[int]:
    """For every text of every set, positive ones first: the number of its pair, counted through all
    sets.
    """
    groups, first = [], 0
    for one in sets:
        groups += [*range(first, first + len(one))] * 2
        first += len(one)
    return groups


def _layer(
    fitted: RowMap, y: Tensor, sets: Sequence[ContrastSet], source_hook: str, target_hook: str
) -> ConceptLayer:
    cosines, start = {}, 0
    for one in sets:
        ours, native = (
            _mean_gap(rows[start : start + 2 * len(one)])
            for rows in (fitted.held_out_directions, y.double())
        )
        cosines[one.name] = float(torch.nn.functional.cosine_similarity(ours, native, dim=0))
        start += 2 * len(one)
    return ConceptLayer(
        AffineMap(fitted.weight.float(), fitted.bias.float(), source_hook, target_hook),
        fitted.n,
        fitted.rank,
        fitted.effective_rank,
        fitted.alpha,
        fitted.r2,
        fitted.r2_uniform,
        fitted.interpolates,
        cosines,
        float(y.norm(dim=1).median()),
    )


def _mean_gap(rows: Tensor) -> Tensor:
    positive, negative = rows.chunk(2)
    return (positive - negative).mean(0)


def _key(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
