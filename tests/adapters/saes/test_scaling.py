"""Power laws of SAE training: known laws, the frontier, costs, whole studies."""

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import lrt_lens as lrt
from lrt_lens.adapters.saes import SAEInitialisation, SAERows, SAEScaling
from lrt_lens.adapters.saes._initialisation import rows_of, threshold_table
from lrt_lens.adapters.saes._scaling import (
    PowerLaw,
    budgets_of,
    fit_arms,
    fit_power_law,
    frontier_of,
)
from lrt_lens.errors import MismatchError
from tests.figures.counts import counts_of

FLOPS = np.geomspace(1e9, 1e12, 24)


@pytest.mark.parametrize("floor", [False, True])
def test_a_law_without_a_floor_is_found_again(floor: bool) -> None:
    law = fit_power_law(FLOPS, 41.2 * FLOPS**-0.16, floor=floor)
    assert law.exponent == pytest.approx(0.16, rel=1e-2 if floor else 1e-9)
    assert law.amplitude == pytest.approx(41.2, rel=5e-2 if floor else 1e-7)
    assert law.floor == pytest.approx(0, abs=1e-4)
    assert law.r2 == pytest.approx(1, abs=1e-5)


def test_a_floor_is_found_where_there_is_one_and_bends_the_plain_line() -> None:
    error = 0.12 + 600 * FLOPS**-0.4
    law, line = fit_power_law(FLOPS, error, floor=True), fit_power_law(FLOPS, error)
    assert (law.floor, law.exponent, law.amplitude) == (
        pytest.approx(0.12, rel=1e-3),
        pytest.approx(0.4, rel=1e-2),
        pytest.approx(600, rel=5e-2),
    )
    assert line.exponent < 0.2
    assert line.r2 < 0.95 < law.r2


def test_lines_meet_where_their_values_are_equal() -> None:
    """Lines of table 4 of Stitching meet at 2.4e17 FLOPs by their printed digits.

    41.2 · C^−.16 and 18.5 · C^−.14; at 1.2e17 FLOPs the advantage is close to none.
    """
    scratch, stitched = (
        fit_power_law(FLOPS, 41.2 * FLOPS**-0.16),
        fit_power_law(FLOPS, 18.5 * FLOPS**-0.14),
    )
    at = stitched.crossing(scratch)
    assert 18.5 * at**-0.14 == pytest.approx(41.2 * at**-0.16)
    assert at == pytest.approx(2.4e17, rel=0.05)
    assert np.isnan(stitched.crossing(stitched))
    assert PowerLaw(1.0, 0.1, 0.0, 1.0).crossing(PowerLaw(2.0, 0.1001, 0.0, 1.0)) == np.inf
    assert PowerLaw(2.0, 0.1, 0.0, 1.0).crossing(PowerLaw(1.0, 0.1001, 0.0, 1.0)) == 0.0


@pytest.mark.parametrize(("flops", "error"), [(FLOPS[:2], np.ones(2)), (FLOPS, np.zeros(24))])
def test_too_few_points_and_errors_of_nothing_are_refused(
    flops: np.ndarray, error: np.ndarray
) -> None:
    with pytest.raises(ValueError, match="expected at least three, all positive"):
        fit_power_law(flops, error)


PAID = {"scratch": (0.0, 0.0), "transferred": (50.0, 400.0), "rotated": (0.0, 350.0)}
"""FLOPs of an arm before its first token, under the bills stitch and source_sae."""


def _history(seeds: tuple[int, ...] = (0, 1)) -> pd.DataFrame:
    """History of two widths and two arms.

    The wider SAE reaches a smaller error at a higher cost per token; the transferred SAE starts at
    a smaller error.
    """
    rows = []
    for width, arm, seed in product((8, 16), PAID, seeds):
        for tokens in (0, 10, 20, 40, 80):
            ahead = 15 if arm == "transferred" else 0
            fvu = (
                0.1
                + 0.8 / (1 + (tokens + ahead) / (10 if width == 8 else 5))
                + (0.05 if width == 8 else 0)
                + 0.01 * seed
            )
            training = float(width * tokens)
            rows.append(
                {
                    "width": width,
                    "arm": arm,
                    "seed": seed,
                    "tokens": tokens,
                    "fvu": fvu,
                    "training": training,
                    "stitch": training + PAID[arm][0],
                    "source_sae": training + PAID[arm][1],
                }
            )
    return pd.DataFrame(rows)


