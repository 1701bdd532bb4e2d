"""First and second moments of one hook point, per part of the documents.

Problem: a sum of squares of activations with a large mean loses digits when the mean is subtracted
afterwards. Mechanism: a fixed shift c, close to the mean, is subtracted from each row first; the
sums stay exact for any c, and two sums about different shifts can be added (`SideMoments.merged`).
A histogram of the norms gives their median.

    side = SideMoments.zeros(shift)                # shift [d]
    side.add(part, rows - shift, rows)             # rows [row, d]
    side.median_norm

Limits: the histogram has 64 bins per factor of two, so the median norm has an error of about 0.5 %.
`CrossMoments` holds one `SideMoments` per hook point, and the products of hook pairs besides.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from torch import Tensor

from lrt_lens.data._parts import N_PARTS
from lrt_lens.moments._scatter import gram

NORM_BINS = 2560
"""Bins of the histogram: 40 octaves of 64 bins, from 2⁻²⁰ to 2²⁰."""
_BINS_PER_OCTAVE, _LOWEST_OCTAVE = 64, -20


@dataclass
class SideMoments:
    """First and second moments of one hook point, per part."""

    shift: Tensor
    """Shift c that is subtracted from each row before any product [d]."""
    total: Tensor
    """Sums Σ(x − c) [part, d]."""
    second: Tensor
    """Sums Σ(x − c)(x − c)ᵀ [part, d, d]."""
    norms: Tensor
    """Histogram of ‖x‖ on a logarithmic scale with 64 bins per octave [bin]."""

    @classmethod
    def zeros(cls, shift: Tensor) -> "SideMoments":
        """Return empty moments about ``shift`` [d], on its device."""
        # A shift in the precision of products is exact in float64, in which sums are kept.
        d = len(shift)
        shift = shift.detach().double()
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=shift.device)  # noqa: E731
        return cls(shift, zeros(N_PARTS, d), zeros(N_PARTS, d, d), zeros(NORM_BINS))

    def add(self, part: int, centred: Tensor, raw: Tensor) -> None:
        """Add rows [row, d] of one part: ``centred`` is ``raw`` minus the shift."""
        # Products in the precision of the rows, sums in float64.
        self.total[part] += centred.sum(0)
        with full_precision():
            self.second[part] += gram(centred)
        # bin = ⌊64 · (log₂‖x‖ + 20)⌋
        octaves = raw.to(centred.dtype).norm(dim=1).clamp_min(2.0**_LOWEST_OCTAVE).log2()
        bins = ((octaves - _LOWEST_OCTAVE) * _BINS_PER_OCTAVE).long().clamp(max=NORM_BINS - 1)
        self.norms += torch.bincount(bins, minlength=NORM_BINS)

    def shifted(self, shift: Tensor, n: Tensor) -> "SideMoments":
        """Return these moments about another shift; ``n`` [part] counts their rows."""
        # With δ = c − c′ and s = Σ(x − c):
        #   Σ(x − c′) = s + n·δ
        #   Σ(x − c′)(x − c′)ᵀ = Σ(x − c)(x − c)ᵀ + s·δᵀ + δ·sᵀ + n·δδᵀ
        delta = self.shift - shift
        cross = einsum(self.total, delta, "part i, j -> part i j")
        second = (
            self.second
            + cross
            + rearrange(cross, "part i j -> part j i")
            + einsum(n, torch.outer(delta, delta), "part, i j -> part i j")
        )
        total = self.total + einsum(n, delta, "part, d -> part d")
        return SideMoments(shift, total, second, self.norms)

    def merged(self, other: "SideMoments", n: Tensor) -> "SideMoments":
        """Return the moments of all rows of both; ``n`` [part] counts the rows of ``other``."""
        same_shift = other.shifted(self.shift, n)
        return SideMoments(
            self.shift,
            self.total + same_shift.total,
            self.second + same_shift.second,
            self.norms + same_shift.norms,
        )

    @property
    def median_norm(self) -> float:
        """Median ‖x‖ over all tokens, with an error of about 0.5 %."""
        # Centre of the first bin at which half of the rows are reached: 2^((bin + 0.5)/64 − 20)
        median_bin = torch.searchsorted(self.norms.cumsum(0), self.norms.sum() / 2)
        return float(2.0 ** ((median_bin + 0.5) / _BINS_PER_OCTAVE + _LOWEST_OCTAVE))


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products in float32 within this context."""
    # TF32, which a user may have switched on, has 10 bits of mantissa: moments would lose three
    # decimal digits.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
