r"""Does the R² of a map on another kind of text predict what a probe and a vector do through it?

    # Bundled pair, six domains: about half an hour on one core.
    python examples/domain_matrix.py
    python examples/domain_matrix.py --source EleutherAI/pythia-70m-deduped \
        --target EleutherAI/pythia-160m-deduped --domains code.jsonl law.jsonl chat.jsonl

One map is fitted on each domain and scored on every other one. For each domain, probes and vectors
for pairs of its frequent words are learnt on the small model and transferred through every map. A
probe says which of both words a passage contains, a vector makes one of them likelier to come next,
and both use held-out text of the domain alone. Shares are of what a probe or vector that was learnt
on the large model reaches: AUROC above ½, and effect at equal damage.

The rank correlation of R² with these shares is computed over the maps of other domains, ranked
within each scored domain: which map to take is asked for one domain at a time. Its p-value
permutes the names of the domains of the outcome, rows and columns together, because cells that
share a map or a domain are not independent.

The verdict, by a rule set before the first full run: *holds* if the correlation is positive with
p < .05 for probes and for vectors, *with a caveat* if for one of them, else it does not survive.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.express as px
from scipy.stats import rankdata
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

import lrt_lens as lrt
from lrt_lens.bundled import demo_domains
from lrt_lens.data import N_FOLDS, document_key, part_of
from lrt_lens.domains import DomainMatrix, DomainTask
from lrt_lens.figures import TEMPLATE_NAME
from lrt_lens.reproduction import (
    Compared,
    FigureOptions,
    MissingInputError,
    Reproduction,
    Verdict,
    run,
)

MEASURES = {"auroc": "probes", "effect": "vectors"}
"""Measured columns of `DomainMatrix.table`, and what they are measured of."""
CHANCE = {"auroc": 0.5, "effect": 0.0}
LEAST_P = 0.05
PIECE_WORDS = 40
"""Number of words of a passage, and most words of a prompt."""
RELABELLINGS = 5_000
"""Most permutations of the domains; all of them are used if there are fewer."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """The hook pair, the domains, and the sizes of their tasks."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 2_500,
        "n_tasks": 1,
        "n_texts": 8,
        "n_random": 2,
        "n_domains": 3,
    }
    UNUSED: ClassVar = frozenset({"sae", "documents"})
    n_tokens: int = 60_000
    """Number of tokens of each domain."""
    source_layer: int = 2
    """Layer of the small model."""
    target_layer: int = 3
    """Layer of the large model."""
    domains: tuple[str, ...] = ()
    """Files or data sets, one per domain, at least three; by default the six kinds of bundled
    text."""
    n_domains: int = 26
    """Most domains that are used, the first ones."""
    n_tasks: int = 6
    """Number of pairs of words per domain."""
    n_texts: int = 80
    """Most passages, and most prompts, per word."""
    n_random: int = 2
    """Number of random vectors per pair of words."""


def reproduce(options: Options) -> Reproduction:
    """Fit a map on each domain, transfer every task through every map, and correlate."""
    pair, domains = options.pair(), load_domains(options)
    hooks = (options.source_layer, options.target_layer)
    settings: dict[str, Any] = {"n_random": options.n_random, "seed": options.seed}
    matrix = lrt.domain_matrix(pair, domains, hooks, n_tokens=options.n_tokens, **settings)
    tasks = {name: word_tasks(texts, options) for name, texts in domains.items()}
    measured = [
        lrt.domain_matrix(
            pair,
            matrix.moments,
            hooks,
            tasks={name: one[number] for name, one in tasks.items()},
            progress=False,
            **settings,
        )
        for number in range(min(map(len, tasks.values())))
    ]
    cells, random = cells_of(matrix, measured), random_shares(measured)
    correlations = pd.DataFrame(
        [correlation(cells, measured, measure, options.seed) for measure in MEASURES]
    )
    passed = sum(
        row["within"] > 0 and row["p"] < LEAST_P for row in correlations.to_dict("records")
    )
    verdicts: list[Verdict] = ["does not survive its null", "holds with a caveat", "holds"]
    kept = losses(cells)
    return Reproduction(
        name="domain_matrix",
        title="Maps on other kinds of text: R² beside what probes and vectors do",
        paper="lrt_lens, domains",
        claim="Among maps that were fitted on other kinds of text, the one with the higher R² on "
        "the text at hand transfers better probes and better vectors to it.",
        compared=compared_rows(correlations, kept),
        says="This ranks a few maps between two layers of one pair of models, with words as tasks; "
        "the bundled kinds of text are near to each other. Shares are ratios of sums over tasks; "
        "the intervals of correlations resample tasks and not domains.",
        verdict=verdicts[passed],
        because=sentence(correlations, kept, random),
        figures={
            # The same heat maps as those of one task, of the shares over all tasks.
            "R² on held-out text, and shares of native above chance, over tasks": replace(
                matrix, table=cells
            ).figure(),
            "Shares over R², one point per map of another domain": scatter(cells),
        },
        tables={
            "Rank correlation of R² with shares": correlations,
            "On the own and on other domains": kept,
            "Cells": cells,
            "Controls, mean over tasks": controls_of(measured),
        },
        details={"hooks": [str(hook) for hook in hooks]},
    )


