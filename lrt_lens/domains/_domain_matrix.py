"""Maps fitted on one domain and scored on another, in numbers and in what artefacts then do.

    result = lrt.domain_matrix(pair, {"stories": stories, "reviews": reviews}, (2, 3),
                               tasks={"reviews": lrt.DomainTask(labelled=(texts, labels))})
    result.table                     # fitted_on, scored_on, r2, auroc, effect, …
    result.figure()                  # heat maps

Problem: a map that was fitted on one kind of text may fail on another: R² of −3.83 is reported
(arXiv 2603.20406), and R² says little about what a probe or a vector does there (a correlation of
−.07 in the same paper). Mechanism: each domain is harvested once. The map of domain A is fitted on
the fitting folds of A and scored on the test fold of B from the moments of B alone; probes and
vectors of B are transferred through the maps of all domains, and measured on B.

Limits: one hook pair; domains should have about as many tokens, because a map of fewer is worse
everywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, facts, note, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens._short_repr import ShortRepr
from lrt_lens.data._documents import Documents
from lrt_lens.domains._domain_tasks import DomainTask, TaskNumber, probe_numbers, vector_numbers
from lrt_lens.errors import MismatchError
from lrt_lens.figures._domain_matrix import domain_figure
from lrt_lens.figures._template import count_range, with_counts
from lrt_lens.models._hook_points import resolve as resolve_hook
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._harvesting import harvest
from lrt_lens.stitching._diagnostics import score_intervals
from lrt_lens.stitching._fit import fit_grid
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.stitching.solvers._ridge import Ridge
from lrt_lens.stitching.solvers._solver import Solver


@dataclass(frozen=True)
class DomainSettings(Settings):
    """Settings of `domain_matrix`: text of each domain, solver, and controls."""

    n_tokens: int = 50_000
    """Number of tokens of each domain."""
    context_length: int = 128
    """Number of tokens per window, BOS included."""
    solver: Solver = field(default_factory=Ridge)
    """Family of maps."""
    damage: float = 0.1
    """Damage at which vectors are compared, in nats per token on the neutral texts."""
    n_random: int = 20
    """Number of random vectors of each domain."""
    progress: bool = True
    """Show progress bars."""
    seed: int = 0
    """Seed of harvests, splits and draws."""


@dataclass(frozen=True, eq=False, repr=False)
class DomainMatrix(ShortRepr):
    """Scores of the maps of every domain on every domain, and of artefacts through them."""

    table: pd.DataFrame
    """One row per pair of domains.

    Columns: ``fitted_on`` (domain of the map) and ``scored_on``; ``r2`` and ``r2_uniform`` on the
    test fold of the latter with 95% intervals over documents; ``n_test`` tokens; for domains with a
    task ``auroc`` of its probe and ``effect`` of its vector through this map, with intervals, and
    the shares of what a native one has above chance, ``auroc_share`` and ``effect_share``.
    """
    controls: pd.DataFrame
    """One row per domain with a task, measure and control: scored_on, measure, arm (source, native,
    shuffled, random), value, low, high, n."""
    stitches: dict[str, Stitch] = field(repr=False)
    """Stitch of each domain."""
    moments: dict[str, CrossMoments] = field(repr=False)
    """Moments of each domain."""

    def matrix(self, value: str = "r2") -> pd.DataFrame:
        """Return one column of the table with fitted_on down and scored_on across.

        Raises:
            ValueError: the table has no such column.
        """
        if value not in self.table.columns:
            raise ValueError(f"no column {value!r}; the table has {list(self.table.columns)}")
        names = list(self.stitches)
        wide = self.table.pivot(index="fitted_on", columns="scored_on", values=value)
        return wide.loc[names, names]

    def figure(self) -> Any:
        """Return heat maps of R² and of the measured artefacts (plotly)."""
        return with_counts(
            domain_figure(self.table), {"test tokens": count_range(self.table, "n_test")}
        )

    def _repr_html_(self) -> str:
        return card(
            "DomainMatrix",
            facts({"domains": ", ".join(self.stitches)}),
            table(self.table),
            note("The map of fitted_on, scored on held-out text of scored_on."),
        )


@takes(DomainSettings)
def domain_matrix(
    pair: ModelPair,
    domains: Mapping[str, Documents | CrossMoments],
    hooks: tuple[int | str, int | str],
    *,
    tasks: Mapping[str, DomainTask] | None = None,
    settings: DomainSettings | None = None,
    **options: Any,
) -> DomainMatrix:
    """Return how maps, probes and vectors do on other domains than that of the map.

    Args:
        pair: both models.
        domains: documents of each domain by name, or moments of the hook pair on them.
        hooks: hook point of the source and of the target, such as ``(2, 3)``.
        tasks: labelled texts, contrast sets and items of some of the domains.
        settings: a `DomainSettings`, whose fields may also be keywords.

    Raises:
        ValueError: there are fewer than two domains, or a task is of none of them.
        MismatchError: moments are of other models or hook points.
        TooFewDocumentsError: a domain is too short.
    """
    chosen = resolve(DomainSettings, settings, options)
    tasks = tasks or {}
    if len(domains) < 2:
        raise ValueError(f"domains has {list(domains)}; give at least two, by name")
    if unknown := sorted(set(tasks) - set(domains)):
        raise ValueError(f"tasks has {unknown}; the domains are {list(domains)}")
    hook_pair = (resolve_hook(hooks[0], pair.source), resolve_hook(hooks[1], pair.target))
    moments: dict[str, CrossMoments] = {}
    bar = tqdm(domains.items(), desc="domains", disable=not chosen.progress, leave=False)
    for name, documents in bar:
        moments[name] = _moments(pair, hook_pair, documents, chosen)
    stitches = {
        name: fit_grid(one, chosen.solver, pairs=[hook_pair])[hook_pair]
        for name, one in moments.items()
    }
    rows = {
        (a, b): {"fitted_on": a, "scored_on": b} | _scores(stitches[a], moments[b], hook_pair)
        for a in domains
        for b in domains
    }
    controls: list[dict[str, Any]] = []
    for name, task in tasks.items():
        vectors = {"damage": chosen.damage, "n_random": chosen.n_random, "seed": chosen.seed}
        found = [
            *probe_numbers(pair, stitches, name, task, chosen.seed),
            *vector_numbers(pair, stitches, name, task, **vectors),
        ]
        _enter(found, name, rows, controls)
    columns = ["scored_on", "measure", "arm", "value", "low", "high", "n"]
    return DomainMatrix(
        pd.DataFrame(list(rows.values())),
        pd.DataFrame(controls, columns=columns),
        stitches,
        moments,
    )


def _moments(
    pair: ModelPair,
    hook_pair: tuple[str, str],
    documents: Documents | CrossMoments,
    settings: DomainSettings,
) -> CrossMoments:
    if isinstance(documents, CrossMoments):
        if hook_pair not in documents.pairs:
            raise MismatchError(
                f"moments of a domain have {documents.pairs}, not {hook_pair}: harvest this pair"
            )
        return documents
    return harvest(
        pair,
        documents,
        pairs=[hook_pair],
        n_tokens=settings.n_tokens,
        context_length=min(settings.context_length, pair.context_length),
        null="full",
        seed=settings.seed,
        progress=settings.progress,
    )


def _scores(stitch: Stitch, moments: CrossMoments, hook_pair: tuple[str, str]) -> dict[str, float]:
    """Return both R² of a map on the test fold of other moments, with intervals."""
    scores = score_intervals(stitch.up, moments, hook_pair).to_dict("records")
    row: dict[str, float] = {}
    for one in scores:
        if one["score"] in ("r2", "r2_uniform"):
            ends = {"": one["value"], "_low": one["low"], "_high": one["high"]}
            row |= {f"{one['score']}{end}": float(value) for end, value in ends.items()}
    return row | {"n_test": int(moments.n[list(moments.parts.test)].sum())}


def _enter(
    found: list[TaskNumber],
    name: str,
    rows: dict[tuple[str, str], dict[str, Any]],
    controls: list[dict[str, Any]],
) -> None:
    """Enter the numbers of a domain's artefacts into its rows, and those of controls."""
    native = {one.measure: one.interval.value for one in found if one.fitted_on == "native"}
    chance = {"auroc": 0.5, "effect": 0.0}
    for one in found:
        value, low, high = one.interval.value, one.interval.low, one.interval.high
        if (one.fitted_on, name) not in rows:
            controls.append(
                {"scored_on": name, "measure": one.measure, "arm": one.fitted_on}
                | {"value": value, "low": low, "high": high, "n": one.n}
            )
            continue
        above = native[one.measure] - chance[one.measure]
        rows[one.fitted_on, name] |= {
            one.measure: value,
            f"{one.measure}_low": low,
            f"{one.measure}_high": high,
            f"{one.measure}_share": (value - chance[one.measure]) / above
            if above
            else float("nan"),
        }
