"""Exported probes: files, the rule of reading, scikit-learn, and the way back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForCausalLM

from lrt_lens.adapters.probes import LinearProbe
from lrt_lens.adapters.probes._linear_probe import probe_through
from lrt_lens.errors import FileFormatError, HookPointError
from lrt_lens.models import HookedModel
from lrt_lens.serving import export_probe, load_probe, probe_from_sklearn, probe_to_sklearn
from lrt_lens.serving._reading_rule import stream_rule
from lrt_lens.stitching import AffineMap

FIRST, LATER = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"


@pytest.fixture(scope="session")
def three(pair: Any, passages: list[str]) -> LinearProbe:
    """A probe of three classes, numbers."""
    labels = [i % 3 for i in range(len(passages))]
    return LinearProbe.fit(pair.target, passages, labels, at=FIRST, read="mean")


def octets(path: Path) -> bytes:
    return path.read_bytes()


def test_export_and_load_give_the_same_probe_and_the_same_bytes(
    probe: LinearProbe, three: LinearProbe, tmp_path: Path
) -> None:
    for number, one in enumerate((probe, three)):
        folder = one.export(tmp_path / f"a{number}")
        again = LinearProbe.load(folder)
        assert torch.equal(again.weight, one.weight)
        assert (again.classes, again.model, again.penalty) == (one.classes, one.model, one.penalty)
        other = again.export(tmp_path / f"b{number}")
        for name in ("probe.json", "probe.safetensors"):
            assert octets(folder / name) == octets(other / name)


def test_tensors_of_another_program_come_back_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 1, generator=generator).half()
    tensors = {"weight": weight, "bias": torch.tensor([-0.0], dtype=torch.float16)}
    (tmp_path / "foreign").mkdir()
    save_file(tensors, tmp_path / "foreign" / "probe.safetensors")
    fields = {"classes": ["no", "yes"], "hook": FIRST, "read": "last", "skip_first": 0}
    (tmp_path / "foreign" / "probe.json").write_text(
        json.dumps({"schema_version": "lrt_lens.probe-export/1", "probe": fields})
    )
    read = load_probe(tmp_path / "foreign")
    assert (read.skip_first, read.model) == (0, None)
    back = load_file(export_probe(read, tmp_path / "ours") / "probe.safetensors")
    for name, tensor in tensors.items():
        assert back[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_a_probe_that_reads_maxima_keeps_its_map(
    pair: Any, passages: list[str], tmp_path: Path
) -> None:
    labels = ["yes" if "dog" in text else "no" for text in passages]
    own = LinearProbe.fit(pair.source, passages, labels, at=FIRST, read="max")
    generator = torch.Generator().manual_seed(0)
    down = AffineMap(torch.randn(24, 16, generator=generator), torch.ones(16), LATER, FIRST)
    transferred = probe_through(own, down, LATER, pair.target.identity)
    loaded = LinearProbe.load(transferred.export(tmp_path / "max"))
    expected = transferred.predict_proba(pair.target, passages[:5])
    np.testing.assert_array_equal(loaded.predict_proba(pair.target, passages[:5]), expected)
    rule = json.loads((tmp_path / "max" / "probe.json").read_text())["rule"]
    assert rule["row"].startswith("x = y·before.weight + before.bias for every token y, then")


@pytest.mark.parametrize("read", ["last", "mean", "max"])
def test_plain_transformers_computes_the_same_probabilities_from_the_rule(
    model_folder: Any, passages: list[str], tmp_path: Path, read: Any
) -> None:
    model = HookedModel.load(str(model_folder))
    labels = ["yes" if "cat" in text else "no" for text in passages]
    probe = LinearProbe.fit(model, passages, labels, at="blocks.1.hook_resid_post", read=read)
    probe.export(tmp_path / "probe")
    rule = json.loads((tmp_path / "probe" / "probe.json").read_text())["rule"]
    tensors = load_file(tmp_path / "probe" / "probe.safetensors")
    plain = AutoModelForCausalLM.from_pretrained(model_folder)
    for text in passages[:4]:
        body = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [*rule["token_ids_before_the_text"], *body]
        with torch.no_grad():
            states = plain(torch.tensor([ids]), output_hidden_states=True).hidden_states
        # No token of these texts is special, so that only first positions are masked.
        rows = states[rule["hidden_states_index"]][0, rule["masked_first_positions"] :].double()
        x = {"last": rows[-1], "mean": rows.mean(0), "max": rows.amax(0)}[read]
        p = torch.sigmoid(x @ tensors["weight"] + tensors["bias"])
        assert float(p) == pytest.approx(probe.predict_proba(model, [text])[0, 1], abs=1e-5)


def test_hook_points_are_counted_as_hugging_face_counts_them(pair: Any) -> None:
    model = pair.target.identity  # three blocks
    index = lambda hook: stream_rule(hook, model).hidden_state  # noqa: E731
    assert index("blocks.0.hook_resid_pre") == 0
    assert index("blocks.1.hook_resid_post") == index("blocks.2.hook_resid_pre") == 2
    assert index("blocks.2.hook_resid_post") is None
    assert "final norm" in stream_rule("blocks.2.hook_resid_post", model).note
    assert index("blocks.1.hook_resid_mid") is None
    assert "unless it is the last block" in stream_rule("blocks.2.hook_resid_post", None).note
    centred = stream_rule("blocks.1.hook_resid_post", replace(model, basis="centred"))
    assert centred.subtracts_mean
    assert "mean over the dimensions" in centred.note
    joint = stream_rule("blocks.0.hook_resid_post+blocks.1.hook_resid_post", model)
    assert joint.hidden_state is None
    assert joint.words == "output of decoder block 0 and output of decoder block 1"


# ------------------------------------------------------------------------------------ scikit-learn


def test_scikit_learn_predicts_the_same_probabilities(
    probe: LinearProbe, three: LinearProbe, pair: Any, passages: list[str]
) -> None:
    for one in (probe, three):
        rows, _ = one.rows(pair.target, passages)
        classifier = one.to_sklearn()
        ours = one.predict_proba(pair.target, passages)
        theirs = classifier.predict_proba(rows.numpy())
        columns = [one.classes.index(name) for name in classifier.classes_.tolist()]
        np.testing.assert_allclose(theirs, ours[:, columns], atol=1e-6)
        assert classifier.predict(rows.numpy()).tolist() == one.predict(pair.target, passages)


def test_classes_in_another_order_keep_their_probabilities(probe: LinearProbe) -> None:
    exchanged = replace(probe, classes=("yes", "no"))
    rows = np.random.default_rng(0).normal(size=(5, 24))
    p = probe_to_sklearn(exchanged).predict_proba(rows)
    # The logit is that of the second class, now "no", which scikit-learn sorts first.
    expected = 1 / (1 + np.exp(-(rows @ probe.weight.numpy() + probe.bias.numpy())))
    np.testing.assert_allclose(p[:, :1], expected, atol=1e-12)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("is_scaled", [False, True])
def test_a_fitted_estimator_becomes_a_probe_and_goes_back(n_classes: int, is_scaled: bool) -> None:
    generator = np.random.default_rng(0)
    x, y = 3 + 2 * generator.normal(size=(90, 5)), np.arange(90) % n_classes
    x[:, 0] += y
    classifier: Any = LogisticRegression()
    if is_scaled:
        classifier = make_pipeline(StandardScaler(), classifier)
    classifier.fit(x, y)
    probe = probe_from_sklearn(classifier, at=FIRST, read="mean", skip_first=0, name="sum")
    assert (probe.read, probe.name, probe.classes) == ("mean", "sum", tuple(range(n_classes)))
    back = probe.to_sklearn()
    np.testing.assert_allclose(back.predict_proba(x), classifier.predict_proba(x), atol=1e-12)
    if not is_scaled:
        assert back.coef_.tobytes() == classifier.coef_.tobytes()
        assert back.intercept_.tobytes() == classifier.intercept_.tobytes()


def test_estimators_that_are_no_probe_are_refused_by_name() -> None:
    x, y = np.eye(4), [0, 1, 0, 1]
    with pytest.raises(TypeError, match="RidgeClassifier is no logistic regression"):
        probe_from_sklearn(RidgeClassifier().fit(x, y), at=FIRST)
    with pytest.raises(ValueError, match="this LogisticRegression is not fitted"):
        probe_from_sklearn(LogisticRegression(), at=FIRST)
    with pytest.raises(TypeError, match=r"a pipeline of \['StandardScaler', 'StandardScaler'"):
        probe_from_sklearn(
            make_pipeline(StandardScaler(), StandardScaler(), LogisticRegression()), at=FIRST
        )


def test_a_pickle_is_refused_with_the_alternative(probe: LinearProbe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pickles.*probe.to_sklearn\(\)"):
        probe.export(tmp_path / "x", to="scikit-learn")
    with pytest.raises(ValueError, match="classes of several types"):
        replace(probe, classes=("no", 1)).to_sklearn()
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["probe.json", "probe.safetensors"])
def test_files_of_others_are_not_overwritten(probe: LinearProbe, tmp_path: Path, name: str) -> None:
    own = tmp_path / name
    own.write_text('{"threshold": 0.5}')
    with pytest.raises(FileExistsError, match=f"{name}' exists and is no exported probe"):
        probe.export(tmp_path)
    assert own.read_text() == '{"threshold": 0.5}'
    assert [path.name for path in tmp_path.iterdir()] == [name]
    own.unlink()
    # An earlier export and a saved probe are replaced, and other files stay.
    (tmp_path / "notes.txt").write_text("mine")
    probe.save(tmp_path / "probe.safetensors")
    for _ in range(2):
        probe.export(tmp_path)
    assert {"notes.txt", "probe.json"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c | {"schema_version": "lrt_lens.probe-export/9"}, "has schema"),
        (lambda c: {"schema_version": c["schema_version"]}, "lacks the object 'probe'"),
        (lambda c: c | {"probe": c["probe"] | {"classes": ["one"]}}, "do not fit 1 class"),
        (lambda c: c | {"probe": c["probe"] | {"surprise": 1}}, r"unknown \['surprise'\]"),
        (lambda c: c | {"probe": c["probe"] | {"read": 1.5}}, "read"),
        (lambda c: c | {"probe": c["probe"] | {"before": ["a"]}}, "before"),
        (lambda c: c | {"probe": c["probe"] | {"hook": "blocks.9.hook_resid_post"}}, "blocks.9"),
    ],
)
def test_a_changed_file_is_one_error(
    probe: LinearProbe, tmp_path: Path, change: Any, message: str
) -> None:
    folder = probe.export(tmp_path / "probe")
    path = folder / "probe.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises((FileFormatError, HookPointError), match=message):
        LinearProbe.load(folder)


def test_incomplete_folders_are_refused(probe: LinearProbe, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="holds neither probe.json nor probe.safetensors"):
        LinearProbe.load(tmp_path)
    folder = probe.export(tmp_path / "probe")
    (folder / "probe.safetensors").unlink()
    with pytest.raises(FileFormatError, match="no file at"):
        LinearProbe.load(folder)
