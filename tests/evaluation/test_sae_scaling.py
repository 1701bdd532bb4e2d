"""Power laws of SAE training: known laws found again, a frontier against plain loops, both bills, and a study from beginning to end."""

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lrt_lens as lrt
from lrt_lens.adapters.sae.rows import SAERows
from lrt_lens.errors import MismatchError
from lrt_lens.evaluation.sae_initialisation import SAEInitialisation, threshold_table
from lrt_lens.evaluation.sae_scaling import CHARGED, SAEScaling, budgets_of, fit_arms, fit_power_law, frontier_of

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
    """Table 4 of Stitching: 41.2 · C^−.16 and 18.5 · C^−.14 meet at 2.4e17 by its printed digits, with 1.2e17 close to no advantage."""
    scratch, stitched = fit_power_law(FLOPS, 41.2 * FLOPS**-0.16), fit_power_law(FLOPS, 18.5 * FLOPS**-0.14)
    at = stitched.crossing(scratch)
    assert 18.5 * at**-0.14 == pytest.approx(41.2 * at**-0.16)
    assert at == pytest.approx(2.4e17, rel=0.05)
    assert np.isnan(stitched.crossing(stitched))


@pytest.mark.parametrize(("flops", "error"), [(FLOPS[:2], np.ones(2)), (FLOPS, np.zeros(24))])
def test_too_few_points_and_errors_of_nothing_are_refused(flops: np.ndarray, error: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected at least three, all positive"):
        fit_power_law(flops, error)


def _history(seeds: tuple[int, ...] = (0, 1)) -> pd.DataFrame:
    """Two widths: the wide one falls further and pays more a token; a transferred beginning is ahead and has paid 50 before its first token."""
    rows = []
    for width, arm, seed in product((8, 16), ("scratch", "transferred", CHARGED), seeds):
        paid = {"scratch": 0.0, "transferred": 50.0, CHARGED: 400.0}[arm]
        for tokens in (0, 10, 20, 40, 80):
            ahead = 0 if arm == "scratch" else 15
            fvu = 0.1 + 0.8 / (1 + (tokens + ahead) / (10 if width == 8 else 5)) + (0.05 if width == 8 else 0) + 0.01 * seed
            rows.append({"width": width, "arm": arm, "seed": seed, "tokens": tokens, "flops": paid + width * tokens, "fvu": fvu})
    return pd.DataFrame(rows)


def test_the_frontier_is_the_least_error_so_far_of_any_width() -> None:
    history = _history()
    budgets = np.array([80.0, 100.0, 500.0, 5000.0])
    found = frontier_of(history, budgets).set_index(["arm", "seed", "flops"])
    for arm, seed, budget in product(("scratch", "transferred", CHARGED), (0, 1), budgets):
        reached = {}
        for width in (8, 16):
            run = history[(history["arm"] == arm) & (history["seed"] == seed) & (history["width"] == width)].to_dict("records")
            for before, after in pairwise(run):
                if before["flops"] <= budget:
                    share = min(1.0, (budget - before["flops"]) / (after["flops"] - before["flops"]))
                    reached[width] = before["fvu"] + share * (after["fvu"] - before["fvu"])
        if reached:
            row = found.loc[(arm, seed, budget)]
            assert row["fvu"] == pytest.approx(min(reached.values()))
            assert reached[row["width"]] == min(reached.values())
        else:
            assert (arm, seed, budget) not in found.index


def test_budgets_lie_where_every_arm_has_a_run() -> None:
    budgets = budgets_of(_history(), 5)
    assert budgets[0] == pytest.approx(50 + 8 * 80 / 10)
    assert budgets[-1] == pytest.approx(16 * 80)
    assert np.allclose(np.diff(np.log(budgets)), np.log(budgets[1] / budgets[0]))


def test_an_arm_whose_bill_is_most_of_the_budgets_has_no_law() -> None:
    history = _history((0,))
    history.loc[history["arm"] == CHARGED, "flops"] += 600
    frontier = frontier_of(history, budgets_of(history, 6))
    fits = fit_arms(frontier).set_index("arm")
    assert np.isnan(fits.loc[CHARGED, "exponent"])
    assert fits.loc["transferred", "exponent"] > 0
    scaling = SAEScaling(history, frontier, fit_arms(frontier), pd.DataFrame())
    summary = scaling.summary.set_index("arm")
    assert summary.loc["transferred", "fvu_ratio_last"] < 1
    assert np.isnan(summary.loc[CHARGED, "fvu_ratio_first"])


def test_savings_under_both_bills() -> None:
    def run(arm: str, values: list[float]) -> pd.DataFrame:
        tokens = [0.0, 10.0, 20.0, 40.0]
        return pd.DataFrame({"arm": arm, "seed": 0, "tokens": tokens, "flops": [3 * t for t in tokens], "explained_variance": values})

    history = pd.concat([run("scratch", [0, 0.4, 0.6, 0.8]), run("transferred", [0.5, 0.7, 0.8, 0.9]), run("shuffled", [0, 0.1, 0.1, 0.2])])
    study = SAEInitialisation(history, threshold_table(history, [0.5, 0.95], 6.0), pd.DataFrame(), pd.DataFrame(), 6.0, 20.0, 40)
    saved = study.savings.set_index(["arm", "share_of_final"])
    assert saved.loc[("transferred", 0.95), "saved"] == pytest.approx(1 - 54 / 108)
    assert saved.loc[("transferred", 0.95), "saved_charged"] == pytest.approx(1 - 74 / 108)
    assert np.isnan(saved.loc[("shuffled", 0.95), "saved"])
    assert {trace.name for trace in study.figure("savings").data} == {"transferred", "shuffled map"}


@pytest.fixture(scope="module")
def fitted(pair: Any, corpus: list[str]) -> Any:
    return lrt.fit_stitches(
        pair, corpus, source_layers=[0], target_layers=[1], n_tokens=2000, context_length=32, null="full", progress=False
    ).best()


@pytest.fixture(scope="module")
def train(pair: Any, corpus: list[str], fitted: Any) -> Callable[[int], Any]:
    rows = SAERows.from_documents(pair.source, corpus, at=fitted.source_hook, context_length=32).in_memory()
    return lambda width: lrt.train_sae(None, rows, d_sae=width, k=4, n_tokens=512, batch_rows=64, progress=False).sae


@pytest.fixture(scope="module")
def study(pair: Any, corpus: list[str], fitted: Any, train: Callable[[int], Any]) -> SAEScaling:
    return lrt.study_sae_scaling(
        pair, fitted, [train(48), train(24)], corpus, n_tokens=1024, seeds=(0, 1), source_sae_tokens=512, batch_rows=64, progress=False
    )


def test_a_study_has_a_law_for_every_beginning(study: SAEScaling) -> None:
    assert set(study.summary["arm"]) == {"scratch", "transferred", CHARGED, "shuffled", "rotated"}
    assert set(study.history["width"]) == {24, 48}
    assert set(study.savings["width"]) == {24, 48}
    assert (study.frontier.groupby(["arm", "seed"])["fvu"].diff().dropna() <= 1e-12).all()
    paid = study.history[study.history["tokens"] == 0].groupby(["arm", "width"])["flops"].first()
    assert (paid["scratch"] == 0).all()
    assert (paid["transferred"] == paid["shuffled"]).all()
    assert paid[CHARGED, 48] - paid["transferred", 48] == pytest.approx(2 * (paid[CHARGED, 24] - paid["transferred", 24]), rel=0.1)


def test_a_study_is_shown(study: SAEScaling) -> None:
    figure = study.figure()
    assert {"24 features", "48 features", "scratch", "transferred", "transferred, source SAE charged"} <= {
        trace.name for trace in figure.data
    }
    assert "exponent" in study._repr_html_()


def test_one_width_is_no_law(pair: Any, corpus: list[str], fitted: Any, train: Callable[[int], Any]) -> None:
    with pytest.raises(MismatchError, match=r"saes have widths \[24, 24\]; expected at least two, each of another width"):
        lrt.study_sae_scaling(pair, fitted, [train(24), train(24)], corpus)
