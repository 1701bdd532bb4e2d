"""Recentred probes: known shifts are undone, labels are not read, every arm is recentred alike."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lrt_lens as lrt
from lrt_lens.adapters.probes import LinearProbe, Recentring, evaluate_probe, recentre_probe
from lrt_lens.adapters.probes._logistic import log_probabilities, probabilities
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.stitching import Stitch, fit_stitches

WHO = ("cat", "dog", "bird", "child", "man", "woman")
PLACES = ("house", "garden", "tree", "river", "stone")
TEXTS = [
    f"the {mood} little {who} was in the {place} and {mood}"
    for mood in ("happy", "sad")
    for who in WHO
    for place in PLACES
]
LABELS = [1] * 30 + [0] * 30
NONE: dict[str, Any] = {
    "ks": (),
    "n_random": 0,
    "n_permuted": 0,
    "n_shuffled": 0,
    "progress": False,
}


@pytest.fixture(scope="module")
def stitch(pair: ModelPair, corpus: list[str]) -> Stitch:
    options: dict[str, Any] = {"n_tokens": None, "context_length": 32, "null": "full"}
    layers: dict[str, Any] = {"source_layers": [1], "target_layers": [2]}
    return fit_stitches(pair, corpus, **layers, **options, progress=False).best()


@pytest.fixture(scope="module")
def probe(pair: ModelPair, stitch: Stitch) -> LinearProbe:
    return LinearProbe.fit(pair.source, TEXTS, LABELS, at=stitch.source_hook, read="mean")


@pytest.fixture(scope="module")
def twin(pair: ModelPair) -> ModelPair:
    """The source beside itself, where a transfer changes nothing but what a test changes."""
    return ModelPair(pair.source, pair.source)


def _scores(probe: LinearProbe, model: Any, texts: list[str] = TEXTS) -> np.ndarray:
    return probe.logits(probe.rows(model, texts)[0])


@pytest.mark.parametrize("read", ["last", "mean", "max", "every"])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_known_affine_change_of_the_scores_is_undone(
    twin: ModelPair, read: Any, classes: int
) -> None:
    labels = [i % classes for i in range(len(TEXTS))]
    probe = LinearProbe.fit(twin.source, TEXTS, labels, at=1, read=read)
    scale = torch.tensor([0.2, 30.0, 4.0], dtype=torch.float64)[: len(probe.bias)]
    shifted = replace(probe, weight=probe.weight * scale, bias=probe.bias * scale + 17.0)
    recentred = recentre_probe(probe, shifted, twin, TEXTS)
    np.testing.assert_allclose(
        _scores(recentred, twin.source), _scores(probe, twin.source), rtol=0, atol=1e-10
    )
    assert recentred.n_recentred == len(TEXTS)


def test_the_direction_stays_parallel_and_the_auroc_unchanged(
    pair: ModelPair, stitch: Stitch, probe: LinearProbe
) -> None:
    raw = stitch.transfer(probe)
    recentred = recentre_probe(probe, raw, pair, TEXTS)
    ratio = recentred.weight / raw.weight
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0])))
    assert float(ratio[0]) > 0
    assert recentred.auroc(pair.target, TEXTS, LABELS) == raw.auroc(pair.target, TEXTS, LABELS)
    # A shift by which all probabilities round to 1 makes no ties.
    far = replace(raw, bias=raw.bias + 60.0)
    assert far.auroc(pair.target, TEXTS, LABELS) == raw.auroc(pair.target, TEXTS, LABELS)


def test_mean_and_spread_of_the_scores_are_those_of_the_source(
    pair: ModelPair, stitch: Stitch, probe: LinearProbe
) -> None:
    recentred = stitch.transfer(probe, recentre=Recentring(pair, TEXTS))
    ours, theirs = _scores(recentred, pair.target), _scores(probe, pair.source)
    np.testing.assert_allclose([ours.mean(), ours.std()], [theirs.mean(), theirs.std()])
    assert "recentred on 60 texts" in repr(recentred)


def test_no_label_is_read(pair: ModelPair, stitch: Stitch, probe: LinearProbe) -> None:
    assert "labels" not in inspect.signature(recentre_probe).parameters
    settings: dict[str, Any] = {"test_texts": TEXTS[1::2], "test_labels": LABELS[1::2], **NONE}
    turned = [1 - label for label in LABELS[::2]]
    ours, theirs = (
        evaluate_probe(pair, stitch, TEXTS[::2], labels, probe=probe, **settings)
        for labels in (LABELS[::2], turned)
    )
    torch.testing.assert_close(
        ours.probes["transferred"].bias, theirs.probes["transferred"].bias, rtol=0, atol=0
    )


def test_a_file_keeps_what_was_recentred(
    pair: ModelPair, stitch: Stitch, probe: LinearProbe, tmp_path: Path
) -> None:
    recentred = stitch.transfer(probe, recentre=lrt.Recentring(pair, TEXTS[:20]))
    loaded = LinearProbe.load(recentred.save(tmp_path / "probe.safetensors"))
    assert (loaded.n_recentred, loaded.recentring_corpus) == (20, recentred.recentring_corpus)
    torch.testing.assert_close(loaded.weight, recentred.weight, rtol=0, atol=0)
    others = stitch.transfer(probe, recentre=Recentring(pair, TEXTS[1:21]))
    assert others.recentring_corpus != recentred.recentring_corpus


def test_a_transfer_of_a_recentred_probe_is_not_recentred(
    pair: ModelPair, stitch: Stitch, probe: LinearProbe
) -> None:
    there = stitch.transfer(probe, recentre=Recentring(pair, TEXTS))
    back = stitch.reversed().transfer(there)
    assert (back.n_recentred, back.recentring_corpus) == (0, "")


def test_bad_input_is_refused(
    pair: ModelPair, stitch: Stitch, probe: LinearProbe, twin: ModelPair
) -> None:
    raw = stitch.transfer(probe)
    with pytest.raises(TypeError, match=r"recentre is of type list; .*lrt\.Recentring"):
        stitch.transfer(probe, recentre=TEXTS)
    with pytest.raises(ValueError, match="7 texts can be read; recentring needs at least 8"):
        recentre_probe(probe, raw, pair, TEXTS[:7])
    with pytest.raises(ValueError, match="same for all 12 texts in the source"):
        recentre_probe(probe, raw, pair, TEXTS[:1] * 12)
    with pytest.raises(MismatchError):
        recentre_probe(probe, raw, pair.reversed(), TEXTS)
    with pytest.raises(MismatchError):
        recentre_probe(probe, raw, twin, TEXTS)
    with pytest.raises(ValueError, match="classes"):
        recentre_probe(probe, replace(raw, classes=("a", "b")), pair, TEXTS)
    with pytest.raises(ValueError, match="read"):
        recentre_probe(probe, replace(raw, read="last"), pair, TEXTS)


# ------------------------------------------------------------------------------------- evaluation


def _probes_of(result: Any) -> tuple[LinearProbe, LinearProbe]:
    return result.probes["transferred"], result.probes["transferred_raw"]


def test_the_training_texts_set_the_threshold_by_default(
    pair: ModelPair, stitch: Stitch, probe: LinearProbe
) -> None:
    split: dict[str, Any] = {"test_texts": TEXTS[1::2], "test_labels": LABELS[1::2]}
    result = evaluate_probe(pair, stitch, TEXTS[::2], LABELS[::2], probe=probe, **split, **NONE)
    ours, raw = _probes_of(result)
    expected = stitch.transfer(probe, recentre=Recentring(pair, TEXTS[::2]))
    torch.testing.assert_close(ours.bias, expected.bias)
    torch.testing.assert_close(raw.bias, stitch.transfer(probe).bias)
    by_arm = result.table.set_index("arm")
    assert by_arm.loc["transferred", "auroc"] == by_arm.loc["transferred_raw", "auroc"]
    for name in ("auroc", "accuracy_best_threshold", "threshold_flag"):
        assert name in result.summary
        assert name in result.table
    assert (by_arm["accuracy_best_threshold"] >= by_arm["accuracy"]).all()


def test_other_texts_can_set_it_or_none_but_no_test_text(
    pair: ModelPair, stitch: Stitch, probe: LinearProbe
) -> None:
    split: dict[str, Any] = {"test_texts": TEXTS[1::2], "test_labels": LABELS[1::2]}
    run = (pair, stitch, TEXTS[::2], LABELS[::2])
    other = TEXTS[:40:2]
    ours, _ = _probes_of(evaluate_probe(*run, probe=probe, recentre=other, **split, **NONE))
    expected = stitch.transfer(probe, recentre=Recentring(pair, other))
    torch.testing.assert_close(ours.bias, expected.bias)
    raw = evaluate_probe(*run, probe=probe, recentre="none", **split, **NONE)
    assert "transferred_raw" not in set(raw.table["arm"])
    torch.testing.assert_close(raw.probes["transferred"].bias, stitch.transfer(probe).bias)
    with pytest.raises(ValueError, match="20 of 40 texts in recentre= are tested"):
        evaluate_probe(*run, probe=probe, recentre=TEXTS[:40], **split, **NONE)
    with pytest.raises(ValueError, match="recentre is 'tests'; expected 'train', 'none'"):
        evaluate_probe(*run, probe=probe, recentre="tests", **split, **NONE)


@pytest.mark.parametrize("read", ["mean", "max"])
def test_controls_are_recentred_like_the_transferred_probe(
    pair: ModelPair, stitch: Stitch, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of every transferred arm on the texts that set thresholds are those of its source."""
    seen: list[np.ndarray] = []
    true = LinearProbe.matched

    def spied(transferred: LinearProbe, source: Any, target: Any, texts: Any) -> LinearProbe:
        recentred = true(transferred, source, target, texts)
        # The same rows, scored by the recentred probe.
        factor = float(recentred.weight.norm() / transferred.weight.norm())
        shift = recentred.bias.numpy() - factor * transferred.bias.numpy()
        seen.append(np.stack([factor * target + shift, source]))
        return recentred

    monkeypatch.setattr(LinearProbe, "matched", spied)
    options = {**NONE, "n_permuted": 2, "n_shuffled": 3, "n_random": 2}
    split: dict[str, Any] = {"test_texts": TEXTS[1::2], "test_labels": LABELS[1::2], "read": read}
    token_map = lrt.stitching.AffineMap(
        torch.randn(pair.target.d_model, pair.source.d_model),
        torch.zeros(pair.source.d_model),
        "hook_embed",
        stitch.source_hook,
    )
    run = (pair, stitch, TEXTS[::2], LABELS[::2])
    result = evaluate_probe(*run, token_map=token_map, **split, **options)
    # transferred, token identity, three shuffled maps and two permuted probes
    assert len(seen) == 1 + 1 + 3 + 2
    for ours, source in seen:
        np.testing.assert_allclose(ours.mean(), source.mean(), atol=1e-9)
        np.testing.assert_allclose(ours.std(), source.std(), rtol=1e-6)
    random = result.table.set_index("arm").loc["random"]
    assert random["accuracy_best_threshold"] >= random["accuracy"]


