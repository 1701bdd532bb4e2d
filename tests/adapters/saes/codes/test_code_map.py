"""A map from codes is scikit-learn's ridge on the live features, with both solvers."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge

from lrt_lens.adapters.saes import CodeMap, fit_code_map
from lrt_lens.adapters.saes.codes._code_map import encode_states
from lrt_lens.adapters.saes.codes._moments import CodeMoments, SparseGram
from lrt_lens.adapters.saes.codes._ridge import NormalEquations, fit_codes, solutions
from lrt_lens.data import N_FOLDS, BlockPlan, iterate_blocks
from lrt_lens.errors import FileFormatError, MismatchError, NonFiniteError
from lrt_lens.models import ModelPair
from lrt_lens.moments._block_rows import block_rows
from lrt_lens.stitching import Stitch, fit_stitches

HOOK = "blocks.0.hook_resid_post"
DEAD = (3, 20)


class TinySae:
    """A ReLU SAE in five lines; the features of `DEAD` never fire."""

    def __init__(
        self, d: int, n_features: int = 24, seed: int = 0, hook_name: str | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.W_enc = torch.randn(d, n_features, generator=generator)
        self.W_dec = self.W_enc.T / self.W_enc.norm(dim=0)[:, None]
        self.b_enc = -2.0 * torch.ones(n_features)
        self.b_enc[list(DEAD)] = -1e6
        self.cfg = SimpleNamespace(metadata=SimpleNamespace(hook_name=hook_name))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.W_enc + self.b_enc).relu()


@pytest.fixture(scope="module")
def stitch(pair: ModelPair, corpus: list[str]) -> Stitch:
    return fit_stitches(
        pair,
        corpus,
        source_layers=[0],
        target_layers=[1],
        null=False,
        context_length=32,
        progress=False,
    ).best()


@pytest.fixture(scope="module")
def sae(pair: ModelPair) -> TinySae:
    return TinySae(pair.source.d_model)


def _rows(
    pair: ModelPair, stitch: Stitch, corpus: list[str]
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Part, source states and target states of each block, in float64."""
    plan, found = BlockPlan(context_length=32), []
    for block in iterate_blocks(corpus, pair.source, plan):
        x, y = (
            block_rows(model, [hook], block, 4096)[hook]
            for model, hook in (
                (pair.source, stitch.source_hook),
                (pair.target, stitch.target_hook),
            )
        )
        found.append((block.part, x.numpy(), y.double().numpy()))
    return found


def _naive(
    rows: list[tuple[int, np.ndarray, np.ndarray]], sae: TinySae, alphas: list[float]
) -> tuple[float, np.ndarray, float]:
    """Alpha, coefficients [live, d_target] and cross-validated R² by scikit-learn on rows."""
    fitting = [
        (part, sae.encode(torch.from_numpy(x)).double().numpy(), y)
        for part, x, y in rows
        if part < N_FOLDS
    ]
    codes, y = (
        np.concatenate([c for _, c, _ in fitting]),
        np.concatenate([y for _, _, y in fitting]),
    )
    fold = np.concatenate([np.full(len(c), part) for part, c, _ in fitting])
    codes = codes[:, (codes != 0).any(0)]

    def ridge(c: np.ndarray, target: np.ndarray, alpha: float) -> SklearnRidge:
        return SklearnRidge(alpha=alpha * c.var(0).sum() * len(c) / c.shape[1]).fit(c, target)

    def error(alpha: float, k: int) -> float:
        return float(
            (
                (
                    y[fold == k]
                    - ridge(codes[fold != k], y[fold != k], alpha).predict(codes[fold == k])
                )
                ** 2
            ).sum()
        )

    errors = {alpha: sum(error(alpha, k) for k in range(N_FOLDS)) for alpha in alphas}
    best = min(errors, key=lambda alpha: errors[alpha])
    variance = ((y - y.mean(0)) ** 2).sum()
    return best, ridge(codes, y, best).coef_.T, float(1 - errors[best] / variance)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_it_is_scikit_learns_ridge_with_the_penalty_that_folds_choose(
    pair: ModelPair, stitch: Stitch, sae: TinySae, corpus: list[str], solver: Any
) -> None:
    alphas = [1.0, 0.1, 1e-3, 1e-5]
    found = fit_code_map(
        pair, stitch, sae, corpus, alphas=alphas, solver=solver, context_length=32, progress=False
    )
    alpha, weight, r2 = _naive(_rows(pair, stitch, corpus), sae, alphas)
    assert found.alpha == alpha
    assert found.solver == solver
    np.testing.assert_allclose(
        found.weight.numpy(), weight, rtol=0, atol=2e-5 * np.abs(weight).max()
    )
    assert found.r2_cv == pytest.approx(r2, abs=1e-6)
    assert found.r2_cv == max(point[1] for point in found.curve)


