"""Rows of texts in one model, and what its stream looks like there: all that maps without paired
tokens know of a model.

    rows = read_text_rows(model, texts, "blocks.2.hook_resid_post", "mean")
    rows.rows                # [text, d]
    rows.statistics          # mean, covariance and median norm over every unmasked token, whatever is read

Covariances are those of tokens, not of texts: with fewer texts than dimensions a covariance of
texts is singular, and the size of a transferred vector ("as many standard deviations as on the
source") would hang on directions that no text happens to show.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens.models._hooked_model import SKIP_FIRST, HookedModel
from lrt_lens.models._reading import read_tokens
from lrt_lens.stitching._affine import StreamStatistics

RowRead = Literal["mean", "last", "every"]
"""What becomes a row: the mean over a text's unmasked tokens, the last of them, or each."""


@dataclass(frozen=True, eq=False)
class TextRows:
    """Rows of texts at one hook point of one model."""

    rows: Float[Tensor, "row d"]
    """float64; texts in order."""
    statistics: StreamStatistics
    """Over every unmasked token of the texts, float64."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Tensor) -> "TextRows":
        """Some of the rows; statistics stay those of all texts."""
        return replace(self, rows=self.rows[index])

    @property
    def width(self) -> int:
        """Dimensions of the stream."""
        return self.rows.shape[1]


def read_text_rows(
    model: HookedModel,
    texts: Sequence[str],
    hook: str,
    read: RowRead = "mean",
    *,
    skip_first: int = SKIP_FIRST,
) -> TextRows:
    """Rows of every text and the statistics of its tokens, from one pass.

    Raises: ValueError: no text, another ``read``, or a text without a token behind the first
        ``skip_first``. NonFiniteError: activations are NaN or infinite.
    """
    if read not in ("mean", "last", "every"):
        raise ValueError(f"read is {read!r}; expected 'mean', 'last' or 'every'")
    found: list[Tensor] = [torch.empty(0)] * len(texts)
    norms: list[Tensor] = []
    total, second, n = (
        torch.zeros(model.d_model).double(),
        torch.zeros(model.d_model, model.d_model).double(),
        0,
    )
    for index, tokens in read_tokens(model, texts, hook, skip_first=skip_first):
        tokens = tokens.double()
        total, second, n = total + tokens.sum(0), second + tokens.T @ tokens, n + len(tokens)
        norms.append(tokens.norm(dim=1))
        found[index] = (
            tokens if read == "every" else (tokens.mean(0) if read == "mean" else tokens[-1])[None]
        )
    mean = total / n
    statistics = StreamStatistics(
        mean, second / n - torch.outer(mean, mean), float(torch.cat(norms).median())
    )
    return TextRows(torch.cat(found), statistics)
