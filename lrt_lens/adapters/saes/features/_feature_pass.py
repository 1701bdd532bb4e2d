"""One pass over the text that sums activations and attributions of every feature in both models.

Problem: every measure needs both models at every position, and activations of all features do not
fit into memory. Mechanism: running sums, from one pass. The pass also sums the activations of the
controls. Each arm pairs a coder on the source with a coder on the target:

    arm           source coder            target coder
    transferred   the SAE                 the SAE, transferred
    random        SAE of random           that SAE, transferred by the same maps
                  directions              (Stitching, arXiv 2506.06609, figure 14)
    shuffled      the SAE                 the SAE, transferred by maps fitted on shuffled pairs
    other         the SAE                 a *different* feature of the transferred SAE, drawn once

Limits: all features of all arms are encoded in each batch, also those that never fire.
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
"""Names of the arms, as in the module docstring."""


@dataclass(frozen=True)
class FeatureArm:
    """The coders that read one arm's features on the source and on the target."""

    name: str
    """Name of the arm."""
    source: FeatureCoder
    """Coder that reads the source's states."""
    target: FeatureCoder
    """Coder that reads the target's states."""


@dataclass
class ActivationTotals:
    """Counts and maxima of the features' activations on one model."""

    n_features: int
    """Number of features."""
    n_rows: int = 0
    """Number of positions that were added."""
    active: Tensor = field(init=False)
    """Number of positions at which a feature is not 0, [feature]."""
    maximum: Tensor = field(init=False)
    """Largest activation, [feature]."""

    def __post_init__(self) -> None:
        self.active = torch.zeros(self.n_features, dtype=torch.float64)
        self.maximum = torch.zeros(self.n_features)

    def add(self, activations: Tensor) -> None:
        """Add rows [row, feature]."""
        self.n_rows += len(activations)
        self.active += (activations != 0).sum(0).to(self.active)
        self.maximum = torch.maximum(self.maximum, activations.amax(0).to(self.maximum))

    @property
    def density(self) -> np.ndarray:
        """Share of positions at which each feature is active, [feature]."""
        # No row has been added before the first batch.
        return (self.active / max(1, self.n_rows)).numpy()


class FeaturePass:
    """Running sums over the text of all quantities that are measured position by position."""

    def __init__(
        self,
        arms: list[FeatureArm],
        source: Attributor,
        target: Attributor,
        *,
        n_contexts: int,
        reach: int,
        seed: int,
    ) -> None:
        self.arms, self.attributors = arms, (source, target)
        n = arms[0].source.n_features
        self.others = _derangement(n, seed)
        self.totals = (ActivationTotals(n), ActivationTotals(n))
        self.contexts = (TopContexts(n, n_contexts, reach), TopContexts(n, n_contexts, reach))
        names = [*(arm.name for arm in arms), OTHER]
        self.activation = {name: Correlations(n, N_TEST_GROUPS) for name in names}
        self.attribution = {name: Correlations(n, N_TEST_GROUPS) for name in names}
        # Mapping the decoder rows is the same for every batch.
        self._decoders = [(arm.source.decoder, arm.target.decoder) for arm in arms]

    def run(self, batches: Iterable[TokenBatch]) -> "FeaturePass":
        """Add all batches, one at a time, and return this pass."""
        for batch in batches:
            self.add(batch)
        return self

    def add(self, batch: TokenBatch) -> None:
        """Add one batch: each model runs once, and every arm reads the two streams."""
        streams = [attributor.read(batch) for attributor in self.attributors]
        vectors = [
            attributor.vectors(batch, stream)
            for attributor, stream in zip(self.attributors, streams, strict=True)
        ]
        for arm, decoders in zip(self.arms, self._decoders, strict=True):
            # [window, position, feature] on each model, and the same at counted positions only
            full = [
                coder.encode(stream)
                for coder, stream in zip((arm.source, arm.target), streams, strict=True)
            ]
            rows = [activations[batch.counted.to(activations.device)] for activations in full]
            # attribution = f_i(t) · ⟨d_i, u(t)⟩
            effects = [
                activations * (vector.to(activations) @ decoder.to(activations).T)
                for activations, vector, decoder in zip(rows, vectors, decoders, strict=True)
            ]
            self.activation[arm.name].add(batch.group, *rows)
            self.attribution[arm.name].add(batch.group, *effects)
            if arm.name == TRANSFERRED:
                # The correlation with a different feature shows how much any two features share.
                self.activation[OTHER].add(batch.group, rows[0], rows[1][:, self.others])
                self.attribution[OTHER].add(batch.group, effects[0], effects[1][:, self.others])
                self._add_transferred(batch, full, rows)

    def _add_transferred(self, batch: TokenBatch, full: list[Tensor], rows: list[Tensor]) -> None:
        """Add densities, maxima and strongest positions, which only the arm transferred needs."""
        for totals, activations in zip(self.totals, rows, strict=True):
            totals.add(activations)
        source, target = (masked(activations, batch.counted) for activations in full)
        self.contexts[0].add(source, target, batch.tokens, batch.lengths)
        self.contexts[1].add(target, source, batch.tokens, batch.lengths)


def masked(activations: Tensor, counted: TokenMask) -> Tensor:
    """Activations with 0 at positions that do not count."""
    return activations * counted.to(activations.device)[..., None]


def _derangement(n: int, seed: int) -> Tensor:
    """Index of a different feature for each feature, [feature]: one random cycle through all."""
    order = np.random.default_rng([seed, n]).permutation(n)
    other = np.empty(n, dtype=np.int64)
    # A cycle through all features has no fixed point, so no feature is paired with itself.
    other[order] = np.roll(order, -1)
    return torch.from_numpy(other)
