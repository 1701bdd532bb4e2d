"""Does a direction do on the target what it does on the source? Measured on what the models say, for any direction at all.

A steering vector has items that tell whether its concept went up; a principal component, a decoder row or a random direction has none. What all
have is an effect on the next-token distribution: ``v`` is added to the source and its image ``vW`` to the target, each as many standard
deviations of its own stream, and the changes of all log-probabilities on the same text are correlated,

    agreement(v) = corr(Δ log p_source, Δ log p_target)      over positions and vocabulary, centred at each position.

1 where both models change their mind alike, 0 where the image does something unrelated. Needs one tokenizer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrt_lens.errors import MismatchError
from lrt_lens.models.hooked_model import HookedModel
from lrt_lens.models.pair import ModelPair
from lrt_lens.stitching.stitch import Stitch

_BATCH_TEXTS = 16


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
    """[direction]: agreement of each direction [direction, d_source] with its image (``vW`` unless ``images`` [direction, d_target] are given).

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
    if directions.ndim != 2 or directions.shape[1] != pair.source.d_model:
        raise MismatchError(f"directions have shape {tuple(directions.shape)}; expected [direction, {pair.source.d_model}]")
    rows = [row[:context_length] for row in pair.source.encode(texts) if len(row) > stitch.skip_first + 1]
    if not rows:
        raise ValueError(f"none of {len(texts)} texts has a token behind the first {stitch.skip_first}; give longer texts")
    images = stitch.up.directions(directions.double()) if images is None else images
    source = _Steered(pair.source, stitch.source_hook, rows, stitch.skip_first)
    target = _Steered(pair.target, stitch.target_hook, rows, stitch.skip_first)
    found = []
    for v, u in tqdm(list(zip(directions, images, strict=True)), desc="agreement", disable=not progress, leave=False):
        a = source.changes(deviations * stitch.source_statistics.deviation(v) * v / v.norm())
        b = target.changes(deviations * stitch.target_statistics.deviation(u) * u / u.norm())
        found.append(sum((x * y).sum(dtype=torch.float64) for x, y in zip(a, b, strict=True)) / (_norm(a) * _norm(b)))
    return torch.stack(found).cpu()


class _Steered:
    """One model on fixed texts, the residual before the steered hook point stored once."""

    def __init__(self, model: HookedModel, hook: str, rows: list[list[int]], skip_first: int) -> None:
        self.model, self.hook, self.skip_first = model, hook, skip_first
        rows = sorted(rows, key=len)
        self.batches = [model.pad(rows[i : i + _BATCH_TEXTS]) for i in range(0, len(rows), _BATCH_TEXTS)]
        lengths = [torch.tensor([len(row) for row in rows[i : i + _BATCH_TEXTS]]) for i in range(0, len(rows), _BATCH_TEXTS)]
        self.masks = [
            (torch.arange(tokens.shape[1])[None] < length[:, None]) & (torch.arange(tokens.shape[1]) >= skip_first)
            for tokens, length in zip(self.batches, lengths, strict=True)
        ]
        self.residuals = [model.engine.capture(tokens, [hook])[hook] for tokens in self.batches]
        self.plain = [self._log_probabilities(i, None) for i in range(len(self.batches))]

    def changes(self, step: Tensor) -> list[Tensor]:
        """[position, vocabulary] a batch: change of the log-probabilities, its mean over the vocabulary taken off."""
        changed = [self._log_probabilities(i, step) - plain for i, plain in enumerate(self.plain)]
        return [change - change.mean(1, keepdim=True) for change in changed]

    def _log_probabilities(self, i: int, step: Tensor | None) -> Tensor:
        residual = self.residuals[i]
        if step is not None:
            residual = residual.clone()
            residual[:, self.skip_first :] += step.to(residual)
        with self.model.engine.resuming(self.hook, residual):
            logits = self.model.logits(self.batches[i])
        return logits[self.masks[i].to(logits.device)].float().log_softmax(1)


def _norm(changes: list[Tensor]) -> Tensor:
    return torch.stack([change.double().pow(2).sum() for change in changes]).sum().sqrt()
