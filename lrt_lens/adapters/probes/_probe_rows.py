"""Rows that a probe reads: one per text, or one per unmasked token.

    rows, counts = read_rows(model, texts, "blocks.3.hook_resid_post", "mean")   # [text, d]

Problem: fits, predictions and every arm of an evaluation must read the same rows. Mechanism: one
function, in float64, with the rules of `lrt_lens.models._reading`.

Limits: all rows are held in memory.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._reading import EveryRead, read_activations, read_tokens
from lrt_lens.models._text_codec import Truncation
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.stitching._affine import AffineMap


def read_rows(
    model: HookedModel,
    texts: Sequence[str],
    hook: str,
    read: EveryRead,
    skip_first: int = SKIP_FIRST,
    before: AffineMap | None = None,
    *,
    short_texts: Literal["refuse", "unmasked"] = "refuse",
    truncation: Truncation | None = None,
) -> tuple[Tensor, list[int]]:
    """Return rows [row, d] in float64 and the number of rows of each text.

    There is one row per text, or with ``read="every"`` one per unmasked token, texts in order.
    ``before`` maps every token before it is pooled.
    """
    rules: dict[str, Any] = {
        "skip_first": skip_first,
        "short_texts": short_texts,
        "truncation": truncation,
    }
    if read == "every":
        tokens = dict(read_tokens(model, texts, hook, **rules))
        counts = [len(tokens[i]) for i in range(len(texts))]
        return torch.cat([tokens[i] for i in range(len(texts))]).double(), counts
    # float64, in which the map is applied before pooling.
    through = None if before is None else lambda rows: before.points(rows.double())
    rows = read_activations(model, texts, hook, read, through=through, **rules)
    return rows.double(), [1] * len(texts)
