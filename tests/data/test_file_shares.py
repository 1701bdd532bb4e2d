"""Documents are divided by files, each file into one share, and files that change are refused."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from lrt_lens.data import BlockPlan, DocumentSource, iterate_documents
from lrt_lens.data._file_shares import FileShares
from lrt_lens.errors import FileFormatError


def write(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, n_texts in enumerate((1, 6, 2, 3, 1, 2)):
        texts = [f"text {number} {k} " + "word " * 20 for k in range(n_texts)]
        write(tmp_path / "corpus" / f"part-{number}.jsonl", texts)
    return tmp_path / "corpus"


def texts_of(shares: FileShares) -> list[list[str]]:
    return [list(iterate_documents(shares.documents(k))) for k in range(shares.count)]


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_each_document_is_in_one_share_and_shares_have_about_equal_bytes(
    folder: Path, count: int
) -> None:
    shares = FileShares.of(folder, count)
    found = texts_of(shares)
    assert sorted(text for share in found for text in share) == sorted(iterate_documents(folder))
    # 15 texts of equal length; the largest file has 6 of them.
    assert max(map(len, found)) == max(6, -(-15 // count))


def test_a_folder_a_pattern_and_a_list_of_paths_are_divided_alike(folder: Path) -> None:
    shares = FileShares.of(str(folder), 3)
    for documents in (
        str(folder / "*.jsonl"),
        sorted(folder.iterdir()),
        DocumentSource(folder, text_field="text"),
    ):
        other = FileShares.of(documents, 3)
        assert texts_of(other) == texts_of(shares)
        assert (other.manifest, other.digest) == (shares.manifest, shares.digest)
    assert shares.documents(1).text_field is None
    assert other.documents(1).text_field == "text"


def test_the_manifest_tells_other_sizes_and_other_numbers_of_shares(
    folder: Path, tmp_path: Path
) -> None:
    shares = FileShares.of(folder, 2)
    assert shares.manifest["part-1.jsonl"] == f"{(folder / 'part-1.jsonl').stat().st_size} bytes"
    assert FileShares.of(folder, 3).digest != shares.digest
    # Another machine may see the files below another path.
    moved = folder.rename(tmp_path / "elsewhere")
    assert FileShares.of(moved, 2).digest == shares.digest
    write(moved / "part-3.jsonl", ["short"])
    assert FileShares.of(moved, 2).digest != shares.digest


def test_a_file_that_changes_is_named_with_both_sizes(folder: Path) -> None:
    shares, path = FileShares.of(folder, 6), folder / "part-1.jsonl"
    [share] = [k for k in range(6) if path in shares.documents(k).documents]
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    message = rf"part-1.jsonl' has {size // 2} bytes and had {size} bytes when .* restore it"
    with pytest.raises(FileFormatError, match=message):
        shares.documents(share)
    path.unlink()
    with pytest.raises(FileFormatError, match=r"part-1.jsonl' is gone and had"):
        shares.refuse_changed(share)
    shares.refuse_changed((share + 1) % 6)


def test_n_tokens_are_divided_equally(folder: Path) -> None:
    shares = FileShares.of(folder, 3)
    assert [shares.plan(BlockPlan(n_tokens=11), k).n_tokens for k in range(3)] == [4, 4, 3]
    assert shares.plan(BlockPlan(), 0).n_tokens is None


@pytest.mark.parametrize("is_streamed", [False, True])
def test_data_sets_are_divided_by_rows_or_by_shards(is_streamed: bool) -> None:
    rows = [{"text": f"text {k}", "author": f"a{k % 3}"} for k in range(20)]
    data: Any = datasets.Dataset.from_list(rows)
    if is_streamed:
        data = data.to_iterable_dataset(num_shards=4)
    shares = FileShares.of(DocumentSource(data, group="author"), 4)
    found = texts_of(shares)
    assert [text for share in found for text in share] == [row["text"] for row in rows]
    assert [len(share) for share in found] == [5] * 4
    number = {"shards": "4"} if is_streamed else {"rows": "20"}
    assert shares.manifest == number | {"columns": "text, author"}


def test_a_saved_data_set_is_divided_by_rows(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a b", "c d", "e f"]}).save_to_disk(tmp_path / "saved")
    assert texts_of(FileShares.of(tmp_path / "saved", 2)) == [["a b", "c d"], ["e f"]]


def streamed() -> Any:
    return datasets.Dataset.from_dict({"text": ["a", "b"]}).to_iterable_dataset()


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (["one text", "another"], "is 2, and documents is a list, which is in one piece; expected"),
        (iter(["one text"]), "documents is a .*iterator, which is in one piece"),
        ("One text of several words.", "documents is a .*, which is in one piece"),
        (streamed(), r"is 2, and the data set has 1 shards; expected at least one per share"),
        (datasets.Dataset.from_dict({"text": ["a"]}), r"the data set has 1 rows"),
        (
            datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}),
            "a dict|Dict",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(documents: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FileShares.of(documents, 2)


def test_too_few_or_repeated_files_and_listed_groups_are_refused(folder: Path) -> None:
    with pytest.raises(
        FileFormatError, match=r"file_shares is 7, and documents are 6 file\(s\); expected at least"
    ):
        FileShares.of(folder, 7)
    with pytest.raises(FileFormatError, match=r"documents are 1 file\(s\)"):
        FileShares.of(folder / "part-0.jsonl", 2)
    write(folder / "part-0.jsonl", [])
    with pytest.raises(FileFormatError, match=r"6 file\(s\), of which 1 are empty"):
        FileShares.of(folder, 6)
    with pytest.raises(FileFormatError, match="hold one file twice"):
        FileShares.of([folder / "part-1.jsonl", folder / "part-1.jsonl"], 1)
    with pytest.raises(ValueError, match="group is a list with one value per document"):
        FileShares.of(DocumentSource(folder, group=["a"] * 15), 2)
