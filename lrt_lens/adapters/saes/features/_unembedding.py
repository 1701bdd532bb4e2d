"""What a direction in the stream says about the next token, and which directions say nothing.

    unembedding = Unembedding.of(model)
    unembedding.logit_weights(rows, tokens)          # [row, token]: by how much one unit of a row raises each token's logit
    unembedding.null_share(rows)                     # [row]: share of a row's norm that hardly reaches the logits

The final norm is a division by the stream's size, which no direction alone decides, times a gain.
The gain is folded in, as is the centring of a LayerNorm; the size is left out, so weights are in
units of "logits times the size of the stream". Logits are centred over the vocabulary, because a
softmax does not see their mean. Gain and centring are *measured* on the norm itself, whatever its
class is called.

The share of a direction in the bottom 2% of the unembedding's singular directions is ‖P v‖/‖v‖
(Stolfo et al., *Confidence Regulation Neurons*, arXiv 2406.16254, for neurons; Stitching, §5 and
figure 5a, for features). A random direction has √(k/d).

Limits: logit soft-capping is monotone and left out.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrt_lens.models._hooked_model import HookedModel

NULL_FRACTION = 0.02
"""Share of the unembedding's singular directions that count as its null space (Stitching, §5)."""
_CHUNK = 2**24


@dataclass(frozen=True)
class Unembedding:
    """The linear part of the way from the last residual to the logits."""

    weight: Tensor
    """[d, vocabulary], float32, final gain and centrings folded in."""
    centres: bool
    """Whether the final norm takes the mean over dimensions out (LayerNorm)."""

    @classmethod
    def of(cls, model: HookedModel) -> "Unembedding":
        """Measured on the model's own final norm and read from its unembedding."""
        norm, weight = _final_norm(model), _raw_unembedding(model)
        gain, centres = measure_norm(norm, model.d_model)
        folded = gain[:, None] * weight.detach().float().cpu()
        if centres:
            folded = folded - folded.mean(0, keepdim=True)
        return cls(folded - folded.mean(1, keepdim=True), centres)

    def logit_weights(self, rows: Tensor, tokens: Tensor | None = None) -> Tensor:
        """[row, d] → [row, token]: one unit of each row in the logits of ``tokens`` (of all without
        them).
        """
        return rows.float().cpu() @ (self.weight if tokens is None else self.weight[:, tokens])

    def top_tokens(self, rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """(ids, weights), [row, 2n]: the ``n`` tokens that each row raises most, then the ``n``
        that it lowers most.
        """
        n = min(n, self.weight.shape[1] // 2)
        ids, weights = [], []
        for chunk in rows.split(max(1, _CHUNK // self.weight.shape[1])):
            found = self.logit_weights(chunk)
            up, down = found.topk(n, dim=1), (-found).topk(n, dim=1)
            ids.append(torch.cat([up.indices, down.indices], 1))
            weights.append(torch.cat([up.values, -down.values], 1))
        return torch.cat(ids), torch.cat(weights)

    def null_directions(self, fraction: float = NULL_FRACTION) -> Tensor:
        """[k, d]: orthonormal, the singular directions of the smallest singular values; at least
        one.

        Under a LayerNorm the mean over dimensions never arrives, which is no property of the
        unembedding: it is taken out first.
        """
        d = self.weight.shape[0]
        gram = self.weight.double() @ self.weight.double().T
        if self.centres:
            # The mean direction gets the largest value, so that it is never among the smallest.
            gram = gram + gram.trace() * torch.ones(d, d, dtype=gram.dtype) / d
        _, vectors = torch.linalg.eigh(gram)
        return vectors[:, : max(1, math.ceil(fraction * d))].T.float()

    def null_share(self, rows: Tensor, fraction: float = NULL_FRACTION) -> Tensor:
        """[row]: ‖P v‖/‖v‖ with P the projection on `null_directions`; NaN for a row of zeros."""
        rows = rows.float().cpu()
        if self.centres:
            rows = rows - rows.mean(1, keepdim=True)
        return (rows @ self.null_directions(fraction).T).norm(dim=1) / rows.norm(dim=1)

    def random_share(self, fraction: float = NULL_FRACTION) -> float:
        """Root mean square of the share of random directions: √(k/d)."""
        d = self.weight.shape[0]
        return math.sqrt(max(1, math.ceil(fraction * d)) / (d - self.centres))


def measure_norm(norm: Any, d: int) -> tuple[Tensor, bool]:
    """(gain [d], whether the mean over dimensions is taken out) of a final norm ``x ↦ gain ⊙ (x [−
    mean])/size + bias``.

    A probe of mean 0 and mean square 1 comes out as ``gain ⊙ probe + bias``, and its negative as
    ``−gain ⊙ probe + bias``.
    """
    parameter = (
        next(norm.parameters(), torch.zeros(1)) if hasattr(norm, "parameters") else torch.zeros(1)
    )
    probe = torch.ones(d, dtype=torch.float64)
    probe[1::2] = -1.0
    if d % 2:
        probe[-3:] = torch.tensor([2.0, -1.0, -1.0], dtype=probe.dtype)
    probe /= probe.pow(2).mean().sqrt()

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return norm(x.to(parameter)[None, None])[0, 0].double().cpu()

    plus, minus = run(probe), run(-probe)
    gain = (plus - minus) / 2 / probe
    shifted = run(probe + 3.0)
    centres = bool((shifted - plus).norm() < 0.01 * (plus - minus).norm())
    return gain.float(), centres


def _final_norm(model: HookedModel) -> Any:
    norm = model.bridge.ln_final
    # A bridged component runs its own hooks; the bare module is the same function.
    return getattr(norm, "original_component", norm)


def _raw_unembedding(model: HookedModel) -> Tensor:
    unembed = model.bridge.unembed
    bare = getattr(unembed, "original_component", None)
    return unembed.W_U if bare is None else bare.weight.T
