"""Agreement of steering, compared with the correlation of changes under plain hooks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.adapters.vectors import steering_agreement
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.stitching import AffineMap, MapPair, Stitch, StreamStatistics

HOOK = "blocks.0.hook_resid_post"


def _stitch(
    weight: torch.Tensor, source_hook: str, target_hook: str, *, d_source: int, d_target: int
) -> Stitch:
    up = AffineMap(weight, torch.zeros(d_target), source_hook, target_hook)
    down = AffineMap(torch.linalg.pinv(weight), torch.zeros(d_source), target_hook, source_hook)
    return Stitch(
        MapPair(up, down),
        StreamStatistics(torch.zeros(d_source), torch.eye(d_source), 1.0),
        StreamStatistics(torch.zeros(d_target), torch.eye(d_target), 1.0),
    )


@pytest.fixture
def texts() -> list[str]:
    return [
        "a quick test of the model and its many words",
        "another text with several tokens to read from",
        "one more line of text here",
    ]


def test_a_model_agrees_with_itself_and_disagrees_with_the_opposite_step(
    pair: Any, texts: list[str]
) -> None:
    itself = ModelPair(pair.source, pair.source)
    d = pair.source.d_model
    directions = torch.randn(3, d, generator=torch.Generator().manual_seed(0))
    same = steering_agreement(
        itself,
        _stitch(torch.eye(d), HOOK, HOOK, d_source=d, d_target=d),
        directions,
        texts,
        progress=False,
    )
    torch.testing.assert_close(same, torch.ones(3).double(), rtol=0, atol=1e-6)
    stitch = _stitch(torch.eye(d), HOOK, HOOK, d_source=d, d_target=d)
    opposite = steering_agreement(
        itself, stitch, directions, texts, images=-directions, deviations=0.01, progress=False
    )
    assert opposite.max() < -0.9


def test_it_is_the_correlation_of_changes_computed_with_plain_hooks(
    pair: Any, texts: list[str]
) -> None:
    d_s, d_t = pair.source.d_model, pair.target.d_model
    weight = torch.randn(d_s, d_t, generator=torch.Generator().manual_seed(1))
    stitch = _stitch(weight, HOOK, HOOK, d_source=d_s, d_target=d_t)
    direction = torch.randn(1, d_s, generator=torch.Generator().manual_seed(2))
    changes = []
    for model, v in ((pair.source, direction[0]), (pair.target, direction[0] @ weight)):
        step, parts = 2.0 * v / v.norm(), []

        def add(
            activation: torch.Tensor, hook: Any = None, step: torch.Tensor = step
        ) -> torch.Tensor:
            return torch.cat([activation[:, :4], activation[:, 4:] + step], 1)

        for text in sorted(texts, key=lambda t: len(model.encode([t])[0])):
            plain = model.logits(text)[0, 4:].log_softmax(1)
            with model.intervene({HOOK: add}):
                change = model.logits(text)[0, 4:].log_softmax(1) - plain
            parts.append((change - change.mean(1, keepdim=True)).double().numpy())
        changes.append(np.concatenate(parts).ravel())
    expected = (
        (changes[0] * changes[1]).sum() / np.linalg.norm(changes[0]) / np.linalg.norm(changes[1])
    )
    agreement = steering_agreement(pair, stitch, direction, texts, deviations=2.0, progress=False)
    assert float(agreement[0]) == pytest.approx(expected, abs=1e-5)


def test_wrong_widths_and_short_texts_are_refused(pair: Any, texts: list[str]) -> None:
    d_s, d_t = pair.source.d_model, pair.target.d_model
    stitch = _stitch(torch.randn(d_s, d_t), HOOK, HOOK, d_source=d_s, d_target=d_t)
    with pytest.raises(
        MismatchError, match=rf"directions have shape \(2, 3\); expected \[direction, {d_s}\]"
    ):
        steering_agreement(pair, stitch, torch.zeros(2, 3), texts)
    with pytest.raises(ValueError, match="none of 1 texts has a token behind the first"):
        steering_agreement(pair, stitch, torch.ones(1, d_s), ["a"])
    assert replace(stitch, scores={}).skip_first == 4