def load_domains(options: Options) -> dict[str, list[str]]:
    """Return the documents of each domain by name."""
    if not options.domains:
        bundled = list(demo_domains().items())
        return dict(bundled[: options.n_domains])
    names = list(dict.fromkeys(options.domains))[: options.n_domains]
    if len(names) < 3:
        raise MissingInputError(
            f"--domains names {len(names)}; give at least three, or none for the bundled ones"
        )
    return {name: options.load_texts(name, "--domains") for name in names}


def word_tasks(texts: Sequence[str], options: Options) -> list[DomainTask]:
    """Return tasks for pairs of frequent words, from texts on which no map is fitted."""
    held_out = [text for text in texts if part_of(document_key(text, options.seed)) >= N_FOLDS]
    pieces = [
        " ".join(words[start : start + PIECE_WORDS])
        for words in map(str.split, held_out)
        for start in range(0, len(words) - PIECE_WORDS + 1, PIECE_WORDS)
    ]
    # A word counts once per passage.
    words_of = [set(re.findall(r"\b[a-z]{3,}\b", piece)) for piece in pieces]
    counts = Counter(word for words in words_of for word in words - ENGLISH_STOP_WORDS)
    words = [word for word, _ in counts.most_common(2 * options.n_tasks)]
    neutral = [" ".join(text.split()[:60]) for text in held_out[:24]]
    rng = np.random.default_rng(options.seed)

    def drawn(both: Sequence[list[str]]) -> list[list[str]]:
        size = min(options.n_texts, *map(len, both))
        return [[one[i] for i in rng.permutation(len(one))[:size]] for one in both]

    tasks = []
    for a, b in zip(words[::2], words[1::2], strict=True):
        having = [
            [
                piece
                for piece, own in zip(pieces, words_of, strict=True)
                if x in own and y not in own
            ]
            for x, y in ((a, b), (b, a))
        ]
        passages = drawn(having)
        prompts = drawn([prompts_before(word, held_out) for word in (a, b)])
        half = len(prompts[0]) // 2
        asked = prompts[0][half:] + prompts[1][half:]
        tasks.append(
            DomainTask(
                labelled=(
                    passages[0] + passages[1],
                    [a] * len(passages[0]) + [b] * len(passages[1]),
                ),
                contrast=lrt.ContrastSet(
                    prompts[0][:half], prompts[1][:half], name=f"{a} or {b}", paired=False
                ),
                items=lrt.ChoiceItems(
                    asked,
                    [f" {a}"] * len(asked),
                    [f" {b}"] * len(asked),
                    clusters=list(range(len(asked))),
                ),
                neutral=neutral,
            )
        )
    return tasks


def prompts_before(word: str, texts: Sequence[str]) -> list[str]:
    """Return the up to `PIECE_WORDS` words before each occurrence of a word, at least ten."""
    before = [
        text[: match.start()].split(" ")
        for text in texts
        for match in re.finditer(rf" {re.escape(word)}\b", text)
    ]
    # Two occurrences of a word may follow the same words.
    return list(dict.fromkeys(" ".join(own[-PIECE_WORDS:]) for own in before if len(own) >= 10))


