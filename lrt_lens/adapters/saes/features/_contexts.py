"""For each feature the places where it is strongest, kept while text streams by.

One window offers a feature one place, its strongest; the ``n`` best of all windows are kept with
the tokens around them and the activations of both models there. Memory: features × n × (2·reach +
1), whatever the number of tokens.
"""

import torch
from torch import Tensor

from lrt_lens.typing import Tokens


class TopContexts:
    """The ``n`` strongest places of each feature, ranked by the activations given first."""

    def __init__(self, n_features: int, n: int, reach: int) -> None:
        width = 2 * reach + 1
        self.reach = reach
        self.peaks = torch.zeros(n_features, n)
        """Activation at each place, descending; 0 where there is none."""
        self.tokens = torch.full((n_features, n, width), -1, dtype=torch.int32)
        """Token ids around it, itself in the middle; −1 beyond the window's ends."""
        self.ranked = torch.zeros(n_features, n, width)
        """Activations of the ranking model there."""
        self.other = torch.zeros(n_features, n, width)
        """Activations of the other model there."""

    def add(self, ranked: Tensor, other: Tensor, tokens: Tokens, lengths: Tensor) -> None:
        """One batch: activations [window, position, feature], 0 at positions that do not count, and
        the windows' lengths.
        """
        peaks, places = ranked.max(1)
        top = peaks.topk(min(self.peaks.shape[1], len(peaks)), dim=0)
        better = (top.values[0].cpu() > self.peaks[:, -1]).nonzero()[:, 0]
        if len(better):
            chosen = better.to(ranked.device)
            windows = top.indices[:, chosen].T
            centres = places[windows, chosen[:, None]]
            found = self._cut(
                ranked,
                other,
                tokens.to(ranked.device),
                lengths.to(ranked.device),
                windows,
                centres,
                chosen,
            )
            self._merge(better, top.values[:, chosen].T.cpu(), found)

    def _cut(
        self,
        ranked: Tensor,
        other: Tensor,
        tokens: Tensor,
        lengths: Tensor,
        windows: Tensor,
        centres: Tensor,
        chosen: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, ranked, other) around each place, [feature, place, 2·reach + 1]."""
        at = centres[..., None] + torch.arange(-self.reach, self.reach + 1, device=centres.device)
        inside = (at >= 0) & (at < lengths[windows][..., None])
        at = at.clamp(0, tokens.shape[1] - 1)
        place = (windows[..., None], at, chosen[:, None, None])
        values = [
            torch.where(inside, activations[place], 0.0).cpu() for activations in (ranked, other)
        ]
        return torch.where(inside, tokens[place[:2]], -1).int().cpu(), values[0], values[1]

    def _merge(self, better: Tensor, peaks: Tensor, found: tuple[Tensor, Tensor, Tensor]) -> None:
        n = self.peaks.shape[1]
        best = torch.cat([self.peaks[better], peaks], 1).topk(n, dim=1)
        self.peaks[better] = best.values
        index = best.indices[..., None].expand(-1, -1, 2 * self.reach + 1)
        for kept, new in zip((self.tokens, self.ranked, self.other), found, strict=True):
            kept[better] = torch.cat([kept[better], new], 1).gather(1, index)