def test_dead_features_have_no_row_and_count_their_firings(
    pair: ModelPair, stitch: Stitch, sae: TinySae, corpus: list[str]
) -> None:
    found = fit_code_map(pair, stitch, sae, corpus, alphas=[0.1], context_length=32, progress=False)
    assert not set(DEAD) & set(found.live.tolist())
    assert (found.firings[found.live] > 0).all()
    rows = [
        sae.encode(torch.from_numpy(x))
        for part, x, _ in _rows(pair, stitch, corpus)
        if part < N_FOLDS
    ]
    assert torch.equal(found.firings, (torch.cat(rows) != 0).sum(0))
    with pytest.raises(
        ValueError, match=r"feature 3 was active on 0 of [\d,]+ tokens of the fit and has no row"
    ):
        found.direction(3)
    with pytest.raises(
        IndexError, match="feature 24 is not in this SAE; it has 24 features: use 0 to 23"
    ):
        found.direction(24)
    often = int(found.firings[found.live].median()) + 1
    rare = fit_code_map(
        pair,
        stitch,
        sae,
        corpus,
        alphas=[0.1],
        min_firings=often,
        context_length=32,
        progress=False,
    )
    assert rare.live.tolist() == (found.firings >= often).nonzero()[:, 0].tolist()
    assert 0 < len(rare.live) < len(found.live)


def test_documents_of_the_test_fold_change_nothing(
    pair: ModelPair, stitch: Stitch, sae: TinySae, corpus: list[str]
) -> None:
    from lrt_lens.data import document_key, part_of

    tests = [text for text in corpus if part_of(document_key(text, 0)) >= N_FOLDS]
    fewer = [text for text in corpus if text not in tests[::2]]
    options: dict[str, Any] = {
        "alphas": [0.1, 0.01],
        "context_length": 32,
        "n_tokens": None,
        "progress": False,
    }
    whole, part = (fit_code_map(pair, stitch, sae, texts, **options) for texts in (corpus, fewer))
    assert len(tests) > 4
    torch.testing.assert_close(whole.weight, part.weight, rtol=1e-6, atol=1e-8)


def test_a_feature_steers_by_its_row(
    pair: Any, stitch: Stitch, sae: TinySae, corpus: list[str]
) -> None:
    found = fit_code_map(pair, stitch, sae, corpus, alphas=[0.1], context_length=32, progress=False)
    feature = int(found.live[5])
    vector = found.direction(feature)
    torch.testing.assert_close(vector.direction, found.weight[5].float())
    codes = torch.zeros(2, 24, dtype=torch.float64)
    codes[1, feature] = 1.0
    predicted = found.points(codes)
    torch.testing.assert_close(predicted[1] - predicted[0], found.weight[5])
    plain = pair.target.capture(corpus[0][:60], [stitch.target_hook])[stitch.target_hook]
    with vector.apply(pair.target, scale=2.0):
        steered = pair.target.capture(corpus[0][:60], [stitch.target_hook])[stitch.target_hook]
    expected = (2 * vector.direction).expand(steered.shape[1] - 4, -1)
    torch.testing.assert_close((steered - plain)[0, 4:], expected, rtol=1e-4, atol=1e-4)


