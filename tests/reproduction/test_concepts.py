"""Concepts of scripts: bundled ones cut to size, task files, and folders with too few files."""

from pathlib import Path

import pytest

import lrt_lens as lrt
from lrt_lens.reproduction import MissingInputError, generic_stitch, load_concepts


def test_bundled_concepts_are_cut_to_size() -> None:
    concepts = load_concepts(None, pairs=7, test_items=5)
    assert [concept.name for concept in concepts] == ["sentiment", "mood"]
    assert {(len(concept.contrast), len(concept.items)) for concept in concepts} == {(7, 5)}
    assert concepts[0].contrast.positive == lrt.demo_contrast("sentiment").positive[:7]


def test_a_folder_needs_two_task_files(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"--tasks: 0 \.jsonl"):
        load_concepts(tmp_path, pairs=7, test_items=5)


def test_no_tokens_make_no_map() -> None:
    pair = lrt.demo_pair()
    assert (
        generic_stitch((pair.source, pair.target), [], source_hook=0, target_hook=0, n_tokens=0)
        is None
    )
