"""Steps of a refit against scikit-learn, autograd and plain counts."""

from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import (
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from scipy.sparse import csr_matrix
from sklearn.linear_model import Ridge

from lrt_lens.adapters.saes import RefitSettings
from lrt_lens.adapters.saes._folding import FoldedSae
from lrt_lens.adapters.saes.refit._alternation import improve_encoder
from lrt_lens.adapters.saes.refit._decoder import refit_decoder
from lrt_lens.adapters.saes.refit._encoder import match_rates, read_out
from lrt_lens.adapters.saes.refit._states import RefitRows
from lrt_lens.adapters.saes.refit._steps import codes_of, refit_weights

D, FEATURES, K, ROWS = 10, 24, 3, 600
CLASSES: dict[str, tuple[Any, Any]] = {
    "standard": (StandardSAE, StandardSAEConfig),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig),
    "gated": (GatedSAE, GatedSAEConfig),
    "topk": (TopKSAE, TopKSAEConfig),
}


def draw(kind: str, d: int = D, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sae_class, config = CLASSES[kind]
    sae = sae_class(config(d_in=d, d_sae=FEATURES, **({"k": K} if kind == "topk" else {})))
    for name, parameter in sae.named_parameters():
        value = torch.randn(parameter.shape)
        if name in ("b_enc", "b_gate"):
            value = value - 2.0
        parameter.data.copy_(value.abs() / 2 if name == "threshold" else value)
    return sae.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def states() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(D, D, generator=generator)
    return torch.randn(ROWS, D, generator=generator) @ mixing + 5 * torch.ones(D)


@pytest.fixture(scope="module")
def folds() -> torch.Tensor:
    return torch.arange(ROWS) % 5


@pytest.fixture(scope="module")
def codes(states: torch.Tensor) -> Any:
    """Codes of a source whose features are noisy functions of the target's states."""
    generator = torch.Generator().manual_seed(4)
    centred = states.double() - states.double().mean(0)
    weight = torch.randn(D, FEATURES, generator=generator, dtype=torch.float64)
    noise = torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64)
    values = (centred @ weight / 5 + noise - 2.0).clamp_min(0)
    values[:, -1] = 0
    return csr_matrix(values.numpy())


def test_the_read_out_is_the_ridge_regression_of_scikit_learn(
    states: torch.Tensor, folds: torch.Tensor, codes: Any
) -> None:
    alphas = (1.0, 0.1, 0.01)
    fit = read_out(states, folds, codes, alphas)
    y, c = states.double().numpy(), codes.toarray()

    def sklearn(rows: np.ndarray, feature: int, alpha: float) -> Ridge:
        of_rows = y[rows] - y[rows].mean(0)
        # The same penalty in scikit-learn's units: λ·tr(S)/d, the mean eigenvalue of the scatter.
        unit = np.linalg.eigvalsh(of_rows.T @ of_rows).mean()
        return Ridge(alpha=alpha * unit).fit(y[rows], c[rows, feature])

    for feature in (0, 7, FEATURES - 2):
        errors = []
        for alpha in alphas:
            error = 0.0
            for fold in range(5):
                held_out = (folds == fold).numpy()
                model = sklearn(np.flatnonzero(~held_out), feature, alpha)
                error += ((c[held_out, feature] - model.predict(y[held_out])) ** 2).sum()
            errors.append(error)
        best = alphas[int(np.argmin(errors))]
        assert float(fit.alpha[feature]) == best
        variance = ((c[:, feature] - c[:, feature].mean()) ** 2).sum()
        assert float(fit.r2_cv[feature]) == pytest.approx(1 - min(errors) / variance, abs=1e-10)
        model = sklearn(np.arange(ROWS), feature, best)
        np.testing.assert_allclose(fit.weight[:, feature].numpy(), model.coef_, atol=1e-10)
        assert float(fit.bias[feature]) == pytest.approx(model.intercept_, abs=1e-9)
    assert bool(fit.r2_cv[-1].isnan())


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated"])
def test_features_fire_on_as_many_rows_as_in_the_source(
    states: torch.Tensor, codes: Any, kind: str
) -> None:
    sae = draw(kind)
    folded = match_rates(FoldedSae.of(sae), kind, None, states, codes)
    # float64, so that no row at the threshold is decided by rounding
    with torch.no_grad():
        found = folded.build(sae).double().encode(states.double())
    counts = np.diff(codes.tocsc().indptr)
    np.testing.assert_array_equal((found != 0).sum(0).numpy()[:-1], counts[:-1])
    assert int((found[:, -1] != 0).sum()) <= 1  # it never fires in the source
    if kind != "gated":
        # Where they fire, they are as strong as in the source on average.
        means = codes.toarray()[:, :-1].sum(0) / counts[:-1]
        theta = sae.state_dict().get("threshold", torch.zeros(FEATURES)).numpy()[:-1]
        reachable = means > theta
        ours = found.sum(0).numpy()[:-1] / counts[:-1]
        assert reachable.sum() > 10
        np.testing.assert_allclose(ours[reachable], means[reachable], rtol=1e-6)


