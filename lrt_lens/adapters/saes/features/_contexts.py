"""The positions with the largest activations of each feature, collected from streamed text.

Problem: the strongest positions of thousands of features cannot be selected after storing all
activations. Mechanism: each window offers its strongest position, one per feature. The ``n``
strongest of all windows are stored, with the tokens around them and the activations of both models
there. Memory is features × n × (2·reach + 1) numbers, however many tokens are read.

    top = TopContexts(n_features, n=8, reach=12)
    top.add(source_activations, target_activations, tokens, lengths)
    top.tokens[17]                 # [n, 2·reach + 1], the strongest position in the middle

Limits: one window offers one position, so repeats within a window are not stored.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor

from lrt_lens.typing import Tokens


class TopContexts:
    """Tokens and activations around the ``n`` strongest positions of each feature.

    Positions are ranked by the activations of one model, the first argument of `add`.
    """

    def __init__(self, n_features: int, n: int, reach: int) -> None:
        width = 2 * reach + 1
        self.reach = reach
        self.peaks = torch.zeros(n_features, n)
        """Activation at each position, descending; 0 for slots without a position."""
        self.tokens = torch.full((n_features, n, width), -1, dtype=torch.int32)
        """Token ids around the position, which is in the middle; −1 beyond the window's ends."""
        self.ranked = torch.zeros(n_features, n, width)
        """Activations of the ranking model at these tokens."""
        self.other = torch.zeros(n_features, n, width)
        """Activations of the other model at these tokens."""

    def add(self, ranked: Tensor, other: Tensor, tokens: Tokens, lengths: Tensor) -> None:
        """Add one batch of windows.

        Args:
            ranked: [window, position, feature], 0 at positions that do not count.
            other: activations of the other model at the same positions, in the same shape.
            tokens: [window, position].
            lengths: [window], number of tokens of each window.
        """
        peaks, positions = ranked.max(1)
        top = peaks.topk(min(self.peaks.shape[1], len(peaks)), dim=0)
        # Only features whose best new peak is above their weakest stored one change.
        better = (top.values[0].cpu() > self.peaks[:, -1]).nonzero()[:, 0]
        if not len(better):
            return
        features = better.to(ranked.device)
        windows = top.indices[:, features].T
        centres = positions[windows, rearrange(features, "feature -> feature 1")]
        # [feature, slot, 2·reach + 1]: positions around each centre, clamped to the batch's width
        offsets = torch.arange(-self.reach, self.reach + 1, device=centres.device)
        around = rearrange(centres, "feature slot -> feature slot 1") + offsets
        ends = rearrange(lengths.to(ranked.device)[windows], "feature slot -> feature slot 1")
        inside = (around >= 0) & (around < ends)
        around = around.clamp(0, tokens.shape[1] - 1)
        index = (
            rearrange(windows, "feature slot -> feature slot 1"),
            around,
            rearrange(features, "feature -> feature 1 1"),
        )
        ids = torch.where(inside, tokens.to(ranked.device)[index[:2]], -1).int().cpu()
        values = [
            torch.where(inside, activations[index], 0.0).cpu() for activations in (ranked, other)
        ]
        self._merge(better, top.values[:, features].T.cpu(), (ids, values[0], values[1]))

    def _merge(
        self, better: Tensor, peaks: Tensor, contexts: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        n = self.peaks.shape[1]
        # The n largest of the stored and the new peaks; contexts follow by the same indices.
        best = torch.cat([self.peaks[better], peaks], 1).topk(n, dim=1)
        self.peaks[better] = best.values
        index = repeat(
            best.indices, "feature slot -> feature slot around", around=2 * self.reach + 1
        )
        for stored, new in zip((self.tokens, self.ranked, self.other), contexts, strict=True):
            stored[better] = torch.cat([stored[better], new], 1).gather(1, index)
