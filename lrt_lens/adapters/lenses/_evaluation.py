"""Does a transferred lens say what the target will predict, and what the target's own lens says?

    result = evaluate_lens(pair, stitch, lens, documents, target_lens=own)
    result.table, result.figure()

Problem: a lens always prints plausible tokens. Mechanism: on held-out documents, at every position
whose state maps were fitted on, the lens's distribution over the next token is compared with the
target's final prediction, and with its own lens at the same hook point. Arms:

- ``transferred``: the source's lens through the stitch;
- ``target lens``: the target's own lens, the logit lens if none is given;
- ``source lens``: the source's lens on the source's own states of the same text: what the
  transferred lens would say if the stitch were perfect;
- ``shuffled``: the lens through the map of shuffled pairs;
- ``token identity``: the lens on the states that the current token alone predicts (``token_map``).

``top1`` is the share of positions with the same likeliest token, ``top5`` the share of the
reference's five likeliest tokens that are among the five of the arm, ``kl`` is KL(reference ‖ arm)
in nats. Intervals are 95%, by a bootstrap over documents.

Limits: both models must read the same tokens, because distributions over two vocabularies have no
common items; a lens transfers between tokenizers too (`TransferredLens.logits`), but is not
evaluated there. The arm ``shuffled`` is one derangement of the pairs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, note, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.lenses._lens import Lens, transfer_lens
from lrt_lens.adapters.lenses._readout import read_batch, wide
from lrt_lens.data._documents import Documents, DocumentSource
from lrt_lens.errors import HookPointError
from lrt_lens.figures._lens import lens_figure
from lrt_lens.figures._template import rows_where
from lrt_lens.models._hook_points import EMBED, joint_parts
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._bootstrap import bootstrap_ratio
from lrt_lens.statistics._intervals import Interval
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching._held_out import read_windows
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.stitching._stitched_pass import ModelWindows, batches

METRICS = ("top1", "top5", "kl")
REFERENCES = ("final prediction", "target lens")
"""Distributions with which arms are compared."""
_TOP = 5


@dataclass(frozen=True, repr=False)
class LensEvaluation(ShortRepr):
    """Agreement of a transferred lens with the target's prediction and with its own lens."""

    table: pd.DataFrame
    """One row per arm and reference.

    - ``arm``; ``reference``: ``final prediction`` or ``target lens``;
    - ``top1``, ``top5``, ``kl`` with 95% intervals over documents (``_low``, ``_high``);
    - ``n_tokens``, ``n_documents``; ``interval_flag``: doubts about the intervals.
    """
    by_document: pd.DataFrame = field(repr=False)
    """One row per arm, reference and document: ``n_tokens`` and the sums of each metric."""
    source_hook: str
    target_hook: str
    kind: str
    """Kind of the lens: ``"logit"``, ``"tuned"`` or ``"jacobian"``."""
    seed: int = 0
    """Seed of the bootstraps."""

    def difference(
        self, arm: str, other: str, *, metric: str = "top5", reference: str = "final prediction"
    ) -> Interval:
        """Return a metric of ``arm`` minus that of ``other``, by a paired bootstrap over documents.

        Raises:
            ValueError: there is no such arm, metric or reference.
        """
        known = {
            "arm": list(dict.fromkeys(self.table["arm"])),
            "metric": list(METRICS),
            "reference": list(REFERENCES),
        }
        asked = (("arm", arm), ("arm", other), ("metric", metric), ("reference", reference))
        for name, value in asked:
            if value not in known[name]:
                raise ValueError(f"{name} is {value!r}; expected one of {known[name]}")
        rows = rows_where(self.by_document, "reference", reference)
        parts = [rows_where(rows, "arm", name) for name in (arm, other)]
        sums = [part[metric].to_numpy() for part in parts]
        counts = parts[0]["n_tokens"].to_numpy(dtype=float)
        return bootstrap_ratio(sums[0] - sums[1], counts, positive=True, seed=self.seed)

    def figure(self) -> Any:
        """Return a plotly figure of the top-5 agreement of every arm, one panel per reference."""
        return lens_figure(self.table)

    def _repr_html_(self) -> str:
        return card(
            "LensEvaluation",
            note(f"{self.kind} lens, {self.source_hook} read at {self.target_hook}."),
            table(self.table),
        )


