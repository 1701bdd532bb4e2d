"""One pass over the text: activations and attributions of every feature in both models, and of
their controls, as running sums.

Arms, each a source reading and a target reading of "the same" features:

    transferred   the SAE, and the SAE carried over
    random        an SAE of random directions, carried over by the same maps (Stitching, figure 14)
    shuffled      the SAE, carried over by the maps fitted on shuffled pairs
    other         the SAE, and *another* feature of the SAE carried over (drawn once, never itself)
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lrt_lens.adapters.saes.features._attribution import Attributor
from lrt_lens.adapters.saes.features._coder import FeatureCoder
from lrt_lens.adapters.saes.features._contexts import TopContexts
from lrt_lens.adapters.saes.features._correlation import Correlations
from lrt_lens.adapters.saes.features._text import TokenBatch
from lrt_lens.data._parts import N_TEST_GROUPS
from lrt_lens.typing import TokenMask

TRANSFERRED, RANDOM, SHUFFLED, OTHER = "transferred", "random", "shuffled", "other"


@dataclass(frozen=True)
class Arm:
    """Features as both models read them."""

    name: str
    source: FeatureCoder
    target: FeatureCoder


@dataclass
class Side:
    """What one model's reading of the features adds up to."""

    n_features: int
    n_rows: int = 0
    active: Tensor = field(init=False)
    """Positions where a feature is not 0, [feature]."""
    maximum: Tensor = field(init=False)
    """Largest activation, [feature]."""

    def __post_init__(self) -> None:
        self.active = torch.zeros(self.n_features, dtype=torch.float64)
        self.maximum = torch.zeros(self.n_features)

    def add(self, activations: Tensor) -> None:
        """Rows, [row, feature]."""
        self.n_rows += len(activations)
        self.active += (activations != 0).sum(0).to(self.active)
        self.maximum = torch.maximum(self.maximum, activations.amax(0).to(self.maximum))

    @property
    def density(self) -> np.ndarray:
        """Share of positions where each feature is active."""
        return (self.active / max(1, self.n_rows)).numpy()


class FeaturePass:
    """Everything that is measured position by position."""

    def __init__(
        self,
        arms: list[Arm],
        source: Attributor,
        target: Attributor,
        *,
        n_contexts: int,
        reach: int,
        seed: int,
    ) -> None:
        self.arms, self.attributors = arms, (source, target)
        n_features = arms[0].source.n_features
        self.others = _derangement(n_features, seed)
        self.sides = (Side(n_features), Side(n_features))
        self.contexts = (
            TopContexts(n_features, n_contexts, reach),
            TopContexts(n_features, n_contexts, reach),
        )
        names = [*(arm.name for arm in arms), OTHER]
        self.activation = {name: Correlations(n_features, N_TEST_GROUPS) for name in names}
        self.attribution = {name: Correlations(n_features, N_TEST_GROUPS) for name in names}
        self._decoders = [(arm.source.decoder, arm.target.decoder) for arm in arms]

    def run(self, batches: Iterable[TokenBatch]) -> "FeaturePass":
        """All batches, one at a time."""
        for batch in batches:
            self.add(batch)
        return self

    def add(self, batch: TokenBatch) -> None:
        """One batch: both models once, every arm on their streams."""
        streams = [attributor.read(batch) for attributor in self.attributors]
        vectors = [
            attributor.vectors(batch, stream)
            for attributor, stream in zip(self.attributors, streams, strict=True)
        ]
        for arm, decoders in zip(self.arms, self._decoders, strict=True):
            full = [
                coder.encode(stream)
                for coder, stream in zip((arm.source, arm.target), streams, strict=True)
            ]
            rows = [activations[batch.counted.to(activations.device)] for activations in full]
            effects = [
                activations * (vector.to(activations) @ decoder.to(activations).T)
                for activations, vector, decoder in zip(rows, vectors, decoders, strict=True)
            ]
            self.activation[arm.name].add(batch.group, *rows)
            self.attribution[arm.name].add(batch.group, *effects)
            if arm.name == TRANSFERRED:
                self.activation[OTHER].add(batch.group, rows[0], rows[1][:, self.others])
                self.attribution[OTHER].add(batch.group, effects[0], effects[1][:, self.others])
                self._note(batch, full, rows)

    def _note(self, batch: TokenBatch, full: list[Tensor], rows: list[Tensor]) -> None:
        """Densities, maxima and the strongest places of the true features."""
        for side, activations in zip(self.sides, rows, strict=True):
            side.add(activations)
        source, target = (masked(activations, batch.counted) for activations in full)
        self.contexts[0].add(source, target, batch.tokens, batch.lengths)
        self.contexts[1].add(target, source, batch.tokens, batch.lengths)


def masked(activations: Tensor, counted: TokenMask) -> Tensor:
    """Activations with 0 at positions that do not count."""
    return activations * counted.to(activations.device)[..., None]


def _derangement(n: int, seed: int) -> Tensor:
    """Another feature for each: a random cycle through all of them."""
    order = np.random.default_rng([seed, n]).permutation(n)
    other = np.empty(n, dtype=np.int64)
    other[order] = np.roll(order, -1)
    return torch.from_numpy(other)
