"""Map families compared on one pair of layers: held-out scores, nulls and stitched losses.

    python examples/maps_compared.py                            # bundled pair

The families range from the mean of the target (no map at all) over rotations and low ranks to
ridge, least squares and the two-way objective of Transferring Features with Model Stitching (arXiv
2506.06609, eq. 3). All are fitted from the moments of one harvest. For each, the script gives R² in
both directions on the test fold, the R² of a round trip, R² for shuffled pairs, and the next-token
loss if the target continues from the source's activations (A→B) and after a round trip (A→B→A).

The papers fit a full affine map and try no other family. The claim tested here is our own: a full
affine map is needed. It holds if the best smaller family explains less of the held-out activations
than the best full map does, and has a higher loss on the same tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

import lrt_lens as lrt
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run
from lrt_lens.statistics._intervals import Interval
from lrt_lens.stitching._affine import MapPair
from lrt_lens.stitching.solvers._solver import Solver

ROUTES = ("A→B", "B→A", "A→B→A", "B→A→B")
FULL = ("ridge", "least_squares", "two_way")
"""Full affine maps; `reduced_rank` is one of them if cross-validation selects its full rank."""
MARGIN = 0.02
"""Difference of R² up to which two families explain the same."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """The pair of layers, and the tokens of harvest and losses."""

    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 8_000, "loss_tokens": 600, "target_layer": 3}
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 200_000
    """Tokens of the harvest."""
    source_layer: int = 2
    """Layer of the small model."""
    target_layer: int | None = None
    """Layer of the large model; by default chosen by cross-validation."""
    loss_tokens: int = 20_000
    """Number of tokens that stitched models predict, from documents on which no map was fitted."""


def reproduce(options: Options) -> Reproduction:
    """Fit and score every family, and measure the loss of its stitched models."""
    pair, texts = options.pair(), options.texts()
    grid = options.grid(pair, texts, options.source_layer, options.target_layer)
    stitch = grid.best()
    comparison = grid.compare(
        solvers(pair), pairs=[(stitch.source_hook, stitch.target_hook)], progress=True
    )
    loss = stitched_losses(pair, grid, stitch, texts, options)
    table = ladder(comparison.table, loss)
    by_family = table.set_index("solver")
    best = best_families(table, min(pair.source.d_model, pair.target.d_model))
    worse = loss.difference(
        best.smaller_by_loss,
        "stitched" if best.full_by_loss == "ridge" else best.full_by_loss,
        route="A→B",
    )
    r2, ce, null = (by_family[name] for name in ("r2_up", "ce A→B", "r2_null"))
    gap = float(r2[best.full] - r2[best.smaller])
    return Reproduction(
        name="maps_compared",
        title="Map families: from no map to the two-way objective",
        paper="lrt_lens, map families",
        claim="The map has to be a full affine map, as in the papers: no smaller family "
        "(translation, axis scaling, shared tokens, rotation, low rank) does as well.",
        compared=compared_rows(by_family, best, worse, loss),
        says="This shows which family suffices for these layers of these models, on held-out "
        "documents. R² and the loss need not agree.",
        verdict=judged(bool(r2["ridge"] > null["ridge"]), gap > MARGIN, worse.low > 0),
        because=f"ridge explains {r2['ridge']:.3f}, the two-way maps {r2['two_way']:.3f}, the best "
        f"smaller family ({words(best.smaller)}) {r2[best.smaller]:.3f}; the loss of A→B is "
        f"{ce[best.smaller_by_loss]:.3f} nats per token with the best smaller family by loss "
        f"({words(best.smaller_by_loss)}), {ce['ridge']:.3f} with ridge, {ce['two_way']:.3f} with "
        f"the two-way maps; on the same tokens, the best smaller family minus the best full map is "
        f"{worse.value:+.3f} ({worse.low:+.3f} to {worse.high:+.3f}).",
        figures={
            "R² of every family, in both directions, with shuffled pairs": comparison.figure("r2"),
            "Next-token loss with each map": loss.figure(),
        },
        tables={"Map families": table, "Losses": loss.table},
        details={
            "stitch": repr(stitch),
            "two_way_minus_ridge": {
                route: str(loss.difference("two_way", "stitched", route=route)) for route in ROUTES
            },
        },
    )


@dataclass(frozen=True)
class BestFamilies:
    """Names of the best families."""

    full: str
    """The full affine map with the highest R²."""
    full_by_loss: str
    """The full affine map with the lowest loss of A→B."""
    smaller: str
    """The smaller family with the highest R²."""
    smaller_by_loss: str
    """The smaller family with the lowest loss of A→B."""


def best_families(table: pd.DataFrame, full_rank: int) -> BestFamilies:
    """The best full affine map and the best smaller family, by R² and by loss."""
    smaller = smaller_families(table, full_rank)
    full = table.set_index("solver").loc[list(FULL)]
    return BestFamilies(
        *(
            str(name)
            for rows in (full, smaller)
            for name in (rows["r2_up"].idxmax(), rows["ce A→B"].idxmin())
        )
    )


def stitched_losses(
    pair: lrt.ModelPair, grid: lrt.StitchGrid, stitch: lrt.Stitch, texts: Any, options: Options
) -> lrt.StitchLoss:
    """Losses of all routes with the maps of every family, on the same tokens."""
    where = (stitch.source_hook, stitch.target_hook)
    maps = {
        solver.name: MapPair(*grid.moments.fit(solver, pairs=[where]).maps(where))
        for solver in solvers(pair)
        if solver.name not in ("ridge", "mean")
    }
    return lrt.evaluate_stitch_loss(
        pair,
        stitch,
        texts,
        routes=ROUTES,
        n_tokens=options.loss_tokens,
        others=maps,
        token_maps=lrt.token_identity_map(grid.moments, stitch.target_hook),
        seed=options.seed,
    )


def compared_rows(
    by_family: pd.DataFrame, best: BestFamilies, worse: Interval, loss: lrt.StitchLoss
) -> list[Compared]:
    """R² and loss of ridge with their controls, and full maps minus smaller families."""
    r2, ce = by_family["r2_up"], by_family["ce A→B"]
    arms = loss.table.set_index(["route", "arm"])["ce"]
    return [
        Compared(
            "R² up, ridge",
            float(r2["ridge"]),
            control=float(by_family.loc["ridge", "r2_null"]),
            control_name="shuffled pairs",
        ),
        Compared(
            f"R² up, best full map ({words(best.full)}) minus best smaller family "
            f"({words(best.smaller)})",
            float(r2[best.full] - r2[best.smaller]),
            control=MARGIN,
            control_name="margin",
        ),
        Compared(
            f"loss of A→B, best smaller family ({words(best.smaller_by_loss)}) minus best full map "
            f"({words(best.full_by_loss)}), nats per token",
            worse.value,
            low=worse.low,
            high=worse.high,
        ),
        Compared(
            "loss of A→B with ridge, nats per token",
            float(ce["ridge"]),
            control=float(arms["A→B", "token"]) if ("A→B", "token") in arms.index else None,
            control_name="token identity",
        ),
        Compared("loss of A→B with the two-way maps, nats per token", float(ce["two_way"])),
    ]


def judged(beats_null: bool, explains_more: bool, predicts_more: bool) -> Verdict:
    """Verdict: a full affine map is needed by R² and by loss, by one of them, or by neither."""
    if not beats_null or not (explains_more or predicts_more):
        return "does not survive its null"
    return "holds" if explains_more and predicts_more else "holds with a caveat"


def words(family: str) -> str:
    """The name of a family with spaces."""
    return family.replace("_", " ")


def smaller_families(table: pd.DataFrame, full_rank: int) -> pd.DataFrame:
    """Rows of the families with fewer parameters than a full affine map, without the mean."""
    rows = table[~table["solver"].isin(("mean", *FULL))]
    return rows[(rows["solver"] != "reduced_rank") | (rows["rank"] < full_rank)].set_index("solver")


def solvers(pair: lrt.ModelPair) -> list[Solver]:
    """Solvers of all families, from no map to the two-way objective."""
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
    """Test scores, the score of shuffled pairs, and losses of stitched models, per family."""
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
            row |= {f"{name} {route}": by_arm[route, solver][name] for name in ("ce", "recovered")}
        rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run(reproduce)
