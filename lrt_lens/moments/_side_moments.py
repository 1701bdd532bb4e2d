"""First and second moments of one hook point, a slice per part of the documents, and a histogram of
norms for their median.

`CrossMoments` holds one for each hook point of either model and adds what only pairs have.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lrt_lens.data._blocks import N_PARTS
from lrt_lens.moments._scatter import gram

NORM_BINS = 2560
"""Bins of the histogram: forty octaves."""
_BINS_PER_OCTAVE, _LOWEST_OCTAVE = 64, -20


@dataclass
class SideMoments:
    """First and second moments of one hook point, a slice per part."""

    shift: Tensor
    """[d], subtracted before any product: against cancellation where the mean is large."""
    total: Tensor
    """[part, d], Σ(x − shift)."""
    second: Tensor
    """[part, d, d], Σ(x − shift)(x − shift)ᵀ."""
    norms: Tensor
    """[bin], counts of ‖x‖ on a logarithmic scale of 64 bins an octave."""

    @classmethod
    def zeros(cls, shift: Tensor) -> "SideMoments":
        """Empty moments about ``shift``."""
        d = len(shift)
        shift = shift.detach().double()
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=shift.device)  # noqa: E731
        return cls(shift, zeros(N_PARTS, d), zeros(N_PARTS, d, d), zeros(NORM_BINS))

    def add(self, part: int, centred: Tensor, raw: Tensor) -> None:
        """Add rows; ``centred`` is about the shift."""
        self.total[part] += centred.sum(0)
        with full_precision():
            self.second[part] += gram(centred)
        octaves = raw.to(centred.dtype).norm(dim=1).clamp_min(2.0**_LOWEST_OCTAVE).log2()
        bins = ((octaves - _LOWEST_OCTAVE) * _BINS_PER_OCTAVE).long().clamp(max=NORM_BINS - 1)
        self.norms += torch.bincount(bins, minlength=NORM_BINS)

    def shifted(self, shift: Tensor, n: Tensor) -> "SideMoments":
        """The same moments about another shift, exactly."""
        move = self.shift - shift
        cross = self.total[:, :, None] * move[None, None, :]
        second = (
            self.second + cross + cross.transpose(1, 2) + n[:, None, None] * torch.outer(move, move)
        )
        return SideMoments(shift, self.total + n[:, None] * move, second, self.norms)

    def merged(self, other: "SideMoments", n: Tensor) -> "SideMoments":
        """The moments of both about this one's shift; ``n`` [part] counts the other's rows."""
        theirs = other.shifted(self.shift, n)
        return SideMoments(
            self.shift,
            self.total + theirs.total,
            self.second + theirs.second,
            self.norms + theirs.norms,
        )

    @property
    def median_norm(self) -> float:
        """Median ‖x‖ over all tokens, to half a per cent."""
        reached = torch.searchsorted(self.norms.cumsum(0), self.norms.sum() / 2)
        return float(2.0 ** ((reached + 0.5) / _BINS_PER_OCTAVE + _LOWEST_OCTAVE))


@contextmanager
def full_precision() -> Iterator[None]:
    """Products in the precision of their operands: TF32 would cost moments three digits where
    somebody switched it on.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
