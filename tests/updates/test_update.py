"""`update` on revisions whose right answer is known: a copy, a rotated basis, other weights.

A Llama whose norms have the gain 1 computes the same function in any rotated basis of its stream:
every artefact is lost as it is, and a rotation repairs it exactly.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sklearn.metrics import roc_auc_score

import lrt_lens as lrt
from lrt_lens.errors import MismatchError
from lrt_lens.models import HookedModel
from lrt_lens.updates import UpdateReport
from lrt_lens.updates._shared_rows import SharedRows

OPTIONS: dict[str, Any] = {
    "n_tokens": 4000,
    "context_length": 48,
    "progress": False,
    "n_shuffled": 5,
    "n_random": 4,
}


def rotated(model: Any, seed: int = 0) -> Any:
    """Return a Llama that computes the same in a rotated basis of its residual stream."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(model.config.hidden_size, model.config.hidden_size, generator=generator)
    rotation = torch.linalg.qr(noise)[0]
    new = copy.deepcopy(model)
    with torch.no_grad():
        into = [new.model.embed_tokens, new.lm_head]
        for block in new.model.layers:
            attention, mlp = block.self_attn, block.mlp
            into += [attention.q_proj, attention.k_proj, attention.v_proj]
            into += [mlp.gate_proj, mlp.up_proj]
            for out in (attention.o_proj, mlp.down_proj):
                out.weight.copy_(rotation.T @ out.weight)
        for one in into:
            one.weight.copy_(one.weight @ rotation)
    return new


@pytest.fixture(scope="module")
def hf(build_hf: Any) -> Any:
    return build_hf("llama", d=24, layers=3, seed=11)


@pytest.fixture(scope="module")
def old(hf: Any, tokenizer: Any) -> HookedModel:
    return HookedModel.load(hf, tokenizer=tokenizer, name="old")


@pytest.fixture(scope="module")
def new(hf: Any, tokenizer: Any) -> HookedModel:
    return HookedModel.load(rotated(hf), tokenizer=tokenizer, name="rotated")


@pytest.fixture(scope="module")
def labelled(passages: list[str]) -> tuple[list[str], list[int]]:
    """Texts, and whether a word is among their last three."""
    return passages, [int("cat" in text or "queen" in text) for text in passages]


@pytest.fixture(scope="module")
def probes(old: HookedModel, labelled: Any) -> list[lrt.LinearProbe]:
    texts, labels = labelled
    return [
        lrt.LinearProbe.fit(old, texts[:75], labels[:75], at=layer, read=read, name=f"cat {read}")
        for layer in (0, 2)
        for read in ("mean", "max")
    ]


@pytest.fixture(scope="module")
def turned(
    old: HookedModel, new: HookedModel, probes: Any, corpus: list[str], labelled: Any
) -> UpdateReport:
    return lrt.update(old, new, probes, corpus, labelled=labelled, **OPTIONS)


def arm(report: UpdateReport, name: str) -> Any:
    rows = report.table[report.table["arm"] == name].set_index("artefact")
    return rows.loc[report.summary["artefact"]]


def test_a_rotation_is_repaired_without_labels(turned: UpdateReport) -> None:
    summary = turned.summary
    lost = summary["loss"] > 0.05
    assert lost.any()
    assert set(summary.loc[lost & (summary["loss_low"] > 0), "verdict"]) == {"repair"}
    for repair in ("procrustes", "repaired"):
        np.testing.assert_allclose(arm(turned, repair)["value"], summary["old"], atol=0.02)
    # A shift of the mean changes no order, so that the AUROC is that of the frozen probe.
    np.testing.assert_allclose(arm(turned, "mean_shift")["value"], summary["frozen"], atol=1e-9)
    assert (summary.loc[lost, "recovered"] > 0.9).all()
    assert set(summary["predicted"]) == {"repair"}


def test_unlabelled_texts_correct_what_the_map_loses(
    old: HookedModel, new: HookedModel, probes: Any, corpus: list[str], labelled: Any
) -> None:
    """A map of few tokens loses much; texts of the probe's kind bring it back, without labels."""
    few = OPTIONS | {"n_tokens": 300}
    report = lrt.update(old, new, probes[:1], corpus, labelled=labelled, **few)
    more = lrt.update(
        old, new, probes[:1], corpus, labelled=labelled, unlabelled=corpus[:300], **few
    )
    scores = probes[0].logits(probes[0].rows(old, labelled[0])[0])[:, 0]

    def error(probe: lrt.LinearProbe) -> float:
        """Return the share of the old scores' variance that a probe of the new revision misses."""
        found = probe.logits(probe.rows(new, labelled[0])[0])[:, 0]
        return float((found - scores).var() / scores.var())

    repaired = report.stitches[probes[0].hook].transfer(probes[0])
    name = probes[0].name
    assert error(report.repaired[name]) < error(repaired)
    assert error(more.repaired[name]) < 0.5 * error(repaired)
    # Without any label
    blind = lrt.update(old, new, probes[:1], corpus, unlabelled=corpus[:300], **few)
    assert error(blind.repaired[name]) < 0.5 * error(repaired)
    assert blind.table.empty
    assert {"distilled", "recovered_distilled"} <= set(report.summary)


