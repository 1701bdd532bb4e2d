"""Forward passes that start in one model and finish in another.

Problem: the loss behind a stitch is needed for many arms (maps and controls), and each full pass of
both models is expensive. Mechanism: per batch, each model runs once to its hook point, and every
arm resumes from there with another state in the residual stream.

    ends = {"A": End(pair.source, hook), "B": End(pair.target, other_hook)}
    tally = Tally(n_documents)
    for windows in batches(all_windows, pair.source, pair.target):
        run_batch(ends, arms, Batch(windows, ends, keep="bos"), tally)
    tally.sums["A→B", "stitched"]["ce"]       # [document], nats

The state of an arm is a function of the streams of both models (`lrt_lens.stitching._stitch_loss`
has the arms). With two tokenizers, each model reads its own tokens of a window. A position of the
finishing model gets the other model's state that has read the same characters; a position without
such a partner keeps its own state.

Limits: a joint hook point can start a route but not finish one.
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
"""Names of the sums in a `Tally`."""
_EVERYWHERE = ("ce_all_positions", "replaced")
"""Metrics that count every position that has a next token, not only the counted ones."""
_BATCH_WINDOWS = 32
_LOGITS_ON_CPU, _LOGITS_ON_GPU = 2**22, 2**26
"""Most logits of one pass, windows × length × vocabulary. A few copies exist at a time. On a CPU,
16 MB of logits take half of the time per token of 256 MB, because the operating system maps new
memory for every large pass. A GPU needs large passes to be busy.
"""

Streams = dict[str, Tensor]
"""Residuals at the two hook points (``"A"``, ``"B"``) and token embeddings (``"A tokens"``, ``"B
tokens"``), [batch, position, d] each, in the precision of the models.
"""


def batches(windows: list[Window], *models: HookedModel) -> Iterator[list[Window]]:
    """Yield batches of windows of similar length, limited by the logits that the models allow.

    A batch has at least one window.
    """
    limit = (
        _LOGITS_ON_CPU if any(model.device.type == "cpu" for model in models) else _LOGITS_ON_GPU
    )
    vocabulary = max(model.d_vocab for model in models)
    batch: list[Window] = []
    # Longest first: the first window of a batch sets its padded length, and a batch that is too
    # large for memory fails at the start. The document makes the order reproducible.
    for window in sorted(windows, key=lambda w: (-w.padded_length, w.document)):
        if batch and (
            len(batch) == _BATCH_WINDOWS
            or (len(batch) + 1) * batch[0].padded_length * vocabulary > limit
        ):
            yield batch
            batch = []
        batch.append(window)
    yield batch


class ModelWindows:
    """Windows as one model reads them, with the positions that are replaced and counted."""

    def __init__(
        self,
        windows: list[Window],
        model: HookedModel,
        keep: Literal["bos", "masked"],
        others: list[Window] | None = None,
    ) -> None:
        """Take the windows of one model.

        Args:
            windows: windows in this model's tokens.
            model: the model that reads them.
            keep: positions that keep their own state: BOS, or all masked positions.
            others: the same windows in the other model's tokens if the tokenizers differ; a token
                without a partner there keeps its own state.
        """
        self.tokens = model.pad([window.ids for window in windows])
        positions = torch.arange(self.tokens.shape[1])
        unmasked = torch.zeros(self.tokens.shape, dtype=torch.bool)
        self.partner = None if others is None else torch.zeros(self.tokens.shape, dtype=torch.int64)
        """Position of the other model that has read the same characters [batch, position]; 0 for
        positions that keep their own state; None if both models read the same tokens.
        """
        for row, window in enumerate(windows):
            unmasked[row, torch.from_numpy(window.rows)] = True
            if self.partner is not None and others is not None:
                self.partner[row, torch.from_numpy(window.rows)] = torch.from_numpy(
                    others[row].rows
                )
        # With two tokenizers only aligned positions can be replaced: all others are kept.
        bos = torch.full_like(unmasked, fill_value=False)
        bos[:, : len(model.prefix)] = True
        self.keeps_own = (bos if keep == "bos" and others is None else ~unmasked)[..., None]
        lasts = torch.tensor([len(window.ids) - 1 for window in windows])
        self.predicts = positions < rearrange(lasts, "batch -> batch 1")
        """True for positions that have a next token [batch, position]. The attributes below are
        flat arrays over these positions.
        """
        # Boolean indexing with [batch, position] flattens row by row.
        self.counted = unmasked[self.predicts].numpy()
        self.replaced = (~self.keeps_own[..., 0])[self.predicts].numpy()
        # roll puts the first token behind the last one; `predicts` is False there.
        self.next = self.tokens.roll(-1, dims=1)[self.predicts]
        documents = torch.tensor([window.document for window in windows])
        per_position = repeat(documents, "batch -> batch position", position=len(positions))
        self.documents = per_position[self.predicts].numpy()

    def shown(self, streams: Streams, letter: str) -> Streams:
        """Return the streams of both models at this model's positions.

        ``letter`` is this model's; the other model's stream is gathered at the partner positions.
        """
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
    """Windows as both models read them, by letter (``"A"`` is the source, ``"B"`` the target)."""

    def __init__(
        self,
        windows: list[Window],
        ends: Mapping[str, "End"],
        keep: Literal["bos", "masked"],
        *,
        paired: bool = True,
    ) -> None:
        """Take the windows of the source model, with those of the target model as counterparts.

        Args:
            windows: windows as the source model reads them.
            ends: models and hook points by letter.
            keep: positions that keep their own state, as for `ModelWindows`.
            paired: use the aligned positions of two tokenizations; if False, each model uses only
                its own positions.
        """
        read = {"A": windows, "B": [window.read_by("target") for window in windows]}
        differ = paired and any(window.counterpart is not None for window in windows)
        other = {"A": read["B"], "B": read["A"]}
        self.by_model = {
            letter: ModelWindows(read[letter], end.model, keep, other[letter] if differ else None)
            for letter, end in ends.items()
        }


@dataclass(frozen=True)
class Arm:
    """One state that replaces the finishing model's own state at its hook point."""

    name: str
    """Name in tables; ``"own"`` is the untouched model, which is not run a second time."""
    finish: str
    """Letter of the model that finishes, ``"A"`` or ``"B"``."""
    routes: tuple[str, ...]
    """Routes for which this arm counts; an arm that does not depend on the start of a route runs
    once for all of them.
    """
    state: Callable[[Streams], Tensor] | Tensor
    """Replacing state [batch, position, d] as a function of both streams, or a fixed state [d]."""


class End:
    """A model with the hook point at which its pass stops and resumes."""

    def __init__(self, model: HookedModel, hook: str) -> None:
        # The canonical name: `resid_pre` becomes the `resid_post` of the block before, from which
        # an engine can resume without running the earlier blocks again.
        self.model, self.hooks = model, [place(resolve(part, model)) for part in joint_parts(hook)]

    def streams(self, tokens: Tokens, letter: str) -> Streams:
        """Return the stream at the hook point and the token embeddings."""
        seen = self.model.engine.capture(tokens, list(dict.fromkeys([*self.hooks, EMBED])))
        return {
            letter: torch.cat([seen[hook] for hook in self.hooks], dim=-1),
            f"{letter} tokens": seen[EMBED],
        }

    def log_probabilities(self, windows: ModelWindows, residual: Residual) -> Tensor:
        """Return log probabilities [flat position, vocabulary] in float32 of a resumed pass.

        ``residual`` [batch, position, d] replaces the stream at the hook point.
        """
        with self.model.engine.resuming(self.hooks[0], residual):
            logits = self.model.logits(windows.tokens)
        return logits[windows.predicts.to(logits.device)].float().log_softmax(-1)


def run_batch(ends: dict[str, End], arms: list[Arm], batch: Batch, tally: "Tally") -> None:
    """Run both models once to their hook points, then every arm from there, and add to ``tally``.

    ``win_rate`` compares the loss of each arm with that of the first arm of the same model.
    """
    streams: Streams = {}
    for letter, end in ends.items():
        streams |= end.streams(batch.by_model[letter].tokens, letter)
    for letter in dict.fromkeys(arm.finish for arm in arms):
        end, own, windows = ends[letter], streams[letter], batch.by_model[letter]
        shown = windows.shown(streams, letter)
        untouched = end.log_probabilities(windows, own)
        likeliest = untouched.argmax(-1)
        reference: np.ndarray | None = None
        for arm in (arm for arm in arms if arm.finish == letter):
            # Positions with `keeps_own` have the model's own state in every arm.
            log_p = untouched
            if arm.name != "own":
                state = arm.state if isinstance(arm.state, Tensor) else arm.state(shown)
                log_p = end.log_probabilities(
                    windows, torch.where(windows.keeps_own.to(own.device), own, state.to(own))
                )
            values = _compare(log_p, untouched, likeliest, windows.next)
            reference = values["ce"] if reference is None else reference
            tally.add(
                arm,
                windows,
                values | {"win_rate": values["ce"] < reference, "replaced": windows.replaced},
            )


def _compare(
    log_p: Tensor, own: Tensor, likeliest: Tensor, following: Tensor
) -> dict[str, np.ndarray]:
    """Return cross-entropy, KL(own ‖ arm) and agreement of the likeliest token, per position."""
    # ce = −log p(next token);  KL(own ‖ arm) = Σ_v own_v (log own_v − log arm_v), where torch's
    # kl_div takes the arm first. float64 before sums over many tokens.
    losses = -log_p.gather(1, following.to(log_p.device)[:, None])[:, 0]
    kl = torch.nn.functional.kl_div(log_p, own, log_target=True, reduction="none").sum(-1)
    return {
        "ce": losses.double().cpu().numpy(),
        "kl": kl.double().cpu().numpy(),
        "top1": (log_p.argmax(-1) == likeliest).cpu().numpy(),
    }


class Tally:
    """Sums of every metric over the tokens of each document."""

    def __init__(self, n_documents: int) -> None:
        self.n_documents = n_documents
        self.sums: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        """Sum of a metric over tokens [document], by (route, arm) and metric."""
        self.counts: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        """Number of tokens in each sum [document], by (route, arm) and metric."""

    def add(self, arm: Arm, windows: ModelWindows, values: dict[str, np.ndarray]) -> None:
        """Add the values of one arm on one batch, to every route of the arm."""
        for metric in METRICS:
            mask = np.ones_like(windows.counted) if metric in _EVERYWHERE else windows.counted
            value = values["ce" if metric == "ce_all_positions" else metric]
            # Sum of the values of each document: bincount with the values as weights.
            total = np.bincount(windows.documents[mask], value[mask], minlength=self.n_documents)
            count = np.bincount(windows.documents[mask], minlength=self.n_documents)
            for route in arm.routes:
                for table, new in ((self.sums, total), (self.counts, count)):
                    row = table.setdefault(
                        (route, arm.name), {name: np.zeros(self.n_documents) for name in METRICS}
                    )
                    row[metric] += new