def test_a_misplaced_threshold_is_flagged_with_its_remedy(
    twin: ModelPair, pair: ModelPair, stitch: Stitch, caplog: pytest.LogCaptureFixture
) -> None:
    probe = LinearProbe.fit(twin.source, TEXTS, LABELS, at=1, read="mean")
    assert probe.auroc(twin.source, TEXTS, LABELS) > 0.95
    shifted = replace(probe, bias=probe.bias + 50.0, transferred_by="stitch")
    assert shifted.accuracy(twin.source, TEXTS, LABELS) == 0.5
    assert "at the best threshold" in caplog.text
    assert "lrt.Recentring(pair, texts)" in caplog.text
    caplog.clear()
    recentred = recentre_probe(probe, shifted, twin, TEXTS)
    assert recentred.accuracy(twin.source, TEXTS, LABELS) > 0.9
    assert "threshold" not in caplog.text


def test_logarithms_of_probabilities_keep_the_order_where_these_round_to_one() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 3)) * 3
    np.testing.assert_allclose(log_probabilities(logits), np.log(probabilities(logits)))
    far = np.array([[40.0], [50.0], [60.0]])
    assert len(set(probabilities(far)[:, 1])) == 1
    assert (np.diff(log_probabilities(far)[:, 1]) > 0).all()
