"""Scores of a stitch from rows: on any texts, and for what is not a function of moments.

The papers' cosine is a mean over tokens, which second moments do not know; and the R² that matters
for a vector is the one on the texts it was learnt from. Both need the activations themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrt_lens.data._window_cutter import WindowCutter
from lrt_lens.data._windows import BlockPlan, Window
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._scatter import r2_of
from lrt_lens.stitching._stitch import Stitch

_BATCH_WINDOWS = 16


@dataclass(frozen=True)
class RowScore:
    """How well a stitch predicts the target on given texts."""

    r2: float
    """Share of variance explained (scikit-learn's ``variance_weighted``)."""
    r2_uniform: float
    """Mean over output dimensions (``uniform_average``)."""
    cosine_per_token: float
    """Mean over tokens of cos(ŷ, y), both about the texts' own mean."""
    n_tokens: int


def score_rows(
    stitch: Stitch, pair: ModelPair, texts: Sequence[str], *, context_length: int = 256
) -> RowScore:
    """Return scores of ``stitch.up`` on every unmasked token of ``texts``.

    With two tokenizers, on every aligned token.

    Raises:
        ValueError: no text has such a token.
    """
    stitch.check(pair.source, pair.target)
    plan = BlockPlan(
        context_length=min(context_length, pair.context_length), skip_first=stitch.skip_first
    )
    windows = [
        window
        for document in WindowCutter(plan, pair.source, pair.target).cut(texts)
        for window in document.windows
    ]
    if not windows:
        raise ValueError(
            f"none of {len(texts)} texts offers a token behind the first {plan.skip_first}; give "
            "longer texts"
        )
    windows.sort(key=lambda window: len(window.ids))
    batches = [windows[i : i + _BATCH_WINDOWS] for i in range(0, len(windows), _BATCH_WINDOWS)]
    x = torch.cat([_rows(pair.source, stitch.source_hook, batch) for batch in batches])
    y = torch.cat(
        [
            _rows(pair.target, stitch.target_hook, [window.read_by("target") for window in batch])
            for batch in batches
        ]
    )
    predicted = stitch.up.points(x)
    r2, r2_uniform, _ = r2_of(((y - predicted) ** 2).sum(0), ((y - y.mean(0)) ** 2).sum(0))
    cosine = torch.nn.functional.cosine_similarity(
        predicted - y.mean(0), y - y.mean(0), dim=1
    ).mean()
    return RowScore(r2=r2, r2_uniform=r2_uniform, cosine_per_token=float(cosine), n_tokens=len(x))


def _rows(model: HookedModel, hook: str, batch: list[Window]) -> Tensor:
    activations = model.engine.capture(model.pad([window.ids for window in batch]), [hook])[hook]
    return (
        torch.cat([activations[i, torch.from_numpy(window.rows)] for i, window in enumerate(batch)])
        .double()
        .cpu()
    )
