"""Effect of a direction in the residual stream on the logits, and directions with almost no effect.

    unembedding = Unembedding.of(model)
    unembedding.logit_weights(rows, tokens)   # [row, token]: change of each logit per unit of a row
    unembedding.null_share(rows)              # [row]: share of a row's norm with almost no effect

Problem: the effect of a direction on the logits depends on the final norm. Mechanism: the norm
divides by the size of the stream, which no single direction determines, and
multiplies by a gain. The gain and the centring of a LayerNorm are folded into the weights; the size
is not, so weights are in logits times the size of the stream. Logits are centred over the
vocabulary, because a softmax ignores their mean. Gain and centring are *measured* on the norm
itself, whatever its class.

`null_share` is ‖P v‖/‖v‖ with P the projection on the directions of the smallest 2% of the
unembedding's singular values (Stolfo et al., *Confidence Regulation Neurons*, arXiv 2406.16254, for
neurons; Stitching, arXiv 2506.06609, §5 and figure 5a, for features). A random direction has √(k/d)
for k such directions.

Limits: logit soft-capping, a monotone function, is left out.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, reduce
from torch import Tensor

from lrt_lens.models._hooked_model import HookedModel

NULL_FRACTION = 0.02
"""Share of the unembedding's singular directions that count as its null space (Stitching, §5)."""
_NUMBERS_AT_ONCE = 2**24
"""Largest number of logits that are held at once: 64 MiB in float32."""


@dataclass(frozen=True)
class Unembedding:
    """Linear part of the computation from the last residual stream to the logits."""

    weight: Tensor
    """Unembedding in float32 with the final gain and both centrings folded in, [d, vocabulary]."""
    centres: bool
    """True if the final norm subtracts the mean over dimensions (LayerNorm)."""

    @classmethod
    def of(cls, model: HookedModel) -> "Unembedding":
        """Linear part of a model, with gain and centring measured on its final norm."""
        norm, weight = _final_norm(model), _raw_unembedding(model)
        gain, centres = measure_norm(norm, model.d_model)
        # (I − 11ᵀ/d) diag(gain) W_U (I − 11ᵀ/vocabulary); the first centring only for a LayerNorm
        folded = einsum(gain, weight.detach().float().cpu(), "d, d vocabulary -> d vocabulary")
        if centres:
            folded = folded - reduce(folded, "d vocabulary -> 1 vocabulary", "mean")
        return cls(folded - reduce(folded, "d vocabulary -> d 1", "mean"), centres)

    def logit_weights(self, rows: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Change of each token's logit per unit of each row, [row, d] → [row, token].

        ``tokens`` are the ids to return; None returns the whole vocabulary.
        """
        return rows.float().cpu() @ (self.weight if tokens is None else self.weight[:, tokens])

    def top_tokens(self, rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Return ids and weights [row, 2n] of the tokens raised most (``n``), then lowered most."""
        n = min(n, self.weight.shape[1] // 2)
        ids, weights = [], []
        # Chunks of rows: logits of all features × vocabulary would not fit into memory.
        for chunk in rows.split(max(1, _NUMBERS_AT_ONCE // self.weight.shape[1])):
            logits = self.logit_weights(chunk)
            raised, lowered = logits.topk(n, dim=1), (-logits).topk(n, dim=1)
            ids.append(torch.cat([raised.indices, lowered.indices], 1))
            weights.append(torch.cat([raised.values, -lowered.values], 1))
        return torch.cat(ids), torch.cat(weights)

    def null_directions(self, fraction: float = NULL_FRACTION) -> Tensor:
        """Orthonormal directions of the smallest singular values, [k, d] with k = ⌈fraction·d⌉ ≥ 1.

        A LayerNorm removes the mean over dimensions before the unembedding, so the mean direction
        says nothing about the unembedding and is excluded.
        """
        d = self.weight.shape[0]
        # The eigenvectors of W_U W_Uᵀ are the left singular vectors of W_U, eigenvalues ascending.
        gram = self.weight.double() @ self.weight.double().T
        if self.centres:
            # Give the mean direction the largest value, so that it is never among the smallest.
            gram = gram + gram.trace() * torch.ones(d, d, dtype=gram.dtype) / d
        _, vectors = torch.linalg.eigh(gram)
        return vectors[:, : max(1, math.ceil(fraction * d))].T.float()

    def null_share(self, rows: Tensor, fraction: float = NULL_FRACTION) -> Tensor:
        """Share ‖P v‖/‖v‖ of each row in `null_directions` (projection P), [row]; NaN for zeros."""
        rows = rows.float().cpu()
        if self.centres:
            rows = rows - reduce(rows, "row d -> row 1", "mean")
        # The directions are orthonormal, so ‖P v‖ is the norm of the coordinates in them.
        return (rows @ self.null_directions(fraction).T).norm(dim=1) / rows.norm(dim=1)

    def random_share(self, fraction: float = NULL_FRACTION) -> float:
        """Root mean square of `null_share` over random directions: √(k/d)."""
        d = self.weight.shape[0]
        # Centring leaves d − 1 dimensions.
        return math.sqrt(max(1, math.ceil(fraction * d)) / (d - self.centres))


def measure_norm(norm: Any, d: int) -> tuple[Tensor, bool]:
    """Return the gain [d] of a norm, and whether it subtracts the mean.

    Args:
        norm: a module that maps [batch, position, d] to the same shape.
        d: width of the residual stream.
    """
    parameter = torch.zeros(1)
    if hasattr(norm, "parameters"):
        parameter = next(norm.parameters(), parameter)
    # A probe with mean 0 and mean square 1 is neither centred nor scaled by the norm.
    probe = torch.ones(d, dtype=torch.float64)
    probe[1::2] = -1.0
    if d % 2:
        probe[-3:] = torch.tensor([2.0, -1.0, -1.0], dtype=probe.dtype)
    probe /= probe.pow(2).mean().sqrt()

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return norm(x.to(parameter)[None, None])[0, 0].double().cpu()

    # norm(±probe) = ±gain ⊙ probe + bias
    plus, minus = run(probe), run(-probe)
    gain = (plus - minus) / 2 / probe
    # Only a norm that subtracts the mean returns the same for a shifted probe.
    shifted = run(probe + 3.0)
    centres = bool((shifted - plus).norm() < 0.01 * (plus - minus).norm())
    return gain.float(), centres


def _final_norm(model: HookedModel) -> Any:
    norm = model.bridge.ln_final
    # A bridged component runs its own hooks; the bare module computes the same without them.
    return getattr(norm, "original_component", norm)


def _raw_unembedding(model: HookedModel) -> Tensor:
    unembed = model.bridge.unembed
    bare = getattr(unembed, "original_component", None)
    return unembed.W_U if bare is None else bare.weight.T