def sums_above_chance(
    measured: Sequence[DomainMatrix], measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return each number above chance, [task, map, domain], and native ones, [task, domain].

    A task whose number is unknown for a map, because its vector does not reach the damage, is 0
    for all maps of that domain, so that it counts for none of them.
    """
    names = list(measured[0].stitches)
    values = np.array([one.matrix(measure).to_numpy(dtype=float) for one in measured])
    native = np.array(
        [control(one, measure, "native").reindex(names).to_numpy(dtype=float) for one in measured]
    )
    known = np.isfinite(values).all(axis=1) & np.isfinite(native)
    chance = CHANCE[measure]
    return (
        np.where(known[:, None, :], values - chance, 0.0),
        np.where(known, native - chance, 0.0),
    )


def control(result: DomainMatrix, measure: str, arm: str) -> pd.Series:
    """Return the values of one control, by domain."""
    rows = result.controls
    rows = rows[(rows["measure"] == measure) & (rows["arm"] == arm)]
    return pd.Series(dict(zip(rows["scored_on"], rows["value"], strict=True)), dtype=float)


def cells_of(matrix: DomainMatrix, measured: Sequence[DomainMatrix]) -> pd.DataFrame:
    """Return R² and the shares over all tasks, one row per map and scored domain."""
    names = list(matrix.stitches)
    columns = ["fitted_on", "scored_on", "r2", "r2_low", "r2_high", "n_test"]
    cells = pd.DataFrame(matrix.table[columns]).set_index(["fitted_on", "scored_on"])
    for measure in MEASURES:
        values, native = sums_above_chance(measured, measure)
        shares = pd.DataFrame(quotient(values.sum(0), native.sum(0)), names, names)
        cells[f"{measure}_share"] = [float(shares.loc[a, b]) for a, b in cells.index]
    return cells.reset_index()


def quotient(values: np.ndarray, native: np.ndarray) -> np.ndarray:
    """Return shares [map, domain] of native numbers [domain]; NaN for a domain without any."""
    return values / np.where(native == 0, np.nan, native)


def within_domains(cells: np.ndarray) -> np.ndarray:
    """Return ranks of the maps of other domains within each scored domain, centred, [column, n−1].

    Args:
        cells: numbers [map, domain], whose diagonal is left out.
    """
    n = len(cells)
    others = cells.T[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    ranks = rankdata(others, axis=1)
    return ranks - ranks.mean(1, keepdims=True)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the rank correlation of two matrices within scored domains, without diagonals.

    It is 0 if the maps do not differ, and NaN if a number is unknown.
    """
    a, b = within_domains(first).ravel(), within_domains(second).ravel()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size else 0.0


def correlation(
    cells: pd.DataFrame, measured: Sequence[DomainMatrix], measure: str, seed: int
) -> dict[str, Any]:
    """Return the rank correlations of R² with the shares of a measure, with interval and p."""
    names = list(measured[0].stitches)
    r2 = cells.pivot(index="fitted_on", columns="scored_on", values="r2").loc[names, names]
    predicted, n = r2.to_numpy(dtype=float), len(names)
    values, native = sums_above_chance(measured, measure)
    shares = quotient(values.sum(0), native.sum(0))
    observed = rank_correlation(predicted, shares)
    rng = np.random.default_rng(seed)
    if n <= 7:
        orders = np.array(list(permutations(range(n))))
    else:
        drawn = [rng.permutation(n) for _ in range(RELABELLINGS - 1)]
        orders = np.array([np.arange(n), *drawn])
    # The first order is the one of the domains as they are, so that p is never 0.
    null = [rank_correlation(predicted, shares[np.ix_(order, order)]) for order in orders]
    p = float(np.mean(np.array(null) >= observed - 1e-12))
    draws = []
    for _ in range(1_000):
        # Each domain draws its own tasks again.
        tasks = rng.integers(len(values), size=(len(values), n))
        own = np.take_along_axis(values, tasks[:, None, :], 0).sum(0)
        own_native = np.take_along_axis(native, tasks, 0).sum(0)
        draws.append(rank_correlation(predicted, quotient(own, own_native)))
    finite = np.array(draws)[np.isfinite(draws)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (np.nan, np.nan)
    other = cells[cells["fitted_on"] != cells["scored_on"]]
    pooled = np.corrcoef(rankdata(other["r2"]), rankdata(other[f"{measure}_share"]))[0, 1]
    return {
        "of": MEASURES[measure],
        "within": observed,
        "low": float(low),
        "high": float(high),
        "p": p if np.isfinite(observed) else float("nan"),
        "all_cells": float(pooled),
        "n": len(other),
    }


def losses(cells: pd.DataFrame) -> pd.DataFrame:
    """Return R² and shares of maps on their own and on other domains, means over cells."""
    own = (cells["fitted_on"] == cells["scored_on"]).to_numpy()
    rows = []
    for column, of in {"r2": "R²", "auroc_share": "probes", "effect_share": "vectors"}.items():
        values = cells[column].to_numpy(dtype=float)
        same, other = float(values[own].mean()), float(values[~own].mean())
        worst = float(values[~own].min())
        rows.append({"of": of, "own": same, "other": other, "worst": worst, "kept": other / same})
    return pd.DataFrame(rows)


def controls_of(measured: Sequence[DomainMatrix]) -> pd.DataFrame:
    """Return each control of each domain, mean over tasks."""
    rows = pd.concat([one.controls for one in measured])
    return pd.DataFrame(
        rows.groupby(["scored_on", "measure", "arm"], as_index=False)["value"].mean()
    )


def random_shares(measured: Sequence[DomainMatrix]) -> dict[str, float]:
    """Return what a control without knowledge reaches, as a share of native, mean over domains."""
    arms, shares = {"auroc": "shuffled", "effect": "random"}, {}
    for measure, arm in arms.items():
        values = pd.concat([control(one, measure, arm) - CHANCE[measure] for one in measured])
        native = pd.concat([control(one, measure, "native") - CHANCE[measure] for one in measured])
        shares[measure] = float(values.sum() / native.sum())
    return shares


def compared_rows(correlations: pd.DataFrame, kept: pd.DataFrame) -> list[Compared]:
    """Return the correlations, and the shares on other domains beside those on the own one."""
    rows = [
        Compared(
            f"rank correlation of R² with {row['of']}, within scored domains",
            row["within"],
            "none",
            row["low"],
            row["high"],
            control=row["p"],
            control_name="p by permuted domains",
        )
        for row in correlations.to_dict("records")
    ]
    return rows + [
        Compared(
            f"{row['of']} through maps of other domains"
            + (", share of native" if row["of"] != "R²" else ""),
            row["other"],
            "none",
            control=row["own"],
            control_name="map of the own domain",
        )
        for row in kept.to_dict("records")
    ]


def sentence(correlations: pd.DataFrame, kept: pd.DataFrame, random: Mapping[str, float]) -> str:
    """Return the result as a sentence."""
    found = " and ".join(
        f"{row['within']:.2f} with {row['of']} ({row['low']:.2f} to {row['high']:.2f}, p = "
        f"{row['p']:.3f}; {row['all_cells']:.2f} over all cells)"
        for row in correlations.to_dict("records")
    )
    lost = "; ".join(
        f"{row['of']} {row['own']:.2f} on the own domain, {row['other']:.2f} on others (worst "
        f"{row['worst']:.2f})"
        for row in kept.to_dict("records")
    )
    return (
        f"the rank correlation of R² within scored domains is {found}; {lost}; shares of native: "
        f"probes through shuffled pairs {random['auroc']:.2f}, random vectors "
        f"{random['effect']:.2f}."
    )


def scatter(cells: pd.DataFrame) -> Any:
    """Return shares over R², one panel per measure, coloured by scored domain."""
    other = pd.DataFrame(cells[cells["fitted_on"] != cells["scored_on"]])
    names = {f"{measure}_share": of for measure, of in MEASURES.items()}
    long = pd.concat(
        [other.assign(of=of, share=other[column]) for column, of in names.items()],
        ignore_index=True,
    )
    figure = px.scatter(
        long,
        x="r2",
        y="share",
        color="scored_on",
        facet_col="of",
        hover_data=["fitted_on"],
        template=TEMPLATE_NAME,
        labels={"r2": "R² on the scored domain", "share": "share of native", "of": ""},
    )
    figure.for_each_annotation(lambda one: one.update(text=one.text.removeprefix("=")))
    return figure.update_layout(title={"text": "Shares of native over R², maps of other domains"})


if __name__ == "__main__":
    run(reproduce)
