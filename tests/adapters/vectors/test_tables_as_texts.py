"""Prompts and neutral texts in every form: columns are read by position, tables are refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch

from lrt_lens.adapters.vectors import (
    NeutralText,
    SteeringVector,
    calibrate_scale,
    compare_continuations,
    evaluate_clamping,
)
from lrt_lens.adapters.vectors._continuations import Continuations
from lrt_lens.data import BlockPlan, DocumentSource
from lrt_lens.data._blocks import WindowCutter
from lrt_lens.models import HookedModel, ModelPair
from lrt_lens.stitching import Stitch
from tests.adapters.vectors.test_clamping import CONTRAST

HOOK = "blocks.1.hook_resid_post"
TEXTS = [
    "the old king gave the bird a red stone and it sang in the garden.",
    "a slow dog ran under the tree and slept because it was sad.",
    "the queen found a little cat on the river and it was good.",
]
NO_COLUMN = {
    "DataFrame": pd.DataFrame({TEXTS[0]: ["a"], TEXTS[1]: ["b"]}),
    "dict": dict.fromkeys(TEXTS, 0),
    "set": set(TEXTS),
    "Dataset": datasets.Dataset.from_dict({"prompt": TEXTS, "other": TEXTS}),
}
VECTOR = SteeringVector(torch.linspace(-1, 1, 16), HOOK)


def columns() -> dict[str, Any]:
    return {
        "tuple": tuple(TEXTS),
        "numpy": np.array(TEXTS),
        "series": pd.Series(TEXTS, index=[2, 0, 1]),
        "pyarrow": pyarrow.array(TEXTS),
        "chunked": pyarrow.chunked_array([TEXTS[:1], TEXTS[1:]]),
        "data set": datasets.Dataset.from_dict({"prompt": TEXTS})["prompt"],
        "generator": (text for text in TEXTS),
    }


@pytest.mark.parametrize("kind", NO_COLUMN)
def test_keys_and_names_of_columns_are_no_prompts(
    model: HookedModel, twins: ModelPair, stitch: Stitch, kind: str
) -> None:
    table, message = NO_COLUMN[kind], f"texts is a {kind}; expected a list or one column"
    with pytest.raises(TypeError, match=message):
        compare_continuations(model, table, {"v": VECTOR}, scales=1.0)
    with pytest.raises(TypeError, match=message):
        Continuations(table, bool)
    vector = SteeringVector.mean_difference(twins.source, CONTRAST, at=1)
    for prompts, concept_texts in ((table, TEXTS), (TEXTS, table)):
        with pytest.raises(Exception, match=f"{message}|Type-check error"):
            evaluate_clamping(twins, stitch, vector, prompts, bool, concept_texts=concept_texts)


@pytest.mark.parametrize("kind", columns())
def test_prompts_in_any_column_are_read_by_position(model: HookedModel, kind: str) -> None:
    options: dict[str, Any] = {"scales": 1.0, "max_new_tokens": 3}
    expected = compare_continuations(model, TEXTS, {"v": VECTOR}, **options).table
    compared = compare_continuations(model, columns()[kind], {"v": VECTOR}, **options).table
    pd.testing.assert_frame_equal(compared, expected)
    outcome = Continuations(columns()[kind], bool, n_samples=2, max_new_tokens=3)
    assert outcome.prompts == TEXTS
    assert outcome.generate(model) == Continuations(TEXTS, bool, 2, 3).generate(model)


@pytest.mark.parametrize("kind", columns())
def test_neutral_texts_in_any_column_are_read_by_position(model: HookedModel, kind: str) -> None:
    assert NeutralText(model, columns()[kind], 1).baseline == NeutralText(model, TEXTS, 1).baseline


@pytest.fixture
def chatty(model: HookedModel) -> Iterator[HookedModel]:
    before = model.tokenizer.chat_template
    model.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    yield model
    model.tokenizer.chat_template = before


ASKED, ANSWERED = "the cat ran", "it sang in the garden."
CHAT = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
SHARED = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}]


@pytest.mark.parametrize(
    "neutral",
    [
        [{"messages": CHAT}],
        [{"conversations": CHAT}],
        [SHARED],
        [{"conversations": SHARED}],
        [tuple(CHAT)],
        [np.array(CHAT)],
        pd.DataFrame({"messages": [CHAT]}),
        datasets.Dataset.from_dict({"conversations": [SHARED]}),
    ],
)
def test_conversations_in_every_form_are_one_neutral_text(
    chatty: HookedModel, neutral: Any
) -> None:
    [expected] = NeutralText(chatty, [CHAT], 1)._rows
    assert NeutralText(chatty, neutral, 1)._rows == [expected]
    prompt = chatty.encode([f"user {ASKED}\nassistant "])[0]
    assert expected.tokens[: expected.prompt] == prompt[: expected.prompt]


def test_rows_tables_and_files_of_neutral_texts_are_read(
    model: HookedModel, tmp_path: Path, caplog: Any
) -> None:
    expected = NeutralText(model, TEXTS, 1).baseline
    path = tmp_path / "neutral.csv"
    pd.DataFrame({"n": range(3), "text": TEXTS}).to_csv(path, index=False)
    for neutral in (
        [{"text": text} for text in TEXTS],
        pd.DataFrame({"n": range(3), "text": TEXTS}),
        datasets.Dataset.from_dict({"text": TEXTS}),
        DocumentSource(pd.DataFrame({"a": TEXTS, "b": ["x"] * 3}), text_field="a"),
        path,
    ):
        assert NeutralText(model, neutral, 1).baseline == expected
    assert not caplog.text
    assert NeutralText(model, [TEXTS[0], None, *TEXTS[1:], "  "], 1).baseline == expected
    assert "2 neutral text(s) are empty and left out" in caplog.text


def test_tables_without_a_clear_column_are_no_neutral_texts(model: HookedModel) -> None:
    with pytest.raises(ValueError, match="2 of them with texts"):
        calibrate_scale(model, VECTOR, NO_COLUMN["DataFrame"], 0.1)
    with pytest.raises(ValueError, match="neutral is a set, which has no order"):
        NeutralText(model, set(TEXTS), 1)
    with pytest.raises(ValueError, match="neutral is one dict"):
        NeutralText(model, dict.fromkeys(TEXTS, 0), 1)
    for nothing in ([], [None], pd.Series([], dtype=object)):
        with pytest.raises(ValueError, match="no neutral text"):
            NeutralText(model, nothing, 1)


@pytest.mark.parametrize("kind", ["DataFrame", "dict", "set"])
def test_keys_and_names_of_columns_are_no_documents(model: HookedModel, kind: str) -> None:
    # Held-out scores of rows cut their texts here.
    cut: Any = WindowCutter(BlockPlan(), model).cut
    with pytest.raises(TypeError, match=f"texts is a {kind}; expected|Type-check error"):
        cut(NO_COLUMN[kind])
    assert len(cut(TEXTS)) == len(cut(tuple(TEXTS))) == 3
