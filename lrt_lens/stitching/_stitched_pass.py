"""Passes that one model begins and another finishes.

Either model runs once per batch to its hook point; every arm resumes from there.

    ends = {"A": End(pair.source, hook), "B": End(pair.target, other_hook)}
    tally = Tally(n_documents)
    for windows in batches(all_windows, pair.source, pair.target):
        run_batch(ends, arms, Batch(windows, ends, keep="bos"), tally)
    tally.sums["A→B", "stitched"]["ce"]       # [document], nats

What an arm puts into the finishing model's stream is a function of the streams of both; see
`lrt_lens.stitching._stitch_loss` for which. Models of two tokenizers each read their own tokens of
a window; the finishing model is shown the other's stream at its own positions, state by state of
those that have read the same characters, and keeps its own state wherever it has no such partner.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from lrt_lens.data._windows import Window
from lrt_lens.models._hook_points import EMBED, joint_parts, place, resolve
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.typing import Residual, Tokens

METRICS = ("ce", "ce_all_positions", "kl", "win_rate", "top1", "replaced")
_EVERYWHERE = ("ce_all_positions", "replaced")
"""Counted at every position that has a next token."""
_BATCH_WINDOWS = 32
_LOGITS_ON_CPU, _LOGITS_ON_GPU = 2**22, 2**26
"""Logits of a pass at most, windows × length × vocabulary; a few copies of them live at a time. On
a CPU 16 megabytes of them take half the time of 256, whose pages are new at every pass; a GPU needs
the larger ones to be busy."""

Streams = dict[str, Tensor]
"""``"A"`` and ``"B"``: residuals at the two hook points, [batch, position, d], in the models'
precision; ``"A tokens"`` and ``"B tokens"``: the token embeddings."""


def batches(windows: list[Window], *models: HookedModel) -> Iterator[list[Window]]:
    """Windows of similar length together, as many at once as suit all models (one at least)."""
    limit = (
        _LOGITS_ON_CPU if any(model.device.type == "cpu" for model in models) else _LOGITS_ON_GPU
    )
    vocabulary = max(model.d_vocab for model in models)
    batch: list[Window] = []
    for window in sorted(windows, key=lambda w: (-w.padded_length, w.document)):
        if batch and (
            len(batch) == _BATCH_WINDOWS
            or (len(batch) + 1) * batch[0].padded_length * vocabulary > limit
        ):
            yield batch
            batch = []
        batch.append(window)
    yield batch


class Side:
    """Windows as one model reads them: which positions keep their state, which are counted."""

    def __init__(
        self,
        windows: list[Window],
        model: HookedModel,
        keep: Literal["bos", "masked"],
        others: list[Window] | None = None,
    ) -> None:
        """Take the same windows in the other model's tokens if these differ (``others``).

        A token that has no partner there keeps its state.
        """
        self.tokens = model.pad([window.ids for window in windows])
        positions = torch.arange(self.tokens.shape[1])
        unmasked = torch.zeros(self.tokens.shape, dtype=torch.bool)
        self.partner = None if others is None else torch.zeros(self.tokens.shape, dtype=torch.int64)
        """[batch, position]: the other model's position that has read the same characters; 0 where
        the own state is kept.
        """
        for row, window in enumerate(windows):
            unmasked[row, torch.from_numpy(window.rows)] = True
            if self.partner is not None and others is not None:
                self.partner[row, torch.from_numpy(window.rows)] = torch.from_numpy(
                    others[row].rows
                )
        bos = torch.full_like(unmasked, fill_value=False)
        bos[:, 0] = model.prepend_bos
        self.kept = (bos if keep == "bos" and others is None else ~unmasked)[..., None]
        lasts = torch.tensor([len(window.ids) - 1 for window in windows])
        self.predicts = positions < rearrange(lasts, "batch -> batch 1")
        """Positions that have a next token, [batch, position]; all that follows is flat over them.
        """
        self.counted = unmasked[self.predicts].numpy()
        self.replaced = (~self.kept[..., 0])[self.predicts].numpy()
        self.next = self.tokens.roll(-1, dims=1)[self.predicts]
        documents = torch.tensor([window.document for window in windows])
        per_position = repeat(documents, "batch -> batch position", position=len(positions))
        self.documents = per_position[self.predicts].numpy()

    def shown(self, streams: Streams, letter: str) -> Streams:
        """The streams of both models at this model's positions."""
        if self.partner is None:
            return streams
        at = self.partner
        index = "batch position -> batch position d"
        return {
            name: stream
            if name[0] == letter
            else stream.gather(1, repeat(at.to(stream.device), index, d=stream.shape[-1]))
            for name, stream in streams.items()
        }


