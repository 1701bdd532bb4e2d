"""`diff` against scikit-learn on rows, planted directions, and streams without any."""

from typing import Any

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

import lrt_lens as lrt
from lrt_lens.diffing import ModelDiff
from lrt_lens.errors import HookPointError, MismatchError, TooFewDocumentsError

N = 3000


def rows_of(
    seed: int, *, d_x: int = 20, d_y: int = 24, rank: int = 0, n: int = N
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, y = xA + noise + a signal of some rank that x does not know, and its directions."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d_x)) + 3
    # A has orthonormal rows, so that nothing of x is lost in a direction more than in another.
    a = np.linalg.qr(rng.normal(size=(d_y, d_x)))[0].T
    planted = np.linalg.qr(rng.normal(size=(d_y, max(rank, 1))))[0].T[:rank]
    signal = rng.normal(size=(n, rank)) * np.array([0.8, 0.7, 0.6])[:rank]
    return x, x @ a + 0.4 * rng.normal(size=(n, d_y)) + signal @ planted, planted


def moments_of(x: np.ndarray, y: np.ndarray, **options: Any) -> lrt.CrossMoments:
    documents = np.arange(len(x)) // 10
    return lrt.CrossMoments.from_activations(
        x, y, documents=documents, **({"moment_dtype": "float64"} | options)
    )


def fitted(moments: lrt.CrossMoments, n_documents: int) -> np.ndarray:
    """Return which documents of ten rows are in the fitting folds."""
    from lrt_lens.moments._row_keys import document_keys, parts_of

    keys = document_keys(np.arange(n_documents), 0)
    return np.isin(parts_of(keys, moments.parts), moments.parts.fit)


def test_differences_are_the_principal_components_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 16)) * np.exp(rng.normal(size=16)) + 5
    y = x + 0.3 * rng.normal(size=(N, 16)) @ rng.normal(size=(16, 16)) + rng.normal(size=16)
    result = lrt.diff(moments_of(x, y), rows="all", kinds=["difference", "shift"], n_directions=16)
    expected = PCA().fit(y - x)
    found = result.table[result.table["kind"] == "difference"]
    np.testing.assert_allclose(found["eigenvalue"], expected.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(found["share"], expected.explained_variance_ratio_, rtol=1e-9)
    unit = result.directions["difference"].unit.double().numpy()
    np.testing.assert_allclose(np.abs((unit * expected.components_).sum(1)), 1, atol=1e-6)
    shift = result.vector("shift")
    np.testing.assert_allclose(shift.direction.numpy(), (y - x).mean(0), rtol=1e-5)
    assert result.table["held_out"].isna().all()


def test_residuals_are_those_of_a_regression_on_the_fitting_rows() -> None:
    x, y, _ = rows_of(1, rank=3)
    moments = moments_of(x, y)
    result = lrt.diff(moments, alpha=1e-12)
    kept = np.repeat(fitted(moments, N // 10), 10)
    assert result.n_tokens == kept.sum()
    for kind, (a, b) in {"gained": (x, y), "lost": (y, x)}.items():
        model = LinearRegression().fit(a[kept], b[kept])
        left = b - model.predict(a)
        expected = PCA().fit(left[kept])
        # PCA divides by n − 1; a map has degrees of freedom too.
        factor = (kept.sum() - 1) / (kept.sum() - 1 - a.shape[1])
        rows = result.table[result.table["kind"] == kind]
        np.testing.assert_allclose(
            rows["eigenvalue"], expected.explained_variance_[:10] * factor, rtol=1e-8
        )
        unit = result.directions[kind].unit.double().numpy()  # type: ignore[index]
        np.testing.assert_allclose(rows["held_out"], (left[~kept] @ unit.T).var(0), rtol=1e-5)
        np.testing.assert_allclose(rows["variance"], (b[kept] @ unit.T).var(0), rtol=1e-5)
        # What both read from the two streams is the residual along the direction.
        of = result.directions[kind]  # type: ignore[index]
        read = x @ of.read_source.double().numpy().T + y @ of.read_target.double().numpy().T
        np.testing.assert_allclose(read - of.offset.numpy(), left @ unit.T, atol=2e-5)
        np.testing.assert_allclose(of.deviation.numpy(), rows["eigenvalue"] ** 0.5, rtol=1e-5)


def test_shared_directions_are_the_canonical_ones_of_scikit_learn() -> None:
    x, y, _ = rows_of(2, d_x=5, d_y=6)
    result = lrt.diff(moments_of(x, y), kinds=["shared"], rows="all", alpha=1e-12, n_directions=5)
    cca = CCA(n_components=5, max_iter=5000, tol=1e-12).fit(x, y)
    scores = zip(*(part.T for part in cca.transform(x, y)), strict=True)
    expected = [np.corrcoef(a, b)[0, 1] ** 2 for a, b in scores]
    np.testing.assert_allclose(result.table["eigenvalue"], expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_signal_of_rank_three_is_found(seed: int) -> None:
    x, y, planted = rows_of(seed, rank=3)
    result = lrt.diff(moments_of(x, y), kinds=["gained"])
    assert result.n_above_noise("gained") == 3
    found = result.directions["gained"].unit[:3].double().numpy()
    # Cosines of the principal angles between the two subspaces.
    assert np.linalg.svd(found @ planted.T)[1].min() >= 0.95


def test_without_a_signal_few_directions_are_above_the_noise() -> None:
    found: list[list[int]] = []
    for seed in range(30):
        x, y, _ = rows_of(seed, n=1500)
        result = lrt.diff(moments_of(x, y), kinds=["gained", "lost"])
        found.append([result.n_above_noise("gained"), result.n_above_noise("lost")])
        # Rows are independent, and the estimate of their number says so.
        assert result.n_independent["gained"] > 0.9 * (result.n_tokens - 25)
    # At .05 and 30 draws, more than 5 have a probability of .003.
    assert (np.array(found) > 0).sum(0).max() <= 5


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_copy_has_nothing_that_is_not_shared(precision: str) -> None:
    x, _, _ = rows_of(3)
    result = lrt.diff(moments_of(x, x.copy(), moment_dtype=precision))
    assert {kind: result.n_above_noise(kind) for kind in result.kinds} == {
        "gained": 0,
        "lost": 0,
        "difference": 0,
        "shift": 0,
        "shared": 10,
    }
    with pytest.raises(ValueError, match="nothing to steer"):
        result.vector("difference")


def test_the_level_of_canonical_correlations_is_that_of_independent_sides() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(N, 12)), rng.normal(size=(N, 9))
    result = lrt.diff(moments_of(x, y, null="full"), kinds=["shared"])
    assert result.n_above_noise("shared") == 0
    assert result.table["noise"].iloc[0] == pytest.approx(0.014, abs=0.006)


def test_an_interval_over_documents_holds_the_eigenvalue_of_all_text() -> None:
    hits = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        # Rows of a document have a common factor, so that the rows are not independent.
        z = np.repeat(rng.normal(size=N // 10), 10)[:, None] * np.eye(8)[0]
        x = rng.normal(size=(N, 8))
        y = x + 0.5 * rng.normal(size=(N, 8)) + 2 * z
        row = lrt.diff(moments_of(x, y), kinds=["difference"]).table.iloc[0]
        hits.append(row["low"] <= 4.25 <= row["high"])
    # t intervals from five folds of 250 documents; binomial noise of 60 draws is ± .055.
    assert np.mean(hits) >= 0.87


def test_shuffled_pairs_leave_everything_unexplained() -> None:
    x, y, _ = rows_of(5)
    rows = lrt.diff(moments_of(x, y, null="full"), kinds=["gained"]).table
    np.testing.assert_allclose(rows["unexplained_shuffled"], 1, atol=0.05)
    without = lrt.diff(moments_of(x, y, null=False), kinds=["gained"]).table
    assert without["unexplained_shuffled"].isna().all()


def test_directions_become_vectors_of_the_model_that_they_belong_to() -> None:
    x, y, _ = rows_of(6)
    result = lrt.diff(moments_of(x, y))
    assert "difference" not in result.kinds
    gained, lost = result.vector("gained", 2), result.vector("lost", 1)
    assert (len(gained.direction), len(lost.direction)) == (24, 20)
    eigenvalue = result.table.set_index(["kind", "index"])["eigenvalue"]
    assert gained.norm**2 == pytest.approx(eigenvalue["gained", 2], rel=1e-5)
    assert gained.hook != lost.hook
    with pytest.raises(MismatchError, match="24 dimensions, and the source 20"):
        result.vector("gained", on="source")
    with pytest.raises(ValueError, match="directions 1 to 10"):
        result.direction("gained", 11)
    with pytest.raises(ValueError, match="equal widths"):
        result.n_above_noise("difference")


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_compared_is_refused() -> None:
    x, y, _ = rows_of(7)
    moments = moments_of(x, y)
    with pytest.raises(MismatchError, match="equal widths"):
        lrt.diff(moments, kinds=["difference"])
    with pytest.raises(ValueError, match="expected some of"):
        lrt.diff(moments, kinds=["new"])
    with pytest.raises(HookPointError, match="no hook pair"):
        lrt.diff(moments, ("blocks.1.hook_resid_post", "target"))
    few = moments_of(x[:20], y[:20])
    with pytest.raises(TooFewDocumentsError, match="20 dimensions"):
        lrt.diff(few)
    two = lrt.CrossMoments.from_activations({1: x, 2: x}, {1: y}, documents=np.arange(N) // 10)
    with pytest.raises(HookPointError, match="2 hook pairs"):
        lrt.diff(two)
    assert isinstance(lrt.diff(two.fit(), (2, 1)), ModelDiff)


def test_directions_are_read_on_text(pair: Any, corpus: list[str]) -> None:
    moments = lrt.harvest(pair, corpus, pairs=[(1, 2)], n_tokens=2000, progress=False, null=False)
    result = lrt.diff(moments, n_directions=2)
    reading = result.read(pair, corpus, n_tokens=600, context_length=32, progress=False)
    assert len(reading.table) == len(result.table)
    first = reading["gained", 1]
    assert [reading[key].index for key in reading] == list(result.table["index"])
    assert first.raises
    assert 0 <= first.density < 0.2
    # The component at the peak, from the two streams of the models.
    peaks = [context.target[context.peak] for context in first.contexts]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > float(result.directions["gained"].deviation[0])
    assert "What two models do not share" in reading.html
    with pytest.raises(KeyError, match="no direction"):
        reading["gained", 9]
    with pytest.raises(MismatchError):
        result.read(pair.reversed(), corpus, progress=False)


def test_a_component_is_that_of_the_streams(pair: Any, corpus: list[str]) -> None:
    moments = lrt.harvest(pair, corpus, pairs=[(1, 2)], n_tokens=2000, progress=False, null=False)
    result = lrt.diff(moments, n_directions=1, kinds=["gained"])
    # With so long a reach, the context begins with the window.
    reading = result.read(pair, corpus, n_tokens=600, reach=130, progress=False)
    context = reading["gained", 1].contexts[0]
    of = result.directions["gained"]
    # The component at the peak computed by hand, from the tokens before it.
    names = {pair.source.tokenizer.decode([i]): i for i in range(len(pair.source.tokenizer))}
    tokens = torch.tensor([[names[token] for token in context.tokens[: context.peak + 1]]])
    x, y = pair.source.capture(tokens, 1)[0, -1], pair.target.capture(tokens, 2)[0, -1]
    component = x @ of.read_source[0] + y @ of.read_target[0] - of.offset[0]
    assert float(component) == pytest.approx(context.target[context.peak], rel=1e-3)


def test_the_share_of_shuffled_pairs_is_that_of_their_own_map() -> None:
    x, y, _ = rows_of(8)
    moments = moments_of(x, y, null="full")
    result = lrt.diff(moments, kinds=["gained"])
    # The map of shuffled pairs by its normal equations, from the scatter of the fitting folds.
    null = moments.null_scatter(moments.pairs[0], test=False)
    xx, xy, yy = (matrix.numpy() for matrix in (null.xx, null.xy, null.yy))
    penalty = result.alpha["gained"] * np.trace(xx) / len(xx)
    inverse = np.linalg.inv(xx + penalty * np.eye(len(xx)))
    weight = inverse @ xy
    left = yy - weight.T @ xy - xy.T @ weight + weight.T @ xx @ weight
    unit = result.directions["gained"].unit.double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    free = null.n - 1 - np.trace(xx @ inverse)
    expected = ((unit @ left) * unit).sum(1) / free / (((unit @ yy) * unit).sum(1) / null.n)
    np.testing.assert_allclose(result.table["unexplained_shuffled"], expected, rtol=1e-6)


def test_a_kind_does_not_depend_on_which_others_are_asked_for() -> None:
    x, y, _ = rows_of(9)
    moments = moments_of(x, y[:, :20])
    together = lrt.diff(moments).table.set_index("kind")
    for kind in together.index.unique():
        alone = lrt.diff(moments, kinds=[kind]).table.set_index("kind")
        assert_frame_equal(alone, together.loc[[kind]])
