"""Agreement of a direction's effect on the source with the effect of its image on the target.

Problem: a steering vector has items that show whether its concept increased; a principal component,
a decoder row or a random direction has none. Mechanism: every direction changes the next-token
distribution. ``v`` is added to the source and its image ``vW`` to the target, each as many standard
deviations of its own stream, and the changes of all log-probabilities on the same texts are
correlated:

    agreement(v) = corr(Δ log p_source, Δ log p_target)

over positions and vocabulary, with the mean over the vocabulary subtracted at each position.

    steering_agreement(pair, stitch, sae.W_dec[:8], lrt.demo_neutral())    # [8]

1 if both models change their predictions in the same way, 0 if the changes are unrelated.

Limits: both models must read the same tokens, so the pair needs one tokenizer.
"""

import logging
from collections.abc import Sequence

import torch
from einops import reduce
from torch import Tensor

from lrt_lens._progress import tqdm
from lrt_lens.adapters.vectors._neutral_text import TokenBatches
from lrt_lens.adapters.vectors._steering_hook import SteeringHook, adding
from lrt_lens.errors import MismatchError
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)


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
    """Return the agreement of each direction with its image, [direction], between −1 and 1.

    Args:
        pair: the models of the stitch.
        stitch: a stitch that maps the directions and holds the standard deviations of both streams.
        directions: [direction, d_source], of any length; ``deviations`` sets the size of the step.
        texts: neutral texts, cut to ``context_length`` tokens.
        deviations: size of the step, in standard deviations of the stream along it.
        context_length: tokens per text.
        images: [direction, d_target], added to the target; ``vW`` by default.
        progress: show a progress bar.

    Raises:
        MismatchError: a stitch of other models, two tokenizers, or directions of another width.
        ValueError: no text is long enough.
    """
    stitch.check(pair.source, pair.target)
    pair.refuse_two_tokenizers(
        "steering_agreement",
        "measure what a vector does on items (evaluate_steering), or predict it (fidelity)",
    )
    if directions.ndim != 2 or directions.shape[1] != pair.source.d_model:
        raise MismatchError(
            f"directions have shape {tuple(directions.shape)}; "
            f"expected [direction, {pair.source.d_model}]"
        )
    # A row needs at least one position that is steered and whose prediction counts.
    rows = [
        row[:context_length]
        for row in pair.source.encode(texts, truncation="right")
        if len(row) > stitch.skip_first + 1
    ]
    if len(rows) < len(texts):
        logger.warning(
            "%d of %d texts have no token behind the first %d and are left out",
            len(texts) - len(rows),
            len(texts),
            stitch.skip_first,
        )
    if not rows:
        raise ValueError(
            f"none of {len(texts)} texts has a token behind the first {stitch.skip_first}; "
            "give longer texts"
        )
    # A direction is a difference of two points, so it is mapped without the bias: u = v W.
    images = stitch.up.directions(directions.double()) if images is None else images
    source = _Steered(pair.source, stitch.source_hook, rows, stitch.skip_first)
    target = _Steered(pair.target, stitch.target_hook, rows, stitch.skip_first)
    agreements = []
    pairs = list(zip(directions, images, strict=True))
    for v, u in tqdm(pairs, desc="agreement", disable=not progress, leave=False):
        # Steps of equally many standard deviations: k σ(v̂) v̂ and k σ(û) û
        a = source.changes(deviations * stitch.source_statistics.deviation(v) * v / v.norm())
        b = target.changes(deviations * stitch.target_statistics.deviation(u) * u / u.norm())
        # The changes are centred, so corr(a, b) = ⟨a, b⟩ / (‖a‖ ‖b‖); float64 because a sum of
        # texts × positions × vocabulary terms loses digits in float32.
        product = sum((x * y).sum(dtype=torch.float64) for x, y in zip(a, b, strict=True))
        agreements.append(product / (_norm(a) * _norm(b)))
    return torch.stack(agreements).cpu()


class _Steered:
    """Changes of one model's predictions on fixed texts, relative to the run without steering."""

    def __init__(
        self, model: HookedModel, hook: str, rows: list[list[int]], skip_first: int
    ) -> None:
        self.batches, self.skip_first = TokenBatches(model, rows, hook), skip_first
        self.unsteered = self._log_probabilities(None)

    def changes(self, step: Tensor) -> list[Tensor]:
        """Return the centred changes of the log-probabilities, [position, vocabulary] per text."""
        steered = self._log_probabilities(SteeringHook(adding(step), "all", self.skip_first))
        # Adding one number to all logits changes no probability, so the mean is subtracted.
        return [
            (new - old) - reduce(new - old, "position vocabulary -> position 1", "mean")
            for new, old in zip(steered, self.unsteered, strict=True)
        ]

    def _log_probabilities(self, hook: SteeringHook | None) -> list[Tensor]:
        # Unsteered and steered runs compare positions from skip_first on: earlier ones never
        # change.
        starts = [self.skip_first] * len(self.batches.rows)
        by_row = dict(self.batches.next_log_probabilities(starts, hook))
        return [by_row[i] for i in sorted(by_row)]


def _norm(changes: list[Tensor]) -> Tensor:
    # ‖a‖ over all texts, positions and vocabulary entries together
    return torch.stack([change.double().pow(2).sum() for change in changes]).sum().sqrt()