def test_the_frontier_is_the_least_error_so_far_of_any_width() -> None:
    history = _history()
    frontier = frontier_of(history, 6)
    assert set(frontier["bill"]) == {"training", "stitch", "source_sae"}
    for row in frontier.to_dict("records"):
        reached = {}
        for width in (8, 16):
            runs = history[
                (history["arm"] == row["arm"])
                & (history["seed"] == row["seed"])
                & (history["width"] == width)
            ].to_dict("records")
            for before, after in pairwise(runs):
                if before[row["bill"]] <= row["flops"]:
                    share = min(
                        1.0,
                        (row["flops"] - before[row["bill"]])
                        / (after[row["bill"]] - before[row["bill"]]),
                    )
                    reached[width] = before["fvu"] + share * (after["fvu"] - before["fvu"])
        assert row["fvu"] == pytest.approx(min(reached.values()))
        assert reached[row["width"]] == min(reached.values())


def test_budgets_lie_where_every_arm_has_a_run() -> None:
    budgets = budgets_of(_history(), "stitch", 5)
    assert budgets[0] == pytest.approx(50 + 8 * 80 / 10)
    assert budgets[-1] == pytest.approx(16 * 80)
    assert np.allclose(np.diff(np.log(budgets)), np.log(budgets[1] / budgets[0]))


def test_a_beginning_that_costs_more_than_any_run_is_refused() -> None:
    history = _history()
    history["stitch"] += 2000 * (history["arm"] == "transferred")
    with pytest.raises(
        MismatchError,
        match=r"initialisation costs 2\.1e\+03 FLOPs, and the longest run of some arm ends at "
        r"1\.3e\+03 \(bill 'stitch'\)",
    ):
        budgets_of(history, "stitch", 5)


def test_an_unknown_price_leaves_its_bill_out() -> None:
    frontier = frontier_of(_history().assign(source_sae=np.nan), 6)
    assert set(frontier["bill"]) == {"training", "stitch"}
    scaling = SAEScaling(_history(), frontier, fit_arms(frontier), pd.DataFrame())
    with pytest.raises(ValueError, match=r"the table lacks|no rows of bill 'source_sae'"):
        scaling.figure("source_sae")


def test_a_price_paid_once_bends_the_line_and_training_flops_do_not() -> None:
    """Exponents of one curve agree over training FLOPs and differ with the stitch's cost."""
    history = _history((0,))
    flops = history["training"].to_numpy() + 5.0
    history["fvu"] = 2 * flops**-0.15
    fits = fit_arms(frontier_of(history, 12)).set_index(["bill", "arm"])["exponent"]
    assert fits["training", "transferred"] == pytest.approx(fits["training", "scratch"])
    assert fits["stitch", "transferred"] > 1.05 * fits["stitch", "scratch"]


def test_a_run_that_diverges_keeps_what_it_had_and_an_arm_that_never_was_finite_stays_as_nan() -> (
    None
):
    history = _history((0,))
    history.loc[(history["arm"] == "transferred") & (history["tokens"] >= 20), "fvu"] = np.nan
    history.loc[history["arm"] == "rotated", "fvu"] = np.nan
    frontier = frontier_of(history, 6)
    summary = SAEScaling(history, frontier, fit_arms(frontier), pd.DataFrame()).summary.set_index(
        ["bill", "arm"]
    )
    assert np.isfinite(summary.loc[("stitch", "transferred"), "fvu_ratio_last"])
    assert np.isnan(summary.loc[("stitch", "rotated"), "fvu_ratio_last"])
    assert np.isnan(summary.loc[("stitch", "rotated"), "exponent"])


def test_savings_under_both_bills() -> None:
    def run(arm: str, values: list[float]) -> pd.DataFrame:
        tokens = [0.0, 10.0, 20.0, 40.0]
        return pd.DataFrame(
            {
                "arm": arm,
                "seed": 0,
                "tokens": tokens,
                "flops": [3 * t for t in tokens],
                "explained_variance": values,
            }
        )

    history = pd.concat(
        [
            run("scratch", [0, 0.4, 0.6, 0.8]),
            run("transferred", [0.5, 0.7, 0.8, 0.9]),
            run("shuffled", [0, 0.1, 0.1, 0.2]),
        ]
    )
    study = SAEInitialisation(
        history,
        threshold_table(
            history, [0.5, 0.95], {"scratch": 0.0, "transferred": 6.0, "shuffled": 6.0}
        ),
        pd.DataFrame(),
        pd.DataFrame(),
        6.0,
        20.0,
        40,
        n_held_out=512,
    )
    saved = study.savings.set_index(["arm", "share_of_final"])
    assert saved.loc[("transferred", 0.95), "saved"] == pytest.approx(1 - 54 / 108)
    assert saved.loc[("transferred", 0.95), "saved_charged"] == pytest.approx(1 - 74 / 108)
    assert np.isnan(saved.loc[("shuffled", 0.95), "saved"])
    assert {trace.name for trace in study.figure("savings").data} == {"transferred", "shuffled map"}
    assert counts_of(study.figure("savings")) == "n = 1 seed, 512 held-out tokens"


