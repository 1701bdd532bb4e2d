"""Calibrated similarities agree with those of rows, and choices do not depend on the test fold."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.errors import HookPointError, TooFewDocumentsError
from lrt_lens.moments import CrossMoments
from lrt_lens.stitching import similarities
from lrt_lens.stitching._similarity import SIMILARITY_COLUMNS, effect
from tests.statistics.explicit_jackknife import explicit_jackknife

SOURCES = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
TARGETS = ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")
ROWS_PER_DOCUMENT = 20


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    (q, _), (p, _) = (np.linalg.qr(a - a.mean(0)) for a in (x, y))
    return np.linalg.svd(q.T @ p, compute_uv=False)


def naive_cca(x: np.ndarray, y: np.ndarray) -> float:
    return float(correlations(x, y).mean())


def naive_cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float(((x.T @ y) ** 2).sum() / np.sqrt(((x.T @ x) ** 2).sum() * ((y.T @ y) ** 2).sum()))


def naive_procrustes(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(x.T @ y, "nuc") / np.sqrt((x**2).sum() * (y**2).sum()))


NAIVE = {"cca": naive_cca, "cka_biased": naive_cka, "procrustes": naive_procrustes}


@pytest.fixture(scope="module")
def table(layered_moments: Any) -> Any:
    return similarities(layered_moments())


def row_of(table: Any, hook_pair: tuple[str, str], measure: str) -> dict[str, Any]:
    (row,) = table[
        (table.source_hook == hook_pair[0])
        & (table.target_hook == hook_pair[1])
        & (table.measure == measure)
    ].to_dict("records")
    return row


@pytest.fixture(scope="module")
def shuffled_rows(rows: Any) -> np.ndarray:
    """Return the index of the row of y that each row of x has under the null of `layered_moments`.

    It is a row of the next document of the same part.
    """
    partner = np.arange(len(rows.parts))
    for part in np.unique(rows.parts):
        index = np.flatnonzero(rows.parts == part)
        partner[index] = np.roll(index, -ROWS_PER_DOCUMENT)
    return partner


# -------------------------------------------------------------------------------------------- table


def test_there_is_a_row_for_every_pair_and_measure(table: Any) -> None:
    assert list(table.columns) == list(SIMILARITY_COLUMNS)
    assert (
        len(table) == len(table.drop_duplicates(["source_hook", "target_hook", "measure"])) == 4 * 5
    )
    assert set(table.note) == {""}
    assert not table.drop(columns="note").isna().any().any()
    assert (table.d_source == 12).all()
    assert (table.d_target == 9).all()


@pytest.mark.parametrize("measure", list(NAIVE))
@pytest.mark.parametrize("hook_pair", [(s, t) for s in SOURCES for t in TARGETS])
def test_values_intervals_and_nulls_are_those_of_rows(
    rows: Any,
    layered: dict,
    table: Any,
    shuffled_rows: np.ndarray,
    measure: str,
    hook_pair: tuple[str, str],
) -> None:
    x, y = layered["source"][hook_pair[0]].numpy(), layered["target"][hook_pair[1]].numpy()
    fits, naive = rows.fits, NAIVE[measure]
    row = row_of(table, hook_pair, measure)
    assert row["n"] == fits.sum()
    value, null = naive(x[fits], y[fits]), naive(x[fits], y[shuffled_rows][fits])
    assert row["value"] == pytest.approx(value, rel=1e-8)
    assert row["null"] == pytest.approx(null, rel=1e-6)
    assert row["effect"] == pytest.approx((value - null) / (1 - null), rel=1e-6)
    left_out = np.array(
        [naive(x[fits & (rows.parts != k)], y[fits & (rows.parts != k)]) for k in range(5)]
    )
    _, reach = explicit_jackknife(value, left_out, [(rows.parts == k).sum() for k in range(5)])
    assert (row["low"], row["high"]) == pytest.approx((value - reach, value + reach), rel=1e-6)
    assert row["effect_low"] == pytest.approx((value - reach - null) / (1 - null), rel=1e-6)
    assert row["effect_high"] == pytest.approx((value + reach - null) / (1 - null), rel=1e-6)


def test_debiased_cka_is_the_grids_and_its_null_the_product_of_both_shuffled_samples(
    rows: Any, layered: dict, table: Any, grid: Any, shuffled_rows: np.ndarray
) -> None:
    hook_pair = (SOURCES[1], TARGETS[1])
    row = row_of(table, hook_pair, "cka")
    scores = grid.scores
    expected = scores[
        (scores.source_hook == hook_pair[0]) & (scores.target_hook == hook_pair[1])
    ].cka.item()
    assert row["value"] == pytest.approx(expected, rel=1e-9)
    x, y = layered["source"][hook_pair[0]].numpy(), layered["target"][hook_pair[1]].numpy()

    def covariance(a: np.ndarray, b: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return (a[chosen] - a[chosen].mean(0)).T @ (b[chosen] - b[chosen].mean(0)) / chosen.sum()

    def own(a: np.ndarray) -> float:
        folds = [covariance(a, a, rows.parts == k) for k in range(5)]
        return np.mean([(folds[j] * folds[k]).sum() for j in range(5) for k in range(5) if j != k])

    product = (
        covariance(x, y[shuffled_rows], rows.fits) * covariance(x, y[shuffled_rows], ~rows.fits)
    ).sum()
    assert row["null"] == pytest.approx(product / np.sqrt(own(x) * own(y)), rel=1e-6)


def test_held_out_reads_the_test_fold_with_the_directions_of_the_others(
    rows: Any, layered: dict, table: Any
) -> None:
    hook_pair = (SOURCES[0], TARGETS[1])
    x, y = layered["source"][hook_pair[0]].numpy(), layered["target"][hook_pair[1]].numpy()
    (q, r), (p, s) = (np.linalg.qr(a[rows.fits] - a[rows.fits].mean(0)) for a in (x, y))
    u, _, v = np.linalg.svd(q.T @ p, full_matrices=False)
    a, b = x[~rows.fits] @ np.linalg.solve(r, u), y[~rows.fits] @ np.linalg.solve(s, v.T)
    expected = np.mean([np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(a.shape[1])])
    assert row_of(table, hook_pair, "cca")["held_out"] == pytest.approx(expected, rel=1e-8)
    assert row_of(table, hook_pair, "cka_biased")["held_out"] == pytest.approx(
        naive_cka(x[~rows.fits], y[~rows.fits]), rel=1e-8
    )


def test_the_better_source_layer_is_more_alike_by_every_measure(table: Any) -> None:
    for measure in table.measure.unique():
        assert (
            row_of(table, (SOURCES[1], TARGETS[1]), measure)["effect"]
            > row_of(table, (SOURCES[0], TARGETS[0]), measure)["effect"]
        )


# -------------------------------------------------------------------------------------- calibration


def moments_with_null(
    x: torch.Tensor, y: torch.Tensor, rows: Any, null: str = "full"
) -> CrossMoments:
    moments = CrossMoments(pairs=(("source", "target"),), moment_dtype=torch.float64, null=null)
    for part in np.unique(rows.parts):
        index = torch.from_numpy(np.flatnonzero(rows.parts == part))
        moments.add_block(
            int(part),
            {"source": x[index]},
            {"target": y[index]},
            torch.arange(len(index)).roll(-ROWS_PER_DOCUMENT),
        )
    return moments


def test_independent_streams_have_no_effect_and_rotated_ones_have_all(rows: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(rows.x), 30, generator=generator, dtype=torch.float64)
    independent = similarities(moments_with_null(rows.x, noise, rows))
    assert (independent["effect"].abs() < 0.02).all()
    biased = independent.set_index("measure")["value"]
    assert biased["cca"] > 0.05  # what there is nothing behind
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    same = similarities(moments_with_null(rows.x, 2 * rows.x @ rotation + 1, rows))
    assert same["effect"].to_numpy() == pytest.approx(np.ones(5), abs=1e-6)
    assert same["held_out"].to_numpy() == pytest.approx(np.ones(5), abs=1e-6)


def test_a_sketched_null_serves_cka_and_says_why_it_serves_nothing_else(rows: Any) -> None:
    y = torch.cat(
        [
            rows.y,
            torch.randn(
                len(rows.y), 80, generator=torch.Generator().manual_seed(1), dtype=torch.float64
            ),
        ],
        1,
    )
    whole, sketched = (
        similarities(moments_with_null(rows.x, y, rows, null)).set_index("measure")
        for null in ("full", "sketch")
    )
    assert sketched.null["cka_biased"] == pytest.approx(whole.null["cka_biased"], rel=0.5)
    for measure in ("cca", "svcca", "procrustes"):
        assert math.isnan(sketched.null[measure])
        assert math.isnan(sketched.effect[measure])
        assert "null='full'" in sketched.note[measure]
    assert sketched.value.to_numpy() == pytest.approx(whole.value.to_numpy())


def test_a_sketch_as_wide_as_the_target_is_the_whole_null(layered_moments: Any, table: Any) -> None:
    sketched = similarities(layered_moments(null="sketch"))
    assert sketched.null.to_numpy() == pytest.approx(table.null.to_numpy(), rel=1e-8)


def test_without_shuffled_pairs_there_is_no_effect(rows: Any, moments_of: Any) -> None:
    table = similarities(moments_of(rows, null=False), measures=["cka", "svcca"])
    assert table.null.isna().all()
    assert table.effect.isna().all()
    assert table.note.str.contains("no shuffled pairs").all()
    assert table.value.notna().all()


def test_the_effect_is_the_share_of_the_way_from_the_null_to_one() -> None:
    assert effect(0.4, 0.4) == 0
    assert effect(1.0, 0.4) == 1
    assert effect(0.7, 0.4) == pytest.approx(0.5)
    assert math.isnan(effect(1.0, 1.0))


def test_what_may_choose_does_not_read_the_test_fold(
    rows: Any, layered: dict, layered_moments: Any, table: Any
) -> None:
    corrupted = {}
    for hook, values in layered["target"].items():
        corrupted[hook] = values.clone()
        corrupted[hook][torch.from_numpy(~rows.fits)] = torch.randn(
            int((~rows.fits).sum()), 9, dtype=values.dtype
        )
    spoilt = similarities(layered_moments(target=corrupted))
    for column in ("value", "low", "high"):
        assert spoilt[column].to_numpy() == pytest.approx(table[column].to_numpy(), rel=1e-6), (
            column
        )
    fitted = (table.measure != "cka").to_numpy()
    for column in ("null", "effect"):
        assert spoilt[column].to_numpy()[fitted] == pytest.approx(
            table[column].to_numpy()[fitted], rel=1e-6
        ), column
    assert (spoilt.held_out - table.held_out).abs().max() > 0.1


# --------------------------------------------------------------------------------- choices of input


def test_float32_products_give_the_same_to_their_precision(rows: Any, moments_of: Any) -> None:
    single, double = (
        similarities(moments_of(rows, moment_dtype=dtype))
        for dtype in (torch.float32, torch.float64)
    )
    assert single.value.to_numpy() == pytest.approx(double.value.to_numpy(), rel=1e-5)


def test_pairs_and_measures_can_be_chosen(layered_moments: Any, table: Any) -> None:
    some = similarities(
        layered_moments(),
        [("hook_embed", TARGETS[0]), (SOURCES[0], TARGETS[1])],
        measures=["svcca"],
    )
    assert len(some) == 2
    assert some.d_source.tolist() == [5, 12]
    assert "not for hook_embed" in some.note[0]
    expected = row_of(table, (SOURCES[0], TARGETS[1]), "svcca")
    assert some.value[1] == pytest.approx(expected["value"], rel=1e-9)


def test_svcca_follows_its_share_of_variance(rows: Any, moments_of: Any) -> None:
    few, all_of_it = (
        similarities(moments_of(rows), measures=["svcca"], svcca_variance=share).value[0]
        for share in (0.5, 1.0)
    )
    cca = similarities(moments_of(rows), measures=["cca"]).value[0]
    assert all_of_it == pytest.approx(cca, rel=1e-8)
    assert few != pytest.approx(cca, rel=1e-3)


def test_too_few_rows_for_the_widths_are_said(rows: Any) -> None:
    kept = np.concatenate(
        [np.flatnonzero(rows.parts == part)[:3] for part in np.unique(rows.parts)]
    )
    few = rows.taken(kept)
    row = similarities(
        CrossMoments.from_activations(few.x, few.y, documents=few.documents, null=False),
        measures=["cca"],
    ).iloc[0]
    assert row["n"] == 15
    assert row["note"].startswith("no null")
    assert "7 canonical correlations are 1 by construction: 15 rows" in row["note"]


def test_one_group_of_test_documents_leaves_debiased_cka_without_a_verdict(
    rows: Any, moments_of: Any
) -> None:
    one = next(part for part in range(5, 13) if (rows.parts == part).any())
    row = similarities(
        moments_of(rows.taken(np.flatnonzero(rows.fits | (rows.parts == one)))), measures=["cka"]
    ).iloc[0]
    assert math.isnan(row["held_out"])
    assert "fewer than two groups" in row["note"]
    assert math.isfinite(row["value"])


def test_an_empty_fold_is_refused(rows: Any, moments_of: Any) -> None:
    with pytest.raises(TooFewDocumentsError, match="hold 0 rows"):
        similarities(moments_of(rows.taken(np.flatnonzero(rows.parts != 2))))
    with pytest.raises(TooFewDocumentsError, match="hold 0 rows"):
        similarities(moments_of(rows.taken(np.flatnonzero(rows.fits))))


def test_what_is_not_there_is_refused(rows: Any, moments_of: Any) -> None:
    moments = moments_of(rows)
    with pytest.raises(
        ValueError, match=r"measures are \['ckaa'\]; expected one or more of \['cka', 'cka_biased'"
    ):
        similarities(moments, measures=["ckaa"])
    with pytest.raises(ValueError, match="svcca_variance is 1.5"):
        similarities(moments, svcca_variance=1.5)
    with pytest.raises(HookPointError, match="no hook pair"):
        similarities(moments, [("source", "elsewhere")])
    with pytest.raises(TooFewDocumentsError, match="at least one pair"):
        similarities(moments, [])


def test_a_constant_stream_is_like_nothing_and_says_so(rows: Any, moments_of: Any) -> None:
    table = similarities(moments_of(replace(rows, y=torch.full_like(rows.y, 3.0))))
    assert table.value.isna().all()
    assert table.note.str.contains("does not vary").all()
