r"""Rules of transfer compared: which map, which layers, and how a vector is learnt.

    python examples/transfer_rules.py                       # bundled pair, its two concepts
    python examples/transfer_rules.py --source FOLDER --target FOLDER --source-layer 27 \
        --target-layer 15 --rules ridge two_way procrustes lda --documents web.jsonl.gz

Each rule is a map (ridge, two-way, Procrustes, …, from all layers, to several) and a vector (the
mean difference or a linear discriminant, read at the last token or as a mean over tokens, with or
without the directions of largest variance). All are measured at equal damage with both signs, as
fractions of one native vector: the mean difference at the last token, learnt on the target. A
difference from today's default (ridge, mean difference, last token) is paired over items, neutral
texts, contrast pairs and folds of the map.

A rule that is picked on one concept is confirmed on the others, so that the number that is shown
for it was not used to pick it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch

import lrt_lens as lrt
from lrt_lens.adapters.vectors import TransferComparison, TransferRule, compare_transfers
from lrt_lens.bundled import CONCEPTS
from lrt_lens.figures import transfer_figure
from lrt_lens.models import residual_post
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, first_items, run

Read = Literal["last", "mean"]
Rule = Literal[
    "ridge",
    "ridge_standardized",
    "two_way",
    "procrustes",
    "whitened_procrustes",
    "reduced_rank",
    "many_to_one",
    "several_targets",
    "lda",
    "without_top",
]
SOLVERS: dict[str, lrt.Solver] = {
    "ridge": lrt.Ridge(),
    "ridge_standardized": lrt.Ridge(standardize=True),
    "two_way": lrt.TwoWay(),
    "procrustes": lrt.Procrustes(),
    "whitened_procrustes": lrt.WhitenedProcrustes(),
    "reduced_rank": lrt.ReducedRank(),
}
OTHER_RULES = ("many_to_one", "several_targets", "lda", "without_top")
DEFAULT = "ridge, last"
GOAL = 0.9
"""Fraction of native that a default should reach."""
_NUMBERS = (
    "concept",
    "rule",
    "effect_at_equal_damage",
    "fraction_of_native",
    "fraction_low",
    "fraction_high",
    "fraction_negated",
    "fraction_mean",
    "fraction_mean_low",
    "fraction_mean_high",
    "difference",
    "difference_low",
    "difference_high",
    "difference_mean",
    "difference_mean_low",
    "difference_mean_high",
    "flag",
    "interval_flag",
)
"""Columns of the table of all rules."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Rules, layers, and texts to measure them on."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 6_000,
        "n_items": 6,
        "n_neutral": 4,
        "n_contrast_groups": 1,
        "rules": ("ridge", "whitened_procrustes", "lda"),
        "reads": ("last",),
        "other_layers": (3,),
    }
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 100_000
    """Tokens of the harvest."""
    source_layer: int = 2
    """Layer of the source at which vectors are learnt."""
    other_layers: tuple[int, ...] = (0, 1, 3, 4)
    """Further layers of the source; ridge from each is one more rule, read at the first of
    ``reads``, with which maps from all layers at once are compared."""
    target_layer: int = 3
    """Layer of the target at which they steer."""
    moments: Path | None = None
    """File of exact moments of this pair of layers (`CrossMoments.save`), for rules of these two
    layers alone; by default they are harvested."""
    concepts: tuple[Literal["sentiment", "mood"], ...] = CONCEPTS
    """Bundled contrast sets."""
    rules: tuple[Rule, ...] = (*SOLVERS, *OTHER_RULES)  # type: ignore[assignment]
    """Rules; the first is the default with which the others are compared."""
    reads: tuple[Read, ...] = ("last", "mean")
    """Tokens of the contrast texts that are read."""
    n_items: int = 100
    """Number of items on which effects are measured, at most."""
    n_neutral: int = 20
    """Number of neutral texts on which damage is measured."""
    n_contrast_groups: int = 5
    """Number of groups of contrast pairs that are left out one at a time, for intervals."""
    n_top: int = 2
    """Number of directions of largest variance that ``without_top`` removes."""
    damage: float = 0.1
    """Damage at which rules are compared, nats per token."""


