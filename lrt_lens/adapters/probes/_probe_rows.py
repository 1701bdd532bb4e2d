"""Rows that a probe reads, one per text or one per unmasked token, and their labels.

    rows, counts = read_rows(model, texts, "blocks.3.hook_resid_post", "mean")   # [text, d]

Problem: fits, predictions and every arm of an evaluation must read the same rows. Mechanism: one
function, in float64, with the rules of `lrt_lens.models._reading`.

Limits: all rows are held in memory.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lrt_lens.adapters.probes._labels import Label, plain_label, token_labels
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


def row_labels(labels: Sequence[Any], counts: Sequence[int], read: EveryRead) -> list[Label]:
    """One label per row: per token with ``read="every"``, else per text."""
    if read == "every":
        return token_labels(labels, counts)
    return [plain_label(label) for label in labels]


def corpus_digest(texts: Sequence[str], labels: Sequence[Label]) -> str:
    """Return a hash of texts and labels, in hexadecimal."""
    # JSON separates texts and labels, which a concatenation does not.
    content = json.dumps([list(texts), list(labels)])
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
