"""Linear probes: fits against scikit-learn, transfer, files and errors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from lrt_lens._tensor_files import read_tensor_file, write_tensors
from lrt_lens.adapters.probes import LinearProbe
from lrt_lens.adapters.probes._linear_probe import PROBE_SCHEMA
from lrt_lens.adapters.probes._logistic import Logistic, fit_logistic, fit_towards, probabilities
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.models._reading import read_activations
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.stitching import Stitch, fit_stitches

HOOK = "blocks.1.hook_resid_post"
READS = ["last", "mean", "max", "every", -2]
PLACES = ("house", "garden", "tree", "river", "stone")
TEXTS = [
    f"the {mood} little cat {verb} the {place} and it was {end}"
    for mood, verb, end in (
        ("happy", "sang in", "good"),
        ("sad", "slept on", "bad"),
        ("little", "saw", "old"),
    )
    for place in PLACES
]
BINARY, LABELS = TEXTS[:10], ["good"] * 5 + ["bad"] * 5
THREE = [2] * 5 + [0] * 5 + [1] * 5


@pytest.fixture(scope="module")
def stitch(pair: ModelPair, corpus: list[str]) -> Stitch:
    return fit_stitches(
        pair, corpus, n_tokens=None, context_length=32, moment_dtype="float64", progress=False
    )[1, 2]


def _rows(model: Any, text: str, read: Any, hook: str = HOOK) -> np.ndarray:
    """Rows of a text by each way of reading, [row, d], written out."""
    rows = model.capture(text, hook)[0].double().numpy()
    return {
        "last": lambda: rows[-1:],
        "mean": lambda: rows[SKIP_FIRST:].mean(0, keepdims=True),
        "max": lambda: rows[SKIP_FIRST:].max(0, keepdims=True),
        "every": lambda: rows[SKIP_FIRST:],
    }.get(read, lambda: rows[[read]])()


# ----------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    ("texts", "labels"), [(BINARY, LABELS), (TEXTS, THREE)], ids=["binary", "three classes"]
)
def test_a_probe_is_scikit_learns_logistic_regression_on_standardised_rows(
    pair: ModelPair, texts: list[str], labels: list, read: Any
) -> None:
    probe = LinearProbe.fit(pair.source, texts, labels, at=HOOK, read=read, penalties=(0.1,))
    parts = [_rows(pair.source, text, read) for text in texts]
    x, y = np.concatenate(parts), np.repeat(labels, [len(part) for part in parts])
    scaler = StandardScaler().fit(x)
    naive = LogisticRegression(C=1 / (0.1 * len(x)), max_iter=5000, tol=1e-8).fit(
        scaler.transform(x), y
    )
    assert list(probe.classes) == naive.classes_.tolist()
    predicted = probe.predict_proba(pair.source, texts)
    np.testing.assert_allclose(
        np.concatenate(predicted) if read == "every" else predicted,
        naive.predict_proba(scaler.transform(x)),
        atol=2e-3,
    )
    assert probe.accuracy(pair.source, texts, labels) == pytest.approx(
        naive.score(scaler.transform(x), y), abs=1 / len(y)
    )
    predicted = probe.predict(pair.source, texts)
    assert len(predicted) == len(texts)
    assert {label for one in predicted for label in (one if read == "every" else [one])} <= set(
        labels
    )


def test_the_auroc_is_scikit_learns(pair: ModelPair) -> None:
    two = LinearProbe.fit(pair.source, BINARY, LABELS, at=HOOK, read="mean", penalties=(10.0,))
    wrong = [*LABELS[3:], *LABELS[:3]]
    chances = two.predict_proba(pair.source, BINARY)
    assert two.auroc(pair.source, BINARY, wrong) == pytest.approx(
        roc_auc_score(np.array(wrong) == "good", chances[:, 1])
    )
    three = LinearProbe.fit(pair.source, TEXTS, THREE, at=HOOK, read="mean", penalties=(10.0,))
    wrong_of_three = [*THREE[2:], *THREE[:2]]
    expected = roc_auc_score(
        wrong_of_three, three.predict_proba(pair.source, TEXTS), multi_class="ovr"
    )
    assert three.auroc(pair.source, TEXTS, wrong_of_three) == pytest.approx(expected)


def test_the_penalty_has_the_lowest_held_out_cross_entropy() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((60, 30))
    y = (x[:, 0] + generator.standard_normal(60) > 0).astype(int)
    penalties = (1e-4, 0.3, 1e3)
    assert fit_logistic(x, y, 2, penalties=penalties).penalty == 0.3
    assert fit_logistic(x, generator.permutation(y), 2, penalties=penalties).penalty == 1e3


def test_rows_of_one_text_stay_in_one_fold() -> None:
    # 40 texts whose 5 rows are copies, with labels at random: only a split within texts could learn
    # anything.
    generator = np.random.default_rng(1)
    x = np.repeat(
        generator.standard_normal((40, 30)), 5, axis=0
    ) + 1e-3 * generator.standard_normal((200, 30))
    y, groups = np.repeat(generator.permutation([0, 1] * 20), 5), np.repeat(np.arange(40), 5)
    assert fit_logistic(x, y, 2, groups=groups).penalty > fit_logistic(x, y, 2).penalty


@pytest.mark.parametrize("n_classes", [2, 3])
def test_shrinking_to_another_classifier_has_scikit_learns_solution_as_its_special_case(
    n_classes: int,
) -> None:
    generator = np.random.default_rng(2)
    x = generator.standard_normal((80, 6)) * [1, 2, 3, 4, 5, 6] + 1
    y = np.arange(80) % n_classes
    columns = 1 if n_classes == 2 else n_classes
    nothing = Logistic(np.zeros((6, columns)), np.zeros(columns))
    ours = fit_towards(x, y, nothing, penalties=(0.05,))
    # The standardised features and a constant one, all penalised alike: the offset starts where the
    # plain rows have their zero.
    z = np.c_[StandardScaler().fit_transform(x), np.ones(80)]
    theirs = LogisticRegression(
        C=1 / (0.05 * 80), fit_intercept=False, max_iter=5000, tol=1e-8
    ).fit(z, y)
    np.testing.assert_allclose(ours.probabilities(x), theirs.predict_proba(z), atol=1e-3)
    start = Logistic(generator.standard_normal((6, columns)), np.zeros(columns))
    np.testing.assert_allclose(
        fit_towards(x, y, start, penalties=(1e6,)).weight, start.weight, atol=1e-4
    )


def test_labels_by_token_are_learnt(pair: ModelPair) -> None:
    counts = [len(_rows(pair.source, text, "every")) for text in BINARY]
    labels = [[position % 2 for position in range(count)] for count in counts]
    probe = LinearProbe.fit(pair.source, BINARY, labels, at=HOOK, read="every", penalties=(1e-3,))
    x, y = (
        np.concatenate([_rows(pair.source, text, "every") for text in BINARY]),
        np.concatenate(labels),
    )
    assert probe.accuracy(pair.source, BINARY, labels) == pytest.approx(
        (probabilities(probe.logits(torch.from_numpy(x))).argmax(1) == y).mean()
    )
    with pytest.raises(ValueError, match="unmasked tokens and 1 labels"):
        LinearProbe.fit(pair.source, BINARY, [[0], *labels[1:]], at=HOOK, read="every")


# ----------------------------------------------------------------------------------------- transfer


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    ("texts", "labels"), [(BINARY, LABELS), (TEXTS, THREE)], ids=["binary", "three classes"]
)
def test_a_transferred_probe_reads_the_mapped_states(
    pair: ModelPair, stitch: Stitch, texts: list[str], labels: list, read: Any
) -> None:
    probe = LinearProbe.fit(pair.source, texts, labels, at=HOOK, read=read, penalties=(0.1,))
    transferred = stitch.transfer(probe)
    weight, bias = stitch.down.weight.double().numpy(), stitch.down.bias.double().numpy()
    mapped = [
        pair.target.capture(text, stitch.target_hook)[0].double().numpy() @ weight + bias
        for text in texts
    ]
    pooled = {
        "last": lambda r: r[-1:],
        "mean": lambda r: r[SKIP_FIRST:].mean(0)[None],
        "max": lambda r: r[SKIP_FIRST:].max(0)[None],
        "every": lambda r: r[SKIP_FIRST:],
    }.get(read, lambda r: r[[read]])
    logits = (
        np.concatenate([pooled(rows) for rows in mapped]) @ probe.weight.double().numpy()
        + probe.bias.double().numpy()
    )
    expected = softmax(
        np.concatenate([np.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits,
        axis=1,
    )
    predicted = transferred.predict_proba(pair.target, texts)
    np.testing.assert_allclose(
        np.concatenate(predicted) if read == "every" else predicted, expected, atol=1e-5
    )
    assert (transferred.hook, transferred.model, transferred.read, transferred.skip_first) == (
        stitch.target_hook,
        stitch.target,
        probe.read,
        probe.skip_first,
    )


@pytest.mark.parametrize("read", ["mean", "max"])
def test_a_probe_goes_there_and_back_by_the_product_of_both_maps(
    pair: ModelPair, stitch: Stitch, read: Any
) -> None:
    probe = LinearProbe.fit(pair.source, BINARY, LABELS, at=HOOK, read=read, penalties=(0.1,))
    back = stitch.reversed().transfer(stitch.transfer(probe))
    both = stitch.up.compose(stitch.down)
    rows = [
        both.points(pair.source.capture(text, HOOK)[0].double())[SKIP_FIRST:] for text in BINARY
    ]
    pooled = torch.stack([part.amax(0) if read == "max" else part.mean(0) for part in rows])
    np.testing.assert_allclose(
        back.predict_proba(pair.source, BINARY), probabilities(probe.logits(pooled)), atol=1e-5
    )


def test_another_map_can_be_taken_as_a_control(pair: ModelPair, stitch: Stitch) -> None:
    probe = LinearProbe.fit(pair.source, BINARY, LABELS, at=HOOK, penalties=(0.1,))
    other = replace(stitch.down, weight=2 * stitch.down.weight)
    transferred = stitch.transfer(probe, through=other)
    torch.testing.assert_close(transferred.weight, 2 * stitch.down.weight.double() @ probe.weight)
    with pytest.raises(MismatchError, match="through= maps"):
        stitch.transfer(probe, through=stitch.up)


def test_a_probe_from_elsewhere_is_refused(pair: ModelPair, stitch: Stitch) -> None:
    with pytest.raises(MismatchError, match=r"fitted at 'blocks\.0"):
        stitch.transfer(LinearProbe.fit(pair.source, BINARY, LABELS, at=0))
    with pytest.raises(MismatchError, match="fitted on a model"):
        stitch.transfer(LinearProbe.fit(pair.target, BINARY, LABELS, at=1))
    probe = LinearProbe.fit(pair.source, BINARY, LABELS, at=HOOK)
    with pytest.raises(MismatchError, match="the model to read"):
        probe.predict(pair.target, BINARY)
    with pytest.raises(MismatchError, match="transfer it with a stitch"):
        replace(probe, model=None).predict(pair.target, BINARY)


# -------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("read", READS)
def test_a_saved_probe_is_the_same(
    pair: ModelPair, stitch: Stitch, read: Any, tmp_path: Path
) -> None:
    transferred = stitch.transfer(
        LinearProbe.fit(pair.source, TEXTS, THREE, at=HOOK, read=read, name="mood")
    )
    loaded = LinearProbe.load(transferred.save(tmp_path / "probe.safetensors"))
    assert repr(loaded) == repr(transferred)
    assert (loaded.classes, loaded.corpus, loaded.read, loaded.model) == (
        transferred.classes,
        transferred.corpus,
        transferred.read,
        transferred.model,
    )
    for ours, theirs in zip(
        loaded.predict_proba(pair.target, TEXTS),
        transferred.predict_proba(pair.target, TEXTS),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_origin_is_stored_in_fields_and_files_of_the_earlier_form_load(
    pair: ModelPair, stitch: Stitch, tmp_path: Path
) -> None:
    probe = LinearProbe.fit(pair.source, BINARY, LABELS, at=HOOK)
    transferred = stitch.transfer(probe)
    assert (probe.transferred, transferred.transferred) == (False, True)
    assert (probe.method, transferred.method) == ("logistic_regression", "logistic_regression")
    path = transferred.save(tmp_path / "probe.safetensors")
    file = read_tensor_file(path, PROBE_SCHEMA)
    tensors, metadata = file.tensors, file.metadata
    fields = json.loads(metadata["probe"])
    assert fields.pop("transferred_by") == "stitch"
    fields["method"] = "logistic_regression, transferred"
    write_tensors(path, tensors, metadata | {"probe": json.dumps(fields)})
    assert repr(LinearProbe.load(path)) == repr(transferred)
    assert "logistic_regression, read last, transferred" in repr(transferred)


def test_a_file_of_another_kind_is_refused(tmp_path: Path, stitch: Stitch, pair: ModelPair) -> None:
    (tmp_path / "probe.safetensors").write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="truncated"):
        LinearProbe.load(tmp_path / "probe.safetensors")


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["good"] * 10, "all 10 labels are 'good'"),
        (LABELS[:9], r"10 text\(s\) and 9 label"),
        ([*LABELS[:9], float("nan")], "a label is nan"),
        ([*LABELS[:9], 1], "mix str and int"),
        ([["good"], *LABELS[1:]], "need read='every'"),
    ],
)
def test_labels_that_mean_nothing_are_refused(pair: ModelPair, labels: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearProbe.fit(pair.source, BINARY, labels, at=HOOK)


@pytest.mark.usefixtures("unchecked")
def test_predictions_name_what_is_missing(pair: ModelPair) -> None:
    probe = LinearProbe.fit(pair.source, BINARY, LABELS, at=HOOK)
    with pytest.raises(ValueError, match=r"labels \['ugly'\] are not among"):
        probe.accuracy(pair.source, BINARY, ["ugly", *LABELS[1:]])
    with pytest.raises(ValueError, match=r"no text is labelled \['bad'\]"):
        probe.auroc(pair.source, BINARY[:5], LABELS[:5])
    with pytest.raises(ValueError, match="NaN or infinity"):
        replace(probe, bias=probe.bias * float("nan"))
    with pytest.raises(ValueError, match="do not fit 2 class"):
        replace(probe, weight=probe.weight.repeat(1, 2))


@pytest.mark.usefixtures("unchecked")
def test_a_vector_cannot_be_read_at_every_token(pair: ModelPair) -> None:
    read: Any = "every"
    with pytest.raises(ValueError, match="expected 'last', 'mean', 'max' or a position"):
        read_activations(pair.source, BINARY, HOOK, read)


def test_files_with_unknown_or_missing_fields_are_refused(tmp_path: Path) -> None:
    probe = LinearProbe(torch.ones(16, 1), torch.zeros(1), ("a", "b"), HOOK)
    path = probe.save(tmp_path / "probe.safetensors")
    file = read_tensor_file(path, PROBE_SCHEMA)
    tensors, metadata = file.tensors, file.metadata
    fields = json.loads(metadata["probe"])
    without = {key: value for key, value in fields.items() if key != "classes"}
    for changed, message in ((fields | {"colour": 1}, "colour"), (without, "classes")):
        write_tensors(path, tensors, metadata | {"probe": json.dumps(changed)})
        with pytest.raises(FileFormatError, match=f"fields of a LinearProbe: .*{message}"):
            LinearProbe.load(path)