class Batch:
    """Windows as both models read them, by letter."""

    def __init__(
        self,
        windows: list[Window],
        ends: Mapping[str, "End"],
        keep: Literal["bos", "masked"],
        *,
        paired: bool = True,
    ) -> None:
        """Take whether rows of two tokenizations are partners (``paired``).

        If they are not, either side stands for itself.
        """
        read = {"A": windows, "B": [window.read_by("target") for window in windows]}
        differ = paired and any(window.counterpart is not None for window in windows)
        other = {"A": read["B"], "B": read["A"]}
        self.sides = {
            letter: Side(read[letter], end.model, keep, other[letter] if differ else None)
            for letter, end in ends.items()
        }


@dataclass(frozen=True)
class Arm:
    """Something to put into the finishing model's stream."""

    name: str
    finish: str
    """Which model finishes, ``"A"`` or ``"B"``."""
    routes: tuple[str, ...]
    """Routes on which it stands: what does not depend on the start runs once."""
    state: Callable[[Streams], Tensor] | Tensor
    """What stands in its stream, [batch, position, d] or [d]; a function of what both models hold,
    or fixed.
    """


class End:
    """A model at its hook point."""

    def __init__(self, model: HookedModel, hook: str) -> None:
        # One name for `resid_pre` and the `resid_post` before it: from there an engine can skip the
        # layers that ran.
        self.model, self.hooks = model, [place(resolve(part, model)) for part in joint_parts(hook)]

    def streams(self, tokens: Tokens, letter: str) -> Streams:
        """The stream at the hook point and the token embeddings."""
        seen = self.model.engine.capture(tokens, list(dict.fromkeys([*self.hooks, EMBED])))
        return {
            letter: torch.cat([seen[hook] for hook in self.hooks], dim=-1),
            f"{letter} tokens": seen[EMBED],
        }

    def log_probabilities(self, side: Side, residual: Residual) -> Tensor:
        """Return log probabilities [flat position, vocabulary] in float32 of a resumed pass."""
        with self.model.engine.resuming(self.hooks[0], residual):
            logits = self.model.logits(side.tokens)
        return logits[side.predicts.to(logits.device)].float().log_softmax(-1)


def run_batch(ends: dict[str, End], arms: list[Arm], batch: Batch, tally: "Tally") -> None:
    """Run both models once to their hook points, then every arm from there.

    The other arms are compared with the first arm of either model.
    """
    streams: Streams = {}
    for letter, end in ends.items():
        streams |= end.streams(batch.sides[letter].tokens, letter)
    for letter in dict.fromkeys(arm.finish for arm in arms):
        end, own, side = ends[letter], streams[letter], batch.sides[letter]
        shown = side.shown(streams, letter)
        untouched = end.log_probabilities(side, own)
        likeliest = untouched.argmax(-1)
        reference: np.ndarray | None = None
        for arm in (arm for arm in arms if arm.finish == letter):
            log_p = untouched
            if arm.name != "own":
                state = arm.state if isinstance(arm.state, Tensor) else arm.state(shown)
                log_p = end.log_probabilities(
                    side, torch.where(side.kept.to(own.device), own, state.to(own))
                )
            values = _compare(log_p, untouched, likeliest, side.next)
            reference = values["ce"] if reference is None else reference
            tally.add(
                arm,
                side,
                values | {"win_rate": values["ce"] < reference, "replaced": side.replaced},
            )


def _compare(
    log_p: Tensor, own: Tensor, likeliest: Tensor, following: Tensor
) -> dict[str, np.ndarray]:
    """Return cross-entropy, KL(own ‖ arm) and agreement of the likeliest token, per position."""
    losses = -log_p.gather(1, following.to(log_p.device)[:, None])[:, 0]
    kl = torch.nn.functional.kl_div(log_p, own, log_target=True, reduction="none").sum(-1)
    return {
        "ce": losses.double().cpu().numpy(),
        "kl": kl.double().cpu().numpy(),
        "top1": (log_p.argmax(-1) == likeliest).cpu().numpy(),
    }


class Tally:
    """Sums over the tokens of each document."""

    def __init__(self, n_documents: int) -> None:
        self.n_documents = n_documents
        self.sums: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        """By (route, arm) and metric: [document]."""
        self.counts: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        """What to divide them by."""

    def add(self, arm: Arm, side: Side, values: dict[str, np.ndarray]) -> None:
        """One arm's values on one batch, on every route that it stands on."""
        for metric in METRICS:
            chosen = np.ones_like(side.counted) if metric in _EVERYWHERE else side.counted
            value = values["ce" if metric == "ce_all_positions" else metric]
            total = np.bincount(side.documents[chosen], value[chosen], minlength=self.n_documents)
            count = np.bincount(side.documents[chosen], minlength=self.n_documents)
            for route in arm.routes:
                for table, new in ((self.sums, total), (self.counts, count)):
                    row = table.setdefault(
                        (route, arm.name), {name: np.zeros(self.n_documents) for name in METRICS}
                    )
                    row[metric] += new
