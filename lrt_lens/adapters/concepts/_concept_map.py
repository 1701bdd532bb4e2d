"""L-Cross's concept map: fitted on one row per text, so that it works across tokenizers.

    concept_map = ConceptMap.fit(pair, other_concepts, source_hook=2, target_hook=3)
    vector = SteeringVector.mean_difference(pair.source, contrast, at=2)
    transferred = concept_map.transfer(vector, scale=1.5)      # β·λT
    with transferred.apply(pair.target):
        ...

Problem: two models with different tokenizers share no tokens, but they can read the same texts.
Mechanism (Huang et al., arXiv 2501.02009, §2-3): the row of a text is the activation of its last
token (or the mean over its tokens) at a layer. T minimises ‖Λ_t − Λ_s T‖ over the rows of contrast
texts, with minimum norm, without intercept, centring or penalty. A vector λ becomes β·λT, without
bias and with the length that the map gives. ``method="ridge"`` centres instead and chooses a
penalty on held-out pairs. Several layers get one map per hook pair.

Limits. A contrast set has hundreds of texts and a residual stream thousands of dimensions. If the
number of texts n is not larger than the number of dimensions d, the map *interpolates*: Λ_s T = Λ_t
exactly, whatever the source's rows are, even for random numbers. A mean-difference vector is a
linear combination of the rows that it is learnt from. If the map was fitted on the same texts, the
result therefore **is** the target's own vector and says nothing about transfer
(`ConceptMap.interpolates` and `ConceptMap.overlap` show it, and a warning is logged). To test
transfer, fit maps on other texts, best on other concepts. For this reason `ConceptMap.fit` takes
several sets, and n, d, the effective rank and held-out scores are always shown.
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

from lrt_lens._late import implementation
from lrt_lens._repr_html import card, note, table
from lrt_lens._stored_fields import as_damage, json_object, stored_fields, stored_text, stored_value
from lrt_lens._tensor_files import damaged, read_tensor_file, write_tensors
from lrt_lens.adapters.concepts._row_maps import N_FOLDS, Method, RowMap, fit_rows
from lrt_lens.adapters.vectors._intervention import Intervention
from lrt_lens.adapters.vectors._steering_hook import Positions
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._contrast import ContrastSet
from lrt_lens.models._belonging import Origin, refuse_foreign, refuse_impossible_hook
from lrt_lens.models._hooked_model import Handle
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._pair import Hooks, ModelPair, model_sides, paired_hooks
from lrt_lens.models._reading import (
    Readable,
    ShortTexts,
    StreamReader,
    read_activations,
    readable,
    row_rule,
)
from lrt_lens.models._text_codec import Truncation
from lrt_lens.stitching._affine import AffineMap

logger = logging.getLogger(__name__)

CONCEPT_MAP_SCHEMA = "lrt_lens.concept_map/1"
"""Schema version of a file; another one is refused."""

TextRead = Literal["last", "mean"]
"""How a text becomes one row. Positions are not offered: tokenizers count them differently."""
Extraction = Literal["mean_difference", "principal_component"]
"""How a vector is learnt: mean difference (CAA), or first principal component (RepE)."""
_OF_TEXTS = (
    "concepts",
    "digests",
    "text_keys",
    "read",
    "method",
    "short_texts",
    "truncation",
    "n_dropped",
    "n_cut",
)
"""Fields of a map that a file stores as JSON, besides its layers and models."""
_SCORES = ("rank", "effective_rank", "alpha", "r2", "r2_uniform", "interpolates")
"""Fields of a layer that `ConceptMap.summary` shows."""
_NUMBERS = ("n", *_SCORES, "cosines", "median_norm")
"""Fields of a layer that a file stores as JSON; the map itself is stored as tensors."""


@dataclass(frozen=True, eq=False)
class ConceptLayer:
    """The map between one hook point of the source and one of the target."""

    map: AffineMap
    """Map of rows; a vector is transferred by its weight, without its bias."""
    n: int
    """Number of texts that the map was fitted on."""
    rank: int
    """Rank of the source's rows."""
    effective_rank: float
    """Effective rank exp(entropy) of the centred source rows' singular values."""
    alpha: float
    """Penalty of ridge; 0 for least squares."""
    r2: float
    """R² on held-out pairs about the texts' own mean, weighted by variance."""
    r2_uniform: float
    """R² on held-out pairs, mean over dimensions."""
    interpolates: bool
    """True if the map predicts the target rows of its own texts exactly, whatever these rows
    are."""
    cosines: dict[str, float] = field(default_factory=dict)
    """Cosine, for each concept, between the source's transferred mean difference and the target's
    own; each pair is transferred by a map that was fitted without it."""
    median_norm: float = math.nan
    """Median ‖row‖ of the texts in the target."""

    @property
    def d(self) -> int:
        """Number of dimensions of the source's stream."""
        return self.map.weight.shape[0]


