"""Probes of the bundled large model after fine-tunes, a merged adapter, casts and a copy of it.

The bars are those of monitors that are deployed: roundings cost less than .01 of AUROC, a copy is
kept, moments order the losses before any label, and a repair without labels is at least as good as
learning the probe again from as many labels.
"""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch

import lrt_lens as lrt
from lrt_lens.models import HookedModel
from lrt_lens.reproduction import changed_weights, fine_tune, rounded_to_int8

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("fine_tunes")]

CONCEPTS = ("sentiment", "mood")
OPTIONS: dict[str, Any] = {"n_tokens": 10_000, "test_share": 0.6, "progress": False}


@pytest.fixture(scope="module")
def large() -> HookedModel:
    return lrt.demo_pair().target


@pytest.fixture(scope="module")
def parts() -> dict[str, list[tuple[list[str], list[str]]]]:
    """Texts and labels by concept: two fifths to learn from, and the rest."""
    found = {}
    for name in CONCEPTS:
        texts, labels = lrt.demo_texts(name)
        found[name] = [
            (
                [t for i, t in enumerate(texts) if (i % 5 < 2) == learnt],
                [x for i, x in enumerate(labels) if (i % 5 < 2) == learnt],
            )
            for learnt in (True, False)
        ]
    return found


@pytest.fixture(scope="module")
def probes(large: HookedModel, parts: Any) -> list[lrt.LinearProbe]:
    return [
        lrt.LinearProbe.fit(large, *parts[name][0], at=layer, read=read, name=f"{name} {read}")
        for name in CONCEPTS
        for read in ("mean", "last")
        for layer in (0, 2, 4)
    ]


@pytest.fixture(scope="module")
def updated(large: HookedModel, parts: Any, probes: Any) -> Callable[[HookedModel], pd.DataFrame]:
    labelled = {f"{name} {read}": parts[name][1] for name in CONCEPTS for read in ("mean", "last")}

    def summary(new: HookedModel, **options: Any) -> pd.DataFrame:
        documents = lrt.demo_documents()
        return lrt.update(
            large, new, probes, documents, labelled=labelled, **(OPTIONS | options)
        ).summary

    return summary


@pytest.mark.parametrize("kind", ["copy", "bfloat16", "int8"])
def test_casts_cost_less_than_a_hundredth(kind: str, large: HookedModel, updated: Any) -> None:
    changes = {
        "copy": torch.clone,
        "bfloat16": lambda w: w.bfloat16().float(),
        "int8": rounded_to_int8,
    }
    summary = updated(changed_weights(large, changes[kind], name=kind), n_shuffled=0)
    assert len(summary) == 12
    assert set(summary["verdict"]) == {"keep"}
    assert set(summary["predicted"]) == {"keep"}
    assert summary["loss"].max() < 0.01
    if kind == "copy":
        assert (summary["loss"] == 0).all()
        assert summary["kept"].min() > 1 - 1e-6


def tuned(large: HookedModel, **options: Any) -> HookedModel:
    reviews = lrt.demo_documents("review")[:300]
    return fine_tune(large, reviews, n_steps=60, batch_rows=4, name="tuned", **options)


def recovered(summary: pd.DataFrame, arm: str) -> float:
    """Return the share of the sum of losses that an arm recovers."""
    old, frozen = summary["old"].sum(), summary["frozen"].sum()
    return float((summary[arm].sum() - frozen) / (old - frozen))


def test_texts_without_labels_repair_more_than_as_many_labels(
    large: HookedModel, updated: Any
) -> None:
    summary = updated(tuned(large, learning_rate=1e-2))
    assert (summary["loss"] > 0.05).sum() == 12
    # 96 texts without labels, beside the same texts with labels
    assert recovered(summary, "distilled") > 0.4
    assert recovered(summary, "distilled") > recovered(summary, "repaired") + 0.2
    assert recovered(summary, "distilled") > recovered(summary, "relearnt") + 0.2
    assert (summary["recovered_shuffled"] < 0.1).all()
    assert set(summary["verdict"]) == {"repair"}
    # Before any label: which probes lost most
    assert summary["kept_texts"].corr(summary["loss"], method="spearman") < -0.7


def test_a_merged_adapter_is_repaired(large: HookedModel, updated: Any) -> None:
    summary = updated(tuned(large, learning_rate=3e-2, lora_rank=8))
    assert 0.01 < summary["loss"].mean() < 0.05
    assert recovered(summary, "distilled") > 0.7
    assert recovered(summary, "distilled") > recovered(summary, "repaired")
    assert (summary.loc[summary["loss"] > 0, "recovered_shuffled"] < 0.1).all()
