"""Next-token loss behind a stitch: one model starts a pass and another finishes it.

Problem: R² does not say whether the finishing model can use mapped activations. Mechanism: table 1
of Stitching (arXiv 2506.06609). A is the source of a stitch, B its target. A *route* runs one model
to its hook point, maps the stream, and finishes the pass in a model:

    A→B      x_A ─up──▶ B finishes          A→B→A    x_A ─up──▶ ─down──▶ A finishes
    B→A      x_B ─down─▶ A finishes          B→A→B    x_B ─down─▶ ─up──▶ B finishes

    result = evaluate_stitch_loss(pair, stitch, documents)
    result.summary        # A, B, A→B (+%), …: the paper's table 1 with its controls
    result.table          # one row per route and arm, with intervals over documents
    result.difference("stitched", "token", route="A→B")

The arms of every route are ``stitched``; ``own`` (the finishing model untouched); ``mean`` and
``zero`` (its stream replaced by its mean, or by 0); ``shuffled`` (the map fitted on shuffled
pairs); and ``token`` (the stream as token identity predicts it). Per batch, each model runs once to
its hook point and all arms resume from there. An arm that is equal on two routes runs once.

The state at a position predicts the *next* token. Two sets of positions matter:

- **replaced**: all positions except BOS, as in the paper; BOS keeps the finishing model's own
  state. The first positions after BOS are replaced too, although no map was fitted on them, and
  this raises the loss of later positions. ``keep="masked"`` keeps the own state at all positions on
  which no map was fitted.
- **counted**: the positions on which maps are fitted (after the first ``stitch.skip_first``, no
  special tokens), in every column except ``ce_all_positions``, which counts every position that has
  a next token, BOS included.

Limits: the arm ``shuffled`` is one derangement of the pairs. With two tokenizers, each model reads
its own tokens of the same windows. In all arms, including ``mean``, only *aligned* unmasked
positions are replaced and counted. The positions between them keep the finishing model's own state,
which makes every arm look better than it is. ``replaced`` is the share of replaced positions;
compare it before comparing losses with those of one tokenizer.

The documents of the harvest may be used again: by default, only those of its test fold are read.
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

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, names_in_tables, note, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens._short_repr import ShortRepr
from lrt_lens.data._documents import Documents, DocumentSource
from lrt_lens.errors import HookPointError
from lrt_lens.figures._stitch_loss import stitch_loss_figure
from lrt_lens.models._belonging import map_ends, refuse_other_map
from lrt_lens.models._hook_points import joint_parts
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._bootstrap import NO_VARIATION, bootstrap_ratio
from lrt_lens.statistics._intervals import Interval
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
"""Controls that may be left out; ``own`` and ``mean`` are always measured, because the recovered
loss is computed from them.
"""
_RESERVED = ("own", "stitched", "token", "shuffled", "mean", "zero")
"""Names of arms that other solvers may not have."""


@dataclass(frozen=True, repr=False)
class StitchLoss(ShortRepr):
    """Losses of every route and arm."""

    table: pd.DataFrame
    """One row per route and arm, with 95% intervals over documents (``_low``, ``_high``).

    - ``route``, ``arm``, ``finishes_in`` (name of the finishing model);
    - ``ce``: cross-entropy in nats per token; ``ce_all_positions``: the same at every position;
    - ``kl``: KL(own ‖ arm) in nats;
    - ``recovered``: (mean − ce) / (mean − own);
    - ``win_rate``: share of tokens with a lower loss than in the arm ``mean``;
    - ``top1``: share of tokens for which own and arm agree on the likeliest next token;
    - ``replaced``: share of replaced positions, of those that have a next token;
    - ``increase_percent``: increase of ce over own; ``n_tokens``, ``n_documents``.
    - ``interval_flag``: what is doubtful about the intervals, such as few documents; else empty;
    - ``contains``: what the intervals hold for, other documents; ``n_draws``: number of maps of
      shuffled pairs in the arm ``shuffled``, 1. Another derangement may lie outside its interval,
      and one draw gives no p-value below ½.

    ``ce``, ``kl``, ``recovered``, ``win_rate``, ``top1`` and ``increase_percent`` have intervals.
    """
    by_document: pd.DataFrame = field(repr=False)
    """One row per route, arm and document, from which the table is computed: n_tokens, and means of
    ce, kl, win_rate and top1 over the tokens of the document.
    """
    source_hook: str
    """Hook point of the source model, A."""
    target_hook: str
    """Hook point of the target model, B."""
    seed: int = 0
    """Seed of the bootstraps."""

    @property
    def summary(self) -> pd.DataFrame:
        """Return the paper's table 1, transposed.

        There is one row per untouched model and one per route, with the losses of all arms.
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
            record = records[row["of"], row["arm"]]
            beside = {
                f"ce_{arm}": records.get((row["of"], arm), {}).get("ce", math.nan)
                for arm in arms
                if arm not in ("own", "stitched")
            }
            # Arms that start in the other model belong to a route, not to the untouched model.
            fixed = (
                beside
                if row["arm"] == "stitched"
                else {
                    name: beside[name] if name in ("ce_mean", "ce_zero") else math.nan
                    for name in beside
                }
            )
            table.append({"route": row["route"]} | {name: record[name] for name in shown} | fixed)
        return pd.DataFrame(table)

    def difference(self, arm: str, other: str, *, route: str) -> Interval:
        """Return the cross-entropy of ``arm`` minus that of ``other`` on the same tokens, in nats.

        The interval is a paired bootstrap over documents.

        Raises:
            ValueError: the route has no such arm.
        """
        rows = [row for row in self.by_document.to_dict("records") if row["route"] == route]
        known = list(dict.fromkeys(str(row["arm"]) for row in rows))
        for name in (arm, other):
            if name not in known:
                routes = list(dict.fromkeys(self.table["route"]))
                raise ValueError(
                    f"no arm {name!r} on route {route!r}; use one of its arms {known}, or one of "
                    f"the routes {routes}"
                )
        losses = [
            np.array([row["ce"] for row in rows if row["arm"] == name]) for name in (arm, other)
        ]
        counts = np.array([row["n_tokens"] for row in rows if row["arm"] == arm], dtype=float)
        # Σ_d n_d (a_d − b_d) / Σ_d n_d: every token has the same weight.
        return bootstrap_ratio(
            (losses[0] - losses[1]) * counts, counts, positive=True, seed=self.seed
        )

    def figure(self) -> Any:
        """Return a plotly figure of the cross-entropy of every arm, with one panel per route."""
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
    """Number of counted positions after which no further document is read."""
    context_length: int = 256
    """Tokens of a window, BOS included."""
    keep: Literal["bos", "masked"] = "bos"
    """Positions at which the finishing model keeps its own state: only BOS, as in the paper, or all
    masked positions. With two tokenizers it is always ``"masked"``.
    """
    folds: Literal["test", "all"] = "test"
    """Documents to read: ``"test"`` only those of the harvest's test fold, which follows from its
    seed and the text; ``"all"`` every document, for text that was not used in the fit.
    """
    text_field: str | None = None
    """Column of the texts in files and tables, as in `HarvestSettings`."""
    group: Any = None
    """Documents that share a fold, as in the harvest of the stitch."""
    seed: int = 0
    """Seed of the bootstraps."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for values that are not among the known ones."""
        for name, values, known in (
            ("routes", self.routes, ROUTES),
            ("controls", self.controls, CONTROLS),
            ("keep", [self.keep], ("bos", "masked")),
            ("folds", [self.folds], ("test", "all")),
        ):
            is_empty = name == "routes" and not values
            # A string would pass as a sequence of letters.
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
        documents: texts, chats, a file or a dataset, as for `fit_stitches`.
        token_maps: maps of the arm ``token``. An `AffineMap` from the source's ``hook_embed`` to
            the target hook point (`token_identity_map`) serves the routes that end in B. A
            `MapPair` whose ``down`` leads from the *target's* ``hook_embed`` to the source hook
            point (from a harvest of ``pair.reversed()``) serves all routes.
        others: maps of other solvers between the same hook points, one arm per name.
        settings: a `StitchLossSettings`.
        progress: show a progress bar.
        options: fields of `StitchLossSettings` as keywords.

    Raises:
        MismatchError: models or maps are not those of the stitch, or documents are chats and the
            models have two tokenizers.
        TooFewDocumentsError: fewer than two documents can be measured.
        HookPointError: a route would finish at a joint hook point.
        ValueError: a setting or the name of an arm is not allowed.

    Source: table 1 of Stitching (arXiv 2506.06609), which has no controls and no intervals.
    """
    settings = resolve(StitchLossSettings, settings, options)
    others = others or {}
    _check(pair, stitch, settings, others)
    token_arms = _token_maps(pair, stitch, token_maps)
    ends = {"A": End(pair.source, stitch.source_hook), "B": End(pair.target, stitch.target_hook)}
    length = min(settings.context_length, pair.context_length)
    source = DocumentSource.of(documents, settings.text_field, settings.group)
    windows = read_windows(
        pair,
        stitch.provenance,
        stitch.skip_first,
        source,
        settings.n_tokens,
        length,
        settings.folds,
    )
    arms = _arms(stitch, settings.routes, settings.controls, token_arms, others)
    tally = Tally(1 + max(window.document for window in windows))
    work = list(batches(windows, pair.source, pair.target))
    for batch in tqdm(work, desc="stitched loss", disable=not progress, leave=False):
        run_batch(ends, arms, Batch(batch, ends, settings.keep), tally)
    names = dict(zip("AB", names_in_tables(pair.source.name, pair.target.name), strict=True))
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
        # A pass can start at a joint hook point, but nothing says how to split a mapped state.
        into = [route for route in settings.routes if route.endswith(letter)]
        if into and len(joint_parts(hook)) > 1:
            raise HookPointError(
                f"route {into[0]!r} would finish at {hook!r}, which joins several hook points, so "
                "that no pass can resume from it; "
                f"choose routes that end in {'B' if letter == 'A' else 'A'}"
            )
    for name, maps in others.items():
        if name in _RESERVED:
            raise ValueError(
                f"others has the name {name!r}, which is the name of another arm; expected a name "
                f"that is not in {list(_RESERVED)}"
            )
        source, target = stitch.ends_in(pair.source.identity, pair.target.identity)
        refuse_other_map(name, map_ends(maps.up), (source, target))
        refuse_other_map(name, map_ends(maps.down), (target, source))
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


def _token_maps(
    pair: ModelPair, stitch: Stitch, token_maps: AffineMap | MapPair | None
) -> dict[str, AffineMap]:
    """Return the token maps by the letter of the model in which a route ends."""
    if token_maps is None:
        return {}
    maps = (
        {"B": token_maps}
        if isinstance(token_maps, AffineMap)
        else {"B": token_maps.up, "A": token_maps.down}
    )
    for letter, affine in maps.items():
        stitch.refuse_other_token_map(
            affine,
            pair.source.identity,
            pair.target.identity,
            to_source=letter == "A",
            what="token_maps",
        )
    return maps


# --------------------------------------------------------------------------------------------- arms


def _arms(
    stitch: Stitch,
    routes: Sequence[str],
    controls: Sequence[str],
    token_maps: Mapping[str, AffineMap],
    others: Mapping[str, MapPair],
) -> list[Arm]:
    """Return all arms, with ``mean`` first for each finishing model.

    ``win_rate`` compares the losses of the other arms with those of the first arm.
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
        # Default arguments of the lambdas bind the loop variables now, not when they are called.
        arms.append(Arm("own", letter, here, lambda streams, letter=letter: streams[letter]))
        arm_maps = {"stitched": stitch.maps, **others}
        if "shuffled" in controls and stitch.null is not None:
            arm_maps["shuffled"] = stitch.null
        for name, maps in arm_maps.items():
            arms += [Arm(name, letter, (route,), _mapped(route, maps)) for route in here]
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


