"""Sparse probes through SAEs against scikit-learn on plainly read features, and errors."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from lrt_lens.adapters.probes._logistic import PENALTIES
from lrt_lens.adapters.saes import SparseProbeEvaluation, evaluate_sparse_probes
from lrt_lens.adapters.saes._sparse_probing import by_class_difference
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.stitching import Stitch, fit_stitches

TEXTS = [
    f"the {mood} little {who} was in the {place} and {mood}"
    for mood in ("happy", "sad")
    for who in ("cat", "dog", "bird", "child")
    for place in ("house", "garden", "tree", "river", "stone")
]
LABELS = ["happy"] * 20 + ["sad"] * 20
TRAIN, TEST = (TEXTS[::2], LABELS[::2]), (TEXTS[1::2], LABELS[1::2])
KS = (1, 3, 10)


def _sae(d_in: int, seed: int) -> Any:
    """A random TopK SAE of SAELens."""
    from sae_lens import TopKSAE, TopKSAEConfig

    torch.manual_seed(seed)
    sae = TopKSAE(
        TopKSAEConfig(
            d_in=d_in, d_sae=48, k=8, apply_b_dec_to_input=False, rescale_acts_by_decoder_norm=False
        )
    )
    for parameter in sae.parameters():
        parameter.data.normal_()
    return sae


def _transferred(sae: Any, stitch: Stitch) -> Any:
    """Transferred SAE by the formulas of its encoder; its decoder is random and not used."""
    # W_e' = W_down W_e, b_e' = b_down W_e + b_e
    transferred = _sae(len(stitch.down.weight), 0)
    down, bias = stitch.down.weight.double(), stitch.down.bias.double()
    transferred.W_enc.data = (down @ sae.W_enc.data.double()).float()
    transferred.b_enc.data = (bias @ sae.W_enc.data.double() + sae.b_enc.data.double()).float()
    return transferred


@pytest.fixture(scope="module")
def stitch(pair: ModelPair, corpus: list[str]) -> Stitch:
    return fit_stitches(
        pair,
        corpus,
        source_layers=[1],
        target_layers=[2],
        n_tokens=None,
        context_length=32,
        progress=False,
    ).best()


@pytest.fixture(scope="module")
def saes(pair: ModelPair, stitch: Stitch) -> dict[str, Any]:
    source = _sae(pair.source.d_model, 1)
    return {
        "source_sae": source,
        "native_sae": _sae(pair.target.d_model, 2),
        "transferred_sae": _transferred(source, stitch),
    }


def _evaluate(pair: ModelPair, stitch: Stitch, **options: Any) -> SparseProbeEvaluation:
    given: dict[str, Any] = {
        "test_texts": TEST[0],
        "test_labels": TEST[1],
        "ks": KS,
        "n_random": 3,
        "progress": False,
    }
    return evaluate_sparse_probes(pair, stitch, *TRAIN, **given | options)


@pytest.fixture(scope="module")
def result(pair: ModelPair, stitch: Stitch, saes: dict[str, Any]) -> SparseProbeEvaluation:
    return _evaluate(pair, stitch, **saes)


def _features(model: Any, hook: str, sae: Any, texts: list[str]) -> np.ndarray:
    with torch.no_grad():
        return np.stack(
            [
                sae.encode(model.capture(text, hook)[0, 4:].float()).double().mean(0).numpy()
                for text in texts
            ]
        )


def _accuracy(result: SparseProbeEvaluation, arm: str, k: int) -> float:
    (row,) = [row for row in result.table.to_dict("records") if row["arm"] == arm and row["k"] == k]
    return float(row["accuracy"])


def test_random_features_show_where_a_new_draw_falls(result: SparseProbeEvaluation) -> None:
    rows = {(row["arm"], row["k"]): row for row in result.table.to_dict("records")}
    for k in KS:
        row = rows["random", k]
        assert (row["contains"], row["n_draws"], row["p_floor"]) == ("draws", 3, 0.25)
        assert row["p_floor"] <= row["transferred_p"] <= 1
        assert row["interval_flag"] == "3 draws"
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
    assert rows["transferred", KS[0]]["contains"] == "test texts"


def test_groups_are_the_units_of_intervals_and_stay_on_one_side(
    pair: ModelPair, stitch: Stitch, saes: dict[str, Any], result: SparseProbeEvaluation
) -> None:
    n = len(TEST[0])
    groups = [f"train {i // 2}" for i in range(len(TRAIN[0]))]
    options: dict[str, Any] = {"groups": groups, "n_random": 1, "dense": False, **saes}
    single = _evaluate(pair, stitch, test_groups=list(range(n)), **options)
    paired = _evaluate(pair, stitch, test_groups=[i // 3 for i in range(n)], **options)
    for one, units in ((single, n), (paired, -(-n // 3))):
        row = next(r for r in one.table.to_dict("records") if r["arm"] == "native")
        assert row["contains"] == "groups of test texts"
        assert (f"{units} independent" in row["interval_flag"]) == (5 <= units < 10)
    with pytest.raises(ValueError, match="have training and test texts"):
        _evaluate(pair, stitch, test_groups=["train 0"] * n, **options)


def test_every_arm_is_there(result: SparseProbeEvaluation) -> None:
    transferred = {"transferred", "transferred_raw", "transferred_new_probe"}
    sparse = {"source", "native", "random"} | transferred
    rows = result.table.to_dict("records")
    assert {(row["arm"], row["k"]) for row in rows if row["k"] == row["k"]} == {
        (arm, k) for arm in sparse for k in KS
    }
    assert {row["arm"] for row in rows if row["k"] != row["k"]} == {
        "dense_native",
        "dense_transferred",
        "dense_transferred_raw",
    }
    assert list(result.summary.columns) == ["arm", 1, 3, 10, "dense"]


def test_features_are_ranked_by_the_difference_of_class_means() -> None:
    generator = np.random.default_rng(0)
    features, y = generator.standard_normal((30, 7)), np.arange(30) % 2
    naive = sorted(
        range(7), key=lambda j: -abs(features[y == 1, j].mean() - features[y == 0, j].mean())
    )
    assert by_class_difference(features, y).tolist() == naive


@pytest.mark.parametrize("k", KS)
def test_the_arm_without_a_new_probe_is_the_sources_probe_on_the_transferred_features(
    result: SparseProbeEvaluation, pair: ModelPair, stitch: Stitch, saes: dict[str, Any], k: int
) -> None:
    x = _features(pair.source, stitch.source_hook, saes["source_sae"], TRAIN[0])
    truth = np.array(TRAIN[1]) == "sad"
    chosen = result.features["source"][:k]
    naive = by_class_difference(x, truth.astype(int))[:k].tolist()
    assert chosen == naive
    # The penalty is chosen by folds of ours: take every candidate, the arm must be one of them.
    scaler = StandardScaler().fit(x[:, chosen])
    hook, sae, is_sad = stitch.target_hook, saes["transferred_sae"], np.array(TEST[1]) == "sad"
    train, judged = (
        scaler.transform(_features(pair.target, hook, sae, texts)[:, chosen])
        for texts in (TRAIN[0], TEST[0])
    )
    raw, recentred = set(), set()
    for penalty in PENALTIES:
        probe = LogisticRegression(C=1 / (penalty * len(x)), max_iter=2000).fit(
            scaler.transform(x[:, chosen]), truth
        )
        raw.add(round(float((probe.predict(judged) == is_sad).mean()), 9))
        # Scores of the target with the mean and the deviation of the source's on the same texts.
        own = probe.decision_function(scaler.transform(x[:, chosen]))
        theirs, tested = (probe.decision_function(rows) for rows in (train, judged))
        scores = (tested - theirs.mean()) / theirs.std() * own.std() + own.mean()
        recentred.add(round(float(((scores > 0) == is_sad).mean()), 9))
    assert round(_accuracy(result, "transferred_raw", k), 9) in raw
    assert round(_accuracy(result, "transferred", k), 9) in recentred


def test_features_that_hold_the_answer_are_found(pair: ModelPair, stitch: Stitch) -> None:
    class Knows:
        """Encoder whose feature 5 is 1 on texts of one class only.

        Their mean lies on one side of the plane between the classes.
        """

        def __init__(self, model: Any, hook: str) -> None:
            means = [model.capture(text, hook)[0, 4:].float().mean(0) for text in TEXTS]
            self.direction = torch.stack(means[:20]).mean(0) - torch.stack(means[20:]).mean(0)
            self.middle = torch.stack(means).mean(0) @ self.direction

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            out = torch.rand(len(x), 12, generator=torch.Generator().manual_seed(0))
            out[:, 5] = 100 * float(x.mean(0) @ self.direction > self.middle)
            return out

    source, target = Knows(pair.source, stitch.source_hook), Knows(pair.target, stitch.target_hook)
    result = _evaluate(
        pair,
        stitch,
        source_sae=source,
        native_sae=target,
        transferred_sae=target,
        ks=(1,),
        dense=False,
    )
    assert [result.features[name][0] for name in ("source", "native", "transferred_new_probe")] == [
        5,
        5,
        5,
    ]
    for arm in ("source", "native", "transferred", "transferred_new_probe"):
        assert _accuracy(result, arm, 1) > 0.9
    assert "arm" in result._repr_html_()


def test_the_figure_has_a_line_an_arm(result: SparseProbeEvaluation) -> None:
    assert {trace.name for trace in result.figure().data} >= {
        "native",
        "transferred",
        "transferred, new probe",
        "random",
        "dense, native",
    }


def test_what_cannot_be_judged_is_refused(
    pair: ModelPair, stitch: Stitch, saes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="ks goes up to 100, an SAE has 48 features"):
        _evaluate(pair, stitch, **saes, ks=(100,))
    with pytest.raises(ValueError, match=r"ks is \[0\]"):
        _evaluate(pair, stitch, **saes, ks=(0,))
    with pytest.raises(MismatchError, match="this SAE has width 16; expected 24 dimensions"):
        _evaluate(pair, stitch, **saes | {"native_sae": saes["source_sae"]})
    with pytest.raises(ValueError, match="all 20 labels"):
        _evaluate(pair, stitch, **saes, test_labels=["sad"] * 20)

    class Elsewhere:
        cfg = SimpleNamespace(
            d_in=16, metadata=SimpleNamespace(hook_name="blocks.0.hook_resid_post")
        )
        encode = saes["source_sae"].encode

    with pytest.raises(MismatchError, match=r"this SAE was trained at 'blocks\.0"):
        _evaluate(pair, stitch, **saes | {"source_sae": Elsewhere()})
