"""The ladder of map families on one pair of layers: held-out scores, the null, and what the
stitched model still predicts.

    python examples/maps_compared.py                            # bundled pair

From the mean of the target (no map at all) over rotations and low ranks to ridge, least squares and
the two-way objective of Transferring Features with Model Stitching (arXiv 2506.06609, eq. 3), all
from the moments of one harvest. For each: R² both ways on the test fold, the R² of going up and
down again, the same fit on shuffled pairs, and the next-token loss when the target finishes what
the source began (A→B) and after a round trip (A→B→A).

The papers fit a full affine map and try no other family; that it has to be one is our claim to
test: the best of the smaller families has to leave more of the held-out states, and a higher loss
on the same tokens, than the best full one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

import lrt_lens as lrt
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run
from lrt_lens.stitching._affine import MapPair
from lrt_lens.stitching.solvers._solver import Solver

ROUTES = ("A→B", "B→A", "A→B→A", "B→A→B")
FULL = ("ridge", "least_squares", "two_way")
"""Affine maps of any shape; `reduced_rank` counts among them where cross-validation leaves it its
full rank.
"""
MARGIN = 0.02
"""Of R²: families that are closer than that explain the same."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """One pair of layers, every family."""

    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 8_000, "loss_tokens": 600, "target_layer": 3}
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 200_000
    """Tokens of the harvest."""
    source_layer: int = 2
    """Layer of the small model."""
    target_layer: int | None = None
    """Layer of the large one; chosen by cross-validation without it."""
    loss_tokens: int = 20_000
    """Tokens that the stitched models predict, of documents that no map was fitted on."""


def reproduce(options: Options) -> Reproduction:
    """Fit every family, score it, finish with it."""
    pair, texts = options.pair(), options.texts()
    grid = options.grid(pair, texts, options.source_layer, options.target_layer)
    stitch = grid.best()
    where = (stitch.source_hook, stitch.target_hook)
    comparison = grid.compare(solvers(pair), pairs=[where], progress=True)
    maps = {
        solver.name: MapPair(*grid.moments.fit(solver, pairs=[where]).maps(where))
        for solver in solvers(pair)
        if solver.name not in ("ridge", "mean")
    }
    token = lrt.token_identity_map(grid.moments, stitch.target_hook)
    loss = lrt.evaluate_stitch_loss(
        pair,
        stitch,
        texts,
        routes=ROUTES,
        n_tokens=options.loss_tokens,
        others=maps,
        token_maps=token,
        seed=options.seed,
    )
    table = ladder(comparison.table, loss)
    by_family = table.set_index("solver")
    at = lambda family, name: float(by_family.loc[family, name])  # noqa: E731
    arms = loss.table.set_index(["route", "arm"])["ce"]
    token_loss = float(arms["A→B", "token"]) if ("A→B", "token") in arms.index else None
    smaller = smaller_families(table, min(pair.source.d_model, pair.target.d_model))
    closest, cheapest = str(smaller["r2_up"].idxmax()), str(smaller["ce A→B"].idxmin())
    best, best_by_loss = (
        str(by_family.loc[list(FULL), "r2_up"].idxmax()),
        str(by_family.loc[list(FULL), "ce A→B"].idxmin()),
    )
    worse = loss.difference(
        cheapest, "stitched" if best_by_loss == "ridge" else best_by_loss, route="A→B"
    )
    gap = at(best, "r2_up") - at(closest, "r2_up")
    verdict = judged(at("ridge", "r2_up") > at("ridge", "r2_null"), gap > MARGIN, worse.low > 0)
    compared = [
        Compared(
            "R² up, ridge",
            at("ridge", "r2_up"),
            control=at("ridge", "r2_null"),
            control_name="shuffled pairs",
        ),
        Compared(
            f"R² up, best full map ({words(best)}) minus best smaller family ({words(closest)})",
            gap,
            control=MARGIN,
            control_name="margin",
        ),
        Compared(
            f"loss of A→B, best smaller family ({words(cheapest)}) minus best full map ({words(best_by_loss)}), nats",
            worse.value,
            low=worse.low,
            high=worse.high,
        ),
        Compared(
            "loss of A→B behind ridge, nats a token",
            at("ridge", "ce A→B"),
            control=token_loss,
            control_name="token identity",
        ),
        Compared("loss of A→B behind the two-way maps", at("two_way", "ce A→B")),
    ]
    return Reproduction(
        name="maps_compared",
        title="The ladder of maps: from nothing to the two-way objective",
        paper="lrt_lens, map families",
        claim="The map has to be a full affine one, as the papers fit it: no smaller family (translation, axis scaling, shared tokens, "
        "rotation, low rank) carries as much.",
        compared=compared,
        says="Which family suffices for these layers of these models, on held-out documents; R² and the loss need not agree on it.",
        verdict=verdict,
        because=f"ridge explains {at('ridge', 'r2_up'):.3f}, the two-way maps {at('two_way', 'r2_up'):.3f}, the best smaller family "
        f"({words(closest)}) {at(closest, 'r2_up'):.3f}; behind the best smaller one by loss ({words(cheapest)}) A→B costs "
        f"{at(cheapest, 'ce A→B'):.3f} nats, behind ridge {at('ridge', 'ce A→B'):.3f}, behind the two-way maps {at('two_way', 'ce A→B'):.3f}: "
        f"{worse.value:+.3f} ({worse.low:+.3f} to {worse.high:+.3f}) from the best full map's on the same tokens.",
        figures={
            "R² of every family, both ways, beside its null": comparison.figure("r2"),
            "Loss behind each map": loss.figure(),
        },
        tables={"The ladder": table, "Losses": loss.table},
        details={
            "stitch": repr(stitch),
            "two_way_minus_ridge": {
                route: str(loss.difference("two_way", "stitched", route=route)) for route in ROUTES
            },
        },
    )


def judged(beats_null: bool, explains_more: bool, predicts_more: bool) -> Verdict:
    """Whether a full affine map is needed: by held-out states and by the loss, by one of them, or
    by neither.
    """
    if not beats_null or not (explains_more or predicts_more):
        return "does not survive its null"
    return "holds" if explains_more and predicts_more else "holds with a caveat"


def words(family: str) -> str:
    """A family's name as it is said."""
    return family.replace("_", " ")


