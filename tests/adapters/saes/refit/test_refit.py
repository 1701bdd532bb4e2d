"""Refits of SAEs between models: one call, its metadata, its files and its refusals."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig

from lrt_lens.adapters.saes import RefitSettings, SAERefit, evaluate_sae, measure_rows, refit_sae
from lrt_lens.data import N_FOLDS, BlockPlan, document_key, iterate_blocks, part_of
from lrt_lens.errors import MismatchError, TooFewDocumentsError
from lrt_lens.models import ModelPair
from lrt_lens.moments import ActivationCache, harvest
from lrt_lens.moments._block_rows import block_rows
from lrt_lens.stitching import Stitch, fit_stitches

SOURCE, TARGET = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
QUIET = {"progress": False, "context_length": 32, "min_firings": 2}
SETTINGS = RefitSettings(**QUIET)


def topk(d: int, hook: str = SOURCE, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sae = TopKSAE(TopKSAEConfig(d_in=d, d_sae=3 * d, k=4, apply_b_dec_to_input=True))
    sae.cfg.metadata.hook_name = hook
    return sae.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def stitch(pair: ModelPair, corpus: list[str]) -> Stitch:
    grid = fit_stitches(
        pair, corpus, source_layers=[0], target_layers=[1], context_length=32, progress=False
    )
    return grid.best()


@pytest.fixture(scope="module")
def sae(pair: ModelPair) -> Any:
    return topk(pair.source.d_model)


@pytest.fixture(scope="module")
def refitted(pair: ModelPair, stitch: Stitch, sae: Any, corpus: list[str]) -> Any:
    return stitch.transfer(sae, refit=SAERefit(pair, corpus, SETTINGS))


def unseen_rows(pair: ModelPair, corpus: list[str]) -> torch.Tensor:
    plan = BlockPlan(context_length=32)
    blocks = iterate_blocks(corpus, pair.source, plan)
    rows = [
        block_rows(pair.target, [TARGET], block, 4096)[TARGET]
        for block in blocks
        if block.part >= N_FOLDS
    ]
    return torch.cat(rows).float()


def test_a_refit_reconstructs_unseen_text_better_than_the_exact_transfer(
    pair: ModelPair, stitch: Stitch, sae: Any, refitted: Any, corpus: list[str]
) -> None:
    held_out = unseen_rows(pair, corpus)
    values = [
        measure_rows(one, held_out)["explained_variance"]
        for one in (stitch.transfer(sae), refitted)
    ]
    assert values[1] > values[0] + 0.05


def test_the_exact_transfer_stays_the_default(stitch: Stitch, sae: Any) -> None:
    transferred = stitch.transfer(sae)
    rows = torch.randn(20, transferred.cfg.d_in)
    expected = sae.encode(stitch.down.points(rows.double()).float())
    torch.testing.assert_close(
        transferred.encode(rows).to_dense(), expected.to_dense(), atol=1e-4, rtol=1e-4
    )
    assert "refit" not in transferred.cfg.metadata.to_dict()


def test_one_call_equals_two(
    pair: ModelPair, stitch: Stitch, sae: Any, refitted: Any, corpus: list[str]
) -> None:
    again = refit_sae(
        stitch.transfer(sae),
        pair.target,
        corpus,
        source=pair.source,
        source_sae=sae,
        settings=SETTINGS,
    )
    assert type(again) is type(sae)
    for name, weight in refitted.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, atol=1e-5, rtol=1e-4)
    assert again.cfg.metadata.refit["steps"] == ["encoder", "rates", "decoder"]
    assert again.cfg.metadata.transferred["source_hook"] == SOURCE


def test_plain_sae_lens_loads_it(refitted: Any, tmp_path: Path) -> None:
    refitted.save_model(tmp_path)
    loaded = SAE.load_from_disk(str(tmp_path))
    rows = torch.randn(9, loaded.cfg.d_in)
    torch.testing.assert_close(loaded(rows), refitted(rows))
    assert loaded.cfg.metadata.refit["n_rows"] == refitted.cfg.metadata.refit["n_rows"]


def test_a_cache_gives_the_same_rows(
    pair: ModelPair, stitch: Stitch, sae: Any, corpus: list[str], tmp_path: Path
) -> None:
    harvest(
        pair,
        corpus,
        source_layers=[0],
        target_layers=[1],
        context_length=32,
        cache=tmp_path / "cache",
        progress=False,
    )
    cache = ActivationCache.open(tmp_path / "cache")
    from_cache = stitch.transfer(sae, refit=SAERefit(pair, cache, SETTINGS))
    held_out = unseen_rows(pair, corpus)
    value = measure_rows(from_cache, held_out)["explained_variance"]
    exact = measure_rows(stitch.transfer(sae), held_out)["explained_variance"]
    assert value > exact + 0.05
    other = RefitSettings(**QUIET, seed=3)
    with pytest.raises(MismatchError, match="split by seed 0, and seed is 3"):
        refit_sae(topk(pair.target.d_model, TARGET), pair.target, cache, settings=other)


def test_from_one_layer_to_the_next_and_from_a_model_to_its_fine_tune(
    pair: ModelPair, load: Any, corpus: list[str]
) -> None:
    own = topk(pair.target.d_model, TARGET)
    next_layer = refit_sae(own, pair.target, corpus, source=pair.target, at=2, settings=SETTINGS)
    assert next_layer.cfg.metadata.hook_name == "blocks.2.hook_resid_post"
    assert next_layer.cfg.metadata.refit["source_hook"] == TARGET
    tuned = load("llama", d=24, layers=3, seed=7)
    moved = refit_sae(own, tuned, corpus, source=pair.target, settings=SETTINGS)
    assert moved.cfg.metadata.model_name == tuned.name
    assert moved.cfg.metadata.hook_name == TARGET
    assert own.cfg.metadata.hook_name == TARGET  # the SAE that was given is not changed


def test_other_text_in_the_test_fold_changes_nothing(
    pair: ModelPair, stitch: Stitch, sae: Any, refitted: Any, corpus: list[str]
) -> None:
    def part(text: str) -> int:
        return part_of(document_key(text, 0))

    changed = []
    for text in corpus:
        words = text.split()
        variants = (" ".join(random.Random(i).sample(words, len(words))) for i in range(1000))
        is_fitted = part(text) < N_FOLDS
        changed.append(text if is_fitted else next(v for v in variants if part(v) >= N_FOLDS))
    assert changed != corpus
    again = stitch.transfer(sae, refit=SAERefit(pair, changed, SETTINGS))
    for name, weight in refitted.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("options", [{"encoder": True}, {"rates": True}])
def test_steps_that_need_a_source_say_so(
    pair: ModelPair, corpus: list[str], options: dict[str, bool]
) -> None:
    own = topk(pair.target.d_model, TARGET)
    [name] = options
    with pytest.raises(ValueError, match=f"{name}=True needs the codes of the source"):
        refit_sae(own, pair.target, corpus, **options)


def test_no_step_at_all_is_refused(pair: ModelPair, corpus: list[str]) -> None:
    with pytest.raises(ValueError, match="at least one step"):
        refit_sae(topk(pair.target.d_model, TARGET), pair.target, corpus, decoder=False)


def test_another_width_another_hook_and_another_seed_are_refused(
    pair: ModelPair, stitch: Stitch, sae: Any, corpus: list[str]
) -> None:
    with pytest.raises(MismatchError, match=r"transfer the SAE through a stitch first"):
        refit_sae(sae, pair.target, corpus, source=pair.source)
    with pytest.raises(MismatchError, match="hook"):
        refit_sae(topk(pair.target.d_model, TARGET), pair.target, corpus, at=2)
    with pytest.raises(MismatchError, match="stitch of seed 0, and seed is 1"):
        refit_sae(stitch.transfer(sae), pair.target, corpus, seed=1)
    nameless = topk(pair.target.d_model)
    nameless.cfg.metadata.hook_name = None
    with pytest.raises(ValueError, match="give at="):
        refit_sae(nameless, pair.target, corpus)


@pytest.mark.usefixtures("unchecked")
def test_text_alone_is_no_refit(
    pair: ModelPair, stitch: Stitch, sae: Any, corpus: list[str]
) -> None:
    wrong: Any = corpus
    with pytest.raises(TypeError, match=r"expected the models and the text .*lrt.SAERefit"):
        stitch.transfer(sae, refit=wrong)
    refit: Any = SAERefit(pair, corpus)
    with pytest.raises(TypeError, match=r"expected True or lrt.RefitSettings"):
        evaluate_sae(pair, stitch, sae, corpus, refit=refit)


def test_few_documents_are_refused(pair: ModelPair, corpus: list[str]) -> None:
    own = topk(pair.target.d_model, TARGET)
    with pytest.raises(TooFewDocumentsError):
        refit_sae(own, pair.target, corpus[:1], settings=SETTINGS)


def test_an_sae_that_never_fires_is_refused(pair: ModelPair, corpus: list[str]) -> None:
    from sae_lens import StandardSAE, StandardSAEConfig

    silent = StandardSAE(StandardSAEConfig(d_in=pair.target.d_model, d_sae=8))
    silent.b_enc.data.fill_(-1e6)
    silent.cfg.metadata.hook_name = TARGET
    with pytest.raises(ValueError, match="none of 8 features is active"):
        refit_sae(silent, pair.target, corpus, settings=SETTINGS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_tokens": 0}, "n_tokens is 0"),
        ({"alphas": ()}, "alphas is"),
        ({"encoder_alphas": (-1.0,)}, "encoder_alphas is"),
        ({"solver": "qr"}, "solver is 'qr'"),
        ({"n_alternations": -1}, "n_alternations is -1"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RefitSettings(**options)


def test_an_evaluation_compares_the_refit_with_equally_refitted_controls(
    pair: ModelPair, stitch: Stitch, sae: Any, corpus: list[str]
) -> None:
    result = evaluate_sae(
        pair, stitch, sae, corpus, refit=SETTINGS, n_random=2, context_length=32, progress=False
    )
    fvu = result.summary.set_index("arm")["fvu"]
    assert fvu["refitted"] < fvu["transferred"]
    assert {"shuffled_refitted", "random_refitted"} <= set(fvu.index)
    assert result.difference("refitted", "random_refitted", "fvu").value == pytest.approx(
        fvu["refitted"] - fvu["random_refitted"]
    )
    assert len(result.figure().data) > 0
    with pytest.raises(ValueError, match="folds is 'all' and refit is given"):
        evaluate_sae(pair, stitch, sae, corpus, refit=True, folds="all")
