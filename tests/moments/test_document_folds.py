"""Tests of what a harvest writes down about its documents: folds, groups, columns and caps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lrt_lens.data import DocumentSource, document_key, part_of
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.moments import CrossMoments, Provenance, harvest, merge_shards
from lrt_lens.moments._provenance import BY_EXACT_TEXT
from lrt_lens.stitching import evaluate_stitch_loss

OPTIONS: dict[str, Any] = {
    "source_layers": [0],
    "target_layers": [1],
    "null": False,
    "context_length": 24,
    "progress": False,
}


def test_documents_and_tokens_of_each_fold_are_counted_saved_and_merged(
    pair: ModelPair, corpus: list[str], tmp_path: Path
) -> None:
    whole = harvest(pair, corpus, n_tokens=None, **OPTIONS)
    expected = [0] * 6
    for text in corpus:
        expected[min(part_of(document_key(text, 0)), 5)] += 1
    assert whole.folds["documents"].tolist() == expected
    assert whole.folds["tokens"].sum() == whole.n_tokens
    paths = [
        harvest(pair, corpus, n_tokens=None, shard=(k, 2), **OPTIONS).save(tmp_path / f"{k}")
        for k in range(2)
    ]
    pd.testing.assert_frame_equal(merge_shards(paths).folds, whole.folds)
    assert "share of tokens" in whole._repr_html_()


def test_a_column_and_groups_reach_the_folds(
    pair: ModelPair, corpus: list[str], tmp_path: Path
) -> None:
    frame = pd.DataFrame({"title": "a", "body": corpus, "book": [k // 3 for k in range(150)]})
    frame.to_csv(tmp_path / "a.csv.gz", index=False)
    options = OPTIONS | {"n_tokens": None}
    plain = harvest(pair, tmp_path / "a.csv.gz", text_field="body", **options)
    assert plain.provenance.corpus == harvest(pair, corpus, **options).provenance.corpus
    named = DocumentSource(tmp_path / "a.csv.gz", text_field="body", group="book")
    grouped = harvest(pair, named, **options)
    sizes = [0] * 6
    for book in frame["book"]:
        sizes[min(part_of(document_key(str(book), 0)), 5)] += 1
    assert grouped.folds["documents"].tolist() == sizes
    with pytest.raises(MismatchError, match="fold_rule"):
        plain.merge(grouped)
    with pytest.raises(MismatchError, match="give the groups of the harvest"):
        grouped.provenance.refuse_other_folds(None)
    grouped.provenance.refuse_other_folds("book")
    grouped.provenance.refuse_other_folds(frame["book"])
    with pytest.raises(MismatchError, match="in the column 'book', .* by 'year'.* group='book'"):
        grouped.provenance.refuse_other_folds("year")
    by_title = harvest(
        pair, frame.assign(year=frame["book"]), text_field="body", group="year", **options
    )
    with pytest.raises(MismatchError, match="group_column"):
        grouped.merge(by_title)
    by_values = harvest(pair, corpus, group=frame["book"], **options)
    assert by_values.provenance.group_column is None
    assert by_values.folds["documents"].tolist() == sizes
    by_values.provenance.refuse_other_folds("book")


def test_a_stitch_is_not_evaluated_with_other_groups(pair: ModelPair, corpus: list[str]) -> None:
    frame = pd.DataFrame({"text": corpus, "author": [k // 3 for k in range(150)]})
    frame["year"] = [k % 30 for k in range(150)]
    options = {**OPTIONS, "n_tokens": None, "group": "author"}
    stitch = harvest(pair, frame, **options).fit()[0, 1]
    with pytest.raises(MismatchError, match="in the column 'author', .* by 'year'"):
        evaluate_stitch_loss(pair, stitch, frame, group="year", progress=False)


def test_files_of_earlier_versions_say_so() -> None:
    text = Provenance().to_json().replace('"fold_rule": "normalised text", ', "")
    earlier = Provenance.from_json(text)
    assert earlier == replace(Provenance(), fold_rule=BY_EXACT_TEXT)
    with pytest.raises(MismatchError, match="decided by exact text.*harvest and fit again"):
        earlier.refuse_other_folds(None)


def test_documents_are_not_known_for_activations_of_ones_own() -> None:
    assert CrossMoments(pairs=()).folds["documents"].isna().all()