def reproduce(options: Options) -> Reproduction:
    """Measure every rule on every concept."""
    maps = Maps(options, options.pair(), options.texts())
    results = {name: measured(maps, name) for name in options.concepts}
    table = pd.concat([one.summary for one in results.values()], ignore_index=True)
    confirmed = picked(table)
    verdict, because = judged(table, confirmed)
    return Reproduction(
        name="transfer_rules",
        title="Rules of transfer at equal damage",
        paper="lrt_lens, rules of transfer",
        claim="Another rule of transfer than ridge and a mean difference keeps more of the effect "
        "of a native vector, on concepts that were not used to pick it.",
        compared=compared_rows(table, confirmed),
        says="One pair of layers of one pair of models, two concepts, and one native vector for "
        "all rules: a rule that learns its vector in another way can exceed 1. Controls are "
        "measured elsewhere.",
        verdict=verdict,
        because=because,
        figures={
            "Fraction of native per rule, the vector itself": transfer_figure(table),
            "Fraction of native per rule, mean of both signs": transfer_figure(
                table, fraction="mean"
            ),
        },
        tables={
            "All rules": pd.DataFrame(table[list(_NUMBERS)]),
            "Picked on one concept": confirmed,
        },
        details={"maps": {name: maps.score(name) for name in SOLVERS if name in options.rules}},
    )


@dataclass(frozen=True)
class Maps:
    """Maps of all rules, fitted when they are first needed."""

    options: Options
    pair: lrt.ModelPair
    texts: list[str]
    _stitches: dict[tuple[str, tuple[str, str]], lrt.Stitch] = field(default_factory=dict)

    @cached_property
    def moments(self) -> lrt.CrossMoments:
        """Exact moments of all source layers with the target layer and its neighbours."""
        if self.options.moments is not None:
            return lrt.CrossMoments.load(self.options.moments)
        layers = self.target_layers if "several_targets" in self.options.rules else []
        sources = [self.options.source_layer, *self.options.other_layers]
        return self._harvested(sources, layers, joint=False)

    @cached_property
    def many_to_one(self) -> lrt.Stitch:
        """The stitch from all layers of the source to the target layer."""
        return self._harvested("all", [], joint=True).fit(lrt.ManyToOne()).best()

    @property
    def other_layers(self) -> list[int]:
        """The further layers of the source of which there are moments."""
        hook = residual_post(self.options.target_layer)
        return [
            layer
            for layer in self.options.other_layers
            if (residual_post(layer), hook) in self.moments.pairs
        ]

    @property
    def target_layers(self) -> list[int]:
        """The target layer and the layers before and after it, as far as they exist."""
        layer = self.options.target_layer
        return [one for one in (layer - 1, layer, layer + 1) if one < self.pair.target.n_layers]

    def _harvested(self, source: Any, target: list[int], *, joint: bool) -> lrt.CrossMoments:
        options = self.options
        return lrt.harvest(
            self.pair,
            self.texts,
            source_layers=source,
            target_layers=target or [options.target_layer],
            joint=joint,
            n_tokens=options.n_tokens,
            null="none",
            seed=options.seed,
        )

    def stitch(
        self, solver: str = "ridge", *, source: int | None = None, target: int | None = None
    ) -> lrt.Stitch:
        """The stitch of a solver between two layers, by default those of the options."""
        hooks = (
            residual_post(self.options.source_layer if source is None else source),
            residual_post(self.options.target_layer if target is None else target),
        )
        if (solver, hooks) not in self._stitches:
            grid = lrt.fit_grid(self.moments, SOLVERS[solver], pairs=[hooks], progress=False)
            self._stitches[solver, hooks] = grid[hooks]
        return self._stitches[solver, hooks]

    def score(self, solver: str) -> dict[str, Any]:
        """Cross-validated R² and hyperparameters of a solver."""
        scores = self.stitch(solver).scores
        return {key: scores[key] for key in ("r2_cv", "r2", "alpha", "rank") if key in scores}


def measured(maps: Maps, concept: Literal["sentiment", "mood"]) -> TransferComparison:
    """Compare all rules on one concept."""
    options, contrast = maps.options, lrt.demo_contrast(concept)
    rules = {
        f"{name}, {read}": made(maps, name, contrast, read)
        for read in options.reads
        for name in options.rules
    }
    for layer in maps.other_layers:
        learn = lrt.SteeringVector.mean_difference
        vector = learn(maps.pair.source, contrast, at=layer, read=options.reads[0])
        name = f"ridge from layer {layer}, {options.reads[0]}"
        rules[name] = TransferRule(maps.stitch(source=layer), vector)
    return compare_transfers(
        maps.pair,
        rules,
        first_items(lrt.demo_items(concept), options.n_items),
        neutral=lrt.demo_neutral()[: options.n_neutral],
        damage=options.damage,
        n_contrast_groups=options.n_contrast_groups,
        seed=options.seed,
    )