@dataclass(frozen=True)
class LensSettings(Settings):
    """Settings of `evaluate_lens`, which also takes each of them as a keyword."""

    n_tokens: int = 10_000
    """Number of counted positions after which no further document is read."""
    context_length: int = 256
    """Tokens of a window, BOS included."""
    folds: Literal["test", "all"] = "test"
    """Documents to read: ``"test"`` only those of the harvest's test fold; ``"all"`` every one,
    for text that was not used in the fit.
    """
    text_field: str | None = None
    """Column of the texts in files and tables, as in `HarvestSettings`."""
    group: Any = None
    """Documents that share a fold, as in the harvest of the stitch."""
    seed: int = 0
    """Seed of the bootstraps."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for values that are not among the known ones."""
        if self.folds not in ("test", "all"):
            raise ValueError(f"folds is {self.folds!r}; expected 'test' or 'all'")
        if self.n_tokens < 1:
            raise ValueError(f"n_tokens is {self.n_tokens}; expected a positive number")


@takes(LensSettings)
def evaluate_lens(
    pair: ModelPair,
    stitch: Stitch,
    lens: Lens,
    documents: Documents,
    *,
    target_lens: Lens | None = None,
    token_map: AffineMap | None = None,
    settings: LensSettings | None = None,
    progress: bool = True,
    **options: Any,
) -> LensEvaluation:
    """Return how far a transferred lens agrees with the target, with its controls.

    Args:
        pair: the models of the stitch, which must read the same tokens.
        stitch: the stitch; its null is the arm ``shuffled``.
        lens: a lens of the source.
        documents: texts, chats, a file or a dataset, as for `fit_stitches`.
        target_lens: the target's own lens; its logit lens if None.
        token_map: map from the source's ``hook_embed`` to the target hook point
            (`token_identity_map`), for the arm ``token identity``; None leaves it out.
        settings: a `LensSettings`.
        progress: show a progress bar.
        options: fields of `LensSettings` as keywords.

    Raises:
        MismatchError: the tokenizers differ, or models, maps or lenses are not those of the stitch.
        HookPointError: a lens has no map for its hook point, or the stitch joins several layers.
        TooFewDocumentsError: fewer than two documents can be measured.
        ValueError: a setting is not allowed.
    """
    chosen = resolve(LensSettings, settings, options)
    stitch.check(pair.source, pair.target)
    pair.refuse_two_tokenizers(
        "evaluate_lens", "read the lens by itself, stitch.transfer(lens).logits(source, states)"
    )
    if len(joint_parts(stitch.source_hook)) > 1 or len(joint_parts(stitch.target_hook)) > 1:
        raise HookPointError(
            f"the stitch joins {stitch.source_hook!r} and {stitch.target_hook!r}; a lens reads one "
            "hook point: take a stitch of single layers"
        )
    own = target_lens or Lens.logit(pair.target.identity)
    arms = _arms(pair, stitch, lens, own, token_map)
    windows = read_windows(
        pair,
        stitch.provenance,
        stitch.skip_first,
        DocumentSource.of(documents, chosen.text_field, chosen.group),
        chosen.n_tokens,
        min(chosen.context_length, pair.context_length),
        chosen.folds,
    )
    tally = _AgreementSums(1 + max(window.document for window in windows))
    work = list(batches(windows, pair.source, pair.target))
    for batch in tqdm(work, desc="lens", disable=not progress, leave=False):
        _run(pair, stitch, arms, ModelWindows(batch, pair.target, "masked"), tally)
    by_document = tally.table()
    return LensEvaluation(
        table=_summary(by_document, chosen.seed),
        by_document=by_document,
        source_hook=stitch.source_hook,
        target_hook=stitch.target_hook,
        kind=lens.kind,
        seed=chosen.seed,
    )


@dataclass(frozen=True)
class _LensArm:
    """A map from one stream to the stream behind the last block of the model that reads it."""

    name: str
    reader: HookedModel
    stream: str
    """``"x"``, ``"y"`` or ``"tokens"``."""
    points: Callable[[Tensor], Tensor]


def _arms(
    pair: ModelPair, stitch: Stitch, lens: Lens, own: Lens, token_map: AffineMap | None
) -> list[_LensArm]:
    """Return all arms, the target's own lens first."""
    source, target = pair.source, pair.target
    target.identity.refuse_other(own.model, "the model of target_lens")
    carried = transfer_lens(lens, stitch)
    arms = [
        _LensArm("target lens", target, "y", own.at(stitch.target_hook).points),
        _LensArm("transferred", source, "y", carried.points),
        _LensArm("source lens", source, "x", lens.at(stitch.source_hook).points),
    ]
    if stitch.null is not None:
        null = transfer_lens(lens, stitch, through=stitch.null)
        arms.append(_LensArm("shuffled", source, "y", null.points))
    if token_map is not None:
        stitch.refuse_other_token_map(token_map, source.identity, target.identity, to_source=False)
        known = token_map.compose(carried.map)
        arms.append(_LensArm("token identity", source, "tokens", known.points))
    return arms


