"""The ladder of map families on one pair of layers: held-out scores, the null, and what the stitched model still predicts.

    python examples/maps_compared.py --out maps-report          # bundled pair, about two minutes on two cores

From the mean of the target (no map at all) over rotations and low ranks to ridge, least squares and the two-way objective of Transferring
Features with Model Stitching (arXiv 2506.06609, eq. 3), all from the moments of one harvest. For each: R² both ways on the test fold, the R² of going up
and down again, the same fit on shuffled pairs, and the next-token loss when the target finishes what the source began (A→B) and after a round trip (A→B→A). The
last two lines of the JSON answer what figure 7 of the paper leaves open: what the inversion term buys over a ridge pair, and what it costs.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

import lrt_lens as lrt
from lrt_lens.stitching.affine import MapPair
from lrt_lens.stitching.solvers.solver import Solver

logger = logging.getLogger("maps_compared")
ROUTES = ("A→B", "B→A", "A→B→A", "B→A→B")


def main(
    source: str | None = None, target: str | None = None, documents: str | None = None, out: Path = Path("maps-report"),
    source_layer: int = 2, n_tokens: int = 200_000, loss_tokens: int = 20_000, seed: int = 0, device: str | None = None, quick: bool = False,
) -> None:  # fmt: skip
    """Fit every family, score it, finish with it.

    Args:
        source: small model, a hub id or folder; the bundled one without it.
        target: large model.
        documents: text file or data set; the bundled text without it.
        out: folder for maps.html, stitched_loss.html and maps.json.
        source_layer: layer of the small model; the target layer is chosen by cross-validation.
        n_tokens: tokens of the harvest.
        loss_tokens: tokens that the stitched models predict, of documents that no map was fitted on.
        seed: of folds and shuffled pairs.
        device: where the models run.
        quick: few tokens: shows that it runs.
    """
    if quick:
        n_tokens, loss_tokens = 30_000, 2_000
    pair = lrt.demo_pair() if source is None or target is None else lrt.ModelPair.load(source, target, device=device)
    texts: Any = lrt.demo_documents() if documents is None else documents
    grid = lrt.fit_stitches(pair, texts, source_layers=[source_layer], n_tokens=n_tokens, null="full", seed=seed)
    stitch = grid.best()
    where = (stitch.source_hook, stitch.target_hook)
    comparison = grid.compare(solvers(pair), pairs=[where], progress=True)
    maps = {
        solver.name: MapPair(*grid.moments.fit(solver, pairs=[where]).maps(where))
        for solver in solvers(pair)
        if solver.name not in ("ridge", "mean")
    }
    token = lrt.token_identity_map(grid.moments, stitch.target_hook)
    loss = lrt.evaluate_stitch_loss(pair, stitch, texts, routes=ROUTES, n_tokens=loss_tokens, others=maps, token_maps=token, seed=seed)
    table = ladder(comparison.table, loss)
    out.mkdir(parents=True, exist_ok=True)
    comparison.figure("r2").write_html(out / "maps.html", include_plotlyjs=True)
    loss.figure().write_html(out / "stitched_loss.html", include_plotlyjs=True)
    results = {
        "stitch": repr(stitch), "ladder": table.to_dict("records"), "loss": loss.table.to_dict("records"),
        "two_way_minus_ridge": {route: str(loss.difference("two_way", "stitched", route=route)) for route in ROUTES},
    }  # fmt: skip
    (out / "maps.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    logger.info("%s\n%s\nOpen %s", stitch, table.round(3).to_string(index=False), out / "maps.html")
    for route, difference in results["two_way_minus_ridge"].items():
        logger.info("two_way minus ridge, %s, nats a token: %s", route, difference)


def solvers(pair: lrt.ModelPair) -> list[Solver]:
    """The families, from nothing to everything."""
    return [
        lrt.Mean(), lrt.Translation(), lrt.AxisScaling(), lrt.shared_embedding_maps(pair), lrt.Procrustes(scale=False), lrt.Procrustes(),
        lrt.ReducedRank(), lrt.Ridge(), lrt.LeastSquares(), lrt.TwoWay(),
    ]  # fmt: skip


def ladder(scores: pd.DataFrame, loss: lrt.StitchLoss) -> pd.DataFrame:
    """A row per family: test scores of both directions, the null, and the loss and share of recovered loss of stitched models."""
    by_arm = {(row["route"], "ridge" if row["arm"] == "stitched" else row["arm"]): row for row in loss.table.to_dict("records")}
    by_way = {(row["solver"], row["direction"]): row for row in scores.to_dict("records")}
    rows = []
    for solver in dict.fromkeys(scores["solver"]):
        up, down = by_way[solver, "up"], by_way[solver, "down"]
        row = {
            "solver": solver, "r2_up": up["r2"], "r2_uniform_up": up["r2_uniform"], "r2_down": down["r2"], "round_trip_r2": up["round_trip_r2"],
            "r2_null": up["r2_null"], "rank": up["rank"],
        }  # fmt: skip
        for route in ROUTES:
            found = by_arm[route, solver]
            row |= {f"ce {route}": found["ce"], f"recovered {route}": found["recovered"]}
        rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
