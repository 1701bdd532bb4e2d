"""Probes of the bundled large model after fine-tunes, a merged adapter, casts and a copy of it.

The bars are those of monitors that are deployed: roundings cost less than .01 of AUROC, a copy is
kept, moments order the losses before any label, and a repair without labels is at least as good as
learning the probe again from as many labels.
"""

import copy
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch

import lrt_lens as lrt
from lrt_lens.models import HookedModel
from lrt_lens.reproduction import fine_tune

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


def changed(model: HookedModel, change: Callable[[torch.Tensor], torch.Tensor]) -> HookedModel:
    twin = copy.deepcopy(model.engine.model)
    for weight in twin.parameters():
        if weight.ndim == 2:
            weight.data = change(weight.data)
    return HookedModel.load(twin, tokenizer=model.tokenizer, name="changed")


def int8(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return (weight / scale).round() * scale


@pytest.mark.parametrize("kind", ["copy", "bfloat16", "int8"])
def test_casts_cost_less_than_a_hundredth(kind: str, large: HookedModel, updated: Any) -> None:
    changes = {"copy": torch.clone, "bfloat16": lambda w: w.bfloat16().float(), "int8": int8}
    summary = updated(changed(large, changes[kind]), n_shuffled=0)
    assert len(summary) == 12
    assert set(summary["verdict"]) == {"keep"}
    assert set(summary["predicted"]) == {"keep"}
    assert summary["loss"].max() < 0.01
    if kind == "copy":
        assert (summary["loss"] == 0).all()
        assert summary["kept"].min() > 1 - 1e-6


@pytest.mark.parametrize("rank", [None, 8])
def test_a_repair_without_labels_is_as_good_as_new_labels(
    rank: int | None, large: HookedModel, updated: Any
) -> None:
    new = fine_tune(
        large,
        lrt.demo_documents("review")[:300],
        n_steps=60,
        batch_rows=4,
        learning_rate=1e-2 if rank is None else 2e-2,
        lora_rank=rank,
        name="tuned",
    )
    summary = updated(new)
    print(
        summary[
            [
                "artefact",
                "verdict",
                "old",
                "frozen",
                "repaired",
                "distilled",
                "relearnt",
                "loss",
                "recovered",
                "recovered_distilled",
                "recovered_shuffled",
                "kept",
                "kept_texts",
                "rho",
            ]
        ]
        .round(3)
        .to_string()
    )
    lost = summary[summary["loss"] > 0.05]
    print(
        len(lost),
        lost[["old", "frozen", "repaired", "distilled", "relearnt"]].mean(),
        summary[["kept", "kept_texts", "rho", "loss"]].corr(method="spearman")["loss"],
    )