def smaller_families(table: pd.DataFrame, full_rank: int) -> pd.DataFrame:
    """The ladder's rows, by family, of those with fewer freedoms than a full affine map, no map at
    all left out.
    """
    rows = table[~table["solver"].isin(("mean", *FULL))]
    return rows[(rows["solver"] != "reduced_rank") | (rows["rank"] < full_rank)].set_index("solver")


def solvers(pair: lrt.ModelPair) -> list[Solver]:
    """The families, from nothing to everything."""
    return [
        lrt.Mean(),
        lrt.Translation(),
        lrt.AxisScaling(),
        lrt.shared_embedding_maps(pair),
        lrt.Procrustes(scale=False),
        lrt.Procrustes(),
        lrt.ReducedRank(),
        lrt.Ridge(),
        lrt.LeastSquares(),
        lrt.TwoWay(),
    ]


def ladder(scores: pd.DataFrame, loss: lrt.StitchLoss) -> pd.DataFrame:
    """A row per family: test scores of both directions, the null, and the loss and share of
    recovered loss of stitched models.
    """
    by_arm = {
        (row["route"], "ridge" if row["arm"] == "stitched" else row["arm"]): row
        for row in loss.table.to_dict("records")
    }
    by_way = {(row["solver"], row["direction"]): row for row in scores.to_dict("records")}
    rows = []
    for solver in dict.fromkeys(scores["solver"]):
        up, down = by_way[solver, "up"], by_way[solver, "down"]
        row = {
            "solver": solver,
            "r2_up": up["r2"],
            "r2_uniform_up": up["r2_uniform"],
            "r2_down": down["r2"],
            "round_trip_r2": up["round_trip_r2"],
            "r2_null": up["r2_null"],
            "rank": up["rank"],
        }
        for route in ROUTES:
            found = by_arm[route, solver]
            row |= {f"ce {route}": found["ce"], f"recovered {route}": found["recovered"]}
        rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run(reproduce)
