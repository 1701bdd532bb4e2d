"""Rows of texts in one model, with the statistics of its residual stream on them.

    rows = read_text_rows(model, texts, "blocks.2.hook_resid_post", "mean")
    rows.rows  # [text, d]
    rows.statistics  # mean, covariance and median norm over every unmasked token

Problem: with fewer texts than dimensions a covariance of texts is singular, and the length of a
transferred vector ("as many standard deviations as on the source") would depend on directions that
no text shows. Mechanism: rows are those of texts, but the covariance is that of their tokens.

Limits: the second moments [d, d] and the norm of every token are held in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._reading import read_tokens
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.stitching._affine import StreamStatistics

RowRead = Literal["mean", "last", "every"]
"""One row per text, its mean over unmasked tokens or its last token, or one row per token."""


@dataclass(frozen=True, eq=False)
class TextRows:
    """Rows of texts at one hook point of one model."""

    rows: Float[Tensor, "row d"]
    """Rows in the order of the texts, float64."""
    statistics: StreamStatistics
    """Statistics over every unmasked token of the texts, float64."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Tensor) -> "TextRows":
        """Return some of the rows, with the statistics of all texts."""
        return replace(self, rows=self.rows[index])

    @property
    def width(self) -> int:
        """Number of dimensions of the stream."""
        return self.rows.shape[1]


def read_text_rows(
    model: HookedModel,
    texts: Sequence[str],
    hook: str,
    read: RowRead = "mean",
    *,
    skip_first: int = SKIP_FIRST,
    short_texts: Literal["refuse", "unmasked"] = "refuse",
) -> TextRows:
    """Return the rows of every text and the statistics of its tokens, from one pass.

    Args:
        model: the model that reads.
        texts: each needs a token after the masked ones.
        hook: hook point.
        read: one row per text (``"mean"``, ``"last"``) or per token (``"every"``).
        skip_first: number of masked tokens at the beginning of a text.
        short_texts: texts that the mask leaves nothing of are refused, or read unmasked.

    Raises:
        ValueError: no text, another ``read``, or a text without an unmasked token.
        NonFiniteError: activations are NaN or infinite.
    """
    if read not in ("mean", "last", "every"):
        raise ValueError(f"read is {read!r}; expected 'mean', 'last' or 'every'")
    rows: list[Tensor] = [torch.empty(0)] * len(texts)
    norms: list[Tensor] = []
    total = torch.zeros(model.d_model).double()
    second, n = torch.zeros(model.d_model, model.d_model).double(), 0
    # Texts arrive from the shortest to the longest, so their rows are stored by index.
    rules: dict[str, Any] = {"skip_first": skip_first, "short_texts": short_texts}
    for index, tokens in read_tokens(model, texts, hook, **rules):
        tokens = tokens.double()
        total, second, n = total + tokens.sum(0), second + tokens.T @ tokens, n + len(tokens)
        # A median cannot be computed from sums, so all norms are stored.
        norms.append(tokens.norm(dim=1))
        if read == "every":
            rows[index] = tokens
        else:
            rows[index] = (tokens.mean(0) if read == "mean" else tokens[-1])[None]
    mean = total / n
    covariance = second / n - torch.outer(mean, mean)  # E[xxᵀ] − x̄x̄ᵀ
    statistics = StreamStatistics(mean, covariance, float(torch.cat(norms).median()))
    return TextRows(torch.cat(rows), statistics)