@pytest.fixture(scope="module")
def fitted(pair: Any, corpus: list[str]) -> Any:
    options: dict[str, Any] = {
        "source_layers": [0],
        "target_layers": [1],
        "n_tokens": 1000,
        "context_length": 32,
        "null": "full",
        "seed": 1,
    }
    return lrt.fit_stitches(pair, corpus, **options, progress=False).best()


@pytest.fixture(scope="module")
def train(pair: Any, corpus: list[str], fitted: Any) -> Callable[[int], Any]:
    rows = SAERows.from_documents(
        pair.source, corpus, at=fitted.source_hook, context_length=32
    ).in_memory()
    return lambda width: (
        lrt.train_sae(None, rows, d_sae=width, k=4, n_tokens=512, batch_rows=64, progress=False).sae
    )


@pytest.fixture(scope="module")
def study(pair: Any, corpus: list[str], fitted: Any, train: Callable[[int], Any]) -> SAEScaling:
    return lrt.study_sae_scaling(
        pair,
        fitted,
        [train(48), train(24)],
        corpus,
        n_tokens=2048,
        seeds=(0, 1),
        source_sae_tokens=512,
        batch_rows=64,
        progress=False,
    )


def test_a_study_has_a_law_for_every_beginning_under_every_bill(study: SAEScaling) -> None:
    arms = ["scratch", "transferred", "shuffled", "rotated"]
    assert list(zip(study.summary["bill"], study.summary["arm"], strict=True)) == list(
        product(["training", "stitch", "source_sae"], arms)
    )
    assert set(study.history["width"]) == {24, 48}
    assert set(study.savings["width"]) == {24, 48}
    assert (study.frontier.groupby(["bill", "arm", "seed"])["fvu"].diff().dropna() <= 1e-12).all()


def test_only_what_an_arm_begins_with_is_on_its_bill(study: SAEScaling) -> None:
    paid = (
        study.history[study.history["tokens"] == 0]
        .groupby(["arm", "width"])[["training", "stitch", "source_sae"]]
        .first()
    )
    assert (paid["training"] == 0).all()
    assert (paid.loc["scratch"] == 0).all(axis=None)
    assert (paid["stitch"]["rotated"] == 0).all()
    assert (paid["stitch"]["transferred"] == paid["stitch"]["shuffled"]).all()
    assert (paid["stitch"]["transferred"] > 0).all()
    source = paid["source_sae"] - paid["stitch"]
    assert (source["rotated"] == source["transferred"]).all()
    assert source["transferred", 48] == pytest.approx(2 * source["transferred", 24], rel=0.1)


def test_a_study_is_shown(study: SAEScaling) -> None:
    for bill in ("training", "stitch", "source_sae"):
        assert counts_of(study.figure(bill)) == "n = 2 seeds, 2 widths"
        names = {trace.name for trace in study.figure(bill).data}
        assert {
            "24 features",
            "48 features",
            "scratch",
            "transferred",
            "shuffled map",
            "random rotation",
        } <= names
    assert "exponent" in study._repr_html_()


def test_one_width_is_no_law(
    pair: Any, corpus: list[str], fitted: Any, train: Callable[[int], Any]
) -> None:
    with pytest.raises(
        MismatchError,
        match=r"saes have widths \[24, 24\]; expected at least two, each of another width",
    ):
        lrt.study_sae_scaling(pair, fitted, [train(24), train(24)], corpus)


def test_what_is_held_out_of_training_was_not_in_the_stitchs_fit(
    pair: Any, corpus: list[str], fitted: Any
) -> None:
    """Rows of a stitch of seed 1 are split by its seed; rows of another split are refused."""
    rows = rows_of(corpus, pair, fitted, [])
    assert rows.seed == 1
    assert torch.equal(
        rows.held_out, SAERows.from_documents(pair.target, corpus, at=1, seed=1).held_out
    )
    with pytest.raises(MismatchError, match="the rows were split by seed 0, the stitch by 1"):
        rows_of(SAERows.from_documents(pair.target, corpus, at=1), pair, fitted, [])