def test_predictions_are_those_of_rows(
    old: HookedModel, new: HookedModel, probes: Any, turned: UpdateReport, corpus: list[str]
) -> None:
    probe, row = probes[0], turned.summary.iloc[0]
    options = {"n_tokens": 4000, "context_length": 48, "progress": False, "null": False}
    moments = lrt.harvest(lrt.ModelPair(old, new), corpus, pairs=[(0, 0)], **options)
    hooks = moments.pairs[0]
    test = moments.scatter(hooks, moments.parts.test)
    w = probe.weight.double()[:, 0]
    xx, yy, xy = (float(w @ m @ w) for m in (test.xx, test.yy, test.xy))
    assert row["kept"] == pytest.approx(xy / (xx * yy) ** 0.5, rel=1e-6)
    assert row["moved"] == pytest.approx((xx + yy - 2 * xy) / (xx + yy), rel=1e-6)
    assert row["rho"] == pytest.approx(turned.stitches[probe.hook].fidelity(w, "read").value)


def test_thresholds_are_those_of_the_old_revision(
    old: HookedModel, new: HookedModel, probes: Any, turned: UpdateReport, labelled: Any
) -> None:
    probe, row = probes[0], turned.table.iloc[0]
    assert row["arm"] == "old"
    from lrt_lens.adapters.probes._split import Labelled, split_texts

    train, test = split_texts(Labelled.of(*labelled, None), share=0.5, seed=0)
    scores = [probe.logits(probe.rows(old, part.texts)[0])[:, 0] for part in (train, test)]
    negatives = scores[0][np.array(train.labels) == 0]
    above = scores[1] > np.quantile(negatives, 0.95)
    truth = np.array(test.labels)
    assert row["recall_at_0.05"] == pytest.approx(above[truth == 1].mean())
    assert row["false_positives_at_0.05"] == pytest.approx(above[truth == 0].mean())
    assert row["value"] == pytest.approx(roc_auc_score(truth, scores[1]))
    # The repaired probe has the old thresholds, and serves on the new revision alone.
    repaired = turned.repaired[turned.summary["artefact"].iloc[0]]
    theirs = repaired.logits(repaired.rows(new, test.texts)[0])[:, 0]
    np.testing.assert_allclose(theirs, scores[1], atol=0.2 * scores[1].std())
    with pytest.raises(MismatchError):
        repaired.rows(old, test.texts)


def test_texts_for_no_artefact_are_refused(
    old: HookedModel, new: HookedModel, probes: Any, corpus: list[str], labelled: Any
) -> None:
    for option in ({"labelled": {"dog": labelled}}, {"unlabelled": {"dog": corpus[:9]}}):
        with pytest.raises(ValueError, match=r"given for \['dog'\], and no artefact has"):
            lrt.update(old, new, probes[:1], corpus, **option, **OPTIONS)
    # A name is taken whole, also where it reads like one with a hook point behind it.
    odd = replace(probes[0], name="cat at night")
    with pytest.raises(ValueError, match=r"given for \['cat'\]"):
        lrt.update(old, new, odd, corpus, labelled={"cat": labelled}, **OPTIONS)
    predicted = lrt.update(old, new, probes[:1], corpus, unlabelled=corpus[0], **OPTIONS)
    assert predicted.summary["verdict"].tolist() == predicted.summary["predicted"].tolist()
    with pytest.raises(ValueError, match="no artefact was measured"):
        predicted.figure()


