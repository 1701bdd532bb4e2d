"""The shared options: what they load, and the messages about missing inputs."""

import gzip
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import lrt_lens as lrt
from lrt_lens.reproduction import FigureOptions, MissingInputError
from lrt_lens.reproduction._options import LEAST_CHARACTERS, _texts_of_data_set


@dataclass(frozen=True)
class Options(FigureOptions):
    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 100, "layer": 1}
    layer: int = 2


def test_quick_shrinks_what_was_not_given() -> None:
    assert Options(quick=True).shrunk() == Options(quick=True, n_tokens=100, layer=1)
    assert Options(quick=True, n_tokens=77).shrunk({"n_tokens"}) == Options(
        quick=True, n_tokens=77, layer=1
    )
    assert Options(quick=True).shrunk({"layer"}).layer == 2, "given at its default"
    assert Options().shrunk() == Options()


def test_bundled_models_and_texts_by_default() -> None:
    options = Options()
    pair = options.pair()
    assert (pair.source.d_model, pair.target.d_model) == (128, 256)
    assert options.texts() == lrt.demo_documents()


def test_the_same_name_twice_is_one_model() -> None:
    from lrt_lens.bundled import DEMO_FOLDER

    source, target = Options(
        source=str(DEMO_FOLDER / "small"), target=str(DEMO_FOLDER / "small")
    ).models()
    assert source is target


def test_two_folders_of_one_name_are_told_apart(model_folder: Path, tmp_path: Path) -> None:
    folders = [tmp_path / run / "hf" for run in ("a", "b")]
    for folder in folders:
        shutil.copytree(model_folder, folder)
    source, target = Options(source=str(folders[0]), target=str(folders[1])).models()
    assert (source.name, target.name) == ("a/hf", "b/hf")


def test_texts_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ("one", "two")))
    assert Options(documents=str(path)).texts() == ["one", "two"]


def test_a_model_that_is_not_there_is_named_with_what_was_looked_for_and_a_remedy(
    tmp_path: Path,
) -> None:
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


@pytest.mark.parametrize("name", ["The dog ran. It sat.", "two words", ""])
def test_a_text_is_no_name_of_texts(name: str) -> None:
    with pytest.raises(MissingInputError, match="not a text") as caught:
        Options(documents=name).texts()
    assert str(Path(name).absolute()) in str(caught.value)


def test_a_file_or_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "folder").mkdir()
    for name in ("empty.txt", "folder"):
        with pytest.raises(MissingInputError, match="--documents") as caught:
            Options(documents=str(tmp_path / name)).texts()
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", b"\x89PNG\xff"),
        ("t.jsonl.gz", b"plain"),
        ("t.jsonl.gz", gzip.compress(b"{}" * 999, mtime=0)[:-9]),
    ],
)
def test_a_file_that_holds_no_text_is_named_with_a_remedy(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MissingInputError, match="does not read as text: .*(UTF-8|again)"):
        Options(documents=str(tmp_path / name)).texts()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A data set without end, in rows of a million characters; the list has one item per row."""
    read: list[int] = []

    def rows(*_: Any, **__: Any) -> Iterator[dict[str, str]]:
        while True:
            read.append(1)
            yield {"text": "a" * 1_000_000}

    monkeypatch.setattr("datasets.load_dataset", rows)
    _texts_of_data_set.cache_clear()
    yield read
    _texts_of_data_set.cache_clear()


def test_a_data_set_gives_as_many_texts_as_its_tokens_need(hub: list[int]) -> None:
    assert {len(text) for text in Options(documents="any/set").texts()} == {1_000_000}
    assert len(hub) == LEAST_CHARACTERS // 1_000_000
    assert len(Options(documents="any/set").texts()) == len(hub), "kept"
    assert len(Options(documents="any/set", n_tokens=1_000_000).texts()) == 30


def test_a_stream_that_breaks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(*_: Any, **__: Any) -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        raise ConnectionError("reset by peer")

    monkeypatch.setattr("datasets.load_dataset", rows)
    with pytest.raises(MissingInputError, match="'breaks/early'.*reset by peer"):
        Options(documents="breaks/early").texts()


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_named_with_those_that_are(device: str) -> None:
    with pytest.raises(MissingInputError, match=f"--device '{device}'.*'cpu'") as caught:
        Options(device=device).check_device()
    assert "\n" not in str(caught.value)
    Options().check_device()


def test_an_sae_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"no cfg\.json") as caught:
        Options(sae=str(tmp_path)).source_sae()
    assert str(tmp_path) in str(caught.value)
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(MissingInputError, match=r"--sae .*KeyError: 'dtype'.*save_model"):
        Options(sae=str(tmp_path)).source_sae()
    with pytest.raises(MissingInputError, match="--sae is missing"):
        Options(source="a", target="b").source_sae()


def test_a_grid_joins_one_source_layer_with_one_target_layer_or_all() -> None:
    options = Options(n_tokens=6_000)
    grid = options.grid(options.pair(), options.texts(), 2)
    assert set(grid.scores["source_hook"]) == {"blocks.2.hook_resid_post"}
    assert len(grid) == 5
    assert grid.best().null is not None
    only = options.grid(options.pair(), options.texts(), 2, 3, null="none").best()
    assert (only.source_hook, only.target_hook, only.null) == (
        "blocks.2.hook_resid_post",
        "blocks.3.hook_resid_post",
        None,
    )
