"""Does a direction do on the target what it does on the source? Measured on what the models say,
for any direction at all.

A steering vector has items that tell whether its concept went up; a principal component, a decoder
row or a random direction has none. What all have is an effect on the next-token distribution: ``v``
is added to the source and its image ``vW`` to the target, each as many standard deviations of its
own stream, and the changes of all log-probabilities on the same text are correlated,

    agreement(v) = corr(Δ log p_source, Δ log p_target)      over positions and vocabulary, centred at each position.

1 where both models change their mind alike, 0 where the image does something unrelated. Needs one
tokenizer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrt_lens.adapters.vectors._steering_hook import SteeringHook, adding
from lrt_lens.adapters.vectors._token_batches import TokenBatches
from lrt_lens.errors import MismatchError
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._stitch import Stitch


def steering_agreement(
    pair: ModelPair,
    stitch: Stitch,
    directions: Tensor,
    texts: Sequence[str],
    *,
    deviations: float = 3.0,
    context_length: int = 64,
    images: Tensor | None = None,
    progress: bool = True,
) -> Tensor:
    """[direction]: agreement of each direction [direction, d_source] with its image (``vW`` unless
    ``images`` [direction, d_target] are given).

    Args:
        pair: the models of the stitch.
        stitch: carries the directions and knows the streams' standard deviations.
        directions: of any length; their scale is set by ``deviations``.
        texts: neutral texts, cut to ``context_length`` tokens.
        deviations: size of the step, in standard deviations of the stream along it.
        context_length: tokens a text.
        images: what to add on the target instead.
        progress: show a bar.
    """
    stitch.check(pair.source, pair.target)
    pair.refuse_two_tokenizers(
        "steering_agreement",
        "measure what a vector does on items (evaluate_steering), or predict it (fidelity)",
    )
    if directions.ndim != 2 or directions.shape[1] != pair.source.d_model:
        raise MismatchError(
            f"directions have shape {tuple(directions.shape)}; expected [direction, {pair.source.d_model}]"
        )
    rows = [
        row[:context_length]
        for row in pair.source.encode(texts)
        if len(row) > stitch.skip_first + 1
    ]
    if not rows:
        raise ValueError(
            f"none of {len(texts)} texts has a token behind the first {stitch.skip_first}; give longer texts"
        )
    images = stitch.up.directions(directions.double()) if images is None else images
    source = _Steered(pair.source, stitch.source_hook, rows, stitch.skip_first)
    target = _Steered(pair.target, stitch.target_hook, rows, stitch.skip_first)
    found = []
    for v, u in tqdm(
        list(zip(directions, images, strict=True)),
        desc="agreement",
        disable=not progress,
        leave=False,
    ):
        a = source.changes(deviations * stitch.source_statistics.deviation(v) * v / v.norm())
        b = target.changes(deviations * stitch.target_statistics.deviation(u) * u / u.norm())
        found.append(
            sum((x * y).sum(dtype=torch.float64) for x, y in zip(a, b, strict=True))
            / (_norm(a) * _norm(b))
        )
    return torch.stack(found).cpu()


class _Steered:
    """One model on fixed texts."""

    def __init__(
        self, model: HookedModel, hook: str, rows: list[list[int]], skip_first: int
    ) -> None:
        self.batches, self.skip_first = TokenBatches(model, rows, hook), skip_first
        self.plain = self._log_probabilities(None)

    def changes(self, step: Tensor) -> list[Tensor]:
        """[position, vocabulary] a text: change of the log-probabilities, its mean over the
        vocabulary taken off.
        """
        changed = self._log_probabilities(SteeringHook(adding(step), "all", self.skip_first))
        return [
            (new - old) - (new - old).mean(1, keepdim=True)
            for new, old in zip(changed, self.plain, strict=True)
        ]

    def _log_probabilities(self, hook: SteeringHook | None) -> list[Tensor]:
        found = dict(
            self.batches.next_log_probabilities([self.skip_first] * len(self.batches.rows), hook)
        )
        return [found[i] for i in sorted(found)]


def _norm(changes: list[Tensor]) -> Tensor:
    return torch.stack([change.double().pow(2).sum() for change in changes]).sum().sqrt()
