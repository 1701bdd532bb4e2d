"""Sums of rows that are far from the shift, and of huge rows, against numpy in float64."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lrt_lens.models import ModelPair
from lrt_lens.moments import FIT_PARTS, TEST_PARTS, ActivationCache, CrossMoments, harvest
from lrt_lens.moments import _feeding as feeding
from lrt_lens.moments._centred_rows import CentredRows, cross_products
from lrt_lens.stitching.solvers import Ridge

N, D, K = 6000, 24, 16
DOCUMENTS = [f"document {i // 20}" for i in range(N)]
HUGE = 777


def standard(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return rows x [6000, 24] and y [6000, 16] of variance about 1, float32."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=generator)
    mixing = torch.randn(D, K, generator=generator) / D**0.5
    return x, x @ mixing + 0.5 * torch.randn(N, K, generator=generator)


def far(values: Tensor, by: float = 3000.0, dimensions: slice = slice(None)) -> Tensor:
    """Return rows of which all but the first 100 are ``by`` standard deviations away."""
    moved = values.clone()
    moved[100:, dimensions] += by
    return moved


def huge(values: Tensor, size: float = 1e6) -> Tensor:
    """Return rows with one row of another size, in a random direction."""
    changed = values.clone()
    generator = torch.Generator().manual_seed(3)
    changed[HUGE] = size * torch.randn(values.shape[1], generator=generator)
    return changed


x, y = standard()
CASES: dict[str, tuple[Tensor, Tensor]] = {
    "ordinary": (x, y),
    "first block far from the rest": (far(x), far(y)),
    "one dimension far": (far(x, dimensions=slice(3, 4)), y),
    "target far": (x, far(y, -500.0)),
    "a huge row": (huge(x), y),
    "a huge row of the target": (x, huge(y)),
    "a huge row of both": (huge(x), huge(y, 1e4)),
    "a row of ones times a million": (torch.where(torch.arange(N)[:, None] == HUGE, 1e6, x), y),
    "a fiftieth of the rows huge": (torch.where(torch.arange(N)[:, None] % 50 == 7, 1e5 * x, x), y),
    "far and huge": (huge(far(x), 1e7), far(y)),
    "a hundred rows far from the others": (far(x).flip(0), far(y).flip(0)),
    "float64 rows with a large mean": (x.double() + 1e5, y.double() - 1e5),
    "bfloat16 rows": (x.bfloat16(), y.bfloat16()),
}


def moments_in_two_calls(x: Tensor, y: Tensor, **options: Any) -> CrossMoments:
    """Return moments whose shift is the mean of the first 100 rows."""
    moments = CrossMoments((("source", "target"),), **options)
    moments.update(x[:100], y[:100], documents=DOCUMENTS[:100])
    moments.update(x[100:], y[100:], documents=DOCUMENTS[100:])
    return moments


def parts() -> np.ndarray:
    from lrt_lens.moments._row_keys import document_keys, parts_of

    return parts_of(document_keys(DOCUMENTS, 0))


def scatter_of(x: Tensor, y: Tensor, rows: np.ndarray) -> dict[str, np.ndarray]:
    a, b = (values.double().numpy()[rows] for values in (x, y))
    mean_x, mean_y = a.mean(0), b.mean(0)
    a, b = a - mean_x, b - mean_y
    return {"xx": a.T @ a, "yy": b.T @ b, "xy": a.T @ b, "mean_x": mean_x, "mean_y": mean_y}


@pytest.mark.parametrize("name", CASES)
def test_sums_in_float32_are_those_of_float64(name: str) -> None:
    x, y = CASES[name]
    moments = moments_in_two_calls(x, y)
    fits = np.isin(parts(), FIT_PARTS)
    for index, rows in ((FIT_PARTS, fits), (TEST_PARTS, ~fits)):
        found, expected = moments.scatter(("source", "target"), index), scatter_of(x, y, rows)
        size_x, size_y = (np.sqrt(np.diag(expected[side])) for side in ("xx", "yy"))
        for side, scale in (("xx", size_x), ("yy", size_y)):
            error = np.abs(getattr(found, side).numpy() - expected[side]) / np.outer(scale, scale)
            assert error.max() < 2e-6, (name, side)
        error = np.abs(found.xy.numpy() - expected["xy"]) / np.outer(size_x, size_y)
        assert error.max() < 2e-6, name
        np.testing.assert_allclose(found.mean_x, expected["mean_x"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_map_is_the_one_of_float64(name: str) -> None:
    x, y = CASES[name]
    stitch = moments_in_two_calls(x, y).fit(Ridge(alpha=1e-6)).best(by="r2_cv")
    expected = scatter_of(x, y, np.isin(parts(), FIT_PARTS))
    penalty = 1e-6 * np.trace(expected["xx"]) / D
    weight = np.linalg.solve(expected["xx"] + penalty * np.eye(D), expected["xy"])
    error = np.linalg.norm(stitch.up.weight.numpy() - weight) / np.linalg.norm(weight)
    assert error < 3e-6


@pytest.mark.parametrize("null", ["full", "sketch"])
@pytest.mark.parametrize("name", CASES)
def test_sums_of_shuffled_pairs_are_exact_too(name: str, null: str) -> None:
    x, y = CASES[name]
    y = y.repeat(1, 5)  # wider than the sketch
    moments = CrossMoments((("source", "target"),), null=null)
    pairing = torch.arange(N - 100).roll(-40)
    moments.add_block(0, {"source": x[:100]}, {"target": y[:100]}, torch.arange(100).roll(-20))
    moments.add_block(1, {"source": x[100:]}, {"target": y[100:]}, pairing)
    shuffled = torch.cat([y[:100].roll(-20, 0), y[100:].roll(-40, 0)])
    expected = scatter_of(x, shuffled, np.ones(N, dtype=bool))
    found = moments.null_scatter(("source", "target"), test=False)
    basis = moments.sketch("target")
    cross, yy = expected["xy"], expected["yy"]
    if basis is not None:
        cross, yy = cross @ basis.numpy(), basis.numpy().T @ yy @ basis.numpy()
    scale = np.outer(*(np.sqrt(np.abs(np.diag(side))) for side in (expected["xx"], yy)))
    assert (np.abs(found.xy.numpy() - cross) / scale).max() < 2e-6


def test_several_hook_points_have_each_their_own_centre_and_huge_rows() -> None:
    source = {"a": far(x), "b": huge(x), "c": x}
    target = {"a": huge(y, 1e5), "d": y}  # a name that the source has too
    pairs = tuple((s, t) for s in source for t in target)
    moments = CrossMoments(pairs)
    for part, rows in ((0, slice(0, 100)), (1, slice(100, None))):
        moments.add_block(
            part,
            {hook: values[rows] for hook, values in source.items()},
            {hook: values[rows] for hook, values in target.items()},
        )
    for s, t in pairs:
        expected = scatter_of(source[s], target[t], np.ones(N, dtype=bool))
        found = moments.scatter((s, t), FIT_PARTS)
        scale = np.outer(*(np.sqrt(np.diag(expected[side])) for side in ("xx", "yy")))
        assert (np.abs(found.xy.numpy() - expected["xy"]) / scale).max() < 2e-6, (s, t)


def test_an_ordinary_block_takes_no_detour() -> None:
    shift = x[:1000].double().mean(0).float().double()
    block = CentredRows.of(x, shift, torch.float32)
    assert block.is_plain
    assert torch.equal(block.light, x - shift.float())
    assert block.heaviest() is None
    assert not CentredRows.of(x + 5, shift, torch.float32).is_plain


def test_a_block_with_a_few_rows_elsewhere_is_centred_on_the_others() -> None:
    """The mean of a block with some rows far away is far from both kinds of rows."""
    block = CentredRows.of(far(x), torch.zeros(D).double(), torch.float32)
    np.testing.assert_allclose(block.centre, far(x)[100:].double().mean(0), atol=1e-2)
    assert block.heavy is not None
    assert block.heavy.tolist() == list(range(100))
    total, second = block.sums()
    rows = far(x).double()
    np.testing.assert_allclose(total, rows.sum(0), rtol=1e-9)
    np.testing.assert_allclose(second, rows.T @ rows, rtol=1e-9)


def test_merged_shards_about_different_shifts_are_exact() -> None:
    far_x, far_y = CASES["first block far from the rest"]
    halves = [
        CrossMoments.from_activations(far_x[rows], far_y[rows], documents=DOCUMENTS[rows])
        for rows in (slice(0, 100), slice(100, None))
    ]
    found = halves[0].merge(halves[1]).scatter(("source", "target"), FIT_PARTS)
    expected = scatter_of(far_x, far_y, np.isin(parts(), FIT_PARTS))
    np.testing.assert_allclose(found.xx, expected["xx"], rtol=1e-6, atol=1e-3)


# ----------------------------------------------------------------------------------------- warnings


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "variance of" in record.message]


def test_a_row_with_most_of_the_variance_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        moments = CrossMoments.from_activations(huge(x), y, documents=DOCUMENTS)
        moments.fit(Ridge(alpha=1e-3))
    [sentence] = warnings(caplog)
    assert sentence.startswith("row 777 (document 'document 38') has 100% of the variance of the")
    assert "6,000 rows at source 'source'" in sentence


def test_rows_of_several_calls_are_numbered_through_and_named_at_the_fit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        moments = moments_in_two_calls(x, huge(y))
        assert not warnings(caplog)
        moments.fit(Ridge(alpha=1e-3))
    [sentence] = warnings(caplog)
    assert sentence.startswith("row 777 (document 'document 38')")
    assert "at target 'target'" in sentence


def test_files_and_merged_shards_keep_the_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    halves = [
        CrossMoments.from_activations(values, y[rows], documents=np.arange(N)[rows] // 20)
        for values, rows in ((huge(x)[:3000], slice(0, 3000)), (x[3000:], slice(3000, None)))
    ]
    caplog.clear()
    merged = CrossMoments.load(halves[1].merge(halves[0]).save(tmp_path / "m.safetensors"))
    with caplog.at_level(logging.WARNING):
        merged.fit(Ridge(alpha=1e-3))
    [sentence] = warnings(caplog)
    assert sentence.startswith("row 777 (document 38) has 100% of the variance of the 6,000 rows")


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_rows_with_a_small_share_are_not_named(
    size: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        CrossMoments.from_activations(huge(x, size), y, documents=DOCUMENTS).fit(Ridge(alpha=1.0))
    assert not warnings(caplog)


def test_a_harvest_names_the_token_and_its_window(
    pair: ModelPair,
    corpus: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hook = "blocks.1.hook_resid_post"
    block_rows, calls = feeding.block_rows, []

    def broken(model: Any, hooks: Any, block: Any, *arguments: Any) -> dict[str, Tensor]:
        rows = block_rows(model, hooks, block, *arguments)
        if hook in rows and model is pair.source:
            calls.append(block)
            if len(calls) == 2:
                rows = rows | {hook: rows[hook].clone()}
                rows[hook][5] = 1e6
        return rows

    monkeypatch.setattr(feeding, "block_rows", broken)
    with caplog.at_level(logging.WARNING):
        moments = harvest(
            pair, corpus, source_layers=[1], target_layers=[0], progress=False, block_rows=256
        )
    [sentence] = warnings(caplog)
    [window, *_] = calls[1].batches(4096)
    assert sentence.startswith("the token ")
    assert "of the window that begins" in sentence
    assert f"at source {hook!r}" in sentence
    token = pair.source.tokenizer.decode([window[0].ids[int(window[0].rows[5])]])
    assert f"the token {token!r} at position {int(window[0].rows[5])}" in sentence
    # The provenance of a stitch says it too, in its own direction.
    origin = moments.provenance
    assert list(origin.heaviest_rows) == [f"source {hook}"]
    assert list(origin.swapped().heaviest_rows) == [f"target {hook}"]
    assert type(origin).from_json(origin.to_json()) == origin


def test_a_cache_names_the_row_and_its_block(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ActivationCache.create(tmp_path, dtype="float32") as cache:
        cache.add(huge(x), y, documents=DOCUMENTS)
    with caplog.at_level(logging.WARNING):
        moments = ActivationCache.open(tmp_path).moments(progress=False)
    [sentence] = warnings(caplog)
    assert sentence.startswith("row ")
    assert " of block " in sentence
    expected = scatter_of(huge(x), y, np.isin(parts(), FIT_PARTS))
    found = moments.scatter(("source", "target"), FIT_PARTS)
    np.testing.assert_allclose(found.xx, expected["xx"], rtol=1e-6)


@pytest.mark.parametrize("largest", [1, 500, 10**6])
def test_products_are_the_same_in_any_groups(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrt_lens.moments._centred_rows.LARGEST_PRODUCT", largest)
    generator = torch.Generator().manual_seed(0)
    draw = lambda d: torch.randn(50, d, generator=generator, dtype=torch.float64)  # noqa: E731
    x = {"a": draw(7), "b": draw(5), "c": draw(3)}
    y = {"p": draw(4), "q": draw(6)}
    pairs = [("a", "p"), ("b", "p"), ("a", "q"), ("c", "q"), ("b", "q"), ("c", "p")]
    found = dict(cross_products(pairs, x, y))
    assert found.keys() == set(pairs)
    for s, t in pairs:
        torch.testing.assert_close(found[s, t], x[s].T @ y[t])