def test_probes_with_the_same_rules_read_the_texts_once(
    old: HookedModel, probes: Any, labelled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    capture = type(old.engine).capture
    monkeypatch.setattr(
        type(old.engine), "capture", lambda *given: passes.append(1) or capture(*given)
    )
    texts = labelled[0]
    expected = [probe.rows(old, texts)[0] for probe in probes]
    alone = len(passes)
    passes.clear()
    shared = SharedRows(probes)
    for probe, rows in zip(probes, expected, strict=True):
        torch.testing.assert_close(shared.of(probe, old, texts), rows, rtol=0, atol=0)
    # Two rules, mean and max, at two hook points each
    assert len(passes) == alone // 2
    # Revisions of one name have rows of their own.
    twin = HookedModel.load(rotated(old.engine.model), tokenizer=old.tokenizer, name=old.name)
    moved = replace(probes[0], model=twin.identity)
    assert not torch.equal(shared.of(moved, twin, texts), expected[0])
    with pytest.raises(MismatchError):
        shared.of(probes[0], twin, texts)


def test_a_copy_keeps_everything(
    old: HookedModel, hf: Any, tokenizer: Any, probes: Any, corpus: list[str], labelled: Any
) -> None:
    twin = HookedModel.load(copy.deepcopy(hf), tokenizer=tokenizer, name="copy")
    report = lrt.update(old, twin, probes, corpus, labelled=labelled, **OPTIONS)
    assert set(report.summary["verdict"]) == {"keep"}
    assert set(report.summary["predicted"]) == {"keep"}
    np.testing.assert_allclose(report.summary["frozen"], report.summary["old"])
    np.testing.assert_allclose(report.summary["kept"], 1, atol=1e-6)
    np.testing.assert_allclose(report.summary["moved"], 0, atol=1e-6)


def test_without_labels_moments_predict(
    old: HookedModel, new: HookedModel, probes: Any, corpus: list[str]
) -> None:
    report = lrt.update(old, new, probes[0], corpus, **OPTIONS)
    assert report.summary["verdict"].to_list() == ["repair"]
    assert report.table.empty
    assert "Before any label" in report.html
    assert "Measured" not in report.html


def test_vectors_and_their_controls(
    old: HookedModel, new: HookedModel, corpus: list[str], passages: list[str]
) -> None:
    contrast = lrt.ContrastSet(
        [f"{text} cat" for text in passages[:40]], [f"{text} dog" for text in passages[:40]]
    )
    vector = lrt.SteeringVector.mean_difference(old, contrast, at=1)
    prompts = passages[40:60]
    items = lrt.ChoiceItems(prompts, [" cat"] * 20, [" dog"] * 20)
    report = lrt.update(
        old, new, [vector], corpus, items=items, neutral=passages[60:80], damage=0.05, **OPTIONS
    )
    values = report.table.set_index("arm")["value"]
    assert set(values.index) == {
        "old",
        "frozen",
        "procrustes",
        "repaired",
        "relearnt",
        "shuffled",
        "random",
    }
    # In a rotated basis the vector has the same effect as before, at the same damage.
    for same in ("procrustes", "repaired", "relearnt"):
        assert values[same] == pytest.approx(values["old"], rel=0.1, abs=0.02)
    assert np.isnan(report.summary["moved"].iloc[0])
    assert report.summary["rho"].iloc[0] > 0.99
    assert report.summary["kept"].iloc[0] < 0.9


def test_what_is_no_update_is_refused(
    old: HookedModel, new: HookedModel, load: Any, probes: Any, corpus: list[str]
) -> None:
    with pytest.raises(MismatchError, match="two revisions of one model"):
        lrt.update(old, load(d=16), probes, corpus, **OPTIONS)
    with pytest.raises(MismatchError):
        lrt.update(new, old, probes, corpus, **OPTIONS)
    with pytest.raises(ValueError, match="no artefact"):
        lrt.update(old, new, [], corpus, **OPTIONS)
    with pytest.raises(TypeError, match="a str cannot be updated"):
        lrt.update(old, new, ["probe"], corpus, **OPTIONS)
    with pytest.raises(ValueError, match="several artefacts"):
        lrt.update(old, new, [probes[0], probes[0]], corpus, **OPTIONS)


def test_an_sae_is_repaired_after_a_rotation(
    old: HookedModel, new: HookedModel, corpus: list[str], tmp_path: Path
) -> None:
    # An encoder and a decoder of single dimensions: it reconstructs every state in its own basis.
    d = old.d_model
    sae = StandardSAE(StandardSAEConfig(d_in=d, d_sae=2 * d))
    eye = torch.eye(d)
    sae.W_enc.data = torch.cat([eye, -eye], 1)
    sae.W_dec.data = torch.cat([eye, -eye])
    # A threshold on every feature, so that the codes depend on the basis.
    sae.b_enc.data = torch.full((2 * d,), -0.3)
    sae.b_dec.data = torch.zeros(d)
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    report = lrt.update(
        old, new, sae.eval(), corpus, sae_documents=corpus, n_sae_tokens=800, **OPTIONS
    )
    rows = report.table.set_index(["arm", "measure"])["value"]
    assert rows["repaired", "fvu"] == pytest.approx(rows["old", "fvu"], rel=0.05)
    assert rows["shuffled", "fvu"] > rows["frozen", "fvu"] * 0.5
    assert report.summary["old"].iloc[0] == rows["old", "fvu"]
    assert {arm for arm, _ in rows.index} == {
        "old",
        "frozen",
        "mean_shift",
        "procrustes",
        "repaired",
        "shuffled",
    }
    assert report.save_repaired(tmp_path)["sae"].joinpath("cfg.json").exists()
    predicted = lrt.update(old, new, sae, corpus, **OPTIONS).summary.iloc[0]
    assert predicted["verdict"] == predicted["predicted"] == "repair"
