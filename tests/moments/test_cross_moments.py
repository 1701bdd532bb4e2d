"""Moments of any pieces add up, and equal the sums over the rows."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens.errors import MismatchError, NonFiniteError, TooFewDocumentsError
from lrt_lens.moments import FIT_PARTS, TEST_PARTS, CrossMoments, Provenance
from lrt_lens.moments._centred_rows import CentredRows
from lrt_lens.moments._scatter import SideMoments
from lrt_lens.stitching.solvers import Ridge

PAIR = ("source", "target")
HOOKS = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")


def assert_same(one: CrossMoments, other: CrossMoments, rel: float = 1e-10) -> None:
    """Assert equal scatters of each part and equal counts of norms."""
    assert torch.equal(one.n, other.n)
    for hook_pair in one.kept_pairs:
        for part in (*((p,) for p in range(len(one.n)) if one.n[p] > 1), FIT_PARTS, TEST_PARTS):
            found, expected = one.scatter(hook_pair, part), other.scatter(hook_pair, part)
            for name in ("mean_x", "mean_y", "xx", "yy", "xy"):
                a, b = getattr(found, name), getattr(expected, name)
                assert float((a - b).norm()) <= rel * float(b.norm()), name
        for test in (False, True):
            if hook_pair in one.cross_null:
                a, b = one.null_scatter(hook_pair, test).xy, other.null_scatter(hook_pair, test).xy
                assert float((a - b).norm()) <= rel * float(
                    one.scatter(hook_pair, TEST_PARTS if test else FIT_PARTS).xy.norm()
                )
    for side in ("source", "target"):
        for hook, stream in getattr(one, side).items():
            assert torch.equal(stream.norms, getattr(other, side)[hook].norms)


# ----------------------------------------------------------------------------------------- contents


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_scatter_of_a_part_is_that_of_its_rows(
    rows: Any, moments_of: Any, dtype: torch.dtype
) -> None:
    moments = moments_of(rows, moment_dtype=dtype)
    rel = 1e-10 if dtype == torch.float64 else 1e-5
    for parts in ((0,), (3,), FIT_PARTS, TEST_PARTS):
        x, y = (torch.from_numpy(side) for side in rows.numpy(np.isin(rows.parts, parts)))
        found = moments.scatter(PAIR, parts)
        a, b = x - x.mean(0), y - y.mean(0)
        assert found.n == len(x)
        for value, expected in (
            (found.mean_x, x.mean(0)),
            (found.mean_y, y.mean(0)),
            (found.xx, a.T @ a),
            (found.yy, b.T @ b),
            (found.xy, a.T @ b),
        ):
            torch.testing.assert_close(
                value, expected, rtol=rel, atol=rel * float(expected.abs().max())
            )


def test_a_large_mean_costs_no_digits(rows: Any, moments_of: Any) -> None:
    """Products are about the mean of the first batch, or float32 would lose the variance.

    A mean of 3000 without a shift leaves no digit of the variance in float32.
    """
    far = replace(rows, x=(rows.x + 3000).float(), y=(rows.y - 3000).float())
    found = moments_of(far, moment_dtype=torch.float32).scatter(PAIR, FIT_PARTS)
    x = far.x.double()[torch.from_numpy(rows.fits)]
    expected = (x - x.mean(0)).T @ (x - x.mean(0))
    assert float((found.xx - expected).norm() / expected.norm()) < 1e-5


def test_sums_are_float64_whatever_the_precision_of_rows_and_products(rows: Any) -> None:
    moments = CrossMoments.from_activations(
        rows.x.bfloat16(), rows.y.bfloat16(), documents=rows.documents
    )
    assert (
        moments.cross[PAIR].dtype
        == moments.source["source"].second.dtype
        == moments.source["source"].total.dtype
        == torch.float64
    )
    expected = CrossMoments.from_activations(
        rows.x.bfloat16().double(), rows.y.bfloat16().double(), documents=rows.documents
    )
    assert_same(moments, expected, rel=1e-5)


def test_the_median_norm_is_right_to_a_per_cent(rows: Any, moments_of: Any) -> None:
    for factor in (1e-3, 1.0, 1e3):
        scaled = replace(rows, x=rows.x * factor, y=rows.y)
        found = moments_of(scaled).source["source"].median_norm
        fitting = scaled.x[torch.from_numpy(rows.fits)]
        assert found == pytest.approx(float(fitting.norm(dim=1).median()), rel=0.01)


def test_the_median_norm_is_that_of_the_fitting_folds(rows: Any, moments_of: Any) -> None:
    x = rows.x.clone()
    # Norms of the test fold a thousand times as large: the median of all rows would be another.
    x[torch.from_numpy(~rows.fits)] *= 1000
    side = moments_of(replace(rows, x=x)).source["source"]
    assert side.median_norm == pytest.approx(
        float(np.median(np.linalg.norm(x.numpy()[rows.fits], axis=1))), rel=0.01
    )
    assert float(side.norms.sum()) == rows.fits.sum()


def test_moments_of_the_test_fold_alone_have_no_median_norm(rows: Any) -> None:
    moments = CrossMoments((PAIR,))
    moments.add_block(6, {"source": rows.x}, {"target": rows.y})
    assert math.isnan(moments.source["source"].median_norm)


def test_the_median_norm_ignores_a_few_massive_rows() -> None:
    side = SideMoments.zeros(torch.zeros(3))
    values = torch.ones(100, 3)
    values[:10] = 1e6
    side.add(0, CentredRows.of(values, side.shift, torch.float32).sums(), values)
    assert side.median_norm == pytest.approx(math.sqrt(3), rel=0.01)


def test_rows_of_a_document_share_a_part_and_the_seed_decides_which(
    rows: Any, moments_of: Any
) -> None:
    first, second = moments_of(rows), moments_of(rows, seed=1)
    assert first.n.tolist() == [float((rows.parts == part).sum()) for part in range(13)]
    assert all(count % 20 == 0 for count in first.n.tolist())
    assert first.n.tolist() != second.n.tolist()
    assert second.provenance.seed == 1


@pytest.mark.parametrize("kind", ["strings", "ints", "tensor", "array"])
def test_documents_are_named_by_anything(rows: Any, kind: str) -> None:
    numbers = [int(name.split()[1]) for name in rows.documents]
    ids = {
        "strings": [str(i) for i in numbers],
        "ints": numbers,
        "tensor": torch.tensor(numbers),
        "array": np.array(numbers),
    }[kind]
    moments = CrossMoments.from_activations(
        rows.x, rows.y, documents=ids, moment_dtype=torch.float64
    )
    assert_same(
        moments,
        CrossMoments.from_activations(
            rows.x, rows.y, documents=numbers, moment_dtype=torch.float64
        ),
    )


def test_hook_names_are_kept(rows: Any, moments_of: Any) -> None:
    moments = moments_of(rows, source_hook=HOOKS[0], target_hook=HOOKS[1])
    assert moments.pairs == (HOOKS,)
    assert (moments.source_hooks, moments.target_hooks) == ((HOOKS[0],), (HOOKS[1],))
    assert moments.n_tokens == 2400
    assert "2,400 tokens, 1 pairs" in repr(moments)


# ------------------------------------------------------------------------------------------- adding


def test_pieces_add_up_to_the_whole(rows: Any, moments_of: Any) -> None:
    pieces = moments_of(rows.taken(range(37)), null=False)
    for start in range(37, 2400, 501):
        piece = rows.taken(range(start, min(start + 501, 2400)))
        pieces.update(piece.x, piece.y, documents=piece.documents)
    assert_same(pieces, moments_of(rows, null=False))


def test_the_order_of_rows_and_documents_does_not_matter(rows: Any, moments_of: Any) -> None:
    shuffled = rows.taken(torch.randperm(2400, generator=torch.Generator().manual_seed(0)))
    assert_same(moments_of(shuffled, null=False), moments_of(rows, null=False))
    one, other = moments_of(shuffled).fit().scores.iloc[0], moments_of(rows).fit().scores.iloc[0]
    assert one["alpha"] == other["alpha"]
    for column in ("r2", "r2_uniform", "r2_cv", "r2_down", "cosine", "cka"):
        assert one[column] == pytest.approx(other[column], rel=1e-9)


def test_shards_merge_to_the_whole_about_other_shifts(rows: Any, moments_of: Any) -> None:
    cut = [rows.taken(range(800)), rows.taken(range(800, 820)), rows.taken(range(820, 2400))]
    # Shards with other rows have other means and therefore other shifts.
    shards = [moments_of(piece, null=False) for piece in cut]
    assert not torch.equal(shards[0].source["source"].shift, shards[1].source["source"].shift)
    whole = moments_of(rows, null=False)
    assert_same(shards[0].merge(shards[1]).merge(shards[2]), whole)
    assert_same(shards[2].merge(shards[0].merge(shards[1])), whole)


def test_merging_changes_neither_shard(rows: Any, moments_of: Any) -> None:
    first, second = moments_of(rows.taken(range(1200))), moments_of(rows.taken(range(1200, 2400)))
    first.merge(second)
    assert_same(first, moments_of(rows.taken(range(1200))))
    assert_same(second, moments_of(rows.taken(range(1200, 2400))))


@pytest.mark.parametrize("null", ["none", "full", "sketch"])
def test_shards_of_a_grid_with_shuffled_pairs_merge_to_the_whole(
    rows: Any, layered: dict, layered_moments: Any, null: str
) -> None:
    whole = layered_moments(null=null)

    def shard(documents: range) -> CrossMoments:
        moments = CrossMoments(whole.pairs, whole.token_hook, torch.float64, null)
        for part in np.unique(rows.parts):
            in_part = np.flatnonzero(rows.parts == part)
            index = torch.tensor(
                [i for place, i in enumerate(in_part) if place // 20 % 2 in documents]
            )
            if len(index):
                x, y = (
                    {hook: values[index] for hook, values in layered[side].items()}
                    for side in ("source", "target")
                )
                moments.add_block(int(part), x, y, torch.arange(len(index)).roll(-20))
        return moments

    even, odd, both = shard(range(1)), shard(range(1, 2)), shard(range(2))
    merged = even.merge(odd)
    for hook_pair in whole.kept_pairs:
        torch.testing.assert_close(
            merged.scatter(hook_pair, FIT_PARTS).xy,
            both.scatter(hook_pair, FIT_PARTS).xy,
            rtol=1e-9,
            atol=1e-6,
        )
    assert set(merged.cross_null) == (set(whole.pairs) if null != "none" else set())
    for hook_pair in merged.cross_null:
        for test in (False, True):
            # Rows are shuffled within a block, so shards and whole have different shuffled pairs;
            # the raw sums of the shards must still add up.
            move = merged.null_scatter(hook_pair, test).xy - _null_sum(even, odd, hook_pair, test)
            assert float(move.norm()) < 1e-8 * float(merged.scatter(hook_pair, FIT_PARTS).xy.norm())


def _null_sum(
    one: CrossMoments, other: CrossMoments, hook_pair: tuple[str, str], test: bool
) -> torch.Tensor:
    """Return the centred null sums of both shards together, from raw second moments."""
    parts = TEST_PARTS if test else FIT_PARTS
    raw, n, sum_x, sum_y = 0, 0, 0, 0
    for moments in (one, other):
        scatter, basis = moments.scatter(hook_pair, parts), moments.sketch(hook_pair[1])
        mean_y = scatter.mean_y if basis is None else scatter.mean_y @ basis
        raw = (
            raw
            + moments.null_scatter(hook_pair, test).xy
            + scatter.n * torch.outer(scatter.mean_x, mean_y)
        )
        n, sum_x, sum_y = (
            n + scatter.n,
            sum_x + scatter.n * scatter.mean_x,
            sum_y + scatter.n * mean_y,
        )
    return raw - torch.outer(sum_x, sum_y) / n


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"source_hook": "elsewhere"},
            r"other pairs or precision.*harvest every shard with the same arguments",
        ),
        ({"moment_dtype": torch.float32}, r"torch.float64 and .*torch.float32"),
        ({"seed": 1}, r"shards differ in seed: 0 and 1"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(
    rows: Any, moments_of: Any, change: dict, message: str
) -> None:
    with pytest.raises(MismatchError, match=message):
        moments_of(rows).merge(moments_of(rows, **change))


@pytest.mark.parametrize(
    ("field", "ours", "theirs"),
    [("context_length", 64, 128), ("skip_first", 4, 0), ("chat_template", None, "ab12")],
)
def test_shards_of_another_harvest_are_refused_by_what_differs(
    rows: Any, moments_of: Any, field: str, ours: Any, theirs: Any
) -> None:
    first, second = moments_of(rows), moments_of(rows)
    first.provenance, second.provenance = Provenance(**{field: ours}), Provenance(**{field: theirs})
    with pytest.raises(MismatchError, match=f"shards differ in {field}: {ours!r} and {theirs!r}"):
        first.merge(second)


def test_shards_of_other_models_are_refused(rows: Any, moments_of: Any, pair: Any) -> None:
    first, second = moments_of(rows), moments_of(rows)
    first.provenance, second.provenance = (
        Provenance(source=pair.source.identity),
        Provenance(source=pair.target.identity),
    )
    with pytest.raises(MismatchError, match="the source model of the other shard is"):
        first.merge(second)


def test_the_same_documents_are_not_counted_twice(rows: Any, moments_of: Any) -> None:
    moments = moments_of(rows)
    moments.provenance = Provenance(n_documents=120, corpus="00ff")
    with pytest.raises(MismatchError, match="both shards hold the same 120 documents"):
        moments.merge(moments)
    other = moments_of(rows)
    other.provenance = Provenance(n_documents=3, corpus="ff01")
    merged = moments.merge(other).provenance
    assert (merged.n_documents, int(merged.corpus, 16)) == (123, 0x00FF + 0xFF01)


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_number_that_is_none_names_the_hook_and_the_batch_and_adds_nothing(
    rows: Any, moments_of: Any, value: float, side: str
) -> None:
    moments, untouched = moments_of(rows), moments_of(rows)
    x, y = rows.x.clone(), rows.y.clone()
    # Only the last rows are bad; the good rows of earlier parts must not be added either.
    (x if side == "source" else y)[-2:, 3] = value
    with pytest.raises(
        NonFiniteError,
        match=rf"2 of 2400 activations at '{side}' are NaN or infinite, "
        "in the batch that starts at token 2,400",
    ):
        moments.update(x, y, documents=rows.documents)
    assert_same(moments, untouched, rel=0)
    assert torch.equal(moments.cross[PAIR], untouched.cross[PAIR])


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_bad_block_leaves_every_hook_as_it_was(
    rows: Any, layered: dict, layered_moments: Any, side: str
) -> None:
    moments, untouched = layered_moments(), layered_moments()
    x, y = (
        {hook: values[:40].clone() for hook, values in layered[name].items()}
        for name in ("source", "target")
    )
    bad = list(x if side == "source" else y)[-1]
    (x if side == "source" else y)[bad][0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=f"1 of 40 activations at '{bad}'"):
        moments.add_block(0, x, y, torch.arange(40).roll(-20))
    assert_same(moments, untouched, rel=0)


def test_a_bad_first_batch_does_not_decide_the_shift(rows: Any, moments_of: Any) -> None:
    moments = CrossMoments(pairs=(PAIR,), moment_dtype=torch.float64)
    with pytest.raises(NonFiniteError):
        moments.update(rows.x * float("nan"), rows.y, documents=rows.documents)
    moments.update(rows.x, rows.y, documents=rows.documents)
    assert_same(moments, moments_of(rows))


def test_large_float16_activations_are_numbers() -> None:
    x = torch.full((400, 3), 60_000.0, dtype=torch.float16)
    moments = CrossMoments.from_activations(x, x, documents=list(range(400)))
    assert moments.n_tokens == 400


def test_rows_must_pair(rows: Any) -> None:
    with pytest.raises(ValueError, match="rows do not pair: x has 2400, y 2399, documents 2400"):
        CrossMoments.from_activations(rows.x, rows.y[1:], documents=rows.documents)
    with pytest.raises(ValueError, match="rows do not pair: x has 2400, y 2400, documents 3"):
        CrossMoments.from_activations(rows.x, rows.y, documents=["a", "b", "c"])


def test_no_rows_are_refused(rows: Any) -> None:
    with pytest.raises(ValueError, match="x and y have no rows"):
        CrossMoments.from_activations(rows.x[:0], rows.y[:0], documents=[])


def test_rows_of_another_width_than_before_are_refused(rows: Any, moments_of: Any) -> None:
    with pytest.raises(
        MismatchError, match=r"'source' has 11 dimensions; these moments were begun with 12"
    ):
        moments_of(rows).update(rows.x[:, 1:], rows.y, documents=rows.documents)


def test_rows_of_one_hook_point_do_not_go_into_moments_of_several(
    rows: Any, layered_moments: Any
) -> None:
    with pytest.raises(
        ValueError, match=r"these moments need \['blocks.1.hook_resid_post', 'hook_embed'\] too"
    ):
        layered_moments().update(rows.x, rows.y, documents=rows.documents)


def test_products_below_float32_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"moment_dtype is torch.bfloat16; products need torch.float32 or torch.float64",
    ):
        CrossMoments(pairs=(PAIR,), moment_dtype=torch.bfloat16)


def test_a_null_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="null is 'half'; expected 'none', 'sketch' or 'full'"):
        CrossMoments(pairs=(PAIR,), null="half")


def test_too_few_documents_for_the_folds_are_refused_when_fitting(
    rows: Any, moments_of: Any
) -> None:
    with pytest.raises(
        TooFewDocumentsError, match=r"hold 0 rows of .*every fold and the test fold need documents"
    ):
        moments_of(rows.taken(range(40))).fit()


def test_moments_without_rows_say_so(rows: Any) -> None:
    with pytest.raises(
        TooFewDocumentsError, match=r"nothing to fit: 0 tokens and 1 pair\(s\); add rows"
    ):
        CrossMoments(pairs=(PAIR,)).fit(Ridge())


# ----------------------------------------------------------------------------------- shuffled pairs


def test_shuffled_pairs_have_the_marginals_of_the_truth_and_none_of_its_relation(
    layered_moments: Any,
) -> None:
    moments = layered_moments()
    for hook_pair in moments.pairs:
        for test, parts in ((False, FIT_PARTS), (True, TEST_PARTS)):
            truth, null = moments.scatter(hook_pair, parts), moments.null_scatter(hook_pair, test)
            for name in ("n", "mean_x", "mean_y", "xx", "yy"):
                torch.testing.assert_close(
                    torch.as_tensor(getattr(null, name)), torch.as_tensor(getattr(truth, name))
                )
            assert null.xy.norm() < 0.5 * truth.xy.norm()


def test_the_null_pairs_the_rows_it_was_told_to(
    rows: Any, layered: dict, layered_moments: Any
) -> None:
    moments = layered_moments()
    hook_pair = moments.pairs[0]
    x, y = layered["source"][hook_pair[0]], layered["target"][hook_pair[1]]
    for test, parts in ((False, FIT_PARTS), (True, TEST_PARTS)):
        chosen_x, chosen_y = [], []
        for part in parts:
            index = torch.from_numpy(np.flatnonzero(rows.parts == part))
            chosen_x.append(x[index])
            chosen_y.append(y[index].roll(-20, 0))
        a, b = torch.cat(chosen_x), torch.cat(chosen_y)
        expected = (a - a.mean(0)).T @ (b - b.mean(0))
        torch.testing.assert_close(
            moments.null_scatter(hook_pair, test).xy,
            expected,
            rtol=1e-9,
            atol=1e-9 * float(expected.abs().max()),
        )


def test_moments_without_a_null_say_so(rows: Any, moments_of: Any) -> None:
    with pytest.raises(ValueError, match=r"hold no shuffled pairs; harvest, .* with null=True"):
        moments_of(rows, null=False).null_scatter(PAIR, test=False)


def test_the_sketch_is_orthonormal_and_the_same_every_time(layered_moments: Any) -> None:
    sketches = [layered_moments(null="sketch").sketch("blocks.2.hook_resid_post") for _ in range(2)]
    assert torch.equal(*sketches)
    torch.testing.assert_close(sketches[0].T @ sketches[0], torch.eye(9, dtype=torch.float64))
    assert layered_moments(null="full").sketch("blocks.2.hook_resid_post") is None
