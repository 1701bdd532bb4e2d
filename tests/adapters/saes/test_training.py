"""Training of SAEs: SAELens' own result, seeds, hooks, rows, and errors."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import StandardTrainingSAEConfig, TopKSAE, TopKSAEConfig, TopKTrainingSAEConfig

from lrt_lens.adapters.saes import SAERows, measure_rows, train_sae
from lrt_lens.adapters.saes._training import tokens_to
from lrt_lens.bundled import demo_sae
from lrt_lens.errors import MismatchError, NonFiniteError, TooFewDocumentsError
from lrt_lens.models import HookedModel
from tests.figures.counts import counts_of

HOOK = "blocks.1.hook_resid_post"
D = 12


@pytest.fixture(scope="module")
def rows() -> SAERows:
    """Rows of sparse combinations of 24 directions with a mean, which an SAE can find."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(24, D, generator=generator), dim=1)
    codes = torch.rand(5000, 24, generator=generator) * (
        torch.rand(5000, 24, generator=generator) < 0.1
    )
    data = codes @ directions * 30 + 50
    return SAERows.from_tensors(data[:4000], data[4000:], hook=HOOK)


def _train(rows: SAERows, **options: Any) -> Any:
    return train_sae(
        None,
        rows,
        **{
            "d_sae": 24,
            "k": 4,
            "n_tokens": 12_800,
            "batch_rows": 128,
            "lr": 3e-3,
            "progress": False,
        }
        | options,
    )


@pytest.fixture(scope="module")
def trained(rows: SAERows) -> Any:
    return _train(rows)


def test_training_explains_held_out_rows(trained: Any) -> None:
    values = trained.history["explained_variance"]
    assert values.iloc[-1] > 0.6 > values.iloc[0]
    assert list(trained.history["tokens"])[-1] == 12_800
    assert (trained.history["l0"] <= 4).all()
    assert counts_of(trained.figure()) == "n = 1,000 held-out tokens"


def test_the_result_works_on_rows_as_they_are(rows: SAERows, trained: Any) -> None:
    """The scale of training is folded back: plain float64 sums give the history's last value."""
    assert trained.sae.cfg.architecture() == "topk"
    assert not trained.sae.cfg.rescale_acts_by_decoder_norm
    x = rows.held_out.double().numpy()
    state = {key: value.double().numpy() for key, value in trained.sae.state_dict().items()}
    pre = (x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]
    kept = np.argsort(pre, axis=1)[:, -4:]
    codes = np.zeros_like(pre)
    np.put_along_axis(codes, kept, np.clip(np.take_along_axis(pre, kept, 1), 0, None), 1)
    error = ((x - codes @ state["W_dec"] - state["b_dec"]) ** 2).sum()
    assert 1 - error / ((x - x.mean(0)) ** 2).sum() == pytest.approx(
        trained.history["explained_variance"].iloc[-1], abs=1e-4
    )


def test_one_seed_is_one_result_and_global_randomness_is_untouched(
    rows: SAERows, trained: Any
) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = _train(rows)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(again.sae.W_dec, trained.sae.W_dec)
    assert not torch.equal(_train(rows, seed=1, n_tokens=128).sae.W_dec, trained.sae.W_dec)


def test_init_starts_where_the_other_sae_is_and_leaves_it_alone(
    rows: SAERows, trained: Any
) -> None:
    weights = trained.sae.W_dec.clone()
    more = _train(rows, init=trained.sae, n_tokens=1280)
    assert more.history["explained_variance"].iloc[0] == pytest.approx(
        trained.history["explained_variance"].iloc[-1], abs=1e-4
    )
    assert torch.equal(weights, trained.sae.W_dec)
    assert float(more.decoder_cosine.median()) > float(trained.decoder_cosine.median())