def _mapped(route: str, maps: MapPair) -> Callable[[Streams], Tensor]:
    """Return a function that maps the stream at the start of a route along the route."""
    start, *stops = route.split("→")

    def mapped(streams: Streams) -> Tensor:
        # Maps are applied in float32, also if the models run in half precision.
        x = streams[start].float()
        for stop in stops:
            x = (maps.up if stop == "B" else maps.down).points(x)
        return x

    return mapped


# ------------------------------------------------------------------------------------------- tables


def _tables(
    arms: list[Arm], tally: Tally, routes: Sequence[str], names: dict[str, str], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of all arms, and the losses by document."""
    # own and stitched first, then maps of other solvers, then the controls.
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
    """Return the columns of one route and arm, from sums and counts by document."""
    means = {metric: float(sums[metric].sum() / counts[metric].sum()) for metric in METRICS}
    # The bootstrap draws documents, the mean is over tokens: a ratio Σ_d sum_d / Σ_d count_d.
    intervals = {
        metric: bootstrap_ratio(sums[metric], counts[metric], positive=True, seed=seed)
        for metric in ("ce", "kl", "win_rate", "top1")
    }
    # (mean − ce) / (mean − own); the counts are equal in all arms of a route and cancel.
    intervals["recovered"] = bootstrap_ratio(mean - sums["ce"], mean - own, seed=seed)
    intervals["increase_percent"] = _percent(
        bootstrap_ratio(sums["ce"], own, positive=True, seed=seed)
    )
    row: dict[str, Any] = {}
    for name in ("ce", "ce_all_positions", "kl", "recovered", "win_rate", "top1", "replaced"):
        row |= _columns(name, intervals[name]) if name in intervals else {name: means[name]}
    row |= _columns("increase_percent", intervals["increase_percent"])
    # The model's own pass differs from itself by nothing in every document: no doubt about that.
    flags = (one.flag for one in intervals.values() if one.flag != NO_VARIATION)
    doubts = dict.fromkeys(flag.replace("items", "documents") for flag in flags if flag)
    return row | {
        "n_tokens": int(counts["ce"].sum()),
        "n_documents": len(own),
        "interval_flag": "; ".join(doubts),
        "contains": "documents",
        "n_draws": 1,
    }


def _columns(name: str, interval: Interval) -> dict[str, float]:
    """Return the columns of a value and of the ends of its interval."""
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _percent(ratio: Interval) -> Interval:
    """Return the increase in percent of a ratio to the untouched model."""
    value, low, high = (100 * (end - 1) for end in (ratio.value, ratio.low, ratio.high))
    return Interval(value, low, high, ratio.flag)