def test_a_topk_encoder_keeps_k_and_comes_near_the_rates(states: torch.Tensor) -> None:
    source = draw("topk", seed=5)
    codes = codes_of(source, states)
    start = draw("topk", seed=6)
    before = start.encode(states)
    folded = match_rates(FoldedSae.of(start), "topk", K, states, codes)
    after = folded.build(start).encode(states)
    goal = np.diff(codes.tocsc().indptr) / ROWS

    def distance(values: Any) -> float:
        rate = (values.to_dense() if values.is_sparse else values).ne(0).double().mean(0).numpy()
        return float(np.abs(rate - goal).sum())

    assert distance(after) < 0.5 * distance(before)
    active = (after.to_dense() if after.is_sparse else after).ne(0).sum(1)
    assert float((active == K).double().mean()) >= 0.97


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_the_decoder_is_ridge_towards_the_old_one(
    states: torch.Tensor, folds: torch.Tensor, solver: str
) -> None:
    sae = draw("jumprelu")
    folded = FoldedSae.of(sae)
    settings = RefitSettings(alphas=(0.5,), min_firings=20, solver=solver)
    fit = refit_decoder(folded, codes_of(sae, states), states, folds, settings)
    f = sae.encode(states).double().numpy()
    live = (f != 0).sum(0) >= 20
    assert 0 < live.sum() < FEATURES
    residual = states.double().numpy() - f @ folded.W_dec.numpy() - folded.b_dec.numpy()
    centred = f[:, live] - f[:, live].mean(0)
    unit = (centred**2).sum() / live.sum()
    model = Ridge(alpha=0.5 * unit, solver="cholesky").fit(f[:, live], residual)
    expected = folded.W_dec.numpy().copy()
    expected[live] += model.coef_.T
    np.testing.assert_allclose(fit.folded.W_dec.numpy(), expected, atol=2e-5)
    np.testing.assert_array_equal(fit.folded.W_dec[~live].numpy(), folded.W_dec[~live].numpy())
    np.testing.assert_allclose(
        fit.folded.b_dec.numpy(), folded.b_dec.numpy() + model.intercept_, atol=2e-5
    )
    assert (fit.n_live, fit.solver) == (int(live.sum()), solver)


def test_fewer_rows_than_live_features_need_a_penalty(
    states: torch.Tensor, folds: torch.Tensor
) -> None:
    sae = draw("standard")
    settings = RefitSettings(alphas=(0.0,), min_firings=1)
    with pytest.raises(ValueError, match="12 rows for .. live features, and the only penalty is 0"):
        refit_decoder(
            FoldedSae.of(sae), codes_of(sae, states[:12]), states[:12], folds[:12], settings
        )


def test_a_huge_penalty_returns_the_old_decoder(states: torch.Tensor, folds: torch.Tensor) -> None:
    sae = draw("standard")
    folded = FoldedSae.of(sae)
    fit = refit_decoder(folded, codes_of(sae, states), states, folds, RefitSettings(alphas=(1e12,)))
    torch.testing.assert_close(fit.folded.W_dec, folded.W_dec, atol=1e-8, rtol=0)


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk"])
def test_an_improved_encoder_reconstructs_better_with_the_same_active_features(
    states: torch.Tensor, kind: str
) -> None:
    sae = draw(kind)
    folded = FoldedSae.of(sae)
    active = sae.encode(states)
    active = (active.to_dense() if active.is_sparse else active).ne(0)

    def error(weights: FoldedSae) -> torch.Tensor:
        values = (states.double() @ weights.W_enc + weights.biases["b_enc"]) * active
        return (states.double() - weights.b_dec - values @ weights.W_dec).square().sum()

    improved = improve_encoder(folded, codes_of(sae, states), states)
    assert float(error(improved)) < 0.9 * float(error(folded))
    # The first step of conjugate gradients descends: its direction is minus the gradient, scaled
    # per feature. Autograd says what the gradient is.
    weight = folded.W_enc.clone().requires_grad_()
    values = (states.double() @ weight + folded.biases["b_enc"]) * active
    goal = states.double() - folded.b_dec
    (goal - values @ folded.W_dec).square().sum().backward()
    step = improved.W_enc - folded.W_enc
    assert weight.grad is not None
    assert float((step * weight.grad).sum()) < 0


def test_a_refit_of_a_known_code_finds_decoder_and_encoder(folds: torch.Tensor) -> None:
    """Target states that are a linear image of sparse codes: the right SAE is known."""
    generator = torch.Generator().manual_seed(1)
    source = draw("standard", d=FEATURES)
    # Codes that are read exactly: x is the codes themselves, through an identity encoder.
    source.W_enc.copy_(torch.eye(FEATURES))
    source.b_enc.zero_()
    source.b_dec.zero_()
    values = torch.rand(ROWS, FEATURES, generator=generator)
    x = values * (torch.rand(ROWS, FEATURES, generator=generator) < 0.2)
    decoder = torch.randn(FEATURES, 2 * FEATURES, generator=generator)
    y = x @ decoder + 1.0
    start = draw("standard", d=2 * FEATURES)
    codes = codes_of(source, x)
    settings = RefitSettings(alphas=(1e-9,), encoder_alphas=(1e-9,), rates=False)
    refit = refit_weights(FoldedSae.of(start), start, RefitRows(y, x, folds), codes, settings)
    found = refit.sae.encode(y)
    # 1e-4: the encoder is stored in float32, and codes of 0 are ±1e-6 before the ReLU.
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(refit.sae.decode(found), y, atol=1e-3, rtol=1e-4)
    assert refit.record.steps == ("encoder", "decoder")
    assert refit.record.encoder_r2 == pytest.approx(1, abs=1e-6)
    assert refit.record.flops > 0
