"""Scores of a stitch from activations: on any texts, and the cosine per token.

Problem: two scores cannot be computed from the moments of a harvest: the papers' cosine, which is a
mean over tokens, and R² on other texts, such as those from which a vector was learnt. Mechanism:
both models read the texts, and the map is scored on their activations.

    score = score_rows(stitch, pair, texts)
    score.r2, score.cosine_per_token

Limits: all rows are held in memory in float64, and there is no interval.
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
    """Scores of the map up of a stitch on some texts."""

    r2: float
    """Explained share of the variance, ``variance_weighted`` R² of scikit-learn."""
    r2_uniform: float
    """Mean R² over output dimensions, ``uniform_average`` of scikit-learn."""
    cosine_per_token: float
    """Mean over tokens of cos(ŷ − ȳ, y − ȳ), with ȳ the mean of these texts."""
    n_tokens: int


def score_rows(
    stitch: Stitch, pair: ModelPair, texts: Sequence[str], *, context_length: int = 256
) -> RowScore:
    """Return scores of ``stitch.up`` on the unmasked tokens of ``texts``.

    With two tokenizers, only aligned tokens count.

    Raises:
        ValueError: no text has such a token.
        MismatchError: ``pair`` has other models than the stitch.
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
            f"none of {len(texts)} texts has a token after the first {plan.skip_first}; give "
            "longer texts"
        )
    # Windows of similar length share a batch, so that little is padded.
    windows.sort(key=lambda window: len(window.ids))
    batches = [windows[i : i + _BATCH_WINDOWS] for i in range(0, len(windows), _BATCH_WINDOWS)]
    x = torch.cat([_rows(pair.source, stitch.source_hook, batch) for batch in batches])
    y = torch.cat(
        [
            # Row i of x and of y is the same position, also with two tokenizers.
            _rows(pair.target, stitch.target_hook, [window.read_by("target") for window in batch])
            for batch in batches
        ]
    )
    # R² about the mean of these texts, not of the harvest: scikit-learn's definition.
    predicted = stitch.up.points(x)
    r2, r2_uniform, _ = r2_of(((y - predicted) ** 2).sum(0), ((y - y.mean(0)) ** 2).sum(0))
    cosine = torch.nn.functional.cosine_similarity(
        predicted - y.mean(0), y - y.mean(0), dim=1
    ).mean()
    return RowScore(r2=r2, r2_uniform=r2_uniform, cosine_per_token=float(cosine), n_tokens=len(x))


def _rows(model: HookedModel, hook: str, batch: list[Window]) -> Tensor:
    """Return the activations of the windows' rows [row, d] in float64, on the CPU."""
    activations = model.engine.capture(model.pad([window.ids for window in batch]), [hook])[hook]
    return (
        torch.cat([activations[i, torch.from_numpy(window.rows)] for i, window in enumerate(batch)])
        .double()
        .cpu()
    )
