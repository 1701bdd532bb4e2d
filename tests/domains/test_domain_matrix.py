"""`domain_matrix` against maps fitted by hand, and a domain that another one cannot explain."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import r2_score

import lrt_lens as lrt
from lrt_lens.data import DEFAULT_PARTS
from lrt_lens.domains import DomainMatrix, DomainTask
from lrt_lens.moments._row_keys import document_keys, parts_of

OPTIONS: dict[str, Any] = {"n_tokens": 1500, "context_length": 48, "progress": False}


@pytest.fixture(scope="module")
def domains(corpus: list[str]) -> dict[str, list[str]]:
    """The usual texts, and texts of single letters."""
    rng = np.random.default_rng(0)
    letters = [" ".join(rng.choice(list("abcdefgh"), size=40)) for _ in range(120)]
    return {"words": corpus, "letters": letters}


@pytest.fixture(scope="module")
def result(pair: Any, domains: Any, passages: list[str]) -> DomainMatrix:
    contrast = lrt.ContrastSet(
        [f"{text} cat" for text in passages[:30]], [f"{text} dog" for text in passages[:30]]
    )
    items = lrt.ChoiceItems(passages[40:52], [" cat"] * 12, [" dog"] * 12)
    task = DomainTask(
        labelled=(passages, ["cat" in text for text in passages]),
        contrast=contrast,
        items=items,
        neutral=passages[60:76],
    )
    return lrt.domain_matrix(
        pair, domains, (1, 2), tasks={"words": task}, damage=0.05, n_random=3, **OPTIONS
    )


def test_a_map_is_best_on_its_own_domain(result: DomainMatrix) -> None:
    matrix = result.matrix("r2")
    assert list(matrix.index) == list(matrix.columns) == ["words", "letters"]
    assert matrix.loc["words", "words"] > matrix.loc["letters", "words"]
    assert matrix.loc["letters", "letters"] > matrix.loc["words", "letters"]
    assert (result.table["r2_low"] <= result.table["r2"]).all()
    assert (result.table["r2"] <= result.table["r2_high"]).all()
    with pytest.raises(ValueError, match="no column"):
        result.matrix("accuracy")


def test_scores_are_those_of_rows(pair: Any) -> None:
    rng = np.random.default_rng(0)
    documents = np.arange(900) // 6
    rows, moments = {}, {}
    for name in ("one", "other"):
        x = rng.normal(size=(900, pair.source.d_model)) + 1
        y = x @ rng.normal(size=(x.shape[1], pair.target.d_model)) + rng.normal(size=(900, 1))
        rows[name] = x, y
        moments[name] = lrt.CrossMoments.from_activations(
            {1: x},
            {2: y},
            documents=documents,
            source_model=pair.source,
            target_model=pair.target,
            moment_dtype="float64",
        )
    result = lrt.domain_matrix(pair, moments, (1, 2), progress=False)
    held_out = np.repeat(
        np.isin(parts_of(document_keys(np.arange(150), 0), DEFAULT_PARTS), DEFAULT_PARTS.test), 6
    )
    for row in result.table.to_dict("records"):
        x, y = rows[row["scored_on"]]
        predicted = result.stitches[row["fitted_on"]].up.points(x[held_out]).numpy()
        for column, kind in (("r2", "variance_weighted"), ("r2_uniform", "uniform_average")):
            expected = r2_score(y[held_out], predicted, multioutput=kind)
            assert row[column] == pytest.approx(expected, rel=1e-9)
        assert row["n_test"] == held_out.sum()
    assert result.matrix().loc["one", "other"] < 0 < result.matrix().loc["one", "one"]


def test_artefacts_of_a_domain_go_through_every_map(result: DomainMatrix) -> None:
    rows = result.table.set_index(["fitted_on", "scored_on"])
    assert rows["auroc"].notna().to_list() == [True, False, True, False]
    # Through the map of letters, the vector need not reach the damage.
    assert rows.loc[(slice(None), "letters"), "effect"].isna().all()
    assert rows.loc[("words", "words"), "effect"] == rows.loc[("words", "words"), "effect"]
    controls = result.controls.set_index(["measure", "arm"])["value"]
    assert {("auroc", "native"), ("auroc", "shuffled"), ("effect", "random")} <= set(controls.index)
    own = rows.loc[("words", "words")]
    share = (own["auroc"] - 0.5) / (controls["auroc", "native"] - 0.5)
    assert own["auroc_share"] == pytest.approx(share)
    expected = own["effect"] / controls["effect", "native"]
    assert own["effect_share"] == pytest.approx(expected, nan_ok=True)


def test_wrong_domains_are_refused(pair: Any, domains: Any) -> None:
    with pytest.raises(ValueError, match="at least two"):
        lrt.domain_matrix(pair, {"words": domains["words"]}, (1, 2), **OPTIONS)
    with pytest.raises(ValueError, match="the domains are"):
        lrt.domain_matrix(pair, domains, (1, 2), tasks={"code": DomainTask()}, **OPTIONS)
    with pytest.raises(ValueError, match="all three or none"):
        DomainTask(neutral=["text"])
