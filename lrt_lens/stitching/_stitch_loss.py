"""Loss of next tokens when one model begins and another finishes (Stitching, table 1).

A is the source of a stitch, B its target. A *route* runs one model to its hook point, carries the
stream over, and lets a model finish:

    A→B      x_A ─up──▶ B finishes          A→B→A    x_A ─up──▶ ─down──▶ A finishes
    B→A      x_B ─down─▶ A finishes          B→A→B    x_B ─down─▶ ─up──▶ B finishes

    result = evaluate_stitch_loss(pair, stitch, documents)
    result.summary        # A, B, A→B (+%), …: the paper's table 1 with its controls
    result.table          # a row per route and arm, with intervals over documents
    result.difference("stitched", "token", route="A→B")

Every route is shown beside ``own`` (the finishing model untouched), ``mean`` and ``zero`` (its
stream replaced by its mean, or by 0), ``shuffled`` (the map fitted on shuffled pairs) and ``token``
(what token identity alone predicts of the stream). Each batch runs either model once to its hook
point; all arms resume from there, and an arm that is the same on two routes runs once.

Which positions, a position being where a state is and from where the *next* token is predicted:

- **replaced**: all but BOS, as in the paper; BOS keeps the finishing model's own state. The first
  positions behind BOS, which no map was fitted on, are replaced too and disturb what follows.
  ``keep="masked"`` keeps the own state at all positions that no map ever saw.
- **counted**: the positions that maps are fitted on (behind the first ``stitch.skip_first``, no
  special tokens) in every column but ``ce_all_positions``, which counts every position that has a
  next token, BOS included.

Models of two tokenizers each read their own tokens of the same windows, and only *aligned*
positions behind the masked first ones are replaced and counted, in every arm alike, mean-ablation
included; what lies between keeps the finishing model's own state, which makes every arm look better
than it is. ``replaced`` says which share of positions that was; compare it before comparing losses
with those of one tokenizer.

Documents of the harvest are safe to give: unless told otherwise only those of its test fold are
read.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, note, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens.data._documents import Documents
from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.figures._stitch_loss import stitch_loss_figure
from lrt_lens.models._hook_names import EMBED, joint_parts, same_place
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._intervals import Interval, bootstrap_ratio
from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching._held_out import read_windows
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.stitching._stitched_pass import (
    METRICS,
    Arm,
    Batch,
    End,
    Streams,
    Tally,
    batches,
    run_batch,
)

logger = logging.getLogger(__name__)

ROUTES = ("A→B", "B→A", "A→B→A", "B→A→B")
CONTROLS = ("zero", "shuffled")
"""Controls that may be left out; ``own`` and ``mean`` are what the share of recovered loss is made
of.
"""
_RESERVED = ("own", "stitched", "token", "shuffled", "mean", "zero")


@dataclass(frozen=True)
class StitchLoss:
    """Losses of every route and arm."""

    table: pd.DataFrame
    """A row per route and arm: route, arm, finishes_in, ce (nats per token), ce_low, ce_high,
    ce_all_positions, kl (KL(own ‖ arm), nats), kl_low, kl_high, recovered ((mean − ce) / (mean −
    own)), recovered_low, recovered_high, win_rate (share of tokens of lower loss than under
    mean-ablation), top1 (share of tokens where own and arm agree on the likeliest next one),
    replaced (share of positions whose state is replaced, of those that have a next token),
    increase_percent (over own), n_tokens, n_documents."""
    by_document: pd.DataFrame = field(repr=False)
    """What the table is made of, a row per route, arm and document: n_tokens and means of ce, kl,
    win_rate and top1 over its tokens.
    """
    source_hook: str
    target_hook: str
    seed: int = 0
    """Of the bootstraps."""

    @property
    def summary(self) -> pd.DataFrame:
        """Return the paper's table 1, transposed.

        One row for either model untouched and one per route, with the losses of all arms.
        """
        shown = (
            "finishes_in",
            "ce",
            "ce_low",
            "ce_high",
            "increase_percent",
            "recovered",
            "recovered_low",
            "recovered_high",
            "kl",
            "top1",
            "replaced",
        )
        records = {
            (str(row["route"]), str(row["arm"])): row for row in self.table.to_dict("records")
        }
        routes, arms = (list(dict.fromkeys(names)) for names in zip(*records, strict=True))
        untouched = {letter: route for letter in "BA" for route in routes if route.endswith(letter)}
        rows = [
            {"route": letter, "of": route, "arm": "own"}
            for letter, route in sorted(untouched.items())
        ]
        rows += [{"route": route, "of": route, "arm": "stitched"} for route in routes]
        table = []
        for row in rows:
            found = records[row["of"], row["arm"]]
            beside = {
                f"ce_{arm}": records.get((row["of"], arm), {}).get("ce", math.nan)
                for arm in arms
                if arm not in ("own", "stitched")
            }
            # What starts in the other model belongs to a route, not to the untouched model.
            fixed = (
                beside
                if row["arm"] == "stitched"
                else {
                    name: beside[name] if name in ("ce_mean", "ce_zero") else math.nan
                    for name in beside
                }
            )
            table.append({"route": row["route"]} | {name: found[name] for name in shown} | fixed)
        return pd.DataFrame(table)

    def difference(self, arm: str, other: str, *, route: str) -> Interval:
        """Return the cross-entropy of ``arm`` minus that of ``other`` on the same tokens, in nats.

        The bootstrap over documents is paired.
        """
        rows = [row for row in self.by_document.to_dict("records") if row["route"] == route]
        known = list(dict.fromkeys(str(row["arm"]) for row in rows))
        for name in (arm, other):
            if name not in known:
                routes = list(dict.fromkeys(self.table["route"]))
                raise ValueError(
                    f"no arm {name!r} on route {route!r}; its arms are {known}, and the routes are "
                    f"{routes}"
                )
        losses = [
            np.array([row["ce"] for row in rows if row["arm"] == name]) for name in (arm, other)
        ]
        counts = np.array([row["n_tokens"] for row in rows if row["arm"] == arm], dtype=float)
        return bootstrap_ratio((losses[0] - losses[1]) * counts, counts, seed=self.seed)

    def figure(self) -> Any:
        """Cross-entropy of every arm with its interval, a panel a route (plotly)."""
        return stitch_loss_figure(self.table)

    def _repr_html_(self) -> str:
        return card(
            "StitchLoss",
            note(f"Cross-entropy in nats per token, {self.source_hook} and {self.target_hook}."),
            table(self.summary),
        )


@dataclass(frozen=True)
class StitchLossSettings(Settings):
    """Settings of `evaluate_stitch_loss`, which also takes each of them as a keyword."""

    routes: Sequence[str] = ROUTES
    """Routes to measure, among ``ROUTES``."""
    controls: Sequence[str] = CONTROLS
    """Controls to measure, among ``CONTROLS``."""
    n_tokens: int = 20_000
    """Counted positions after which no further document is read."""
    context_length: int = 256
    """Tokens of a window, BOS included."""
    keep: Literal["bos", "masked"] = "bos"
    """Positions at which the finishing model keeps its own state: BOS alone, as in the paper, or
    all masked positions (always so with two tokenizers).
    """
    folds: Literal["test", "all"] = "test"
    """``"test"`` reads only documents of the harvest's test fold, which its seed and the text
    decide; ``"all"`` reads every document, for text that had no part in the fit.
    """
    seed: int = 0
    """Seed of the bootstraps."""

    def __post_init__(self) -> None:
        """Refuse values that are not among the known ones."""
        for name, values, known in (
            ("routes", self.routes, ROUTES),
            ("controls", self.controls, CONTROLS),
            ("keep", [self.keep], ("bos", "masked")),
            ("folds", [self.folds], ("test", "all")),
        ):
            is_empty = name == "routes" and not values
            # A string is a sequence too, of letters.
            if isinstance(values, str) or not set(values) <= set(known) or is_empty:
                expected = "one" if name in ("keep", "folds") else "a list"
                raise ValueError(f"{name} is {values!r}; expected {expected} of {list(known)}")
        if self.n_tokens < 1:
            raise ValueError(
                f"n_tokens is {self.n_tokens}; expected a positive number of tokens, such as 20_000"
            )


@takes(StitchLossSettings)
def evaluate_stitch_loss(
    pair: ModelPair,
    stitch: Stitch,
    documents: Documents,
    *,
    token_maps: AffineMap | MapPair | None = None,
    others: Mapping[str, MapPair] | None = None,
    settings: StitchLossSettings | None = None,
    progress: bool = True,
    **options: Any,
) -> StitchLoss:
    """Return next-token losses behind a stitch for each route, with their controls.

    Args:
        pair: the models of the stitch.
        stitch: its maps are the arm ``stitched``, its null the arm ``shuffled``, its stream means
            the arm ``mean``.
        documents: text, as `fit_stitches` takes it.
        token_maps: for the arm ``token``: a map from the source's ``hook_embed`` to the target hook
            point (`token_identity_map`), for the routes that end in B; or a `MapPair` whose
            ``down`` goes from the *target's* ``hook_embed`` to the source hook point (from a
            harvest of ``pair.reversed()``), for all routes.
        others: maps of other solvers between the same hook points, one arm per name.
        settings: see `StitchLossSettings`.
        progress: show a bar.
        options: fields of `StitchLossSettings`.

    Raises:
        MismatchError: models or maps that are not the stitch's; chats with two tokenizers.
        TooFewDocumentsError: fewer than two documents, over which there is no interval.

    Source: Stitching (arXiv 2506.06609) table 1; the controls and intervals are not from there.
    """
    settings = resolve(StitchLossSettings, settings, options)
    others = others or {}
    _check(pair, stitch, settings, others)
    ends = {"A": End(pair.source, stitch.source_hook), "B": End(pair.target, stitch.target_hook)}
    length = min(settings.context_length, pair.context_length)
    windows = read_windows(pair, stitch, documents, settings.n_tokens, length, settings.folds)
    token_arms = _token_maps(stitch, token_maps)
    arms = _arms(stitch, settings.routes, settings.controls, token_arms, others)
    tally = Tally(1 + max(window.document for window in windows))
    work = list(batches(windows, pair.source, pair.target))
    for batch in tqdm(work, desc="stitched loss", disable=not progress, leave=False):
        run_batch(ends, arms, Batch(batch, ends, settings.keep), tally)
    names = {"A": pair.source.name, "B": pair.target.name}
    return StitchLoss(
        *_tables(arms, tally, settings.routes, names, settings.seed),
        source_hook=stitch.source_hook,
        target_hook=stitch.target_hook,
        seed=settings.seed,
    )


# ---------------------------------------------------------------------------------------- arguments


def _check(
    pair: ModelPair, stitch: Stitch, settings: StitchLossSettings, others: Mapping[str, MapPair]
) -> None:
    stitch.check(pair.source, pair.target)
    for letter, hook in (("A", stitch.source_hook), ("B", stitch.target_hook)):
        into = [route for route in settings.routes if route.endswith(letter)]
        if into and len(joint_parts(hook)) > 1:
            raise HookPointError(
                f"route {into[0]!r} would finish at {hook!r}, several hook points side by side, "
                "where no stream can be put back; "
                f"choose routes that end in {'B' if letter == 'A' else 'A'}"
            )
    for name, maps in others.items():
        if name in _RESERVED:
            raise ValueError(
                f"others holds the name {name!r}, which is an arm of its own; expected any name "
                f"but {list(_RESERVED)}"
            )
        _refuse_other_hooks(name, maps.up, stitch.source_hook, stitch.target_hook)
        _refuse_other_hooks(name, maps.down, stitch.target_hook, stitch.source_hook)
    if "shuffled" in settings.controls and stitch.null is None:
        logger.warning(
            "this stitch holds no map fitted on shuffled pairs, so the arm 'shuffled' is left out; "
            "harvest with null='full'"
        )
    if settings.keep == "bos" and not pair.aligned and not pair.source.prepend_bos:
        logger.warning(
            "these models read no BOS, so the first token's state, which no map was fitted on, is "
            "replaced too; take keep='masked', or load the "
            "pair with prepend_bos=True"
        )


def _refuse_other_hooks(name: str, affine: AffineMap, start: str, end: str) -> None:
    if not (same_place(affine.source_hook, start) and same_place(affine.target_hook, end)):
        raise MismatchError(
            f"{name} maps {affine.source_hook!r} → {affine.target_hook!r}; expected {start!r} → "
            f"{end!r}: fit that pair of hook points"
        )


def _token_maps(stitch: Stitch, token_maps: AffineMap | MapPair | None) -> dict[str, AffineMap]:
    """By the model where the route ends."""
    if token_maps is None:
        return {}
    maps = (
        {"B": token_maps}
        if isinstance(token_maps, AffineMap)
        else {"B": token_maps.up, "A": token_maps.down}
    )
    for letter, affine in maps.items():
        _refuse_other_hooks(
            "token_maps", affine, EMBED, stitch.target_hook if letter == "B" else stitch.source_hook
        )
    return maps


# ---------------------------------------------------------------------------------------- documents


# --------------------------------------------------------------------------------------------- arms


def _arms(
    stitch: Stitch,
    routes: Sequence[str],
    controls: Sequence[str],
    token_maps: Mapping[str, AffineMap],
    others: Mapping[str, MapPair],
) -> list[Arm]:
    """Return every arm once; for either finishing model the mean comes first.

    Whether a token is won or lost is relative to the mean.
    """
    arms: list[Arm] = []
    for letter, statistics, start in (
        ("A", stitch.source_statistics, "B"),
        ("B", stitch.target_statistics, "A"),
    ):
        here = tuple(route for route in dict.fromkeys(routes) if route.endswith(letter))
        if not here:
            continue
        mean = statistics.mean.float()
        arms.append(Arm("mean", letter, here, mean))
        arms.append(Arm("own", letter, here, lambda streams, letter=letter: streams[letter]))
        carried = {"stitched": stitch.maps, **others}
        if "shuffled" in controls and stitch.null is not None:
            carried["shuffled"] = stitch.null
        for name, maps in carried.items():
            arms += [Arm(name, letter, (route,), _carrier(route, maps)) for route in here]
        if letter in token_maps:
            arms.append(
                Arm(
                    "token",
                    letter,
                    here,
                    lambda streams, m=token_maps[letter], s=start: m.points(
                        streams[f"{s} tokens"].float()
                    ),
                )
            )
        if "zero" in controls:
            arms.append(Arm("zero", letter, here, torch.zeros_like(mean)))
    return arms


def _carrier(route: str, maps: MapPair) -> Callable[[Streams], Tensor]:
    """The stream where the route starts, carried along it."""
    start, *stops = route.split("→")

    def carry(streams: Streams) -> Tensor:
        # Maps act in float32 whatever the models run in.
        x = streams[start].float()
        for stop in stops:
            x = (maps.up if stop == "B" else maps.down).points(x)
        return x

    return carry


# ------------------------------------------------------------------------------------------- tables


def _tables(
    arms: list[Arm], tally: Tally, routes: Sequence[str], names: dict[str, str], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of all arms, and the losses by document."""
    order = list(
        dict.fromkeys(
            [
                "own",
                "stitched",
                *(arm.name for arm in arms if arm.name not in _RESERVED),
                *_RESERVED,
            ]
        )
    )
    rows, documents = [], []
    for route in dict.fromkeys(routes):
        own, mean = (tally.sums[route, name]["ce"] for name in ("own", "mean"))
        for name in (name for name in order if (route, name) in tally.sums):
            sums, counts = tally.sums[route, name], tally.counts[route, name]
            rows.append(
                {"route": route, "arm": name, "finishes_in": names[route[-1]]}
                | _row(sums, counts, own, mean, seed)
            )
            documents.append(
                pd.DataFrame(
                    {
                        "route": route,
                        "arm": name,
                        "document": range(tally.n_documents),
                        "n_tokens": counts["ce"].astype(int),
                    }
                    | {
                        metric: sums[metric] / counts[metric]
                        for metric in ("ce", "kl", "win_rate", "top1")
                    }
                )
            )
    return pd.DataFrame(rows), pd.concat(documents, ignore_index=True)


def _row(
    sums: dict[str, np.ndarray],
    counts: dict[str, np.ndarray],
    own: np.ndarray,
    mean: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    means = {metric: float(sums[metric].sum() / counts[metric].sum()) for metric in METRICS}
    # Documents are drawn, tokens are averaged: a ratio of two sums over the same documents.
    ce, kl = (bootstrap_ratio(sums[metric], counts[metric], seed=seed) for metric in ("ce", "kl"))
    recovered = bootstrap_ratio(mean - sums["ce"], mean - own, seed=seed)
    return {
        "ce": ce.value,
        "ce_low": ce.low,
        "ce_high": ce.high,
        "ce_all_positions": means["ce_all_positions"],
        "kl": kl.value,
        "kl_low": kl.low,
        "kl_high": kl.high,
        "recovered": recovered.value,
        "recovered_low": recovered.low,
        "recovered_high": recovered.high,
        "win_rate": means["win_rate"],
        "top1": means["top1"],
        "replaced": means["replaced"],
        "increase_percent": float(100 * (sums["ce"].sum() / own.sum() - 1)),
        "n_tokens": int(counts["ce"].sum()),
        "n_documents": len(own),
    }
