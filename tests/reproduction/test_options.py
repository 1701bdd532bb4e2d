"""The shared options: what they load, and what they say where it is not there."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import lrt_lens as lrt
from lrt_lens.reproduction import FigureOptions, MissingInputError


@dataclass(frozen=True)
class Options(FigureOptions):
    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 100, "layer": 1}
    layer: int = 2


def test_quick_shrinks_what_was_not_given() -> None:
    assert Options(quick=True).shrunk() == Options(quick=True, n_tokens=100, layer=1)
    assert Options(quick=True, n_tokens=77).shrunk().n_tokens == 77
    assert Options().shrunk() == Options()


def test_bundled_models_and_texts_by_default() -> None:
    options = Options()
    pair = options.pair()
    assert (pair.source.d_model, pair.target.d_model) == (128, 256)
    assert options.texts() == lrt.demo_documents()


def test_the_same_name_twice_is_one_model() -> None:
    from lrt_lens.models.pair import DEMO_FOLDER

    source, target = Options(source=str(DEMO_FOLDER / "small"), target=str(DEMO_FOLDER / "small")).models()
    assert source is target


def test_texts_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ("one", "two")))
    assert Options(documents=str(path)).texts() == ["one", "two"]


def test_a_model_that_is_not_there_is_named_with_what_was_looked_for_and_a_remedy(tmp_path: Path) -> None:
    missing = str(tmp_path / "gone")
    with pytest.raises(MissingInputError, match="--source") as caught:
        Options(source=missing, target=missing).pair()
    assert missing in str(caught.value)
    assert "hf download" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_model_alone_is_refused() -> None:
    with pytest.raises(MissingInputError, match="give both"):
        Options(source="gpt2").pair()


def test_texts_that_are_not_there_are_named() -> None:
    with pytest.raises(MissingInputError, match=r"--documents 'gone\.jsonl': no file"):
        Options(documents="gone.jsonl").texts()


def test_an_sae_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"no cfg\.json") as caught:
        Options(sae=str(tmp_path)).source_sae()
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(MissingInputError, match="--sae is missing"):
        Options(source="a", target="b").source_sae()


def test_a_grid_joins_one_source_layer_with_one_target_layer_or_all() -> None:
    options = Options(n_tokens=6_000)
    grid = options.grid(options.pair(), options.texts(), 2)
    assert set(grid.scores["source_hook"]) == {"blocks.2.hook_resid_post"}
    assert len(grid) == 5
    assert grid.best().null is not None
    only = options.grid(options.pair(), options.texts(), 2, 3, null="none").best()
    assert (only.source_hook, only.target_hook, only.null) == ("blocks.2.hook_resid_post", "blocks.3.hook_resid_post", None)