@dataclass(frozen=True, eq=False)
class ConceptMap:
    """Maps fitted on contrast texts, one per hook pair."""

    layers: tuple[ConceptLayer, ...]
    """One map per hook pair."""
    source: ModelIdentity | None = None
    """Model on which vectors are learnt; None if it is unknown."""
    target: ModelIdentity | None = None
    """Model to which vectors are transferred; None if it is unknown."""
    concepts: tuple[str, ...] = ()
    """Names of the contrast sets."""
    digests: tuple[str, ...] = ()
    """Hashes of the contrast sets."""
    text_keys: frozenset[str] = frozenset()
    """Hashes of the texts that were given for the fit."""
    read: str = "last"
    """How a text becomes one row: its last token, or the mean over its tokens."""
    method: str = "least_squares"
    """Method of the fit: least squares or ridge."""
    short_texts: ShortTexts = "drop"
    """Rule that was applied to texts without an unmasked token; see `fit`."""
    truncation: Truncation | None = None
    """End that was cut off texts longer than a context; None if none was to be cut."""
    n_dropped: int = 0
    """Number of pairs left out because the mask leaves nothing of a text."""
    n_cut: int = 0
    """Number of texts that were cut to the context of a model."""

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
        short_texts: ShortTexts = "drop",
        truncation: Truncation | None = None,
        method: Method = "least_squares",
        intercept: bool | None = None,
        n_folds: int = N_FOLDS,
        seed: int = 0,
    ) -> "ConceptMap":
        """Concept map with one map per hook pair, in the order of the arguments.

        Args:
            models: a `ModelPair`, or (source, target) with any two tokenizers.
            contrast: pairs of one concept or of several; each text is one row in both models.
            source_hook: one hook point or a list.
            target_hook: equally many hook points.
            read: ``"last"`` unmasked token (the paper), or the ``"mean"`` over the unmasked tokens.
            short_texts: what happens to pairs with a text that the mask leaves nothing of in one of
                the models: ``"drop"``, ``"refuse"`` or ``"unmasked"``.
            truncation: end that is cut off texts longer than a context.
            method: ``"least_squares"`` (the paper), or ``"ridge"`` with a penalty chosen on
                held-out pairs.
            intercept: True centres both sides; None centres for ridge only.
            n_folds: folds of pairs for the held-out scores.
            seed: seed of the folds.

        Raises:
            HookPointError: a model has no such hook point, or the lists differ in length.
            ValueError: a set shows one class only, there are too few texts, or ``read`` or
                ``method`` is unknown.
            NonFiniteError: activations are NaN or infinite.

        Source: L-Cross (arXiv 2501.02009), §2-3.
        """
        source, target = model_sides(models)
        sets = contrast_sets(contrast)
        hook_pairs = paired_hooks(source, target, source_hook, target_hook)
        if read not in ("last", "mean"):
            raise ValueError(
                f"read is {read!r}; expected 'last' or 'mean' (tokenizers count positions "
                "differently)"
            )
        reading: dict[str, Any] = {"short_texts": short_texts, "truncation": truncation}
        kept = [readable_pairs([source, target], one, read, **reading) for one in sets]
        sets_read = [one for one, _ in kept]
        reading["short_texts"] = row_rule(short_texts)
        # Each set lists its positive texts first; all sets follow one another.
        texts, groups = [text for one in sets_read for text in one.texts], pair_groups(sets_read)
        options: dict[str, Any] = {"method": method, "intercept": intercept}
        layers = []
        for at, to in hook_pairs:
            x = read_activations(source, texts, at, read, **reading)
            y = read_activations(target, texts, to, read, **reading)
            fit = fit_rows(x, y, groups=groups, n_folds=n_folds, seed=seed, **options)
            layers.append(_layer(fit, y, sets_read, at, to))
        concept_map = cls(
            tuple(layers),
            source.identity,
            target.identity,
            tuple(one.name for one in sets),
            tuple(one.digest for one in sets),
            # Texts are stored as hashes: overlap can be tested without the texts in the file.
            frozenset(map(_key, texts)),
            read,
            method,
            short_texts,
            truncation,
            n_dropped=sum(readable.n_dropped for _, readable in kept),
            n_cut=sum(readable.n_cut for _, readable in kept),
        )
        logger.info("%s", concept_map)
        concept_map._warn_if_interpolating()
        return concept_map

    def learn(
        self, model: ModelLike, contrast: ContrastSet, *, by: Extraction = "mean_difference"
    ) -> list[SteeringVector]:
        """Vectors of a concept on ``model``, one per source hook point of this map.

        Texts are read as the map's own texts were.
        """
        recipes = {
            "mean_difference": SteeringVector.mean_difference,
            "principal_component": SteeringVector.principal_component,
        }
        if by not in recipes:
            raise ValueError(f"by is {by!r}; expected one of {sorted(recipes)}")
        read: Any = self.read
        return [
            recipes[by](
                model,
                contrast,
                at=layer.map.source_hook,
                read=read,
                short_texts=self.short_texts,
                truncation=self.truncation,
            )
            for layer in self.layers
        ]

    # ------------------------------------------------------------------------------------- transfer

    def transfer(self, vector: SteeringVector, *, scale: float = 1.0) -> SteeringVector:
        """Vector on the target, ``scale·(v W)``; ``scale`` is the paper's β.

        There is no bias, and the length is that which the map gives.

        Raises:
            MismatchError: the vector belongs to another model or to a hook point at which no map
                starts.
            ValueError: ``scale`` is zero or not finite, or the map sends the vector to zero.

        Source: L-Cross (arXiv 2501.02009), §3.
        """
        if not math.isfinite(scale) or scale == 0:
            raise ValueError(f"scale is {scale}; expected a finite number such as 1.0, not 0")
        layer = self.layers[self._index_of(vector.origin)]
        if layer.interpolates and self.overlap(vector) == 1:
            logger.warning(
                "the map interpolates the %d texts that vector %r was learnt from (%d dimensions): "
                "what comes out is the target's own vector, not evidence of transfer; fit the map "
                "on other concepts",
                layer.n,
                vector.name,
                layer.d,
            )
        # β·λT
        mapped = layer.map.directions(vector.direction.double()) * scale
        # `not … > 0` is also true for NaN.
        if not mapped.norm() > 0:
            raise ValueError(
                f"the map sends vector {vector.name!r} to zero, because its direction is outside "
                f"the span of the {layer.n} texts of the fit; fit the map on more texts"
            )
        return replace(
            vector,
            direction=mapped.float(),
            hook=layer.map.target_hook,
            model=self.target,
            median_norm=layer.median_norm,
            transferred_by="concept map",
            route=None,
            strength=None,
            file=None,
        )

    def overlap(self, vector: SteeringVector) -> float:
        """Share of the vector's texts that the map was fitted on; NaN if it is unknown.

        A vector that was read from a file has only the common hash of its texts, so the share is 1
        if that hash is known here, and unknown otherwise.
        """
        if vector.contrast_set is not None:
            texts = vector.contrast_set.texts
            return sum(_key(text) in self.text_keys for text in texts) / len(texts)
        # A file stores one hash for all texts of a vector.
        return 1.0 if vector.contrast and vector.contrast in self.digests else math.nan

    @property
    def interpolates(self) -> bool:
        """True if any of the maps predicts the target rows of its own texts exactly."""
        return any(layer.interpolates for layer in self.layers)

    def _index_of(self, artefact: Origin) -> int:
        """Return the number of the layer that starts where an artefact was learnt."""
        starts = [
            Origin("this map", layer.map.source_hook, self.source, layer.d, "starts")
            for layer in self.layers
        ]
        remedy = "learn it there, or fit a map that starts where it was learnt"
        return refuse_foreign(artefact, *starts, remedy=remedy)

    # ---------------------------------------------------------------------------------------- views

    @property
    def summary(self) -> pd.DataFrame:
        """One row per map, with hook points, n, d, ranks, penalty, held-out scores, cosines.

        Columns: source_hook, target_hook, n, d, rank, effective_rank, alpha, r2, r2_uniform,
        interpolates, and cosine_{concept} for each concept.
        """
        rows = []
        for layer in self.layers:
            hooks = {"source_hook": layer.map.source_hook, "target_hook": layer.map.target_hook}
            scores = {key: getattr(layer, key) for key in _SCORES}
            cosines = {f"cosine_{name}": value for name, value in layer.cosines.items()}
            rows.append(hooks | {"n": layer.n, "d": layer.d} | scores | cosines)
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        source, target = (model.name if model else "?" for model in (self.source, self.target))
        concepts = ", ".join(self.concepts) or "rows"
        lines = [f"ConceptMap({source} → {target}, {self.method} on {concepts}, read {self.read}"]
        for layer in self.layers:
            cosines = ", ".join(f"{name} {value:.2f}" for name, value in layer.cosines.items())
            lines.append(
                f"  {layer.map.source_hook} → {layer.map.target_hook}: n {layer.n}, d {layer.d}, "
                f"effective rank {layer.effective_rank:.1f}, held-out r2 {layer.r2:.2f}, "
                f"r2_uniform {layer.r2_uniform:.2f}, cosine {cosines}"
                f"{', interpolates' if layer.interpolates else ''}"
            )
        return "\n".join(lines) + ")"

    def _repr_html_(self) -> str:
        warning = (
            "A map that interpolates returns the target's own vector for the texts of its fit."
            if self.interpolates
            else ""
        )
        return card("ConceptMap", table(self.summary), note(warning))

    def _warn_if_interpolating(self) -> None:
        for layer in self.layers:
            if layer.interpolates:
                logger.warning(
                    "%s → %s: %d texts for %d dimensions: the map interpolates them (as it would "
                    "any other rows), so a vector learnt from these texts becomes the target's own "
                    "vector; evaluate the map by held-out scores and by vectors of other concepts",
                    layer.map.source_hook,
                    layer.map.target_hook,
                    layer.n,
                    layer.d,
                )

    # ---------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file and return its path."""
        # Tensors are named kind.i, with i the number of the layer; everything else is JSON.
        tensors = {
            f"{kind}.{i}": getattr(layer.map, kind)
            for i, layer in enumerate(self.layers)
            for kind in ("weight", "bias")
        }
        layers = []
        for layer in self.layers:
            numbers = {key: getattr(layer, key) for key in _NUMBERS}
            hooks = {"source_hook": layer.map.source_hook, "target_hook": layer.map.target_hook}
            text = stored_text(ConceptLayer, numbers, others=("map",))
            layers.append(json.loads(text) | hooks)
        content = {
            "layers": layers,
            "source": self.source and asdict(self.source),
            "target": self.target and asdict(self.target),
            **{name: getattr(self, name) for name in _OF_TEXTS},
            "text_keys": sorted(self.text_keys),
        }
        fields = {name: value for name, value in content.items() if name != "layers"}
        text = stored_text(ConceptMap, fields, others=("layers",))
        whole = json.dumps(json.loads(text) | {"layers": layers})
        metadata = {"schema_version": CONCEPT_MAP_SCHEMA, "concept_map": whole}
        return write_tensors(Path(path), tensors, metadata)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the maps with a model card to the hub and return the address of the commit.

        `lrt_lens.serving.push_to_hub` has the options: ``license=``, ``evaluation=``, ….
        """
        return implementation("ConceptMap.push_to_hub")(self, repo_id, **options)

    @classmethod
    def load(cls, path: str | Path) -> "ConceptMap":
        """Concept map from a file that `save` wrote.

        Raises:
            FileFormatError: the file is no concept map, or is damaged.
        """
        file = read_tensor_file(Path(path), CONCEPT_MAP_SCHEMA)
        content = json_object(file.path, file.metadata.get("concept_map"), "'concept_map'")
        stored = content.pop("layers", None)
        if not isinstance(stored, list) or not all(isinstance(layer, dict) for layer in stored):
            raise damaged(file.path, "it lacks its list of layers")
        fields = stored_fields(file.path, cls, content, others=("layers",))
        # Hook points belong to the map, all other values to the layer.
        layers, hooks, shapes = [], [], {}
        ends = {role: fields.get(role) for role in ("source", "target")}
        for i, numbers in enumerate(stored):
            names = json.dumps({f"{role}_hook": numbers.pop(f"{role}_hook", None) for role in ends})
            hooks.append(stored_value(file.path, dict[str, str], names, "layers"))
            layers.append(stored_fields(file.path, ConceptLayer, numbers, others=("map",)))
            shapes |= {f"weight.{i}": f"source.{i} target.{i}", f"bias.{i}": f"target.{i}"}
            for role, model in ends.items():
                refuse_impossible_hook(file.path, hooks[i][f"{role}_hook"], model)
        tensors = file.checked(shapes)
        with as_damage(file.path):
            fields["layers"] = tuple(
                ConceptLayer(
                    AffineMap(tensors[f"weight.{i}"], tensors[f"bias.{i}"], **hooks[i]), **numbers
                )
                for i, numbers in enumerate(layers)
            )
            return cls(**fields)


def apply_together(
    model: ModelLike,
    vectors: Sequence[SteeringVector],
    *,
    scale: float = 1.0,
    positions: Positions = "all",
) -> Handle:
    """Handle of steering hooks for vectors at several hook points, all at one strength.

    Use it as a context manager, or call ``remove()``. L-Cross steers a concept at several layers in
    this way.

    Raises:
        MismatchError: a vector belongs to another model.
        ValueError: there is no vector, or two vectors share a hook point.
    """
    return Intervention.of(vectors, positions=positions).apply(model, scale=scale)


def contrast_sets(contrast: ContrastSet | Sequence[ContrastSet]) -> list[ContrastSet]:
    """The contrast sets as a list.

    Raises:
        ValueError: there is none, two share a name, or one shows a single class or is not paired.
    """
    sets = [contrast] if isinstance(contrast, ContrastSet) else list(contrast)
    if not sets or not all(isinstance(one, ContrastSet) for one in sets):
        raise ValueError(
            f"contrast holds {[type(one).__name__ for one in sets]}; expected a ContrastSet, or a "
            "list of them"
        )
    names = [one.name for one in sets]
    if len(set(names)) < len(names):
        raise ValueError(f"contrast sets share a name: {names}; give each its own")
    for one in sets:
        one.refuse_unpaired("a concept map holds out both texts of a pair together")
        # Equal sets have equal means, so there is no direction to learn.
        if set(one.positive) == set(one.negative):
            raise ValueError(
                f"contrast set {one.name!r} has the same texts on both sides: one class; give "
                "positive texts that show the concept and negative ones that do not"
            )
    return sets


def readable_pairs(
    models: Sequence[StreamReader],
    contrast: ContrastSet,
    read: TextRead,
    *,
    short_texts: ShortTexts = "drop",
    truncation: Truncation | None = None,
) -> tuple[ContrastSet, Readable]:
    """The pairs of which every model has a token to read, and their numbers among all texts.

    Raises:
        ValueError: fewer than two pairs are left, or as `readable` says.
    """
    rules: dict[str, Any] = {"short_texts": short_texts, "truncation": truncation}
    kept = readable(models, contrast.texts, read, pairs=True, **rules)
    if not kept.n_dropped:
        return contrast, kept
    texts = kept.of(contrast.texts)
    half = len(texts) // 2
    return ContrastSet(texts[:half], texts[half:], name=contrast.name), kept


def pair_groups(sets: Sequence[ContrastSet]) -> list[int]:
    """Number of the pair of each text, counted through all sets; positive texts come first."""
    groups, first = [], 0
    for one in sets:
        # Both texts of a pair are in one group, so they are held out together.
        groups += [*range(first, first + len(one))] * 2
        first += len(one)
    return groups


def _layer(
    fit: RowMap, y: Tensor, sets: Sequence[ContrastSet], source_hook: str, target_hook: str
) -> ConceptLayer:
    """Layer of a fit; ``y`` are the target's rows, all texts of one set after the other."""
    cosines, start = {}, 0
    for one in sets:
        texts = slice(start, start + 2 * len(one))
        # cos(mean gap of held-out predictions, mean gap of the target's rows)
        held_out, native = _mean_gap(fit.held_out_directions[texts]), _mean_gap(y.double()[texts])
        cosines[one.name] = float(torch.nn.functional.cosine_similarity(held_out, native, dim=0))
        start = texts.stop
    return ConceptLayer(
        # Fitted in float64, stored in float32 like every map.
        AffineMap(fit.weight.float(), fit.bias.float(), source_hook, target_hook),
        fit.n,
        fit.rank,
        fit.effective_rank,
        fit.alpha,
        fit.r2,
        fit.r2_uniform,
        fit.interpolates,
        cosines,
        float(y.norm(dim=1).median()),
    )


def _mean_gap(rows: Tensor) -> Tensor:
    positive, negative = rows.chunk(2)
    return (positive - negative).mean(0)


def _key(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