def _run(
    pair: ModelPair,
    stitch: Stitch,
    arms: list[_LensArm],
    windows: ModelWindows,
    tally: "_AgreementSums",
) -> None:
    """Run both models on a batch, read every arm, and add the metrics to ``tally``."""
    tokens, counted = windows.tokens, torch.from_numpy(windows.counted)
    wanted = [stitch.source_hook] + [EMBED for arm in arms if arm.stream == "tokens"]
    seen = pair.source.engine.capture(tokens, wanted)
    streams = {
        "x": seen[stitch.source_hook],
        "y": pair.target.engine.capture(tokens, [stitch.target_hook])[stitch.target_hook],
    }
    # Only an arm of token identity asks for the embedding.
    streams |= {"tokens": seen[EMBED]} if EMBED in seen else {}
    n = min(pair.source.d_vocab, pair.target.d_vocab)

    def distribution(logits: Tensor) -> Tensor:
        # Rows of the vocabulary that one model alone pads are left out.
        rows = logits[windows.predicts.to(logits.device)][counted.to(logits.device)]
        return wide(rows[:, :n]).log_softmax(-1).cpu()

    final = distribution(pair.target.logits(tokens))
    documents = windows.documents[windows.counted]
    own: Tensor | None = None
    for arm in arms:
        states = streams[arm.stream]
        like = streams["x" if arm.reader is pair.source else "y"]
        mapped = arm.points(wide(states)).to(like)
        said = distribution(read_batch(arm.reader, tokens, mapped))
        own = said if own is None else own
        for reference, log_p in zip(REFERENCES, (final, own), strict=True):
            tally.add(arm.name, reference, documents, agreement(log_p, said))


def agreement(reference: Tensor, said: Tensor) -> dict[str, np.ndarray]:
    """Return top-1, top-5 agreement and KL(reference ‖ said) of each position, [position].

    Args:
        reference: log probabilities [position, vocabulary].
        said: log probabilities [position, vocabulary].
    """
    top, guess = (one.topk(_TOP, dim=-1).indices for one in (reference, said))
    shared = (top[:, :, None] == guess[:, None, :]).any(-1).double().mean(-1)
    kl = torch.nn.functional.kl_div(said, reference, log_target=True, reduction="none").sum(-1)
    return {
        "top1": (top[:, 0] == guess[:, 0]).double().numpy(),
        "top5": shared.numpy(),
        "kl": kl.double().numpy(),
    }


class _AgreementSums:
    """Sums of every metric over the positions of each document."""

    def __init__(self, n_documents: int) -> None:
        self.n_documents = n_documents
        self.sums: dict[tuple[str, str], dict[str, np.ndarray]] = {}

    def add(
        self, arm: str, reference: str, documents: np.ndarray, values: Mapping[str, np.ndarray]
    ) -> None:
        """Add the values [position] of one arm on one batch."""
        ones = {"n_tokens": np.ones(len(documents))}
        sums = self.sums.setdefault((arm, reference), {})
        for name, value in (ones | dict(values)).items():
            added = np.bincount(documents, weights=value, minlength=self.n_documents)
            sums[name] = sums.get(name, 0.0) + added

    def table(self) -> pd.DataFrame:
        """Return the sums, one row per arm, reference and document."""
        parts = [
            pd.DataFrame(
                {"arm": arm, "reference": reference, "document": range(self.n_documents)} | sums
            )
            for (arm, reference), sums in self.sums.items()
        ]
        return pd.concat(parts, ignore_index=True).astype({"n_tokens": int})


def _summary(by_document: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the means over tokens with their intervals over documents."""
    rows = []
    pairs = zip(by_document["arm"].tolist(), by_document["reference"].tolist(), strict=True)
    for arm, reference in dict.fromkeys(pairs):
        if arm == reference:
            continue
        part = rows_where(rows_where(by_document, "arm", arm), "reference", reference)
        counts = part["n_tokens"].to_numpy(dtype=float)
        row: dict[str, Any] = {"arm": arm, "reference": reference}
        flags = []
        for metric in METRICS:
            one = bootstrap_ratio(part[metric].to_numpy(), counts, positive=True, seed=seed)
            ends = {f"{metric}_low": one.low, f"{metric}_high": one.high}
            row |= {metric: one.value} | ends
            flags.append(one.flag)
        row["n_tokens"], row["n_documents"] = int(counts.sum()), int((counts > 0).sum())
        rows.append(row | {"interval_flag": next(filter(None, flags), "")})
    return pd.DataFrame(rows)
