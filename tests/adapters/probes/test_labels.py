"""Labels in every form: read by position, one per text or token."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch

from lrt_lens.adapters.probes import LinearProbe
from lrt_lens.adapters.probes._labels import check_labels, label_list

LABELS = [0, 1, 1, 0] * 5


@pytest.mark.parametrize(
    "labels",
    [
        tuple(LABELS),
        np.array(LABELS),
        pd.Series(LABELS, index=range(19, -1, -1)),
        pyarrow.array(LABELS),
        torch.tensor(LABELS),
        iter(LABELS),
    ],
    ids=["tuple", "numpy", "series", "pyarrow", "tensor", "iterator"],
)
def test_labels_of_texts_are_read_by_position(model: Any, passages: list[str], labels: Any) -> None:
    expected = LinearProbe.fit(model, passages[:20], LABELS, at=1)
    probe = LinearProbe.fit(model, iter(passages[:20]), labels, at=1)
    assert torch.equal(probe.weight, expected.weight)
    assert probe.corpus == expected.corpus


@pytest.mark.parametrize(
    "convert",
    [np.array, torch.tensor, pd.Series, tuple],
    ids=["numpy", "tensor", "series", "tuple"],
)
def test_labels_of_tokens_may_be_arrays(model: Any, passages: list[str], convert: Any) -> None:
    texts = passages[:6]
    counts = [len(ids) - 3 for ids in model.encode_bodies(texts)]
    lists = [[position % 2 for position in range(count)] for count in counts]
    expected = LinearProbe.fit(model, texts, lists, at=1, read="every")
    probe = LinearProbe.fit(model, texts, [convert(one) for one in lists], at=1, read="every")
    assert torch.equal(probe.weight, expected.weight)
    assert probe.accuracy(model, texts, lists) == probe.accuracy(
        model, texts, [convert(one) for one in lists]
    )
    with pytest.raises(ValueError, match="label 0 is a list; labels by token need read='every'"):
        LinearProbe.fit(model, texts, [convert(one) for one in lists], at=1)


@pytest.mark.parametrize(
    "labels",
    [
        dict(zip("abcdefghijklmnopqrst", LABELS, strict=True)),
        set(LABELS),
        pd.DataFrame({"y": LABELS}),
        np.array(LABELS)[:, None],
    ],
    ids=["dict", "set", "table", "two dimensions"],
)
def test_keys_and_tables_are_no_labels(model: Any, passages: list[str], labels: Any) -> None:
    message = f"labels is a {type(labels).__name__}; expected a list or one column"
    with pytest.raises(TypeError, match=message):
        label_list(labels)
    with pytest.raises(TypeError, match=message):
        LinearProbe.fit(model, passages[:20], labels, at=1)


def test_numbers_of_texts_and_labels_agree(passages: list[str]) -> None:
    assert check_labels(iter(passages[:2]), np.array([0, 1])) == (passages[:2], [0, 1])
    with pytest.raises(ValueError, match=r"3 text\(s\) and 2 label\(s\)"):
        check_labels(iter(passages[:3]), iter([0, 1]))
    with pytest.raises(ValueError, match=r"1 text\(s\) and 1 label\(s\)"):
        check_labels(passages[0], [0])
    with pytest.raises(ValueError, match="NAType; expected str or int"):
        check_labels(passages[:2], pd.Series([0, None], dtype="Int64"))