def made(maps: Maps, name: Rule, contrast: lrt.ContrastSet, read: Read) -> TransferRule:
    """The rule of that name: maps, and the vector learnt on the source."""
    source, layer = maps.pair.source, maps.options.source_layer
    learn: Callable[..., lrt.SteeringVector] = partial(
        lrt.SteeringVector.mean_difference, source, contrast, read=read
    )
    if name == "many_to_one":
        return TransferRule(maps.many_to_one, learn(at=maps.many_to_one.source_hook))
    if name == "several_targets":
        middle = maps.options.target_layer
        others = [maps.stitch(target=one) for one in maps.target_layers if one != middle]
        return TransferRule(maps.stitch(), learn(at=layer), others=tuple(others))
    if name == "lda":
        lda = lrt.SteeringVector.lda(source, contrast, at=layer, read=read)
        return TransferRule(maps.stitch(), lda)
    if name == "without_top":
        top = maps.stitch().source_statistics.principal_directions(maps.options.n_top)
        return TransferRule(
            maps.stitch(), learn(at=layer), prepare=partial(without, directions=top)
        )
    return TransferRule(maps.stitch(name), learn(at=layer))


def without(vector: lrt.SteeringVector, directions: torch.Tensor) -> lrt.SteeringVector:
    """The vector without its component in the span of the directions."""
    return vector.without(directions)


def without_native(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of rules."""
    return pd.DataFrame(table[table["rule"] != "native"])


def picked(table: pd.DataFrame) -> pd.DataFrame:
    """For each concept: the best rule on it, and that rule's numbers on every other concept."""
    rows = []
    rules = without_native(table)
    for concept, part in rules.groupby("concept", sort=False):
        best = part.loc[part["fraction_mean"].idxmax(), "rule"]
        others = pd.DataFrame(rules[(rules["rule"] == best) & (rules["concept"] != concept)])
        columns = ["fraction_of_native", "fraction_mean", "difference_mean"]
        columns += ["difference_mean_low", "difference_mean_high"]
        rows += [
            {"picked_on": concept, "rule": best, "confirmed_on": row["concept"]}
            | {column: row[column] for column in columns}
            for row in others.to_dict("records")
        ]
    return pd.DataFrame(rows)


def judged(table: pd.DataFrame, confirmed: pd.DataFrame) -> tuple[Verdict, str]:
    """The verdict and the sentence with its numbers; NaN never counts as a pass."""
    rules = without_native(table)
    better = [
        str(name)
        for name, part in rules.groupby("rule", sort=False)
        # NaN is neither above nor below 0, so it never counts as better.
        if np.all(part["difference_mean_low"] > 0) and not np.any(part["difference_high"] < 0)
    ]
    confirmed_rules = [] if confirmed.empty else confirmed.query("difference_mean_low > 0")["rule"]
    verdict: Verdict = (
        "holds"
        if better
        else "holds with a caveat"
        if len(confirmed_rules)
        else "does not survive its null"
    )
    default = rules[rules["rule"] == rules["rule"].iloc[0]].set_index("concept")
    numbers = ", ".join(
        f"{concept} {shown(row['fraction_of_native'])} ({shown(row['fraction_mean'])} over both "
        "signs)"
        for concept, row in default.iterrows()
    )
    confirms = "; ".join(
        f"the best rule on {row['picked_on']} ({row['rule']}) keeps {shown(row['fraction_mean'])} "
        f"on {row['confirmed_on']}, {shown(row['difference_mean'], '+')} "
        f"({shown(row['difference_mean_low'], '+')} to {shown(row['difference_mean_high'], '+')}) "
        "from the default"
        for row in confirmed.to_dict("records")
    )
    return verdict, (
        f"the default keeps {numbers} of native; {confirms or 'one concept confirms nothing'}; "
        f"better than the default on every concept, beyond the intervals: "
        f"{', '.join(better) or 'none'}."
    )


def shown(value: float, sign: str = "") -> str:
    """A number with two decimals; "unknown" for NaN."""
    return "unknown" if math.isnan(value) else f"{value:{sign}.2f}"


def compared_rows(table: pd.DataFrame, confirmed: pd.DataFrame) -> list[Compared]:
    """The default and the confirmed rules, as fractions of native."""
    rules = without_native(table)
    default = pd.DataFrame(rules[rules["rule"] == rules["rule"].iloc[0]])
    rows = [
        Compared(
            f"fraction of native, {row['concept']}, {row['rule']} (the default)",
            row["fraction_of_native"],
            None,
            row["fraction_low"],
            row["fraction_high"],
            control=GOAL,
            control_name="goal",
        )
        for row in default.to_dict("records")
    ]
    return rows + [
        Compared(
            f"difference from the default, both signs, {row['confirmed_on']}: {row['rule']}, "
            f"picked on {row['picked_on']}",
            row["difference_mean"],
            None,
            row["difference_mean_low"],
            row["difference_mean_high"],
        )
        for row in confirmed.to_dict("records")
    ]


if __name__ == "__main__":
    run(reproduce)