def test_the_two_forms_answer_alike() -> None:
    generator = torch.Generator().manual_seed(3)
    codes = (torch.randn(400, 12, generator=generator) - 1).relu()
    y = torch.randn(400, 5, generator=generator) + codes[:, :5] + 7
    pair_of = [
        CodeMoments.empty(
            torch.ones(12, dtype=torch.int64),
            torch.arange(12),
            torch.full((5,), 7.0),
            sparse=sparse,
        )
        for sparse in (False, True)
    ]
    for moments in pair_of:
        for fold, index in enumerate(torch.arange(400).chunk(N_FOLDS)):
            for part in index.split(30):
                moments.add(fold, codes[part], y[part])
    dense, sparse = pair_of
    assert isinstance(sparse.folds[0].gram, SparseGram)
    torch.testing.assert_close(sparse.folds[2].gram.matrix, dense.folds[2].gram.matrix)
    torch.testing.assert_close(sparse.folds[2].gram.diagonal, dense.folds[2].gram.diagonal)
    weight, bias = (
        torch.randn(12, 5, generator=generator, dtype=torch.float64),
        torch.randn(5, generator=generator, dtype=torch.float64),
    )
    index = torch.arange(400).chunk(N_FOLDS)[2]
    expected = ((y[index].double() - 7 - codes[index].double() @ weight - bias) ** 2).sum(0)
    for moments in pair_of:
        torch.testing.assert_close(moments.folds[2].errors(weight, bias), expected)
    by_cholesky, by_gradients = (
        solutions(NormalEquations(moments.folds), [1.0, 1e-4]) for moments in pair_of
    )
    for one, other in zip(by_cholesky, by_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert fit_codes(dense, [1.0, 1e-4]).alpha == fit_codes(sparse, [1.0, 1e-4]).alpha


def test_memory_is_checked_before_anything_is_summed(
    pair: ModelPair, stitch: Stitch, sae: TinySae, corpus: list[str]
) -> None:
    options: dict[str, Any] = {"alphas": [0.1], "context_length": 32, "progress": False}
    with pytest.raises(
        ValueError,
        match=r"22 live features need .* with Cholesky and .* conjugate gradients .*may be taken",
    ):
        fit_code_map(pair, stitch, sae, corpus, memory=1000, **options)
    with pytest.raises(ValueError, match="or take solver='auto'"):
        fit_code_map(pair, stitch, sae, corpus, memory=1000, solver="cholesky", **options)
    # So few tokens that their codes are smaller than the codes' own second moments.
    wide = TinySae(pair.source.d_model, n_features=600, seed=1)
    few = corpus[:40]
    sizes = [
        fit_code_map(pair, stitch, wide, few, solver=solver, **options).solver
        for solver in ("cholesky", "cg")
    ]
    assert sizes == ["cholesky", "cg"]
    assert (
        fit_code_map(pair, stitch, wide, few, memory=12_000_000, min_firings=10, **options).solver
        == "cg"
    )


def test_it_comes_back_from_a_file(
    pair: ModelPair, stitch: Stitch, sae: TinySae, corpus: list[str], tmp_path: Path
) -> None:
    found = fit_code_map(
        pair, stitch, sae, corpus, alphas=[0.1, 0.01], context_length=32, progress=False
    )
    loaded = CodeMap.load(found.save(tmp_path / "codes.safetensors"))
    assert repr(loaded) == repr(found)
    assert loaded.source == found.source
    assert loaded.curve == found.curve
    assert torch.equal(loaded.weight, found.weight)
    assert torch.equal(loaded.firings, found.firings)
    x = torch.randn(3, pair.source.d_model)
    torch.testing.assert_close(encode_states(loaded, sae, x), encode_states(found, sae, x))
    with pytest.raises(FileFormatError, match="no file at"):
        CodeMap.load(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="is truncated or no safetensors file"):
        CodeMap.load(tmp_path / "broken.safetensors")


def test_what_does_not_belong_is_refused_in_one_sentence(
    pair: ModelPair,
    stitch: Stitch,
    sae: TinySae,
    corpus: list[str],
    unchecked: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fit(other: Any = sae, documents: Any = corpus, **options: Any) -> CodeMap:
        return fit_code_map(
            pair, stitch, other, documents, context_length=32, progress=False, **options
        )

    with pytest.raises(TypeError, match="a dict has no encode and W_dec"):
        fit({})
    with pytest.raises(MismatchError, match=r"this SAE has width 24; expected 16 dimensions"):
        fit(TinySae(24))
    with pytest.raises(
        MismatchError,
        match="trained at 'blocks.1.hook_resid_post'; expected 'blocks.0.hook_resid_post'",
    ):
        fit(TinySae(16, hook_name="blocks.1.hook_resid_post"))
    assert len(
        fit(TinySae(16, hook_name="blocks.1.hook_resid_pre"), alphas=[0.1]).live
    )  # the same place by its other name
    broken = TinySae(16)
    broken.b_enc[7] = float("nan")
    with pytest.raises(
        NonFiniteError, match=r"NaN or infinity for 1 of 24 features \(the first: 7\)"
    ):
        fit(broken)
    silent = TinySae(16)
    silent.b_enc[:] = -1e6
    with pytest.raises(ValueError, match="none of 24 features is active on 1 of"):
        fit(silent)
    with pytest.raises(TypeError, match="documents is a list_iterator, which can be read once"):
        fit(documents=iter(corpus))
    for options, message in (
        ({"solver": "lu"}, "solver is 'lu'; expected 'auto', 'cholesky' or 'cg'"),
        ({"alphas": [0.0]}, r"alphas is \[0.0\]; expected positive numbers"),
        ({"min_firings": 0}, "min_firings is 0; expected 1 or more"),
        ({"n_tokens": 0}, "n_tokens is 0; expected a positive number"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(**options)
    wide = TinySae(16, n_features=4000, seed=2)
    fit(wide, corpus[:60], alphas=[1.0])
    assert any(
        "tokens for" in message and "live features: without a penalty" in message
        for message in caplog.messages
    )
    found = fit(alphas=[0.1])
    with pytest.raises(
        MismatchError, match="the SAE has 4000 features; this map was fitted on an SAE of 24"
    ):
        encode_states(found, wide, torch.zeros(1, 16))
    with pytest.raises(
        MismatchError, match="codes have 5 features; this map was fitted on an SAE of 24"
    ):
        found.points(torch.zeros(1, 5))
    with pytest.raises(NonFiniteError, match="the code map holds NaN"):
        replace(found, bias=found.bias * float("nan"))
    assert stitch.source_hook == HOOK