def test_the_steps_are_those_of_saelens_own_loop(rows: SAERows) -> None:
    """Training gives the weights of SAELens' ``fit`` on the same batches."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    from lrt_lens.adapters.saes._training import inference_sae, training_sae

    centred = rows.held_out - rows.held_out.mean(0)
    small = SAERows.from_tensors(centred[:800], centred[800:], hook=HOOK)
    config = TopKTrainingSAEConfig(
        d_in=D, d_sae=24, k=4, aux_loss_coefficient=0.0, rescale_acts_by_decoder_norm=False
    )
    ours = train_sae(
        None, small, config=config, n_tokens=1280, batch_rows=128, lr=1e-3, seed=0, progress=False
    )
    batches = small.batches(128, seed=0)
    first = next(batches)
    mean = first.mean(0)
    scale = float(D**0.5 / (first - mean).norm(dim=1).median())
    torch.manual_seed(0)
    theirs = training_sae(replace(config))
    theirs.b_dec.data.copy_(mean * scale)
    settings = SAETrainerConfig(
        1280, 128, lr=1e-3, lr_end=1e-4, logger=LoggingConfig(log_to_wandb=False)
    )
    SAETrainer(settings, theirs, (batch * scale for batch in batches)).fit()
    theirs.fold_activation_norm_scaling_factor(scale)
    torch.testing.assert_close(ours.sae.W_dec, inference_sae(theirs, "", small).W_dec)


def test_another_architecture_by_config(rows: SAERows) -> None:
    found = _train(
        rows, config=StandardTrainingSAEConfig(d_in=D, d_sae=24, l1_coefficient=0.01), n_tokens=1280
    )
    assert found.sae.cfg.architecture() == "standard"
    assert found.flops_per_token > 0


def test_flops_are_the_matrix_products(trained: Any) -> None:
    """A step has six matrix products of 2·d·m FLOPs per row.

    Forward 2; backward 2 for the weights, 1 for the codes, and 1 for b_dec through the input.
    """
    assert trained.flops_per_token == pytest.approx(6 * 2 * D * 24)


def test_documents_become_rows_and_no_hook_stays(model: HookedModel, corpus: list[str]) -> None:
    found = train_sae(
        model,
        corpus,
        at=1,
        d_sae=32,
        k=4,
        n_tokens=512,
        batch_rows=64,
        context_length=32,
        progress=False,
    )
    assert found.sae.cfg.metadata.hook_name == HOOK
    assert found.sae.cfg.metadata.model_hash == model.identity.config_hash
    rows = SAERows.from_documents(model, corpus, at=1, context_length=32)
    assert rows.width == model.d_model
    training = torch.cat(list(rows.chunks()))
    assert len(training) > len(rows.held_out) > 0
    assert not set(map(tuple, rows.held_out[:50].tolist())) & set(map(tuple, training.tolist()))


def test_an_interrupt_leaves_no_hook(
    model: HookedModel, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.training.sae_trainer import SAETrainer

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SAETrainer, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_sae(
            model,
            corpus,
            at=1,
            d_sae=32,
            n_tokens=256,
            batch_rows=64,
            k=4,
            context_length=32,
            progress=False,
        )
    modules = model.bridge.modules()
    assert not any(hook for module in modules for hook in module._forward_hooks.values())


def test_batches_go_through_every_row_once_an_epoch() -> None:
    data = torch.arange(96.0)[:, None]
    for buffer in (32, 1000):
        rows = SAERows("h", data[:8], lambda: iter(data.split(20)))
        batches = rows.batches(8, seed=0, buffer_rows=buffer)
        epoch = (
            torch.cat([next(batches) for _ in range(12)])
            if buffer == 1000
            else torch.cat([next(batches) for _ in range(10)])
        )
        assert len(set(epoch[:, 0].tolist())) == len(epoch)


def test_measures_are_plain_sums(rows: SAERows, trained: Any) -> None:
    found = measure_rows(trained.sae, rows.held_out)
    codes = trained.sae.encode(rows.held_out)
    assert found["l0"] == pytest.approx(float((codes != 0).sum(1).double().mean()))
    assert found["dead_fraction"] == pytest.approx(float((codes != 0).sum(0).eq(0).double().mean()))


def test_tokens_to_a_threshold() -> None:
    history = pd.DataFrame({"tokens": [0, 10, 20], "explained_variance": [0.0, 0.5, 0.7]})
    assert tokens_to(history, 0.6) == pytest.approx(15)
    assert np.isnan(tokens_to(history, 0.8))


def test_bad_input_is_refused(
    rows: SAERows, trained: Any, model: HookedModel, corpus: list[str]
) -> None:
    wide = TopKSAE(TopKSAEConfig(d_in=D + 1, d_sae=24, k=4))
    with pytest.raises(MismatchError, match="this SAE has width 13; expected 12"):
        _train(rows, init=wide)
    foreign = TopKSAE(TopKSAEConfig(d_in=D, d_sae=24, k=4))
    foreign.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    with pytest.raises(MismatchError, match="trained at 'blocks.0"):
        _train(rows, init=foreign)
    with pytest.raises(MismatchError, match="config is 'standard'"):
        _train(rows, init=trained.sae, config=StandardTrainingSAEConfig(d_in=D, d_sae=24))
    with pytest.raises(NonFiniteError, match="hold NaN"):
        SAERows.from_tensors(rows.held_out, torch.full((3, D), float("nan")), hook=HOOK)
    broken = SAERows.from_tensors(torch.full((300, D), float("inf")), rows.held_out, hook=HOOK)
    with pytest.raises(NonFiniteError, match="training rows"):
        _train(broken)
    with pytest.raises(TooFewDocumentsError, match="fewer than one batch"):
        _train(SAERows.from_tensors(rows.held_out[:50], rows.held_out, hook=HOOK))
    with pytest.raises(TooFewDocumentsError):
        train_sae(model, corpus[:2], at=1, progress=False)
    with pytest.raises(ValueError, match="less than one batch"):
        _train(rows, n_tokens=10)
    once: Iterator[str] = iter(corpus)
    with pytest.raises(ValueError, match="iterator"):
        train_sae(model, once, at=1, progress=False)


def test_an_unknown_bundled_sae_is_named() -> None:
    with pytest.raises(ValueError, match="no bundled SAE"):
        demo_sae("middle")


@pytest.mark.parametrize("normalisation", ["expected_average_only_in", "layer_norm"])
def test_a_config_that_normalises_its_inputs_is_refused(rows: SAERows, normalisation: str) -> None:
    from sae_lens import TopKTrainingSAEConfig

    config = TopKTrainingSAEConfig(d_in=D, d_sae=24, k=4)
    config.normalize_activations = normalisation
    with pytest.raises(MismatchError, match=rf"'{normalisation}'; expected 'none'"):
        _train(rows, config=config)
